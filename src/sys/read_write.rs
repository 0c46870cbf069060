//! Positioned reads and writes that finish what they begin.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Fills `into` from `offset`.
///
/// # Errors
/// `UnexpectedEof` if the file ends before.
pub fn pread_exact(file: &File, into: &mut [u8], offset: u64) -> io::Result<()> {
    file.read_exact_at(into, offset)
}

/// Writes all of `bytes` at `offset`.
///
/// # Errors
/// The first that is not an interruption; a short write is continued, not reported.
pub fn pwrite_all(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)
}
