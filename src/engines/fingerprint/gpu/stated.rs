//! A facts file: what the GPUs are, because somebody says so. JSON of the shape of [`Gpus`]; an empty list of GPUs is a machine
//! without. What is captured under such facts is never published.

use std::path::{Path, PathBuf};

use super::Gpus;
use crate::base::ErrorKind;

/// Largest facts file: some hundreds of slices.
const LIMIT: u64 = 1 << 20;

/// Why a facts file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum FactsFileError {
    /// It cannot be read.
    #[error("read facts file {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It is not one.
    #[error("facts file {path} is not of the documented shape: {detail}")]
    Shape {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
}

// === impl FactsFileError ===

impl FactsFileError {
    /// What it means to whoever has to act.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { source, .. } => ErrorKind::of_io(source),
            Self::Shape { .. } => ErrorKind::Invalid,
        }
    }
}

pub(super) fn read(path: &Path) -> Result<Gpus, FactsFileError> {
    let unread = |source| FactsFileError::Read { path: path.to_owned(), source };
    let shape = |detail: String| FactsFileError::Shape { path: path.to_owned(), detail };
    if std::fs::metadata(path).map_err(unread)?.len() > LIMIT {
        return Err(shape("it is longer than 1 MiB".to_owned()));
    }
    let gpus: Gpus =
        serde_json::from_slice(&std::fs::read(path).map_err(unread)?).map_err(|error| shape(error.to_string()))?;
    match gpus.gpus.iter().position(|gpu| gpu.name.trim().is_empty()) {
        Some(at) => Err(shape(format!("GPU {at} has no name"))),
        None => Ok(gpus),
    }
}
