//! From what an origin has to what is wanted of it: the same step for every kind.

use super::SourceError;
use crate::digest::group_count;
use crate::model::source::{RemoteFile, Resolution, Validator};
use crate::model::{FilePath, Manifest, OriginId, Revision, Selection, outboard_path, select};

/// One file as an origin lists it, with its path at the origin.
#[derive(Clone, Debug)]
pub(super) struct Listed {
    pub(super) path: FilePath,
    pub(super) size: u64,
    pub(super) locator: String,
    pub(super) validator: Validator,
}

/// Selects, and moves paths from the origin's to the tree's.
pub(super) fn choose(what: &str, listed: Vec<Listed>, selection: &Selection) -> Result<Vec<RemoteFile>, SourceError> {
    let paths: Vec<FilePath> = listed.iter().map(|file| file.path.clone()).collect();
    let selected =
        select(&paths, selection).map_err(|error| SourceError::Invalid { detail: format!("{what}: {error}") })?;
    for warning in &selected.warnings {
        tracing::warn!(origin = what, "{warning}");
    }
    let mut listed: Vec<Option<Listed>> = listed.into_iter().map(Some).collect();
    let taken = selected.taken.into_iter().filter_map(|index| listed.get_mut(index)?.take());
    Ok(taken
        .filter_map(|file| {
            Some(RemoteFile {
                path: selection.strip(&file.path)?,
                size: file.size,
                locator: file.locator,
                validator: file.validator,
                declared: Vec::new(),
                blake3: None,
                outboard: None,
            })
        })
        .collect())
}

/// The resolution of files without a manifest of their own.
pub(super) fn resolution(origin: OriginId, files: Vec<RemoteFile>) -> Resolution {
    let strong: Option<Vec<(&FilePath, u64, &str)>> = files
        .iter()
        .map(|file| match &file.validator {
            Validator::Strong(text) => Some((&file.path, file.size, text.as_str())),
            _ => None,
        })
        .collect();
    let revision = strong.map(Revision::listing);
    Resolution { origin, revision, files, manifest: None }
}

/// The resolution of a manifest that the origin publishes; `locate` finds a path's place at the origin, if it is there.
pub(super) fn of_manifest(
    what: &str,
    origin: OriginId,
    manifest: &Manifest,
    selection: &Selection,
    locate: impl Fn(&FilePath) -> Option<String>,
) -> Result<Resolution, SourceError> {
    let listed = manifest
        .files()
        .iter()
        .map(|entry| Listed {
            path: entry.path.clone(),
            size: entry.size,
            locator: entry.path.to_string(),
            // Nothing pins bytes better than their digest.
            validator: Validator::Strong(format!("{BY_DIGEST}{}", entry.blake3)),
        })
        .collect();
    let mut files = choose(what, listed, selection)?;
    let taken: std::collections::HashSet<&FilePath> = files.iter().map(|file| &file.path).collect();
    let restricted = manifest
        .restrict(|path| selection.strip(path).filter(|path| taken.contains(path)))
        .map_err(|error| SourceError::Protocol { what: what.to_owned(), detail: error.to_string() })?;
    for (file, entry) in files.iter_mut().zip(restricted.files()) {
        let at_origin = FilePath::new(file.locator.as_str()).ok();
        file.locator = at_origin
            .as_ref()
            .and_then(&locate)
            .ok_or_else(|| SourceError::NotFound { what: format!("{}, which {what} names,", file.locator) })?;
        file.blake3 = Some(entry.blake3);
        if let Some(directory) = manifest.outboards().filter(|_| group_count(entry.size) > 1) {
            file.outboard = outboard_path(directory, &entry.blake3).as_ref().and_then(&locate);
        }
    }
    let revision = Some(Revision::Manifest(restricted.digest()));
    Ok(Resolution { origin, revision, files, manifest: Some(restricted) })
}

/// Begins the validator of a file that is pinned by its digest and not by what the origin says of it.
const BY_DIGEST: &str = "blake3:";

/// What of a validator is the origin's own word, to be held against its answers.
pub(super) fn by_origin(validator: &Validator) -> Validator {
    match validator {
        Validator::Strong(text) if text.starts_with(BY_DIGEST) => Validator::None,
        other => other.clone(),
    }
}
