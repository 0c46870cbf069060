//! Revisions: immutable versions of a model.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::FilePath;
use crate::digest::Hash;

/// An immutable version of a model. Text forms: 40 hex digits, `listing:<64 hex>`, `manifest:<64 hex>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Revision {
    /// A commit of an origin that has commits.
    Commit(String),
    /// Digest of the sorted (path, size, strong validator) of the selected files.
    Listing(Hash),
    /// Digest of the finished manifest, where validators are too weak for a listing.
    Manifest(Hash),
}

/// The text is none of the forms of a [`Revision`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a revision: 40 hex digits, `listing:` or `manifest:` and 64 hex digits")]
pub struct RevisionError(String);

// === impl Revision ===

impl Revision {
    /// The revision of a listing: BLAKE3 over the domain line and, for each file sorted by path, path, size and strong
    /// validator, each followed by NUL.
    #[must_use]
    pub fn listing<'a>(files: impl IntoIterator<Item = (&'a FilePath, u64, &'a str)>) -> Self {
        let mut files: Vec<_> = files.into_iter().collect();
        files.sort_by(|one, other| one.0.cmp(other.0));
        let mut text = String::from("preheat listing 1\n");
        for (path, size, validator) in files {
            text.push_str(&format!("{path}\0{size}\0{validator}\0"));
        }
        Self::Listing(Hash::of(text.as_bytes()))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Commit(commit) => f.write_str(commit),
            Self::Listing(hash) => write!(f, "listing:{hash}"),
            Self::Manifest(hash) => write!(f, "manifest:{hash}"),
        }
    }
}

impl TryFrom<String> for Revision {
    type Error = RevisionError;

    fn try_from(text: String) -> Result<Self, RevisionError> {
        let wrong = || RevisionError(text.chars().take(100).collect());
        if let Some(hash) = text.strip_prefix("listing:") {
            return hash.parse().map(Self::Listing).map_err(|_| wrong());
        }
        if let Some(hash) = text.strip_prefix("manifest:") {
            return hash.parse().map(Self::Manifest).map_err(|_| wrong());
        }
        let is_commit = text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if is_commit { Ok(Self::Commit(text)) } else { Err(wrong()) }
    }
}

impl From<Revision> for String {
    fn from(revision: Revision) -> Self {
        revision.to_string()
    }
}
