//! Opening a root: what an earlier process left, clean or not, becomes the index. `cache-layout/README.md` §8.
//!
//! Idempotent, and bounded by the number of files: nothing is hashed here. Whatever is in doubt is marked suspect and hashed
//! before it is used; whatever does not parse is left alone and told by `verify`.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::catalog::Catalog;
use super::error::IoContext;
use super::index::{Blob, Home, Index, ModelEntry, ModelKey};
use super::layout::{Layout, names, parse_quarantined, parse_received, parse_record};
use super::publish::{Pending, last_used, records, remove_tree};
use super::space::cost;
use super::{Options, StoreError, journal, now, pins};
use crate::base::BootId;
use crate::digest::{GroupCv, Hash, merge_root};
use crate::model::{DOCUMENT_LIMIT, FlightKey, Manifest, ModelRecord};
use crate::sys::mutant::mutant;

/// Largest record or pending file: a manifest twice, with facts.
const RECORD_LIMIT: u64 = 4 * DOCUMENT_LIMIT as u64;

/// Content of `boot`.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct BootFile {
    boot: BootId,
    clean: bool,
}

/// Notes the boot, and whether everything was flushed.
pub(super) fn write_boot(layout: &Layout, boot: &BootId, clean: bool) -> Result<(), StoreError> {
    let text = serde_json::to_vec(&BootFile { boot: boot.clone(), clean }).unwrap_or_default();
    crate::sys::durable::write_atomic(&layout.temporaries(), layout.root(), "boot", &text)
        .at("write boot", &layout.boot())
}

/// Rebuilds the index. The lock is held.
pub(super) fn recover(layout: &Layout, options: &Options) -> Result<(Index, Catalog), StoreError> {
    if !mutant("temporaries_not_swept") {
        for (_, path) in names(&layout.temporaries())? {
            sweep(&path);
        }
    }
    let boot: Option<BootFile> = fs::read(layout.boot()).ok().and_then(|text| serde_json::from_slice(&text).ok());
    let unsynced_survives =
        boot.is_some_and(|boot| boot.clean || boot.boot == options.boot) || mutant("received_kept_across_boot");
    // From here on a crash of this process is an unclean stop of this boot.
    write_boot(layout, &options.boot, false)?;
    let mut index = Index::default();
    sealed_blobs(layout, &mut index)?;
    quarantined(layout, &mut index)?;
    let pending = if unsynced_survives { pending_models(layout, options)? } else { drop_unsynced(layout)? };
    received(layout, &mut index)?;
    partials(layout, options, &mut index, &pending)?;
    let (catalog, lines) =
        Catalog::open(layout, |line| index.blobs.get(&line.blob).is_some_and(|blob| blob.size == line.size))?;
    for line in lines {
        index.known.learn_key(line.key, line.blob);
        if let Some(sha256) = line.sha256 {
            index.known.learn_sha256(&sha256, line.blob);
        }
    }
    models(layout, &mut index)?;
    for (key, record, manifest) in pending {
        let whole = manifest.files().iter().all(|file| index.blobs.contains_key(&file.blake3));
        match index.models.get_mut(&key) {
            // A durable model some of whose blobs were fetched anew, and are not durable.
            Some(known) if whole => known.durable = false,
            Some(_) => {
                let _ = fs::remove_file(layout.pending(&key.0, &key.1));
            }
            None => {
                let entry = entry(record, Arc::new(manifest), false, now());
                index.add_model(key, entry);
            }
        }
    }
    pins::load(layout, &mut index)?;
    Ok((index, catalog))
}

fn sweep(path: &Path) {
    if path.is_dir() {
        remove_tree(path);
    } else {
        // What cannot be removed now is tried again at the next start.
        let _ = fs::remove_file(path);
    }
}

fn entry(record: ModelRecord, manifest: Arc<Manifest>, durable: bool, last_used: u64) -> ModelEntry {
    ModelEntry { record, manifest, durable, last_used, pins: Vec::new(), published: false, building: Vec::new() }
}

