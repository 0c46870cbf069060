//! Drives what is in memory: admits models against the budget, reads them, proves them, looks at them afterwards, reads again
//! what has gone, gives back what is in the way.
//!
//! Looking costs about a millisecond a GiB (`cachestat` walks the file's pages), so every `prewarm.memory_check` is enough for
//! 5 s of a terabyte's second; and it never takes more than a hundredth of a CPU: after a look that took long the next waits
//! a hundred times as long. The budget's numbers cost microseconds and are looked at every second, for memory can go as
//! fast as a process allocates it, and the kubelet itself looks every ten.
//!
//! Reading again is nobody's demand: while somebody waits for any model, it has one group at a time in flight.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::Config;
use super::budget::{Limits, Numbers, Shortage, Verdict};
use super::job::JobError;
use super::ledger::{Key, Ledger, Listed};
use super::member::{Member, Seen};
use super::registry::Inner;
use super::warm::{Readers, Unread, Warmed, lacking, measure, sum, whole};
use super::wire::Priority;
use crate::base::ErrorKind;
use crate::base::units::ByteSize;
use crate::digest::Hash;
use crate::model::Manifest;
use crate::store::{Model, StoreError};
use crate::sys::memory::{CgroupMemory, MachineMemory};
use crate::sys::residency::{drop_cache, resident_bytes};
use crate::telemetry::metrics::Which;

/// Between two looks at the budget.
const BUDGET_EVERY: Duration = Duration::from_secs(1);

/// The same while something is read: at 4 GB/s a gigabyte comes in meanwhile.
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// How many times the groups that the kernel took back at once are read again. It does so under pressure, a few in a
/// hundred; what is not there after a third reading will not be there after a tenth.
const READ_AGAIN: usize = 2;

/// Rounds of giving back before a model is refused: the first may free less than was hoped, since pages that a process has
/// mapped stay.
const RELEASES: usize = 4;

/// A measure that is older than this is made anew for whoever asks.
const FRESH: Duration = Duration::from_secs(1);

/// After a look of so long the next waits a hundred times as long.
const LOOK_SHARE: u32 = 100;

/// The state of the tier `memory`.
#[derive(Debug)]
pub(super) struct Residents {
    limits: Limits,
    check: Duration,
    readers: Readers,
    ledger: Mutex<Ledger>,
}

/// Who wants a model in memory.
pub(super) struct Wish<'a> {
    /// `None`: it was there, and is to be there again.
    pub(super) priority: Option<Priority>,
    /// Whether one that is wanted, was hashed and is all there need not be hashed again.
    pub(super) refresh: bool,
    /// Told of the bytes that were read.
    pub(super) read: &'a (dyn Fn(u64) + Sync),
}

/// A reading that is under way; ends with this value.
struct Reading<'a> {
    residents: &'a Residents,
    id: u64,
    whole: bool,
}

// === impl Residents ===

