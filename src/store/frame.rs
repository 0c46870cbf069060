//! Lines that prove themselves: `<crc32c, 8 hex> <json>\n`. The CRC is seeded with a generation, so that a line of an earlier
//! life of the same file is not taken for one of this. A torn, altered or foreign line ends the reading.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::sys::mutant::mutant;

/// Longest line. The longest real one marks the groups of one part with 70 bytes each.
const LINE_LIMIT: usize = 1 << 20;

/// One line for `value`.
pub(super) fn line(generation: u64, value: &impl Serialize) -> Vec<u8> {
    // Plain structures of text and numbers: this cannot fail.
    let json = serde_json::to_string(value).unwrap_or_default();
    format!("{:08x} {json}\n", checksum(generation, json.as_bytes())).into_bytes()
}

/// The values of all whole lines of `bytes` up to the first that is not right, and the length of that stretch.
pub(super) fn lines<T: DeserializeOwned>(generation: u64, bytes: &[u8]) -> (Vec<T>, usize) {
    let (mut values, mut good) = (Vec::new(), 0);
    while let Some((value, length)) = first(generation, &bytes[good..]) {
        values.push(value);
        good += length;
    }
    (values, good)
}

/// The value of the first line and its length; `None` if it is torn, too long, altered, of another generation or shape.
pub(super) fn first<T: DeserializeOwned>(generation: u64, bytes: &[u8]) -> Option<(T, usize)> {
    let end = bytes.iter().take(LINE_LIMIT).position(|&byte| byte == b'\n')?;
    let text = std::str::from_utf8(&bytes[..end]).ok()?;
    let (crc, json) = text.split_once(' ')?;
    let right = crc.len() == 8 && u32::from_str_radix(crc, 16).ok()? == checksum(generation, json.as_bytes());
    if !right && !mutant("journal_without_crc") {
        return None;
    }
    Some((serde_json::from_str(json).ok()?, end + 1))
}

fn checksum(generation: u64, json: &[u8]) -> u32 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi);
    digest.update(format!("{generation:016x}").as_bytes());
    digest.update(json);
    // A 32-bit CRC is handed out in 64 bits.
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_stops_at_the_first_wrong_line() {
        let mut bytes = Vec::new();
        for number in 0..4_u32 {
            bytes.extend(line(7, &number));
        }
        assert_eq!(lines::<u32>(7, &bytes).0, [0, 1, 2, 3]);
        assert_eq!(lines::<u32>(8, &bytes).0, [0_u32; 0], "another generation");
        let torn = &bytes[..bytes.len() - 1];
        assert_eq!(lines::<u32>(7, torn).0, [0, 1, 2], "no end of line");
        let each = bytes.len() / 4;
        for at in each..2 * each {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            assert_eq!(lines::<u32>(7, &altered), (vec![0], each), "byte {at}");
        }
    }

    #[test]
    fn the_form_is_as_specified() {
        // crc32c("0000000000000000" + "7"), by any CRC-32C calculator.
        assert_eq!(String::from_utf8(line(0, &7)).unwrap(), format!("{:08x} 7\n", checksum(0, b"7")));
        assert_eq!(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, b"123456789") as u32, 0xe306_9283);
    }
}
