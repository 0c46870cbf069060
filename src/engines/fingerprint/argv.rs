//! The command line as fields: one for each option, whatever its order and however it is written; none for what says only where
//! and under which name an engine answers. The model and the parallelism are taken out of it, since they have fields of their
//! own, and files that it names are in the key by their content.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::environment::is_secret;
use super::facts::{Facts, hidden, short};
use super::python::Interpreter;
use super::scene::Scene;
use crate::digest::Hash;
use crate::engines::profile::Profile;

/// Largest file that is hashed for the key.
const HASH_LIMIT: u64 = 64 << 20;

/// What the command line says that other detectors need.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Arguments {
    /// Options by name without dashes doubled or underscores; a flag has an empty value.
    pub(super) options: BTreeMap<String, Vec<String>>,
    /// What belongs to no option, in its order.
    pub(super) positional: Vec<String>,
    /// Which of them is the program: a script, or a module after `-m`.
    pub(super) program: Option<String>,
    /// Whether the program is a module.
    pub(super) module: bool,
}

// === impl Arguments ===

impl Arguments {
    /// Reads the command of a scene.
    pub(super) fn parse(scene: &Scene, python: &Interpreter) -> Self {
        let mut found = Self::default();
        let Some((first, rest)) = scene.argv.split_first() else { return found };
        let mut words = rest.iter().peekable();
        // Options of the interpreter stand before the program and are about the interpreter.
        if python.program.is_some() && !python.by_script {
            while let Some(word) = words.next_if(|word| word.starts_with('-')) {
                let name = word.trim_start_matches('-');
                match name {
                    "m" => {
                        found.module = true;
                        found.program = words.next().cloned();
                        break;
                    }
                    "c" => {
                        let text = words.next().cloned().unwrap_or_default();
                        found.options.entry("-c".to_owned()).or_default().push(text);
                        break;
                    }
                    "X" | "W" => {
                        let value = words.next().cloned().unwrap_or_default();
                        found.options.entry(format!("python-{name}")).or_default().push(value);
                    }
                    _ => found.options.entry(format!("python-{name}")).or_default().push(String::new()),
                }
            }
            if !found.module && !found.options.contains_key("-c") {
                found.program = words.next().cloned();
            }
        } else {
            found.program = Some(first.clone());
        }
        while let Some(word) = words.next() {
            let is_option = word.starts_with('-') && word.len() > 1 && word.parse::<f64>().is_err();
            if !is_option {
                found.positional.push(word.clone());
                continue;
            }
            let (name, value) = match word.split_once('=') {
                Some((name, value)) => (name, value.to_owned()),
                None => {
                    let next = words.next_if(|next| !next.starts_with('-') || next.parse::<f64>().is_ok());
                    (word.as_str(), next.cloned().unwrap_or_default())
                }
            };
            found.options.entry(normal(name)).or_default().push(value);
        }
        found
    }

    /// The last value of the first of these options that is given, and takes them all out.
    pub(super) fn take(&mut self, names: &[String]) -> Option<String> {
        let mut found = None;
        for name in names {
            let values = self.options.remove(&normal(name));
            found = found.or_else(|| values.and_then(|mut values| values.pop()));
        }
        found
    }

    /// The last value of the first of these options that is given.
    pub(super) fn value(&self, names: &[String]) -> Option<&str> {
        names.iter().find_map(|name| self.options.get(&normal(name))?.last().map(String::as_str))
    }
}

/// Adds what is left of the command line.
pub(super) fn detect(scene: &Scene, python: &Interpreter, arguments: &Arguments, profile: &Profile, facts: &mut Facts) {
    let ignored = |name: &str| {
        profile.ignored_arguments.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => name == pattern,
        })
    };
    let mut named = Files { scene, facts };
    for (name, values) in &arguments.options {
        if ignored(name) {
            continue;
        }
        let values: Vec<String> = values.iter().map(|value| canonical(value)).collect();
        let text = values.join("\n");
        let shown = if is_secret(name) { hidden(&text) } else { text };
        named.facts.know(format!("argv.{name}"), shown, "argv");
        for value in &values {
            named.add(value);
        }
    }
    for (at, value) in arguments.positional.iter().enumerate() {
        named.facts.know(format!("argv.@{}", at + 1), value, "argv");
        named.add(value);
    }
    match (&arguments.program, arguments.module) {
        (Some(module), true) => named.facts.know("argv.program", format!("-m {module}"), "argv"),
        (Some(program), false) => {
            let path = if python.by_script || python.program.is_none() { scene.which(program) } else { None };
            let path = path.unwrap_or_else(|| scene.absolute(Path::new(program)));
            // A script that an installer has made is one line of code; what it calls is in the packages.
            named.facts.know("argv.program", path.display().to_string(), "argv");
            named.add(&path.display().to_string());
        }
        (None, _) => {}
    }
}

struct Files<'a> {
    scene: &'a Scene,
    facts: &'a mut Facts,
}

