//! One model of a job: what it stands for, how far it is, when it did what.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::timeline::Timeline;
use super::wire::{MemberView, TreeIdentity};
use crate::model::{OriginId, Reference};
use crate::store::{Model, Store};
use crate::transfer::{Mark, Progress};

/// A model that a job makes ready.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) reference: Reference,
    pub(super) progress: Arc<Progress>,
    /// Bytes that warming has read.
    pub(super) warmed_bytes: AtomicU64,
    state: Mutex<State>,
}

/// How much of a model was in memory when it was last measured. Whoever measures tells everybody who shows it.
#[derive(Debug, Default)]
pub(super) struct Seen {
    measured: Mutex<Option<(u64, Instant)>>,
    /// Held by who measures because somebody asked.
    pub(super) looking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    stage: &'static str,
    origin: Option<OriginId>,
    model: Option<Model>,
    tree: Option<TreeIdentity>,
    resident: Option<Arc<Seen>>,
    warnings: Vec<String>,
    timeline: Timeline,
}

// === impl Seen ===

impl Seen {
    fn measured(&self) -> MutexGuard<'_, Option<(u64, Instant)>> {
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None`: it cannot be told.
    pub(super) fn set(&self, bytes: Option<u64>, at: Instant) {
        *self.measured() = bytes.map(|bytes| (bytes, at));
    }

    pub(super) fn bytes(&self) -> Option<u64> {
        self.measured().map(|(bytes, _)| bytes)
    }

    /// Since then.
    pub(super) fn age(&self) -> Option<Duration> {
        self.measured().map(|(_, at)| at.elapsed())
    }
}

// === impl Member ===

impl Member {
    pub(super) fn new(reference: Reference) -> Self {
        let state = State {
            stage: "queued",
            origin: None,
            model: None,
            tree: None,
            resident: None,
            warnings: Vec::new(),
            timeline: Timeline::default(),
        };
        Self { reference, progress: Arc::default(), warmed_bytes: AtomicU64::new(0), state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stage begins.
    pub(super) fn begin(&self, stage: &'static str) {
        let mut state = self.state();
        state.stage = stage;
        state.timeline.begin(stage, Instant::now());
    }

    /// What it does now; when, its transfer tells.
    pub(super) fn enter(&self, stage: &'static str) {
        self.state().stage = stage;
    }

    /// A stage ends; the seconds that it took.
    pub(super) fn end(&self, stage: &'static str) -> Option<f64> {
        self.state().timeline.end(stage, Instant::now())
    }

    /// Takes the stages of a transfer over from its marks; each with its seconds.
    pub(super) fn transferred(&self) -> Vec<(&'static str, f64)> {
        let marks = self.progress.marks();
        let at = |mark: Mark| marks.iter().find(|(found, _)| *found == mark).map(|(_, at)| *at);
        let mut state = self.state();
        let mut taken = Vec::new();
        for (stage, from, to) in [
            ("first_byte", Mark::Planned, Mark::FirstByte),
            ("transfer", Mark::FirstByte, Mark::Whole),
            ("verify", Mark::Whole, Mark::Checked),
            ("publish", Mark::Checked, Mark::Published),
        ] {
            if let Some((from, to)) = at(from).zip(at(to)) {
                state.timeline.record(stage, from, to);
                taken.push((stage, to.saturating_duration_since(from).as_secs_f64()));
            }
        }
        taken
    }

    /// Where its bytes come from is known.
    pub(super) fn comes_from(&self, origin: OriginId) {
        self.state().origin = Some(origin);
    }

    pub(super) fn fetched(&self, model: &Model, warnings: Vec<String>) {
        let tree =
            std::fs::metadata(&model.path).map(|found| TreeIdentity { device: found.dev(), inode: found.ino() }).ok();
        let mut state = self.state();
        state.model = Some(model.clone());
        state.tree = tree;
        state.warnings = warnings;
    }

    /// Where it is told how much of it is in memory.
    pub(super) fn resident(&self, seen: Arc<Seen>) {
        self.state().resident = Some(seen);
    }

    pub(super) fn seen(&self) -> Option<Arc<Seen>> {
        self.state().resident.clone()
    }

    pub(super) fn done(&self) {
        self.state().stage = "done";
    }

    /// Whether it is readable and not yet durable; then that is a stage that begins.
    pub(super) fn begin_sealing(&self, store: &Store) -> bool {
        let waits = self.model().is_some_and(|model| !is_durable(store, &model));
        if waits {
            self.state().timeline.begin("seal", Instant::now());
        }
        waits
    }

    /// The seconds that sealing took, once it is durable.
    pub(super) fn sealed(&self, store: &Store) -> Option<f64> {
        let model = self.model()?;
        if is_durable(store, &model) { self.end("seal") } else { None }
    }

    /// The job has ended, whatever it was doing.
    pub(super) fn close(&self) {
        self.state().timeline.close(Instant::now());
    }

    pub(super) fn model(&self) -> Option<Model> {
        self.state().model.clone()
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.state().warnings.clone()
    }

    pub(super) fn timeline(&self) -> Timeline {
        self.state().timeline.clone()
    }

    /// Bytes that are still to come, and from where; `None` while that is not known or all are here.
    pub(super) fn left(&self) -> Option<(OriginId, u64)> {
        let state = self.state();
        let origin = state.origin.clone().filter(|_| state.model.is_none())?;
        let now = self.progress.snapshot();
        let left = now.bytes_total.saturating_sub(now.bytes_done);
        (left > 0).then_some((origin, left))
    }

    pub(super) fn view(&self, store: &Store) -> MemberView {
        let now = self.progress.snapshot();
        let state = self.state();
        let record = state.model.as_ref().map(|model| &model.record);
        // Durability comes later than readiness; evicted since, it is no longer durable.
        let durable =
            record.is_some_and(|record| store.model(&record.tenant, &record.id).is_some_and(|model| model.durable));
        let bytes_total = record.map_or(now.bytes_total, |record| record.bytes);
        MemberView {
            reference: self.reference.to_string(),
            stage: state.stage.to_owned(),
            bytes_total,
            bytes_done: if record.is_some() { bytes_total } else { now.bytes_done },
            origin_bytes: now.origin_bytes,
            files: record.map_or(now.files_total, |record| record.files),
            path: state.model.as_ref().map(|model| model.path.clone()),
            tree: state.tree,
            manifest: record.map(|record| record.manifest),
            revision: record.map(|record| record.revision.to_string()),
            durable,
            resident_bytes: state.resident.as_ref().and_then(|seen| seen.bytes()),
        }
    }
}

fn is_durable(store: &Store, model: &Model) -> bool {
    store.model(&model.record.tenant, &model.record.id).is_some_and(|model| model.durable)
}
