//! Rates and what follows from them. The middle estimate of the time left comes from the smoothed rate; the cautious one from
//! the slowest tenth of the recent stretches that were as long as the time left: single slow seconds even out over a minute,
//! slow minutes do not.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

/// Seconds until the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Eta {
    /// As likely later as earlier.
    pub p50: f64,
    /// Later than this in about one of ten cases.
    pub p90: f64,
}

/// Measures the rate of a counter that grows.
#[derive(Clone, Debug, Default)]
pub(super) struct Meter {
    first: Option<Instant>,
    last: Option<(Instant, u64)>,
    smoothed: f64,
    /// Start of the second being filled, and the counter then.
    second: Option<(Instant, u64)>,
    /// Rates of the last whole seconds.
    seconds: VecDeque<f64>,
}

/// Time over which the rate is smoothed.
const SMOOTHING: f64 = 5.0;
/// Seconds that the cautious estimate looks back.
const LOOKED_BACK: usize = 60;
/// Fewer whole seconds than this say nothing of the spread; then half the rate is assumed.
const FEW: usize = 5;

// === impl Meter ===

impl Meter {
    pub(super) fn sample(&mut self, now: Instant, count: u64) {
        let first = *self.first.get_or_insert(now);
        let (last, before) = *self.last.get_or_insert((now, count));
        let (second, at_second) = *self.second.get_or_insert((now, count));
        let gone = now.saturating_duration_since(last).as_secs_f64();
        if gone <= 0.0 {
            return;
        }
        let rate = count.saturating_sub(before) as f64 / gone;
        // At first the mean of everything, then of about the last five seconds.
        let window = now.saturating_duration_since(first).as_secs_f64().clamp(gone, SMOOTHING.max(gone));
        self.smoothed += (rate - self.smoothed) * (gone / window);
        self.last = Some((now, count));
        let filled = now.saturating_duration_since(second);
        if filled >= Duration::from_secs(1) {
            self.seconds.push_back(count.saturating_sub(at_second) as f64 / filled.as_secs_f64());
            self.second = Some((now, count));
            if self.seconds.len() > LOOKED_BACK {
                self.seconds.pop_front();
            }
        }
    }

    /// Smoothed rate a second.
    pub(super) fn rate(&self) -> f64 {
        self.smoothed
    }

    /// Time until `left` more have been counted; `None` while nothing is known or nothing comes.
    pub(super) fn eta(&self, left: u64) -> Option<Eta> {
        if self.smoothed < 1.0 {
            return (left == 0).then(Eta::default);
        }
        let slow = if self.seconds.len() < FEW {
            self.smoothed / 2.0
        } else {
            // Half of what is remembered at most: of one stretch alone there is no slowest tenth.
            let length = ((left as f64 / self.smoothed) as usize).clamp(1, self.seconds.len() / 2);
            let seconds: Vec<f64> = self.seconds.iter().copied().collect();
            let mut stretches: Vec<f64> =
                seconds.windows(length).map(|stretch| stretch.iter().sum::<f64>() / length as f64).collect();
            stretches.sort_by(f64::total_cmp);
            stretches[(stretches.len() - 1) / 10].min(self.smoothed)
        };
        // A second in which nothing came is no rate to plan with.
        let slow = slow.max(self.smoothed / 10.0);
        Some(Eta { p50: left as f64 / self.smoothed, p90: left as f64 / slow })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds rates for a second each, in quarters.
    fn fed(rates: &[u64]) -> Meter {
        let (mut meter, start, mut count) = (Meter::default(), Instant::now(), 0);
        meter.sample(start, 0);
        for (second, rate) in rates.iter().enumerate() {
            for quarter in 1..=4 {
                count += rate / 4;
                meter.sample(start + Duration::from_millis(second as u64 * 1000 + quarter * 250), count);
            }
        }
        meter
    }

    #[test]
    fn a_steady_rate_is_found_at_once_and_has_little_spread() {
        let meter = fed(&[1000; 20]);
        assert!((meter.rate() - 1000.0).abs() < 1.0);
        let eta = meter.eta(10_000).unwrap();
        assert!((eta.p50 - 10.0).abs() < 0.1 && (eta.p90 - 10.0).abs() < 0.1, "{eta:?}");
        assert!((fed(&[1000]).rate() - 1000.0).abs() < 1.0);
    }

    #[test]
    fn a_slow_second_counts_when_little_is_left() {
        let rates: Vec<u64> = (0..40).map(|second| if second % 8 == 3 { 200 } else { 1000 }).collect();
        let (soon, later) = (fed(&rates).eta(1000).unwrap(), fed(&rates).eta(10_000).unwrap());
        assert!((1.0..1.3).contains(&soon.p50) && (4.5..5.5).contains(&soon.p90), "{soon:?}");
        assert!((10.0..12.5).contains(&later.p50) && (10.5..13.0).contains(&later.p90), "{later:?}");
    }

    #[test]
    fn slow_stretches_count_for_long_transfers_too() {
        let rates: Vec<u64> = (0..60).map(|second| if second / 10 % 2 == 0 { 500 } else { 1000 }).collect();
        let eta = fed(&rates).eta(10_000).unwrap();
        assert!((9.9..10.7).contains(&eta.p50) && (18.0..21.0).contains(&eta.p90), "{eta:?}");
    }

    #[test]
    fn a_new_rate_replaces_the_old_within_some_seconds() {
        let rate = fed(&[[1000; 20], [4000; 20]].concat()).rate();
        assert!((3900.0..4001.0).contains(&rate), "{rate}");
    }

    #[test]
    fn nothing_is_promised_when_nothing_comes() {
        assert_eq!(fed(&[0; 5]).eta(10), None);
        assert_eq!(Meter::default().eta(10), None);
        assert_eq!(Meter::default().eta(0), Some(Eta::default()));
    }
}
