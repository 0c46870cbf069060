//! Local directories and files. A link whose target leaves the directory is refused by name: what is fetched through a daemon
//! must not reach what its caller could not name.

mod sink;

pub(super) use self::sink::FileSink;

use std::collections::HashMap;
use std::fs::{File, Metadata};
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::published;
use super::selected::{Listed, by_origin, choose, resolution};
use crate::base::units::MIB;
use crate::model::body::pieces;
use crate::model::source::{Origin, RangeBody, RangeSource, RemoteFile, Resolution, SourceError, Validator};
use crate::model::{FilePath, OriginId, Reference, Revision, Rights, Selection};
use crate::sys::read_write::pread_exact;

/// Permission of everybody else to read a file or list a directory, and to go through a directory.
const OTHERS_READ: u32 = 0o4;
const OTHERS_ENTER: u32 = 0o1;

/// Read at once.
const PIECE: u64 = MIB;

/// The local file system.
#[derive(Debug)]
pub(super) struct FileOrigin {
    files_max: usize,
    /// Only what every user of the machine may read.
    anonymous: bool,
}

/// What changes when a file does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

// === impl Stamp ===

impl Stamp {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// The files below `directory`, in order, none of which is outside it.
///
/// # Errors
/// `NotFound`, a link that leaves the directory, a name that cannot be in a model, more files than 100,000.
pub fn list_directory(directory: &Path) -> Result<Vec<FilePath>, SourceError> {
    Ok(walk(directory, super::Config::default().files_max)?.into_iter().map(|(path, _)| path).collect())
}

pub(super) fn walk(directory: &Path, files_max: usize) -> Result<Vec<(FilePath, Metadata)>, SourceError> {
    let root = directory.canonicalize().map_err(|error| io(directory, &error))?;
    let (mut found, mut waiting) = (Vec::new(), vec![(root.clone(), 0)]);
    while let Some((folder, depth)) = waiting.pop() {
        for entry in std::fs::read_dir(&folder).map_err(|error| io(&folder, &error))? {
            let path = entry.map_err(|error| io(&folder, &error))?.path();
            let invalid = |detail: String| SourceError::Invalid { detail: format!("{}: {detail}", path.display()) };
            let relative = path.strip_prefix(&root).unwrap_or(&path);
            // Version control is never part of a model and may be huge.
            if relative.starts_with(".git") {
                continue;
            }
            let target = path.canonicalize().map_err(|error| io(&path, &error))?;
            if !target.starts_with(&root) {
                return Err(invalid(format!(
                    "is a link to {}, outside the directory: copy it there",
                    target.display()
                )));
            }
            let metadata = std::fs::metadata(&target).map_err(|error| io(&path, &error))?;
            if metadata.is_dir() {
                if depth >= 31 {
                    return Err(invalid("is more than 32 directories deep (or links in a circle)".to_owned()));
                }
                waiting.push((path, depth + 1));
            } else if metadata.is_file() {
                let name = relative.to_str().ok_or_else(|| invalid("has a name that is not UTF-8".to_owned()))?;
                found.push((FilePath::new(name).map_err(|error| invalid(error.to_string()))?, metadata));
            }
            if found.len() > files_max {
                return Err(SourceError::Invalid {
                    detail: format!("{} has more than {files_max} files: name a deeper directory", directory.display()),
                });
            }
        }
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(found)
}

pub(super) fn io(path: &Path, error: &std::io::Error) -> SourceError {
    let what = path.display().to_string();
    match error.kind() {
        std::io::ErrorKind::NotFound => SourceError::NotFound { what },
        std::io::ErrorKind::PermissionDenied => {
            SourceError::Denied { what, detail: "the file system refuses to read it".to_owned() }
        }
        _ => SourceError::Unavailable { what, detail: error.to_string() },
    }
}

// === impl FileOrigin ===

impl FileOrigin {
    pub(super) fn new(files_max: usize, rights: &Rights) -> Result<Self, SourceError> {
        let anonymous = match rights {
            Rights::Anonymous => true,
            Rights::Own => false,
            Rights::Caller(credential) => {
                let detail = format!("a directory takes no credential, and {} is one", credential.kind());
                return Err(SourceError::Invalid { detail });
            }
        };
        Ok(Self { files_max, anonymous })
    }

    /// With the rights of this process.
    pub(super) fn own(files_max: usize) -> Self {
        Self { files_max, anonymous: false }
    }

    /// What is at the place of a reference, with the time of each file's last change.
    fn look(&self, reference: &Reference) -> Result<Found, SourceError> {
        let place = PathBuf::from(format!("/{}", reference.place));
        let metadata = std::fs::metadata(&place).map_err(|error| io(&place, &error))?;
        let directory = metadata.is_dir();
        if self.anonymous {
            open_to_all(&place, directory)?;
        }
        let (found, base, selection) = if directory {
            (walk(&place, self.files_max)?, place.clone(), reference.selection.clone())
        } else {
            let name = place.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let path = FilePath::new(name).map_err(|error| SourceError::Invalid { detail: error.to_string() })?;
            let all = Selection { include: vec!["*".to_owned()], ..Selection::default() };
            (vec![(path, metadata)], place.parent().unwrap_or(&place).to_owned(), all)
        };
        if self.anonymous {
            for (path, metadata) in &found {
                let whole = base.join(path);
                if metadata.mode() & OTHERS_READ == 0 {
                    return Err(not_for_all(&whole));
                }
                if let Some(parent) = whole.parent() {
                    open_to_all(parent, true)?;
                }
            }
        }
        let mut times = HashMap::new();
        let mut listed = Vec::with_capacity(found.len());
        for (path, metadata) in found {
            let (locator, stamp) = (base.join(&path).to_string_lossy().into_owned(), Stamp::of(&metadata));
            times.insert(locator.clone(), stamp.modified);
            listed.push(Listed { locator, path, size: metadata.len(), validator: validator(&stamp) });
        }
        Ok(Found { directory, listed, times, selection })
    }
}

/// Checks that everybody on the machine may go to `path`, links resolved, and read it.
fn open_to_all(path: &Path, directory: bool) -> Result<(), SourceError> {
    let whole = path.canonicalize().map_err(|error| io(path, &error))?;
    for (number, at) in whole.ancestors().enumerate() {
        let mode = std::fs::metadata(at).map_err(|error| io(at, &error))?.mode();
        let wanted = match number {
            0 if directory => OTHERS_READ | OTHERS_ENTER,
            0 => OTHERS_READ,
            _ => OTHERS_ENTER,
        };
        if mode & wanted != wanted {
            return Err(not_for_all(at));
        }
    }
    Ok(())
}

fn not_for_all(path: &Path) -> SourceError {
    let detail = "its mode does not let every user read it".to_owned();
    SourceError::Denied { what: path.display().to_string(), detail }
}

/// A place in the file system.
struct Found {
    directory: bool,
    listed: Vec<Listed>,
    /// Modification time of each locator: seconds and nanoseconds.
    times: HashMap<String, (i64, i64)>,
    selection: Selection,
}

pub(super) fn validator(stamp: &Stamp) -> Validator {
    let Stamp { inode, modified, changed, .. } = stamp;
    Validator::Strong(format!("{inode}:{}.{}:{}.{}", modified.0, modified.1, changed.0, changed.1))
}

#[async_trait]
impl RangeSource for FileOrigin {
    async fn open(&self, file: &RemoteFile, range: Range<u64>) -> Result<RangeBody, SourceError> {
        let path = PathBuf::from(&file.locator);
        let (size, planned) = (file.size, file.validator.clone());
        let opened = {
            let path = path.clone();
            blocking(move || {
                let opened = File::open(&path).map_err(|error| io(&path, &error))?;
                check(&opened, &path, size, &planned)?;
                Ok(opened)
            })
            .await?
        };
        let source = Arc::new(opened);
        let (start, end, validator) = (range.start, range.end.min(size), file.validator.clone());
        let stream = stream::try_unfold(start, move |position| {
            let (source, path, validator) = (Arc::clone(&source), path.clone(), validator.clone());
            async move {
                if position >= end {
                    return Ok(None);
                }
                let piece = blocking(move || {
                    let mut piece = vec![0; PIECE.min(end - position) as usize];
                    pread_exact(&source, &mut piece, position).map_err(|error| io(&path, &error))?;
                    // After the read: what was read before a change that is seen now may be either.
                    check(&source, &path, size, &validator)?;
                    Ok(Bytes::from(piece))
                })
                .await?;
                let next = position + piece.len() as u64;
                Ok(Some((piece, next)))
            }
        });
        Ok(RangeBody { start, ignores_ranges: false, bytes: pieces(stream.boxed()) })
    }

    fn local(&self, file: &RemoteFile) -> Result<Option<File>, SourceError> {
        let path = PathBuf::from(&file.locator);
        let opened = File::open(&path).map_err(|error| io(&path, &error))?;
        check(&opened, &path, file.size, &file.validator)?;
        Ok(Some(opened))
    }
}

#[async_trait]
impl Origin for FileOrigin {
    async fn resolve(&self, reference: &Reference) -> Result<Resolution, SourceError> {
        let found = {
            let (origin, reference) =
                (Self { files_max: self.files_max, anonymous: self.anonymous }, reference.clone());
            blocking(move || origin.look(&reference)).await?
        };
        let (what, origin) = (reference.base(), OriginId::of(reference, None));
        if found.directory
            && let Some(published) =
                published::resolve(self, &what, origin.clone(), &found.listed, &found.selection).await?
        {
            return Ok(published);
        }
        let mut resolution = resolution(origin, choose(&what, found.listed, &found.selection)?);
        // Inode and change time differ between nodes that have the same directory; size and modification time need not.
        let times: Vec<(FilePath, u64, String)> = resolution
            .files
            .iter()
            .filter_map(|file| {
                let (seconds, nanoseconds) = found.times.get(&file.locator)?;
                Some((file.path.clone(), file.size, format!("{seconds}.{nanoseconds}")))
            })
            .collect();
        resolution.revision =
            Some(Revision::listing(times.iter().map(|(path, size, time)| (path, *size, time.as_str()))));
        Ok(resolution)
    }
}

fn check(file: &File, path: &Path, size: u64, planned: &Validator) -> Result<(), SourceError> {
    let now = Stamp::of(&file.metadata().map_err(|error| io(path, &error))?);
    // What is pinned by digest, or by nothing, is compared by whoever asks.
    let pinned = matches!(by_origin(planned), Validator::Strong(_));
    if now.size == size && (!pinned || validator(&now) == *planned) {
        return Ok(());
    }
    Err(SourceError::Changed { what: path.display().to_string() })
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| {
        Err(SourceError::Unavailable { what: "the file system".to_owned(), detail: "reading panicked".to_owned() })
    })
}
