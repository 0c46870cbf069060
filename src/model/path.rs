//! Paths of files inside a model: relative, clean, and safe to join to a directory. Everything from outside becomes one of
//! these before it comes near a file system.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A relative path: `/`-separated segments, none empty, `.` or `..`; no control characters, no backslash; at most 1,024
/// bytes and 32 segments of at most 255 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilePath(String);

/// Why a path was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Nothing there.
    #[error("a path is empty")]
    Empty,
    /// Starts with `/`.
    #[error("path `{0}` is absolute")]
    Absolute(String),
    /// Has an empty segment, `.` or `..`.
    #[error("path `{0}` has a `.`, `..` or empty segment")]
    Escapes(String),
    /// Has NUL, another control character, or a backslash.
    #[error("path `{0}` has a control character or a backslash")]
    Character(String),
    /// Over a limit of [`FilePath`].
    #[error("path `{0}` is longer than 1,024 bytes, 32 segments, or 255 bytes in one segment")]
    TooLong(String),
}

// === impl FilePath ===

impl FilePath {
    /// Checks `text`.
    ///
    /// # Errors
    /// [`PathError`], with the path shortened and its control characters escaped.
    pub fn new(text: impl Into<String>) -> Result<Self, PathError> {
        let text = text.into();
        let shown = || text.chars().take(120).collect::<String>().escape_default().to_string();
        if text.is_empty() {
            return Err(PathError::Empty);
        }
        if text.starts_with('/') {
            return Err(PathError::Absolute(shown()));
        }
        if text.chars().any(|c| c.is_control() || c == '\\') {
            return Err(PathError::Character(shown()));
        }
        let mut segments = 0;
        for segment in text.split('/') {
            segments += 1;
            if matches!(segment, "" | "." | "..") {
                return Err(PathError::Escapes(shown()));
            }
            if segment.len() > 255 {
                return Err(PathError::TooLong(shown()));
            }
        }
        if text.len() > 1024 || segments > 32 {
            return Err(PathError::TooLong(shown()));
        }
        Ok(Self(text))
    }

    /// The path as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment.
    #[must_use]
    pub fn file_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }

    /// Everything before the last segment; `None` at the top.
    #[must_use]
    pub fn parent(&self) -> Option<&str> {
        self.0.rsplit_once('/').map(|(parent, _)| parent)
    }
}

impl TryFrom<String> for FilePath {
    type Error = PathError;

    fn try_from(text: String) -> Result<Self, PathError> {
        Self::new(text)
    }
}

impl From<FilePath> for String {
    fn from(path: FilePath) -> Self {
        path.0
    }
}

impl fmt::Display for FilePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl AsRef<std::path::Path> for FilePath {
    fn as_ref(&self) -> &std::path::Path {
        self.0.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_paths_are_refused() {
        for bad in [
            "",
            "/etc/passwd",
            "..",
            "a/../b",
            "a//b",
            "./a",
            "a/.",
            "a\0b",
            "a\nb",
            "a\\b",
            "a/",
            &"x".repeat(256),
            &"a/".repeat(40),
            &format!("{}b", "abcdefgh/".repeat(30)).repeat(4),
        ] {
            assert!(FilePath::new(bad).is_err(), "{bad:?}");
        }
        for good in ["config.json", "a/b/c.safetensors", "..hidden", "naïve name+%20.txt"] {
            assert!(FilePath::new(good).is_ok(), "{good:?}");
        }
    }
}
