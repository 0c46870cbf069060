//! The writing half: a directory as a place for objects. A file is made under a name of its own beside its target, synced,
//! and takes the target's name in one step, so that nobody sees half of it and a power cut leaves the old, the new or none:
//!
//! 1. the temporary file is written: a crash here leaves a hidden file that is not in any model;
//! 2. it is synced, then linked (where nothing may be there) or renamed (where something may);
//! 3. the directory is synced: only then is it said to be there.

use std::fs;
use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::{Stamp, blocking, io, validator};
use crate::model::sink::{Content, Existing, Put, Sent, Sink, Stored};
use crate::model::source::SourceError;
use crate::model::{FilePath, Reference};
use crate::sys::copy::place;
use crate::sys::durable::{rename_noreplace, sync_data, sync_directory, temporary_name, write_temporary};

/// A directory.
#[derive(Debug)]
pub(in crate::origin) struct FileSink {
    place: PathBuf,
}

// === impl FileSink ===

impl FileSink {
    pub(in crate::origin) fn new(reference: &Reference) -> Self {
        Self { place: PathBuf::from(format!("/{}", reference.place)) }
    }
}

#[async_trait]
impl Sink for FileSink {
    async fn head(&self, path: &FilePath) -> Result<Option<Stored>, SourceError> {
        let target = self.place.join(path);
        blocking(move || match fs::metadata(&target) {
            Ok(metadata) if metadata.is_file() => {
                let stamp = Stamp::of(&metadata);
                Ok(Some(Stored { size: stamp.size, validator: validator(&stamp), declared: Vec::new(), said: None }))
            }
            Ok(_) => Err(SourceError::Invalid { detail: format!("{} is not a file", target.display()) }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io(&target, &error)),
        })
        .await
    }

    fn locator(&self, path: &FilePath) -> String {
        self.place.join(path).to_string_lossy().into_owned()
    }

    async fn put(
        &self,
        path: &FilePath,
        content: &Content,
        existing: Existing,
        sent: Sent,
    ) -> Result<Put, SourceError> {
        let (place, path, content) = (self.place.clone(), path.clone(), content.clone());
        blocking(move || write(&place, &path, &content, existing, &sent)).await
    }
}

fn write(
    place: &Path,
    path: &FilePath,
    content: &Content,
    existing: Existing,
    sent: &Sent,
) -> Result<Put, SourceError> {
    let target = place.join(path);
    let directory = target.parent().unwrap_or(place);
    if existing == Existing::Keep && target.symlink_metadata().is_ok() {
        return Ok(Put::Existed);
    }
    let failed = |error: std::io::Error| writing(&target, &error);
    let made = make_directories(directory).map_err(failed)?;
    let temporary = fill(directory, content, sent)?;
    let outcome = match existing {
        Existing::Keep => rename_noreplace(&temporary, &target),
        Existing::Replace => fs::rename(&temporary, &target),
    };
    if let Err(error) = outcome {
        // Their error is the one to report.
        let _ = fs::remove_file(&temporary);
        sent(-i64::try_from(content.size()).unwrap_or(i64::MAX));
        if error.kind() == std::io::ErrorKind::AlreadyExists {
            return Ok(Put::Existed);
        }
        return Err(failed(error));
    }
    sync_directory(directory).map_err(failed)?;
    made.iter().try_for_each(|directory| sync_directory(directory)).map_err(failed)?;
    Ok(Put::Created)
}

/// Makes a synced temporary file with the content.
fn fill(directory: &Path, content: &Content, sent: &Sent) -> Result<PathBuf, SourceError> {
    let count = |bytes: u64| sent(i64::try_from(bytes).unwrap_or(i64::MAX));
    let mut told = 0;
    let (temporary, outcome) = match content {
        Content::Bytes(bytes) => {
            let (path, file) = write_temporary(directory, bytes).map_err(|error| writing(directory, &error))?;
            told = bytes.len() as u64;
            count(told);
            (path, sync_data(&file).map_err(|error| writing(directory, &error)))
        }
        Content::File { path: source, size, .. } => {
            let changed = || SourceError::Changed { what: source.display().to_string() };
            let before = Stamp::of(&fs::metadata(source).map_err(|error| io(source, &error))?);
            if before.size != *size {
                return Err(changed());
            }
            let temporary = directory.join(format!(".{}", temporary_name()));
            let outcome = place(source, &temporary, false, &mut |bytes| {
                told += bytes;
                count(bytes);
            })
            .and_then(|_| sync_data(&fs::File::open(&temporary)?))
            .map_err(|error| writing(&temporary, &error))
            .and_then(|()| match fs::metadata(source) {
                Ok(now) if Stamp::of(&now) == before => Ok(()),
                _ => Err(changed()),
            });
            (temporary, outcome)
        }
    };
    outcome.map(|()| temporary.clone()).inspect_err(|_| {
        let _ = fs::remove_file(&temporary);
        sent(-i64::try_from(told).unwrap_or(i64::MAX));
    })
}

/// Makes what is missing of a directory; gives back those whose names then have to be synced.
fn make_directories(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let missing = directory.ancestors().take_while(|one| !one.exists());
    let parents = missing.filter_map(Path::parent).map(Path::to_owned).collect();
    fs::create_dir_all(directory)?;
    Ok(parents)
}

/// What an error of writing means.
fn writing(path: &Path, error: &std::io::Error) -> SourceError {
    let what = path.display().to_string();
    match error.kind() {
        std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem => {
            SourceError::Denied { what, detail: format!("it cannot be written: {error}") }
        }
        std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
            SourceError::NoSpace { what, detail: error.to_string() }
        }
        _ => SourceError::Invalid { detail: format!("write {what}: {error}") },
    }
}
