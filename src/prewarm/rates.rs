//! How fast this node reads its disk into memory, and hashes what is there: measured whenever it does, for the next estimate.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::estimate::NodeRate;
use crate::base::recent::Recent;
use crate::base::units::MIB;

/// Samples that count.
const SAMPLES: usize = 64;

/// Less says nothing of a rate.
const WORTH: u64 = 8 * MIB;

/// What a disk of a node reads until it was measured: an older NVMe disk, or a network disk of a large size.
const DISK: f64 = 1e9;

/// What two cores hash until it was measured.
const HASH: f64 = 4e9;

/// The rates of this node.
#[derive(Debug, Default)]
pub(super) struct Rates {
    disk: Mutex<Track>,
    memory: Mutex<Track>,
}

#[derive(Debug, Default)]
struct Track {
    rates: Recent,
    at: Option<Instant>,
}

// === impl Rates ===

impl Rates {
    /// So many bytes were read, of which `cold` came from the disk.
    pub(super) fn warmed(&self, bytes: u64, cold: u64, seconds: f64) {
        if bytes < WORTH || seconds <= 0.0 {
            return;
        }
        // A pass that is mostly one of the two tells of that one alone.
        let track = if cold >= bytes / 10 * 9 {
            &self.disk
        } else if cold <= bytes / 10 {
            &self.memory
        } else {
            return;
        };
        let mut track = track.lock().unwrap_or_else(PoisonError::into_inner);
        track.rates.push(bytes as f64 / seconds, SAMPLES);
        track.at = Some(Instant::now());
    }

    /// Bytes a second from disk to memory, hash included.
    pub(super) fn disk(&self) -> NodeRate {
        of(&self.disk, DISK)
    }

    /// Bytes a second that are hashed in memory.
    pub(super) fn memory(&self) -> NodeRate {
        of(&self.memory, HASH)
    }
}

fn of(track: &Mutex<Track>, assumed: f64) -> NodeRate {
    let track = track.lock().unwrap_or_else(PoisonError::into_inner);
    let measured = track.rates.quantile(0.5).zip(track.rates.quantile(0.1)).zip(track.at);
    match measured {
        Some(((p50, p10), at)) => NodeRate { p50, p10, age: Some(at.elapsed().as_secs_f64()) },
        None => NodeRate { p50: assumed, p10: assumed / 3.0, age: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cold_and_what_is_hot_are_two_rates() {
        let rates = Rates::default();
        assert_eq!((rates.disk().age, rates.disk().p50), (None, DISK));
        rates.warmed(100 * MIB, 100 * MIB, 1.0);
        rates.warmed(100 * MIB, 0, 0.1);
        rates.warmed(100 * MIB, 50 * MIB, 9.0);
        rates.warmed(MIB, MIB, 9.0);
        assert_eq!((rates.disk().p50, rates.memory().p50), (100.0 * MIB as f64, 1000.0 * MIB as f64));
        assert!(rates.disk().age.is_some());
    }
}
