//! What origins have been seen to give, for whoever plans a transfer that has not begun.
//!
//! A transfer takes an overhead (resolving, the first answers, the climb to the right number of connections, publishing) and then
//! its bytes at a steady rate. The rate is sampled while as many connections are open as the origin is worth: a transfer's own
//! average would make small models slow and large ones fast. The overhead is what of a whole transfer the rate does not explain,
//! so that the two together tell the next one of any size.
//!
//! Turned down: one average over everything (it says nothing of the next size) and a regression over whole transfers (after the
//! first there is one point).

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::schedule::LaneId;
use crate::base::recent::Recent;
use crate::base::units::MIB;

/// What an origin gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OriginRate {
    /// Bytes a second, as often more as less.
    pub rate_p50: f64,
    /// Bytes a second, less in one of ten cases.
    pub rate_p10: f64,
    /// Seconds of a transfer beside its bytes, as often more as less.
    pub overhead_p50: f64,
    /// Seconds of a transfer beside its bytes, more in one of ten cases.
    pub overhead_p90: f64,
    /// Since it was last seen to give anything.
    pub age: Duration,
}

/// All origins that have been seen.
#[derive(Debug, Default)]
pub(super) struct Observed {
    tracks: Mutex<HashMap<LaneId, Track>>,
}

#[derive(Debug, Default)]
struct Track {
    /// Start of the sample under way, and the bytes counted by then.
    window: Option<(Instant, u64)>,
    /// Since it was at its full number of connections something has come.
    flows: bool,
    rates: Recent,
    overheads: Recent,
    resolves: Recent,
    at: Option<Instant>,
}

/// Long enough for some hundred reads at any rate that matters, short enough that a transfer of two seconds has some samples.
const WINDOW: Duration = Duration::from_millis(250);
/// Samples that count: half a minute at full speed. An origin that has become slower is known as that soon.
const SAMPLES: usize = 120;
/// Transfers that count.
const TRANSFERS: usize = 16;
/// Origins that are remembered: as many as the schedule remembers.
const ORIGINS: usize = 256;
/// A quarter of a second in which nothing came is no rate to plan with.
const SLOWEST: f64 = 10.0;
/// A transfer of less says nothing of a rate.
const WORTH: u64 = MIB;

// === impl Observed ===

impl Observed {
    fn tracks(&self) -> MutexGuard<'_, HashMap<LaneId, Track>> {
        self.tracks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the bytes received from an origin so far. `full`: as many connections are open as it is worth.
    pub(super) fn sample(&self, lane: LaneId, bytes: u64, full: bool, now: Instant) {
        let mut tracks = self.tracks();
        let track = track(&mut tracks, lane, now);
        if !full {
            track.window = None;
            track.flows = false;
            return;
        }
        let Some((since, before)) = track.window else {
            track.window = Some((now, bytes));
            return;
        };
        let gone = now.saturating_duration_since(since);
        if gone < WINDOW {
            return;
        }
        track.window = Some((now, bytes));
        let rate = bytes.saturating_sub(before) as f64 / gone.as_secs_f64();
        // Until answers begin, that is overhead; a pause after that is part of the rate.
        track.flows |= rate > 0.0;
        if track.flows {
            track.rates.push(rate, SAMPLES);
            track.at = Some(now);
        }
    }

    /// A whole transfer of `bytes` from one origin took so long, from its resolution to its tree.
    /// `edges`: of it, before the first byte and after the last.
    pub(super) fn transferred(&self, lane: LaneId, bytes: u64, took: Duration, edges: Duration, now: Instant) {
        let mut tracks = self.tracks();
        let track = track(&mut tracks, lane, now);
        let took = took.as_secs_f64();
        if track.rates.is_empty() && bytes >= WORTH && took > 0.0 {
            track.rates.push(bytes as f64 / took, SAMPLES);
        }
        if let Some(rate) = track.rates.mean().filter(|rate| *rate > 0.0) {
            // The first transfer from a server also finds out how many connections it is worth, which the next one knows.
            let unexplained = (took - bytes as f64 / rate).max(0.0);
            let overhead = if track.overheads.is_empty() { edges.as_secs_f64() } else { unexplained };
            track.overheads.push(overhead, TRANSFERS);
            track.at = Some(now);
        }
    }

    /// A reference of an origin was resolved in so long.
    pub(super) fn resolved(&self, lane: LaneId, took: Duration, now: Instant) {
        let mut tracks = self.tracks();
        track(&mut tracks, lane, now).resolves.push(took.as_secs_f64(), TRANSFERS);
    }

    /// What an origin gives; `None` if it has never been seen to give anything.
    pub(super) fn of(&self, lane: LaneId, now: Instant) -> Option<OriginRate> {
        let tracks = self.tracks();
        let track = tracks.get(&lane)?;
        // A transfer is many samples, and takes what they bring in the mean.
        let rate_p50 = track.rates.mean().filter(|rate| *rate > 0.0)?;
        Some(OriginRate {
            rate_p50,
            rate_p10: track.rates.quantile(0.1)?.clamp(rate_p50 / SLOWEST, rate_p50),
            overhead_p50: track.overhead(0.5),
            overhead_p90: track.overhead(0.9),
            age: now.saturating_duration_since(track.at?),
        })
    }

