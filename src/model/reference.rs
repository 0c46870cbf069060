//! References: what a person types, and what it is reduced to.
//!
//! ```text
//! reference = scheme "://" place ["@" revision] ["/" subfolder] ["?" query]
//! query     = ("include=" | "exclude=") glob *("&" ...)
//! ```

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::FilePath;
use crate::digest::Hash;

/// How an origin is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// A local directory or file.
    File,
    /// Plain HTTP.
    Http,
    /// HTTP over TLS.
    Https,
    /// An S3-compatible object store.
    S3,
}

/// The identity of an origin: scheme, endpoint and place, canonical, without credentials, revision or subfolder. Examples:
/// `file:///models/a`, `https://host/models/a`, `s3+aws/bucket/prefix`, `s3+http://127.0.0.1:9000/bucket/prefix`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct OriginId(String);

/// Which part of a model is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Selection {
    /// Only files under this directory, and paths relative to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subfolder: Option<FilePath>,
    /// Globs to take; any at all switches the default choice off. Sorted, none twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub include: Vec<String>,
    /// Globs to leave out, applied last. Sorted, none twice.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude: Vec<String>,
}

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

/// A parsed reference.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    /// How to reach it.
    pub scheme: Scheme,
    /// Authority of http(s) (`host[:port]`), bucket of s3, empty for file.
    pub authority: String,
    /// Path or key prefix, percent-decoded, without leading or trailing slash; may be empty for a bucket.
    pub place: String,
    /// Revision as typed: a branch, a commit, or the text of a [`Revision`].
    pub revision: Option<String>,
    /// What part is wanted.
    pub selection: Selection,
}

/// Why a reference could not be read; each says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// No `scheme://`.
    #[error("`{0}` has no scheme: write file:///dir, https://host/path or s3://bucket/prefix")]
    NoScheme(String),
    /// A scheme that this build does not know.
    #[error("`{0}` has an unknown scheme: use file, http, https or s3")]
    UnknownScheme(String),
    /// Anything else.
    #[error("`{reference}`: {detail}")]
    Malformed {
        /// The text, shortened, without userinfo.
        reference: String,
        /// What is wrong and what to write.
        detail: String,
    },
}

impl OriginId {
    /// The canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// An identity from its canonical text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The last path segment, for people.
    #[must_use]
    pub fn last_segment(&self) -> &str {
        self.0.trim_end_matches('/').rsplit('/').next().unwrap_or_default()
    }
}

impl Selection {
    /// Canonical text for keys.
    #[must_use]
    pub fn canonical(&self) -> String {
        todo!("written next")
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
    type Error = String;

    fn try_from(_text: String) -> Result<Self, String> {
        todo!("written next")
    }
}

impl From<Revision> for String {
    fn from(revision: Revision) -> Self {
        revision.to_string()
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(_text: &str) -> Result<Self, ReferenceError> {
        todo!("written next")
    }
}
