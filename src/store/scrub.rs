//! Finding rot before it is read: every sealed blob is hashed again, the one whose last proof is oldest first. Small steps, so
//! that the caller sets the pace. When each was last hashed is kept in memory only: a restart begins a new round, which is
//! sooner than promised, never later.

use super::blob::BlobReader;
use super::index::Home;
use super::{Fault, Inner, ScrubProgress, StoreError, now};
use crate::base::ErrorKind;
use crate::digest::Hash;
use crate::sys::residency::{drop_cache, resident_bytes};

// === impl Inner ===

impl Inner {
    /// Hashes sealed blobs until `bytes` are done; at least one, if there is one.
    pub(super) fn scrub(&self, bytes: u64) -> Result<ScrubProgress, StoreError> {
        let mut order: Vec<(u64, Hash)> = {
            let index = self.index();
            let sealed = index.blobs.iter().filter(|(_, blob)| blob.home == Home::Sealed);
            sealed.map(|(hash, blob)| (blob.scrubbed_at, *hash)).collect()
        };
        order.sort_unstable();
        let mut progress = ScrubProgress::default();
        let mut left = order.len();
        for (_, hash) in order {
            if progress.bytes >= bytes {
                break;
            }
            left -= 1;
            let path = self.layout.blob(&hash);
            let reader = BlobReader::open(&hash, &path, None, &self.layout.outboard(&hash));
            let outcome = reader.and_then(|reader| {
                // What an engine has warm stays warm; what only the scrub read goes again.
                let cold = resident_bytes(reader.file()).is_ok_and(|resident| resident < reader.size() / 2);
                let outcome = reader.verify(&mut |done| progress.bytes += done);
                if cold {
                    drop_cache(reader.file());
                }
                outcome
            });
            match outcome {
                Ok(()) => {
                    if let Some(blob) = self.index().blobs.get_mut(&hash) {
                        blob.scrubbed_at = now();
                    }
                }
                Err(error) if error.kind() == ErrorKind::Corrupt => {
                    self.quarantine_blob(&hash, "scrub")?;
                    let file = path.strip_prefix(self.layout.root()).unwrap_or(&path).to_owned();
                    progress.faults.push(Fault { blob: Some(hash), file, what: error.to_string() });
                }
                // Evicted since the list was made.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        progress.round_done = left == 0;
        Ok(progress)
    }
}
