//! Where things lie below the root, and which names are ours. Every path that the store opens is made here from typed parts;
//! every name read from disk is parsed here, and what has not our form is left alone.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::error::IoContext;
use crate::digest::{GROUP_BYTES, Hash};
use crate::model::{FlightKey, ModelId, Tenant};

/// The format that this build reads and writes.
pub(super) const VERSION: u32 = 1;

/// Paths below one root.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    root: PathBuf,
}

/// Content of `FORMAT`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Format {
    format: String,
    version: u32,
    group_bytes: u64,
}

/// Only what decides whether the rest can be read.
#[derive(Deserialize)]
struct FormatVersion {
    format: String,
    version: u32,
}

/// Directories and who may look into them. Readers of trees need to pass through; nobody else needs the rest.
const DIRECTORIES: [(&str, u32); 13] = [
    ("blobs", 0o700),
    ("outboards", 0o700),
    ("partials", 0o700),
    ("received", 0o700),
    ("manifests", 0o700),
    ("models", 0o700),
    ("pending", 0o700),
    ("trees", 0o755),
    ("aliases", 0o755),
    ("pins", 0o700),
    ("jobs", 0o700),
    ("engines", 0o700),
    ("quarantine", 0o700),
];

// === impl Layout ===

impl Layout {
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Checks that the root is a store of this version, or may become one, and writes nothing. Returns whether it is one.
    pub(super) fn recognise(&self) -> Result<bool, StoreError> {
        let format = self.root.join("FORMAT");
        match fs::read(&format) {
            Ok(text) => self.check_format(&text).map(|()| true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A root is ours when it is empty, or holds what an interrupted first start leaves: the lock and `tmp`.
                let strange = fs::read_dir(&self.root)
                    .at("list store directory", &self.root)?
                    .filter_map(Result::ok)
                    .any(|entry| !matches!(entry.file_name().to_str(), Some("lock" | "tmp" | "lost+found")));
                if strange { Err(StoreError::NotAStore { root: self.root.clone() }) } else { Ok(false) }
            }
            Err(error) => Err(error).at("read format", &format),
        }
    }

    /// Makes a root, or checks the one that is there. The lock is held.
    pub(super) fn prepare(&self) -> Result<(), StoreError> {
        make_directory(&self.root, 0o755).at("make store directory", &self.root)?;
        if !self.recognise()? {
            let format = self.root.join("FORMAT");
            make_directory(&self.temporaries(), 0o700).at("make directory", &self.temporaries())?;
            let text = Format { format: "preheat-store".to_owned(), version: VERSION, group_bytes: GROUP_BYTES };
            let text = serde_json::to_vec(&text).unwrap_or_default();
            crate::sys::durable::write_atomic(&self.temporaries(), &self.root, "FORMAT", &text)
                .at("write format", &format)?;
        }
        for (name, mode) in DIRECTORIES.into_iter().chain([("tmp", 0o700)]) {
            let path = self.root.join(name);
            if !make_directory(&path, mode).at("make directory", &path)? {
                // Knowing a digest opens nothing, in stores that were made with wider modes as well.
                narrow(&path, mode).at("set permissions", &path)?;
            }
        }
        crate::sys::durable::sync_directory(&self.root).at("sync store directory", &self.root)
    }

