//! Bundles that are to be here before anybody starts. Whoever asks knows the digest of an engine key and not its fields, which is
//! enough to find a bundle and not enough to restore one.

use std::sync::atomic::Ordering;

use super::library::BundleRef;
use super::service::{Engines, visible};
use super::{EngineError, blocking, shelf};
use crate::digest::Hash;
use crate::model::Tenant;

/// What became of a key.
#[derive(Clone, Debug, PartialEq)]
pub enum Prewarmed {
    /// Its bundle is on the node and may be restored.
    Here(Box<BundleRef>),
    /// There is none.
    Absent,
    /// There is one, and why it may not be restored.
    Refused(String),
}

/// How far the fetch of a bundle is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fetching {
    /// Its size.
    pub bytes_total: u64,
    /// What of it is on the node.
    pub bytes_done: u64,
    /// Bytes a second since it began; 0: nothing has come yet.
    pub bytes_per_second: f64,
}

/// What a bundle would take.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Missing {
    /// Its size.
    pub bytes: u64,
    /// What of it is not on the node.
    pub missing: u64,
    /// What the shared origin gave last; `None`: that is not known.
    pub bytes_per_second: Option<f64>,
}

// === impl Engines ===

impl Engines {
    /// Has the bundle of a key on the node.
    ///
    /// # Errors
    /// The store, or the shared origin.
    pub async fn prewarm(&self, scope: &Tenant, key: &Hash) -> Result<Prewarmed, EngineError> {
        if let Some(bundle) = self.here(scope, key).await? {
            return Ok(Prewarmed::Here(Box::new(bundle)));
        }
        match self.fetch(scope, key).await? {
            None => Ok(Prewarmed::Absent),
            Some(Err(refused)) => Ok(Prewarmed::Refused(refused.why.to_string())),
            Some(Ok(())) => Ok(match self.here(scope, key).await? {
                Some(bundle) => Prewarmed::Here(Box::new(bundle)),
                None => Prewarmed::Refused(
                    "it is on the node and may not be restored: see `preheat engine show`".to_owned(),
                ),
            }),
        }
    }

    /// What having it on the node would take; `None`: there is none.
    ///
    /// # Errors
    /// As for [`Engines::prewarm`].
    pub async fn missing(&self, scope: &Tenant, key: &Hash) -> Result<Option<Missing>, EngineError> {
        let rate = self.inner.rate.load(Ordering::Relaxed);
        let bytes_per_second = (rate > 0).then_some(rate as f64);
        if let Some(bundle) = self.here(scope, key).await? {
            return Ok(Some(Missing { bytes: bundle.bytes, missing: 0, bytes_per_second }));
        }
        let size = self.size_at_origin(key).await?;
        Ok(size.map(|bytes| Missing { bytes, missing: bytes, bytes_per_second }))
    }

    /// How far the fetch of a key's bundle is, whoever has asked for it; `None`: none is under way.
    #[must_use]
    pub fn fetching(&self, key: &Hash) -> Option<Fetching> {
        self.inner.fetching.now(key)
    }

    /// The newest bundle of a key that the scope may restore.
    async fn here(&self, scope: &Tenant, key: &Hash) -> Result<Option<BundleRef>, EngineError> {
        let (engines, scope, key) = (self.clone(), scope.clone(), *key);
        blocking(move || {
            for model in shelf::records(&engines.inner.store, &visible(&scope), Some(&key)) {
                let Some(held) = engines.inner.read(&model)?.filter(|held| held.bundle.key.digest() == key) else {
                    continue;
                };
                let bundle = engines.inner.reference(&scope, &held)?;
                if engines.inner.verdict(&scope, &held, &bundle.standing).is_ok() {
                    engines.inner.store.touch(&held.scope, &held.model);
                    return Ok(Some(bundle));
                }
            }
            Ok(None)
        })
        .await
    }
}
