//! How much the store holds and has promised. A pure account: what it is told is what it knows.
//!
//! Every blob is charged [`cost`] of its size, from the moment its partial is begun until its last byte is unlinked: an upper
//! bound of what it takes on disk with outboard, journal and names. Charging what `st_blocks` says was turned down: it
//! changes behind our back (delayed allocation, preallocation beyond the end), and an account that drifts is no cap.

use crate::digest::group_count;

/// File systems allocate in blocks of at least this, in practice.
const BLOCK: u64 = 4096;

/// What the store is charged for, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) blobs: u64,
    pub(super) partials: u64,
    pub(super) quarantined: u64,
    pub(super) models: u64,
    pub(super) reserved: u64,
}

/// An upper bound of the disk space that a blob of `size` bytes takes, partial and sealed.
pub(super) fn cost(size: u64) -> u64 {
    let groups = group_count(size);
    // A journal line has about 70 bytes a group; the outboard 32.
    let beside = if groups > 1 { blocks(32 * groups) + blocks(72 * groups + 512) } else { 0 };
    blocks(size) + beside + BLOCK
}

/// An upper bound of what a model takes beside its blobs: manifest, record, pending file, tree.
pub(super) fn model_cost(files: u64) -> u64 {
    // About 200 bytes of JSON a file and document, and a directory entry.
    3 * blocks(256 * files) + blocks(128 * files) + 8 * BLOCK
}

fn blocks(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK).saturating_mul(BLOCK)
}

// === impl Account ===

impl Account {
    /// Everything that is taken or promised.
    pub(super) fn total(&self) -> u64 {
        self.used().saturating_add(self.reserved)
    }

    /// Everything that is taken.
    pub(super) fn used(&self) -> u64 {
        self.blobs + self.partials + self.quarantined + self.models
    }

    /// How much must go before `bytes` more fit: under `capacity`, and with the file system keeping `keep_free` of the
    /// `available` bytes it has now. What is reserved will still be taken out of `available`.
    pub(super) fn shortfall(&self, bytes: u64, capacity: u64, available: u64, keep_free: u64) -> u64 {
        let over_capacity = self.total().saturating_add(bytes).saturating_sub(capacity);
        let wanted = bytes.saturating_add(self.reserved).saturating_add(keep_free);
        over_capacity.max(wanted.saturating_sub(available))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn cost_bounds_a_blob_and_is_never_nothing() {
        assert_eq!(cost(0), BLOCK);
        assert_eq!(cost(1), 2 * BLOCK);
        let large = 1 << 30;
        assert!(cost(large) > large + 32 * 1024 && cost(large) < large + large / 1000);
    }

    proptest! {
        #[test]
        fn what_fits_never_exceeds_a_limit(
            steps in prop::collection::vec((0_u64..1000, any::<bool>()), 1..200), capacity in 0_u64..5000, disk in 0_u64..5000
        ) {
            let (mut account, keep_free) = (Account::default(), 100);
            let mut promised: Vec<u64> = Vec::new();
            for (bytes, take) in steps {
                if take {
                    let available = disk.saturating_sub(account.used());
                    if account.shortfall(bytes, capacity, available, keep_free) == 0 {
                        account.reserved += bytes;
                        promised.push(bytes);
                    }
                } else if let Some(bytes) = promised.pop() {
                    account.reserved -= bytes;
                    account.blobs += bytes;
                }
                prop_assert!(account.total() <= capacity);
                prop_assert!(promised.is_empty() || account.total() + keep_free <= disk);
            }
            prop_assert_eq!(account.reserved, promised.iter().sum::<u64>());
        }
    }
}
