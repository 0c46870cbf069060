//! Reading a model into the page cache and proving it in the same pass.
//!
//! The engine reads through the page cache, so this does too. What makes it fast is what the disk has to do at a time. A few threads
//! have pieces of 8 MiB brought into the page cache in huge pages ([`populate`]); others copy out what has come, and hash it. One
//! model of 2 GiB on a virtio disk, ext4, two cores, pages dropped before each reading, `scripts/rigs/cold.py`, all in one run in
//! turns (medians; what CPU a GB costs varies by three with how fresh the machine's memory is, for all alike):
//!
//! | | MB/s | CPU s/GB |
//! |---|---|---|
//! | this: hashed, proved | 1800 | 0.59 |
//! | `cat` | 630 | 1.39 |
//! | one thread, `POSIX_FADV_WILLNEED` 8 MiB ahead | 1310 | 0.31 |
//! | one thread, `POSIX_FADV_WILLNEED` 64 MiB ahead | 1340 | 0.29 |
//! | O_DIRECT, 1 to 64 of 1 MiB | 1340-1750 | 0.03-0.08 |
//! | O_DIRECT, 4 of 4 MiB | 2100 | 0.03 |
//! | a mapping, read in order | 1070 | 0.63 |
//! | a mapping, page by page | 58 | 6.78 |
//!
//! In five further runs it was 0.85 to 1.28 of O_DIRECT, 4 of 4 MiB, which is what the disk gives to anybody. Turned down by
//! what they gave (`cargo bench --bench disk`): hints, which fill the cache with single pages, so that a request has a
//! thousand pieces (1030-1600 MB/s with 2 to 4 threads and 32 to 128 MiB ahead); reads through the cache by io_uring, 8 to 64
//! of 1 MiB (540-1340 MB/s at up to 1.8 CPU s/GB), and the same by threads (1340-1440). So neither ring nor pool
//! ([`crate::sys::disk`]) reads here, and both read where nothing is to stay.
//!
//! Pages that came may be gone again when the last have come: what there is is measured, and groups that are not there are read again
//! before a model is called resident. Where the kernel cannot populate (before Linux 5.14, or with huge pages of more than 4 MiB) it
//! is given hints.
//!
//! Of a model that is called off, what the disk is at is read to its end: four pieces, 32 MiB. Nothing else is: what waits for a
//! thread looks whether it is still wanted. With hints it was the whole window, which the kernel had been told of already.
//!
//! Threads, buffers and window are one budget for all models that are read at a time.
//!
//! Turned down: hashing through the mapping, which saves a copy, but an unreadable sector is a SIGBUS; and `mlock`, which makes
//! memory that the kernel could take back in need into memory that it must kill for.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::base::units::MIB;
use crate::digest::{GROUP_BYTES, Hash, group_count, group_range};
use crate::model::Manifest;
use crate::store::{BlobReader, Store, StoreError};
use crate::sys::buffer::Buffers;
use crate::sys::hands::Hands;
use crate::sys::residency::{populate, read_ahead, resident_bytes, resident_in};

/// What is fetched at once: two huge pages being read and two to follow. At twice, four fetches fill the window and a
/// cancelled model is read on for longer; at half, the disk waits between pieces.
const PIECE: u64 = 8 * MIB;

/// Fetches at a time: with 4 MiB each under way a disk of 4 GB/s is kept busy for 4 ms.
const FETCHES: usize = 4;

/// What warming found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Warmed {
    pub(super) total: u64,
    /// Of it, what was there before.
    pub(super) resident_before: u64,
}

/// Threads, buffers and window for all that is read at a time.
#[derive(Debug)]
pub(super) struct Readers {
    /// Read into the page cache.
    fetch: Hands,
    /// Copy out of it and hash.
    hash: Hands,
    buffers: Buffers,
    hash_threads: usize,
    /// Bytes that are fetched, or being fetched, and not hashed.
    window: u64,
    passes: AtomicUsize,
}

/// Groups of one blob that are to be read.
#[derive(Debug)]
pub(super) struct Extent {
    hash: Hash,
    groups: Vec<u64>,
    /// How many files of the model it is.
    times: u64,
}

/// What ended a reading.
#[derive(Debug)]
pub(super) enum Unread {
    /// This blob could not be opened, read or proved.
    Blob(Hash, StoreError),
    /// A defect.
    Panicked,
}

