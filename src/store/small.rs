//! Small blobs: whole in memory, so there is nothing to resume and no journal. Their name carries what they are, which makes
//! one file of each instead of three.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::error::IoContext;
use super::index::Home;
use super::partial::seal_mode;
use super::space::cost;
use super::{BlobHold, Inner, Reservation, StoreError};
use crate::digest::{Declared, GROUP_BYTES, GroupCv, Hash, group_count, group_cv, group_range, merge_root};
use crate::model::FlightKey;
use crate::sys::durable::write_temporary;
use crate::sys::read_write::pread_exact;

// === impl Inner ===

impl Inner {
    pub(super) fn put_small(
        &self,
        key: FlightKey,
        bytes: &[u8],
        declared: &[Declared],
        reservation: &Reservation,
    ) -> Result<BlobHold, StoreError> {
        self.check_writable()?;
        let size = bytes.len() as u64;
        if size > self.options.small_bytes {
            let detail = format!("{size} bytes are not small");
            return Err(StoreError::Misuse { detail, blob: None });
        }
        let hash = Hash::of(bytes);
        if let Some(known) = self.trusted(&hash) {
            self.learn(key, &hash, size, declared);
            return Ok(known);
        }
        let path = self.layout.received_blob(&key, &hash);
        let (temporary, file) =
            self.note(write_temporary(&self.layout.temporaries(), bytes).at("write small blob", &path))?;
        self.note(seal_mode(&file).at("set permissions", &temporary))?;
        // In one step it is whole and named by what it is; a kill before leaves a temporary, which is swept.
        self.note(fs::rename(&temporary, &path).at("write small blob", &path))?;
        reservation.spend(cost(size));
        Ok(self.adopt(key, hash, size, Home::Received(key), None, declared))
    }

    /// Hashes a file that should be `hash` and whose chaining values are not at hand.
    pub(super) fn hash_small(&self, hash: &Hash, path: &Path) -> Result<Arc<[GroupCv]>, StoreError> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // Sealed since its place was looked up.
                File::open(self.layout.blob(hash))
            }
            outcome => outcome,
        }
        .at("open blob", path)?;
        let size = file.metadata().at("read size of blob", path)?.len();
        let mut buffer = vec![0; size.clamp(1, GROUP_BYTES) as usize];
        let mut cvs = Vec::new();
        for index in 0..group_count(size) {
            let range = group_range(size, index);
            let group = &mut buffer[..(range.end - range.start) as usize];
            pread_exact(&file, group, range.start).at("read blob", path)?;
            cvs.push(group_cv(size, index, group));
        }
        if merge_root(&cvs) == Some(*hash) {
            return Ok(cvs.into());
        }
        Err(StoreError::Corrupt { what: format!("blob {hash}"), detail: "its bytes hash to something else".to_owned() })
    }
}
