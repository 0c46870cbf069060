//! Installed distributions: name, version, and the digest of the RECORD, which has the digests of a distribution's files. One
//! field for each, so that a difference has a name, and one over all of them. Those that another of the same name hides are in it as
//! well: of a module that only the hidden one has, that one is imported.
//!
//! What is imported and has no distribution is found where it is announced: editable installs, links, and lines of `.pth` files
//! (`paths.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::facts::{Facts, short};
use super::scene::Scene;
use super::{paths, source};
use crate::digest::Hash;

/// Most distributions; an image with everything in it has some hundreds.
const COUNT_LIMIT: usize = 4096;

/// Most names in one directory of packages.
const NAMES_LIMIT: usize = 65_536;

/// Largest RECORD; torch's has 2 MB.
const RECORD_LIMIT: u64 = 64 << 20;

/// Versions by normalised name, of those that are imported.
pub(super) type Packages = BTreeMap<String, String>;

/// Directories in the order in which they are imported from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sites<'a> {
    /// What the environment adds.
    pub(super) added: &'a [PathBuf],
    /// The interpreter's own.
    pub(super) own: &'a [PathBuf],
}

/// What is found, in the order of the directories.
#[derive(Default)]
struct Found {
    /// By name: version and digest of each distribution that has it.
    distributions: BTreeMap<String, Vec<(String, String)>>,
    /// Lines for the digest over all.
    all: Vec<String>,
    /// Why something is unknown that is no distribution's.
    broken: Option<String>,
}

pub(super) fn detect(scene: &Scene, sites: Sites<'_>, facts: &mut Facts) -> Packages {
    let mut found = Found::default();
    for (site, is_added) in
        sites.added.iter().map(|site| (site, true)).chain(sites.own.iter().map(|site| (site, false)))
    {
        if let Err(why) = found.site(scene, site, is_added, sites, facts) {
            found.broken.get_or_insert(why);
        }
    }
    found.all.sort();
    match found.broken {
        Some(why) => facts.miss("dependencies", why),
        None => {
            let digest = short(&Hash::of(found.all.join("\n").as_bytes()));
            facts.know("dependencies", format!("{} distributions, blake3:{digest}", found.all.len()), "dist-info");
        }
    }
    let mut packages = Packages::new();
    for (name, distributions) in found.distributions {
        let text: Vec<String> =
            distributions.iter().map(|(version, digest)| format!("{version} (record {digest})")).collect();
        let field = format!("package.{name}");
        // One that is unknown stays so, whichever hides which.
        if !facts.0.contains_key(&field) {
            facts.know(field, text.join("; hides "), "dist-info");
        }
        packages.extend(distributions.into_iter().next().map(|(version, _)| (name, version)));
    }
    packages
}

// === impl Found ===

impl Found {
    fn site(
        &mut self,
        scene: &Scene,
        site: &Path,
        is_added: bool,
        sites: Sites<'_>,
        facts: &mut Facts,
    ) -> Result<(), String> {
        let place = scene.at(site);
        let names = match names(&place) {
            Ok(names) => names,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            // An archive, which is imported from as well.
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                source::detect(scene, site, &BTreeSet::new(), facts);
                return Ok(());
            }
            Err(error) => return Err(format!("list {}: {error}", site.display())),
        };
        let mut owned = Owned::default();
        for name in &names {
            let linked = name.ends_with(".egg-link") || name.starts_with("__editable__");
            if linked && !is_added {
                facts.miss(
                    format!("package.{name}"),
                    "it leads to a directory of which nothing says what is there; install that from a wheel",
                );
            }
            let stem = name.strip_suffix(".dist-info").or_else(|| name.strip_suffix(".egg-info"));
            let Some(stem) = stem else { continue };
            if self.all.len() >= COUNT_LIMIT {
                return Err(format!("there are more than {COUNT_LIMIT} distributions"));
            }
            let (name_of, version) = stem.split_once('-').unwrap_or((stem, "unknown"));
            let name_of = normal(name_of);
            match content(&place.join(name), &mut owned, is_added) {
                Ok(digest) => {
                    self.all.push(format!("{name_of} {version} {digest}"));
                    self.distributions.entry(name_of).or_default().push((version.to_owned(), digest));
                }
                Err(why) => {
                    facts.miss(format!("package.{name_of}"), why);
                    self.distributions.entry(name_of).or_default().push((version.to_owned(), String::new()));
                }
            }
        }
        if is_added {
            source::detect(scene, site, &owned.tops, facts);
            return Ok(());
        }
        for name in names.iter().filter(|name| name.ends_with(".pth") && !name.starts_with("__editable__")) {
            let field = format!("package.{name}");
            match paths::read(scene, site, name, owned.paths.contains(name), sites) {
                Ok(Some(digest)) => {
                    self.all.push(format!("{name} {digest}"));
                    facts.know(field, digest, "site-packages");
                }
                Ok(None) => {}
                Err(why) => facts.miss(field, why),
            }
        }
        Ok(())
    }
}

