//! The view of one start: directories of its own, with what was restored in them, which the engine finds where it always looks. In a
//! mount namespace of its own where that is allowed; otherwise at another path, for engines that do not mind; otherwise not at all.
//!
//! A view belongs to one start and goes with it. Two starts never share one: engines write where they read, and lock only
//! among themselves. It holds a lock for as long as the command lives, also when the process that made it is gone; what holds no lock
//! is taken away by the next start.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::super::fingerprint::Scene;
use super::super::roots::Root;
use super::shown::{Shown, unlink};
use crate::base::units::GIB;
use crate::model::engine::BundleKind;
use crate::sys::durable::temporary_name;
use crate::sys::launch::{Mounts, has_been_given_capabilities};
use crate::sys::mutant::mutant;
use crate::sys::peer::own_uid;
use crate::sys::space::Filesystem;

/// The room that a view has for what an engine compiles, unless its own directory has less: large caches have up to 2 GB.
const ROOM: u64 = 2 * GIB;

/// What the names of views begin with that are being taken away.
const DEAD: &str = ".dead-";

/// A view, removed when dropped.
#[derive(Debug)]
pub(super) struct View {
    path: PathBuf,
    lock: File,
}

/// How a command finds its view.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Placement {
    /// By links at the engine's own paths.
    Linked,
    /// In a mount namespace, at the engine's own paths.
    Mounted,
    /// The same, in a user namespace of its own.
    MountedAsUser,
    /// At other paths, by the engine's variables.
    Slot,
    /// There is none: the engine uses its own directories.
    InPlace,
}

/// What has been decided.
#[derive(Debug)]
pub(super) struct Placed {
    pub(super) how: Placement,
    pub(super) mounts: Option<Mounts>,
    /// The same without what is shown read-only.
    pub(super) plain: Option<Mounts>,
    /// Variables to set.
    pub(super) variables: Vec<(String, PathBuf)>,
    /// The roots that are in the view.
    pub(super) inside: Vec<Root>,
    /// Why what should be shown is not.
    pub(super) not_shown: Option<String>,
    /// What was tried in vain, in words.
    pub(super) notes: Vec<String>,
}

// === impl View ===

