//! Bundles that are used where they lie: every file is a blob of its own, so that the store's tree of the bundle has plain, read-only
//! files. A TensorRT engine with its weights has tens of gigabytes, and nobody writes to it: the replicas of a node share one set of
//! files, and one set of pages of memory.
//!
//! The tree is one of the store like any model's: under one capacity, evicted, pinned, scrubbed, and withdrawn when a blob of it is
//! found wrong. It is read whole before each start, which is what the engine does next, and then from memory.
//!
//! Turned down: unpacking it once beside the pack (twice the room, and a second thing to verify and to evict), and trusting an earlier
//! verification by inode and times (root writes to files that are read-only).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::EngineError;
use crate::digest::{GROUP_BYTES, GroupCv, group_count, group_cv, group_range, merge_root};
use crate::model::{Bundle, ManifestEntry};
use crate::sys::beneath::{Beneath, Descent, Facts, Kind};
use crate::sys::read_write::pread_exact;

/// Most files of such a bundle. An engine has one a rank and a few beside; what has thousands is a cache, and is packed.
pub const IN_PLACE_FILES_MOST: usize = 512;

/// Files that are kept open for as long as it is used: what somebody has open is not evicted, and one of them is enough. The largest,
/// since small ones may be those of another bundle too.
const KEPT_OPEN: usize = 4;

/// Threads that hash; beyond, the memory is what is waited for.
const THREADS_MOST: usize = 8;

/// A bundle in the store's tree, verified.
#[derive(Debug)]
pub struct InPlace {
    /// The directory that has a directory for each root.
    pub files: PathBuf,
    /// What they are, with the times that they have here.
    pub entries: Vec<ManifestEntry>,
    /// Their bytes.
    pub bytes: u64,
    /// How long verifying took.
    pub seconds: f64,
    _open: Vec<File>,
}

// === impl InPlace ===

