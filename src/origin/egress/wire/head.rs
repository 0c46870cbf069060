//! Heads of requests and answers, as far as a GET of a range needs them.

use reqwest::header::{CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue, TRANSFER_ENCODING};
use reqwest::{Body, Request, Response, StatusCode};
use tokio::io::AsyncReadExt;

use super::connect::Line;

/// The head of an answer.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    headers: HeaderMap,
    /// Whether the connection serves another request once the body has ended.
    pub(super) keeps: bool,
    /// Bytes of the body; `None` if only its end tells.
    pub(super) length: Option<u64>,
    /// Whether it comes in chunks, and in no other coding.
    pub(super) chunked: bool,
}

/// Why there is none.
#[derive(Debug)]
pub(super) enum HeadError {
    /// The connection broke.
    Broken {
        /// After the first byte of an answer.
        began: bool,
        detail: String,
    },
    /// It is not HTTP, or beyond a limit.
    Unreadable(String),
}

/// Longest head. Signed redirects and cookies make some KiB.
const HEAD: usize = 64 << 10;
/// Most fields in one.
const FIELDS: usize = 128;
/// Read at a time: what comes behind the head is copied, so not much.
const PIECE: usize = 8 << 10;
/// Interim answers (`100 Continue`, `103 Early Hints`) before the one that counts.
const INTERIM: usize = 8;

/// The head of a request. Its parts have been checked as they were made: no URL and no `HeaderValue` has a line break in it.
pub(super) fn request(request: &Request) -> Vec<u8> {
    let url = request.url();
    let mut text = format!("{} {}", request.method(), url.path()).into_bytes();
    if let Some(query) = url.query() {
        text.push(b'?');
        text.extend(query.as_bytes());
    }
    text.extend(b" HTTP/1.1\r\n");
    let mut field = |name: &str, value: &[u8]| {
        text.extend(name.as_bytes());
        text.extend(b": ");
        text.extend(value);
        text.extend(b"\r\n");
    };
    if !request.headers().contains_key(HOST) {
        let host = url.host_str().unwrap_or_default();
        let host = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        field("host", host.as_bytes());
    }
    field("user-agent", concat!("preheat/", env!("CARGO_PKG_VERSION")).as_bytes());
    field("accept", b"*/*");
    for (name, value) in request.headers() {
        field(name.as_str(), value.as_bytes());
    }
    text.extend(b"\r\n");
    text
}

/// Reads the head of an answer, and what comes with it of the body.
pub(super) async fn read(line: &mut Line) -> Result<(Head, Vec<u8>), HeadError> {
    let mut bytes = Vec::with_capacity(PIECE);
    let mut interim = 0;
    loop {
        while let Some((head, length)) = parse(&bytes)? {
            bytes.drain(..length);
            if !head.status.is_informational() {
                return Ok((head, bytes));
            }
            interim += 1;
            if head.status == StatusCode::SWITCHING_PROTOCOLS || interim > INTERIM {
                return Err(HeadError::Unreadable(format!("answers {} to a GET", head.status)));
            }
        }
        if bytes.len() >= HEAD {
            return Err(HeadError::Unreadable(format!("the head of its answer is longer than {HEAD} bytes")));
        }
        let began = !bytes.is_empty() || interim > 0;
        bytes.reserve(PIECE);
        match line.read_buf(&mut bytes).await {
            Ok(0) => {
                let detail = "connection closed before the head of an answer was complete".to_owned();
                return Err(HeadError::Broken { began, detail });
            }
            Ok(_) => {}
            Err(error) => return Err(HeadError::Broken { began, detail: error.to_string() }),
        }
    }
}

/// A head, if `bytes` begin with a complete one, and how long it is.
fn parse(bytes: &[u8]) -> Result<Option<(Head, usize)>, HeadError> {
    let unreadable = |detail: &str| HeadError::Unreadable(format!("answers what is not HTTP/1.1: {detail}"));
    let mut fields = [httparse::EMPTY_HEADER; FIELDS];
    let mut answer = httparse::Response::new(&mut fields);
    let length = match answer.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(unreadable(&error.to_string())),
    };
    let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok()).ok_or_else(|| unreadable("no status"))?;
    let mut headers = HeaderMap::with_capacity(answer.headers.len());
    for field in answer.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes()).map_err(|_| unreadable("a field's name"))?;
        let value = HeaderValue::from_bytes(field.value).map_err(|_| unreadable("a field's value"))?;
        headers.append(name, value);
    }
    let says = |word: &str| {
        let values = headers.get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
        values.flat_map(|value| value.split(',')).any(|option| option.trim().eq_ignore_ascii_case(word))
    };
    let keeps = if answer.version == Some(1) { !says("close") } else { says("keep-alive") };
    let length_said = said_length(&headers).map_err(unreadable)?;
    let length_of_body = match status.as_u16() {
        100..=199 | 204 | 304 => Some(0),
        // Both is how requests are smuggled: what counts is the other one, which is not read here.
        _ if headers.contains_key(TRANSFER_ENCODING) => None,
        _ => length_said,
    };
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let only = codings.next().filter(|_| codings.next().is_none());
    let chunked = only.is_some_and(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked"));
    Ok(Some((Head { status, headers, keeps, length: length_of_body, chunked }, length)))
}

