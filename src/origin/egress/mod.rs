//! The way out. A daemon asks other machines on behalf of whoever may ask it, so no request leaves before it is known that the
//! operator allows it: its URL's scheme, host and path by the list of allowed origins, its address by what that list says of
//! private ones. Each request is judged, the first as well as every hop of a redirect.
//!
//! One parser cuts every URL that is connected to (the `url` crate, which the HTTP client uses as well), because two that
//! disagree about where a host ends are a way around any check. Hosts that are numbers are judged before the request, names by
//! the client's own resolver, which looks each up once and hands the connection exactly the addresses it has judged. Redirects
//! are followed here: the HTTP client would check neither the list nor a number in the URL, and knows of no `Authorization`
//! that was meant for one server only.
//!
//! What counts as the operator's word for a private address: `allow_private` in the longest listing that covers the URL; a
//! listing whose host is a number or `localhost`; and, for requests to that very endpoint alone, the variables that name the
//! endpoint of a store or hub. An endpoint is not open to plain `http://` references by being set: its bucket is one thing, its
//! administration on the same port another.

mod address;
mod allow;
mod client;
mod names;
mod proxy;
mod redirect;
mod resolve;
mod tls;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use reqwest::{Client, Method, Request, Response};
use url::{Host, Url};

use self::address::{Kind, Reach};
pub(super) use self::allow::AllowList;
use self::client::Clients;
pub(super) use self::redirect::{HOPS, next, too_many};
pub(super) use self::resolve::forbidden_in;
use self::tls::Tls;
pub use self::tls::install_tls_provider;
pub(super) use self::wire::{Broken, Incoming};
use self::wire::{Outcome, Wires};
use super::Config;
use super::range::transport;
use crate::model::source::SourceError;
use crate::model::{Reference, Scheme};
use crate::sys::mutant::mutant;

/// What all ways out of this process have in common.
#[derive(Debug)]
pub(super) struct Border {
    allow: Arc<AllowList>,
    clients: Clients,
    wires: Arc<Wires>,
    /// What needs nobody's word.
    free: Reach,
}

/// The way out to one origin.
#[derive(Clone, Debug)]
pub(super) struct Egress {
    border: Arc<Border>,
    home: Option<Arc<Home>>,
    client: Client,
    writing: Client,
    /// How far `client` reaches.
    reach: Reach,
}

/// The server that an origin's own requests go to, where a setting names it and not the reference.
#[derive(Debug)]
struct Home {
    url: Url,
    reach: Reach,
    /// The listing that speaks for it.
    prefix: String,
    /// Whether it is a hub, which keeps large files at storage of its own.
    hub: bool,
}

/// A request that may be redirected.
#[derive(Debug)]
pub(super) struct Ask<'a> {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
    /// `Authorization`, for the server of `url` and no other.
    pub(super) authorization: Option<&'a HeaderValue>,
    /// Hops that are left.
    pub(super) hops: usize,
    /// What is asked for, safe to print.
    pub(super) what: &'a str,
    /// How long to wait for an answer.
    pub(super) stall: Duration,
}

/// An answer whose body may be large.
pub(super) struct Answer {
    pub(super) head: Response,
    /// The body, where it comes over a connection of our own; else it is that of `head`.
    pub(super) incoming: Option<Incoming>,
}

/// Where the public hub keeps large files; below these names nobody else has any.
const STORAGE: [&str; 2] = [".hf.co", ".huggingface.co"];

// === impl Border ===

impl Border {
    /// With `own_network` every address may be asked but those where clouds answer with credentials.
    pub(super) fn new(config: &Config, allow: Arc<AllowList>, own_network: bool) -> Result<Self, SourceError> {
        let free = if own_network { Reach::Inside } else { Reach::Public };
        let tls = Arc::new(Tls::new(config)?);
        let clients = Clients::new(config, &tls)?;
        let wires = Arc::new(Wires::new(tls, config.connect_timeout.0, config.stall_timeout.0));
        Ok(Self { allow, clients, wires, free })
    }

