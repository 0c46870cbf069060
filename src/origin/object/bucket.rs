//! One bucket, spoken to in its own dialect: the requests that all kinds of object store have in common, made, signed, sent
//! and explained in one way.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::ObjectStore;
use object_store::client::{HttpRequest, HttpRequestBody};
use reqwest::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Body, Client, Method, Request, Response, StatusCode};

use super::explain::{self, Remedies};
use super::outgoing::{Outgoing, Tally};
use crate::digest::{Declared, Hash};
use crate::model::sink::{Existing, Put};
use crate::model::source::{SourceError, Validator};
use crate::origin::egress::{Answer, Egress};
use crate::origin::encoding;
use crate::origin::range::{IDENTITY, Reply};

/// What differs between the kinds of object store.
#[async_trait]
pub(super) trait Dialect: Send + Sync + fmt::Debug {
    /// What lists the bucket.
    fn lister(&self) -> &dyn ObjectStore;

    /// Where the bucket is, without a slash at its end: keys are appended. Safe to print.
    fn bucket_url(&self) -> &str;

    /// Adds what proves who asks, and what every request needs.
    async fn sign(&self, request: &mut HttpRequest) -> object_store::Result<()>;

    /// Headers of a HEAD that is to tell the checksums as well.
    fn head_headers(&self) -> &'static [(&'static str, &'static str)] {
        &[]
    }

    /// What the headers of an object's answer say of it; an error says why such an object cannot be read.
    fn describe(&self, headers: &HeaderMap) -> Result<(Validator, Vec<Declared>), String>;

    /// The header that keeps the BLAKE3 of an object with it. `None` where every object has a digest of the place's own.
    fn name_header(&self) -> Option<&'static str> {
        None
    }

    /// Makes a request one for this version and no other.
    fn pin(&self, ask: Ask, validator: &Validator) -> Ask;

    /// What to do about refusals.
    fn remedies(&self) -> &Remedies;

    /// Writes an object.
    async fn upload(
        &self,
        bucket: &Bucket,
        key: &str,
        content: &Outgoing,
        existing: Existing,
    ) -> Result<Put, SourceError>;
}

/// A bucket.
#[derive(Clone)]
pub(super) struct Bucket {
    pub(super) dialect: Arc<dyn Dialect>,
    pub(super) egress: Egress,
    /// How long it may be silent.
    pub(super) stall: Duration,
}

/// What an object is, as HEAD tells.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub(super) size: u64,
    pub(super) validator: Validator,
    pub(super) declared: Vec<Declared>,
    /// What its writer said that it hashes to.
    pub(super) said: Option<Hash>,
}

/// One request.
pub(super) struct Ask {
    method: Method,
    url: String,
    /// Safe to print.
    what: String,
    headers: HeaderMap,
    body: Option<(Outgoing, Range<u64>)>,
    /// How long nothing may move; several times the usual where the other side has work to do before it answers.
    patience: u32,
}

// === impl Ask ===

impl Ask {
    /// A request without a body.
    pub(super) fn new(method: Method, url: String, what: String) -> Self {
        Self { method, url, what, headers: HeaderMap::new(), body: None, patience: 1 }
    }

    /// With a header. Its text is ours, or has come as a header: what cannot be one is left out.
    pub(super) fn header(mut self, name: &'static str, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(HeaderName::from_static(name), value);
        }
        self
    }

    /// With something after the `?`, already encoded.
    pub(super) fn query(mut self, query: &str) -> Self {
        self.url.push(if self.url.contains('?') { '&' } else { '?' });
        self.url.push_str(query);
        self
    }

    /// With a range of what goes out as its body.
    pub(super) fn body(mut self, content: &Outgoing, range: Range<u64>) -> Self {
        self.headers.insert(CONTENT_LENGTH, (range.end - range.start).into());
        self.body = Some((content.clone(), range));
        self
    }

    /// With a longer wait for the answer.
    pub(super) fn patience(mut self, times: u32) -> Self {
        self.patience = times;
        self
    }
}

// === impl Bucket ===

impl Bucket {
    /// The URL of an object: of use in messages as well.
    pub(super) fn url(&self, key: &str) -> String {
        format!("{}/{}", self.dialect.bucket_url(), encoding::path(key))
    }

    /// An object as messages name it. The bucket is part of the host or of the path: the whole URL says it.
    pub(super) fn what(&self, key: &str) -> String {
        format!("{}/{key}", self.dialect.bucket_url())
    }

