//! Taking a capture in. What the captured process says is a draft: names, sizes, modes and times. The bytes follow, and what they
//! hash to is found here; then the node signs, if its policy says so. The workload never writes to the store and never holds the key.
//!
//! Of two that capture the same graph the first wins: its bundle stays, and the other's bytes are not even asked for. Kernel
//! bundles grow instead. An *entry* of theirs is a directory that names itself by what it was compiled from; entries that only the
//! bundle on the node has are taken over whole, so that files of two entries are never mixed. Where both have an entry the captured
//! one stays, and files that differ are counted.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::PathBuf;

use tokio::sync::OwnedMutexGuard;

use super::in_place::IN_PLACE_FILES_MOST;
use super::library::{BundleRef, Captured, Draft};
use super::packing::Piece;
use super::packs::Packs;
use super::quota::Claim;
use super::service::{Engines, visible};
use super::shelf::{self, Held};
use super::{EngineError, blocking, now};
use crate::digest::Hash;
use crate::model::engine::{BundleKind, EngineKey};
use crate::model::{Bundle, BundleId, FilePath, Kind, Manifest, ManifestEntry, Pack, Producer, SigningKey, Tenant};
use crate::sys::mutant::mutant;
use crate::telemetry::metrics::Which;

/// What becomes of a draft.
#[derive(Debug)]
pub enum Begun {
    /// Its bytes are wanted.
    Wanted(Box<Capturing>),
    /// They are not.
    Done(Box<Captured>),
}

/// A capture whose bytes are coming in. Dropping it leaves nothing.
#[derive(Debug)]
pub struct Capturing {
    engines: Engines,
    scope: Tenant,
    draft: Draft,
    /// Begun with the first byte: room is made for what comes, not for what is announced.
    packs: Option<Packs>,
    in_place: bool,
    /// All files of the pack, in its order.
    files: Vec<Planned>,
    /// The pack that some of them are taken over from.
    union: Option<(File, PathBuf)>,
    /// What there was under the key.
    before: Option<Held>,
    _claim: Claim,
    _turn: OwnedMutexGuard<()>,
}

/// A file of the pack that is made.
#[derive(Clone, Debug)]
struct Planned {
    path: FilePath,
    size: u64,
    mode: u32,
    mtime_ns: u64,
    /// Taken over from the bundle before: where it lies there and what it hashes to.
    held: Option<(u64, Hash)>,
}

/// Permission bits that a bundle keeps: nobody but its owner writes to what an engine runs.
const MODE_MASK: u32 = 0o755;

// === impl Engines ===

impl Engines {
    /// Begins a capture of a scope.
    ///
    /// # Errors
    /// `Refused` for a draft that no bundle could be, `NoSpace`, the store.
    pub async fn begin_capture(&self, scope: &Tenant, draft: Draft) -> Result<Begun, EngineError> {
        let outcome = self.begin(scope, draft).await;
        match &outcome {
            Ok(Begun::Done(done)) => self.count_capture(done),
            Ok(Begun::Wanted(_)) => {}
            Err(_) => {
                self.inner.metrics.engine_captures.get_or_create(&Which { which: "failed" }).inc();
            }
        }
        outcome
    }

    async fn begin(&self, scope: &Tenant, draft: Draft) -> Result<Begun, EngineError> {
        if !scope.is_somebody() {
            let why = "who asks without a token over the loopback address may be any user of this machine, and what is captured is \
                       given to nobody else: use the daemon's Unix socket, or give the daemon a token (server.token_file)";
            return Err(EngineError::Denied { what: "a capture".to_owned(), why: why.to_owned() });
        }
        check(&draft, self.inner.policy.config().bundle_bytes_max.0)?;
        if draft.files.is_empty() {
            return Ok(Begun::Done(Box::new(Captured::Nothing)));
        }
        let turn = self.turn(scope, &draft.key.digest()).await;
        let (engines, scope) = (self.clone(), scope.clone());
        blocking(move || {
            let before = engines.inner.current(&scope, &draft)?;
            if let Some(before) = &before {
                let bundle = engines.inner.reference(&scope, before)?;
                // Ours grew out of it: then it is a new version. Else somebody was first.
                let stays = |captured: Captured| {
                    if engines.inner.publishes(&scope, before) {
                        // An earlier try may have failed.
                        engines.publish_later(Publication { held: before.clone(), replaces: None });
                    }
                    Ok(Begun::Done(Box::new(captured)))
                };
                let grown = draft.base == Some(before.id) || draft.key.kind() == BundleKind::Kernel;
                if draft.base == Some(before.id) && same_files(&draft, before) {
                    return stays(Captured::Unchanged { bundle });
                }
                if !grown && !draft.refresh && !mutant("captured_by_all") {
                    return stays(Captured::Existed { bundle });
                }
            }
            let union = before.as_ref().filter(|before| !draft.refresh && takes_over(&draft, before));
            let mut files = plan(&draft, union);
            shed(&mut files, engines.inner.policy.config().bundle_bytes_max.0);
            let total: u64 = files.iter().map(|file| file.size).sum();
            let keeper = engines.inner.keeper(&scope, &draft.key);
            let _claim = engines.inner.claim(&scope, &keeper, &draft.key.digest(), total)?;
            let in_place = draft.in_place && files.len() <= IN_PLACE_FILES_MOST;
            // From a pack files are taken over by their bytes, from a tree by their blobs; the one does not become the other.
            let union = union.filter(|_| !in_place).map(Held::open_pack).transpose()?;
            let packs = None;
            let capturing =
                Capturing { engines, scope, draft, packs, in_place, files, union, before, _claim, _turn: turn };
            Ok(Begun::Wanted(Box::new(capturing)))
        })
        .await
    }

