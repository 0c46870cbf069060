//! Files below a directory, reached without ever leaving it: every step is one name looked up in an open directory, and no step
//! follows a link. So a directory that somebody replaces by a link meanwhile leads nowhere.
//!
//! `openat2` with `RESOLVE_BENEATH` does the same in one call; it was turned down because old container profiles answer it with
//! EPERM, and the way through open directories is as cheap where neighbours share them.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, Timespec, Timestamps, fchmod, futimens, mkdirat, openat, statat,
};
use rustix::io::Errno;

/// An open directory.
#[derive(Debug)]
pub struct Beneath {
    directory: OwnedFd,
}

/// What a name in a directory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
    /// A device, a socket, a FIFO.
    Other,
}

/// A name in a directory and what is known of it; links are not followed.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub name: CString,
    /// What it is.
    pub kind: Kind,
    /// The rest.
    pub facts: Facts,
}

/// What the system says of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Size in bytes.
    pub size: u64,
    /// Permission bits, with set-user-id and the like.
    pub mode: u32,
    /// Modification time, nanoseconds since the epoch; what is older is 0.
    pub mtime_ns: u64,
    /// Change time, nanoseconds since the epoch.
    pub ctime_ns: u64,
    /// Inode number.
    pub inode: u64,
}

/// The way down from a root: the directories of the last path stay open for the next.
#[derive(Debug)]
pub struct Descent {
    root: Beneath,
    open: Vec<(String, Beneath)>,
    make: bool,
}

// === impl Facts ===

impl Facts {
    fn of(stat: &Stat) -> Self {
        let time = |seconds: i64, nanoseconds: u64| {
            u64::try_from(seconds)
                .map_or(0, |seconds| seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds))
        };
        Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode & 0o7777,
            mtime_ns: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime_ns: time(stat.st_ctime, stat.st_ctime_nsec),
            inode: stat.st_ino,
        }
    }

    /// Those of an open file.
    ///
    /// # Errors
    /// What the system says.
    pub fn of_file(file: &File) -> io::Result<Self> {
        Ok(Self::of(&rustix::fs::fstat(file)?))
    }
}

// === impl Beneath ===

impl Beneath {
    /// Opens a directory by its path; links on the way to it are followed, as for everybody.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { directory: openat(CWD, path, flags, Mode::empty())? })
    }

    /// Opens a directory in it.
    ///
    /// # Errors
    /// `NotADirectory` for a link as well.
    pub fn directory(&self, name: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(Self { directory: openat(&self.directory, plain(name)?, flags, Mode::empty())? })
    }

    /// Makes a directory in it, unless there is one, and opens it.
    ///
    /// # Errors
    /// As for [`Beneath::directory`].
    pub fn make_directory(&self, name: &str) -> io::Result<Self> {
        match mkdirat(&self.directory, plain(name)?, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => self.directory(name),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a regular file in it for reading; a FIFO does not block.
    ///
    /// # Errors
    /// `InvalidInput` if it is none.
    pub fn file(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(openat(&self.directory, plain(name)?, flags, Mode::empty())?);
        if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
    }

    /// Makes a file in it that was not there.
    ///
    /// # Errors
    /// `AlreadyExists`, for a link as well.
    pub fn create(&self, name: &str) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(File::from(openat(&self.directory, plain(name)?, flags, Mode::from_raw_mode(0o600))?))
    }

    /// What is in it, at most `limit` names, sorted.
    ///
    /// # Errors
    /// What the system says; `QuotaExceeded` beyond the limit.
    pub fn entries(&self, limit: usize) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for entry in Dir::read_from(&self.directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            if entries.len() >= limit {
                return Err(io::ErrorKind::QuotaExceeded.into());
            }
            // What has gone since it was listed is not there.
            match statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => entries.push(Entry::of(name, &stat)),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error.into()),
            }
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }
}

// === impl Entry ===

impl Entry {
    fn of(name: &CStr, stat: &Stat) -> Self {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Link,
            _ => Kind::Other,
        };
        Self { name: name.to_owned(), kind, facts: Facts::of(stat) }
    }
}

// === impl Descent ===