impl View {
    /// Makes an empty one below `base`, or where this user may write, and takes away what dead starts have left.
    ///
    /// # Errors
    /// When there is no place.
    pub(super) fn make(base: Option<&Path>, scene: &Scene) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::NotFound);
        for candidate in candidates(base, scene) {
            match Self::below(&candidate) {
                Ok(view) => return Ok(view),
                Err(error) => last = io::Error::new(error.kind(), format!("{}: {error}", candidate.display())),
            }
        }
        Err(last)
    }

    fn below(base: &Path) -> io::Result<Self> {
        if let Some(above) = base.parent() {
            fs::create_dir_all(above)?;
        }
        match DirBuilder::new().mode(0o700).create(base) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            outcome => outcome?,
        }
        let facts = fs::symlink_metadata(base)?;
        // In a directory that is open to all somebody else may have been first.
        if !facts.is_dir() || facts.uid() != own_uid() || facts.mode() & 0o022 != 0 {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "it is not this user's own directory"));
        }
        sweep(base);
        loop {
            // With the time, for an earlier process may have had this number.
            let path = base.join(format!("{}-{}", temporary_name(), jitter()));
            DirBuilder::new().mode(0o700).create(&path)?;
            // Somebody who sweeps may have it before it is locked, or have taken it away before that.
            match File::open(&path) {
                Ok(lock) if lock.try_lock().is_ok() && is_at(&lock, &path) => return Ok(Self { path, lock }),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What is locked while the view is in use.
    pub(super) fn lock(&self) -> &File {
        &self.lock
    }

    /// The directory that holds the view's.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the roots of a kind are.
    pub(super) fn of(&self, kind: BundleKind) -> PathBuf {
        self.path.join(kind.as_str())
    }

    /// Where a root is.
    pub(super) fn root(&self, root: &Root) -> PathBuf {
        self.of(root.kind).join(&root.name)
    }

    /// Takes away what is in it.
    pub(super) fn wipe(&self, kind: BundleKind) -> io::Result<()> {
        match fs::remove_dir_all(self.of(kind)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Makes those of the roots' directories that are not there, and in each a place for those that the engine has below it: seen
    /// in the outer one, they are mounted there.
    pub(super) fn fill(&self, roots: &[Root]) -> io::Result<()> {
        for root in roots {
            fs::create_dir_all(self.root(root))?;
            for inner in roots.iter().filter(|inner| inner.path != root.path) {
                if let Ok(below) = inner.path.strip_prefix(&root.path) {
                    fs::create_dir_all(self.root(root).join(below))?;
                }
            }
        }
        Ok(())
    }
}

impl Drop for View {
    fn drop(&mut self) {
        take_away(&self.path);
    }
}

/// Whether this is the directory that has the name.
fn is_at(directory: &File, path: &Path) -> bool {
    let facts = directory.metadata().and_then(|open| Ok((open, fs::symlink_metadata(path)?)));
    facts.is_ok_and(|(open, named)| (open.dev(), open.ino()) == (named.dev(), named.ino()))
}

/// Takes a view away. By another name first: what a kill leaves of it is nobody's from then on.
fn take_away(path: &Path) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let dead = path.with_file_name(format!("{DEAD}{name}"));
    let path = if fs::rename(path, &dead).is_ok() { &dead } else { path };
    unlink(path);
    // What stays is taken away by the next start.
    let _ = fs::remove_dir_all(path);
}

fn candidates(base: Option<&Path>, scene: &Scene) -> Vec<PathBuf> {
    if let Some(base) = base {
        return vec![base.to_owned()];
    }
    let cache = scene.variable("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| Some(scene.home()?.join(".cache")));
    let own = format!("preheat-{}/views", own_uid());
    let temporary = PathBuf::from(scene.variable("TMPDIR").unwrap_or("/tmp"));
    let mut all: Vec<PathBuf> = cache.into_iter().map(|cache| cache.join("preheat/views")).collect();
    for open in [Path::new("/var/tmp"), &temporary] {
        all.push(open.join(&own));
    }
    all
}

/// Takes away the views of starts that are over.
fn sweep(base: &Path) {
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let path = entry.path();
        if entry.file_name().to_string_lossy().starts_with(DEAD) {
            unlink(&path);
            let _ = fs::remove_dir_all(&path);
            continue;
        }
        let Ok(lock) = File::open(&path) else { continue };
        // Locked for as long as it has its name, so that who makes one of this name finds out.
        if lock.try_lock().is_ok() && is_at(&lock, &path) {
            take_away(&path);
        }
    }
}

fn jitter() -> u32 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.subsec_nanos())
}

/// Decides how the command finds its view. `own`: roots that stay as they are. `shown`: what the store shows in place.
pub(super) fn place(
    view: &View,
    roots: &[Root],
    own: &[String],
    shown: &[Shown],
    relocatable: bool,
    namespaces: bool,
) -> Placed {
    let mut notes = Vec::new();
    let mut inside: Vec<Root> = roots.iter().filter(|root| !own.contains(&root.name)).cloned().collect();
    // A root without a variable, or below what that says, cannot be moved alone.
    let movable = |root: &Root| root.variable.as_ref().is_some_and(|(_, below)| below.as_os_str().is_empty());
    let moved = |root: &Root| Some((root.variable.as_ref()?.0.clone(), view.root(root)));
    if namespaces {
        let (mut pairs, mut variables, mut lost) = (Vec::new(), Vec::new(), Vec::new());
        for root in &inside {
            match fs::create_dir_all(&root.path) {
                Ok(()) => pairs.push((view.root(root), root.path.clone())),
                Err(_) if relocatable && movable(root) => variables.extend(moved(root)),
                Err(error) => {
                    let path = root.path.display();
                    notes.push(format!("{path} cannot be made, so that nothing can be put there: {error}"));
                    lost.push(root.name.clone());
                }
            }
        }
        match mounted(&pairs) {
            Ok((plain, how)) => {
                let (mounts, not_shown) = match with_shown(&plain, view, shown) {
                    Ok(mounts) => (mounts, None),
                    Err(error) => (plain.clone(), Some(format!("it cannot be mounted read-only: {error}"))),
                };
                inside.retain(|root| !lost.contains(&root.name));
                let how = match (pairs.is_empty(), variables.is_empty()) {
                    (true, true) => Placement::InPlace,
                    (true, false) => Placement::Slot,
                    (false, _) => how,
                };
                let plain = Some(plain);
                return Placed { how, mounts: Some(mounts), plain, variables, inside, not_shown, notes };
            }
            Err(error) => notes.push(format!("no mount namespace: {error}")),
        }
    }
    if !shown.is_empty() {
        // One that cannot be linked is the end of all: half an engine is none.
        let linked: Result<(), String> = shown.iter().try_for_each(|one| one.link(view.path()));
        let (how, inside, not_shown) = match linked {
            Ok(()) => (Placement::Linked, shown.iter().map(|one| one.root.clone()).collect(), None),
            Err(why) => {
                unlink(view.path());
                (Placement::InPlace, Vec::new(), Some(why))
            }
        };
        return Placed { how, mounts: None, plain: None, variables: Vec::new(), inside, not_shown, notes };
    }
    if !relocatable {
        notes.push("what this engine compiles is good at one path only, and its view cannot be put there".to_owned());
        let (variables, inside) = (Vec::new(), Vec::new());
        return Placed {
            how: Placement::InPlace,
            mounts: None,
            plain: None,
            variables,
            inside,
            not_shown: None,
            notes,
        };
    }
    inside.retain(movable);
    let variables: Vec<(String, PathBuf)> = inside.iter().filter_map(moved).collect();
    let how = if inside.is_empty() { Placement::InPlace } else { Placement::Slot };
    Placed { how, mounts: None, plain: None, variables, inside, not_shown: None, notes }
}

