//! How many bytes a scope may bring to the node: weights and bundles count together, as the store charges them. Who decides how many is
//! above; here it is asked before the bytes of a bundle come in, and what is under way counts as if it were here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::EngineError;
use super::service::{Engines, Inner};
use super::shelf;
use crate::base::units::ByteSize;
use crate::digest::Hash;
use crate::model::Tenant;

/// Says how many bytes a scope may have; `None`: as many as fit.
pub type Limit = dyn Fn(&Tenant) -> Option<ByteSize> + Send + Sync;

/// The limits of a node, and what is under way.
#[derive(Default)]
pub(super) struct Quota {
    limit: OnceLock<Box<Limit>>,
    claimed: Arc<Mutex<HashMap<Tenant, u64>>>,
}

/// Bytes that are on their way for a scope; given back on drop, when the store charges them, or nobody.
#[derive(Debug)]
pub(super) struct Claim {
    scope: Tenant,
    bytes: u64,
    claimed: Arc<Mutex<HashMap<Tenant, u64>>>,
}

impl std::fmt::Debug for Quota {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quota").field("claimed", &self.claimed).finish_non_exhaustive()
    }
}

fn lock(claimed: &Mutex<HashMap<Tenant, u64>>) -> MutexGuard<'_, HashMap<Tenant, u64>> {
    claimed.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = lock(&self.claimed);
        if let Some(bytes) = claimed.get_mut(&self.scope) {
            *bytes = bytes.saturating_sub(self.bytes);
            if *bytes == 0 {
                claimed.remove(&self.scope);
            }
        }
    }
}

// === impl Engines ===

impl Engines {
    /// Holds scopes to a limit from now on. Once; without it nobody is.
    pub fn limit(&self, limit: Box<Limit>) {
        // A second is a defect of the caller and changes nothing.
        let _ = self.inner.quota.limit.set(limit);
    }
}

// === impl Inner ===

impl Inner {
    /// Claims room for a bundle that a scope brings. `keeper`: the scope that will have it; its older versions of the key go for it.
    pub(super) fn claim(&self, scope: &Tenant, keeper: &Tenant, key: &Hash, bytes: u64) -> Result<Claim, EngineError> {
        let most = self.quota.limit.get().and_then(|limit| limit(scope));
        let claimed = Arc::clone(&self.quota.claimed);
        let mut all = lock(&self.quota.claimed);
        if let Some(most) = most {
            let versions = shelf::records(&self.store, std::slice::from_ref(keeper), Some(key));
            let goes = versions.iter().skip(self.policy.config().versions_max.saturating_sub(1));
            let given_back: u64 =
                goes.filter(|model| model.record.charged_to() == scope).map(|model| model.record.bytes).sum();
            let under_way = all.get(scope).copied().unwrap_or_default();
            let used = self.store.charged_to(scope).saturating_add(under_way);
            if used.saturating_sub(given_back).saturating_add(bytes) > most.0 {
                let (used, needed) = (ByteSize(used), ByteSize(bytes));
                return Err(EngineError::Quota { scope: scope.clone(), most, used, needed });
            }
        }
        *all.entry(scope.clone()).or_default() += bytes;
        Ok(Claim { scope: scope.clone(), bytes, claimed })
    }
}
