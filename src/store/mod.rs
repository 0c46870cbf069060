//! Bytes at rest. See `cache-layout/README.md` for the format and the order of every write.

mod error;
mod options;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use error::StoreError;
pub use options::{Capacity, Options};

use crate::digest::{Declared, GroupCv, Hash, Verified};
use crate::model::{FlightKey, Manifest, ModelId, ModelRecord, Tenant};

/// Who holds the lock of a root; written into `lock` for the next to read.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Holder {
    /// `serve` or `fetch`.
    pub role: String,
    /// Process id, in its own namespace.
    pub pid: u32,
}

/// The writing store: one per root and process. Cheap to clone. All methods block; call them from hands.
#[derive(Clone, Debug)]
pub struct Store {
    _shared: Arc<()>,
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

/// A blob that is readable, kept from eviction while this value lives.
#[derive(Clone, Debug)]
pub struct BlobHold {
    /// Its name.
    pub hash: Hash,
    /// Its size in bytes.
    pub size: u64,
}

/// A blob under construction, with its space reserved. Dropping it keeps what has arrived for the next attempt.
/// Threads may write different groups at once.
#[derive(Debug)]
pub struct Partial {
    _inner: Arc<()>,
}

/// A blob opened for verified reading.
#[derive(Debug)]
pub struct BlobReader {
    _inner: Arc<()>,
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
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Chosen by who pins; the same id replaces. `[a-z0-9-]`, at most 63.
    pub id: String,
    /// For people.
    pub reason: String,
    /// Seconds since the epoch when it lapses; `None`: a pin until removed; otherwise a lease.
    pub expires_at: Option<u64>,
}

/// What the store holds, in bytes allocated on disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
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

impl Store {
    /// Takes the lock of `root` (made if absent), checks the format, recovers, lists.
    ///
    /// # Errors
    /// `Locked` with the holder, `NewerFormat`, `ReadOnly`, or I/O.
    pub fn open(_root: &Path, _holder: &Holder, _options: Options) -> Result<Self, StoreError> {
        todo!()
    }

    /// The root directory.
    pub fn root(&self) -> &Path {
        todo!()
    }

    // --- blobs ---

    /// Holds a blob that is here, readable or sealed.
    pub fn hold(&self, _hash: &Hash) -> Option<BlobHold> {
        todo!()
    }

    /// Holds the blob that this object version became earlier (from the catalog or a readable partial).
    pub fn hold_by_key(&self, _key: &FlightKey) -> Option<BlobHold> {
        todo!()
    }

    /// Holds the blob with this origin digest; only collision-resistant algorithms are looked up.
    pub fn hold_by_declared(&self, _declared: &Declared) -> Option<BlobHold> {
        todo!()
    }

    /// Opens a blob for verified reading. Its outboard is checked against its name here, once.
    pub fn open_blob(&self, _hash: &Hash) -> Result<BlobReader, StoreError> {
        todo!()
    }

    /// Whether `hash` is here and how far.
    pub fn blob_state(&self, _hash: &Hash) -> Option<BlobState> {
        todo!()
    }

    /// Moves a blob that failed verification aside, withdraws the trees that link it, counts it. Idempotent.
    pub fn quarantine(&self, _hash: &Hash, _noticed_by: &str) -> Result<(), StoreError> {
        todo!()
    }

    // --- construction ---

    /// Makes room (evicting if needed) and promises that `bytes` more will fit, for all files of a job at once.
    ///
    /// # Errors
    /// `NoSpace` saying what was asked, what is evictable and what is kept by whom.
    pub fn reserve(&self, _bytes: u64) -> Result<Reservation, StoreError> {
        todo!()
    }

    /// Starts or resumes a blob. Its blocks are taken from `reservation`. What an earlier attempt left is re-hashed group by
    /// group (blocking: run it on a hand) and kept if right.
    pub fn begin(&self, _key: FlightKey, _size: u64, _reservation: &Reservation) -> Result<Partial, StoreError> {
        todo!()
    }

    /// Stores a small blob (at most `Options::small_bytes`) that is whole and in memory.
    pub fn put_small(
        &self,
        _key: FlightKey,
        _bytes: &[u8],
        _declared: &[Declared],
        _reservation: &Reservation,
    ) -> Result<BlobHold, StoreError> {
        todo!()
    }

    // --- models ---

    /// Makes a model readable: pending file, tree, alias. Returns with the tree in place; durability follows.
    pub fn publish(&self, _publication: Publication) -> Result<Model, StoreError> {
        todo!()
    }

    /// A published model whose blobs are all here.
    pub fn model(&self, _tenant: &Tenant, _id: &ModelId) -> Option<Model> {
        todo!()
    }

    /// All published models, by id.
    pub fn models(&self) -> Vec<Model> {
        todo!()
    }

    /// The manifest of a published model.
    pub fn manifest(&self, _digest: &Hash) -> Option<Arc<Manifest>> {
        todo!()
    }

    /// Notes a use now, for the eviction order.
    pub fn touch(&self, _tenant: &Tenant, _id: &ModelId) {
        todo!()
    }

    /// Where the tree of a model is or would be.
    pub fn tree_path(&self, _tenant: &Tenant, _id: &ModelId) -> PathBuf {
        todo!()
    }

