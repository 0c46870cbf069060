//! Bundles of compiled engines that a job brings beside its models, by their engine keys. A replica starts without them too, only
//! slower: so one that is not to be had is told and fails nothing.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::job::Job;
use super::registry::Inner;
use super::wire::{Basis, Estimate, EtaSeconds};
use crate::digest::Hash;
use crate::engines::{Fetching, Missing, Prewarmed};
use crate::model::Tenant;

/// What a shared origin gives where none has been measured: a bucket to one node over a few connections.
const ASSUMED_BYTES_A_SECOND: f64 = 50_000_000.0;
/// The spread of an assumption.
const SPREAD: f64 = 3.0;
/// And of what was measured: buckets vary by half from one minute to the next.
const MEASURED_SPREAD: f64 = 1.5;
/// Between two looks at a fetch: who draws a bar does so as often.
const LOOK: Duration = Duration::from_millis(500);

/// How far a bundle of a job has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum EngineState {
    /// Waits for the job's place.
    #[default]
    Queued,
    /// Is looked for, or on its way.
    Fetching,
    /// May be restored now.
    Ready,
    /// There is none for the key.
    Absent,
    /// There is one and it may not be restored: see `why`.
    Refused,
    /// It could not be brought: see `why`.
    Failed,
}

/// One engine key of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EngineView {
    /// The key.
    #[schema(value_type = String)]
    pub key: Hash,
    /// How far it has come.
    pub state: EngineState,
    /// The bundle, once it is here.
    pub bundle: Option<String>,
    /// Its size.
    pub bytes: u64,
    /// What of it is on the node.
    #[serde(default)]
    pub bytes_done: u64,
    /// Why it is not restored.
    pub why: Option<String>,
}

impl Default for EngineView {
    fn default() -> Self {
        Self {
            key: Hash::from_bytes([0; 32]),
            state: EngineState::default(),
            bundle: None,
            bytes: 0,
            bytes_done: 0,
            why: None,
        }
    }
}

/// One engine key of a job.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) key: Hash,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    view: EngineView,
    /// Bytes a second that are coming.
    rate: f64,
    /// What it is expected to take, from when on.
    expected: Option<(EtaSeconds, Instant)>,
}

// === impl Compiled ===

