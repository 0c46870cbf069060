//! Bytes in motion.

mod backoff;
mod climb;
mod config;
mod error;
mod schedule;

pub use config::{Config, ConfigError};
pub use error::TransferError;

/// Who waits for a transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    /// A process that is starting.
    #[default]
    Demand,
    /// Nobody yet.
    Prefetch,
}
