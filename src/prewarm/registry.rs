//! All jobs of a node: idempotent by content, bounded in number, remembered for a while after they end.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::Stream;
use tokio::sync::Semaphore;

use super::Config;
use super::job::{Job, JobError};
use super::warm::warm;
use super::wire::{JobState, JobView, PrewarmRequest, Priority, Tier};
use crate::base::ErrorKind;
use crate::base::lifecycle::Gate;
use crate::model::source::Origin;
use crate::model::{OriginId, Reference, Tenant};
use crate::store::{Pin, Store};
use crate::telemetry::metrics::{Metrics, Which};
use crate::transfer::{Fetcher, Request};

/// Longest wait of one answer; a caller that wants more asks again.
const WAIT_LIMIT: Duration = Duration::from_secs(600);

/// Between two snapshots of an event stream, at most; a client takes longer silence for a hang.
const EVENT_EVERY: Duration = Duration::from_millis(250);

/// The jobs of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Jobs {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: Config,
    store: Store,
    fetcher: Fetcher,
    metrics: Arc<Metrics>,
    gate: Gate,
    running: Arc<Semaphore>,
    table: Mutex<Table>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    jobs: HashMap<String, Arc<Job>>,
    /// The job that works on a content now.
    active: HashMap<(Tenant, String, Tier), Arc<Job>>,
    /// Ended jobs, oldest first.
    history: VecDeque<String>,
}

/// What came of a request.
#[derive(Clone, Debug)]
pub enum Submitted {
    /// The job, new or joined.
    Job(Box<JobView>),
    /// Too many wait.
    Full,
}

// === impl Jobs ===

impl Jobs {
    /// No jobs yet. `gate` ends them at shutdown.
    #[must_use]
    pub fn new(config: Config, store: Store, fetcher: Fetcher, metrics: Arc<Metrics>, gate: Gate) -> Self {
        let running = Arc::new(Semaphore::new(config.running_max.max(1)));
        let inner = Inner {
            config,
            store,
            fetcher,
            metrics,
            gate,
            running,
            table: Mutex::default(),
            // Ids of one daemon's life do not repeat those of the last.
            next: AtomicU64::new(
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64),
            ),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Starts a job, or joins the one that already works on the same content.
    pub fn submit(
        &self,
        tenant: Tenant,
        reference: &Reference,
        origin_id: OriginId,
        origin: Arc<dyn Origin>,
        request: &PrewarmRequest,
    ) -> Submitted {
        let inner = &self.inner;
        let canonical = reference.to_string();
        let priority = request.priority.unwrap_or(Priority::Prefetch);
        let lease =
            request.lease_seconds.unwrap_or(inner.config.lease.0.as_secs()).min(inner.config.lease_max.0.as_secs());
        let deadline = request
            .deadline_seconds
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok())
            .and_then(|wait| Instant::now().checked_add(wait));
        let key = (tenant.clone(), canonical.clone(), request.tier);
        let job = {
            let mut table = inner.table();
            if let Some(job) = table.active.get(&key).filter(|job| !job.is_over() && !job.cancel.is_cancelled()) {
                job.join(priority, deadline, lease);
                return Submitted::Job(Box::new(job.view(&inner.store)));
            }
            if table.active.len() >= inner.config.running_max + inner.config.queued_max {
                return Submitted::Full;
            }
            let id = format!("job-{:013x}", inner.next.fetch_add(1, Ordering::Relaxed));
            let job = Arc::new(Job::new(id.clone(), canonical, request.tier, priority, lease));
            job.join(priority, deadline, lease);
            table.jobs.insert(id, Arc::clone(&job));
            table.active.insert(key.clone(), Arc::clone(&job));
            job
        };
        inner.count();
        let (this, reference) = (Arc::clone(inner), reference.clone());
        let task = Arc::clone(&job);
        inner.gate.spawn("job", async move {
            let work = this.work(&task, tenant, reference, origin_id, origin);
            let outcome = crate::base::lifecycle::supervise("job", work).await.unwrap_or_else(|panicked| {
                tracing::error!(job = %task.id, %panicked, "a job panicked");
                Err(JobError::Panicked)
            });
            match outcome {
                Ok(resident) => task.ready(resident),
                Err(error) => {
                    if !matches!(
                        error.kind(),
                        ErrorKind::Cancelled | ErrorKind::NotFound | ErrorKind::Invalid | ErrorKind::Denied
                    ) {
                        tracing::warn!(job = %task.id, reference = %task.reference, %error, "job failed");
                    }
                    task.failed(&error);
                }
            }
            this.ended(&key, &task);
        });
        Submitted::Job(Box::new(job.view(&inner.store)))
    }

