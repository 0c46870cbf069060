//! The store's section.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::units::{ByteRate, ByteSize, MIB, Span};
use crate::store::Options;
use crate::sys::disk::{Choice, Disk, DiskError};

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
    /// Who reads and writes: `io_uring`, a `pool` of threads, or `auto`, which is the first where the kernel gives one.
    pub disk: Choice,
    /// How fast the scrub reads. Absent: no scrub.
    pub scrub_rate: Option<ByteRate>,
    /// At most one round of the scrub in so long. Rot is found as much later; at a tenth an idle node never rests.
    pub scrub_every: Span,
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
            disk: Choice::Auto,
            // 1 TiB in two days, at about 2 % of an NVMe disk.
            scrub_rate: Some(ByteRate(8 * MIB)),
            scrub_every: Span(Duration::from_secs(7 * 24 * 3600)),
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

    /// Starts who reads and writes, and says once who that is.
    ///
    /// # Errors
    /// Where a ring is demanded and the kernel gives none.
    pub fn start_disk(&self) -> Result<Disk, DiskError> {
        let disk = Disk::start(self.disk)?;
        let kind = disk.kind();
        if let Some(refusal) = disk.refusal() {
            tracing::info!(disk = %kind, %refusal, "the kernel gives no ring; a pool of threads reads and writes");
        } else {
            tracing::info!(disk = %kind, "ready to read and write");
        }
        Ok(disk)
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
