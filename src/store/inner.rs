//! The shared insides of a store: index, catalog and locks behind one `Arc`, what a failing disk means, and how blobs enter.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::catalog::{Catalog, CatalogLine};
use super::error::IoContext;
use super::index::{Blob, Home, Index};
use super::layout::Layout;
use super::lock::RootLock;
use super::scrub::Round;
use super::{BlobHold, BlobReader, Options, Reservation, StoreError, partial};
use crate::digest::{Declared, GroupCv, Hash};
use crate::model::{FlightKey, ModelId};
use crate::sys::disk::Disk;
use crate::sys::durable::sync_data;
use crate::sys::space::Filesystem;

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) layout: Layout,
    pub(super) options: Options,
    pub(super) disk: Disk,
    pub(super) index: Mutex<Index>,
    pub(super) catalog: Mutex<Catalog>,
    /// One sealing at a time.
    pub(super) sealing: Mutex<()>,
    /// One eviction at a time, and no pin and no publication meanwhile.
    pub(super) evicting: Mutex<()>,
    /// How far the scrub has come.
    pub(super) scrubbing: Mutex<Round>,
    /// The first failure after which nothing more is written.
    pub(super) halted: OnceLock<String>,
    /// Test builds stop here as a crash would: see [`Inner::step`].
    #[cfg(test)]
    pub(super) crash_at: Mutex<Option<&'static str>>,
    pub(super) _lock: RootLock,
}

// === impl Inner ===

impl Inner {
    pub(super) fn index(&self) -> MutexGuard<'_, Index> {
        // Every change of the index is made in one go: a panic elsewhere does not leave it half-changed.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn catalog(&self) -> MutexGuard<'_, Catalog> {
        self.catalog.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn check_writable(&self) -> Result<(), StoreError> {
        match self.halted.get() {
            Some(detail) => Err(StoreError::Halted { detail: detail.clone() }),
            None => Ok(()),
        }
    }

