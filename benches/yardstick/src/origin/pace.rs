//! Time: the wait before the first byte, a rate for each connection, one rate for the link that all share.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How late a turn on the link may be made up for; later ones are lost, as on a real link.
const SLACK: Duration = Duration::from_millis(20);

#[derive(clap::Args, Clone, Copy)]
pub(crate) struct Pace {
    /// Milliseconds from a request to the first byte of its answer
    #[arg(long, default_value_t = 0)]
    first_byte_ms: u64,
    /// Body bytes a second of each connection
    #[arg(long)]
    connection_rate: Option<f64>,
    /// Body bytes a second of all connections together
    #[arg(long)]
    total_rate: Option<f64>,
    /// Of so many connections that bring more than a MiB, one stops for good in its second
    #[arg(long)]
    stall_one_in: Option<u64>,
}

/// What all connections share.
pub(crate) struct Link {
    pace: Pace,
    next: Mutex<Option<Instant>>,
    connections: AtomicU64,
}

/// One connection's own pace.
pub(crate) struct Turn<'link> {
    link: &'link Link,
    counted: bool,
    sent: u64,
    next: Option<Instant>,
}

// === impl Link ===

impl Link {
    pub(crate) fn new(pace: Pace) -> Self {
        Self { pace, next: Mutex::new(None), connections: AtomicU64::new(0) }
    }

    /// A connection has come.
    pub(crate) fn turn(&self) -> Turn<'_> {
        Turn { link: self, counted: false, sent: 0, next: None }
    }
}

// === impl Turn ===

impl Turn<'_> {
    /// Before the head of an answer.
    pub(crate) fn first_byte(&mut self) {
        std::thread::sleep(Duration::from_millis(self.link.pace.first_byte_ms));
        self.next = None;
    }

    /// Before `count` bytes of a body are sent. `false`: this connection sends no more.
    pub(crate) fn take(&mut self, count: u64) -> bool {
        self.sent += count;
        if let Some(one_in) = self.link.pace.stall_one_in
            && !self.counted
            && self.sent > 3 << 19
        {
            self.counted = true;
            if (self.link.connections.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(one_in) {
                return false;
            }
        }
        let now = Instant::now();
        if let Some(rate) = self.link.pace.connection_rate {
            let next = self.next.unwrap_or(now) + Duration::from_secs_f64(count as f64 / rate);
            self.next = Some(next);
            std::thread::sleep(next.saturating_duration_since(now));
        }
        if let Some(rate) = self.link.pace.total_rate {
            let until = {
                let Ok(mut next) = self.link.next.lock() else { return false };
                let now = Instant::now();
                let from = next.map_or(now, |next| next.max(now.checked_sub(SLACK).unwrap_or(now)));
                *next.insert(from + Duration::from_secs_f64(count as f64 / rate))
            };
            std::thread::sleep(until.saturating_duration_since(Instant::now()));
        }
        true
    }
}
