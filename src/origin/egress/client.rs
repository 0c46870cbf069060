//! The HTTP clients: HTTP/1.1 (one HTTP/2 connection caps a whole store at one connection's speed), no decompression (bytes are
//! hashed as they are), certificate authorities of [`super::tls`]. None follows a redirect by itself.

use std::sync::Arc;
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, ClientBuilder, Proxy};
use url::Url;

use super::address::Reach;
use super::proxy::Proxies;
use super::resolve::Resolver;
use super::tls::Tls;
use crate::model::source::SourceError;
use crate::origin::Config;

/// Idle connections kept to one host: as many as transfers ever open to it.
const IDLE: usize = 64;

/// The clients of a process.
#[derive(Debug)]
pub(super) struct Clients {
    reading: Routes,
    /// Without the limit on silence, which would count the time that a body takes to leave.
    writing: Routes,
    /// To those that give out credentials. Judged by nobody: see [`Clients::authorities`].
    authorities: Client,
}

/// One client for each reach, so that a connection that was made for the one is never used for the other.
#[derive(Debug)]
struct Routes {
    public: Client,
    inside: Client,
    proxies: Proxies,
}

// === impl Clients ===

impl Clients {
    pub(super) fn new(config: &Config, tls: &Tls) -> Result<Self, SourceError> {
        let stall = Some(config.stall_timeout.0);
        Ok(Self {
            reading: Routes::new(config, tls, stall)?,
            writing: Routes::new(config, tls, None)?,
            authorities: build(config, tls, stall, |builder| builder)?,
        })
    }

    /// Whether `url` is asked without a proxy.
    pub(super) fn is_direct(&self, url: &Url) -> bool {
        self.reading.proxies.client(url).is_ok_and(|proxied| proxied.is_none())
    }

    /// The client that asks by itself.
    pub(super) fn direct(&self, reach: Reach) -> &Client {
        self.reading.direct(reach)
    }

    /// The client for a request that may reach so far.
    pub(super) fn route(&self, url: &Url, reach: Reach) -> Result<&Client, SourceError> {
        self.reading.route(url, reach)
    }

    /// The same for one with a body: whoever sends it watches whether it moves.
    pub(super) fn writing(&self, url: &Url, reach: Reach) -> Result<&Client, SourceError> {
        self.writing.route(url, reach)
    }

    /// The client for those that give out credentials of this process (STS, metadata services). Much of that is at link-local
    /// addresses, and where it goes comes from the environment and never from a reference or an answer.
    pub(super) fn authorities(&self) -> &Client {
        &self.authorities
    }
}

// === impl Routes ===

impl Routes {
    fn new(config: &Config, tls: &Tls, stall: Option<Duration>) -> Result<Self, SourceError> {
        let direct =
            |reach| build(config, tls, stall, |builder| builder.no_proxy().dns_resolver(Arc::new(Resolver { reach })));
        let proxied = |proxy: Proxy| build(config, tls, stall, |builder| builder.proxy(proxy.clone()));
        Ok(Self {
            public: direct(Reach::Public)?,
            // Link-local addresses are reached by number only, which no resolver sees.
            inside: direct(Reach::Inside)?,
            proxies: Proxies::from_environment(proxied),
        })
    }

    fn direct(&self, reach: Reach) -> &Client {
        if reach == Reach::Public { &self.public } else { &self.inside }
    }

    fn route(&self, url: &Url, reach: Reach) -> Result<&Client, SourceError> {
        Ok(self.proxies.client(url)?.unwrap_or_else(|| self.direct(reach)))
    }
}

fn build(
    config: &Config,
    tls: &Tls,
    stall: Option<Duration>,
    with: impl Fn(ClientBuilder) -> ClientBuilder,
) -> Result<Client, SourceError> {
    let builder = Client::builder()
        .user_agent(concat!("preheat/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .redirect(Policy::none())
        .connect_timeout(config.connect_timeout.0)
        .pool_max_idle_per_host(IDLE)
        .tcp_nodelay(true);
    let builder = match tls.config() {
        Some(tls) => builder.tls_backend_preconfigured(tls),
        // An image without any CA bundle can still speak plain HTTP and file; HTTPS then fails by name, on use.
        None => builder.tls_certs_only(Vec::<Certificate>::new()),
    };
    let builder = with(match stall {
        Some(stall) => builder.read_timeout(stall),
        None => builder,
    });
    builder.build().map_err(|error| SourceError::Invalid { detail: format!("no HTTP client can be made: {error}") })
}
