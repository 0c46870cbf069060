//! All jobs of a node: idempotent by content, bounded in number, remembered for a while after they end.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::Stream;
use tokio::sync::Semaphore;

use super::Config;
use super::job::{Job, JobError};
use super::journal::{Journal, Written};
use super::rates::Rates;
use super::residents::Residents;
use super::wire::{EstimateRequest, JobState, JobView, PrewarmRequest, Priority, Tier};
use super::work::Errand;
use crate::access::{Access, Identity};
use crate::base::ErrorKind;
use crate::base::lifecycle::Gate;
use crate::digest::Hash;
use crate::engines::Engines;
use crate::model::{Reference, Tenant};
use crate::store::{Model, Store};
use crate::telemetry::metrics::{Metrics, Which};
use crate::transfer::Fetcher;

/// Longest wait of one answer; a caller that wants more asks again.
const WAIT_LIMIT: Duration = Duration::from_secs(600);

/// Between two snapshots of an event stream, at most; a client takes longer silence for a hang.
const EVENT_EVERY: Duration = Duration::from_millis(250);

/// Estimates of less are not scored.
const SCORED: f64 = 0.25;

/// How long, and how often, a job that is ready is looked at for whether it is durable.
const SEAL_WATCH: Duration = Duration::from_secs(300);
const SEAL_POLL: Duration = Duration::from_millis(100);

/// The jobs of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Jobs {
    inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) config: Config,
    pub(super) store: Store,
    pub(super) access: Access,
    pub(super) fetcher: Fetcher,
    pub(super) metrics: Arc<Metrics>,
    pub(super) gate: Gate,
    pub(super) journal: Journal,
    pub(super) rates: Rates,
    pub(super) residents: Residents,
    /// Bundles of compiled engines, on a node that has them.
    pub(super) engines: OnceLock<Engines>,
    fingerprints: RandomState,
    pub(super) running: Arc<Semaphore>,
    table: Mutex<Table>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) jobs: HashMap<String, Arc<Job>>,
    /// The job that works on a content now.
    pub(super) active: HashMap<Key, Arc<Job>>,
    /// Ended jobs, oldest first.
    pub(super) history: VecDeque<String>,
}

/// Who asks for what.
#[derive(Debug)]
pub struct Submission {
    /// Who.
    pub identity: Identity,
    /// For what; at least one.
    pub references: Vec<Reference>,
    /// How ready, how soon, for how long, and with which credential.
    pub request: PrewarmRequest,
}

/// Who wants to know how long what would take.
#[derive(Debug)]
pub struct Estimation {
    /// Who.
    pub identity: Identity,
    /// What; at least one.
    pub references: Vec<Reference>,
    /// How ready, for whom, by when, and with which credential.
    pub request: EstimateRequest,
}

/// What came of a request.
#[derive(Clone, Debug)]
pub enum Submitted {
    /// The job, new or joined.
    Job(Box<JobView>),
    /// Too many wait.
    Full,
}

/// What makes two requests one job. Who shows another credential may be let in where the first was not, or the other way round.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    scope: Tenant,
    references: Vec<String>,
    engine: Vec<Hash>,
    tier: Tier,
    pin: Option<String>,
    /// Of the credential; keyed anew in every process, so that it says nothing about it.
    fingerprint: Option<u64>,
}

// === impl Jobs ===