impl InPlace {
    /// Holds the files of a tree against the document. `files`: where it is; `None`: the bundle is packed. Blocking.
    ///
    /// # Errors
    /// `Corrupt` for what is not as the document says, `Refused` where it cannot be read from here, I/O.
    pub fn verify(bundle: &Bundle, files: Option<&Path>) -> Result<Self, EngineError> {
        let started = Instant::now();
        let Some(files) = files else {
            return Err(EngineError::refused("bundle", "has a pack, and is not used in place"));
        };
        let root = Beneath::open(files).map_err(|error| unreadable(files, error))?;
        let found = count(&root, 0).map_err(|error| unreadable(files, error))?;
        if found != bundle.manifest.files().len() {
            let detail = format!("it has {found} files, not {}", bundle.manifest.files().len());
            return Err(EngineError::Corrupt { what: files.display().to_string(), detail });
        }
        let mut descent = Descent::new(root, false);
        let (mut entries, mut open) = (Vec::new(), Vec::new());
        for entry in bundle.manifest.files() {
            let path = files.join(&entry.path);
            let opened = descent.above(entry.path.as_str()).and_then(|(directory, name)| directory.file(name));
            let file = opened.map_err(|error| unreadable(&path, error))?;
            let facts = Facts::of_file(&file).map_err(|error| EngineError::io("read", &path, error))?;
            let right = facts.size == entry.size
                && root_of(&file, entry.size).map_err(|error| EngineError::io("read", &path, error))?
                    == Some(entry.blake3);
            if !right {
                let detail = "it is not what the document says".to_owned();
                return Err(EngineError::Corrupt { what: path.display().to_string(), detail });
            }
            entries.push(ManifestEntry { mtime_ns: Some(facts.mtime_ns), ..entry.clone() });
            open.push((entry.size, file));
        }
        open.sort_by_key(|(size, _)| std::cmp::Reverse(*size));
        let open = open.into_iter().take(KEPT_OPEN).map(|(_, file)| file).collect();
        let (bytes, seconds) = (bundle.manifest.total_bytes(), started.elapsed().as_secs_f64());
        Ok(Self { files: files.to_owned(), entries, bytes, seconds, _open: open })
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> EngineError {
    match error.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => EngineError::refused(
            path.display().to_string(),
            format!(
                "is used where the store has it, and cannot be read from here ({error}): mount the store's directory read-only at the \
                 same path"
            ),
        ),
        _ => EngineError::io("open", path, error),
    }
}

/// Files below a directory; whatever is no directory is one.
fn count(directory: &Beneath, depth: usize) -> std::io::Result<usize> {
    let mut found = 0;
    for entry in directory.entries(IN_PLACE_FILES_MOST + 1)? {
        found += match (entry.kind, entry.name.to_str()) {
            // No path of a bundle is deeper.
            (Kind::Directory, Ok(name)) if depth < 32 => count(&directory.directory(name)?, depth + 1)?,
            _ => 1,
        };
    }
    Ok(found)
}

/// What a file hashes to: groups on several threads, merged. `None`: it has been cut off.
fn root_of(file: &File, size: u64) -> std::io::Result<Option<crate::digest::Hash>> {
    let groups = group_count(size);
    let cvs = Mutex::new(vec![GroupCv([0; 32]); usize::try_from(groups).unwrap_or(usize::MAX)]);
    let next = AtomicU64::new(0);
    let work = || -> std::io::Result<()> {
        let mut buffer = vec![0; size.clamp(1, GROUP_BYTES) as usize];
        loop {
            let group = next.fetch_add(1, Ordering::Relaxed);
            if group >= groups {
                return Ok(());
            }
            let range = group_range(size, group);
            let bytes = &mut buffer[..(range.end - range.start) as usize];
            pread_exact(file, bytes, range.start)?;
            let cv = group_cv(size, group, bytes);
            cvs.lock().unwrap_or_else(PoisonError::into_inner)[group as usize] = cv;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MOST);
    let threads = threads.min(usize::try_from(groups).unwrap_or(usize::MAX));
    let outcome = std::thread::scope(|scope| {
        let hands: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        let panicked = || Err(std::io::Error::other("a hashing thread panicked"));
        hands.into_iter().fold(own, |outcome, hand| outcome.and(hand.join().unwrap_or_else(|_| panicked())))
    });
    match outcome {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        outcome => {
            outcome?;
            Ok(merge_root(&cvs.into_inner().unwrap_or_else(PoisonError::into_inner)))
        }
    }
}

/// The files of a tree one after the other, as a pack has them.
#[must_use]
pub fn pack_of(bundle: &Bundle, files: &Path) -> Box<dyn Read + Send> {
    let paths: Vec<PathBuf> = bundle.manifest.files().iter().map(|entry| files.join(&entry.path)).collect();
    Box::new(Pack { paths: paths.into_iter(), current: None })
}

struct Pack {
    paths: std::vec::IntoIter<PathBuf>,
    current: Option<File>,
}

impl Read for Pack {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        if into.is_empty() {
            return Ok(0);
        }
        loop {
            if let Some(file) = &mut self.current {
                let read = file.read(into)?;
                if read > 0 {
                    return Ok(read);
                }
            }
            match self.paths.next() {
                Some(path) => self.current = Some(File::open(path)?),
                None => return Ok(0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Hash;

    #[test]
    fn a_file_hashes_to_its_blobs_name() {
        let directory = tempfile::tempdir().unwrap();
        for size in [0, 1, GROUP_BYTES, GROUP_BYTES + 1, 5 * GROUP_BYTES + 77] {
            let bytes: Vec<u8> = (0..size).map(|at| (at * 31 % 251) as u8).collect();
            let path = directory.path().join("file");
            std::fs::write(&path, &bytes).unwrap();
            let file = File::open(&path).unwrap();
            assert_eq!(root_of(&file, size).unwrap(), Some(Hash::of(&bytes)), "{size}");
            assert_eq!(root_of(&file, size + 1).unwrap(), None, "it has less");
        }
    }
}
