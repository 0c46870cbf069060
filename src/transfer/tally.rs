//! What one connection has brought, and whether it is being waited for: written by whoever reads it, looked at by the schedule's
//! ticks.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The count of one connection.
#[derive(Debug)]
pub(super) struct Tally {
    bytes: AtomicU64,
    began: Instant,
    /// Microseconds after `began` at which the reader began to wait for the origin, plus one; 0 while it does not.
    waits: AtomicU64,
}

/// While it lives, the origin is being waited for.
pub(super) struct Waiting<'a>(&'a Tally);

// === impl Tally ===

impl Tally {
    pub(super) fn new(now: Instant) -> Self {
        Self { bytes: AtomicU64::new(0), began: now, waits: AtomicU64::new(0) }
    }

    pub(super) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// From now on, until the guard is dropped, the origin is what is waited for. Waiting for a buffer, the disk or the cap on
    /// bandwidth is no silence of the origin's.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.waits.store(micros(self.began.elapsed()) + 1, Ordering::Relaxed);
        Waiting(self)
    }

    /// How long the origin has been waited for without a byte.
    pub(super) fn silence(&self, now: Instant) -> Duration {
        match self.waits.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => now.saturating_duration_since(self.began).saturating_sub(Duration::from_micros(since - 1)),
        }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waits.store(0, Ordering::Relaxed);
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_waiting_is_silence() {
        let tally = Tally::new(Instant::now());
        let later = Instant::now() + Duration::from_secs(5);
        assert_eq!(tally.silence(later), Duration::ZERO);
        let waiting = tally.wait();
        assert!(tally.silence(later) > Duration::from_secs(4));
        drop(waiting);
        assert_eq!(tally.silence(later), Duration::ZERO);
        tally.add(3);
        tally.add(4);
        assert_eq!(tally.bytes(), 7);
    }
}
