//! A blob under construction. Groups arrive in any order and from many threads; each is hashed and written in one call, and
//! marked after it is written. The order of writes, and what a crash between two of them leaves, is argued in
//! `cache-layout/README.md` §4.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::IoContext;
use super::index::Home;
use super::journal;
use super::space::cost;
use super::{BlobHold, Inner, Reservation, StoreError};
use crate::digest::{
    Algorithm, Declared, GROUP_BYTES, GroupCv, Hash, Outboard, group_count, group_cv, group_range, merge_root,
};
use crate::model::FlightKey;
use crate::sys::copy::reflink;
use crate::sys::durable::{preallocate, start_writeback, sync_data, sync_directory};
use crate::sys::mutant::mutant;
use crate::sys::read_write::{pread_exact, pwrite_all};

/// A blob under construction, with its space charged. Dropping it keeps what has arrived for the next attempt. Threads may
/// write different groups at once.
#[derive(Debug)]
pub struct Partial {
    inner: Arc<Inner>,
    key: FlightKey,
    size: u64,
    directory: PathBuf,
    data: File,
    state: Mutex<State>,
    /// A sync failed: the bytes are in the page cache at best, and go with this value.
    lost: AtomicBool,
    /// Closed properly by `complete` or `discard`.
    ended: bool,
}

#[derive(Debug)]
struct State {
    cvs: Vec<Option<GroupCv>>,
    durable: Vec<bool>,
    journal: File,
    generation: u64,
    /// The names of data and journal are synced.
    named: bool,
}

// === impl Partial ===

impl Partial {
    pub(super) fn begin(
        inner: &Arc<Inner>,
        key: FlightKey,
        size: u64,
        reservation: &Reservation,
    ) -> Result<Self, StoreError> {
        inner.check_writable()?;
        let misuse = |detail: String| StoreError::Misuse { detail, blob: None };
        let resumed = {
            let mut index = inner.index();
            match index.partials.get_mut(&key) {
                Some(entry) if entry.open => return Err(misuse(format!("partial {key} is begun twice"))),
                Some(entry) if entry.size == size => {
                    entry.open = true;
                    true
                }
                Some(_) => return Err(misuse(format!("partial {key} has another size"))),
                None => {
                    index.add_partial(key, size, true);
                    drop(index);
                    reservation.spend(cost(size));
                    false
                }
            }
        };
        let outcome = Self::open(inner, key, size, resumed);
        if outcome.is_err() {
            // A directory that cannot be opened is of no use to the next attempt either.
            inner.remove_partial_directory(&key);
        }
        outcome
    }

