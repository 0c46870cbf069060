//! Bytes in motion: from a source that is only known as [`RangeSource`](crate::model::source::RangeSource) to blobs in the
//! store.
//!
//! A *fetch* resolves its reference, finds what is here already, promises space for the rest, and joins or begins a *flight*
//! for each distinct content. All flights hand their missing groups to one *schedule*, a pure decider that knows every file,
//! lane and connection and says which bytes are asked for next; one task drives it. A connection works on one *part* at a
//! time, and hands groups to threads that hash and write them. Files of up to 8 MiB are held whole until they are checked.
//!
//! Turned down: a pool of connections for each fetch. Sixteen fetches of sixteen models would open 256 connections, a demand
//! could not take bandwidth from a prefetch, and an origin that asks for less would be heard by one of them only.

mod arrived;
mod backoff;
mod climb;
mod config;
mod digests;
mod error;
mod flight;
mod flow;
mod gear;
mod job;
mod leader;
mod missing;
mod observed;
mod pace;
mod plan;
mod progress;
mod pump;
mod rate;
mod resolve;
mod schedule;
mod sink;
mod span;
mod stall;
mod stream;
mod tally;

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

pub use config::{Config, ConfigError};
pub use error::TransferError;
pub use missing::Missing;
pub use observed::OriginRate;
pub use progress::{Mark, Progress, ProgressSnapshot, Stage};
pub use rate::Eta;

use crate::base::ErrorKind;
use crate::base::lifecycle::{CancellationToken, Gate};
use crate::model::source::{Origin, RemoteFile, Resolution, SourceError};
use crate::model::{OriginId, Reference, Tenant};
use crate::store::{Model, Store};
use crate::telemetry::metrics::{Ended, Metrics, Outcome, Which};
use flight::Flights;
use gear::Gear;
use job::Job;
use pump::Pump;
use schedule::LaneId;

/// Who waits for a transfer.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// A process that is starting.
    #[default]
    Demand,
    /// Nobody yet.
    Prefetch,
}

/// Fetches models into one store. Cheap to clone; all clones share connections, memory and flights.
#[derive(Clone, Debug)]
pub struct Fetcher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    gear: Arc<Gear>,
    pump: Pump,
    flights: Arc<Flights>,
    gate: Gate,
    /// See [`Job::begin`].
    planning: Mutex<()>,
    /// One publication at a time.
    publishing: Mutex<()>,
}

/// What is to be fetched, for whom.
#[derive(Debug)]
pub struct Request {
    /// Whose store.
    pub tenant: Tenant,
    /// What.
    pub reference: Reference,
    /// Where from.
    pub origin: Arc<dyn Origin>,
    /// What the reference has just been resolved to, where somebody has asked already.
    pub resolved: Option<Resolution>,
    /// Whose quota the bytes count against, where that is not `tenant`: public content is everybody's.
    pub asked_by: Option<Tenant>,
    /// The identity of `origin`.
    pub origin_id: OriginId,
    /// How urgent.
    pub priority: Priority,
    /// Written by the fetch, read by whoever wants to know.
    pub progress: Arc<Progress>,
    /// Calls the fetch off; transfers that others wait for go on.
    pub cancel: CancellationToken,
}

/// A fetch that has succeeded.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The model, readable; durable once the store has sealed it.
    pub model: Model,
    /// Body bytes that the origin sent for this fetch. Of those that wait for one transfer, the first has them all.
    pub origin_bytes: u64,
    /// Bytes that were here already.
    pub reused_bytes: u64,
    /// For people.
    pub warnings: Vec<String>,
}

/// How often the rate is sampled.
const SAMPLE: Duration = Duration::from_millis(250);

// === impl Fetcher ===

