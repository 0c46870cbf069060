//! The files of a capture: which of those below the roots are taken, and how they are read.
//!
//! An engine's caches are its own to write, so nothing found there is believed: links are not followed, and what could lead out
//! of a root or do more than hold bytes is refused by name. What is only passing is left out: locks, half-written files, and what
//! vLLM makes anew at every start.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::EngineError;
use crate::model::{FilePath, is_root_name};
use crate::sys::beneath::{Beneath, Descent, Entry, Facts, Kind};

/// A directory whose files are captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CaptureRoot {
    /// The first segment of its files' paths in the bundle.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// A file that is taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatheredFile {
    /// Root, and path below it.
    pub path: FilePath,
    /// As it was when it was listed.
    pub facts: Facts,
}

/// What is taken and what is not.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// Sorted by path.
    pub files: Vec<GatheredFile>,
    /// Passing files and links to directories, by path.
    pub left_out: Vec<String>,
}

/// Opens gathered files again, one after the other.
#[derive(Debug)]
pub(super) struct Files {
    roots: Vec<(String, PathBuf, Descent)>,
}

/// Most files of one bundle: as many as a manifest may have.
const FILES_MOST: usize = 200_000;
/// Deepest directory below a root.
const DEPTH_MOST: usize = 30;

/// Names of directories that are made anew at every start, or hold only what is passing.
const PASSING_DIRECTORIES: [&str; 3] = ["locks", "dummy_cache", "modelinfos"];

/// Whether a file or directory of this name is passing: a lock, or something half-written.
#[must_use]
pub fn is_passing(name: &str) -> bool {
    let ends = |end: &str| name.len() > end.len() && name.ends_with(end);
    name.starts_with("tmp.pid_") || name.starts_with(".nfs") || [".lock", ".tmp", ".part"].iter().any(|end| ends(end))
}

/// Lists the roots. One that does not exist has no files.
///
/// # Errors
/// A link that leads out of its root, a device, a set-user-id file, an empty shared object, a name or depth that no bundle has,
/// more than 200,000 files, I/O.
pub fn gather(roots: &[CaptureRoot]) -> Result<Gathered, EngineError> {
    let mut gathered = Gathered::default();
    for (number, root) in roots.iter().enumerate() {
        if !is_root_name(&root.name) {
            let why = "a root has a name of a-z, 0-9, `.`, `_` and `-`, at most 64, not beginning with `.` or `-`";
            return Err(EngineError::refused(format!("root `{}`", root.name.escape_debug()), why));
        }
        if roots[..number].iter().any(|other| other.name == root.name) {
            return Err(EngineError::refused(format!("root `{}`", root.name), "is there twice"));
        }
        match Beneath::open(&root.path) {
            Ok(directory) => walk(&directory, root, &root.name, 0, &mut gathered)?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(EngineError::io("open", &root.path, error)),
        }
    }
    gathered.files.sort_by(|one, other| one.path.cmp(&other.path));
    Ok(gathered)
}

fn walk(
    directory: &Beneath,
    root: &CaptureRoot,
    at: &str,
    depth: usize,
    gathered: &mut Gathered,
) -> Result<(), EngineError> {
    let place = || root.path.join(at.strip_prefix(&root.name).unwrap_or(at).trim_start_matches('/'));
    let entries = directory.entries(FILES_MOST).map_err(|error| EngineError::io("list", &place(), error))?;
    if depth > DEPTH_MOST {
        return Err(EngineError::refused(place().display().to_string(), "lies too deep for a bundle"));
    }
    for entry in entries {
        let shown = || place().join(entry.name.to_string_lossy().as_ref()).display().to_string();
        let Ok(name) = entry.name.to_str() else {
            return Err(EngineError::refused(shown(), "its name is not UTF-8"));
        };
        let path = format!("{at}/{name}");
        let passing = is_passing(name) || (entry.kind == Kind::Directory && PASSING_DIRECTORIES.contains(&name));
        if passing && matches!(entry.kind, Kind::File | Kind::Directory | Kind::Link) {
            gathered.left_out.push(path);
            continue;
        }
        match entry.kind {
            Kind::Directory => match directory.directory(name) {
                Ok(below) => walk(&below, root, &path, depth + 1, gathered)?,
                // Gone since it was listed: the engine cleans up.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => return Err(EngineError::io("open", &place().join(name), error)),
            },
            Kind::File => gathered.files.push(taken(&entry, name, &path, shown)?),
            Kind::Link if leads_out(root, &place().join(name)) => {
                let why = "is a link that leads out of the directory: put the file itself there, or leave it out";
                return Err(EngineError::refused(shown(), why));
            }
            // What it leads to is taken where it is.
            Kind::Link => gathered.left_out.push(path),
            Kind::Other => {
                return Err(EngineError::refused(shown(), "is neither file nor directory: no bundle has such things"));
            }
        }
        if gathered.files.len() > FILES_MOST {
            return Err(EngineError::refused(root.path.display().to_string(), "has more than 200,000 files"));
        }
    }
    Ok(())
}

fn taken(entry: &Entry, name: &str, path: &str, shown: impl Fn() -> String) -> Result<GatheredFile, EngineError> {
    if entry.facts.mode & 0o7000 != 0 {
        return Err(EngineError::refused(shown(), "is set-user-id, set-group-id or sticky: take that away first"));
    }
    // Loaded, it would end the process: no engine falls back from a shared object that is cut off.
    if entry.facts.size == 0 && [".so", ".cubin"].iter().any(|end| name.ends_with(end)) {
        return Err(EngineError::refused(shown(), "is empty: an engine was killed while it wrote it; remove it"));
    }
    let path = FilePath::new(path).map_err(|error| EngineError::refused(shown(), error.to_string()))?;
    Ok(GatheredFile { path, facts: entry.facts })
}

