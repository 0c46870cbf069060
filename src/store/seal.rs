//! Making readable blobs durable, in batches, and finishing the publication of models whose blobs all are.
//!
//! One `fsync` of file and directory for each of 4,000 small files took 14.9 to 25.7 s on ext4; starting writeback on all,
//! `fdatasync` on 8 threads, renaming all and syncing the directory once took 0.75 s (`scripts/rigs/seal_cost.py`). `syncfs`
//! takes a third of that and was turned down: it waits for everybody else's dirty data on the file system too, which on a
//! node's root disk has no bound.

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::blob::{BlobReader, outboard_bytes};
use super::catalog::CatalogLine;
use super::error::IoContext;
use super::index::{Home, ModelKey};
use super::{Inner, SealProgress, StoreError};
use crate::digest::{GROUP_BYTES, GroupCv, Hash, group_count, group_cv, group_range};
use crate::model::FlightKey;
use crate::sys::durable::{rename_noreplace, start_writeback, sync_directory, temporary_name};
use crate::sys::mutant::mutant;
use crate::sys::read_write::pread_exact;

/// Blobs in one batch: enough that the two directory syncs vanish among them.
const BATCH_BLOBS: usize = 1024;

/// Bytes in one batch: a few seconds of a slow disk, so that the first files of a large model are durable early.
const BATCH_BYTES: u64 = 8 << 30;

/// Files of a batch that are open at once, from the start of their writing back to their sync: with what else a process has
/// open, well below the 1024 that many are allowed. At twice nothing is faster; at half the waits of one window for its last
/// file begin to show.
const WINDOW: usize = 128;

/// Threads that sync; they wait for the disk, not for a core.
const SYNC_THREADS: usize = 8;

/// One blob of a batch.
struct Item {
    hash: Hash,
    size: u64,
    home: Home,
    suspect: bool,
    cvs: Option<Arc<[GroupCv]>>,
    /// The outboard in `tmp/`, for a blob that has one.
    outboard: Option<PathBuf>,
}

// === impl Inner ===

impl Inner {
    /// Seals one batch and finishes what models it completes.
    pub(super) fn seal_batch(&self) -> Result<SealProgress, StoreError> {
        let _alone = self.sealing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.check_writable()?;
        let mut items = self.take_batch();
        let more = items.len() == BATCH_BLOBS || items.iter().map(|item| item.size).sum::<u64>() >= BATCH_BYTES;
        self.recheck_suspects(&mut items)?;
        let mut progress = SealProgress { more, ..SealProgress::default() };
        if !items.is_empty() {
            let manifest_first = mutant("manifest_before_blobs");
            if manifest_first {
                progress.models += self.finish_models(true)?;
            }
            let outcome = self.seal_items(&mut items);
            for outboard in items.iter().filter_map(|item| item.outboard.as_ref()).filter(|_| outcome.is_err()) {
                // Tried again every so often, as on a full disk, they would pile up. Those that have their name are gone.
                let _ = fs::remove_file(outboard);
            }
            outcome?;
            progress.sealed = items.len() as u64;
        }
        progress.models += self.finish_models(false)?;
        Ok(progress)
    }

    fn take_batch(&self) -> Vec<Item> {
        let index = self.index();
        let mut bytes = 0;
        index
            .unsealed()
            .take(BATCH_BLOBS)
            .take_while(|(_, blob)| {
                let fits = bytes < BATCH_BYTES;
                bytes += blob.size;
                fits
            })
            .map(|(hash, blob)| Item {
                hash: *hash,
                size: blob.size,
                home: blob.home,
                suspect: blob.suspect,
                cvs: blob.cvs.clone(),
                outboard: None,
            })
            .collect()
    }