/// The same mounts, and after them what is shown.
fn with_shown(plain: &Mounts, view: &View, shown: &[Shown]) -> io::Result<Mounts> {
    if shown.is_empty() {
        return Ok(plain.clone());
    }
    let mut pairs = Vec::new();
    for one in shown {
        pairs.extend(one.mounts(view)?);
    }
    let mounts = plain.clone().and_read_only(&pairs)?;
    mounts.probe()?;
    Ok(mounts)
}

fn mounted(pairs: &[(PathBuf, PathBuf)]) -> io::Result<(Mounts, Placement)> {
    let plain = Mounts::new(pairs, false)?;
    match plain.probe() {
        Ok(()) => Ok((plain, Placement::Mounted)),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            if has_been_given_capabilities() {
                let why = "and a user namespace would take from it the capabilities that it has been given";
                return Err(io::Error::new(error.kind(), format!("{error}, {why}")));
            }
            let own = Mounts::new(pairs, true)?;
            own.probe()?;
            Ok((own, Placement::MountedAsUser))
        }
        Err(error) => Err(error),
    }
}

/// The roots whose directories have files already: those that the engine may use, and that are not ours to hide from it. A directory
/// that leads to another of `all` is no file; nor is what is in one of `covered`, where something verified takes its place.
pub(super) fn with_files(roots: &[Root], all: &[Root], covered: &[String]) -> Vec<String> {
    let has = |root: &&Root| has_files(&root.path, all, covered);
    roots.iter().filter(has).map(|root| root.name.clone()).collect()
}

fn has_files(directory: &Path, all: &[Root], covered: &[String]) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries.flatten().any(|entry| {
        let path = entry.path();
        match all.iter().find(|other| other.path == path) {
            Some(other) => !covered.contains(&other.name) && has_files(&path, all, covered),
            // Only on the way to another it is looked into: any directory else is something of the engine's.
            None => all.iter().all(|other| !other.path.starts_with(&path)) || has_files(&path, all, covered),
        }
    })
}