/// Whether a link ends outside its root, or nowhere that can be told.
fn leads_out(root: &CaptureRoot, link: &Path) -> bool {
    match (root.path.canonicalize(), link.canonicalize()) {
        (Ok(root), Ok(target)) => !target.starts_with(root),
        // One that dangles leads to nothing, in or out, unless it says where by an absolute path or upwards.
        _ => link.read_link().map_or(true, |target| {
            target.is_absolute() || target.components().any(|part| part == std::path::Component::ParentDir)
        }),
    }
}

// === impl Files ===

impl Files {
    pub(super) fn of(roots: &[CaptureRoot]) -> Result<Self, EngineError> {
        let open = |root: &CaptureRoot| match Beneath::open(&root.path) {
            Ok(directory) => Some(Ok((root.name.clone(), root.path.clone(), Descent::new(directory, false)))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => Some(Err(EngineError::io("open", &root.path, error))),
        };
        Ok(Self { roots: roots.iter().filter_map(open).collect::<Result<_, _>>()? })
    }

    /// The file, if it is still the one that was gathered.
    pub(super) fn open(&mut self, file: &GatheredFile) -> Result<(File, PathBuf), EngineError> {
        let (name, below) = file.path.as_str().split_once('/').unwrap_or_default();
        let Some((_, place, descent)) = self.roots.iter_mut().find(|(root, ..)| root == name) else {
            return Err(EngineError::Changed { path: PathBuf::from(file.path.as_str()) });
        };
        let path = place.join(below);
        let opened = descent.above(below).and_then(|(directory, name)| directory.file(name));
        let opened = opened.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => EngineError::Changed { path: path.clone() },
            _ => EngineError::io("open", &path, error),
        })?;
        check_unchanged(&opened, file, &path)?;
        Ok((opened, path))
    }
}

/// Whether an open file is what was gathered.
pub(super) fn check_unchanged(open: &File, file: &GatheredFile, path: &Path) -> Result<(), EngineError> {
    let now = Facts::of_file(open).map_err(|error| EngineError::io("read", path, error))?;
    if now == file.facts { Ok(()) } else { Err(EngineError::Changed { path: path.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn root(path: &Path) -> Vec<CaptureRoot> {
        vec![CaptureRoot { name: "vllm".to_owned(), path: path.to_owned() }]
    }

    #[test]
    fn what_is_passing_is_left_out_and_the_rest_is_taken_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let at = |path: &str| directory.path().join(path);
        for path in ["b/x.so", "a", "b.py", "locks/l", "b/x.lock", "tmp.pid_7_a/y", "modelinfos/m", "b/.7.8.tmp"] {
            std::fs::create_dir_all(at(path).parent().unwrap()).unwrap();
            std::fs::write(at(path), path).unwrap();
        }
        symlink("b/x.so", at("inside")).unwrap();
        let gathered = gather(&root(directory.path())).unwrap();
        let taken: Vec<_> = gathered.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(taken, ["vllm/a", "vllm/b.py", "vllm/b/x.so"]);
        assert_eq!(gathered.left_out.len(), 6, "{:?}", gathered.left_out);
        assert!(gather(&root(&at("absent"))).unwrap().files.is_empty());
    }

    #[test]
    fn what_no_bundle_may_have_is_refused_by_name() {
        type Make = fn(&Path);
        let cases: [(&str, Make, &str); 7] = [
            ("out", |path| symlink("/etc/passwd", path).unwrap(), "leads out"),
            ("up", |path| symlink("../../etc", path).unwrap(), "leads out"),
            ("gone", |path| symlink("/nowhere/at/all", path).unwrap(), "leads out"),
            ("socket", |path| drop(std::os::unix::net::UnixListener::bind(path).unwrap()), "neither"),
            ("empty.so", |path| std::fs::write(path, "").unwrap(), "empty"),
            (
                "setuid",
                |path| {
                    std::fs::write(path, "x").unwrap();
                    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o4755)).unwrap();
                },
                "set-user-id",
            ),
            ("a\nb", |path| std::fs::write(path, "x").unwrap(), "control character"),
        ];
        for (name, make, says) in cases {
            let directory = tempfile::tempdir().unwrap();
            make(&directory.path().join(name));
            let error = gather(&root(directory.path())).expect_err(name).to_string();
            assert!(error.contains(says) && error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_another_since_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a/b");
        std::fs::create_dir(directory.path().join("a")).unwrap();
        std::fs::write(&path, "one").unwrap();
        let gathered = gather(&root(directory.path())).unwrap();
        let open = || Files::of(&root(directory.path())).unwrap().open(&gathered.files[0]).map(drop);
        open().unwrap();
        std::fs::write(&path, "two").unwrap();
        assert!(matches!(open(), Err(EngineError::Changed { .. })));
        std::fs::remove_dir_all(directory.path().join("a")).unwrap();
        assert!(matches!(open(), Err(EngineError::Changed { .. })));
        // The directory on the way has become a link.
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("b"), "one").unwrap();
        symlink(elsewhere.path(), directory.path().join("a")).unwrap();
        assert!(open().is_err());
    }
}
