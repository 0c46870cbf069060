//! Making a model visible: a tree of hard links that appears whole, under a path that follows from the model's identity.
//! `cache-layout/README.md` §6 has the order and what a crash leaves.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::error::IoContext;
use super::index::{ModelEntry, ModelKey};
use super::{BlobState, Inner, Model, Publication, StoreError, now};
use crate::base::BootId;
use crate::digest::Hash;
use crate::model::{Manifest, ManifestEntry, ModelRecord, Tenant};
use crate::sys::durable::{sync_directory, temporary_name, write_atomic, write_temporary};
use crate::sys::mutant::mutant;

/// A model that is readable and not yet durable.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pending {
    pub(super) boot: BootId,
    pub(super) record: ModelRecord,
    /// The canonical JSON of the manifest.
    pub(super) manifest: String,
}

// === impl Inner ===

impl Inner {
    pub(super) fn publish_model(&self, publication: Publication) -> Result<Model, StoreError> {
        self.check_writable()?;
        // A model that is found published must not be evicted before the caller is told so, nor a tree be built of one that is
        // on its way out.
        let _alone = self.evicting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Publication { record, manifest, blobs, alias } = publication;
        let key: ModelKey = (record.tenant.clone(), record.id.clone());
        let digest = manifest.digest();
        if digest != record.manifest {
            let detail = format!("record of {} names manifest {}, given is {digest}", key.1, record.manifest);
            return Err(StoreError::Misuse { detail, blob: None });
        }
        let missing = {
            let index = self.index();
            manifest.files().iter().find(|file| index.state(&file.blake3).is_none()).map(|file| file.blake3)
        };
        if let Some(hash) = missing {
            return Err(StoreError::Missing { what: format!("blob {hash}") });
        }
        let known = {
            let index = self.index();
            // A blob that came back from quarantine is not durable, whatever the record says.
            let sealed = |file: &ManifestEntry| index.state(&file.blake3) == Some(BlobState::Sealed);
            let known = index.models.get(&key);
            known.map(|entry| {
                let durable = entry.durable && manifest.files().iter().all(sealed);
                (entry.record.manifest, entry.published, durable)
            })
        };
        if let Some((known, published, durable)) = known {
            let same = known == digest;
            if same && published && self.tree_is_right(&key, &manifest) {
                self.touch_model(&key);
                self.move_alias(&key, alias.as_deref())?;
                return self.view(&key);
            }
            if same && durable {
                // The record stands; only the tree has to come back.
                self.build_tree(&key, &manifest)?;
                if let Some(entry) = self.index().models.get_mut(&key) {
                    entry.published = true;
                }
                self.move_alias(&key, alias.as_deref())?;
                return self.view(&key);
            }
        }
        self.write_pending(&key, &record, &manifest)?;
        self.step("pending written")?;
        self.build_tree(&key, &manifest)?;
        self.step("tree in place")?;
        let entry = ModelEntry {
            record,
            manifest: Arc::new(manifest),
            durable: false,
            last_used: now(),
            pins: self.index().models.get(&key).map(|entry| entry.pins.clone()).unwrap_or_default(),
            published: true,
            building: blobs,
        };
        self.index().add_model(key.clone(), entry);
        self.move_alias(&key, alias.as_deref())?;
        self.view(&key)
    }

    fn view(&self, key: &ModelKey) -> Result<Model, StoreError> {
        self.index().view(&self.layout, key).ok_or_else(|| StoreError::Missing { what: format!("model {}", key.1) })
    }

    fn write_pending(&self, key: &ModelKey, record: &ModelRecord, manifest: &Manifest) -> Result<(), StoreError> {
        let directory = self.layout.make_tenant(&self.layout.pendings(), &key.0)?;
        let json = String::from_utf8(manifest.to_json()).unwrap_or_default();
        let pending = Pending { boot: self.options.boot.clone(), record: record.clone(), manifest: json };
        let text = serde_json::to_vec(&pending).unwrap_or_default();
        let path = self.layout.pending(&key.0, &key.1);
        let (temporary, _) =
            self.note(write_temporary(&self.layout.temporaries(), &text).at("write pending model", &directory))?;
        self.note(fs::rename(&temporary, &path).at("write pending model", &path))
    }

