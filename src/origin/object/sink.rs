//! The writing half: a bucket and a prefix as a place for objects.

use async_trait::async_trait;

use super::bucket::Bucket;
use super::outgoing::Outgoing;
use crate::model::FilePath;
use crate::model::sink::{Content, Existing, Put, Sent, Sink, Stored};
use crate::model::source::SourceError;

/// Objects below a prefix.
#[derive(Debug)]
pub(super) struct ObjectSink {
    bucket: Bucket,
    /// Without slashes at its ends; empty for all of the bucket.
    prefix: String,
}

// === impl ObjectSink ===

impl ObjectSink {
    pub(super) fn new(bucket: Bucket, prefix: &str) -> Self {
        Self { bucket, prefix: prefix.to_owned() }
    }

    fn key(&self, path: &FilePath) -> String {
        if self.prefix.is_empty() { path.to_string() } else { format!("{}/{path}", self.prefix) }
    }
}

#[async_trait]
impl Sink for ObjectSink {
    async fn head(&self, path: &FilePath) -> Result<Option<Stored>, SourceError> {
        let found = self.bucket.head(&self.key(path)).await?;
        Ok(found.map(|found| Stored {
            size: found.size,
            validator: found.validator,
            declared: found.declared,
            said: found.said,
        }))
    }

    fn locator(&self, path: &FilePath) -> String {
        self.key(path)
    }

    async fn put(
        &self,
        path: &FilePath,
        content: &Content,
        existing: Existing,
        sent: Sent,
    ) -> Result<Put, SourceError> {
        let key = self.key(path);
        // Gigabytes are not sent to be told at their end that something is there.
        if existing == Existing::Keep && self.bucket.head(&key).await?.is_some() {
            return Ok(Put::Existed);
        }
        let content = Outgoing::open(content, sent).await?;
        self.bucket.dialect.upload(&self.bucket, &key, &content, existing).await
    }
}
