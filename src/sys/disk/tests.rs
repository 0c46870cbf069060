//! What every pair of hands must do. Each test runs with both; where the kernel gives no ring it says so.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::*;
use crate::sys::buffer::Buffers;

const MIB: usize = 1 << 20;

/// Every pair of hands.
fn hands() -> Vec<Disk> {
    let mut all = vec![Disk::start(Choice::Pool).unwrap()];
    match Disk::start(Choice::IoUring) {
        Ok(ring) => all.push(ring),
        Err(error) => eprintln!("no ring here, so it is not tested: {error}"),
    }
    all
}

/// A file on a disk, read past the cache where that can be done, and through it.
fn file(directory: &Path, bytes: &[u8]) -> [DiskFile; 2] {
    let path = directory.join("file");
    std::fs::write(&path, bytes).unwrap();
    let file = Arc::new(File::options().read(true).write(true).open(path).unwrap());
    let direct = DiskFile::direct(Arc::clone(&file));
    if direct.unit().is_none() {
        eprintln!("no direct I/O here, so it is not tested");
    }
    [DiskFile::cached(file), direct]
}

/// The same numbers for the same seed (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        let first = self.below(251);
        bytes.iter_mut().enumerate().for_each(|(at, byte)| *byte = ((first + at * 31) % 251) as u8);
    }

    /// Often at or near a boundary.
    fn place(&mut self, bound: usize) -> usize {
        match self.below(4) {
            0 => self.below(bound),
            1 => self.below(bound) / 4096 * 4096,
            2 => (self.below(bound) / 4096 * 4096 + self.below(3)).min(bound),
            _ => self.below(bound) / 65536 * 65536,
        }
    }
}

