//! Who asks for whom. `object_store` fetches tokens (STS, metadata services, OAuth) and lists buckets through whatever HTTP
//! client it is given; it is given two. The one for buckets is held to the rules of the origin; the one for those that give
//! out credentials is not, because they are at link-local addresses by design, and their names come from the operator's
//! environment and never from a reference. A store is therefore built twice: once for its credential provider, and once with
//! that provider handed in.

use object_store::RetryConfig;
use object_store::client::{ClientOptions, HttpClient, HttpConnector};

use crate::model::Rights;
use crate::origin::egress::Egress;
use crate::origin::excerpt::excerpt;

/// Hands `object_store` our HTTP clients, with our proxies, authorities and timeouts.
#[derive(Debug)]
pub(super) struct Connector(reqwest::Client);

// === impl Connector ===

impl Connector {
    /// To the bucket.
    pub(super) fn to_data(egress: &Egress) -> Self {
        Self(egress.client().clone())
    }

    /// To those that give out credentials.
    pub(super) fn to_authorities(egress: &Egress) -> Self {
        Self(egress.authorities().clone())
    }
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(self.0.clone()))
    }
}

/// What is wrong with a configuration. Of a credential nothing is said, not even which character of it is wrong: parsers repeat
/// what they cannot read.
pub(super) fn unreadable(error: &object_store::Error, rights: &Rights) -> String {
    let (mut cause, mut parsing): (Option<&dyn std::error::Error>, bool) = (Some(error), false);
    while let Some(one) = cause {
        parsing |= one.is::<serde_json::Error>() || one.is::<base64::DecodeError>();
        cause = one.source();
    }
    match rights {
        Rights::Caller(credential) => format!("the {} credential is malformed", credential.kind()),
        Rights::Anonymous | Rights::Own if parsing => "a credential that the environment names is malformed".to_owned(),
        Rights::Anonymous | Rights::Own => excerpt(&error.to_string()),
    }
}

/// Retries are decided in one place, above all origins.
pub(super) fn once() -> RetryConfig {
    RetryConfig { max_retries: 0, ..RetryConfig::default() }
}