    pub(super) fn count_capture(&self, captured: &Captured) {
        let which = match captured {
            Captured::Created { .. } => "created",
            Captured::Unchanged { .. } => "unchanged",
            Captured::Existed { .. } => "existed",
            Captured::Nothing => "nothing",
        };
        self.inner.metrics.engine_captures.get_or_create(&Which { which }).inc();
    }

    /// Removes what there is too much of under one key, oldest first.
    pub(super) fn keep_versions(&self, scope: &Tenant, key: &Hash) {
        let most = self.inner.policy.config().versions_max;
        let scopes = [scope.clone()];
        for model in shelf::records(&self.inner.store, &scopes, Some(key)).into_iter().skip(most) {
            // Pinned or in use: it goes with a later one.
            if self.inner.store.remove(scope, &model.record.id).is_ok()
                && let Some(id) = shelf::id_of(&model)
            {
                self.inner.guard.forget(&id);
            }
        }
    }
}

impl super::service::Inner {
    /// The scope that will have what a scope captures.
    fn keeper(&self, scope: &Tenant, key: &EngineKey) -> Tenant {
        if self.policy.signs_key_for(scope, key).is_some() { Tenant::node() } else { scope.clone() }
    }

    /// Whether a bundle that is here is this node's to publish for a scope.
    fn publishes(&self, scope: &Tenant, held: &Held) -> bool {
        let signer = held.signature.as_ref().map(|signature| signature.signer);
        signer.is_some() && self.policy.signs_for(scope, &held.bundle).map(SigningKey::signer) == signer
    }

    /// The newest bundle of the draft's key that its scope may restore; what is quarantined is no hindrance to a better one.
    fn current(&self, scope: &Tenant, draft: &Draft) -> Result<Option<Held>, EngineError> {
        let key = draft.key.digest();
        for model in shelf::records(&self.store, &visible(scope), Some(&key)) {
            let Some(held) = self.read(&model)?.filter(|held| held.bundle.key.digest() == key) else { continue };
            let bundle = self.reference(scope, &held)?;
            if self.verdict(scope, &held, &bundle.standing).is_ok() {
                return Ok(Some(held));
            }
        }
        Ok(None)
    }
}

// === impl Capturing ===