    /// The way out for `reference`. `endpoint`: the server that it is asked at, if its own text does not say so, and whether
    /// the operator has named that.
    pub(super) fn egress(
        self: &Arc<Self>,
        reference: &Reference,
        endpoint: Option<(Url, bool)>,
    ) -> Result<Egress, SourceError> {
        let listed = self.allow.reach(reference);
        let web = matches!(reference.scheme, Scheme::Http | Scheme::Https);
        let home = match endpoint {
            Some((url, named)) => {
                let named = match (named, self.free) {
                    (false, _) => Reach::Public,
                    (true, Reach::Public) => Reach::Inside,
                    (true, _) => Reach::Link,
                };
                let reach = listed.max(named).max(self.allow.of_url(&url).unwrap_or(Reach::Public));
                let prefix = format!("{}://{}", reference.scheme.as_str(), reference.authority);
                Some(Home { url, reach, prefix, hub: reference.scheme == Scheme::Hf })
            }
            // Who acts for himself may name a metadata service; what a server answers may not.
            None if web && self.free > Reach::Public => Url::parse(&reference.base()).ok().map(|url| {
                let literal = !matches!(url.host(), Some(Host::Domain(_)));
                let reach = if literal { Reach::Link } else { Reach::Inside };
                Home { url, reach, prefix: reference.base(), hub: false }
            }),
            None => None,
        };
        let reach = home.as_ref().map_or(self.free, |home| home.reach.max(self.free));
        let (client, writing) = match &home {
            Some(home) => {
                (self.clients.route(&home.url, reach)?.clone(), self.clients.writing(&home.url, reach)?.clone())
            }
            // Nothing is written where no setting says.
            None => (self.clients.direct(reach).clone(), self.clients.direct(reach).clone()),
        };
        let egress = Egress { border: Arc::clone(self), home: home.map(Arc::new), client, writing, reach };
        if let Some(home) = &egress.home {
            egress.permit(&home.url)?;
        }
        Ok(egress)
    }
}

// === impl Egress ===

impl Egress {
    /// A client for the origin's endpoint and no other server. It follows no redirect. Libraries that send by themselves are
    /// given it, and questions to a hub, whose redirects are answers; the rest goes through [`Egress::follow`].
    pub(super) fn client(&self) -> &Client {
        &self.client
    }

    /// The same for requests with bodies: it does not limit silence, whoever uses it watches the body.
    pub(super) fn writing(&self) -> &Client {
        &self.writing
    }

    /// A client for those that give out credentials of this process, where the environment says: nothing that comes from a
    /// reference or an answer may be asked with it.
    pub(super) fn authorities(&self) -> &Client {
        self.border.clients.authorities()
    }

    /// Sends a request and follows where the answers lead. Each hop is judged as the first request is, and has to be allowed
    /// by a listing of its own.
    pub(super) async fn follow(&self, ask: Ask<'_>) -> Result<Response, SourceError> {
        Ok(self.walk(ask, false).await?.head)
    }

    /// The same for a GET whose answer may be large.
    pub(super) async fn follow_bulk(&self, ask: Ask<'_>) -> Result<Answer, SourceError> {
        self.walk(ask, true).await
    }

    /// Sends a GET to the origin's endpoint whose answer may be large, as [`Egress::client`] would. `None`: that has to do it.
    pub(super) async fn bulk(&self, request: &Request, what: &str) -> Result<Option<Answer>, SourceError> {
        self.by_wire(request, self.reach, what).await
    }

    async fn by_wire(&self, request: &Request, reach: Reach, what: &str) -> Result<Option<Answer>, SourceError> {
        if !self.border.clients.is_direct(request.url()) {
            return Ok(None);
        }
        Ok(match self.border.wires.ask(request, reach, what).await? {
            Outcome::Begun(head, incoming) => Some(Answer { head, incoming: Some(incoming) }),
            Outcome::Answered(head) => Some(head.into()),
            Outcome::Unsuited => None,
        })
    }

    async fn walk(&self, ask: Ask<'_>, bulk: bool) -> Result<Answer, SourceError> {
        let mut url = ask.url.clone();
        let mut authorization = ask.authorization;
        for hop in 0..=ask.hops {
            let reach = if hop == 0 { self.permit(&url)? } else { self.permit_hop(&url, ask.what)? };
            let answer = self.send_within(&ask, url.clone(), reach, authorization, bulk).await?;
            let Some(target) = next(&url, &answer.head, ask.what)? else { return Ok(answer) };
            // Once away, for good: who leads us back chooses what is asked there.
            if target.origin() != url.origin() {
                authorization = None;
            }
            url = target;
        }
        Err(too_many(ask.what))
    }

