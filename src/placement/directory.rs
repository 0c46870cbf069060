//! A directory as a model: which of its files are taken, and what they hash to.
//!
//! Threads share strides of files, not files: of a model with one large shard all of them have work.

use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use super::PlacementError;
use crate::base::lifecycle::CancellationToken;
use crate::digest::{GROUP_BYTES, GroupCv, Hash, Outboard, group_count, group_cv, group_range};
use crate::model::{FilePath, Kind, Manifest, ManifestEntry, Selection, select};
use crate::sys::read_write::pread_exact;

/// The files of a directory that a selection takes, in order.
#[derive(Clone, Debug)]
pub struct Directory {
    /// Where they are.
    pub place: PathBuf,
    /// Paths below `place`.
    pub files: Vec<FilePath>,
    /// For people.
    pub warnings: Vec<String>,
    /// Files that the selection leaves.
    pub left_out: usize,
}

/// A file of a directory, hashed.
#[derive(Clone, Debug)]
pub struct HashedFile {
    /// Below the directory.
    pub path: FilePath,
    /// Its size.
    pub size: u64,
    /// Its groups.
    pub outboard: Outboard,
    pub(super) stamp: Stamp,
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A file being hashed.
struct Open {
    file: File,
    stamp: Stamp,
    cvs: Mutex<Vec<Option<GroupCv>>>,
}

/// Groups that a thread takes at once: about 10 ms of hashing, so that files end together and nobody waits for a straggler.
const STRIDE: u64 = 64;
/// Hashing saturates memory bandwidth with fewer.
const THREADS_MOST: usize = 8;

// === impl Directory ===

impl Directory {
    /// Lists `place` and selects.
    ///
    /// # Errors
    /// `NotFound`, a link that leaves the directory, a name that cannot be in a model, a selection that leaves nothing.
    pub fn list(place: &Path, selection: &Selection) -> Result<Self, PlacementError> {
        if place.is_file() {
            return Err(PlacementError::NoDirectory { place: place.to_owned() });
        }
        let paths = crate::origin::list_directory(place)?;
        let selected = select(&paths, selection)
            .map_err(|error| PlacementError::Selection { place: place.to_owned(), detail: error.to_string() })?;
        let files: Vec<FilePath> = selected.taken.iter().map(|index| paths[*index].clone()).collect();
        let left_out = paths.len() - files.len();
        Ok(Self { place: place.to_owned(), files, warnings: selected.warnings, left_out })
    }

    /// Bytes of all files, as they are now.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let size = |path: &FilePath| std::fs::metadata(self.place.join(path)).map_or(0, |metadata| metadata.len());
        self.files.iter().map(size).sum()
    }

    /// Hashes all files, with one buffer of 1 MiB for each of at most 8 threads. `progress` is told of bytes. Blocking.
    ///
    /// # Errors
    /// A file that cannot be read or changes meanwhile, or `Cancelled`.
    pub fn hash(
        &self,
        progress: &(dyn Fn(u64) + Sync),
        cancel: &CancellationToken,
    ) -> Result<Vec<HashedFile>, PlacementError> {
        let mut hashed = Vec::with_capacity(self.files.len());
        // As many files are open at once as fit the usual limit of descriptors many times.
        for files in self.files.chunks(128) {
            hashed.extend(self.hash_some(files, progress, cancel)?);
        }
        Ok(hashed)
    }

    fn hash_some(
        &self,
        files: &[FilePath],
        progress: &(dyn Fn(u64) + Sync),
        cancel: &CancellationToken,
    ) -> Result<Vec<HashedFile>, PlacementError> {
        let open: Vec<Open> = files.iter().map(|path| Open::new(&self.place.join(path))).collect::<Result<_, _>>()?;
        let strides: Vec<(usize, Range<u64>)> = open
            .iter()
            .enumerate()
            .flat_map(|(number, open)| {
                let groups = group_count(open.stamp.size);
                (0..groups.div_ceil(STRIDE))
                    .map(move |stride| (number, stride * STRIDE..((stride + 1) * STRIDE).min(groups)))
            })
            .collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let mut buffer = vec![0; GROUP_BYTES as usize];
            while let Some((number, groups)) = strides.get(next.fetch_add(1, Ordering::Relaxed)) {
                if cancel.is_cancelled() {
                    return Err(PlacementError::Cancelled);
                }
                let hashed = open[*number].hash(groups.clone(), &mut buffer, progress);
                hashed.map_err(|error| PlacementError::io("read", &self.place.join(&files[*number]), error))?;
            }
            Ok(())
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MOST).min(strides.len());
        std::thread::scope(|scope| {
            let hands: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            hands.into_iter().try_for_each(|hand| hand.join().unwrap_or(Err(PlacementError::Defect)))
        })?;
        files.iter().zip(open).map(|(path, open)| open.finish(path, &self.place.join(path))).collect()
    }
}

