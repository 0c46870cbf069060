//! Finding rot before it is read: every sealed blob is hashed again, the one whose last proof is oldest first. Small steps, within a
//! blob too, so that the caller sets the pace. When each was last hashed is kept in memory only: a restart begins a new round, which is
//! sooner than promised, never later.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, PoisonError};

use super::blob::BlobReader;
use super::cold::REST;
use super::index::Home;
use super::{Fault, Inner, ScrubProgress, StoreError, now};
use crate::base::ErrorKind;
use crate::digest::{GROUP_BYTES, GroupCv, Hash, group_count};
use crate::sys::buffer::Buffers;

/// What a blob counts as at least: opening it costs what reading so much does, for a disk as for a core. With a rate of 8 MiB a
/// second 32 small blobs are looked at in one, a third of what a disk with heads can seek. At a quarter they are a percent of a
/// core; at four times a store of 100,000 takes hours.
const BLOB_COST: u64 = 256 << 10;

/// How far a round has come.
#[derive(Debug)]
pub(super) struct Round {
    /// What it has before it, the oldest proof first. What is sealed meanwhile is looked for at its end.
    order: VecDeque<Hash>,
    /// Those that it has been through.
    done: HashSet<Hash>,
    begun: Option<Begun>,
    /// The memory that groups are read into.
    buffers: Buffers,
}

/// The blob that a round is in the middle of.
#[derive(Clone, Debug)]
struct Begun {
    hash: Hash,
    /// Proved when it was begun: of a large blob, proving them at each step costs as much as the step. The file is not kept open,
    /// which would keep an evicted blob's bytes on the disk.
    cvs: Option<Arc<[GroupCv]>>,
    /// Its next group.
    next: u64,
}

// === impl Round ===

impl Default for Round {
    fn default() -> Self {
        Self {
            order: VecDeque::new(),
            done: HashSet::new(),
            begun: None,
            buffers: Buffers::new(REST as u64 * GROUP_BYTES, GROUP_BYTES as usize),
        }
    }
}

// === impl Inner ===

impl Inner {
    /// Hashes sealed blobs until `bytes` are done, in whole groups; at least one, if there is one.
    pub(super) fn scrub(&self, bytes: u64) -> Result<ScrubProgress, StoreError> {
        let mut round = self.scrubbing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut progress = ScrubProgress::default();
        while let Some(begun) = self.next_to_scrub(&mut round) {
            if progress.cost >= bytes {
                round.begun = Some(begun);
                return Ok(progress);
            }
            let hash = begun.hash;
            match self.scrub_groups(begun, bytes, &round.buffers, &mut progress) {
                Ok(None) => {
                    if let Some(blob) = self.index().blobs.get_mut(&hash) {
                        blob.scrubbed_at = now();
                    }
                }
                Ok(begun) => {
                    round.begun = begun;
                    return Ok(progress);
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    self.quarantine_blob(&hash, "scrub")?;
                    let path = self.layout.blob(&hash);
                    let file = path.strip_prefix(self.layout.root()).unwrap_or(&path).to_owned();
                    progress.faults.push(Fault { blob: Some(hash), file, what: error.to_string() });
                }
                // Evicted since.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            round.done.insert(hash);
        }
        round.done = HashSet::new();
        progress.round_done = true;
        Ok(progress)
    }

    /// What is hashed now. `None`: the round is over.
    fn next_to_scrub(&self, round: &mut Round) -> Option<Begun> {
        if let Some(begun) = round.begun.take() {
            return Some(begun);
        }
        if round.order.is_empty() {
            let mut order: Vec<(u64, Hash)> = {
                let index = self.index();
                let sealed =
                    index.blobs.iter().filter(|(hash, blob)| blob.home == Home::Sealed && !round.done.contains(*hash));
                sealed.map(|(hash, blob)| (blob.scrubbed_at, *hash)).collect()
            };
            order.sort_unstable();
            round.order = order.into_iter().map(|(_, hash)| hash).collect();
        }
        round.order.pop_front().map(|hash| Begun { hash, cvs: None, next: 0 })
    }

    /// Hashes groups of a blob until all that is done comes to `bytes`. Returns where to go on, if it is not the end.
    fn scrub_groups(
        &self,
        begun: Begun,
        bytes: u64,
        buffers: &Buffers,
        progress: &mut ScrubProgress,
    ) -> Result<Option<Begun>, StoreError> {
        let Begun { hash, cvs, next: first } = begun;
        let reader = BlobReader::open(&hash, &self.layout.blob(&hash), cvs, &self.layout.outboard(&hash))?;
        let count = group_count(reader.size());
        let groups = bytes.saturating_sub(progress.cost).div_ceil(GROUP_BYTES);
        let end = first.saturating_add(groups).min(count);
        let mut hashed = 0;
        let outcome = reader.verify_groups(&self.disk, buffers, first..end, &mut |bytes| hashed += bytes);
        progress.bytes += hashed;
        progress.cost += if first == 0 { hashed.max(BLOB_COST) } else { hashed };
        outcome?;
        Ok((end < count).then(|| Begun { hash, cvs: Some(Arc::clone(reader.cvs())), next: end }))
    }
}
