//! What the command line names and the key must have by its content: files, and of directories (a draft model, an adapter) their
//! configuration and their code. A path stands as a value of its own, in JSON, or behind an `=`.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::facts::{Facts, short};
use super::model::cached_commit;
use super::scene::Scene;
use crate::digest::Hash;

/// Largest file that is hashed for the key.
const HASH_LIMIT: u64 = 64 << 20;

/// Largest configuration or code file of a directory.
const DESCRIPTION_LIMIT: u64 = 16 << 20;

/// Most of them; a model has some dozens.
const DESCRIPTIONS: usize = 512;

/// Most values of one command that are looked at; an engine has some hundreds of options.
const CANDIDATES: usize = 4096;

/// Looks at the values of a command line.
pub(super) struct Named<'a> {
    scene: &'a Scene,
    /// Directories of caches, which are in the key by their path: what is in them is what is made.
    caches: &'a [PathBuf],
    facts: &'a mut Facts,
    left: usize,
}

// === impl Named ===

impl<'a> Named<'a> {
    pub(super) fn new(scene: &'a Scene, caches: &'a [PathBuf], facts: &'a mut Facts) -> Self {
        Self { scene, caches, facts, left: CANDIDATES }
    }

    /// All that a word of an option names. Where an option says what is written, only files count: what a run leaves behind must
    /// not make the next one another.
    pub(super) fn add(&mut self, option: &str, word: &str) {
        let output = option.split('-').any(|part| matches!(part, "out" | "output" | "save" | "log"));
        for value in candidates(word) {
            let Some(left) = self.left.checked_sub(1) else {
                self.facts.miss("argv.files", format!("more than {CANDIDATES} values may name files"));
                return;
            };
            self.left = left;
            self.look(&value, output);
        }
    }

    fn look(&mut self, value: &str, output: bool) {
        if value.is_empty() || value.len() > 4096 || value.contains('\0') {
            return;
        }
        let path = self.scene.absolute(Path::new(value));
        if self.caches.iter().any(|cache| path.starts_with(cache)) {
            return;
        }
        let place = self.scene.at(&path);
        match std::fs::metadata(&place) {
            Ok(found) if found.is_dir() && !output => self.directory(value, &place),
            Ok(found) if found.is_file() => self.file(value, &place, found.len()),
            Ok(_) => {}
            // A model by the name that a hub has for it: its branch moves.
            Err(_) => {
                if let Some(commit) = value.contains('/').then(|| cached_commit(self.scene, value, "main")).flatten() {
                    self.facts.know(format!("file.{value}"), format!("of {commit}"), "the hub's cache");
                }
            }
        }
    }

    fn file(&mut self, value: &str, place: &Path, length: u64) {
        let name = format!("file.{value}");
        if length > HASH_LIMIT {
            // Weights: what is compiled knows their shapes, which the configuration has.
            self.facts.know(name, format!("{length} bytes, not hashed"), "argv");
            return;
        }
        match std::fs::read(place) {
            Ok(bytes) => self.facts.know(name, format!("blake3:{}", short(&Hash::of(&bytes))), "argv"),
            Err(error) => self.facts.miss(name, format!("it cannot be read: {error}")),
        }
    }

    fn directory(&mut self, value: &str, place: &Path) {
        let name = format!("file.{}/", value.trim_end_matches('/'));
        match descriptions(place).and_then(|names| content(place, &names)) {
            Ok(Some(digest)) => self.facts.know(name, format!("configuration and code, {digest}"), "argv"),
            Ok(None) => {}
            Err(why) => self.facts.miss(name, why),
        }
    }
}

/// The digest of some files of a directory, those that are there; none if no one is.
pub(super) fn content(place: &Path, names: &[PathBuf]) -> Result<Option<String>, String> {
    let mut text = String::new();
    for name in names {
        let file = place.join(name);
        let Ok(found) = std::fs::metadata(&file) else { continue };
        if found.len() > DESCRIPTION_LIMIT {
            return Err(format!("{} is longer than 16 MiB", name.display()));
        }
        let bytes = std::fs::read(&file).map_err(|error| format!("read {}: {error}", name.display()))?;
        text.push_str(&format!("{} {}\n", name.display(), Hash::of(&bytes)));
    }
    Ok((!text.is_empty()).then(|| format!("blake3:{}", short(&Hash::of(text.as_bytes())))))
}

