//! From an error to words and an exit code. `anyhow` carries the chain; the kind is taken from the first link that has one.

use std::process::ExitCode;

use crate::access::TokenError;
use crate::base::ErrorKind;
use crate::doors::client::ClientError;
use crate::doors::{BindError, ConfigError};
use crate::engines::EngineError;
use crate::engines::fingerprint::FingerprintError;
use crate::model::engine::KeyError;
use crate::model::source::SourceError;
use crate::placement::PlacementError;
use crate::store::StoreError;
use crate::sys::disk::DiskError;
use crate::transfer::TransferError;

/// An error that the command line itself finds.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(super) struct CliError {
    kind: ErrorKind,
    message: String,
}

// === impl CliError ===

impl CliError {
    pub(super) fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorKind::Invalid, message)
    }
}

/// The kind of an error, from the first link of its chain that knows.
pub(super) fn kind_of(error: &anyhow::Error) -> ErrorKind {
    for link in error.chain() {
        let kind = told::<CliError>(link, |error| error.kind)
            .or_else(|| told::<EngineError>(link, EngineError::kind))
            .or_else(|| told::<StoreError>(link, StoreError::kind))
            .or_else(|| told::<PlacementError>(link, PlacementError::kind))
            .or_else(|| told::<TransferError>(link, TransferError::kind))
            .or_else(|| told::<SourceError>(link, SourceError::kind))
            .or_else(|| told::<ClientError>(link, ClientError::kind))
            .or_else(|| told::<DiskError>(link, DiskError::kind))
            .or_else(|| told::<EngineError>(link, EngineError::kind))
            .or_else(|| told::<FingerprintError>(link, FingerprintError::kind))
            .or_else(|| told::<KeyError>(link, |_| ErrorKind::Invalid))
            .or_else(|| told::<BindError>(link, BindError::kind))
            .or_else(|| told::<TokenError>(link, |_| ErrorKind::Invalid))
            .or_else(|| told::<ConfigError>(link, |_| ErrorKind::Invalid))
            .or_else(|| told::<std::io::Error>(link, ErrorKind::of_io));
        if let Some(kind) = kind {
            return kind;
        }
    }
    ErrorKind::Internal
}

fn told<E: std::error::Error + 'static>(
    link: &(dyn std::error::Error + 'static),
    kind: impl Fn(&E) -> ErrorKind,
) -> Option<ErrorKind> {
    link.downcast_ref::<E>().map(kind)
}

/// Prints the error and gives its exit code.
pub(super) fn report(error: &anyhow::Error) -> ExitCode {
    let kind = kind_of(error);
    let mut message = String::new();
    for link in error.chain() {
        let link = link.to_string();
        // Wrappers that repeat their source would say everything twice.
        if !message.contains(&link) {
            if !message.is_empty() {
                message.push_str(": ");
            }
            message.push_str(&link);
        }
    }
    eprintln!("preheat: {message} ({kind})");
    ExitCode::from(kind.exit_code())
}