    /// Passes an outcome on; a disk that answers EIO or EROFS stops the store's writing.
    pub(super) fn note<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(StoreError::Io { source, .. }) = &outcome
            && matches!(source.raw_os_error(), Some(libc::EIO | libc::EROFS))
        {
            self.halt(&outcome.as_ref().err().map(ToString::to_string).unwrap_or_default());
        }
        outcome
    }

    /// Passes the outcome of a sync on; a failed one is final, so it stops the store's writing.
    pub(super) fn synced<T>(&self, outcome: Result<T, StoreError>) -> Result<T, StoreError> {
        outcome.inspect_err(|error| {
            // Out of space while writing back is not a broken disk, but what was to be synced is lost all the same.
            if !matches!(error, StoreError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull) {
                self.halt(&error.to_string());
            }
        })
    }

    /// Syncs the bytes of a blob or partial. When it fails they are lost, even if a second sync says otherwise: the caller
    /// drops them.
    pub(super) fn sync_bytes(&self, file: &File, path: &Path) -> Result<(), StoreError> {
        #[cfg(test)]
        let outcome = match *self.crash_at.lock().unwrap_or_else(PoisonError::into_inner) {
            Some("disk full in a sync") => Err(std::io::ErrorKind::StorageFull.into()),
            _ => sync_data(file),
        };
        #[cfg(not(test))]
        let outcome = sync_data(file);
        self.synced(outcome.at("sync blob", path))
    }

    pub(super) fn halt(&self, detail: &str) {
        if self.halted.set(detail.to_owned()).is_ok() {
            tracing::error!(root = %self.layout.root().display(), detail, "the store stops writing; what it has is still read");
        }
    }

    /// A named point between two steps of a crash-safe sequence. Test builds can stop at it, as a crash would.
    #[cfg_attr(not(test), expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "acts in test builds"))]
    pub(super) fn step(&self, name: &'static str) -> Result<(), StoreError> {
        #[cfg(test)]
        if *self.crash_at.lock().unwrap_or_else(PoisonError::into_inner) == Some(name) {
            return Err(StoreError::Halted { detail: format!("crashed at `{name}`") });
        }
        let _ = name;
        Ok(())
    }

    /// Where the bytes of a blob are at this moment. Sealing names them some time before the index says so, and may fail in
    /// between: what has left its place lies under its name.
    pub(super) fn place(&self, home: Home, hash: &Hash) -> std::path::PathBuf {
        let path = home.path(&self.layout, hash);
        if home == Home::Sealed || path.exists() { path } else { self.layout.blob(hash) }
    }

    /// Holds a blob, hashing it first if an earlier process left it.
    pub(super) fn trusted(&self, hash: &Hash) -> Option<BlobHold> {
        let suspect = {
            let index = self.index();
            let blob = index.blobs.get(hash)?;
            if !blob.suspect {
                return index.hold(hash);
            }
            (blob.home, blob.cvs.clone())
        };
        let path = self.place(suspect.0, hash);
        let right = match suspect.1 {
            Some(cvs) => BlobReader::open(hash, &path, Some(cvs), &self.layout.outboard(hash))
                .and_then(|reader| reader.verify_fast(&self.disk, &mut |_| {})),
            None => self.hash_small(hash, &path).map(|_| ()),
        };
        match right {
            Ok(()) => {
                let mut index = self.index();
                index.blobs.get_mut(hash)?.suspect = false;
                index.hold(hash)
            }
            Err(StoreError::Corrupt { .. }) => {
                // The bytes are of no use; failing to move them aside changes nothing for the caller.
                let _ = self.quarantine_blob(hash, "recovery");
                None
            }
            Err(error) => {
                self.unread(hash, &error);
                None
            }
        }
    }

    /// Tells, once, that what an earlier process left could not be hashed. It stays as it is, and is not used: an open file too many
    /// says nothing of its bytes.
    pub(super) fn unread(&self, hash: &Hash, error: &StoreError) {
        let told = self.index().blobs.get_mut(hash).is_none_or(|blob| std::mem::replace(&mut blob.unread, true));
        if !told {
            tracing::warn!(blob = %hash, %error, "a blob of an earlier process cannot be read now; it is left where it is, unused");
        }
    }

    /// Takes in a blob that has just become whole. If it is here already, ours is dropped.
    pub(super) fn adopt(
        &self,
        key: FlightKey,
        hash: Hash,
        size: u64,
        home: Home,
        cvs: Option<Arc<[GroupCv]>>,
        declared: &[Declared],
    ) -> BlobHold {
        let known = self.trusted(&hash);
        let mut index = self.index();
        // Another flight may have brought equal bytes since: asked again under the lock that ours would be added under.
        if let Some(known) = known.or_else(|| index.hold(&hash)) {
            drop(index);
            match home {
                Home::Partial(key) => self.remove_partial_directory(&key),
                Home::Received(key) => drop(std::fs::remove_file(self.layout.received_blob(&key, &hash))),
                Home::Sealed => {}
            }
            self.learn(key, &hash, size, declared);
            return known;
        }
        // What an earlier process left and nobody could read: now there are bytes that are right.
        let left = index.remove_blob(&hash).map(|blob| blob.home).filter(|left| *left != home);
        index.remove_partial(&key);
        let blob = Blob::new(size, home, cvs, false);
        let hold = BlobHold { hash, size, _token: Arc::clone(&blob.holds) };
        index.add_blob(hash, blob);
        index.known.learn_key(key, hash);
        if let Some(sha256) = partial::sha256_of(declared) {
            index.known.learn_sha256(sha256, hash);
        }
        drop(index);
        match left {
            Some(Home::Partial(key)) => self.remove_partial_directory(&key),
            Some(Home::Received(key)) => drop(std::fs::remove_file(self.layout.received_blob(&key, &hash))),
            Some(Home::Sealed) | None => {}
        }
        hold
    }

    pub(super) fn learn(&self, key: FlightKey, hash: &Hash, size: u64, declared: &[Declared]) {
        let sha256 = partial::sha256_of(declared).map(str::to_owned);
        let news = {
            let mut index = self.index();
            let sealed = index.blobs.get(hash).is_some_and(|blob| blob.home == Home::Sealed);
            if let Some(sha256) = &sha256 {
                index.known.learn_sha256(sha256, *hash);
            }
            index.known.learn_key(key, *hash) && sealed
        };
        if news {
            // Advisory, so not synced; a readable blob gets its line when it is sealed.
            let line = CatalogLine { key, blob: *hash, size, sha256 };
            if let Err(error) = self.catalog().append(&[line], false) {
                tracing::warn!(%error, "the catalog was not extended; this object may be fetched again");
            }
        }
    }

    pub(super) fn remove_partial_directory(&self, key: &FlightKey) {
        let path = self.layout.partial(key);
        if let Err(error) = std::fs::remove_dir_all(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "a partial could not be removed");
        }
        self.index().remove_partial(key);
    }

    pub(super) fn available(&self) -> Result<u64, StoreError> {
        Ok(Filesystem::of(self.layout.root()).at("read free space", self.layout.root())?.available)
    }

    pub(super) fn keep_free(&self) -> Result<u64, StoreError> {
        match self.options.keep_free {
            Some(bytes) => Ok(bytes.0),
            None => {
                let total = Filesystem::of(self.layout.root()).at("read free space", self.layout.root())?.total;
                Ok(total / 20)
            }
        }
    }

    /// The cap: as set, or what is ours and free now, less what is left to others.
    pub(super) fn capacity(&self, index: &Index, available: u64) -> u64 {
        match self.options.capacity {
            Some(bytes) => bytes.0,
            None => (index.account.used() + available).saturating_sub(self.keep_free().unwrap_or(0)),
        }
    }

    pub(super) fn no_space(&self, needed: u64, kept: &[(ModelId, String)]) -> StoreError {
        use crate::base::units::ByteSize;
        let available = self.available().unwrap_or(0);
        let index = self.index();
        let (capacity, total) = (self.capacity(&index, available), index.account.total());
        let mut detail = format!(
            "{} are taken or promised of {}, {} are free on the file system",
            ByteSize(total),
            ByteSize(capacity),
            ByteSize(available)
        );
        for (id, why) in kept.iter().take(8) {
            detail.push_str(&format!("; {id} is {why}"));
        }
        detail.push_str("; raise store.capacity, unpin a model, or free the disk");
        StoreError::NoSpace { needed, detail }
    }
}

// === impl Reservation ===

impl Reservation {
    /// Moves bytes from promised to taken; they have been charged elsewhere.
    pub(super) fn spend(&self, bytes: u64) {
        let before =
            self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| Some(left.saturating_sub(bytes)));
        let spent = before.unwrap_or(0).min(bytes);
        let mut index = self.inner.index();
        index.account.reserved = index.account.reserved.saturating_sub(spent);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if crate::sys::mutant::mutant("reservation_not_returned") {
            return;
        }
        let left = self.left.load(Ordering::SeqCst);
        let mut index = self.inner.index();
        index.account.reserved = index.account.reserved.saturating_sub(left);
    }
}

/// Seconds since the epoch.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
