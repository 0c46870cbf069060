//! A file as disk hands take it: through the page cache, or past it where its file system and the bytes allow.
//!
//! Direct I/O wants offset, length and memory aligned. Whole units at an aligned offset go past the cache, what is left at the
//! end goes through it. The unit is never less than a page: a page that is written in part past the cache and in part through
//! it would be the kernel's word against ours.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;

use rustix::fs::{AtFlags, StatxFlags, statx};

use crate::sys::buffer::Buffers;

/// Beyond this no buffer is aligned, and a "unit" is a network file system's idea of a good size.
const MOST_UNIT: u64 = 1 << 20;

/// A file to be read or written. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DiskFile {
    pub(super) cached: Arc<File>,
    pub(super) direct: Option<Direct>,
}

/// The same file, opened to go past the page cache.
#[derive(Clone, Debug)]
pub(super) struct Direct {
    pub(super) file: Arc<File>,
    /// Of offset, length and memory; a power of two, at least a page.
    pub(super) unit: u64,
}

// === impl DiskFile ===

impl DiskFile {
    /// Through the page cache.
    #[must_use]
    pub fn cached(file: Arc<File>) -> Self {
        Self { cached: file, direct: None }
    }

    /// Past the page cache where that can be done, else through it. Opens the file once more, with the rights of `file`; it may
    /// have lost its name meanwhile.
    #[must_use]
    pub fn direct(file: Arc<File>) -> Self {
        let direct = Direct::open(&file);
        Self { cached: file, direct }
    }

    /// The file itself.
    #[must_use]
    pub fn file(&self) -> &Arc<File> {
        &self.cached
    }

    /// The unit of what goes past the page cache; `None` where nothing does.
    #[must_use]
    pub fn unit(&self) -> Option<u64> {
        self.direct.as_ref().map(|direct| direct.unit)
    }
}

// === impl Direct ===

impl Direct {
    fn open(file: &File) -> Option<Self> {
        let mode = rustix::fs::fcntl_getfl(file).ok()?;
        let write = mode.contains(rustix::fs::OFlags::RDWR) || mode.contains(rustix::fs::OFlags::WRONLY);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let file = OpenOptions::new().read(true).write(write).custom_flags(libc::O_DIRECT).open(path).ok()?;
        let page = rustix::param::page_size() as u64;
        let flags = StatxFlags::DIOALIGN | StatxFlags::TYPE;
        let told = statx(&file, "", AtFlags::EMPTY_PATH, flags).ok();
        let told = told.filter(|told| told.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
        let unit = match told {
            // The file system has none for this file.
            Some(told) if told.stx_dio_offset_align == 0 || u64::from(told.stx_dio_mem_align) > page => return None,
            Some(told) => u64::from(told.stx_dio_offset_align).max(page),
            // Linux before 6.1 does not say: a block is enough where a read of one succeeds.
            None => {
                let unit = u64::from(rustix::fs::fstat(&file).ok()?.st_blksize as u32).max(page);
                tried(&file, unit)?;
                unit
            }
        };
        (unit.is_power_of_two() && unit <= MOST_UNIT).then(|| Self { file: Arc::new(file), unit })
    }
}

fn tried(file: &File, unit: u64) -> Option<()> {
    let mut buffer = Buffers::new(unit, usize::try_from(unit.min(MOST_UNIT)).ok()?).try_acquire()?;
    file.read_at(&mut buffer, 0).ok().map(drop)
}
