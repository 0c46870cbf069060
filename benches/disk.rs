//! What a disk gives, and to whom: every way of reading a cold file against every other, in rounds, in one run.
//!
//! ```text
//! cargo bench --bench disk -- [--mib 2048] [--rounds 3] [--directory DIR] [--only TEXT] [--fill]
//! ```
//!
//! The file lies in the temporary directory, or in `--directory`: what a tmpfs gives says nothing. Before each reading its pages are dropped,
//! and it is looked whether they are gone. A hypervisor's cache makes a virtual disk look faster than it is, for all ways alike.
//! With `--fill` it is written instead, groups hashed on their way, until it is on disk.
#![allow(clippy::unwrap_used, reason = "a benchmark ends where it fails")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use preheat::digest::{GROUP_BYTES, group_cv, group_range};
use preheat::sys::buffer::Buffers;
use preheat::sys::disk::{Choice, Disk, DiskFile};
use preheat::sys::residency::{drop_cache, read_ahead, resident_bytes};

const GROUP: usize = GROUP_BYTES as usize;

type Reading = dyn Fn(&Arc<File>, u64);

/// A way of reading a file.
struct Way {
    name: String,
    read: Box<Reading>,
}

fn way(name: impl Into<String>, read: impl Fn(&Arc<File>, u64) + 'static) -> Way {
    Way { name: name.into(), read: Box::new(read) }
}

fn main() {
    let (mut mib, mut rounds, mut directory, mut only) = (2048_u64, 3, std::env::temp_dir(), String::new());
    let mut fill = false;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} wants a value"));
        match argument.as_str() {
            "--mib" => mib = value().parse().unwrap(),
            "--rounds" => rounds = value().parse().unwrap(),
            "--directory" => directory = PathBuf::from(value()),
            "--only" => only = value(),
            "--fill" => fill = true,
            // Cargo's.
            "--bench" => {}
            other => panic!("{other}: known are --mib, --rounds, --directory, --only, --fill"),
        }
    }
    let size = mib << 20;
    let (held, file) = make(&directory, if fill { GROUP_BYTES } else { size });
    let all = if fill { fills() } else { ways() };
    let ways: Vec<Way> = all.into_iter().filter(|way| way.name.contains(&only)).collect();
    let mut found = vec![Vec::new(); ways.len()];
    for _ in 0..rounds {
        for (way, found) in ways.iter().zip(&mut found) {
            if fill {
                // New blocks for everybody.
                file.set_len(0).unwrap();
                preheat::sys::durable::preallocate(&file, size).unwrap();
                file.sync_all().unwrap();
            } else {
                drop_cache(&file);
                let left = resident_bytes(&file).unwrap();
                assert!(left < size / 50, "{left} bytes stay in memory: not a cold file");
            }
            let (began, before) = (Instant::now(), cpu_seconds());
            (way.read)(&file, size);
            let seconds = began.elapsed().as_secs_f64();
            let resident = resident_bytes(&file).unwrap() as f64 / size as f64;
            found.push((size as f64 / seconds / 1e6, (cpu_seconds() - before) / (size as f64 / 1e9), resident));
        }
    }
    println!("{mib} MiB in {}, medians of {rounds}", held.path().display());
    println!("| | MB/s | CPU s/GB | there afterwards |\n|---|---|---|---|");
    for (way, found) in ways.iter().zip(found) {
        let middle = |of: fn(&(f64, f64, f64)) -> f64| {
            let mut values: Vec<f64> = found.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let (speed, cpu, there) = (middle(|one| one.0), middle(|one| one.1), middle(|one| one.2));
        println!("| {} | {speed:.0} | {cpu:.2} | {:.0} % |", way.name, there * 100.0);
    }
}

/// A file that no file system and no disk makes smaller.
fn make(directory: &Path, size: u64) -> (tempfile::TempDir, Arc<File>) {
    let held = tempfile::tempdir_in(directory).unwrap();
    let file = File::options().read(true).write(true).create_new(true).open(held.path().join("cold")).unwrap();
    preheat::sys::durable::preallocate(&file, size).unwrap();
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut bytes = vec![0; GROUP];
    for group in 0..size / GROUP_BYTES {
        for word in bytes.as_chunks_mut::<8>().0 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *word = state.to_le_bytes();
        }
        file.write_all_at(&bytes, group * GROUP_BYTES).unwrap();
    }
    file.sync_all().unwrap();
    (held, Arc::new(file))
}