    /// Checks `FORMAT` without writing anything.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        let format = self.root.join("FORMAT");
        match fs::read(&format) {
            Ok(text) => self.check_format(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::NoStore { root: self.root.clone() })
            }
            Err(error) => Err(error).at("read format", &format),
        }
    }

    fn check_format(&self, text: &[u8]) -> Result<(), StoreError> {
        let not_ours = || StoreError::NotAStore { root: self.root.clone() };
        let found: FormatVersion = serde_json::from_slice(text).map_err(|_| not_ours())?;
        if found.format != "preheat-store" {
            return Err(not_ours());
        }
        if found.version > VERSION {
            return Err(StoreError::NewerFormat { root: self.root.clone(), found: found.version, known: VERSION });
        }
        let found: Format = serde_json::from_slice(text).map_err(|_| not_ours())?;
        if found.group_bytes == GROUP_BYTES { Ok(()) } else { Err(not_ours()) }
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(super) fn boot(&self) -> PathBuf {
        self.root.join("boot")
    }

    pub(super) fn temporaries(&self) -> PathBuf {
        self.root.join("tmp")
    }

    pub(super) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(super) fn blob(&self, hash: &Hash) -> PathBuf {
        self.blobs().join(hash.to_string())
    }

    pub(super) fn outboards(&self) -> PathBuf {
        self.root.join("outboards")
    }

    pub(super) fn outboard(&self, hash: &Hash) -> PathBuf {
        self.outboards().join(hash.to_string())
    }

    pub(super) fn catalog(&self) -> PathBuf {
        self.root.join("catalog.log")
    }

    pub(super) fn partials(&self) -> PathBuf {
        self.root.join("partials")
    }

    pub(super) fn partial(&self, key: &FlightKey) -> PathBuf {
        self.partials().join(key.to_string())
    }

    pub(super) fn received(&self) -> PathBuf {
        self.root.join("received")
    }

    pub(super) fn received_blob(&self, key: &FlightKey, hash: &Hash) -> PathBuf {
        self.received().join(format!("{key}.{hash}"))
    }

    pub(super) fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    pub(super) fn manifest(&self, digest: &Hash) -> PathBuf {
        self.manifests().join(format!("{digest}.json"))
    }

    pub(super) fn models(&self) -> PathBuf {
        self.root.join("models")
    }

    pub(super) fn record(&self, tenant: &Tenant, id: &ModelId) -> PathBuf {
        self.models().join(tenant.as_str()).join(format!("{id}.json"))
    }

    pub(super) fn pendings(&self) -> PathBuf {
        self.root.join("pending")
    }

    pub(super) fn pending(&self, tenant: &Tenant, id: &ModelId) -> PathBuf {
        self.pendings().join(tenant.as_str()).join(format!("{id}.json"))
    }

    pub(super) fn trees(&self) -> PathBuf {
        self.root.join("trees")
    }

    pub(super) fn tree(&self, tenant: &Tenant, id: &ModelId) -> PathBuf {
        self.trees().join(tenant.as_str()).join(id.as_str())
    }

    pub(super) fn all_aliases(&self) -> PathBuf {
        self.root.join("aliases")
    }

    pub(super) fn jobs(&self) -> PathBuf {
        self.root.join("jobs")
    }

    pub(super) fn engines(&self) -> PathBuf {
        self.root.join("engines")
    }

    pub(super) fn pins(&self) -> PathBuf {
        self.root.join("pins")
    }

    pub(super) fn pin(&self, tenant: &Tenant, id: &ModelId, pin: &str) -> PathBuf {
        self.pins().join(tenant.as_str()).join(format!("{id}.{pin}.json"))
    }

    pub(super) fn quarantine(&self) -> PathBuf {
        self.root.join("quarantine")
    }

    /// Makes a tenant's directory below `parent`, durably.
    pub(super) fn make_tenant(&self, parent: &Path, tenant: &Tenant) -> Result<PathBuf, StoreError> {
        let path = parent.join(tenant.as_str());
        if make_directory(&path, 0o755).at("make directory", &path)? {
            crate::sys::durable::sync_directory(parent).at("sync directory", parent)?;
        }
        Ok(path)
    }
}

/// Makes a directory with exactly this mode, whatever the umask. Says whether it was new.
fn make_directory(path: &Path, mode: u32) -> io::Result<bool> {
    match fs::DirBuilder::new().mode(mode).create(path) {
        Ok(()) => {
            use std::os::unix::fs::PermissionsExt;
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            // The root may lie in directories that do not exist yet.
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::DirBuilder::new().mode(mode).create(path)?;
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

/// Takes away what a mode does not give.
fn narrow(path: &Path, mode: u32) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let found = fs::metadata(path)?.permissions().mode() & 0o777;
    if found & !mode == 0 { Ok(()) } else { fs::set_permissions(path, fs::Permissions::from_mode(found & mode)) }
}

/// Names in a directory, each with its full path; an absent directory has none.
pub(super) fn names(directory: &Path) -> Result<Vec<(String, PathBuf)>, StoreError> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).at("list directory", directory),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.at("list directory", directory)?;
        // A name that is not UTF-8 is none of ours; it is kept as text that parses as nothing.
        found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
    }
    found.sort();
    Ok(found)
}

/// Tenants that have a directory below `parent`.
pub(super) fn tenants(parent: &Path) -> Result<Vec<(Tenant, PathBuf)>, StoreError> {
    let found = names(parent)?;
    Ok(found.into_iter().filter_map(|(name, path)| Some((Tenant::try_from(name).ok()?, path))).collect())
}

/// `<model id>.json`
pub(super) fn parse_record(name: &str) -> Option<ModelId> {
    name.strip_suffix(".json")?.parse().ok()
}

/// `<flight key>.<blake3>`
pub(super) fn parse_received(name: &str) -> Option<(FlightKey, Hash)> {
    let (key, hash) = name.split_once('.')?;
    Some((key.parse().ok()?, hash.parse().ok()?))
}

/// `<model id>.<pin id>.json`
pub(super) fn parse_pin(name: &str) -> Option<(ModelId, String)> {
    let (id, pin) = name.strip_suffix(".json")?.rsplit_once('.')?;
    Some((id.parse().ok()?, pin.to_owned()))
}

/// `<blake3>.<unix ms>`
pub(super) fn parse_quarantined(name: &str) -> Option<(Hash, u64)> {
    let (hash, at) = name.split_once('.')?;
    Some((hash.parse().ok()?, at.parse().ok()?))
}
