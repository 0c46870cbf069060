//! Threads for blocking work. Tokio's own blocking pool grows to hundreds of threads and queues without bound; here both are
//! fixed, so that a slow disk slows its callers instead of filling memory.
//!
//! Work owns its buffers: dropping the future that waits for it drops the receiver only, never what the thread uses.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::{Semaphore, oneshot};

type Work = Box<dyn FnOnce() + Send>;

/// A fixed number of threads with a bounded queue. Cheap to clone; the threads end when the last clone is gone and the queue
/// is empty.
#[derive(Clone, Debug)]
pub struct Hands {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    queue: Option<std::sync::mpsc::Sender<Work>>,
    /// Bounds the queue: a permit for each piece of work that is queued or running.
    room: Arc<Semaphore>,
    threads: Vec<JoinHandle<()>>,
}

/// The work did not come to an end.
#[derive(Clone, Debug, thiserror::Error)]
#[error("blocking work panicked")]
pub struct WorkPanicked;

// === impl Hands ===

impl Hands {
    /// Starts `threads` threads; at most `queue` pieces of work wait beside those that run.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(name: &str, threads: usize, queue: usize) -> std::io::Result<Self> {
        #[expect(clippy::disallowed_methods, reason = "the permits of `room` bound it")]
        let (sender, receiver) = std::sync::mpsc::channel::<Work>();
        let receiver = Arc::new(std::sync::Mutex::new(receiver));
        let mut started = Vec::with_capacity(threads);
        for number in 0..threads.max(1) {
            let receiver = Arc::clone(&receiver);
            let thread = std::thread::Builder::new().name(format!("{name}-{number}")).spawn(move || {
                loop {
                    // Held only while taking one piece; the others wait here, parked, when there is nothing to do.
                    let work = receiver.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
                    let Ok(work) = work else { return };
                    work();
                }
            })?;
            started.push(thread);
        }
        let room = Arc::new(Semaphore::new(threads.max(1) + queue));
        Ok(Self { shared: Arc::new(Shared { queue: Some(sender), room, threads: started }) })
    }

    /// Runs `work` on a thread; waits for room first.
    ///
    /// # Errors
    /// [`WorkPanicked`]. The thread survives.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, WorkPanicked> {
        // Never closed while `self` lives.
        let permit = Arc::clone(&self.shared.room).acquire_owned().await.map_err(|_| WorkPanicked)?;
        let (answer, answered) = oneshot::channel();
        let boxed: Work = Box::new(move || {
            let outcome = catch_unwind(AssertUnwindSafe(work));
            drop(permit);
            // Nobody may be waiting any more; the work is done all the same.
            let _ = answer.send(outcome);
        });
        if let Some(queue) = &self.shared.queue {
            queue.send(boxed).map_err(|_| WorkPanicked)?;
        }
        match answered.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(_)) | Err(_) => Err(WorkPanicked),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue = None;
        let me = std::thread::current().id();
        for thread in self.threads.drain(..) {
            // The last clone may be dropped by a piece of work; a thread cannot wait for itself.
            if thread.thread().id() != me {
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn a_panic_is_an_error_and_the_thread_goes_on() {
        let hands = Hands::new("test", 1, 1).unwrap();
        assert!(hands.run(|| panic!("on purpose")).await.is_err());
        assert_eq!(hands.run(|| 7).await.unwrap(), 7);
    }

    #[tokio::test]
    async fn work_whose_caller_went_away_is_finished() {
        let done = Arc::new(AtomicUsize::new(0));
        let hands = Hands::new("test", 1, 4).unwrap();
        let (start, started) = std::sync::mpsc::sync_channel::<()>(1);
        let counted = Arc::clone(&done);
        let call = hands.run(move || {
            let _ = started.recv();
            counted.fetch_add(1, Ordering::SeqCst);
        });
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(1), call).await;
        assert!(waiting.is_err());
        start.send(()).unwrap();
        drop(hands);
        assert_eq!(done.load(Ordering::SeqCst), 1);
    }
}
