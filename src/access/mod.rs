//! Who may read what. A cache hit must not be a way around its origin: whoever asks for a private model gets it only after
//! their *scope* has shown the origin a credential that may read it, and only for a while.
//!
//! A caller has an [`Identity`]: the scope that their token or their user on this machine belongs to. A reference is tried on
//! the rungs of a ladder: anonymously first, because what everybody may read is everybody's and is kept once for all;
//! then with the daemon's own credentials, where the operator lists the prefix for them; then with the credential that the
//! caller has passed. The rung that succeeds decides in which scope the model is kept, and leaves a grant: the
//! scope has proved access to that origin, now. Reading anything of a private scope needs a grant that is fresh, or a new proof.
//!
//! Turned down: asking the origin at every read (a start would wait for the hub, and a hub that is down would stop it), tying
//! rights to digests (a digest is no secret), and remembering credentials (a grant is enough, and cannot be stolen).

mod config;
mod grants;
mod identity;
mod ladder;
mod quota;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use config::{Config, ScopeConfig};
pub use grants::Standing;
pub use identity::{Identity, TokenError, Tokens};
pub use ladder::Rung;

use self::grants::Grants;
use self::quota::Rates;
use crate::base::ErrorKind;
use crate::base::units::ByteSize;
use crate::model::source::{Origin, Resolution, SourceError};
use crate::model::{Credential, OriginId, Provenance, Reference, Rights, Tenant};
use crate::origin::Origins;

/// Decides for a whole daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Access {
    inner: Arc<Inner>,
}

/// Told when an origin has taken a right back.
type Revoked = dyn Fn(&Tenant, &OriginId) + Send + Sync;

struct Inner {
    config: Config,
    origins: Origins,
    grants: Mutex<Grants>,
    rates: Mutex<Rates>,
    revoked: Box<Revoked>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner").field("config", &self.config).finish_non_exhaustive()
    }
}

/// A reference that somebody may read: where, with whose rights, and what it stands for now.
#[derive(Debug)]
pub struct Entered {
    /// The scope that keeps it.
    pub scope: Tenant,
    /// The origin, with the rights that it has granted.
    pub origin: Arc<dyn Origin>,
    /// Its identity.
    pub origin_id: OriginId,
    /// What was resolved on the way.
    pub resolution: Resolution,
}

/// Whether something that is on the node may be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Yes.
    Yes,
    /// It is somebody else's: it does not exist, as far as the caller is told.
    Hidden,
    /// Perhaps, once the origin has been asked again.
    Unproved,
}

// === impl Access ===

impl Access {
    /// Nothing is proved yet. `revoked` is told of every scope that an origin no longer lets read: what the scope could still open
    /// must go.
    #[must_use]
    pub fn new(config: Config, origins: Origins, revoked: impl Fn(&Tenant, &OriginId) + Send + Sync + 'static) -> Self {
        let grants = Grants::new(config.revalidate_after.0, config.grace_when_down.0);
        let rates = Rates::new(&config);
        let (grants, rates, revoked) = (Mutex::new(grants), Mutex::new(rates), Box::new(revoked));
        Self { inner: Arc::new(Inner { config, origins, grants, rates, revoked }) }
    }

    /// Where references are resolved.
    #[must_use]
    pub fn origins(&self) -> &Origins {
        &self.inner.origins
    }

    fn grants(&self) -> MutexGuard<'_, Grants> {
        self.inner.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request against its scope's rate.
    ///
    /// # Errors
    /// How long to wait.
    pub fn count(&self, identity: &Identity) -> Result<(), Duration> {
        self.inner.rates.lock().unwrap_or_else(PoisonError::into_inner).take(&identity.scope, Instant::now())
    }

    /// Bytes that a scope may have on the node, if that is limited.
    #[must_use]
    pub fn bytes_max(&self, scope: &Tenant) -> Option<ByteSize> {
        let of = self.inner.config.scopes.iter().find(|of| of.name == *scope);
        of.and_then(|of| of.bytes_max).or(self.inner.config.bytes_max)
    }

    /// What a reference may be tried with, checked before anything is asked of the network.
    ///
    /// # Errors
    /// `Denied` for what is not allowed to this caller, `Invalid` for a credential that cannot be one.
    pub fn ladder(
        &self,
        identity: &Identity,
        reference: &Reference,
        credential: Option<&Credential>,
    ) -> Result<Vec<Rung>, SourceError> {
        let rungs = ladder::ladder(identity, reference, self.inner.origins.listing(reference), credential)?;
        for rung in &rungs {
            self.inner.origins.open(reference, &rung.rights)?;
        }
        Ok(rungs)
    }

    /// The scopes in which the caller may be served what is here already, without asking the origin.
    #[must_use]
    pub fn standing(&self, identity: &Identity, reference: &Reference) -> Vec<Tenant> {
        let origin = self.inner.origins.identity(reference);
        let mut scopes = vec![Tenant::default(), Tenant::node(), identity.scope.clone()];
        scopes.retain(|scope| self.verdict(identity, scope, &origin, Some(reference)) == Verdict::Yes);
        scopes
    }

