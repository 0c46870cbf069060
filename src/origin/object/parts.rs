//! How a large object is cut for its upload.

use std::ops::Range;

use crate::base::units::MIB;

/// Objects up to this size go in one request; larger ones in parts of at least so much. S3 takes no parts below 5 MiB; with
/// half, requests would be noticed on their bill, with twice, the loss of a connection.
pub(super) const PART: u64 = 16 * MIB;

/// Parts of one object under way at once: one connection seldom has more than 100 MB/s, and `push` uploads several files.
pub(super) const AT_ONCE: usize = 4;

/// The parts of an object of `size`, of which there may be `most`.
pub(super) fn parts(size: u64, most: u64) -> Vec<Range<u64>> {
    let length = size.div_ceil(most).div_ceil(MIB).max(PART / MIB) * MIB;
    (0..size.div_ceil(length)).map(|number| number * length..size.min((number + 1) * length)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_everything_and_are_not_too_many() {
        for size in [1, PART, PART + 1, 5 * PART, 5 << 40] {
            let parts = parts(size, 10_000);
            assert!(parts.len() <= 10_000, "{size}: {}", parts.len());
            assert_eq!(parts.first().map(|part| part.start), Some(0));
            assert_eq!(parts.last().map(|part| part.end), Some(size));
            assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].end - pair[0].start >= PART));
        }
    }
}
