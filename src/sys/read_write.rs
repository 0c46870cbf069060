//! Positioned reads and writes that finish what they begin.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;

use rustix::io::{Errno, ReadWriteFlags, preadv2};

/// Fills `into` from `offset`.
///
/// # Errors
/// `UnexpectedEof` if the file ends before.
pub fn pread_exact(file: &File, into: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(into, offset)
}

/// Fills `into` from `offset` with what is in memory, without waiting for a disk. `false`: not all of it is there, or the file
/// system cannot tell.
#[must_use]
pub fn pread_at_hand(file: &File, into: &mut [u8], offset: u64) -> bool {
    let mut filled = 0;
    while filled < into.len() {
        let rest = &mut [IoSliceMut::new(&mut into[filled..])];
        match preadv2(file, rest, offset + filled as u64, ReadWriteFlags::NOWAIT) {
            Ok(0) => return false,
            Ok(read) => filled += read,
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

/// Writes all of `bytes` at `offset`.
///
/// # Errors
/// The first that is not an interruption; a short write is continued, not reported.
pub fn pwrite_all(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}