impl Descent {
    /// From `root` down. `make`: directories that are not there are made.
    #[must_use]
    pub fn new(root: Beneath, make: bool) -> Self {
        Self { root, open: Vec::new(), make }
    }

    /// The directory that holds the last name of `path`, and that name.
    ///
    /// # Errors
    /// `InvalidInput` for a path with empty, `.` or `..` segments; what opening says.
    pub fn above<'a>(&mut self, path: &'a str) -> io::Result<(&Beneath, &'a str)> {
        let (parents, name) = path.rsplit_once('/').map_or((None, path), |(parents, name)| (Some(parents), name));
        let mut depth = 0;
        for segment in parents.into_iter().flat_map(|parents| parents.split('/')) {
            if self.open.get(depth).is_none_or(|(name, _)| name != segment) {
                self.open.truncate(depth);
                let here = self.open.last().map_or(&self.root, |(_, directory)| directory);
                let below = if self.make { here.make_directory(segment)? } else { here.directory(segment)? };
                self.open.push((segment.to_owned(), below));
            }
            depth += 1;
        }
        self.open.truncate(depth);
        Ok((self.open.last().map_or(&self.root, |(_, directory)| directory), name))
    }
}

/// Gives an open file its permission bits and modification time, in that order.
///
/// # Errors
/// What the system says.
pub fn finish(file: &File, mode: u32, mtime_ns: u64) -> io::Result<()> {
    fchmod(file, Mode::from_raw_mode(mode & 0o777))?;
    let at = Duration::from_nanos(mtime_ns);
    let time = Timespec { tv_sec: i64::try_from(at.as_secs()).unwrap_or(i64::MAX), tv_nsec: at.subsec_nanos().into() };
    Ok(futimens(file, &Timestamps { last_access: time, last_modification: time })?)
}

/// A name that is one step down and nothing else.
fn plain(name: &str) -> io::Result<&str> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(name)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn no_step_leaves_the_directory() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::fs::write(directory.path().join("secret"), "s").unwrap();
        std::fs::write(root.join("a/b/c"), "c").unwrap();
        std::os::unix::fs::symlink("..", root.join("up")).unwrap();
        std::os::unix::fs::symlink("../secret", root.join("link")).unwrap();
        let mut descent = Descent::new(Beneath::open(&root).unwrap(), false);
        let mut read = |path: &str| {
            let (directory, name) = descent.above(path)?;
            let mut text = String::new();
            directory.file(name)?.read_to_string(&mut text)?;
            Ok::<_, io::Error>(text)
        };
        assert_eq!(read("a/b/c").unwrap(), "c");
        for path in ["../secret", "up/secret", "link", "a/../../secret", "", ".", "a//b", "/etc/passwd", "a/b"] {
            assert!(read(path).is_err(), "{path}");
        }
        assert_eq!(read("a/b/c").unwrap(), "c", "and it goes on");
    }

    #[test]
    fn what_is_made_is_made_below_and_new() {
        let directory = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(outside.path(), directory.path().join("link")).unwrap();
        let mut descent = Descent::new(Beneath::open(directory.path()).unwrap(), true);
        let (below, name) = descent.above("x/y/z").unwrap();
        let file = below.create(name).unwrap();
        finish(&file, 0o6755, 1_700_000_000_123_456_789).unwrap();
        let facts = Facts::of_file(&file).unwrap();
        assert_eq!((facts.mode, facts.mtime_ns), (0o755, 1_700_000_000_123_456_789));
        assert_eq!(below.create(name).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert!(descent.above("link/file").is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn entries_say_what_they_are() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "abc").unwrap();
        std::fs::create_dir(directory.path().join("directory")).unwrap();
        std::os::unix::fs::symlink("file", directory.path().join("link")).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(directory.path().join("socket")).unwrap();
        let beneath = Beneath::open(directory.path()).unwrap();
        let kinds: Vec<_> = beneath.entries(4).unwrap().into_iter().map(|entry| (entry.name, entry.kind)).collect();
        let expected =
            [(c"directory", Kind::Directory), (c"file", Kind::File), (c"link", Kind::Link), (c"socket", Kind::Other)];
        assert_eq!(kinds, expected.map(|(name, kind)| (name.to_owned(), kind)));
        assert_eq!(beneath.entries(3).unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
    }
}
