//! The keep-warm list of the configuration: models that are here without anybody asking, by kind of GPU. A node that does not
//! exist yet cannot be asked to prewarm, and a new one is wanted most when all the others are busy.
//!
//! Each entry is an ordinary job of the operator's that is submitted again every `prewarm.keep_warm_refresh`: that resolves a
//! moving reference anew, renews the lease, and costs nothing for what is here. While the origin is down it is tried sooner, with
//! growing pauses, and what the reference last stood for keeps its lease.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::config::KeepWarm;
use super::registry::{Jobs, Submission, Submitted};
use super::wire::{JobState, JobView, PrewarmRequest, Priority, Tier};
use super::work::pin_id;
use crate::access::Identity;
use crate::base::ErrorKind;
use crate::model::Reference;
use crate::store::{Model, Pin};
use crate::sys::host::HostFacts;

/// How often a node that has not the GPU is looked at again: its driver may be installed after the daemon has started.
const GPU_EVERY: Duration = Duration::from_secs(30);

/// The first pause after a failure that may pass.
const RETRY_FIRST: Duration = Duration::from_secs(2);

/// How long until an entry is asked for again. Pure.
#[derive(Debug, Default)]
struct Pauses {
    failures: u32,
}

// === impl Pauses ===

impl Pauses {
    /// After an attempt: `None` if it went well.
    fn after(&mut self, failed: Option<ErrorKind>, refresh: Duration) -> Duration {
        if !failed.is_some_and(may_pass) {
            self.failures = 0;
            return refresh;
        }
        let pause = RETRY_FIRST.saturating_mul(2_u32.saturating_pow(self.failures));
        self.failures = self.failures.saturating_add(1);
        pause.min(refresh)
    }
}

/// Whether trying again soon may help.
fn may_pass(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Busy | ErrorKind::Cancelled)
}

// === impl KeepWarm ===

impl KeepWarm {
    fn request(&self, refresh: Duration) -> PrewarmRequest {
        let lease = self.lease.map_or(refresh * 3, |lease| lease.0).as_secs().max(1);
        PrewarmRequest {
            tier: self.tier.unwrap_or(Tier::Memory),
            priority: Some(self.priority.unwrap_or(Priority::Prefetch)),
            lease_seconds: Some(if self.pin.is_some() { 0 } else { lease }),
            pin: self.pin.clone(),
            ..PrewarmRequest::default()
        }
    }
}

// === impl Jobs ===

impl Jobs {
    /// Looks after the keep-warm list until shutdown, as `operator`.
    pub fn keep_warm(&self, operator: &Identity) {
        for entry in self.inner().config.kept_warm().cloned() {
            let (jobs, operator) = (self.clone(), operator.clone());
            self.inner().gate.spawn("keep warm", async move { jobs.keep_one(entry, operator).await });
        }
    }

