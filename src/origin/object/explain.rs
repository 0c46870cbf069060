//! What goes wrong with object stores, by name and with a remedy. The kinds have their own words for the same things; the
//! words are in one table here.

use std::time::Duration;

use reqwest::StatusCode;
use reqwest::header::HeaderMap;

use crate::model::source::SourceError;
use crate::origin::egress::forbidden_in;
use crate::origin::excerpt::excerpt;
use crate::origin::range::{self, Reply};

/// What to do about the refusals of one bucket.
#[derive(Clone, Debug)]
pub(super) struct Remedies {
    /// The bucket, as people write it.
    pub(super) bucket: String,
    /// Access denied.
    pub(super) denied: &'static str,
    /// Another region.
    pub(super) elsewhere: &'static str,
    /// Nobody answers at all.
    pub(super) unreachable: &'static str,
    /// Nobody's rights: what may not be read looks as if it were not there.
    pub(super) anonymous: bool,
}

// === impl Remedies ===

impl Remedies {
    /// What to say of nothing being there.
    pub(super) fn absent(&self) -> &'static str {
        if self.anonymous { " (or may not be read without credentials)" } else { "" }
    }
}

/// What an answer that is no success means.
pub(super) fn refused(refused: &Reply, what: &str, remedies: &Remedies) -> SourceError {
    let code = code_of(&refused.headers, &refused.body);
    let region = refused.headers.get("x-amz-bucket-region").and_then(|value| value.to_str().ok());
    let region = region.map(str::to_owned).or_else(|| element(&refused.body, "Region"));
    let denied = |detail: String| SourceError::Denied { what: what.to_owned(), detail };
    match code.as_deref() {
        Some("NoSuchBucket" | "ContainerNotFound") => {
            return SourceError::NotFound { what: format!("the bucket {}{}", remedies.bucket, remedies.absent()) };
        }
        Some("AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException") => {
            return elsewhere(what, region.as_deref(), remedies);
        }
        Some("RequestTimeTooSkewed") => {
            return denied(format!("{}; this machine's clock is wrong", refused.detail()));
        }
        // What AWS says of temporary keys that are no longer good, with the status of a bad request.
        Some("ExpiredToken" | "InvalidToken" | "TokenRefreshRequired") => {
            return denied(format!("{}; {}", refused.detail(), remedies.denied));
        }
        // An account of Azure that allows no anonymous access, with the status of a conflict.
        Some("PublicAccessNotPermitted") => return denied(format!("{}; {}", refused.detail(), remedies.denied)),
        Some("SlowDown" | "ServerBusy" | "rateLimitExceeded") => {
            return SourceError::RateLimited { what: what.to_owned(), retry_after: refused.retry_after() };
        }
        // Two writers of one name met; whoever asks again sees who has won.
        Some("ConditionalRequestConflict" | "OperationAborted") => {
            return SourceError::Unavailable { what: what.to_owned(), detail: refused.detail() };
        }
        _ => {}
    }
    match refused.meaning(what) {
        SourceError::Denied { what, detail } => {
            SourceError::Denied { what, detail: format!("{detail}; {}", remedies.denied) }
        }
        SourceError::NotFound { what } => SourceError::NotFound { what: what + remedies.absent() },
        SourceError::Invalid { .. } if refused.status.is_redirection() => elsewhere(what, region.as_deref(), remedies),
        other => other,
    }
}

fn elsewhere(what: &str, region: Option<&str>, remedies: &Remedies) -> SourceError {
    let region = region.map_or_else(|| "another region".to_owned(), |region| format!("the region {region}"));
    SourceError::Invalid { detail: format!("{what} is in {region}; {}", remedies.elsewhere) }
}

/// What a failure below HTTP means.
pub(super) fn transport(error: &reqwest::Error, what: &str, stall: Duration, remedies: &Remedies) -> SourceError {
    // Nothing was sent; what would have to be written is for the bucket.
    if let Some(forbidden) = forbidden_in(error) {
        return forbidden.refusal(&remedies.bucket);
    }
    match range::transport(error, what, stall) {
        SourceError::Unavailable { what, detail } if error.is_connect() => {
            SourceError::Unavailable { what, detail: format!("{detail}; {}", remedies.unreachable) }
        }
        other => other,
    }
}

