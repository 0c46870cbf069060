//! Names to addresses: looked up once for each connection, every address judged, and the connection made to one of exactly
//! those. Looking up, judging, and letting the client look up again was turned down: the second answer may be another.
//!
//! If one of a name's addresses may not be asked, none of them is. Taking the others would be kinder to a name that has an
//! address inside and one outside, but such a name is how a rebinding attack begins, and which address a connection gets would
//! be up to the network's mood; with `allow_private` for the name, said once, it works always.

use std::error::Error;
use std::net::{IpAddr, SocketAddr};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::address::{Kind, Reach};
use crate::model::source::SourceError;
use crate::sys::mutant::mutant;

/// Addresses of one name that are tried: each may cost a connect timeout. What is beyond is judged all the same.
const TRIED: usize = 16;

/// The resolver of a client that may reach so far.
#[derive(Debug)]
pub(super) struct Resolver {
    pub(super) reach: Reach,
}

/// A name that leads where it may not.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{name} is at {address}, {kind}")]
pub(in crate::origin) struct Forbidden {
    name: String,
    pub(super) address: IpAddr,
    pub(super) kind: Kind,
}

// === impl Forbidden ===

impl Forbidden {
    /// The refusal of `what` (a reference or a URL) at an origin whose requests a library sends.
    pub(in crate::origin) fn refusal(&self, what: &str) -> SourceError {
        let server = what.split_once("://").and_then(|(scheme, rest)| Some((scheme, rest.split(['/', '@']).next()?)));
        let remedy = match (self.kind.needs(), server) {
            (Some(Reach::Link), _) => "; a listing can allow it only by its number, with allow_private".to_owned(),
            (Some(_), Some((scheme, authority))) => {
                format!("; to allow it, add: --allow-origin '{scheme}://{authority},allow_private'")
            }
            _ => "; no listing allows that".to_owned(),
        };
        SourceError::NotAllowed { what: what.to_owned(), detail: format!("{self}{remedy}") }
    }
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let reach = self.reach;
        Box::pin(async move { Ok(Box::new(judged(name.as_str(), reach).await?.into_iter()) as Addrs) })
    }
}

/// The addresses of a name, if all of them may be asked. Their ports mean nothing.
pub(super) async fn judged(name: &str, reach: Reach) -> Result<Vec<SocketAddr>, Box<dyn Error + Send + Sync>> {
    let found = look_up(name).await?;
    check(name, &found, reach)?;
    let mut found = if mutant("second_lookup_at_connect") { look_up(name).await? } else { found };
    found.truncate(TRIED);
    Ok(found)
}

/// By the system's resolver: what `/etc/hosts` and `/etc/nsswitch.conf` say goes for preheat too.
async fn look_up(name: &str) -> std::io::Result<Vec<SocketAddr>> {
    Ok(tokio::net::lookup_host((name, 0)).await?.collect())
}

fn check(name: &str, found: &[SocketAddr], reach: Reach) -> Result<(), Forbidden> {
    let judged = found.iter().map(|found| (found.ip(), Kind::of(found.ip())));
    match judged.filter(|(_, kind)| !kind.is_within(reach)).max_by_key(|(_, kind)| *kind) {
        Some((address, kind)) if !mutant("addresses_unchecked") => {
            Err(Forbidden { name: name.to_owned(), address, kind })
        }
        _ => Ok(()),
    }
}

/// The refusal that lies at the bottom of an HTTP client's error.
pub(in crate::origin) fn forbidden_in<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a Forbidden> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(forbidden) = error.downcast_ref() {
            return Some(forbidden);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_remedy_is_for_what_was_asked() {
        let told = |address: &str, what: &str| {
            let address: IpAddr = address.parse().unwrap();
            Forbidden { name: "s3.example".to_owned(), address, kind: Kind::of(address) }.refusal(what).to_string()
        };
        for (what, listing) in [
            ("s3://bucket/a/b", "'s3://bucket,allow_private'"),
            ("hf://org/model@main", "'hf://org,allow_private'"),
            ("https://s3.example:9000/bucket/a", "'https://s3.example:9000,allow_private'"),
        ] {
            let told = told("10.0.0.5", what);
            assert!(told.contains(listing) && told.contains("s3.example is at 10.0.0.5, a private address"), "{told}");
        }
        assert!(told("169.254.169.254", "s3://bucket/a").contains("only by its number"));
        assert!(told("0.0.0.0", "s3://bucket/a").contains("no listing"));
    }

    #[test]
    fn one_forbidden_address_forbids_the_name() {
        let found = |addresses: &[&str]| -> Vec<SocketAddr> {
            addresses.iter().map(|address| SocketAddr::new(address.parse().unwrap(), 0)).collect()
        };
        for (reach, addresses, forbidden) in [
            (Reach::Public, &["1.1.1.1", "2606:4700::1111"][..], None),
            (Reach::Public, &["1.1.1.1", "10.0.0.5", "8.8.8.8"], Some("10.0.0.5")),
            (Reach::Public, &["2606:4700::1111", "::ffff:127.0.0.1"], Some("::ffff:127.0.0.1")),
            (Reach::Inside, &["10.0.0.5", "127.0.0.1", "fd00::1", "1.1.1.1"], None),
            (Reach::Inside, &["10.0.0.5", "169.254.169.254"], Some("169.254.169.254")),
            (Reach::Inside, &["10.0.0.5", "0.0.0.0"], Some("0.0.0.0")),
            (Reach::Public, &[], None),
        ] {
            let found =
                check("a.example", &found(addresses), reach).err().map(|forbidden| forbidden.address.to_string());
            assert_eq!(found.as_deref(), forbidden, "{addresses:?}");
        }
    }
}