    async fn keep_one(self, entry: KeepWarm, operator: Identity) {
        let inner = self.inner();
        let stop = inner.gate.token();
        // Refused before the daemon started, if it cannot be one.
        let references: Vec<Reference> = entry.texts().iter().filter_map(|text| text.parse().ok()).collect();
        let refresh = inner.config.keep_warm_refresh.0;
        let request = entry.request(refresh);
        let mut last = references.iter().filter_map(|reference| self.newest(reference)).collect::<Vec<Model>>();
        let (mut pauses, mut before, mut told) = (Pauses::default(), None::<String>, String::new());
        while !stop.is_cancelled() {
            let gpus = tokio::task::spawn_blocking(|| HostFacts::read().gpus).await.unwrap_or_default();
            let pause = if entry.is_for(&gpus) {
                let (identity, references) = (operator.clone(), references.clone());
                let submission = Submission { identity, references, request: request.clone() };
                let failed = match self.keep(submission) {
                    Submitted::Full => Some((ErrorKind::Busy, "too many jobs wait on this node".to_owned())),
                    Submitted::Job(view) => {
                        let ended = tokio::select! {
                            ended = self.ended_of(&operator, &view.id) => ended,
                            () = stop.cancelled() => return,
                        };
                        // The list is asked for every few minutes: of each entry one job is remembered.
                        if let Some(before) = before.replace(view.id.clone()).filter(|before| *before != view.id) {
                            self.forget(&before);
                        }
                        let ready = ended.as_ref().is_some_and(|view| view.state == JobState::Ready);
                        if ready {
                            last = self.models_of(&view.id);
                        }
                        failure(ended)
                    }
                };
                match &failed {
                    Some((kind, detail)) => {
                        // Once, and again when it is another.
                        if *detail != told {
                            tracing::warn!(reference = %entry.texts().join(" "), %detail, "an entry of prewarm.keep_warm is not ready");
                            told.clone_from(detail);
                        }
                        if may_pass(*kind) {
                            self.renew(&last, &request).await;
                        }
                    }
                    None => told.clear(),
                }
                pauses.after(failed.map(|(kind, _)| kind), refresh)
            } else {
                GPU_EVERY.min(refresh)
            };
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(spread(pause)) => {}
            }
        }
    }

    /// What a reference stood for when it was last published here.
    fn newest(&self, reference: &Reference) -> Option<Model> {
        let text = reference.to_string();
        let models = self.inner().store.models().into_iter().filter(|model| model.record.reference == text);
        models.max_by_key(|model| model.record.published_at)
    }

    /// Renews what a job that cannot reach its origin would renew.
    async fn renew(&self, models: &[Model], request: &PrewarmRequest) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let in_memory = request.tier == Tier::Memory;
        for model in models.iter().cloned() {
            let expires_at = request.lease_seconds.filter(|seconds| *seconds > 0).map(|seconds| now + seconds);
            let id = request.pin.clone().unwrap_or_else(|| pin_id(request.tier).to_owned());
            if request.pin.is_none() && expires_at.is_none() {
                continue;
            }
            let pin = Pin { id, reason: "kept warm while its origin is down".to_owned(), expires_at, in_memory };
            let store = self.inner().store.clone();
            let work = move || store.pin(&model.record.tenant, &model.record.id, pin);
            match tokio::task::spawn_blocking(work).await {
                // Evicted meanwhile: it comes with the origin.
                Ok(Err(error)) if error.kind() == ErrorKind::NotFound => {}
                Ok(Err(error)) => tracing::warn!(%error, "a lease of the keep-warm list is not renewed"),
                _ => {}
            }
        }
    }
}

/// Why an attempt failed, if it did.
fn failure(view: Option<JobView>) -> Option<(ErrorKind, String)> {
    let gone = || (ErrorKind::Internal, "its job is not known any more".to_owned());
    let Some(view) = view else { return Some(gone()) };
    match view.state {
        JobState::Ready => None,
        _ => {
            let error = view.error.unwrap_or_default();
            Some((error.kind.unwrap_or(ErrorKind::Internal), error.detail))
        }
    }
}

/// Up to a tenth more, so that a thousand nodes that have started together do not ask together.
fn spread(pause: Duration) -> Duration {
    // Every hasher of the standard library is keyed at random.
    let noise = RandomState::new().build_hasher().finish() % 1000;
    pause + pause.mul_f64(noise as f64 / 10_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::Span;

    #[test]
    fn what_may_pass_is_tried_soon_and_then_less_often() {
        let refresh = Duration::from_secs(300);
        let mut pauses = Pauses::default();
        let down = Some(ErrorKind::Unavailable);
        let waits: Vec<u64> = (0..10).map(|_| pauses.after(down, refresh).as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        assert_eq!(pauses.after(None, refresh), refresh);
        assert_eq!(pauses.after(Some(ErrorKind::Denied), refresh), refresh);
        assert_eq!(pauses.after(down, refresh).as_secs(), 2, "it begins anew");
        for _ in 0..100 {
            pauses.after(down, refresh);
        }
        let pause = spread(refresh);
        assert!(pause >= refresh && pause <= refresh.mul_f64(1.1), "{pause:?}");
    }

    #[test]
    fn an_entry_is_a_request_with_a_lease_or_a_pin() {
        let refresh = Duration::from_secs(300);
        let plain = KeepWarm { reference: "hf://org/m".to_owned(), ..KeepWarm::default() };
        let request = plain.request(refresh);
        assert_eq!((request.tier, request.lease_seconds, request.pin), (Tier::Memory, Some(900), None));
        let leased = KeepWarm { lease: Some(Span(Duration::from_secs(60))), tier: Some(Tier::Disk), ..plain.clone() };
        assert_eq!((leased.request(refresh).tier, leased.request(refresh).lease_seconds), (Tier::Disk, Some(60)));
        let pinned = KeepWarm { pin: Some("live".to_owned()), ..plain };
        assert_eq!(
            (pinned.request(refresh).lease_seconds, pinned.request(refresh).pin.as_deref()),
            (Some(0), Some("live"))
        );
    }
}