impl Compiled {
    pub(super) fn new(key: Hash) -> Self {
        let view = EngineView { key, ..EngineView::default() };
        Self { key, state: Mutex::new(State { view, rate: 0.0, expected: None }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn view(&self) -> EngineView {
        self.state().view.clone()
    }

    /// Bytes a second that are coming now.
    pub(super) fn rate(&self) -> u64 {
        self.state().rate as u64
    }

    fn change(&self, change: impl FnOnce(&mut EngineView)) {
        let mut state = self.state();
        change(&mut state.view);
        let here = state.view.state == EngineState::Ready;
        state.view.bytes_done = if here { state.view.bytes } else { state.view.bytes_done };
        state.rate = 0.0;
    }

    /// What it would take, before anything has come.
    fn expect(&self, missing: &Missing) {
        let mut state = self.state();
        (state.view.bytes, state.view.bytes_done) = (missing.bytes, missing.bytes - missing.missing.min(missing.bytes));
        state.expected = Some((taking(missing), Instant::now()));
    }

    /// How far it is.
    fn progress(&self, now: &Fetching) {
        let mut state = self.state();
        (state.view.bytes, state.view.bytes_done, state.rate) = (now.bytes_total, now.bytes_done, now.bytes_per_second);
        if now.bytes_per_second > 0.0 {
            let left = now.bytes_total.saturating_sub(now.bytes_done) as f64 / now.bytes_per_second;
            state.expected = Some((EtaSeconds { p50: left, p90: left * MEASURED_SPREAD }, Instant::now()));
        }
    }

    /// Seconds until it is here, or known not to come; `None`: that cannot be told.
    pub(super) fn eta(&self) -> Option<EtaSeconds> {
        let state = self.state();
        if !matches!(state.view.state, EngineState::Queued | EngineState::Fetching) {
            return Some(EtaSeconds { p50: 0.0, p90: 0.0 });
        }
        let (EtaSeconds { p50, p90 }, at) = state.expected?;
        // One that waits for those before it is expected to take as long as at first.
        let gone = if state.view.state == EngineState::Fetching { at.elapsed().as_secs_f64() } else { 0.0 };
        Some(EtaSeconds { p50: (p50 - gone).max(0.0), p90: (p90 - gone).max(0.0) })
    }
}

// === impl Inner ===

impl Inner {
    /// Brings the bundles of a job; returns when each is here or known not to come.
    pub(super) async fn compiled(&self, job: &Job, scope: &Tenant) {
        let Some(engines) = self.engines.get().filter(|_| !job.compiled.is_empty()) else { return };
        tokio::select! {
            () = job.cancel.cancelled() => return,
            () = self.expect(job, scope) => {}
        }
        for compiled in &job.compiled {
            compiled.change(|view| view.state = EngineState::Fetching);
            job.touch();
            let brought = engines.prewarm(scope, &compiled.key);
            tokio::pin!(brought);
            let mut look = tokio::time::interval(LOOK);
            let outcome = loop {
                tokio::select! {
                    biased;
                    () = job.cancel.cancelled() => return,
                    outcome = &mut brought => break outcome,
                    _ = look.tick() => if let Some(now) = engines.fetching(&compiled.key) {
                        compiled.progress(&now);
                    },
                }
            };
            compiled.change(|view| match outcome {
                Ok(Prewarmed::Here(bundle)) => {
                    (view.state, view.bytes, view.bundle) =
                        (EngineState::Ready, bundle.bytes, Some(bundle.id.to_string()));
                }
                Ok(Prewarmed::Absent) => view.state = EngineState::Absent,
                Ok(Prewarmed::Refused(why)) => {
                    (view.state, view.why) = (EngineState::Refused, Some(why));
                }
                Err(error) => (view.state, view.why) = (EngineState::Failed, Some(error.to_string())),
            });
            job.touch();
        }
    }

    /// What the bundles of a job would take goes into its estimate.
    async fn expect(&self, job: &Job, scope: &Tenant) {
        let Some(engines) = self.engines.get() else { return };
        let nothing = EtaSeconds { p50: 0.0, p90: 0.0 };
        let (seconds, queue_seconds, basis) = (Some(nothing), Some(nothing), Basis::Measured);
        let mut wanted = Wanted::default();
        for compiled in &job.compiled {
            if let Ok(Some(missing)) = engines.missing(scope, &compiled.key).await {
                compiled.expect(&missing);
                wanted.add(&missing);
            }
        }
        job.estimated(wanted.with(Estimate { seconds, queue_seconds, basis, ..Estimate::default() }));
    }

    /// Adds what the bundles of these keys would take.
    pub(super) async fn with_compiled(&self, scope: &Tenant, keys: &[Hash], estimate: Estimate) -> Estimate {
        let Some(engines) = self.engines.get() else { return estimate };
        let mut wanted = Wanted::default();
        for key in keys {
            // What cannot be found out now is told by the job.
            if let Ok(Some(missing)) = engines.missing(scope, key).await {
                wanted.add(&missing);
            }
        }
        wanted.with(estimate)
    }
}

/// What the bundles of a job take together: they come one after the other.
#[derive(Debug, Default)]
struct Wanted {
    bytes: u64,
    missing: u64,
    p50: f64,
    p90: f64,
    assumed: bool,
}

impl Wanted {
    fn add(&mut self, missing: &Missing) {
        let EtaSeconds { p50, p90 } = taking(missing);
        self.bytes += missing.bytes;
        self.missing += missing.missing;
        (self.p50, self.p90) = (self.p50 + p50, self.p90 + p90);
        self.assumed |= missing.missing > 0 && missing.bytes_per_second.is_none();
    }

    fn with(self, mut estimate: Estimate) -> Estimate {
        estimate.bytes_total += self.bytes;
        estimate.bytes_missing.disk += self.missing;
        // They come beside the models, not after them.
        estimate.seconds =
            estimate.seconds.map(|eta| EtaSeconds { p50: eta.p50.max(self.p50), p90: eta.p90.max(self.p90) });
        if self.assumed {
            estimate.basis = estimate.basis.max(Basis::Prior);
        }
        estimate
    }
}

/// What one takes by the rate of the last, or by what is assumed.
fn taking(missing: &Missing) -> EtaSeconds {
    let (rate, spread) =
        missing.bytes_per_second.map_or((ASSUMED_BYTES_A_SECOND, SPREAD), |rate| (rate, MEASURED_SPREAD));
    let seconds = missing.missing as f64 / rate;
    EtaSeconds { p50: seconds, p90: seconds * spread }
}

/// What the bundles of a job still take: one after the other. `None`: that cannot be told.
pub(super) fn left(all: &[Compiled]) -> Option<EtaSeconds> {
    all.iter().map(Compiled::eta).try_fold(EtaSeconds { p50: 0.0, p90: 0.0 }, |sum, eta| {
        let eta = eta?;
        Some(EtaSeconds { p50: sum.p50 + eta.p50, p90: sum.p90 + eta.p90 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing(bytes: u64, missing: u64, rate: Option<f64>) -> Missing {
        Missing { bytes, missing, bytes_per_second: rate }
    }

    #[test]
    fn bundles_take_their_time_one_after_the_other() {
        let all = [Compiled::new(Hash::of(b"a")), Compiled::new(Hash::of(b"b"))];
        assert_eq!(left(&all), None, "nothing is known yet");
        all[0].expect(&missing(1000, 1000, Some(100.0)));
        all[1].expect(&missing(500, 250, Some(100.0)));
        assert_eq!(left(&all).map(|eta| (eta.p50, eta.p90)), Some((12.5, 18.75)));
        assert_eq!(all[1].view().bytes_done, 250);
        all[0].change(|view| view.state = EngineState::Fetching);
        all[0].progress(&Fetching { bytes_total: 1000, bytes_done: 800, bytes_per_second: 50.0 });
        let eta = left(&all).unwrap();
        assert!((6.0..=6.5).contains(&eta.p50), "{eta:?}");
        assert_eq!((all[0].view().bytes_done, all[0].rate()), (800, 50));
        all[0].change(|view| view.state = EngineState::Ready);
        assert_eq!((all[0].view().bytes_done, all[0].rate(), left(&all).unwrap().p50), (1000, 0, 2.5));
        // One that is not to be had is not waited for.
        all[1].change(|view| view.state = EngineState::Absent);
        assert_eq!(left(&all).unwrap().p90, 0.0);
    }

    #[test]
    fn an_estimate_waits_for_the_slower_of_models_and_bundles() {
        let mut wanted = Wanted::default();
        wanted.add(&missing(1000, 1000, Some(100.0)));
        wanted.add(&missing(1000, 1000, Some(100.0)));
        let models = |p50| Estimate {
            seconds: Some(EtaSeconds { p50, p90: 2.0 * p50 }),
            basis: Basis::Measured,
            bytes_total: 7,
            ..Estimate::default()
        };
        let whole = wanted.with(models(3.0));
        assert_eq!((whole.seconds.unwrap().p50, whole.bytes_total, whole.basis), (20.0, 2007, Basis::Measured));
        let mut assumed = Wanted::default();
        assumed.add(&missing(10, 10, None));
        let whole = assumed.with(models(3.0));
        assert_eq!((whole.seconds.unwrap().p50, whole.basis), (3.0, Basis::Prior));
    }
}
