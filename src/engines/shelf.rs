//! Bundles in the store. A bundle is published there like a model: a record and a manifest (of `kind: bundle`) that names its
//! document, its signature and its pack. So it is recovered, scrubbed, pinned, charged and evicted by the code that does it for
//! weights, under one capacity and one order of last use. A directory of its own was turned down: it would need all of that again,
//! and two owners of one disk.
//!
//! Nothing here decides about trust: see [`super::policy`].

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::EngineError;
use super::packing::put_document;
use crate::digest::Hash;
use crate::model::engine::BundleKind;
use crate::model::{
    BUNDLE_DOCUMENT_LIMIT, Bundle, BundleId, FilePath, Kind, Manifest, ManifestEntry, ModelId, ModelRecord,
    OriginFacts, OriginId, Pack, Revision, SIGNATURE_LIMIT, Selection, Signature, Tenant,
};
use crate::store::{BlobHold, Model, Publication, Store};
use crate::sys::mutant::mutant;

/// The files of a stored bundle.
const DOCUMENT: &str = "bundle.json";
const SIGNATURE: &str = "bundle.sig";
const PACK: &str = "pack";
/// Where the files of a bundle are that is used in place.
const FILES: &str = "files";

/// What the identities of bundles' origins begin with: no reference has such a scheme.
const ORIGIN: &str = "engine+";

/// What stands before a bundle's name in its record, where models have the reference that was typed.
const REFERENCE: &str = "engine:";

/// A bundle of the store, read and checked against its record.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub(super) id: BundleId,
    pub(super) scope: Tenant,
    pub(super) bundle: Arc<Bundle>,
    pub(super) document: Arc<[u8]>,
    pub(super) signature: Option<Signature>,
    /// Where its files are.
    pub(super) tree: PathBuf,
    pub(super) model: ModelId,
}

/// Whether a record of the store is a bundle's.
#[must_use]
pub fn is_bundle(record: &ModelRecord) -> bool {
    record.facts.origin.as_str().starts_with(ORIGIN)
}

fn origin_of(kind: BundleKind, key: &Hash, profile: &str) -> OriginId {
    OriginId::new(format!("{ORIGIN}{kind}/{key}/{profile}"))
}

/// The digest of the key under which a record is filed.
fn key_of(record: &ModelRecord) -> Option<(BundleKind, Hash)> {
    let (kind, rest) = record.facts.origin.as_str().strip_prefix(ORIGIN)?.split_once('/')?;
    Some((kind.parse().ok()?, rest.split_once('/')?.0.parse().ok()?))
}

/// The manifest under which a bundle is stored. It follows from the document and the signature, so it needs not be read.
fn container(bundle: &Bundle, document: &[u8], signature: Option<&[u8]>) -> Result<Manifest, EngineError> {
    let entry = |name: &str, size: u64, blake3: Hash| -> Result<ManifestEntry, EngineError> {
        let path = FilePath::new(name).map_err(|error| EngineError::refused(name, error.to_string()))?;
        let mtime_ns = bundle.captured_at.saturating_mul(1_000_000_000);
        Ok(ManifestEntry { mode: Some(0o444), mtime_ns: Some(mtime_ns), ..ManifestEntry::new(path, size, blake3) })
    };
    let mut files = vec![entry(DOCUMENT, document.len() as u64, Hash::of(document))?];
    if let Some(signature) = signature {
        files.push(entry(SIGNATURE, signature.len() as u64, Hash::of(signature))?);
    }
    match bundle.pack {
        Some(Pack { blake3, size }) => files.push(entry(PACK, size, blake3)?),
        None => {
            for file in bundle.manifest.files() {
                files.push(entry(&format!("{FILES}/{}", file.path), file.size, file.blake3)?);
            }
        }
    }
    Manifest::new(Kind::Bundle, files).map_err(|error| EngineError::Document(error.into()))
}

/// Publishes a bundle. Readable when this returns; durable after the next sealing.
pub(super) fn put(
    store: &Store,
    scope: &Tenant,
    asked_by: Option<&Tenant>,
    bundle: &Bundle,
    signature: Option<&Signature>,
    packed: Vec<BlobHold>,
) -> Result<Held, EngineError> {
    let document = bundle.to_json();
    let signature_text = signature.map(Signature::to_json);
    let manifest = container(bundle, &document, signature_text.as_deref())?;
    let mut blobs = packed;
    blobs.push(put_document(store, scope, &document)?);
    if let Some(text) = &signature_text {
        blobs.push(put_document(store, scope, text)?);
    }
    let (key, digest) = (bundle.key.digest(), manifest.digest());
    let origin = origin_of(bundle.key.kind(), &key, bundle.key.profile());
    let revision = Revision::Manifest(digest);
    let id = ModelId::new(scope, &origin, &Selection::default(), &revision);
    // Newer than every other of its key that whoever has asked may have, whatever the clock has done meanwhile.
    let scopes: Vec<Tenant> = [Some(scope), asked_by].into_iter().flatten().cloned().collect();
    let newest = records(store, &scopes, Some(&key)).first().map_or(0, |model| model.record.published_at);
    let now = if mutant("clock_trusted") { super::now() } else { super::now().max(newest.saturating_add(1)) };
    let record = ModelRecord {
        version: 1,
        id: id.clone(),
        tenant: scope.clone(),
        reference: format!("{REFERENCE}{}", BundleId::of(&document)),
        revision,
        manifest: digest,
        bytes: manifest.total_bytes(),
        files: manifest.files().len() as u64,
        published_at: now,
        asked_by: asked_by.filter(|by| *by != scope).cloned(),
        facts: OriginFacts { origin, resolved_at: now, files: Vec::new() },
    };
    let model = store.publish(Publication { record, manifest, blobs, alias: None })?;
    Ok(Held {
        id: BundleId::of(&document),
        scope: scope.clone(),
        bundle: Arc::new(bundle.clone()),
        document: document.into(),
        signature: signature.cloned(),
        tree: model.path,
        model: id,
    })
}

