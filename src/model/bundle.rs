//! The bundle document: what a bundle is, for whom it is good, who captured it when and what that saved. It is what a signature
//! is over and what names the bundle.
//!
//! It holds the engine key with every field in clear, so that a miss is explained without the bundle's bytes, and the manifest of
//! the files (path, size, BLAKE3, mode, time in nanoseconds). The files' bytes are one *pack*: the files one after the other, in
//! the manifest's order, with nothing between them. So an offset follows from the manifest, and the pack has no names, no types
//! and no lengths of its own that could contradict it. A tar was turned down for that: it says a second time what the manifest
//! says, its times have seconds, and most ways out of an archive's root are members that only its headers know.
//!
//! The document is canonical: there is one text for one bundle, and another is refused. So its digest names it, and what is
//! verified is what is read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::engine::{EngineKey, KeyError};
use super::{Kind, Manifest, ManifestEntry, ManifestError, Tenant};
use crate::digest::Hash;

/// Names a bundle: BLAKE3 of its canonical document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BundleId(Hash);

/// The one blob that holds the files' bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Pack {
    /// Its name.
    #[schema(value_type = String)]
    pub blake3: Hash,
    /// Its size: the sum of the files'.
    pub size: u64,
}

/// Who captured it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Producer {
    /// The scope that captured it, on its node.
    pub scope: Tenant,
    /// Version of preheat.
    pub preheat: String,
}

/// What was seen of the start that the bundle comes from. For people and for estimates; nothing is decided by it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Evidence {
    /// The engine and its version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// Milliseconds from exec to ready without any bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cold_ms: Option<u64>,
    /// Milliseconds from exec to ready of the start that was captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ready_ms: Option<u64>,
    /// Milliseconds of named stages.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stages: BTreeMap<String, u64>,
    /// Lines of the engine's log that say what it compiled or loaded.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub log: Vec<String>,
}

/// A checked bundle document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bundle {
    /// What it is good for.
    pub key: EngineKey,
    /// Its files; the first segment of each path is the name of a root.
    pub manifest: Manifest,
    /// Their bytes. `None`: every file is a blob of its own, for engines that are used in place.
    pub pack: Option<Pack>,
    /// The bundle that was restored when this one was captured.
    pub base: Option<BundleId>,
    /// Who captured it.
    pub producer: Producer,
    /// When, seconds since the epoch, by the node's clock.
    pub captured_at: u64,
    /// What was seen.
    pub evidence: Evidence,
}

/// The JSON form; the order of the fields is the canonical order.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    version: u32,
    key: EngineKey,
    files: Vec<ManifestEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pack: Option<Pack>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<BundleId>,
    producer: Producer,
    captured_at: u64,
    evidence: Evidence,
}

/// Only what decides whether the rest can be read.
#[derive(Deserialize)]
struct Preamble {
    format: String,
    version: u32,
}

