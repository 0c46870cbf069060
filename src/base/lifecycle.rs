//! Shutdown and supervision. A *gate* counts the pieces of work that touch shared state; closing it refuses new ones and
//! waits for the rest. A *supervised* task turns a panic into a value, so that one parser's panic cannot end every fetch.

use std::future::Future;
use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
pub use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Admits work until closed, then waits for what was admitted.
#[derive(Clone, Debug, Default)]
pub struct Gate {
    tracker: TaskTracker,
    cancel: CancellationToken,
}

/// A supervised task ended by panicking.
#[derive(Debug, thiserror::Error)]
#[error("{task} panicked: {message}")]
pub struct Panicked {
    /// The name given to [`supervise`].
    pub task: &'static str,
    /// The panic's message, where it was text.
    pub message: String,
}

// === impl Gate ===

impl Gate {
    /// The token that tells work to stop at its next convenient point.
    #[must_use]
    pub fn token(&self) -> CancellationToken {
        self.cancel.clone()
    }

    /// Runs `work` as a supervised task that [`Gate::close`] waits for.
    pub fn spawn<F>(&self, task: &'static str, work: F) -> tokio::task::JoinHandle<Option<F::Output>>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        self.tracker.spawn(async move {
            match supervise(task, work).await {
                Ok(output) => Some(output),
                Err(panicked) => {
                    tracing::error!(task = panicked.task, message = %panicked.message, "task panicked");
                    None
                }
            }
        })
    }

    /// Cancels the token, refuses nothing that already runs, and waits until all of it has ended.
    pub async fn close(&self) {
        self.cancel.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

/// Runs a future and catches its panic.
///
/// # Errors
/// [`Panicked`] with the panic's message.
pub async fn supervise<F: Future>(task: &'static str, work: F) -> Result<F::Output, Panicked> {
    AssertUnwindSafe(work).catch_unwind().await.map_err(|payload| {
        let message = payload
            .downcast_ref::<&str>()
            .map(|text| (*text).to_owned())
            .or_else(|| payload.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "no message".to_owned());
        Panicked { task, message }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_becomes_a_value() {
        let panicked = supervise("parse", async { panic!("bad byte {}", 7) }).await.unwrap_err();
        assert_eq!(panicked.to_string(), "parse panicked: bad byte 7");
    }

    #[tokio::test]
    async fn closing_waits_for_admitted_work() {
        let gate = Gate::default();
        let token = gate.token();
        let done = gate.spawn("work", async move {
            token.cancelled().await;
            tokio::task::yield_now().await;
            42
        });
        gate.close().await;
        assert!(done.is_finished());
        assert_eq!(done.await.ok().flatten(), Some(42));
    }
}
