//! What can go wrong with bundles.

use std::path::{Path, PathBuf};

use crate::base::ErrorKind;
use crate::base::units::ByteSize;
use crate::model::source::SourceError;
use crate::model::{BundleError, SignatureError, Tenant};
use crate::store::StoreError;

/// Errors of the library.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The shared origin.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A document.
    #[error(transparent)]
    Document(#[from] BundleError),
    /// A signature, or a key.
    #[error("{0}")]
    Signature(#[from] SignatureError),
    /// A local file.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// A verb.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// Something that no bundle may have, or a request that cannot work.
    #[error("{what}: {why}")]
    Refused {
        /// A file, a root, a key.
        what: String,
        /// Why, and what to do.
        why: String,
    },
    /// Trust does not reach so far.
    #[error("{what}: {why}")]
    Denied {
        /// A bundle, or what was asked.
        what: String,
        /// Why, and what to do.
        why: String,
    },
    /// Bytes are not what the document says.
    #[error("{what} is corrupt: {detail}")]
    Corrupt {
        /// A bundle or one of its files.
        what: String,
        /// How it differs.
        detail: String,
    },
    /// There is no such bundle, as far as the caller may know.
    #[error("there is no bundle {what} here: see `preheat engine list`")]
    NotFound {
        /// As asked for.
        what: String,
    },
    /// Somebody writes to it.
    #[error("{} changed while it was captured: capture when the engine has settled", path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// The scope has as many bytes on the node as it may.
    #[error(
        "scope {scope} may bring {most} to this node and has {used}; this bundle has {needed}: evict one of its models or bundles, or \
         have the operator raise access.bytes_max"
    )]
    Quota {
        /// Whose.
        scope: Tenant,
        /// What it may have.
        most: ByteSize,
        /// What it has, and has under way.
        used: ByteSize,
        /// Size of the bundle.
        needed: ByteSize,
    },
    /// The target file system is too small.
    #[error("no space for {needed} bytes at {}: {available} are available", path.display())]
    NoSpace {
        /// What it takes.
        needed: u64,
        /// What there is.
        available: u64,
        /// Where.
        path: PathBuf,
    },
    /// It took longer than the caller wanted to wait.
    #[error("{what} was not done in time")]
    Timeout {
        /// What.
        what: String,
    },
    /// Another node's or daemon's word.
    #[error("{detail}")]
    Remote {
        /// What it means.
        kind: ErrorKind,
        /// In its words.
        detail: String,
    },
    /// A defect of preheat.
    #[error("a thread panicked; this is a defect of preheat")]
    Defect,
}

// === impl EngineError ===

impl EngineError {
    /// What it means to whoever has to act.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Store(error) => error.kind(),
            Self::Source(error) => error.kind(),
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::Document(_) | Self::Corrupt { .. } => ErrorKind::Corrupt,
            Self::Signature(_) | Self::Denied { .. } => ErrorKind::Denied,
            Self::Refused { .. } => ErrorKind::Invalid,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Changed { .. } => ErrorKind::Conflict,
            Self::NoSpace { .. } | Self::Quota { .. } => ErrorKind::NoSpace,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Remote { kind, .. } => *kind,
            Self::Defect => ErrorKind::Internal,
        }
    }

    pub(super) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn refused(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Refused { what: what.into(), why: why.into() }
    }
}