/// Why a bundle document was refused.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Not JSON of the documented shape; unknown fields included.
    #[error("bundle document is not of the documented shape: {0}")]
    Shape(#[from] serde_json::Error),
    /// Another document.
    #[error("bundle document has format `{0}`, not `preheat-bundle`")]
    Format(String),
    /// Written by a newer preheat.
    #[error("bundle document has version {0}, this preheat reads 1: upgrade preheat")]
    Version(u32),
    /// Blanks, another order, or the same field twice: another text than the canonical one.
    #[error("bundle document is not in its canonical form")]
    NotCanonical,
    /// The key in it.
    #[error("bundle document: {0}")]
    Key(#[from] KeyError),
    /// The files in it.
    #[error("bundle document: {0}")]
    Manifest(#[from] ManifestError),
    /// A file that a bundle cannot have.
    #[error("bundle document: `{path}` {what}")]
    File {
        /// Which.
        path: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// The pack is not as long as its files.
    #[error("bundle document: the pack has {pack} bytes and its files have {files}")]
    Size {
        /// Of the pack.
        pack: u64,
        /// Of the files.
        files: u64,
    },
    /// Too much of something.
    #[error("bundle document has {what}, the limit is {limit}")]
    Limit {
        /// What there is too much of.
        what: String,
        /// How much is allowed.
        limit: &'static str,
    },
}

/// Largest document: 200,000 files of about 250 bytes, and the key.
pub const BUNDLE_DOCUMENT_LIMIT: usize = 64 << 20;

/// Most bytes of a line of the engine's log.
const LINE_LIMIT: usize = 500;
/// Most lines of it, and most stages.
const LINES_LIMIT: usize = 64;

// === impl BundleId ===

impl BundleId {
    /// The id of a document.
    #[must_use]
    pub fn of(document: &[u8]) -> Self {
        Self(Hash::of(document))
    }

    /// The digest that it is.
    #[must_use]
    pub fn hash(&self) -> &Hash {
        &self.0
    }
}

impl std::fmt::Display for BundleId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::str::FromStr for BundleId {
    type Err = crate::digest::HashParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

impl From<Hash> for BundleId {
    fn from(hash: Hash) -> Self {
        Self(hash)
    }
}

// === impl Evidence ===

impl Evidence {
    /// The same, cut down to the limits.
    #[must_use]
    pub fn within_limits(mut self) -> Self {
        let cut = |line: &mut String| {
            let end = (0..=LINE_LIMIT).rev().find(|&end| line.is_char_boundary(end)).unwrap_or(0);
            line.truncate(end.min(line.len()));
        };
        self.log.truncate(LINES_LIMIT);
        self.log.iter_mut().for_each(cut);
        self.engine.iter_mut().for_each(cut);
        self.stages.retain(|name, _| name.len() <= LINE_LIMIT);
        while self.stages.len() > LINES_LIMIT {
            self.stages.pop_last();
        }
        self
    }

    fn check(&self) -> Result<(), BundleError> {
        let long = |text: &String| text.len() > LINE_LIMIT;
        if self.log.len() > LINES_LIMIT || self.stages.len() > LINES_LIMIT {
            let what = format!("{} log lines and {} stages", self.log.len(), self.stages.len());
            return Err(BundleError::Limit { what, limit: "64 of each" });
        }
        if self.log.iter().any(long) || self.stages.keys().any(long) || self.engine.as_ref().is_some_and(long) {
            return Err(BundleError::Limit { what: "a longer line of evidence".to_owned(), limit: "500 bytes" });
        }
        Ok(())
    }
}

// === impl Bundle ===

impl Bundle {
    /// Reads a document.
    ///
    /// # Errors
    /// [`BundleError`]; a newer version is told from a wrong shape.
    pub fn parse(json: &[u8]) -> Result<Self, BundleError> {
        if json.len() > BUNDLE_DOCUMENT_LIMIT {
            return Err(BundleError::Limit { what: format!("{} bytes", json.len()), limit: "64 MiB" });
        }
        let preamble: Preamble = serde_json::from_slice(json)?;
        if preamble.format != "preheat-bundle" {
            return Err(BundleError::Format(preamble.format.chars().take(40).collect()));
        }
        if preamble.version != 1 {
            return Err(BundleError::Version(preamble.version));
        }
        let Document { key, files, pack, base, producer, captured_at, evidence, .. } = serde_json::from_slice(json)?;
        let manifest = Manifest::new(Kind::Bundle, files)?;
        let bundle = Self { key, manifest, pack, base, producer, captured_at, evidence };
        bundle.check()?;
        if bundle.to_json() == json { Ok(bundle) } else { Err(BundleError::NotCanonical) }
    }

    /// Whether it is one that [`Bundle::parse`] would accept.
    ///
    /// # Errors
    /// [`BundleError`]
    pub fn check(&self) -> Result<(), BundleError> {
        for entry in self.manifest.files() {
            let wrong = |what| BundleError::File { path: entry.path.to_string(), what };
            let Some((root, _)) = entry.path.as_str().split_once('/') else {
                return Err(wrong("stands in no root"));
            };
            if !is_root_name(root) {
                return Err(wrong("stands in a root whose name is not of a-z, 0-9, `.`, `_` and `-`"));
            }
            if !entry.tensors.is_empty() {
                return Err(wrong("has tensors, which only models have"));
            }
        }
        let files = self.manifest.total_bytes();
        if let Some(pack) = self.pack.filter(|pack| pack.size != files) {
            return Err(BundleError::Size { pack: pack.size, files });
        }
        self.evidence.check()
    }

    /// The blobs that hold the files' bytes: the pack, or each file that differs from the others.
    #[must_use]
    pub fn packs(&self) -> Vec<Pack> {
        let mut packs: Vec<Pack> = match self.pack {
            Some(pack) => vec![pack],
            None => self.manifest.files().iter().map(|entry| Pack { blake3: entry.blake3, size: entry.size }).collect(),
        };
        packs.sort_by_key(|pack| pack.blake3);
        packs.dedup();
        packs
    }

    /// The canonical JSON.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let Self { key, manifest, pack, base, producer, captured_at, evidence } = self.clone();
        let document = Document {
            format: "preheat-bundle".to_owned(),
            version: 1,
            key,
            files: manifest.files().to_vec(),
            pack,
            base,
            producer,
            captured_at,
            evidence,
        };
        // Text, whole numbers and maps of text: nothing that JSON could not say.
        serde_json::to_vec(&document).unwrap_or_default()
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> BundleId {
        BundleId::of(&self.to_json())
    }
}

/// Whether a root may have this name: one segment of a path, the same on every file system.
#[must_use]
pub fn is_root_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
    (1..=64).contains(&name.len()) && !name.starts_with(['.', '-']) && name.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Signature, Signer};

    fn golden(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/cache-layout/golden/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn the_golden_document_keeps_its_name_and_its_signature() {
        let json = golden("bundle-v1.json");
        let bundle = Bundle::parse(&json).unwrap();
        assert_eq!(bundle.to_json(), json);
        assert_eq!(bundle.id().to_string(), GOLDEN_ID);
        let signature = Signature::parse(&golden("bundle-v1.sig")).unwrap();
        assert_eq!(signature.signer, GOLDEN_SIGNER.parse::<Signer>().unwrap());
        signature.verify(&json).unwrap();
    }

    const GOLDEN_ID: &str = "24e5f4cecd542c8bda65a6d5244ac133286d6d1df8432bc1f50a7f58fbae019c";
    /// The test key of RFC 8410, section 10.3.
    const GOLDEN_SIGNER: &str = "19bf44096984cdfe8541bac167dc3b96c85086aa30b6b6cb0c5c38ad703166e1";

    #[test]
    fn hostile_documents_are_refused_by_name() {
        let json = String::from_utf8(golden("bundle-v1.json")).unwrap();
        let first = Bundle::parse(json.as_bytes()).unwrap().manifest.files()[0].path.to_string();
        let change = |from: &str, to: &str| {
            let changed = json.replacen(from, to, 1);
            assert_ne!(changed, json, "{from}");
            changed
        };
        for (changed, says) in [
            (change("preheat-bundle", "other"), "not `preheat-bundle`"),
            (change("\"version\":1", "\"version\":2"), "upgrade preheat"),
            (change("{", "{ "), "canonical"),
            (change("\"captured_at\"", "\"captured_at\":1,\"captured_at\""), "duplicate field"),
            (change("{", "{\"more\":1,"), "unknown field"),
            (change(&first, "../x"), "segment"),
            (change(&first, "/etc/passwd"), "absolute"),
            (change(&first, "alone"), "no root"),
            (change(&first, "Root/x"), "whose name"),
            (change("\"mode\":", "\"mode\":1"), "0777"),
            (change("\"size\":", "\"size\":1"), "the pack has"),
            (change("\"kind\":\"graph\"", "\"kind\":\"grape\""), "grape"),
            (change("\"cold_ms\":", "\"cold_ms\":-"), "shape"),
            (json[..json.len() - 1].to_owned(), "shape"),
        ] {
            let error = Bundle::parse(changed.as_bytes()).expect_err(&changed).to_string();
            assert!(error.contains(says), "{says}: {error}");
        }
        let long = Evidence { log: vec!["é".repeat(400); 70], engine: Some("x".repeat(600)), ..Evidence::default() };
        assert!(long.check().is_err());
        let cut = long.within_limits();
        cut.check().unwrap();
        assert_eq!((cut.log.len(), cut.log[0].len(), cut.engine.unwrap().len()), (64, 500, 500));
    }

    #[test]
    fn evidence_has_a_limit_on_every_side() {
        let stages = (0..80).map(|number| (format!("stage {number}"), number)).collect();
        let many = Evidence { stages, ..Evidence::default() };
        assert!(matches!(many.check(), Err(BundleError::Limit { .. })));
        many.within_limits().check().unwrap();
    }
}
