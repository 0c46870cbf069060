//! Which models are to stay in memory, how much of each is there, and what is being read. Pure: it is told what was measured
//! and answers what to read, and what to give back.
//!
//! A model is *wanted* while a pin or lease on it says `in_memory`; so whoever asks renews, extends or ends it with the means
//! that there are for pins, it outlives the daemon, and nothing else has to be written down. One that was warmed and is not
//! wanted any more is *idle*: it stays while nobody needs the room. Bytes are counted by blob, since revisions of a model have
//! most of them in common.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::budget::Need;
use super::member::Seen;
use crate::digest::Hash;
use crate::model::{Manifest, ModelId, Tenant};

/// A model of the store.
pub(super) type Key = (Tenant, ModelId);

/// A model that was given back is left alone for so long, whatever it brought: trying costs a pass over all its pages.
pub(super) const REST: Duration = Duration::from_secs(30);

/// So is one that was read in vain, the first time: somebody may just have dropped pages. Then twice as long each time.
const REST_FIRST: Duration = Duration::from_secs(2);

/// But no longer than this.
const REST_LONGEST: Duration = Duration::from_secs(60);

/// A model as the store has it.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) key: Key,
    pub(super) manifest: Arc<Manifest>,
    /// Whether a pin says that it is to be in memory.
    pub(super) wanted: bool,
    /// Seconds since the epoch.
    pub(super) last_used: u64,
}

/// Sums over all models, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    /// Size of what is wanted.
    pub(super) wanted: u64,
    /// Of it, and of what is being read, what is there.
    pub(super) resident: u64,
    /// Of what is being read, what is not there.
    pub(super) promised: u64,
    /// There, and nobody asks for it.
    pub(super) idle: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    models: BTreeMap<Key, Entry>,
    /// So many bytes of each are there.
    blobs: HashMap<Hash, u64>,
    reading: BTreeMap<u64, (Key, Arc<Manifest>)>,
    next: u64,
}

#[derive(Debug)]
struct Entry {
    manifest: Arc<Manifest>,
    wanted: bool,
    last_used: u64,
    /// Whether every byte of it was hashed since the daemon started.
    proved: bool,
    rests_until: Option<Instant>,
    /// How often in a row it was read in vain.
    in_vain: u32,
    /// Whether it was told that it is not in memory, since it last was.
    told: bool,
    seen: Arc<Seen>,
}

// === impl Ledger ===

impl Ledger {
    /// Takes over what the store has now. Models that it has no more are forgotten, and those that nobody wants and that are not
    /// in memory.
    pub(super) fn list(&mut self, listed: Vec<Listed>, now: Instant) {
        let mut before = std::mem::take(&mut self.models);
        for Listed { key, manifest, wanted, last_used } in listed {
            let known = before.remove(&key);
            if let Some(mut entry) = known {
                (entry.wanted, entry.last_used) = (wanted, last_used);
                if wanted || entry.seen.bytes().is_some_and(|bytes| bytes > 0) || self.is_read(&key) {
                    self.models.insert(key, entry);
                }
            } else if wanted {
                self.enter(key, manifest, wanted, last_used);
            }
        }
        before.values().for_each(|gone| gone.seen.set(Some(0), now));
        self.forget_unnamed();
    }

    fn forget_unnamed(&mut self) {
        let named: HashSet<Hash> =
            self.manifests().flat_map(|manifest| hashes(manifest).map(|(hash, _)| hash)).collect();
        self.blobs.retain(|hash, _| named.contains(hash));
    }

    fn enter(&mut self, key: Key, manifest: Arc<Manifest>, wanted: bool, last_used: u64) -> &mut Entry {
        self.models.entry(key).or_insert(Entry {
            manifest,
            wanted,
            last_used,
            proved: false,
            rests_until: None,
            in_vain: 0,
            told: false,
            seen: Arc::default(),
        })
    }

    fn manifests(&self) -> impl Iterator<Item = &Arc<Manifest>> {
        let listed = self.models.values().map(|entry| &entry.manifest);
        listed.chain(self.reading.values().map(|(_, manifest)| manifest))
    }

    /// All of them, for whoever measures.
    pub(super) fn keys(&self) -> Vec<(Key, Arc<Manifest>)> {
        self.models.iter().map(|(key, entry)| (key.clone(), Arc::clone(&entry.manifest))).collect()
    }

