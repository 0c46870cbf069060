//! What one job does: find what is here and may be read, else enter by whatever the caller's rights open, transfer, lease, warm.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use super::job::{Job, JobError};
use super::journal::Written;
use super::registry::Inner;
use super::warm::warm;
use super::wire::{JobState, Tier};
use crate::access::{Entered, Identity};
use crate::base::ErrorKind;
use crate::base::units::ByteSize;
use crate::model::source::Resolution;
use crate::model::{Credential, ModelId, OriginId, Reference, Rights, Tenant};
use crate::store::Pin;
use crate::telemetry::metrics::Which;
use crate::transfer::{Fetched, Request};

/// What a job works on.
pub(super) struct Errand {
    pub(super) identity: Identity,
    pub(super) reference: Reference,
    pub(super) credential: Option<Credential>,
}

// === impl Inner ===

impl Inner {
    pub(super) async fn work(&self, job: &Arc<Job>, errand: Errand) -> Result<Option<u64>, JobError> {
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
                self.fetch_and_warm(job, &errand).await
            }
        };
        link.abort();
        outcome
    }

    async fn fetch_and_warm(&self, job: &Arc<Job>, errand: &Errand) -> Result<Option<u64>, JobError> {
        // A blob that is found corrupt while warming is fetched once more; twice in a row is a broken disk.
        for attempt in 0..2 {
            job.run("resolve");
            let fetched = tokio::select! {
                () = job.cancel.cancelled() => return Err(JobError::Cancelled),
                fetched = Box::pin(self.fetch(job, errand)) => fetched?,
            };
            self.lease(job, &fetched.model).await?;
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
                        resident: ByteSize(warmed.resident),
                        total: ByteSize(warmed.total),
                    });
                }
                Ok(warmed) => return Ok(Some(warmed.resident)),
            }
        }
        Err(JobError::Panicked)
    }

    /// What is here and may be read without asking; else whatever the caller's rights open.
    async fn fetch(&self, job: &Arc<Job>, errand: &Errand) -> Result<Fetched, JobError> {
        let Errand { identity, reference, credential } = errand;
        if let Some(fetched) = self.here(job, errand).await? {
            return Ok(fetched);
        }
        self.write_down(job, errand).await?;
        let ask = || async {
            match self.access.enter(identity, reference, credential.as_ref()).await {
                // An origin that is down does not take a right away that was proved a while ago.
                Err(error)
                    if matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Busy)
                        && reference.pinned().is_some()
                        && self.access.standing(identity, reference).len() > 1 =>
                {
                    Ok(Err(error))
                }
                outcome => outcome.map(Ok),
            }
        };
        let entered = match self.fetcher.patiently(reference, ask).await? {
            Ok(entered) => entered,
            Err(down) => {
                let mut fetched = self.here(job, errand).await?.ok_or(down.clone())?;
                fetched.warnings.push(format!("served from this node on an earlier proof of access: {down}"));
                return Ok(fetched);
            }
        };
        let Entered { scope, origin, origin_id, resolution } = entered;
        let asked_by = (scope != identity.scope).then(|| identity.scope.clone());
        self.check_quota(job, identity, &scope, &origin_id, reference, &resolution)?;
        job.run("transfer");
        let request = Request {
            tenant: scope,
            reference: reference.clone(),
            origin,
            origin_id,
            resolved: Some(resolution),
            asked_by,
            priority: job.priority(),
            progress: Arc::clone(&job.progress),
            cancel: job.cancel.clone(),
        };
        Ok(self.fetcher.fetch(request).await?)
    }

    /// The model of a reference that names its revision, in a scope that the caller may read now.
    async fn here(&self, job: &Arc<Job>, errand: &Errand) -> Result<Option<Fetched>, JobError> {
        let Errand { identity, reference, .. } = errand;
        if reference.pinned().is_none() {
            return Ok(None);
        }
        for scope in self.access.standing(identity, reference) {
            let request = Request {
                tenant: scope,
                reference: reference.clone(),
                // Not asked.
                origin: self.access.origins().open(reference, &Rights::Anonymous)?,
                origin_id: self.access.origins().identity(reference),
                resolved: None,
                asked_by: None,
                priority: job.priority(),
                progress: Arc::clone(&job.progress),
                cancel: job.cancel.clone(),
            };
            if let Some(fetched) = self.fetcher.find(&request).await? {
                return Ok(Some(fetched));
            }
        }
        Ok(None)
    }

    /// Refuses what would be more than its scope may bring here.
    fn check_quota(
        &self,
        job: &Job,
        identity: &Identity,
        scope: &Tenant,
        origin_id: &OriginId,
        reference: &Reference,
        resolution: &Resolution,
    ) -> Result<(), JobError> {
        let Some(most) = self.access.bytes_max(&identity.scope) else { return Ok(()) };
        let known = resolution
            .revision
            .as_ref()
            .map(|revision| ModelId::new(scope, origin_id, &reference.selection, revision))
            .is_some_and(|id| self.store.model(scope, &id).is_some());
        if known {
            return Ok(());
        }
        let needed: u64 = resolution.files.iter().map(|file| file.size).fold(0, u64::saturating_add);
        // Jobs of the scope that have passed here and have not published yet.
        let under_way: u64 = {
            let table = self.table();
            let others = table.active.values().filter(|other| other.scope == identity.scope && other.id != job.id);
            others.filter(|other| !other.is_over()).map(|other| other.claimed()).sum()
        };
        let used = self.store.charged_to(&identity.scope).saturating_add(under_way);
        if used.saturating_add(needed) > most.0 {
            return Err(JobError::Quota {
                scope: identity.scope.clone(),
                most,
                used: ByteSize(used),
                needed: ByteSize(needed),
            });
        }
        job.claim(needed);
        Ok(())
    }

    /// So that a restart finds the job again.
    async fn write_down(&self, job: &Arc<Job>, errand: &Errand) -> Result<(), JobError> {
        let Errand { identity, reference, credential } = errand;
        let written = Written {
            priority: job.priority(),
            lease_seconds: job.lease_seconds(),
            credential: credential.is_some(),
            ..Written::new(&job.id, &identity.scope, identity.has_our_rights, reference.to_string(), job.tier)
        };
        // Whoever asks again with a credential takes the place of the job that a restart has left waiting for one.
        if written.credential {
            self.replace_waiting(&written);
        }
        let journal = self.journal.clone();
        let outcome =
            tokio::task::spawn_blocking(move || journal.write(&written)).await.map_err(|_| JobError::Panicked)?;
        if let Err(error) = outcome {
            // A full disk must not stop what may yet make room.
            tracing::warn!(job = %job.id, %error, "the job is not written down: a restart will not find it");
        }
        Ok(())
    }

    fn replace_waiting(&self, written: &Written) {
        let waiting: Vec<String> = {
            let mut table = self.table();
            let same = |job: &Job| {
                job.job_state() == JobState::NeedsCredentials
                    && (&job.scope, &job.reference, job.tier) == (&written.scope, &written.reference, written.tier)
            };
            let ids: Vec<String> = table.jobs.values().filter(|job| same(job)).map(|job| job.id.clone()).collect();
            for id in &ids {
                table.jobs.remove(id);
            }
            table.history.retain(|id| !ids.contains(id));
            ids
        };
        waiting.iter().for_each(|id| self.journal.remove(id));
    }

    /// From the answer to the engine's first open the tree must not go.
    async fn lease(&self, job: &Job, model: &crate::store::Model) -> Result<(), JobError> {
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
        let (store, tenant, id) = (self.store.clone(), model.record.tenant.clone(), model.record.id.clone());
        tokio::task::spawn_blocking(move || store.pin(&tenant, &id, pin)).await.map_err(|_| JobError::Panicked)??;
        Ok(())
    }
}
