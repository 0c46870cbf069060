//! Finding rot before it is read: every sealed blob is hashed again, the one whose last proof is oldest first. Small steps, within a
//! blob too, so that the caller sets the pace. When each was last hashed is kept in memory only: a restart begins a new round, which is
//! sooner than promised, never later.

use std::collections::HashSet;
use std::sync::PoisonError;

use super::blob::BlobReader;
use super::cold::REST;
use super::index::Home;
use super::{Fault, Inner, ScrubProgress, StoreError, now};
use crate::base::ErrorKind;
use crate::digest::{GROUP_BYTES, Hash, group_count};

/// How far a round has come.
#[derive(Debug, Default)]
pub(super) struct Round {
    /// The blob that it is in the middle of, and its next group.
    begun: Option<(Hash, u64)>,
    /// Those that it has been through.
    done: HashSet<Hash>,
}

// === impl Inner ===

impl Inner {
    /// Hashes sealed blobs until `bytes` are done, in whole groups; at least one, if there is one.
    pub(super) fn scrub(&self, bytes: u64) -> Result<ScrubProgress, StoreError> {
        let mut round = self.scrubbing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut order: Vec<(u64, Hash)> = {
            let index = self.index();
            let sealed =
                index.blobs.iter().filter(|(hash, blob)| blob.home == Home::Sealed && !round.done.contains(*hash));
            sealed.map(|(hash, blob)| (blob.scrubbed_at, *hash)).collect()
        };
        order.sort_unstable();
        let begun = round.begun.take();
        if let Some((hash, _)) = begun {
            // Stable: of the others the oldest is first.
            order.sort_by_key(|(_, other)| *other != hash);
        }
        let mut progress = ScrubProgress::default();
        let mut left = order.len();
        for (_, hash) in order {
            if progress.bytes >= bytes {
                break;
            }
            let first = begun.filter(|(begun, _)| *begun == hash).map_or(0, |(_, next)| next);
            let groups = (bytes - progress.bytes).div_ceil(GROUP_BYTES);
            match self.scrub_groups(&hash, first, groups, &mut progress.bytes) {
                Ok(None) => {
                    if let Some(blob) = self.index().blobs.get_mut(&hash) {
                        blob.scrubbed_at = now();
                    }
                }
                Ok(Some(next)) => {
                    round.begun = Some((hash, next));
                    return Ok(progress);
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    self.quarantine_blob(&hash, "scrub")?;
                    let path = self.layout.blob(&hash);
                    let file = path.strip_prefix(self.layout.root()).unwrap_or(&path).to_owned();
                    progress.faults.push(Fault { blob: Some(hash), file, what: error.to_string() });
                }
                // Evicted since the list was made.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            left -= 1;
            round.done.insert(hash);
        }
        if left == 0 {
            *round = Round::default();
            progress.round_done = true;
        }
        Ok(progress)
    }

    /// Hashes so many groups of a blob, from `first` on. Returns where to go on, if it is not the end.
    fn scrub_groups(&self, hash: &Hash, first: u64, groups: u64, done: &mut u64) -> Result<Option<u64>, StoreError> {
        let reader = BlobReader::open(hash, &self.layout.blob(hash), None, &self.layout.outboard(hash))?;
        let count = group_count(reader.size());
        let end = first.saturating_add(groups).min(count);
        reader.verify_groups(&self.disk, REST, first..end, &mut |bytes| *done += bytes)?;
        Ok((end < count).then_some(end))
    }
}
