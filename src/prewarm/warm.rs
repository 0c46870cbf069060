//! Reading a model into the page cache and proving it in the same pass.
//!
//! The engine reads through the page cache, so this does too. What makes it fast is what the disk has to do at a time: the
//! kernel is told of a window of groups ahead (`POSIX_FADV_WILLNEED`), and a few threads read and hash what has come. One
//! reader on a virtio disk, 2 GiB, ext4, dropped with `POSIX_FADV_DONTNEED` before each run, median of 3 on two cores that others
//! were using as well, so that seconds of CPU a GB tell more than bytes a second:
//!
//! | | MB/s | CPU s/GB | there afterwards |
//! |---|---|---|---|
//! | `dd iflag=direct bs=1M` | 1200-1500 | | |
//! | `cat` | 410-610 | | |
//! | one thread, a group at a time | 170 | 1.1 | 60-75 % |
//! | two threads, a group at a time | 290 | 1.1 | 78-92 % |
//! | one thread, 8 groups ahead | 400 | 0.42 | 100 % |
//! | two threads, 32 groups ahead | 560 | 0.46 | 99-100 % |
//! | two threads, 64 groups ahead | 830 | 0.42 | 100 % |
//! | four threads, 64 groups ahead | 880 | 0.44 | 100 % |
//!
//! The fourth column is not a mistake: without the hint the kernel reads ahead in folios of up to its whole window, finds no
//! contiguous memory on a machine whose memory is in use, and reclaims what has just been read to make some. So what came is
//! measured, and groups that are not there are read again before a model is called resident.
//!
//! Threads, buffers and window are one budget for all models that are read at a time.
//!
//! Turned down: `mmap` and `MADV_POPULATE_READ`, which saves a copy, but an unreadable sector is a SIGBUS; and `mlock`, which
//! makes memory that the kernel could take back in need into memory that it must kill for.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;

use crate::digest::{GROUP_BYTES, Hash, group_count, group_range};
use crate::model::Manifest;
use crate::store::{BlobReader, Store, StoreError};
use crate::sys::buffer::Buffers;
use crate::sys::hands::Hands;
use crate::sys::residency::{read_ahead, resident_bytes, resident_in};

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
    hands: Hands,
    buffers: Buffers,
    threads: usize,
    /// Groups that the kernel is told of before they are read.
    window: usize,
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

/// One group on its way.
#[derive(Debug)]
struct Piece {
    reader: Arc<BlobReader>,
    hash: Hash,
    group: u64,
    times: u64,
}

/// Counts a pass while it lives.
struct Pass<'a>(&'a AtomicUsize);

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
            hands: Hands::new("warm", threads, 2 * threads)?,
            buffers: Buffers::new(count * GROUP_BYTES, GROUP_BYTES as usize),
            threads,
            window: usize::try_from(window / GROUP_BYTES).unwrap_or(usize::MAX).max(1),
            passes: AtomicUsize::new(0),
        })
    }

    /// Reads and proves groups; `read` is told of the bytes of each. While `narrow` is set, one at a time. Dropping the future
    /// ends it with the groups that are being read.
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
        self.passes.fetch_add(1, Ordering::Relaxed);
        let _pass = Pass(&self.passes);
        let mut extents = extents.into_iter();
        let mut current = None;
        let (mut ahead, mut hints) = (VecDeque::<Piece>::new(), Vec::new());
        let mut running = FuturesUnordered::new();
        loop {
            let narrow = narrow.load(Ordering::Relaxed);
            let share = if narrow { 1 } else { (self.window / self.passes.load(Ordering::Relaxed).max(1)).max(1) };
            while ahead.len() < share {
                let Some((reader, hash, times, groups)) = &mut current else {
                    let Some(Extent { hash, groups, times }) = extents.next() else { break };
                    current = Some((self.open(store, hash).await?, hash, times, groups.into_iter()));
                    continue;
                };
                let Some(group) = groups.next() else {
                    current = None;
                    continue;
                };
                hints.push((Arc::clone(reader), group_range(reader.size(), group)));
                ahead.push_back(Piece { reader: Arc::clone(reader), hash: *hash, group, times: *times });
            }
            let width = if narrow { 1 } else { self.threads + 1 };
            while running.len() < width
                && let Some(piece) = ahead.pop_front()
            {
                running.push(self.read_one(piece, std::mem::take(&mut hints)));
            }
            match running.next().await {
                Some(bytes) => read(bytes?),
                None => return Ok(()),
            }
        }
    }

    async fn open(&self, store: &Store, hash: Hash) -> Result<Arc<BlobReader>, Unread> {
        let store = store.clone();
        let opened = self.hands.run(move || store.open_blob(&hash)).await.map_err(|_| Unread::Panicked)?;
        opened.map(Arc::new).map_err(|error| Unread::Blob(hash, error))
    }

    async fn read_one(&self, piece: Piece, hints: Vec<(Arc<BlobReader>, Range<u64>)>) -> Result<u64, Unread> {
        let mut buffer = self.buffers.acquire().await;
        let Piece { reader, hash, group, times } = piece;
        let work = move || {
            hints.into_iter().for_each(|(reader, range)| read_ahead(reader.file(), range));
            reader.group(group, &mut buffer).map(|bytes| bytes.len() as u64 * times)
        };
        let outcome = self.hands.run(work).await.map_err(|_| Unread::Panicked)?;
        outcome.map_err(|error| Unread::Blob(hash, error))
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
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