    /// So much of each blob of a model is in memory now.
    pub(super) fn measured(&mut self, key: &Key, resident: &HashMap<Hash, u64>, now: Instant) {
        let known = self.models.get(key).map(|entry| &entry.manifest);
        let read = || self.reading.values().find(|(of, _)| of == key).map(|(_, manifest)| manifest);
        let Some(manifest) = known.or_else(read).map(Arc::clone) else { return };
        self.note(&manifest, resident);
        let there = self.resident_of(&manifest);
        if let Some(entry) = self.models.get(key) {
            entry.seen.set(Some(there), now);
        }
    }

    fn note(&mut self, manifest: &Manifest, resident: &HashMap<Hash, u64>) {
        for (hash, _) in hashes(manifest) {
            self.blobs.insert(hash, resident.get(&hash).copied().unwrap_or(0));
        }
    }

    /// A model is about to be read, of which so much is there. What it lacks is promised to it until [`Ledger::end`]. Returns
    /// the name of this reading, and what it adds to what others have.
    pub(super) fn begin(&mut self, key: &Key, manifest: &Arc<Manifest>, resident: &HashMap<Hash, u64>) -> (u64, Need) {
        self.note(manifest, resident);
        let before = self.sums();
        self.next += 1;
        self.reading.insert(self.next, (key.clone(), Arc::clone(manifest)));
        let after = self.sums();
        let cold = after.promised.saturating_sub(before.promised);
        (self.next, Need { cold, here: after.resident.saturating_sub(before.resident) })
    }

    /// It was not begun after all.
    pub(super) fn abandon(&mut self, reading: u64) {
        self.reading.remove(&reading);
        self.forget_unnamed();
    }

    /// It was read. `whole`: every byte was hashed and is there.
    pub(super) fn end(&mut self, reading: u64, whole: bool, last_used: u64, now: Instant) {
        let Some((key, manifest)) = self.reading.remove(&reading) else { return };
        let there = self.resident_of(&manifest);
        let entry = self.enter(key, manifest, false, last_used);
        entry.seen.set(Some(there), now);
        entry.last_used = last_used;
        entry.proved |= whole;
        entry.told &= !whole;
        let rest = REST_FIRST.saturating_mul(2_u32.saturating_pow(entry.in_vain)).min(REST_LONGEST);
        entry.rests_until = (!whole).then_some(now + rest);
        entry.in_vain = if whole { 0 } else { entry.in_vain.saturating_add(1) };
    }

    /// A model is wanted from now on, not only from the next look at the store on.
    pub(super) fn keep(&mut self, key: &Key) {
        if let Some(entry) = self.models.get_mut(key) {
            entry.wanted = true;
        }
    }

    /// Nothing is done about a model before then.
    pub(super) fn rest(&mut self, key: &Key, until: Instant) {
        if let Some(entry) = self.models.get_mut(key) {
            entry.rests_until = entry.rests_until.max(Some(until));
        }
    }

    /// Whether it is still to be told that a model is not in memory.
    pub(super) fn tell(&mut self, key: &Key) -> bool {
        self.models.get_mut(key).is_some_and(|entry| !std::mem::replace(&mut entry.told, true))
    }

    fn is_read(&self, key: &Key) -> bool {
        self.reading.values().any(|(of, _)| of == key)
    }

    fn resident_of(&self, manifest: &Manifest) -> u64 {
        manifest.files().iter().filter_map(|file| self.blobs.get(&file.blake3)).sum()
    }

    /// What is told of a model to whoever asks.
    pub(super) fn seen(&self, key: &Key) -> Option<Arc<Seen>> {
        Some(Arc::clone(&self.models.get(key)?.seen))
    }

    /// Whether a model is wanted, hashed since the daemon started, and there as far as was measured.
    pub(super) fn is_whole(&self, key: &Key) -> bool {
        self.models.get(key).is_some_and(|entry| {
            entry.wanted && entry.proved && self.resident_of(&entry.manifest) == entry.manifest.total_bytes()
        })
    }

    /// Whether a model is wanted.
    pub(super) fn is_wanted(&self, key: &Key) -> bool {
        self.models.get(key).is_some_and(|entry| entry.wanted)
    }

    /// Blobs that are to stay or to come.
    fn claimed(&self) -> HashSet<Hash> {
        let wanted = self.models.values().filter(|entry| entry.wanted).map(|entry| &entry.manifest);
        let read = self.reading.values().map(|(_, manifest)| manifest);
        wanted.chain(read).flat_map(|manifest| hashes(manifest).map(|(hash, _)| hash)).collect()
    }

