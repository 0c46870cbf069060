//! What can go wrong between a reference and its model. Clonable, because one flight fails for all who wait for it.

use std::sync::Arc;

use super::digests::Mismatch;
use crate::base::ErrorKind;
use crate::digest::group_range;
use crate::model::source::SourceError;
use crate::model::tensor::TensorError;
use crate::model::{FilePath, IndexError, ManifestError, Revision};
use crate::store::StoreError;

/// Errors of a transfer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TransferError {
    /// The origin could not be asked, or not for all bytes.
    #[error("fetch {what}: {source}")]
    Source {
        /// Reference or file.
        what: String,
        /// The origin's word.
        source: SourceError,
    },
    /// The store could not take it.
    #[error("store {what}: {source}")]
    Store {
        /// Reference or file.
        what: String,
        /// The store's word.
        source: Arc<StoreError>,
    },
    /// The reference names a revision that its origin no longer has.
    #[error(
        "{reference} asks for revision {asked}, its origin now has {found}: ask for that, or leave the revision out"
    )]
    OtherRevision {
        /// The reference.
        reference: String,
        /// As typed.
        asked: Revision,
        /// What the origin resolves to.
        found: String,
    },
    /// The origin changed under each of several plannings.
    #[error(
        "{what} is not what its origin says it is, in each of {plannings} attempts: {last}; if it is being published, try again \
         when that is done; if its manifest is old, publish it again"
    )]
    Changing {
        /// The reference.
        what: String,
        /// How often it was planned.
        plannings: u32,
        /// What the last one met.
        last: String,
    },
    /// The bytes are not those that the origin declares.
    #[error("{file} is corrupt: its origin declares {algorithm} {declared}, the bytes received twice have {computed}")]
    WrongDigest {
        /// The file.
        file: FilePath,
        /// `blake3`, `sha256`, ...
        algorithm: &'static str,
        /// Lower-case hex.
        declared: String,
        /// Lower-case hex.
        computed: String,
    },
    /// A group is not what the outboard at the origin proves that it must be.
    #[error(
        "{file} is corrupt: group {group} (bytes {start} to {end}) is not what its origin's manifest says, however often it is \
         asked for; all else that arrived is kept: publish the file again (`preheat push --replace`), then fetch again"
    )]
    WrongGroup {
        /// The file.
        file: FilePath,
        /// Number of the group, from 0.
        group: u64,
        /// Its first byte.
        start: u64,
        /// One past its last byte.
        end: u64,
    },
    /// A file ends in `.safetensors` and is none.
    #[error("{file} is not valid safetensors: {source}; the file at the origin is broken, publish it again")]
    Tensors {
        /// The file.
        file: FilePath,
        /// What is wrong.
        source: TensorError,
    },
    /// An index names a shard that the origin does not have.
    #[error("{index} names {shard}, which the origin does not have ({missing} missing in all): publish it there")]
    MissingShard {
        /// The index.
        index: FilePath,
        /// The first that is missing.
        shard: FilePath,
        /// How many are.
        missing: usize,
    },
    /// An index cannot be read.
    #[error("{index}: {source}")]
    Index {
        /// The file.
        index: FilePath,
        /// What is wrong.
        source: Arc<IndexError>,
    },
    /// The file list breaks a limit or contradicts itself.
    #[error("the file list of {reference} is refused: {source}")]
    List {
        /// The reference.
        reference: String,
        /// What is wrong.
        source: Arc<ManifestError>,
    },
    /// The caller, or a shutdown, called it off.
    #[error("the fetch was called off")]
    Cancelled,
    /// A defect of preheat.
    #[error("{task} ended unexpectedly: {detail}; this is a defect of preheat")]
    Defect {
        /// Which task.
        task: &'static str,
        /// Its last word.
        detail: String,
    },
}

/// What a failure means for the range that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Ask again after a while.
    Retry,
    /// Ask again, but not often: the source contradicts itself.
    RetryLittle,
    /// Ask again later, and everybody asks less.
    SlowDown(Option<std::time::Duration>),
    /// Asking again cannot help.
    GiveUp,
}

// === impl TransferError ===

impl TransferError {
    /// What it means to whoever has to act.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Source { source, .. } => source.kind(),
            Self::Store { source, .. } => source.kind(),
            Self::OtherRevision { .. } => ErrorKind::NotFound,
            Self::Changing { .. } => ErrorKind::Conflict,
            Self::WrongDigest { .. } | Self::WrongGroup { .. } | Self::Tensors { .. } => ErrorKind::Corrupt,
            Self::MissingShard { .. } => ErrorKind::NotFound,
            Self::Index { .. } | Self::List { .. } => ErrorKind::Invalid,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Defect { .. } => ErrorKind::Internal,
        }
    }

    pub(super) fn source(what: &(impl ToString + ?Sized), source: SourceError) -> Self {
        Self::Source { what: what.to_string(), source }
    }

    pub(super) fn store(what: &(impl ToString + ?Sized), source: StoreError) -> Self {
        Self::Store { what: what.to_string(), source: Arc::new(source) }
    }

    pub(super) fn wrong_digest(file: &FilePath, mismatch: Mismatch) -> Self {
        let Mismatch { algorithm, declared, computed } = mismatch;
        Self::WrongDigest { file: file.clone(), algorithm, declared, computed }
    }

    pub(super) fn wrong_group(file: &FilePath, size: u64, group: u64) -> Self {
        let range = group_range(size, group);
        Self::WrongGroup { file: file.clone(), group, start: range.start, end: range.end }
    }

    pub(super) fn remedy(&self) -> Remedy {
        match self {
            Self::Source { source, .. } => match source {
                SourceError::RateLimited { retry_after, .. } => Remedy::SlowDown(*retry_after),
                SourceError::Unavailable { .. } | SourceError::Stalled { .. } => Remedy::Retry,
                SourceError::Protocol { .. } => Remedy::RetryLittle,
                SourceError::NotFound { .. }
                | SourceError::Denied { .. }
                | SourceError::NotAllowed { .. }
                | SourceError::Changed { .. }
                | SourceError::NoSpace { .. }
                | SourceError::Invalid { .. } => Remedy::GiveUp,
            },
            _ => Remedy::GiveUp,
        }
    }

    /// Whether bytes at rest turned out wrong: they are in quarantine, and fetching again may help.
    pub(super) fn is_rot(&self) -> bool {
        matches!(self, Self::Store { source, .. } if source.kind() == ErrorKind::Corrupt)
    }

    /// Whether planning again may help.
    pub(super) fn is_change(&self) -> bool {
        matches!(self, Self::Source { source: SourceError::Changed { .. }, .. })
    }
}
