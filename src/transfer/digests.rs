//! The digests that an origin declares, computed over what it sent.
//!
//! A CRC merges over parts: it is computed for each group in the same call that hashes and writes it, in any order, and
//! combined at the end. SHA-256, SHA-1 and MD5 are sequential over the file, at about 2 GB/s a core. A group that comes when
//! all before it are taken in is taken in from its buffer, in the call that has just hashed and written it: it is in the
//! core's cache then, and reading it back costs a quarter of its SHA-256 again. What comes out of order is read back from the
//! page cache by threads of its own, behind the front of what is on disk. Keeping such groups in memory until their turn was
//! turned down: with several connections on one file that is most of the file.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError, TryLockError};

use crc_fast::CrcAlgorithm;

use crate::digest::{Declared, GROUP_BYTES, Hash, Running, group_count, group_range};
use crate::store::{Partial, StoreError};

/// Bytes that are not what they were declared to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mismatch {
    pub(super) algorithm: &'static str,
    pub(super) declared: String,
    pub(super) computed: String,
}

/// CRCs of the groups of one file, for each CRC that its origin declares.
#[derive(Debug)]
pub(super) struct Crcs {
    size: u64,
    tables: Vec<Table>,
}

/// One declared CRC, and those of the groups that have arrived.
type Table = (Declared, CrcAlgorithm, Mutex<Vec<Option<u64>>>);

/// Sequential digests of one file, under way.
#[derive(Debug)]
pub(super) struct Sequence {
    size: u64,
    declared: Vec<Declared>,
    running: Mutex<Vec<Running>>,
    /// Bytes taken in. Changes only under the lock of `running`.
    position: AtomicU64,
}

/// Read back at once: fits the second-level cache of a core, and a call a group costs nothing beside hashing it.
const STRIDE: usize = 256 * 1024;

// === shared ===

fn compare(declared: &Declared, computed: String) -> Result<(), Mismatch> {
    if declared.hex.eq_ignore_ascii_case(&computed) {
        return Ok(());
    }
    Err(Mismatch { algorithm: declared.algorithm.as_str(), declared: declared.hex.clone(), computed })
}

/// Checks a blob's root against the one that a manifest at the origin names.
pub(super) fn check_root(expected: Option<Hash>, computed: Hash) -> Result<(), Mismatch> {
    match expected {
        Some(expected) if expected != computed => {
            Err(Mismatch { algorithm: "blake3", declared: expected.to_string(), computed: computed.to_string() })
        }
        _ => Ok(()),
    }
}

/// Checks all digests of a file that is whole and in memory.
pub(super) fn check_whole(bytes: &[u8], declared: &[Declared], expected: Option<Hash>) -> Result<(), Mismatch> {
    if let Some(expected) = expected {
        check_root(Some(expected), Hash::of(bytes))?;
    }
    for one in declared {
        let mut running = Running::new(one.algorithm, bytes.len() as u64);
        running.update(bytes);
        compare(one, running.finish())?;
    }
    Ok(())
}

// === impl Crcs ===

impl Crcs {
    pub(super) fn new(size: u64, declared: &[Declared]) -> Self {
        let groups = usize::try_from(group_count(size)).unwrap_or(usize::MAX);
        let tables = declared
            .iter()
            .filter_map(|one| Some((one.clone(), one.algorithm.crc()?, Mutex::new(vec![None; groups]))))
            .collect();
        Self { size, tables }
    }

    /// Takes in group `index`.
    pub(super) fn update(&self, index: u64, bytes: &[u8]) {
        for (_, crc, table) in &self.tables {
            let value = crc_fast::checksum(*crc, bytes);
            let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(slot) = usize::try_from(index).ok().and_then(|index| table.get_mut(index)) {
                *slot = Some(value);
            }
        }
    }

    /// Combines the groups and compares. Groups of an earlier attempt are read back. Blocking.
    pub(super) fn check(&self, partial: &Partial) -> Result<Result<(), Mismatch>, StoreError> {
        for (declared, crc, table) in &self.tables {
            let values = table.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut buffer = Vec::new();
            let mut whole = crc_fast::checksum(*crc, &[]);
            for (index, value) in (0_u64..).zip(values) {
                let range = group_range(self.size, index);
                let length = range.end - range.start;
                let value = match value {
                    Some(value) => value,
                    None => {
                        buffer.resize(length as usize, 0);
                        partial.read_at(range.start, &mut buffer)?;
                        crc_fast::checksum(*crc, &buffer)
                    }
                };
                whole = crc_fast::checksum_combine(*crc, whole, value, length);
            }
            if let Err(mismatch) = compare(declared, declared.algorithm.crc_hex(whole)) {
                return Ok(Err(mismatch));
            }
        }
        Ok(Ok(()))
    }
}

// === impl Sequence ===

impl Sequence {
    /// `None` if nothing sequential is declared.
    pub(super) fn new(size: u64, declared: &[Declared]) -> Option<Self> {
        let declared: Vec<_> = declared.iter().filter(|one| one.algorithm.crc().is_none()).cloned().collect();
        let running = Mutex::new(begin(&declared, size));
        (!declared.is_empty()).then_some(Self { size, declared, running, position: AtomicU64::new(0) })
    }

    /// Bytes taken in.
    pub(super) fn position(&self) -> u64 {
        self.position.load(Ordering::Acquire)
    }

    /// Takes in group `index`, which has just been written, if it is the next. One that was taken in before may have had other
    /// bytes then than are on disk now: everything is taken in anew.
    pub(super) fn offer(&self, index: u64, bytes: &[u8]) {
        let start = index * GROUP_BYTES;
        let here = self.position();
        if start > here {
            return;
        }
        let mut running = if start < here {
            self.lock()
        } else {
            match self.running.try_lock() {
                Ok(running) => running,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                // Somebody reads it back.
                Err(TryLockError::WouldBlock) => return,
            }
        };
        let here = self.position();
        if start < here {
            *running = begin(&self.declared, self.size);
            self.position.store(0, Ordering::Release);
        } else if start == here {
            self.update(&mut running, bytes);
        }
    }

