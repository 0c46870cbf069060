//! What of a file is in the page cache. Residency is measured, never assumed: pages are charged to the cgroup that first
//! touched them and may be reclaimed at any time.

use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// `struct cachestat_range` and `struct cachestat` of `linux/mman.h` (Linux 6.5).
#[repr(C)]
struct CachestatRange {
    offset: u64,
    length: u64,
}

#[repr(C)]
#[derive(Default)]
struct Cachestat {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Up to this a huge page is a good piece to read at once.
const MOST_HUGE: u64 = 4 << 20;

/// `__NR_cachestat`, the same on every architecture that numbers system calls jointly (since Linux 6.5).
const SYS_CACHESTAT: libc::c_long = 451;

/// Bytes of `file` that are in the page cache, counted in whole pages and cut at the file's size. Costs about a millisecond a
/// GiB.
///
/// # Errors
/// When neither `cachestat(2)` nor `mincore(2)` is available.
pub fn resident_bytes(file: &File) -> io::Result<u64> {
    let size = file.metadata()?.len();
    resident_in(file, 0..size)
}

/// The same of a range, which begins at a page and lies in the file.
///
/// # Errors
/// As [`resident_bytes`].
pub fn resident_in(file: &File, range: Range<u64>) -> io::Result<u64> {
    let length = range.end.saturating_sub(range.start);
    if length == 0 {
        return Ok(0);
    }
    let page = rustix::param::page_size() as u64;
    let asked = CachestatRange { offset: range.start, length };
    let mut found = Cachestat::default();
    // SAFETY: both structures live across the call and have the kernel's layout; flags must be zero.
    let outcome = unsafe { libc::syscall(SYS_CACHESTAT, file.as_raw_fd(), &raw const asked, &raw mut found, 0) };
    if outcome == 0 {
        return Ok((found.cached * page).min(length));
    }
    resident_by_mincore(file, range, page)
}

fn resident_by_mincore(file: &File, range: Range<u64>, page: u64) -> io::Result<u64> {
    let length = range.end - range.start;
    // SAFETY: the mapping is only asked about, never read, so a file that shrinks cannot fault.
    let map = unsafe { memmap2::MmapOptions::new().offset(range.start).len(length as usize).map(file) }?;
    let mut pages = vec![0_u8; length.div_ceil(page) as usize];
    // SAFETY: the vector has one byte for each page of the mapping.
    let outcome = unsafe { libc::mincore(map.as_ptr().cast_mut().cast(), map.len(), pages.as_mut_ptr()) };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    let resident = pages.iter().filter(|&&page| page & 1 == 1).count() as u64;
    Ok((resident * page).min(length))
}

/// Has the kernel begin to read a range into the page cache; returns before it is there. What is there is not read again.
pub fn read_ahead(file: &File, range: Range<u64>) {
    let Some(length) = NonZeroU64::new(range.end.saturating_sub(range.start)) else { return };
    // Only a hint: without it the read that follows waits for the disk.
    let _ = rustix::fs::fadvise(file, range.start, Some(length), rustix::fs::Advice::WillNeed);
}

/// Brings a range into the page cache in huge pages where the kernel can, and waits until it is there; returns whether this
/// kernel does that. `range` begins at a page and lies in the file. What cannot be read stays away, and is for the reading that follows
/// to tell of.
///
/// A mapping is advised to be huge and its pages are asked for (`MADV_POPULATE_READ`), so that the kernel reads 4 MiB at a time into
/// pages of 2 MiB, however short the disk's own read-ahead is: a request has a few large pieces instead of a thousand of 4 KiB.
/// The bytes are never looked at through the mapping, so a bad sector or a shorter file is an error of the call and no SIGBUS.
#[must_use]
pub fn populate(file: &File, range: Range<u64>) -> bool {
    static REFUSED: AtomicBool = AtomicBool::new(false);
    let length = range.end.saturating_sub(range.start) as usize;
    if length == 0 {
        return true;
    }
    if REFUSED.load(Ordering::Relaxed) || huge_page().is_none_or(|bytes| bytes > MOST_HUGE) {
        return false;
    }
    // SAFETY: nothing is read or written through the mapping, so what happens to the file cannot be seen through it.
    let mapped = unsafe { memmap2::MmapOptions::new().offset(range.start).len(length).map(file) };
    let Ok(map) = mapped else { return false };
    // Only a hint.
    let _ = map.advise(memmap2::Advice::HugePage);
    match map.advise(memmap2::Advice::PopulateRead) {
        // Linux before 5.14 does not know it.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS | libc::EPERM)) => {
            REFUSED.store(true, Ordering::Relaxed);
            false
        }
        _ => true,
    }
}

/// A huge page of this machine; `None` where there is none. With pages of 64 KiB it has 512 MiB, and is of no use here.
fn huge_page() -> Option<u64> {
    static BYTES: OnceLock<Option<u64>> = OnceLock::new();
    *BYTES.get_or_init(|| {
        std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size").ok()?.trim().parse().ok()
    })
}

/// Drops clean pages of `file` from the page cache that no process has mapped: a hint.
pub fn drop_cache(file: &File) {
    // Only a hint; the kernel may keep them.
    let _ = rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_count_what_was_just_written() {
        let mut file = tempfile::tempfile().unwrap();
        let page = rustix::param::page_size() as u64;
        io::Write::write_all(&mut file, &vec![5; 10 * page as usize + 3]).unwrap();
        let size = 10 * page + 3;
        assert_eq!(resident_bytes(&file).unwrap(), size);
        assert_eq!(resident_by_mincore(&file, 0..size, page).unwrap(), size);
        assert_eq!(resident_in(&file, 2 * page..3 * page + 1).unwrap(), page + 1);
        assert_eq!(resident_by_mincore(&file, 2 * page..3 * page + 1, page).unwrap(), page + 1);
        assert_eq!(resident_in(&file, 0..0).unwrap(), 0);
    }

    #[test]
    fn what_is_populated_is_there_and_what_cannot_be_ends_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let (size, page) = ((5_u64 << 20) + 77, rustix::param::page_size() as u64);
        std::fs::write(&path, vec![5; size as usize]).unwrap();
        let file = File::open(&path).unwrap();
        file.sync_all().unwrap();
        drop_cache(&file);
        if resident_bytes(&file).unwrap() == 0 {
            if !populate(&file, page..size) {
                eprintln!("this kernel does not populate, so it is not tested");
                return;
            }
            assert_eq!(resident_in(&file, page..size).unwrap(), size - page);
        }
        // A file that has become shorter: an error of the call, and no signal.
        File::options().write(true).open(&path).unwrap().set_len(page).unwrap();
        assert!(populate(&file, 0..size) && populate(&file, 0..0));
        assert!(populate(&file, 0..page), "it still works");
    }
}
