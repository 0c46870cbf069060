//! Looking at a root without its lock and without writing: `models` and `verify`, beside a running daemon or on a read-only
//! mount. What vanishes while we look has been evicted, which is no fault.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::blob::BlobReader;
use super::cold::in_haste;
use super::layout::{Layout, names, parse_pin, parse_quarantined, tenants};
use super::publish::{Pending, last_used, records};
use super::recover::read_limited;
use super::{Fault, Model, Pin, StoreError, Verification, now};
use crate::base::{BootId, ErrorKind};
use crate::digest::{Hash, group_count};
use crate::model::{Manifest, ModelId, ModelRecord, Tenant};
use crate::sys::disk::Disk;

/// A root as a bystander sees it.
#[derive(Debug)]
pub struct ReadOnlyStore {
    layout: Layout,
}

// === impl ReadOnlyStore ===

impl ReadOnlyStore {
    /// Opens a root for looking.
    ///
    /// # Errors
    /// `NoStore`, `NotAStore`, `NewerFormat`, or I/O.
    pub fn open(root: &Path) -> Result<Self, StoreError> {
        let layout = Layout::new(root);
        layout.check()?;
        Ok(Self { layout })
    }

    /// Published models: durable ones, and pending ones of this boot.
    ///
    /// # Errors
    /// I/O on a directory of the root.
    pub fn models(&self) -> Result<Vec<Model>, StoreError> {
        let pins = self.pins()?;
        let mut models: HashMap<(String, String), Model> = HashMap::new();
        let mut add = |record: ModelRecord, durable: bool, last_used: u64| {
            let path = self.layout.tree(&record.tenant, &record.id);
            if path.is_dir() {
                let name = (record.tenant.to_string(), record.id.to_string());
                let pins = pins.get(&name).cloned().unwrap_or_default();
                models.insert(name, Model { record, path, durable, last_used, pins });
            }
        };
        let boot = BootId::current().ok();
        let mut unsettled = HashSet::new();
        for (tenant, id, path) in records(&self.layout.pendings())? {
            // A durable model that is being mended has both files: a power cut would still take the mended bytes.
            unsettled.insert((tenant, id));
            let pending = read_limited(&path).and_then(|text| serde_json::from_slice::<Pending>(&text).ok());
            if let Some(pending) = pending.filter(|pending| Some(&pending.boot) == boot.as_ref()) {
                add(pending.record, false, last_used(&path));
            }
        }
        for (tenant, id, path) in records(&self.layout.models())? {
            if let Some(record) = read_limited(&path).and_then(|text| serde_json::from_slice::<ModelRecord>(&text).ok())
            {
                add(record, !unsettled.contains(&(tenant, id)), last_used(&path));
            }
        }
        let mut models: Vec<Model> = models.into_values().collect();
        models.sort_by(|one, other| one.record.id.cmp(&other.record.id));
        Ok(models)
    }

    fn pins(&self) -> Result<HashMap<(String, String), Vec<Pin>>, StoreError> {
        let (mut pins, now): (HashMap<_, Vec<Pin>>, _) = (HashMap::new(), now());
        for (tenant, directory) in tenants(&self.layout.pins())? {
            for (name, path) in names(&directory)? {
                let Some((id, _)) = parse_pin(&name) else { continue };
                let pin = read_limited(&path).and_then(|text| serde_json::from_slice::<Pin>(&text).ok());
                if let Some(pin) = pin.filter(|pin| pin.holds_at(now)) {
                    pins.entry((tenant.to_string(), id.to_string())).or_default().push(pin);
                }
            }
        }
        Ok(pins)
    }

