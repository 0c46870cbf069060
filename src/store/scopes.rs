//! What belongs to which scope, and whose trees may be entered by whom. Trees of public content are everybody's; those of any other scope are open to the users
//! and groups that the daemon names for it, by an access list on the scope's directory, and to nobody else. Where the file
//! system has no access lists the directory is its owner's alone: others get the files streamed, after the same question.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::error::IoContext;
use super::index::ModelEntry;
use super::{Inner, Store, StoreError};
use crate::digest::Hash;
use crate::model::{Manifest, OriginId, Provenance, Tenant};
use crate::sys::acl::admit_only;

/// Who may enter the trees of a scope, beside the daemon's own user and root.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// Users.
    pub uids: Vec<u32>,
    /// Groups.
    pub gids: Vec<u32>,
}

/// Scopes that have somebody named for them.
pub type Admissions = BTreeMap<Tenant, Admitted>;

// === impl Store ===

impl Store {
    /// The models of a scope that name a blob.
    #[must_use]
    pub fn naming(&self, scope: &Tenant, hash: &Hash) -> Vec<Provenance> {
        let index = self.inner.index();
        if !index.is_named_in(scope, hash) {
            return Vec::new();
        }
        let names = |manifest: &Manifest| manifest.files().iter().any(|file| file.blake3 == *hash);
        let of_scope = index.models.iter().filter(|((of, _), _)| of == scope);
        of_scope.filter(|(_, entry)| names(&entry.manifest)).map(|(_, entry)| entry.record.provenance()).collect()
    }

    /// The models that have this manifest, whosever they are.
    #[must_use]
    pub fn with_manifest(&self, digest: &Hash) -> Vec<Provenance> {
        let index = self.inner.index();
        let having = index.models.values().filter(|entry| entry.record.manifest == *digest);
        having.map(|entry| entry.record.provenance()).collect()
    }

    /// Bytes of the models that count against a scope's quota.
    #[must_use]
    pub fn charged_to(&self, scope: &Tenant) -> u64 {
        let index = self.inner.index();
        let charged = index.models.values().filter(|ModelEntry { record, .. }| record.charged_to() == scope);
        charged.map(|entry| entry.record.bytes).sum()
    }

    /// Takes away the trees of what a scope has from an origin that no longer lets it read. Records and blobs stay: who is let
    /// in again finds them.
    ///
    /// # Errors
    /// I/O.
    pub fn withdraw(&self, scope: &Tenant, origin: &OriginId) -> Result<(), StoreError> {
        let keys: Vec<_> = {
            let mut index = self.inner.index();
            let theirs =
                index.models.iter_mut().filter(|((of, _), entry)| of == scope && entry.record.facts.origin == *origin);
            theirs
                .map(|(key, entry)| {
                    entry.published = false;
                    key.clone()
                })
                .collect()
        };
        keys.iter().try_for_each(|key| self.inner.withdraw_tree(key))
    }
}

// === impl Inner ===

impl Inner {
    /// Makes the directory of a scope below `trees/` or `aliases/`, open to whom it is meant for.
    pub(super) fn open_scope(&self, parent: &Path, scope: &Tenant) -> Result<PathBuf, StoreError> {
        let path = self.layout.make_tenant(parent, scope)?;
        if scope.is_open() {
            return Ok(path);
        }
        let found = fs::metadata(&path).at("read scope directory", &path)?.permissions().mode() & 0o777;
        // Closed first: between making it and its list there must be no moment in which others may enter.
        if found & 0o007 != 0 {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).at("close scope directory", &path)?;
        }
        let admitted = self.options.admissions.get(scope).cloned().unwrap_or_default();
        let uids: Vec<u32> = admitted.uids.iter().copied().chain(scope.uid()).collect();
        match admit_only(&path, &uids, &admitted.gids) {
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).at("close scope directory", &path)?;
            }
            outcome => outcome.at("set who may enter", &path)?,
        }
        Ok(path)
    }

    /// At start, for who may have been named since.
    pub(super) fn open_scopes(&self) -> Result<(), StoreError> {
        for parent in [self.layout.trees(), self.layout.all_aliases()] {
            for (scope, _) in super::layout::tenants(&parent)? {
                self.open_scope(&parent, &scope)?;
            }
        }
        Ok(())
    }
}
