//! The journal of a partial: what has arrived, and what of that is durable. `cache-layout/README.md` §4 is the format and the
//! argument; this file only reads and writes lines.

use serde::{Deserialize, Serialize};

use super::frame;
use crate::base::BootId;
use crate::digest::{GroupCv, Hash, group_count};
use crate::model::FlightKey;
use crate::sys::mutant::mutant;

/// Largest journal that is read: two lines of 80 bytes for each group of a 1 TiB file, with room.
pub(super) const JOURNAL_LIMIT: u64 = 512 << 20;

/// First line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    partial: u32,
    key: FlightKey,
    size: u64,
    generation: String,
    boot: BootId,
}

/// Every other line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Received {
        received: u64,
        /// Chaining values as hex; `Hash` has the same 32 bytes and text form.
        cvs: Vec<Hash>,
    },
    Durable {
        durable: Vec<[u64; 2]>,
    },
}

/// What a journal claims.
#[derive(Debug, PartialEq)]
pub(super) struct Claims {
    /// Chaining value of each group that may be kept, if its bytes still hash to it.
    pub(super) kept: Vec<Option<GroupCv>>,
    /// Groups of a `durable` line.
    pub(super) durable: Vec<bool>,
    pub(super) generation: u64,
}

/// The first line of a new journal.
pub(super) fn header_line(key: FlightKey, size: u64, generation: u64, boot: &BootId) -> Vec<u8> {
    let header = Header { partial: 1, key, size, generation: format!("{generation:016x}"), boot: boot.clone() };
    frame::line(generation, &header)
}

/// Groups from `first` on have been written.
pub(super) fn received_line(generation: u64, first: u64, cvs: &[GroupCv]) -> Vec<u8> {
    let cvs = cvs.iter().map(|cv| Hash::from_bytes(cv.0)).collect();
    frame::line(generation, &Line::Received { received: first, cvs })
}

/// Exactly these groups are durable.
pub(super) fn durable_line(generation: u64, durable: &[bool]) -> Vec<u8> {
    frame::line(generation, &Line::Durable { durable: runs(durable) })
}

/// Reads a journal for a blob of `size` bytes named `key`. `None`: not a journal of this blob.
pub(super) fn read(bytes: &[u8], key: FlightKey, size: u64, boot: &BootId) -> Option<Claims> {
    // The header's CRC uses the generation that the header itself names.
    let named = bytes.split(|&byte| byte == b'\n').next()?;
    let json = std::str::from_utf8(named).ok()?.split_once(' ')?.1;
    let header: Header = serde_json::from_str(json).ok()?;
    let generation = u64::from_str_radix(&header.generation, 16).ok()?;
    let (header, length) = frame::first::<Header>(generation, bytes)?;
    if header.partial != 1 || header.key != key || header.size != size {
        return None;
    }
    let groups = usize::try_from(group_count(size)).ok()?;
    let mut received: Vec<Option<GroupCv>> = vec![None; groups];
    let mut durable = vec![false; groups];
    for line in frame::lines::<Line>(generation, &bytes[length..]).0 {
        match line {
            Line::Received { received: first, cvs } => {
                let start = usize::try_from(first).ok()?;
                // A line with a right CRC that reaches outside the blob was written by something else.
                let slots = received.get_mut(start..start.checked_add(cvs.len())?)?;
                for (slot, cv) in slots.iter_mut().zip(cvs) {
                    *slot = Some(GroupCv(*cv.as_bytes()));
                }
            }
            Line::Durable { durable: claimed } => {
                durable.fill(false);
                for [from, to] in claimed {
                    durable.get_mut(usize::try_from(from).ok()?..usize::try_from(to).ok()?)?.fill(true);
                }
            }
        }
    }
    let survives = header.boot == *boot || mutant("received_kept_across_boot");
    let kept = received.into_iter().zip(&durable).map(|(cv, durable)| cv.filter(|_| *durable || survives)).collect();
    Some(Claims { kept, durable, generation })
}

/// The maximal runs of `true`, as half-open ranges.
pub(super) fn runs(marks: &[bool]) -> Vec<[u64; 2]> {
    let mut runs: Vec<[u64; 2]> = Vec::new();
    for (index, _) in marks.iter().enumerate().filter(|(_, mark)| **mark) {
        let index = index as u64;
        match runs.last_mut() {
            Some(run) if run[1] == index => run[1] = index + 1,
            _ => runs.push([index, index + 1]),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::GROUP_BYTES;
    use crate::model::{OriginId, Tenant};

    fn key(name: &str) -> FlightKey {
        FlightKey::new(&Tenant::default(), &OriginId::new("file:///x".into()), name, "s:1", 1)
    }

    const SIZE: u64 = 4 * GROUP_BYTES;

    fn journal(boot: &BootId) -> Vec<u8> {
        let cv = |byte| GroupCv([byte; 32]);
        let mut bytes = header_line(key("a"), SIZE, 5, boot);
        bytes.extend(received_line(5, 0, &[cv(0), cv(1)]));
        bytes.extend(durable_line(5, &[true, false, false, false]));
        bytes.extend(received_line(5, 3, &[cv(3)]));
        bytes
    }

    #[test]
    fn the_same_boot_keeps_what_was_received_and_another_only_what_is_durable() {
        let boot = BootId::from("one");
        let kept = |boot: &str| {
            let claims = read(&journal(&BootId::from("one")), key("a"), SIZE, &BootId::from(boot)).unwrap();
            claims.kept.iter().map(Option::is_some).collect::<Vec<_>>()
        };
        assert_eq!(kept("one"), [true, true, false, true]);
        assert_eq!(kept("two"), [true, false, false, false]);
        assert!(read(&journal(&boot), key("b"), SIZE, &boot).is_none(), "another blob's journal");
        assert!(read(&journal(&boot), key("a"), SIZE + 1, &boot).is_none(), "another size");
    }

    #[test]
    fn a_torn_journal_keeps_its_good_lines() {
        let boot = BootId::from("one");
        let bytes = journal(&boot);
        for cut in 0..bytes.len() {
            if let Some(claims) = read(&bytes[..cut], key("a"), SIZE, &boot) {
                let whole = read(&bytes, key("a"), SIZE, &boot).unwrap();
                for (part, all) in claims.kept.iter().zip(&whole.kept) {
                    assert!(part.is_none() || part == all);
                }
            }
        }
    }

    #[test]
    fn a_line_of_another_generation_ends_the_reading() {
        let boot = BootId::from("one");
        let mut bytes = header_line(key("a"), SIZE, 5, &boot);
        bytes.extend(received_line(6, 0, &[GroupCv([0; 32])]));
        assert_eq!(read(&bytes, key("a"), SIZE, &boot).unwrap().kept, [None; 4]);
    }

    #[test]
    fn claims_outside_the_blob_are_refused() {
        let boot = BootId::from("one");
        let mut bytes = header_line(key("a"), SIZE, 5, &boot);
        bytes.extend(received_line(5, 3, &[GroupCv([0; 32]); 2]));
        assert!(read(&bytes, key("a"), SIZE, &boot).is_none());
    }
}
