//! Web servers. They cannot be listed, so a directory is known by its `preheat-manifest.json`, or else by its index file and
//! by asking for each of the names that engines read. A URL that ends in a file's name is that one file.

mod probe;

use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;
use futures_util::{StreamExt, stream};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, Response, StatusCode};

use super::egress::{Answer, Ask, Egress, HOPS, safe};
use super::range::{self, Asked, IDENTITY, body_of, if_match, range_header, refusal, transport};
use super::selected::{Listed, choose, of_manifest, resolution};
use crate::digest::{Algorithm, Declared};
use crate::model::body::pieces;
use crate::model::source::{Origin, RangeBody, RangeSource, RemoteFile, Resolution, SourceError, Validator};
use crate::model::{Credential, DOCUMENT_LIMIT, FilePath, Manifest, OriginId, Reference, Rights, Selection};

/// Waiting for headers is bounded as waiting for bytes is.
const STALL: Duration = Duration::from_secs(20);

/// File names that make a URL a single file. A directory may have a dot in its name too.
const SINGLE: [&str; 8] = ["safetensors", "gguf", "bin", "pt", "pth", "json", "txt", "model"];

/// A web server.
#[derive(Debug)]
pub(super) struct HttpOrigin {
    egress: Egress,
    /// `Authorization`, for the server that the reference names and no other.
    authorization: Option<HeaderValue>,
}

/// What a HEAD tells of a file.
#[derive(Clone, Debug)]
struct Head {
    size: u64,
    validator: Validator,
    declared: Vec<Declared>,
}

// === impl HttpOrigin ===

impl HttpOrigin {
    pub(super) fn new(egress: Egress, rights: &Rights) -> Result<Self, SourceError> {
        let authorization = match rights {
            // A web server is nobody's account: the process has nothing of its own to show.
            Rights::Anonymous | Rights::Own => None,
            Rights::Caller(Credential::Bearer(secret)) => {
                let mut value = HeaderValue::from_str(&format!("Bearer {}", secret.reveal())).map_err(|_| {
                    SourceError::Invalid { detail: "the bearer credential is not printable".to_owned() }
                })?;
                value.set_sensitive(true);
                Some(value)
            }
            Rights::Caller(other) => {
                let detail = format!("a web server takes a bearer credential, not {}", other.kind());
                return Err(SourceError::Invalid { detail });
            }
        };
        Ok(Self { egress, authorization })
    }

