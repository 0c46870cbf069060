//! Signals of a process that stands before another: taken one at a time by a thread of its own, with the kernel's word on who
//! sent them. A handler was turned down: it cannot tell a key on the terminal, which the other process has had as well, from a
//! signal that was meant for this one alone.

use std::io;
use std::mem::MaybeUninit;

use rustix::process::Pid;

/// What is passed on. Stopping and going on are left to the terminal, which sends them to everybody in the foreground.
const PASSED: [libc::c_int; 7] =
    [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGUSR1, libc::SIGUSR2, libc::SIGWINCH];

/// A set of signals, as the kernel has it.
#[derive(Clone, Copy)]
pub struct Mask(libc::sigset_t);

/// Signals that are held back for [`Held::next`].
#[derive(Clone, Copy, Debug)]
pub struct Held {
    set: Mask,
    before: Mask,
}

/// A signal that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// Which.
    pub signal: libc::c_int,
    /// The terminal's: everybody in the foreground has it.
    pub from_terminal: bool,
}

impl std::fmt::Debug for Mask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mask")
    }
}

// === impl Held ===

impl Held {
    /// Holds them back in this thread and in those that it starts from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn back() -> io::Result<Self> {
        let set = Mask::of(&PASSED);
        let before = set.exchange(libc::SIG_BLOCK)?;
        Ok(Self { set, before })
    }

    /// What was held back before: what a child is to start with.
    #[must_use]
    pub fn before(&self) -> Mask {
        self.before
    }

    /// Waits for the next one.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn next(&self) -> io::Result<Received> {
        loop {
            let mut found = MaybeUninit::<libc::siginfo_t>::zeroed();
            // SAFETY: both point to values of the right type that live for the call.
            let signal = unsafe { libc::sigwaitinfo(&raw const self.set.0, found.as_mut_ptr()) };
            if signal > 0 {
                // SAFETY: the kernel has filled it in, and zero is a value of all its fields.
                let code = unsafe { found.assume_init() }.si_code;
                return Ok(Received { signal, from_terminal: code == libc::SI_KERNEL });
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

// === impl Mask ===

impl Mask {
    fn of(signals: &[libc::c_int]) -> Self {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset fills the set in; the numbers are signals.
        unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            for signal in signals {
                libc::sigaddset(set.as_mut_ptr(), *signal);
            }
            Self(set.assume_init())
        }
    }

    fn exchange(self, how: libc::c_int) -> io::Result<Self> {
        let mut before = Self::of(&[]);
        // SAFETY: both point to sets that live for the call.
        match unsafe { libc::pthread_sigmask(how, &raw const self.0, &raw mut before.0) } {
            0 => Ok(before),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// Makes it this thread's. Good after `fork`, before `exec`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn install(self) -> io::Result<()> {
        self.exchange(libc::SIG_SETMASK).map(drop)
    }
}

/// Sends a signal to one process, by its number.
///
/// # Errors
/// When it is gone.
pub fn send(pid: Pid, signal: libc::c_int) -> io::Result<()> {
    // SAFETY: numbers in, a code out.
    match unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process as the signal would have ended it; returns where that does not end it (process 1 of a container).
pub fn die_of(signal: libc::c_int) {
    // SAFETY: the default action has no code of ours in it.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
    }
    if Mask::of(&[signal]).exchange(libc::SIG_UNBLOCK).is_ok() {
        // SAFETY: a number in, a code out; it does not come back if the signal ends processes.
        unsafe {
            libc::raise(signal);
        }
    }
}