    /// Takes in what the partial has from here to byte `end`, or at most 16 groups of it. Blocking.
    pub(super) fn advance(&self, partial: &Partial, end: u64) -> Result<(), StoreError> {
        let mut running = self.lock();
        // Files take turns on the threads: none keeps one for longer than about 10 ms.
        let end = end.min(self.position() + 16 * GROUP_BYTES);
        let mut buffer = vec![0; STRIDE];
        while self.position() < end {
            let length = (end - self.position()).min(STRIDE as u64) as usize;
            partial.read_at(self.position(), &mut buffer[..length])?;
            self.update(&mut running, &buffer[..length]);
        }
        Ok(())
    }

    /// Compares, once everything was taken in.
    pub(super) fn finish(&self) -> Result<(), Mismatch> {
        let running = std::mem::take(&mut *self.lock());
        self.declared.iter().zip(running).try_for_each(|(declared, running)| compare(declared, running.finish()))
    }

    fn update(&self, running: &mut [Running], bytes: &[u8]) {
        // Several digests of one file are rare; each stride is then still in cache for the next.
        for stride in bytes.chunks(STRIDE) {
            running.iter_mut().for_each(|one| one.update(stride));
        }
        self.position.fetch_add(bytes.len() as u64, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn begin(declared: &[Declared], size: u64) -> Vec<Running> {
    declared.iter().map(|one| Running::new(one.algorithm, size)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Algorithm;

    fn declared(algorithm: Algorithm, hex: &str) -> Declared {
        Declared { algorithm, hex: hex.to_owned() }
    }

    /// The check values of the standards, over "123456789".
    fn known() -> Vec<Declared> {
        vec![
            declared(Algorithm::Crc32c, "e3069283"),
            declared(Algorithm::Crc32, "cbf43926"),
            declared(Algorithm::Crc64nvme, "ae8b14860a799888"),
            declared(Algorithm::Md5, "25f9e794323b453885f5181f1b624d0b"),
            declared(Algorithm::Sha1, "f7c3bc1d808e04732adf679965ccc34ca7ae3441"),
            declared(Algorithm::GitSha1, "e2e107ac61ac259b87c544f6e7a4eb03422c6c21"),
            declared(Algorithm::Sha256, "15e2b0d3c33891ebb0f1ef609ec419420c20e320ce94c65fbc8c3312448eb225"),
        ]
    }

    #[test]
    fn values_are_those_of_the_standards() {
        assert_eq!(check_whole(b"123456789", &known(), Some(Hash::of(b"123456789"))), Ok(()));
        for one in known() {
            let mismatch = check_whole(b"123456780", std::slice::from_ref(&one), None).unwrap_err();
            assert_eq!((mismatch.algorithm, mismatch.declared), (one.algorithm.as_str(), one.hex));
        }
        assert_eq!(check_whole(b"x", &[], Some(Hash::of(b"y"))).unwrap_err().algorithm, "blake3");
    }

    #[test]
    fn crcs_of_groups_combine_to_that_of_the_file() {
        let size = 3 * GROUP_BYTES + 12_345;
        let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        for algorithm in [Algorithm::Crc32c, Algorithm::Crc32, Algorithm::Crc64nvme] {
            let crc = algorithm.crc().unwrap();
            let crcs = Crcs::new(size, &[declared(algorithm, "")]);
            for index in [2, 0, 3, 1] {
                let range = group_range(size, index);
                crcs.update(index, &data[range.start as usize..range.end as usize]);
            }
            let values = crcs.tables[0].2.lock().unwrap().clone();
            let combined = (0_u64..).zip(values).fold(crc_fast::checksum(crc, &[]), |whole, (index, value)| {
                let range = group_range(size, index);
                crc_fast::checksum_combine(crc, whole, value.unwrap(), range.end - range.start)
            });
            assert_eq!(combined, crc_fast::checksum(crc, &data), "{algorithm:?}");
        }
    }

    #[test]
    fn what_comes_in_order_is_taken_in_as_it_comes_and_what_comes_again_from_the_start() {
        let size = 3 * GROUP_BYTES + 12_345;
        let data: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
        let group = |index| {
            let range = group_range(size, index);
            &data[range.start as usize..range.end as usize]
        };
        let hex = {
            let mut whole = Running::new(Algorithm::Sha256, size);
            whole.update(&data);
            whole.finish()
        };
        let declared = [declared(Algorithm::Sha256, &hex), declared(Algorithm::Crc32c, "")];
        assert!(Sequence::new(size, &declared[1..]).is_none());
        let sequence = Sequence::new(size, &declared).unwrap();
        sequence.offer(1, group(1));
        assert_eq!(sequence.position(), 0, "it is not the next");
        sequence.offer(0, group(0));
        sequence.offer(2, group(2));
        assert_eq!(sequence.position(), GROUP_BYTES);
        sequence.offer(1, group(1));
        // A group that is written again may replace what was taken in.
        sequence.offer(1, group(1));
        assert_eq!(sequence.position(), 0, "it begins anew");
        for index in 0..4 {
            sequence.offer(index, group(index));
        }
        assert_eq!(sequence.position(), size);
        assert_eq!(sequence.finish(), Ok(()));
        // While somebody reads back, what comes is left to him.
        let sequence = Sequence::new(size, &declared).unwrap();
        let reading = sequence.lock();
        sequence.offer(0, group(0));
        assert_eq!(sequence.position(), 0);
        drop(reading);
    }
}
