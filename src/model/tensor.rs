//! The safetensors header: eight bytes of length, JSON, data. An engine that finds it broken fails minutes into a start, so it
//! is checked as soon as the file has arrived. The `safetensors` crate reads the JSON and checks order, gaps and overlaps;
//! before it sees a byte, the lengths are held against the file.

use safetensors::tensor::Metadata;

/// Largest header: the limit of the `safetensors` library itself.
pub const HEADER_LIMIT: u64 = 100_000_000;

/// What a header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderFacts {
    /// Number of tensors.
    pub tensors: usize,
    /// Where the data begins.
    pub data_start: u64,
}

/// Why a file is not safetensors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// Shorter than the length prefix.
    #[error("the file has {0} bytes, too few for a safetensors header")]
    Short(u64),
    /// The header reaches past the end, or past the limit.
    #[error("the header claims {claimed} bytes, the file has {file} and the limit is 100,000,000")]
    Length {
        /// What the prefix says.
        claimed: u64,
        /// Size of the file.
        file: u64,
    },
    /// The JSON is not a safetensors header, or its offsets are out of order, overlap or leave gaps.
    #[error("the header is invalid: {0}")]
    Header(String),
    /// The tensors end elsewhere than the file.
    #[error("the tensors end at byte {end}, the file at {file}")]
    End {
        /// Where the last tensor ends.
        end: u64,
        /// Size of the file.
        file: u64,
    },
}

/// How many first bytes of a file of `size` bytes [`check_header`] needs, from its first eight.
///
/// # Errors
/// [`TensorError`]: nothing more needs to be read.
pub fn header_bytes(prefix: &[u8], size: u64) -> Result<u64, TensorError> {
    let Some(length) = prefix.first_chunk::<8>() else { return Err(TensorError::Short(size)) };
    let claimed = u64::from_le_bytes(*length);
    if claimed > HEADER_LIMIT || claimed > size.saturating_sub(8) {
        return Err(TensorError::Length { claimed, file: size });
    }
    Ok(8 + claimed)
}

/// Checks the first [`header_bytes`] bytes of a file of `size` bytes.
///
/// # Errors
/// [`TensorError`]
pub fn check_header(first: &[u8], size: u64) -> Result<HeaderFacts, TensorError> {
    let data_start = header_bytes(first, size)?;
    let Some(header) = first.get(..data_start as usize) else { return Err(TensorError::Short(first.len() as u64)) };
    // Order, gaps, overlaps, and shapes against lengths are checked while it is read.
    let metadata: Metadata =
        serde_json::from_slice(&header[8..]).map_err(|error| TensorError::Header(error.to_string()))?;
    let end = data_start + metadata.data_len() as u64;
    if end != size {
        return Err(TensorError::End { end, file: size });
    }
    Ok(HeaderFacts { tensors: metadata.tensors().len(), data_start })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    #[test]
    fn a_right_header_is_read() {
        let bytes = file(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8);
        let facts = check_header(&bytes, bytes.len() as u64).unwrap();
        assert_eq!((facts.tensors, facts.data_start), (1, bytes.len() as u64 - 8));
    }

    #[test]
    fn broken_headers_are_told_apart() {
        let tensor = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#;
        let check = |bytes: &[u8]| check_header(bytes, bytes.len() as u64).unwrap_err();
        assert!(matches!(check(b"abc"), TensorError::Short(3)));
        assert!(matches!(check(&u64::MAX.to_le_bytes()), TensorError::Length { .. }));
        assert!(matches!(check(&file(tensor, 4)), TensorError::End { .. }));
        assert!(matches!(check(&file(tensor, 9)), TensorError::End { .. }));
        assert!(matches!(check(&file("{", 0)), TensorError::Header(_)));
        let gap = r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
        assert!(matches!(check(&file(gap, 16)), TensorError::Header(_)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(mut bytes in prop::collection::vec(any::<u8>(), 8..200), short in any::<bool>()) {
            if short {
                // A plausible length, so that the JSON parser is reached.
                let length = (bytes.len() - 8) as u64;
                bytes[..8].copy_from_slice(&length.to_le_bytes());
            }
            let _ = check_header(&bytes, bytes.len() as u64);
        }
    }
}
