//! What can go wrong between a directory and a place.

use std::path::{Path, PathBuf};

use crate::base::ErrorKind;
use crate::model::source::SourceError;
use crate::model::{FilePath, ManifestError};

/// Errors of placing files.
#[derive(Debug, thiserror::Error)]
pub enum PlacementError {
    /// The place, or the listing of the directory.
    #[error(transparent)]
    Source(#[from] SourceError),
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
    /// A file is not what it was when it was hashed.
    #[error("{} changed while it was being published: wait until nobody writes to it, then push again", path.display())]
    Changed {
        /// Which.
        path: PathBuf,
    },
    /// A file where a directory is expected.
    #[error("{} is a file: give the directory that holds it", place.display())]
    NoDirectory {
        /// The file.
        place: PathBuf,
    },
    /// The selection leaves nothing sensible.
    #[error("{}: {detail}", place.display())]
    Selection {
        /// The directory.
        place: PathBuf,
        /// What to write.
        detail: String,
    },
    /// The files cannot be in one manifest.
    #[error("{0}")]
    Manifest(#[from] ManifestError),
    /// Another manifest is published there.
    #[error(
        "{destination} has another model, {theirs} and not {ours}: push to another place, or overwrite it with --replace"
    )]
    OtherManifest {
        /// Where.
        destination: String,
        /// Digest of the manifest that is there, or what is wrong with it.
        theirs: String,
        /// Digest of ours.
        ours: String,
    },
    /// Another object has the name of one of our files.
    #[error("{destination}/{path} is there and is another file: push to another place, or overwrite it with --replace")]
    OtherObject {
        /// Where.
        destination: String,
        /// Which.
        path: FilePath,
    },
    /// The caller called it off.
    #[error("interrupted; what was sent whole is found again by the next push")]
    Cancelled,
    /// A defect of preheat.
    #[error("a thread panicked; this is a defect of preheat")]
    Defect,
}

// === impl PlacementError ===

impl PlacementError {
    /// What it means to whoever has to act.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Source(error) => error.kind(),
            Self::Io { source, .. } => ErrorKind::of_io(source),
            Self::Changed { .. } | Self::OtherManifest { .. } | Self::OtherObject { .. } => ErrorKind::Conflict,
            Self::NoDirectory { .. } | Self::Selection { .. } | Self::Manifest(_) => ErrorKind::Invalid,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Defect => ErrorKind::Internal,
        }
    }

    pub(super) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }
}