    /// Hashes every blob, and checks outboards, manifests, records, trees and names. `progress` gets bytes done and total.
    ///
    /// # Errors
    /// I/O on a directory of the root; what is wrong with files is in the outcome.
    pub fn verify(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Verification, StoreError> {
        let mut outcome = Verification::default();
        let blobs = self.blobs(&mut outcome)?;
        self.hash_blobs(&Disk::of_environment()?, &blobs, &mut outcome, progress);
        let sizes: HashMap<Hash, u64> = blobs.iter().copied().collect();
        self.check_outboards(&sizes, &mut outcome)?;
        let manifests = self.check_manifests(&mut outcome)?;
        self.check_models(&manifests, &sizes, &mut outcome)?;
        for (name, path) in names(&self.layout.quarantine())? {
            let stem = name.strip_suffix(".json").unwrap_or(&name);
            if parse_quarantined(stem).is_none() {
                outcome.faults.push(self.fault(None, &path, "has a name that is not the store's"));
            }
        }
        Ok(outcome)
    }

    fn fault(&self, blob: Option<Hash>, path: &Path, what: impl Into<String>) -> Fault {
        let file = path.strip_prefix(self.layout.root()).unwrap_or(path).to_owned();
        Fault { blob, file, what: what.into() }
    }

    fn blobs(&self, outcome: &mut Verification) -> Result<Vec<(Hash, u64)>, StoreError> {
        let mut blobs = Vec::new();
        for (name, path) in names(&self.layout.blobs())? {
            match (name.parse::<Hash>(), fs::symlink_metadata(&path)) {
                (Ok(hash), Ok(metadata)) if metadata.is_file() => {
                    if metadata.mode() & 0o222 != 0 {
                        outcome.faults.push(self.fault(Some(hash), &path, "is writable"));
                    }
                    blobs.push((hash, metadata.len()));
                }
                (_, Err(_)) => {}
                _ => outcome.faults.push(self.fault(None, &path, "has a name or kind that is not a blob's")),
            }
        }
        Ok(blobs)
    }

    /// One thread a core. What is warm stays warm, and nothing else becomes it.
    fn hash_blobs(
        &self,
        disk: &Disk,
        blobs: &[(Hash, u64)],
        outcome: &mut Verification,
        progress: &mut dyn FnMut(u64, u64),
    ) {
        let total: u64 = blobs.iter().map(|(_, size)| size).sum();
        let (next, done, checked) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let faults = Mutex::new(Vec::new());
        let work = || {
            let buffers = in_haste();
            while let Some((hash, _)) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                let path = self.layout.blob(hash);
                let verified = BlobReader::open(hash, &path, None, &self.layout.outboard(hash)).and_then(|reader| {
                    let groups = 0..group_count(reader.size());
                    let mut told = |bytes| _ = done.fetch_add(bytes, Ordering::Relaxed);
                    reader.verify_groups(disk, &buffers, groups, &mut told)
                });
                match verified {
                    Ok(()) => _ = checked.fetch_add(1, Ordering::Relaxed),
                    // Evicted, or quarantined by the daemon, since the list was made.
                    Err(_) if !path.exists() => {}
                    Err(error) => {
                        let fault = self.fault(Some(*hash), &path, error.to_string());
                        faults.lock().unwrap_or_else(PoisonError::into_inner).push(fault);
                    }
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            let hands: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            while !hands.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                progress(done.load(Ordering::Relaxed), total);
                std::thread::park_timeout(std::time::Duration::from_millis(20));
            }
        });
        outcome.bytes = done.into_inner();
        outcome.blobs = checked.into_inner();
        let mut faults = faults.into_inner().unwrap_or_else(PoisonError::into_inner);
        faults.sort_by(|one, other| one.file.cmp(&other.file));
        outcome.faults.append(&mut faults);
    }

    fn check_outboards(&self, sizes: &HashMap<Hash, u64>, outcome: &mut Verification) -> Result<(), StoreError> {
        for (name, path) in names(&self.layout.outboards())? {
            let known = name.parse::<Hash>().ok().and_then(|hash| Some((hash, *sizes.get(&hash)?)));
            match known {
                // Its content was held against the name when the blob was opened.
                Some((_, size)) if group_count(size) > 1 => {}
                Some((hash, _)) => outcome.faults.push(self.fault(Some(hash), &path, "belongs to a blob of one group")),
                None if !path.exists() => {}
                None if name.parse::<Hash>().is_ok_and(|hash| self.layout.blob(&hash).exists()) => {}
                None => outcome.faults.push(self.fault(None, &path, "has no blob")),
            }
        }
        Ok(())
    }

    fn check_manifests(&self, outcome: &mut Verification) -> Result<HashMap<Hash, Arc<Manifest>>, StoreError> {
        let mut manifests = HashMap::new();
        for (name, path) in names(&self.layout.manifests())? {
            let digest = name.strip_suffix(".json").and_then(|name| name.parse::<Hash>().ok());
            let parsed = read_limited(&path).map(|text| Manifest::parse(&text));
            match (digest, parsed) {
                (Some(digest), Some(Ok(manifest))) if manifest.digest() == digest => {
                    manifests.insert(digest, Arc::new(manifest));
                }
                _ if !path.exists() => {}
                (Some(_), Some(Ok(_))) => outcome.faults.push(self.fault(None, &path, "does not have its digest")),
                (Some(_), Some(Err(error))) => outcome.faults.push(self.fault(None, &path, error.to_string())),
                _ => outcome.faults.push(self.fault(None, &path, "is not a manifest")),
            }
        }
        Ok(manifests)
    }

