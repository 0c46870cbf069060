//! A bundle that is shown where the store has it: mounted read-only where the engine looks, or, where nothing may be mounted, put there
//! as a link. Nothing is copied, and replicas share its pages.
//!
//! What a root has in it are whole engines, a directory each: these are mounted one by one, so that the root itself stays a directory
//! of the start's own, where another engine may be compiled beside them. A root with files in it is an engine itself and is mounted
//! whole.
//!
//! A link gives no protection of its own: it is made only to a tree that whoever runs the command cannot write to. It is noted in the
//! view before it is made and goes with the view, or with the next start's sweep.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use serde::{Deserialize, Serialize};

use super::super::roots::Root;
use super::view::View;
use crate::engines::InPlace;

/// A root of a bundle that is shown.
#[derive(Clone, Debug)]
pub(super) struct Shown {
    pub(super) root: Root,
    /// Where the store has it.
    pub(super) from: PathBuf,
    /// The directories in it that are mounted one by one; none: all of it is.
    pub(super) parts: Vec<String>,
}

/// A link that a start has made.
#[derive(Debug, Serialize, Deserialize)]
struct Link {
    at: PathBuf,
    to: PathBuf,
    /// There was an empty directory before.
    directory: bool,
}

/// Most mounts of one root; a root with more engines is shown as one.
const PARTS_MOST: usize = 64;

/// The file in a view that says which links belong to it, a line each.
const LINKS: &str = "links";

// === impl Shown ===

impl Shown {
    /// What of these roots a bundle has.
    pub(super) fn of(bundle: &InPlace, roots: &[Root]) -> Vec<Self> {
        let mut shown = Vec::new();
        for root in roots {
            let below = |path: &str| path.strip_prefix(&root.name)?.strip_prefix('/').map(str::to_owned);
            let paths: Vec<String> = bundle.entries.iter().filter_map(|entry| below(entry.path.as_str())).collect();
            if paths.is_empty() {
                continue;
            }
            let parts: Option<BTreeSet<String>> =
                paths.iter().map(|path| Some(path.split_once('/')?.0.to_owned())).collect();
            let parts = parts.filter(|parts| parts.len() <= PARTS_MOST).unwrap_or_default();
            let from = bundle.files.join(&root.name);
            shown.push(Self { root: root.clone(), from, parts: parts.into_iter().collect() });
        }
        shown
    }

    /// What is mounted, and where. Makes the places that it needs in the view.
    pub(super) fn mounts(&self, view: &View) -> io::Result<Vec<(PathBuf, PathBuf)>> {
        if self.parts.is_empty() {
            return Ok(vec![(self.from.clone(), self.root.path.clone())]);
        }
        let mount = |part: &String| {
            fs::create_dir_all(view.root(&self.root).join(part))?;
            Ok((self.from.join(part), self.root.path.join(part)))
        };
        self.parts.iter().map(mount).collect()
    }

    /// Names and places of what is shown, for whoever looks at the files of a start.
    pub(super) fn places(&self) -> Vec<(String, PathBuf)> {
        let name = &self.root.name;
        if self.parts.is_empty() {
            return vec![(name.clone(), self.from.clone())];
        }
        self.parts.iter().map(|part| (format!("{name}/{part}"), self.from.join(part))).collect()
    }

    /// Puts a link where the engine looks.
    ///
    /// # Errors
    /// Why not, in words.
    pub(super) fn link(&self, view: &Path) -> Result<(), String> {
        let (at, to) = (&self.root.path, &self.from);
        let path = at.display();
        if accessat(CWD, to, Access::WRITE_OK, AtFlags::EACCESS).is_ok() {
            return Err(format!(
                "nothing may be mounted, and a link at {path} would let the command write into the store: mount the store's directory \
                 read-only, or run the command as another user"
            ));
        }
        let failed = |error: io::Error| format!("nothing may be mounted, and no link can be put at {path}: {error}");
        let directory = match fs::symlink_metadata(at) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(failed(error)),
            // Another start shows the same, and takes it away.
            Ok(found) if found.is_symlink() && fs::read_link(at).is_ok_and(|found| found == *to) => return Ok(()),
            Ok(found) if found.is_dir() => true,
            Ok(_) => return Err(format!("nothing may be mounted, and {path} is no directory")),
        };
        if directory && fs::read_dir(at).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(format!(
                "nothing may be mounted, and {path} is not empty, so that no link is put in its place"
            ));
        }
        note(view, &Link { at: at.clone(), to: to.clone(), directory }).map_err(failed)?;
        if let Some(parent) = at.parent() {
            fs::create_dir_all(parent).map_err(failed)?;
        }
        if directory {
            fs::remove_dir(at).map_err(failed)?;
        }
        std::os::unix::fs::symlink(to, at).map_err(failed)
    }
}

/// Before it is made: what is not noted is never taken away.
fn note(view: &Path, link: &Link) -> io::Result<()> {
    let mut line = serde_json::to_vec(link)?;
    line.push(b'\n');
    File::options().create(true).append(true).open(view.join(LINKS))?.write_all(&line)
}

/// Takes away the links of a view.
pub(super) fn unlink(view: &Path) {
    let Ok(text) = fs::read(view.join(LINKS)) else { return };
    for link in text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Link>(line).ok()) {
        // Somebody may have put something else there since.
        if fs::read_link(&link.at).is_ok_and(|to| to == link.to) && fs::remove_file(&link.at).is_ok() && link.directory
        {
            let _ = fs::create_dir(&link.at);
        }
    }
    let _ = fs::remove_file(view.join(LINKS));
}

/// What a program says that may not write: `strerror(EROFS)`.
pub(super) const READ_ONLY: &str = "Read-only file system";
