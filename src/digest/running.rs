//! The digests that origins declare, computed in order.

use crc_fast::CrcAlgorithm;
use sha2::Digest;

use super::Algorithm;

/// One digest under way.
pub struct Running(State);

enum State {
    Sha256(sha2::Sha256),
    Sha1(sha1::Sha1),
    Md5(md5::Md5),
    Crc(Algorithm, crc_fast::Digest),
}

// === impl Algorithm ===

impl Algorithm {
    /// The CRC that it is, if it is one: those merge over parts.
    #[must_use]
    pub fn crc(self) -> Option<CrcAlgorithm> {
        match self {
            Self::Crc64nvme => Some(CrcAlgorithm::Crc64Nvme),
            Self::Crc32c => Some(CrcAlgorithm::Crc32Iscsi),
            Self::Crc32 => Some(CrcAlgorithm::Crc32IsoHdlc),
            Self::Sha256 | Self::Sha1 | Self::Md5 | Self::GitSha1 => None,
        }
    }

    /// A CRC as origins write it.
    #[must_use]
    pub fn crc_hex(self, value: u64) -> String {
        format!("{value:0width$x}", width = self.hex_len())
    }
}

// === impl Running ===

impl Running {
    /// Begins the digest of an object of `size` bytes.
    #[must_use]
    pub fn new(algorithm: Algorithm, size: u64) -> Self {
        if let Some(crc) = algorithm.crc() {
            return Self(State::Crc(algorithm, crc_fast::Digest::new(crc)));
        }
        Self(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Md5 => State::Md5(md5::Md5::new()),
            Algorithm::GitSha1 => {
                let mut hasher = sha1::Sha1::new();
                hasher.update(format!("blob {size}\0"));
                State::Sha1(hasher)
            }
            _ => State::Sha1(sha1::Sha1::new()),
        })
    }

    /// Takes in the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha1(hasher) => hasher.update(bytes),
            State::Md5(hasher) => hasher.update(bytes),
            State::Crc(_, digest) => digest.update(bytes),
        }
    }

    /// Its value in lower-case hex.
    #[must_use]
    pub fn finish(self) -> String {
        match self.0 {
            State::Sha256(hasher) => hex(&hasher.finalize()),
            State::Sha1(hasher) => hex(&hasher.finalize()),
            State::Md5(hasher) => hex(&hasher.finalize()),
            State::Crc(algorithm, digest) => algorithm.crc_hex(digest.finalize()),
        }
    }
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running").finish_non_exhaustive()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
