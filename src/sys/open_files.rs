//! How many files a process may have open.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit as far as a process may by itself. The customary 1024 is for programs that call `select`; a daemon with 512
/// connections out, 1024 in and a file for each comes beyond it. Not for a process that becomes, or starts, others' programs:
/// they would inherit it.
///
/// # Errors
/// What the kernel says; the limit is then as it was.
pub fn raise_limit() -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return Ok(());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?)
}
