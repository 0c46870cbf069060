//! Memory for bytes of blobs on their way out. Some is kept; beyond that it is made for the moment, and beyond that again one waits,
//! since a client that has asked for a gigabyte may take it at the pace of a telephone line. Who waits in vain is told to come
//! back: whoever takes nothing of its answer is left by then ([`super::draining`]).
//!
//! Making memory for everybody was turned down: a thousand clients that stop reading would have had a gigabyte.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::base::units::MIB;
use crate::digest::GROUP_BYTES;
use crate::sys::buffer::{Buffer, Buffers};

/// Kept: a group being sent and one being read for each of 16 readers.
const KEPT: u64 = 32 * MIB;
/// Made for the moment: for 64 readers more. With what is kept it is what a daemon of 300 MiB can spare.
const MADE: u64 = 128 * MIB;
/// How long one waits for it: longer than any client takes for one group that is worth serving, and long enough for those that
/// take nothing to be left.
const PATIENCE: Duration = Duration::from_secs(90);

/// The budget. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Outgoing {
    kept: Buffers,
    made: Arc<Semaphore>,
    patience: Duration,
}

/// Memory for one group.
pub(super) enum Memory {
    Kept(Buffer),
    Made {
        bytes: Vec<u8>,
        /// Its share of the budget.
        _permit: OwnedSemaphorePermit,
    },
}

// === impl Outgoing ===

impl Default for Outgoing {
    fn default() -> Self {
        Self::new(KEPT / GROUP_BYTES, MADE / GROUP_BYTES, PATIENCE)
    }
}

impl Outgoing {
    /// For so many groups.
    fn new(kept: u64, made: u64, patience: Duration) -> Self {
        Self {
            kept: Buffers::new(kept * GROUP_BYTES, GROUP_BYTES as usize),
            made: Arc::new(Semaphore::new(usize::try_from(made).unwrap_or(Semaphore::MAX_PERMITS))),
            patience,
        }
    }

    /// What is kept, if it is not in use.
    pub(super) fn try_acquire(&self) -> Option<Buffer> {
        self.kept.try_acquire()
    }

    /// Memory for `bytes`, at most a group. `None`: others have had all of it for so long that there is no point in waiting.
    pub(super) async fn acquire(&self, bytes: usize) -> Option<Memory> {
        let waiting = async {
            // What is kept first; where both are to be had that is what is there at once.
            tokio::select! {
                biased;
                buffer = self.kept.acquire() => Some(Memory::Kept(buffer)),
                permit = Arc::clone(&self.made).acquire_owned() => {
                    Some(Memory::Made { bytes: vec![0; bytes], _permit: permit.ok()? })
                }
            }
        };
        tokio::time::timeout(self.patience, waiting).await.ok().flatten()
    }
}

// === impl Memory ===

impl Deref for Memory {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Kept(buffer) => buffer,
            Self::Made { bytes, .. } => bytes,
        }
    }
}

impl DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [u8] {
        match self {
            Self::Kept(buffer) => buffer,
            Self::Made { bytes, .. } => bytes,
        }
    }
}

impl AsRef<[u8]> for Memory {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn there_is_so_much_and_no_more() {
        let outgoing = Outgoing::new(1, 2, Duration::from_millis(100));
        let mut taken = Vec::new();
        for _ in 0..3 {
            taken.push(outgoing.acquire(10).await.expect("there is room"));
        }
        let kept = taken.iter().filter(|memory| matches!(memory, Memory::Kept(_))).count();
        assert_eq!((kept, taken[2].len()), (1, 10));
        assert!(outgoing.acquire(10).await.is_none(), "beyond the budget");
        let (more, ()) = tokio::join!(outgoing.acquire(10), async { drop(taken.pop()) });
        assert!(more.is_some(), "what is given back serves who waits");
    }
}
