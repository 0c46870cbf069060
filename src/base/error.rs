//! The eleven kinds of failure. Every port has its own error enum; each of them answers `kind()`, and the kind alone
//! decides retry, HTTP status, exit code and log level, so that one failure reads the same wherever it surfaces.

use serde::{Deserialize, Serialize};

/// What a failure means to whoever has to act on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// The named thing does not exist.
    NotFound,
    /// It exists (or may exist) and the caller may not have it.
    Denied,
    /// The caller's input is wrong; asking again the same way cannot work.
    Invalid,
    /// The world changed underneath: plan again, then retry.
    Conflict,
    /// Bytes are not what they were declared or recorded to be.
    Corrupt,
    /// No room, and nothing that may be evicted.
    NoSpace,
    /// Somebody else holds it; later may work.
    Busy,
    /// The other side is down, refuses, or breaks off.
    Unavailable,
    /// A deadline passed.
    Timeout,
    /// The caller, or a shutdown, called it off.
    Cancelled,
    /// A defect of preheat or a broken machine.
    Internal,
}

impl ErrorKind {
    /// All kinds, for tables in documentation and tests.
    pub const ALL: [Self; 11] = [
        Self::NotFound,
        Self::Denied,
        Self::Invalid,
        Self::Conflict,
        Self::Corrupt,
        Self::NoSpace,
        Self::Busy,
        Self::Unavailable,
        Self::Timeout,
        Self::Cancelled,
        Self::Internal,
    ];

    /// Whether the same request may succeed if repeated without change.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(self, Self::Busy | Self::Unavailable | Self::Timeout)
    }

    /// Process exit code (after sysexits.h where it has one).
    #[must_use]
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Invalid => 64,
            Self::Corrupt => 65,
            Self::NotFound => 66,
            Self::Unavailable => 69,
            Self::Internal => 70,
            Self::NoSpace => 73,
            Self::Busy => 75,
            Self::Conflict => 76,
            Self::Denied => 77,
            Self::Timeout => 124,
            Self::Cancelled => 130,
        }
    }

    /// HTTP status of the native API.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::Denied => 403,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Internal => 500,
            Self::Corrupt | Self::Unavailable => 502,
            Self::Busy | Self::Cancelled => 503,
            Self::Timeout => 504,
            Self::NoSpace => 507,
        }
    }

    /// The stable word used in JSON, metrics and logs.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Denied => "denied",
            Self::Invalid => "invalid",
            Self::Conflict => "conflict",
            Self::Corrupt => "corrupt",
            Self::NoSpace => "no_space",
            Self::Busy => "busy",
            Self::Unavailable => "unavailable",
            Self::Timeout => "timeout",
            Self::Cancelled => "cancelled",
            Self::Internal => "internal",
        }
    }

    /// The kind of a local I/O error.
    #[must_use]
    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as Io;
        match error.kind() {
            Io::NotFound => Self::NotFound,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => Self::Denied,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => Self::NoSpace,
            Io::TimedOut => Self::Timeout,
            Io::ConnectionRefused
            | Io::ConnectionReset
            | Io::ConnectionAborted
            | Io::BrokenPipe
            | Io::UnexpectedEof
            | Io::NotConnected => Self::Unavailable,
            Io::ResourceBusy | Io::WouldBlock => Self::Busy,
            Io::InvalidInput | Io::InvalidFilename | Io::NotADirectory | Io::IsADirectory => Self::Invalid,
            _ => Self::Internal,
        }
    }
}

impl std::fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_distinct() {
        let codes: std::collections::HashSet<u8> = ErrorKind::ALL.iter().map(|k| k.exit_code()).collect();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
    }

    #[test]
    fn full_disk_is_no_space() {
        let error = std::io::Error::from_raw_os_error(rustix::io::Errno::NOSPC.raw_os_error());
        assert_eq!(ErrorKind::of_io(&error), ErrorKind::NoSpace);
    }
}
