//! The digests that origins declare. They cross-check a transfer; they never name anything.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A digest algorithm that some origin declares for a whole object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// SHA-256, hex. Sequential per file.
    Sha256,
    /// CRC-64/NVME, 16 hex digits. Merges over parts.
    Crc64nvme,
    /// CRC-32C (Castagnoli), 8 hex digits. Merges over parts.
    Crc32c,
    /// CRC-32 (ISO-HDLC), 8 hex digits. Merges over parts.
    Crc32,
    /// SHA-1, hex (S3 full-object, single part). Sequential per file.
    Sha1,
    /// MD5, hex. Sequential per file.
    Md5,
    /// The name of a git blob: SHA-1 over `blob `, the length in decimal, NUL and the content, hex. Sequential per file.
    #[serde(rename = "git-sha1")]
    GitSha1,
}

/// A digest of the whole object as the origin declares it: algorithm and lower-case hex.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Declared {
    /// Which function.
    pub algorithm: Algorithm,
    /// Its value in lower-case hex.
    pub hex: String,
}

/// How a file's bytes were checked against its origin's own word, strongest available.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OriginVerified {
    /// The origin named the BLAKE3 root (a preheat manifest).
    Blake3,
    /// SHA-256 of the whole object.
    Sha256,
    /// SHA-1 of the whole object: catches accidents, not adversaries.
    Sha1,
    /// The git blob name of the whole object: catches accidents, not adversaries.
    #[serde(rename = "git-sha1")]
    GitSha1,
    /// MD5 of the whole object: catches accidents, not adversaries.
    Md5,
    /// CRC-64/NVME of the whole object: catches accidents, not adversaries.
    Crc64nvme,
    /// CRC-32C of the whole object: catches accidents, not adversaries.
    Crc32c,
    /// CRC-32 of the whole object: catches accidents, not adversaries.
    Crc32,
    /// Nothing was declared: TLS and length are all there was.
    #[default]
    None,
}

// === impl Algorithm ===

impl Algorithm {
    /// The stable word used in JSON and messages.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Crc64nvme => "crc64nvme",
            Self::Crc32c => "crc32c",
            Self::Crc32 => "crc32",
            Self::Sha1 => "sha1",
            Self::Md5 => "md5",
            Self::GitSha1 => "git-sha1",
        }
    }

    /// Length of the value in hex digits.
    #[must_use]
    pub fn hex_len(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha1 | Self::GitSha1 => 40,
            Self::Md5 => 32,
            Self::Crc64nvme => 16,
            Self::Crc32c | Self::Crc32 => 8,
        }
    }

    /// Whether an adversary cannot find a second object of equal digest; only such digests may find a blob of another origin.
    #[must_use]
    pub fn is_collision_resistant(self) -> bool {
        self == Self::Sha256
    }
}

impl From<Algorithm> for OriginVerified {
    fn from(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256,
            Algorithm::Sha1 => Self::Sha1,
            Algorithm::GitSha1 => Self::GitSha1,
            Algorithm::Md5 => Self::Md5,
            Algorithm::Crc64nvme => Self::Crc64nvme,
            Algorithm::Crc32c => Self::Crc32c,
            Algorithm::Crc32 => Self::Crc32,
        }
    }
}

impl fmt::Display for Declared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.as_str(), self.hex)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_json() {
        use Algorithm::{Crc32, Crc32c, Crc64nvme, GitSha1, Md5, Sha1, Sha256};
        for algorithm in [Sha256, Crc64nvme, Crc32c, Crc32, Sha1, Md5, GitSha1] {
            assert_eq!(serde_json::to_value(algorithm).unwrap(), algorithm.as_str());
            assert_eq!(serde_json::to_value(OriginVerified::from(algorithm)).unwrap(), algorithm.as_str());
        }
    }
}