impl Jobs {
    /// No jobs yet. `gate` ends them at shutdown.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(
        config: Config,
        store: Store,
        access: Access,
        fetcher: Fetcher,
        metrics: Arc<Metrics>,
        gate: Gate,
    ) -> std::io::Result<Self> {
        let running = Arc::new(Semaphore::new(config.running_max.max(1)));
        let (directory, temporaries) = store.jobs_directory();
        let inner = Inner {
            residents: Residents::new(&config)?,
            config,
            store,
            access,
            fetcher,
            metrics,
            gate,
            journal: Journal::new(directory, temporaries),
            rates: Rates::default(),
            engines: OnceLock::new(),
            fingerprints: RandomState::new(),
            running,
            table: Mutex::default(),
            // Ids of one daemon's life do not repeat those of the last.
            next: AtomicU64::new(
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64),
            ),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The same jobs, which bring bundles of compiled engines as well.
    #[must_use]
    pub fn with_engines(self, engines: Engines) -> Self {
        // There is one library of a node; a second is not taken.
        let _ = self.inner.engines.set(engines);
        self
    }

    /// Looks after what is in memory, and goes on with the jobs that an earlier process left. Those that came with a credential wait for their callers.
    pub fn resume(&self) {
        let inner = &self.inner;
        inner.gate.spawn("residents", Arc::clone(inner).keep_resident());
        for written in inner.journal.read(inner.config.history_max) {
            let Written {
                id,
                scope,
                our_rights,
                operator,
                references,
                engine,
                tier,
                priority,
                lease_seconds,
                pin,
                credential,
                ..
            } = written;
            let parsed: Result<Vec<Reference>, _> = references.iter().map(|reference| reference.parse()).collect();
            let Some(members) = parsed.ok().filter(|members| !members.is_empty()) else {
                inner.journal.remove(&id);
                continue;
            };
            if credential {
                let job = Arc::new(Job::new(id.clone(), scope, members, tier, pin));
                job.failed(&JobError::NeedsCredentials);
                let mut table = inner.table();
                table.jobs.insert(id.clone(), job);
                table.history.push_back(id);
                continue;
            }
            inner.journal.remove(&id);
            let identity = Identity { scope, operator, has_our_rights: our_rights };
            let request = PrewarmRequest {
                engine,
                tier,
                priority: Some(priority),
                lease_seconds: Some(lease_seconds),
                pin,
                ..PrewarmRequest::default()
            };
            let submission = Submission { identity, references: members, request };
            if matches!(self.begin(Some(id), submission, false), Submitted::Full) {
                tracing::warn!("too many jobs were left by the last process: some are given up");
                break;
            }
        }
    }

    /// Starts a job, or joins the one that already works on the same content for the same scope.
    #[must_use]
    pub fn submit(&self, submission: Submission) -> Submitted {
        self.begin(None, submission, false)
    }

    /// The same for what is asked for again and again: what is in memory for good is not hashed each time.
    pub(super) fn keep(&self, submission: Submission) -> Submitted {
        self.begin(None, submission, true)
    }

    fn begin(&self, id: Option<String>, submission: Submission, refresh: bool) -> Submitted {
        let inner = &self.inner;
        let Submission { identity, references, request } = submission;
        let priority = request.priority.unwrap_or(Priority::Prefetch);
        let lease =
            request.lease_seconds.unwrap_or(inner.config.lease.0.as_secs()).min(inner.config.lease_max.0.as_secs());
        let deadline = request
            .deadline_seconds
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .and_then(|wait| Instant::now().checked_add(wait));
        let credential = request.credential;
        let fingerprint = credential
            .as_ref()
            .map(|credential| inner.fingerprints.hash_one(serde_json::to_vec(credential).unwrap_or_default()));
        let key = Key {
            scope: identity.scope.clone(),
            references: references.iter().map(ToString::to_string).collect(),
            engine: request.engine.clone(),
            tier: request.tier,
            pin: request.pin.clone(),
            fingerprint,
        };
        let job = {
            let mut table = inner.table();
            if let Some(job) = table.active.get(&key).filter(|job| !job.is_over() && !job.cancel.is_cancelled()) {
                job.join(priority, deadline, lease);
                return Submitted::Job(Box::new(job.view(&inner.store)));
            }
            if table.active.len() >= inner.config.running_max + inner.config.queued_max {
                return Submitted::Full;
            }
            let id = id.unwrap_or_else(|| format!("job-{:013x}", inner.next.fetch_add(1, Ordering::Relaxed)));
            let scope = identity.scope.clone();
            let job = Job::new(id.clone(), scope, references, request.tier, request.pin);
            let job = Arc::new(job.with_compiled(&request.engine));
            job.join(priority, deadline, lease);
            table.jobs.insert(id, Arc::clone(&job));
            table.active.insert(key.clone(), Arc::clone(&job));
            job
        };
        inner.count();
        let this = Arc::clone(inner);
        let task = Arc::clone(&job);
        let errand = Errand { identity, credential, refresh };
        inner.gate.spawn("job", async move {
            let work = this.work(&task, errand);
            let outcome = crate::base::lifecycle::supervise("job", work).await.unwrap_or_else(|panicked| {
                tracing::error!(job = %task.id, %panicked, "a job panicked");
                Err(JobError::Panicked)
            });
            match outcome {
                Ok(()) => {
                    task.ready();
                    this.score(&task);
                    this.follow_sealing(&task);
                }
                Err(error) => {
                    if !matches!(
                        error.kind(),
                        ErrorKind::Cancelled | ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::Denied
                    ) {
                        tracing::warn!(job = %task.id, reference = %task.reference(), %error, "job failed");
                    }
                    task.failed(&error);
                }
            }
            this.ended(&key, &task);
        });
        Submitted::Job(Box::new(job.view(&inner.store)))
    }

    pub(super) fn inner(&self) -> &Arc<Inner> {
        &self.inner
    }

    /// A job by its id, if `who` may see it: an operator, or who is of the scope that asked for it. What it says of memory is
    /// true now; lists and streams tell what was measured last, and when: measuring costs a millisecond a GiB.
    pub async fn get(&self, who: &Identity, id: &str) -> Option<JobView> {
        let job = self.find(who, id)?;
        if job.is_over() {
            for member in &job.members {
                self.inner.look_at(member).await;
            }
        }
        Some(job.view(&self.inner.store))
    }

    /// The models of a job that has ended.
    pub(super) fn models_of(&self, id: &str) -> Vec<Model> {
        let job = self.inner.table().jobs.get(id).cloned();
        job.map_or_else(Vec::new, |job| job.members.iter().filter_map(|member| member.model()).collect())
    }

    /// Forgets a job that has ended, before its time.
    pub(super) fn forget(&self, id: &str) {
        let mut table = self.inner.table();
        if table.jobs.get(id).is_some_and(|job| job.is_over()) {
            table.jobs.remove(id);
            table.history.retain(|known| known != id);
        }
    }

    fn find(&self, who: &Identity, id: &str) -> Option<Arc<Job>> {
        let job = self.inner.table().jobs.get(id).cloned()?;
        (who.operator || job.scope == who.scope).then_some(job)
    }

    /// All jobs that are remembered and that `who` may see, newest first.
    #[must_use]
    pub fn list(&self, who: &Identity) -> Vec<JobView> {
        let mut jobs: Vec<Arc<Job>> = self.inner.table().jobs.values().cloned().collect();
        jobs.retain(|job| who.operator || job.scope == who.scope);
        jobs.sort_by(|one, other| other.id.cmp(&one.id));
        jobs.iter().map(|job| job.view(&self.inner.store)).collect()
    }

    /// Calls a job off. Ended ones stay as they are.
    #[must_use]
    pub fn cancel(&self, who: &Identity, id: &str) -> Option<JobView> {
        let job = self.find(who, id)?;
        // Whoever calls it off wants its room back; what others wait for stays.
        job.members.iter().for_each(|member| member.progress.forget());
        job.cancel.cancel();
        if job.is_over() {
            // One that waits for a credential is given up.
            self.inner.journal.remove(&job.id);
        }
        Some(job.view(&self.inner.store))
    }

    /// Waits until a job has ended, but no longer than ten minutes.
    pub async fn wait(&self, who: &Identity, id: &str) -> Option<JobView> {
        let job = self.find(who, id)?;
        // On time-out the job is answered as it stands.
        let _ = tokio::time::timeout(WAIT_LIMIT, self.ended_of(who, id)).await;
        Some(job.view(&self.inner.store))
    }

    /// Waits until a job has ended, however long that takes.
    pub(super) async fn ended_of(&self, who: &Identity, id: &str) -> Option<JobView> {
        let job = self.find(who, id)?;
        let mut changes = job.changes();
        while !job.is_over() {
            if changes.changed().await.is_err() {
                break;
            }
        }
        Some(job.view(&self.inner.store))
    }

    /// Waits until it is known how long a job will take, or it has ended, but no longer than `longest`.
    pub async fn wait_for_estimate(&self, who: &Identity, id: &str, longest: Duration) -> Option<JobView> {
        let job = self.find(who, id)?;
        let mut changes = job.changes();
        let known = async {
            while !job.is_over() && !job.is_estimated() {
                if changes.changed().await.is_err() {
                    break;
                }
            }
        };
        // On time-out the job is answered as it stands.
        let _ = tokio::time::timeout(longest, known).await;
        Some(job.view(&self.inner.store))
    }

    /// Snapshots of a job, at least four a second while it runs, until it has ended.
    #[must_use]
    pub fn watch(&self, who: &Identity, id: &str) -> Option<impl Stream<Item = JobView> + Send + use<>> {
        let job = self.find(who, id)?;
        let store = self.inner.store.clone();
        let changes = job.changes();
        Some(futures_util::stream::unfold(Some((job, store, changes, true)), |state| async move {
            let (job, store, mut changes, first) = state?;
            if !first {
                // Either is a reason for a snapshot.
                let _ = tokio::time::timeout(EVENT_EVERY, changes.changed()).await;
            }
            let view = job.view(&store);
            let over = view.state.is_over();
            Some((view, (!over).then_some((job, store, changes, false))))
        }))
    }
}

