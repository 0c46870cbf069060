//! Settings of the origins.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

use crate::base::units::Span;
use crate::model::Tenant;

/// Settings of [`super::Origins`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// URL prefixes that may be fetched, and what goes with each. Without one of the network any web server, bucket and hub may
    /// be, anonymously and at public addresses; over TCP a directory only if it is listed.
    pub allow: Vec<Listing>,
    /// PEM file with certificate authorities to trust beside the system's.
    pub ca_bundle: Option<PathBuf>,
    /// How long a connection may take. Twice this and a dead address delays every retry; half and slow TLS fails.
    pub connect_timeout: Span,
    /// How long an origin may be silent, before the first byte and between two.
    pub stall_timeout: Span,
    /// Most files that one listing may have.
    pub files_max: usize,
}

/// One prefix of the list of allowed origins. Written as a table, or as text: the prefix and, after commas, `allow_private`,
/// `credentials` and `scope=NAME`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Listing {
    /// `https://host/path`, `s3://bucket/prefix`, `hf://organisation`, `file:///dir`: matched part by part.
    pub prefix: String,
    /// Whether it may be at a private, loopback or link-local address.
    pub allow_private: bool,
    /// Whether it is read with the daemon's own credentials.
    pub credentials: bool,
    /// Who may read what is read with them; nobody named: everybody who may ask the daemon.
    pub scopes: Vec<Tenant>,
}

/// A prefix with options that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "allowed origin `{text}`: {detail}; after the prefix there may be `,allow_private`, `,credentials` and `,scope=NAME`"
)]
pub struct ListingError {
    text: String,
    detail: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            ca_bundle: None,
            connect_timeout: Span(Duration::from_secs(10)),
            stall_timeout: Span(Duration::from_secs(20)),
            files_max: 100_000,
        }
    }
}

// === impl Config ===

impl Config {
    /// Everything that cannot work, each with its key.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let each = self.allow.iter().map(std::slice::from_ref);
        let wrong = each.filter_map(|listing| super::AllowList::new(listing).err());
        wrong.map(|error| format!("origins.allow: {error}")).collect()
    }
}

// === impl Listing ===

impl FromStr for Listing {
    type Err = ListingError;

    fn from_str(text: &str) -> Result<Self, ListingError> {
        let error = |detail: String| ListingError { text: text.to_owned(), detail };
        let mut listing =
            Self { prefix: text.to_owned(), allow_private: false, credentials: false, scopes: Vec::new() };
        // From the end: a comma may also belong to the path.
        while let Some((prefix, option)) = listing.prefix.rsplit_once(',') {
            match option.split_once('=').unwrap_or((option, "")) {
                ("allow_private", "") => listing.allow_private = true,
                ("credentials", "") => listing.credentials = true,
                ("scope", name) => {
                    let scope = Tenant::try_from(name.to_owned()).map_err(|problem| error(problem.to_string()))?;
                    listing.scopes.insert(0, scope);
                }
                _ if option.contains('/') => break,
                _ => return Err(error(format!("`{option}` is no option"))),
            }
            listing.prefix = prefix.to_owned();
        }
        Ok(listing)
    }
}

impl fmt::Display for Listing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.prefix)?;
        for (set, word) in [(self.allow_private, "allow_private"), (self.credentials, "credentials")] {
            if set {
                write!(f, ",{word}")?;
            }
        }
        self.scopes.iter().try_for_each(|scope| write!(f, ",scope={scope}"))
    }
}

impl<'de> Deserialize<'de> for Listing {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Table {
            prefix: String,
            #[serde(default)]
            allow_private: bool,
            #[serde(default)]
            credentials: bool,
            #[serde(default)]
            scopes: Vec<Tenant>,
        }
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Text(String),
            Table(Table),
        }
        let expected = "a URL prefix, or a table with `prefix` and perhaps `allow_private`, `credentials`, `scopes`";
        match Written::deserialize(deserializer).map_err(|_| serde::de::Error::custom(expected))? {
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
            Written::Table(Table { prefix, allow_private, credentials, scopes }) => {
                Ok(Self { prefix, allow_private, credentials, scopes })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_prefix() {
        let listing: Listing = "s3://models/a,credentials,allow_private,scope=team-a,scope=team-b".parse().unwrap();
        assert_eq!(listing.prefix, "s3://models/a");
        assert!(listing.credentials && listing.allow_private);
        assert_eq!(listing.scopes.iter().map(Tenant::as_str).collect::<Vec<_>>(), ["team-a", "team-b"]);
        assert_eq!(listing.to_string().parse::<Listing>().unwrap(), listing);
        let plain: Listing = "https://host/a,b/c".parse().unwrap();
        assert_eq!((plain.prefix.as_str(), plain.credentials), ("https://host/a,b/c", false));
        for bad in ["s3://models,private", "s3://models,scope=", "s3://models,scope=Team"] {
            assert!(bad.parse::<Listing>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tables_and_text_are_both_read() {
        let toml = "allow = [\"https://a\", { prefix = \"s3://b\", credentials = true, scopes = [\"t\"] }]";
        let config: Config =
            figment::Figment::from(<figment::providers::Toml as figment::providers::Format>::string(toml))
                .extract()
                .unwrap();
        assert_eq!(config.allow[0].to_string(), "https://a");
        assert_eq!(config.allow[1].to_string(), "s3://b,credentials,scope=t");
        let wrong = "allow = [{ prefix = \"s3://b\", credential = true }]";
        let wrong = figment::Figment::from(<figment::providers::Toml as figment::providers::Format>::string(wrong));
        assert!(wrong.extract::<Config>().is_err());
    }
}