impl Capturing {
    /// The bytes that are still to come are those of the draft's files, one after the other. Blocking.
    ///
    /// # Errors
    /// More than the draft says; the store.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        self.packs()?.push(bytes)
    }

    fn packs(&mut self) -> Result<&mut Packs, EngineError> {
        if self.packs.is_none() {
            let pieces = self.files.iter().map(Planned::piece).collect();
            let store = &self.engines.inner.store;
            self.packs = Some(Packs::begin(store, &self.scope, pieces, self.in_place, self.union.take())?);
        }
        self.packs.as_mut().ok_or(EngineError::Defect)
    }

    /// All bytes are in. Their number is held against the draft's.
    ///
    /// # Errors
    /// Fewer bytes than the draft says; the store.
    pub async fn finish(self) -> Result<Captured, EngineError> {
        let engines = self.engines.clone();
        let outcome = blocking(move || self.shelve()).await;
        match outcome {
            Ok((captured, published)) => {
                engines.count_capture(&captured);
                if let Some(publication) = published {
                    engines.publish_later(publication);
                }
                Ok(captured)
            }
            Err(error) => {
                engines.inner.metrics.engine_captures.get_or_create(&Which { which: "failed" }).inc();
                Err(error)
            }
        }
    }

    /// The bundle, on the node. Also what is to be published of it.
    fn shelve(mut self) -> Result<(Captured, Option<Publication>), EngineError> {
        // All of its files may be empty.
        self.packs()?;
        let Self { engines, scope, draft, packs, in_place, files, before, _claim, _turn, .. } = self;
        let inner = &engines.inner;
        let (blobs, hashes) = packs.ok_or(EngineError::Defect)?.finish()?;
        let entries: Vec<ManifestEntry> = files.iter().zip(hashes).map(|(file, hash)| file.entry(hash)).collect();
        let manifest = Manifest::new(Kind::Bundle, entries).map_err(|error| EngineError::Document(error.into()))?;
        if let Some(before) = before.as_ref().filter(|before| before.bundle.manifest == manifest) {
            let bundle = inner.reference(&scope, before)?;
            // Here it is already; at the shared origin another may stand in its place.
            let replaces = draft.refresh.then_some(None);
            let publication = inner.publishes(&scope, before).then(|| Publication { held: before.clone(), replaces });
            return Ok((Captured::Unchanged { bundle }, publication));
        }
        let taken_over = files.iter().filter(|file| file.held.is_some()).count() as u64;
        let conflicts = before.as_ref().map_or(0, |before| conflicts(&manifest, before));
        let bundle = Bundle {
            key: draft.key,
            manifest,
            pack: blobs.first().filter(|_| !in_place).map(|pack| Pack { blake3: pack.hash, size: pack.size }),
            base: draft.base,
            producer: Producer { scope: scope.clone(), preheat: env!("CARGO_PKG_VERSION").to_owned() },
            // Later than what it takes the place of, whatever the clock says: else it could be the same document again.
            captured_at: before.as_ref().map_or(0, |before| before.bundle.captured_at + 1).max(now()),
            evidence: draft.evidence.within_limits(),
        };
        bundle.check()?;
        let signature = inner.policy.signs_for(&scope, &bundle).map(|key: &SigningKey| key.sign(&bundle.to_json()));
        // What is vouched for is everybody's on this node; the rest is who captured it's.
        let keeper = if signature.is_some() { Tenant::node() } else { scope.clone() };
        let held = shelf::put(&inner.store, &keeper, Some(&scope), &bundle, signature.as_ref(), blobs)?;
        engines.keep_versions(&keeper, &bundle.key.digest());
        let reference: BundleRef = inner.reference(&scope, &held)?;
        let captured = Captured::Created { bundle: reference, taken_over, conflicts };
        let replaces = draft.refresh.then_some(None).or(before.map(|before| Some(before.id)));
        Ok((captured, signature.is_some().then_some(Publication { held, replaces })))
    }
}

/// A bundle that is to be published.
#[derive(Debug)]
pub(super) struct Publication {
    pub(super) held: Held,
    /// What it may take the place of. `None`: of nothing; inner `None`: of whatever is there.
    pub(super) replaces: Option<Option<BundleId>>,
}

// === impl Planned ===

impl Planned {
    fn piece(&self) -> Piece {
        match self.held {
            Some((offset, blake3)) => Piece::Held { offset, size: self.size, blake3 },
            None => Piece::Given { size: self.size },
        }
    }

    fn entry(&self, blake3: Hash) -> ManifestEntry {
        let Self { path, size, mode, mtime_ns, .. } = self.clone();
        ManifestEntry { mode: Some(mode), mtime_ns: Some(mtime_ns), ..ManifestEntry::new(path, size, blake3) }
    }
}

/// What can be told of a draft before any byte.
fn check(draft: &Draft, bytes_most: u64) -> Result<(), EngineError> {
    let unusable = draft.key.unusable();
    if !unusable.is_empty() {
        let names: Vec<&str> = unusable.iter().map(|(name, _)| *name).collect();
        let why = format!("is not captured without knowing {}", names.join(", "));
        return Err(EngineError::refused(format!("engine key {}", draft.key.digest()), why));
    }
    let sorted = draft.files.windows(2).all(|pair| pair[0].path < pair[1].path);
    if !sorted {
        return Err(EngineError::refused("capture", "its files are not sorted by path, or one is there twice"));
    }
    let total = draft.files.iter().try_fold(0_u64, |sum, file| sum.checked_add(file.size)).unwrap_or(u64::MAX);
    check_size(total, bytes_most)?;
    // Names, counts and depth are held to the same rules as those of the document that comes of it.
    let entries = draft.files.iter().map(|file| ManifestEntry {
        mode: Some(file.mode & MODE_MASK),
        mtime_ns: Some(file.mtime_ns),
        ..ManifestEntry::new(file.path.clone(), file.size, Hash::from_bytes([0; 32]))
    });
    let manifest = Manifest::new(Kind::Bundle, entries.collect()).map_err(|error| EngineError::Document(error.into()));
    let wrong = |error: EngineError| EngineError::refused("capture", error.to_string());
    let manifest = manifest.map_err(wrong)?;
    let bundle = Bundle {
        key: draft.key.clone(),
        manifest,
        pack: None,
        base: None,
        producer: Producer { scope: Tenant::node(), preheat: String::new() },
        captured_at: 0,
        evidence: draft.evidence.clone().within_limits(),
    };
    bundle.check().map_err(|error| wrong(error.into()))
}

