//! The size and BLAKE3 of a file, a group at a time.

use std::fs::File;
use std::path::Path;

use crate::digest::{GROUP_BYTES, Hash, group_count, group_cv, group_range, merge_root};
use crate::sys::read_write::pread_exact;

/// Hashes the file at `path` with one buffer of at most 1 MiB.
pub(super) fn hash_file(path: &Path) -> std::io::Result<(u64, Hash)> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    let mut buffer = vec![0; GROUP_BYTES.min(size.max(1)) as usize];
    let mut cvs = Vec::new();
    for index in 0..group_count(size) {
        let range = group_range(size, index);
        let group = &mut buffer[..(range.end - range.start) as usize];
        pread_exact(&file, group, range.start)?;
        cvs.push(group_cv(size, index, group));
    }
    // `group_count` is at least one, so there always is a root.
    Ok((size, merge_root(&cvs).unwrap_or_else(|| Hash::of(&[]))))
}
