//! The one narrow port through which bytes arrive from elsewhere. Origins implement it, and so do peers, which is why it
//! stands on this floor and not beside either.

use std::fs::File;
use std::ops::Range;
use std::time::Duration;

use async_trait::async_trait;

use super::body::Body;
use super::{FilePath, Manifest, OriginId, Reference, Revision};
use crate::base::ErrorKind;
use crate::digest::{Declared, Hash};

/// What pins the version of an object during its transfer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Validator {
    /// Names exactly these bytes: version id, generation, strong ETag, or inode, size and nanosecond times of a local file.
    Strong(String),
    /// Changes when the bytes do, as a rule: `Last-Modified`, a weak ETag.
    Weak(String),
    /// The origin gives nothing. Such a transfer is never resumed by another process.
    None,
}

/// One file as planning found it at its source.
#[derive(Clone, Debug)]
pub struct RemoteFile {
    /// Its place in the model.
    pub path: FilePath,
    /// Exact size in bytes.
    pub size: u64,
    /// Its place at the source: key, URL or path. Opaque to everybody but the source; stable between plannings.
    pub locator: String,
    /// What pins it.
    pub validator: Validator,
    /// Digests of the whole object that the source declares. Empty: none.
    pub declared: Vec<Declared>,
    /// The BLAKE3 root, where a manifest at the source names it.
    pub blake3: Option<Hash>,
    /// Where the source keeps the file's outboard, as a locator. `None`: it keeps none, or the file has a single group.
    pub outboard: Option<String>,
}

/// A reference resolved at its origin, before any body byte moves.
#[derive(Clone, Debug)]
pub struct Resolution {
    /// Who was asked.
    pub origin: OriginId,
    /// What the reference stands for now. `None` where only the finished manifest can tell (no strong validators).
    pub revision: Option<Revision>,
    /// The files that the selection leaves, sorted by path, none twice.
    pub files: Vec<RemoteFile>,
    /// The manifest that the origin itself publishes, cut down to `files`; its digests are then binding.
    pub manifest: Option<Manifest>,
}

/// A body that has begun to arrive.
pub struct RangeBody {
    /// First byte that `bytes` yields. Equal to the asked start, or 0 if the source ignores ranges.
    pub start: u64,
    /// The source does not know ranges: it sends all of the object, of which `bytes` gives what was asked and no more.
    pub ignores_ranges: bool,
    /// The bytes, in order. Ends early only with an error; never yields more than was asked from `start` on.
    pub bytes: Box<dyn Body>,
}

/// Read at a time of what is passed over.
const PAST: usize = 64 << 10;

/// Whatever can go wrong between us and a source.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SourceError {
    /// Object, bucket, repository or directory does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// The thing asked for, safe to log.
        what: String,
    },
    /// Credentials are missing, wrong or insufficient.
    #[error("access to {what} is denied: {detail}")]
    Denied {
        /// The thing asked for, safe to log.
        what: String,
        /// What the source said, or what to set.
        detail: String,
    },
    /// The operator has not allowed that it is asked: nothing was sent. No credential would help.
    #[error("{what} is not asked: {detail}")]
    NotAllowed {
        /// The thing asked for, safe to log.
        what: String,
        /// Why, and what the operator would have to write.
        detail: String,
    },
    /// The object is no longer the version that was planned.
    #[error("{what} changed at its origin during the transfer")]
    Changed {
        /// The object.
        what: String,
    },
    /// Asked to slow down.
    #[error("{what} asks to slow down{}", for_so_long(*retry_after))]
    RateLimited {
        /// Host or object.
        what: String,
        /// How long it asks to wait.
        retry_after: Option<Duration>,
    },
    /// Connection, 5xx, a body that broke off.
    #[error("{what} is unavailable: {detail}")]
    Unavailable {
        /// Host or object.
        what: String,
        /// What happened.
        detail: String,
    },
    /// No byte, or too few, for too long.
    #[error("{what} sent nothing for {after:?}")]
    Stalled {
        /// Host or object.
        what: String,
        /// The limit that passed.
        after: Duration,
    },
    /// The source contradicts itself or the protocol: wrong length, wrong range, unparsable listing.
    #[error("{what} answers wrongly: {detail}")]
    Protocol {
        /// Host or object.
        what: String,
        /// The contradiction.
        detail: String,
    },
    /// The place that is written to has no room.
    #[error("{what} has no room: {detail}")]
    NoSpace {
        /// The object.
        what: String,
        /// What the place said.
        detail: String,
    },
    /// The reference cannot be served by this kind of source, or breaks a stated limit.
    #[error("{detail}")]
    Invalid {
        /// What is wrong and what to do instead.
        detail: String,
    },
}

