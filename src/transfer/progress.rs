//! How far a fetch is, how fast it goes and when it will be done: a value that its caller holds and anybody may read.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::rate::{Eta, Meter};

/// What a fetch is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// Asking the origin what the reference stands for.
    #[default]
    Resolve,
    /// Bytes are coming.
    Transfer,
    /// All bytes are here; digests and headers are being checked.
    Verify,
    /// The tree is being built.
    Publish,
    /// The model is readable.
    Done,
}

/// A moment of a fetch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It is known what has to come.
    Planned,
    /// The first byte has come.
    FirstByte,
    /// Every byte is here.
    Whole,
    /// All digests and headers are right.
    Checked,
    /// The model is readable.
    Published,
}

/// The progress of one fetch. Counters only grow, but for a file that has to start over.
#[derive(Debug, Default)]
pub struct Progress {
    stage: AtomicU8,
    bytes_total: AtomicU64,
    bytes_done: AtomicU64,
    origin_bytes: AtomicU64,
    /// Received by every transfer that this fetch waits for, its own or another's.
    received: AtomicU64,
    files_total: AtomicU64,
    files_done: AtomicU64,
    connections: AtomicU32,
    meter: Mutex<Meter>,
    /// Each mark once, in order; a fetch that plans again starts over.
    marks: Mutex<Vec<(Mark, Instant)>>,
    /// What has arrived is not wanted by whoever asked for it: see [`Progress::forget`].
    forgotten: AtomicBool,
}

/// A look at a [`Progress`].
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct ProgressSnapshot {
    /// What it is doing.
    pub stage: Stage,
    /// Size of the model; 0 until it is resolved.
    pub bytes_total: u64,
    /// Bytes that are here and verified, those reused included.
    pub bytes_done: u64,
    /// Body bytes that the origin sent for this fetch.
    pub origin_bytes: u64,
    /// Files of the model; 0 until it is resolved.
    pub files_total: u64,
    /// Files that are here and verified.
    pub files_done: u64,
    /// Connections at work for it, those of shared transfers included.
    pub connections: u32,
    /// Receive rate, smoothed over about 5 s.
    pub bytes_per_second: u64,
    /// When it will be done; `None` until that can be told.
    pub eta_seconds: Option<Eta>,
}

// === impl Stage ===

impl Stage {
    const ALL: [Self; 5] = [Self::Resolve, Self::Transfer, Self::Verify, Self::Publish, Self::Done];

    /// The stable word used in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Transfer => "transfer",
            Self::Verify => "verify",
            Self::Publish => "publish",
            Self::Done => "done",
        }
    }
}

// === impl Progress ===

impl Progress {
    /// What it is doing.
    #[must_use]
    pub fn stage(&self) -> Stage {
        Stage::ALL.get(usize::from(self.stage.load(Ordering::Relaxed))).copied().unwrap_or_default()
    }

    /// How far it is now.
    #[must_use]
    pub fn snapshot(&self) -> ProgressSnapshot {
        let stage = self.stage();
        let bytes_total = self.bytes_total.load(Ordering::Relaxed);
        let bytes_done = self.bytes_done.load(Ordering::Relaxed).min(bytes_total);
        let meter = self.meter();
        let eta_seconds = match stage {
            Stage::Resolve => None,
            Stage::Transfer => meter.eta(bytes_total - bytes_done),
            Stage::Verify | Stage::Publish | Stage::Done => Some(Eta::default()),
        };
        ProgressSnapshot {
            stage,
            bytes_total,
            bytes_done,
            origin_bytes: self.origin_bytes.load(Ordering::Relaxed),
            files_total: self.files_total.load(Ordering::Relaxed),
            files_done: self.files_done.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            bytes_per_second: if stage == Stage::Done { 0 } else { meter.rate() as u64 },
            eta_seconds,
        }
    }

