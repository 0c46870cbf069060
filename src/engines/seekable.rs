//! A pack on its way: zstd in frames of 4 MiB, with the table of their sizes at the end, which is zstd's own *seekable format*. Any
//! zstd reads it as one file; whoever knows the table fetches and unpacks many frames at once, and goes on where it broke off.
//!
//! On the node a pack lies as it is: files are cut out of it at every start, and disk is read faster than it is unpacked.
//!
//! Nothing in it is believed. How many frames there are and how long each is unpacked follow from the pack's size, which the signed
//! document has; a frame that gives more is cut off there, and the bytes are held against the pack's name in the end.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::Path;

use super::EngineError;
use crate::sys::read_write::pread_exact;

/// Bytes of a pack in one frame: four groups. At half the table doubles and zstd sees less at once; at twice a small bundle is one
/// frame and comes over one connection.
pub(super) const FRAME: u64 = 4 << 20;

/// zstd's own default: half as many bytes as in a pack of shared objects and cubins, at some 300 MB/s a core.
const LEVEL: i32 = 3;

/// From zstd's `contrib/seekable_format/zstd_seekable_compression_format.md`.
const SKIPPABLE_MAGIC: u32 = 0x184D_2A5E;
const SEEKABLE_MAGIC: u32 = 0x8F92_EAB1;
const HEADER: usize = 8;
const FOOTER: usize = 9;
const ENTRY: usize = 8;

/// Where the frames of a packed object are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Table {
    /// Of each frame, in the object.
    pub(super) frames: Vec<Range<u64>>,
    size: u64,
}

fn corrupt(detail: impl Into<String>) -> EngineError {
    EngineError::Corrupt { what: "the packed bundle".to_owned(), detail: detail.into() }
}

/// Frames of a pack of `size` bytes; an empty pack has none.
fn frame_count(size: u64) -> usize {
    usize::try_from(size.div_ceil(FRAME)).unwrap_or(usize::MAX)
}

/// Writes the packed form of `pack` to `to`; gives its length. Blocking.
pub(super) fn compress(pack: &File, size: u64, to: &Path) -> Result<u64, EngineError> {
    let failed = |error| EngineError::io("write", to, error);
    let mut out = BufWriter::with_capacity(1 << 20, File::create_new(to).map_err(failed)?);
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).map_err(failed)?;
    let (mut buffer, mut sizes, mut written) = (vec![0; FRAME as usize], Vec::new(), 0_u64);
    for number in 0..frame_count(size) as u64 {
        let range = number * FRAME..((number + 1) * FRAME).min(size);
        let raw = &mut buffer[..(range.end - range.start) as usize];
        pread_exact(pack, raw, range.start).map_err(|error| corrupt(error.to_string()))?;
        let frame = compressor.compress(raw).map_err(failed)?;
        out.write_all(&frame).map_err(failed)?;
        written += frame.len() as u64;
        sizes.push((frame.len() as u32, raw.len() as u32));
    }
    let mut table = Vec::with_capacity(HEADER + ENTRY * sizes.len() + FOOTER);
    table.extend(SKIPPABLE_MAGIC.to_le_bytes());
    table.extend(((ENTRY * sizes.len() + FOOTER) as u32).to_le_bytes());
    for (packed, raw) in &sizes {
        table.extend(packed.to_le_bytes());
        table.extend(raw.to_le_bytes());
    }
    table.extend((sizes.len() as u32).to_le_bytes());
    table.push(0);
    table.extend(SEEKABLE_MAGIC.to_le_bytes());
    out.write_all(&table).and_then(|()| out.flush()).map_err(failed)?;
    Ok(written + table.len() as u64)
}

/// Unpacks one frame that must give exactly `raw` bytes.
pub(super) fn decompress(frame: &[u8], raw: usize) -> Result<Vec<u8>, EngineError> {
    let bytes = zstd::bulk::decompress(frame, raw).map_err(|error| corrupt(error.to_string()))?;
    if bytes.len() == raw { Ok(bytes) } else { Err(corrupt(format!("a frame has {} bytes, not {raw}", bytes.len()))) }
}

// === impl Table ===

impl Table {
    /// Bytes at the end of the object that hold the table.
    pub(super) fn length(size: u64) -> u64 {
        (HEADER + ENTRY * frame_count(size) + FOOTER) as u64
    }

