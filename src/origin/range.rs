//! One range of one object over HTTP, believed only as far as it proves itself. Used for web servers and object stores alike.
//!
//! What real proxies and stores have been seen to do is refused here by name: a 200 or another range where one was asked, a
//! body that ends early or goes on, an object that changed, a compressed body that nobody asked for.

use std::ops::Range;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use reqwest::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, LAST_MODIFIED, RETRY_AFTER,
};
use reqwest::{Response, StatusCode};

use super::egress::{Answer, Broken, Incoming};
use super::excerpt::excerpt;
use crate::model::body::Body;
use crate::model::source::{RangeBody, SourceError, Validator};
use crate::sys::mutant::mutant;

/// Longest wait that a `Retry-After` is taken for; more is treated as this. Whether so long is waited is the transfer's to decide.
pub(super) const RETRY_AFTER_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// How much of such a body is read; of an error, a line of it goes into the message.
const ERROR_BODY: usize = 8 << 10;

/// What is asked.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    /// Safe to print.
    pub(super) what: String,
    pub(super) range: Range<u64>,
    /// Size of the whole object, as planned.
    pub(super) size: u64,
    pub(super) validator: Validator,
    pub(super) stall: Duration,
}

/// The `Range` header of a range that is not empty.
pub(super) fn range_header(range: &Range<u64>) -> String {
    format!("bytes={}-{}", range.start, range.end.saturating_sub(1))
}

/// The header and value that pin a strong ETag, if the validator is one.
pub(super) fn if_match(validator: &Validator) -> Option<(&'static str, &str)> {
    match validator {
        Validator::Strong(etag) if etag.starts_with('"') => Some(("if-match", etag)),
        _ => None,
    }
}

/// Checks the answer to a range request and hands on its body.
pub(super) async fn body_of(answer: impl Into<Answer>, asked: Asked) -> Result<RangeBody, SourceError> {
    let Answer { head: answer, incoming } = answer.into();
    let status = answer.status();
    if !status.is_success() {
        return Err(refusal(answer, &asked.what, asked.stall).await);
    }
    let protocol = |detail: String| SourceError::Protocol { what: asked.what.clone(), detail };
    check_unchanged(answer.headers(), &asked)?;
    if let Some(encoding) = answer.headers().get(CONTENT_ENCODING)
        && encoding != "identity"
    {
        return Err(protocol(format!(
            "the body is encoded ({:.20}) although identity was asked for",
            excerpt(&String::from_utf8_lossy(encoding.as_bytes()))
        )));
    }
    let length = answer.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let wanted = asked.range.end - asked.range.start;
    let believes_anything = mutant("content_range_ignored");
    let (start, promised) = match status {
        StatusCode::PARTIAL_CONTENT => {
            let found =
                answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok()).and_then(content_range);
            match found {
                Some((range, total)) if range == asked.range && total.is_none_or(|total| total == asked.size) => {}
                Some((_, Some(total))) if total != asked.size => return Err(resized(&asked, total)),
                _ if believes_anything => {}
                found => return Err(protocol(format!("asked for {:?}, it says it sends {found:?}", asked.range))),
            }
            (asked.range.start, wanted)
        }
        // Ranges are ignored: the whole object comes, of which the caller takes what it needs.
        StatusCode::OK if mutant("whole_taken_for_range") => (asked.range.start, wanted),
        StatusCode::OK => {
            if let Some(length) = length.filter(|length| *length != asked.size) {
                return Err(resized(&asked, length));
            }
            (0, asked.range.end)
        }
        other => return Err(protocol(format!("answers {other} to a range request"))),
    };
    if status == StatusCode::PARTIAL_CONTENT && length.is_some_and(|length| length != promised) && !believes_anything {
        return Err(protocol(format!("promises {length:?} bytes, {promised} were asked for")));
    }
    // A whole body is cut where the range ends; one that was asked for exactly must end there by itself.
    let may_go_on = status == StatusCode::OK;
    let source = incoming.map_or_else(|| Source::Pieces(answer.bytes_stream().boxed(), Bytes::new()), Source::Incoming);
    let bytes = Box::new(Counted { source, left: promised, may_go_on, failed: false, asked });
    Ok(RangeBody { start, ignores_ranges: may_go_on, bytes })
}

/// A body held to its length.
struct Counted {
    source: Source,
    left: u64,
    /// What comes beyond its end is of no interest.
    may_go_on: bool,
    failed: bool,
    asked: Asked,
}

