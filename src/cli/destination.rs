//! The directory of `--to`, which belongs to one fetch at a time.
//!
//! Two replicas of one pod, or an init container that was started again while its first run still dies, copy into the same
//! directory. Both would stage under the same names, and one could give a file its name while the other is still writing to
//! it. The directory itself is locked (`flock(2)`), so that the lock leaves nothing behind and cannot be removed under
//! those who wait for it; a lock file in the staging directory was turned down, because that directory goes when a fetch ends.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::direct::LOCK_POLL;
use super::error::CliError;
use super::place::STAGING;
use super::progress::Meter;
use crate::base::ErrorKind;
use crate::base::lifecycle::CancellationToken;
use crate::sys::durable::make_directories;

/// A directory that this fetch alone fills.
#[derive(Debug)]
pub(super) struct Destination {
    path: PathBuf,
    /// `None` where the file system has no locks for directories.
    _lock: Option<File>,
}

// === impl Destination ===

impl Destination {
    /// Makes the directory if it is absent, and waits while another fetch fills it.
    pub(super) async fn take(to: &Path, meter: &Meter, cancel: &CancellationToken) -> anyhow::Result<Self> {
        make_directories(to).with_context(|| format!("make directory {}", to.display()))?;
        let path = std::path::absolute(to).with_context(|| format!("resolve {}", to.display()))?;
        let directory = File::open(&path).with_context(|| format!("open directory {}", path.display()))?;
        let mut said = false;
        loop {
            match directory.try_lock() {
                Ok(()) => return Ok(Self { path, _lock: Some(directory) }),
                Err(TryLockError::WouldBlock) => {}
                // NFS locks nothing that is not open for writing. A fetch that is alone needs no lock.
                Err(TryLockError::Error(_)) => return Ok(Self { path, _lock: None }),
            }
            if !said {
                meter.note(&format!("waiting for another fetch into {}", path.display()));
                said = true;
            }
            tokio::select! {
                () = cancel.cancelled() => {
                    return Err(CliError::new(ErrorKind::Cancelled, "interrupted while waiting").into());
                }
                () = tokio::time::sleep(LOCK_POLL) => {}
            }
        }
    }

    /// The directory, absolute.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The store of a fetch that has no other.
    pub(super) fn private_store(&self) -> PathBuf {
        self.path.join(STAGING).join("store")
    }

    /// Removes what fetches into this directory keep for the next attempt: there will be none.
    pub(super) fn clear(&self) -> anyhow::Result<()> {
        let staging = self.path.join(STAGING);
        if !staging.exists() {
            return Ok(());
        }
        make_removable(&staging)?;
        fs::remove_dir_all(&staging).with_context(|| format!("remove {}", staging.display()))
    }
}

/// Trees are read-only directories; an unprivileged owner must be allowed to write before it can remove.
fn make_removable(root: &Path) -> anyhow::Result<()> {
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))
            .with_context(|| format!("set permissions of {}", directory.display()))?;
        for entry in fs::read_dir(&directory).with_context(|| format!("list {}", directory.display()))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok(())
}
