//! What is at a place already, and whether it can be shown to be what we would put there. Size alone shows nothing: another
//! fine-tune of a model has the same sizes.
//!
//! Shown is: by the digests that the place itself declares of the object, whatever they are; where it declares none, by the name
//! that went along when the object was written, which the place keeps with it in one step; where reading is no dearer than
//! writing (a directory), by reading it back; else by the manifest that is there, if it is ours. The last two of a bucket are a
//! writer's word and not the place's, and enough: a pull proves every group anyway. A journal beside the directory was turned down: it says what was sent from here, not what is there
//! now, and a push that goes on on another machine does not have it.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{HashedFile, PlacementError};
use crate::base::units::MIB;
use crate::digest::{Declared, Running, group_count, group_cv, group_range};
use crate::model::sink::{Sink, Stored};
use crate::model::source::{RangeSource, RemoteFile, SourceError, read_range};
use crate::model::{DOCUMENT_LIMIT, FilePath, Manifest};
use crate::sys::read_write::pread_exact;

/// A place, to be read and written.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) sink: Arc<dyn Sink>,
    pub(super) source: Arc<dyn RangeSource>,
    /// Reading back costs no more than writing.
    pub(super) is_near: bool,
}

/// Tries of a read that fails for a moment, and the first wait between them.
const TRIES: u32 = 4;
const WAIT: Duration = Duration::from_millis(250);

// === impl Place ===

impl Place {
    /// The manifest that is there. Inner error: something else has its name.
    pub(super) async fn manifest(&self) -> Result<Option<Result<Manifest, String>>, PlacementError> {
        let path = file_path(Manifest::FILE_NAME)?;
        let Some(stored) = self.head(&path).await? else { return Ok(None) };
        if stored.size > DOCUMENT_LIMIT as u64 {
            return Ok(Some(Err(format!("it has {} bytes", stored.size))));
        }
        let json = self.read(&path, &stored).await?;
        Ok(Some(Manifest::parse(&json).map_err(|error| error.to_string())))
    }

    /// Whether the object is our file; `None`: nothing shows it.
    pub(super) async fn is_file(
        &self,
        file: &HashedFile,
        local: &Path,
        stored: &Stored,
    ) -> Result<Option<bool>, PlacementError> {
        if stored.size != file.size {
            return Ok(Some(false));
        }
        if !stored.declared.is_empty() {
            let (local, declared) = (local.to_owned(), stored.declared.clone());
            return blocking(move || matches(&local, &declared)).await.map(Some);
        }
        if let Some(said) = stored.said {
            return Ok(Some(said == file.blake3()));
        }
        if self.is_near { self.is_read_back(file, stored).await.map(Some) } else { Ok(None) }
    }

    /// Reads an object and holds it against the groups of our file.
    async fn is_read_back(&self, file: &HashedFile, stored: &Stored) -> Result<bool, PlacementError> {
        let remote = self.remote(&file.path, stored);
        for group in 0..group_count(file.size) {
            let range = group_range(file.size, group);
            let bytes = read_range(&*self.source, &remote, range).await?;
            if Some(group_cv(file.size, group, &bytes)) != file.outboard.group(group) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether an object has exactly these bytes. For small ones: it is read.
    pub(super) async fn is_exactly(&self, path: &FilePath, bytes: &[u8]) -> Result<Option<bool>, PlacementError> {
        match self.head(path).await? {
            None => Ok(None),
            Some(stored) if stored.size != bytes.len() as u64 => Ok(Some(false)),
            Some(stored) => Ok(Some(self.read(path, &stored).await? == bytes)),
        }
    }

    pub(super) async fn head(&self, path: &FilePath) -> Result<Option<Stored>, PlacementError> {
        Ok(self.sink.head(path).await?)
    }

    async fn read(&self, path: &FilePath, stored: &Stored) -> Result<Vec<u8>, PlacementError> {
        let remote = self.remote(path, stored);
        let mut wait = WAIT;
        for _ in 1..TRIES {
            match read_range(&*self.source, &remote, 0..stored.size).await {
                Err(error) if error.kind().is_retryable() => {}
                outcome => return Ok(outcome?),
            }
            tokio::time::sleep(wait).await;
            wait *= 2;
        }
        Ok(read_range(&*self.source, &remote, 0..stored.size).await?)
    }

    fn remote(&self, path: &FilePath, stored: &Stored) -> RemoteFile {
        stored.remote(path, self.sink.locator(path))
    }
}

/// Whether a local file has all of these digests. Blocking.
fn matches(path: &Path, declared: &[Declared]) -> Result<bool, PlacementError> {
    let failed = |error| PlacementError::io("read", path, error);
    let file = File::open(path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    let mut running: Vec<Running> = declared.iter().map(|one| Running::new(one.algorithm, size)).collect();
    let (mut buffer, mut at) = (vec![0; MIB as usize], 0);
    while at < size {
        let piece = &mut buffer[..MIB.min(size - at) as usize];
        pread_exact(&file, piece, at).map_err(failed)?;
        running.iter_mut().for_each(|running| running.update(piece));
        at += piece.len() as u64;
    }
    Ok(running.into_iter().zip(declared).all(|(running, one)| running.finish().eq_ignore_ascii_case(&one.hex)))
}

/// A path that this module has made.
pub(super) fn file_path(text: &str) -> Result<FilePath, PlacementError> {
    FilePath::new(text)
        .map_err(|error| PlacementError::Source(SourceError::Invalid { detail: format!("`{text}`: {error}") }))
}

pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PlacementError> + Send + 'static,
) -> Result<T, PlacementError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(PlacementError::Defect))
}
