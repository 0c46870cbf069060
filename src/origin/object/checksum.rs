//! The checksums that S3 keeps of an object. Only those of the whole object are of use: a COMPOSITE one (`...-N`) is a hash of
//! the hashes of parts whose boundaries nobody tells, and a multipart ETag is of that kind too.

use reqwest::header::HeaderMap;

use crate::digest::{Algorithm, Declared};

/// Response header and algorithm.
const HEADERS: [(&str, Algorithm); 5] = [
    ("x-amz-checksum-sha256", Algorithm::Sha256),
    ("x-amz-checksum-crc64nvme", Algorithm::Crc64nvme),
    ("x-amz-checksum-crc32c", Algorithm::Crc32c),
    ("x-amz-checksum-crc32", Algorithm::Crc32),
    ("x-amz-checksum-sha1", Algorithm::Sha1),
];

/// The full-object checksums that an answer declares.
pub(super) fn declared(headers: &HeaderMap) -> Vec<Declared> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let full = match text("x-amz-checksum-type") {
        Some(kind) => kind.eq_ignore_ascii_case("FULL_OBJECT"),
        // Servers from before the header: a multipart ETag betrays a composite checksum.
        None => !text("etag").is_some_and(|etag| etag.trim_matches('"').contains('-')),
    };
    if !full {
        return Vec::new();
    }
    HEADERS
        .iter()
        .filter_map(|(name, algorithm)| {
            let value = text(name).filter(|value| !value.contains('-'))?;
            let hex = hex_of_base64(value).filter(|hex| hex.len() == algorithm.hex_len())?;
            Some(Declared { algorithm: *algorithm, hex })
        })
        .collect()
}

/// Base64 (standard alphabet, padded) as lower-case hex.
pub(super) fn hex_of_base64(text: &str) -> Option<String> {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut count, mut hex) = (0_u32, 0, String::new());
    let body = text.trim_end_matches('=');
    if !text.len().is_multiple_of(4) || text.len() - body.len() > 2 {
        return None;
    }
    for character in body.bytes() {
        let value = ALPHABET.iter().position(|&known| known == character)?;
        bits = (bits << 6 | value as u32) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            hex.push_str(&format!("{:02x}", bits >> count & 0xff));
        }
    }
    Some(hex)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (reqwest::header::HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn only_whole_objects_checksums_count() {
        let crc = ("x-amz-checksum-crc32c", "4waSgw==");
        let hex = |pairs: &[(&'static str, &'static str)]| -> Vec<String> {
            declared(&headers(pairs)).into_iter().map(|declared| declared.to_string()).collect()
        };
        assert_eq!(hex(&[crc, ("x-amz-checksum-type", "FULL_OBJECT")]), ["crc32c:e3069283"]);
        assert_eq!(hex(&[crc, ("x-amz-checksum-type", "COMPOSITE")]), [""; 0]);
        assert_eq!(hex(&[("x-amz-checksum-crc32c", "4waSgw==-3")]), [""; 0]);
        assert_eq!(hex(&[crc, ("etag", "\"0123-2\"")]), [""; 0]);
        assert_eq!(hex(&[crc, ("etag", "\"0123\"")]), ["crc32c:e3069283"]);
        assert_eq!(hex(&[("x-amz-checksum-sha256", "AAAA")]), [""; 0], "wrong length");
    }

    #[test]
    fn base64_is_read_strictly() {
        assert_eq!(hex_of_base64("aGVsbG8=").as_deref(), Some("68656c6c6f"));
        assert_eq!(hex_of_base64("").as_deref(), Some(""));
        for bad in ["a", "a===", "aGVsbG8", "aGVs\nG8="] {
            assert_eq!(hex_of_base64(bad), None, "{bad}");
        }
    }
}