impl Fetcher {
    /// Starts the threads and the schedule; needs a tokio runtime. `config` has been checked.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(store: Store, metrics: Arc<Metrics>, config: Config) -> std::io::Result<Self> {
        let gear = Arc::new(Gear::new(store, metrics, config)?);
        let pump = Pump::start(Arc::clone(&gear));
        let inner = Inner {
            gear,
            pump,
            flights: Arc::default(),
            gate: Gate::default(),
            planning: Mutex::default(),
            publishing: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Makes the model of a reference readable.
    ///
    /// Dropping the future, like cancelling, keeps what has arrived for the next fetch.
    ///
    /// # Errors
    /// [`TransferError`]; [`TransferError::Cancelled`] also once [`Fetcher::drain`] has begun.
    pub async fn fetch(&self, request: Request) -> Result<Fetched, TransferError> {
        let begun = Instant::now();
        let outcome = self.sampled(&request).await;
        let metrics = &self.inner.gear.metrics;
        let ended = match &outcome {
            Ok(_) => Outcome::Done,
            Err(error) if error.kind() == ErrorKind::Cancelled => Outcome::Cancelled,
            Err(_) => Outcome::Failed,
        };
        metrics.fetches.get_or_create(&Ended { outcome: ended }).inc();
        metrics.fetch_seconds.get_or_create(&Which { which: "total" }).observe(begun.elapsed().as_secs_f64());
        if let Ok(fetched) = &outcome
            && fetched.origin_bytes > 0
        {
            let lane = LaneId::of(&request.origin_id);
            let edges = request.progress.edges();
            self.inner.gear.observed.transferred(lane, fetched.origin_bytes, begun.elapsed(), edges, Instant::now());
        }
        outcome
    }

    /// The model of a reference that names its revision, if it is here; no origin is asked.
    ///
    /// # Errors
    /// [`TransferError::Store`]
    pub async fn find(&self, request: &Request) -> Result<Option<Fetched>, TransferError> {
        Job { fetcher: &self.inner, request }.here().await
    }

    /// Asks an origin through `ask`, again while its failure may pass.
    ///
    /// # Errors
    /// [`TransferError::Source`] with the last failure.
    pub async fn patiently<T, F>(
        &self,
        reference: &Reference,
        origin: &OriginId,
        ask: impl FnMut() -> F,
    ) -> Result<T, TransferError>
    where
        F: Future<Output = Result<T, SourceError>>,
    {
        let begun = Instant::now();
        let outcome = resolve::patiently(&self.inner.gear, reference, ask).await;
        let took = begun.elapsed();
        let gear = &self.inner.gear;
        gear.metrics.fetch_seconds.get_or_create(&Which { which: "resolve" }).observe(took.as_secs_f64());
        if outcome.is_ok() {
            gear.observed.resolved(LaneId::of(origin), took, Instant::now());
        }
        outcome
    }

    async fn sampled(&self, request: &Request) -> Result<Fetched, TransferError> {
        let job = Job { fetcher: &self.inner, request };
        let mut work = std::pin::pin!(job.run());
        let mut ticker = tokio::time::interval(SAMPLE);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let draining = self.inner.gate.token();
        loop {
            tokio::select! {
                outcome = &mut work => return outcome,
                () = request.cancel.cancelled() => return Err(TransferError::Cancelled),
                () = draining.cancelled() => return Err(TransferError::Cancelled),
                _ = ticker.tick() => {
                    let progress = &request.progress;
                    progress.sample(Instant::now());
                    if progress.stage() == Stage::Transfer && progress.is_whole() {
                        progress.enter(Stage::Verify);
                    }
                }
            }
        }
    }

    /// What of these files would have to be fetched for a scope.
    ///
    /// # Errors
    /// [`TransferError::Defect`]
    pub async fn missing(
        &self,
        scope: &Tenant,
        origin: &OriginId,
        files: Vec<RemoteFile>,
    ) -> Result<Missing, TransferError> {
        let (flights, scope, origin) = (Arc::clone(&self.inner.flights), scope.clone(), origin.clone());
        let look = move |store: &Store| Ok(missing::missing(store, &flights, &scope, &origin, &files));
        self.inner.gear.ask("an estimate", look).await
    }

    /// What the server of an origin has been seen to give; `None` if nothing was ever fetched from it.
    #[must_use]
    pub fn rate_of(&self, origin: &OriginId) -> Option<OriginRate> {
        self.inner.gear.observed.of(LaneId::of(origin), Instant::now())
    }

    /// What servers give in general, by those that something was fetched from.
    #[must_use]
    pub fn rate_of_any(&self) -> Option<OriginRate> {
        self.inner.gear.observed.of_any(Instant::now())
    }

    /// Transfers under way.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.inner.flights.len()
    }

    /// Calls every fetch off and waits until what has arrived is kept.
    pub async fn drain(&self) {
        self.inner.gate.close().await;
    }
}
