//! Restoring: from a pack to plain files.
//!
//! The files are made in a directory beside the one that is asked for, each hashed on its way from the pack to its place, so that
//! what is checked is what is written. Only when all are right is the directory renamed: an engine never sees half of a bundle,
//! nor a byte that is not what the document says. What a kill leaves is a directory that holds no lock, and the next restore to
//! the same place removes it.
//!
//! Nothing is synced. A restored directory belongs to one start, and is made anew for the next; waiting for the disk would make it
//! twice as slow as copying, for files that are read from memory in the next second.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use super::EngineError;
use crate::digest::Hash;
use crate::model::{Bundle, ManifestEntry};
use crate::sys::beneath::{Beneath, Descent, finish};
use crate::sys::durable::{rename_noreplace, temporary_name};
use crate::sys::mutant::mutant;
use crate::sys::read_write::pread_exact;
use crate::sys::space::Filesystem;

/// What a restore did.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Restored {
    /// Files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long it took.
    pub seconds: f64,
    /// What they are, to be compared with what is there later.
    #[serde(skip)]
    pub entries: Vec<ManifestEntry>,
}

/// A directory under construction.
#[derive(Debug)]
struct Stage {
    path: PathBuf,
    into: PathBuf,
    /// Locked for as long as it is being filled.
    _lock: File,
    done: bool,
}

/// Where the bytes of one file come from: as many as `into` holds, from here on.
type Next<'a> = &'a mut dyn FnMut(&mut [u8]) -> Result<(), EngineError>;

/// Bytes that go from the pack to a file at once: they stay in the core's cache while they are hashed and written.
const CHUNK: usize = 256 << 10;
/// A thread takes so many files, or bytes, at a time: neighbours share their directory.
const FILES_A_TURN: usize = 64;
const BYTES_A_TURN: u64 = 8 << 20;
/// With more the directories' locks are waited for.
const THREADS_MOST: usize = 4;
/// What a file costs beside its bytes.
const BLOCK: u64 = 4096;

/// Restores all files of `bundle` from its pack to `into`, which must not exist; the directory that it stands in must. Blocking.
///
/// # Errors
/// `Corrupt` for a pack that is not what the document says, `NoSpace`, `Refused` if `into` is there, I/O. `into` does not exist then.
pub fn unpack(bundle: &Bundle, pack: &File, into: &Path) -> Result<Restored, EngineError> {
    let started = Instant::now();
    let found = pack.metadata().map_err(|error| EngineError::io("read", into, error))?.len();
    let wanted = bundle.manifest.total_bytes();
    if found != wanted {
        return Err(corrupt_pack(format!("it has {found} bytes, not {wanted}")));
    }
    let stage = Stage::new(into, bundle)?;
    let turns = turns(bundle.manifest.files());
    let next = AtomicUsize::new(0);
    let work = || {
        let mut buffer = vec![0; CHUNK];
        let mut descent = stage.descent()?;
        while let Some((entries, start)) = turns.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut offset = *start;
            for entry in *entries {
                let mut read = |bytes: &mut [u8]| {
                    pread_exact(pack, bytes, offset).map_err(|error| corrupt_pack(error.to_string()))?;
                    offset += bytes.len() as u64;
                    Ok(())
                };
                stage.write(&mut descent, entry, &mut buffer, &mut read).inspect_err(|_| {
                    // Nobody needs the rest.
                    next.store(usize::MAX / 2, Ordering::Relaxed);
                })?;
            }
        }
        Ok(())
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(THREADS_MOST).min(turns.len().max(1));
    std::thread::scope(|scope| {
        let hands: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let own = work();
        hands.into_iter().fold(own, |outcome, hand| outcome.and(hand.join().unwrap_or(Err(EngineError::Defect))))
    })?;
    stage.publish(bundle, started)
}

/// The same from a stream that gives the pack's bytes in order.
///
/// # Errors
/// As for [`unpack`].
pub fn unpack_stream(bundle: &Bundle, pack: &mut dyn Read, into: &Path) -> Result<Restored, EngineError> {
    let started = Instant::now();
    let stage = Stage::new(into, bundle)?;
    let (mut buffer, mut descent) = (vec![0; CHUNK], stage.descent()?);
    for entry in bundle.manifest.files() {
        let mut read = |bytes: &mut [u8]| pack.read_exact(bytes).map_err(|error| corrupt_pack(error.to_string()));
        stage.write(&mut descent, entry, &mut buffer, &mut read)?;
    }
    if pack.read(&mut buffer[..1]).map_err(|error| corrupt_pack(error.to_string()))? > 0 {
        return Err(corrupt_pack("it has more bytes than its files".to_owned()));
    }
    stage.publish(bundle, started)
}