    fn open(inner: &Arc<Inner>, key: FlightKey, size: u64, resumed: bool) -> Result<Self, StoreError> {
        let directory = inner.layout.partial(&key);
        if !resumed {
            match fs::create_dir(&directory) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                outcome => inner.note(outcome.at("make partial", &directory))?,
            }
        }
        let path = directory.join("data");
        if resumed {
            // It may have been whole already, and so read-only, when its process was killed: then only root could open it.
            let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o600));
        }
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let data = inner.note(opened.at("open partial", &path))?;
        inner.note(preallocate(&data, size).at("allocate partial", &path))?;
        let groups = usize::try_from(group_count(size)).unwrap_or(usize::MAX);
        let old = if resumed { read_limited(&directory.join("journal")) } else { Vec::new() };
        let claims = journal::read(&old, key, size, &inner.options.boot).filter(|_| !mutant("journal_ignored"));
        let generation = claims.as_ref().map_or(1, |claims| claims.generation.wrapping_add(1));
        let (mut cvs, mut durable) =
            claims.map_or_else(|| (vec![None; groups], vec![false; groups]), |claims| (claims.kept, claims.durable));
        recheck(&data, size, &mut cvs);
        for (mark, cv) in durable.iter_mut().zip(&cvs) {
            *mark &= cv.is_some();
        }
        let journal = start_journal(inner, &directory, key, size, generation, &cvs, &durable)?;
        let state = State { cvs, durable, journal, generation, named: false };
        Ok(Self {
            inner: Arc::clone(inner),
            key,
            size,
            directory,
            data,
            state: Mutex::new(state),
            lost: AtomicBool::new(false),
            ended: false,
        })
    }

    /// Size of the blob in bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Group runs that have not arrived, in order.
    #[must_use]
    pub fn missing(&self) -> Vec<Range<u64>> {
        let missing: Vec<bool> = self.state().cvs.iter().map(Option::is_none).collect();
        journal::runs(&missing).into_iter().map(|[from, to]| from..to).collect()
    }

    /// Hashes and writes group `index`, whose bytes these are exactly. Not yet marked as received.
    ///
    /// # Errors
    /// `NoSpace`, I/O, `Halted`, or `Misuse` for a wrong length.
    pub fn write_group(&self, index: u64, bytes: &[u8]) -> Result<GroupCv, StoreError> {
        let cv = self.hash_group(index, bytes)?;
        self.put_group(index, bytes)?;
        Ok(cv)
    }

    /// The same, but only if the group has this chaining value; `None`: it has another, and nothing is written.
    ///
    /// # Errors
    /// As [`Partial::write_group`].
    pub fn write_proved(&self, index: u64, expected: GroupCv, bytes: &[u8]) -> Result<Option<GroupCv>, StoreError> {
        let cv = self.hash_group(index, bytes)?;
        if cv != expected {
            return Ok(None);
        }
        self.put_group(index, bytes)?;
        Ok(Some(cv))
    }

    /// Shares the blocks of a file of this machine, if nothing has arrived yet, and marks the groups of it that are what `outboard`
    /// says. `progress` is told of their bytes. False where the file system cannot share, or the file has another length.
    ///
    /// # Errors
    /// As for writing.
    pub fn share(
        &self,
        source: &File,
        outboard: Option<&Outboard>,
        progress: &dyn Fn(u64),
    ) -> Result<bool, StoreError> {
        self.inner.check_writable()?;
        let fits = source.metadata().is_ok_and(|metadata| metadata.len() == self.size);
        let untouched = self.state().cvs.iter().all(Option::is_none);
        if !fits || !untouched || !reflink(source, &self.data) {
            return Ok(false);
        }
        let mut buffer = vec![0; GROUP_BYTES.min(self.size) as usize];
        for index in 0..group_count(self.size) {
            let range = group_range(self.size, index);
            let bytes = &mut buffer[..(range.end - range.start) as usize];
            self.read_at(range.start, bytes)?;
            let cv = group_cv(self.size, index, bytes);
            if outboard.is_none_or(|outboard| outboard.group(index) == Some(cv)) {
                self.received(index, &[cv])?;
                progress(range.end - range.start);
            }
        }
        Ok(true)
    }

    fn hash_group(&self, index: u64, bytes: &[u8]) -> Result<GroupCv, StoreError> {
        self.inner.check_writable()?;
        let range = group_range(self.size, index);
        if index >= group_count(self.size) || bytes.len() as u64 != range.end - range.start {
            let detail = format!("group {index} of {} bytes was given {} bytes", self.size, bytes.len());
            return Err(StoreError::Misuse { detail, blob: None });
        }
        Ok(group_cv(self.size, index, bytes))
    }

    fn put_group(&self, index: u64, bytes: &[u8]) -> Result<(), StoreError> {
        let start = group_range(self.size, index).start;
        self.inner.note(pwrite_all(&self.data, bytes, start).at("write partial", &self.directory))
    }

    /// Drops received groups that the outboard does not know, so that they are missing again: they came before anybody could
    /// prove them. Their lines in the journal are superseded when they arrive once more; until then they are dropped again.
    pub fn hold_against(&self, outboard: &Outboard) {
        let mut state = self.state();
        let State { cvs, durable, .. } = &mut *state;
        for (index, (slot, durable)) in (0_u64..).zip(cvs.iter_mut().zip(durable)) {
            if slot.is_some() && *slot != outboard.group(index) {
                (*slot, *durable) = (None, false);
            }
        }
    }

    /// Marks consecutive written groups as received.
    ///
    /// # Errors
    /// As for writing; the groups then count as missing.
    pub fn received(&self, first: u64, cvs: &[GroupCv]) -> Result<(), StoreError> {
        let mut state = self.state();
        let line = journal::received_line(state.generation, first, cvs);
        self.inner.note(state.journal.write_all(&line).at("write journal", &self.directory))?;
        let index = usize::try_from(first).unwrap_or(usize::MAX);
        for (slot, cv) in state.cvs.iter_mut().skip(index).zip(cvs) {
            *slot = Some(*cv);
        }
        drop(state);
        // The disk works while the network does: left to the kernel, most of it would begin with the sync at the end.
        let end = (first + cvs.len() as u64) * GROUP_BYTES;
        start_writeback(&self.data, first * GROUP_BYTES..end.min(self.size));
        Ok(())
    }

    /// Makes what is received now durable, and marks it.
    ///
    /// # Errors
    /// A failed sync halts the store: see [`StoreError::Halted`].
    pub fn sync(&self) -> Result<(), StoreError> {
        self.check_kept()?;
        let (received, named) = {
            let state = self.state();
            (state.cvs.iter().map(Option::is_some).collect::<Vec<_>>(), state.named)
        };
        let outcome = self.inner.sync_bytes(&self.data, &self.directory);
        self.lost.fetch_or(outcome.is_err(), Ordering::SeqCst);
        outcome?;
        if !named {
            let above = self.inner.layout.partials();
            self.inner.synced(sync_directory(&self.directory).at("sync directory", &self.directory))?;
            self.inner.synced(sync_directory(&above).at("sync directory", &above))?;
            self.state().named = true;
        }
        self.mark_durable(&received)
    }

    fn mark_durable(&self, received: &[bool]) -> Result<(), StoreError> {
        let mut state = self.state();
        let line = journal::durable_line(state.generation, received);
        self.inner.note(state.journal.write_all(&line).at("write journal", &self.directory))?;
        let journal = state.journal.try_clone().at("open journal", &self.directory)?;
        state.durable = received.to_vec();
        drop(state);
        self.inner.synced(sync_data(&journal).at("sync journal", &self.directory))
    }

    /// Reads back received bytes, for origin digests that need them in order.
    ///
    /// # Errors
    /// I/O.
    pub fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<(), StoreError> {
        self.inner.note(pread_exact(&self.data, into, offset).at("read partial", &self.directory))
    }

    /// The root of what is here; `None` while groups are missing.
    #[must_use]
    pub fn root(&self) -> Option<Hash> {
        let cvs: Option<Vec<GroupCv>> = self.state().cvs.iter().copied().collect();
        merge_root(&cvs?)
    }

    /// All groups are here and the origin's digests were right: the blob becomes readable.
    ///
    /// # Errors
    /// `Corrupt` if `expected` is another root: what arrived is thrown away. `Misuse` if groups are missing. I/O if an earlier
    /// sync failed.
    pub fn complete(mut self, expected: Option<Hash>, declared: &[Declared]) -> Result<BlobHold, StoreError> {
        self.check_kept()?;
        let cvs: Option<Vec<GroupCv>> = self.state().cvs.iter().copied().collect();
        let root = cvs.as_deref().and_then(merge_root);
        let (Some(cvs), Some(hash)) = (cvs, root) else {
            let detail = format!("partial {} is completed with groups missing", self.key);
            return Err(StoreError::Misuse { detail, blob: None });
        };
        if let Some(expected) = expected.filter(|expected| *expected != hash) {
            self.discard()?;
            return Err(StoreError::Corrupt {
                what: format!("blob {expected}"),
                detail: format!("the bytes that arrived hash to {hash}"),
            });
        }
        let path = self.directory.join("data");
        self.inner.note(seal_mode(&self.data).at("set permissions", &path))?;
        self.ended = true;
        let cvs = (cvs.len() > 1).then(|| Arc::from(cvs));
        Ok(self.inner.adopt(self.key, hash, self.size, Home::Partial(self.key), cvs, declared))
    }

    /// Throws everything away: a wrong digest, an origin that changed.
    ///
    /// # Errors
    /// Never now; kept for a caller that wants to know.
    pub fn discard(mut self) -> Result<(), StoreError> {
        self.ended = true;
        self.inner.remove_partial_directory(&self.key);
        Ok(())
    }

    fn check_kept(&self) -> Result<(), StoreError> {
        self.inner.check_writable()?;
        let lost = self.lost.load(Ordering::SeqCst).then(|| std::io::Error::from(std::io::ErrorKind::StorageFull));
        lost.map_or(Ok(()), Err).at("use after a failed sync", &self.directory)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.ended && self.lost.load(Ordering::SeqCst) {
            self.inner.remove_partial_directory(&self.key);
        } else if !self.ended
            && let Some(entry) = self.inner.index().partials.get_mut(&self.key)
        {
            entry.open = false;
        }
    }
}

