//! Writing to Google Cloud Storage, through the JSON API. The CRC-32C of the whole object goes ahead of its bytes, so that the
//! service itself refuses others, and creating only what is not there is the condition `ifGenerationMatch=0`.
//!
//! Small objects go in one request. Large ones go through a *resumable session*, piece by piece and in order: after a failure
//! the session says how much it has. Two others were turned down: multipart uploads as S3 has them, which know no conditions,
//! and objects composed of parts, which leave parts behind, cost a fee each in colder classes, and fail where objects are
//! retained. One connection a file is slower than four, but `push` has several files.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crc_fast::CrcAlgorithm;
use reqwest::header::{CONTENT_TYPE, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;

use super::super::again::again;
use super::super::bucket::{Ask, Bucket};
use super::super::outgoing::Outgoing;
use super::super::parts::PART;
use crate::base::units::MIB;
use crate::model::sink::{Content, Existing, Put};
use crate::model::source::SourceError;
use crate::origin::encoding::{base64, value};
use crate::origin::range::Reply;

/// Bytes of a session in one request: what a lost connection costs at most. A multiple of 256 KiB, as the service wants it.
const CHUNK: u64 = 64 * MIB;

/// Parts the two bodies of a small upload; the content is preceded by a line of its own and may hold anything.
const BOUNDARY: &str = "preheat-4b7e1d93c05a";

/// An upload.
struct Upload<'a> {
    bucket: &'a Bucket,
    /// `/o` of the bucket in the JSON API's upload endpoint.
    url: String,
    key: &'a str,
    content: &'a Outgoing,
    /// In base64, as the service has it.
    crc: String,
    existing: Existing,
}

/// What the service says it has made.
#[derive(Deserialize)]
struct Made {
    generation: String,
    crc32c: String,
}

/// How far a session is.
enum Step {
    More,
    Done(Response),
    Existed,
}

pub(super) async fn upload(
    bucket: &Bucket,
    (endpoint, name): (&str, &str),
    key: &str,
    content: &Outgoing,
    existing: Existing,
) -> Result<Put, SourceError> {
    let size = content.size();
    let crc = content.crc(CrcAlgorithm::Crc32Iscsi, 0..size).await?;
    let crc = base64(&u32::try_from(crc).unwrap_or_default().to_be_bytes());
    let url = format!("{endpoint}/upload/storage/v1/b/{}/o", value(name));
    let upload = Upload { bucket, url, key, content, crc, existing };
    let answer = if size <= PART { upload.at_once().await? } else { upload.in_session().await? };
    let Some(answer) = answer else { return Ok(Put::Existed) };
    upload.check(answer).await?;
    Ok(Put::Created)
}

// === impl Upload ===

