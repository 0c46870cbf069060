//! Hands that are threads: each makes one call at a time and waits for it.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::operation::Operation;

/// How many calls are under way: as many as an NVMe disk wants of 1 MiB each to give all it has, and a bound for their stacks. Of
/// a slower disk the last wait in the kernel instead of here.
const THREADS: usize = 16;

#[derive(Debug)]
pub(super) struct Pool {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Bounded by the buffers that its members hold.
    operations: VecDeque<Operation>,
    closed: bool,
}

// === impl Pool ===

impl Pool {
    pub(super) fn start() -> io::Result<Self> {
        let mut pool = Self { queue: Arc::default(), threads: Vec::with_capacity(THREADS) };
        for number in 0..THREADS {
            let queue = Arc::clone(&pool.queue);
            // On an error the drop of what there is ends those that run.
            pool.threads.push(std::thread::Builder::new().name(format!("disk-{number}")).spawn(move || {
                while let Some(operation) = queue.next() {
                    // The kernel has nothing of it while it unwinds: the call is over, or never began.
                    let _ = catch_unwind(AssertUnwindSafe(|| operation.finish()));
                }
            })?);
        }
        Ok(pool)
    }

    pub(super) fn submit(&self, operation: Operation) {
        self.queue.lock().operations.push_back(operation);
        self.queue.more.notify_one();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.queue.lock().closed = true;
        self.queue.more.notify_all();
        let me = std::thread::current().id();
        for thread in self.threads.drain(..) {
            if thread.thread().id() != me {
                let _ = thread.join();
            }
        }
    }
}

// === impl Queue ===

impl Queue {
    /// Waits for work; `None` once closed and empty.
    fn next(&self) -> Option<Operation> {
        let mut waiting = self.lock();
        loop {
            match waiting.operations.pop_front() {
                Some(operation) if operation.abandoned() => {}
                Some(operation) => return Some(operation),
                None if waiting.closed => return None,
                None => waiting = self.more.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