/// The one length that the fields say; the same said twice is once too often, and harmless.
fn said_length(headers: &HeaderMap) -> Result<Option<u64>, &'static str> {
    let mut said = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        let digits = value.as_bytes();
        let number = std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let number: u64 = number.and_then(|text| text.parse().ok()).ok_or("a Content-Length that is no number")?;
        if said.replace(number).is_some_and(|other| other != number) {
            return Err("two lengths");
        }
    }
    Ok(said)
}

// === impl Head ===

impl Head {
    /// The answer with this body.
    pub(super) fn response(self, body: Vec<u8>) -> Response {
        let mut answer = http::Response::new(Body::from(body));
        *answer.status_mut() = self.status;
        *answer.headers_mut() = self.headers;
        answer.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<(Head, usize)> {
        parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn lengths_and_ends_are_read_strictly() {
        let (head, length) =
            parsed("HTTP/1.1 206 Partial Content\r\nContent-Length: 10\r\nETag: \"a\"\r\n\r\n0123456789").unwrap();
        assert_eq!((head.status.as_u16(), head.keeps, head.length, length), (206, true, Some(10), 63));
        assert_eq!(head.headers["etag"], "\"a\"");
        for (fields, keeps, length, chunked) in [
            ("content-length: 3\r\nconnection: close", false, Some(3), false),
            ("content-length: 3\r\nconnection: foo, Close", false, Some(3), false),
            ("content-length: 3\r\ntransfer-encoding: Chunked", true, None, true),
            ("transfer-encoding: gzip, chunked", true, None, false),
            ("transfer-encoding: chunked\r\ntransfer-encoding: chunked", true, None, false),
            ("content-length: 3\r\ncontent-length: 3", true, Some(3), false),
            ("x: y", true, None, false),
        ] {
            let (head, _) = parsed(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n\r\n")).unwrap();
            assert_eq!((head.keeps, head.length, head.chunked), (keeps, length, chunked), "{fields}");
        }
        let (old, _) = parsed("HTTP/1.0 200 OK\r\ncontent-length: 3\r\n\r\n").unwrap();
        assert!(!old.keeps);
        let (none, _) = parsed("HTTP/1.1 304 Not Modified\r\n\r\n").unwrap();
        assert_eq!(none.length, Some(0));
        assert!(parsed("HTTP/1.1 200 OK\r\ncontent-le").is_none());
        for bad in [
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: -3\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: +3\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 3, 3\r\n\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 99999999999999999999999\r\n\r\n",
            "SSH-2.0-OpenSSH_9.2\r\n\r\n",
            "HTTP/1.1 099 x\r\n\r\n",
        ] {
            assert!(matches!(parse(bad.as_bytes()), Err(HeadError::Unreadable(_))), "{bad}");
        }
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(FIELDS + 1));
        assert!(parse(many.as_bytes()).is_err());
    }

    #[test]
    fn a_request_is_written_as_it_was_made() {
        super::super::super::install_tls_provider();
        let client = reqwest::Client::new();
        let built = client.get("http://[::1]:81/a%20b?c=%2F").header("range", "bytes=0-1").build().unwrap();
        let text = String::from_utf8(request(&built)).unwrap();
        assert!(text.starts_with("GET /a%20b?c=%2F HTTP/1.1\r\nhost: [::1]:81\r\nuser-agent: preheat/"), "{text}");
        assert!(text.ends_with("accept: */*\r\nrange: bytes=0-1\r\n\r\n"), "{text}");
        let signed = client.get("https://a.example/").header("host", "b.example").build().unwrap();
        let text = String::from_utf8(request(&signed)).unwrap();
        assert!(text.contains("host: b.example\r\n") && !text.contains("a.example"), "{text}");
    }
}
