//! The store's section.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::units::{ByteRate, ByteSize, MIB, Span};
use crate::store::Options;

/// Settings of the store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StoreConfig {
    /// Its directory, on one file system; made if absent.
    pub root: PathBuf,
    /// Hard cap on what it takes. Absent: what the file system has free, less `keep_free`.
    pub capacity: Option<ByteSize>,
    /// Bytes of the file system always left to others. Absent: 5 % of it.
    pub keep_free: Option<ByteSize>,
    /// Eviction starts above this share of the capacity.
    pub high_watermark: f64,
    /// Where eviction stops.
    pub low_watermark: f64,
    /// At most this long between a blob becoming readable and the start of its sealing.
    pub seal_delay: Span,
    /// How fast the scrub reads. Absent: no scrub.
    pub scrub_rate: Option<ByteRate>,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            root: PathBuf::from("/var/lib/preheat"),
            capacity: None,
            keep_free: None,
            high_watermark: 0.95,
            low_watermark: 0.85,
            seal_delay: Span(Duration::from_millis(500)),
            // 1 TiB in two days, at about 2 % of an NVMe disk.
            scrub_rate: Some(ByteRate(8 * MIB)),
        }
    }
}

// === impl StoreConfig ===

impl StoreConfig {
    pub(super) fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let (high, low) = (self.high_watermark, self.low_watermark);
        if !(0.0 < low && low < high && high <= 1.0) {
            problems.push(format!(
                "store.low_watermark = {low}, store.high_watermark = {high}: write 0 < low_watermark < high_watermark <= 1"
            ));
        }
        if self.capacity.is_some_and(|capacity| capacity.0 < 64 * MIB) {
            problems.push("store.capacity: less than 64MiB holds no model".to_owned());
        }
        problems
    }

    /// As the store takes them.
    ///
    /// # Errors
    /// When the boot id cannot be read.
    pub fn options(&self) -> std::io::Result<Options> {
        Ok(Options {
            capacity: self.capacity,
            keep_free: self.keep_free,
            high_watermark: self.high_watermark,
            low_watermark: self.low_watermark,
            seal_delay: self.seal_delay.0,
            ..Options::for_process()?
        })
    }
}
