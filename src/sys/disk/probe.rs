//! Whether the kernel gives this process a ring, found out by using one. The sysctl and the version say nothing: a container's
//! filter answers `EPERM` while both look well, and it may do so for any of the three calls.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use io_uring::{IoUring, opcode, squeue, types};
use rustix::fs::{MemfdFlags, memfd_create};

/// Why there is no ring, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    what: &'static str,
    why: String,
    remedy: &'static str,
}

/// What is read to see that reading works.
const SAMPLE: [u8; 16] = *b"preheat's sample";

/// A ring that has done nothing once and read once, on the thread that it is for.
pub(super) fn ring(entries: u32) -> Result<IoUring, Refusal> {
    let mut ring = set_up(entries).map_err(|error| Refusal::of("io_uring_setup", &error))?;
    let nop = opcode::Nop::new().build();
    // SAFETY: it points to nothing.
    let result = unsafe { once(&mut ring, &nop) }.map_err(|error| Refusal::of("io_uring_enter", &error))?;
    if result < 0 {
        return Err(Refusal::of("a ring that does nothing", &io::Error::from_raw_os_error(-result)));
    }
    let sample = memfd_create("preheat-probe", MemfdFlags::CLOEXEC)
        .and_then(|file| rustix::io::pwrite(&file, &SAMPLE, 0).map(|_| file))
        .map_err(|error| Refusal::of("make a file to read", &error.into()))?;
    // On the heap, and not given back unless the read has completed.
    let found = Box::leak(Box::new([0_u8; SAMPLE.len()]));
    let read = opcode::Read::new(types::Fd(sample.as_raw_fd()), found.as_mut_ptr(), SAMPLE.len() as u32).build();
    // SAFETY: the bytes are leaked, so they outlive the read whatever comes of it; the file ends after this call has waited.
    let result = unsafe { once(&mut ring, &read) }.map_err(|error| Refusal::of("io_uring_enter", &error))?;
    // SAFETY: made by `Box::new` above, and its one read is completed.
    let found = unsafe { Box::from_raw(found) };
    match usize::try_from(result) {
        Err(_) => Err(Refusal::of("a ring that reads", &io::Error::from_raw_os_error(-result))),
        Ok(length) if length == SAMPLE.len() && *found == SAMPLE => Ok(ring),
        Ok(_) => Err(Refusal::of("a ring that reads", &io::Error::other("the wrong bytes came"))),
    }
}

/// With what saves most interruptions, as far as this kernel knows it (6.1, 5.19, 5.6).
fn set_up(entries: u32) -> io::Result<IoUring> {
    let newest = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries);
    let newer = |error: io::Error| match error.raw_os_error() {
        Some(libc::EINVAL) => IoUring::builder().setup_coop_taskrun().build(entries),
        _ => Err(error),
    };
    let any = |error: io::Error| match error.raw_os_error() {
        Some(libc::EINVAL) => IoUring::builder().build(entries),
        _ => Err(error),
    };
    newest.or_else(newer).or_else(any)
}

/// # Safety
/// What the entry points to must live until its completion, which this waits for unless it fails.
unsafe fn once(ring: &mut IoUring, entry: &squeue::Entry) -> io::Result<i32> {
    // SAFETY: the caller's.
    unsafe { ring.submission().push(entry) }.map_err(io::Error::other)?;
    loop {
        match ring.submit_and_wait(1) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        if let Some(completion) = ring.completion().next() {
            return Ok(completion.result());
        }
    }
}

// === impl Refusal ===

impl Refusal {
    pub(super) fn of(what: &'static str, error: &io::Error) -> Self {
        let remedy = match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                "allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile (deploy/README.md), \
                 and see that the sysctl kernel.io_uring_disabled is 0"
            }
            Some(libc::ENOSYS) => "it takes a kernel with io_uring, and a container runtime that passes it on",
            Some(libc::ENOMEM) => {
                "raise the limit of locked memory (LimitMEMLOCK, ulimit -l) or of the container's memory"
            }
            Some(libc::EMFILE | libc::ENFILE) => "raise the limit of open files",
            Some(libc::EINVAL | libc::EOPNOTSUPP) => "it takes Linux 5.6 or newer",
            _ => "see the kernel's log",
        };
        Self { what, why: error.to_string(), remedy }
    }

    pub(super) fn silent(after: Duration) -> Self {
        let why = format!("no answer within {} s", after.as_secs());
        Self { what: "trying a ring", why, remedy: "see the kernel's log" }
    }

    /// What failed and how, without the remedy.
    #[must_use]
    pub fn reason(&self) -> String {
        format!("{}: {}", self.what, self.why)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.what, self.why, self.remedy)
    }
}