#[test]
fn random_reads_and_writes_are_those_of_a_model() {
    let buffers = Buffers::new(4 * MIB as u64, MIB);
    for disk in hands() {
        for seed in 1..=6 {
            let directory = tempfile::tempdir().unwrap();
            let mut random = Random(seed * 7919);
            let mut model = vec![0; random.place(3 * MIB)];
            random.fill(&mut model);
            let ways = file(directory.path(), &model);
            for step in 0..150 {
                let way = &ways[random.below(2)];
                let (offset, length) = (random.place(4 * MIB), random.place(MIB));
                let mut buffer = buffers.try_acquire().unwrap();
                if random.below(2) == 0 {
                    random.fill(&mut buffer[..length]);
                    if length > 0 && model.len() < offset + length {
                        model.resize(offset + length, 0);
                    }
                    if length > 0 {
                        model[offset..][..length].copy_from_slice(&buffer[..length]);
                    }
                    let done = disk.write(way, offset as u64, buffer, length).wait().unwrap();
                    assert_eq!(done.bytes, length);
                } else {
                    let there = model.len().saturating_sub(offset).min(length);
                    if random.below(2) == 0 && there < length {
                        let error = disk.read(way, offset as u64, buffer, length).wait().unwrap_err();
                        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{error}");
                        continue;
                    }
                    let done = disk.read_up_to(way, offset as u64, buffer, length).wait().unwrap();
                    assert_eq!(done.bytes, there, "{} seed {seed} step {step}", disk.kind());
                    let same = done.buffer[..there] == model[model.len().min(offset)..][..there];
                    assert!(same, "{} seed {seed} step {step}: {length} at {offset}", disk.kind());
                }
                assert_eq!(buffers.in_use(), 0);
            }
            assert_eq!(std::fs::read(directory.path().join("file")).unwrap().len(), model.len());
            assert!(std::fs::read(directory.path().join("file")).unwrap() == model, "{} seed {seed}", disk.kind());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_at_once_than_a_ring_holds_is_neither_lost_nor_doubled() {
    const EACH: usize = 8192;
    const PIECES: usize = 1000;
    let buffers = Buffers::new((PIECES * EACH) as u64, EACH);
    for disk in hands() {
        let directory = tempfile::tempdir().unwrap();
        for way in file(directory.path(), &[]) {
            let mut tasks = Vec::new();
            for task in 0..8 {
                let (disk, way, buffers) = (disk.clone(), way.clone(), buffers.clone());
                tasks.push(tokio::spawn(async move {
                    let mut pending = Vec::new();
                    for piece in (task..PIECES).step_by(8) {
                        let mut buffer = buffers.acquire().await;
                        buffer.fill(piece as u8);
                        buffer[..8].copy_from_slice(&piece.to_le_bytes());
                        pending.push(disk.write(&way, (piece * EACH) as u64, buffer, EACH));
                    }
                    for write in pending {
                        assert_eq!(write.await.unwrap().bytes, EACH);
                    }
                }));
            }
            for task in tasks {
                task.await.unwrap();
            }
            disk.sync_data(&way).await.unwrap();
            let mut reads = Vec::new();
            for piece in 0..PIECES {
                reads.push(disk.read(&way, (piece * EACH) as u64, buffers.acquire().await, EACH));
            }
            for (piece, read) in reads.into_iter().enumerate() {
                let done = read.await.unwrap();
                assert_eq!(done.buffer[..8], piece.to_le_bytes());
                assert!(done.buffer[8..].iter().all(|byte| *byte == piece as u8), "piece {piece}");
            }
            assert_eq!(way.file().metadata().unwrap().len(), (PIECES * EACH) as u64);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dropped_futures_take_nothing_away() {
    const EACH: usize = 256 << 10;
    const PIECES: usize = 96;
    let buffers = Buffers::new((PIECES * EACH) as u64, EACH);
    for disk in hands() {
        let directory = tempfile::tempdir().unwrap();
        for way in file(directory.path(), &[]) {
            let mut random = Random(5);
            for round in 0..10_u8 {
                // Writes of which nobody waits for most.
                for piece in 0..PIECES {
                    let mut buffer = buffers.acquire().await;
                    buffer.fill(piece as u8 ^ round);
                    let write = disk.write(&way, (piece * EACH) as u64, buffer, EACH);
                    if random.below(8) == 0 {
                        write.await.unwrap();
                    }
                }
                // All are back, so all are written.
                while buffers.in_use() > 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                let mut found = vec![0; EACH];
                for piece in 0..PIECES {
                    way.file().read_exact_at(&mut found, (piece * EACH) as u64).unwrap();
                    assert!(found.iter().all(|byte| *byte == piece as u8 ^ round), "{} {piece}", disk.kind());
                }
                // Reads that are dropped before, while and after they are made. Whoever gets their memory next has it alone.
                crate::sys::residency::drop_cache(way.file());
                for piece in 0..PIECES {
                    let read = disk.read(&way, (piece * EACH) as u64, buffers.acquire().await, EACH);
                    let patience = Duration::from_micros(random.below(400) as u64);
                    if random.below(3) == 0 {
                        let _ = tokio::time::timeout(patience, read).await;
                    } else if random.below(3) == 0 {
                        tokio::spawn(read).abort();
                    }
                }
                let mut taken = Vec::new();
                for _ in 0..PIECES {
                    let mut buffer = buffers.acquire().await;
                    buffer.fill(0xEE);
                    taken.push(buffer);
                }
                tokio::time::sleep(Duration::from_millis(3)).await;
                assert!(taken.iter().all(|buffer| buffer.iter().all(|byte| *byte == 0xEE)), "{}", disk.kind());
            }
        }
    }
}

#[test]
fn what_is_under_way_when_the_last_clone_goes_is_finished() {
    const EACH: usize = 64 << 10;
    let buffers = Buffers::new(200 * EACH as u64, EACH);
    for disk in hands() {
        let directory = tempfile::tempdir().unwrap();
        for way in file(directory.path(), &[]) {
            let clone = disk.clone();
            let writes: Vec<Pending> = (0..200_usize)
                .map(|piece| {
                    let mut buffer = buffers.try_acquire().unwrap();
                    buffer.fill(piece as u8);
                    clone.write(&way, (piece * EACH) as u64, buffer, EACH)
                })
                .collect();
            drop(clone);
            for write in writes {
                write.wait().unwrap();
            }
        }
        let [way, _] = file(directory.path(), &[]);
        let writes: Vec<Pending> = (0..200_u64)
            .map(|piece| disk.write(&way, piece * EACH as u64, buffers.try_acquire().unwrap(), EACH))
            .collect();
        let began = Instant::now();
        drop(disk);
        assert_eq!(buffers.in_use(), 200, "the answers hold them");
        assert!(writes.into_iter().all(|write| write.wait().is_ok()));
        assert_eq!(way.file().metadata().unwrap().len(), 200 * EACH as u64);
        assert!(began.elapsed() < Duration::from_secs(30));
    }
}

#[tokio::test]
async fn errors_name_themselves_and_give_the_buffer_back() {
    let buffers = Buffers::new(MIB as u64, MIB);
    for disk in hands() {
        let directory = tempfile::tempdir().unwrap();
        let [way, direct] = file(directory.path(), &[7; 5000]);
        let take = || buffers.try_acquire().unwrap();
        for way in [&way, &direct] {
            let error = disk.read(way, 4999, take(), 2).await.unwrap_err();
            assert!(error.kind() == io::ErrorKind::UnexpectedEof && error.to_string().contains("5000"), "{error}");
            assert_eq!(disk.read_up_to(way, 4096, take(), 4096).await.unwrap().bytes, 904);
            assert_eq!(disk.read_up_to(way, 1 << 40, take(), 4096).await.unwrap().bytes, 0);
            assert_eq!(disk.read(way, 1 << 40, take(), 0).await.unwrap().bytes, 0);
            let error = disk.read(way, 0, take(), MIB + 1).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            let error = disk.write(way, u64::MAX, take(), 1).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
            let error = disk.write(way, i64::MAX as u64 - 1, take(), 1).await.unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EFBIG), "{error}");
        }
        let other = |path: &str, write: bool| {
            DiskFile::cached(Arc::new(File::options().read(!write).write(write).open(path).unwrap()))
        };
        let error = disk.write(&other("/dev/full", true), 0, take(), 100).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        let error = disk.write(&other("/dev/zero", false), 0, take(), 100).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        let error = disk.read(&other("/", false), 0, take(), 100).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EISDIR));
        let error = disk.sync_data(&other("/dev/zero", false)).await.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        assert_eq!(buffers.in_use(), 0);
    }
}

#[test]
fn a_write_that_a_full_file_system_cuts_short_is_an_error_and_not_less() {
    let buffers = Buffers::new(2 * MIB as u64, MIB);
    for disk in hands() {
        let directory = tempfile::tempdir().unwrap();
        let Some(small) = small_file(directory.path(), "size=1536k") else {
            eprintln!("no file system may be mounted here, so it is not tested");
            return;
        };
        let way = DiskFile::cached(Arc::new(small));
        let mut first = buffers.try_acquire().unwrap();
        first.fill(1);
        assert_eq!(disk.write(&way, 0, first, MIB).wait().unwrap().bytes, MIB);
        let error = disk.write(&way, MIB as u64, buffers.try_acquire().unwrap(), MIB).wait().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC), "{}: {error}", disk.kind());
        let read = disk.read(&way, 0, buffers.try_acquire().unwrap(), MIB).wait().unwrap();
        assert!(read.buffer.iter().all(|byte| *byte == 1));
    }
}

