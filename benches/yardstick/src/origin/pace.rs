//! Time: the round trips that a connection begins with, the wait before the first byte, a rate for each connection, one rate for
//! the link that all share.
//!
//! Which connections fall silent is no chance: of so many that bring more than [`COUNTED`] bytes the one in the middle does, so
//! that `c` connections meet `c / one_in` of them, rounded to the nearest. `/-/run` begins the count anew, so that each run of
//! a client meets what the others meet.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How late a turn on the link may be made up for; later ones are lost, as on a real link.
const SLACK: Duration = Duration::from_millis(20);
/// Body bytes after which a connection is one that brings weights, and may fall silent: listings and small files are less.
const COUNTED: u64 = 3 << 19;

#[derive(clap::Args, Clone, Copy)]
pub(crate) struct Pace {
    /// Milliseconds there and back: a connection costs one before its first request, TLS 1.3 one more and TLS 1.2 two
    #[arg(long, default_value_t = 0)]
    round_trip_ms: u64,
    /// Milliseconds from a request to the first byte of its answer, the round trip included
    #[arg(long, default_value_t = 0)]
    first_byte_ms: u64,
    /// Body bytes a second of each connection
    #[arg(long)]
    connection_rate: Option<f64>,
    /// Body bytes a second of all connections together
    #[arg(long)]
    total_rate: Option<f64>,
    /// Of so many connections that bring more than 1.5 MiB, one stops there for good
    #[arg(long)]
    stall_one_in: Option<u64>,
}

/// What all connections share.
pub(crate) struct Link {
    pace: Pace,
    next: Mutex<Option<Instant>>,
    faults: Mutex<Faults>,
}

/// What has gone wrong since `/-/run`, and what will.
struct Faults {
    one_in: Option<u64>,
    connections: u64,
    stalls: u64,
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
        let faults = Faults { one_in: pace.stall_one_in, connections: 0, stalls: 0 };
        Self { pace, next: Mutex::new(None), faults: Mutex::new(faults) }
    }

    /// A connection has come: its round trips are waited for here.
    pub(crate) fn turn(&self) -> Turn<'_> {
        self.round_trip();
        Turn { link: self, counted: false, sent: 0, next: None }
    }

    /// What is sent takes this long to be answered.
    pub(crate) fn round_trip(&self) {
        std::thread::sleep(Duration::from_millis(self.pace.round_trip_ms));
    }

    /// A run begins, in which connections fall silent as the command line says, or none does.
    pub(crate) fn run(&self, faulty: bool) {
        if let Ok(mut faults) = self.faults.lock() {
            *faults = Faults { one_in: self.pace.stall_one_in.filter(|_| faulty), connections: 0, stalls: 0 };
        }
    }

    /// Connections that have fallen silent in this run.
    pub(crate) fn stalls(&self) -> u64 {
        self.faults.lock().map_or(0, |faults| faults.stalls)
    }

    /// Whether a connection that begins to count falls silent.
    fn stalled(&self) -> bool {
        let Ok(mut faults) = self.faults.lock() else { return false };
        let Some(one_in) = faults.one_in.filter(|one_in| *one_in > 0) else { return false };
        faults.connections += 1;
        let stalled = (faults.connections + one_in / 2).is_multiple_of(one_in);
        faults.stalls += u64::from(stalled);
        stalled
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
        if !self.counted && self.sent > COUNTED {
            self.counted = true;
            if self.link.stalled() {
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
