//! One job: fetch, lease, warm. What it is doing is always visible; how it ended is kept.

use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::wire::{EtaSeconds, JobState, JobView, Priority, Problem, Tier, TreeIdentity};
use crate::base::ErrorKind;
use crate::base::lifecycle::CancellationToken;
use crate::base::units::ByteSize;
use crate::model::Tenant;
use crate::model::source::SourceError;
use crate::store::{Model, Store, StoreError};
use crate::transfer::{Progress, TransferError};

/// Why a job failed.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The origin could not be used at all.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The transfer failed.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The tier `memory` cannot hold it.
    #[error(
        "the model needs {needed} of memory, this node or cgroup has {available} for it: ask for the tier disk, or raise the limit"
    )]
    Memory {
        /// Size of the model.
        needed: ByteSize,
        /// What may be taken.
        available: ByteSize,
    },
    /// Pages were reclaimed while others were read.
    #[error(
        "only {resident} of {total} stayed in memory: the cgroup or the node is too small or too busy; the tier disk is ready"
    )]
    NotResident {
        /// What was found.
        resident: ByteSize,
        /// Size of the model.
        total: ByteSize,
    },
    /// The scope has as many bytes on the node as it may.
    #[error(
        "scope {scope} may bring {most} to this node and has {used}; this model has {needed}: evict one of its models, or have the \
         operator raise access.bytes_max"
    )]
    Quota {
        /// Whose.
        scope: Tenant,
        /// What it may have.
        most: ByteSize,
        /// What it has, and has under way.
        used: ByteSize,
        /// Size of the model.
        needed: ByteSize,
    },
    /// A restart has ended it.
    #[error("the daemon has restarted, and credentials are not kept: ask again with one")]
    NeedsCredentials,
    /// Called off.
    #[error("the job was cancelled")]
    Cancelled,
    /// A task panicked.
    #[error("the job panicked: a defect of preheat")]
    Panicked,
}

/// A job and all that is known of it.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: String,
    /// Who asked, and may look.
    pub(super) scope: Tenant,
    pub(super) reference: String,
    pub(super) tier: Tier,
    pub(super) started: Instant,
    pub(super) progress: Arc<Progress>,
    pub(super) warmed_bytes: AtomicU64,
    claimed: AtomicU64,
    pub(super) cancel: CancellationToken,
    state: Mutex<State>,
    /// Goes up whenever something other than a counter changes.
    changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct State {
    state: JobState,
    priority: Priority,
    deadline: Option<Instant>,
    lease_seconds: u64,
    stage: &'static str,
    model: Option<Model>,
    tree: Option<TreeIdentity>,
    resident: Option<u64>,
    warnings: Vec<String>,
    error: Option<Problem>,
    ended: Option<Instant>,
}

// === impl JobError ===

impl JobError {
    /// What it means to whoever has to act.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Source(error) => error.kind(),
            Self::Transfer(error) => error.kind(),
            Self::Store(error) => error.kind(),
            Self::Memory { .. } | Self::NotResident { .. } | Self::Quota { .. } => ErrorKind::NoSpace,
            Self::NeedsCredentials => ErrorKind::Denied,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Panicked => ErrorKind::Internal,
        }
    }
}

// === impl Job ===

impl Job {
    pub(super) fn new(
        id: String,
        scope: Tenant,
        reference: String,
        tier: Tier,
        priority: Priority,
        lease_seconds: u64,
    ) -> Self {
        Self {
            id,
            scope,
            reference,
            tier,
            started: Instant::now(),
            progress: Arc::default(),
            warmed_bytes: AtomicU64::new(0),
            claimed: AtomicU64::new(0),
            cancel: CancellationToken::new(),
            state: Mutex::new(State {
                state: JobState::Queued,
                priority,
                deadline: None,
                lease_seconds,
                stage: "queued",
                model: None,
                tree: None,
                resident: None,
                warnings: Vec::new(),
                error: None,
                ended: None,
            }),
            changed: watch::Sender::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.send_modify(|version| *version += 1);
    }

    /// Wakes at every change of state.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn is_over(&self) -> bool {
        self.state().state.is_over()
    }

