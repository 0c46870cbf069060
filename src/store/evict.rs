//! Making room: orphans first, then whole models, least recently used first, never one that is pinned, leased, held or in use.
//! `cache-layout/README.md` §7 has the order and what a crash leaves.
//!
//! In use means that some process on the machine has a blob of the model open or mapped. Counting opens through preheat was
//! turned down: engines map the files of a tree themselves, and no call of ours is involved.

use std::collections::HashSet;
use std::fs;
use std::time::{Duration, SystemTime};

use super::error::IoContext;
use super::index::{Home, Index, ModelKey, PartialEntry};
use super::publish::remove_tree;
use super::space::cost;
use super::{Evicted, Inner, StoreError, now};
use crate::digest::Hash;
use crate::model::{FlightKey, ModelId};
use crate::sys::durable::sync_directory;
use crate::sys::in_use::{InUse, in_use};
use crate::sys::mutant::mutant;

/// A partial that nobody has touched for this long belongs to a fetch that nobody repeats.
const STALE_PARTIAL: Duration = Duration::from_secs(24 * 3600);

/// Why a model stays that is not durable yet, or about to be published again.
pub(super) const BEING_WRITTEN: &str = "being written";

/// Why a model stays.
fn kept_by(index: &Index, key: &ModelKey, now: u64) -> Option<&'static str> {
    let entry = index.models.get(key)?;
    if !mutant("lease_ignored")
        && let Some(pin) = entry.pins.iter().find(|pin| pin.holds_at(now))
    {
        return Some(if pin.expires_at.is_some() { "leased" } else { "pinned" });
    }
    let held = |hash: &Hash| index.blobs.get(hash).is_some_and(super::index::Blob::is_held);
    // A blob shared with a held model is not removed anyway; the hold is for what a transfer is about to publish.
    (!entry.durable || entry.manifest.files().iter().any(|file| held(&file.blake3))).then_some(BEING_WRITTEN)
}

/// Models in the order in which they go.
fn by_age(index: &Index) -> Vec<ModelKey> {
    let mut keys: Vec<(u64, &ModelKey)> = index.models.iter().map(|(key, entry)| (entry.last_used, key)).collect();
    keys.sort();
    keys.into_iter().map(|(_, key)| key.clone()).collect()
}

/// How far an eviction goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Goal {
    /// Until so many bytes have been freed.
    Free(u64),
    /// Orphans and stale partials only.
    Orphans,
    /// Everything that may go.
    All,
}

/// The most that an eviction could free, and who keeps the rest: an upper bound, since who has what open is not asked.
fn at_most(index: &Index, keep: &[FlightKey], now: u64) -> (u64, Vec<(ModelId, String)>) {
    let mut kept = Vec::new();
    let mut staying: HashSet<Hash> =
        index.blobs.iter().filter(|(_, blob)| blob.is_held()).map(|(hash, _)| *hash).collect();
    for (key, entry) in &index.models {
        // What is being written may be durable in a moment, and go then; its blobs are held only until then.
        let why = kept_by(index, key, now);
        let own = entry.manifest.files().iter().map(|file| file.blake3);
        match why {
            Some(why) if why != BEING_WRITTEN => {
                kept.push((key.1.clone(), why.to_owned()));
                staying.extend(own);
            }
            Some(_) if !entry.durable => own.for_each(|hash| {
                staying.remove(&hash);
            }),
            _ => {}
        }
    }
    let blobs: u64 = staying.iter().filter_map(|hash| index.blobs.get(hash)).map(|blob| cost(blob.size)).sum();
    let open = |key: &FlightKey, partial: &PartialEntry| partial.open || keep.contains(key);
    let partials: u64 =
        index.partials.iter().filter(|(key, partial)| open(key, partial)).map(|(_, partial)| cost(partial.size)).sum();
    (index.account.used().saturating_sub(blobs + partials), kept)
}

// === impl Inner ===

impl Inner {
    /// Whether it makes sense to evict for `bytes`; if not, who keeps what. Nobody loses a model for a request that fails.
    pub(super) fn may_free(&self, bytes: u64, keep: &[FlightKey]) -> Result<(), Vec<(ModelId, String)>> {
        let (most, kept) = at_most(&self.index(), keep, now());
        if most >= bytes { Ok(()) } else { Err(kept) }
    }

    /// Evicts towards `goal`. `keep`: partials that the caller is about to resume.
    pub(super) fn evict(&self, goal: Goal, keep: &[FlightKey]) -> Result<Evicted, StoreError> {
        let _alone = self.evicting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut done = Evicted::default();
        let enough = |done: &Evicted| matches!(goal, Goal::Free(bytes) if done.bytes >= bytes);
        self.evict_orphans(&mut done)?;
        if !enough(&done) {
            self.evict_quarantine(&mut done, goal != Goal::Orphans);
        }
        if !enough(&done) {
            self.evict_partials(&mut done, keep, goal);
        }
        if goal != Goal::Orphans {
            let order = by_age(&self.index());
            for key in order {
                if enough(&done) {
                    break;
                }
                self.evict_model(&key, &mut done)?;
            }
        }
        Ok(done)
    }

