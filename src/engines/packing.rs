//! Making a pack: the bytes of files, one after the other, into a blob of the store.
//!
//! The store names a blob by its bytes, so nothing of this can be seen before the last group is in; what a kill leaves is a partial
//! like any other, and goes with the next that needs its room. Hashes of the single files are taken on the way: what the captured
//! process says of its files is not asked.
//!
//! A pack may take files over from one that is here already: a kernel bundle grows by the entries of whoever comes later.

use std::fs::File;
use std::path::PathBuf;

use super::EngineError;
use crate::digest::{GROUP_BYTES, Hash};
use crate::model::{FlightKey, OriginId, Tenant};
use crate::store::{BlobHold, Partial, Store};
use crate::sys::durable::temporary_name;
use crate::sys::read_write::pread_exact;

/// One file of the pack that is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Its bytes are pushed.
    Given {
        /// How many.
        size: u64,
    },
    /// Its bytes are in another pack.
    Held {
        /// From where on.
        offset: u64,
        /// How many.
        size: u64,
        /// What they must hash to.
        blake3: Hash,
    },
}

/// A pack under construction.
#[derive(Debug)]
pub(super) struct Packing {
    /// Taken when it is complete; thrown away otherwise.
    partial: Option<Partial>,
    pieces: std::vec::IntoIter<Piece>,
    /// The other pack.
    held: Option<(File, PathBuf)>,
    /// The file that is being pushed: what is left of it.
    current: Option<(u64, blake3::Hasher)>,
    hashes: Vec<Hash>,
    buffer: Vec<u8>,
    group: u64,
}

/// Bytes read at once from the other pack: they stay in the core's cache until they are hashed and written.
const CHUNK: usize = 256 << 10;

/// The identity under which a pack is made: its own, for no two captures are the same transfer.
fn own_key(scope: &Tenant, size: u64) -> FlightKey {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let locator = format!("{} {now}", temporary_name());
    FlightKey::new(scope, &OriginId::new("engine+capture".to_owned()), &locator, "-", size)
}

// === impl Piece ===

impl Piece {
    /// Bytes that are still to come.
    pub(super) fn given(&self) -> u64 {
        match self {
            Self::Given { size } => *size,
            Self::Held { .. } => 0,
        }
    }

    fn size(&self) -> u64 {
        match self {
            Self::Given { size } | Self::Held { size, .. } => *size,
        }
    }
}

// === impl Packing ===

impl Packing {
    /// Begins a pack of these files, in this order.
    pub(super) fn begin(
        store: &Store,
        scope: &Tenant,
        pieces: Vec<Piece>,
        held: Option<(File, PathBuf)>,
    ) -> Result<Self, EngineError> {
        let size = pieces.iter().map(Piece::size).sum();
        let key = own_key(scope, size);
        let reservation = store.reserve(store.cost_to_begin(&key, size), &[])?;
        let partial = store.begin(key, size, &reservation)?;
        let mut packing = Self {
            partial: Some(partial),
            hashes: Vec::with_capacity(pieces.len()),
            pieces: pieces.into_iter(),
            held,
            current: None,
            buffer: Vec::with_capacity(GROUP_BYTES as usize),
            group: 0,
        };
        packing.advance()?;
        Ok(packing)
    }

    /// The next bytes of the files that are given.
    ///
    /// # Errors
    /// More than was said at the beginning; those of the store.
    pub(super) fn push(&mut self, mut bytes: &[u8]) -> Result<(), EngineError> {
        while !bytes.is_empty() {
            let Some((left, hasher)) = &mut self.current else {
                return Err(EngineError::refused("capture", "has more bytes than its files"));
            };
            let take = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
            hasher.update(&bytes[..take]);
            *left -= take as u64;
            self.write(&bytes[..take])?;
            bytes = &bytes[take..];
            self.advance()?;
        }
        Ok(())
    }

    /// The blob, and the hash of each file in the pack's order.
    ///
    /// # Errors
    /// Fewer bytes than was said; those of the store.
    pub(super) fn finish(mut self) -> Result<(BlobHold, Vec<Hash>), EngineError> {
        if self.current.is_some() || self.pieces.len() > 0 {
            return Err(EngineError::refused("capture", "has fewer bytes than its files: it broke off"));
        }
        if !self.buffer.is_empty() || self.group == 0 {
            self.write_group()?;
        }
        let partial = self.partial.take().ok_or(EngineError::Defect)?;
        Ok((partial.complete(None, &[])?, std::mem::take(&mut self.hashes)))
    }

    /// Ends files that have all their bytes, and takes those over that are held, up to the next that is given.
    fn advance(&mut self) -> Result<(), EngineError> {
        loop {
            match self.current.take() {
                Some((0, hasher)) => self.hashes.push(Hash::from_bytes(*hasher.finalize().as_bytes())),
                Some(current) => {
                    self.current = Some(current);
                    return Ok(());
                }
                None => {}
            }
            match self.pieces.next() {
                None => return Ok(()),
                Some(Piece::Given { size }) => self.current = Some((size, blake3::Hasher::new())),
                Some(Piece::Held { offset, size, blake3 }) => self.take_over(offset, size, blake3)?,
            }
        }
    }

    fn take_over(&mut self, offset: u64, size: u64, wanted: Hash) -> Result<(), EngineError> {
        let Some((file, path)) = self.held.take() else { return Err(EngineError::Defect) };
        let (mut hasher, mut buffer, mut at) = (blake3::Hasher::new(), vec![0; CHUNK], 0);
        while at < size {
            let piece = usize::try_from(size - at).unwrap_or(usize::MAX).min(CHUNK);
            let bytes = &mut buffer[..piece];
            pread_exact(&file, bytes, offset + at).map_err(|error| EngineError::io("read", &path, error))?;
            hasher.update(bytes);
            self.write(bytes)?;
            at += piece as u64;
        }
        let found = Hash::from_bytes(*hasher.finalize().as_bytes());
        if found != wanted {
            let detail = format!("a file in it hashes to {found}, not {wanted}");
            return Err(EngineError::Corrupt { what: path.display().to_string(), detail });
        }
        self.hashes.push(found);
        self.held = Some((file, path));
        Ok(())
    }

    fn write(&mut self, mut bytes: &[u8]) -> Result<(), EngineError> {
        while !bytes.is_empty() {
            let take = (GROUP_BYTES as usize - self.buffer.len()).min(bytes.len());
            self.buffer.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.buffer.len() == GROUP_BYTES as usize {
                self.write_group()?;
            }
        }
        Ok(())
    }

    fn write_group(&mut self) -> Result<(), EngineError> {
        let partial = self.partial.as_ref().ok_or(EngineError::Defect)?;
        let cv = partial.write_group(self.group, &self.buffer)?;
        partial.received(self.group, &[cv])?;
        self.group += 1;
        self.buffer.clear();
        Ok(())
    }
}

impl Drop for Packing {
    fn drop(&mut self) {
        // Nobody can go on with it: its identity is its own.
        if let Some(partial) = self.partial.take() {
            let _ = partial.discard();
        }
    }
}

/// Stores a document as a blob.
pub(super) fn put_document(store: &Store, scope: &Tenant, bytes: &[u8]) -> Result<BlobHold, EngineError> {
    let mut packing = Packing::begin(store, scope, vec![Piece::Given { size: bytes.len() as u64 }], None)?;
    packing.push(bytes)?;
    Ok(packing.finish()?.0)
}
