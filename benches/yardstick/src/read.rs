//! Reading files from first to last byte in each way that the kernel offers: what a warm-up is held against.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use rustix::fs::{Advice, fadvise};
use serde_json::{Value, json};

use super::turns;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[arg(long, value_enum)]
    way: Way,
    /// Blocks that are read at a time
    #[arg(long, default_value_t = 1)]
    depth: usize,
}

#[derive(clap::ValueEnum, Clone, Copy, PartialEq)]
enum Way {
    /// Through the page cache, in order
    Buffered,
    /// The same, and the kernel is told of each block before
    Ahead,
    /// Past the page cache
    Direct,
}

const BLOCK: usize = 1 << 20;
const ALIGNMENT: usize = 4096;
/// What the kernel is asked to have ready.
const AHEAD: u64 = 64 << 20;

pub(crate) fn run(arguments: &Arguments) -> Result<Value> {
    let mut blocks = Vec::new();
    let mut files = Vec::new();
    for (number, path) in arguments.files.iter().enumerate() {
        let flags = if arguments.way == Way::Direct { libc::O_DIRECT } else { 0 };
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(flags)
            .open(path)
            .with_context(|| format!("open {}", path.display()))?;
        let size = file.metadata()?.len();
        blocks.extend((0..size).step_by(BLOCK).map(|at| (number, at)));
        files.push((file, size));
    }
    let next = AtomicUsize::new(0);
    let (read, took) = turns::together(arguments.depth, |_| {
        let mut room = vec![0u8; BLOCK + ALIGNMENT];
        let start = room.as_ptr().align_offset(ALIGNMENT);
        let block = &mut room[start..start + BLOCK];
        let mut read = 0;
        while let Some(&(number, at)) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (file, size) = &files[number];
            if arguments.way == Way::Ahead && at.is_multiple_of(AHEAD / 2) {
                fadvise(file, at, std::num::NonZeroU64::new(AHEAD), Advice::WillNeed)?;
            }
            read += fill(file, at, usize::try_from(size - at)?.min(BLOCK), block)?;
        }
        Ok(read)
    })?;
    Ok(json!({"bytes": read.iter().sum::<usize>(), "seconds": took.as_secs_f64()}))
}

/// Reads `length` bytes at `at`; a whole block is asked for, because past the page cache lengths have to be aligned.
fn fill(file: &File, at: u64, length: usize, block: &mut [u8]) -> Result<usize> {
    let mut done = 0;
    while done < length {
        match file.read_at(&mut block[done..], at + done as u64)? {
            0 => break,
            count => done += count,
        }
    }
    Ok(done.min(length))
}
