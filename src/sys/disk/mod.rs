//! Reading and writing files from async code: one port, and two pairs of hands behind it.
//!
//! A *ring* ([`Kind::IoUring`]) asks the kernel for many things at a time from one thread. A *pool* of threads ([`Kind::Pool`])
//! asks for one a thread. What a disk gains comes from how much it is asked for at a time and not from the interface, so both
//! keep up; the ring costs fewer threads and switches. The default profiles of containerd and Docker answer `EPERM` to io_uring,
//! so the pool is what most nodes have, and nothing above may depend on the ring. Which it is, is found out by using a ring
//! once, never by a version or a sysctl: see [`Disk::start`].
//!
//! Whatever is asked for owns its file, its buffer and the place of its answer. Dropping the future that waits takes nothing
//! away: a write is written all the same; a read that nobody waits for is left out if it has not begun. Short reads and
//! writes are continued until all is done or the file ends. An answer brings the buffer back; after an error it is back in its
//! budget.
//!
//! What bounds the queue: a read or a write holds a [`Buffer`], and those are a budget; syncs hold one of `SYNCS` permits.
//!
//! Turned down: an own runtime on io_uring, whose tasks cannot move between threads; registered buffers, which count against
//! the limit of locked memory (8 MiB by default); polling for completions, which costs a core.

mod file;
mod operation;
mod pool;
mod probe;
mod ring;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::pin::Pin;
use std::str::FromStr;
use std::sync::Arc;
use std::task::{Context, Poll};

use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, oneshot};

use super::buffer::Buffer;
use super::mutant::mutant;
use crate::base::ErrorKind;
pub use file::DiskFile;
use operation::{Operation, Work};
use pool::Pool;
pub use probe::Refusal;
use ring::Ring;

/// The variable that chooses where there is no configuration file; the configuration has the same name for its key.
pub const VARIABLE: &str = "PREHEAT_STORE__DISK";

/// Syncs at a time: a disk orders them anyway.
const SYNCS: usize = 16;

/// Which hands are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// A ring where the kernel gives one, else the pool.
    #[default]
    Auto,
    /// A ring, or an error.
    IoUring,
    /// The pool.
    Pool,
}

/// Which hands there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A ring.
    IoUring,
    /// A pool of threads.
    Pool,
}

/// Hands that read and write. Cheap to clone; when the last clone is gone, what was asked for is finished, and the threads end.
#[derive(Clone, Debug)]
pub struct Disk {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    hands: Hands,
    refusal: Option<Refusal>,
    syncs: Semaphore,
}

#[derive(Debug)]
enum Hands {
    Ring(Ring),
    Pool(Pool),
}

/// Why there are no hands.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// A ring was asked for by name.
    #[error("store.disk = \"io_uring\": {0}; or write \"auto\", which then takes a pool of threads")]
    Refused(Refusal),
    /// The system gives no thread.
    #[error("start disk threads: {0}")]
    Thread(io::Error),
    /// The variable has another value.
    #[error("{VARIABLE} = {0:?}: write \"auto\", \"io_uring\" or \"pool\"")]
    Variable(String),
}

/// What was read or written.
#[derive(Debug)]
pub struct Done {
    /// The buffer that was given.
    pub buffer: Buffer,
    /// Bytes from its beginning. Fewer than asked for only of [`Disk::read_up_to`].
    pub bytes: usize,
}

/// The answer to come. Dropping it takes nothing away from who works on it.
#[derive(Debug)]
#[must_use = "a read that nobody waits for is left out"]
pub struct Pending {
    answer: oneshot::Receiver<io::Result<Option<Done>>>,
}

// === impl Disk ===

impl Disk {
    /// Starts hands as `choice` has it. A ring is not merely set up but used (nothing, then a read) before it is believed in:
    /// a filter may let one call through and not the next.
    ///
    /// # Errors
    /// [`DiskError`]; with [`Choice::Auto`] and [`Choice::Pool`] only if the system gives no thread.
    pub fn start(choice: Choice) -> Result<Self, DiskError> {
        let (hands, refusal) = match choice {
            Choice::Pool => (Hands::Pool(Pool::start().map_err(DiskError::Thread)?), None),
            Choice::Auto | Choice::IoUring => match Ring::start() {
                Ok(ring) => (Hands::Ring(ring), None),
                Err(refusal) if choice == Choice::IoUring => return Err(DiskError::Refused(refusal)),
                Err(refusal) => (Hands::Pool(Pool::start().map_err(DiskError::Thread)?), Some(refusal)),
            },
        };
        Ok(Self { shared: Arc::new(Shared { hands, refusal, syncs: Semaphore::new(SYNCS) }) })
    }

