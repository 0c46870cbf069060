//! The manifest: the files of one model revision, or of one engine bundle.
//!
//! Its digest is over what the bytes *are*: kind, paths, sizes, BLAKE3 roots, and for bundles modes and times. Where they came
//! from, how they were checked, per-tensor digests and outboards kept at an origin are not in it, so that one model from two
//! origins is one manifest. The digest is not over the JSON but over lines that anybody can make with `b3sum` and `sort`:
//!
//! ```text
//! preheat-manifest 1
//! model
//! <blake3> <size> <path>                         sorted by path bytes; for bundles
//! <blake3> <size> <mode, octal> <mtime, ns> <path>
//! ```

use serde::{Deserialize, Serialize};

use super::{FilePath, PathError};
use crate::digest::Hash;

/// What a manifest describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Weights and what an engine reads beside them.
    Model,
    /// The files of a compiled engine.
    Bundle,
}

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ManifestEntry {
    /// Where it belongs.
    pub path: FilePath,
    /// Size in bytes.
    pub size: u64,
    /// BLAKE3 root.
    pub blake3: Hash,
    /// Permission bits; bundles only, and there required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
    /// Modification time in nanoseconds since the epoch; bundles only, and there required.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtime_ns: Option<u64>,
    /// Digests of single tensors, not in the manifest's digest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tensors: Vec<TensorDigest>,
}

/// The digest of one tensor inside a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorDigest {
    /// Its name in the file's header.
    pub name: String,
    /// First byte in the file.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
    /// BLAKE3 of those bytes.
    pub blake3: Hash,
}

/// A checked manifest: entries sorted by path, none twice, within the limits, sizes adding up without overflow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    kind: Kind,
    files: Vec<ManifestEntry>,
    outboards: Option<FilePath>,
}

