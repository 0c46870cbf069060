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
use crate::sys::hands::Hands;
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
    /// Calls of the store that may take long (re-hashing, evicting, publishing), and syncs.
    pub(super) store_hands: Hands,
    /// Memory for small files, in KiB.
    small: Arc<Semaphore>,
    /// Files up to this size are held whole.
    pub(super) small_bytes: u64,
}

/// Share of the memory that is for small files.
const SMALL_SHARE: u64 = 4;
/// Threads for calls of the store: one may evict, one re-hash, one publish and one sync without holding the others up.
const STORE_THREADS: usize = 4;

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
        match self.store_hands.run(move || call(&store)).await {
            Ok(outcome) => outcome.map_err(|error| TransferError::store(what, error)),
            Err(panicked) => Err(TransferError::Defect { task: "store call", detail: panicked.to_string() }),
        }
    }
}
