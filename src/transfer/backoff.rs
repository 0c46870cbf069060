//! How long to wait before asking again. Full doubling with jitter over the upper half: clients that failed together do not
//! come back together, and none comes back at once.

use std::time::Duration;

use super::Config;

/// The wait after a number of failures.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
}

/// Small deterministic randomness for jitter (xorshift64*); a decider has no other.
#[derive(Clone, Debug)]
pub(super) struct Jitter(u64);

// === impl Backoff ===

impl Backoff {
    pub(super) fn new(config: &Config) -> Self {
        Self { first: config.retry_first.0, longest: config.retry_longest.0.max(config.retry_first.0) }
    }

    /// The wait after the `failures`th failure in a row, counted from 1.
    pub(super) fn wait(&self, failures: u32, jitter: &mut Jitter) -> Duration {
        let doubled = self.first.saturating_mul(1 << failures.saturating_sub(1).min(16));
        let whole = doubled.min(self.longest);
        whole / 2 + (whole / 2).mul_f64(jitter.next())
    }
}

// === impl Jitter ===

impl Jitter {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    /// From 0 to 1.
    fn next(&mut self) -> f64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_within_their_bounds() {
        let backoff = Backoff::new(&Config::default());
        let mut jitter = Jitter::new(7);
        for (failures, least, most) in [(1, 125, 250), (2, 250, 500), (5, 2000, 4000), (60, 15_000, 30_000)] {
            for _ in 0..100 {
                let wait = backoff.wait(failures, &mut jitter).as_millis();
                assert!((least..=most).contains(&wait), "{failures}: {wait} ms");
            }
        }
    }

    #[test]
    fn two_clients_wait_differently() {
        let backoff = Backoff::new(&Config::default());
        let waits = |seed| {
            let mut jitter = Jitter::new(seed);
            (0..4).map(|_| backoff.wait(6, &mut jitter)).collect::<Vec<_>>()
        };
        assert_ne!(waits(2), waits(4));
    }
}