/// Reads a bundle of the store. Its document is held against its record here, its pack when it is unpacked.
pub(super) fn read(model: &Model) -> Result<Held, EngineError> {
    let corrupt = |detail: String| EngineError::Corrupt { what: format!("bundle {}", model.record.id), detail };
    let document = read_limited(&model.path.join(DOCUMENT), BUNDLE_DOCUMENT_LIMIT)?
        .ok_or_else(|| corrupt("its document is missing".to_owned()))?;
    let signature = read_limited(&model.path.join(SIGNATURE), SIGNATURE_LIMIT)?;
    let bundle = Bundle::parse(&document).map_err(|error| corrupt(error.to_string()))?;
    let manifest = container(&bundle, &document, signature.as_deref())?;
    if manifest.digest() != model.record.manifest {
        return Err(corrupt("its document or signature is not what its record says".to_owned()));
    }
    let signature = signature.map(|text| Signature::parse(&text)).transpose()?;
    Ok(Held {
        id: BundleId::of(&document),
        scope: model.record.tenant.clone(),
        bundle: Arc::new(bundle),
        document: document.into(),
        signature,
        tree: model.path.clone(),
        model: model.record.id.clone(),
    })
}

/// Records of bundles of these scopes, newest first; with a key only those filed under it.
pub(super) fn records(store: &Store, scopes: &[Tenant], key: Option<&Hash>) -> Vec<Model> {
    let mut found = store.models();
    found.retain(|model| {
        (scopes.contains(&model.record.tenant) || mutant("scopes_ignored"))
            && key_of(&model.record).is_some_and(|(_, of)| key.is_none_or(|key| *key == of))
    });
    found.sort_by_key(|model| std::cmp::Reverse(model.record.published_at));
    found
}

/// The bundle that a record says it is. Whether it is, [`read`] finds out.
pub(super) fn id_of(model: &Model) -> Option<BundleId> {
    model.record.reference.strip_prefix(REFERENCE)?.parse().ok()
}

/// The kind that a record is filed under.
pub(super) fn kind_of(model: &Model) -> Option<BundleKind> {
    key_of(&model.record).map(|(kind, _)| kind)
}

// === impl Held ===

impl Held {
    /// Opens its pack. What is open stays readable, whatever is evicted.
    pub(super) fn open_pack(&self) -> Result<(File, PathBuf), EngineError> {
        let path = self.tree.join(PACK);
        let file = File::open(&path).map_err(|error| EngineError::io("open", &path, error))?;
        Ok((file, path))
    }

    /// The packs that it goes to others as, and where each is.
    pub(super) fn packs(&self) -> Vec<(Pack, PathBuf)> {
        if self.bundle.pack.is_some() {
            return self.bundle.packs().into_iter().map(|pack| (pack, self.tree.join(PACK))).collect();
        }
        let files = self.files();
        let file = |entry: &ManifestEntry| (Pack { blake3: entry.blake3, size: entry.size }, files.join(&entry.path));
        self.bundle.manifest.files().iter().map(file).collect()
    }

    /// Where the files of a bundle are that is used in place.
    pub(super) fn files(&self) -> PathBuf {
        self.tree.join(FILES)
    }

    /// The place of each file's first byte in the pack.
    pub(super) fn offsets(&self) -> impl Iterator<Item = (&ManifestEntry, u64)> {
        self.bundle.manifest.files().iter().scan(0, |next, entry| {
            let at = *next;
            *next += entry.size;
            Some((entry, at))
        })
    }
}

/// A whole file of at most `limit` bytes; `None` if it is not there.
pub(super) fn read_limited(path: &Path, limit: usize) -> Result<Option<Vec<u8>>, EngineError> {
    let failed = |error| EngineError::io("read", path, error);
    let file = match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(failed)?,
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > limit {
        return Err(EngineError::refused(path.display().to_string(), format!("has more than {limit} bytes")));
    }
    Ok(Some(bytes))
}