    /// Starts hands as the environment has it: for what has no configuration file.
    ///
    /// # Errors
    /// As [`Disk::start`], and if the variable has a value that is no choice.
    pub fn of_environment() -> Result<Self, DiskError> {
        let choice = match std::env::var_os(VARIABLE) {
            None => Choice::Auto,
            Some(value) => {
                let text = value.to_string_lossy();
                text.parse().map_err(|()| DiskError::Variable(text.into_owned()))?
            }
        };
        Self::start(choice)
    }

    /// Which hands these are.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self.shared.hands {
            Hands::Ring(_) => Kind::IoUring,
            Hands::Pool(_) => Kind::Pool,
        }
    }

    /// Why there is no ring; `None` where there is one or none was wanted.
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        self.shared.refusal.as_ref()
    }

    /// Fills the first `length` bytes of `buffer` from `offset`. Ends in `UnexpectedEof` if the file ends before.
    pub fn read(&self, file: &DiskFile, offset: u64, buffer: Buffer, length: usize) -> Pending {
        self.begin(Work::Read { exact: true }, file, offset, Some(buffer), length)
    }

    /// The same, but at the end of the file it is done.
    pub fn read_up_to(&self, file: &DiskFile, offset: u64, buffer: Buffer, length: usize) -> Pending {
        self.begin(Work::Read { exact: false }, file, offset, Some(buffer), length)
    }

    /// Writes the first `length` bytes of `buffer` at `offset`. They are written even if the answer is not waited for.
    pub fn write(&self, file: &DiskFile, offset: u64, buffer: Buffer, length: usize) -> Pending {
        self.begin(Work::Write, file, offset, Some(buffer), length)
    }

    /// Waits until data and size of `file` are on disk: what was written *before*, by whomever, and answered.
    ///
    /// # Errors
    /// Final: discard the file. A second call would succeed over lost data.
    pub async fn sync_data(&self, file: &DiskFile) -> io::Result<()> {
        if mutant("no_file_fsync") {
            return Ok(());
        }
        let permit = self.shared.syncs.acquire().await.map_err(io::Error::other)?;
        let answer = self.begin(Work::SyncData, file, 0, None, 0).answer.await;
        drop(permit);
        answer.map_err(|_| gone())?.map(drop)
    }

    fn begin(&self, work: Work, file: &DiskFile, offset: u64, buffer: Option<Buffer>, length: usize) -> Pending {
        let (reply, answer) = oneshot::channel();
        match Operation::new(work, file.clone(), offset, buffer, length, reply) {
            Ok(operation) => match &self.shared.hands {
                Hands::Ring(ring) => ring.submit(operation),
                Hands::Pool(pool) => pool.submit(operation),
            },
            Err((reply, error)) => {
                // The receiver is below, in this very call.
                let _ = reply.send(Err(error));
            }
        }
        Pending { answer }
    }
}

fn gone() -> io::Error {
    io::Error::other("the disk hands gave no answer: a defect")
}

// === impl Pending ===

impl Pending {
    /// Waits on a thread that may block; never on one that runs async code.
    ///
    /// # Errors
    /// Of the system.
    pub fn wait(self) -> io::Result<Done> {
        settled(self.answer.blocking_recv())
    }
}

impl Future for Pending {
    type Output = io::Result<Done>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.answer).poll(context).map(settled)
    }
}

fn settled(answer: Result<io::Result<Option<Done>>, oneshot::error::RecvError>) -> io::Result<Done> {
    answer.map_err(|_| gone())??.ok_or_else(gone)
}

// === impl Choice ===

impl FromStr for Choice {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "auto" => Ok(Self::Auto),
            "io_uring" => Ok(Self::IoUring),
            "pool" => Ok(Self::Pool),
            _ => Err(()),
        }
    }
}

// === impl Kind ===

impl Kind {
    /// As in metrics and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::IoUring => "io_uring",
            Self::Pool => "pool",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// === impl DiskError ===

impl DiskError {
    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused(_) | Self::Variable(_) => ErrorKind::Invalid,
            Self::Thread(_) => ErrorKind::Busy,
        }
    }
}