/// A new file on a tmpfs of its own, which is gone with the thread that mounted it.
fn small_file(directory: &Path, options: &str) -> Option<File> {
    let directory = directory.to_owned();
    let options = std::ffi::CString::new(options).unwrap();
    let mounted = std::thread::spawn(move || {
        let path = std::ffi::CString::new(directory.to_str().unwrap()).unwrap();
        // SAFETY: it is for this thread alone, and all strings end in zero.
        let outcome = unsafe {
            libc::unshare(libc::CLONE_NEWNS) != 0
                || libc::mount(
                    c"none".as_ptr(),
                    c"/".as_ptr(),
                    std::ptr::null(),
                    libc::MS_REC | libc::MS_PRIVATE,
                    std::ptr::null(),
                ) != 0
                || libc::mount(c"none".as_ptr(), path.as_ptr(), c"tmpfs".as_ptr(), 0, options.as_ptr().cast()) != 0
        };
        (!outcome)
            .then(|| File::options().read(true).write(true).create_new(true).open(directory.join("small")).unwrap())
    });
    mounted.join().unwrap()
}

#[test]
fn idle_hands_rest() {
    let used = || rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let disks = hands();
    let buffers = Buffers::new(MIB as u64, MIB);
    let directory = tempfile::tempdir().unwrap();
    let [way, _] = file(directory.path(), &[1; 4096]);
    for disk in &disks {
        disk.read(&way, 0, buffers.try_acquire().unwrap(), 4096).wait().unwrap();
    }
    let before = used();
    std::thread::sleep(Duration::from_millis(1500));
    let after = used();
    let spent = (after.tv_sec - before.tv_sec) * 1000 + (after.tv_nsec - before.tv_nsec) / 1_000_000;
    assert!(spent < 20, "{spent} ms of CPU in 1.5 s of rest");
}