/// Where the bytes come from.
enum Source {
    /// A connection of our own. It never gives more than its length, which has been compared.
    Incoming(Incoming),
    /// The HTTP client, and what of its last piece is not taken yet.
    Pieces(BoxStream<'static, Result<Bytes, reqwest::Error>>, Bytes),
}

// === impl Counted ===

impl Body for Counted {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, SourceError>> {
        if into.is_empty() || self.failed || (self.left == 0 && self.may_go_on) {
            return Poll::Ready(Ok(0));
        }
        let outcome = ready!(self.source.poll_read(cx, into, &self.asked)).and_then(|read| self.count(read));
        self.failed = outcome.is_err();
        Poll::Ready(outcome)
    }
}

impl Counted {
    fn count(&mut self, read: usize) -> Result<usize, SourceError> {
        let what = || self.asked.what.clone();
        match read as u64 {
            0 if self.left == 0 || mutant("short_body_accepted") => Ok(0),
            0 => Err(SourceError::Unavailable {
                what: what(),
                detail: format!("the body ended {} bytes early", self.left),
            }),
            read if read > self.left && !self.may_go_on => {
                Err(SourceError::Protocol { what: what(), detail: "the body is longer than was asked for".to_owned() })
            }
            read => {
                let read = read.min(self.left);
                self.left -= read;
                Ok(read as usize)
            }
        }
    }
}

// === impl Source ===

impl Source {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8], asked: &Asked) -> Poll<Result<usize, SourceError>> {
        match self {
            Self::Incoming(incoming) => incoming.poll_read(cx, into).map_err(|broken| match broken {
                Broken::Silent(after) => SourceError::Stalled { what: asked.what.clone(), after },
                Broken::Connection(error) => {
                    SourceError::Unavailable { what: asked.what.clone(), detail: excerpt(&error.to_string()) }
                }
            }),
            Self::Pieces(stream, rest) => {
                while rest.is_empty() {
                    match ready!(stream.poll_next_unpin(cx)) {
                        None => return Poll::Ready(Ok(0)),
                        Some(Ok(piece)) => *rest = piece,
                        Some(Err(error)) => return Poll::Ready(Err(transport(&error, &asked.what, asked.stall))),
                    }
                }
                let take = rest.len().min(into.len());
                rest.copy_to_slice(&mut into[..take]);
                Poll::Ready(Ok(take))
            }
        }
    }
}

/// Either it changed since planning, or the manifest that planning read is wrong.
fn resized(asked: &Asked, found: u64) -> SourceError {
    SourceError::Changed { what: format!("{} ({found} bytes, {} were planned)", asked.what, asked.size) }
}

fn check_unchanged(headers: &HeaderMap, asked: &Asked) -> Result<(), SourceError> {
    let same = |name: reqwest::header::HeaderName, wanted: &str| {
        // A server that sends none on this answer has at least honoured If-Match, or cannot be held to more.
        headers.get(name).is_none_or(|found| found.as_bytes() == wanted.as_bytes())
    };
    let unchanged = match &asked.validator {
        Validator::Strong(etag) if etag.starts_with('"') => same(ETAG, etag),
        Validator::Weak(text) if text.starts_with("W/") => same(ETAG, text),
        Validator::Weak(text) => same(LAST_MODIFIED, text),
        _ => true,
    };
    if unchanged || mutant("etag_change_ignored") {
        Ok(())
    } else {
        Err(SourceError::Changed { what: asked.what.clone() })
    }
}

/// What a status that is no success means.
pub(super) async fn refusal(answer: Response, what: &str, stall: Duration) -> SourceError {
    Reply::read(answer, stall).await.meaning(what)
}

/// An answer without much of a body.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

impl Reply {
    /// Reads it. A body that breaks off or falls silent is what has come of it by then.
    pub(super) async fn read(answer: Response, stall: Duration) -> Self {
        let (status, headers) = (answer.status(), answer.headers().clone());
        Self { status, headers, body: beginning(answer, stall).await }
    }

    /// Status and what may be shown of the body, for people.
    pub(super) fn detail(&self) -> String {
        let excerpt = excerpt(&self.body);
        if excerpt.is_empty() { self.status.to_string() } else { format!("{}: {excerpt}", self.status) }
    }

    pub(super) fn retry_after(&self) -> Option<Duration> {
        self.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()).and_then(retry_after)
    }

    /// What it means where success was wanted.
    pub(super) fn meaning(&self, what: &str) -> SourceError {
        let (what, detail, retry_after) = (what.to_owned(), self.detail(), self.retry_after());
        match self.status {
            StatusCode::NOT_FOUND | StatusCode::GONE => SourceError::NotFound { what },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => SourceError::Denied { what, detail },
            StatusCode::PRECONDITION_FAILED => SourceError::Changed { what },
            StatusCode::TOO_MANY_REQUESTS => SourceError::RateLimited { what, retry_after },
            StatusCode::SERVICE_UNAVAILABLE if retry_after.is_some() => SourceError::RateLimited { what, retry_after },
            status if status.is_redirection() => {
                SourceError::Invalid { detail: format!("{what} redirects elsewhere ({status})") }
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                SourceError::Protocol { what, detail: "says that a planned range does not exist".to_owned() }
            }
            status if status.is_server_error() || status == StatusCode::REQUEST_TIMEOUT => {
                SourceError::Unavailable { what, detail }
            }
            _ => SourceError::Protocol { what, detail },
        }
    }
}