    /// The sums.
    pub(super) fn sums(&self) -> Sums {
        let claimed = self.claimed();
        let read: HashMap<Hash, u64> = self.reading.values().flat_map(|(_, manifest)| hashes(manifest)).collect();
        let wanted: HashMap<Hash, u64> =
            self.models.values().filter(|entry| entry.wanted).flat_map(|entry| hashes(&entry.manifest)).collect();
        let mut sums = Sums { wanted: wanted.values().sum(), ..Sums::default() };
        let there = |hash: &Hash| self.blobs.get(hash).copied().unwrap_or(0);
        sums.resident = claimed.iter().map(there).sum();
        sums.promised = read.iter().map(|(hash, size)| size.saturating_sub(there(hash))).sum();
        sums.idle = self.blobs.iter().filter(|(hash, _)| !claimed.contains(*hash)).map(|(_, bytes)| bytes).sum();
        sums
    }

    /// Models that nobody wants, with what giving them back would free; the longest unused first.
    pub(super) fn idle(&self, now: Instant) -> Vec<(Key, u64)> {
        self.by_use(now, |entry| !entry.wanted)
    }

    /// Models that are wanted, in the same way.
    pub(super) fn wanted(&self, now: Instant) -> Vec<(Key, u64)> {
        self.by_use(now, |entry| entry.wanted)
    }

    fn by_use(&self, now: Instant, which: impl Fn(&Entry) -> bool) -> Vec<(Key, u64)> {
        let chosen =
            self.models.iter().filter(|(_, entry)| which(entry) && entry.rests_until.is_none_or(|at| at <= now));
        let mut chosen: Vec<_> = chosen
            .map(|(key, entry)| {
                (entry.last_used, key.clone(), self.droppable(key).iter().map(|(_, bytes)| bytes).sum())
            })
            .filter(|(_, _, bytes)| *bytes > 0)
            .collect();
        chosen.sort();
        chosen.into_iter().map(|(_, key, bytes)| (key, bytes)).collect()
    }

    /// Blobs of a model that no other wanted model has and that nobody reads, with what is there of each.
    pub(super) fn droppable(&self, key: &Key) -> Vec<(Hash, u64)> {
        let Some(entry) = self.models.get(key) else { return Vec::new() };
        let others = self.models.iter().filter(|(other, entry)| *other != key && entry.wanted);
        let others = others.map(|(_, entry)| &entry.manifest).chain(self.reading.values().map(|(_, read)| read));
        let kept: HashSet<Hash> = others.flat_map(|manifest| hashes(manifest).map(|(hash, _)| hash)).collect();
        let own: BTreeMap<Hash, u64> = hashes(&entry.manifest).collect();
        let own = own.into_keys().filter(|hash| !kept.contains(hash));
        own.filter_map(|hash| Some((hash, *self.blobs.get(&hash)?)).filter(|(_, bytes)| *bytes > 0)).collect()
    }

    /// The model to be read again next: wanted, not all there, the last used first.
    pub(super) fn missing(&self, now: Instant) -> Option<Key> {
        let lacking = self.models.iter().filter(|(key, entry)| {
            entry.wanted
                && entry.rests_until.is_none_or(|at| at <= now)
                && !self.is_read(key)
                && self.resident_of(&entry.manifest) < entry.manifest.total_bytes()
        });
        lacking.max_by_key(|(_, entry)| entry.last_used).map(|(key, _)| key.clone())
    }
}