/// Anything that yields ranges of objects.
#[async_trait]
pub trait RangeSource: Send + Sync + std::fmt::Debug {
    /// Opens `range` of `file` at the version that planning pinned. The implementation checks status, Content-Range,
    /// length and validator, and answers [`SourceError::Changed`] rather than bytes of another version.
    async fn open(&self, file: &RemoteFile, range: Range<u64>) -> Result<RangeBody, SourceError>;

    /// A file of this machine that is `file` at the version that planning pinned: where the file system can, its blocks are
    /// shared instead of copied, and then checked as if they had arrived. `None`: elsewhere. Blocking.
    ///
    /// # Errors
    /// `Changed`, or what opening it says.
    fn local(&self, file: &RemoteFile) -> Result<Option<File>, SourceError> {
        let _ = file;
        Ok(None)
    }
}

/// A place where references are resolved.
#[async_trait]
pub trait Origin: RangeSource {
    /// Lists, selects, pins. Moves no body bytes except small index files.
    async fn resolve(&self, reference: &Reference) -> Result<Resolution, SourceError>;

    /// Proves that the bytes of what was resolved may be read, where resolving has not proved it: a hub tells everybody what a
    /// gated model has, and gives its bytes to few.
    ///
    /// # Errors
    /// `Denied` if they may not be.
    async fn prove(&self, resolution: &Resolution) -> Result<(), SourceError> {
        let _ = resolution;
        Ok(())
    }
}

/// A range of a file in memory: for what is small.
///
/// # Errors
/// Those of the source; `Unavailable` if the body ends early.
pub async fn read_range(
    source: &dyn RangeSource,
    file: &RemoteFile,
    range: Range<u64>,
) -> Result<Vec<u8>, SourceError> {
    let wanted = usize::try_from(range.end.saturating_sub(range.start)).unwrap_or(usize::MAX);
    let mut body = source.open(file, range.clone()).await?;
    let (mut before, mut past) = (range.start.saturating_sub(body.start), vec![0; PAST]);
    while before > 0 {
        let most = past.len().min(usize::try_from(before).unwrap_or(usize::MAX));
        match body.bytes.read(&mut past[..most]).await? {
            0 => break,
            read => before -= read as u64,
        }
    }
    let mut bytes = body.bytes.read_up_to(wanted).await?;
    bytes.truncate(wanted);
    if bytes.len() == wanted {
        return Ok(bytes);
    }
    let detail = format!("{} bytes came of {wanted}", bytes.len());
    Err(SourceError::Unavailable { what: file.locator.clone(), detail })
}

fn for_so_long(wait: Option<Duration>) -> String {
    wait.map_or_else(String::new, |wait| format!(" for {} s", wait.as_secs_f64().ceil()))
}

// === impl Validator ===

impl Validator {
    /// Text for keys and records: `s:` strong, `w:` weak, `-` none.
    #[must_use]
    pub fn as_key(&self) -> String {
        match self {
            Self::Strong(text) => format!("s:{text}"),
            Self::Weak(text) => format!("w:{text}"),
            Self::None => "-".to_owned(),
        }
    }
}

// === impl RangeBody ===

impl std::fmt::Debug for RangeBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RangeBody").field("start", &self.start).finish_non_exhaustive()
    }
}

// === impl SourceError ===

impl SourceError {
    /// What it means to whoever has to act.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Denied { .. } | Self::NotAllowed { .. } => ErrorKind::Denied,
            Self::Changed { .. } => ErrorKind::Conflict,
            Self::RateLimited { .. } => ErrorKind::Busy,
            // A lying body may be a passing fault of a proxy: worth the same bounded retries as a broken one.
            Self::Unavailable { .. } | Self::Protocol { .. } => ErrorKind::Unavailable,
            Self::Stalled { .. } => ErrorKind::Timeout,
            Self::NoSpace { .. } => ErrorKind::NoSpace,
            Self::Invalid { .. } => ErrorKind::Invalid,
        }
    }

    /// How long the source asked to wait, if it did.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        if let Self::RateLimited { retry_after, .. } = self { *retry_after } else { None }
    }
}
