//! Which origins may be asked. Prefixes are compared part by part (scheme, authority, whole path segments), never as text: as
//! text `https://good.example` is a prefix of `https://good.example.evil.net`.

use url::{Host, Url};

use super::address::{Kind, Reach};
use super::safe;
use crate::model::source::SourceError;
use crate::model::{Reference, Scheme};
use crate::origin::config::Listing;

/// The allow-list. Directories and the network are two lists: who lists the one has said nothing of the other, and a list
/// with nothing on it allows everything.
#[derive(Debug)]
pub(in crate::origin) struct AllowList {
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    prefix: Prefix,
    listing: Listing,
    /// How far what it covers may reach.
    reach: Reach,
}

#[derive(Debug)]
struct Prefix {
    scheme: Scheme,
    /// Host and port, or bucket; empty allows every one of the scheme.
    authority: String,
    segments: Vec<String>,
}

// === impl AllowList ===

impl AllowList {
    pub(in crate::origin) fn new(listings: &[Listing]) -> Result<Self, SourceError> {
        let parse = |listing: &Listing| {
            let prefix = Prefix::parse(&listing.prefix)?;
            let reach = prefix.reach(listing.allow_private);
            Ok(Entry { prefix, listing: listing.clone(), reach })
        };
        Ok(Self { entries: listings.iter().map(parse).collect::<Result<_, SourceError>>()? })
    }

    pub(in crate::origin) fn check_reference(&self, reference: &Reference) -> Result<(), SourceError> {
        if self.is_open(reference.scheme) || self.lists(reference) {
            return Ok(());
        }
        Err(refused(&reference.base(), &reference.base()))
    }

    pub(in crate::origin) fn lists(&self, reference: &Reference) -> bool {
        self.listing(reference).is_some()
    }

    /// What the list says of a reference: the longest prefix that covers it.
    pub(in crate::origin) fn listing(&self, reference: &Reference) -> Option<&Listing> {
        self.find(reference.scheme, &reference.authority, &reference.place).map(|entry| &entry.listing)
    }

    /// How far the list lets requests for a reference reach.
    pub(super) fn reach(&self, reference: &Reference) -> Reach {
        self.find(reference.scheme, &reference.authority, &reference.place).map_or(Reach::Public, |entry| entry.reach)
    }

    /// How far the list lets a request for `url` reach; `None` where it has nothing that covers it.
    pub(super) fn of_url(&self, url: &Url) -> Option<Reach> {
        let scheme = match url.scheme() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return None,
        };
        let host = url.host_str()?;
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let place = percent_encoding::percent_decode_str(url.path().trim_matches('/')).decode_utf8_lossy();
        // A server that decodes once more than it should would find another place behind them.
        let climbs = place.split(['/', '\\']).any(|segment| matches!(segment, "." | ".."));
        if climbs {
            return None;
        }
        self.find(scheme, &authority, &place).map(|entry| entry.reach)
    }

    /// Whether nothing of the kind is listed, so that everything of it is allowed.
    pub(super) fn is_open(&self, scheme: Scheme) -> bool {
        let local = scheme == Scheme::File;
        !self.entries.iter().any(|entry| (entry.prefix.scheme == Scheme::File) == local)
    }

    /// Of equal prefixes the last one speaks: flags come after the file.
    fn find(&self, scheme: Scheme, authority: &str, place: &str) -> Option<&Entry> {
        let covering = self.entries.iter().filter(|entry| entry.prefix.covers(scheme, authority, place));
        covering.max_by_key(|entry| (entry.prefix.segments.len(), !entry.prefix.authority.is_empty()))
    }
}

/// A refusal of `what`, and the listing that would allow it.
pub(super) fn refused(what: &str, prefix: &str) -> SourceError {
    let mut detail = "it is not on the list of allowed origins".to_owned();
    // What somebody else has written is about to be copied into a shell.
    if prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b":/.-_~%@+[]".contains(&b)) {
        detail.push_str(&format!("; to allow it, add: --allow-origin {prefix}"));
    }
    SourceError::NotAllowed { what: what.to_owned(), detail }
}

/// The listing that covers all of a URL's server.
pub(super) fn server(url: &Url) -> String {
    let mut url = url.clone();
    url.set_path("");
    safe(&url).trim_end_matches('/').to_owned()
}

// === impl Prefix ===

impl Prefix {
    fn covers(&self, scheme: Scheme, authority: &str, place: &str) -> bool {
        let mut place = place.split('/');
        self.scheme == scheme
            && (self.authority.is_empty() || self.authority == authority)
            && self.segments.iter().all(|segment| place.next() == Some(segment))
    }

    /// How far it lets requests reach. A number in it, or `localhost`, says by itself where that is; but to get at a machine's
    /// credentials takes both the number and the word, because whoever writes `http://169.254.169.254` may not know them.
    fn reach(&self, allow_private: bool) -> Reach {
        let url = match self.scheme {
            Scheme::Http | Scheme::Https if !self.authority.is_empty() => {
                Url::parse(&format!("{}://{}/", self.scheme.as_str(), self.authority)).ok()
            }
            _ => None,
        };
        let literal = url.as_ref().is_some_and(|url| !matches!(url.host(), Some(Host::Domain(_))));
        match url.as_ref().and_then(Kind::of_host) {
            Some(Kind::Link) if literal && allow_private => Reach::Link,
            Some(Kind::Link | Kind::Never) => Reach::Public,
            Some(_) => Reach::Inside,
            None if allow_private => Reach::Inside,
            None => Reach::Public,
        }
    }