/// Consecutive groups of one blob that are fetched at once.
#[derive(Debug)]
struct Piece {
    reader: Arc<BlobReader>,
    hash: Hash,
    groups: Range<u64>,
    times: u64,
}

/// Cuts extents into pieces.
struct Pieces {
    extents: std::vec::IntoIter<Extent>,
    current: Option<(Arc<BlobReader>, Extent, usize)>,
}

/// Counts a pass while it lives. What was asked for and has not begun when it ends is left out.
struct Pass<'a> {
    passes: &'a AtomicUsize,
    over: Arc<AtomicBool>,
}

// === impl Readers ===

impl Readers {
    /// Starts the threads. `window`: bytes that are on their way from the disk at most.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub(super) fn new(threads: usize, window: u64) -> io::Result<Self> {
        // A second buffer for each thread, so that the next group is at hand when one is done.
        let count = threads as u64 * 2;
        Ok(Self {
            fetch: Hands::new("warm-fetch", FETCHES, FETCHES)?,
            hash: Hands::new("warm-hash", threads, 2 * threads)?,
            buffers: Buffers::new(count * GROUP_BYTES, GROUP_BYTES as usize),
            hash_threads: threads,
            window: window.max(GROUP_BYTES),
            passes: AtomicUsize::new(0),
        })
    }

    /// Reads and proves groups; `read` is told of the bytes of each. While `narrow` is set, one at a time. Dropping the future
    /// ends it with what the disk is at.
    ///
    /// # Errors
    /// [`Unread`]
    pub(super) async fn read(
        &self,
        store: &Store,
        extents: Vec<Extent>,
        narrow: &AtomicBool,
        read: &(dyn Fn(u64) + Sync),
    ) -> Result<(), Unread> {
        let pass = Pass::new(&self.passes);
        let mut pieces = Pieces { extents: extents.into_iter(), current: None };
        let (mut fetching, mut hashing) = (FuturesUnordered::new(), FuturesUnordered::new());
        let mut fetched = VecDeque::<Piece>::new();
        // Bytes of pieces that are being fetched, or wait to be hashed.
        let mut ahead = 0;
        loop {
            let narrow = narrow.load(Ordering::Relaxed);
            let share = self.window / self.passes.load(Ordering::Relaxed).max(1) as u64;
            let (most, width) = if narrow { (1, 1) } else { (share.clamp(1, PIECE), self.hash_threads + 1) };
            while ahead == 0 || (!narrow && ahead + most <= share) {
                let Some(piece) = self.next(store, &mut pieces, most.div_ceil(GROUP_BYTES)).await? else { break };
                ahead += piece.bytes();
                fetching.push(self.fetch_one(piece, Arc::clone(&pass.over)));
            }
            while hashing.len() < width
                && let Some(piece) = fetched.front_mut()
            {
                let group = piece.groups.start;
                hashing.push(self.hash_one(Arc::clone(&piece.reader), piece.hash, group, piece.times));
                ahead -= piece.reader.bytes_of(group);
                piece.groups.start += 1;
                if piece.groups.is_empty() {
                    fetched.pop_front();
                }
            }
            tokio::select! {
                Some(piece) = fetching.next(), if !fetching.is_empty() => fetched.push_back(piece?),
                Some(bytes) = hashing.next(), if !hashing.is_empty() => read(bytes?),
                else => return Ok(()),
            }
        }
    }

    /// The next piece of at most so many groups.
    async fn next(&self, store: &Store, pieces: &mut Pieces, most: u64) -> Result<Option<Piece>, Unread> {
        loop {
            if let Some(piece) = pieces.cut(most) {
                return Ok(Some(piece));
            }
            let Some(extent) = pieces.extents.next() else { return Ok(None) };
            let (store, hash) = (store.clone(), extent.hash);
            let opened = self.hash.run(move || store.open_blob(&hash)).await.map_err(|_| Unread::Panicked)?;
            let reader = opened.map_err(|error| Unread::Blob(hash, error))?;
            pieces.current = Some((Arc::new(reader), extent, 0));
        }
    }

    async fn fetch_one(&self, piece: Piece, over: Arc<AtomicBool>) -> Result<Piece, Unread> {
        let work = move || {
            if !over.load(Ordering::Relaxed) {
                let (file, range) = (piece.reader.file(), piece.range());
                if !populate(file, range.clone()) {
                    read_ahead(file, range);
                }
            }
            piece
        };
        self.fetch.run(work).await.map_err(|_| Unread::Panicked)
    }

    async fn hash_one(&self, reader: Arc<BlobReader>, hash: Hash, group: u64, times: u64) -> Result<u64, Unread> {
        let mut buffer = self.buffers.acquire().await;
        let work = move || reader.group(group, &mut buffer).map(|bytes| bytes.len() as u64 * times);
        let outcome = self.hash.run(work).await.map_err(|_| Unread::Panicked)?;
        outcome.map_err(|error| Unread::Blob(hash, error))
    }
}

