//! Azure Blob Storage: signed with the account's key, a shared access signature or a bearer token, pinned by ETag, and with a
//! digest only where the uploader has left one.

mod upload;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use object_store::ObjectStore;
use object_store::azure::{AzureAuthorizer, MicrosoftAzure, MicrosoftAzureBuilder};
use object_store::client::HttpRequest;
use reqwest::header::{HeaderMap, HeaderValue};

use super::bucket::{Ask, Bucket, Dialect};
use super::credentials::{Connector, once, unreadable};
use super::environment;
use super::explain::Remedies;
use super::outgoing::Outgoing;
use crate::digest::{Algorithm, Declared};
use crate::model::sink::{Existing, Put};
use crate::model::source::{SourceError, Validator};
use crate::model::{Credential, Reference, Rights};
use crate::origin::egress::Egress;
use crate::origin::encoding::hex_of_base64;
use crate::origin::range::{if_match, validator_of};

/// Variables any of which says that this process has credentials for Azure's storage. The metadata service is asked only where
/// `AZURE_CREDENTIAL_TYPE` says `managed_identity`, or a client or an endpoint of an identity is named.
const CREDENTIALS: [&str; 16] = [
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_MASTER_KEY",
    "AZURE_STORAGE_SAS_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_STORAGE_TOKEN",
    "AZURE_STORAGE_CLIENT_ID",
    "AZURE_CLIENT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_CREDENTIAL_TYPE",
    "AZURE_MSI_ENDPOINT",
    "AZURE_IDENTITY_ENDPOINT",
    "AZURE_MSI_RESOURCE_ID",
    "AZURE_OBJECT_ID",
    "AZURE_USE_AZURE_CLI",
    "IDENTITY_ENDPOINT",
];

/// The version of the service's protocol that unsigned requests are for: the same that `object_store` signs. Without one the
/// oldest is spoken, which knows no checksums and hides what may not be read.
const VERSION: &str = "2023-11-03";

/// Azure Blob Storage.
pub(super) struct Azure {
    store: MicrosoftAzure,
    account: String,
    bucket_url: String,
    /// `false`: requests are not signed.
    signed: bool,
    remedies: Remedies,
}

/// The storage account's endpoint, as the environment has it.
pub(in crate::origin) fn endpoint_in_force() -> Option<String> {
    endpoint_of().map(|(endpoint, _)| endpoint)
}

/// The server that the account is at, and whether the environment names it.
pub(super) fn endpoint_of() -> Option<(String, bool)> {
    if let Some(endpoint) = environment::first(&["AZURE_STORAGE_ENDPOINT", "AZURE_ENDPOINT"]) {
        return Some((endpoint, true));
    }
    let account = environment::first(&["AZURE_STORAGE_ACCOUNT_NAME"])?;
    Some((format!("https://{account}.blob.core.windows.net"), false))
}

// === impl Azure ===