    /// When it passed which mark.
    #[must_use]
    pub fn marks(&self) -> Vec<(Mark, Instant)> {
        self.marks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Time of a finished fetch before its first byte and after its last.
    pub(super) fn edges(&self) -> Duration {
        let marks = self.marks();
        let at = |mark: Mark| marks.iter().find(|(found, _)| *found == mark).map(|(_, at)| *at);
        let between = |from, to| Some(at(to)?.saturating_duration_since(at(from)?));
        let edges = [between(Mark::Planned, Mark::FirstByte), between(Mark::Whole, Mark::Published)];
        edges.into_iter().flatten().sum()
    }

    fn mark(&self, mark: Mark) {
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if mark == Mark::Planned {
            marks.clear();
        }
        if !marks.iter().any(|(found, _)| *found == mark) {
            marks.push((mark, Instant::now()));
        }
    }

    /// Says that what has arrived is of no use: when the fetch is called off, it is removed, unless somebody else waits for it.
    pub fn forget(&self) {
        self.forgotten.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_forgotten(&self) -> bool {
        self.forgotten.load(Ordering::Relaxed)
    }

    pub(super) fn enter(&self, stage: Stage) {
        self.stage.store(stage as u8, Ordering::Relaxed);
        match stage {
            Stage::Resolve | Stage::Transfer => {}
            Stage::Verify => self.mark(Mark::Whole),
            Stage::Publish => {
                self.mark(Mark::Whole);
                self.mark(Mark::Checked);
            }
            Stage::Done => self.mark(Mark::Published),
        }
    }

    /// Sets the size of the work, and starts counting anew.
    pub(super) fn plan(&self, files: u64, bytes: u64) {
        self.bytes_total.store(bytes, Ordering::Relaxed);
        self.bytes_done.store(0, Ordering::Relaxed);
        self.files_total.store(files, Ordering::Relaxed);
        self.files_done.store(0, Ordering::Relaxed);
        self.mark(Mark::Planned);
    }

    pub(super) fn verified(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Takes back what [`Progress::verified`] was told.
    pub(super) fn unverified(&self, bytes: u64) {
        self.bytes_done.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(super) fn file_done(&self) {
        self.files_done.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes came in. `paid`: they were asked for by this fetch and not by one that it joined.
    pub(super) fn received(&self, bytes: u64, paid: bool) {
        if self.received.fetch_add(bytes, Ordering::Relaxed) == 0 {
            self.mark(Mark::FirstByte);
        }
        if paid {
            self.origin_bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    pub(super) fn connected(&self, count: u32) {
        self.connections.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn disconnected(&self, count: u32) {
        self.connections.fetch_sub(count, Ordering::Relaxed);
    }

    pub(super) fn origin_bytes(&self) -> u64 {
        self.origin_bytes.load(Ordering::Relaxed)
    }

    /// Whether every byte is here.
    pub(super) fn is_whole(&self) -> bool {
        self.bytes_done.load(Ordering::Relaxed) >= self.bytes_total.load(Ordering::Relaxed)
    }

    /// Samples the rate; called a few times a second while the fetch runs.
    pub(super) fn sample(&self, now: Instant) {
        let received = self.received.load(Ordering::Relaxed);
        self.meter().sample(now, received);
    }

    fn meter(&self) -> std::sync::MutexGuard<'_, Meter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_says_when() {
        let (progress, start) = (Progress::default(), Instant::now());
        assert_eq!(progress.snapshot(), ProgressSnapshot::default());
        progress.enter(Stage::Transfer);
        progress.plan(2, 1000);
        progress.sample(start);
        progress.received(400, true);
        progress.received(100, false);
        progress.verified(500);
        progress.file_done();
        progress.sample(start + Duration::from_secs(1));
        let seen = progress.snapshot();
        assert_eq!((seen.bytes_done, seen.origin_bytes, seen.files_done, seen.bytes_per_second), (500, 400, 1, 500));
        assert_eq!(seen.eta_seconds.map(|eta| eta.p50), Some(1.0));
        progress.enter(Stage::Done);
        assert_eq!(progress.snapshot().eta_seconds, Some(Eta::default()));
        assert_eq!(serde_json::to_value(Stage::Done).unwrap(), Stage::Done.as_str());
    }
}