fn check_size(total: u64, most: u64) -> Result<(), EngineError> {
    if total <= most {
        return Ok(());
    }
    let why = format!("has {total} bytes, engines.bundle_bytes_max is {most}");
    Err(EngineError::refused("capture", why))
}

/// Whether names, sizes, modes and times are those of a bundle: then nobody has written there since it was restored.
fn same_files(draft: &Draft, before: &Held) -> bool {
    let theirs = before.bundle.manifest.files();
    draft.files.len() == theirs.len()
        && draft.files.iter().zip(theirs).all(|(ours, theirs)| {
            ours.path == theirs.path
                && ours.size == theirs.size
                && Some(ours.mode & MODE_MASK) == theirs.mode
                && Some(ours.mtime_ns) == theirs.mtime_ns
        })
}

/// Whether files of the bundle before belong into the new one. Kernels of others do; and what was shown in place to the engine, which
/// has made something beside it, is not in the draft although it is still there.
fn takes_over(draft: &Draft, before: &Held) -> bool {
    let in_place = before.bundle.pack.is_none();
    match draft.key.kind() {
        BundleKind::Kernel => !in_place && draft.base != Some(before.id),
        BundleKind::Graph => in_place && draft.in_place && draft.base == Some(before.id),
    }
}

/// The draft's files and, of the bundle before, those whose entry the draft does not have.
fn plan(draft: &Draft, union: Option<&Held>) -> Vec<Planned> {
    let mut files: Vec<Planned> = draft
        .files
        .iter()
        .map(|file| Planned {
            path: file.path.clone(),
            size: file.size,
            mode: file.mode & MODE_MASK,
            mtime_ns: file.mtime_ns,
            held: None,
        })
        .collect();
    let Some(before) = union else { return files };
    let ours: HashSet<&str> = draft.files.iter().map(|file| file.path.as_str()).collect();
    let entries: HashSet<&str> = draft.files.iter().filter_map(|file| file.path.parent()).collect();
    // Every directory that ours stand in, so that no file comes to lie where one is.
    let directories: HashSet<&str> = draft.files.iter().flat_map(|file| above(file.path.as_str())).collect();
    let foreign = |path: &FilePath| {
        !path.parent().is_some_and(|entry| entries.contains(entry))
            && !directories.contains(path.as_str())
            && !above(path.as_str()).any(|directory| ours.contains(directory))
    };
    files.extend(before.offsets().filter(|(entry, _)| foreign(&entry.path)).map(|(entry, offset)| Planned {
        path: entry.path.clone(),
        size: entry.size,
        mode: entry.mode.unwrap_or(0o644),
        mtime_ns: entry.mtime_ns.unwrap_or(0),
        held: Some((offset, entry.blake3)),
    }));
    files.sort_by(|one, other| one.path.cmp(&other.path));
    files
}

/// Leaves out what is taken over, by whole entries, the oldest first, until the rest is a bundle that the node takes.
fn shed(files: &mut Vec<Planned>, most: u64) {
    let total: u64 = files.iter().map(|file| file.size).sum();
    let mut excess = total.saturating_sub(most);
    if excess == 0 {
        return;
    }
    let entry = |file: &Planned| file.path.parent().unwrap_or_default().to_owned();
    let mut entries: HashMap<String, (u64, u64)> = HashMap::new();
    for file in files.iter().filter(|file| file.held.is_some()) {
        let (newest, bytes) = entries.entry(entry(file)).or_default();
        (*newest, *bytes) = ((*newest).max(file.mtime_ns), *bytes + file.size);
    }
    let mut oldest: Vec<_> = entries.into_iter().map(|(entry, (newest, bytes))| (newest, entry, bytes)).collect();
    oldest.sort();
    let mut gone = HashSet::new();
    for (_, entry, bytes) in oldest {
        if excess == 0 {
            break;
        }
        excess = excess.saturating_sub(bytes);
        gone.insert(entry);
    }
    files.retain(|file| file.held.is_none() || !gone.contains(&entry(file)));
}

/// The directories above a path, nearest first.
fn above(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(path.rsplit_once('/').map(|(above, _)| above), |path| {
        path.rsplit_once('/').map(|(above, _)| above)
    })
}

/// Files of equal paths and different bytes.
fn conflicts(manifest: &Manifest, before: &Held) -> u64 {
    let theirs: HashMap<&FilePath, &Hash> =
        before.bundle.manifest.files().iter().map(|entry| (&entry.path, &entry.blake3)).collect();
    let differs = |entry: &&ManifestEntry| theirs.get(&entry.path).is_some_and(|hash| **hash != entry.blake3);
    manifest.files().iter().filter(differs).count() as u64
}