fn sealed_blobs(layout: &Layout, index: &mut Index) -> Result<(), StoreError> {
    for (name, path) in names(&layout.blobs())? {
        let Ok(hash) = name.parse::<Hash>() else { continue };
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if metadata.is_file() {
            index.add_blob(hash, Blob::new(metadata.len(), Home::Sealed, None, false));
        }
    }
    // An outboard whose blob did not get its name.
    for (name, path) in names(&layout.outboards())? {
        if name.parse::<Hash>().is_ok_and(|hash| !index.blobs.contains_key(&hash)) {
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

fn quarantined(layout: &Layout, index: &mut Index) -> Result<(), StoreError> {
    for (name, path) in names(&layout.quarantine())? {
        if parse_quarantined(&name).is_some() {
            index.account.quarantined += cost(fs::metadata(&path).map_or(0, |metadata| metadata.len()));
        }
    }
    Ok(())
}

type PendingModels = Vec<(ModelKey, ModelRecord, Manifest)>;

/// Another boot: what was not synced may be anything.
fn drop_unsynced(layout: &Layout) -> Result<PendingModels, StoreError> {
    for (tenant, id, path) in records(&layout.pendings())? {
        // The tree first: it may link bytes that the power cut has torn. A tree with a record is checked later.
        if !layout.record(&tenant, &id).exists() {
            remove_tree(&layout.tree(&tenant, &id));
        }
        fs::remove_file(&path).at("remove pending model", &path)?;
    }
    for (_, path) in names(&layout.received())? {
        fs::remove_file(&path).at("remove unsynced blob", &path)?;
    }
    Ok(Vec::new())
}

fn pending_models(layout: &Layout, options: &Options) -> Result<PendingModels, StoreError> {
    let mut found = Vec::new();
    for (tenant, id, path) in records(&layout.pendings())? {
        let read = read_limited(&path).and_then(|text| serde_json::from_slice::<Pending>(&text).ok());
        let parsed = read.and_then(|pending| {
            let manifest = Manifest::parse(pending.manifest.as_bytes()).ok()?;
            let fits = manifest.digest() == pending.record.manifest
                && pending.record.id == id
                && pending.record.tenant == tenant
                // A clean stop leaves none; one of another boot was missed by an interrupted recovery.
                && (pending.boot == options.boot || mutant("received_kept_across_boot"));
            fits.then_some((pending.record, manifest))
        });
        match parsed {
            Some((record, manifest)) => found.push(((tenant, id), record, manifest)),
            // Torn by the kill that ended its writer: the fetch is repeated.
            None => {
                if !layout.record(&tenant, &id).exists() {
                    remove_tree(&layout.tree(&tenant, &id));
                }
                fs::remove_file(&path).at("remove pending model", &path)?;
            }
        }
    }
    Ok(found)
}

fn received(layout: &Layout, index: &mut Index) -> Result<(), StoreError> {
    for (name, path) in names(&layout.received())? {
        let Some((key, hash)) = parse_received(&name) else { continue };
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        if index.blobs.contains_key(&hash) {
            let _ = fs::remove_file(&path);
        } else {
            index.add_blob(hash, Blob::new(metadata.len(), Home::Received(key), None, true));
        }
        index.known.learn_key(key, hash);
    }
    Ok(())
}

/// Partials become resumable transfers; those that a pending model needs and that are complete become suspect blobs.
fn partials(layout: &Layout, options: &Options, index: &mut Index, pending: &PendingModels) -> Result<(), StoreError> {
    let wanted: std::collections::HashSet<Hash> =
        pending.iter().flat_map(|(_, _, manifest)| manifest.files().iter().map(|file| file.blake3)).collect();
    for (name, path) in names(&layout.partials())? {
        let Ok(key) = name.parse::<FlightKey>() else { continue };
        let data = fs::symlink_metadata(path.join("data")).ok().filter(fs::Metadata::is_file);
        let Some(size) = data.map(|metadata| metadata.len()) else {
            // Its data has been sealed and named, or was never made.
            sweep(&path);
            continue;
        };
        match complete(&path, key, size, options) {
            Some((hash, cvs)) if wanted.contains(&hash) && !index.blobs.contains_key(&hash) => {
                let cvs = (cvs.len() > 1).then(|| Arc::from(cvs));
                index.add_blob(hash, Blob::new(size, Home::Partial(key), cvs, true));
                index.known.learn_key(key, hash);
            }
            _ => index.add_partial(key, size, false),
        }
    }
    Ok(())
}

/// The root that a partial's journal claims, if it claims every group.
fn complete(directory: &Path, key: FlightKey, size: u64, options: &Options) -> Option<(Hash, Vec<GroupCv>)> {
    let journal = directory.join("journal");
    if fs::metadata(&journal).ok()?.len() > journal::JOURNAL_LIMIT {
        return None;
    }
    let claims = journal::read(&fs::read(&journal).ok()?, key, size, &options.boot)?;
    let cvs: Vec<GroupCv> = claims.kept.into_iter().collect::<Option<_>>()?;
    Some((merge_root(&cvs)?, cvs))
}

fn models(layout: &Layout, index: &mut Index) -> Result<(), StoreError> {
    let mut named: std::collections::HashMap<Hash, Arc<Manifest>> = std::collections::HashMap::new();
    for (tenant, id, path) in records(&layout.models())? {
        let record = read_limited(&path).and_then(|text| serde_json::from_slice::<ModelRecord>(&text).ok());
        let Some(record) = record.filter(|record| record.id == id && record.tenant == tenant) else { continue };
        let manifest = match named.get(&record.manifest) {
            Some(manifest) => Some(Arc::clone(manifest)),
            None => read_limited(&layout.manifest(&record.manifest))
                .and_then(|text| Manifest::parse(&text).ok())
                .filter(|manifest| manifest.digest() == record.manifest)
                .map(Arc::new),
        };
        let Some(manifest) = manifest else { continue };
        named.insert(record.manifest, Arc::clone(&manifest));
        let used = last_used(&path);
        index.add_model((tenant, id), entry(record, manifest, true, used));
    }
    // A manifest that no record names: its record was evicted, or never written.
    for (name, path) in names(&layout.manifests())? {
        let digest = name.strip_suffix(".json").and_then(|name| name.parse::<Hash>().ok());
        if digest.is_some_and(|digest| !named.contains_key(&digest)) && parse_record(&name).is_none() {
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

/// Reads a file of bounded size; unreadable or larger is as good as absent.
pub(super) fn read_limited(path: &Path) -> Option<Vec<u8>> {
    let fits = fs::metadata(path).is_ok_and(|metadata| metadata.len() <= RECORD_LIMIT);
    if fits { fs::read(path).ok() } else { None }
}

impl super::Inner {
    /// After the index is there: trees that are right stand, others are rebuilt where their blobs allow it, and trees of no
    /// model go.
    pub(super) fn recover_trees(&self) -> Result<(), StoreError> {
        let models: Vec<(ModelKey, Arc<Manifest>, bool)> = {
            let index = self.index();
            let all_here =
                |manifest: &Manifest| manifest.files().iter().all(|file| index.blobs.contains_key(&file.blake3));
            index
                .models
                .iter()
                .map(|(key, entry)| (key.clone(), Arc::clone(&entry.manifest), all_here(&entry.manifest)))
                .collect()
        };
        for (key, manifest, here) in &models {
            if !here {
                self.withdraw_tree(key)?;
                continue;
            }
            if !self.tree_is_right(key, manifest) {
                match self.build_tree(key, manifest) {
                    Ok(()) => {}
                    Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::StorageFull => continue,
                    Err(error) => return Err(error),
                }
            }
            if let Some(entry) = self.index().models.get_mut(key) {
                entry.published = true;
            }
        }
        // Pending models that lost a blob have no record to come back from.
        for (key, _, _) in models.iter().filter(|(_, _, here)| !here) {
            let durable = self.index().models.get(key).is_some_and(|entry| entry.durable);
            if !durable {
                self.index().remove_model(key);
                let _ = fs::remove_file(self.layout.pending(&key.0, &key.1));
            }
        }
        for (tenant, directory) in super::layout::tenants(&self.layout.trees())? {
            for (name, path) in names(&directory)? {
                let key = name.parse().ok().map(|id| (tenant.clone(), id));
                if key.is_some_and(|key| !self.index().models.contains_key(&key)) {
                    remove_tree(&path);
                }
            }
        }
        Ok(())
    }
}