#[test]
fn past_the_cache_leaves_nothing_in_it() {
    let buffers = Buffers::new(MIB as u64, MIB);
    for disk in hands() {
        let directory = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..3 * MIB + 777).map(|at| (at % 251) as u8).collect();
        let [cached, direct] = file(directory.path(), &bytes);
        if direct.unit().is_none() {
            return;
        }
        cached.file().sync_all().unwrap();
        crate::sys::residency::drop_cache(cached.file());
        if crate::sys::residency::resident_bytes(cached.file()).unwrap() > 0 {
            eprintln!("the page cache of this file system cannot be dropped");
            return;
        }
        for (index, expected) in bytes.chunks(MIB).enumerate() {
            let buffer = buffers.try_acquire().unwrap();
            let done = disk.read(&direct, (index * MIB) as u64, buffer, expected.len()).wait().unwrap();
            assert!(done.buffer[..done.bytes] == *expected);
        }
        assert_eq!(crate::sys::residency::resident_bytes(cached.file()).unwrap(), 0, "{}", disk.kind());
    }
}

#[test]
fn a_filter_is_found_whichever_call_it_refuses_and_the_pool_stands_in() {
    if let Err(error) = Disk::start(Choice::IoUring) {
        eprintln!("no ring here, so it is not tested: {error}");
        return;
    }
    for (calls, errno, said) in [
        (&[libc::SYS_io_uring_setup][..], libc::EPERM, "seccomp"),
        (&[libc::SYS_io_uring_enter], libc::EPERM, "seccomp"),
        (&[libc::SYS_io_uring_setup], libc::ENOSYS, "a kernel with io_uring"),
        (&[libc::SYS_io_uring_setup], libc::ENOMEM, "LimitMEMLOCK"),
        (&[libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register], libc::EPERM, "seccomp"),
    ] {
        // The filter is this thread's, and that of the threads that it starts.
        let filtered = std::thread::spawn(move || {
            refuse(calls, errno);
            let error = Disk::start(Choice::IoUring).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Invalid);
            assert!(error.to_string().contains(said), "{error}");
            let disk = Disk::start(Choice::Auto).unwrap();
            assert_eq!(disk.kind(), Kind::Pool);
            assert!(disk.refusal().unwrap().to_string().contains(said));
            let [way, _] = file(tempfile::tempdir().unwrap().path(), &[3; 100]);
            let buffer = Buffers::new(100, 100).try_acquire().unwrap();
            assert_eq!(disk.read(&way, 0, buffer, 100).wait().unwrap().buffer[99], 3);
        });
        filtered.join().unwrap();
    }
    assert_eq!(Disk::start(Choice::Pool).unwrap().refusal(), None, "none was wanted");
}

/// Has the kernel answer these calls of this thread with an error.
fn refuse(calls: &[libc::c_long], errno: i32) {
    let mut program = vec![libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: 0 }];
    for (at, call) in calls.iter().enumerate() {
        let past = (calls.len() - at) as u8;
        program.push(libc::sock_filter { code: 0x15, jt: past, jf: 0, k: *call as u32 });
    }
    program.push(libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ALLOW });
    program.push(libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | errno as u32 });
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: the program lives across the call, which copies it.
    let outcome = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter)
    };
    assert_eq!(outcome, 0, "{}", io::Error::last_os_error());
}

#[test]
fn choices_are_read_as_they_are_written() {
    for choice in [Choice::Auto, Choice::IoUring, Choice::Pool] {
        let text = serde_json::to_value(choice).unwrap();
        assert_eq!(text.as_str().unwrap().parse(), Ok(choice));
    }
    assert_eq!("uring".parse::<Choice>(), Err(()));
}

#[test]
fn a_file_is_opened_once_more_with_its_own_rights_and_without_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let [_, direct] = file(directory.path(), &[1; 10]);
    let Some(unit) = direct.unit() else { return };
    assert!(unit.is_power_of_two() && unit >= rustix::param::page_size() as u64);
    std::fs::remove_file(directory.path().join("file")).unwrap();
    assert!(DiskFile::direct(Arc::clone(direct.file())).unit().is_some());
    assert_eq!(DiskFile::direct(Arc::new(File::open("/proc/self/status").unwrap())).unit(), None);
    assert_ne!(direct.file().as_raw_fd(), direct.direct.as_ref().unwrap().file.as_raw_fd());
}