    /// Hashes what an earlier process left. Wrong bytes are dropped and the models that named them withdrawn; what cannot be read now
    /// waits.
    fn recheck_suspects(&self, items: &mut Vec<Item>) -> Result<(), StoreError> {
        let (mut wrong, mut unread) = (Vec::new(), Vec::new());
        for item in items.iter().filter(|item| item.suspect) {
            let path = self.place(item.home, &item.hash);
            let right = BlobReader::open(&item.hash, &path, item.cvs.clone(), &self.layout.outboard(&item.hash))
                .and_then(|reader| reader.verify_fast(&self.disk, &mut |_| {}));
            match right {
                Ok(()) => {
                    if let Some(blob) = self.index().blobs.get_mut(&item.hash) {
                        blob.suspect = false;
                    }
                }
                Err(StoreError::Corrupt { .. }) => wrong.push(item.hash),
                Err(error) => {
                    self.unread(&item.hash, &error);
                    unread.push(item.hash);
                }
            }
        }
        for hash in &wrong {
            self.quarantine_blob(hash, "recovery")?;
        }
        items.retain(|item| !wrong.contains(&item.hash) && !unread.contains(&item.hash));
        Ok(())
    }

    fn seal_items(&self, items: &mut [Item]) -> Result<(), StoreError> {
        let rename_first = mutant("rename_before_sync");
        for item in items.iter_mut() {
            item.outboard = self.write_outboard(item)?;
        }
        if rename_first {
            self.name_all(items)?;
        } else {
            self.sync_all(items)?;
            self.step("synced")?;
            self.name_all(items)?;
        }
        self.step("named")?;
        for directory in [self.layout.outboards(), self.layout.blobs()] {
            self.synced(sync_directory(&directory).at("sync directory", &directory))?;
        }
        self.step("directories synced")?;
        self.note_in_catalog(items)?;
        self.step("catalogued")?;
        for item in items.iter() {
            if let Home::Partial(key) = item.home {
                // The data has moved; what is left is the journal. Leftovers are swept at the next start.
                let _ = fs::remove_dir_all(self.layout.partial(&key));
            }
        }
        let mut index = self.index();
        for item in items.iter() {
            index.seal(&item.hash);
        }
        Ok(())
    }

    /// Writes the outboard of a blob of more than one group to `tmp/`.
    fn write_outboard(&self, item: &Item) -> Result<Option<PathBuf>, StoreError> {
        if group_count(item.size) == 1 {
            return Ok(None);
        }
        let cvs = match &item.cvs {
            Some(cvs) => Arc::clone(cvs),
            None => self.chaining_values(item)?,
        };
        let path = self.layout.temporaries().join(temporary_name());
        let written = fs::write(&path, outboard_bytes(&cvs)).inspect_err(|_| {
            // The error of writing is the one to report.
            let _ = fs::remove_file(&path);
        });
        self.note(written.at("write outboard", &path))?;
        Ok(Some(path))
    }

    /// Of a small blob they are not kept in memory: it is read again, out of the page cache.
    fn chaining_values(&self, item: &Item) -> Result<Arc<[GroupCv]>, StoreError> {
        let path = self.place(item.home, &item.hash);
        let file = self.note(File::open(&path).at("open blob", &path))?;
        let mut buffer = vec![0; GROUP_BYTES as usize];
        (0..group_count(item.size))
            .map(|group| {
                let range = group_range(item.size, group);
                let bytes = &mut buffer[..(range.end - range.start) as usize];
                self.note(pread_exact(&file, bytes, range.start).at("read blob", &path))?;
                Ok(group_cv(item.size, group, bytes))
            })
            .collect()
    }

    fn sync_all(&self, items: &[Item]) -> Result<(), StoreError> {
        // Each with the blob whose bytes it has; an outboard that is lost is written again.
        let paths: Vec<(Option<Hash>, PathBuf)> = items
            .iter()
            .flat_map(|item| {
                let data = (Some(item.hash), self.place(item.home, &item.hash));
                std::iter::once(data).chain(item.outboard.clone().map(|path| (None, path)))
            })
            .collect();
        paths.chunks(WINDOW).try_for_each(|window| self.sync_window(window))
    }

