//! Whether any process on the machine has a file open or mapped.
//!
//! The kernel grants a write lease (`fcntl(F_SETLEASE, F_WRLCK)`) only if nobody else has the inode open; a mapping keeps its
//! file open even after the descriptor is closed. The inode counts, so hard links, read-only bind mounts and other PID
//! namespaces are all seen, which a walk over `/proc` would miss.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Once;

/// The answer of the probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InUse {
    /// Nobody has it open.
    No,
    /// Somebody has.
    Yes,
    /// The file system or the permissions do not allow to ask.
    Unknown,
}

/// Probes one file.
///
/// # Errors
/// When the file cannot be opened.
pub fn in_use(path: &Path) -> io::Result<InUse> {
    // Whoever opens the file in the microseconds that we hold the lease makes the kernel send SIGIO, which would end the
    // process if it were not ignored. The opener waits until the lease is given back below.
    static IGNORE_SIGIO: Once = Once::new();
    IGNORE_SIGIO.call_once(|| {
        // SAFETY: installing SIG_IGN has no handler that could run at a bad time; nothing else here uses SIGIO.
        unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
    });
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC).open(path)?;
    // SAFETY: the descriptor is open; F_SETLEASE takes an int.
    let outcome = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) };
    if outcome == 0 {
        // SAFETY: as above. Closing the descriptor would release the lease as well; doing it now shortens a waiter's wait.
        unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_UNLCK) };
        return Ok(InUse::No);
    }
    let error = io::Error::last_os_error();
    Ok(if error.raw_os_error() == Some(libc::EAGAIN) { InUse::Yes } else { InUse::Unknown })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_and_mappings_are_seen_and_gone_when_closed() {
        let directory = tempfile::tempdir().unwrap();
        let (name, link) = (directory.path().join("blob"), directory.path().join("link"));
        std::fs::write(&name, vec![1; 8192]).unwrap();
        std::fs::hard_link(&name, &link).unwrap();
        assert_eq!(in_use(&name).unwrap(), InUse::No);
        let file = std::fs::File::open(&link).unwrap();
        assert_eq!(in_use(&name).unwrap(), InUse::Yes);
        // SAFETY: the file is not changed while it is mapped.
        let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
        drop(file);
        assert_eq!(in_use(&name).unwrap(), InUse::Yes, "mapped, descriptor closed");
        drop(map);
        assert_eq!(in_use(&name).unwrap(), InUse::No);
    }
}