impl Azure {
    pub(super) fn new(reference: &Reference, egress: &Egress, rights: &Rights) -> Result<Self, SourceError> {
        let container = &reference.authority;
        let invalid = |detail: String| SourceError::Invalid { detail: format!("az://{container}: {detail}") };
        let account = environment::first(&["AZURE_STORAGE_ACCOUNT_NAME"])
            .ok_or_else(|| invalid("names no storage account: set AZURE_STORAGE_ACCOUNT_NAME".to_owned()))?;
        if !(3..=24).contains(&account.len()) || !account.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
        {
            return Err(invalid(format!(
                "AZURE_STORAGE_ACCOUNT_NAME `{account}` is not 3 to 24 characters of a-z and 0-9"
            )));
        }
        let endpoint = endpoint_in_force().unwrap_or_default();
        environment::check_url("AZURE_STORAGE_ENDPOINT", &endpoint).map_err(invalid)?;
        let endpoint = endpoint.trim_end_matches('/');
        let (builder, signed) = match rights {
            Rights::Anonymous => (MicrosoftAzureBuilder::new(), false),
            Rights::Own => {
                let asked_not_to = environment::says_yes("AZURE_SKIP_SIGNATURE");
                let signed = environment::first(&CREDENTIALS).is_some() && !asked_not_to;
                (if signed { MicrosoftAzureBuilder::from_env() } else { MicrosoftAzureBuilder::new() }, signed)
            }
            Rights::Caller(Credential::AzureKey(key)) => {
                (MicrosoftAzureBuilder::new().with_access_key(key.reveal()), true)
            }
            Rights::Caller(Credential::AzureSas(query)) => {
                let key = object_store::azure::AzureConfigKey::SasKey;
                (MicrosoftAzureBuilder::new().with_config(key, query.reveal()), true)
            }
            Rights::Caller(Credential::Bearer(token)) => {
                (MicrosoftAzureBuilder::new().with_bearer_token_authorization(token.reveal()), true)
            }
            Rights::Caller(other) => {
                let kind = other.kind();
                return Err(invalid(format!("takes a credential of kind azure_key, azure_sas or bearer, not {kind}")));
            }
        };
        let connected = |builder: MicrosoftAzureBuilder, connector: Connector| {
            let builder = builder
                .with_account(&account)
                .with_container_name(container)
                .with_endpoint(endpoint.to_owned())
                // It would put the emulator's well-known key in the place of everything.
                .with_use_emulator(false)
                .with_skip_signature(!signed)
                .with_allow_http(endpoint.starts_with("http:"))
                .with_retry(once())
                .with_http_connector(connector);
            builder.build().map_err(|error| invalid(unreadable(&error, rights)))
        };
        let store = if signed {
            let authority = connected(builder, Connector::to_authorities(egress))?;
            let builder = MicrosoftAzureBuilder::new().with_credentials(Arc::clone(authority.credentials()));
            connected(builder, Connector::to_data(egress))?
        } else {
            connected(builder, Connector::to_data(egress))?
        };
        let remedies = Remedies {
            bucket: format!("az://{container}"),
            denied: "set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_KEY or a workload identity (AZURE_CLIENT_ID, \
                     AZURE_TENANT_ID, AZURE_FEDERATED_TOKEN_FILE) that may use it",
            elsewhere: "set AZURE_STORAGE_ENDPOINT to where it is",
            unreachable: "are AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ENDPOINT right?",
            anonymous: !signed,
        };
        Ok(Self { store, account, bucket_url: format!("{endpoint}/{container}"), signed, remedies })
    }
}

#[async_trait]
impl Dialect for Azure {
    fn lister(&self) -> &dyn ObjectStore {
        &self.store
    }

    fn bucket_url(&self) -> &str {
        &self.bucket_url
    }

    async fn sign(&self, request: &mut HttpRequest) -> object_store::Result<()> {
        request.headers_mut().insert("x-ms-version", HeaderValue::from_static(VERSION));
        if !self.signed {
            return Ok(());
        }
        let credential = self.store.credentials().get_credential().await?;
        AzureAuthorizer::new(&credential, &self.account).try_authorize(request)
    }

    fn describe(&self, headers: &HeaderMap) -> Result<(Validator, Vec<Declared>), String> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(encoding) = text("content-encoding").filter(|encoding| *encoding != "identity") {
            return Err(format!(
                "is stored with Content-Encoding {encoding}, so that nobody can tell what its bytes are: upload it without"
            ));
        }
        // Of an answer to a range the plain header may be the MD5 of the range.
        let whole = text("content-range").is_none().then(|| text("content-md5")).flatten();
        let hex = text("x-ms-blob-content-md5").or(whole).and_then(hex_of_base64).filter(|hex| hex.len() == 32);
        let declared = hex.map(|hex| Declared { algorithm: Algorithm::Md5, hex });
        Ok((validator_of(headers), declared.into_iter().collect()))
    }

    fn pin(&self, ask: Ask, validator: &Validator) -> Ask {
        match if_match(validator) {
            Some((name, value)) => ask.header(name, value),
            None => ask,
        }
    }

    fn remedies(&self) -> &Remedies {
        &self.remedies
    }

    async fn upload(
        &self,
        bucket: &Bucket,
        key: &str,
        content: &Outgoing,
        existing: Existing,
    ) -> Result<Put, SourceError> {
        upload::upload(bucket, key, content, existing).await
    }
}

impl fmt::Debug for Azure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.bucket_url)
    }
}
