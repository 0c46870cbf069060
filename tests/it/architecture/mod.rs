//! The house keeps to its map: the table of floors in `src/lib.rs`, checked against every source file.

mod floors;
mod rules;
mod tokens;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use floors::Floors;

fn source_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

fn floors() -> Floors {
    let lib = std::fs::read_to_string(source_root().join("lib.rs")).unwrap();
    Floors::read(&lib).unwrap()
}

/// Every Rust file below `directory`, sorted, as paths relative to it.
fn rust_files(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path.strip_prefix(directory).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_file_keeps_to_the_map() {
    let (root, floors) = (source_root(), floors());
    let files = rust_files(&root);
    assert!(files.len() > 20, "found only {files:?}");
    let wrong: Vec<String> = files
        .iter()
        .flat_map(|path| rules::violations(&floors, path, &std::fs::read_to_string(root.join(path)).unwrap()))
        .collect();
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn every_folder_is_on_the_map() {
    let floors = floors();
    for entry in std::fs::read_dir(source_root()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        assert!(name == "lib" || floors.get(&name).is_some(), "src/{name} is not in the table of floors in src/lib.rs");
    }
}

#[test]
fn modules_are_declared_ground_to_roof() {
    let (floors, lib) = (floors(), std::fs::read_to_string(source_root().join("lib.rs")).unwrap());
    let tokens = tokens::tokens(&lib);
    let declared: Vec<&str> =
        tokens.windows(3).filter(|w| w[0].text == "mod" && w[2].text == ";").map(|w| w[1].text).collect();
    let levels: Vec<Option<usize>> = declared.iter().map(|name| floors.get(name).map(|module| module.floor)).collect();
    assert!(
        levels.iter().all(Option::is_some) && levels.is_sorted(),
        "src/lib.rs declares {declared:?}, on floors {levels:?}"
    );
    let on_disk: BTreeSet<&str> = floors.names().filter(|name| exists(name) && *name != "main").collect();
    assert_eq!(
        declared.iter().copied().collect::<BTreeSet<_>>(),
        on_disk,
        "what is on disk is what src/lib.rs declares"
    );
}

fn exists(module: &str) -> bool {
    source_root().join(module).is_dir() || source_root().join(format!("{module}.rs")).is_file()
}

#[test]
fn no_test_file_is_too_long() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    for path in rust_files(&root) {
        let lines = std::fs::read_to_string(root.join(&path)).unwrap().lines().count();
        assert!(lines <= 600, "tests/{path} has {lines} lines; past 600 a file has a second idea in it");
    }
}