fn cpu_seconds() -> f64 {
    // utime and stime of this process, in ticks of 10 ms.
    let text = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = text.rsplit_once(')').unwrap().1.split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn ways() -> Vec<Way> {
    let mut ways = vec![
        way("mmap, a byte of each page", |file, size| {
            // SAFETY: nobody else has the file.
            let map = unsafe { memmap2::Mmap::map(file.as_ref()) }.unwrap();
            let sum: u64 = (0..size as usize).step_by(4096).map(|at| u64::from(map[at])).sum();
            std::hint::black_box(sum);
        }),
        way("buffered, one after the other (cat)", |file, size| threads(file, size, 1, 0, false)),
    ];
    for (count, window) in [(1, 8), (1, 32), (2, 32), (2, 64), (2, 128), (4, 64)] {
        for hash in [false, true] {
            let name = format!("buffered, {count} threads, {window} MiB ahead{}", if hash { ", hashed" } else { "" });
            ways.push(way(name, move |file, size| threads(file, size, count, window, hash)));
        }
    }
    for depth in [1, 2, 4, 8, 16, 32, 64] {
        for each in [1, 4] {
            if depth * each <= 128 {
                ways.push(hands(Choice::IoUring, true, depth, each << 20, false));
            }
        }
    }
    for choice in [Choice::IoUring, Choice::Pool] {
        for (direct, depth, hash) in [
            (true, 16, false),
            (true, 16, true),
            (false, 8, false),
            (false, 16, false),
            (false, 64, false),
            (false, 16, true),
        ] {
            ways.push(hands(choice, direct, depth, 1 << 20, hash));
        }
    }
    ways
}

fn fills() -> Vec<Way> {
    let mut ways = vec![way("buffered, 2 threads that hash and write", |file, size| {
        let next = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let bytes = vec![7; GROUP];
                    loop {
                        let group = next.fetch_add(1, Ordering::Relaxed);
                        if group >= size / GROUP_BYTES {
                            return;
                        }
                        std::hint::black_box(group_cv(size, group, &bytes));
                        file.write_all_at(&bytes, group * GROUP_BYTES).unwrap();
                    }
                });
            }
        });
        file.sync_data().unwrap();
    })];
    for direct in [true, false] {
        for depth in [1, 4, 16, 64] {
            for choice in [Choice::IoUring, Choice::Pool] {
                let disk = Disk::start(choice).unwrap();
                let how = if direct { "O_DIRECT" } else { "buffered" };
                ways.push(way(format!("{how}, {choice:?} {depth} x 1 MiB"), move |file, size| {
                    let buffers = Buffers::new(depth * GROUP_BYTES, GROUP);
                    let to =
                        if direct { DiskFile::direct(Arc::clone(file)) } else { DiskFile::cached(Arc::clone(file)) };
                    let mut pending = std::collections::VecDeque::new();
                    for group in 0..size / GROUP_BYTES {
                        let buffer = loop {
                            if let Some(buffer) = buffers.try_acquire() {
                                break buffer;
                            }
                            let write: preheat::sys::disk::Pending = pending.pop_front().unwrap();
                            write.wait().unwrap();
                        };
                        std::hint::black_box(group_cv(size, group, &buffer));
                        pending.push_back(disk.write(&to, group * GROUP_BYTES, buffer, GROUP));
                    }
                    pending.into_iter().for_each(|write| drop(write.wait().unwrap()));
                    file.sync_data().unwrap();
                }));
            }
        }
    }
    ways
}

/// Threads that read a group at a time, in order, with the kernel told of what comes next.
fn threads(file: &Arc<File>, size: u64, count: usize, window: u64, hash: bool) {
    let next = AtomicU64::new(0);
    let groups = size / GROUP_BYTES;
    read_ahead(file, 0..window << 20);
    std::thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                let mut bytes = vec![0; GROUP];
                loop {
                    let group = next.fetch_add(1, Ordering::Relaxed);
                    if group >= groups {
                        return;
                    }
                    if window > 0 {
                        let ahead = (group + window).min(groups);
                        read_ahead(file, ahead * GROUP_BYTES..(ahead * GROUP_BYTES + GROUP_BYTES).min(size));
                    }
                    file.read_exact_at(&mut bytes, group * GROUP_BYTES).unwrap();
                    if hash {
                        std::hint::black_box(group_cv(size, group, &bytes));
                    }
                }
            });
        }
    });
}

/// Our hands, with so much under way.
fn hands(choice: Choice, direct: bool, depth: usize, each: usize, hash: bool) -> Way {
    let how = if direct { "O_DIRECT" } else { "buffered" };
    let mut name = format!("{how}, {choice:?} {depth} x {} MiB", each >> 20);
    if hash {
        name.push_str(", hashed");
    }
    let disk = Disk::start(choice).unwrap();
    way(name, move |file, size| {
        let buffers = Buffers::new((depth * each) as u64, each);
        let file = if direct { DiskFile::direct(Arc::clone(file)) } else { DiskFile::cached(Arc::clone(file)) };
        let mut pending = std::collections::VecDeque::new();
        let mut asked = 0;
        loop {
            while asked < size
                && let Some(buffer) = buffers.try_acquire()
            {
                let length = (size - asked).min(each as u64);
                pending.push_back((asked, disk.read(&file, asked, buffer, length as usize)));
                asked += length;
            }
            let Some((start, read)) = pending.pop_front() else { return };
            let done = read.wait().unwrap();
            if hash {
                for at in (0..done.bytes).step_by(GROUP) {
                    let group = (start + at as u64) / GROUP_BYTES;
                    let range = group_range(size, group);
                    std::hint::black_box(group_cv(
                        size,
                        group,
                        &done.buffer[at..at + (range.end - range.start) as usize],
                    ));
                }
            }
        }
    })
}
