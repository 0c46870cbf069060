//! Where an answer sends us, before anybody asks whether we may go there.

use reqwest::header::{HeaderMap, LOCATION};
use reqwest::{Response, StatusCode};
use url::Url;

use crate::model::source::SourceError;

/// Hops from what is asked for to the bytes.
pub(in crate::origin) const HOPS: usize = 5;

/// The next URL, if the answer is a redirect that keeps the method.
pub(in crate::origin) fn next(from: &Url, answer: &Response, what: &str) -> Result<Option<Url>, SourceError> {
    match target(from, answer.status(), answer.headers()) {
        Ok(next) => Ok(next),
        Err(detail) => Err(SourceError::NotAllowed { what: what.to_owned(), detail }),
    }
}

/// More hops than [`HOPS`].
pub(in crate::origin) fn too_many(what: &str) -> SourceError {
    SourceError::NotAllowed { what: what.to_owned(), detail: format!("it redirects more than {HOPS} times") }
}

fn target(from: &Url, status: StatusCode, headers: &HeaderMap) -> Result<Option<Url>, String> {
    if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let mut targets = headers.get_all(LOCATION).iter();
    // Two of them are read one way by one program and another way by the next.
    let (Some(target), None) = (targets.next(), targets.next()) else {
        return Err("it redirects, but not to one place".to_owned());
    };
    let next = target.to_str().ok().and_then(|target| from.join(target).ok());
    let mut next = next.ok_or("it redirects to what is not a URL")?;
    next.set_fragment(None);
    let to = next.host_str().unwrap_or("no host").to_owned();
    if !matches!(next.scheme(), "http" | "https") {
        return Err(format!("it redirects to {}://, which is not http or https", next.scheme()));
    }
    if from.scheme() == "https" && next.scheme() != "https" {
        return Err(format!("it redirects from https to {to} without TLS"));
    }
    if !next.username().is_empty() || next.password().is_some() {
        return Err(format!("it redirects to {to} with a user name in the URL"));
    }
    Ok(Some(next))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(from: &str, status: u16, locations: &[&str]) -> Result<Option<String>, String> {
        let mut headers = HeaderMap::new();
        for location in locations {
            headers.append(LOCATION, location.parse().unwrap());
        }
        let next = target(&Url::parse(from).unwrap(), StatusCode::from_u16(status).unwrap(), &headers)?;
        Ok(next.map(String::from))
    }

    #[test]
    fn locations_are_joined_as_browsers_do() {
        for (location, next) in [
            ("/b", "https://a.example/b"),
            ("b?x=1#f", "https://a.example/m/b?x=1"),
            ("//b.example/c", "https://b.example/c"),
            ("\\\\b.example\\c", "https://b.example/c"),
            ("https:/\\10.0.0.5/c", "https://10.0.0.5/c"),
            ("https:b", "https://a.example/m/b"),
            ("https://2130706433/", "https://127.0.0.1/"),
            ("https://B.example:443", "https://b.example/"),
            ("../../../c", "https://a.example/c"),
            ("https://b.example#@10.0.0.5/", "https://b.example/"),
            ("https://b.example\\@10.0.0.5/", "https://b.example/@10.0.0.5/"),
        ] {
            for status in [301, 302, 303, 307, 308] {
                assert_eq!(
                    follow("https://a.example/m/a", status, &[location]),
                    Ok(Some(next.to_owned())),
                    "{location}"
                );
            }
        }
        for status in [200, 201, 300, 304, 305, 306, 309, 399, 404] {
            assert_eq!(follow("https://a.example/m/a", status, &["https://b.example/"]), Ok(None), "{status}");
        }
    }

    #[test]
    fn some_redirects_are_never_followed() {
        for (from, locations, says) in [
            ("https://a.example/", &["http://a.example/"][..], "without TLS"),
            ("https://a.example/", &["ftp://a.example/"], "not http or https"),
            ("http://a.example/", &["file:///etc/passwd"], "not http or https"),
            ("http://a.example/", &["gopher://10.0.0.5/"], "not http or https"),
            ("http://a.example/", &["data:,x"], "not http or https"),
            ("http://a.example/", &["http://user@b.example/"], "user name"),
            ("http://a.example/", &["http://:secret@b.example/"], "user name"),
            ("http://a.example/", &["http://[::1/"], "not a URL"),
            ("http://a.example/", &["http://1.2.3.4.5/"], "not a URL"),
            ("http://a.example/", &["/a", "/b"], "one place"),
            ("http://a.example/", &[], "one place"),
        ] {
            let error = follow(from, 302, locations).unwrap_err();
            assert!(error.contains(says) && !error.contains("secret"), "{locations:?}: {error}");
        }
        assert!(follow("http://a.example/", 302, &["https://a.example/"]).unwrap().is_some());
    }
}
