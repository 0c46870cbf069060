//! What a resolution asks for: which files are distinct, which come first, and whether the list makes sense at all. Pure.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::TransferError;
use crate::digest::{Hash, OriginVerified};
use crate::model::source::{RemoteFile, Resolution};
use crate::model::{FileFacts, FilePath, Kind, Manifest, ManifestEntry, Revision, Selection, index_shards};

/// The files of a resolution, grouped by content as far as the origin tells.
#[derive(Debug)]
pub(super) struct Plan {
    /// All files, sorted by path.
    pub(super) files: Vec<RemoteFile>,
    /// For each file, which of `contents` it has.
    pub(super) content_of: Vec<usize>,
    /// For each distinct content, the first file that has it.
    pub(super) contents: Vec<usize>,
    /// For each distinct content, all files that have it. Kept, since every arrival asks: looking through all files each time
    /// takes a minute for 100,000 of them.
    files_of: Vec<Vec<usize>>,
    /// Contents that say what else there must be: fetched and read before anything large.
    pub(super) indexes: BTreeSet<usize>,
    /// The manifest that the origin publishes; binding.
    pub(super) manifest: Option<Manifest>,
    /// For people.
    pub(super) warnings: Vec<String>,
}

/// What makes two files of one origin the same bytes.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Content {
    Blake3(Hash),
    Sha256(String),
    /// Locator, validator.
    Object(String, String),
}

const INDEX: &str = ".safetensors.index.json";

// === impl Plan ===

impl Plan {
    /// Checks and groups the files of a resolution.
    ///
    /// # Errors
    /// [`TransferError::List`] for paths, counts or sizes that a manifest may not have.
    pub(super) fn new(reference: &impl ToString, resolution: Resolution) -> Result<Self, TransferError> {
        let Resolution { mut files, manifest, .. } = resolution;
        files.sort_by(|one, other| one.path.cmp(&other.path));
        if let Some(manifest) = &manifest {
            bind(&mut files, manifest);
        }
        // The limits of a manifest hold before the first byte, not after the last.
        let nothing = Hash::from_bytes([0; 32]);
        let entries = files.iter().map(|file| ManifestEntry::new(file.path.clone(), file.size, nothing)).collect();
        Manifest::new(Kind::Model, entries)
            .map_err(|source| TransferError::List { reference: reference.to_string(), source: Arc::new(source) })?;
        let mut known: HashMap<(Content, u64), usize> = HashMap::new();
        let (mut contents, mut files_of) = (Vec::new(), Vec::<Vec<usize>>::new());
        let mut content_of = Vec::with_capacity(files.len());
        let mut indexes = BTreeSet::new();
        for (number, file) in files.iter().enumerate() {
            let content = *known.entry((Content::of(file), file.size)).or_insert_with(|| {
                contents.push(number);
                files_of.push(Vec::new());
                contents.len() - 1
            });
            content_of.push(content);
            files_of[content].push(number);
            if is_index(&file.path) {
                indexes.insert(content);
            }
        }
        let warnings = same_but_for_case(&files);
        Ok(Self { files, content_of, contents, files_of, indexes, manifest, warnings })
    }

    /// Size of the model.
    pub(super) fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Files that have a content.
    pub(super) fn files_with(&self, content: usize) -> impl Iterator<Item = &RemoteFile> {
        self.files_of[content].iter().map(|number| &self.files[*number])
    }

    /// Checks that the shards which an index names are there. With globs somebody has chosen to do without.
    ///
    /// # Errors
    /// [`TransferError::Index`], [`TransferError::MissingShard`].
    pub(super) fn check_index(
        &self,
        index: &FilePath,
        json: &[u8],
        selection: &Selection,
    ) -> Result<Vec<String>, TransferError> {
        let shards = index_shards(json, index.parent())
            .map_err(|source| TransferError::Index { index: index.clone(), source: Arc::new(source) })?;
        let here: BTreeSet<&FilePath> = self.files.iter().map(|file| &file.path).collect();
        let missing: Vec<&FilePath> = shards.iter().filter(|shard| !here.contains(shard)).collect();
        let Some(first) = missing.first() else { return Ok(Vec::new()) };
        if !selection.include.is_empty() || !selection.exclude.is_empty() {
            let count = missing.len();
            return Ok(vec![format!("{index} names {first}, which the globs leave out ({count} such files)")]);
        }
        Err(TransferError::MissingShard { index: index.clone(), shard: (*first).clone(), missing: missing.len() })
    }

