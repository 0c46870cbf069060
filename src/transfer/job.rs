//! One fetch, from its reference to its model.

use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use tokio_util::sync::CancellationToken;

use super::error::TransferError;
use super::flight::{Errand, Joined, Ticket};
use super::leader::Leader;
use super::plan::{self, Plan};
use super::{Fetched, Inner, Request, Stage, arrived, resolve};
use crate::base::ErrorKind;
use crate::digest::Hash;
use crate::model::source::{RangeSource, RemoteFile, Resolution};
use crate::model::{FilePath, ModelId, ModelRecord, OriginFacts, Revision, alias_name};
use crate::store::{BlobHold, Model, Publication, Reservation, Store, StoreError};
use crate::telemetry::metrics::Which;

/// A fetch under way.
pub(super) struct Job<'a> {
    pub(super) fetcher: &'a Inner,
    pub(super) request: &'a Request,
}

/// A content that is here, or on its way.
enum Source {
    Held(BlobHold),
    /// By a flight of this fetch.
    Coming(Ticket),
    /// By one that another fetch has begun, with that one's rights.
    Joined(Ticket),
}

/// Why a planning came to nothing.
enum Short {
    Failed(TransferError),
    /// The origin refused a flight that was joined. That was another's credential; what this fetch may, it has to ask itself.
    RefusedToAnother(TransferError),
}

/// The contents of a plan, as they come in.
struct Contents<'p> {
    plan: &'p Plan,
    /// Large flights that this fetch has begun wait for it. Ends with the fetch, whatever its outcome: others may have joined.
    go: Go,
    holds: Vec<Option<BlobHold>>,
    /// Promised space for all that this fetch has begun.
    reservation: Option<Arc<Reservation>>,
    warnings: Vec<String>,
}

/// Lets flights go when it is dropped at the latest.
struct Go(tokio_util::sync::DropGuard);

/// Version of the records that are written.
const RECORD_VERSION: u32 = 1;

// === impl Short ===

impl Short {
    fn of_another(error: TransferError) -> Self {
        if error.kind() == ErrorKind::Denied { Self::RefusedToAnother(error) } else { Self::Failed(error) }
    }
}

impl From<TransferError> for Short {
    fn from(error: TransferError) -> Self {
        Self::Failed(error)
    }
}

// === impl Job ===