    /// Finds a rung that holds: resolves the reference and proves that its bytes may be read.
    ///
    /// # Errors
    /// Of the last rung; a refusal says what may be done about it.
    pub async fn enter(
        &self,
        identity: &Identity,
        reference: &Reference,
        credential: Option<&Credential>,
    ) -> Result<Entered, SourceError> {
        let rungs = self.ladder(identity, reference, credential)?;
        let origin_id = self.inner.origins.identity(reference);
        let mut refusal = None;
        let last = rungs.len();
        for (number, Rung { rights, scope }) in rungs.into_iter().enumerate() {
            let origin = self.inner.origins.open(reference, &rights)?;
            let error = match try_rung(&*origin, reference).await {
                Ok(resolution) => {
                    if !matches!(rights, Rights::Anonymous) {
                        self.grants().prove(&scope, &origin_id, Instant::now());
                    }
                    return Ok(Entered { scope, origin, origin_id, resolution });
                }
                Err(error) => error,
            };
            if !matches!(rights, Rights::Anonymous) {
                self.note_failure(&scope, &origin_id, &error);
            }
            // Private things are hidden in different words: 401, 403, 404. And who shares an address with many, and is told
            // to slow down for that, may still have an account of their own.
            let next = matches!(error.kind(), ErrorKind::Denied | ErrorKind::NotFound | ErrorKind::Busy);
            if !next || number + 1 == last {
                // With a credential refused, what that one was told says more than what nobody was.
                return Err(ladder::explain(error, &rights, reference));
            }
            refusal = Some(error);
        }
        Err(refusal.unwrap_or_else(|| SourceError::Denied {
            what: reference.base(),
            detail: "nothing that this caller has may be tried".to_owned(),
        }))
    }

    /// What a failed proof means for the grant that may be there.
    fn note_failure(&self, scope: &Tenant, origin: &OriginId, error: &SourceError) {
        match error.kind() {
            // The origin's own word alone: what this node's egress rules turn away, as after a poisoned answer of the
            // name server, never reached the origin.
            ErrorKind::Denied if matches!(error, SourceError::NotAllowed { .. }) => {
                self.grants().unreachable(scope, origin, Instant::now());
            }
            ErrorKind::Denied if self.grants().revoke(scope, origin) => {
                tracing::info!(%scope, %origin, "access is no longer granted");
                (self.inner.revoked)(scope, origin);
            }
            ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::Busy => {
                self.grants().unreachable(scope, origin, Instant::now());
            }
            _ => {}
        }
    }

    /// Whether the caller may read a published model.
    #[must_use]
    pub fn may_read(&self, identity: &Identity, of: &Provenance) -> Verdict {
        let reference = of.reference.parse().ok();
        self.verdict(identity, &of.scope, &of.origin, reference.as_ref())
    }

    fn verdict(
        &self,
        identity: &Identity,
        scope: &Tenant,
        origin: &OriginId,
        reference: Option<&Reference>,
    ) -> Verdict {
        if *scope == Tenant::default() {
            return Verdict::Yes;
        }
        let node = *scope == Tenant::node();
        // The operator may have taken the prefix off the list since.
        let listed = || {
            let listing = reference.and_then(|reference| self.inner.origins.listing(reference));
            listing.is_some_and(|listing| listing.credentials && listing.scopes.is_empty())
        };
        if if node { !listed() } else { *scope != identity.scope } {
            return Verdict::Hidden;
        }
        match self.grants().standing(scope, origin, Instant::now()) {
            Standing::Fresh => Verdict::Yes,
            Standing::Lapsed | Standing::Revoked | Standing::None => Verdict::Unproved,
        }
    }

    /// Proves again what has lapsed, with the daemon's own credentials where they count, else with the caller's. Whether it is
    /// proved is then [`Access::may_read`]'s to say.
    ///
    /// # Errors
    /// What the origin says, or that a credential is needed.
    pub async fn prove_again(
        &self,
        identity: &Identity,
        of: &Provenance,
        credential: Option<&Credential>,
    ) -> Result<(), SourceError> {
        let what = of.origin.to_string();
        let reference: Reference = of
            .reference
            .parse()
            .map_err(|_| SourceError::Invalid { detail: format!("the record of {what} has no valid reference") })?;
        let wanted = |rung: &Rung| rung.scope == of.scope && !matches!(rung.rights, Rights::Anonymous);
        let rungs = self.ladder(identity, &reference, credential)?;
        let Some(rung) = rungs.into_iter().find(wanted) else {
            return Err(SourceError::Denied {
                what,
                detail: format!(
                    "scope {} has not proved access in the last {}: pass the credential with the request, or fetch it again with one",
                    of.scope, self.inner.config.revalidate_after
                ),
            });
        };
        let origin = self.inner.origins.open(&reference, &rung.rights)?;
        match try_rung(&*origin, &reference).await {
            Ok(_) => {
                self.grants().prove(&rung.scope, &of.origin, Instant::now());
                Ok(())
            }
            Err(error) => {
                self.note_failure(&rung.scope, &of.origin, &error);
                Err(error)
            }
        }
    }
}

async fn try_rung(origin: &dyn Origin, reference: &Reference) -> Result<Resolution, SourceError> {
    let resolution = origin.resolve(reference).await?;
    origin.prove(&resolution).await?;
    Ok(resolution)
}
