//! Bytes that failed verification: moved aside, so that a person can look at them, and out of every tree, so that nobody reads
//! them. The models that named them stay known; their next fetch gets just what is missing.

use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::error::IoContext;
use super::layout::{names, parse_quarantined};
use super::space::cost;
use super::{Evicted, Inner, StoreError, now};
use crate::digest::Hash;

/// Blobs kept in quarantine; the oldest go first.
const COUNT_LIMIT: usize = 16;

/// How long one is kept.
const AGE_LIMIT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The note beside a quarantined blob.
#[derive(Serialize)]
struct Note<'a> {
    blob: &'a Hash,
    size: u64,
    noticed_by: &'a str,
    at: u64,
}

// === impl Inner ===

impl Inner {
    /// Moves a blob aside and withdraws the trees that link it. Idempotent.
    pub(super) fn quarantine_blob(&self, hash: &Hash, noticed_by: &str) -> Result<(), StoreError> {
        // New readers first, while the blob still has its name.
        self.withdraw_models_with(hash)?;
        let Some(blob) = self.index().remove_blob(hash) else { return Ok(()) };
        tracing::error!(blob = %hash, noticed_by, "blob is corrupt: quarantined, and fetched again when next asked for");
        let from = self.place(blob.home, hash);
        let milliseconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let name = format!("{hash}.{milliseconds}");
        let to = self.layout.quarantine().join(&name);
        let note = Note { blob: hash, size: blob.size, noticed_by, at: now() };
        let text = serde_json::to_vec(&note).unwrap_or_default();
        // The note is for people; without it the bytes are still out of the way.
        let _ = fs::write(self.layout.quarantine().join(format!("{name}.json")), text);
        match fs::rename(&from, &to) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).at("quarantine blob", &to),
            Ok(()) => self.index().account.quarantined += cost(blob.size),
            Err(_) => {}
        }
        let _ = fs::remove_file(self.layout.outboard(hash));
        if let super::index::Home::Partial(key) = blob.home {
            let _ = fs::remove_dir_all(self.layout.partial(&key));
        }
        let mut ignored = Evicted::default();
        self.evict_quarantine(&mut ignored, false);
        Ok(())
    }

    /// Drops what is too old or too much; with `all`, everything.
    pub(super) fn evict_quarantine(&self, done: &mut Evicted, all: bool) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let Ok(found) = names(&self.layout.quarantine()) else { return };
        let mut kept: Vec<_> =
            found.into_iter().filter_map(|(name, path)| Some((parse_quarantined(&name)?.1, path))).collect();
        kept.sort();
        let excess = kept.len().saturating_sub(COUNT_LIMIT);
        for (number, (at, path)) in kept.into_iter().enumerate() {
            let age = now.saturating_sub(Duration::from_millis(at));
            if !(all || number < excess || age > AGE_LIMIT) {
                continue;
            }
            let charged = cost(fs::metadata(&path).map_or(0, |metadata| metadata.len()));
            if fs::remove_file(&path).is_ok() {
                let mut note = path.into_os_string();
                note.push(".json");
                let _ = fs::remove_file(note);
                let mut index = self.index();
                index.account.quarantined = index.account.quarantined.saturating_sub(charged);
                done.bytes += charged;
            }
        }
    }
}
