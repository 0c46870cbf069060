//! What people decide about a bundle: that it stays, and that what was said against it no longer counts.
//!
//! A scope takes back its own word; what others say, and what holds for everybody, is the operator's. A lease ends by itself and is
//! anybody's who may restore the bundle; a pin takes room from everybody, and is its owner's or the operator's.

use super::library::{BundleRef, Standing};
use super::service::Engines;
use super::shelf::{self, Held};
use super::{EngineError, blocking};
use crate::model::{BundleId, Tenant};
use crate::store::Pin;

/// Longest reason that is written down.
const REASON_MOST: usize = 1000;

/// Who decides.
#[derive(Clone, Debug)]
pub struct Decider {
    /// Their scope.
    pub scope: Tenant,
    /// Whether they look after the node.
    pub operator: bool,
}

// === impl Decider ===

impl Decider {
    fn must_own(&self, held: &Held, what: &str) -> Result<(), EngineError> {
        if self.operator || held.scope == self.scope {
            return Ok(());
        }
        let why = format!("{what} what others restore too is for the operator");
        Err(EngineError::Denied { what: format!("bundle {}", held.id), why })
    }
}

// === impl Engines ===

impl Engines {
    /// Releases a bundle from quarantine and suspicion, and says so in the log. `reason` is for whoever reads that.
    ///
    /// # Errors
    /// `NotFound`; `Denied` if it is quarantined by others still; I/O.
    pub async fn release(&self, by: &Decider, id: &BundleId, reason: &str) -> Result<BundleRef, EngineError> {
        let (engines, by, id) = (self.clone(), by.clone(), *id);
        let reason: String = reason.chars().filter(|c| !c.is_control()).take(REASON_MOST).collect();
        blocking(move || {
            let inner = &engines.inner;
            let held = inner.known_to(&by, &id)?;
            let released = inner.guard.release(&by.scope, &id, by.operator)?;
            if !released.is_empty() {
                let of = released.iter().map(Tenant::as_str).collect::<Vec<_>>().join(" ");
                let Decider { scope, operator } = &by;
                tracing::info!(bundle = %id, by = %scope, operator, %of, reason, "an engine bundle is released from quarantine");
            }
            let bundle = inner.reference(&by.scope, &held)?;
            if let Standing::Quarantined { reason, .. } = &bundle.standing {
                let why = format!("others have quarantined it ({reason}), and taking that back is for the operator");
                return Err(EngineError::Denied { what: format!("bundle {id}"), why });
            }
            Ok(bundle)
        })
        .await
    }

    /// Pins a bundle, or leases it until the pin lapses.
    ///
    /// # Errors
    /// `NotFound`, `Denied`, those of the store.
    pub async fn pin(&self, by: &Decider, id: &BundleId, pin: Pin) -> Result<BundleRef, EngineError> {
        let (engines, by, id) = (self.clone(), by.clone(), *id);
        blocking(move || {
            let held = engines.inner.known_to(&by, &id)?;
            if pin.expires_at.is_none() {
                by.must_own(&held, "pinning")?;
            }
            engines.inner.store.pin(&held.scope, &held.model, pin)?;
            engines.inner.reference(&by.scope, &held)
        })
        .await
    }

    /// Takes a pin or lease away.
    ///
    /// # Errors
    /// `NotFound`, also of the pin; `Denied`, those of the store.
    pub async fn unpin(&self, by: &Decider, id: &BundleId, name: &str) -> Result<BundleRef, EngineError> {
        let (engines, by, id, name) = (self.clone(), by.clone(), *id, name.to_owned());
        blocking(move || {
            let held = engines.inner.known_to(&by, &id)?;
            by.must_own(&held, "unpinning")?;
            if !engines.inner.store.unpin(&held.scope, &held.model, &name)? {
                return Err(EngineError::NotFound { what: format!("{id} with a pin `{name}`") });
            }
            engines.inner.reference(&by.scope, &held)
        })
        .await
    }
}

impl super::service::Inner {
    /// A bundle that somebody may know: one of their own or everybody's; the operator knows all.
    fn known_to(&self, by: &Decider, id: &BundleId) -> Result<Held, EngineError> {
        if by.operator {
            for model in self.store.models().iter().filter(|model| shelf::id_of(model) == Some(*id)) {
                if let Some(held) = self.read(model)?.filter(|held| held.id == *id) {
                    return Ok(held);
                }
            }
        }
        self.held(&by.scope, id)
    }
}
