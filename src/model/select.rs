//! Which files of an origin an engine needs.

use super::{FilePath, Selection};

/// The outcome of a selection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// Indices into the given paths, in path order.
    pub taken: Vec<usize>,
    /// For people: names that differ in case only, and the like.
    pub warnings: Vec<String>,
}

/// Why nothing sensible could be selected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// Nothing is left.
    #[error("no file is left of {listed}: {hint}")]
    Nothing {
        /// How many there were.
        listed: usize,
        /// What to write.
        hint: String,
    },
    /// Several GGUF files and none named.
    #[error("{0}")]
    Ambiguous(String),
    /// A glob that cannot be read.
    #[error("glob `{glob}`: {detail}")]
    Glob {
        /// As typed.
        glob: String,
        /// The parser's word.
        detail: String,
    },
}

/// Chooses.
///
/// # Errors
/// [`SelectError`].
pub fn select(_paths: &[FilePath], _selection: &Selection) -> Result<Selected, SelectError> {
    todo!("written next")
}
