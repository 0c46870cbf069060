//! What scopes have proved, and when. A pure decider: it is told the time and asks nobody.
//!
//! A grant is fresh for as long as the operator trusts a proof. An origin that cannot be reached then does not take it away at
//! once: for a stated time more a scope that has proved access keeps it, because a start that waits for a hub that is down is
//! what preheat is there to prevent. An origin that says no takes it away at once.
//!
//! Grants are not written down: after a restart everybody proves again, which costs one question.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::model::{OriginId, Tenant};

/// Grants that are kept; the oldest go first. At about 200 bytes each this is 20 MB, and far more than scopes times models.
const MOST: usize = 100_000;

/// What a scope has proved about an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Proved, recently enough.
    Fresh,
    /// Proved, too long ago.
    Lapsed,
    /// The origin has said no since.
    Revoked,
    /// Never asked.
    None,
}

#[derive(Clone, Copy, Debug)]
struct Grant {
    proved_at: Instant,
    /// When the origin could last not be reached to prove it again.
    unreachable_at: Option<Instant>,
    revoked: bool,
}

/// All grants of a process.
#[derive(Debug)]
pub(super) struct Grants {
    fresh_for: Duration,
    grace: Duration,
    grants: HashMap<(Tenant, OriginId), Grant>,
}

// === impl Grants ===

impl Grants {
    pub(super) fn new(fresh_for: Duration, grace: Duration) -> Self {
        Self { fresh_for, grace, grants: HashMap::new() }
    }

    /// The origin has said yes.
    pub(super) fn prove(&mut self, scope: &Tenant, origin: &OriginId, now: Instant) {
        if self.grants.len() >= MOST
            && let Some(oldest) =
                self.grants.iter().min_by_key(|(_, grant)| grant.proved_at).map(|(key, _)| key.clone())
        {
            self.grants.remove(&oldest);
        }
        let grant = Grant { proved_at: now, unreachable_at: None, revoked: false };
        self.grants.insert((scope.clone(), origin.clone()), grant);
    }

    /// The origin has said no. Whether that takes something away.
    pub(super) fn revoke(&mut self, scope: &Tenant, origin: &OriginId) -> bool {
        let grant = self.grants.get_mut(&(scope.clone(), origin.clone()));
        grant.is_some_and(|grant| !std::mem::replace(&mut grant.revoked, true))
    }

    /// The origin could not be asked.
    pub(super) fn unreachable(&mut self, scope: &Tenant, origin: &OriginId, now: Instant) {
        if let Some(grant) = self.grants.get_mut(&(scope.clone(), origin.clone())) {
            grant.unreachable_at = Some(now);
        }
    }

    /// Where a scope stands.
    pub(super) fn standing(&self, scope: &Tenant, origin: &OriginId, now: Instant) -> Standing {
        let Some(grant) = self.grants.get(&(scope.clone(), origin.clone())) else { return Standing::None };
        if grant.revoked {
            return Standing::Revoked;
        }
        let age = now.saturating_duration_since(grant.proved_at);
        // That it could not be reached is itself news only for a while: then it is asked again.
        let down = grant.unreachable_at.is_some_and(|at| now.saturating_duration_since(at) <= self.fresh_for);
        if age <= self.fresh_for || (down && age <= self.fresh_for + self.grace) {
            Standing::Fresh
        } else {
            Standing::Lapsed
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> OriginId {
        OriginId::new("s3+aws/bucket/m".to_owned())
    }

    #[test]
    fn a_proof_lasts_a_while_and_longer_when_the_origin_is_down() {
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        let mut grants = Grants::new(minute, hour);
        let (scope, other) = (Tenant::of_uid(1), Tenant::of_uid(2));
        let start = Instant::now();
        assert_eq!(grants.standing(&scope, &origin(), start), Standing::None);
        grants.prove(&scope, &origin(), start);
        assert_eq!(grants.standing(&scope, &origin(), start + minute), Standing::Fresh);
        assert_eq!(grants.standing(&other, &origin(), start), Standing::None);
        let later = start + minute + Duration::from_secs(1);
        assert_eq!(grants.standing(&scope, &origin(), later), Standing::Lapsed);
        grants.unreachable(&scope, &origin(), later);
        assert_eq!(grants.standing(&scope, &origin(), later), Standing::Fresh);
        assert_eq!(grants.standing(&scope, &origin(), later + minute * 2), Standing::Lapsed, "it is asked again");
        grants.unreachable(&scope, &origin(), start + minute + hour);
        assert_eq!(grants.standing(&scope, &origin(), start + minute + hour), Standing::Fresh);
        let over = start + minute + hour + Duration::from_secs(1);
        grants.unreachable(&scope, &origin(), over);
        assert_eq!(grants.standing(&scope, &origin(), over), Standing::Lapsed, "grace ends");
    }

    #[test]
    fn a_refusal_counts_at_once_and_until_the_next_proof() {
        let mut grants = Grants::new(Duration::from_secs(60), Duration::from_secs(60));
        let (scope, now) = (Tenant::of_uid(1), Instant::now());
        assert!(!grants.revoke(&scope, &origin()), "nothing was granted");
        grants.prove(&scope, &origin(), now);
        assert!(grants.revoke(&scope, &origin()));
        grants.unreachable(&scope, &origin(), now);
        assert_eq!(grants.standing(&scope, &origin(), now), Standing::Revoked, "an outage does not undo it");
        grants.prove(&scope, &origin(), now);
        assert_eq!(grants.standing(&scope, &origin(), now), Standing::Fresh);
    }
}