fn corrupt_pack(detail: String) -> EngineError {
    EngineError::Corrupt { what: "the bundle's pack".to_owned(), detail }
}

/// The files in turns, each with the place of its first byte in the pack.
fn turns(files: &[ManifestEntry]) -> Vec<(&[ManifestEntry], u64)> {
    let (mut turns, mut first, mut start, mut offset) = (Vec::new(), 0, 0, 0);
    for (number, entry) in files.iter().enumerate() {
        offset += entry.size;
        if number + 1 - first >= FILES_A_TURN || offset - start >= BYTES_A_TURN {
            turns.push((&files[first..=number], start));
            (first, start) = (number + 1, offset);
        }
    }
    if first < files.len() {
        turns.push((&files[first..], start));
    }
    turns
}

// === impl Stage ===

impl Stage {
    fn new(into: &Path, bundle: &Bundle) -> Result<Self, EngineError> {
        let refused = |why: &str| EngineError::refused(into.display().to_string(), why);
        let (Some(parent), Some(name)) = (into.parent(), into.file_name().and_then(|name| name.to_str())) else {
            return Err(refused("is no place for a directory"));
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        if into.symlink_metadata().is_ok() {
            return Err(refused("is there already: a bundle is restored to a place of its own"));
        }
        let prefix = format!(".{name}.preheat-");
        sweep(parent, &prefix);
        let space = Filesystem::of(parent).map_err(|error| EngineError::io("read free space", parent, error))?;
        let needed = bundle.manifest.total_bytes() + BLOCK * bundle.manifest.files().len() as u64;
        if space.available < needed {
            return Err(EngineError::NoSpace { needed, available: space.available, path: parent.to_owned() });
        }
        // Somebody who sweeps may have it before it is locked.
        for _ in 0..16 {
            let path = parent.join(format!("{prefix}{}", temporary_name()));
            let made = fs::create_dir(&path).and_then(|()| File::open(&path));
            let lock = made.map_err(|error| EngineError::io("make directory", &path, error))?;
            if lock.try_lock().is_ok() && path.is_dir() {
                return Ok(Self { path, into: into.to_owned(), _lock: lock, done: false });
            }
        }
        Err(EngineError::Timeout { what: format!("making a directory beside {}", into.display()) })
    }

    fn descent(&self) -> Result<Descent, EngineError> {
        let root = Beneath::open(&self.path).map_err(|error| EngineError::io("open", &self.path, error))?;
        Ok(Descent::new(root, true))
    }

    /// One file, proved.
    fn write(
        &self,
        descent: &mut Descent,
        entry: &ManifestEntry,
        buffer: &mut [u8],
        read: Next<'_>,
    ) -> Result<(), EngineError> {
        let failed = |action, error| EngineError::io(action, &self.path.join(&entry.path), error);
        let made = descent.above(entry.path.as_str()).and_then(|(directory, name)| directory.create(name));
        let mut file = made.map_err(|error| failed("make", error))?;
        let (mut hasher, mut left) = (blake3::Hasher::new(), entry.size);
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            let bytes = &mut buffer[..piece];
            read(bytes)?;
            hasher.update(bytes);
            file.write_all(bytes).map_err(|error| failed("write", error))?;
            left -= piece as u64;
        }
        let found = Hash::from_bytes(*hasher.finalize().as_bytes());
        if found != entry.blake3 && !mutant("restored_unchecked") {
            let detail = format!("it hashes to {found}, not {}", entry.blake3);
            return Err(EngineError::Corrupt { what: format!("`{}` of the bundle", entry.path), detail });
        }
        // Nobody but its owner writes to what an engine runs.
        let mode = entry.mode.unwrap_or(0o644) & 0o755;
        finish(&file, mode, entry.mtime_ns.unwrap_or(0)).map_err(|error| failed("set mode and time of", error))
    }

    fn publish(mut self, bundle: &Bundle, started: Instant) -> Result<Restored, EngineError> {
        rename_noreplace(&self.path, &self.into).map_err(|error| EngineError::io("publish", &self.into, error))?;
        self.done = true;
        let entries = bundle.manifest.files().to_vec();
        Ok(Restored {
            files: entries.len() as u64,
            bytes: bundle.manifest.total_bytes(),
            seconds: started.elapsed().as_secs_f64(),
            entries,
        })
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if !self.done && mutant("half_restored") {
            let _ = rename_noreplace(&self.path, &self.into);
        } else if !self.done {
            // The failure before is the one to report; the next restore sweeps what stays.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Removes what killed restores have left. A directory that is being filled is locked.
fn sweep(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().filter_map(Result::ok) {
        let ours = entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix));
        if ours
            && let Ok(directory) = File::open(entry.path())
            && directory.try_lock().is_ok()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