/// Blobs are shared by hard link: nobody writes to them again.
pub(super) fn seal_mode(file: &File) -> std::io::Result<()> {
    file.set_permissions(fs::Permissions::from_mode(0o444))
}

/// The sha256 among declared digests, if any.
pub(super) fn sha256_of(declared: &[Declared]) -> Option<&str> {
    declared.iter().find(|declared| declared.algorithm == Algorithm::Sha256).map(|declared| declared.hex.as_str())
}

pub(super) fn read_limited(path: &Path) -> Vec<u8> {
    let fits = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= journal::JOURNAL_LIMIT);
    // A journal that cannot be read claims nothing: its groups are fetched again.
    if fits { fs::read(path).unwrap_or_default() } else { Vec::new() }
}

/// Drops every claim whose bytes do not hash to it.
fn recheck(data: &File, size: u64, cvs: &mut [Option<GroupCv>]) {
    let mut buffer = Vec::new();
    for (index, slot) in (0_u64..).zip(cvs.iter_mut()) {
        let Some(cv) = *slot else { continue };
        let range = group_range(size, index);
        buffer.resize((range.end - range.start) as usize, 0);
        let right = pread_exact(data, &mut buffer, range.start).is_ok() && group_cv(size, index, &buffer) == cv;
        if !right {
            *slot = None;
        }
    }
}