/// What the RECORDs of a directory say is theirs.
#[derive(Debug, Default)]
struct Owned {
    /// Files of `.pth`.
    paths: BTreeSet<String>,
    /// First parts of all paths; only where they are asked for.
    tops: BTreeSet<String>,
}

fn names(place: &Path) -> std::io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(place)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
        if names.len() > NAMES_LIMIT {
            return Err(std::io::Error::other(format!("there are more than {NAMES_LIMIT} names")));
        }
    }
    names.sort();
    Ok(names)
}

/// The digest of what a distribution has installed.
fn content(directory: &Path, owned: &mut Owned, with_tops: bool) -> Result<String, String> {
    let read = |path: &Path| {
        let small = std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() <= RECORD_LIMIT);
        small.then(|| std::fs::read(path).ok()).flatten()
    };
    // Its RECORD has the files of the link, and not those that it leads to.
    let origin = directory.join("direct_url.json");
    if origin.exists() {
        let text = read(&origin).and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
        let text = text.ok_or("its direct_url.json, which says whether it is a link, cannot be read")?;
        if text.pointer("/dir_info/editable").is_some_and(|editable| editable.as_bool() != Some(false)) {
            return Err("it is installed as editable, so that nothing says what it contains; install it from a wheel"
                .to_owned());
        }
    }
    if let Some(record) = read(&directory.join("RECORD")) {
        for line in String::from_utf8_lossy(&record).lines() {
            let path = line.split(',').next().unwrap_or_default().trim_matches('"');
            if path.ends_with(".pth") && !path.contains('/') {
                owned.paths.insert(path.to_owned());
            }
            let top = path.split('/').next().unwrap_or_default();
            if with_tops && !owned.tops.contains(top) {
                owned.tops.insert(top.to_owned());
            }
        }
        return Ok(short(&Hash::of(&record)));
    }
    // Packages of a distribution of Linux come without a RECORD; their version is theirs alone. So do those of old tools, some as
    // a single file.
    let described = ["METADATA", "PKG-INFO"].iter().find_map(|name| read(&directory.join(name)));
    let described = described.or_else(|| read(directory));
    Ok(short(&Hash::of(&described.ok_or("it has neither RECORD nor METADATA")?)))
}

