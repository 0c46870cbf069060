//! The blobs of a bundle under construction: one pack of all files, or a blob of each file, for bundles that are used where they lie.
//!
//! A file of a bundle that is here already is taken over: into a pack by its bytes, as a blob of its own by holding it.

use std::fs::File;
use std::path::PathBuf;

use super::EngineError;
use super::packing::{Packing, Piece};
use crate::digest::Hash;
use crate::model::Tenant;
use crate::store::{BlobHold, Store};

/// Blobs that are being made.
#[derive(Debug)]
pub(super) enum Packs {
    /// One pack.
    One(Box<Packing>),
    /// A blob for each file.
    Each(Box<Each>),
}

/// Blobs of single files, one after the other.
#[derive(Debug)]
pub(super) struct Each {
    store: Store,
    scope: Tenant,
    pieces: std::vec::IntoIter<Piece>,
    /// The file that is being pushed, and what is left of it.
    current: Option<(Packing, u64)>,
    blobs: Vec<BlobHold>,
    hashes: Vec<Hash>,
}

// === impl Packs ===

impl Packs {
    /// Begins with these files, in this order. `held`: the pack that files are taken over from.
    pub(super) fn begin(
        store: &Store,
        scope: &Tenant,
        pieces: Vec<Piece>,
        in_place: bool,
        held: Option<(File, PathBuf)>,
    ) -> Result<Self, EngineError> {
        if !in_place {
            return Ok(Self::One(Box::new(Packing::begin(store, scope, pieces, held)?)));
        }
        // All of it or nothing: room for half of an engine is of no use. What is begun later asks for its own.
        let total = pieces.iter().map(Piece::given).sum();
        drop(store.reserve(total, &[])?);
        let (blobs, hashes) = (Vec::with_capacity(pieces.len()), Vec::with_capacity(pieces.len()));
        let mut each = Each {
            store: store.clone(),
            scope: scope.clone(),
            pieces: pieces.into_iter(),
            current: None,
            blobs,
            hashes,
        };
        each.advance()?;
        Ok(Self::Each(Box::new(each)))
    }

    /// The next bytes of the files that are given.
    ///
    /// # Errors
    /// As for [`Packing::push`].
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<(), EngineError> {
        match self {
            Self::One(packing) => packing.push(bytes),
            Self::Each(each) => each.push(bytes),
        }
    }

    /// The blobs, and the hash of each file in order.
    ///
    /// # Errors
    /// As for [`Packing::finish`].
    pub(super) fn finish(self) -> Result<(Vec<BlobHold>, Vec<Hash>), EngineError> {
        match self {
            Self::One(packing) => packing.finish().map(|(pack, hashes)| (vec![pack], hashes)),
            Self::Each(each) => each.finish(),
        }
    }
}

// === impl Each ===

impl Each {
    fn push(&mut self, mut bytes: &[u8]) -> Result<(), EngineError> {
        while !bytes.is_empty() {
            let Some((packing, left)) = &mut self.current else {
                return Err(EngineError::refused("capture", "has more bytes than its files"));
            };
            let take = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
            packing.push(&bytes[..take])?;
            *left -= take as u64;
            bytes = &bytes[take..];
            self.advance()?;
        }
        Ok(())
    }

    /// Ends the file that has all its bytes, and begins the next that needs some.
    fn advance(&mut self) -> Result<(), EngineError> {
        loop {
            match self.current.take() {
                Some((packing, 0)) => {
                    let (blob, hashes) = packing.finish()?;
                    self.blobs.push(blob);
                    self.hashes.extend(hashes);
                }
                Some(current) => {
                    self.current = Some(current);
                    return Ok(());
                }
                None => {}
            }
            match self.pieces.next() {
                None => return Ok(()),
                Some(Piece::Given { size }) => {
                    let packing = Packing::begin(&self.store, &self.scope, vec![Piece::Given { size }], None)?;
                    self.current = Some((packing, size));
                }
                Some(Piece::Held { blake3, .. }) => {
                    let gone = || EngineError::NotFound { what: format!("blob {blake3}") };
                    self.blobs.push(self.store.hold(&blake3).ok_or_else(gone)?);
                    self.hashes.push(blake3);
                }
            }
        }
    }

    fn finish(self) -> Result<(Vec<BlobHold>, Vec<Hash>), EngineError> {
        if self.current.is_some() || self.pieces.len() > 0 {
            return Err(EngineError::refused("capture", "has fewer bytes than its files: it broke off"));
        }
        Ok((self.blobs, self.hashes))
    }
}