fn hashes(manifest: &Manifest) -> impl Iterator<Item = (Hash, u64)> {
    manifest.files().iter().map(|file| (file.blake3, file.size))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{FilePath, Kind, ManifestEntry};

    fn key(name: &str) -> Key {
        (Tenant::default(), format!("{name}-{}", "0".repeat(32)).parse().unwrap())
    }

    /// A model of files of 100 bytes; equal numbers are equal files.
    fn manifest(files: &[u8]) -> Arc<Manifest> {
        let entry = |number: &u8| {
            ManifestEntry::new(FilePath::new(format!("{number}.safetensors")).unwrap(), 100, Hash::of(&[*number]))
        };
        Arc::new(Manifest::new(Kind::Model, files.iter().map(entry).collect()).unwrap())
    }

    fn there(files: &[(u8, u64)]) -> HashMap<Hash, u64> {
        files.iter().map(|(number, bytes)| (Hash::of(&[*number]), *bytes)).collect()
    }

    fn listed(name: &str, files: &[u8], wanted: bool, last_used: u64) -> Listed {
        Listed { key: key(name), manifest: manifest(files), wanted, last_used }
    }

    #[test]
    fn what_is_wanted_and_gone_is_read_again_the_last_used_first() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        ledger.list(vec![listed("a", &[1], true, 5), listed("b", &[2], true, 9), listed("c", &[3], false, 10)], now);
        ledger.measured(&key("a"), &there(&[(1, 100)]), now);
        ledger.measured(&key("b"), &there(&[(2, 60)]), now);
        assert_eq!(ledger.missing(now), Some(key("b")));
        assert_eq!(ledger.sums(), Sums { wanted: 200, resident: 160, ..Sums::default() });
        let (reading, need) = ledger.begin(&key("b"), &manifest(&[2]), &there(&[(2, 60)]));
        assert_eq!((need, ledger.missing(now)), (Need { cold: 40, here: 0 }, None), "not twice at a time");
        assert_eq!(ledger.sums().promised, 40);
        ledger.measured(&key("b"), &there(&[(2, 100)]), now);
        ledger.end(reading, true, 9, now);
        assert_eq!(ledger.sums(), Sums { wanted: 200, resident: 200, ..Sums::default() });
        assert!(ledger.is_whole(&key("b")) && !ledger.is_whole(&key("a")), "the one was hashed, the other not");
        // One that could not be read rests; one whose lease has ended is let be.
        ledger.measured(&key("a"), &there(&[(1, 0)]), now);
        let (reading, _) = ledger.begin(&key("a"), &manifest(&[1]), &there(&[]));
        ledger.end(reading, false, 5, now);
        assert!(ledger.tell(&key("a")) && !ledger.tell(&key("a")));
        assert_eq!((ledger.missing(now), ledger.missing(now + REST_FIRST)), (None, Some(key("a"))));
        let (reading, _) = ledger.begin(&key("a"), &manifest(&[1]), &there(&[]));
        ledger.end(reading, false, 5, now);
        assert_eq!(ledger.missing(now + REST_FIRST), None, "longer each time");
        assert_eq!(ledger.missing(now + 2 * REST_FIRST), Some(key("a")));
        ledger.list(vec![listed("a", &[1], false, 5), listed("b", &[2], false, 9)], now);
        assert_eq!(ledger.missing(now + REST), None);
        assert_eq!((ledger.sums().idle, ledger.keys().len()), (100, 1), "what is not there is forgotten");
    }

    #[test]
    fn files_that_models_have_in_common_count_once_and_stay_while_one_wants_them() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        ledger.list(vec![listed("old", &[1, 2], true, 1), listed("new", &[2, 3], true, 2)], now);
        ledger.measured(&key("old"), &there(&[(1, 100), (2, 100)]), now);
        ledger.measured(&key("new"), &there(&[(2, 100), (3, 100)]), now);
        assert_eq!(ledger.sums(), Sums { wanted: 300, resident: 300, ..Sums::default() });
        ledger.list(vec![listed("old", &[1, 2], false, 1), listed("new", &[2, 3], true, 2)], now);
        assert_eq!((ledger.sums().resident, ledger.sums().idle), (200, 100));
        assert_eq!(ledger.idle(now), [(key("old"), 100)]);
        assert_eq!(ledger.droppable(&key("old")), [(Hash::of(&[1]), 100)]);
        // Of what is read nothing is dropped.
        let (reading, need) = ledger.begin(&key("old"), &manifest(&[1, 2]), &there(&[(1, 100), (2, 100)]));
        assert_eq!(need, Need { cold: 0, here: 100 }, "the other half is claimed by another model");
        assert_eq!((ledger.droppable(&key("old")).len(), ledger.idle(now).len()), (0, 0));
        ledger.abandon(reading);
        assert_eq!(ledger.idle(now).len(), 1);
        ledger.rest(&key("old"), now + REST);
        assert_eq!(ledger.idle(now), [], "what would not go is not tried again at once");
    }

    #[test]
    fn who_shows_a_model_is_told_when_it_is_evicted() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        ledger.list(vec![listed("a", &[1], true, 5)], now);
        ledger.measured(&key("a"), &there(&[(1, 100)]), now);
        let seen = ledger.seen(&key("a")).unwrap();
        assert_eq!(seen.bytes(), Some(100));
        ledger.list(Vec::new(), now);
        assert_eq!((seen.bytes(), ledger.sums()), (Some(0), Sums::default()));
    }
}