    /// The finished manifest, given the blob of each content.
    ///
    /// # Errors
    /// [`TransferError::WrongDigest`] if the origin's own manifest names another blob.
    pub(super) fn manifest(&self, reference: &impl ToString, blobs: &[Hash]) -> Result<Manifest, TransferError> {
        let list = |source| TransferError::List { reference: reference.to_string(), source: Arc::new(source) };
        let hashes = self.content_of.iter().map(|content| blobs[*content]);
        if self.manifest.is_some() {
            for (file, hash) in self.files.iter().zip(hashes.clone()) {
                super::digests::check_root(file.blake3, hash)
                    .map_err(|mismatch| TransferError::wrong_digest(&file.path, mismatch))?;
            }
        }
        let entries =
            self.files.iter().zip(hashes).map(|(file, hash)| ManifestEntry::new(file.path.clone(), file.size, hash));
        let own = Manifest::new(Kind::Model, entries.collect()).map_err(list)?;
        // The origin's own also has what is not identity, and of a bundle modes and times.
        let theirs =
            self.manifest.iter().find(|theirs| theirs.kind() == Kind::Bundle || theirs.digest() == own.digest());
        Ok(theirs.cloned().unwrap_or(own))
    }

    /// How each file was obtained and checked.
    pub(super) fn facts(&self) -> Vec<FileFacts> {
        let fact = |file: &RemoteFile| FileFacts {
            path: file.path.clone(),
            locator: file.locator.clone(),
            validator: file.validator.as_key(),
            declared: file.declared.clone(),
            origin_verified: verified(file),
        };
        self.files.iter().map(fact).collect()
    }
}

/// Whether a file lists shards.
pub(super) fn is_index(path: &FilePath) -> bool {
    path.as_str().ends_with(INDEX)
}

/// The revision that the model will have, as far as it is known: what the reference names, else what the origin says.
///
/// # Errors
/// [`TransferError::OtherRevision`] when the two differ and no manifest can decide later.
pub(super) fn revision(
    reference: &impl ToString,
    pinned: Option<Revision>,
    resolution: &Resolution,
) -> Result<Option<Revision>, TransferError> {
    let Some(asked) = pinned else { return Ok(resolution.revision.clone()) };
    let other =
        |found: String| TransferError::OtherRevision { reference: reference.to_string(), asked: asked.clone(), found };
    match (&asked, &resolution.revision, &resolution.manifest) {
        (Revision::Manifest(digest), _, Some(manifest)) if manifest.digest() != *digest => {
            Err(other(Revision::Manifest(manifest.digest()).to_string()))
        }
        // Decided when the manifest is finished.
        (Revision::Manifest(_), _, _) => Ok(Some(asked)),
        (_, Some(found), _) if *found != asked => Err(other(found.to_string())),
        (_, None, _) => Err(other("none that can be told before everything is fetched".to_owned())),
        _ => Ok(Some(asked)),
    }
}

/// What the manifest at the origin names binds, whether or not planning has copied it.
fn bind(files: &mut [RemoteFile], manifest: &Manifest) {
    let named: HashMap<&FilePath, Hash> = manifest.files().iter().map(|entry| (&entry.path, entry.blake3)).collect();
    for file in files {
        file.blake3 = named.get(&file.path).copied().or(file.blake3);
    }
}

/// The strongest check that the bytes passed: everything declared has been compared, or they would not be here.
fn verified(file: &RemoteFile) -> OriginVerified {
    if file.blake3.is_some() {
        return OriginVerified::Blake3;
    }
    file.declared.iter().map(|declared| OriginVerified::from(declared.algorithm)).min().unwrap_or_default()
}

