//! The one running transfer of one object, and everybody who waits for it.
//!
//! A flight belongs to nobody: it is a task of its own, so a caller who goes away takes only their interest along. When nobody
//! is interested any more it goes on for a moment, for a caller who comes straight back, then stops and keeps what has
//! arrived. Making the first caller its owner was turned down: the others would have to notice the owner's death and elect
//! another, while all of them wait.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

use super::flow::Flow;
use super::schedule::{FileId, LaneId};
use super::{Priority, Progress, TransferError};
use crate::digest::Hash;
use crate::model::source::{RangeSource, RemoteFile, Validator};
use crate::model::{FlightKey, OriginId, Tenant};
use crate::store::{BlobHold, Reservation, Store};

/// What is to be fetched, and from where.
#[derive(Clone, Debug)]
pub(super) struct Errand {
    pub(super) tenant: Tenant,
    pub(super) origin_id: OriginId,
    pub(super) key: FlightKey,
    pub(super) remote: Arc<RemoteFile>,
    pub(super) origin: Arc<dyn RangeSource>,
    pub(super) lane: LaneId,
}

/// A flight.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) errand: Errand,
    /// Its name in the schedule.
    pub(super) file: FileId,
    /// That of its outboard.
    pub(super) outboard: FileId,
    pub(super) flow: Arc<Flow>,
    pub(super) reservation: Arc<Reservation>,
    pub(super) interest: watch::Sender<Interest>,
    outcome: watch::Sender<Option<Result<BlobHold, TransferError>>>,
    /// The last who waited for it wants nothing kept.
    forgotten: AtomicBool,
}

/// Who waits for a flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Interest {
    /// By class.
    waiting: [u32; 2],
    /// Nobody may join any more.
    pub(super) closed: bool,
}

/// All flights of a process.
#[derive(Debug, Default)]
pub(super) struct Flights {
    by_key: Mutex<HashMap<FlightKey, Arc<Flight>>>,
    next: AtomicU64,
}

/// Somebody's interest in a flight; dropping it gives the interest up.
#[derive(Debug)]
pub(super) struct Ticket {
    flight: Arc<Flight>,
    class: Priority,
    id: u64,
    progress: Arc<Progress>,
}

/// What a join came to.
pub(super) enum Joined {
    /// It runs, and the caller waits for it.
    Running(Ticket),
    /// It is about to end: wait for that, then look again.
    Ending(Arc<Flight>),
    /// There is none.
    None,
}

// === impl Errand ===

impl Errand {
    pub(super) fn new(tenant: &Tenant, origin_id: &OriginId, remote: RemoteFile, origin: Arc<dyn RangeSource>) -> Self {
        let validator = remote.validator.as_key();
        let key = FlightKey::new(tenant, origin_id, &remote.locator, &validator, remote.size);
        let lane = LaneId::of(origin_id);
        let (tenant, origin_id) = (tenant.clone(), origin_id.clone());
        Self { tenant, origin_id, key, remote: Arc::new(remote), origin, lane }
    }

    /// Whether an object of this key is known to have the same bytes as before. Without a validator it is not.
    pub(super) fn is_versioned(&self) -> bool {
        self.remote.validator != Validator::None
    }

    /// Whether bytes of two responses are of one version, or a mix would at least be noticed.
    pub(super) fn is_steady(&self) -> bool {
        self.is_versioned() || self.remote.blake3.is_some() || !self.remote.declared.is_empty()
    }

    /// The name under which the store keeps attempt `number`. What has no version is never resumed, not even by accident, so
    /// each attempt gets a name of its own.
    pub(super) fn key_for_store(&self, number: u32) -> FlightKey {
        if self.is_versioned() {
            return self.key;
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos());
        let validator = format!("-/{}/{now}/{number}", std::process::id());
        FlightKey::new(&self.tenant, &self.origin_id, &self.remote.locator, &validator, self.remote.size)
    }

    /// What the store has of it already. Blocking: blobs of an earlier process are hashed first.
    pub(super) fn find(&self, store: &Store) -> Option<BlobHold> {
        let RemoteFile { size, declared, blake3, .. } = &*self.remote;
        let fits = |hold: &BlobHold| hold.size == *size && blake3.is_none_or(|hash: Hash| hash == hold.hash);
        if let Some(hold) = self.is_versioned().then(|| store.hold_by_key(&self.key)).flatten().filter(fits) {
            return Some(hold);
        }
        let by_hash = blake3.as_ref().and_then(|hash| store.hold_in(&self.tenant, hash));
        let found = by_hash
            .or_else(|| declared.iter().find_map(|one| store.hold_by_declared(&self.tenant, one)))
            .filter(fits)?;
        if self.is_versioned() {
            store.learn(self.key, &found, declared);
        }
        Some(found)
    }
}