// === impl HashedFile ===

impl HashedFile {
    /// Its name as a blob.
    #[must_use]
    pub fn blake3(&self) -> Hash {
        self.outboard.root()
    }

    /// The manifest of these files.
    ///
    /// # Errors
    /// When they are more, or larger, than a manifest may have.
    pub fn manifest(files: &[Self]) -> Result<Manifest, PlacementError> {
        let entry = |file: &Self| ManifestEntry::new(file.path.clone(), file.size, file.blake3());
        Ok(Manifest::new(Kind::Model, files.iter().map(entry).collect())?)
    }

    /// Whether the file at `path` is still the one that was hashed.
    pub(super) fn check_unchanged(&self, path: &Path) -> Result<(), PlacementError> {
        let now = std::fs::metadata(path).map_err(|error| PlacementError::io("read", path, error))?;
        if Stamp::of(&now) == self.stamp { Ok(()) } else { Err(PlacementError::Changed { path: path.to_owned() }) }
    }
}

// === impl Stamp ===

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

// === impl Open ===

impl Open {
    fn new(path: &Path) -> Result<Self, PlacementError> {
        let failed = |error| PlacementError::io("open", path, error);
        let file = File::open(path).map_err(failed)?;
        let stamp = Stamp::of(&file.metadata().map_err(failed)?);
        let groups = usize::try_from(group_count(stamp.size)).unwrap_or(usize::MAX);
        Ok(Self { file, stamp, cvs: Mutex::new(vec![None; groups]) })
    }

    fn hash(&self, groups: Range<u64>, buffer: &mut [u8], progress: &(dyn Fn(u64) + Sync)) -> std::io::Result<()> {
        for group in groups {
            let range = group_range(self.stamp.size, group);
            let bytes = &mut buffer[..(range.end - range.start) as usize];
            pread_exact(&self.file, bytes, range.start)?;
            let cv = group_cv(self.stamp.size, group, bytes);
            self.cvs.lock().unwrap_or_else(PoisonError::into_inner)[group as usize] = Some(cv);
            progress(range.end - range.start);
        }
        Ok(())
    }

    fn finish(self, path: &FilePath, place: &Path) -> Result<HashedFile, PlacementError> {
        let now = self.file.metadata().map_err(|error| PlacementError::io("read", place, error))?;
        if Stamp::of(&now) != self.stamp {
            return Err(PlacementError::Changed { path: place.to_owned() });
        }
        let cvs: Option<Vec<GroupCv>> =
            self.cvs.into_inner().unwrap_or_else(PoisonError::into_inner).into_iter().collect();
        let outboard = cvs.and_then(Outboard::of).ok_or(PlacementError::Defect)?;
        Ok(HashedFile { path: path.clone(), size: self.stamp.size, outboard, stamp: self.stamp })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hash_to_what_they_are() {
        let directory = tempfile::tempdir().unwrap();
        let mib = GROUP_BYTES as usize;
        let sizes = [0, 1, mib, mib + 1, 3 * mib, 70 * mib + 5];
        for (number, size) in sizes.into_iter().enumerate() {
            let bytes: Vec<u8> = (0..size).map(|i| (i * (number + 3) % 251) as u8).collect();
            std::fs::write(directory.path().join(format!("{number}.safetensors")), bytes).unwrap();
        }
        std::fs::write(directory.path().join("README.md"), "no").unwrap();
        let listed = Directory::list(directory.path(), &Selection::default()).unwrap();
        assert_eq!((listed.files.len(), listed.left_out), (sizes.len(), 1));
        let told = AtomicUsize::new(0);
        let count = |bytes: u64| {
            told.fetch_add(bytes as usize, Ordering::Relaxed);
        };
        let hashed = listed.hash(&count, &CancellationToken::new()).unwrap();
        for file in &hashed {
            let bytes = std::fs::read(directory.path().join(&file.path)).unwrap();
            assert_eq!((file.size, file.blake3()), (bytes.len() as u64, Hash::of(&bytes)), "{}", file.path);
        }
        assert_eq!(told.into_inner(), sizes.iter().sum::<usize>());
        let cancelled = CancellationToken::new();
        cancelled.cancel();
        assert!(matches!(listed.hash(&|_| {}, &cancelled), Err(PlacementError::Cancelled)));
    }

    #[test]
    fn a_file_that_changes_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, "{}").unwrap();
        let listed = Directory::list(directory.path(), &Selection::default()).unwrap();
        let hashed = listed.hash(&|_| {}, &CancellationToken::new()).unwrap();
        hashed[0].check_unchanged(&path).unwrap();
        std::fs::write(&path, "[]").unwrap();
        let error = hashed[0].check_unchanged(&path).unwrap_err();
        assert_eq!(error.kind(), crate::base::ErrorKind::Conflict);
    }
}
