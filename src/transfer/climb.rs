//! How many connections an origin is worth. Nobody knows beforehand: one store gives each connection 90 MB/s and any number
//! of connections, the next gives everything to the first one, and on two cores more connections are slower. So it is
//! measured: double, and stay there only if the rate grew.
//!
//! A controller on latency (as in congestion control) was turned down: the latency of a part says how long it queued here, in
//! the kernel or there, and cannot be told apart from outside.

use std::time::{Duration, Instant};

/// Finds the number of connections to one origin.
#[derive(Clone, Debug)]
pub(super) struct Climb {
    target: u32,
    max: u32,
    /// Number and rate of the step below, while going up.
    below: Option<(u32, f64)>,
    /// No step before this.
    hold_until: Option<Instant>,
    /// Start of the measurement under way, and the bytes counted by then.
    window: Option<(Instant, u64)>,
}

/// Long enough for some parts to begin and end within it, short enough that four steps cost two seconds.
const WINDOW: Duration = Duration::from_millis(500);
/// A step that brings less is taken back.
const WORTH: f64 = 1.05;
/// After a step was taken back.
const HOLD: Duration = Duration::from_secs(15);
/// After the origin asked to slow down.
const HOLD_AFTER_REFUSAL: Duration = Duration::from_secs(30);

// === impl Climb ===

impl Climb {
    pub(super) fn new(start: u32, max: u32) -> Self {
        Self { target: start.clamp(1, max), max, below: None, hold_until: None, window: None }
    }

    pub(super) fn target(&self) -> u32 {
        self.target
    }

    /// Looks at the bytes received so far. `full`: as many connections are open as `target` says, so that the rate means
    /// something.
    pub(super) fn measure(&mut self, now: Instant, bytes: u64, full: bool) {
        if !full {
            self.window = None;
            return;
        }
        let Some((since, before)) = self.window else {
            self.window = Some((now, bytes));
            return;
        };
        let seconds = now.saturating_duration_since(since);
        if seconds < WINDOW {
            return;
        }
        let rate = bytes.saturating_sub(before) as f64 / seconds.as_secs_f64();
        self.window = None;
        if self.hold_until.is_some_and(|until| now < until) {
            return;
        }
        match self.below {
            Some((target, slower)) if rate < slower * WORTH => {
                self.target = target;
                self.below = None;
                self.hold_until = Some(now + HOLD);
            }
            _ if self.target < self.max => {
                self.below = Some((self.target, rate));
                self.target = (self.target * 2).min(self.max);
                self.hold_until = None;
            }
            _ => {
                self.below = None;
                self.hold_until = Some(now + HOLD);
            }
        }
    }

    /// The origin refused for too many requests.
    pub(super) fn refused(&mut self, now: Instant) {
        self.target = (self.target / 2).max(1);
        self.below = None;
        self.window = None;
        self.hold_until = Some(now + HOLD_AFTER_REFUSAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs for `seconds` against an origin whose rate depends on the number of connections.
    fn settle(climb: &mut Climb, seconds: u32, rate: impl Fn(u32) -> f64) -> Vec<u32> {
        let (start, mut bytes) = (Instant::now(), 0);
        let mut targets = vec![climb.target()];
        for step in 0..seconds * 10 {
            bytes += (rate(climb.target()) / 10.0) as u64;
            climb.measure(start + Duration::from_millis(u64::from(step) * 100), bytes, true);
            if targets.last() != Some(&climb.target()) {
                targets.push(climb.target());
            }
        }
        targets
    }

    #[test]
    fn a_capped_connection_is_multiplied() {
        let mut climb = Climb::new(4, 16);
        assert_eq!(settle(&mut climb, 10, |n| 90e6 * f64::from(n)), [4, 8, 16]);
    }

    #[test]
    fn a_step_that_brings_nothing_is_taken_back() {
        let mut climb = Climb::new(4, 16);
        assert_eq!(settle(&mut climb, 10, |n| 90e6 * f64::from(n.min(6))), [4, 8, 16, 8]);
        let mut climb = Climb::new(4, 16);
        assert_eq!(settle(&mut climb, 10, |_| 1e9), [4, 8, 4]);
    }

    #[test]
    fn it_looks_again_later() {
        let mut climb = Climb::new(4, 8);
        settle(&mut climb, 5, |_| 1e9);
        assert_eq!(climb.target(), 4);
        climb.measure(Instant::now(), 0, false);
        let mut bytes = 0;
        let later = Instant::now() + Duration::from_secs(60);
        for step in 0..20 {
            bytes += 10_000_000 * u64::from(climb.target());
            climb.measure(later + Duration::from_millis(step * 100), bytes, true);
        }
        assert_eq!(climb.target(), 8);
    }

    #[test]
    fn refusal_halves_and_idle_time_is_not_measured() {
        let now = Instant::now();
        let mut climb = Climb::new(4, 16);
        climb.refused(now);
        climb.refused(now);
        climb.refused(now);
        assert_eq!(climb.target(), 1);
        let mut climb = Climb::new(4, 16);
        climb.measure(now, 0, true);
        climb.measure(now + WINDOW / 2, 10, false);
        climb.measure(now + WINDOW * 2, 20, true);
        climb.measure(now + WINDOW * 2 + WINDOW / 2, 30, true);
        assert_eq!(climb.target(), 4);
    }
}
