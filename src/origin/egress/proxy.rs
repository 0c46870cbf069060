//! HTTP proxies, from `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY`.
//!
//! A proxy resolves names itself, so what it resolves them to cannot be judged here, and it may itself be at a private
//! address. Its clients therefore have no judging resolver, and are made so that they connect to the proxy and to nothing
//! else: what `NO_PROXY` exempts goes through the other clients. One client for both, whose resolver lets the proxy's own name
//! pass, was turned down: a reference to that name would pass too.

use http::Uri;
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use reqwest::{Client, Proxy};
use url::Url;

use crate::model::source::SourceError;

/// Which requests go through a proxy, and the clients for them.
#[derive(Debug)]
pub(super) struct Proxies {
    matcher: Matcher,
    http: Option<Proxied>,
    https: Option<Proxied>,
}

#[derive(Debug)]
enum Proxied {
    By(Client),
    /// A proxy that does not work, and why: told when it is needed.
    Unusable(String),
}

// === impl Proxies ===

impl Proxies {
    /// The proxies of the environment.
    pub(super) fn from_environment(build: impl Fn(Proxy) -> Result<Client, SourceError>) -> Self {
        let set = |names: [&str; 2]| names.iter().find_map(|name| std::env::var(name).ok()).unwrap_or_default();
        let matcher = Matcher::from_env();
        // The same proxies without exemptions, to find out which there are. Under CGI a client's header would be HTTP_PROXY.
        let (http, https) = if std::env::var_os("REQUEST_METHOD").is_some() {
            (None, None)
        } else {
            let all = Matcher::builder()
                .all(set(["ALL_PROXY", "all_proxy"]))
                .http(set(["HTTP_PROXY", "http_proxy"]))
                .https(set(["HTTPS_PROXY", "https_proxy"]))
                .build();
            let of = |url: &'static str| all.intercept(&Uri::from_static(url));
            (of("http://any.example/"), of("https://any.example/"))
        };
        let proxied = |found: Option<Intercept>| found.map(|proxy| Proxied::new(&proxy, &build));
        Self { matcher, http: proxied(http), https: proxied(https) }
    }

    /// The client that reaches `url` through a proxy; `None` if it is reached without one.
    pub(super) fn client(&self, url: &Url) -> Result<Option<&Client>, SourceError> {
        let invalid = |detail: String| SourceError::Invalid { detail };
        let uri: Uri = url.as_str().parse().map_err(|error| invalid(format!("{}: {error}", super::safe(url))))?;
        if self.matcher.intercept(&uri).is_none() {
            return Ok(None);
        }
        match if url.scheme() == "https" { &self.https } else { &self.http } {
            Some(Proxied::By(client)) => Ok(Some(client)),
            Some(Proxied::Unusable(why)) => Err(invalid(why.clone())),
            None => Err(invalid("the environment names a proxy that cannot be found in it".to_owned())),
        }
    }
}

// === impl Proxied ===

impl Proxied {
    fn new(proxy: &Intercept, build: &impl Fn(Proxy) -> Result<Client, SourceError>) -> Self {
        let uri = proxy.uri();
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Self::Unusable(format!(
                "the proxy {uri} is not http:// or https://; name such a one, or use NO_PROXY"
            ));
        }
        // It intercepts everything: a client that has it cannot connect to anything else.
        let made = Proxy::all(uri.to_string()).map_err(|error| error.to_string()).and_then(|made| {
            let made = match proxy.basic_auth() {
                Some(authorization) => made.custom_http_auth(authorization.clone()),
                None => made,
            };
            build(made).map_err(|error| error.to_string())
        });
        made.map_or_else(|error| Self::Unusable(format!("the proxy {uri}: {error}")), Self::By)
    }
}
