//! What the machine can do at most, stage by stage: GB/s of each, measured for about a second.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use sha2::Digest;

use super::{bytes, turns};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A directory on the disk that is measured; without it the disk is not
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Bytes of the file that is written and read there
    #[arg(long, default_value_t = 1 << 30)]
    disk_bytes: u64,
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
}

const BLOCK: usize = 1 << 20;
const ALIGNMENT: usize = 4096;

pub(crate) fn run(arguments: &Arguments) -> Result<Value> {
    let window = Duration::from_secs_f64(arguments.seconds);
    let cores = std::thread::available_parallelism()?.get();
    let mut facts = Map::new();
    facts.insert("cores".to_owned(), json!(cores));
    facts.insert("memcpy_core".to_owned(), json!(memcpy(window, 1)?));
    facts.insert("memcpy_all".to_owned(), json!(memcpy(window, cores)?));
    facts.insert("loopback".to_owned(), json!(loopback(window)?));
    facts.insert("blake3_core".to_owned(), json!(blake3_core(window)));
    facts.insert("sha256_core".to_owned(), json!(sha256_core(window)));
    if let Some(directory) = &arguments.disk {
        for depth in [1, 8, 32] {
            let (write, read) = disk(directory, arguments.disk_bytes, depth)?;
            facts.insert(format!("disk_write_{depth}"), json!(write));
            facts.insert(format!("disk_read_{depth}"), json!(read));
        }
    }
    Ok(Value::Object(facts))
}

/// Repeats `step`, which answers the bytes it did, for as long as `window`; GB/s.
fn rate(window: Duration, mut step: impl FnMut() -> usize) -> f64 {
    let (began, mut done) = (Instant::now(), 0);
    while began.elapsed() < window {
        done += step();
    }
    done as f64 / began.elapsed().as_secs_f64() / 1e9
}

/// Copies from and to memory that no cache holds.
fn memcpy(window: Duration, threads: usize) -> Result<f64> {
    let (rates, _) = turns::together(threads, |_| {
        let (from, mut to) = (vec![1u8; 256 << 20], vec![0u8; 256 << 20]);
        Ok(rate(window, || {
            to.copy_from_slice(std::hint::black_box(&from));
            std::hint::black_box(&mut to).len()
        }))
    })?;
    Ok(rates.iter().sum())
}

/// One sender and one receiver for each two cores.
fn loopback(window: Duration) -> Result<f64> {
    let pairs = (std::thread::available_parallelism()?.get() / 2).max(1);
    let (rates, _) = turns::together(pairs, |_| {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let sender = std::thread::spawn(move || -> std::io::Result<()> {
            let (mut socket, block) = (TcpStream::connect(address)?, vec![7u8; BLOCK]);
            // Ends when the receiver does.
            while socket.write_all(&block).is_ok() {}
            Ok(())
        });
        let (mut socket, mut block) = (listener.accept()?.0, vec![0u8; BLOCK]);
        let (began, mut done) = (Instant::now(), 0);
        while began.elapsed() < window {
            done += socket.read(&mut block)?;
        }
        let took = began.elapsed();
        drop(socket);
        let _ = sender.join();
        Ok(done as f64 / took.as_secs_f64() / 1e9)
    })?;
    Ok(rates.iter().sum())
}

fn blake3_core(window: Duration) -> f64 {
    let mut block = vec![0; BLOCK];
    bytes::fill(1, 0, &mut block);
    rate(window, || {
        std::hint::black_box(blake3::hash(std::hint::black_box(&block)));
        BLOCK
    })
}

fn sha256_core(window: Duration) -> f64 {
    let mut block = vec![0; BLOCK];
    bytes::fill(2, 0, &mut block);
    rate(window, || {
        std::hint::black_box(sha2::Sha256::digest(std::hint::black_box(&block)));
        BLOCK
    })
}

/// Past the page cache, `depth` blocks of 1 MiB at a time: (write, read) in GB/s.
fn disk(directory: &Path, size: u64, depth: usize) -> Result<(f64, f64)> {
    let path = directory.join("yardstick.disk");
    let open = |write: bool| {
        OpenOptions::new()
            .read(!write)
            .write(write)
            .create(write)
            .custom_flags(libc::O_DIRECT)
            .open(&path)
            .with_context(|| format!("open {} past the page cache", path.display()))
    };
    let blocks = size / BLOCK as u64;
    let pass = |file: &File, write: bool| -> Result<f64> {
        let next = AtomicU64::new(0);
        let (_, took) = turns::together(depth, |_| {
            let mut room = vec![0u8; BLOCK + ALIGNMENT];
            let at = room.as_ptr().align_offset(ALIGNMENT);
            let block = &mut room[at..at + BLOCK];
            bytes::fill(3, 0, block);
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= blocks {
                    return Ok(());
                }
                if write {
                    file.write_all_at(block, number * BLOCK as u64)?;
                } else {
                    file.read_exact_at(block, number * BLOCK as u64)?;
                }
            }
        })?;
        if write {
            file.sync_data()?;
        }
        Ok((blocks * BLOCK as u64) as f64 / took.as_secs_f64() / 1e9)
    };
    let written = open(true).and_then(|file| pass(&file, true));
    let read = open(false).and_then(|file| pass(&file, false));
    let removed = std::fs::remove_file(&path);
    let rates = (written?, read?);
    removed?;
    Ok(rates)
}