    fn parse(text: &str) -> Result<Self, SourceError> {
        let invalid = |detail: &str| SourceError::Invalid {
            detail: format!(
                "allowed origin `{text}`: {detail}; write https://host/path, s3://bucket/prefix (or gs://, az://, hf://) or file:///dir"
            ),
        };
        // `file:///` allows all files, `https://host` all of a host: neither is a reference, so parts are made up.
        let (scheme, rest) = text.split_once("://").ok_or_else(|| invalid("has no scheme"))?;
        if rest.contains(['?', '#']) {
            return Err(invalid("has a query or a fragment"));
        }
        let probe = match scheme {
            "file" if rest.trim_matches('/').is_empty() => "file:///x".to_owned(),
            "http" | "https" | "s3" | "gs" | "az" | "hf" if rest.is_empty() => format!("{scheme}://any/x"),
            "hf" if !rest.trim_matches('/').contains('/') => format!("{}/x", text.trim_end_matches('/')),
            _ => text.to_owned(),
        };
        let reference: Reference = probe.parse().map_err(|error| invalid(&format!("{error}")))?;
        let whole = probe != text;
        let segments = if whole { "" } else { reference.place.as_str() };
        Ok(Self {
            scheme: reference.scheme,
            authority: if rest.is_empty() { String::new() } else { reference.authority },
            segments: segments.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(prefixes: &[&str]) -> Result<AllowList, SourceError> {
        AllowList::new(&prefixes.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn the_longest_prefix_speaks() {
        let list = list(&["s3://bucket,credentials", "s3://bucket/open", "s3://"]).unwrap();
        let says = |text: &str| list.listing(&text.parse().unwrap()).map(|listing| listing.credentials);
        assert_eq!(says("s3://bucket/a/b"), Some(true));
        assert_eq!(says("s3://bucket/open/b"), Some(false));
        assert_eq!(says("s3://other/b"), Some(false));
        assert_eq!(says("https://host/b"), None);
    }

    #[test]
    fn prefixes_end_at_segments_and_hosts() {
        let list =
            list(&["https://good.example/models", "s3://bucket/a", "gs://my_bucket/a", "az://", "file:///srv/models"])
                .unwrap();
        for (text, allowed) in [
            ("https://good.example/models", true),
            ("https://good.example/models/x", true),
            ("https://good.example/models-private/x", false),
            ("https://good.example.evil.net/models/x", false),
            ("https://good.example:8443/models/x", false),
            ("http://good.example/models/x", false),
            ("s3://bucket/a/b", true),
            ("s3://bucket/ab", false),
            ("gs://my_bucket/a/b", true),
            ("gs://bucket/a/b", false),
            ("az://any-container/a", true),
            ("file:///srv/models/m", true),
            ("file:///etc/passwd", false),
        ] {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(list.check_reference(&reference).is_ok(), allowed, "{text}");
        }
        let refused = list.check_reference(&"s3://other/x".parse().unwrap()).unwrap_err().to_string();
        assert!(refused.contains("--allow-origin s3://other/x"), "{refused}");
        for (url, covered) in [
            ("https://good.example/models/y", true),
            ("https://good.example/models/%79", true),
            ("https://good.example:443/models", true),
            ("https://169.254.169.254/models/y", false),
            ("https://good.example/models/..%2fother", false),
            ("https://good.example/models/%2e%2e/other", false),
            ("https://good.example/models/..%5cother", false),
            ("https://good.example./models/y", false),
            ("https://good.example/models%2fy", true),
            ("ftp://good.example/models/y", false),
        ] {
            assert_eq!(list.of_url(&url.parse().unwrap()).is_some(), covered, "{url}");
        }
    }

    #[test]
    fn a_listing_says_how_far() {
        for (listing, reach) in [
            ("https://host.example", Reach::Public),
            ("https://host.example,allow_private", Reach::Inside),
            ("http://localhost:9000", Reach::Inside),
            ("http://127.0.0.1:9000/models", Reach::Inside),
            ("http://2130706433", Reach::Inside),
            ("http://10.0.0.5", Reach::Inside),
            ("http://[fd00::5]:80", Reach::Inside),
            ("http://169.254.169.254", Reach::Public),
            ("http://169.254.169.254,allow_private", Reach::Link),
            ("http://[fd00:ec2::254],allow_private", Reach::Link),
            ("http://metadata.google.internal,allow_private", Reach::Public),
            ("http://0.0.0.0,allow_private", Reach::Public),
            ("http://,allow_private", Reach::Inside),
            ("s3://bucket", Reach::Public),
            ("s3://bucket,allow_private", Reach::Inside),
            ("hf://,allow_private", Reach::Inside),
        ] {
            assert_eq!(list(&[listing]).unwrap().entries[0].reach, reach, "{listing}");
        }
        let list = list(&["http://a.example", "http://a.example/x,allow_private", "http://a.example/x/y"]).unwrap();
        for (url, reach) in [
            ("http://a.example/z", Reach::Public),
            ("http://a.example/x/z", Reach::Inside),
            ("http://a.example/x/y/z", Reach::Public),
        ] {
            assert_eq!(list.of_url(&url.parse().unwrap()), Some(reach), "{url}");
        }
    }

    #[test]
    fn whole_schemes_and_no_list_allow_all() {
        let files = list(&["file:///"]).unwrap();
        assert!(files.check_reference(&"file:///any/where".parse().unwrap()).is_ok());
        assert!(files.check_reference(&"https://host/x".parse().unwrap()).is_ok());
        let network = list(&["https://"]).unwrap();
        assert!(network.check_reference(&"https://host/x".parse().unwrap()).is_ok());
        assert!(network.check_reference(&"s3://bucket/x".parse().unwrap()).is_err());
        assert!(network.check_reference(&"file:///any/where".parse().unwrap()).is_ok());
        assert!(list(&[]).unwrap().check_reference(&"https://host/x".parse().unwrap()).is_ok());
        assert!(list(&["models"]).is_err());
    }
}
