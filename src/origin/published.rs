//! What `push` leaves at a place that can be listed: a manifest, whose word then binds, and outboards.
//!
//! The manifest is held against the listing before a byte of a file is asked for: a size that differs means that one of the two
//! is of another version, and the fetch would find that out at its end.

use std::collections::HashMap;

use super::selected::{Listed, of_manifest};
use crate::model::source::{RangeSource, RemoteFile, Resolution, SourceError, Validator, read_range};
use crate::model::{DOCUMENT_LIMIT, FilePath, Manifest, OriginId, Selection};

/// The resolution of a place by its manifest; `None` if it publishes none. `what` is the place, safe to print.
pub(super) async fn resolve(
    source: &dyn RangeSource,
    what: &str,
    origin: OriginId,
    listed: &[Listed],
    selection: &Selection,
) -> Result<Option<Resolution>, SourceError> {
    let Some(published) = listed.iter().find(|file| file.path.as_str() == Manifest::FILE_NAME) else { return Ok(None) };
    let what = format!("{what}/{}", Manifest::FILE_NAME);
    let invalid = |detail: String| SourceError::Invalid { detail: format!("{what}: {detail}") };
    if published.size > DOCUMENT_LIMIT as u64 {
        return Err(invalid(format!("has {} bytes, more than {DOCUMENT_LIMIT}", published.size)));
    }
    let json = read(source, published).await?;
    let manifest = Manifest::parse(&json).map_err(|error| invalid(error.to_string()))?;
    let here: HashMap<&FilePath, &Listed> = listed.iter().map(|file| (&file.path, file)).collect();
    let differs = manifest.files().iter().find_map(|entry| {
        let found = here.get(&entry.path)?;
        (found.size != entry.size).then_some((entry, found.size))
    });
    if let Some((entry, found)) = differs {
        let detail = format!(
            "says {} bytes of {}, the listing says {found}: one of them is old; push it again, or wait until that is done",
            entry.size, entry.path
        );
        return Err(SourceError::Protocol { what, detail });
    }
    let locate = |path: &FilePath| here.get(path).map(|file| file.locator.clone());
    let resolution = of_manifest(&what, origin, &manifest, selection, locate)?;
    let unproved = resolution.files.iter().filter(|file| file.outboard.is_none() && has_groups(file)).count();
    if manifest.outboards().is_some() && unproved > 0 {
        tracing::warn!(
            manifest = what,
            files = unproved,
            "outboards that it names are missing: wrong bytes are noticed at the end only; push again to mend it"
        );
    }
    Ok(Some(resolution))
}

fn has_groups(file: &RemoteFile) -> bool {
    crate::digest::group_count(file.size) > 1
}

/// A small object of a listing, whole.
async fn read(source: &dyn RangeSource, listed: &Listed) -> Result<Vec<u8>, SourceError> {
    let file = RemoteFile {
        path: listed.path.clone(),
        size: listed.size,
        locator: listed.locator.clone(),
        // The listing's own word for it is not always the object's.
        validator: Validator::None,
        declared: Vec::new(),
        blake3: None,
        outboard: None,
    };
    read_range(source, &file, 0..file.size).await
}