impl Upload<'_> {
    fn what(&self) -> String {
        self.bucket.what(self.key)
    }

    fn ask(&self, kind: &str) -> Ask {
        let condition = if self.existing == Existing::Keep { "&ifGenerationMatch=0" } else { "" };
        let query = format!("uploadType={kind}&fields=generation%2Ccrc32c&name={}{condition}", value(self.key));
        Ask::new(Method::POST, self.url.clone(), self.what()).query(&query)
    }

    fn metadata(&self) -> String {
        serde_json::json!({"name": self.key, "crc32c": self.crc}).to_string()
    }

    /// The answer of a request that makes an object or begins to; `None`: something is there.
    async fn outcome(&self, answer: Response) -> Result<Option<Response>, SourceError> {
        match answer.status() {
            status if status.is_success() => Ok(Some(answer)),
            StatusCode::PRECONDITION_FAILED if self.existing == Existing::Keep => Ok(None),
            // Nothing can be missing but the bucket.
            StatusCode::NOT_FOUND => {
                let remedies = self.bucket.dialect.remedies();
                Err(SourceError::NotFound { what: format!("the bucket {}{}", remedies.bucket, remedies.absent()) })
            }
            _ => Err(self.bucket.refusal(answer, &self.what()).await),
        }
    }

    async fn at_once(&self) -> Result<Option<Response>, SourceError> {
        let size = self.content.size();
        let head = format!(
            "--{BOUNDARY}\r\ncontent-type: application/json; charset=utf-8\r\n\r\n{}\r\n--{BOUNDARY}\r\n\
             content-type: application/octet-stream\r\n\r\n",
            self.metadata()
        );
        let mut body = head.into_bytes();
        body.extend(self.content.read(0..size).await?);
        body.extend(format!("\r\n--{BOUNDARY}--\r\n").into_bytes());
        let length = body.len() as u64;
        // What is told of is the object, not its envelope.
        let body = Outgoing::open(&Content::Bytes(body.into()), Arc::new(|_| {})).await?;
        let made = again(|| async {
            let ask = self.ask("multipart").body(&body, 0..length);
            let kind = format!("multipart/related; boundary={BOUNDARY}");
            self.outcome(self.bucket.send(ask.header(CONTENT_TYPE.as_str(), &kind)).await?).await
        })
        .await?;
        if made.is_some() {
            self.content.tell(i64::try_from(size).unwrap_or(i64::MAX));
        }
        Ok(made)
    }

    async fn in_session(&self) -> Result<Option<Response>, SourceError> {
        let metadata = Outgoing::open(&Content::Bytes(self.metadata().into()), Arc::new(|_| {})).await?;
        let begun = again(|| async {
            let ask = self.ask("resumable").body(&metadata, 0..metadata.size());
            let size = self.content.size().to_string();
            let ask = ask.header("content-type", "application/json").header("x-upload-content-length", &size);
            self.outcome(self.bucket.send(ask).await?).await
        })
        .await?;
        let Some(begun) = begun else { return Ok(None) };
        let session = self.session(&begun)?;
        let (have, unsure) = (AtomicU64::new(0), AtomicBool::new(false));
        // Each step that brings something has all its tries again. A session that is left ends by itself and costs nothing.
        let answer = loop {
            match again(|| self.step(&session, &have, &unsure)).await? {
                Step::More => {}
                Step::Done(answer) => break Some(answer),
                Step::Existed => break None,
            }
        };
        self.content.check_unchanged().await?;
        Ok(answer)
    }

    /// Where the session is. Its URL is a credential: never printed, and believed only at the endpoint that was asked.
    fn session(&self, begun: &Response) -> Result<String, SourceError> {
        let location = begun.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.and_then(|location| url::Url::parse(location).ok());
        let ours = url::Url::parse(&self.url).ok();
        match (location, ours) {
            (Some(location), Some(ours)) if location.origin() == ours.origin() => Ok(location.to_string()),
            _ => Err(SourceError::Protocol {
                what: self.what(),
                detail: "begins an upload without saying where, or somewhere else".to_owned(),
            }),
        }
    }

    /// Sends the next piece; after a failure asks first what has arrived.
    async fn step(&self, session: &str, have: &AtomicU64, unsure: &AtomicBool) -> Result<Step, SourceError> {
        let size = self.content.size();
        let put = || Ask::new(Method::PUT, session.to_owned(), self.what());
        if unsure.load(Ordering::Relaxed) {
            let ask = put().header("content-range", &format!("bytes */{size}")).body(self.content, 0..0);
            let before = have.load(Ordering::Relaxed);
            let done = self.progress(self.bucket.send(ask).await?, have).await?;
            unsure.store(false, Ordering::Relaxed);
            // What was taken back has arrived after all.
            let now = if done.is_some() { size } else { have.load(Ordering::Relaxed) };
            self.content.tell(i64::try_from(now).unwrap_or(i64::MAX) - i64::try_from(before).unwrap_or(i64::MAX));
            if let Some(done) = done {
                return Ok(done);
            }
        }
        let start = have.load(Ordering::Relaxed);
        let end = size.min(start + CHUNK);
        let range = format!("bytes {start}-{}/{size}", end.saturating_sub(1));
        let ask = put().header("content-range", &range).body(self.content, start..end);
        let answer = match self.bucket.send(ask).await {
            Ok(answer) if !answer.status().is_server_error() => answer,
            Ok(answer) => {
                unsure.store(true, Ordering::Relaxed);
                return Err(self.bucket.refusal(answer, &self.what()).await);
            }
            Err(error) => {
                unsure.store(true, Ordering::Relaxed);
                return Err(error);
            }
        };
        let step = self.progress(answer, have).await?;
        let now = have.load(Ordering::Relaxed);
        if step.is_none() {
            // What it did not keep of this piece is sent again.
            self.content.tell(-i64::try_from(end.saturating_sub(now)).unwrap_or(i64::MAX));
            if now <= start {
                let detail = "keeps nothing of what is sent".to_owned();
                return Err(SourceError::Unavailable { what: self.what(), detail });
            }
        }
        Ok(step.unwrap_or(Step::More))
    }

    /// What a session's answer says; `None`: it goes on, and `have` is how much it has.
    async fn progress(&self, answer: Response, have: &AtomicU64) -> Result<Option<Step>, SourceError> {
        if answer.status() == StatusCode::PERMANENT_REDIRECT {
            let last =
                answer.headers().get(RANGE).and_then(|value| value.to_str().ok()?.rsplit_once('-')?.1.parse().ok());
            have.store(last.map_or(0, |last: u64| last + 1).min(self.content.size()), Ordering::Relaxed);
            return Ok(None);
        }
        match self.outcome(answer).await? {
            Some(answer) => Ok(Some(Step::Done(answer))),
            None => Ok(Some(Step::Existed)),
        }
    }

    /// Compares what the service has made with what was sent; removes it if it is something else.
    async fn check(&self, answer: Response) -> Result<(), SourceError> {
        let body = Reply::read(answer, self.bucket.stall).await.body;
        // Only what was asked for in `fields` is in it. Without it the service has still checked the CRC that it was given.
        let Ok(made) = serde_json::from_str::<Made>(&body) else { return Ok(()) };
        if made.crc32c == self.crc {
            return Ok(());
        }
        let generation = format!("generation={}", value(&made.generation));
        let ask = Ask::new(Method::DELETE, self.bucket.url(self.key), self.what()).query(&generation);
        if let Err(error) = self.bucket.ask(ask).await {
            tracing::debug!(%error, "cannot remove what was written wrongly");
        }
        Err(SourceError::Protocol { what: self.what(), detail: "keeps other bytes than were sent".to_owned() })
    }
}
