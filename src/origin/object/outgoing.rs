//! Bytes on their way out: read from memory or from a file in pieces, digested before they leave, and counted as they do.
//!
//! A range is read twice, once to digest it and once to send it: the second reading comes from the page cache. The other way,
//! holding every part in memory between the two, costs parts × connections, which for the largest objects is gigabytes. What
//! changes in between is refused by the place, which was told the digest of what was read first.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use crc_fast::CrcAlgorithm;
use futures_util::{Stream, stream};
use md5::Digest;

use crate::digest::Hash;
use crate::model::sink::{Content, Sent};
use crate::model::source::SourceError;
use crate::sys::read_write::pread_exact;

/// Read and sent at once. What is in flight of an upload is a few of these, whatever the size of a part.
const PIECE: u64 = 256 * 1024;

/// What is to be sent.
#[derive(Clone)]
pub(super) struct Outgoing {
    bytes: Source,
    size: u64,
    sent: Sent,
    /// What it hashed to, as far as that is known.
    pub(super) blake3: Option<Hash>,
}

#[derive(Clone)]
enum Source {
    Memory(Bytes),
    File { file: Arc<File>, path: Arc<PathBuf>, modified: (i64, i64) },
}

/// Counts what leaves in one request; a request that fails is taken back.
#[derive(Clone)]
pub(super) struct Tally {
    sent: Sent,
    count: Arc<AtomicI64>,
}

// === impl Outgoing ===

impl Outgoing {
    /// Opens `content`.
    pub(super) async fn open(content: &Content, sent: Sent) -> Result<Self, SourceError> {
        let bytes = match content {
            Content::Bytes(bytes) => Source::Memory(bytes.clone()),
            Content::File { path, size, .. } => {
                let (path, size) = (path.clone(), *size);
                blocking(move || {
                    let file = File::open(&path).map_err(|error| local(&path, &error))?;
                    let metadata = file.metadata().map_err(|error| local(&path, &error))?;
                    if metadata.len() != size {
                        return Err(SourceError::Changed { what: path.display().to_string() });
                    }
                    let modified = (metadata.mtime(), metadata.mtime_nsec());
                    Ok(Source::File { file: Arc::new(file), path: Arc::new(path), modified })
                })
                .await?
            }
        };
        let blake3 = match content {
            Content::Bytes(bytes) => Some(Hash::of(bytes)),
            Content::File { blake3, .. } => *blake3,
        };
        Ok(Self { bytes, size: content.size(), sent, blake3 })
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn tally(&self) -> Tally {
        Tally { sent: Arc::clone(&self.sent), count: Arc::default() }
    }

    /// Tells of bytes that have left, or (below zero) not arrived after all.
    pub(super) fn tell(&self, bytes: i64) {
        (self.sent)(bytes);
    }

    /// The bytes of `range`, at once: for what is small.
    pub(super) async fn read(&self, range: Range<u64>) -> Result<Bytes, SourceError> {
        let path = match &self.bytes {
            Source::Memory(_) => Arc::default(),
            Source::File { path, .. } => Arc::clone(path),
        };
        self.bytes.clone().read(range).await.map_err(|error| local(&path, &error))
    }

    /// The bytes of `range`, in pieces.
    pub(super) fn stream(
        &self,
        range: Range<u64>,
        tally: Tally,
    ) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
        let source = self.bytes.clone();
        stream::try_unfold(range.start, move |at| {
            let (source, tally, end) = (source.clone(), tally.clone(), range.end);
            async move {
                if at >= end {
                    return Ok(None);
                }
                let next = (at + PIECE).min(end);
                let piece = source.read(at..next).await?;
                tally.add(piece.len() as u64);
                Ok(Some((piece, next)))
            }
        })
    }

    /// The CRC of `range`.
    pub(super) async fn crc(&self, algorithm: CrcAlgorithm, range: Range<u64>) -> Result<u64, SourceError> {
        let digest = self.fold(range, crc_fast::Digest::new(algorithm), crc_fast::Digest::update).await?;
        Ok(digest.finalize())
    }

    /// The MD5 of `range`.
    pub(super) async fn md5(&self, range: Range<u64>) -> Result<[u8; 16], SourceError> {
        let digest = self.fold(range, md5::Md5::new(), |digest, bytes| digest.update(bytes)).await?;
        Ok(digest.finalize().into())
    }

    async fn fold<T: Send + 'static>(
        &self,
        range: Range<u64>,
        mut state: T,
        update: impl Fn(&mut T, &[u8]) + Send + 'static,
    ) -> Result<T, SourceError> {
        let source = self.bytes.clone();
        blocking(move || {
            match &source {
                Source::Memory(bytes) => update(&mut state, &bytes[range.start as usize..range.end as usize]),
                Source::File { file, path, .. } => {
                    let (mut buffer, mut at) = (vec![0; PIECE as usize], range.start);
                    while at < range.end {
                        let piece = &mut buffer[..PIECE.min(range.end - at) as usize];
                        pread_exact(file, piece, at).map_err(|error| local(path, &error))?;
                        update(&mut state, piece);
                        at += piece.len() as u64;
                    }
                }
            }
            Ok(state)
        })
        .await
    }

    /// Whether the file is still what it was when it was opened.
    pub(super) async fn check_unchanged(&self) -> Result<(), SourceError> {
        let Source::File { file, path, modified } = self.bytes.clone() else { return Ok(()) };
        let size = self.size;
        blocking(move || {
            let now = file.metadata().map_err(|error| local(&path, &error))?;
            if now.len() == size && (now.mtime(), now.mtime_nsec()) == modified {
                return Ok(());
            }
            Err(SourceError::Changed { what: path.display().to_string() })
        })
        .await
    }
}

// === impl Source ===

impl Source {
    async fn read(self, range: Range<u64>) -> Result<Bytes, std::io::Error> {
        match self {
            Self::Memory(bytes) => Ok(bytes.slice(range.start as usize..range.end as usize)),
            Self::File { file, .. } => tokio::task::spawn_blocking(move || {
                let mut piece = vec![0; (range.end - range.start) as usize];
                pread_exact(&file, &mut piece, range.start)?;
                Ok(Bytes::from(piece))
            })
            .await
            .map_err(std::io::Error::other)?,
        }
    }
}

// === impl Tally ===

impl Tally {
    fn add(&self, bytes: u64) {
        let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
        self.count.fetch_add(bytes, Ordering::Relaxed);
        (self.sent)(bytes);
    }

    /// Bytes so far: whoever waits sees by it whether anything moves.
    pub(super) fn count(&self) -> i64 {
        self.count.load(Ordering::Relaxed)
    }

    /// They did not arrive after all.
    pub(super) fn take_back(&self) {
        match self.count.swap(0, Ordering::Relaxed) {
            0 => {}
            bytes => (self.sent)(-bytes),
        }
    }
}

/// What an error of the local file means.
pub(super) fn local(path: &std::path::Path, error: &std::io::Error) -> SourceError {
    let what = path.display().to_string();
    match error.kind() {
        std::io::ErrorKind::NotFound => SourceError::NotFound { what },
        std::io::ErrorKind::PermissionDenied => {
            SourceError::Denied { what, detail: "the file system refuses to read it".to_owned() }
        }
        // It is shorter than it was.
        std::io::ErrorKind::UnexpectedEof => SourceError::Changed { what },
        _ => SourceError::Invalid { detail: format!("read {what}: {error}") },
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(SourceError::Unavailable { what: "the file system".to_owned(), detail: "reading panicked".to_owned() })
    })
}
