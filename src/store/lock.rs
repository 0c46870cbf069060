//! One writer a root. The lock is `flock(2)`: it goes when its process goes, however that ends, so there are no stale locks.
//! The file says who holds it, for the next: a fetch waits for a fetch, and everybody else is told.
//!
//! Lock and name are two steps. Whoever comes between them finds no name, or the name of a holder long gone, and would give up
//! where it should wait. So a name counts once it has been read twice with a pause between.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::error::IoContext;
use super::layout::Layout;
use super::{Holder, StoreError};

/// Between two looks at the name: some thousand times what writing it takes, and not felt by who is refused.
const NAME_PAUSE: Duration = Duration::from_millis(20);

/// Looks at most: a second, for a holder on a machine that is busy.
const NAME_READS: u32 = 50;

/// The held lock; released when dropped.
#[derive(Debug)]
pub(super) struct RootLock {
    _file: File,
}

// === impl RootLock ===

impl RootLock {
    pub(super) fn take(layout: &Layout, holder: &Holder) -> Result<Self, StoreError> {
        Self::take_between(layout, holder, &mut || std::thread::sleep(NAME_PAUSE))
    }

    /// `pause` comes between two looks.
    fn take_between(layout: &Layout, holder: &Holder, pause: &mut dyn FnMut()) -> Result<Self, StoreError> {
        let path = layout.lock();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .at("open lock (is the store's directory writable?)", &path)?;
        let mut named = None;
        for _ in 0..NAME_READS {
            match file.try_lock() {
                Ok(()) => {
                    let text = serde_json::to_vec(holder).unwrap_or_default();
                    file.set_len(0).and_then(|()| file.write_all_at(&text, 0)).at("write lock", &path)?;
                    return Ok(Self { _file: file });
                }
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => return Err(error).at("lock", &path),
            }
            let name = read_name(&file);
            if name.is_some() && name == named {
                break;
            }
            named = name;
            pause();
        }
        // An unknown holder is still a holder.
        let holder = named.unwrap_or_else(|| Holder { role: "unknown".to_owned(), pid: 0 });
        Err(StoreError::Locked { root: layout.root().to_owned(), holder })
    }
}

fn read_name(file: &File) -> Option<Holder> {
    let mut text = [0; 4096];
    let length = file.read_at(&mut text, 0).ok()?;
    serde_json::from_slice(&text[..length]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(role: &str, pid: u32) -> Holder {
        Holder { role: role.to_owned(), pid }
    }

    /// A root whose lock is held by a process that is about to write its name.
    fn between_lock_and_name(written: &str) -> (tempfile::TempDir, Layout, File) {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        std::fs::write(layout.lock(), written).unwrap();
        let file = OpenOptions::new().write(true).open(layout.lock()).unwrap();
        file.try_lock().unwrap();
        (root, layout, file)
    }

    fn told(layout: &Layout, pause: &mut dyn FnMut()) -> Holder {
        match RootLock::take_between(layout, &holder("fetch", 3), pause) {
            Err(StoreError::Locked { holder, .. }) => holder,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_holder_that_is_just_writing_its_name_is_known_by_it() {
        for before in ["", r#"{"role":"serve","pid":1}"#] {
            let (_root, layout, file) = between_lock_and_name(before);
            let mut write = || {
                file.set_len(0).unwrap();
                file.write_all_at(br#"{"role":"fetch","pid":2}"#, 0).unwrap();
            };
            assert_eq!(told(&layout, &mut write), holder("fetch", 2), "the file had: {before}");
        }
    }

    #[test]
    fn a_holder_without_a_name_is_a_holder() {
        let (_root, layout, _file) = between_lock_and_name("");
        assert_eq!(told(&layout, &mut || {}), holder("unknown", 0));
    }

    #[test]
    fn a_lock_that_becomes_free_meanwhile_is_taken() {
        let (_root, layout, file) = between_lock_and_name("");
        let mut held = Some(file);
        RootLock::take_between(&layout, &holder("fetch", 3), &mut || drop(held.take())).unwrap();
    }
}
