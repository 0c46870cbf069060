//! The library without a daemon: a store of one's own, opened for each call and closed after it, so that many starts on one machine
//! share it. Whoever runs the command is the identity.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;

use super::config::Config;
use super::library::{
    AttemptEnd, AttemptId, BundleRef, BundleView, Capture, Captured, Library, Lookup, Near, RunReport,
};
use super::publishing::Damaged;
use super::sending::{Sending, until_settled};
use super::unpacking::{Restored, unpack, unpack_stream};
use super::{Begun, Decider, EngineError, Engines, InPlace, Opened, blocking, pack_of};
use crate::base::ErrorKind;
use crate::model::engine::EngineKey;
use crate::model::{BundleId, Tenant};
use crate::origin::Origins;
use crate::store::{Holder, Options, Pin, Store, StoreError};
use crate::sys::peer::own_uid;
use crate::telemetry::metrics::Metrics;

/// Bundles of a root on this machine.
#[derive(Debug)]
pub struct LocalLibrary {
    root: PathBuf,
    config: Config,
    origins: Origins,
    scope: Tenant,
    metrics: Arc<Metrics>,
    damaged: Damaged,
}

/// How long a call waits for another command that has the store open. A capture of some GB takes that long on a slow disk.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(25);
/// What the lock's holder is called while a call has the store.
const ROLE: &str = "engine";

// === impl LocalLibrary ===

impl LocalLibrary {
    /// The library of a root; it is made if it does not exist.
    ///
    /// # Errors
    /// Settings that cannot work, a root that is no store or another's.
    pub async fn open(root: &Path, config: Config, origins: Origins) -> Result<Self, EngineError> {
        let (scope, metrics) = (Tenant::of_uid(own_uid()), Arc::new(Metrics::new()));
        let library = Self { root: root.to_owned(), config, origins, scope, metrics, damaged: Damaged::default() };
        // What is wrong with it is told here and not in the middle of a start.
        library.close(library.engines().await?).await?;
        Ok(library)
    }

    /// The identity that everything is done under.
    #[must_use]
    pub fn scope(&self) -> &Tenant {
        &self.scope
    }

    /// Takes the store for one call.
    ///
    /// # Errors
    /// `Locked` by a daemon, or by another command for too long; those of the store.
    pub async fn engines(&self) -> Result<(Engines, Store), EngineError> {
        let (root, config, origins) = (self.root.clone(), self.config.clone(), self.origins.clone());
        let (metrics, damaged) = (Arc::clone(&self.metrics), self.damaged.clone());
        blocking(move || {
            let store = open(&root)?;
            Ok((Engines::knowing(damaged, config, store.clone(), &origins, metrics)?, store))
        })
        .await
    }

    /// Gives it back: what was captured is durable then, and published if it is to be.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn close(&self, (engines, store): (Engines, Store)) -> Result<(), EngineError> {
        engines.drain().await;
        drop(engines);
        blocking(move || Ok(store.close()?)).await
    }
}

fn open(root: &Path) -> Result<Store, EngineError> {
    let options = Options::for_process().map_err(|error| EngineError::io("read the boot id for", root, error))?;
    let holder = Holder { role: ROLE.to_owned(), pid: std::process::id() };
    let until = Instant::now() + PATIENCE;
    loop {
        match Store::open(root, &holder, options.clone()) {
            // A command is done soon; a daemon stays.
            Err(StoreError::Locked { holder, .. }) if holder.role != "serve" && Instant::now() < until => {
                std::thread::sleep(PAUSE);
            }
            outcome => return Ok(outcome?),
        }
    }
}

#[async_trait]
impl Library for LocalLibrary {
    async fn lookup(&self, key: &EngineKey, deadline: Duration) -> Result<Lookup, EngineError> {
        let store = self.engines().await?;
        let outcome = store.0.lookup(&self.scope, key, deadline).await;
        self.close(store).await?;
        outcome
    }

    async fn restore(&self, bundle: &BundleRef, into: &Path) -> Result<Restored, EngineError> {
        let store = self.engines().await?;
        let opened = store.0.open(&self.scope, &bundle.id).await;
        // The pack stays open, and the store is free for others while it is unpacked.
        self.close(store).await?;
        let (opened, into) = (opened?, into.to_owned());
        blocking(move || match (&opened.pack, &opened.files) {
            (Some((pack, _)), _) => unpack(&opened.document, pack, &into),
            (None, Some(files)) => unpack_stream(&opened.document, pack_of(&opened.document, files).as_mut(), &into),
            (None, None) => Err(EngineError::Defect),
        })
        .await
    }

