//! Reading blobs with proof. The outboard is held against the blob's name once, when the blob is opened; then every group is
//! held against its chaining value when it is read.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::StoreError;
use super::error::IoContext;
use crate::digest::{GROUP_BYTES, GroupCv, Hash, Verified, group_count, group_range, merge_root};
use crate::sys::read_write::{pread_at_hand, pread_exact};

/// A blob opened for verified reading. Keeps its bytes alive even if it is evicted meanwhile.
#[derive(Debug)]
pub struct BlobReader {
    hash: Hash,
    size: u64,
    file: Arc<File>,
    path: PathBuf,
    cvs: Arc<[GroupCv]>,
}

// === impl BlobReader ===

impl BlobReader {
    /// Opens `path` as the blob `hash`. `cvs`: its chaining values if they are at hand; else `outboard` is read.
    pub(super) fn open(
        hash: &Hash,
        path: &Path,
        cvs: Option<Arc<[GroupCv]>>,
        outboard: &Path,
    ) -> Result<Self, StoreError> {
        let file = File::open(path).at("open blob", path)?;
        let size = file.metadata().at("read size of blob", path)?.len();
        let cvs = match cvs {
            Some(cvs) => cvs,
            None if group_count(size) == 1 => Arc::from([GroupCv(*hash.as_bytes())]),
            None => read_outboard(hash, size, outboard)?,
        };
        if cvs.len() as u64 != group_count(size) {
            return Err(corrupt(hash, format!("{size} bytes do not fit {} groups", cvs.len())));
        }
        Ok(Self { hash: *hash, size, file: Arc::new(file), path: path.to_owned(), cvs })
    }

    /// Size in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The chaining values of its groups, which have been proved.
    pub(super) fn cvs(&self) -> &Arc<[GroupCv]> {
        &self.cvs
    }

    /// The open file, for questions about the page cache.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Bytes of group `index`.
    #[must_use]
    pub fn bytes_of(&self, index: u64) -> u64 {
        let range = group_range(self.size, index);
        range.end - range.start
    }

    /// Reads and proves group `index` into `buffer` (at least 1 MiB, or the size of the blob if that is less).
    ///
    /// # Errors
    /// `Corrupt`: the caller quarantines the blob. An unreadable sector is corrupt as well.
    pub fn group<'a>(&self, index: u64, buffer: &'a mut [u8]) -> Result<Verified<&'a [u8]>, StoreError> {
        let range = group_range(self.size, index);
        let Some(group) = buffer.get_mut(..(range.end - range.start) as usize) else {
            let detail = format!("group {index} is asked of a blob of {} bytes", self.size);
            return Err(StoreError::Misuse { detail, blob: Some(self.hash) });
        };
        pread_exact(&self.file, group, range.start).map_err(|error| self.unreadable(error))?;
        self.prove(index, group)
    }

    /// Reads and proves group `index` if it is in memory: about 0.25 ms of copying and hashing, and no waiting. `None`: it is not,
    /// or it is wrong; [`BlobReader::group`] tells.
    pub fn group_at_hand<'a>(&self, index: u64, buffer: &'a mut [u8]) -> Option<Verified<&'a [u8]>> {
        let range = group_range(self.size, index);
        let group = buffer.get_mut(..(range.end - range.start) as usize)?;
        if !pread_at_hand(&self.file, group, range.start) {
            return None;
        }
        self.prove(index, group).ok()
    }

    /// Proves bytes that were read as group `index`.
    ///
    /// # Errors
    /// As [`BlobReader::group`].
    pub fn prove<'a>(&self, index: u64, bytes: &'a [u8]) -> Result<Verified<&'a [u8]>, StoreError> {
        let Some(cv) = usize::try_from(index).ok().and_then(|index| self.cvs.get(index)) else {
            let detail = format!("group {index} is asked of a blob of {} bytes", self.size);
            return Err(StoreError::Misuse { detail, blob: Some(self.hash) });
        };
        Verified::group(self.size, index, *cv, bytes)
            .map_err(|wrong| corrupt(&self.hash, format!("group {index}: {wrong}")))
    }

    /// A file that ends early is corrupt, and a sector that cannot be read is as good as that. A machine that has run out of something
    /// is neither: the bytes may be well.
    pub(super) fn unreadable(&self, error: std::io::Error) -> StoreError {
        if error.kind() == std::io::ErrorKind::UnexpectedEof {
            return corrupt(&self.hash, format!("{} cannot be read: {error}", self.path.display()));
        }
        unread(&self.hash, "read blob", &self.path, error)
    }

    /// Reads and proves all of it with one buffer, telling `progress` of each group's bytes.
    ///
    /// # Errors
    /// As [`BlobReader::group`].
    pub fn verify(&self, progress: &mut dyn FnMut(u64)) -> Result<(), StoreError> {
        let mut buffer = vec![0; self.size.clamp(1, GROUP_BYTES) as usize];
        let last_is_left_out = crate::sys::mutant::mutant("short_group_not_scrubbed");
        for index in 0..group_count(self.size) - u64::from(last_is_left_out) {
            let bytes = self.group(index, &mut buffer)?.len();
            progress(bytes as u64);
        }
        Ok(())
    }
}

fn unread(hash: &Hash, action: &'static str, path: &Path, error: std::io::Error) -> StoreError {
    match error.raw_os_error() {
        Some(libc::EIO | libc::EILSEQ | libc::EUCLEAN | libc::ENODATA | libc::EREMOTEIO) => {
            StoreError::Medium { what: format!("blob {hash}"), detail: format!("{}: {error}", path.display()) }
        }
        _ => StoreError::Io { action, path: path.to_owned(), source: error },
    }
}

fn corrupt(hash: &Hash, detail: String) -> StoreError {
    StoreError::Corrupt { what: format!("blob {hash}"), detail }
}

/// Reads an outboard and proves it against the name.
pub(super) fn read_outboard(hash: &Hash, size: u64, path: &Path) -> Result<Arc<[GroupCv]>, StoreError> {
    let found = match fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        found => Some(found.map_err(|error| unread(hash, "read size of outboard", path, error))?.len()),
    };
    let wanted = 32 * group_count(size);
    if found != Some(wanted) {
        return Err(corrupt(hash, format!("its outboard is missing or has not {wanted} bytes")));
    }
    let bytes = fs::read(path).map_err(|error| unread(hash, "read outboard", path, error))?;
    let cvs: Arc<[GroupCv]> = bytes.as_chunks::<32>().0.iter().map(|cv| GroupCv(*cv)).collect();
    if merge_root(&cvs) == Some(*hash) { Ok(cvs) } else { Err(corrupt(hash, "its outboard is wrong".to_owned())) }
}

/// The bytes of an outboard file.
pub(super) fn outboard_bytes(cvs: &[GroupCv]) -> Vec<u8> {
    cvs.iter().flat_map(|cv| cv.0).collect()
}
