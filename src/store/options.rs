//! Settings of the store.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::BootId;
use crate::base::units::ByteSize;

/// How much the store may hold.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Capacity {
    /// A fixed number of bytes, counted as allocated on disk.
    Bytes(ByteSize),
}

/// Settings of [`super::Store`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Hard cap on bytes allocated below the root. `None`: what the file system has, less `keep_free`.
    pub capacity: Option<ByteSize>,
    /// Bytes of the file system always left to others. Default 5 % of it.
    pub keep_free: Option<ByteSize>,
    /// Eviction starts above this share of the capacity, and goes on to `low_watermark`.
    pub high_watermark: f64,
    /// Where eviction stops.
    pub low_watermark: f64,
    /// Blobs up to this size are stored whole, without journal.
    pub small_bytes: u64,
    /// At most this long between a blob becoming readable and the start of its sealing.
    pub seal_delay: Duration,
    /// This boot.
    pub boot: BootId,
}