/// The files directly in a directory that say what is in it.
fn descriptions(place: &Path) -> Result<Vec<PathBuf>, String> {
    let entries = std::fs::read_dir(place).map_err(|error| format!("it cannot be listed: {error}"))?;
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| format!("it cannot be listed: {error}"))?;
        let name = PathBuf::from(entry.file_name());
        if describes(&name.to_string_lossy()) && entry.path().is_file() {
            names.push(name);
        }
        if names.len() > DESCRIPTIONS {
            return Err(format!("it has more than {DESCRIPTIONS} files of configuration and code"));
        }
    }
    names.sort();
    Ok(names)
}

/// Configuration and code, but not what only the tokenizer reads, and not where each tensor lies.
fn describes(name: &str) -> bool {
    let kinds = [".json", ".py", ".yaml", ".yml", ".toml"];
    let none = ["tokenizer", "vocab", "merges", "special_tokens", "added_tokens"];
    kinds.iter().any(|kind| name.ends_with(kind))
        && !name.ends_with(".index.json")
        && !none.iter().any(|beginning| name.starts_with(beginning))
}

/// What in a word may be a path.
fn candidates(word: &str) -> Vec<String> {
    if word.trim_start().starts_with(['{', '['])
        && let Ok(json) = serde_json::from_str(word)
    {
        let mut found = Vec::new();
        leaves(&json, &mut found);
        return found;
    }
    let mut found = vec![word.to_owned()];
    let behind = |text: &str| text.split_once('=').map(|(_, value)| value.to_owned());
    found.extend(behind(word));
    if word.contains(',') {
        for part in word.split(',') {
            found.extend([Some(part.to_owned()), behind(part)].into_iter().flatten());
        }
    }
    found
}

fn leaves(json: &Value, found: &mut Vec<String>) {
    match json {
        Value::String(text) => found.push(text.clone()),
        Value::Array(values) => values.iter().for_each(|value| leaves(value, found)),
        Value::Object(values) => values.values().for_each(|value| leaves(value, found)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(root: &Path, option: &str, word: &str) -> Facts {
        let scene = Scene {
            root: root.into(),
            environment: [("HOME".to_owned(), "/h".to_owned())].into(),
            argv: Vec::new(),
            directory: "/".into(),
        };
        let mut facts = Facts::default();
        Named::new(&scene, &["/cache".into()], &mut facts).add(option, word);
        facts
    }

    fn write(root: &Path, path: &str, text: &str) {
        let place = root.join(path);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(place, text).unwrap();
    }

    #[test]
    fn a_directory_counts_by_its_configuration_and_code_wherever_it_is_named() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "draft/config.json", "{}");
        write(root, "draft/model.safetensors", "weights");
        write(root, "draft/tokenizer.json", "{}");
        for word in ["/draft", "/draft/", "name=/draft", "a=/none,b=/draft", r#"{"model": "/draft", "n": [3]}"#] {
            write(root, "draft/config.json", "{}");
            let one = take(root, "--x", word);
            assert!(one.value("file./draft/").is_some(), "{word}: {one:?}");
            write(root, "draft/model.safetensors", "others");
            write(root, "draft/tokenizer.json", "{ }");
            assert_eq!(take(root, "--x", word), one);
            write(root, "draft/config.json", "{ }");
            assert_ne!(take(root, "--x", word), one, "{word}");
        }
        write(root, "draft/modeling.py", "x");
        let code = take(root, "--x", "/draft");
        write(root, "draft/modeling.py", "y");
        assert_ne!(take(root, "--x", "/draft"), code);
        assert_eq!(take(root, "--output-dir", "/draft"), Facts::default(), "what is written there");
        write(root, "cache/config.json", "{}");
        assert_eq!(take(root, "--x", "/cache"), Facts::default(), "what is compiled");
    }

    #[test]
    fn a_repository_counts_by_the_commit_in_the_cache() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(take(root.path(), "--x", "org/draft"), Facts::default());
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let repository = "h/.cache/huggingface/hub/models--org--draft";
        write(root.path(), &format!("{repository}/refs/main"), commit);
        write(root.path(), &format!("{repository}/snapshots/{commit}/config.json"), "{}");
        let found = take(root.path(), "--x", r#"{"model":"org/draft"}"#);
        assert_eq!(found.value("file.org/draft"), Some(format!("of {commit}").as_str()));
    }

    #[test]
    fn too_much_is_not_known() {
        let root = tempfile::tempdir().unwrap();
        for number in 0..=DESCRIPTIONS {
            write(root.path(), &format!("many/{number}.py"), "");
        }
        assert_eq!(take(root.path(), "--x", "/many").0["file./many/"].value, None);
        let long = vec!["x"; CANDIDATES + 1].join(",");
        assert_eq!(take(root.path(), "--x", &long).0["argv.files"].value, None);
    }
}