    /// Manifest and record of a model whose blobs are sealed, durably; then it is.
    pub(super) fn write_record(&self, key: &ModelKey) -> Result<(), StoreError> {
        let (record, manifest, used) = {
            let index = self.index();
            let Some(entry) = index.models.get(key) else { return Ok(()) };
            (entry.record.clone(), Arc::clone(&entry.manifest), entry.last_used)
        };
        if mutant("ack_before_directory_sync") {
            self.acknowledge(key);
        }
        let temporaries = self.layout.temporaries();
        let path = self.layout.manifest(&record.manifest);
        let name = format!("{}.json", record.manifest);
        self.synced(
            write_atomic(&temporaries, &self.layout.manifests(), &name, &manifest.to_json())
                .at("write manifest", &path),
        )?;
        self.step("manifest written")?;
        let directory = self.layout.make_tenant(&self.layout.models(), &key.0)?;
        let text = serde_json::to_vec(&record).unwrap_or_default();
        let path = self.layout.record(&key.0, &key.1);
        let name = format!("{}.json", key.1);
        self.synced(write_atomic(&temporaries, &directory, &name, &text).at("write record", &path))?;
        set_last_used(&path, used);
        self.step("record written")?;
        // Left over it is removed at the next start.
        let _ = fs::remove_file(self.layout.pending(&key.0, &key.1));
        self.acknowledge(key);
        Ok(())
    }

    fn acknowledge(&self, key: &ModelKey) {
        if let Some(entry) = self.index().models.get_mut(key) {
            entry.durable = true;
            entry.building.clear();
        }
    }

    /// Builds the tree of a model in `tmp/` and renames it into place, replacing what is there.
    pub(super) fn build_tree(&self, key: &ModelKey, manifest: &Manifest) -> Result<(), StoreError> {
        let parent = self.open_scope(&self.layout.trees(), &key.0)?;
        let (stage, path) = (self.layout.temporaries().join(temporary_name()), self.layout.tree(&key.0, &key.1));
        let in_place = mutant("tree_built_in_place");
        let stage = if in_place { path.clone() } else { stage };
        let outcome = self.note(self.link_files(&stage, manifest)).and_then(|()| {
            if in_place {
                return Ok(());
            }
            self.withdraw_tree(key)?;
            self.note(fs::rename(&stage, &path).at("publish tree", &path))
        });
        if let Err(error) = outcome {
            remove_tree(&stage);
            return Err(error);
        }
        // Renaming needs write permission on the directory itself where the writer is not root, so this comes last.
        self.note(fs::set_permissions(&path, fs::Permissions::from_mode(0o555)).at("set permissions of tree", &path))?;
        // A hint of order only: a tree is derived, and rebuilt when it is missing.
        let _ = sync_directory(&parent);
        Ok(())
    }

    fn link_files(&self, stage: &Path, manifest: &Manifest) -> Result<(), StoreError> {
        fs::create_dir(stage).at("make tree", stage)?;
        let mut directories: BTreeSet<PathBuf> = BTreeSet::new();
        for file in manifest.files() {
            let mut above = file.path.parent();
            while let Some(directory) = above.filter(|directory| !directories.contains(&stage.join(directory))) {
                fs::create_dir_all(stage.join(directory)).at("make tree", &stage.join(directory))?;
                directories.insert(stage.join(directory));
                above = directory.rsplit_once('/').map(|(above, _)| above);
            }
            self.link_blob(&file.blake3, &stage.join(&file.path))?;
        }
        for directory in directories {
            fs::set_permissions(&directory, fs::Permissions::from_mode(0o555))
                .at("set permissions of tree", &directory)?;
        }
        Ok(())
    }

