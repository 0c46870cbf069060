//! A bundle as one file, for places without a shared origin:
//!
//! ```text
//! preheat-bundle-archive 1
//! <bytes of the document> <of the signature> <of the pack>
//! document, signature and pack, with nothing between them
//! <BLAKE3 of all before, 64 hex digits>
//! ```
//!
//! It has no names but those of the document, so nothing in it can say where to write. What is taken in must be vouched for by a
//! trusted signer; that somebody has it as a file is no reason to run it.

use std::io::{Read, Write};

use super::in_place::IN_PLACE_FILES_MOST;
use super::library::BundleRef;
use super::packing::Piece;
use super::packs::Packs;
use super::service::Engines;
use super::{EngineError, shelf};
use crate::digest::Hash;
use crate::model::{BUNDLE_DOCUMENT_LIMIT, Bundle, BundleId, SIGNATURE_LIMIT, Signature, Tenant};

const MAGIC: &str = "preheat-bundle-archive 1\n";
/// Longest line of sizes: three numbers of at most 20 digits.
const SIZES_LIMIT: usize = 70;
const CHUNK: usize = 256 << 10;

/// Reads what goes by, and hashes it.
struct Hashing<R> {
    inner: R,
    hasher: blake3::Hasher,
}

// === impl Hashing ===

impl<R: Read> Hashing<R> {
    fn exact(&mut self, into: &mut [u8]) -> Result<(), EngineError> {
        self.inner.read_exact(into).map_err(|error| unreadable(&error))?;
        self.hasher.update(into);
        Ok(())
    }

    /// A line of at most `limit` bytes, without its end.
    fn line(&mut self, limit: usize) -> Result<String, EngineError> {
        let (mut line, mut byte) = (Vec::new(), [0]);
        loop {
            self.exact(&mut byte)?;
            if byte == *b"\n" {
                return String::from_utf8(line).map_err(|_| none());
            }
            line.extend(byte);
            if line.len() > limit {
                return Err(none());
            }
        }
    }

    fn whole(&mut self, size: u64, limit: usize) -> Result<Vec<u8>, EngineError> {
        let size = usize::try_from(size).ok().filter(|size| *size <= limit).ok_or_else(none)?;
        let mut bytes = vec![0; size];
        self.exact(&mut bytes)?;
        Ok(bytes)
    }
}

fn none() -> EngineError {
    EngineError::refused("archive", "it is none that `preheat engine export` writes")
}

fn corrupt(detail: impl Into<String>) -> EngineError {
    EngineError::Corrupt { what: "the archive".to_owned(), detail: detail.into() }
}

fn unreadable(error: &std::io::Error) -> EngineError {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => corrupt("it is cut off"),
        _ => corrupt(format!("it cannot be read: {error}")),
    }
}

/// Writes a bundle as an archive; gives its length. Blocking.
///
/// # Errors
/// A pack that is not as long as the document says, and those of writing.
pub fn export(
    bundle: &Bundle,
    signature: Option<&Signature>,
    pack: &mut dyn Read,
    to: &mut dyn Write,
) -> Result<u64, EngineError> {
    let size = bundle.manifest.total_bytes();
    let document = bundle.to_json();
    let signature = signature.map(Signature::to_json).unwrap_or_default();
    let head = format!("{MAGIC}{} {} {}\n", document.len(), signature.len(), size);
    let (mut hasher, mut written) = (blake3::Hasher::new(), 0);
    let mut write = |bytes: &[u8]| {
        hasher.update(bytes);
        written += bytes.len() as u64;
        to.write_all(bytes).map_err(|error| EngineError::io("write", std::path::Path::new("the archive"), error))
    };
    write(head.as_bytes())?;
    write(&document)?;
    write(&signature)?;
    let (mut buffer, mut left) = (vec![0; CHUNK], size);
    while left > 0 {
        let piece = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
        pack.read_exact(&mut buffer[..piece]).map_err(|error| unreadable(&error))?;
        write(&buffer[..piece])?;
        left -= piece as u64;
    }
    let digest = hasher.finalize();
    let last = digest.to_hex();
    to.write_all(last.as_bytes())
        .and_then(|()| to.flush())
        .map_err(|error| EngineError::io("write", std::path::Path::new("the archive"), error))?;
    Ok(written + last.len() as u64)
}

// === impl Engines ===