impl Job<'_> {
    pub(super) async fn run(&self) -> Result<Fetched, TransferError> {
        let Request { reference, progress, .. } = self.request;
        progress.enter(Stage::Resolve);
        let pinned = reference.pinned();
        if let Some(fetched) = self.here().await? {
            return Ok(fetched);
        }
        let plannings = self.fetcher.gear.config.replans + 1;
        let mut last = String::new();
        let mut resolved = self.request.resolved.clone();
        for planning in 1..=plannings {
            let resolution = match resolved.take() {
                Some(resolution) => resolution,
                None => self.resolve().await?,
            };
            let revision = plan::revision(reference, pinned.clone(), &resolution)?;
            if let Some(known) = &revision
                && let Some(model) = self.known(known).await?
            {
                return Ok(self.reused(model));
            }
            match self.transfer(resolution, revision).await {
                Err(Short::Failed(error)) if error.is_change() || error.is_rot() => {
                    let planning = format!("{planning} of {plannings}");
                    tracing::info!(reference = %reference, %error, planning, "what was planned is gone; planning again");
                    last = error.to_string();
                }
                Err(Short::RefusedToAnother(error)) if planning < plannings => {
                    tracing::info!(reference = %reference, %error, "another fetch was refused what this one waited for; asking for it");
                }
                Err(Short::Failed(error) | Short::RefusedToAnother(error)) => return Err(error),
                Ok(fetched) => return Ok(fetched),
            }
        }
        Err(TransferError::Changing { what: reference.to_string(), plannings, last })
    }

    /// The model of a reference that names its revision, if it is here: no origin is asked.
    pub(super) async fn here(&self) -> Result<Option<Fetched>, TransferError> {
        let Some(revision) = self.request.reference.pinned() else { return Ok(None) };
        Ok(self.known(&revision).await?.map(|model| self.reused(model)))
    }

    /// The model, if it is here; for a moving reference its alias then points there.
    async fn known(&self, revision: &Revision) -> Result<Option<Model>, TransferError> {
        let Request { tenant, reference, .. } = self.request;
        let (tenant, id, alias) = (tenant.clone(), self.id(revision), self.alias());
        let look = move |store: &Store| {
            let Some(model) = store.model(&tenant, &id) else { return Ok(None) };
            let Some((alias, manifest)) = alias.zip(store.manifest(&model.record.manifest)) else {
                store.touch(&tenant, &id);
                return Ok(Some(model));
            };
            let (record, manifest) = (model.record, (*manifest).clone());
            store.publish(Publication { record, manifest, blobs: Vec::new(), alias: Some(alias) }).map(Some)
        };
        let _alone = self.fetcher.publishing.lock().await;
        match self.fetcher.gear.ask(reference, look).await {
            // Evicted or quarantined this moment.
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            outcome => outcome,
        }
    }

    fn reused(&self, model: Model) -> Fetched {
        let progress = &self.request.progress;
        progress.plan(model.record.files, model.record.bytes);
        progress.verified(model.record.bytes);
        (0..model.record.files).for_each(|_| progress.file_done());
        progress.enter(Stage::Done);
        Fetched { origin_bytes: 0, reused_bytes: model.record.bytes, warnings: Vec::new(), model }
    }

    async fn resolve(&self) -> Result<Resolution, TransferError> {
        let Request { reference, origin, .. } = self.request;
        let begun = Instant::now();
        let resolution = resolve::patiently(&self.fetcher.gear, reference, || origin.resolve(reference)).await?;
        self.observe("resolve", begun);
        Ok(resolution)
    }

    async fn transfer(&self, resolution: Resolution, revision: Option<Revision>) -> Result<Fetched, Short> {
        let Request { reference, progress, .. } = self.request;
        let begun = Instant::now();
        let resolved_at = seconds_now();
        let plan = Plan::new(reference, resolution)?;
        progress.plan(plan.files.len() as u64, plan.bytes());
        progress.enter(Stage::Transfer);
        let mut contents = Contents {
            plan: &plan,
            go: Go::default(),
            holds: vec![None; plan.contents.len()],
            reservation: None,
            warnings: Vec::new(),
        };
        let sources = self.begin(&plan, &mut contents).await?;
        self.collect(sources, &mut contents).await?;
        self.observe("transfer", begun);
        let Contents { holds, mut warnings, reservation, .. } = contents;
        let holds: Vec<BlobHold> = holds.into_iter().flatten().collect();
        let blobs: Vec<Hash> = holds.iter().map(|hold| hold.hash).collect();
        let manifest = plan.manifest(reference, &blobs)?;
        let digest = manifest.digest();
        let found = Revision::Manifest(digest);
        let revision = match revision {
            Some(asked @ Revision::Manifest(_)) if asked != found => {
                let (reference, found) = (reference.to_string(), found.to_string());
                return Err(TransferError::OtherRevision { reference, asked, found }.into());
            }
            known => known.unwrap_or(found),
        };
        let record = ModelRecord {
            version: RECORD_VERSION,
            id: self.id(&revision),
            tenant: self.request.tenant.clone(),
            reference: reference.to_string(),
            revision,
            manifest: digest,
            bytes: manifest.total_bytes(),
            files: manifest.files().len() as u64,
            published_at: seconds_now(),
            asked_by: self.request.asked_by.clone(),
            facts: OriginFacts { origin: self.request.origin_id.clone(), resolved_at, files: plan.facts() },
        };
        progress.enter(Stage::Publish);
        let begun = Instant::now();
        let publication = Publication { record, manifest, blobs: holds, alias: self.alias() };
        let model = {
            // Two fetches of one model would each replace the other's tree; the second finds it in place.
            let _alone = self.fetcher.publishing.lock().await;
            self.fetcher.gear.ask(reference, move |store| store.publish(publication)).await?
        };
        drop(reservation);
        self.observe("publish", begun);
        progress.enter(Stage::Done);
        let origin_bytes = progress.origin_bytes();
        let reused_bytes = model.record.bytes.saturating_sub(origin_bytes);
        warnings.extend(plan.warnings);
        Ok(Fetched { model, origin_bytes, reused_bytes, warnings })
    }

    /// Finds what is here, joins what is coming, and begins the rest with its space promised first. One fetch does this at a
    /// time: of two that want the same, the second must see the flights of the first, or space would be promised twice. What may
    /// take minutes is done before: hashing what an earlier process left, and waiting for flights that are about to end.
    async fn begin(&self, plan: &Plan, contents: &mut Contents<'_>) -> Result<Vec<(usize, Source)>, TransferError> {
        let Request { tenant, origin, origin_id, reference, priority, progress, .. } = self.request;
        let fetcher = self.fetcher;
        let source = || -> Arc<dyn RangeSource> { Arc::clone(origin) as Arc<dyn RangeSource> };
        let errand = |file: &RemoteFile| Errand::new(tenant, origin_id, file.clone(), source());
        let errands: Arc<[Errand]> = plan.contents.iter().map(|first| errand(&plan.files[*first])).collect();
        let looked_for = Arc::clone(&errands);
        let look = move |store: &Store| looked_for.iter().map(|errand| errand.find(store)).collect();
        let here: Vec<Option<BlobHold>> = fetcher.gear.look(look).await?;
        let mut tickets: Vec<Option<Ticket>> = errands.iter().map(|_| None).collect();
        let _alone = loop {
            let alone = fetcher.planning.lock().await;
            let mut ending = None;
            for (content, errand) in errands.iter().enumerate() {
                if here[content].is_some() || tickets[content].is_some() {
                    continue;
                }
                match fetcher.flights.join(&errand.key, *priority, progress) {
                    Joined::Running(ticket) => tickets[content] = Some(ticket),
                    Joined::Ending(flight) => ending = Some(flight),
                    Joined::None => {}
                }
            }
            let Some(ending) = ending else { break alone };
            drop(alone);
            drop(ending.outcome().await);
        };
        let mut sources = Vec::new();
        let mut absent = Vec::new();
        for (content, (hold, ticket)) in here.into_iter().zip(tickets).enumerate() {
            match (hold, ticket) {
                (Some(hold), _) => sources.push((content, Source::Held(hold))),
                (None, Some(ticket)) => sources.push((content, Source::Joined(ticket))),
                (None, None) => absent.push((content, errands[content].clone())),
            }
        }
        let files = plan.files.len() as u64;
        let promise = move |store: &Store| {
            let mut held = Vec::new();
            // Some may have come since.
            absent.retain(|(content, errand)| match errand.find(store) {
                Some(hold) => {
                    held.push((*content, hold));
                    false
                }
                None => true,
            });
            let cost: u64 = absent.iter().map(|(_, errand)| store.cost_to_begin(&errand.key, errand.remote.size)).sum();
            let keep: Vec<_> = absent.iter().map(|(_, errand)| errand.key).collect();
            let reservation = store.reserve(cost + Store::cost_of_model(files), &keep)?;
            Ok((held, absent, reservation))
        };
        let (held, absent, reservation) = fetcher.gear.ask(reference, promise).await?;
        let reservation = Arc::new(reservation);
        contents.reservation = Some(Arc::clone(&reservation));
        sources.extend(held.into_iter().map(|(content, hold)| (content, Source::Held(hold))));
        let go = contents.go.token();
        for (content, errand) in absent {
            let (flight, ticket) = fetcher.flights.begin(errand, *priority, progress, Arc::clone(&reservation));
            sources.push((content, Source::Coming(ticket)));
            let at_once = flight.errand.remote.size <= fetcher.gear.small_bytes || plan.indexes.contains(&content);
            let leader = Leader {
                gear: Arc::clone(&fetcher.gear),
                pump: fetcher.pump.clone(),
                flight,
                go: (!at_once).then(|| go.clone()),
                drain: fetcher.gate.token(),
            };
            // Not awaited: its flight tells the outcome, and closing the gate waits for it.
            let _leader = fetcher.gate.spawn("flight", leader.run(Arc::clone(&fetcher.flights)));
        }
        Ok(sources)
    }

    /// Waits for every content, and looks into each as it arrives. Large ones begin to move when the indexes are read.
    async fn collect(&self, sources: Vec<(usize, Source)>, contents: &mut Contents<'_>) -> Result<(), Short> {
        let (plan, progress) = (contents.plan, &self.request.progress);
        let indexes = &plan.indexes;
        let mut unread = indexes.len();
        if unread == 0 {
            contents.go.cancel();
        }
        let wait = |(content, source): (usize, Source)| async move {
            let (held, outcome) = match source {
                Source::Held(hold) => (true, Ok(hold)),
                Source::Coming(ticket) => (false, ticket.outcome().await.map_err(Short::Failed)),
                Source::Joined(ticket) => (false, ticket.outcome().await.map_err(Short::of_another)),
            };
            (content, held, outcome)
        };
        let mut arriving: FuturesUnordered<_> = sources.into_iter().map(wait).collect();
        let mut wrong = None;
        while let Some((content, held, outcome)) = arriving.next().await {
            let hold = match outcome {
                // Everything else is needed as soon as the origin is mended: then fetching again costs what was wrong.
                Err(Short::Failed(error @ TransferError::WrongGroup { .. })) if !indexes.contains(&content) => {
                    wrong.get_or_insert(error);
                    continue;
                }
                outcome => outcome?,
            };
            self.look_into(content, &hold, contents).await?;
            if indexes.contains(&content) {
                unread -= 1;
                if unread == 0 {
                    contents.go.cancel();
                }
            }
            // A flight has counted its bytes once; a content may be several files.
            let files = plan.files_with(content).count() as u64;
            progress.verified(hold.size * (files - u64::from(!held)));
            (0..files).for_each(|_| progress.file_done());
            contents.holds[content] = Some(hold);
        }
        wrong.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Checks what a file says about itself and about others.
    async fn look_into(
        &self,
        content: usize,
        hold: &BlobHold,
        contents: &mut Contents<'_>,
    ) -> Result<(), TransferError> {
        let plan = contents.plan;
        let hash = hold.hash;
        let tensors = plan.files_with(content).find(|file| arrived::has_tensors(&file.path));
        if let Some(file) = tensors {
            let checked = self.read(&file.path, hash, move |store| arrived::check_tensors(store, &hash)).await?;
            checked.map_err(|source| TransferError::tensors(&file.path, source))?;
        }
        if plan.indexes.contains(&content) {
            for file in plan.files_with(content).filter(|file| plan::is_index(&file.path)) {
                let json = self.read(&file.path, hash, move |store| arrived::read_index(store, &hash)).await?;
                let warnings = plan.check_index(&file.path, &json, &self.request.reference.selection)?;
                contents.warnings.extend(warnings);
            }
        }
        Ok(())
    }

    /// Reads a blob; one that turns out to be corrupt on disk is quarantined, so that planning again fetches it.
    async fn read<T: Send + 'static>(
        &self,
        path: &FilePath,
        hash: Hash,
        read: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, TransferError> {
        let outcome = self.fetcher.gear.ask(path, read).await;
        if let Err(error) = &outcome
            && error.is_rot()
        {
            self.fetcher.gear.metrics.corrupt.get_or_create(&Which { which: "read" }).inc();
            self.fetcher.gear.ask(path, move |store| store.quarantine(&hash, "fetch")).await?;
        }
        outcome
    }

    /// The alias to move: for a reference that may stand for something else tomorrow.
    fn alias(&self) -> Option<String> {
        let Request { reference, origin_id, .. } = self.request;
        reference.pinned().is_none().then(|| alias_name(origin_id, reference))
    }

    fn id(&self, revision: &Revision) -> ModelId {
        let Request { tenant, origin_id, reference, .. } = self.request;
        ModelId::new(tenant, origin_id, &reference.selection, revision)
    }

    fn observe(&self, which: &'static str, begun: Instant) {
        let seconds = begun.elapsed().as_secs_f64();
        self.fetcher.gear.metrics.fetch_seconds.get_or_create(&Which { which }).observe(seconds);
    }
}

// === impl Go ===

impl Default for Go {
    fn default() -> Self {
        Self(CancellationToken::new().drop_guard())
    }
}

impl Go {
    fn token(&self) -> CancellationToken {
        self.0.token().clone()
    }

    fn cancel(&self) {
        self.0.token().cancel();
    }
}

fn seconds_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
