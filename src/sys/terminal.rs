//! What the kernel knows of a terminal.

use std::os::fd::AsFd;

/// Columns of the terminal behind `file`; `None` where there is none, or where it does not know.
#[must_use]
pub fn columns(file: impl AsFd) -> Option<usize> {
    let size = rustix::termios::tcgetwinsize(file).ok()?;
    (size.ws_col > 0).then_some(usize::from(size.ws_col))
}