/// What may be shown of an error's body.
pub(super) async fn error_text(answer: Response, stall: Duration) -> String {
    excerpt(&beginning(answer, stall).await)
}

/// As much of a body as is worth reading.
async fn beginning(answer: Response, stall: Duration) -> String {
    let mut bytes = Vec::new();
    let mut body = answer.bytes_stream();
    let reading = async {
        while let Some(Ok(piece)) = body.next().await {
            bytes.extend_from_slice(&piece[..piece.len().min(ERROR_BODY - bytes.len())]);
            if bytes.len() == ERROR_BODY {
                return;
            }
        }
    };
    // What has come until then is better than nothing.
    let _ = tokio::time::timeout(stall, reading).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What could not be read as the JSON that was expected. Where it broke is said, and not what stands there.
pub(super) fn not_json(what: &str, error: &serde_json::Error) -> SourceError {
    let detail = format!(
        "its answer is not what such a server answers: {:?} error at line {} column {}",
        error.classify(),
        error.line(),
        error.column()
    );
    SourceError::Protocol { what: what.to_owned(), detail }
}

/// What a failure below HTTP means.
pub(super) fn transport(error: &reqwest::Error, what: &str, stall: Duration) -> SourceError {
    let what = what.to_owned();
    if let Some(forbidden) = super::egress::forbidden_in(error) {
        return forbidden.refusal(&what);
    }
    if error.is_timeout() {
        return SourceError::Stalled { what, after: stall };
    }
    // The innermost cause says most. The outermost has the URL in it, which may be signed, so it never speaks itself.
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause.and_then(std::error::Error::source) {
        cause = Some(inner);
    }
    let word = cause.map_or_else(|| "the request could not be made".to_owned(), ToString::to_string);
    SourceError::Unavailable { what, detail: excerpt(&word) }
}

/// The time that a `Retry-After` names, in seconds or as a date.
pub(super) fn retry_after(text: &str) -> Option<Duration> {
    let wait = match text.trim().parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let at = jiff::fmt::rfc2822::parse(text.trim()).ok()?.timestamp();
            Duration::try_from(at.duration_since(jiff::Timestamp::now())).unwrap_or_default()
        }
    };
    Some(wait.min(RETRY_AFTER_LIMIT))
}

/// `bytes a-b/total`
fn content_range(text: &str) -> Option<(Range<u64>, Option<u64>)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let end = last.trim().parse::<u64>().ok()?.checked_add(1)?;
    let total = if total == "*" { None } else { Some(total.trim().parse().ok()?) };
    Some((first.trim().parse().ok()?..end, total))
}

/// The digest of `repr-digest` or `content-digest` (RFC 9530) in hex, where it is SHA-256.
pub(super) fn sha256_field(headers: &HeaderMap) -> Option<String> {
    let field = headers.get("repr-digest")?.to_str().ok()?;
    let value = field.split(',').find_map(|item| item.trim().strip_prefix("sha-256=:"))?.strip_suffix(':')?;
    super::encoding::hex_of_base64(value).filter(|hex| hex.len() == 64)
}

/// What the headers of an answer pin the object by.
pub(super) fn validator_of(headers: &HeaderMap) -> Validator {
    let text = |name: reqwest::header::HeaderName| Some(headers.get(name)?.to_str().ok()?.to_owned());
    match text(ETAG) {
        Some(etag) if etag.starts_with('"') => Validator::Strong(etag),
        Some(etag) if etag.starts_with("W/") => Validator::Weak(etag),
        _ => text(LAST_MODIFIED).map_or(Validator::None, Validator::Weak),
    }
}

/// The header that every request carries.
pub(super) const IDENTITY: (reqwest::header::HeaderName, &str) = (ACCEPT_ENCODING, "identity");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges_are_read_strictly() {
        assert_eq!(content_range("bytes 0-9/100"), Some((0..10, Some(100))));
        assert_eq!(content_range("bytes 5-5/*"), Some((5..6, None)));
        for bad in ["", "0-9/100", "bytes 0-9", "bytes -9/100", "bytes 0-18446744073709551615/1", "bytes x-9/1"] {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }

    #[test]
    fn waits_are_bounded() {
        assert_eq!(retry_after("3"), Some(Duration::from_secs(3)));
        assert_eq!(retry_after("864000"), Some(RETRY_AFTER_LIMIT));
        assert_eq!(retry_after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(retry_after("soon"), None);
    }
}
