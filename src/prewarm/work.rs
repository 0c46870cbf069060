//! What a job does for each of its models: find what is here and may be read, else enter by whatever the caller's rights open,
//! transfer, lease or pin, warm. The models of one job come at the same time; the first that fails ends it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures_util::future::try_join_all;

use super::job::{Job, JobError};
use super::journal::Written;
use super::member::Member;
use super::registry::Inner;
use super::residents::Wish;
use super::wire::{JobState, Priority, Tier};
use crate::access::{Entered, Identity};
use crate::base::ErrorKind;
use crate::base::units::ByteSize;
use crate::model::source::Resolution;
use crate::model::{Credential, ModelId, OriginId, Rights, Tenant};
use crate::store::{Model, Pin};
use crate::telemetry::metrics::Which;
use crate::transfer::{Fetched, Progress, Request};

/// With what a job works.
pub(super) struct Errand {
    pub(super) identity: Identity,
    pub(super) credential: Option<Credential>,
    /// Whether what is in memory for good need not be hashed again.
    pub(super) refresh: bool,
}

// === impl Inner ===

impl Inner {
    pub(super) async fn work(&self, job: &Arc<Job>, errand: Errand) -> Result<(), JobError> {
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
                self.observe("queue", job.run());
                let members = job.members.iter().map(|member| self.make_ready(job, member, &errand));
                // A replica starts without what is compiled, too: nothing of it fails the job.
                let compiled = self.compiled(job, &errand.identity.scope);
                let (models, ()) = tokio::join!(try_join_all(members), compiled);
                models.map(drop)
            }
        };
        link.abort();
        outcome
    }

    async fn make_ready(&self, job: &Arc<Job>, member: &Arc<Member>, errand: &Errand) -> Result<(), JobError> {
        // A blob that is found corrupt while warming is fetched once more; twice in a row is a broken disk.
        for attempt in 0..2 {
            let fetched = tokio::select! {
                () = job.cancel.cancelled() => return Err(JobError::Cancelled),
                fetched = Box::pin(self.fetch(job, member, errand)) => fetched?,
            };
            self.keep(job, &fetched.model, &errand.identity, false).await?;
            member.fetched(&fetched.model, fetched.warnings);
            member.transferred().into_iter().for_each(|(stage, seconds)| self.observe(stage, seconds));
            job.touch();
            if job.tier == Tier::Disk {
                break;
            }
            match self.warm(job, member, &fetched.model, errand).await {
                Err(error) if error.kind() == ErrorKind::Corrupt && attempt == 0 => {
                    self.metrics.corrupt.get_or_create(&Which { which: "warm" }).inc();
                    tracing::warn!(job = %job.id, %error, "found while warming; fetching again");
                }
                outcome => {
                    outcome?;
                    break;
                }
            }
        }
        member.done();
        job.touch();
        Ok(())
    }

    async fn warm(&self, job: &Arc<Job>, member: &Arc<Member>, model: &Model, errand: &Errand) -> Result<(), JobError> {
        member.begin("warm");
        member.warmed_bytes.store(0, Ordering::Relaxed);
        job.touch();
        let begun = Instant::now();
        let read = |bytes| {
            member.warmed_bytes.fetch_add(bytes, Ordering::Relaxed);
        };
        let wish = Wish { priority: Some(job.priority()), refresh: errand.refresh, read: &read };
        let warmed = tokio::select! {
            () = job.cancel.cancelled() => Err(JobError::Cancelled),
            warmed = Box::pin(self.to_memory(model, &wish)) => warmed,
        };
        if let Some(seconds) = member.end("warm") {
            self.observe("warm", seconds);
        }
        if let Some(seen) = self.residents.seen(model) {
            member.resident(seen);
        }
        let warmed = warmed?;
        if member.warmed_bytes.load(Ordering::Relaxed) > 0 {
            let cold = warmed.total.saturating_sub(warmed.resident_before);
            self.rates.warmed(warmed.total, cold, begun.elapsed().as_secs_f64());
        }
        // Not before: what was called off, or had no room, is not to be read again behind its caller's back.
        self.keep(job, model, &errand.identity, true).await?;
        if job.lease_seconds() > 0 || job.pin.is_some() {
            self.residents.keep(model);
        }
        Ok(())
    }

    /// What is here and may be read without asking; else whatever the caller's rights open.
    async fn fetch(&self, job: &Arc<Job>, member: &Arc<Member>, errand: &Errand) -> Result<Fetched, JobError> {
        let (Errand { identity, credential, .. }, reference) = (errand, &member.reference);
        if let Some(fetched) = self.here(job, member, identity).await? {
            return Ok(fetched);
        }
        self.write_down(job, errand).await?;
        member.begin("resolve");
        job.touch();
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
        let origin_id = self.access.origins().identity(reference);
        let entered = self.fetcher.patiently(reference, &origin_id, ask).await;
        if let Some(seconds) = member.end("resolve") {
            self.observe("resolve", seconds);
        }
        let entered = match entered? {
            Ok(entered) => entered,
            Err(down) => {
                let mut fetched = self.here(job, member, identity).await?.ok_or(down.clone())?;
                fetched.warnings.push(format!("served from this node on an earlier proof of access: {down}"));
                return Ok(fetched);
            }
        };
        let Entered { scope, origin, origin_id, resolution } = entered;
        self.check_quota(job, member, identity, &scope, &origin_id, &resolution)?;
        if job.tier == Tier::Memory {
            let total = resolution.files.iter().map(|file| file.size).fold(0, u64::saturating_add);
            self.could_ever_be_in_memory(total).await?;
        }
        member.comes_from(origin_id.clone());
        let estimate = self.estimate_of(&scope, &origin_id, &resolution, job.tier, job.priority(), &job.id).await?;
        job.estimated(estimate);
        member.enter("transfer");
        job.touch();
        let asked_by = (scope != identity.scope).then(|| identity.scope.clone());
        let request = |priority: Priority, progress: &Arc<Progress>, resolution: Resolution| Request {
            tenant: scope.clone(),
            reference: reference.clone(),
            origin: Arc::clone(&origin),
            origin_id: origin_id.clone(),
            resolved: Some(resolution),
            asked_by: asked_by.clone(),
            priority,
            progress: Arc::clone(progress),
            cancel: job.cancel.clone(),
        };
        let priority = job.priority();
        let mut first = Box::pin(self.fetcher.fetch(request(priority, &member.progress, resolution.clone())));
        let urgent = async {
            if priority == Priority::Demand {
                std::future::pending::<()>().await;
            }
            job.becomes_urgent().await;
        };
        let fetched = tokio::select! {
            fetched = &mut first => return Ok(fetched?),
            // Somebody waits for it now: a second fetch of the same joins every transfer of the first with its priority. The first
            // stays, so that none of them is without anybody for a moment.
            () = urgent => {
                let progress = Arc::default();
                let second = self.fetcher.fetch(request(Priority::Demand, &progress, resolution));
                tokio::select! {
                    fetched = &mut first => fetched?,
                    fetched = Box::pin(second) => fetched?,
                }
            }
        };
        Ok(fetched)
    }

    /// The model of a reference that names its revision, in a scope that the caller may read now.
    async fn here(
        &self,
        job: &Arc<Job>,
        member: &Arc<Member>,
        identity: &Identity,
    ) -> Result<Option<Fetched>, JobError> {
        let reference = &member.reference;
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
                progress: Arc::clone(&member.progress),
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
        member: &Member,
        identity: &Identity,
        scope: &Tenant,
        origin_id: &OriginId,
        resolution: &Resolution,
    ) -> Result<(), JobError> {
        let Some(most) = self.access.bytes_max(&identity.scope) else { return Ok(()) };
        let known = resolution
            .revision
            .as_ref()
            .map(|revision| ModelId::new(scope, origin_id, &member.reference.selection, revision))
            .is_some_and(|id| self.store.model(scope, &id).is_some());
        if known {
            return Ok(());
        }
        let needed: u64 = resolution.files.iter().map(|file| file.size).fold(0, u64::saturating_add);
        // Models of the scope that have passed here and are not published yet, those of this job included.
        let under_way: u64 = {
            let table = self.table();
            let same = table.active.values().filter(|other| other.scope == identity.scope && !other.is_over());
            same.map(|other| other.claimed()).sum()
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

    /// So that a restart finds the job again. Once for all its models.
    async fn write_down(&self, job: &Arc<Job>, errand: &Errand) -> Result<(), JobError> {
        let Errand { identity, credential, .. } = errand;
        let references = job.members.iter().map(|member| member.reference.to_string()).collect();
        let written = Written {
            priority: job.priority(),
            lease_seconds: job.lease_seconds(),
            pin: job.pin.clone(),
            engine: job.compiled.iter().map(|compiled| compiled.key).collect(),
            operator: identity.operator,
            credential: credential.is_some(),
            ..Written::new(&job.id, &identity.scope, identity.has_our_rights, references, job.tier)
        };
        // Whoever asks again with a credential takes the place of the job that a restart has left waiting for one.
        if written.credential {
            self.replace_waiting(job);
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

    fn replace_waiting(&self, job: &Job) {
        let waiting: Vec<String> = {
            let mut table = self.table();
            let same = |other: &Job| {
                other.job_state() == JobState::NeedsCredentials
                    && (&other.scope, other.reference(), other.tier) == (&job.scope, job.reference(), job.tier)
            };
            let ids: Vec<String> =
                table.jobs.values().filter(|other| same(other)).map(|other| other.id.clone()).collect();
            for id in &ids {
                table.jobs.remove(id);
            }
            table.history.retain(|id| !ids.contains(id));
            ids
        };
        waiting.iter().for_each(|id| self.journal.remove(id));
    }

    /// From the answer to the engine's first open the tree must not go; with a pin it never does. `in_memory`: it is there now,
    /// and is to stay.
    async fn keep(&self, job: &Job, model: &Model, identity: &Identity, in_memory: bool) -> Result<(), JobError> {
        let mut pins = Vec::new();
        let seconds = job.lease_seconds();
        if seconds > 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let (id, expires_at) = (pin_id(job.tier), now + seconds);
            // One lease a model and tier from this door: the longest of those asked for.
            let stands = |pin: &Pin| {
                pin.id == id
                    && pin.expires_at.is_some_and(|until| until + 30 >= expires_at)
                    && (pin.in_memory || !in_memory)
            };
            if !self.pins_of(model).iter().any(stands) {
                pins.push((id.to_owned(), Some(expires_at)));
            }
        }
        if let Some(pin) = &job.pin {
            if model.record.tenant != identity.scope && !identity.operator {
                return Err(JobError::Pin(model.record.reference.clone()));
            }
            let stands =
                |known: &Pin| known.id == *pin && known.expires_at.is_none() && (known.in_memory || !in_memory);
            if !self.pins_of(model).iter().any(stands) {
                pins.push((pin.clone(), None));
            }
        }
        for (id, expires_at) in pins {
            let pin = Pin { id, reason: format!("asked for by {}", job.id), expires_at, in_memory };
            let (store, record) = (self.store.clone(), model.record.clone());
            tokio::task::spawn_blocking(move || store.pin(&record.tenant, &record.id, pin))
                .await
                .map_err(|_| JobError::Panicked)??;
        }
        Ok(())
    }

    fn pins_of(&self, model: &Model) -> Vec<Pin> {
        self.store.model(&model.record.tenant, &model.record.id).map_or_else(Vec::new, |model| model.pins)
    }

    pub(super) fn observe(&self, which: &'static str, seconds: f64) {
        self.metrics.job_stage_seconds.get_or_create(&Which { which }).observe(seconds);
    }
}

/// The lease that a prewarm puts on a model: one for each tier, so that neither ends the other.
pub(super) fn pin_id(tier: Tier) -> &'static str {
    match tier {
        Tier::Disk => "prewarm",
        Tier::Memory => "prewarm-memory",
    }
}
