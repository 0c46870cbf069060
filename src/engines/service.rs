//! The library of one node: what its daemon does for whoever asks, and what a command does on a local root. Every call says for
//! which scope; what that scope may see and have is decided here and nowhere else.

use std::collections::HashMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::config::Config;
use super::guard::Guard;
use super::library::{
    AttemptEnd, AttemptId, BundleRef, BundleView, Lookup, Near, Outcome, Refusal, Refused, RunReport, Standing,
};
use super::policy::Policy;
use super::publishing::Damaged;
use super::quota::Quota;
use super::shared::Shared;
use super::shelf::{self, Held};
use super::under_way::UnderWay;
use super::{EngineError, blocking};
use crate::base::ErrorKind;
use crate::base::lifecycle::Gate;
use crate::digest::Hash;
use crate::model::engine::EngineKey;
use crate::model::{Bundle, BundleId, Signature, Tenant};
use crate::origin::Origins;
use crate::store::{Model, Store};
use crate::telemetry::metrics::{Metrics, Which};

/// The bundles of a node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Engines {
    pub(super) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) store: Store,
    pub(super) policy: Policy,
    pub(super) shared: Option<Shared>,
    pub(super) guard: Guard,
    pub(super) metrics: Arc<Metrics>,
    /// Who captures or fetches for which scope and key: one at a time, so that the others find what the first has made.
    turns: Mutex<HashMap<(Tenant, Hash), Turn>>,
    /// What a fetch has found to be damaged there.
    pub(super) damaged: Damaged,
    /// What the last fetch from the shared origin gave, in bytes a second; 0: none yet.
    pub(super) rate: AtomicU64,
    /// Bundles that are being fetched.
    pub(super) fetching: UnderWay,
    /// What scopes may bring.
    pub(super) quota: Quota,
    /// Publishing that nobody waits for.
    pub(super) background: Gate,
}

/// Held by one, waited for by others.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// A bundle that may be restored, opened: what is open stays readable, whatever is evicted meanwhile.
#[derive(Debug)]
pub struct Opened {
    /// In short.
    pub bundle: BundleRef,
    /// Its document.
    pub document: Arc<Bundle>,
    /// The document's canonical bytes.
    pub bytes: Arc<[u8]>,
    /// Who vouches for it.
    pub signature: Option<Signature>,
    /// Its pack, and where that is. `None`: it is used in place.
    pub pack: Option<(File, PathBuf)>,
    /// Where its files are, if it is used in place.
    pub files: Option<PathBuf>,
}

/// Bundles of other keys in an answer.
const NEAREST: usize = 8;
/// Bundles that are looked through for them: reading one is reading its document.
const LOOKED_THROUGH: usize = 256;
/// Longest look for them: they explain a cold start, which is not to wait for that.
const LOOK_LONGEST: Duration = Duration::from_millis(500);

// === impl Engines ===

impl Engines {
    /// The library of a store.
    ///
    /// # Errors
    /// A signing key, a list of revocations or a shared origin that cannot be used.
    pub fn new(config: Config, store: Store, origins: &Origins, metrics: Arc<Metrics>) -> Result<Self, EngineError> {
        Self::knowing(Damaged::default(), config, store, origins, metrics)
    }

    /// The same, with what an earlier one has found at the shared origin.
    pub(super) fn knowing(
        damaged: Damaged,
        config: Config,
        store: Store,
        origins: &Origins,
        metrics: Arc<Metrics>,
    ) -> Result<Self, EngineError> {
        let shared = Shared::new(&config, origins)?;
        let (directory, temporaries) = store.engines_directory();
        let guard = Guard::new(directory, temporaries, store.options().boot.clone());
        let policy = Policy::new(config)?;
        let (turns, background, rate) = (Mutex::default(), Gate::default(), AtomicU64::new(0));
        Ok(Self {
            inner: Arc::new(Inner {
                store,
                policy,
                shared,
                guard,
                metrics,
                turns,
                damaged,
                rate,
                fetching: UnderWay::default(),
                quota: Quota::default(),
                background,
            }),
        })
    }

    /// Waits for what is being published.
    pub async fn drain(&self) {
        self.inner.background.close().await;
    }