/// What an error of `object_store` means. It tells the status and the body of an answer in words only, in the innermost of
/// its causes.
pub(super) fn store(error: &object_store::Error, what: &str, stall: Duration, remedies: &Remedies) -> SourceError {
    let (mut cause, mut http): (&dyn std::error::Error, Option<&reqwest::Error>) = (error, None);
    loop {
        http = http.or(cause.downcast_ref::<reqwest::Error>());
        match cause.source() {
            Some(inner) => cause = inner,
            None => break,
        }
    }
    if let Some(error) = http {
        return transport(error, what, stall, remedies);
    }
    // Its text repeats what it could not read: of a token, that may be the token.
    if cause.is::<serde_json::Error>() {
        let detail = "an answer is not JSON of the expected form".to_owned();
        return SourceError::Protocol { what: what.to_owned(), detail };
    }
    let text = cause.to_string();
    let answer = text.strip_prefix("Server returned non-2xx status code: ").unwrap_or(&text);
    let status = answer.get(..3).and_then(|status| StatusCode::from_bytes(status.as_bytes()).ok());
    if let Some(status) = status {
        let body = answer.split_once(": ").map_or("", |(_, body)| body).to_owned();
        return refused(&Reply { status, headers: HeaderMap::new(), body }, what, remedies);
    }
    if text.starts_with("Received redirect without LOCATION") {
        return elsewhere(what, None, remedies);
    }
    let detail = excerpt(&text);
    match error {
        object_store::Error::NotFound { .. } => SourceError::NotFound { what: what.to_owned() },
        // A token that could not be had, most often.
        _ => SourceError::Unavailable { what: what.to_owned(), detail },
    }
}

/// The store's own word for what is wrong.
fn code_of(headers: &HeaderMap, body: &str) -> Option<String> {
    let header = headers.get("x-ms-error-code").and_then(|value| value.to_str().ok()).map(str::to_owned);
    header.or_else(|| element(body, "Code")).or_else(|| {
        // Google's JSON: the reason of the first error.
        let json: serde_json::Value = serde_json::from_str(body).ok()?;
        Some(json.pointer("/error/errors/0/reason")?.as_str()?.to_owned())
    })
}

/// The text of the first XML element of that name.
fn element(body: &str, name: &str) -> Option<String> {
    let (_, rest) = body.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once(&format!("</{name}>"))?;
    (text.len() <= 100 && text.chars().all(|c| c.is_ascii_graphic())).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ErrorKind;

    const REMEDIES: Remedies = Remedies {
        bucket: String::new(),
        denied: "set KEYS",
        elsewhere: "set REGION",
        unreachable: "is it there?",
        anonymous: false,
    };

    fn said(status: u16, body: &str, headers: &[(&'static str, &'static str)]) -> (ErrorKind, String) {
        let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let answer = Reply { status: StatusCode::from_u16(status).unwrap(), headers, body: body.to_owned() };
        let error = refused(&answer, "it", &REMEDIES);
        (error.kind(), error.to_string())
    }

    #[test]
    fn refusals_name_the_remedy() {
        let xml = |code: &str| format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code></Error>");
        for (status, body, headers, kind, says) in [
            (403, xml("AccessDenied"), &[][..], ErrorKind::Denied, "set KEYS"),
            (400, xml("ExpiredToken"), &[], ErrorKind::Denied, "set KEYS"),
            (403, xml("RequestTimeTooSkewed"), &[], ErrorKind::Denied, "clock"),
            (404, xml("NoSuchBucket"), &[], ErrorKind::NotFound, "the bucket"),
            (404, xml("NoSuchKey"), &[], ErrorKind::NotFound, "it"),
            (404, String::new(), &[("x-ms-error-code", "ContainerNotFound")], ErrorKind::NotFound, "the bucket"),
            (409, String::new(), &[("x-ms-error-code", "PublicAccessNotPermitted")], ErrorKind::Denied, "set KEYS"),
            (301, String::new(), &[("x-amz-bucket-region", "eu-west-1")], ErrorKind::Invalid, "eu-west-1; set REGION"),
            (
                400,
                "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>".to_owned(),
                &[],
                ErrorKind::Invalid,
                "eu-west-1; set REGION",
            ),
            (503, xml("SlowDown"), &[], ErrorKind::Busy, "slow down"),
            (503, xml("ServiceUnavailable"), &[], ErrorKind::Unavailable, "unavailable"),
            (409, xml("ConditionalRequestConflict"), &[], ErrorKind::Unavailable, "unavailable"),
            (
                403,
                "{\"error\":{\"errors\":[{\"reason\":\"rateLimitExceeded\"}]}}".to_owned(),
                &[],
                ErrorKind::Busy,
                "slow",
            ),
        ] {
            let (found, text) = said(status, &body, headers);
            assert_eq!(found, kind, "{status} {body}: {text}");
            assert!(text.contains(says), "{text}");
        }
    }
}
