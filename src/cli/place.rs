//! Putting the files of a model into a directory of the caller's choice.
//!
//! An engine that finds an index whose shards are not there yet fails minutes into its start, so nothing appears under its
//! own name before everything has arrived: files are staged in `DIR/.preheat/stage` (same mount, so renames work even where
//! DIR is itself a mount point and cannot be renamed), and then moved, weights first, the files that name others last.
//! A file that is already there is kept only if it hashes to what the manifest says; size and time prove nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::hash_file::hash_file;
use crate::model::{Manifest, ManifestEntry};
use crate::sys::copy::{Placed, place};

/// Where `--to` keeps what is not finished; gone when the command succeeds.
pub(super) const STAGING: &str = ".preheat";

/// What placing did.
#[derive(Debug, Default)]
pub(super) struct Placement {
    /// Files that were right already.
    pub(super) kept: u64,
    /// How the others came, most frequent way first.
    pub(super) ways: Vec<(&'static str, u64)>,
}

// === impl Placement ===

impl Placement {
    /// The way most files took, for one word in the output.
    pub(super) fn word(&self) -> &'static str {
        self.ways.first().map_or("unchanged", |(way, _)| way)
    }

    fn count(&mut self, way: &'static str) {
        match self.ways.iter_mut().find(|(known, _)| *known == way) {
            Some((_, count)) => *count += 1,
            None => self.ways.push((way, 1)),
        }
        self.ways.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    }
}

/// How [`into_directory`] may take the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Take {
    /// By reflink or copy; the source stays untouched by whoever writes to the result.
    Copy,
    /// By hard link as well: the caller has asked for it.
    Link,
    /// The source is private to this command and goes away: links become the only name.
    Move,
}

/// Places the files of `manifest`, which lie in `tree`, into `to`. `progress` is told of each finished byte.
pub(super) fn into_directory(
    tree: &Path,
    manifest: &Manifest,
    to: &Path,
    take: Take,
    progress: &mut dyn FnMut(u64),
) -> anyhow::Result<Placement> {
    let stage = to.join(STAGING).join("stage");
    fs::create_dir_all(&stage).with_context(|| format!("make directory {}", stage.display()))?;
    let mut placement = Placement::default();
    let mut staged: Vec<(PathBuf, PathBuf)> = Vec::new();
    let mut order: Vec<&ManifestEntry> = manifest.files().iter().collect();
    order.sort_by_key(|entry| std::cmp::Reverse(entry.size));
    let mut moved = std::collections::HashSet::new();
    for (number, entry) in order.into_iter().enumerate() {
        let target = to.join(&entry.path);
        if is_right(&target, entry) {
            placement.kept += 1;
            progress(entry.size);
            continue;
        }
        let half_made = stage.join(number.to_string());
        match fs::remove_file(&half_made) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", half_made.display()));
            }
            _ => {}
        }
        let source = tree.join(&entry.path);
        // Files of equal content are one file in the store; in the caller's directory each is to be a file of its own.
        let link = match take {
            Take::Copy => false,
            Take::Link => true,
            Take::Move => moved.insert(entry.blake3),
        };
        let how = place(&source, &half_made, link, progress)
            .with_context(|| format!("copy {} to {}", source.display(), half_made.display()))?;
        placement.count(match (how, take) {
            (Placed::HardLink, Take::Move) => "moved",
            (Placed::HardLink, _) => "hard link",
            (Placed::Reflink, _) => "reflink",
            (Placed::CopyRange, _) => "copy_file_range",
            (Placed::Copy, _) => "copy",
        });
        staged.push((half_made, target));
    }
    // Smallest last: the configuration and the shard index come after the shards.
    for (half_made, target) in &staged {
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent).with_context(|| format!("make directory {}", parent.display()))?;
        }
        fs::rename(half_made, target).with_context(|| format!("rename to {}", target.display()))?;
        if take == Take::Move {
            // A shared inode stays read-only; this one is now the caller's own.
            fs::set_permissions(target, fs::Permissions::from_mode(0o644))
                .with_context(|| format!("set permissions of {}", target.display()))?;
        }
    }
    fs::remove_dir_all(&stage).with_context(|| format!("remove {}", stage.display()))?;
    Ok(placement)
}

/// Whether `path` is a regular file with exactly the bytes of `entry`. Unreadable counts as no: it is then replaced.
fn is_right(path: &Path, entry: &ManifestEntry) -> bool {
    let fits = fs::symlink_metadata(path).is_ok_and(|found| found.is_file() && found.len() == entry.size);
    fits && hash_file(path).is_ok_and(|(_, hash)| hash == entry.blake3)
}