    /// Finds what may be restored for a scope: here, else at the shared origin, for at most `deadline`.
    ///
    /// # Errors
    /// The store. A bundle that cannot be used, or a shared origin that cannot be reached, is in the answer.
    pub async fn lookup(&self, scope: &Tenant, key: &EngineKey, deadline: Duration) -> Result<Lookup, EngineError> {
        let unusable = key.unusable();
        if !unusable.is_empty() {
            let fields = unusable.into_iter().map(|(name, why)| format!("{name} ({why})")).collect();
            let why = Refusal::Unusable { fields };
            return Ok(Lookup { refused: vec![Refused { bundle: None, id: None, why }], ..Lookup::default() });
        }
        let until = tokio::time::Instant::now() + deadline;
        let (engines, of, wanted) = (self.clone(), scope.clone(), key.clone());
        let mut found = blocking(move || engines.inner.find(&of, &wanted)).await?;
        if found.exact.is_none() && self.inner.shared.is_some() {
            let fetched = tokio::time::timeout_at(until, self.fetch(scope, &key.digest())).await;
            match fetched {
                Ok(Ok(None)) => {}
                Ok(Ok(Some(Ok(())))) => {
                    let (engines, of, wanted) = (self.clone(), scope.clone(), key.clone());
                    found = blocking(move || engines.inner.find(&of, &wanted)).await?;
                }
                Ok(Ok(Some(Err(refused)))) => found.refused.push(*refused),
                Ok(Err(error)) => {
                    let why = Refusal::Unavailable { detail: format!("the shared origin: {error}") };
                    found.refused.push(Refused { bundle: None, id: None, why });
                }
                Err(_) => {
                    found.refused.push(Refused { bundle: None, id: None, why: Refusal::NotInTime });
                }
            }
        }
        Ok(found)
    }

    /// Opens a bundle for restoring: signature and policy are looked at again.
    ///
    /// # Errors
    /// `NotFound`; `Denied` for what may not be restored now.
    pub async fn open(&self, scope: &Tenant, id: &BundleId) -> Result<Opened, EngineError> {
        let (engines, scope, id) = (self.clone(), scope.clone(), *id);
        blocking(move || {
            let held = engines.inner.held(&scope, &id)?;
            let bundle = engines.inner.reference(&scope, &held)?;
            if let Err(why) = engines.inner.verdict(&scope, &held, &bundle.standing) {
                engines.inner.count_run(Outcome::Refused);
                return Err(EngineError::Denied { what: format!("bundle {id}"), why: why.to_string() });
            }
            engines.inner.store.touch(&held.scope, &held.model);
            let files = bundle.in_place.then(|| held.files());
            let pack = if bundle.in_place { None } else { Some(held.open_pack()?) };
            Ok(Opened { bundle, document: held.bundle, bytes: held.document, signature: held.signature, pack, files })
        })
        .await
    }

