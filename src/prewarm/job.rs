//! One job and its models: fetch, lease, warm. What it is doing is always visible; how it ended is kept.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::budget::Shortage;
use super::compiled::{Compiled, EngineState, EngineView, left};
use super::estimating::verdict;
use super::member::Member;
use super::timeline::Timeline;
use super::wire::{Basis, Estimate, EtaSeconds, JobState, JobView, MemberView, MissingBytes, Priority, Problem, Tier};
use crate::base::ErrorKind;
use crate::base::lifecycle::CancellationToken;
use crate::base::units::ByteSize;
use crate::digest::Hash;
use crate::model::source::SourceError;
use crate::model::{Reference, Tenant};
use crate::store::{Store, StoreError};
use crate::transfer::{ProgressSnapshot, TransferError};

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
    #[error("the model does not fit in memory: {0}; the tier disk asks for none of that")]
    Memory(Shortage),
    /// Pages were reclaimed while others were read.
    #[error(
        "only {resident} of {total} stayed in memory: {}; the tier disk is ready",
        .why.as_ref().map_or_else(|| "the kernel took the rest back for others, although there seemed to be room".to_owned(), ToString::to_string)
    )]
    NotResident {
        /// What was found.
        resident: ByteSize,
        /// Size of the model.
        total: ByteSize,
        /// What is lacking, where that can be told.
        why: Option<Shortage>,
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
    /// What others may read too may not be kept for ever by this caller.
    #[error("pinning {0}, which others may read, is for the operator: ask for a lease instead")]
    Pin(String),
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
    pub(super) members: Vec<Arc<Member>>,
    /// Bundles beside them.
    pub(super) compiled: Vec<Compiled>,
    pub(super) tier: Tier,
    pub(super) started: Instant,
    /// The pin that its models get.
    pub(super) pin: Option<String>,
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
    estimate: Option<Estimate>,
    /// When it was made.
    estimated_at: Option<Instant>,
    timeline: Timeline,
    error: Option<Problem>,
    ended: Option<Instant>,
}

// === impl State ===

impl State {
    /// What was estimated at first, held against the deadline of now: a caller may have joined with another.
    fn first_estimate(&self) -> Option<Estimate> {
        let mut estimate = self.estimate.clone()?;
        let left = self.deadline.zip(self.estimated_at).map(|(deadline, at)| deadline.saturating_duration_since(at));
        estimate.deadline = left.map(|left| verdict(&estimate, left.as_secs_f64()));
        Some(estimate)
    }
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
            Self::Memory(_) | Self::NotResident { .. } | Self::Quota { .. } => ErrorKind::NoSpace,
            Self::NeedsCredentials | Self::Pin(_) => ErrorKind::Denied,
            Self::Cancelled => ErrorKind::Cancelled,
            Self::Panicked => ErrorKind::Internal,
        }
    }
}

// === impl Job ===

impl Job {
    pub(super) fn new(id: String, scope: Tenant, members: Vec<Reference>, tier: Tier, pin: Option<String>) -> Self {
        let started = Instant::now();
        let mut timeline = Timeline::default();
        timeline.begin("queue", started);
        Self {
            id,
            scope,
            members: members.into_iter().map(|reference| Arc::new(Member::new(reference))).collect(),
            compiled: Vec::new(),
            tier,
            started,
            pin,
            claimed: AtomicU64::new(0),
            cancel: CancellationToken::new(),
            state: Mutex::new(State {
                state: JobState::Queued,
                priority: Priority::Prefetch,
                deadline: None,
                lease_seconds: 0,
                estimate: None,
                estimated_at: None,
                timeline,
                error: None,
                ended: None,
            }),
            changed: watch::Sender::new(0),
        }
    }

    /// The same with bundles of these engine keys.
    pub(super) fn with_compiled(self, keys: &[Hash]) -> Self {
        Self { compiled: keys.iter().copied().map(Compiled::new).collect(), ..self }
    }

    /// What was asked for, for keys and logs.
    pub(super) fn reference(&self) -> String {
        let references: Vec<String> = self.members.iter().map(|member| member.reference.to_string()).collect();
        references.join(" ")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.touch();
    }

