//! Hands that are a ring: one thread that owns it, every operation in it, and so every buffer that the kernel may be using.
//!
//! The thread waits inside `io_uring_enter` and nowhere else. A read of an event counter stands in the ring beside the
//! operations; who brings one writes to the counter, but only if the thread waits. So an idle ring sleeps, and a busy one takes
//! what has come between two calls without another.
//!
//! No completion can get lost: [`DEPTH`] operations and the counter are in the ring at most, and it has room for twice as many
//! completions as submissions.
//!
//! A panic of this thread ends the process. To unwind would give memory back that the kernel writes to.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};
use rustix::event::{EventfdFlags, eventfd};

use super::operation::{Operation, Progress, Work};
use super::probe::{self, Refusal};

/// Operations in the ring at most. 64 of 1 MiB keep a disk of 6 GB/s busy for 10 ms; twice as many gain nothing and make each wait
/// longer, half as many starve network disks.
const DEPTH: usize = 64;

/// Places for submissions: all of [`DEPTH`] and the counter, as the power of two that it becomes anyway.
const ENTRIES: u32 = 128;

/// Marks the completion of the counter's read.
const WAKE: u64 = u64::MAX;

/// How long a ring may take to show that it works: it takes a millisecond.
const PROBE_TIME: Duration = Duration::from_secs(10);

/// Between two tries when the kernel has no memory for a request, and how many.
const PAUSE: Duration = Duration::from_millis(5);
const MOST_PAUSES: u32 = 6000;

#[derive(Debug)]
pub(super) struct Ring {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    incoming: Mutex<Incoming>,
    /// The counter that wakes the thread.
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct Incoming {
    /// Bounded by the buffers that its members hold.
    operations: VecDeque<Operation>,
    closed: bool,
    /// The thread waits, or is about to, and nobody has woken it.
    asleep: bool,
}

/// What the thread has.
struct Driver {
    ring: IoUring,
    shared: Arc<Shared>,
    waiting: VecDeque<Operation>,
    /// In the ring, by the mark that they carry.
    flights: Vec<Option<Operation>>,
    free: Vec<usize>,
    /// What the counter was: the kernel writes here while `armed`.
    count: Box<[u8; 8]>,
    armed: bool,
    closed: bool,
    pauses: u32,
}

/// Ends the process when it is dropped while unwinding.
struct AbortOnPanic;

// === impl Ring ===

impl Ring {
    pub(super) fn start() -> Result<Self, Refusal> {
        let wake =
            eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| Refusal::of("make an event counter", &error.into()))?;
        let shared = Arc::new(Shared { incoming: Mutex::default(), wake });
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let own = Arc::clone(&shared);
        // The ring belongs to the thread that made it: the kernel then needs no lock for it.
        let run = move || match probe::ring(ENTRIES) {
            Ok(ring) => {
                if tell.send(Ok(())).is_ok() {
                    Driver::new(ring, own).run();
                }
            }
            Err(refusal) => {
                let _ = tell.send(Err(refusal));
            }
        };
        let thread = std::thread::Builder::new()
            .name("disk-ring".to_owned())
            .spawn(run)
            .map_err(|error| Refusal::of("start its thread", &error))?;
        match told.recv_timeout(PROBE_TIME) {
            Ok(Ok(())) => Ok(Self { shared, thread: Some(thread) }),
            Ok(Err(refusal)) => Err(refusal),
            Err(_) => {
                // Should it come after all, it ends at once.
                shared.lock().closed = true;
                Err(Refusal::silent(PROBE_TIME))
            }
        }
    }

    pub(super) fn submit(&self, operation: Operation) {
        let mut incoming = self.shared.lock();
        incoming.operations.push_back(operation);
        self.shared.wake(incoming);
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        let mut incoming = self.shared.lock();
        incoming.closed = true;
        self.shared.wake(incoming);
        if let Some(thread) = self.thread.take().filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

// === impl Shared ===

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Incoming> {
        self.incoming.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self, mut incoming: MutexGuard<'_, Incoming>) {
        let asleep = std::mem::take(&mut incoming.asleep);
        drop(incoming);
        if asleep {
            // It fails only at 2^64 - 1, and is written at most once for each time that the thread waits.
            let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        }
    }
}

// === impl Driver ===

impl Driver {
    fn new(ring: IoUring, shared: Arc<Shared>) -> Self {
        Self {
            ring,
            shared,
            waiting: VecDeque::new(),
            flights: (0..DEPTH).map(|_| None).collect(),
            free: (0..DEPTH).rev().collect(),
            count: Box::default(),
            armed: false,
            closed: false,
            pauses: 0,
        }
    }