    /// Pins (or leases) a published model; durable when it returns.
    pub fn pin(&self, _tenant: &Tenant, _id: &ModelId, _pin: Pin) -> Result<(), StoreError> {
        todo!()
    }

    /// Removes a pin. Returns whether it was there.
    pub fn unpin(&self, _tenant: &Tenant, _id: &ModelId, _pin_id: &str) -> Result<bool, StoreError> {
        todo!()
    }

    // --- housekeeping (called by one background driver) ---

    /// Seals what is readable and finishes publications, one batch. Returns what is still to do.
    pub fn seal_step(&self) -> Result<SealProgress, StoreError> {
        todo!()
    }

    /// Seals everything, finishes every publication, syncs partials: after it returns nothing acknowledged can be lost.
    pub fn flush(&self) -> Result<(), StoreError> {
        todo!()
    }

    /// Evicts down to the low watermark if above the high one; drops lapsed leases, orphans, aged quarantine.
    pub fn keep_watermarks(&self) -> Result<Evicted, StoreError> {
        todo!()
    }

    /// Evicts everything that is not pinned, leased, held or in use if `all`; otherwise only orphans and stale partials.
    pub fn gc(&self, _all: bool) -> Result<Evicted, StoreError> {
        todo!()
    }

    /// Evicts one model.
    pub fn remove(&self, _tenant: &Tenant, _id: &ModelId) -> Result<Evicted, StoreError> {
        todo!()
    }

    /// Verifies the next stretch of at most `bytes` sealed bytes, oldest-verified first; quarantines what is wrong.
    pub fn scrub_step(&self, _bytes: u64) -> Result<ScrubProgress, StoreError> {
        todo!()
    }

    /// What is stored.
    pub fn usage(&self) -> Usage {
        todo!()
    }

    /// Orderly stop: `flush`, then the `clean` mark, then the lock goes.
    pub fn close(self) -> Result<(), StoreError> {
        todo!()
    }
}

/// Bytes promised to a transfer; what is unused returns on drop.
#[derive(Debug)]
pub struct Reservation {
    _inner: Arc<()>,
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
    /// What was wrong; already quarantined.
    pub faults: Vec<Fault>,
    /// Whether a full round has ended.
    pub round_done: bool,
}

impl Partial {
    /// Size of the blob in bytes.
    pub fn size(&self) -> u64 {
        todo!()
    }

    /// Group runs that have not arrived, in order.
    pub fn missing(&self) -> Vec<Range<u64>> {
        todo!()
    }

    /// Hashes and writes group `index`. Blocking. Bytes are exactly that group. Not yet marked.
    pub fn write_group(&self, _index: u64, _bytes: &[u8]) -> Result<GroupCv, StoreError> {
        todo!()
    }

    /// Marks consecutive written groups as received (one journal line).
    pub fn received(&self, _first: u64, _cvs: &[GroupCv]) -> Result<(), StoreError> {
        todo!()
    }

    /// Makes what is received durable and marks it. Blocking; one caller at a time.
    pub fn sync(&self) -> Result<(), StoreError> {
        todo!()
    }

    /// Reads back received bytes (for the origin's sequential digests). The caller asks only for received groups.
    pub fn read_at(&self, _offset: u64, _into: &mut [u8]) -> Result<(), StoreError> {
        todo!()
    }

    /// All groups are here and the origin's digests were right: the blob becomes readable.
    ///
    /// # Errors
    /// `Corrupt` if `expected` is another root: the partial is discarded.
    pub fn complete(self, _expected: Option<Hash>, _declared: &[Declared]) -> Result<BlobHold, StoreError> {
        todo!()
    }

    /// Throws everything away (wrong digest, changed origin).
    pub fn discard(self) -> Result<(), StoreError> {
        todo!()
    }
}

impl BlobReader {
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        todo!()
    }

    /// Reads and proves group `index` into `buffer` (at least 1 MiB); returns the bytes of that group.
    ///
    /// # Errors
    /// `Corrupt`: the caller quarantines.
    pub fn group<'a>(&self, _index: u64, _buffer: &'a mut [u8]) -> Result<Verified<&'a [u8]>, StoreError> {
        todo!()
    }
}

/// Read-only view of a root without its lock, for `models` and `verify`.
#[derive(Debug)]
pub struct ReadOnlyStore {
    _root: PathBuf,
}

impl ReadOnlyStore {
    /// Opens a root for looking. Takes no lock and writes nothing.
    pub fn open(_root: &Path) -> Result<Self, StoreError> {
        todo!()
    }

    /// Published models, durable or pending in this boot.
    pub fn models(&self) -> Result<Vec<Model>, StoreError> {
        todo!()
    }

    /// Hashes everything: blobs, outboards, manifests, trees (links, sizes, modes), names of wrong form. `progress` gets
    /// bytes done and total.
    pub fn verify(&self, _progress: &mut dyn FnMut(u64, u64)) -> Result<Verification, StoreError> {
        todo!()
    }
}

/// Outcome of [`ReadOnlyStore::verify`].
#[derive(Clone, Debug, Default, serde::Serialize)]
pub struct Verification {
    /// Blobs hashed.
    pub blobs: u64,
    /// Bytes hashed.
    pub bytes: u64,
    /// Models checked.
    pub models: u64,
    /// What is wrong.
    pub faults: Vec<Fault>,
}