    /// One bundle, and why it would not be restored.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub async fn show(&self, scope: &Tenant, id: &BundleId) -> Result<BundleView, EngineError> {
        let (engines, scope, id) = (self.clone(), scope.clone(), *id);
        blocking(move || {
            let held = engines.inner.held(&scope, &id)?;
            let bundle = engines.inner.reference(&scope, &held)?;
            let refusal = engines.inner.verdict(&scope, &held, &bundle.standing).err();
            Ok(BundleView { bundle, document: held.bundle.as_ref().clone(), signature: held.signature, refusal })
        })
        .await
    }

    /// Hashes the blobs of a bundle and puts aside what is wrong: for who has found it wrong without being the store.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub async fn recheck(&self, scope: &Tenant, id: &BundleId) -> Result<(), EngineError> {
        let (held, key) = {
            let (engines, of, id) = (self.clone(), scope.clone(), *id);
            let held = blocking(move || engines.inner.held(&of, &id)).await?;
            let key = held.bundle.key.digest();
            (held, key)
        };
        // One at a time: it reads all of it.
        let _turn = self.turn(scope, &key).await;
        let engines = self.clone();
        blocking(move || {
            if let Some(model) = engines.inner.store.model(&held.scope, &held.model) {
                engines.inner.aside(&model);
            }
            Ok(())
        })
        .await
    }

    /// All bundles that a scope may know, newest first.
    ///
    /// # Errors
    /// The store.
    pub async fn list(&self, scope: &Tenant) -> Result<Vec<Near>, EngineError> {
        let (engines, scope) = (self.clone(), scope.clone());
        blocking(move || {
            let mut all = Vec::new();
            for model in shelf::records(&engines.inner.store, &visible(&scope), None) {
                let Some(held) = engines.inner.read(&model)? else { continue };
                all.push(Near { key: held.bundle.key.clone(), bundle: engines.inner.reference(&scope, &held)? });
            }
            Ok(all)
        })
        .await
    }

    /// Notes that a start with a bundle begins; durable when it returns.
    ///
    /// # Errors
    /// `NotFound`, I/O.
    pub async fn begin_attempt(&self, scope: &Tenant, id: &BundleId) -> Result<AttemptId, EngineError> {
        let (engines, scope, id) = (self.clone(), scope.clone(), *id);
        blocking(move || {
            engines.inner.held(&scope, &id)?;
            engines.inner.guard.begin(&scope, &id)
        })
        .await
    }

    /// Notes how it ended.
    ///
    /// # Errors
    /// `NotFound`, I/O.
    pub async fn end_attempt(
        &self,
        scope: &Tenant,
        operator: bool,
        id: &BundleId,
        attempt: &AttemptId,
        end: AttemptEnd,
    ) -> Result<(), EngineError> {
        let (engines, scope, id, attempt) = (self.clone(), scope.clone(), *id, attempt.clone());
        blocking(move || {
            // Of a bundle that was evicted meanwhile the verdict is kept all the same: it may come back from the shared origin.
            if !engines.inner.guard.knows(&scope, &id, &attempt)? {
                engines.inner.held(&scope, &id)?;
            }
            let stands = || engines.inner.guard.standing(&scope, &id).map(|(standing, _)| standing);
            let bad = || stands().map(|standing| matches!(standing, Standing::Quarantined { .. }));
            let before = bad()?;
            // Nobody in particular speaks for nobody else.
            engines.inner.guard.end(&scope, &id, &attempt, end, operator && scope.is_somebody())?;
            if bad()? && !before {
                engines.inner.metrics.engine_quarantines.inc();
                tracing::info!(bundle = %id, %scope, "an engine bundle is quarantined");
            }
            Ok::<(), EngineError>(())
        })
        .await
    }

    /// Counts how a start went.
    pub fn report(&self, report: &RunReport) {
        let metrics = &self.inner.metrics;
        self.inner.count_run(report.outcome);
        metrics.engine_saved_milliseconds.inc_by(report.saved_ms);
        metrics.engine_restored_bytes.inc_by(report.bytes);
    }

    /// Waits for one's turn at a key.
    pub(super) async fn turn(&self, scope: &Tenant, key: &Hash) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.inner.turns.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody waits for go, so that there are never more than there are requests.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry((scope.clone(), *key)).or_default())
        };
        turn.lock_owned().await
    }
}

/// The scopes whose bundles a scope may know.
pub(super) fn visible(scope: &Tenant) -> [Tenant; 2] {
    [scope.clone(), Tenant::node()]
}

// === impl Inner ===

impl Inner {
    /// What is here for a key.
    pub(super) fn find(&self, scope: &Tenant, key: &EngineKey) -> Result<Lookup, EngineError> {
        let (mut found, digest) = (Lookup::default(), key.digest());
        let scopes = visible(scope);
        for model in shelf::records(&self.store, &scopes, Some(&digest)) {
            let held = match shelf::read(&model) {
                Ok(held) => held,
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    self.aside(&model);
                    let why = Refusal::Corrupt { detail: error.to_string() };
                    found.refused.push(Refused { bundle: None, id: None, why });
                    continue;
                }
                // Evicted since it was listed.
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let bundle = self.reference(scope, &held)?;
            let verdict = if held.bundle.key.digest() == digest {
                self.verdict(scope, &held, &bundle.standing)
            } else {
                Err(Refusal::OtherKey { key: held.bundle.key.digest().to_string() })
            };
            match verdict {
                Ok(()) => {
                    found.exact = Some(bundle);
                    break;
                }
                Err(why) => found.refused.push(Refused { id: Some(bundle.id), bundle: Some(bundle), why }),
            }
        }
        if found.exact.is_none() {
            found.nearest = self.nearest(scope, key)?;
        }
        Ok(found)
    }

