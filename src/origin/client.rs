//! The HTTP clients: HTTP/1.1 (one HTTP/2 connection caps a whole store at one connection's speed), no decompression (bytes are
//! hashed as they are), proxies from the environment, certificate authorities from the system and from the configuration.

use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, ClientBuilder};

use super::Config;
use super::allow::AllowList;
use super::config::Listing;
use crate::model::source::SourceError;

/// Hops that a redirect may take.
const HOPS: usize = 5;

/// Idle connections kept to one host: as many as transfers ever open to it.
const IDLE: usize = 64;

/// One client for origins that may redirect, one for those that must not (a signed request is for one host).
#[derive(Clone, Debug)]
pub(super) struct Clients {
    pub(super) redirecting: Client,
    pub(super) direct: Client,
    /// Without the limit on silence, which would count the time that a body takes to leave.
    writing: Client,
    /// To those that give out credentials.
    authorities: Client,
}

/// The way out to one origin: what it may be reached by, and what of that is checked.
#[derive(Clone, Debug)]
pub(super) struct Egress {
    client: Client,
    writing: Client,
    authorities: Client,
}

/// Makes ring the process's TLS provider. Done first thing; again changes nothing.
pub fn install_tls_provider() {
    // An error means that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

// === impl Clients ===

impl Clients {
    pub(super) fn new(config: &Config, allow: Arc<AllowList>) -> Result<Self, SourceError> {
        install_tls_provider();
        let policy = Policy::custom(move |attempt| {
            if attempt.previous().len() > HOPS {
                return attempt.error("more than 5 redirects");
            }
            if !allow.allows_url(attempt.url()) {
                let message = super::allow::refused(&safe(attempt.url())).to_string();
                return attempt.error(message);
            }
            attempt.follow()
        });
        let stall = Some(config.stall_timeout.0);
        Ok(Self {
            redirecting: build(config, policy, stall)?,
            direct: build(config, Policy::none(), stall)?,
            writing: build(config, Policy::none(), None)?,
            authorities: build(config, Policy::none(), stall)?,
        })
    }
}

impl Clients {
    /// The way out to an origin of which the list says `listing`.
    pub(super) fn egress(&self, _listing: Option<&Listing>) -> Egress {
        Egress { client: self.direct.clone(), writing: self.writing.clone(), authorities: self.authorities.clone() }
    }
}

// === impl Egress ===

impl Egress {
    /// A client that follows no redirect.
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The same for requests with large bodies: it does not limit silence, whoever uses it watches the body.
    pub(super) fn writing(&self) -> &Client {
        &self.writing
    }

    /// A client for those that give out credentials (STS, metadata services). Where it goes comes from the environment and
    /// never from a reference, and much of it is at link-local addresses.
    pub(super) fn authorities(&self) -> &Client {
        &self.authorities
    }
}

fn build(config: &Config, policy: Policy, stall: Option<Duration>) -> Result<Client, SourceError> {
    let builder = || {
        let builder = Client::builder()
            .user_agent(concat!("preheat/", env!("CARGO_PKG_VERSION")))
            .http1_only()
            .redirect(Policy::none())
            .connect_timeout(config.connect_timeout.0)
            .pool_max_idle_per_host(IDLE)
            .tcp_nodelay(true);
        match stall {
            Some(stall) => builder.read_timeout(stall),
            None => builder,
        }
    };
    let with_authorities = |builder: ClientBuilder| -> Result<ClientBuilder, SourceError> {
        let Some(path) = &config.ca_bundle else { return Ok(builder) };
        let invalid =
            |detail: String| SourceError::Invalid { detail: format!("CA bundle {}: {detail}", path.display()) };
        let pem = std::fs::read(path).map_err(|error| invalid(error.to_string()))?;
        let certificates = Certificate::from_pem_bundle(&pem).map_err(|error| invalid(error.to_string()))?;
        if certificates.is_empty() {
            return Err(invalid("has no certificate".to_owned()));
        }
        Ok(builder.tls_certs_merge(certificates))
    };
    match with_authorities(builder())?.redirect(policy).build() {
        Ok(client) => Ok(client),
        // An image without any CA bundle can still speak plain HTTP and file; HTTPS then fails by name, on use.
        Err(error) => builder().tls_certs_only(Vec::<Certificate>::new()).build().map_err(|_| SourceError::Invalid {
            detail: format!("no HTTP client can be made: {error}; is there a CA bundle (set SSL_CERT_FILE)?"),
        }),
    }
}

/// A URL without query, fragment and userinfo: safe to print.
pub(super) fn safe(url: &url::Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Only a URL without a host refuses, and it has no userinfo.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}
