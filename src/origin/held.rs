//! A directory that holds what another origin has: taken in, it is that origin's model, and nothing is fetched.
//!
//! The cache of the hub's own tools is such a directory. A snapshot `models--org--name/snapshots/<commit>` is links to
//! `models--org--name/blobs/<etag>`, where the etag of a large file is its SHA-256 and that of a small one its git blob name. So a
//! link that leaves the directory is followed exactly there, and the name that it ends at is what its bytes are held against.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::file::{self, FileOrigin, Stamp, blocking, io, walk};
use super::selected::{Listed, choose};
use crate::digest::{Algorithm, Declared};
use crate::model::source::{Origin, RangeBody, RangeSource, RemoteFile, Resolution, SourceError, Validator};
use crate::model::{FilePath, OriginId, Reference, Revision};

/// What of an origin is in a directory.
#[derive(Debug)]
pub struct Held {
    place: Place,
    origin: OriginId,
    files: FileOrigin,
}

/// The directory.
#[derive(Clone, Debug)]
struct Place {
    directory: PathBuf,
    /// Of a snapshot: where its links lead.
    snapshot: Option<Snapshot>,
    files_max: usize,
}

/// A snapshot of a hub's cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// `org/name`.
    pub repository: String,
    /// 40 hex digits.
    pub commit: String,
    /// `models--org--name/blobs`.
    blobs: PathBuf,
}

/// Folders of a snapshot that are looked into.
const DEPTH: usize = 32;

// === impl Snapshot ===

impl Snapshot {
    /// Whether a directory is a snapshot, by its place.
    #[must_use]
    pub fn of(directory: &Path) -> Option<Self> {
        let place = directory.canonicalize().ok()?;
        let commit = place.file_name()?.to_str()?.to_owned();
        let snapshots = place.parent()?;
        let model = snapshots.parent()?;
        let name = model.file_name()?.to_str()?.strip_prefix("models--")?;
        let is_commit = Revision::try_from(commit.clone()).is_ok();
        if snapshots.file_name()? != "snapshots" || !is_commit {
            return None;
        }
        Some(Self { repository: name.replacen("--", "/", 1), commit, blobs: model.join("blobs") })
    }
}

// === impl Held ===

impl Held {
    /// What `origin` has, as `directory` holds it.
    #[must_use]
    pub fn new(directory: &Path, origin: OriginId) -> Self {
        let files_max = super::Config::default().files_max;
        let directory = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let place = Place { snapshot: Snapshot::of(&directory), directory, files_max };
        Self { place, origin, files: FileOrigin::own(files_max) }
    }

    /// The same file, as the local file system has it.
    fn here(&self, file: &RemoteFile) -> RemoteFile {
        let locator = self.place.directory.join(&file.locator).to_string_lossy().into_owned();
        // What pins it at the hub says nothing here; its digest does.
        let validator = if file.declared.is_empty() { file.validator.clone() } else { Validator::None };
        RemoteFile { locator, validator, ..file.clone() }
    }
}

// === impl Place ===