/// Whether an engine could fail for want of space in a view where in its own directory it would not.
pub(super) fn is_cramped(view: &View, own: &Path) -> bool {
    let Some(own) = own.ancestors().find(|path| path.exists()) else { return false };
    let same_disk =
        fs::metadata(own).is_ok_and(|own| fs::metadata(&view.path).is_ok_and(|view| view.dev() == own.dev()));
    match (Filesystem::of(&view.path), Filesystem::of(own)) {
        (Ok(here), Ok(there)) => {
            !same_disk && here.available < ROOM.min(there.available) && !mutant("view_on_full_disk")
        }
        // What is not known hinders nothing.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scene() -> Scene {
        Scene {
            root: "/".into(),
            environment: std::collections::BTreeMap::new(),
            argv: Vec::new(),
            directory: "/".into(),
        }
    }

    fn root(name: &str, path: PathBuf, variable: Option<&str>) -> Root {
        let variable = variable.map(|name| (name.to_owned(), PathBuf::new()));
        Root { name: name.to_owned(), kind: BundleKind::Graph, path, variable, in_place: false }
    }

    #[test]
    fn dead_views_go_and_living_ones_stay() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().join("views");
        let living = View::make(Some(&base), &scene()).unwrap();
        let dead = base.join("1-1");
        fs::create_dir_all(dead.join("graph/x")).unwrap();
        // One that somebody was killed over while it was taken away.
        let half = base.join(".dead-2-2");
        fs::create_dir_all(half.join("graph")).unwrap();
        let other = View::make(Some(&base), &scene()).unwrap();
        assert!(living.path().exists() && other.path().exists() && !dead.exists() && !half.exists());
        assert_ne!(living.path(), other.path());
        let path = living.path().to_owned();
        drop(living);
        assert!(!path.exists());
    }

    #[test]
    fn a_view_that_is_being_made_is_not_swept() {
        let base = tempfile::tempdir().unwrap();
        let base = base.path().join("views");
        fs::create_dir(&base).unwrap();
        fs::set_permissions(&base, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
        let make = || {
            for _ in 0..300 {
                let view = View::make(Some(&base), &scene()).unwrap();
                fs::create_dir(view.path().join("graph")).unwrap();
                sweep(&base);
                assert!(view.path().join("graph").is_dir(), "somebody has taken it away");
            }
        };
        std::thread::scope(|scope| {
            let hands: Vec<_> = (0..4).map(|_| scope.spawn(make)).collect();
            hands.into_iter().for_each(|hand| hand.join().unwrap());
        });
        assert_eq!(fs::read_dir(&base).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_in_another_is_seen_in_it_and_is_no_file_of_it() {
        let base = tempfile::tempdir().unwrap();
        let (outer, inner) = (base.path().join("cache"), base.path().join("cache/deep/triton"));
        let inside = Root { kind: BundleKind::Kernel, ..root("triton", inner.clone(), Some("TRITON_CACHE_DIR")) };
        let roots = [root("vllm", outer.clone(), Some("VLLM_CACHE_ROOT")), inside];
        fs::create_dir_all(&inner).unwrap();
        let found = |covered: &[String]| with_files(&roots, &roots, covered);
        assert!(found(&[]).is_empty(), "a place for another is no file");
        let view = View::make(Some(&base.path().join("views")), &scene()).unwrap();
        view.fill(&roots).unwrap();
        assert!(view.root(&roots[0]).join("deep/triton").is_dir());
        fs::write(inner.join("x"), "").unwrap();
        assert_eq!(found(&[]), ["vllm", "triton"], "a view of the outer one would hide what is in the inner");
        assert_eq!(found(&["triton".to_owned()]), ["triton"], "unless something takes its place");
        fs::write(outer.join("deep/y"), "").unwrap();
        assert_eq!(found(&["triton".to_owned()]), ["vllm", "triton"]);
    }

    #[test]
    fn a_directory_of_somebody_else_is_not_used() {
        let base = tempfile::tempdir().unwrap();
        let (open, link) = (base.path().join("open"), base.path().join("link"));
        fs::create_dir(&open).unwrap();
        fs::set_permissions(&open, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        std::os::unix::fs::symlink(base.path(), &link).unwrap();
        for place in [open, link] {
            assert_eq!(View::make(Some(&place), &scene()).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn without_namespaces_only_what_may_move_is_moved() {
        let base = tempfile::tempdir().unwrap();
        let view = View::make(Some(&base.path().join("views")), &scene()).unwrap();
        let roots = [
            root("a", base.path().join("a"), Some("A_DIR")),
            root("b", base.path().join("b"), None),
            root("c", base.path().join("c"), Some("C_DIR")),
        ];
        view.fill(&roots).unwrap();
        let placed = place(&view, &roots, &["c".to_owned()], &[], true, false);
        assert_eq!(placed.how, Placement::Slot);
        assert_eq!(placed.variables, [("A_DIR".to_owned(), view.of(BundleKind::Graph).join("a"))]);
        assert_eq!(placed.inside.len(), 1);
        let placed = place(&view, &roots, &[], &[], false, false);
        assert!(placed.how == Placement::InPlace && placed.inside.is_empty() && !placed.notes.is_empty());
    }

    #[test]
    fn what_cannot_be_mounted_falls_back() {
        let base = tempfile::tempdir().unwrap();
        let view = View::make(Some(&base.path().join("views")), &scene()).unwrap();
        fs::write(base.path().join("file"), "").unwrap();
        let roots = [root("a", base.path().join("file/below"), Some("A_DIR"))];
        view.fill(&roots).unwrap();
        assert_eq!(place(&view, &roots, &[], &[], true, true).how, Placement::Slot);
        assert_eq!(place(&view, &roots, &[], &[], false, true).how, Placement::InPlace);
    }
}