/// As PEP 503 writes names.
fn normal(name: &str) -> String {
    let mut normal = String::with_capacity(name.len());
    for c in name.chars() {
        match c {
            '-' | '_' | '.' if normal.ends_with('-') => {}
            '-' | '_' | '.' => normal.push('-'),
            c => normal.push(c.to_ascii_lowercase()),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(root: &Path, sites: &[&str]) -> Facts {
        let scene = Scene { root: root.into(), environment: BTreeMap::new(), argv: Vec::new(), directory: "/".into() };
        let own: Vec<PathBuf> = sites.iter().map(PathBuf::from).collect();
        let mut facts = Facts::default();
        detect(&scene, Sites { added: &[], own: &own }, &mut facts);
        facts
    }

    #[test]
    fn one_record_changes_its_package_and_the_digest_over_all() {
        let root = tempfile::tempdir().unwrap();
        let write = |site: &str, package: &str, file: &str, text: &str| {
            let directory = root.path().join(site).join(format!("{package}.dist-info"));
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::write(directory.join(file), text).unwrap();
        };
        write("a", "Deep_GEMM-2.0", "RECORD", "x");
        write("a", "torch-2.15.0", "RECORD", "y");
        write("a", "old-1", "METADATA", "z");
        write("b", "torch-1.0", "RECORD", "hidden by the first");
        let one = take(root.path(), &["/a", "/b"]);
        assert!(one.value("package.torch").unwrap().starts_with("2.15.0 "));
        assert!(one.value("package.deep-gemm").is_some() && one.value("package.old").is_some());
        write("a", "torch-2.15.0", "RECORD", "changed");
        let other = take(root.path(), &["/a", "/b"]);
        let changed: Vec<&String> =
            one.0.keys().filter(|name| one.value(name.as_str()) != other.value(name.as_str())).collect();
        assert_eq!(changed, ["dependencies", "package.torch"]);
        write("a", "mine-1", "direct_url.json", r#"{"url": "file:///x", "dir_info": {"editable": true}}"#);
        let editable = take(root.path(), &["/a"]);
        assert_eq!(editable.0["package.mine"].value, None);
    }

    fn write(root: &Path, path: &str, text: &str) {
        let place = root.join(path);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(place, text).unwrap();
    }

    #[test]
    fn what_is_hidden_counts_as_well() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "a/torch-2.dist-info/RECORD", "x");
        write(root.path(), "b/torch-1.dist-info/RECORD", "y");
        let one = take(root.path(), &["/a", "/b"]);
        assert!(one.value("package.torch").unwrap().starts_with("2 ("), "{one:?}");
        write(root.path(), "b/torch-1.dist-info/RECORD", "changed");
        let other = take(root.path(), &["/a", "/b"]);
        assert_ne!(one.value("dependencies"), other.value("dependencies"));
        assert_ne!(one.value("package.torch"), other.value("package.torch"));
        write(root.path(), "b/old.egg-info/PKG-INFO", "Name: old");
        write(root.path(), "b/single-1.0.egg-info", "Name: single");
        let old = take(root.path(), &["/b"]);
        assert!(
            old.value("package.old").is_some() && old.value("package.single").unwrap().starts_with("1.0 "),
            "{old:?}"
        );
    }

    #[test]
    fn a_link_to_elsewhere_is_unknown_however_it_is_written() {
        for (file, text) in [
            ("mine-1.dist-info/direct_url.json", r#"{"url":"file:///x","dir_info":{"editable":true}}"#),
            ("mine-1.dist-info/direct_url.json", "{\"dir_info\" : {\n\"editable\"\t:\ttrue}}"),
            ("mine-1.dist-info/direct_url.json", "{cut off"),
            ("mine.egg-link", "/src"),
            ("__editable__.mine-1.pth", "/src"),
            ("mine.pth", "/src"),
        ] {
            let root = tempfile::tempdir().unwrap();
            write(root.path(), "src/mine.py", "");
            write(root.path(), &format!("a/{file}"), text);
            write(root.path(), "a/mine-1.dist-info/RECORD", "mine.pth,,\n");
            let found = take(root.path(), &["/a"]);
            let unknown = found.0.iter().find(|(name, fact)| name.starts_with("package.") && fact.value.is_none());
            assert!(unknown.is_some(), "{file} {text}: {found:?}");
        }
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            "a/mine-1.dist-info/direct_url.json",
            r#"{"url":"file:///x","dir_info":{"editable": false}}"#,
        );
        write(root.path(), "a/mine-1.dist-info/RECORD", "x");
        assert!(take(root.path(), &["/a"]).value("package.mine").is_some());
    }

    #[test]
    fn a_directory_that_cannot_be_listed_is_no_empty_one() {
        let root = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("itself", root.path().join("itself")).unwrap();
        assert_eq!(take(root.path(), &["/itself"]).0["dependencies"].value, None);
        assert!(take(root.path(), &["/absent"]).value("dependencies").is_some());
    }
}