    /// Held open in between: of a file that is opened again, the kernel may have forgotten that writing it back failed.
    fn sync_window(&self, paths: &[(Option<Hash>, PathBuf)]) -> Result<(), StoreError> {
        let files: Vec<File> = paths
            .iter()
            .map(|(_, path)| {
                let file = self.note(File::open(path).at("open blob", path))?;
                start_writeback(&file, 0..0);
                Ok(file)
            })
            .collect::<Result<_, StoreError>>()?;
        let (next, lost) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let sync = || -> Result<(), StoreError> {
            while let Some(at) = Some(next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < files.len()) {
                let (hash, path) = &paths[at];
                if let Err(error) = self.sync_bytes(&files[at], path) {
                    let mut lost = lost.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    lost.extend(*hash);
                    return Err(error);
                }
            }
            Ok(())
        };
        let outcome = std::thread::scope(|scope| {
            let hands: Vec<_> = (0..SYNC_THREADS.min(files.len())).map(|_| scope.spawn(sync)).collect();
            hands.into_iter().try_for_each(|hand| {
                hand.join()
                    .unwrap_or_else(|_| Err(StoreError::Halted { detail: "a syncing thread panicked".to_owned() }))
            })
        });
        for hash in lost.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            self.quarantine_blob(&hash, "failed sync")?;
        }
        outcome
    }

    fn name_all(&self, items: &[Item]) -> Result<(), StoreError> {
        for item in items {
            if let Some(outboard) = &item.outboard {
                // An outboard of this name is right or useless: replacing it is safe either way.
                let path = self.layout.outboard(&item.hash);
                self.note(fs::rename(outboard, &path).at("name outboard", &path))?;
            }
            let (from, to) = (self.place(item.home, &item.hash), self.layout.blob(&item.hash));
            if from == to {
                // Named by an earlier batch that failed after that.
                continue;
            }
            match rename_noreplace(&from, &to) {
                // A name left by an earlier life that listing did not take for a blob: only its bytes can tell.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    let right = BlobReader::open(&item.hash, &to, None, &self.layout.outboard(&item.hash))
                        .and_then(|reader| reader.verify(&mut |_| {}))
                        .is_ok();
                    let outcome = if right { fs::remove_file(&from) } else { fs::rename(&from, &to) };
                    self.note(outcome.at("name blob", &to))?;
                }
                outcome => self.note(outcome.at("name blob", &to))?,
            }
        }
        Ok(())
    }

    fn note_in_catalog(&self, items: &[Item]) -> Result<(), StoreError> {
        let lines: Vec<CatalogLine> = {
            let index = self.index();
            let lines = items.iter().flat_map(|Item { hash, size, .. }| {
                let sha256 = index.known.sha256_of(hash).map(str::to_owned);
                let line =
                    move |key: &FlightKey| CatalogLine { key: *key, blob: *hash, size: *size, sha256: sha256.clone() };
                index.known.keys_of(hash).iter().map(line)
            });
            lines.collect()
        };
        let mut catalog = self.catalog();
        self.note(catalog.append(&lines, true))
    }

    /// Finishes models whose blobs are all sealed (or, as a seeded defect, all readable): manifest, record, pending file.
    fn finish_models(&self, too_early: bool) -> Result<u64, StoreError> {
        let ready: Vec<ModelKey> = {
            let index = self.index();
            let sealed = |hash: &Hash| index.blobs.get(hash).is_some_and(|blob| too_early || blob.home == Home::Sealed);
            index
                .models
                .iter()
                .filter(|(_, entry)| !entry.durable && entry.published)
                .filter(|(_, entry)| entry.manifest.files().iter().all(|file| sealed(&file.blake3)))
                .map(|(key, _)| key.clone())
                .collect()
        };
        for key in &ready {
            self.write_record(key)?;
        }
        Ok(ready.len() as u64)
    }
}