impl Residents {
    pub(super) fn new(config: &Config) -> std::io::Result<Self> {
        Ok(Self {
            limits: config.memory_limits(),
            check: config.memory_check.0,
            readers: Readers::new(config.threads(), config.read_ahead.0)?,
            ledger: Mutex::default(),
        })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is told of a model.
    pub(super) fn seen(&self, model: &Model) -> Option<Arc<Seen>> {
        self.ledger().seen(&key_of(model))
    }

    /// A model is to stay from now on.
    pub(super) fn keep(&self, model: &Model) {
        self.ledger().keep(&key_of(model));
    }

    fn numbers(&self, ledger: &Ledger, (machine, cgroups): &(MachineMemory, Vec<CgroupMemory>)) -> Numbers {
        let sums = ledger.sums();
        Numbers {
            machine: *machine,
            cgroups: cgroups.clone(),
            resident: sums.resident,
            promised: sums.promised,
            idle: sums.idle,
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        let last_used = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.residents.ledger().end(self.id, self.whole, last_used, Instant::now());
    }
}

fn key_of(model: &Model) -> Key {
    (model.record.tenant.clone(), model.record.id.clone())
}

/// The machine and the cgroups now.
async fn memory_now() -> Result<(MachineMemory, Vec<CgroupMemory>), JobError> {
    tokio::task::spawn_blocking(|| (MachineMemory::read().unwrap_or_default(), CgroupMemory::read_all()))
        .await
        .map_err(|_| JobError::Panicked)
}

async fn measure_now(model: &Model, manifest: &Arc<Manifest>) -> Result<HashMap<Hash, u64>, JobError> {
    let (path, manifest) = (model.path.clone(), Arc::clone(manifest));
    tokio::task::spawn_blocking(move || measure(&path, &manifest)).await.map_err(|_| JobError::Panicked)
}

// === impl Inner ===

impl Inner {
    /// Whether a model of so many bytes could be in memory if no other were: nobody should wait for bytes from afar to hear that.
    pub(super) async fn could_ever_be_in_memory(&self, total: u64) -> Result<(), JobError> {
        let memory = memory_now().await?;
        let residents = &self.residents;
        let numbers = residents.numbers(&residents.ledger(), &memory);
        if crate::sys::mutant::mutant("budget_ignored") {
            return Ok(());
        }
        residents.limits.could_ever_hold(&numbers, total).map_err(JobError::Memory)
    }

    /// Has a model in memory, hashed and proved to be there.
    pub(super) async fn to_memory(&self, model: &Model, wish: &Wish<'_>) -> Result<Warmed, JobError> {
        let residents = &self.residents;
        let missing = || StoreError::Missing { what: format!("model {}", model.record.id) };
        let manifest = self.store.manifest(&model.record.manifest).ok_or_else(missing)?;
        let (key, total) = (key_of(model), manifest.total_bytes());
        let measured = measure_now(model, &manifest).await?;
        let resident_before = sum(&manifest, &measured);
        residents.ledger().measured(&key, &measured, Instant::now());
        if wish.refresh && residents.ledger().is_whole(&key) {
            return Ok(Warmed { total, resident_before });
        }
        let mut reading = self.admit(&key, &manifest, &measured).await?;
        let narrow = AtomicBool::new(false);
        tokio::select! {
            read = self.read_all(model, &manifest, &narrow, wish) => read?,
            stopped = self.watch(&narrow, wish.priority) => return Err(stopped),
        }
        let measured = measure_now(model, &manifest).await?;
        residents.ledger().measured(&key, &measured, Instant::now());
        let there = sum(&manifest, &measured);
        reading.whole = there >= total;
        drop(reading);
        if there < total {
            let why = self.lacks_room(total - there).await?;
            return Err(JobError::NotResident { resident: ByteSize(there), total: ByteSize(total), why });
        }
        Ok(Warmed { total, resident_before })
    }

    /// Holds a model against the budget, with all that is promised already, and promises it what it needs.
    async fn admit(
        &self,
        key: &Key,
        manifest: &Arc<Manifest>,
        measured: &HashMap<Hash, u64>,
    ) -> Result<Reading<'_>, JobError> {
        let residents = &self.residents;
        let mut round = 0;
        loop {
            let memory = memory_now().await?;
            let (chosen, shortage) = {
                let mut ledger = residents.ledger();
                let (id, need) = ledger.begin(key, manifest, measured);
                let mut numbers = residents.numbers(&ledger, &memory);
                numbers.promised = numbers.promised.saturating_sub(need);
                let idle = ledger.idle(Instant::now());
                match residents.limits.decide(&numbers, need, &idle) {
                    Verdict::Allow => return Ok(Reading { residents, id, whole: false }),
                    _ if crate::sys::mutant::mutant("budget_ignored") => {
                        return Ok(Reading { residents, id, whole: false });
                    }
                    Verdict::Release(chosen, shortage) => {
                        ledger.abandon(id);
                        (chosen, shortage)
                    }
                    Verdict::Refuse(shortage) => {
                        ledger.abandon(id);
                        return Err(JobError::Memory(shortage));
                    }
                }
            };
            round += 1;
            if round > RELEASES {
                return Err(JobError::Memory(shortage));
            }
            self.release(chosen).await?;
        }
    }

    async fn read_all(
        &self,
        model: &Model,
        manifest: &Arc<Manifest>,
        narrow: &AtomicBool,
        wish: &Wish<'_>,
    ) -> Result<(), JobError> {
        let mut extents = whole(manifest);
        for round in 0.. {
            match self.residents.readers.read(&self.store, extents, narrow, wish.read).await {
                Ok(()) => {}
                Err(Unread::Panicked) => return Err(JobError::Panicked),
                Err(Unread::Blob(hash, error)) => {
                    if error.kind() == ErrorKind::Corrupt {
                        let store = self.store.clone();
                        tokio::task::spawn_blocking(move || store.quarantine(&hash, "warm"))
                            .await
                            .map_err(|_| JobError::Panicked)??;
                    }
                    return Err(error.into());
                }
            }
            if round == READ_AGAIN {
                break;
            }
            let (path, whole) = (model.path.clone(), Arc::clone(manifest));
            let look = move || lacking(&path, &whole);
            extents = tokio::task::spawn_blocking(look).await.map_err(|_| JobError::Panicked)?;
            if extents.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Returns when a reading has to stop because others have taken the room. Meanwhile sees that demand goes first.
    async fn watch(&self, narrow: &AtomicBool, priority: Option<Priority>) -> JobError {
        let residents = &self.residents;
        loop {
            if priority != Some(Priority::Demand) {
                let demand =
                    self.table().active.values().any(|job| job.priority() == Priority::Demand && !job.is_over());
                narrow.store(demand, Ordering::Relaxed);
            }
            let memory = match memory_now().await {
                Ok(memory) => memory,
                Err(error) => return error,
            };
            let (shortage, idle) = {
                let ledger = residents.ledger();
                let numbers = residents.numbers(&ledger, &memory);
                (residents.limits.must_stop(&numbers), ledger.idle(Instant::now()))
            };
            if let Some(shortage) = shortage
                && !crate::sys::mutant::mutant("budget_ignored")
            {
                // The first to go is who has not been asked for for longest.
                match idle.into_iter().next() {
                    Some(first) => {
                        if let Err(error) = self.release(vec![first]).await {
                            return error;
                        }
                    }
                    None => return JobError::Memory(shortage),
                }
            }
            tokio::time::sleep(WATCH_EVERY).await;
        }
    }

    async fn lacks_room(&self, need: u64) -> Result<Option<Shortage>, JobError> {
        let memory = memory_now().await?;
        let numbers = self.residents.numbers(&self.residents.ledger(), &memory);
        Ok(match self.residents.limits.decide::<()>(&numbers, need, &[]) {
            Verdict::Allow => None,
            Verdict::Release(_, shortage) | Verdict::Refuse(shortage) => Some(shortage),
        })
    }

    /// Gives back so many bytes of each.
    async fn release(&self, chosen: Vec<(Key, u64)>) -> Result<(), JobError> {
        for (key, bytes) in chosen {
            let droppable: HashSet<Hash> =
                self.residents.ledger().droppable(&key).into_iter().map(|(hash, _)| hash).collect();
            // What was evicted meanwhile takes its pages with it.
            let Some(model) = self.store.model(&key.0, &key.1) else { continue };
            let Some(manifest) = self.store.manifest(&model.record.manifest) else { continue };
            let (path, of) = (model.path.clone(), Arc::clone(&manifest));
            let freed = tokio::task::spawn_blocking(move || {
                let mut freed = 0;
                for file in of.files().iter().filter(|file| droppable.contains(&file.blake3)) {
                    if freed >= bytes {
                        break;
                    }
                    let Ok(opened) = File::open(path.join(file.path.as_str())) else { continue };
                    let before = resident_bytes(&opened).unwrap_or(0);
                    drop_cache(&opened);
                    freed += before.saturating_sub(resident_bytes(&opened).unwrap_or(0));
                }
                freed
            })
            .await
            .map_err(|_| JobError::Panicked)?;
            let measured = measure_now(&model, &manifest).await?;
            let now = Instant::now();
            let mut ledger = self.residents.ledger();
            ledger.measured(&key, &measured, now);
            ledger.rest(&key, now);
            drop(ledger);
            self.metrics.released_bytes.inc_by(freed);
            tracing::info!(model = %key.1, freed = %ByteSize(freed), "gave memory back");
        }
        Ok(())
    }

    // --- afterwards ---

    /// Looks after what is in memory until `stop`.
    pub(super) async fn keep_resident(self: Arc<Self>) {
        let stop = self.gate.token();
        let (mut next_look, mut again) = (Instant::now(), None);
        loop {
            let now = Instant::now();
            if now >= next_look {
                let outcome = self.look().await;
                self.say(outcome);
                next_look = Instant::now() + self.residents.check.max(now.elapsed() * LOOK_SHARE);
            }
            let outcome = self.keep_floor().await;
            self.say(outcome);
            if again.is_none() {
                let key = self.residents.ledger().missing(Instant::now());
                again = key.map(|key| Box::pin(self.again(key)));
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(BUDGET_EVERY.min(self.residents.check)) => {}
                () = async { match again.as_mut() { Some(reading) => reading.await, None => std::future::pending().await } } => {
                    again = None;
                }
            }
        }
    }

    fn say(&self, outcome: Result<(), JobError>) {
        if let Err(error) = outcome {
            tracing::error!(%error, "looking after memory failed; tried again");
        }
    }

    /// Measures every model that is wanted, or was.
    async fn look(&self) -> Result<(), JobError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut listed = Vec::new();
        for model in self.store.models() {
            let wanted = model.pins.iter().any(|pin| pin.in_memory && pin.holds_at(now));
            if let Some(manifest) = self.store.manifest(&model.record.manifest) {
                listed.push(Listed { key: key_of(&model), manifest, wanted, last_used: model.last_used });
            }
        }
        self.residents.ledger().list(listed, Instant::now());
        let keys = self.residents.ledger().keys();
        for (key, manifest) in keys {
            let Some(model) = self.store.model(&key.0, &key.1) else { continue };
            let measured = measure_now(&model, &manifest).await?;
            self.residents.ledger().measured(&key, &measured, Instant::now());
        }
        let sums = self.residents.ledger().sums();
        let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
        for (which, value) in [("wanted", sums.wanted), ("resident", sums.resident), ("idle", sums.idle)] {
            self.metrics.memory_bytes.get_or_create(&Which { which }).set(bytes(value));
        }
        Ok(())
    }

    /// Backs off where the node runs short.
    async fn keep_floor(&self) -> Result<(), JobError> {
        let memory = memory_now().await?;
        let (wanted, chosen) = {
            let ledger = self.residents.ledger();
            let numbers = self.residents.numbers(&ledger, &memory);
            let (idle, wanted) = (ledger.idle(Instant::now()), ledger.wanted(Instant::now()));
            let chosen = self.residents.limits.relieve(&numbers, &idle, &wanted);
            (wanted, chosen)
        };
        for (key, _) in chosen.iter().filter(|(key, _)| wanted.iter().any(|(of, _)| of == key)) {
            tracing::warn!(model = %key.1, "the node is short of memory: a model that is to be in memory makes way");
        }
        self.release(chosen).await
    }

    /// Reads again what has gone.
    async fn again(&self, key: Key) {
        let Some(model) = self.store.model(&key.0, &key.1) else { return };
        let begun = Instant::now();
        let wish = Wish { priority: None, refresh: false, read: &|_| {} };
        let ends = async {
            while self.residents.ledger().is_wanted(&key) {
                tokio::time::sleep(WATCH_EVERY).await;
            }
        };
        let outcome = tokio::select! {
            outcome = self.to_memory(&model, &wish) => outcome,
            () = ends => return,
        };
        match outcome {
            Ok(Warmed { total, resident_before }) => {
                let read = total.saturating_sub(resident_before);
                self.metrics.rewarmed_bytes.inc_by(read);
                self.rates.warmed(total, read, begun.elapsed().as_secs_f64());
                tracing::info!(model = %key.1, read = %ByteSize(read), "in memory again");
            }
            Err(error) => {
                if error.kind() == ErrorKind::Corrupt {
                    self.metrics.corrupt.get_or_create(&Which { which: "warm" }).inc();
                }
                let mut ledger = self.residents.ledger();
                ledger.rest(&key, Instant::now());
                // It is tried again and again; it is told once.
                if ledger.tell(&key) {
                    tracing::warn!(model = %key.1, %error, "a model that is to be in memory is not");
                }
            }
        }
    }

    /// Measures for whoever asks, where the last measure is not fresh; of many who ask one does. Gives up after a second, since a
    /// disk that hangs must not hang the answer.
    pub(super) async fn look_at(&self, member: &Member) {
        let (Some(seen), Some(model)) = (member.seen(), member.model()) else { return };
        let look = async {
            let _looking = seen.looking.lock().await;
            if seen.age().is_some_and(|age| age <= FRESH) {
                return;
            }
            // A tree that was evicted is not in memory.
            let there = match self.store.manifest(&model.record.manifest) {
                None => Some(0),
                Some(manifest) => measure_now(&model, &manifest).await.ok().map(|measured| sum(&manifest, &measured)),
            };
            seen.set(there, Instant::now());
        };
        if tokio::time::timeout(FRESH, look).await.is_err() {
            seen.set(None, Instant::now());
        }
    }
}
