//! Keeps the memory of this process to itself. A daemon holds credentials of others in memory and nowhere else; a core file would
//! put them on a disk, and any process of the same user could read them through `/proc/PID/mem` and the daemon's own out of
//! `/proc/PID/environ`.
//!
//! `RLIMIT_CORE` was turned down: the kernel does not hold it against a `core_pattern` that pipes into a collector, which is what
//! most systems have, and children would inherit it. This ends at `execve`. What is lost are dumps of defects (a panic prints
//! its backtrace without) and debuggers of the same user; root can still attach one and take a dump with `gcore`.

use std::io;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

/// Forbids core dumps of this process, and reading its memory to everybody but root.
///
/// # Errors
/// When the kernel refuses.
pub fn forbid() -> io::Result<()> {
    Ok(set_dumpable_behavior(DumpableBehavior::NotDumpable)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_in_force_and_own_facts_stay_readable() {
        forbid().unwrap();
        assert_eq!(rustix::process::dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
        assert!(super::super::host::anonymous_rss().is_some());
    }
}