    /// A job by its id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<JobView> {
        let job = self.inner.table().jobs.get(id).cloned()?;
        Some(job.view(&self.inner.store))
    }

    /// All jobs that are remembered, newest first.
    #[must_use]
    pub fn list(&self) -> Vec<JobView> {
        let mut jobs: Vec<Arc<Job>> = self.inner.table().jobs.values().cloned().collect();
        jobs.sort_by(|one, other| other.id.cmp(&one.id));
        jobs.iter().map(|job| job.view(&self.inner.store)).collect()
    }

    /// Calls a job off. Ended ones stay as they are.
    #[must_use]
    pub fn cancel(&self, id: &str) -> Option<JobView> {
        let job = self.inner.table().jobs.get(id).cloned()?;
        job.cancel.cancel();
        Some(job.view(&self.inner.store))
    }

    /// Waits until a job has ended, but no longer than ten minutes.
    pub async fn wait(&self, id: &str) -> Option<JobView> {
        let job = self.inner.table().jobs.get(id).cloned()?;
        let mut changes = job.changes();
        let over = async {
            while !job.is_over() {
                if changes.changed().await.is_err() {
                    break;
                }
            }
        };
        // On time-out the job is answered as it stands.
        let _ = tokio::time::timeout(WAIT_LIMIT, over).await;
        Some(job.view(&self.inner.store))
    }

    /// Snapshots of a job, at least four a second while it runs, until it has ended.
    #[must_use]
    pub fn watch(&self, id: &str) -> Option<impl Stream<Item = JobView> + Send + 'static> {
        let job = self.inner.table().jobs.get(id).cloned()?;
        let store = self.inner.store.clone();
        let changes = job.changes();
        Some(futures_util::stream::unfold(Some((job, store, changes, true)), |state| async move {
            let (job, store, mut changes, first) = state?;
            if !first {
                // Either is a reason for a snapshot.
                let _ = tokio::time::timeout(EVENT_EVERY, changes.changed()).await;
            }
            let view = job.view(&store);
            let over = !matches!(view.state, JobState::Queued | JobState::Running);
            Some((view, (!over).then_some((job, store, changes, false))))
        }))
    }
}

// === impl Inner ===

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn work(
        &self,
        job: &Arc<Job>,
        tenant: Tenant,
        reference: Reference,
        origin_id: OriginId,
        origin: Arc<dyn Origin>,
    ) -> Result<Option<u64>, JobError> {
        // A shutdown calls every job off.
        let (stop, cancel) = (self.gate.token(), job.cancel.clone());
        let link = tokio::spawn(async move {
            stop.cancelled().await;
            cancel.cancel();
        });
        let outcome = tokio::select! {
            () = job.cancel.cancelled() => Err(JobError::Cancelled),
            place = Arc::clone(&self.running).acquire_owned() => {
                let _place = place;
                self.fetch_and_warm(job, tenant, reference, origin_id, origin).await
            }
        };
        link.abort();
        outcome
    }

    async fn fetch_and_warm(
        &self,
        job: &Arc<Job>,
        tenant: Tenant,
        reference: Reference,
        origin_id: OriginId,
        origin: Arc<dyn Origin>,
    ) -> Result<Option<u64>, JobError> {
        // A blob that is found corrupt while warming is fetched once more; twice in a row is a broken disk.
        for attempt in 0..2 {
            job.run("transfer");
            let request = Request {
                tenant: tenant.clone(),
                reference: reference.clone(),
                origin: Arc::clone(&origin),
                origin_id: origin_id.clone(),
                resolved: None,
                asked_by: None,
                priority: job.priority(),
                progress: Arc::clone(&job.progress),
                cancel: job.cancel.clone(),
            };
            let fetched = self.fetcher.fetch(request).await?;
            self.lease(job, &tenant, &fetched.model).await?;
            job.fetched(&fetched.model, fetched.warnings);
            if job.tier == Tier::Disk {
                return Ok(None);
            }
            job.run("warm");
            let manifest = self.store.manifest(&fetched.model.record.manifest);
            let (store, task) = (self.store.clone(), Arc::clone(job));
            let warmed = tokio::task::spawn_blocking(move || {
                let manifest = manifest.ok_or(JobError::Cancelled)?;
                warm(&store, &manifest, &task.warmed_bytes, &|| task.cancel.is_cancelled())
            })
            .await
            .map_err(|_| JobError::Panicked)?;
            match warmed {
                Err(error) if error.kind() == ErrorKind::Corrupt && attempt == 0 => {
                    self.metrics.corrupt.get_or_create(&Which { which: "warm" }).inc();
                    tracing::warn!(job = %job.id, %error, "found while warming; fetching again");
                }
                Err(error) => return Err(error),
                Ok(warmed) if warmed.resident < warmed.total => {
                    return Err(JobError::NotResident {
                        resident: crate::base::units::ByteSize(warmed.resident),
                        total: crate::base::units::ByteSize(warmed.total),
                    });
                }
                Ok(warmed) => return Ok(Some(warmed.resident)),
            }
        }
        Err(JobError::Panicked)
    }

    /// From the answer to the engine's first open the tree must not go.
    async fn lease(&self, job: &Job, tenant: &Tenant, model: &crate::store::Model) -> Result<(), JobError> {
        let seconds = job.lease_seconds();
        if seconds == 0 {
            return Ok(());
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let expires_at = now + seconds;
        // One lease a model from this door: the longest of those asked for.
        let id = "prewarm";
        if model.pins.iter().any(|pin| pin.id == id && pin.expires_at.is_some_and(|until| until + 30 >= expires_at)) {
            return Ok(());
        }
        let pin = Pin { id: id.to_owned(), reason: format!("asked for by {}", job.id), expires_at: Some(expires_at) };
        let (store, tenant, id) = (self.store.clone(), tenant.clone(), model.record.id.clone());
        tokio::task::spawn_blocking(move || store.pin(&tenant, &id, pin)).await.map_err(|_| JobError::Panicked)??;
        Ok(())
    }

    fn ended(&self, key: &(Tenant, String, Tier), job: &Arc<Job>) {
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