    /// Signs and sends. What left of a body that did not arrive is taken back.
    pub(super) async fn send(&self, ask: Ask) -> Result<Response, SourceError> {
        let (mut request, Ask { what, body, patience, .. }) = self.signed(ask).await?;
        let Some((content, range)) = body else {
            return self.execute(self.egress.client(), request, &what).await;
        };
        let tally = content.tally();
        *request.body_mut() = Some(Body::wrap_stream(content.stream(range, tally.clone())));
        let answer = tokio::select! {
            answer = self.execute(self.egress.writing(), request, &what) => answer,
            () = stands_still(&tally, self.stall * patience) => {
                Err(SourceError::Stalled { what, after: self.stall * patience })
            }
        };
        if !answer.as_ref().is_ok_and(|answer| answer.status().is_success() || answer.status().is_redirection()) {
            tally.take_back();
            // A file that has become shorter breaks off the request as a lost connection does.
            content.check_unchanged().await?;
        }
        answer
    }

    /// Signs and sends a GET whose answer may be large.
    pub(super) async fn send_bulk(&self, ask: Ask) -> Result<Answer, SourceError> {
        let (request, Ask { what, .. }) = self.signed(ask).await?;
        match self.egress.bulk(&request, &what).await? {
            Some(answer) => Ok(answer),
            None => Ok(self.execute(self.egress.client(), request, &what).await?.into()),
        }
    }

    /// The request without its body, and what is left of what was asked.
    async fn signed(&self, mut ask: Ask) -> Result<(Request, Ask), SourceError> {
        let what = &ask.what;
        let no_url =
            |error: &dyn fmt::Display| SourceError::Invalid { detail: format!("{what}: is not a URL: {error}") };
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.method_mut() = ask.method.clone();
        *request.uri_mut() = ask.url.parse().map_err(|error| no_url(&error))?;
        *request.headers_mut() = std::mem::take(&mut ask.headers);
        // Signing may ask for a token first.
        let signed = self.dialect.sign(&mut request).await;
        signed.map_err(|error| self.explain(&error, &format!("the credential for {what}")))?;
        let (parts, _) = request.into_parts();
        let url = parts.uri.to_string().parse().map_err(|error| no_url(&error))?;
        let mut request = Request::new(ask.method.clone(), url);
        *request.headers_mut() = parts.headers;
        request.headers_mut().insert(IDENTITY.0, HeaderValue::from_static(IDENTITY.1));
        Ok((request, ask))
    }

    async fn execute(&self, client: &Client, request: Request, what: &str) -> Result<Response, SourceError> {
        let answer = client.execute(request).await;
        answer.map_err(|error| explain::transport(&error, what, self.stall, self.remedies()))
    }

    /// Sends, and takes nothing but success for an answer.
    pub(super) async fn ask(&self, ask: Ask) -> Result<Response, SourceError> {
        let what = ask.what.clone();
        let answer = self.send(ask).await?;
        if answer.status().is_success() { Ok(answer) } else { Err(self.refusal(answer, &what).await) }
    }

    /// Size, validator and checksums of an object; `None` if it does not exist.
    pub(super) async fn head(&self, key: &str) -> Result<Option<Found>, SourceError> {
        let what = self.what(key);
        let mut ask = Ask::new(Method::HEAD, self.url(key), what.clone());
        for (name, value) in self.dialect.head_headers() {
            ask = ask.header(name, value);
        }
        let answer = self.send(ask).await?;
        if answer.status() == StatusCode::NOT_FOUND {
            return Ok(None);
        }
        if !answer.status().is_success() {
            return Err(self.refusal(answer, &what).await);
        }
        let size = answer.headers().get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let size = size.ok_or_else(|| SourceError::Protocol {
            what: what.clone(),
            detail: "HEAD has no Content-Length".to_owned(),
        })?;
        let (validator, declared) = self
            .dialect
            .describe(answer.headers())
            .map_err(|detail| SourceError::Invalid { detail: format!("{what} {detail}") })?;
        let said = self.dialect.name_header().and_then(|name| answer.headers().get(name)?.to_str().ok()?.parse().ok());
        Ok(Some(Found { size, validator, declared, said }))
    }

    /// Has what is written keep its BLAKE3, for whoever looks whether it is there.
    pub(super) fn named(&self, ask: Ask, content: &Outgoing) -> Ask {
        match self.dialect.name_header().zip(content.blake3) {
            Some((header, blake3)) => ask.header(header, &blake3.to_string()),
            None => ask,
        }
    }

    /// What an answer that is no success means.
    pub(super) async fn refusal(&self, answer: Response, what: &str) -> SourceError {
        explain::refused(&Reply::read(answer, self.stall).await, what, self.remedies())
    }

    /// What an error of `object_store` means.
    pub(super) fn explain(&self, error: &object_store::Error, what: &str) -> SourceError {
        explain::store(error, what, self.stall, self.remedies())
    }

    fn remedies(&self) -> &Remedies {
        self.dialect.remedies()
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.dialect.bucket_url())
    }
}

/// Returns when nothing has left for so long.
async fn stands_still(tally: &Tally, limit: Duration) {
    loop {
        let before = tally.count();
        tokio::time::sleep(limit).await;
        if tally.count() == before {
            return;
        }
    }
}
