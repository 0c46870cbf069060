//! Bytes at rest: a content-addressed store in one directory, written by one process, that keeps what it has acknowledged
//! through kills and power cuts. `cache-layout/README.md` specifies the format and argues the order of every write; this
//! folder follows it, one file a section.
//!
//! Files are the truth and the index is rebuilt by listing them. A database beside the files was turned down: it would be a
//! second truth that a crash can set against the first, and the first would still have to be checked.

mod blob;
mod catalog;
mod cold;
mod error;
mod evict;
mod frame;
mod index;
mod inner;
mod journal;
mod known;
mod layout;
mod lock;
mod options;
mod partial;
mod peek;
mod pins;
mod publish;
mod quarantine;
mod readonly;
mod recover;
mod scopes;
mod scrub;
mod seal;
mod small;
mod space;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

pub use blob::BlobReader;
pub use error::StoreError;
pub use options::Options;
pub use partial::Partial;
pub use readonly::ReadOnlyStore;
pub use scopes::{Admissions, Admitted};

use self::error::IoContext;
use self::evict::{BEING_WRITTEN, Goal};
use self::index::Home;
use self::inner::{Inner, now};
use self::layout::Layout;
use self::lock::RootLock;
use crate::digest::{Declared, Hash};
use crate::model::{FlightKey, Manifest, ModelId, ModelRecord, Tenant};
use crate::sys::disk::Disk;

/// Who holds the lock of a root; written into `lock` for the next to read.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Holder {
    /// `serve` or `fetch`.
    pub role: String,
    /// Process id, in its own namespace.
    pub pid: u32,
}

/// How far the bytes of a blob have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BlobState {
    /// Whole and verified; lost in a power cut.
    Readable,
    /// Durable and named.
    Sealed,
}

/// What `publish` is given: every blob of `manifest` is held.
#[derive(Debug)]
pub struct Publication {
    /// The record to store; its `manifest`, `bytes` and `files` agree with `manifest`.
    pub record: ModelRecord,
    /// The manifest.
    pub manifest: Manifest,
    /// One hold for each distinct blob.
    pub blobs: Vec<BlobHold>,
    /// Name of the alias to move to this tree, for a moving reference.
    pub alias: Option<String>,
}

/// A model as the store has it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Model {
    /// Its record.
    pub record: ModelRecord,
    /// Absolute path of its tree.
    pub path: PathBuf,
    /// Whether record, manifest and blobs would survive a power cut now.
    pub durable: bool,
    /// Last use, seconds since the epoch.
    pub last_used: u64,
    /// Pins and leases on it.
    pub pins: Vec<Pin>,
}

/// Why a model may not be evicted.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Chosen by who pins; the same id replaces. `[a-z0-9-]`, at most 63.
    pub id: String,
    /// For people.
    pub reason: String,
    /// Seconds since the epoch when it lapses; `None`: a pin until removed; otherwise a lease.
    pub expires_at: Option<u64>,
    /// Whether it is to stay in the page cache as well, as far as there is room.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub in_memory: bool,
}

/// What the store holds, in bytes allocated on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct Usage {
    /// The cap in force.
    pub capacity: u64,
    /// Blobs and outboards, sealed or readable.
    pub blobs: u64,
    /// Partials.
    pub partials: u64,
    /// Reserved for transfers under way, beyond what they have allocated.
    pub reserved: u64,
    /// Quarantined.
    pub quarantined: u64,
    /// Number of blobs.
    pub blob_count: u64,
    /// Number of models.
    pub model_count: u64,
}

/// What an eviction or `gc` did.
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Evicted {
    /// Models removed.
    pub models: Vec<ModelId>,
    /// Blobs removed.
    pub blobs: u64,
    /// Bytes given back to the file system.
    pub bytes: u64,
    /// Models that would have gone, and why they stayed (`pinned`, `leased`, `in use`).
    pub kept: Vec<(ModelId, String)>,
}

