//! Writing to S3. The CRC-64/NVME of the whole object goes with it: over parts it merges, so that also a multipart object has
//! a checksum of the kind FULL_OBJECT, which whoever reads it can check. SHA-256 was turned down: of parts it is COMPOSITE,
//! and proves nothing to those who do not know where the parts ended.
//!
//! Creating only what is not there is a condition on the request that completes the object. Servers that do not know it say
//! so (501) and are then asked without: the HEAD before has found nothing, and two writers at the same moment are left to the
//! last of them. `AWS_REQUEST_CHECKSUM_CALCULATION=when_required` leaves the checksums out, for servers that refuse them.

use std::sync::atomic::{AtomicBool, Ordering};

use crc_fast::{CrcAlgorithm, checksum_combine};
use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::header::ETAG;
use reqwest::{Method, Response, StatusCode};
use serde::Deserialize;

use super::super::again::again;
use super::super::bucket::{Ask, Bucket};
use super::super::environment;
use super::super::outgoing::Outgoing;
use super::super::parts::{AT_ONCE, PART, parts};
use crate::model::sink::{Existing, Put};
use crate::model::source::SourceError;
use crate::origin::encoding::{base64, value};
use crate::origin::range::Reply;

/// Most parts of one object.
const PARTS: u64 = 10_000;

/// Completing many parts takes minutes of silence.
const COMPLETING: u32 = 15;

const CRC: CrcAlgorithm = CrcAlgorithm::Crc64Nvme;

#[derive(Deserialize)]
struct Initiated {
    #[serde(rename = "UploadId")]
    upload_id: String,
}

/// One part that has arrived.
struct Part {
    e_tag: String,
    crc: Option<u64>,
    size: u64,
}

/// An upload under way.
struct Upload<'a> {
    bucket: &'a Bucket,
    key: &'a str,
    content: &'a Outgoing,
    checksums: bool,
}

pub(super) async fn upload(
    bucket: &Bucket,
    key: &str,
    content: &Outgoing,
    existing: Existing,
) -> Result<Put, SourceError> {
    let wanted = environment::first(&["AWS_REQUEST_CHECKSUM_CALCULATION"]);
    let checksums = !wanted.is_some_and(|wanted| wanted.eq_ignore_ascii_case("when_required"));
    let upload = Upload { bucket, key, content, checksums };
    if content.size() <= PART { upload.at_once(existing).await } else { upload.in_parts(existing).await }
}

// === impl Upload ===