// === impl Piece ===

impl Piece {
    fn range(&self) -> Range<u64> {
        let size = self.reader.size();
        group_range(size, self.groups.start).start..group_range(size, self.groups.end - 1).end
    }

    fn bytes(&self) -> u64 {
        let range = self.range();
        range.end - range.start
    }
}

// === impl Pieces ===

impl Pieces {
    /// The next consecutive groups of the current blob: at most so many, and none past a boundary of [`PIECE`], where huge pages
    /// begin.
    fn cut(&mut self, most: u64) -> Option<Piece> {
        let (reader, extent, next) = self.current.as_mut()?;
        let groups = extent.groups.get(*next..)?;
        let first = *groups.first()?;
        let end = (first / (PIECE / GROUP_BYTES) + 1) * (PIECE / GROUP_BYTES);
        let most = most.min(end - first);
        let count =
            (first..).zip(groups).take_while(|(expected, group)| *expected == **group).take(most as usize).count();
        *next += count;
        Some(Piece {
            reader: Arc::clone(reader),
            hash: extent.hash,
            groups: first..first + count as u64,
            times: extent.times,
        })
    }
}

// === impl Pass ===

impl<'a> Pass<'a> {
    fn new(passes: &'a AtomicUsize) -> Self {
        passes.fetch_add(1, Ordering::Relaxed);
        Self { passes, over: Arc::default() }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.passes.fetch_sub(1, Ordering::Relaxed);
    }
}

// === Measuring ===

/// All groups of a model, each blob once.
pub(super) fn whole(manifest: &Manifest) -> Vec<Extent> {
    let mut found: BTreeMap<Hash, usize> = BTreeMap::new();
    let mut extents: Vec<Extent> = Vec::new();
    for file in manifest.files() {
        if let Some(at) = found.get(&file.blake3) {
            extents[*at].times += 1;
            continue;
        }
        found.insert(file.blake3, extents.len());
        extents.push(Extent { hash: file.blake3, groups: (0..group_count(file.size)).collect(), times: 1 });
    }
    extents
}

/// Groups of a tree that are not wholly in memory. Blocking.
pub(super) fn lacking(tree: &Path, manifest: &Manifest) -> Vec<Extent> {
    let mut extents: BTreeMap<Hash, Extent> = BTreeMap::new();
    for file in manifest.files() {
        let Ok(opened) = File::open(tree.join(file.path.as_str())) else { continue };
        if resident_bytes(&opened).is_ok_and(|resident| resident >= file.size) {
            continue;
        }
        let lacks = |group: &u64| {
            let range = group_range(file.size, *group);
            resident_in(&opened, range.clone()).is_ok_and(|resident| resident < range.end - range.start)
        };
        let groups: Vec<u64> = (0..group_count(file.size)).filter(lacks).collect();
        // Counted already when they were read for the first time.
        extents.entry(file.blake3).or_insert(Extent { hash: file.blake3, groups, times: 0 });
    }
    extents.into_values().filter(|extent| !extent.groups.is_empty()).collect()
}

/// So much of each blob of a tree is in memory. Asks by the tree's own names, which is cheaper than opening blobs with their
/// proofs; what cannot be opened is not there. Blocking.
pub(super) fn measure(tree: &Path, manifest: &Manifest) -> HashMap<Hash, u64> {
    let of = |path: &str| File::open(tree.join(path)).and_then(|file| resident_bytes(&file)).unwrap_or(0);
    let assumed = crate::sys::mutant::mutant("residency_assumed");
    let files = manifest.files().iter();
    files.map(|file| (file.blake3, if assumed { file.size } else { of(file.path.as_str()) })).collect()
}

/// Bytes of a model in memory, each file counted.
pub(super) fn sum(manifest: &Manifest, measured: &HashMap<Hash, u64>) -> u64 {
    manifest.files().iter().map(|file| measured.get(&file.blake3).copied().unwrap_or(0)).sum()
}
