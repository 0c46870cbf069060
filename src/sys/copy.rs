//! Putting a file's bytes at another place: hard link, reflink, `copy_file_range`, plain copy, in the order of their cost.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::io::Errno;

/// How the bytes got there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placed {
    /// A second name of the same inode.
    HardLink,
    /// Shared blocks, separate page cache.
    Reflink,
    /// Copied inside the kernel (which may itself share blocks).
    CopyRange,
    /// Read and written.
    Copy,
}

/// Between two calls of the progress function, and the unit of a plain copy.
const CHUNK: usize = 8 << 20;

/// Makes `to`, which must not exist, with the bytes of `from`. `progress` is told of bytes as they arrive. On failure `to` is
/// removed again.
///
/// # Errors
/// What the system says of the last way that was tried.
pub fn place(from: &Path, to: &Path, allow_link: bool, progress: &mut dyn FnMut(u64)) -> io::Result<Placed> {
    let source = File::open(from)?;
    let size = source.metadata()?.len();
    // Across mounts, across file systems, or where links are full: one of the other ways works.
    if allow_link && fs::hard_link(from, to).is_ok() {
        progress(size);
        return Ok(Placed::HardLink);
    }
    let target = OpenOptions::new().write(true).create_new(true).mode(0o644).open(to)?;
    copy_into(&source, &target, size, progress).inspect_err(|_| {
        // The copy's error is the one to report.
        let _ = fs::remove_file(to);
    })
}

/// Makes `target` share the blocks of `source`, whatever it had before; false where the file system cannot.
pub fn reflink(source: &File, target: &File) -> bool {
    rustix::fs::ioctl_ficlone(target, source).is_ok()
}

fn copy_into(source: &File, target: &File, size: u64, progress: &mut dyn FnMut(u64)) -> io::Result<Placed> {
    if reflink(source, target) {
        progress(size);
        return Ok(Placed::Reflink);
    }
    let mut done = 0;
    while done < size {
        let (mut from, mut to) = (done, done);
        let chunk = usize::try_from(size - done).unwrap_or(usize::MAX).min(CHUNK);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(copied) => {
                done += copied as u64;
                progress(copied as u64);
            }
            Err(Errno::INTR) => {}
            // Not between these file systems, or not at all.
            Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM) if done == 0 => {
                return plain_copy(source, target, size, progress);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Placed::CopyRange)
}

fn plain_copy(source: &File, target: &File, size: u64, progress: &mut dyn FnMut(u64)) -> io::Result<Placed> {
    let mut buffer = vec![0; usize::try_from(size).unwrap_or(usize::MAX).min(CHUNK)];
    let mut done = 0;
    while done < size {
        let chunk = usize::try_from(size - done).unwrap_or(usize::MAX).min(CHUNK);
        super::read_write::pread_exact(source, &mut buffer[..chunk], done)?;
        super::read_write::pwrite_all(target, &buffer[..chunk], done)?;
        done += chunk as u64;
        progress(chunk as u64);
    }
    Ok(Placed::Copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_gives_the_same_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("from");
        let bytes: Vec<u8> = (0..CHUNK + 77).map(|i| (i % 251) as u8).collect();
        fs::write(&from, &bytes).unwrap();
        let elsewhere = tempfile::tempdir_in("/dev/shm").unwrap();
        for (number, target) in [directory.path(), elsewhere.path()].into_iter().enumerate() {
            let to = target.join("to");
            let mut told = 0;
            place(&from, &to, false, &mut |bytes| told += bytes).unwrap();
            assert_eq!((fs::read(&to).unwrap(), told), (bytes.clone(), bytes.len() as u64), "place {number}");
            assert_eq!(place(&from, &to, false, &mut |_| {}).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        }
        let plain =
            File::options().read(true).write(true).create_new(true).open(directory.path().join("plain")).unwrap();
        plain_copy(&File::open(&from).unwrap(), &plain, bytes.len() as u64, &mut |_| {}).unwrap();
        assert_eq!(fs::read(directory.path().join("plain")).unwrap(), bytes);
        assert_eq!(place(&from, &directory.path().join("link"), true, &mut |_| {}).unwrap(), Placed::HardLink);
    }

    #[test]
    fn a_failed_copy_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("to");
        assert!(place(Path::new("/proc/self/mem"), &to, false, &mut |_| {}).is_ok(), "an empty file is copied");
        fs::remove_file(&to).unwrap();
        assert!(place(directory.path(), &to, false, &mut |_| {}).is_err());
        assert!(!to.exists());
    }
}
