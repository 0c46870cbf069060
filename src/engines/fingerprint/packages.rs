//! Installed distributions: name, version, and the digest of the RECORD, which has the digests of a distribution's files. One
//! field for each, so that a difference has a name, and one over all of them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::facts::{Facts, short};
use super::scene::Scene;
use crate::digest::Hash;

/// Most distributions; an image with everything in it has some hundreds.
const COUNT_LIMIT: usize = 4096;

/// Largest RECORD; torch's has 2 MB.
const RECORD_LIMIT: u64 = 64 << 20;

/// Versions by normalised name.
pub(super) type Packages = BTreeMap<String, String>;

pub(super) fn detect(scene: &Scene, sites: &[PathBuf], facts: &mut Facts) -> Packages {
    let (mut packages, mut all) = (Packages::new(), Vec::new());
    for site in sites {
        let Ok(entries) = std::fs::read_dir(scene.at(site)) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some((name, version)) = name.strip_suffix(".dist-info").and_then(|stem| stem.split_once('-')) else {
                continue;
            };
            if all.len() >= COUNT_LIMIT {
                facts.miss("dependencies", format!("there are more than {COUNT_LIMIT} distributions"));
                return packages;
            }
            let name = normal(name);
            let field = format!("package.{name}");
            // The first on the path is the one that is imported.
            if packages.contains_key(&name) {
                continue;
            }
            match content(&entry.path()) {
                Ok(digest) => {
                    all.push(format!("{name} {version} {digest}"));
                    facts.know(&field, format!("{version} (record {digest})"), "dist-info");
                }
                Err(why) => facts.miss(&field, why),
            }
            packages.insert(name, version.to_owned());
        }
    }
    all.sort();
    let digest = short(&Hash::of(all.join("\n").as_bytes()));
    facts.know("dependencies", format!("{} distributions, blake3:{digest}", all.len()), "dist-info");
    packages
}

/// The digest of what a distribution has installed.
fn content(directory: &Path) -> Result<String, String> {
    let read = |name: &str| {
        let path = directory.join(name);
        let small = std::fs::metadata(&path).is_ok_and(|found| found.len() <= RECORD_LIMIT);
        small.then(|| std::fs::read(path).ok()).flatten()
    };
    // Its RECORD has the files of the link, and not those that it leads to.
    if read("direct_url.json").is_some_and(|text| String::from_utf8_lossy(&text).contains("\"editable\": true")) {
        return Err(
            "it is installed as editable, so that nothing says what it contains; install it from a wheel".to_owned()
        );
    }
    // Packages of a distribution of Linux come without a RECORD; their version is theirs alone.
    let text = read("RECORD").or_else(|| read("METADATA")).ok_or("it has neither RECORD nor METADATA")?;
    Ok(short(&Hash::of(&text)))
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
        let sites: Vec<PathBuf> = sites.iter().map(PathBuf::from).collect();
        let mut facts = Facts::default();
        detect(&scene, &sites, &mut facts);
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
}