impl Files<'_> {
    /// A value that is the path of a file.
    fn add(&mut self, value: &str) {
        if value.is_empty() || value.len() > 4096 || value.contains('\0') {
            return;
        }
        let place = self.scene.at(PathBuf::from(value));
        let Ok(found) = std::fs::metadata(&place) else { return };
        if !found.is_file() {
            return;
        }
        let name = format!("file.{value}");
        if found.len() > HASH_LIMIT {
            // Weights: what is compiled knows their shapes, which the configuration has.
            self.facts.know(name, format!("{} bytes, not hashed", found.len()), "argv");
            return;
        }
        match std::fs::read(&place) {
            Ok(bytes) => self.facts.know(name, format!("blake3:{}", short(&Hash::of(&bytes))), "argv"),
            Err(error) => self.facts.miss(name, format!("it cannot be read: {error}")),
        }
    }
}

/// `--max_model_len` and `--max-model-len` are one option.
fn normal(name: &str) -> String {
    if name.starts_with("--") { name.replace('_', "-") } else { name.to_owned() }
}

/// JSON in one way of writing it.
fn canonical(value: &str) -> String {
    let json = value.trim_start().starts_with(['{', '[']).then(|| serde_json::from_str::<serde_json::Value>(value));
    match json {
        Some(Ok(json)) => json.to_string(),
        _ => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::profile::built_in;

    fn facts(argv: &[&str], name: &str) -> Facts {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("template.jinja"), "x").unwrap();
        let scene = Scene {
            root: root.path().into(),
            environment: BTreeMap::new(),
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            directory: "/".into(),
        };
        let python =
            Interpreter { program: Some("/bin/python".into()), by_script: argv[0] == "vllm", ..Interpreter::default() };
        let arguments = Arguments::parse(&scene, &python);
        let mut facts = Facts::default();
        let profile = built_in().into_iter().find(|profile| profile.name == name).unwrap();
        detect(&scene, &python, &arguments, &profile, &mut facts);
        facts
    }

    #[test]
    fn the_same_command_however_it_is_written() {
        let base = ["vllm", "serve", "m", "--max-model-len", "4096", "--enforce-eager"];
        for same in [
            vec!["vllm", "serve", "m", "--enforce-eager", "--max-model-len=4096"],
            vec!["vllm", "serve", "m", "--max_model_len", "4096", "--enforce_eager", "--port", "8001"],
            vec![
                "vllm",
                "serve",
                "m",
                "--host=0.0.0.0",
                "--max-model-len",
                "4096",
                "--uvicorn-log-level",
                "info",
                "--enforce-eager",
            ],
            vec![
                "vllm",
                "serve",
                "m",
                "--api-key",
                "s3cret",
                "--served-model-name",
                "n",
                "--max-model-len",
                "4096",
                "--enforce-eager",
            ],
        ] {
            assert_eq!(facts(&same, "vllm"), facts(&base, "vllm"), "{same:?}");
        }
        let json = |text: &str| facts(&["vllm", "serve", "m", "--compilation-config", text], "vllm");
        assert_eq!(json(r#"{"level":3,"a":1}"#), json(r#"{ "a": 1, "level": 3 }"#));
        for other in [
            vec!["vllm", "serve", "m", "--max-model-len", "8192", "--enforce-eager"],
            vec!["vllm", "serve", "m", "--max-model-len", "4096"],
            vec!["vllm", "serve", "other", "--max-model-len", "4096", "--enforce-eager"],
            vec!["vllm", "serve", "m", "--max-model-len", "4096", "--enforce-eager", "--seed", "-1"],
            vec![
                "vllm",
                "serve",
                "m",
                "--max-model-len",
                "4096",
                "--enforce-eager",
                "--chat-template",
                "template.jinja",
            ],
        ] {
            assert_ne!(facts(&other, "vllm"), facts(&base, "vllm"), "{other:?}");
        }
    }

    #[test]
    fn a_port_counts_where_nobody_says_that_it_does_not() {
        let with = |port: &str| facts(&["python", "a.py", "--port", port], "torch-inductor");
        assert_ne!(with("1"), with("2"));
    }

    #[test]
    fn files_are_in_it_by_content_and_secrets_by_digest() {
        let found = facts(
            &["python", "-X", "dev", "a.py", "--auth-token", "hunter2", "--file", "template.jinja"],
            "torch-inductor",
        );
        assert!(found.value("file.template.jinja").unwrap().starts_with("blake3:"));
        assert!(!format!("{found:?}").contains("hunter2"));
        assert_eq!(found.value("argv.program"), Some("/a.py"));
        assert_eq!(found.value("argv.python-X"), Some("dev"));
        let module = facts(&["python", "-m", "vllm.entrypoints.openai.api_server", "--seed", "-1"], "vllm");
        assert_eq!(module.value("argv.program"), Some("-m vllm.entrypoints.openai.api_server"));
        assert_eq!(module.value("argv.--seed"), Some("-1"));
    }
}
