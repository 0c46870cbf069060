//! The checksums that S3 keeps of an object. Only those of the whole object are of use: a COMPOSITE one (`...-N`) is a hash of
//! the hashes of parts whose boundaries nobody tells, and a multipart ETag is of that kind too.

use reqwest::header::HeaderMap;

use crate::digest::{Algorithm, Declared};
use crate::origin::encoding::hex_of_base64;

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
}