    async fn in_place(&self, bundle: &BundleRef) -> Result<InPlace, EngineError> {
        let store = self.engines().await?;
        let opened = store.0.open(&self.scope, &bundle.id).await;
        self.close(store).await?;
        let Opened { document, files, .. } = opened?;
        let shown = blocking(move || InPlace::verify(&document, files.as_deref())).await;
        if shown.as_ref().is_err_and(|error| error.kind() == ErrorKind::Corrupt) {
            let store = self.engines().await?;
            let rechecked = store.0.recheck(&self.scope, &bundle.id).await;
            self.close(store).await?;
            rechecked?;
        }
        shown
    }

    async fn capture(&self, capture: Capture) -> Result<Captured, EngineError> {
        let capture = Arc::new(capture);
        until_settled(|| self.capture_once(&capture)).await
    }

    async fn begin_attempt(&self, bundle: &BundleId) -> Result<AttemptId, EngineError> {
        let store = self.engines().await?;
        let outcome = store.0.begin_attempt(&self.scope, bundle).await;
        self.close(store).await?;
        outcome
    }

    async fn end_attempt(&self, bundle: &BundleId, attempt: &AttemptId, end: AttemptEnd) -> Result<(), EngineError> {
        let store = self.engines().await?;
        let outcome = store.0.end_attempt(&self.scope, false, bundle, attempt, end).await;
        self.close(store).await?;
        outcome
    }

    async fn release(&self, bundle: &BundleId, reason: &str) -> Result<BundleRef, EngineError> {
        let store = self.engines().await?;
        let outcome = store.0.release(&self.decider(), bundle, reason).await;
        self.close(store).await?;
        outcome
    }

    async fn pin(
        &self,
        bundle: &BundleId,
        name: &str,
        reason: &str,
        lease: Option<u64>,
    ) -> Result<BundleRef, EngineError> {
        let expires_at = lease.map(|seconds| super::now().saturating_add(seconds));
        let pin = Pin { id: name.to_owned(), reason: reason.to_owned(), expires_at, in_memory: false };
        let store = self.engines().await?;
        let outcome = store.0.pin(&self.decider(), bundle, pin).await;
        self.close(store).await?;
        outcome
    }

    async fn unpin(&self, bundle: &BundleId, name: &str) -> Result<BundleRef, EngineError> {
        let store = self.engines().await?;
        let outcome = store.0.unpin(&self.decider(), bundle, name).await;
        self.close(store).await?;
        outcome
    }

    async fn list(&self) -> Result<Vec<Near>, EngineError> {
        let store = self.engines().await?;
        let outcome = store.0.list(&self.scope).await;
        self.close(store).await?;
        outcome
    }

    async fn show(&self, bundle: &BundleId) -> Result<BundleView, EngineError> {
        let store = self.engines().await?;
        let outcome = store.0.show(&self.scope, bundle).await;
        self.close(store).await?;
        outcome
    }

    async fn pack(&self, bundle: &BundleId) -> Result<Box<dyn Read + Send>, EngineError> {
        let store = self.engines().await?;
        let opened = store.0.open(&self.scope, bundle).await;
        self.close(store).await?;
        let opened = opened?;
        match (opened.pack, opened.files) {
            (Some((pack, _)), _) => Ok(Box::new(pack)),
            (None, Some(files)) => Ok(pack_of(&opened.document, &files)),
            (None, None) => Err(EngineError::Defect),
        }
    }

    async fn import(&self, mut archive: Box<dyn Read + Send>) -> Result<BundleRef, EngineError> {
        let store = self.engines().await?;
        let (engines, scope) = (store.0.clone(), self.scope.clone());
        let outcome = blocking(move || engines.import(&scope, true, archive.as_mut())).await;
        self.close(store).await?;
        outcome
    }

    async fn report(&self, _report: &RunReport) -> Result<(), EngineError> {
        // Nobody reads the metrics of a command.
        Ok(())
    }
}

impl LocalLibrary {
    /// Who may write to a root looks after it.
    fn decider(&self) -> Decider {
        Decider { scope: self.scope.clone(), operator: true }
    }

    async fn capture_once(&self, capture: &Arc<Capture>) -> Result<Captured, EngineError> {
        let listed = Arc::clone(capture);
        let (mut sending, draft) = blocking(move || Sending::prepare(&listed)).await?;
        let store = self.engines().await?;
        let outcome = async {
            match store.0.begin_capture(&self.scope, draft).await? {
                Begun::Done(captured) => Ok(*captured),
                Begun::Wanted(mut capturing) => {
                    let capturing = blocking(move || {
                        sending.search()?;
                        sending.read(&mut |bytes| capturing.push(bytes))?;
                        Ok(capturing)
                    })
                    .await?;
                    capturing.finish().await
                }
            }
        };
        let outcome = outcome.await;
        self.close(store).await?;
        outcome
    }
}
