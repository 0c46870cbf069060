//! Code that is imported from a directory of `PYTHONPATH` and that no distribution accounts for: a checkout in front of what is
//! installed, an application's own modules. Its files are hashed, within limits; beyond them it is unknown.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::facts::{Facts, short};
use super::scene::Scene;
use crate::digest::Hash;

/// Most names that are looked at; a checkout of vLLM has 8,000.
const NAMES: usize = 50_000;

/// Most bytes that are hashed: a second's work.
const BYTES: u64 = 512 << 20;

/// What is being walked.
struct Walk {
    lines: Vec<String>,
    names: usize,
    bytes: u64,
}

/// Adds what is importable in a directory, or in an archive, but for the names at its top that distributions own.
pub(super) fn detect(scene: &Scene, directory: &Path, owned: &BTreeSet<String>, facts: &mut Facts) {
    let place = scene.at(directory);
    let name = format!("source.{}", directory.display());
    let mut walk = Walk { lines: Vec::new(), names: 0, bytes: 0 };
    let walked = if place.is_dir() {
        walk.directory(&place, Path::new(""), owned)
    } else {
        walk.file(&place, Path::new("archive"))
    };
    match walked {
        Ok(()) if walk.lines.is_empty() => {}
        Ok(()) => {
            walk.lines.sort();
            let digest = short(&Hash::of(walk.lines.join("\n").as_bytes()));
            facts.know(name, format!("{} files, blake3:{digest}", walk.lines.len()), "PYTHONPATH");
        }
        Err(why) => facts.miss(name, format!("{why}; install it, or take it out of PYTHONPATH")),
    }
}

// === impl Walk ===

impl Walk {
    fn directory(&mut self, place: &Path, below: &Path, owned: &BTreeSet<String>) -> Result<(), String> {
        let unread = |error: std::io::Error| format!("read {}: {error}", place.display());
        for entry in std::fs::read_dir(place).map_err(unread)? {
            let name = entry.map_err(unread)?.file_name();
            self.names += 1;
            if self.names > NAMES {
                return Err(format!("there are more than {NAMES} names in it"));
            }
            let Some(text) = name.to_str() else { continue };
            let (path, below) = (place.join(text), below.join(text));
            // Links are followed, as an import does.
            let Ok(found) = std::fs::metadata(&path) else { continue };
            if found.is_file() && is_code(text) && !owned.contains(text) {
                self.file(&path, &below)?;
            } else if found.is_dir() && is_package(text) && !owned.contains(text) {
                self.directory(&path, &below, &BTreeSet::new())?;
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &PathBuf, below: &Path) -> Result<(), String> {
        let unread = |error: std::io::Error| format!("read {}: {error}", path.display());
        self.bytes += std::fs::metadata(path).map_err(unread)?.len();
        if self.bytes > BYTES {
            return Err(format!("there is more than {} MiB of code in it", BYTES >> 20));
        }
        let digest = Hash::of(&std::fs::read(path).map_err(unread)?);
        self.lines.push(format!("{} {digest}", below.display()));
        Ok(())
    }
}

fn is_code(name: &str) -> bool {
    [".py", ".so", ".pyc"].iter().any(|ending| name.ends_with(ending))
}

/// Whether a directory's name can stand in an `import`.
fn is_package(name: &str) -> bool {
    name != "__pycache__" && name.chars().all(|c| c.is_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_counts_and_what_lies_beside_it_does_not() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let place = root.path().join(path);
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::write(place, text).unwrap();
        };
        let scene = Scene { root: root.path().into(), environment: [].into(), argv: Vec::new(), directory: "/".into() };
        let take = || {
            let mut facts = Facts::default();
            detect(&scene, Path::new("/app"), &["owned".to_owned()].into(), &mut facts);
            facts.0.get("source./app").cloned()
        };
        std::fs::create_dir(root.path().join("app")).unwrap();
        assert_eq!(take(), None);
        write("app/vllm/__init__.py", "x");
        write("app/owned/a.py", "x");
        let one = take();
        assert!(one.as_ref().unwrap().value.is_some());
        for (path, counts) in [
            ("app/vllm/__init__.py", true),
            ("app/vllm/_C.abi3.so", true),
            ("app/data/x.bin", false),
            ("app/vllm/__pycache__/x.pyc", false),
            ("app/.git/hooks/x.py", false),
            ("app/not-a-name/x.py", false),
            ("app/owned/a.py", false),
        ] {
            write(path, "y");
            assert_eq!(take() != one, counts, "{path}");
            if path.ends_with("__.py") {
                write(path, "x");
            } else {
                std::fs::remove_file(root.path().join(path)).unwrap();
            }
        }
        std::os::unix::fs::symlink("..", root.path().join("app/up")).unwrap();
        std::os::unix::fs::symlink("..", root.path().join("app/again")).unwrap();
        assert_eq!(take().unwrap().value, None, "a ring has no end");
    }
}
