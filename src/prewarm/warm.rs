//! The tier `memory`: the blobs of a model are read through the page cache, hashed in the same pass, and what is resident
//! afterwards is measured. Pages belong to the cgroup that first touches them and may be reclaimed at any time, so nothing is
//! assumed.

use std::sync::atomic::{AtomicU64, Ordering};

use super::job::JobError;
use crate::base::ErrorKind;
use crate::base::units::ByteSize;
use crate::digest::{GROUP_BYTES, group_count};
use crate::model::Manifest;
use crate::store::{Store, StoreError};
use crate::sys::host::memory_bytes;
use crate::sys::residency::resident_bytes;

/// The part of memory that a warm model may take: the rest is for the processes that the node is there for.
const SHARE: f64 = 0.8;

/// What warming found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Warmed {
    pub(super) resident: u64,
    /// Of it, what was there before.
    pub(super) resident_before: u64,
    pub(super) total: u64,
}

/// Reads, proves and measures. Blocking. A corrupt blob is quarantined: the caller fetches again.
pub(super) fn warm(
    store: &Store,
    manifest: &Manifest,
    read: &AtomicU64,
    cancelled: &dyn Fn() -> bool,
) -> Result<Warmed, JobError> {
    let total = manifest.total_bytes();
    let memory = memory_bytes();
    if total as f64 > memory as f64 * SHARE {
        return Err(JobError::Memory { needed: ByteSize(total), available: ByteSize((memory as f64 * SHARE) as u64) });
    }
    let mut buffer = vec![0; GROUP_BYTES as usize];
    let (mut resident, mut resident_before) = (0, 0);
    for file in manifest.files() {
        let outcome = (|| -> Result<u64, StoreError> {
            let reader = store.open_blob(&file.blake3)?;
            resident_before += resident_bytes(reader.file()).unwrap_or(0);
            for group in 0..group_count(reader.size()) {
                if cancelled() {
                    break;
                }
                let bytes = reader.group(group, &mut buffer)?.len();
                read.fetch_add(bytes as u64, Ordering::Relaxed);
            }
            let found = resident_bytes(reader.file());
            Ok(found.unwrap_or(0))
        })();
        if cancelled() {
            return Err(JobError::Cancelled);
        }
        match outcome {
            Ok(bytes) => resident += bytes,
            Err(error) => {
                if error.kind() == ErrorKind::Corrupt {
                    store.quarantine(&file.blake3, "warm")?;
                }
                return Err(error.into());
            }
        }
    }
    Ok(Warmed { resident, resident_before, total })
}