/// One file that failed verification.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// Which blob, where it is known.
    pub blob: Option<Hash>,
    /// Which file, relative to the root.
    pub file: PathBuf,
    /// What is wrong.
    pub what: String,
}

/// Bytes promised to a transfer; what is not spent returns on drop.
#[derive(Debug)]
pub struct Reservation {
    inner: Arc<Inner>,
    left: AtomicU64,
}

/// Outcome of [`Store::seal_step`].
#[derive(Clone, Copy, Debug, Default)]
pub struct SealProgress {
    /// Blobs sealed in this step.
    pub sealed: u64,
    /// Models that became durable in this step.
    pub models: u64,
    /// Whether anything readable still waits.
    pub more: bool,
}

/// Outcome of [`Store::scrub_step`].
#[derive(Clone, Debug, Default)]
pub struct ScrubProgress {
    /// Bytes hashed.
    pub bytes: u64,
    /// Bytes that it counts as where a rate is kept: a small blob costs more than its bytes.
    pub cost: u64,
    /// What was wrong; already quarantined.
    pub faults: Vec<Fault>,
    /// Whether everything that was sealed has been hashed since the round began.
    pub round_done: bool,
}

/// Outcome of [`ReadOnlyStore::verify`].
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Verification {
    /// Blobs hashed and right.
    pub blobs: u64,
    /// Bytes hashed.
    pub bytes: u64,
    /// Models checked.
    pub models: u64,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

/// The writing store: one per root and process. Cheap to clone. Every method may block; async code calls it from hands.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

/// A readable blob, kept from eviction while this value lives.
#[derive(Clone, Debug)]
pub struct BlobHold {
    /// Its name.
    pub hash: Hash,
    /// Its size in bytes.
    pub size: u64,
    /// Counted, never read: see [`index::Blob::is_held`].
    _token: Arc<()>,
}

// === impl Store ===

impl Store {
    /// Takes the lock of `root` (made if absent), checks the format, recovers, lists.
    ///
    /// # Errors
    /// `Locked` with the holder, `NewerFormat`, `NotAStore`, or I/O.
    pub fn open(root: &Path, holder: &Holder, options: Options) -> Result<Self, StoreError> {
        // Trees are named by absolute paths, whatever the working directory is later.
        let root = std::path::absolute(root).at("resolve store directory", root)?;
        let layout = Layout::new(&root);
        crate::sys::durable::make_directories(&root).at("make store directory", &root)?;
        // Somebody else's directory stays as it is.
        layout.recognise()?;
        let lock = RootLock::take(&layout, holder)?;
        layout.prepare()?;
        let (index, catalog) = recover::recover(&layout, &options)?;
        let disk = options.disk.clone().map_or_else(Disk::of_environment, Ok)?;
        let inner = Inner {
            layout,
            options,
            disk,
            index: Mutex::new(index),
            catalog: Mutex::new(catalog),
            sealing: Mutex::default(),
            evicting: Mutex::default(),
            scrubbing: Mutex::default(),
            halted: OnceLock::new(),
            #[cfg(test)]
            crash_at: Mutex::default(),
            _lock: lock,
        };
        inner.open_scopes()?;
        inner.recover_trees()?;
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The root directory, absolute.
    #[must_use]
    pub fn root(&self) -> &Path {
        self.inner.layout.root()
    }

    /// The settings in force.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.inner.options
    }

    /// Who reads and writes its files.
    #[must_use]
    pub fn disk(&self) -> &Disk {
        &self.inner.disk
    }

    /// Why the store has stopped writing, if it has.
    #[must_use]
    pub fn halted(&self) -> Option<&str> {
        self.inner.halted.get().map(String::as_str)
    }

    // --- blobs ---

    /// Holds a blob that is here, readable or sealed.
    #[must_use]
    pub fn hold(&self, hash: &Hash) -> Option<BlobHold> {
        self.inner.trusted(hash)
    }

    /// Holds the blob that this object version became earlier.
    #[must_use]
    pub fn hold_by_key(&self, key: &FlightKey) -> Option<BlobHold> {
        let hash = self.inner.index().known.by_key(key)?;
        self.inner.trusted(&hash)
    }

    /// Holds a blob that a model of `scope`, or a public one, names.
    #[must_use]
    pub fn hold_in(&self, scope: &Tenant, hash: &Hash) -> Option<BlobHold> {
        if self.inner.index().is_named_in(scope, hash) { self.inner.trusted(hash) } else { None }
    }

    /// Holds the blob with this origin digest, as [`Store::hold_in`]; only collision-resistant algorithms are looked up.
    #[must_use]
    pub fn hold_by_declared(&self, scope: &Tenant, declared: &Declared) -> Option<BlobHold> {
        if !declared.algorithm.is_collision_resistant() {
            return None;
        }
        let hash = self.inner.index().known.by_sha256(&declared.hex)?;
        self.hold_in(scope, &hash)
    }

    /// Opens a blob for verified reading. Its outboard is checked against its name here, once.
    ///
    /// # Errors
    /// `Missing`, `Corrupt` (the caller quarantines), or I/O.
    pub fn open_blob(&self, hash: &Hash) -> Result<BlobReader, StoreError> {
        let inner = &self.inner;
        // Sealing may rename the file between looking its place up and opening it.
        for _ in 0..2 {
            let known = inner.index().blobs.get(hash).map(|blob| (blob.home, blob.cvs.clone()));
            let Some((home, cvs)) = known else { break };
            let path = inner.place(home, hash);
            let cvs = if cvs.is_none() && home != Home::Sealed { Some(inner.hash_small(hash, &path)?) } else { cvs };
            match BlobReader::open(hash, &path, cvs, &inner.layout.outboard(hash)) {
                Err(StoreError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
                outcome => return outcome,
            }
        }
        Err(StoreError::Missing { what: format!("blob {hash}") })
    }

    /// How far `hash` has come; `None` if it is not here.
    #[must_use]
    pub fn blob_state(&self, hash: &Hash) -> Option<BlobState> {
        self.inner.index().state(hash)
    }

    /// Moves a blob that failed verification aside and withdraws the trees that link it. Idempotent.
    ///
    /// # Errors
    /// I/O.
    pub fn quarantine(&self, hash: &Hash, noticed_by: &str) -> Result<(), StoreError> {
        self.inner.quarantine_blob(hash, noticed_by)
    }

    // --- construction ---

    /// What beginning this object will cost: nothing if its partial is here already.
    #[must_use]
    pub fn cost_to_begin(&self, key: &FlightKey, size: u64) -> u64 {
        if self.inner.index().partials.get(key).is_some_and(|entry| entry.size == size) { 0 } else { space::cost(size) }
    }

    /// What publishing a model of so many files costs beside its blobs.
    #[must_use]
    pub fn cost_of_model(files: u64) -> u64 {
        space::model_cost(files)
    }

    /// Makes room (evicting if needed, but not the partials in `keep`) and promises that `bytes` more will fit.
    ///
    /// # Errors
    /// `NoSpace` saying what was asked, what there is and what is kept by whom.
    pub fn reserve(&self, bytes: u64, keep: &[FlightKey]) -> Result<Reservation, StoreError> {
        self.inner.check_writable()?;
        let mut kept = Vec::new();
        for attempt in 0..3 {
            let available = self.inner.available()?;
            let shortfall = {
                let mut index = self.inner.index();
                let capacity = self.inner.capacity(&index, available);
                let shortfall = index.account.shortfall(bytes, capacity, available, self.inner.keep_free()?);
                if shortfall == 0 || crate::sys::mutant::mutant("cap_checked_after_write") {
                    index.account.reserved += bytes;
                    return Ok(Reservation { inner: Arc::clone(&self.inner), left: AtomicU64::new(bytes) });
                }
                shortfall
            };
            if attempt == 0
                && let Err(kept) = self.inner.may_free(shortfall, keep)
            {
                return Err(self.inner.no_space(bytes, &kept));
            }
            match attempt {
                0 => kept = self.inner.evict(Goal::Free(shortfall), keep)?.kept,
                // What has just become readable may go once it is durable.
                1 if kept.iter().any(|(_, why)| why == BEING_WRITTEN) => {
                    self.flush()?;
                    kept = self.inner.evict(Goal::Free(shortfall), keep)?.kept;
                }
                _ => {}
            }
        }
        Err(self.inner.no_space(bytes, &kept))
    }

    /// Starts or resumes a blob. What an earlier attempt left is re-hashed and kept if right.
    ///
    /// # Errors
    /// `NoSpace`, I/O, or `Misuse` if it is open already.
    pub fn begin(&self, key: FlightKey, size: u64, reservation: &Reservation) -> Result<Partial, StoreError> {
        Partial::begin(&self.inner, key, size, reservation)
    }

    /// Stores a small blob (at most [`Options::small_bytes`]) that is whole and in memory, its declared digests checked.
    ///
    /// # Errors
    /// `NoSpace` or I/O.
    pub fn put_small(
        &self,
        key: FlightKey,
        bytes: &[u8],
        declared: &[Declared],
        reservation: &Reservation,
    ) -> Result<BlobHold, StoreError> {
        self.inner.put_small(key, bytes, declared, reservation)
    }

    /// Notes that this object version is a blob that is here already.
    pub fn learn(&self, key: FlightKey, blob: &BlobHold, declared: &[Declared]) {
        self.inner.learn(key, &blob.hash, blob.size, declared);
    }

    // --- models ---

    /// Makes a model readable: pending file, tree, alias. Durability follows with [`Store::seal_step`].
    ///
    /// # Errors
    /// `Missing` if a blob is not here, `NoSpace`, I/O.
    pub fn publish(&self, publication: Publication) -> Result<Model, StoreError> {
        self.inner.publish_model(publication)
    }

    /// A published model whose tree is in place.
    #[must_use]
    pub fn model(&self, tenant: &Tenant, id: &ModelId) -> Option<Model> {
        self.inner.index().view(&self.inner.layout, &(tenant.clone(), id.clone()))
    }

    /// All published models, by id.
    #[must_use]
    pub fn models(&self) -> Vec<Model> {
        let index = self.inner.index();
        index.models.keys().filter_map(|key| index.view(&self.inner.layout, key)).collect()
    }

    /// The manifest of a known model.
    #[must_use]
    pub fn manifest(&self, digest: &Hash) -> Option<Arc<Manifest>> {
        let index = self.inner.index();
        index.models.values().find(|entry| entry.record.manifest == *digest).map(|entry| Arc::clone(&entry.manifest))
    }

    /// Where unfinished jobs are written down, and where their files are made.
    #[must_use]
    pub fn jobs_directory(&self) -> (PathBuf, PathBuf) {
        (self.inner.layout.jobs(), self.inner.layout.temporaries())
    }

    /// Where it is written down how bundles fared, and where such files are made.
    #[must_use]
    pub fn engines_directory(&self) -> (PathBuf, PathBuf) {
        (self.inner.layout.engines(), self.inner.layout.temporaries())
    }

    /// Notes a use now, for the eviction order.
    pub fn touch(&self, tenant: &Tenant, id: &ModelId) {
        self.inner.touch_model(&(tenant.clone(), id.clone()));
    }

    /// Where the tree of a model is or would be.
    #[must_use]
    pub fn tree_path(&self, tenant: &Tenant, id: &ModelId) -> PathBuf {
        self.inner.layout.tree(tenant, id)
    }

    /// Pins (or leases) a known model; durable when it returns.
    ///
    /// # Errors
    /// `Missing`, `Refused` for a bad or surplus pin, I/O.
    pub fn pin(&self, tenant: &Tenant, id: &ModelId, pin: Pin) -> Result<(), StoreError> {
        self.inner.pin_model(&(tenant.clone(), id.clone()), pin)
    }

    /// Removes a pin. Returns whether it was there.
    ///
    /// # Errors
    /// `Missing`, I/O.
    pub fn unpin(&self, tenant: &Tenant, id: &ModelId, pin_id: &str) -> Result<bool, StoreError> {
        self.inner.unpin_model(&(tenant.clone(), id.clone()), pin_id)
    }

    // --- housekeeping ---

    /// Seals a batch of what is readable and finishes the publications that it completes.
    ///
    /// # Errors
    /// A failed sync halts the store.
    pub fn seal_step(&self) -> Result<SealProgress, StoreError> {
        self.inner.seal_batch()
    }

    /// Seals everything: after it returns nothing that is published can be lost.
    ///
    /// # Errors
    /// As [`Store::seal_step`].
    pub fn flush(&self) -> Result<(), StoreError> {
        while self.inner.seal_batch()?.more {}
        Ok(())
    }

    /// Evicts down to the low watermark if above the high one; drops lapsed leases and aged leftovers.
    ///
    /// # Errors
    /// I/O.
    pub fn keep_watermarks(&self) -> Result<Evicted, StoreError> {
        self.inner.drop_lapsed()?;
        let (total, capacity) = {
            let available = self.inner.available()?;
            let index = self.inner.index();
            (index.account.total(), self.inner.capacity(&index, available))
        };
        let Options { high_watermark, low_watermark, .. } = self.inner.options;
        if total as f64 <= capacity as f64 * high_watermark {
            return Ok(Evicted::default());
        }
        let goal = total - (capacity as f64 * low_watermark) as u64;
        self.inner.evict(Goal::Free(goal), &[])
    }

    /// Evicts everything that is not pinned, leased, held or in use if `all`; otherwise only orphans and stale partials.
    ///
    /// # Errors
    /// I/O.
    pub fn gc(&self, all: bool) -> Result<Evicted, StoreError> {
        self.inner.drop_lapsed()?;
        if all {
            // What is readable and not yet durable is kept from eviction: make it durable first.
            self.flush()?;
        }
        self.inner.evict(if all { Goal::All } else { Goal::Orphans }, &[])
    }

    /// Evicts one model.
    ///
    /// # Errors
    /// `Missing`; `Kept` if it is pinned, leased, being written or in use.
    pub fn remove(&self, tenant: &Tenant, id: &ModelId) -> Result<Evicted, StoreError> {
        let key = (tenant.clone(), id.clone());
        if !self.inner.index().models.contains_key(&key) {
            return Err(StoreError::Missing { what: format!("model {id}") });
        }
        self.flush()?;
        let _alone = self.inner.evicting.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = Evicted::default();
        if self.inner.evict_model(&key, &mut done)? {
            return Ok(done);
        }
        let why = done.kept.pop().map_or_else(|| "gone meanwhile".to_owned(), |(_, why)| why);
        Err(StoreError::Kept { what: format!("model {id}"), why })
    }

    /// Hashes sealed blobs until they count as `bytes`, going on where the last call stopped, oldest proof first; quarantines what is
    /// wrong. Past the page cache: it is the disk that is looked at, and what is in memory stays as it is.
    ///
    /// # Errors
    /// I/O other than reading a blob.
    pub fn scrub_step(&self, bytes: u64) -> Result<ScrubProgress, StoreError> {
        self.inner.scrub(bytes)
    }

    /// What is stored, in bytes charged.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let available = self.inner.available().unwrap_or(0);
        let index = self.inner.index();
        let published = index.models.values().filter(|entry| entry.published).count() as u64;
        Usage {
            capacity: self.inner.capacity(&index, available),
            blobs: index.account.blobs + index.account.models,
            partials: index.account.partials,
            reserved: index.account.reserved,
            quarantined: index.account.quarantined,
            blob_count: index.blobs.len() as u64,
            model_count: published,
        }
    }

    /// Orderly stop: everything durable, then the clean mark. The lock goes with the last clone of the store.
    ///
    /// # Errors
    /// As [`Store::seal_step`]; what was durable stays so.
    pub fn close(self) -> Result<(), StoreError> {
        self.flush()?;
        recover::write_boot(&self.inner.layout, &self.inner.options.boot, true)
    }
}