/// A new journal of a new generation, renamed over the old one.
fn start_journal(
    inner: &Inner,
    directory: &Path,
    key: FlightKey,
    size: u64,
    generation: u64,
    cvs: &[Option<GroupCv>],
    durable: &[bool],
) -> Result<File, StoreError> {
    let mut text = journal::header_line(key, size, generation, &inner.options.boot);
    let received: Vec<bool> = cvs.iter().map(Option::is_some).collect();
    for [from, to] in journal::runs(&received) {
        // A line a stretch of at most 1,024 groups keeps lines far below the limit of their length.
        let mut start = from;
        while start < to {
            let end = to.min(start + 1024);
            let values: Vec<GroupCv> = cvs[start as usize..end as usize].iter().filter_map(|cv| *cv).collect();
            text.extend(journal::received_line(generation, start, &values));
            start = end;
        }
    }
    let resumed = durable.contains(&true);
    if resumed {
        text.extend(journal::durable_line(generation, durable));
    }
    let (new, path) = (directory.join("journal.new"), directory.join("journal"));
    let mut file =
        inner.note(OpenOptions::new().append(true).create(true).mode(0o600).open(&new).at("open journal", &new))?;
    inner.note(file.set_len(0).and_then(|()| file.write_all(&text)).at("write journal", &new))?;
    if resumed {
        // The old journal's durable claims must not be lost to a power cut between here and the next epoch.
        inner.synced(sync_data(&file).at("sync journal", &new))?;
    }
    inner.note(fs::rename(&new, &path).at("rename journal", &path))?;
    if resumed {
        inner.synced(sync_directory(directory).at("sync directory", directory))?;
    }
    Ok(file)
}
