//! Settings of the store.

use std::time::Duration;

use super::Admissions;
use crate::base::BootId;
use crate::base::units::{ByteSize, MIB};
use crate::sys::disk::Disk;

/// Settings of [`super::Store`].
#[derive(Clone, Debug)]
pub struct Options {
    /// Hard cap on what the store takes. `None`: what the file system has free, less `keep_free`.
    pub capacity: Option<ByteSize>,
    /// Bytes of the file system always left to others. `None`: 5 % of it, so that a store on its own volume cannot fill it
    /// to where file systems slow down. On a kubelet's disk set more: it evicts pods below 10 to 15 % free.
    pub keep_free: Option<ByteSize>,
    /// Eviction starts above this share of the capacity.
    pub high_watermark: f64,
    /// Where eviction stops.
    pub low_watermark: f64,
    /// Blobs up to this size are stored whole, without journal. At twice, a kill costs more; at half, a journal costs as much
    /// as the file.
    pub small_bytes: u64,
    /// At most this long between a blob becoming readable and the start of its sealing.
    pub seal_delay: Duration,
    /// Who may enter the trees of which scope.
    pub admissions: Admissions,
    /// Who reads and writes. `None`: started as the environment has it.
    pub disk: Option<Disk>,
    /// This boot.
    pub boot: BootId,
}

// === impl Options ===

impl Options {
    /// The defaults, for this boot.
    ///
    /// # Errors
    /// When the boot id cannot be read.
    pub fn for_process() -> std::io::Result<Self> {
        Ok(Self::new(BootId::current()?))
    }

    /// The defaults, for a given boot.
    #[must_use]
    pub fn new(boot: BootId) -> Self {
        Self {
            capacity: None,
            keep_free: None,
            high_watermark: 0.95,
            low_watermark: 0.85,
            small_bytes: 8 * MIB,
            seal_delay: Duration::from_millis(500),
            admissions: Admissions::new(),
            disk: None,
            boot,
        }
    }
}