    pub(super) fn job_state(&self) -> JobState {
        self.state().state
    }

    pub(super) fn priority(&self) -> Priority {
        self.state().priority
    }

    pub(super) fn lease_seconds(&self) -> u64 {
        self.state().lease_seconds
    }

    /// Another caller joins: the stronger wish counts.
    pub(super) fn join(&self, priority: Priority, deadline: Option<Instant>, lease_seconds: u64) {
        self.change(|state| {
            // Demand is the lesser: it comes first.
            state.priority = state.priority.min(priority);
            state.deadline = [state.deadline, deadline].into_iter().flatten().min();
            state.lease_seconds = state.lease_seconds.max(lease_seconds);
        });
    }

    /// Bytes that it is about to bring.
    pub(super) fn claim(&self, bytes: u64) {
        self.claimed.store(bytes, Ordering::Relaxed);
    }

    pub(super) fn claimed(&self) -> u64 {
        self.claimed.load(Ordering::Relaxed)
    }

    pub(super) fn run(&self, stage: &'static str) {
        self.change(|state| {
            state.state = JobState::Running;
            state.stage = stage;
        });
    }

    pub(super) fn fetched(&self, model: &Model, warnings: Vec<String>) {
        let tree =
            std::fs::metadata(&model.path).map(|found| TreeIdentity { device: found.dev(), inode: found.ino() }).ok();
        self.change(|state| {
            state.model = Some(model.clone());
            state.tree = tree;
            state.warnings = warnings;
        });
    }

    pub(super) fn ready(&self, resident: Option<u64>) {
        self.change(|state| {
            state.state = JobState::Ready;
            state.stage = "done";
            state.resident = resident;
            state.ended = Some(Instant::now());
        });
    }

    pub(super) fn failed(&self, error: &JobError) {
        let kind = error.kind();
        self.change(|state| {
            state.state = match error {
                JobError::NeedsCredentials => JobState::NeedsCredentials,
                _ if kind == ErrorKind::Cancelled => JobState::Cancelled,
                _ => JobState::Failed,
            };
            state.error = Some(Problem::new(kind, error.to_string()));
            state.ended = Some(Instant::now());
        });
    }

    /// The job as it is answered now.
    pub(super) fn view(&self, store: &Store) -> JobView {
        let now = self.progress.snapshot();
        let state = self.state();
        let over = state.ended.is_some();
        let record = state.model.as_ref().map(|model| &model.record);
        // Durability comes later than readiness; evicted since, it is no longer durable.
        let durable =
            record.is_some_and(|record| store.model(&record.tenant, &record.id).is_some_and(|model| model.durable));
        let eta = if over { None } else { now.eta_seconds.map(|eta| EtaSeconds { p50: eta.p50, p90: eta.p90 }) };
        let deadline_met = state.deadline.and_then(|deadline| match state.ended {
            Some(ended) => Some(state.state == JobState::Ready && ended <= deadline),
            None if Instant::now() > deadline => Some(false),
            None => {
                eta.map(|eta| Instant::now() + std::time::Duration::from_secs_f64(eta.p90.clamp(0.0, 1e9)) <= deadline)
            }
        });
        let bytes_total = record.map_or(now.bytes_total, |record| record.bytes);
        JobView {
            id: self.id.clone(),
            state: state.state,
            reference: self.reference.clone(),
            tier: self.tier,
            priority: state.priority,
            stage: state.stage.to_owned(),
            bytes_total,
            bytes_done: if record.is_some() { bytes_total } else { now.bytes_done },
            origin_bytes: now.origin_bytes,
            bytes_per_second: if over { 0 } else { now.bytes_per_second },
            eta_seconds: eta,
            deadline_met,
            path: state.model.as_ref().map(|model| model.path.clone()),
            tree: state.tree,
            manifest: record.map(|record| record.manifest),
            revision: record.map(|record| record.revision.to_string()),
            files: record.map_or(now.files_total, |record| record.files),
            durable,
            resident_bytes: state.resident,
            seconds: state.ended.unwrap_or_else(Instant::now).duration_since(self.started).as_secs_f64(),
            warnings: state.warnings.clone(),
            error: state.error.clone(),
        }
    }
}
