//! Making things survive a power cut. `kill -9` cannot see a missing call in here; the power-cut rig can.
//!
//! A failed sync is final: the kernel may have marked the pages clean, so that a second call succeeds over lost data. Nothing
//! here retries one.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, FallocateFlags, RenameFlags, fallocate, renameat_with};
use rustix::io::Errno;

use super::mutant::mutant;

/// Waits until data and size of `file` are on disk.
///
/// # Errors
/// Final: discard the file.
pub fn sync_data(file: &File) -> io::Result<()> {
    if mutant("no_file_fsync") {
        return Ok(());
    }
    file.sync_data()
}

/// Waits until the names in `directory` are on disk.
///
/// # Errors
/// Final: the names may be lost.
pub fn sync_directory(directory: &Path) -> io::Result<()> {
    if mutant("no_directory_fsync") {
        return Ok(());
    }
    File::open(directory)?.sync_all()
}

/// Makes a directory and those above it, unless it is there.
///
/// # Errors
/// `NotADirectory` if something else has its name, which the standard library calls `AlreadyExists`.
pub fn make_directories(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => io::ErrorKind::NotADirectory.into(),
        _ => error,
    })
}

/// Starts writing dirty pages in `range` of `file` without waiting, so that a later sync finds little to do; `0..0` is all of it.
/// A hint: failure is ignored, and told by that sync.
pub fn start_writeback(file: &File, range: std::ops::Range<u64>) {
    use std::os::fd::AsRawFd;
    let (Ok(start), Ok(length)) = (i64::try_from(range.start), i64::try_from(range.end - range.start)) else { return };
    // SAFETY: the descriptor is open for the duration of the call, which takes no memory.
    unsafe { libc::sync_file_range(file.as_raw_fd(), start, length, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Renames without replacing.
///
/// # Errors
/// `AlreadyExists` if `to` exists.
pub fn rename_noreplace(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // File systems without the flag; the store has one writer, so that a check before is as good.
        Err(Errno::INVAL | Errno::NOSYS) => {
            if to.symlink_metadata().is_ok() {
                return Err(io::ErrorKind::AlreadyExists.into());
            }
            fs::rename(from, to)
        }
        outcome => Ok(outcome?),
    }
}

/// Replaces `directory/name` by `bytes`, durably: temporary file, sync, rename, sync of the directory. A reader sees the old
/// or the new file, and after a power cut there is one of the two.
///
/// # Errors
/// Any of the steps; the old file then stands.
pub fn write_atomic(temporaries: &Path, directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let (temporary, file) = write_temporary(temporaries, bytes)?;
    sync_data(&file).and_then(|()| fs::rename(&temporary, directory.join(name))).inspect_err(|_| {
        // Their error is the one to report.
        let _ = fs::remove_file(&temporary);
    })?;
    sync_directory(directory)
}

/// Writes `bytes` to a new file in `temporaries`; not synced.
///
/// # Errors
/// Open or write; the file is removed again.
pub fn write_temporary(temporaries: &Path, bytes: &[u8]) -> io::Result<(std::path::PathBuf, File)> {
    let path = temporaries.join(temporary_name());
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path)?;
    if let Err(error) = file.write_all(bytes) {
        let _ = fs::remove_file(&path);
        return Err(error);
    }
    Ok((path, file))
}

/// A name that no other temporary of this process has; other processes' are swept when the store is opened.
#[must_use]
pub fn temporary_name() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Gives `file` its final `size` and, where the file system can, its blocks, so that a full disk shows now.
///
/// On tmpfs only the length is set: its `fallocate` zeroes every page, which costs more than the write itself.
///
/// # Errors
/// `StorageFull`, or what the system says.
pub fn preallocate(file: &File, size: u64) -> io::Result<()> {
    /// `f_type` of tmpfs, from `statfs(2)`.
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    if size > 0 && rustix::fs::fstatfs(file)?.f_type != TMPFS_MAGIC {
        match fallocate(file, FallocateFlags::empty(), 0, size) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            Err(error) => return Err(error.into()),
        }
    }
    file.set_len(size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rename_never_replaces() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&from, "new").unwrap();
        fs::write(&to, "old").unwrap();
        assert_eq!(rename_noreplace(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&to).unwrap(), "old");
        fs::remove_file(&to).unwrap();
        rename_noreplace(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "new");
    }

    #[test]
    fn atomic_writes_replace_and_leave_no_temporary() {
        let directory = tempfile::tempdir().unwrap();
        for text in ["one", "two"] {
            write_atomic(directory.path(), directory.path(), "file", text.as_bytes()).unwrap();
            assert_eq!(fs::read_to_string(directory.path().join("file")).unwrap(), text);
        }
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn preallocated_files_have_their_size() {
        for place in [std::env::temp_dir(), "/dev/shm".into()] {
            let file = tempfile::tempfile_in(place).unwrap();
            preallocate(&file, 3 << 20).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 3 << 20);
        }
    }
}