// === impl Interest ===

impl Interest {
    /// `None`: nobody waits.
    pub(super) fn class(&self) -> Option<Priority> {
        match self.waiting {
            [0, 0] => None,
            [0, _] => Some(Priority::Prefetch),
            _ => Some(Priority::Demand),
        }
    }
}

// === impl Flight ===

impl Flight {
    /// Adds a waiter, unless it is about to end.
    fn join(self: &Arc<Self>, class: Priority, id: u64, progress: Arc<Progress>) -> Option<Ticket> {
        let joined = self.interest.send_if_modified(|interest| {
            if !interest.closed {
                interest.waiting[class as usize] += 1;
            }
            !interest.closed
        });
        if !joined {
            return None;
        }
        self.forgotten.store(false, Ordering::Relaxed);
        self.flow.watch(id, Arc::clone(&progress));
        Some(Ticket { flight: Arc::clone(self), class, id, progress })
    }

    /// Lets nobody join any more, if nobody waits. Returns whether that is so.
    pub(super) fn close_if_idle(&self) -> bool {
        self.interest.send_if_modified(|interest| {
            interest.closed |= interest.class().is_none();
            interest.closed
        })
    }

    /// Lets nobody join any more.
    pub(super) fn close(&self) {
        self.interest.send_modify(|interest| interest.closed = true);
    }

    /// Waits for its outcome.
    pub(super) async fn outcome(&self) -> Result<BlobHold, TransferError> {
        let mut outcome = self.outcome.subscribe();
        let ended = outcome.wait_for(Option::is_some).await.ok().and_then(|ended| ended.clone());
        ended.unwrap_or_else(|| Err(TransferError::Defect { task: "flight", detail: "no outcome".to_owned() }))
    }

    /// Whether what has arrived is to go, since nobody wants it kept.
    pub(super) fn is_forgotten(&self) -> bool {
        self.forgotten.load(Ordering::Relaxed)
    }

    pub(super) fn class(&self) -> Priority {
        self.interest.borrow().class().unwrap_or(Priority::Prefetch)
    }
}

// === impl Flights ===

impl Flights {
    pub(super) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Bytes that the flight of an object has here already, if there is one.
    pub(super) fn arrived(&self, key: &FlightKey) -> Option<u64> {
        self.lock().get(key).map(|flight| flight.flow.verified_bytes())
    }

    /// Joins the flight of an object, if there is one.
    pub(super) fn join(&self, key: &FlightKey, class: Priority, progress: &Arc<Progress>) -> Joined {
        let Some(flight) = self.lock().get(key).cloned() else { return Joined::None };
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        flight.join(class, id, Arc::clone(progress)).map_or(Joined::Ending(flight), Joined::Running)
    }

    /// Enters a flight that the caller is about to start and waits for. The caller has seen that there is none, and holds the
    /// lock under which flights are begun.
    pub(super) fn begin(
        &self,
        errand: Errand,
        class: Priority,
        progress: &Arc<Progress>,
        reservation: Arc<Reservation>,
    ) -> (Arc<Flight>, Ticket) {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut interest = Interest::default();
        interest.waiting[class as usize] = 1;
        let flight = Arc::new(Flight {
            errand,
            file: FileId(id),
            outboard: FileId(self.next.fetch_add(1, Ordering::Relaxed)),
            flow: Arc::default(),
            reservation,
            interest: watch::Sender::new(interest),
            outcome: watch::Sender::new(None),
            forgotten: AtomicBool::new(false),
        });
        flight.flow.watch(id, Arc::clone(progress));
        self.lock().insert(flight.errand.key, Arc::clone(&flight));
        (Arc::clone(&flight), Ticket { flight, class, id, progress: Arc::clone(progress) })
    }

    /// A flight has ended: whoever asks from now on finds its blob in the store, or begins another.
    pub(super) fn end(&self, flight: &Flight, outcome: Result<BlobHold, TransferError>) {
        flight.close();
        self.lock().remove(&flight.errand.key);
        flight.outcome.send_replace(Some(outcome));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FlightKey, Arc<Flight>>> {
        self.by_key.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Ticket ===

impl Ticket {
    /// Waits for the flight's outcome.
    pub(super) async fn outcome(&self) -> Result<BlobHold, TransferError> {
        self.flight.outcome().await
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.flight.flow.unwatch(self.id);
        self.flight.interest.send_modify(|interest| {
            interest.waiting[self.class as usize] -= 1;
            // Only the last one's word counts: others still want what has arrived.
            if interest.class().is_none() {
                self.flight.forgotten.store(self.progress.is_forgotten(), Ordering::Relaxed);
            }
        });
    }
}