fn same_but_for_case(files: &[RemoteFile]) -> Vec<String> {
    let mut seen: HashMap<String, &FilePath> = HashMap::new();
    let mut warnings = Vec::new();
    for file in files {
        if let Some(other) = seen.insert(file.path.as_str().to_lowercase(), &file.path) {
            let path = &file.path;
            warnings.push(format!("{other} and {path} differ in case only: some file systems cannot hold both"));
        }
    }
    warnings
}

// === impl Content ===

impl Content {
    fn of(file: &RemoteFile) -> Self {
        if let Some(hash) = file.blake3 {
            return Self::Blake3(hash);
        }
        if let Some(declared) = file.declared.iter().find(|declared| declared.algorithm.is_collision_resistant()) {
            return Self::Sha256(declared.hex.clone());
        }
        Self::Object(file.locator.clone(), file.validator.as_key())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::{Algorithm, Declared};
    use crate::model::OriginId;
    use crate::model::source::Validator;

    fn remote(path: &str, size: u64) -> RemoteFile {
        RemoteFile {
            path: FilePath::new(path).unwrap(),
            size,
            locator: path.to_owned(),
            validator: Validator::Strong("1".to_owned()),
            declared: Vec::new(),
            blake3: None,
            outboard: None,
        }
    }

    fn resolution(files: Vec<RemoteFile>) -> Resolution {
        let origin = OriginId::new("https://host/m".to_owned());
        Resolution { origin, revision: None, files, manifest: None }
    }

    fn sha256(hex: &str) -> Vec<Declared> {
        vec![Declared { algorithm: Algorithm::Sha256, hex: hex.to_owned() }]
    }

    #[test]
    fn equal_contents_are_fetched_once() {
        let mut files: Vec<_> = ["a", "b", "c", "d"].map(|path| remote(path, 5)).into();
        files[0].declared = sha256("aa");
        files[2].declared = sha256("aa");
        files[3].locator = "b".to_owned();
        let plan = Plan::new(&"r", resolution(files)).unwrap();
        assert_eq!((plan.contents.clone(), plan.content_of.clone()), (vec![0, 1], vec![0, 1, 0, 1]));
        let (one, two) = (Hash::of(b"1"), Hash::of(b"2"));
        let manifest = plan.manifest(&"r", &[one, two]).unwrap();
        assert_eq!(manifest.files().iter().map(|entry| entry.blake3).collect::<Vec<_>>(), [one, two, one, two]);
        assert_eq!(plan.bytes(), 20);
        let with = |content: usize| plan.files_with(content).map(|file| file.path.as_str()).collect::<Vec<_>>();
        assert_eq!((with(0), with(1)), (vec!["a", "c"], vec!["b", "d"]));
    }

    /// Every arrival asks for the files of its content. A few milliseconds for all of them; half a minute where each looks
    /// through all files.
    #[test]
    fn many_files_are_found_by_their_content_at_once() {
        const FILES: usize = 30_000;
        let files = (0..FILES).map(|number| remote(&format!("{number:05}.json"), 5)).collect();
        let plan = Plan::new(&"r", resolution(files)).unwrap();
        let begun = std::time::Instant::now();
        let found: usize = (0..plan.contents.len()).map(|content| plan.files_with(content).count()).sum();
        assert_eq!(found, FILES);
        assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    }

    #[test]
    fn a_list_that_no_manifest_could_have_is_refused_before_any_byte() {
        for files in [
            vec![remote("a", 1), remote("a", 1)],
            vec![remote("a", 1), remote("a/b", 1)],
            vec![remote("a", u64::MAX), remote("b", u64::MAX)],
        ] {
            let error = Plan::new(&"https://host/m", resolution(files)).unwrap_err();
            assert!(matches!(error, TransferError::List { .. }) && error.to_string().contains("https://host/m"));
        }
    }

    #[test]
    fn a_missing_shard_is_named() {
        let index = "sub/model.safetensors.index.json";
        let files = vec![remote(index, 9), remote("sub/m-1.safetensors", 9)];
        let plan = Plan::new(&"r", resolution(files)).unwrap();
        assert_eq!(plan.indexes, BTreeSet::from([1]));
        let index = FilePath::new(index).unwrap();
        let json = br#"{"weight_map":{"a":"m-1.safetensors","b":"m-2.safetensors"}}"#;
        let error = plan.check_index(&index, json, &Selection::default()).unwrap_err();
        assert!(error.to_string().contains("sub/m-2.safetensors, which the origin does not have"), "{error}");
        let chosen = Selection { exclude: vec!["m-2*".to_owned()], ..Selection::default() };
        assert_eq!(plan.check_index(&index, json, &chosen).unwrap().len(), 1);
        let whole = br#"{"weight_map":{"a":"m-1.safetensors"}}"#;
        assert!(plan.check_index(&index, whole, &Selection::default()).unwrap().is_empty());
        assert!(matches!(plan.check_index(&index, b"{", &chosen), Err(TransferError::Index { .. })));
    }

    #[test]
    fn a_manifest_at_the_origin_binds() {
        let entry = ManifestEntry::new(FilePath::new("a").unwrap(), 1, Hash::of(b"x"));
        let manifest = Manifest::new(Kind::Model, vec![entry]).unwrap();
        let resolution = Resolution { manifest: Some(manifest.clone()), ..resolution(vec![remote("a", 1)]) };
        let plan = Plan::new(&"r", resolution).unwrap();
        assert_eq!(plan.files[0].blake3, Some(Hash::of(b"x")));
        assert_eq!(plan.facts()[0].origin_verified, OriginVerified::Blake3);
        assert_eq!(plan.manifest(&"r", &[Hash::of(b"x")]).unwrap(), manifest);
        assert!(matches!(plan.manifest(&"r", &[Hash::of(b"y")]), Err(TransferError::WrongDigest { .. })));
    }

    #[test]
    fn the_strongest_check_is_recorded() {
        let mut file = remote("a", 1);
        assert_eq!(verified(&file), OriginVerified::None);
        file.declared = vec![Declared { algorithm: Algorithm::Crc32c, hex: String::new() }];
        assert_eq!(verified(&file), OriginVerified::Crc32c);
        file.declared.extend(sha256("aa"));
        assert_eq!(verified(&file), OriginVerified::Sha256);
    }

    #[test]
    fn names_that_differ_in_case_are_told() {
        let plan = Plan::new(&"r", resolution(vec![remote("A", 1), remote("a", 1)])).unwrap();
        assert_eq!(plan.warnings.len(), 1);
    }

    #[test]
    fn a_pinned_revision_is_held_against_the_origin() {
        let (one, two) = (Revision::Listing(Hash::of(b"1")), Revision::Listing(Hash::of(b"2")));
        let by_manifest = Revision::Manifest(Hash::of(b"3"));
        let with = |found: Option<Revision>| Resolution { revision: found, ..resolution(Vec::new()) };
        assert_eq!(revision(&"r", None, &with(Some(one.clone()))).unwrap(), Some(one.clone()));
        assert_eq!(revision(&"r", Some(one.clone()), &with(Some(one.clone()))).unwrap(), Some(one.clone()));
        let error = revision(&"r", Some(one.clone()), &with(Some(two.clone()))).unwrap_err().to_string();
        assert!(error.contains(&one.to_string()) && error.contains(&two.to_string()), "{error}");
        assert!(revision(&"r", Some(one), &with(None)).is_err());
        assert_eq!(
            revision(&"r", Some(by_manifest.clone()), &with(Some(two.clone()))).unwrap(),
            Some(by_manifest.clone())
        );
        let manifest = Manifest::new(Kind::Model, Vec::new()).unwrap();
        let other = Resolution { manifest: Some(manifest), ..with(Some(two)) };
        assert!(revision(&"r", Some(by_manifest), &other).is_err());
    }
}