// === impl Inner ===

impl Inner {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds the first estimate of a job that has ended well against what it took.
    fn score(&self, job: &Job) {
        let Some((estimate, took)) = job.scored() else { return };
        // Below a quarter of a second scheduling decides, and a ratio of two nothings says nothing.
        if took < SCORED {
            return;
        }
        self.metrics.estimate_ratio.observe(took / estimate.p50.max(SCORED));
        let within = if took <= estimate.p50 {
            "p50"
        } else if took <= estimate.p90 {
            "p90"
        } else {
            "beyond"
        };
        self.metrics.estimates.get_or_create(&Which { which: within }).inc();
    }

    /// Ready is not durable: notes when it is, for a while.
    fn follow_sealing(self: &Arc<Self>, job: &Arc<Job>) {
        let (this, job, stop) = (Arc::clone(self), Arc::clone(job), self.gate.token());
        let waiting: Vec<_> = job.members.iter().filter(|member| member.begin_sealing(&this.store)).cloned().collect();
        if waiting.is_empty() {
            return;
        }
        self.gate.spawn("seal watch", async move {
            let begun = Instant::now();
            let mut left = waiting;
            while !left.is_empty() && begun.elapsed() < SEAL_WATCH {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(SEAL_POLL) => {}
                }
                left.retain(|member| match member.sealed(&this.store) {
                    Some(seconds) => {
                        this.observe("seal", seconds);
                        job.touch();
                        false
                    }
                    None => true,
                });
            }
        });
    }

    fn ended(&self, key: &Key, job: &Arc<Job>) {
        // What a shutdown has called off is found again.
        if !self.gate.token().is_cancelled() {
            self.journal.remove(&job.id);
        }
        let mut table = self.table();
        if table.active.get(key).is_some_and(|active| Arc::ptr_eq(active, job)) {
            table.active.remove(key);
        }
        table.history.push_back(job.id.clone());
        while table.history.len() > self.config.history_max {
            if let Some(id) = table.history.pop_front() {
                table.jobs.remove(&id);
            }
        }
        drop(table);
        self.count();
    }

    fn count(&self) {
        let (mut queued, mut running) = (0, 0);
        for job in self.table().active.values() {
            match job.job_state() {
                JobState::Queued => queued += 1,
                JobState::Running => running += 1,
                _ => {}
            }
        }
        self.metrics.jobs.get_or_create(&Which { which: "queued" }).set(queued);
        self.metrics.jobs.get_or_create(&Which { which: "running" }).set(running);
    }
}