    /// Bundles of other keys that the scope could restore.
    fn nearest(&self, scope: &Tenant, key: &EngineKey) -> Result<Vec<Near>, EngineError> {
        let digest = key.digest();
        let others = shelf::records(&self.store, &visible(scope), None);
        let others = others.iter().filter(|model| shelf::kind_of(model) == Some(key.kind())).take(LOOKED_THROUGH);
        let (mut near, until) = (Vec::new(), Instant::now() + LOOK_LONGEST);
        for model in others.take_while(|_| Instant::now() < until) {
            let Some(held) = self.read(model)? else { continue };
            if held.bundle.key.digest() != digest {
                let bundle = self.reference(scope, &held)?;
                near.push((key.distance(&held.bundle.key), Near { key: held.bundle.key.clone(), bundle }));
            }
        }
        near.sort_by_key(|(distance, _)| *distance);
        Ok(near.into_iter().map(|(_, near)| near).take(NEAREST).collect())
    }

    /// A bundle that the scope may know, by its name.
    pub(super) fn held(&self, scope: &Tenant, id: &BundleId) -> Result<Held, EngineError> {
        let named = |model: &Model| shelf::id_of(model) == Some(*id);
        for model in shelf::records(&self.store, &visible(scope), None).into_iter().filter(named) {
            if let Some(held) = self.read(&model)?.filter(|held| held.id == *id) {
                return Ok(held);
            }
        }
        Err(EngineError::NotFound { what: id.to_string() })
    }

    /// Reads a record; `None` for one that is corrupt, which is put aside, or has been evicted.
    pub(super) fn read(&self, model: &Model) -> Result<Option<Held>, EngineError> {
        match shelf::read(model) {
            Ok(held) => Ok(Some(held)),
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                self.aside(model);
                Ok(None)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Quarantines the blobs of a record that do not hash to their names.
    pub(super) fn aside(&self, model: &Model) {
        let Some(manifest) = self.store.manifest(&model.record.manifest) else { return };
        for file in manifest.files() {
            let whole = self.store.open_blob(&file.blake3).and_then(|reader| reader.verify(&mut |_| {}));
            if whole.is_err_and(|error| error.kind() == ErrorKind::Corrupt) {
                self.metrics.corrupt.get_or_create(&Which { which: "read" }).inc();
                if let Err(error) = self.store.quarantine(&file.blake3, "read") {
                    tracing::warn!(%error, blob = %file.blake3, "a corrupt blob of a bundle is still in place");
                }
            }
        }
    }

    pub(super) fn verdict(&self, scope: &Tenant, held: &Held, standing: &Standing) -> Result<(), Refusal> {
        self.policy.verdict(scope, held)?;
        match standing {
            Standing::Quarantined { reason, .. } => Err(Refusal::Quarantined { reason: reason.clone() }),
            _ => Ok(()),
        }
    }

    /// A bundle in short, as a scope sees it.
    pub(super) fn reference(&self, scope: &Tenant, held: &Held) -> Result<BundleRef, EngineError> {
        let (standing, unfinished) = self.guard.standing(scope, &held.id)?;
        let Held { id, bundle, signature, .. } = held;
        let signer = signature.as_ref().map(|signature| signature.signer);
        Ok(BundleRef {
            id: *id,
            key: bundle.key.digest(),
            kind: bundle.key.kind(),
            profile: bundle.key.profile().to_owned(),
            scope: held.scope.clone(),
            signer,
            signed_by: signer.and_then(|signer| self.policy.name_of(&signer)),
            captured_at: bundle.captured_at,
            files: bundle.manifest.files().len() as u64,
            bytes: bundle.manifest.total_bytes(),
            evidence: bundle.evidence.clone(),
            standing,
            unfinished,
            pins: self.store.model(&held.scope, &held.model).map(|model| model.pins).unwrap_or_default(),
            doubted: self.guard.is_doubted(scope, &held.id)?,
            in_place: bundle.pack.is_none(),
        })
    }

    fn count_run(&self, outcome: Outcome) {
        let which = match outcome {
            Outcome::Hit => "hit",
            Outcome::Partial => "partial",
            Outcome::Inert => "inert",
            Outcome::Cold => "cold",
            Outcome::Refused => "refused",
        };
        self.metrics.engine_runs.get_or_create(&Which { which }).inc();
    }
}