    /// Whether `url` may be asked by this origin, and how far the request for it may reach.
    fn permit(&self, url: &Url) -> Result<Reach, SourceError> {
        let denied =
            |detail: &str| Err(SourceError::NotAllowed { what: allow::server(url), detail: detail.to_owned() });
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return denied("it is not http:// or https:// with a host");
        }
        if !url.username().is_empty() || url.password().is_some() {
            return denied("it has a user name in it");
        }
        let reach = self.reach(url)?.max(self.border.free);
        // The parser lets quotes and semicolons be; no server has them in its name, and refusals print lines to copy.
        if !is_plain(url.host_str().unwrap_or_default()) {
            return denied("its host has characters that no host has");
        }
        match Kind::of_host(url) {
            _ if mutant("addresses_unchecked") => Ok(Reach::Link),
            Some(kind) if !kind.is_within(reach) => Err(self.too_far(url, kind, None)),
            _ => Ok(reach),
        }
    }

    /// The same of a URL that an answer for `what` leads to.
    pub(super) fn permit_hop(&self, url: &Url, what: &str) -> Result<Reach, SourceError> {
        match self.permit(url) {
            Err(_) if mutant("redirects_unchecked") => Ok(Reach::Link),
            Err(SourceError::NotAllowed { what: server, detail }) => {
                Err(SourceError::NotAllowed { what: server, detail: format!("{what} redirects there, and {detail}") })
            }
            permitted => permitted,
        }
    }

    fn reach(&self, url: &Url) -> Result<Reach, SourceError> {
        let allow = &self.border.allow;
        match (&self.home, allow.of_url(url)) {
            (Some(home), _) if home.url.origin() == url.origin() => Ok(home.reach),
            (_, Some(reach)) => Ok(reach),
            _ if allow.is_open(Scheme::Https) || self.is_storage(url) => Ok(Reach::Public),
            _ => Err(allow::refused(&allow::server(url), &allow::server(url))),
        }
    }

    fn is_storage(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default();
        self.home.as_ref().is_some_and(|home| home.hub)
            && (url.scheme(), url.port()) == ("https", None)
            && STORAGE.iter().any(|suffix| host.ends_with(suffix))
    }

    async fn send_within(
        &self,
        ask: &Ask<'_>,
        url: Url,
        reach: Reach,
        authorization: Option<&HeaderValue>,
        bulk: bool,
    ) -> Result<Answer, SourceError> {
        let client = self.border.clients.route(&url, reach)?;
        let mut request = client.request(ask.method.clone(), url.clone()).headers(ask.headers.clone());
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        let failed = |error: reqwest::Error| match forbidden_in(&error) {
            Some(found) => self.too_far(&url, found.kind, Some(&found.address.to_string())),
            None => transport(&error, ask.what, ask.stall),
        };
        let request = request.build().map_err(failed)?;
        if bulk && let Some(answer) = self.by_wire(&request, reach, ask.what).await? {
            return Ok(answer);
        }
        Ok(client.execute(request).await.map_err(failed)?.into())
    }

    /// The refusal of an address, and what to write to allow it.
    fn too_far(&self, url: &Url, kind: Kind, address: Option<&str>) -> SourceError {
        let at = address.map_or_else(|| format!("it is {kind}"), |address| format!("it is at {address}, {kind}"));
        let home = self.home.as_ref().filter(|home| home.url.origin() == url.origin() && kind != Kind::Link);
        let prefix = home.map_or_else(|| allow::server(url), |home| home.prefix.clone());
        let named = matches!(url.host(), Some(Host::Domain(_)));
        let remedy = match kind.needs() {
            None => "no listing allows that".to_owned(),
            Some(_) if self.border.free > Reach::Public => {
                "only a reference that names its number may ask it".to_owned()
            }
            Some(Reach::Link) if named => "a listing can allow it only by its number, with allow_private".to_owned(),
            Some(_) => {
                // Whoever had no list had everything.
                let open = self.border.allow.is_open(Scheme::Https);
                let rest =
                    if open { "; then the list names all that may be asked, as https:// or s3:// would" } else { "" };
                format!(
                    "to allow it, add: --allow-origin '{prefix},allow_private', or to origins.allow of the configuration: \
                     {{ prefix = \"{prefix}\", allow_private = true }}{rest}"
                )
            }
        };
        SourceError::NotAllowed { what: allow::server(url), detail: format!("{at}; {remedy}") }
    }
}

// === impl Answer ===

impl From<Response> for Answer {
    fn from(head: Response) -> Self {
        Self { head, incoming: None }
    }
}

fn is_plain(host: &str) -> bool {
    host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']'))
}

/// A URL without query, fragment and userinfo: safe to print.
pub(super) fn safe(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Only a URL without a host refuses, and it has no userinfo.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.to_string()
}