/// Why a manifest was refused.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON of the documented shape; unknown fields included.
    #[error("manifest is not of the documented shape: {0}")]
    Shape(#[from] serde_json::Error),
    /// Another document.
    #[error("manifest has format `{0}`, not `preheat-manifest`")]
    Format(String),
    /// Written by a newer preheat.
    #[error("manifest has version {0}, this preheat reads 1: upgrade preheat")]
    Version(u32),
    /// A path that could leave the tree.
    #[error("manifest: {0}")]
    Path(#[from] PathError),
    /// The same path twice, or a file where another path needs a directory.
    #[error("manifest lists `{0}` twice, or as both file and directory")]
    Duplicate(FilePath),
    /// More than the stated limit.
    #[error("manifest has {what}, the limit is {limit}")]
    Limit {
        /// What there is too much of.
        what: String,
        /// How much is allowed.
        limit: &'static str,
    },
    /// A field that this kind must have, or must not have.
    #[error("manifest: `{path}` {what}")]
    Field {
        /// The entry.
        path: FilePath,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Most files in one manifest. Models have up to a few hundred; converted datasets beside adapters reach thousands.
pub(super) const FILE_LIMIT: usize = 200_000;

/// Largest manifest document: `FILE_LIMIT` entries of about 300 bytes.
pub const DOCUMENT_LIMIT: usize = 64 << 20;

/// Largest sum of sizes: 2^53, what every JSON reader holds exactly; 9 petabytes.
pub(super) const SIZE_LIMIT: u64 = 1 << 53;

/// Most per-tensor digests in one manifest.
pub(super) const TENSOR_LIMIT: usize = 1_000_000;

/// Where the outboard of a blob is, in a directory of outboards at an origin: under the blob's name, so that equal files share it
/// and a new manifest never makes an old one wrong.
#[must_use]
pub fn outboard_path(directory: &FilePath, blob: &Hash) -> Option<FilePath> {
    FilePath::new(format!("{directory}/{blob}")).ok()
}

/// The JSON document. Field order is the canonical order.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    version: u32,
    kind: Kind,
    files: Vec<ManifestEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    outboards: Option<FilePath>,
}

/// Only what decides whether the rest can be read.
#[derive(Deserialize)]
struct Preamble {
    format: String,
    version: u32,
}

// === impl ManifestEntry ===

impl ManifestEntry {
    /// An entry of a model.
    #[must_use]
    pub fn new(path: FilePath, size: u64, blake3: Hash) -> Self {
        Self { path, size, blake3, mode: None, mtime_ns: None, tensors: Vec::new() }
    }
}

// === impl Manifest ===

impl Manifest {
    /// The name under which an origin publishes a manifest beside its files.
    pub const FILE_NAME: &str = "preheat-manifest.json";

    /// The directory of outboards that `push` makes beside it.
    pub const OUTBOARDS: &str = "preheat-outboards";

    /// Checks and sorts `files`.
    ///
    /// # Errors
    /// [`ManifestError`]
    pub fn new(kind: Kind, files: Vec<ManifestEntry>) -> Result<Self, ManifestError> {
        Self::checked(kind, files, None)
    }

    /// Reads the JSON form.
    ///
    /// # Errors
    /// [`ManifestError`]; a newer version is told from a wrong shape.
    pub fn parse(json: &[u8]) -> Result<Self, ManifestError> {
        if json.len() > DOCUMENT_LIMIT {
            return Err(ManifestError::Limit { what: format!("{} bytes", json.len()), limit: "64 MiB" });
        }
        let preamble: Preamble = serde_json::from_slice(json)?;
        if preamble.format != "preheat-manifest" {
            return Err(ManifestError::Format(preamble.format.chars().take(40).collect()));
        }
        if preamble.version != 1 {
            return Err(ManifestError::Version(preamble.version));
        }
        let document: Document = serde_json::from_slice(json)?;
        Self::checked(document.kind, document.files, document.outboards)
    }

    fn checked(kind: Kind, mut files: Vec<ManifestEntry>, outboards: Option<FilePath>) -> Result<Self, ManifestError> {
        if files.len() > FILE_LIMIT {
            return Err(ManifestError::Limit { what: format!("{} files", files.len()), limit: "200,000" });
        }
        files.sort_by(|one, other| one.path.cmp(&other.path));
        let names: std::collections::HashSet<&str> = files.iter().map(|entry| entry.path.as_str()).collect();
        let (mut bytes, mut tensors) = (0_u64, 0);
        for (entry, next) in files.iter().zip(files.iter().skip(1).map(Some).chain([None])) {
            if next.is_some_and(|next| next.path == entry.path) {
                return Err(ManifestError::Duplicate(entry.path.clone()));
            }
            let mut parent = entry.path.parent();
            while let Some(directory) = parent {
                if names.contains(directory) {
                    return Err(ManifestError::Duplicate(entry.path.clone()));
                }
                parent = directory.rsplit_once('/').map(|(above, _)| above);
            }
            bytes = bytes.checked_add(entry.size).filter(|&sum| sum <= SIZE_LIMIT).ok_or_else(|| {
                ManifestError::Limit { what: "sizes that add up to more".to_owned(), limit: "2^53 bytes" }
            })?;
            let field = |what| ManifestError::Field { path: entry.path.clone(), what };
            match kind {
                Kind::Model if entry.mode.is_some() || entry.mtime_ns.is_some() => {
                    return Err(field("has mode or mtime_ns, which only bundles have"));
                }
                Kind::Bundle if entry.mode.is_none_or(|mode| mode > 0o777) || entry.mtime_ns.is_none() => {
                    return Err(field("needs mode (at most 0777) and mtime_ns in a bundle"));
                }
                _ => {}
            }
            tensors += entry.tensors.len();
            if entry.tensors.iter().any(|tensor| tensor.start > tensor.end || tensor.end > entry.size) {
                return Err(field("has a tensor that reaches outside it"));
            }
        }
        if tensors > TENSOR_LIMIT {
            return Err(ManifestError::Limit { what: format!("{tensors} tensors"), limit: "1,000,000" });
        }
        Ok(Self { kind, files, outboards })
    }

    /// What it describes.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its files, sorted by path.
    #[must_use]
    pub fn files(&self) -> &[ManifestEntry] {
        &self.files
    }

    /// The same manifest, naming a directory of outboards; the digest stays.
    #[must_use]
    pub fn with_outboards(self, directory: FilePath) -> Self {
        Self { outboards: Some(directory), ..self }
    }

    /// Directory at the origin that holds the files' outboards, relative to the manifest; not in the digest.
    #[must_use]
    pub fn outboards(&self) -> Option<&FilePath> {
        self.outboards.as_ref()
    }

    /// Sum of the sizes.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.files.iter().map(|entry| entry.size).sum()
    }

    /// The same manifest with only the files for which `rename` gives a path, under that path.
    ///
    /// # Errors
    /// When two files get one path.
    pub fn restrict(&self, mut rename: impl FnMut(&FilePath) -> Option<FilePath>) -> Result<Self, ManifestError> {
        let files = self
            .files
            .iter()
            .filter_map(|entry| Some(ManifestEntry { path: rename(&entry.path)?, ..entry.clone() }))
            .collect();
        Self::checked(self.kind, files, self.outboards.clone())
    }

    /// The canonical JSON: no blanks, fields in documented order, files sorted.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        let document = Document {
            format: "preheat-manifest".to_owned(),
            version: 1,
            kind: self.kind,
            files: self.files.clone(),
            outboards: self.outboards.clone(),
        };
        // No map with keys other than text and no number that JSON lacks: this cannot fail.
        serde_json::to_vec(&document).unwrap_or_default()
    }

    /// The digest that names it.
    #[must_use]
    pub fn digest(&self) -> Hash {
        let mut hasher = blake3::Hasher::new();
        let kind = match self.kind {
            Kind::Model => "model",
            Kind::Bundle => "bundle",
        };
        hasher.update(format!("preheat-manifest 1\n{kind}\n").as_bytes());
        for ManifestEntry { path, size, blake3, mode, mtime_ns, .. } in &self.files {
            let line = match (mode, mtime_ns) {
                (Some(mode), Some(mtime)) => format!("{blake3} {size} {mode:o} {mtime} {path}\n"),
                _ => format!("{blake3} {size} {path}\n"),
            };
            hasher.update(line.as_bytes());
        }
        Hash::from_bytes(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn entry(path: &str, size: u64) -> ManifestEntry {
        ManifestEntry::new(FilePath::new(path).unwrap(), size, Hash::of(path.as_bytes()))
    }

    fn golden(name: &str) -> Vec<u8> {
        std::fs::read(format!("{}/cache-layout/golden/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    }

    #[test]
    fn golden_manifests_keep_their_digests() {
        for (name, digest) in [
            ("manifest-model-v1.json", "3a405f6835d8ef4c81ae206b0273d3794fadf953af5181de84c2633822049e34"),
            ("manifest-bundle-v1.json", "6ed4b51d51a585dfb6fac57e6f30f1d7e5ce18c8cbdbc421913dc5a6ed5dc7fe"),
        ] {
            let json = golden(name);
            let manifest = Manifest::parse(&json).unwrap();
            assert_eq!(String::from_utf8(manifest.to_json()).unwrap(), String::from_utf8(json).unwrap(), "{name}");
            assert_eq!(manifest.digest().to_string(), digest, "{name}");
        }
    }

    #[test]
    fn the_digest_is_over_the_documented_lines() {
        let manifest = Manifest::new(Kind::Model, vec![entry("b", 2), entry("a/c", 1)]).unwrap();
        let lines = format!("preheat-manifest 1\nmodel\n{} 1 a/c\n{} 2 b\n", Hash::of(b"a/c"), Hash::of(b"b"));
        assert_eq!(manifest.digest(), Hash::of(lines.as_bytes()));
    }

    #[test]
    fn what_is_not_identity_is_not_in_the_digest() {
        let plain = Manifest::new(Kind::Model, vec![entry("a", 10)]).unwrap();
        let mut more = entry("a", 10);
        more.tensors.push(TensorDigest { name: "w".into(), start: 2, end: 10, blake3: Hash::of(b"w") });
        let outboards = FilePath::new("preheat-outboards").ok();
        let more = Manifest::checked(Kind::Model, vec![more], outboards).unwrap();
        assert_eq!(plain.digest(), more.digest());
        assert_eq!(Manifest::parse(&more.to_json()).unwrap(), more);
    }

    #[test]
    fn hostile_manifests_are_refused_by_name() {
        let hash = Hash::of(b"");
        let file = |path: &str, more: &str| {
            format!(
                r#"{{"format":"preheat-manifest","version":1,"kind":"model","files":[{{"path":"{path}","size":1,"blake3":"{hash}"{more}}}]}}"#
            )
        };
        for (json, says) in [
            (file("../x", ""), "segment"),
            (file("/etc/passwd", ""), "absolute"),
            (file("a\\u0000b", ""), "control character"),
            (file("a", r#","link":"b""#), "unknown field `link`"),
            (file("a", r#","mode":420"#), "only bundles"),
            (file("a", "").replace("\"version\":1", "\"version\":2"), "upgrade preheat"),
            (file("a", "").replace("preheat-manifest", "other"), "not `preheat-manifest`"),
            (file("a", "").replace("\"size\":1", "\"size\":-1"), "shape"),
            (file("a", "").replace("\"size\":1", "\"size\":18446744073709551615"), "2^53"),
            (file("a", "").replace(&hash.to_string(), "../../etc"), "BLAKE3"),
            ("[]".to_owned(), "shape"),
            ("[".repeat(100_000), "shape"),
        ] {
            let error = Manifest::parse(json.as_bytes()).expect_err(&json).to_string();
            assert!(error.contains(says), "{error}");
        }
        for paths in [["a", "a"], ["a", "a/b"], ["x/y", "x/y/z"]] {
            let files = paths.iter().map(|path| entry(path, 1)).collect();
            assert!(matches!(Manifest::new(Kind::Model, files), Err(ManifestError::Duplicate(_))), "{paths:?}");
        }
        let halves = vec![entry("a", SIZE_LIMIT), entry("b", 1)];
        assert!(matches!(Manifest::new(Kind::Model, halves), Err(ManifestError::Limit { .. })));
    }

    proptest! {
        #[test]
        fn order_does_not_matter_and_json_round_trips(
            mut files in prop::collection::btree_map("[a-z]{1,6}(/[0-9]{1,3})?x", 0_u64..1 << 40, 0..20)
        ) {
            let forward = files.iter().map(|(path, size)| entry(path, *size)).collect();
            let Ok(manifest) = Manifest::new(Kind::Model, forward) else { return Ok(()) };
            let backward = files.iter().rev().map(|(path, size)| entry(path, *size)).collect();
            prop_assert_eq!(Manifest::new(Kind::Model, backward).unwrap().digest(), manifest.digest());
            prop_assert_eq!(&Manifest::parse(&manifest.to_json()).unwrap(), &manifest);
            if let Some(mut first) = files.first_entry() {
                *first.get_mut() += 1;
                let changed = files.iter().map(|(path, size)| entry(path, *size)).collect();
                prop_assert_ne!(Manifest::new(Kind::Model, changed).unwrap().digest(), manifest.digest());
            }
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Manifest::parse(&bytes);
        }
    }
}
