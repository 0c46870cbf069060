//! The cap on bandwidth: a bucket of bytes for all connections together, and a small one for prefetches that holds only while
//! demand is about. Those who take more than there is go into debt and wait until it is paid, so that what passes is exact
//! however large the chunks are that a socket gives.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Priority;
use crate::base::units::ByteRate;

/// The cap in force.
#[derive(Debug)]
pub(super) struct Pace {
    gauges: Option<Mutex<Gauges>>,
}

#[derive(Debug)]
struct Gauges {
    all: Bucket,
    prefetch: Bucket,
    demand_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    rate: f64,
    level: f64,
    at: Instant,
}

/// What may pass at once after a pause: a tenth of a second's worth.
const BURST: f64 = 0.1;
/// Share that prefetches have while demand wants bytes.
const PREFETCH_SHARE: f64 = 0.1;
/// Demand that has asked for nothing this long is not about.
const ABOUT: Duration = Duration::from_secs(1);

// === impl Pace ===

impl Pace {
    pub(super) fn new(cap: Option<ByteRate>, now: Instant) -> Self {
        let gauges = cap.map(|rate| {
            let rate = rate.0 as f64;
            Mutex::new(Gauges {
                all: Bucket::new(rate, now),
                prefetch: Bucket::new(rate * PREFETCH_SHARE, now),
                demand_at: None,
            })
        });
        Self { gauges }
    }

    /// Lets `bytes` that have been received pass, and waits as long as the cap demands.
    pub(super) async fn pass(&self, class: Priority, bytes: u64) {
        let Some(gauges) = &self.gauges else { return };
        let wait = gauges.lock().unwrap_or_else(PoisonError::into_inner).take(class, bytes, Instant::now());
        // Timers have a grain of a millisecond; shorter debts are paid with the next.
        if wait > Duration::from_millis(2) {
            tokio::time::sleep(wait).await;
        }
    }
}

// === impl Gauges ===

impl Gauges {
    fn take(&mut self, class: Priority, bytes: u64, now: Instant) -> Duration {
        let wait = self.all.take(bytes, now);
        if class == Priority::Demand {
            self.demand_at = Some(now);
            return wait;
        }
        let share = self.prefetch.take(bytes, now);
        let about = self.demand_at.is_some_and(|at| now.saturating_duration_since(at) < ABOUT);
        if about {
            return wait.max(share);
        }
        // What passed while nobody else wanted anything is no debt.
        self.prefetch.level = self.prefetch.level.max(0.0);
        wait
    }
}

// === impl Bucket ===

impl Bucket {
    fn new(rate: f64, now: Instant) -> Self {
        Self { rate, level: rate * BURST, at: now }
    }

    fn take(&mut self, bytes: u64, now: Instant) -> Duration {
        let gone = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.level = (self.level + gone * self.rate).min(self.rate * BURST) - bytes as f64;
        Duration::from_secs_f64((-self.level / self.rate).max(0.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gauges(rate: u64) -> (Gauges, Instant) {
        let now = Instant::now();
        let pace = Pace::new(Some(ByteRate(rate)), now);
        (pace.gauges.unwrap().into_inner().unwrap(), now)
    }

    #[test]
    fn the_cap_holds_over_any_chunks() {
        for chunk in [10, 1000, 5000] {
            let (mut gauges, start) = gauges(10_000);
            let (mut now, mut passed) = (start, 0);
            while passed < 100_000 {
                now += gauges.take(Priority::Demand, chunk, now);
                passed += chunk;
            }
            let seconds = (now - start).as_secs_f64();
            assert!((9.8..10.2).contains(&seconds), "{chunk}: {seconds}");
        }
    }

    #[test]
    fn a_pause_is_not_saved_up() {
        let (mut gauges, start) = gauges(10_000);
        let later = start + Duration::from_secs(60);
        assert_eq!(gauges.take(Priority::Demand, 1000, later), Duration::ZERO);
        assert_eq!(gauges.take(Priority::Demand, 1000, later), Duration::from_millis(100));
    }

    #[test]
    fn prefetch_has_a_tenth_while_demand_is_about() {
        let (mut gauges, start) = gauges(10_000);
        assert!(gauges.take(Priority::Prefetch, 2000, start) < Duration::from_millis(101));
        let now = start + Duration::from_secs(5);
        gauges.take(Priority::Demand, 10, now);
        assert!(gauges.take(Priority::Prefetch, 2000, now) > Duration::from_millis(1800));
    }

    #[tokio::test]
    async fn without_a_cap_nothing_waits() {
        Pace::new(None, Instant::now()).pass(Priority::Prefetch, u64::MAX).await;
    }
}