    fn run(mut self) {
        // Dropped before `self` is, so before anything goes back that the kernel may still use.
        let _guard = AbortOnPanic;
        loop {
            self.take();
            self.fill();
            if self.closed && self.is_empty() {
                // The counter's read may stand in the ring; one more count ends it.
                if !self.armed {
                    return;
                }
                let _ = rustix::io::write(&self.shared.wake, &1_u64.to_ne_bytes());
            }
            self.submit_and_wait();
            self.reap();
        }
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.free.len() == self.flights.len()
    }

    /// Takes what has come. If nothing has, whoever comes next wakes the thread.
    fn take(&mut self) {
        let mut incoming = self.shared.lock();
        self.waiting.append(&mut incoming.operations);
        self.closed = incoming.closed;
        incoming.asleep = true;
    }

    /// Puts into the ring what it has room for.
    fn fill(&mut self) {
        if !self.armed && !self.closed {
            let read = opcode::Read::new(types::Fd(self.shared.wake.as_raw_fd()), self.count.as_mut_ptr(), 8);
            let entry = read.build().user_data(WAKE);
            // SAFETY: counter and bytes belong to `self`, which does not end while `armed`.
            self.armed = unsafe { self.push(&entry) };
        }
        while let Some(slot) = self.free.last().copied()
            && let Some(operation) = self.waiting.pop_front()
        {
            if operation.abandoned() {
                continue;
            }
            if operation.is_empty() {
                operation.finish();
                continue;
            }
            self.free.pop();
            self.put(slot, operation);
        }
    }

    /// Puts the next step of `operation` into the ring, under the mark `slot`, which is taken.
    fn put(&mut self, slot: usize, mut operation: Operation) {
        let step = operation.next();
        let file = types::Fd(operation.file_of(&step).as_raw_fd());
        let bytes = operation.bytes_of(&step);
        // A step has 1 GiB at most.
        let (start, length) = (bytes.as_mut_ptr(), bytes.len() as u32);
        let entry = match operation.work() {
            Work::Read { .. } => opcode::Read::new(file, start, length).offset(step.offset).build(),
            Work::Write => opcode::Write::new(file, start, length).offset(step.offset).build(),
            Work::SyncData => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
        };
        // SAFETY: file and buffer belong to the operation, which stays in `flights`, untouched, until this mark's completion has
        // come; the thread does not end before, and a panic ends the process.
        if unsafe { self.push(&entry.user_data(slot as u64)) } {
            self.flights[slot] = Some(operation);
        } else {
            // There is room for all of them: a defect, but of no consequence.
            self.free.push(slot);
            operation.finish();
        }
    }

    /// # Safety
    /// What the entry points to must live until its completion.
    unsafe fn push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the caller's.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    fn submit_and_wait(&mut self) {
        match self.ring.submit_and_wait(1) {
            Ok(_) => self.pauses = 0,
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
            Err(error) => {
                // EAGAIN: no memory for a request. EBUSY: completions first. What was not taken is offered again. Anything else does
                // not happen to a ring that has worked, and there is no way to get the buffers back from one.
                self.pauses += 1;
                assert!(self.pauses < MOST_PAUSES, "io_uring_enter: {error}, again and again");
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// Takes what is completed.
    fn reap(&mut self) {
        loop {
            let Some(entry) = self.ring.completion().next() else { return };
            self.completed(&entry);
        }
    }

    fn completed(&mut self, entry: &cqueue::Entry) {
        if entry.user_data() == WAKE {
            self.armed = false;
            return;
        }
        let slot = entry.user_data() as usize;
        let Some(operation) = self.flights.get_mut(slot).and_then(Option::take) else { return };
        let result = entry.result();
        let outcome = usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result));
        match operation.advance(outcome) {
            Progress::Again(operation) => self.put(slot, operation),
            Progress::Wait(operation) => {
                self.free.push(slot);
                operation.finish();
            }
            Progress::Answered => self.free.push(slot),
        }
    }
}

// === impl AbortOnPanic ===

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}
