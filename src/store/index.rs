//! What the store knows in memory: rebuilt by listing at start, changed after the disk has been. One mutex guards it; no
//! system call that can take long is made under it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use super::known::Known;
use super::layout::Layout;
use super::space::{Account, cost, model_cost};
use super::{BlobHold, BlobState, Model, Pin};
use crate::digest::{GroupCv, Hash};
use crate::model::{FlightKey, Manifest, ModelId, ModelRecord, Tenant};

/// Where the bytes of a blob are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Home {
    /// `blobs/`: durable.
    Sealed,
    /// `partials/<key>/data`, complete.
    Partial(FlightKey),
    /// `received/<key>.<hash>`.
    Received(FlightKey),
}

/// One blob.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) size: u64,
    pub(super) home: Home,
    /// Chaining values of a blob that is not sealed and has more than one group.
    pub(super) cvs: Option<Arc<[GroupCv]>>,
    /// Left by an earlier process and not hashed since: not handed out before it is.
    pub(super) suspect: bool,
    /// That it cannot be hashed has been told.
    pub(super) unread: bool,
    /// When the scrub last hashed it, seconds since the epoch; 0: not since start.
    pub(super) scrubbed_at: u64,
    /// Cloned into each [`BlobHold`]: a count above one means that somebody holds it.
    pub(super) holds: Arc<()>,
}

/// One model.
#[derive(Debug)]
pub(super) struct ModelEntry {
    pub(super) record: ModelRecord,
    pub(super) manifest: Arc<Manifest>,
    pub(super) durable: bool,
    pub(super) last_used: u64,
    pub(super) pins: Vec<Pin>,
    /// The tree is in place. False when a blob was lost or quarantined: the next fetch completes it.
    pub(super) published: bool,
    /// Holds on its blobs until it is durable, so that an orphan sweep does not take them.
    pub(super) building: Vec<BlobHold>,
}

pub(super) type ModelKey = (Tenant, ModelId);

#[derive(Debug, Default)]
pub(super) struct Index {
    pub(super) blobs: HashMap<Hash, Blob>,
    /// Those of them that are not sealed yet: looked at twice a second, whatever a store holds.
    unsealed: BTreeSet<Hash>,
    pub(super) known: Known,
    pub(super) models: BTreeMap<ModelKey, ModelEntry>,
    /// For each scope the blobs that its models name, and how many do: what may be found from there by digest.
    named: HashMap<Tenant, HashMap<Hash, u32>>,
    /// How often models name a blob.
    used: HashMap<Hash, u32>,
    /// Partials on disk that are not complete blobs: their charge, and whether a transfer has them open.
    pub(super) partials: HashMap<FlightKey, PartialEntry>,
    pub(super) account: Account,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct PartialEntry {
    pub(super) size: u64,
    pub(super) open: bool,
}

// === impl Home ===

impl Home {
    /// The file with the bytes of `hash`.
    pub(super) fn path(self, layout: &Layout, hash: &Hash) -> PathBuf {
        match self {
            Self::Sealed => layout.blob(hash),
            Self::Partial(key) => layout.partial(&key).join("data"),
            Self::Received(key) => layout.received_blob(&key, hash),
        }
    }
}

// === impl Blob ===

impl Blob {
    pub(super) fn new(size: u64, home: Home, cvs: Option<Arc<[GroupCv]>>, suspect: bool) -> Self {
        Self { size, home, cvs, suspect, unread: false, scrubbed_at: 0, holds: Arc::new(()) }
    }

    pub(super) fn is_held(&self) -> bool {
        Arc::strong_count(&self.holds) > 1
    }
}

// === impl Index ===

impl Index {
    /// Adds a blob and charges it.
    pub(super) fn add_blob(&mut self, hash: Hash, blob: Blob) {
        self.account.blobs += cost(blob.size);
        if blob.home != Home::Sealed {
            self.unsealed.insert(hash);
        }
        self.blobs.insert(hash, blob);
    }

    /// Those that are not sealed.
    pub(super) fn unsealed(&self) -> impl Iterator<Item = (&Hash, &Blob)> {
        self.unsealed.iter().filter_map(|hash| Some((hash, self.blobs.get(hash)?)))
    }