impl Place {
    /// The files, and of each what its name says of its bytes. Blocking.
    fn look(&self) -> Result<(Vec<Listed>, HashMap<String, Declared>), SourceError> {
        let Some(snapshot) = &self.snapshot else {
            let walked = walk(&self.directory, self.files_max)?;
            let listed = walked.into_iter().map(|(path, metadata)| Listed {
                locator: path.to_string(),
                path,
                size: metadata.len(),
                validator: file::validator(&Stamp::of(&metadata)),
            });
            return Ok((listed.collect(), HashMap::new()));
        };
        let (mut listed, mut declared) = (Vec::new(), HashMap::new());
        let mut waiting = vec![(self.directory.clone(), 0)];
        while let Some((folder, depth)) = waiting.pop() {
            for entry in std::fs::read_dir(&folder).map_err(|error| io(&folder, &error))? {
                let path = entry.map_err(|error| io(&folder, &error))?.path();
                let metadata = std::fs::symlink_metadata(&path).map_err(|error| io(&path, &error))?;
                if metadata.is_dir() {
                    if depth >= DEPTH {
                        return Err(refused(&path, "is more than 32 directories deep"));
                    }
                    waiting.push((path, depth + 1));
                    continue;
                }
                let name = path.strip_prefix(&self.directory).unwrap_or(&path).to_str();
                let name = name.ok_or_else(|| refused(&path, "has a name that is not UTF-8"))?;
                let name = FilePath::new(name).map_err(|error| refused(&path, &error.to_string()))?;
                let (size, digest) = snapshot.blob(&path, &metadata)?;
                let own = || file::validator(&Stamp::of(&metadata));
                let validator = digest.as_ref().map_or_else(own, at_hub);
                declared.extend(digest.map(|digest| (name.to_string(), digest)));
                listed.push(Listed { locator: name.to_string(), path: name, size, validator });
                if listed.len() > self.files_max {
                    return Err(refused(&self.directory, &format!("has more than {} files", self.files_max)));
                }
            }
        }
        listed.sort_by(|one, other| one.path.cmp(&other.path));
        Ok((listed, declared))
    }
}

impl Snapshot {
    /// Size of the blob behind an entry, and the digest that its name is.
    fn blob(&self, entry: &Path, metadata: &std::fs::Metadata) -> Result<(u64, Option<Declared>), SourceError> {
        if metadata.is_file() {
            // As the hub's tools write where there are no links: nothing is known of it.
            return Ok((metadata.len(), None));
        }
        if !metadata.is_symlink() {
            return Err(refused(entry, "is neither a file nor a link"));
        }
        let target = entry.canonicalize().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                SourceError::NotFound { what: format!("the blob that {} links to", entry.display()) }
            }
            _ => io(entry, &error),
        })?;
        let blobs = self.blobs.canonicalize().map_err(|error| io(&self.blobs, &error))?;
        if target.parent() != Some(&blobs) {
            let why = format!("links to {}, which is not in {}: copy it there", target.display(), blobs.display());
            return Err(refused(entry, &why));
        }
        let found = std::fs::metadata(&target).map_err(|error| io(&target, &error))?;
        if !found.is_file() {
            return Err(refused(&target, "is not a file"));
        }
        let hex = target.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        let is_hex = hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let algorithm = match hex.len() {
            64 if is_hex => Algorithm::Sha256,
            40 if is_hex => Algorithm::GitSha1,
            _ => {
                return Err(refused(&target, "is not named by a SHA-256 or a git blob name: nothing tells what it is"));
            }
        };
        Ok((found.len(), Some(Declared { algorithm, hex })))
    }
}

/// As the hub itself pins it: what is taken in here is found by whoever fetches another commit from there.
fn at_hub(digest: &Declared) -> Validator {
    let kind = if digest.algorithm == Algorithm::Sha256 { "lfs" } else { "git" };
    Validator::Strong(format!("{kind}:{}", digest.hex))
}

#[async_trait]
impl RangeSource for Held {
    async fn open(&self, file: &RemoteFile, range: Range<u64>) -> Result<RangeBody, SourceError> {
        self.files.open(&self.here(file), range).await
    }

    fn local(&self, file: &RemoteFile) -> Result<Option<File>, SourceError> {
        self.files.local(&self.here(file))
    }
}

#[async_trait]
impl Origin for Held {
    async fn resolve(&self, reference: &Reference) -> Result<Resolution, SourceError> {
        let place = self.place.clone();
        let (listed, mut declared) = blocking(move || place.look()).await?;
        let mut files = choose(&self.place.directory.display().to_string(), listed, &reference.selection)?;
        for file in &mut files {
            file.declared.extend(declared.remove(&file.locator));
        }
        // A commit is what the caller says it is; other origins have no revision but the bytes.
        let revision = reference.pinned().filter(|revision| matches!(revision, Revision::Commit(_)));
        Ok(Resolution { origin: self.origin.clone(), revision, files, manifest: None })
    }
}

fn refused(path: &Path, why: &str) -> SourceError {
    SourceError::Invalid { detail: format!("{}: {why}", path.display()) }
}
