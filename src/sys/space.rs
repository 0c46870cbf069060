//! How much room there is, and how much a file takes.

use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// What `statvfs(2)` says of a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Filesystem {
    /// All of it.
    pub total: u64,
    /// Free, including what only root may use.
    pub free: u64,
    /// Free for this process.
    pub available: u64,
}

// === impl Filesystem ===

impl Filesystem {
    /// The file system that `path` is on.
    ///
    /// # Errors
    /// When `path` does not exist or cannot be reached.
    pub fn of(path: &Path) -> io::Result<Self> {
        let found = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Self { total: bytes(found.f_blocks), free: bytes(found.f_bfree), available: bytes(found.f_bavail) })
    }
}

/// Bytes that a file takes on disk.
#[must_use]
pub fn allocated(metadata: &Metadata) -> u64 {
    // `st_blocks` counts units of 512 bytes whatever the block size is (stat(2)).
    metadata.blocks().saturating_mul(512)
}