    /// Wakes whoever watches: a member has changed.
    pub(super) fn touch(&self) {
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

    /// Returns once somebody waits for it who did not when it began as a prefetch.
    pub(super) async fn becomes_urgent(&self) {
        let mut changes = self.changes();
        while self.priority() != Priority::Demand {
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
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

    /// Bytes that it is about to bring, over all its models.
    pub(super) fn claim(&self, bytes: u64) {
        self.claimed.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn claimed(&self) -> u64 {
        self.claimed.load(Ordering::Relaxed)
    }

    /// It has its place. Returns the seconds that it waited.
    pub(super) fn run(&self) -> f64 {
        let now = Instant::now();
        self.change(|state| {
            state.state = JobState::Running;
            state.timeline.end("queue", now);
        });
        now.saturating_duration_since(self.started).as_secs_f64()
    }

    /// Takes in what was estimated for one of its models: together they take as long as the slowest of them, as far as that
    /// can be told before they begin.
    pub(super) fn estimated(&self, estimate: Estimate) {
        self.change(|state| {
            state.estimated_at.get_or_insert_with(Instant::now);
            state.estimate = Some(match state.estimate.take() {
                None => estimate,
                Some(before) => merge(before, estimate),
            });
        });
    }

    /// Whether every model of it has been estimated.
    pub(super) fn is_estimated(&self) -> bool {
        let state = self.state();
        state.estimate.as_ref().is_some_and(|estimate| estimate.revisions.len() == self.members.len())
    }

    /// The first estimate and how many seconds after it the job ended.
    pub(super) fn scored(&self) -> Option<(EtaSeconds, f64)> {
        let state = self.state();
        let (at, ended) = (state.estimated_at?, state.ended?);
        let seconds = state.estimate.as_ref().filter(|estimate| estimate.basis == Basis::Measured)?.seconds?;
        Some((seconds, ended.saturating_duration_since(at).as_secs_f64()))
    }

    pub(super) fn ready(&self) {
        self.end(|state| state.state = JobState::Ready);
    }

    pub(super) fn failed(&self, error: &JobError) {
        let kind = error.kind();
        self.end(|state| {
            state.state = match error {
                JobError::NeedsCredentials => JobState::NeedsCredentials,
                _ if kind == ErrorKind::Cancelled => JobState::Cancelled,
                _ => JobState::Failed,
            };
            state.error = Some(Problem::new(kind, error.to_string()));
        });
    }

    fn end(&self, change: impl FnOnce(&mut State)) {
        let now = Instant::now();
        self.members.iter().for_each(|member| member.close());
        self.change(|state| {
            change(state);
            state.timeline.close(now);
            state.ended = Some(now);
        });
    }

    /// The job as it is answered now.
    pub(super) fn view(&self, store: &Store) -> JobView {
        let members: Vec<MemberView> = self.members.iter().map(|member| member.view(store)).collect();
        let state = self.state();
        let over = state.ended.is_some();
        let snapshots: Vec<_> = self.members.iter().map(|member| member.progress.snapshot()).collect();
        let sum = |of: fn(&MemberView) -> u64| members.iter().map(of).sum::<u64>();
        let engines: Vec<EngineView> = self.compiled.iter().map(Compiled::view).collect();
        let compiled = |of: fn(&EngineView) -> u64| engines.iter().map(of).sum::<u64>();
        let coming = engines.iter().any(|engine| matches!(engine.state, EngineState::Queued | EngineState::Fetching));
        let last = if coming && !over && !members.is_empty() { "engines" } else { "done" };
        let stage = members.iter().map(|member| member.stage.as_str()).find(|stage| *stage != "done").unwrap_or(last);
        let eta = if over { None } else { self.eta(&state, &snapshots) };
        let deadline_met = state.deadline.and_then(|deadline| match state.ended {
            Some(ended) => Some(state.state == JobState::Ready && ended <= deadline),
            None if Instant::now() > deadline => Some(false),
            None => eta.map(|eta| Instant::now() + Duration::from_secs_f64(eta.p90.clamp(0.0, 1e9)) <= deadline),
        });
        let timeline = state.timeline.view(self.started, None).into_iter();
        let of_members =
            self.members.iter().enumerate().flat_map(|(n, member)| member.timeline().view(self.started, Some(n)));
        let first = members.first().cloned().unwrap_or_default();
        JobView {
            id: self.id.clone(),
            state: state.state,
            reference: first.reference,
            tier: self.tier,
            priority: state.priority,
            stage: stage.to_owned(),
            bytes_total: sum(|member| member.bytes_total) + compiled(|engine| engine.bytes),
            bytes_done: sum(|member| member.bytes_done) + compiled(|engine| engine.bytes_done),
            origin_bytes: sum(|member| member.origin_bytes),
            bytes_per_second: if over {
                0
            } else {
                snapshots.iter().map(|now| now.bytes_per_second).sum::<u64>()
                    + self.compiled.iter().map(Compiled::rate).sum::<u64>()
            },
            eta_seconds: eta,
            deadline_met,
            path: first.path,
            tree: first.tree,
            manifest: first.manifest,
            revision: first.revision,
            files: sum(|member| member.files),
            durable: !members.is_empty() && members.iter().all(|member| member.durable),
            resident_bytes: members.iter().map(|member| member.resident_bytes).sum::<Option<u64>>(),
            engines,
            seconds: state.ended.unwrap_or_else(Instant::now).duration_since(self.started).as_secs_f64(),
            warnings: self.members.iter().flat_map(|member| member.warnings()).collect(),
            error: state.error.clone(),
            estimate: state.first_estimate(),
            timeline: timeline.chain(of_members).collect(),
            members,
        }
    }

    /// Seconds left, of the models and of the bundles that come beside them. Of bundles of which nothing is known, and which may not
    /// even be there, nothing is said.
    fn eta(&self, state: &State, snapshots: &[ProgressSnapshot]) -> Option<EtaSeconds> {
        let models = self.eta_of_models(state, snapshots)?;
        let bundles = left(&self.compiled).unwrap_or(EtaSeconds { p50: 0.0, p90: 0.0 });
        Some(EtaSeconds { p50: models.p50.max(bundles.p50), p90: models.p90.max(bundles.p90) })
    }

    /// Of the models: by what is measured of the transfers under way; before they are, by the estimate.
    fn eta_of_models(&self, state: &State, snapshots: &[ProgressSnapshot]) -> Option<EtaSeconds> {
        let measured = snapshots.iter().map(|now| now.eta_seconds).collect::<Option<Vec<_>>>();
        let slowest = measured.filter(|_| self.tier == Tier::Disk).map(|etas| {
            etas.iter().fold(EtaSeconds { p50: 0.0, p90: 0.0 }, |most, eta| EtaSeconds {
                p50: most.p50.max(eta.p50),
                p90: most.p90.max(eta.p90),
            })
        });
        slowest.or_else(|| {
            let gone = state.estimated_at?.elapsed().as_secs_f64();
            let EtaSeconds { p50, p90 } = state.estimate.as_ref()?.seconds?;
            Some(EtaSeconds { p50: (p50 - gone).max(0.0), p90: (p90 - gone).max(0.0) })
        })
    }
}

/// What two models of a job take together.
pub(super) fn merge(one: Estimate, other: Estimate) -> Estimate {
    let later = |one: Option<EtaSeconds>, other: Option<EtaSeconds>| {
        let (one, other) = (one?, other?);
        Some(EtaSeconds { p50: one.p50.max(other.p50), p90: one.p90.max(other.p90) })
    };
    Estimate {
        bytes_total: one.bytes_total + other.bytes_total,
        bytes_missing: MissingBytes {
            disk: one.bytes_missing.disk + other.bytes_missing.disk,
            memory: one.bytes_missing.memory + other.bytes_missing.memory,
        },
        seconds: later(one.seconds, other.seconds),
        queue_seconds: later(one.queue_seconds, other.queue_seconds),
        basis: one.basis.max(other.basis),
        rates: one.rates.into_iter().chain(other.rates).collect(),
        deadline: None,
        revisions: one.revisions.into_iter().chain(other.revisions).collect(),
    }
}
