//! The outboard of a blob, proved.

use super::group::merge_root;
use super::{GroupCv, Hash, WrongBytes, group_count};

/// The chaining values of a blob's groups, in order. Exists only where they merge to the blob's root, so that each of them may be
/// believed alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outboard {
    root: Hash,
    cvs: Vec<GroupCv>,
}

/// Bytes of one chaining value.
const CV_BYTES: usize = 32;

// === impl Outboard ===

impl Outboard {
    /// The outboard of the blob that these groups make; `None` without any, which no blob has.
    #[must_use]
    pub fn of(cvs: Vec<GroupCv>) -> Option<Self> {
        Some(Self { root: merge_root(&cvs)?, cvs })
    }

    /// Reads the outboard of a blob of `size` bytes that is named `root`.
    ///
    /// # Errors
    /// [`WrongBytes`] for another length, or values that merge to another root.
    pub fn parse(bytes: &[u8], size: u64, root: Hash) -> Result<Self, WrongBytes> {
        if bytes.len() as u64 != Self::length(size) {
            return Err(WrongBytes);
        }
        let (values, _) = bytes.as_chunks::<CV_BYTES>();
        let cvs = values.iter().map(|value| GroupCv(*value)).collect();
        Self::of(cvs).filter(|outboard| outboard.root == root).ok_or(WrongBytes)
    }

    /// How long the outboard of a blob of `size` bytes is.
    #[must_use]
    pub fn length(size: u64) -> u64 {
        group_count(size) * CV_BYTES as u64
    }

    /// The blob's name.
    #[must_use]
    pub fn root(&self) -> Hash {
        self.root
    }

    /// The chaining value of group `index`.
    #[must_use]
    pub fn group(&self, index: u64) -> Option<GroupCv> {
        self.cvs.get(usize::try_from(index).ok()?).copied()
    }

    /// As it is stored.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.cvs.iter().flat_map(|cv| cv.0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{GROUP_BYTES, group_cv, group_range};
    use super::*;

    fn outboard(data: &[u8]) -> Outboard {
        let size = data.len() as u64;
        let cv = |index| {
            let range = group_range(size, index);
            group_cv(size, index, &data[range.start as usize..range.end as usize])
        };
        Outboard::of((0..group_count(size)).map(cv).collect()).unwrap()
    }

    #[test]
    fn only_what_merges_to_the_root_is_believed() {
        let data: Vec<u8> = (0..3 * GROUP_BYTES + 7).map(|i| (i % 249) as u8).collect();
        let (size, made) = (data.len() as u64, outboard(&data));
        assert_eq!(made.root(), Hash::of(&data));
        let bytes = made.to_bytes();
        assert_eq!(bytes.len() as u64, Outboard::length(size));
        assert_eq!(Outboard::parse(&bytes, size, made.root()), Ok(made.clone()));
        let mut wrong = bytes.clone();
        wrong[40] ^= 1;
        assert_eq!(Outboard::parse(&wrong, size, made.root()), Err(WrongBytes));
        assert_eq!(Outboard::parse(&bytes[..96], size, made.root()), Err(WrongBytes));
        assert_eq!(Outboard::parse(&bytes, size, Hash::of(b"another")), Err(WrongBytes));
        assert_eq!(made.group(4), None);
    }

    /// An implementation that nobody here wrote: `bao-tree` keeps pairs of parents, in post-order.
    #[test]
    fn another_implementation_computes_the_same_values() {
        let data: Vec<u8> = (0..5 * GROUP_BYTES - 77).map(|i| (i % 247) as u8).collect();
        let made = outboard(&data);
        let groups = bao_tree::BlockSize::from_chunk_log(10);
        let theirs = bao_tree::io::outboard::PostOrderMemOutboard::create(&data, groups);
        assert_eq!(theirs.root.as_bytes(), made.root().as_bytes());
        // (0 1) (2 3) (01 23) (0123 4)
        for (group, at) in [(0, 0), (1, 32), (2, 64), (3, 96), (4, 224)] {
            let value = made.group(group).unwrap().0;
            assert_eq!(value[..], theirs.data[at..at + 32], "group {group}");
        }
    }
}
