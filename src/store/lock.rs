//! One writer a root. The lock is `flock(2)`: it goes when its process goes, however that ends, so there are no stale locks.
//! The file says who holds it, for the error message of the next.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};

use super::error::IoContext;
use super::layout::Layout;
use super::{Holder, StoreError};

/// The held lock; released when dropped.
#[derive(Debug)]
pub(super) struct RootLock {
    _file: File,
}

// === impl RootLock ===

impl RootLock {
    pub(super) fn take(layout: &Layout, holder: &Holder) -> Result<Self, StoreError> {
        let path = layout.lock();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .at("open lock (is the store's directory writable?)", &path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // The holder may be writing it at this moment; an unknown holder is still a holder.
                let _ = Read::take(&mut file, 4096).read_to_string(&mut text);
                let unknown = Holder { role: "unknown".to_owned(), pid: 0 };
                let holder = serde_json::from_str(&text).unwrap_or(unknown);
                return Err(StoreError::Locked { root: layout.root().to_owned(), holder });
            }
            Err(TryLockError::Error(error)) => return Err(error).at("lock", &path),
        }
        let text = serde_json::to_vec(holder).unwrap_or_default();
        file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(&text)).at("write lock", &path)?;
        Ok(Self { _file: file })
    }
}