    fn check_models(
        &self,
        manifests: &HashMap<Hash, Arc<Manifest>>,
        sizes: &HashMap<Hash, u64>,
        outcome: &mut Verification,
    ) -> Result<(), StoreError> {
        for (tenant, id, path) in records(&self.layout.models())? {
            let record = read_limited(&path).and_then(|text| serde_json::from_slice::<ModelRecord>(&text).ok());
            let Some(record) = record.filter(|record| record.id == id && record.tenant == tenant) else {
                if path.exists() {
                    outcome.faults.push(self.fault(None, &path, "is not a model record"));
                }
                continue;
            };
            let Some(manifest) = manifests.get(&record.manifest) else {
                if path.exists() && !self.layout.manifest(&record.manifest).exists() {
                    outcome.faults.push(self.fault(None, &path, format!("manifest {} is missing", record.manifest)));
                }
                continue;
            };
            outcome.models += 1;
            let tree = self.layout.tree(&tenant, &id);
            // A model whose blob was quarantined has no tree until it is fetched again.
            if !tree.is_dir() {
                continue;
            }
            // While it is being mended its new blob has no name yet. Asked before the blob is looked for: the name comes first.
            let unsettled = self.is_unsettled(&tenant, &id);
            for file in manifest.files() {
                // What was sealed since the list was made is there, and hashed next time.
                let sealed_since = || Some(fs::symlink_metadata(self.layout.blob(&file.blake3)).ok()?.len());
                let wrong = match sizes.get(&file.blake3).copied().or_else(sealed_since) {
                    None if unsettled => None,
                    None => Some("its blob is missing"),
                    Some(size) if size != file.size => Some("its blob has another size"),
                    Some(_) => self.wrong_link(&tree.join(&file.path), &file.blake3),
                };
                if let Some(what) = wrong.filter(|_| path.exists() && tree.is_dir()) {
                    outcome.faults.push(self.fault(Some(file.blake3), &tree.join(&file.path), what));
                }
            }
            for extra in strangers(&tree, manifest) {
                outcome.faults.push(self.fault(None, &extra, "is not in the manifest"));
            }
        }
        Ok(())
    }

    /// Whether a model of this boot waits to become durable.
    fn is_unsettled(&self, tenant: &Tenant, id: &ModelId) -> bool {
        let pending = read_limited(&self.layout.pending(tenant, id));
        let pending = pending.and_then(|text| serde_json::from_slice::<Pending>(&text).ok());
        pending.is_some_and(|pending| BootId::current().is_ok_and(|boot| pending.boot == boot))
    }

    /// What is wrong with a tree's file, if anything.
    fn wrong_link(&self, path: &Path, hash: &Hash) -> Option<&'static str> {
        let Ok(found) = fs::symlink_metadata(path) else { return Some("is missing") };
        if !found.is_file() {
            return Some("is not a regular file");
        }
        if found.mode() & 0o222 != 0 {
            return Some("is writable");
        }
        let blob = fs::metadata(self.layout.blob(hash)).ok()?;
        if blob.ino() == found.ino() && blob.dev() == found.dev() {
            return None;
        }
        // Equal bytes under another inode: the tree is older than the blob's name.
        let right = BlobReader::open(hash, path, None, &self.layout.outboard(hash))
            .and_then(|reader| reader.verify(&mut |_| {}));
        match right {
            Err(error) if error.kind() == ErrorKind::Corrupt => Some("has other bytes than its blob"),
            _ => None,
        }
    }
}

/// Files below `tree` that the manifest does not name.
fn strangers(tree: &Path, manifest: &Manifest) -> Vec<PathBuf> {
    let (mut found, mut waiting) = (Vec::new(), vec![tree.to_owned()]);
    let known: std::collections::HashSet<PathBuf> = manifest.files().iter().map(|file| tree.join(&file.path)).collect();
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok) {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                waiting.push(path);
            } else if !known.contains(&path) {
                found.push(path);
            }
        }
    }
    found
}
