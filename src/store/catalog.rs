//! Which object of which origin became which blob: what lets a second fetch, or a new revision, move only what changed.
//!
//! An append-only log, because 4,000 small files must not cost 4,000 more files. It is advisory: a lost line costs a transfer,
//! and a blob found through it is verified like any other.

use std::fs::{self, File, OpenOptions};
use std::io::Write;

use serde::{Deserialize, Serialize};

use super::StoreError;
use super::error::IoContext;
use super::frame;
use super::layout::Layout;
use crate::digest::Hash;
use crate::model::FlightKey;
use crate::sys::durable::{sync_data, write_atomic};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CatalogLine {
    pub(super) key: FlightKey,
    pub(super) blob: Hash,
    pub(super) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) sha256: Option<String>,
}

/// Largest log that is read at start: about two million lines.
const CATALOG_LIMIT: u64 = 512 << 20;

/// The open log.
#[derive(Debug)]
pub(super) struct Catalog {
    file: File,
    path: std::path::PathBuf,
}

// === impl Catalog ===

impl Catalog {
    /// Reads the log, keeps the lines for which `alive` says yes, rewrites it when more than half are dead or a line is torn.
    pub(super) fn open(
        layout: &Layout,
        alive: impl Fn(&CatalogLine) -> bool,
    ) -> Result<(Self, Vec<CatalogLine>), StoreError> {
        let path = layout.catalog();
        let fits = fs::metadata(&path).is_ok_and(|metadata| metadata.len() <= CATALOG_LIMIT);
        let bytes = if fits { fs::read(&path).at("read catalog", &path)? } else { Vec::new() };
        let (lines, good) = frame::lines::<CatalogLine>(0, &bytes);
        let total = lines.len();
        let kept: Vec<CatalogLine> = lines.into_iter().filter(|line| alive(line)).collect();
        if good < bytes.len() || kept.len() * 2 < total || !fits {
            let text: Vec<u8> = kept.iter().flat_map(|line| frame::line(0, line)).collect();
            write_atomic(&layout.temporaries(), layout.root(), "catalog.log", &text).at("rewrite catalog", &path)?;
        }
        let file = OpenOptions::new().append(true).create(true).open(&path).at("open catalog", &path)?;
        Ok((Self { file, path }, kept))
    }

    /// Appends lines; durable when `sync`.
    pub(super) fn append(&mut self, lines: &[CatalogLine], sync: bool) -> Result<(), StoreError> {
        let text: Vec<u8> = lines.iter().flat_map(|line| frame::line(0, line)).collect();
        self.file.write_all(&text).at("write catalog", &self.path)?;
        if sync { sync_data(&self.file).at("sync catalog", &self.path) } else { Ok(()) }
    }
}
