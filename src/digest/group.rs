//! Hashing by groups, in any order.
//!
//! BLAKE3 is a binary tree over 1 KiB chunks whose left subtrees are always full powers of two. A 1 MiB group is therefore
//! a whole subtree, and its chaining value can be computed knowing only its position. Merging the values of all groups in
//! that same tree shape gives exactly `blake3::hash` of the blob.
//!
//! The outboard is the flat list of the groups' chaining values. A pre-order tree of parent pairs (as in bao) proves a
//! group to somebody who has only the root, at 64 bytes a group; ours costs 32, lies at a fixed offset, and is itself
//! proved against the root once, when it is loaded (50 GB: 50,000 merges, a few milliseconds).

use std::ops::Range;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::Hash;

/// Unit of hashing and of proof: 1 MiB. At half the outboards double and nothing is gained, since requests are larger; at
/// twice, the smallest verified read doubles. It is part of the on-disk format.
pub const GROUP_BYTES: u64 = 1 << 20;

/// The chaining value of one group; of a blob with a single group, the root itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GroupCv(pub [u8; 32]);

/// How many groups a blob of `size` bytes has. The empty blob has one, empty group.
#[must_use]
pub fn group_count(size: u64) -> u64 {
    size.div_ceil(GROUP_BYTES).max(1)
}

/// The byte range of group `index` in a blob of `size` bytes.
#[must_use]
pub fn group_range(size: u64, index: u64) -> Range<u64> {
    let start = (index * GROUP_BYTES).min(size);
    start..(start + GROUP_BYTES).min(size)
}

/// The chaining value of group `index` of a blob of `size` bytes. `bytes` is exactly that group.
#[must_use]
pub fn group_cv(size: u64, index: u64, bytes: &[u8]) -> GroupCv {
    if group_count(size) == 1 {
        return GroupCv(*blake3::hash(bytes).as_bytes());
    }
    GroupCv(blake3::Hasher::new().set_input_offset(index * GROUP_BYTES).update(bytes).finalize_non_root())
}

/// The root that a complete list of chaining values merges to; `None` for an empty list, which no blob has.
#[must_use]
pub fn merge_root(cvs: &[GroupCv]) -> Option<Hash> {
    match cvs {
        [] => None,
        [only] => Some(Hash::from_bytes(only.0)),
        _ => {
            let (left, right) = split(cvs);
            let root = merge_subtrees_root(&merge(left), &merge(right), Mode::Hash);
            Some(Hash::from_bytes(*root.as_bytes()))
        }
    }
}

fn merge(cvs: &[GroupCv]) -> [u8; 32] {
    if let [only] = cvs {
        return only.0;
    }
    let (left, right) = split(cvs);
    merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
}

/// The left subtree takes the largest power of two that leaves something to the right.
fn split(cvs: &[GroupCv]) -> (&[GroupCv], &[GroupCv]) {
    cvs.split_at(cvs.len().next_power_of_two() / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * 31 + i / 251) as u8).collect()
    }

    #[test]
    fn groups_in_any_order_merge_to_the_plain_hash() {
        let mib = GROUP_BYTES as usize;
        for len in [0, 1, mib - 1, mib, mib + 1, 2 * mib, 3 * mib - 5, 5 * mib, 8 * mib + 1] {
            let data = bytes(len);
            let size = len as u64;
            let mut cvs: Vec<_> = (0..group_count(size))
                .rev()
                .map(|index| {
                    let range = group_range(size, index);
                    group_cv(size, index, &data[range.start as usize..range.end as usize])
                })
                .collect();
            cvs.reverse();
            assert_eq!(merge_root(&cvs), Some(Hash::of(&data)), "{len} bytes");
        }
    }

    #[test]
    fn a_group_at_another_place_has_another_value() {
        let data = bytes(GROUP_BYTES as usize);
        let size = 3 * GROUP_BYTES;
        assert_ne!(group_cv(size, 0, &data), group_cv(size, 1, &data));
    }
}
