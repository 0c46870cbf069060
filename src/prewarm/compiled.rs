//! Bundles of compiled engines that a job brings beside its models, by their engine keys. A replica starts without them too, only
//! slower: so one that is not to be had is told and fails nothing.

use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::job::Job;
use super::registry::Inner;
use super::wire::{Basis, Estimate, EtaSeconds};
use crate::digest::Hash;
use crate::engines::Prewarmed;
use crate::model::Tenant;

/// What a shared origin gives where none has been measured: a bucket to one node over a few connections.
const ASSUMED_BYTES_A_SECOND: f64 = 50_000_000.0;
/// The spread of an assumption.
const SPREAD: f64 = 3.0;

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
    /// Why it is not restored.
    pub why: Option<String>,
}

impl Default for EngineView {
    fn default() -> Self {
        Self { key: Hash::from_bytes([0; 32]), state: EngineState::default(), bundle: None, bytes: 0, why: None }
    }
}

/// One engine key of a job.
#[derive(Debug)]
pub(super) struct Compiled {
    pub(super) key: Hash,
    view: Mutex<EngineView>,
}

// === impl Compiled ===

impl Compiled {
    pub(super) fn new(key: Hash) -> Self {
        Self { key, view: Mutex::new(EngineView { key, ..EngineView::default() }) }
    }

    pub(super) fn view(&self) -> EngineView {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn change(&self, change: impl FnOnce(&mut EngineView)) {
        change(&mut self.view.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

// === impl Inner ===

impl Inner {
    /// Brings the bundles of a job; returns when each is here or known not to come.
    pub(super) async fn compiled(&self, job: &Job, scope: &Tenant) {
        let Some(engines) = self.engines.get() else { return };
        for compiled in &job.compiled {
            compiled.change(|view| view.state = EngineState::Fetching);
            job.touch();
            let outcome = tokio::select! {
                () = job.cancel.cancelled() => return,
                outcome = engines.prewarm(scope, &compiled.key) => outcome,
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

    /// Adds what the bundles of these keys would take.
    pub(super) async fn with_compiled(&self, scope: &Tenant, keys: &[Hash], mut estimate: Estimate) -> Estimate {
        let Some(engines) = self.engines.get() else { return estimate };
        for key in keys {
            // What cannot be found out now is told by the job.
            let Ok(Some(missing)) = engines.missing(scope, key).await else { continue };
            estimate.bytes_total += missing.bytes;
            estimate.bytes_missing.disk += missing.missing;
            if missing.missing == 0 {
                continue;
            }
            let (rate, spread) = missing.bytes_per_second.map_or((ASSUMED_BYTES_A_SECOND, SPREAD), |rate| (rate, 1.5));
            let seconds = missing.missing as f64 / rate;
            // It comes beside the models, not after them.
            estimate.seconds = estimate
                .seconds
                .map(|eta| EtaSeconds { p50: eta.p50.max(seconds), p90: eta.p90.max(seconds * spread) });
            if missing.bytes_per_second.is_none() {
                estimate.basis = estimate.basis.max(Basis::Prior);
            }
        }
        estimate
    }
}