impl Engines {
    /// Takes an archive in, for all who may ask this node. `operator`: it may take the place of a newer one. Blocking.
    ///
    /// # Errors
    /// `Denied` for what no trusted signer vouches for, and for what is older than what is here; `Corrupt`, `Refused`, `NoSpace`,
    /// the store.
    pub fn import(&self, scope: &Tenant, operator: bool, archive: &mut dyn Read) -> Result<BundleRef, EngineError> {
        let inner = &self.inner;
        let mut archive = Hashing { inner: archive, hasher: blake3::Hasher::new() };
        let mut magic = [0; MAGIC.len()];
        archive.exact(&mut magic)?;
        if magic != MAGIC.as_bytes() {
            return Err(none());
        }
        let sizes = archive.line(SIZES_LIMIT)?;
        let sizes: Option<Vec<u64>> = sizes.split(' ').map(|size| size.parse().ok()).collect();
        let [document, signature, pack] = sizes.and_then(|sizes| sizes.try_into().ok()).ok_or_else(none)?;
        let document = archive.whole(document, BUNDLE_DOCUMENT_LIMIT)?;
        let signature = archive.whole(signature, SIGNATURE_LIMIT)?;
        let signature = (!signature.is_empty()).then(|| Signature::parse(&signature)).transpose()?;
        let id = BundleId::of(&document);
        // Before anything in the document is looked at.
        inner
            .policy
            .vouched(id, &document, signature.as_ref())
            .map_err(|why| EngineError::Denied { what: format!("bundle {id}"), why: why.to_string() })?;
        let bundle = Bundle::parse(&document)?;
        let total = bundle.manifest.total_bytes();
        if total != pack {
            return Err(none());
        }
        let limit = inner.policy.config().bundle_bytes_max.0;
        if total > limit {
            let why = format!("has {total} bytes, engines.bundle_bytes_max is {limit}");
            return Err(EngineError::refused(format!("bundle {id}"), why));
        }
        if !operator {
            self.check_newest(scope, &bundle)?;
        }
        let files = bundle.manifest.files();
        if bundle.pack.is_none() && files.len() > IN_PLACE_FILES_MOST {
            let why = format!("is used in place and has more than {IN_PLACE_FILES_MOST} files");
            return Err(EngineError::refused(format!("bundle {id}"), why));
        }
        let _claim = inner.claim(scope, &Tenant::node(), &bundle.key.digest(), total)?;
        let pieces = files.iter().map(|entry| Piece::Given { size: entry.size }).collect();
        let mut packing = Packs::begin(&inner.store, &Tenant::node(), pieces, bundle.pack.is_none(), None)?;
        let (mut buffer, mut left) = (vec![0; CHUNK], total);
        while left > 0 {
            let piece = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK);
            archive.exact(&mut buffer[..piece])?;
            packing.push(&buffer[..piece])?;
            left -= piece as u64;
        }
        let digest = archive.hasher.finalize().to_hex();
        let mut last = [0; 64];
        archive.inner.read_exact(&mut last).map_err(|error| unreadable(&error))?;
        let more = archive.inner.read(&mut buffer[..1]).map_err(|error| unreadable(&error))?;
        if last != *digest.as_bytes() || more > 0 {
            return Err(corrupt("its bytes are not those that its last line says"));
        }
        let (blobs, hashes) = packing.finish()?;
        let wrong = files.iter().zip(&hashes).find(|(entry, hash)| entry.blake3 != **hash);
        if let Some((entry, _)) = wrong {
            return Err(corrupt(format!("`{}` does not hash to what the document says", entry.path)));
        }
        let found = blobs.first().map(|pack| pack.hash);
        if let Some(expected) = bundle.pack
            && found != Some(expected.blake3)
        {
            return Err(corrupt(format!("its pack does not hash to {}", expected.blake3)));
        }
        let held = shelf::put(&inner.store, &Tenant::node(), Some(scope), &bundle, signature.as_ref(), blobs)?;
        let key: Hash = bundle.key.digest();
        self.keep_versions(&Tenant::node(), &key);
        inner.reference(scope, &held)
    }

    /// What comes last is what everybody on the node is given. So that nobody puts back what a signer has replaced, what one may
    /// restore is not followed by what is older.
    fn check_newest(&self, scope: &Tenant, bundle: &Bundle) -> Result<(), EngineError> {
        let inner = &self.inner;
        for model in shelf::records(&inner.store, &[Tenant::node()], Some(&bundle.key.digest())) {
            let Some(held) = inner.read(&model)? else { continue };
            let standing = inner.reference(scope, &held)?.standing;
            if held.bundle.captured_at > bundle.captured_at && inner.verdict(scope, &held, &standing).is_ok() {
                let why =
                    format!("bundle {} of the same key is newer: only an operator puts an older one back", held.id);
                return Err(EngineError::Denied { what: "the archive".to_owned(), why });
            }
        }
        Ok(())
    }
}
