//! Fetches of bundles that are under way, by engine key: one a key, since each has its turn.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::prewarm::Fetching;
use crate::digest::Hash;

/// All of a node.
#[derive(Debug, Default)]
pub(super) struct UnderWay {
    fetches: Arc<Mutex<HashMap<Hash, Arc<Counter>>>>,
}

/// The bytes of one fetch.
#[derive(Debug)]
pub(super) struct Counter {
    total: u64,
    /// On the node, from whenever.
    done: AtomicU64,
    /// Of these, come in this fetch.
    come: AtomicU64,
    begun: Instant,
}

/// Takes a fetch off the list when it is over, however that is.
#[derive(Debug)]
pub(super) struct Listed {
    key: Hash,
    pub(super) counter: Arc<Counter>,
    fetches: Arc<Mutex<HashMap<Hash, Arc<Counter>>>>,
}

fn lock(fetches: &Mutex<HashMap<Hash, Arc<Counter>>>) -> MutexGuard<'_, HashMap<Hash, Arc<Counter>>> {
    fetches.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Listed {
    fn drop(&mut self) {
        lock(&self.fetches).remove(&self.key);
    }
}

// === impl UnderWay ===

impl UnderWay {
    /// A fetch of so many bytes begins.
    pub(super) fn begin(&self, key: Hash, total: u64) -> Listed {
        let counter = Counter { total, done: AtomicU64::new(0), come: AtomicU64::new(0), begun: Instant::now() };
        let counter = Arc::new(counter);
        lock(&self.fetches).insert(key, Arc::clone(&counter));
        Listed { key, counter, fetches: Arc::clone(&self.fetches) }
    }

    pub(super) fn now(&self, key: &Hash) -> Option<Fetching> {
        let counter = lock(&self.fetches).get(key).map(Arc::clone)?;
        let come = counter.come.load(Ordering::Relaxed) as f64;
        Some(Fetching {
            bytes_total: counter.total,
            bytes_done: counter.done.load(Ordering::Relaxed).min(counter.total),
            bytes_per_second: come / counter.begun.elapsed().as_secs_f64().max(0.001),
        })
    }
}

// === impl Counter ===

impl Counter {
    /// Bytes that were here before.
    pub(super) fn here(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes that have come.
    pub(super) fn came(&self, bytes: u64) {
        self.done.fetch_add(bytes, Ordering::Relaxed);
        self.come.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fetch_is_on_the_list_for_as_long_as_it_lasts() {
        let (all, key) = (UnderWay::default(), Hash::of(b"key"));
        let listed = all.begin(key, 100);
        listed.counter.here(30);
        listed.counter.came(20);
        let now = all.now(&key).unwrap();
        assert_eq!((now.bytes_total, now.bytes_done), (100, 50));
        assert!(now.bytes_per_second > 0.0);
        drop(listed);
        assert_eq!(all.now(&key), None);
    }
}