    fn link_blob(&self, hash: &Hash, target: &Path) -> Result<(), StoreError> {
        // Sealing may rename the blob between looking its path up and linking it; then it has its final name.
        for _ in 0..2 {
            let home = self.index().blobs.get(hash).map(|blob| blob.home);
            let Some(home) = home else { break };
            let source = home.path(&self.layout, hash);
            match fs::hard_link(&source, target) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // Sealed while we looked: the index says so in a moment; the final name is there already.
                    if fs::hard_link(self.layout.blob(hash), target).is_ok() {
                        return Ok(());
                    }
                }
                outcome => return outcome.at("link blob into tree", target),
            }
        }
        Err(StoreError::Missing { what: format!("blob {hash}") })
    }

    /// Takes a tree out of sight and removes it.
    pub(super) fn withdraw_tree(&self, key: &ModelKey) -> Result<(), StoreError> {
        if let Some(aside) = self.move_tree_aside(key)? {
            remove_tree(&aside);
        }
        Ok(())
    }

    /// Renames a tree into `tmp/`; `None` if there is none.
    pub(super) fn move_tree_aside(&self, key: &ModelKey) -> Result<Option<PathBuf>, StoreError> {
        let path = self.layout.tree(&key.0, &key.1);
        let aside = self.layout.temporaries().join(temporary_name());
        // An unprivileged writer may rename only a directory that it may write to.
        let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o755));
        match fs::rename(&path, &aside) {
            Ok(()) => Ok(Some(aside)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => self.note(Err(error).at("withdraw tree", &path)),
        }
    }

    /// Whether the tree has exactly the files of the manifest, each with the right size. Content is proved elsewhere.
    pub(super) fn tree_is_right(&self, key: &ModelKey, manifest: &Manifest) -> bool {
        let path = self.layout.tree(&key.0, &key.1);
        let whole = manifest.files().iter().all(|file| {
            fs::symlink_metadata(path.join(&file.path)).is_ok_and(|found| found.is_file() && found.len() == file.size)
        });
        whole && count_files(&path) == Some(manifest.files().len())
    }

    fn move_alias(&self, key: &ModelKey, alias: Option<&str>) -> Result<(), StoreError> {
        let Some(alias) = alias else { return Ok(()) };
        let parent = self.open_scope(&self.layout.all_aliases(), &key.0)?;
        let (temporary, path) = (self.layout.temporaries().join(temporary_name()), parent.join(alias));
        let target = Path::new("../../trees").join(key.0.as_str()).join(key.1.as_str());
        self.note(std::os::unix::fs::symlink(target, &temporary).at("make alias", &temporary))?;
        self.note(fs::rename(&temporary, &path).at("move alias", &path))
    }

    pub(super) fn touch_model(&self, key: &ModelKey) {
        let at = now();
        if let Some(entry) = self.index().models.get_mut(key) {
            entry.last_used = at;
        }
        set_last_used(&self.layout.record(&key.0, &key.1), at);
    }

    /// Takes the trees that link `hash` away; their records stay, so that the next fetch completes them.
    pub(super) fn withdraw_models_with(&self, hash: &Hash) -> Result<(), StoreError> {
        let keys: Vec<ModelKey> = {
            let mut index = self.index();
            let mut keys = Vec::new();
            for (key, entry) in &mut index.models {
                if entry.manifest.files().iter().any(|file| file.blake3 == *hash) {
                    entry.published = false;
                    keys.push(key.clone());
                }
            }
            keys
        };
        keys.iter().try_for_each(|key| self.withdraw_tree(key))
    }
}

/// The last use is the record's modification time. Losing it costs a worse choice at eviction, nothing more.
fn set_last_used(record: &Path, at: u64) {
    if let Ok(file) = fs::File::options().write(true).open(record) {
        let _ = file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(at));
    }
}

/// The last use as the record's modification time has it.
pub(super) fn last_used(record: &Path) -> u64 {
    fs::metadata(record).map_or(0, |metadata| u64::try_from(metadata.mtime()).unwrap_or(0))
}

/// Removes a tree whose directories are read-only. What cannot be removed now is swept at the next start.
pub(super) fn remove_tree(path: &Path) {
    let mut waiting = vec![path.to_owned()];
    while let Some(directory) = waiting.pop() {
        let _ = fs::set_permissions(&directory, fs::Permissions::from_mode(0o755));
        let entries = fs::read_dir(&directory).into_iter().flatten().filter_map(Result::ok);
        waiting.extend(
            entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()),
        );
    }
    let _ = fs::remove_dir_all(path);
}

/// Number of regular files below `path`; `None` if anything else but directories lies there.
fn count_files(path: &Path) -> Option<usize> {
    let (mut count, mut waiting) = (0, vec![path.to_owned()]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).ok()? {
            let entry = entry.ok()?;
            let kind = entry.file_type().ok()?;
            if kind.is_dir() {
                waiting.push(entry.path());
            } else if kind.is_file() {
                count += 1;
            } else {
                return None;
            }
        }
    }
    Some(count)
}

/// A tenant's models in `pending/` or `models/`, with their file.
pub(super) fn records(parent: &Path) -> Result<Vec<(Tenant, crate::model::ModelId, PathBuf)>, StoreError> {
    let mut found = Vec::new();
    for (tenant, directory) in super::layout::tenants(parent)? {
        for (name, path) in super::layout::names(&directory)? {
            if let Some(id) = super::layout::parse_record(&name) {
                found.push((tenant.clone(), id, path));
            }
        }
    }
    Ok(found)
}
