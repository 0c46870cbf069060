//! What a caller shows to an origin so that private objects are read on their behalf. It lives in memory, for as long as the
//! request that brought it; nothing here prints, and nothing but the API's own request carries it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Text that must not be seen: no `Debug`, no `Display`, no way out but [`Secret::reveal`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

/// A caller's credential for one origin.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Credential {
    /// A bearer token: for a hub, a web server, Google Cloud Storage or Azure.
    Bearer(Secret),
    /// Keys of S3 and what speaks like it.
    Aws {
        /// Names the key; not secret, but of no use to anybody else either.
        access_key_id: Secret,
        /// Signs.
        secret_access_key: Secret,
        /// Of temporary keys.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session_token: Option<Secret>,
    },
    /// A key of an Azure storage account.
    AzureKey(Secret),
    /// A shared access signature of Azure: the query string.
    AzureSas(Secret),
    /// The JSON text of a Google service account's key.
    GoogleServiceAccount(Secret),
}

/// With whose rights an origin is asked.
#[derive(Clone, Debug, Default)]
pub enum Rights {
    /// Nobody's: what everybody may read.
    #[default]
    Anonymous,
    /// Those of this process: its environment, files and workload identity.
    Own,
    /// A caller's.
    Caller(Credential),
}

/// Longest credential: a service account's key is 2.5 KiB, a signed token rarely 8.
const LENGTH_LIMIT: usize = 16 * 1024;

// === impl Secret ===

impl Secret {
    /// Takes care of a secret.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text, for the one header or key that it is meant for.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

// Types around it derive `Debug`; what they print of it is nothing.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

// === impl Credential ===

impl Credential {
    /// Which kind it is: safe to print.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Bearer(_) => "bearer",
            Self::Aws { .. } => "aws",
            Self::AzureKey(_) => "azure_key",
            Self::AzureSas(_) => "azure_sas",
            Self::GoogleServiceAccount(_) => "google_service_account",
        }
    }

    /// Every secret in it.
    #[must_use]
    pub fn secrets(&self) -> Vec<&Secret> {
        match self {
            Self::Bearer(one) | Self::AzureKey(one) | Self::AzureSas(one) | Self::GoogleServiceAccount(one) => {
                vec![one]
            }
            Self::Aws { access_key_id, secret_access_key, session_token } => {
                [access_key_id, secret_access_key].into_iter().chain(session_token).collect()
            }
        }
    }

    /// What is wrong with it as a credential, if something is. Never says any of it.
    ///
    /// # Errors
    /// Empty or overlong parts, or control characters where a header is to be made of it.
    pub fn check(&self) -> Result<(), String> {
        let lines = matches!(self, Self::GoogleServiceAccount(_));
        for Secret(text) in self.secrets() {
            let broken = |c: char| c.is_control() && !(lines && c.is_ascii_whitespace());
            if text.is_empty() || text.len() > LENGTH_LIMIT || text.chars().any(broken) {
                return Err(format!("the {} credential is empty, longer than 16 KiB or not printable", self.kind()));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}(secret)", self.kind())
    }
}