    /// Reads the table of an object of `object` bytes that is to give a pack of `size`.
    pub(super) fn parse(tail: &[u8], object: u64, size: u64) -> Result<Self, EngineError> {
        let count = frame_count(size);
        if tail.len() as u64 != Self::length(size) {
            return Err(corrupt("its table is cut off"));
        }
        let word = |at: usize| u32::from_le_bytes([tail[at], tail[at + 1], tail[at + 2], tail[at + 3]]);
        let end = tail.len();
        let right = word(0) == SKIPPABLE_MAGIC
            && word(4) as usize == end - HEADER
            && word(end - FOOTER) as usize == count
            && tail[end - 5] == 0
            && word(end - 4) == SEEKABLE_MAGIC;
        if !right {
            return Err(corrupt("it has no table of the frames that the document's sizes ask for"));
        }
        let (mut frames, mut at) = (Vec::with_capacity(count), 0_u64);
        for number in 0..count {
            let entry = HEADER + ENTRY * number;
            let (packed, raw) = (u64::from(word(entry)), u64::from(word(entry + 4)));
            let start = number as u64 * FRAME;
            let bound = zstd::zstd_safe::compress_bound(FRAME as usize) as u64;
            if raw != (size - start).min(FRAME) || packed == 0 || packed > bound {
                return Err(corrupt(format!("frame {number} has {packed} bytes for {raw}")));
            }
            frames.push(at..at + packed);
            at += packed;
        }
        if at + end as u64 != object {
            return Err(corrupt(format!("its frames and table have {} bytes, and it {object}", at + end as u64)));
        }
        Ok(Self { frames, size })
    }

    /// The bytes of the pack that a frame gives.
    pub(super) fn raw(&self, frame: usize) -> Range<u64> {
        let start = frame as u64 * FRAME;
        start..(start + FRAME).min(self.size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(size: usize) -> (Vec<u8>, Vec<u8>) {
        let directory = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..size).map(|i| (i * i / 777) as u8).collect();
        let (pack, to) = (directory.path().join("pack"), directory.path().join("zst"));
        std::fs::write(&pack, &bytes).unwrap();
        let length = compress(&File::open(&pack).unwrap(), size as u64, &to).unwrap();
        let object = std::fs::read(&to).unwrap();
        assert_eq!(length, object.len() as u64);
        (bytes, object)
    }

    fn table(object: &[u8], size: u64) -> Result<Table, EngineError> {
        let tail = object.len() - usize::try_from(Table::length(size)).unwrap().min(object.len());
        Table::parse(&object[tail..], object.len() as u64, size)
    }

    #[test]
    fn frames_give_the_pack_and_any_zstd_reads_it_whole() {
        for size in [0, 1, 1 << 20, FRAME as usize, FRAME as usize + 1, 3 * FRAME as usize - 7] {
            let (bytes, object) = packed(size);
            let table = table(&object, size as u64).unwrap();
            let mut whole = Vec::new();
            for (number, range) in table.frames.iter().enumerate() {
                let raw = table.raw(number);
                let frame = &object[range.start as usize..range.end as usize];
                whole.extend(decompress(frame, (raw.end - raw.start) as usize).unwrap());
            }
            assert!(whole == bytes, "{size}");
            assert!(zstd::decode_all(&object[..]).unwrap() == bytes, "{size}");
        }
    }

    #[test]
    fn a_table_that_lies_is_refused() {
        let size = FRAME + 5;
        let (_, object) = packed(size as usize);
        assert!(table(&object, size).is_ok());
        assert!(table(&object, size + 1).is_err() && table(&object, size + FRAME).is_err());
        assert!(table(&object[..object.len() - 1], size).is_err() && table(&object[1..], size).is_err());
        let start = object.len() - Table::length(size) as usize;
        for at in start..object.len() {
            let mut bent = object.clone();
            bent[at] ^= 1;
            assert!(table(&bent, size).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_frame_gives_no_more_than_it_may() {
        let bomb = zstd::bulk::compress(&vec![0; 64 << 20], LEVEL).unwrap();
        assert!(bomb.len() < 64 << 10);
        assert!(decompress(&bomb, FRAME as usize).is_err());
        assert!(decompress(&bomb[..bomb.len() - 1], 64 << 20).is_err());
        let short = zstd::bulk::compress(b"abc", LEVEL).unwrap();
        assert!(decompress(&short, 4).is_err() && decompress(&short, 3).is_ok());
    }
}
