//! Hashing a blob as the disk has it: past the page cache, a few groups on their way while one is hashed. What is in memory stays there,
//! what is not does not come, and rot below a warm blob is found before it cools. Where there is no direct I/O it goes through
//! the cache, and what only this brought there is dropped again; a small blob stays.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::{BlobReader, StoreError};
use crate::digest::{GROUP_BYTES, group_count, group_range};
use crate::sys::buffer::Buffers;
use crate::sys::disk::{Disk, DiskFile};
use crate::sys::residency::{drop_cache, populate, read_ahead, resident_bytes, resident_in};

/// On their way while somebody waits for the outcome: four of 1 MiB are all that most disks have to give.
const HASTE: usize = 4;

/// In the background one is read while one is hashed.
pub(super) const REST: usize = 2;

/// Memory for hashing while somebody waits.
pub(super) fn in_haste() -> Buffers {
    Buffers::new(HASTE as u64 * GROUP_BYTES, GROUP_BYTES as usize)
}

// === impl BlobReader ===

impl BlobReader {
    /// Reads and proves all of it: from memory if most of it is there, else as [`BlobReader::verify_groups`].
    ///
    /// # Errors
    /// As [`BlobReader::group`].
    pub(super) fn verify_fast(&self, disk: &Disk, progress: &mut dyn FnMut(u64)) -> Result<(), StoreError> {
        if self.is_warm() {
            return self.verify(progress);
        }
        self.verify_groups(disk, &in_haste(), 0..group_count(self.size()), progress)
    }

    /// Reads and proves these groups as the disk has them, as many of them on their way as `buffers` has. Blocking.
    ///
    /// # Errors
    /// As [`BlobReader::group`].
    pub(super) fn verify_groups(
        &self,
        disk: &Disk,
        buffers: &Buffers,
        mut groups: Range<u64>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<(), StoreError> {
        if crate::sys::mutant::mutant("short_group_not_scrubbed") && groups.end == group_count(self.size()) {
            groups.end -= 1;
        }
        if self.size() <= GROUP_BYTES {
            return self.verify_small(groups, progress);
        }
        let file = DiskFile::direct(Arc::clone(self.file()));
        let cold = file.unit().is_none() && !self.is_warm();
        let mut under_way = VecDeque::new();
        let outcome = loop {
            while !groups.is_empty()
                && let Some(buffer) = buffers.try_acquire()
            {
                let group = groups.start;
                let length = self.bytes_of(group) as usize;
                under_way.push_back((group, disk.read(&file, group * GROUP_BYTES, buffer, length)));
                groups.start += 1;
            }
            let Some((group, read)) = under_way.pop_front() else {
                if groups.is_empty() {
                    break Ok(());
                }
                // A buffer is on its way back: nobody else has them.
                std::thread::yield_now();
                continue;
            };
            let proved = read
                .wait()
                .map_err(|error| self.unreadable(error))
                .and_then(|done| self.prove(group, &done.buffer[..done.bytes]).map(|bytes| bytes.len() as u64));
            match proved {
                Ok(bytes) => progress(bytes),
                Err(error) => break Err(error),
            }
        };
        // After an error too: the next blob needs the buffers.
        for (_, read) in under_way {
            let _ = read.wait();
        }
        if cold {
            drop_cache(self.file());
        }
        outcome
    }

    /// The same of the one group of a small blob: through the page cache, and into memory of its own size. Aligned megabytes and a
    /// way past the cache cost more than it does. It stays in the cache, where what was read once is the first to go: dropping it
    /// would take it from whoever has warmed it meanwhile.
    fn verify_small(&self, groups: Range<u64>, progress: &mut dyn FnMut(u64)) -> Result<(), StoreError> {
        let mut buffer = vec![0; usize::try_from(self.size()).unwrap_or(usize::MAX)];
        groups.into_iter().try_for_each(|group| {
            progress(self.group(group, &mut buffer)?.len() as u64);
            Ok(())
        })
    }

    /// Brings groups into the page cache, unless they are there, in large pieces as the disk likes it: for who is about to read them
    /// in order, as others may after them. What cannot be read stays away. Blocking.
    pub fn bring(&self, groups: Range<u64>) {
        if groups.is_empty() {
            return;
        }
        let range = group_range(self.size(), groups.start).start..group_range(self.size(), groups.end - 1).end;
        let there = resident_in(self.file(), range.clone()).unwrap_or(0);
        if there < range.end - range.start && !populate(self.file(), range.clone()) {
            read_ahead(self.file(), range);
        }
    }

    /// Whether most of it is in memory.
    fn is_warm(&self) -> bool {
        resident_bytes(self.file()).is_ok_and(|resident| resident >= self.size() / 2 && resident > 0)
    }
}
