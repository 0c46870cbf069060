//! What is looked at in files that have just arrived, besides their digests: an index that names shards, a tensor file's
//! header. An engine would find the same, minutes later.

use super::TransferError;
use crate::digest::{GROUP_BYTES, Hash};
use crate::model::tensor::{self, TensorError};
use crate::model::{FilePath, INDEX_LIMIT};
use crate::store::{Store, StoreError};

const TENSORS: &str = ".safetensors";

/// Whether [`check_tensors`] applies.
pub(super) fn has_tensors(path: &FilePath) -> bool {
    path.as_str().ends_with(TENSORS)
}

/// Reads an index whole. Blocking. One longer than any that is accepted is cut, which its reader then says.
///
/// # Errors
/// When the blob cannot be read or proved.
pub(super) fn read_index(store: &Store, hash: &Hash) -> Result<Vec<u8>, StoreError> {
    first_bytes(store, hash, INDEX_LIMIT as u64 + 1)
}

/// Checks the header of a tensor file. Blocking.
///
/// # Errors
/// Outer: the blob cannot be read or proved. Inner: it is no tensor file.
pub(super) fn check_tensors(store: &Store, hash: &Hash) -> Result<Result<(), TensorError>, StoreError> {
    let size = store.open_blob(hash)?.size();
    let prefix = first_bytes(store, hash, 8)?;
    let needed = match tensor::header_bytes(&prefix, size) {
        Ok(needed) => needed,
        Err(error) => return Ok(Err(error)),
    };
    let header = first_bytes(store, hash, needed)?;
    Ok(tensor::check_header(&header, size).map(drop))
}

/// The first `count` bytes of a blob, or all of it.
fn first_bytes(store: &Store, hash: &Hash, count: u64) -> Result<Vec<u8>, StoreError> {
    let reader = store.open_blob(hash)?;
    let count = count.min(reader.size()) as usize;
    let mut buffer = vec![0; reader.size().clamp(1, GROUP_BYTES) as usize];
    let mut bytes = Vec::with_capacity(count);
    for group in 0.. {
        if bytes.len() >= count {
            break;
        }
        let verified = reader.group(group, &mut buffer)?;
        let take = verified.len().min(count - bytes.len());
        bytes.extend_from_slice(&verified[..take]);
    }
    Ok(bytes)
}

impl TransferError {
    /// The file at the origin is broken as a tensor file.
    pub(super) fn tensors(file: &FilePath, source: TensorError) -> Self {
        Self::Tensors { file: file.clone(), source }
    }
}
