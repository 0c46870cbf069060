//! What all transfers of a process share and can run out of: threads, buffers, the link.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::observed::Observed;
use super::pace::Pace;
use super::{Config, TransferError};
use crate::digest::GROUP_BYTES;
use crate::store::{Store, StoreError};
use crate::sys::buffer::Buffers;
use crate::sys::hands::{Hands, WorkPanicked};
use crate::telemetry::metrics::Metrics;

/// The shared means.
#[derive(Debug)]
pub(super) struct Gear {
    pub(super) store: Store,
    pub(super) metrics: Arc<Metrics>,
    pub(super) config: Config,
    pub(super) buffers: Buffers,
    pub(super) pace: Pace,
    pub(super) observed: Observed,
    /// Hashing and writing of groups. Nothing here waits for anything but the disk.
    pub(super) write: Hands,
    /// Sequential digests of origins.
    pub(super) digest: Hands,
    /// Calls of the store that may take long (evicting, publishing).
    store_hands: Hands,
    /// Looking for what is here, which hashes what an earlier process left.
    look_hands: Hands,
    /// Syncs of what is on its way. A slow disk takes seconds for each, and nobody waits for one: so they hold up each other and
    /// nobody else.
    sync_hands: Hands,
    /// Memory for small files, in KiB.
    small: Arc<Semaphore>,
    /// Files up to this size are held whole.
    pub(super) small_bytes: u64,
}

/// Share of the memory that is for small files.
const SMALL_SHARE: u64 = 4;
/// Threads for calls of the store: one may evict and others publish or look up without holding the others up.
const STORE_THREADS: usize = 4;
/// Fetches that look for what is here at once. After a stop that was no orderly one each may hash hundreds of gigabytes first;
/// a fetch with nothing to hash passes by as many.
const LOOK_THREADS: usize = 8;
/// Threads for syncs. A disk that is busy with two takes a third no sooner.
const SYNC_THREADS: usize = 2;

// === impl Gear ===

impl Gear {
    pub(super) fn new(store: Store, metrics: Arc<Metrics>, config: Config) -> std::io::Result<Self> {
        // The bound of the defaults: writing saturates a disk with fewer, and each thread has its share of cache.
        let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
        let small = config.memory.0 / SMALL_SHARE;
        let total = config.connections_total as usize;
        Ok(Self {
            buffers: Buffers::new(config.memory.0 - small, GROUP_BYTES as usize),
            pace: Pace::new(config.bandwidth, Instant::now()),
            observed: Observed::default(),
            // Each connection has at most two writes under way, so the queue never makes one wait for room.
            write: Hands::new("write", config.write_threads.unwrap_or(threads), 2 * total)?,
            digest: Hands::new("digest", config.digest_threads.unwrap_or(threads), total)?,
            store_hands: Hands::new("store", STORE_THREADS, total)?,
            look_hands: Hands::new("look", LOOK_THREADS, total)?,
            sync_hands: Hands::new("sync", SYNC_THREADS, total)?,
            small: Arc::new(Semaphore::new((small >> 10) as usize)),
            small_bytes: small.min(store.options().small_bytes),
            store,
            metrics,
            config,
        })
    }

    /// Memory for a small file of `size` bytes, waiting for it.
    pub(super) async fn small_memory(&self, size: u64) -> Option<OwnedSemaphorePermit> {
        let permits = u32::try_from(size.div_ceil(1024)).ok()?;
        // The semaphore is never closed.
        Arc::clone(&self.small).acquire_many_owned(permits).await.ok()
    }

    /// Calls the store from a thread that may block.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        what: &(impl ToString + ?Sized),
        call: impl FnOnce(&Store) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, TransferError> {
        let store = self.store.clone();
        outcome(what, self.store_hands.run(move || call(&store)).await)
    }

    /// Looks into the store, for as long as it takes.
    pub(super) async fn look<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Store) -> T + Send + 'static,
    ) -> Result<T, TransferError> {
        let store = self.store.clone();
        let done = self.look_hands.run(move || call(&store)).await;
        done.map_err(|panicked| TransferError::Defect { task: "store call", detail: panicked.to_string() })
    }

    /// Syncs from a thread that does nothing else.
    pub(super) async fn sync(
        &self,
        what: &(impl ToString + ?Sized),
        call: impl FnOnce() -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), TransferError> {
        outcome(what, self.sync_hands.run(call).await)
    }
}

fn outcome<T>(
    what: &(impl ToString + ?Sized),
    done: Result<Result<T, StoreError>, WorkPanicked>,
) -> Result<T, TransferError> {
    match done {
        Ok(outcome) => outcome.map_err(|error| TransferError::store(what, error)),
        Err(panicked) => Err(TransferError::Defect { task: "store call", detail: panicked.to_string() }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;
    use crate::store::{Holder, Options};

    #[tokio::test]
    async fn syncs_on_a_slow_disk_hold_up_nobody_else() {
        let directory = tempfile::tempdir().unwrap();
        let holder = Holder { role: "test".to_owned(), pid: 1 };
        let store = Store::open(&directory.path().join("root"), &holder, Options::new("boot".into())).unwrap();
        let gear = Gear::new(store, Arc::new(Metrics::new()), Config::default()).unwrap();
        let (ends, ended): (Vec<_>, Vec<_>) = (0..16).map(|_| mpsc::sync_channel::<()>(1)).unzip();
        // More than there are threads of either kind.
        let slow = ended.into_iter().map(|ended| gear.sync("file", move || ended.recv().or(Ok(()))));
        let mut syncs = std::pin::pin!(futures_util::future::join_all(slow));
        let asked = gear.ask("model", |store| Ok(store.models().len()));
        let asked = tokio::select! {
            biased;
            _ = syncs.as_mut() => panic!("they wait"),
            asked = tokio::time::timeout(Duration::from_secs(10), asked) => asked,
        };
        drop(ends);
        assert!(syncs.await.iter().all(Result::is_ok));
        assert_eq!(asked.expect("answered while all syncs wait").unwrap(), 0);
    }
}
