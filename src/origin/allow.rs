//! Which origins may be asked. Prefixes are compared part by part (scheme, authority, whole path segments), never as text: as
//! text `https://good.example` is a prefix of `https://good.example.evil.net`.

use url::Url;

use super::config::Listing;
use crate::model::source::SourceError;
use crate::model::{Reference, Scheme};

/// The allow-list. Directories and the network are two lists: who lists the one has said nothing of the other, and a list
/// with nothing on it allows everything.
#[derive(Debug)]
pub(super) struct AllowList {
    prefixes: Vec<(Prefix, Listing)>,
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
    pub(super) fn new(listings: &[Listing]) -> Result<Self, SourceError> {
        let parse = |listing: &Listing| Ok((Prefix::parse(&listing.prefix)?, listing.clone()));
        Ok(Self { prefixes: listings.iter().map(parse).collect::<Result<_, SourceError>>()? })
    }

    pub(super) fn check_reference(&self, reference: &Reference) -> Result<(), SourceError> {
        if self.is_open(reference.scheme) || self.lists(reference) {
            return Ok(());
        }
        Err(refused(&reference.base()))
    }

    pub(super) fn lists(&self, reference: &Reference) -> bool {
        self.listing(reference).is_some()
    }

    /// What the list says of a reference: the longest prefix that covers it.
    pub(super) fn listing(&self, reference: &Reference) -> Option<&Listing> {
        self.find(reference.scheme, &reference.authority, &reference.place)
    }

    /// Whether a redirect may lead to `url`.
    pub(super) fn allows_url(&self, url: &Url) -> bool {
        let scheme = match url.scheme() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            _ => return false,
        };
        let host = url.host_str().unwrap_or_default();
        let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        let place = percent_encoding::percent_decode_str(url.path().trim_matches('/')).decode_utf8_lossy();
        self.is_open(scheme) || self.find(scheme, &authority, &place).is_some()
    }

    fn is_open(&self, scheme: Scheme) -> bool {
        let local = scheme == Scheme::File;
        !self.prefixes.iter().any(|(prefix, _)| (prefix.scheme == Scheme::File) == local)
    }

    fn find(&self, scheme: Scheme, authority: &str, place: &str) -> Option<&Listing> {
        let covering = self.prefixes.iter().filter(|(prefix, _)| prefix.covers(scheme, authority, place));
        covering
            .max_by_key(|(prefix, _)| (prefix.segments.len(), !prefix.authority.is_empty()))
            .map(|(_, listing)| listing)
    }
}

pub(super) fn refused(url: &str) -> SourceError {
    SourceError::Denied {
        what: url.to_owned(),
        detail: format!("it is not on the list of allowed origins; to allow it, add: --allow-origin {url}"),
    }
}

// === impl Prefix ===

impl Prefix {
    fn covers(&self, scheme: Scheme, authority: &str, place: &str) -> bool {
        let mut place = place.split('/');
        self.scheme == scheme
            && (self.authority.is_empty() || self.authority == authority)
            && self.segments.iter().all(|segment| place.next() == Some(segment))
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
        assert!(list.allows_url(&"https://good.example/models/y".parse().unwrap()));
        assert!(!list.allows_url(&"https://169.254.169.254/models/y".parse().unwrap()));
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