impl Upload<'_> {
    fn ask(&self, method: Method, query: &str) -> Ask {
        let url = self.bucket.url(self.key);
        let url = if query.is_empty() { url } else { format!("{url}?{query}") };
        Ask::new(method, url, self.bucket.what(self.key))
    }

    async fn crc(&self, range: std::ops::Range<u64>) -> Result<Option<u64>, SourceError> {
        if self.checksums { self.content.crc(CRC, range).await.map(Some) } else { Ok(None) }
    }

    async fn at_once(&self, existing: Existing) -> Result<Put, SourceError> {
        let size = self.content.size();
        let crc = self.crc(0..size).await?;
        self.conditionally(existing, || {
            let ask = self.bucket.named(self.ask(Method::PUT, ""), self.content).body(self.content, 0..size);
            with_crc(ask, crc)
        })
        .await?
        .map_or(Ok(Put::Existed), |_| Ok(Put::Created))
    }

    async fn in_parts(&self, existing: Existing) -> Result<Put, SourceError> {
        let answer = again(|| async {
            let mut ask = self.bucket.named(self.ask(Method::POST, "uploads="), self.content);
            if self.checksums {
                ask = ask.header("x-amz-checksum-algorithm", "CRC64NVME").header("x-amz-checksum-type", "FULL_OBJECT");
            }
            self.bucket.ask(ask.body(self.content, 0..0)).await
        })
        .await?;
        let initiated = Reply::read(answer, self.bucket.stall).await.body;
        let initiated: Initiated = quick_xml::de::from_str(&initiated).map_err(|error| SourceError::Protocol {
            what: self.bucket.what(self.key),
            detail: format!("begins an upload without its name: {error}"),
        })?;
        let upload_id = value(&initiated.upload_id);
        let outcome = self.fill(&upload_id, existing).await;
        if !matches!(outcome, Ok(Put::Created)) {
            // Parts that are left cost room. Should this fail too, the bucket's rule for such remains expires them.
            let ask = self.ask(Method::DELETE, &format!("uploadId={upload_id}"));
            if let Err(error) = self.bucket.ask(ask).await {
                tracing::debug!(%error, "cannot give up an upload");
            }
        }
        outcome
    }

    async fn fill(&self, upload_id: &str, existing: Existing) -> Result<Put, SourceError> {
        let done: Vec<Part> = stream::iter((1..).zip(parts(self.content.size(), PARTS)))
            .map(|(number, range): (u64, _)| self.part(upload_id, number, range))
            .buffered(AT_ONCE)
            .try_collect()
            .await?;
        self.content.check_unchanged().await?;
        let whole = done.iter().try_fold(crc_fast::checksum(CRC, &[]), |whole, part| {
            Some(checksum_combine(CRC, whole, part.crc?, part.size))
        });
        let document = completion(&done);
        let size = document.len() as u64;
        let document = crate::model::sink::Content::Bytes(document.into());
        // It is none of the object's bytes.
        let document = Outgoing::open(&document, std::sync::Arc::new(|_| {})).await?;
        let answer = self
            .conditionally(existing, || {
                let ask = self.ask(Method::POST, &format!("uploadId={upload_id}"));
                let mut ask = with_crc(ask, whole);
                if whole.is_some() {
                    ask = ask.header("x-amz-checksum-type", "FULL_OBJECT");
                }
                ask.header("content-type", "application/xml").body(&document, 0..size).patience(COMPLETING)
            })
            .await?;
        let Some(answer) = answer else { return Ok(Put::Existed) };
        // The status was sent before the work was done: the answer itself may be an error.
        let joined = Reply::read(answer, self.bucket.stall * COMPLETING).await;
        if !joined.body.contains("CompleteMultipartUploadResult") {
            let what = self.bucket.what(self.key);
            return Err(SourceError::Unavailable {
                what,
                detail: format!("parts are not joined: {}", joined.detail()),
            });
        }
        Ok(Put::Created)
    }

    async fn part(&self, upload_id: &str, number: u64, range: std::ops::Range<u64>) -> Result<Part, SourceError> {
        let crc = self.crc(range.clone()).await?;
        let size = range.end - range.start;
        let answer = again(|| async {
            let ask = self.ask(Method::PUT, &format!("partNumber={number}&uploadId={upload_id}"));
            self.bucket.ask(with_crc(ask, crc).body(self.content, range.clone())).await
        })
        .await?;
        let e_tag = answer.headers().get(ETAG).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let e_tag = e_tag.ok_or_else(|| SourceError::Protocol {
            what: self.bucket.what(self.key),
            detail: "has no ETag for a part".to_owned(),
        })?;
        Ok(Part { e_tag, crc, size })
    }

    /// Sends what makes the object appear; `None`: it was there already.
    async fn conditionally(
        &self,
        existing: Existing,
        ask: impl Fn() -> Ask + Send + Sync,
    ) -> Result<Option<Response>, SourceError> {
        let conditions_known = AtomicBool::new(true);
        again(|| async {
            let keep = existing == Existing::Keep && conditions_known.load(Ordering::Relaxed);
            let request = if keep { ask().header("if-none-match", "*") } else { ask() };
            let answer = self.bucket.send(request).await?;
            match answer.status() {
                status if status.is_success() => Ok(Some(answer)),
                StatusCode::PRECONDITION_FAILED if keep => Ok(None),
                StatusCode::NOT_IMPLEMENTED if keep => {
                    tracing::debug!(object = self.key, "conditional writes are not known here");
                    conditions_known.store(false, Ordering::Relaxed);
                    Err(SourceError::Unavailable {
                        what: self.bucket.what(self.key),
                        detail: "does not know conditional writes".to_owned(),
                    })
                }
                _ => Err(self.bucket.refusal(answer, &self.bucket.what(self.key)).await),
            }
        })
        .await
    }
}

fn with_crc(ask: Ask, crc: Option<u64>) -> Ask {
    match crc {
        Some(crc) => ask.header("x-amz-checksum-crc64nvme", &base64(&crc.to_be_bytes())),
        None => ask,
    }
}

/// The list of parts that completes an upload.
fn completion(parts: &[Part]) -> String {
    let mut document = String::from("<CompleteMultipartUpload>");
    for (number, part) in (1..).zip(parts) {
        let e_tag = quick_xml::escape::escape(&part.e_tag);
        document.push_str(&format!("<Part><ETag>{e_tag}</ETag><PartNumber>{number}</PartNumber>"));
        if let Some(crc) = part.crc {
            document.push_str(&format!("<ChecksumCRC64NVME>{}</ChecksumCRC64NVME>", base64(&crc.to_be_bytes())));
        }
        document.push_str("</Part>");
    }
    document + "</CompleteMultipartUpload>"
}
