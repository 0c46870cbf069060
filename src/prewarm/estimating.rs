//! From what is asked to what an estimate goes by: resolves (which moves no model bytes), looks what is here, asks the transfers
//! for rates and the other jobs for what they still want. Starts nothing.

use super::Estimation;
use super::estimate::{FromServer, Other, Question, ToMemory, estimate};
use super::job::JobError;
use super::registry::{Inner, Jobs};
use super::wire::{Estimate, MissingBytes, Priority, Tier, Verdict};
use crate::access::Entered;
use crate::digest::Hash;
use crate::model::source::Resolution;
use crate::model::{ModelId, OriginId, Tenant};
use crate::store::Store;
use crate::sys::residency::resident_bytes;

// === impl Jobs ===

impl Jobs {
    /// How long it would take until all of it is ready.
    ///
    /// # Errors
    /// What the origin says; that the caller may not read it.
    pub async fn estimate(&self, asked: Estimation) -> Result<Estimate, JobError> {
        let inner = self.inner();
        let Estimation { identity, references, request } = asked;
        let priority = request.priority.unwrap_or(Priority::Prefetch);
        let mut whole: Option<Estimate> = None;
        for reference in &references {
            let origin_id = inner.access.origins().identity(reference);
            // What is here needs no origin.
            let known = reference.pinned().and_then(|revision| {
                inner.access.standing(&identity, reference).into_iter().find_map(|scope| {
                    let id = ModelId::new(&scope, &origin_id, &reference.selection, &revision);
                    inner.store.model(&scope, &id)
                })
            });
            let one = if let Some(model) = known {
                let hashes = inner
                    .store
                    .manifest(&model.record.manifest)
                    .map_or_else(Vec::new, |manifest| manifest.files().iter().map(|file| file.blake3).collect());
                let revision = model.record.revision.to_string();
                inner
                    .estimate_from(model.record.bytes, hashes, Vec::new(), revision.into(), request.tier, priority)
                    .await?
            } else {
                let ask = || inner.access.enter(&identity, reference, request.credential.as_ref());
                let Entered { scope, origin_id, resolution, .. } =
                    inner.fetcher.patiently(reference, &origin_id, ask).await?;
                inner.estimate_of(&scope, &origin_id, &resolution, request.tier, priority, "").await?
            };
            whole = Some(match whole {
                None => one,
                Some(before) => super::job::merge(before, one),
            });
        }
        let whole = whole.unwrap_or_default();
        let mut whole = inner.with_compiled(&identity.scope, &request.engine, whole).await;
        whole.deadline = request.deadline_seconds.map(|deadline| verdict(&whole, deadline));
        Ok(whole)
    }
}

/// Whether an estimate is within a deadline.
pub(super) fn verdict(estimate: &Estimate, deadline: f64) -> Verdict {
    match estimate.seconds {
        None => Verdict::Unknown,
        Some(eta) if eta.p90 <= deadline => Verdict::Met,
        Some(eta) if eta.p50 <= deadline => Verdict::AtRisk,
        Some(_) => Verdict::Missed,
    }
}

// === impl Inner ===

impl Inner {
    /// Of a reference that was just resolved. `job`: whose own transfers are none of somebody else.
    pub(super) async fn estimate_of(
        &self,
        scope: &Tenant,
        origin: &OriginId,
        resolution: &Resolution,
        tier: Tier,
        priority: Priority,
        job: &str,
    ) -> Result<Estimate, JobError> {
        let total = resolution.files.iter().map(|file| file.size).fold(0, u64::saturating_add);
        let missing = self.fetcher.missing(scope, origin, resolution.files.clone()).await?;
        let server = origin.server();
        let others = {
            let table = self.table();
            let running = table.active.values().filter(|other| other.id != job && !other.is_over());
            let wants = running.flat_map(|other| other.members.iter().map(|member| (other.priority(), member.left())));
            wants
                .filter_map(|(priority, left)| Some((priority, left?)))
                .filter(|(_, (from, _))| from.server() == server)
                .map(|(priority, (_, left))| Other { left, priority })
                .collect()
        };
        let rate = self.fetcher.rate_of(origin);
        let from = FromServer { server: server.to_owned(), missing: missing.bytes, rate, others };
        let revision = resolution.revision.as_ref().map(ToString::to_string);
        self.estimate_from(total, missing.here, vec![from], revision, tier, priority).await
    }

    async fn estimate_from(
        &self,
        total: u64,
        here: Vec<Hash>,
        servers: Vec<FromServer>,
        revision: Option<String>,
        tier: Tier,
        priority: Priority,
    ) -> Result<Estimate, JobError> {
        let missing: u64 = servers.iter().map(|server| server.missing).sum();
        let store = self.store.clone();
        let look = move || here.iter().map(|hash| cold_bytes(&store, hash)).sum::<u64>();
        let cold = tokio::task::spawn_blocking(look).await.map_err(|_| JobError::Panicked)?;
        let memory = (tier == Tier::Memory).then(|| ToMemory {
            cold,
            hot: total.saturating_sub(cold),
            read: self.rates.disk(),
            hash: self.rates.memory(),
        });
        let answer = estimate(&Question { priority, servers, memory, prior: self.fetcher.rate_of_any() });
        Ok(Estimate {
            bytes_total: total,
            bytes_missing: MissingBytes { disk: missing, memory: missing.saturating_add(cold) },
            revisions: vec![revision],
            ..answer
        })
    }
}

/// Bytes of a blob that are on disk and not in memory. Blocking.
fn cold_bytes(store: &Store, hash: &Hash) -> u64 {
    let Ok(reader) = store.open_blob(hash) else { return 0 };
    reader.size().saturating_sub(resident_bytes(reader.file()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prewarm::wire::EtaSeconds;

    #[test]
    fn a_deadline_is_held_against_both_ends() {
        let estimate = Estimate { seconds: Some(EtaSeconds { p50: 10.0, p90: 20.0 }), ..Estimate::default() };
        for (deadline, expected) in
            [(25.0, Verdict::Met), (20.0, Verdict::Met), (15.0, Verdict::AtRisk), (5.0, Verdict::Missed)]
        {
            assert_eq!(verdict(&estimate, deadline), expected, "{deadline}");
        }
        assert_eq!(verdict(&Estimate::default(), 5.0), Verdict::Unknown);
    }
}