    async fn send(&self, method: Method, url: &str, headers: &[(&'static str, &str)]) -> Result<Response, SourceError> {
        Ok(self.send_as(method, url, headers, false).await?.head)
    }

    /// Sends; `bulk` for a GET whose answer may be large.
    async fn send_as(
        &self,
        method: Method,
        url: &str,
        headers: &[(&'static str, &str)],
        bulk: bool,
    ) -> Result<Answer, SourceError> {
        let what = safe_text(url);
        let invalid = |detail: String| SourceError::Invalid { detail: format!("{what}: {detail}") };
        let url = url::Url::parse(url).map_err(|error| invalid(error.to_string()))?;
        let mut fields = HeaderMap::from_iter([(IDENTITY.0, HeaderValue::from_static(IDENTITY.1))]);
        for (name, value) in headers {
            let value = HeaderValue::from_str(value).map_err(|error| invalid(error.to_string()))?;
            fields.insert(HeaderName::from_static(name), value);
        }
        let authorization = self.authorization.as_ref();
        let ask = Ask { method, url, headers: fields, authorization, hops: HOPS, what: &what, stall: STALL };
        if bulk { self.egress.follow_bulk(ask).await } else { self.egress.follow(ask).await.map(Into::into) }
    }

    /// Size and validator of a file; `None` if it does not exist.
    async fn head(&self, url: &str) -> Result<Option<Head>, SourceError> {
        let answer = self.send(Method::HEAD, url, &[]).await?;
        let what = safe_text(url);
        match answer.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => return self.head_by_range(url).await,
            status if !status.is_success() => return Err(refusal(answer, &what, STALL).await),
            _ => {}
        }
        let length =
            answer.headers().get(reqwest::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        match length {
            Some(size) => Ok(Some(head_of(&answer, size))),
            None => self.head_by_range(url).await,
        }
    }

    /// For servers whose HEAD is of no use: one byte tells the size.
    async fn head_by_range(&self, url: &str) -> Result<Option<Head>, SourceError> {
        let answer = self.send(Method::GET, url, &[("range", "bytes=0-0")]).await?;
        let what = safe_text(url);
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        let total = answer
            .headers()
            .get(reqwest::header::CONTENT_RANGE)
            .and_then(|value| value.to_str().ok()?.rsplit_once('/')?.1.parse().ok());
        match (answer.status(), total, answer.content_length()) {
            (StatusCode::PARTIAL_CONTENT, Some(size), _) | (StatusCode::OK, None, Some(size)) => {
                Ok(Some(head_of(&answer, size)))
            }
            (status, ..) if !status.is_success() => Err(refusal(answer, &what, STALL).await),
            _ => Err(SourceError::Protocol { what, detail: "does not tell how large the file is".to_owned() }),
        }
    }

    /// A small file, whole; `None` if it does not exist.
    async fn small(&self, url: &str, limit: usize) -> Result<Option<Vec<u8>>, SourceError> {
        let answer = self.send(Method::GET, url, &[]).await?;
        let what = safe_text(url);
        match answer.status() {
            StatusCode::NOT_FOUND | StatusCode::GONE => return Ok(None),
            status if !status.is_success() => return Err(refusal(answer, &what, STALL).await),
            _ => {}
        }
        let promised = answer.content_length();
        let (mut body, mut bytes) = (answer.bytes_stream(), Vec::new());
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| transport(&error, &what, STALL))?;
            if bytes.len() + piece.len() > limit {
                return Err(SourceError::Protocol { what, detail: format!("is larger than {limit} bytes") });
            }
            bytes.extend_from_slice(&piece);
        }
        if promised.is_some_and(|promised| promised != bytes.len() as u64) {
            return Err(SourceError::Unavailable { what, detail: "the body ended early".to_owned() });
        }
        Ok(Some(bytes))
    }

    /// A single file, if the URL names one.
    async fn single(&self, reference: &Reference, url: &str) -> Result<Option<Resolution>, SourceError> {
        let name = reference.place.rsplit('/').next().unwrap_or_default();
        let is_name = name.rsplit_once('.').is_some_and(|(_, extension)| SINGLE.contains(&extension));
        if !is_name || reference.selection != Selection::default() {
            return Ok(None);
        }
        let Some(head) = self.head(url).await? else { return Ok(None) };
        let path = FilePath::new(name).map_err(|error| SourceError::Invalid { detail: error.to_string() })?;
        let file = RemoteFile {
            path,
            size: head.size,
            locator: url.to_owned(),
            validator: head.validator,
            declared: head.declared,
            blake3: None,
            outboard: None,
        };
        Ok(Some(resolution(OriginId::of(reference, None), vec![file])))
    }
}

#[async_trait]
impl RangeSource for HttpOrigin {
    async fn open(&self, file: &RemoteFile, range: Range<u64>) -> Result<RangeBody, SourceError> {
        let what = safe_text(&file.locator);
        if range.is_empty() {
            return Ok(RangeBody { start: range.start, ignores_ranges: false, bytes: pieces(stream::empty().boxed()) });
        }
        let wanted = range_header(&range);
        let mut headers = vec![("range", wanted.as_str())];
        headers.extend(if_match(&file.validator));
        let answer = self.send_as(Method::GET, &file.locator, &headers, true).await?;
        let asked = Asked { what, range, size: file.size, validator: file.validator.clone(), stall: STALL };
        body_of(answer, asked).await
    }
}

#[async_trait]
impl Origin for HttpOrigin {
    async fn resolve(&self, reference: &Reference) -> Result<Resolution, SourceError> {
        let base = url_of(&reference.base(), "");
        if let Some(single) = self.single(reference, &base).await? {
            return Ok(single);
        }
        let origin = OriginId::of(reference, None);
        let locate = |path: &FilePath| url_of(&reference.base(), path.as_str());
        let manifest_url = url_of(&reference.base(), Manifest::FILE_NAME);
        // Static sites on object stores answer 403 for what does not exist.
        let manifest = match self.small(&manifest_url, DOCUMENT_LIMIT).await {
            Err(SourceError::Denied { .. }) => None,
            outcome => outcome?,
        };
        if let Some(json) = manifest {
            let what = safe_text(&manifest_url);
            let manifest =
                Manifest::parse(&json).map_err(|error| SourceError::Invalid { detail: format!("{what}: {error}") })?;
            return of_manifest(&what, origin, &manifest, &reference.selection, |path| Some(locate(path)));
        }
        let found = probe::files(self, reference, &locate).await?;
        let what = reference.base();
        let heads: std::collections::HashMap<String, Head> =
            found.iter().map(|(path, head)| (locate(path), head.clone())).collect();
        let listed = found
            .into_iter()
            .map(|(path, head)| Listed { locator: locate(&path), path, size: head.size, validator: head.validator })
            .collect();
        let mut files = choose(&what, listed, &reference.selection)?;
        for file in &mut files {
            if let Some(head) = heads.get(&file.locator) {
                file.declared.clone_from(&head.declared);
            }
        }
        Ok(resolution(origin, files))
    }

    /// A manifest tells what there is, whoever may read it: one file is asked for.
    async fn prove(&self, resolution: &Resolution) -> Result<(), SourceError> {
        let largest = resolution.files.iter().max_by_key(|file| file.size);
        let Some(file) = largest.filter(|_| resolution.manifest.is_some()) else { return Ok(()) };
        match self.head(&file.locator).await? {
            Some(_) => Ok(()),
            None => Err(SourceError::NotFound { what: safe_text(&file.locator) }),
        }
    }
}

fn head_of(answer: &Response, size: u64) -> Head {
    let declared = range::sha256_field(answer.headers())
        .map(|hex| Declared { algorithm: Algorithm::Sha256, hex })
        .into_iter()
        .collect();
    Head { size, validator: range::validator_of(answer.headers()), declared }
}

/// `base`, already encoded, and a path below it.
fn url_of(base: &str, path: &str) -> String {
    let mut url = base.trim_end_matches('/').to_owned();
    for segment in path.split('/').filter(|segment| !segment.is_empty()) {
        url.push('/');
        url.extend(percent_encoding::utf8_percent_encode(segment, super::encoding::SEGMENT));
    }
    url
}

fn safe_text(url: &str) -> String {
    url::Url::parse(url).map_or_else(|_| "the origin".to_owned(), |url| safe(&url))
}
