//! What is in the directories of an engine: names, sizes, times, and never contents, since reading a file would be taken for the
//! engine's own reading of it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use globset::GlobSet;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_OMIT, utimensat};

use super::super::is_passing;

/// Most files that are looked at; a bundle has no more.
const LIMIT: usize = 200_000;

/// The time of last access that a restored file is given: old enough that every file system which keeps such times notes the next.
const LONG_AGO: i64 = 1;

/// A directory that is watched.
#[derive(Clone, Debug)]
pub(super) struct Watched {
    /// The first segment of its files' paths.
    pub(super) name: String,
    pub(super) path: PathBuf,
    /// Files that prove nothing.
    pub(super) ignored: GlobSet,
}

/// One file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) size: u64,
    pub(super) mtime_ns: i128,
    /// Whether it has been read since it was restored; means nothing of others.
    pub(super) read: bool,
}

/// All files by root and path.
pub(super) type Snapshot = BTreeMap<String, Seen>;

/// Looks at all of them.
pub(super) fn scan(all: &[Watched]) -> Snapshot {
    let mut found = Snapshot::new();
    for watched in all {
        walk(watched, &watched.path, "", &mut found);
    }
    found
}

fn walk(watched: &Watched, directory: &Path, below: &str, found: &mut Snapshot) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if found.len() >= LIMIT {
            return;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if below.is_empty() { name.clone() } else { format!("{below}/{name}") };
        // The entry's own facts: links are not followed.
        let Ok(facts) = entry.metadata() else { continue };
        if is_passing(&name) || watched.ignored.is_match(&path) {
            continue;
        }
        if facts.is_dir() {
            walk(watched, &entry.path(), &path, found);
        } else if facts.is_file() {
            let seen = Seen {
                size: facts.len(),
                mtime_ns: i128::from(facts.mtime()) * 1_000_000_000 + i128::from(facts.mtime_nsec()),
                read: facts.atime() != LONG_AGO,
            };
            found.insert(format!("{}/{path}", watched.name), seen);
        }
    }
}

/// Sets the time of last access of every file far back, so that the first reading of it can be seen.
pub(super) fn mark_unread(all: &[Watched]) {
    for watched in all {
        let mut found = Snapshot::new();
        walk(watched, &watched.path, "", &mut found);
        for path in found.keys() {
            let below = path.strip_prefix(&watched.name).unwrap_or(path).trim_start_matches('/');
            // One that cannot be marked counts as read, which proves nothing and breaks nothing.
            let _ = mark(&watched.path.join(below));
        }
    }
}

fn mark(path: &Path) -> std::io::Result<()> {
    let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
    let times = Timestamps { last_access: Timespec { tv_sec: LONG_AGO, tv_nsec: 0 }, last_modification: omit };
    Ok(utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Whether reading a file in `directory` can be seen: where it is mounted with `noatime`, it cannot.
pub(super) fn shows_reads(directory: &Path) -> bool {
    let path = directory.join(".preheat-read-probe");
    let try_it = || -> std::io::Result<bool> {
        fs::write(&path, "x")?;
        mark(&path)?;
        fs::File::open(&path)?.read_exact(&mut [0])?;
        Ok(fs::metadata(&path)?.atime() != LONG_AGO)
    };
    let shows = try_it().unwrap_or(false);
    // Whether or not it was made.
    let _ = fs::remove_file(path);
    shows
}

/// The newest change, the count and the bytes: what is the same twice has settled.
pub(super) fn summary(found: &Snapshot) -> (usize, u64, i128) {
    let bytes = found.values().map(|seen| seen.size).sum();
    (found.len(), bytes, found.values().map(|seen| seen.mtime_ns).max().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_shows_and_looking_does_not() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["a", "b", "c.lock", "d.skip"] {
            fs::write(directory.path().join(name), name).unwrap();
        }
        std::os::unix::fs::symlink("a", directory.path().join("link")).unwrap();
        let ignored = globset::GlobSetBuilder::new().add(globset::Glob::new("*.skip").unwrap()).build().unwrap();
        let all = [Watched { name: "x".to_owned(), path: directory.path().to_owned(), ignored }];
        mark_unread(&all);
        if !shows_reads(directory.path()) {
            return;
        }
        scan(&all);
        fs::read(directory.path().join("b")).unwrap();
        let read: Vec<(String, bool)> = scan(&all).into_iter().map(|(path, seen)| (path, seen.read)).collect();
        assert_eq!(read, [("x/a".to_owned(), false), ("x/b".to_owned(), true)]);
    }
}
