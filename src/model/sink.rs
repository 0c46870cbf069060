//! The one narrow port through which bytes leave for an origin; the mirror image of [`super::source`]. What pushes a model
//! knows neither signatures nor parts, and what uploads knows neither manifests nor outboards.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::FilePath;
use super::source::{RemoteFile, SourceError, Validator};
use crate::digest::{Declared, Hash};

/// What an object is to hold.
#[derive(Clone, Debug)]
pub enum Content {
    /// Small things: manifests and outboards.
    Bytes(Bytes),
    /// A local file, streamed; never whole in memory.
    File {
        /// Where it is. A symbolic link is followed.
        path: PathBuf,
        /// How long it was when it was hashed. Another length now is [`SourceError::Changed`].
        size: u64,
        /// What it hashed to, to be kept with the object where the kind of place can.
        blake3: Option<Hash>,
    },
}

/// What becomes of an object that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Existing {
    /// It stays; the answer is [`Put::Existed`]. Of two that write at once, one has `Created` and the other `Existed`.
    Keep,
    /// It is replaced.
    Replace,
}

/// What was found there before or made now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Exact size in bytes.
    pub size: u64,
    /// What pins this version.
    pub validator: Validator,
    /// Digests of the whole object that the place declares. Empty: none.
    pub declared: Vec<Declared>,
    /// What whoever wrote it said that it hashes to. Not the place's own word: it has checked nothing.
    pub said: Option<Hash>,
}

impl Stored {
    /// The object as something to read, pinned to this version.
    #[must_use]
    pub fn remote(&self, path: &FilePath, locator: String) -> RemoteFile {
        RemoteFile {
            path: path.clone(),
            size: self.size,
            locator,
            validator: self.validator.clone(),
            declared: Vec::new(),
            blake3: None,
            outboard: None,
        }
    }
}

/// The outcome of [`Sink::put`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// The object holds what was given, durably, and the place has checked the digest that was sent with it where its kind
    /// can.
    Created,
    /// Something was there; nothing was changed. Whether it is the same thing is for the caller to find out.
    Existed,
}

/// Is told of bytes as they leave. What is sent once more is taken back first, so that the sum is never more than the size.
pub type Sent = Arc<dyn Fn(i64) + Send + Sync>;

/// A place that objects can be written to: a directory, or a bucket and a prefix.
///
/// Paths are relative to the place of the reference that it was opened with.
#[async_trait]
pub trait Sink: Send + Sync + std::fmt::Debug {
    /// What is at `path`; `None`: nothing.
    ///
    /// # Errors
    /// `Denied` if it may not be asked, `NotFound` for a bucket that does not exist, or what the place says.
    async fn head(&self, path: &FilePath) -> Result<Option<Stored>, SourceError>;

    /// The locator of `path`, as the reading half of this kind of origin has it in
    /// [`RemoteFile`]: what was written can be read back.
    fn locator(&self, path: &FilePath) -> String;

    /// Writes `path`. Nobody ever sees half of it: it appears whole or not at all, and stays what it was until then. What
    /// fails for a moment is tried again inside, part by part.
    ///
    /// Dropping the future may leave parts at the place that nobody sees and that cost room: buckets have rules that expire
    /// them.
    ///
    /// # Errors
    /// `Denied` if it may not be written, `Changed` if the local file is no longer what `content` says, or what the place
    /// says last.
    async fn put(&self, path: &FilePath, content: &Content, existing: Existing, sent: Sent)
    -> Result<Put, SourceError>;
}

// === impl Content ===

impl Content {
    /// Exact size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes.len() as u64,
            Self::File { size, .. } => *size,
        }
    }
}
