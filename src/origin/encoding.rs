//! How servers write keys and digests: percent-encoded segments, base64 where ours is hex.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};

/// What stays readable in a path segment: S3's own signatures are over exactly this encoding, all others decode it.
pub(super) const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A path with its segments percent-encoded and its slashes left.
pub(super) fn path(text: &str) -> String {
    let segment = |segment| percent_encoding::utf8_percent_encode(segment, SEGMENT).to_string();
    text.split('/').map(segment).collect::<Vec<_>>().join("/")
}

/// One value in a query, or a path as one segment: slashes are encoded too.
pub(super) fn value(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, SEGMENT).to_string()
}

/// Base64 (standard alphabet, padded) as lower-case hex.
pub(super) fn hex_of_base64(text: &str) -> Option<String> {
    let bytes = BASE64_STANDARD.decode(text).ok()?;
    Some(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Bytes as base64.
pub(super) fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_read_strictly() {
        assert_eq!(hex_of_base64("aGVsbG8=").as_deref(), Some("68656c6c6f"));
        assert_eq!(hex_of_base64("").as_deref(), Some(""));
        for bad in ["a", "a===", "aGVsbG8", "aGVs\nG8=", "aGVsbG9="] {
            assert_eq!(hex_of_base64(bad), None, "{bad}");
        }
    }

    #[test]
    fn slashes_part_segments_and_nothing_else_stays() {
        assert_eq!(path("a b/c+d/ü%~"), "a%20b/c%2Bd/%C3%BC%25~");
        assert_eq!(value("a/b&c"), "a%2Fb%26c");
    }
}
