//! The manifest: the files of one model revision (or, later, of one engine bundle).

use serde::{Deserialize, Serialize};

use super::{FilePath, PathError};
use crate::digest::Hash;

/// What a manifest describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Weights and what an engine reads beside them.
    Model,
    /// The files of a compiled engine.
    Bundle,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestEntry {
    /// Where it belongs.
    pub path: FilePath,
    /// Size in bytes.
    pub size: u64,
    /// BLAKE3 root.
    pub blake3: Hash,
}

/// A checked manifest: entries sorted by path, none twice, within the limits, sizes adding up without overflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    kind: Kind,
    files: Vec<ManifestEntry>,
}

/// Why a manifest was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the documented shape; unknown fields included.
    #[error("manifest is not of the documented shape: {0}")]
    Shape(#[from] serde_json::Error),
    /// Written by a newer preheat.
    #[error("manifest has version {0}, this preheat reads 1: upgrade preheat")]
    Version(u32),
    /// A path that could leave the tree.
    #[error("manifest: {0}")]
    Path(#[from] PathError),
    /// The same path twice, or a file where another path needs a directory.
    #[error("manifest lists `{0}` twice, or as both file and directory")]
    Duplicate(FilePath),
    /// More than the stated limit.
    #[error("manifest has {what}, the limit is {limit}")]
    Limit {
        /// What there is too much of.
        what: String,
        /// How much is allowed.
        limit: String,
    },
}
