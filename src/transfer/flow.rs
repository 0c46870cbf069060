//! Where the bytes of one flight are counted: with everybody who waits for it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use super::Progress;

/// The counters of one flight and those who watch them.
#[derive(Debug, Default)]
pub(super) struct Flow {
    watchers: RwLock<Vec<(u64, Arc<Progress>)>>,
    verified: AtomicU64,
    connections: AtomicU64,
}

// === impl Flow ===

impl Flow {
    /// Adds somebody who waits; what is here already counts for them too.
    pub(super) fn watch(&self, id: u64, progress: Arc<Progress>) {
        let mut watchers = self.watchers.write().unwrap_or_else(PoisonError::into_inner);
        progress.verified(self.verified.load(Ordering::Relaxed));
        progress.connected(self.connections.load(Ordering::Relaxed) as u32);
        watchers.push((id, progress));
    }

    /// Removes them. Bytes that were counted stay counted.
    pub(super) fn unwatch(&self, id: u64) {
        let mut watchers = self.watchers.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = watchers.iter().position(|(watcher, _)| *watcher == id) {
            let (_, progress) = watchers.remove(at);
            progress.disconnected(self.connections.load(Ordering::Relaxed) as u32);
        }
    }

    /// Bytes came from the origin. The one who has waited longest pays for them, so that the sum over all is what was sent.
    pub(super) fn received(&self, bytes: u64) {
        for (at, (_, progress)) in self.read().iter().enumerate() {
            progress.received(bytes, at == 0);
        }
    }

    /// Bytes are on disk and hashed.
    pub(super) fn verified(&self, bytes: u64) {
        let watchers = self.read();
        self.verified.fetch_add(bytes, Ordering::Relaxed);
        watchers.iter().for_each(|(_, progress)| progress.verified(bytes));
    }

    /// The file starts over.
    pub(super) fn start_over(&self) {
        let watchers = self.watchers.write().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.verified.swap(0, Ordering::Relaxed);
        watchers.iter().for_each(|(_, progress)| progress.unverified(bytes));
    }

    /// Bytes verified so far.
    pub(super) fn verified_bytes(&self) -> u64 {
        self.verified.load(Ordering::Relaxed)
    }

    pub(super) fn connected(&self) {
        let watchers = self.watchers.write().unwrap_or_else(PoisonError::into_inner);
        self.connections.fetch_add(1, Ordering::Relaxed);
        watchers.iter().for_each(|(_, progress)| progress.connected(1));
    }

    pub(super) fn disconnected(&self) {
        let watchers = self.watchers.write().unwrap_or_else(PoisonError::into_inner);
        self.connections.fetch_sub(1, Ordering::Relaxed);
        watchers.iter().for_each(|(_, progress)| progress.disconnected(1));
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<(u64, Arc<Progress>)>> {
        self.watchers.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_sees_all_and_one_pays() {
        let (flow, first, second) = (Flow::default(), Arc::new(Progress::default()), Arc::new(Progress::default()));
        first.plan(1, 100);
        second.plan(1, 100);
        flow.watch(1, Arc::clone(&first));
        flow.connected();
        flow.received(10);
        flow.verified(10);
        flow.watch(2, Arc::clone(&second));
        flow.received(5);
        let seen = second.snapshot();
        assert_eq!((seen.bytes_done, seen.origin_bytes, seen.connections), (10, 0, 1));
        // Who came first has gone: the next one pays.
        flow.unwatch(1);
        flow.received(7);
        flow.start_over();
        flow.disconnected();
        let (gone, left) = (first.snapshot(), second.snapshot());
        assert_eq!((gone.bytes_done, gone.origin_bytes, gone.connections), (10, 15, 0));
        assert_eq!((left.bytes_done, left.origin_bytes, left.connections), (0, 7, 0));
    }
}