    /// What origins give in general: the middle one of those that were seen. To begin with where nothing else is known.
    pub(super) fn of_any(&self, now: Instant) -> Option<OriginRate> {
        let lanes: Vec<LaneId> = self.tracks().keys().copied().collect();
        let mut rates: Vec<OriginRate> = lanes.iter().filter_map(|lane| self.of(*lane, now)).collect();
        rates.sort_by(|one, other| one.rate_p50.total_cmp(&other.rate_p50));
        rates.get(rates.len() / 2).copied()
    }
}

fn track(tracks: &mut HashMap<LaneId, Track>, lane: LaneId, now: Instant) -> &mut Track {
    if tracks.len() >= ORIGINS && !tracks.contains_key(&lane) {
        let oldest = tracks.iter().min_by_key(|(_, track)| track.at.unwrap_or(now)).map(|(lane, _)| *lane);
        oldest.map(|oldest| tracks.remove(&oldest));
    }
    tracks.entry(lane).or_default()
}

// === impl Track ===

impl Track {
    fn overhead(&self, part: f64) -> f64 {
        self.overheads.quantile(part).unwrap_or(0.0) + self.resolves.quantile(part).unwrap_or(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANE: LaneId = LaneId(7);

    /// A transfer of `bytes` at `rate` after `overhead` seconds, sampled every 100 ms.
    fn transfer(observed: &Observed, start: Instant, bytes: f64, rate: f64, overhead: f64) -> Instant {
        let seconds = overhead + bytes / rate;
        for tick in 0..(seconds * 10.0) as u64 {
            let at = tick as f64 / 10.0;
            let received = ((at - overhead).max(0.0) * rate).min(bytes);
            observed.sample(LANE, received as u64, at > overhead, start + Duration::from_secs_f64(at));
        }
        let end = start + Duration::from_secs_f64(seconds);
        observed.sample(LANE, bytes as u64, false, end);
        let edges = Duration::from_secs_f64(overhead);
        observed.transferred(LANE, bytes as u64, Duration::from_secs_f64(seconds), edges, end);
        end
    }

    #[test]
    fn one_transfer_tells_the_next_of_any_size() {
        for (rate, overhead) in [(40e6, 0.4), (200e6, 1.5)] {
            let observed = Observed::default();
            let end = transfer(&observed, Instant::now(), 400e6, rate, overhead);
            let seen = observed.of(LANE, end + Duration::from_secs(5)).unwrap();
            assert_eq!(seen.age, Duration::from_secs(5));
            for bytes in [50e6, 4e9] {
                let (guess, truth) = (seen.overhead_p50 + bytes / seen.rate_p50, overhead + bytes / rate);
                assert!((guess / truth - 1.0).abs() < 0.05, "{rate} {bytes}: {guess} {truth}");
            }
        }
    }

    #[test]
    fn an_origin_that_varies_has_a_spread_and_an_unseen_one_nothing() {
        let observed = Observed::default();
        let (start, mut bytes) = (Instant::now(), 0);
        for tick in 0..200_u64 {
            bytes += if tick % 10 < 2 { 1_000_000 } else { 10_000_000 };
            observed.sample(LANE, bytes, true, start + Duration::from_millis(tick * 250));
        }
        let seen = observed.of(LANE, start).unwrap();
        assert!((32e6..34e6).contains(&seen.rate_p50) && (3.9e6..4.1e6).contains(&seen.rate_p10), "{seen:?}");
        assert_eq!(observed.of(LaneId(8), start), None);
        assert_eq!(observed.of_any(start).map(|rate| rate.rate_p50), Some(seen.rate_p50));
        assert_eq!(Observed::default().of_any(start), None);
    }

    #[test]
    fn small_files_alone_give_a_rate_too() {
        let observed = Observed::default();
        let now = Instant::now();
        observed.transferred(LANE, 1000, Duration::from_secs(1), Duration::ZERO, now);
        assert_eq!(observed.of(LANE, now), None, "too little to tell");
        observed.transferred(LANE, 10 << 20, Duration::from_secs(1), Duration::ZERO, now);
        assert_eq!(observed.of(LANE, now).map(|seen| seen.rate_p50), Some(f64::from(10 << 20)));
    }

    #[test]
    fn the_number_of_origins_is_bounded() {
        let (observed, now) = (Observed::default(), Instant::now());
        for number in 0..1000 {
            let at = now + Duration::from_secs(number);
            observed.transferred(LaneId(number), 10 << 20, Duration::from_secs(1), Duration::ZERO, at);
        }
        assert_eq!(observed.tracks().len(), ORIGINS);
        assert!(observed.of(LaneId(999), now).is_some() && observed.of(LaneId(0), now).is_none());
    }
}