    /// Notes that a blob is durable under its name.
    pub(super) fn seal(&mut self, hash: &Hash) {
        self.unsealed.remove(hash);
        if let Some(blob) = self.blobs.get_mut(hash) {
            blob.home = Home::Sealed;
            blob.cvs = None;
        }
    }

    /// Forgets a blob and every way to find it.
    pub(super) fn remove_blob(&mut self, hash: &Hash) -> Option<Blob> {
        let blob = self.blobs.remove(hash)?;
        self.account.blobs -= cost(blob.size);
        self.unsealed.remove(hash);
        self.known.forget(hash);
        Some(blob)
    }

    pub(super) fn hold(&self, hash: &Hash) -> Option<BlobHold> {
        let blob = self.blobs.get(hash).filter(|blob| !blob.suspect)?;
        Some(BlobHold { hash: *hash, size: blob.size, _token: Arc::clone(&blob.holds) })
    }

    pub(super) fn state(&self, hash: &Hash) -> Option<BlobState> {
        let blob = self.blobs.get(hash).filter(|blob| !blob.suspect)?;
        Some(if blob.home == Home::Sealed { BlobState::Sealed } else { BlobState::Readable })
    }

    pub(super) fn add_model(&mut self, key: ModelKey, entry: ModelEntry) {
        self.account.models += model_cost(entry.record.files);
        let named = self.named.entry(key.0.clone()).or_default();
        for file in entry.manifest.files() {
            *named.entry(file.blake3).or_default() += 1;
            *self.used.entry(file.blake3).or_default() += 1;
        }
        let scope = key.0.clone();
        if let Some(old) = self.models.insert(key, entry) {
            self.forget(&scope, &old);
        }
    }

    pub(super) fn remove_model(&mut self, key: &ModelKey) -> Option<ModelEntry> {
        let entry = self.models.remove(key)?;
        self.forget(&key.0, &entry);
        Some(entry)
    }

    fn forget(&mut self, scope: &Tenant, entry: &ModelEntry) {
        self.account.models -= model_cost(entry.record.files);
        let Some(named) = self.named.get_mut(scope) else { return };
        for file in entry.manifest.files() {
            less_one(named, &file.blake3);
            less_one(&mut self.used, &file.blake3);
        }
        if named.is_empty() {
            self.named.remove(scope);
        }
    }

    /// Whether a model of `scope`, or one that everybody may read, names the blob. Its digest alone opens nothing: who declares
    /// the digest of another scope's file would be given that file.
    pub(super) fn is_named_in(&self, scope: &Tenant, hash: &Hash) -> bool {
        let names = |scope: &Tenant| self.named.get(scope).is_some_and(|named| named.contains_key(hash));
        names(scope) || names(&Tenant::default())
    }

    pub(super) fn add_partial(&mut self, key: FlightKey, size: u64, open: bool) {
        if self.partials.insert(key, PartialEntry { size, open }).is_none() {
            self.account.partials += cost(size);
        }
    }

    pub(super) fn remove_partial(&mut self, key: &FlightKey) {
        if let Some(entry) = self.partials.remove(key) {
            self.account.partials -= cost(entry.size);
        }
    }

    /// Whether a model names the blob.
    pub(super) fn is_used(&self, hash: &Hash) -> bool {
        self.used.contains_key(hash)
    }

    /// Blobs that a model names and no other does.
    pub(super) fn used_only_by(&self, entry: &ModelEntry) -> HashSet<Hash> {
        let mut own: HashMap<Hash, u32> = HashMap::new();
        for file in entry.manifest.files() {
            *own.entry(file.blake3).or_default() += 1;
        }
        own.into_iter().filter(|(hash, count)| self.used.get(hash) == Some(count)).map(|(hash, _)| hash).collect()
    }

    /// The model as others see it, if its tree is in place and its blobs are here.
    pub(super) fn view(&self, layout: &Layout, key: &ModelKey) -> Option<Model> {
        let entry = self.models.get(key).filter(|entry| entry.published)?;
        Some(Model {
            record: entry.record.clone(),
            path: layout.tree(&key.0, &key.1),
            durable: entry.durable,
            last_used: entry.last_used,
            pins: entry.pins.clone(),
        })
    }
}

fn less_one(counts: &mut HashMap<Hash, u32>, hash: &Hash) {
    if let Some(count) = counts.get_mut(hash) {
        *count -= 1;
        if *count == 0 {
            counts.remove(hash);
        }
    }
}
