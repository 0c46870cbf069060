//! Writing to Azure: a small blob in one request, whose MD5 the service checks and keeps; a large one as blocks, each with an
//! MD5 that is checked, and a list of them with the MD5 of the whole, which is kept and not checked. It is computed here, over
//! the file that the blocks are read from, so that whoever reads the blob can check it.
//!
//! The names of blocks are this upload's own. Under numbers alone, two uploads of one name would take each other's blocks for
//! theirs. Blocks that are never listed vanish after a week.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::Arc;

use futures_util::{StreamExt, TryStreamExt, stream};
use reqwest::{Method, Response, StatusCode};

use super::super::again::again;
use super::super::bucket::{Ask, Bucket};
use super::super::outgoing::Outgoing;
use super::super::parts::{AT_ONCE, PART, parts};
use crate::model::sink::{Content, Existing, Put};
use crate::model::source::SourceError;
use crate::origin::encoding::{base64, value};

/// Most blocks of one blob.
const BLOCKS: u64 = 50_000;

/// An upload.
struct Upload<'a> {
    bucket: &'a Bucket,
    key: &'a str,
    content: &'a Outgoing,
    existing: Existing,
}

pub(super) async fn upload(
    bucket: &Bucket,
    key: &str,
    content: &Outgoing,
    existing: Existing,
) -> Result<Put, SourceError> {
    let upload = Upload { bucket, key, content, existing };
    if content.size() <= PART { upload.at_once().await } else { upload.in_blocks().await }
}

// === impl Upload ===

impl Upload<'_> {
    fn ask(&self) -> Ask {
        Ask::new(Method::PUT, self.bucket.url(self.key), self.bucket.what(self.key))
    }

    async fn at_once(&self) -> Result<Put, SourceError> {
        let size = self.content.size();
        let md5 = base64(&self.content.md5(0..size).await?);
        self.conditionally(|| {
            let ask = self.ask().header("x-ms-blob-type", "BlockBlob").header("content-md5", &md5);
            ask.body(self.content, 0..size)
        })
        .await
    }

    async fn in_blocks(&self) -> Result<Put, SourceError> {
        let upload = RandomState::new().build_hasher().finish();
        let size = self.content.size();
        let blocks = stream::iter((0_u64..).zip(parts(size, BLOCKS)))
            .map(|(number, range)| self.block(base64(format!("{upload:016x}{number:08}").as_bytes()), range))
            .buffered(AT_ONCE)
            .try_collect::<Vec<String>>();
        let (md5, blocks) = futures_util::future::try_join(self.content.md5(0..size), blocks).await?;
        self.content.check_unchanged().await?;
        let latest: String = blocks.iter().map(|block| format!("<Latest>{block}</Latest>")).collect();
        let list = format!("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList>{latest}</BlockList>");
        let length = list.len() as u64;
        // It is none of the blob's bytes.
        let list = Outgoing::open(&Content::Bytes(list.into()), Arc::new(|_| {})).await?;
        let md5 = base64(&md5);
        self.conditionally(|| {
            let ask = self.ask().query("comp=blocklist").header("x-ms-blob-content-md5", &md5);
            ask.body(&list, 0..length)
        })
        .await
    }

    async fn block(&self, name: String, range: Range<u64>) -> Result<String, SourceError> {
        let md5 = base64(&self.content.md5(range.clone()).await?);
        again(|| async {
            let ask = self.ask().query(&format!("comp=block&blockid={}", value(&name))).header("content-md5", &md5);
            self.bucket.ask(ask.body(self.content, range.clone())).await
        })
        .await?;
        Ok(name)
    }

    /// Sends what makes the blob appear.
    async fn conditionally(&self, ask: impl Fn() -> Ask + Send + Sync) -> Result<Put, SourceError> {
        let keep = self.existing == Existing::Keep;
        again(|| async {
            let request = if keep { ask().header("if-none-match", "*") } else { ask() };
            let answer = self.bucket.send(request).await?;
            match answer.status() {
                status if status.is_success() => Ok(Put::Created),
                StatusCode::PRECONDITION_FAILED if keep => Ok(Put::Existed),
                StatusCode::CONFLICT if keep && code_is(&answer, "BlobAlreadyExists") => Ok(Put::Existed),
                // Whoever lists blocks first throws away those of all others.
                StatusCode::BAD_REQUEST if keep && code_is(&answer, "InvalidBlockList") => {
                    match self.bucket.head(self.key).await? {
                        Some(_) => Ok(Put::Existed),
                        None => Err(self.bucket.refusal(answer, &self.bucket.what(self.key)).await),
                    }
                }
                _ => Err(self.bucket.refusal(answer, &self.bucket.what(self.key)).await),
            }
        })
        .await
    }
}

fn code_is(answer: &Response, code: &str) -> bool {
    answer.headers().get("x-ms-error-code").is_some_and(|found| found == code)
}
