//! What can go wrong at rest.

use std::path::PathBuf;

use super::Holder;
use crate::base::ErrorKind;
use crate::digest::Hash;
use crate::sys::disk::DiskError;

/// Errors of the store port.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process writes to this root.
    #[error("{root} is in use by `preheat {}` (pid {}): use its daemon, wait, or choose another --root", holder.role, holder.pid)]
    Locked {
        /// The root.
        root: PathBuf,
        /// Who holds it.
        holder: Holder,
    },
    /// Written by a newer preheat.
    #[error("{root} has store format {found}, this preheat reads {known}: upgrade preheat or choose another --root")]
    NewerFormat {
        /// The root.
        root: PathBuf,
        /// What FORMAT says.
        found: u32,
        /// What this build reads.
        known: u32,
    },
    /// The directory exists and is not a store.
    #[error("{root} is not empty and not a preheat store: choose another --root")]
    NotAStore {
        /// The root.
        root: PathBuf,
    },
    /// Nothing is there to look at.
    #[error("there is no preheat store at {root}: choose another --root")]
    NoStore {
        /// The root.
        root: PathBuf,
    },
    /// No room, and nothing more that may go.
    #[error("no space for {needed} bytes: {detail}")]
    NoSpace {
        /// Bytes asked for.
        needed: u64,
        /// What is held by whom, and what to do.
        detail: String,
    },
    /// Bytes on disk, or arrived bytes, are not what their name says.
    #[error("{what} is corrupt: {detail}")]
    Corrupt {
        /// File or blob.
        what: String,
        /// How it differs.
        detail: String,
    },
    /// The medium does not give bytes back: for who reads they are as good as wrong, but nobody has seen them.
    #[error("{what} cannot be read: {detail}")]
    Medium {
        /// File or blob.
        what: String,
        /// The system's word.
        detail: String,
    },
    /// The blob or model is not here.
    #[error("{what} is not in the store")]
    Missing {
        /// Blob or model.
        what: String,
    },
    /// The model is pinned, leased or in use.
    #[error("{what} is kept: {why}")]
    Kept {
        /// Model.
        what: String,
        /// Why.
        why: String,
    },
    /// A pin that breaks a limit.
    #[error("{detail}")]
    Refused {
        /// What is wrong and what is allowed.
        detail: String,
    },
    /// A sync failed, or the disk answers EIO or EROFS: writing has stopped until the daemon is restarted.
    #[error("the store has stopped writing: {detail}")]
    Halted {
        /// The first failure.
        detail: String,
    },
    /// A system call failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// Present-tense verb and object, e.g. "write journal".
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// Nobody is there to read and write.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The caller broke the protocol (wrong group length, incomplete blob).
    #[error("{detail}")]
    Misuse {
        /// What was wrong.
        detail: String,
        /// The blob, if known.
        blob: Option<Hash>,
    },
}

impl StoreError {
    /// What it means to whoever has to act.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Locked { .. } | Self::Kept { .. } => ErrorKind::Busy,
            Self::NewerFormat { .. } | Self::NotAStore { .. } | Self::Refused { .. } => ErrorKind::Invalid,
            Self::NoSpace { .. } => ErrorKind::NoSpace,
            Self::Corrupt { .. } | Self::Medium { .. } => ErrorKind::Corrupt,
            Self::Missing { .. } | Self::NoStore { .. } => ErrorKind::NotFound,
            Self::Halted { .. } => ErrorKind::Unavailable,
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::Disk(error) => error.kind(),
            Self::Misuse { .. } => ErrorKind::Internal,
        }
    }
}

/// Gives a system call's failure its action and file.
pub(super) trait IoContext<T> {
    /// `action` is a present-tense verb and object.
    fn at(self, action: &'static str, path: &std::path::Path) -> Result<T, StoreError>;
}

impl<T> IoContext<T> for std::io::Result<T> {
    fn at(self, action: &'static str, path: &std::path::Path) -> Result<T, StoreError> {
        self.map_err(|source| StoreError::Io { action, path: path.to_owned(), source })
    }
}