    /// Evicts one model if nothing keeps it; says in `done` which.
    pub(super) fn evict_model(&self, key: &ModelKey, done: &mut Evicted) -> Result<bool, StoreError> {
        let now = now();
        let (own, kept) = {
            let index = self.index();
            let Some(entry) = index.models.get(key) else { return Ok(false) };
            (index.used_only_by(entry), kept_by(&index, key, now))
        };
        if let Some(why) = kept {
            done.kept.push((key.1.clone(), why.to_owned()));
            return Ok(false);
        }
        // Asked once before it is hidden, so that an engine which starts beside one that runs finds its tree; and again when no
        // new reader can come by path.
        if self.any_in_use(own.iter()) {
            done.kept.push((key.1.clone(), "in use".to_owned()));
            return Ok(false);
        }
        let aside = self.move_tree_aside(key)?;
        if self.any_in_use(own.iter()) {
            if let Some(aside) = &aside {
                let path = self.layout.tree(&key.0, &key.1);
                self.note(fs::rename(aside, &path).at("put tree back", &path))?;
                use std::os::unix::fs::PermissionsExt;
                let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o555));
            }
            done.kept.push((key.1.clone(), "in use".to_owned()));
            return Ok(false);
        }
        self.step("tree withdrawn")?;
        let record = self.layout.record(&key.0, &key.1);
        remove_if_there(&record).at("remove record", &record)?;
        let directory = self.layout.models().join(key.0.as_str());
        self.synced(sync_directory(&directory).at("sync directory", &directory))?;
        if let Some(aside) = aside {
            remove_tree(&aside);
        }
        self.step("record removed")?;
        let entry = self.index().remove_model(key);
        if let Some(entry) = entry {
            for pin in &entry.pins {
                let _ = fs::remove_file(self.layout.pin(&key.0, &key.1, &pin.id));
            }
            let digest = entry.record.manifest;
            if !self.index().models.values().any(|other| other.record.manifest == digest) {
                let path = self.layout.manifest(&digest);
                remove_if_there(&path).at("remove manifest", &path)?;
            }
        }
        for hash in own {
            self.unlink_blob(&hash, done)?;
        }
        done.models.push(key.1.clone());
        Ok(true)
    }

    fn any_in_use<'a>(&self, hashes: impl Iterator<Item = &'a Hash>) -> bool {
        let homes: Vec<(Home, Hash)> = {
            let index = self.index();
            hashes.filter_map(|hash| index.blobs.get(hash).map(|blob| (blob.home, *hash))).collect()
        };
        let mut paths = homes.into_iter().map(|(home, hash)| self.place(home, &hash));
        // Where the kernel cannot tell (a file system without leases), unlinking is still safe for whoever has the file
        // open; its space returns later than counted.
        !mutant("in_use_ignored") && paths.any(|path| matches!(in_use(&path), Ok(InUse::Yes)))
    }

    /// Blobs that no model names and nobody holds.
    fn evict_orphans(&self, done: &mut Evicted) -> Result<(), StoreError> {
        let orphans: Vec<Hash> = {
            let index = self.index();
            index
                .blobs
                .iter()
                .filter(|(hash, blob)| !index.is_used(hash) && !blob.is_held())
                .map(|(hash, _)| *hash)
                .collect()
        };
        for hash in orphans {
            if !self.any_in_use(std::iter::once(&hash)) {
                self.unlink_blob(&hash, done)?;
            }
        }
        Ok(())
    }

    fn unlink_blob(&self, hash: &Hash, done: &mut Evicted) -> Result<(), StoreError> {
        // Not while it is on its way to its name: it would arrive there after all, known to nobody.
        let unsealed = self.index().blobs.get(hash).is_some_and(|blob| blob.home != Home::Sealed);
        let _sealing = unsealed.then(|| self.sealing.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
        let removed = {
            let mut index = self.index();
            // A transfer may have taken hold of it since it was chosen.
            if index.blobs.get(hash).is_none_or(super::index::Blob::is_held) {
                return Ok(());
            }
            index.remove_blob(hash)
        };
        let Some(blob) = removed else { return Ok(()) };
        let path = self.place(blob.home, hash);
        remove_if_there(&path).at("remove blob", &path)?;
        let outboard = self.layout.outboard(hash);
        remove_if_there(&outboard).at("remove outboard", &outboard)?;
        if let Home::Partial(key) = blob.home {
            let _ = fs::remove_dir_all(self.layout.partial(&key));
        }
        done.blobs += 1;
        done.bytes += cost(blob.size);
        Ok(())
    }

    fn evict_partials(&self, done: &mut Evicted, keep: &[FlightKey], goal: Goal) {
        let idle: Vec<(FlightKey, u64)> = {
            let index = self.index();
            index
                .partials
                .iter()
                .filter(|(key, entry)| !entry.open && !keep.contains(key))
                .map(|(key, entry)| (*key, entry.size))
                .collect()
        };
        for (key, size) in idle {
            let changed = fs::metadata(self.layout.partial(&key).join("journal")).and_then(|found| found.modified());
            let stale =
                changed.is_ok_and(|at| SystemTime::now().duration_since(at).is_ok_and(|age| age > STALE_PARTIAL));
            if goal != Goal::Orphans || stale {
                self.remove_partial_directory(&key);
                done.bytes += cost(size);
            }
        }
    }
}

fn remove_if_there(path: &std::path::Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}
