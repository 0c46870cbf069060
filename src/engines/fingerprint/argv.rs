//! The command line as fields: one for each option, whatever its order and however it is written; none for what says only where
//! and under which name an engine answers. The model and the parallelism are taken out of it, since they have fields of their
//! own, and what it names is in the key by its content.

use std::path::{Path, PathBuf};

use super::arguments::{Arguments, joined, normal};
use super::discreet::{alone, shown};
use super::facts::{Facts, hidden};
use super::named::Named;
use super::python::Interpreter;
use super::scene::Scene;
use crate::engines::profile::Profile;

/// Adds what is left of the command line. `caches`: where the engine keeps what it compiles.
pub(super) fn detect(
    scene: &Scene,
    python: &Interpreter,
    arguments: &Arguments,
    profile: &Profile,
    caches: &[PathBuf],
    facts: &mut Facts,
) {
    let ignored = |name: &str| {
        profile.ignored_arguments.iter().any(|pattern| match pattern.strip_suffix('*') {
            Some(prefix) => name.starts_with(&normal(prefix)),
            None => name == normal(pattern),
        })
    };
    for (name, times) in arguments.options.iter().filter(|(name, _)| !ignored(name)) {
        facts.know(format!("argv.{name}"), joined(&shown(name, times)), "argv");
    }
    for (switch, last) in arguments.contradictions() {
        facts.know(format!("argv.--{switch}.last"), last, "argv");
    }
    for (at, word) in arguments.positional.iter().enumerate() {
        // The first word of a known engine is one of its verbs.
        let known = at == 0 && !profile.commands.is_empty() || scene.at(word).exists();
        facts.know(format!("argv.@{}", at + 1), alone(word, known), "argv");
    }
    if !profile.python && scene.argv.len() > 1 {
        // Nothing is known of how this program reads its words, so that their order may mean something.
        facts.know("argv.order", hidden(&joined(&[scene.argv[1..].to_vec()])), "argv");
    }
    let program = match (&arguments.program, arguments.module) {
        (Some(module), true) => {
            facts.know("argv.program", format!("-m {module}"), "argv");
            None
        }
        (Some(program), false) => {
            let path = if python.by_script || python.program.is_none() { scene.which(program) } else { None };
            let path = path.unwrap_or_else(|| scene.absolute(Path::new(program))).display().to_string();
            facts.know("argv.program", &path, "argv");
            Some(path)
        }
        (None, _) => None,
    };
    let mut named = Named::new(scene, caches, facts);
    for (name, times) in arguments.options.iter().filter(|(name, _)| !ignored(name)) {
        times.iter().flatten().for_each(|word| named.add(name, word));
    }
    // A script that an installer has made is one line of code; what it calls is in the packages.
    arguments.positional.iter().chain(&program).for_each(|word| named.add("", word));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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
        let python = Interpreter {
            program: Some("/bin/python".into()),
            by_script: argv[0] != "python",
            ..Interpreter::default()
        };
        let arguments = Arguments::parse(&scene, &python);
        let mut facts = Facts::default();
        let profile = built_in().into_iter().find(|profile| profile.name == name).unwrap();
        detect(&scene, &python, &arguments, &profile, &[], &mut facts);
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

    #[test]
    fn which_option_a_word_belongs_to_decides() {
        let sglang = |words: &[&str]| facts(&[&["sglang"], words].concat(), "sglang");
        let one = ["--cuda-graph-bs", "1", "2", "4", "--piecewise-cuda-graph-tokens", "8"];
        let other = ["--cuda-graph-bs", "1", "--piecewise-cuda-graph-tokens", "8", "2", "4"];
        assert_ne!(sglang(&one), sglang(&other));
        assert_eq!(sglang(&one).value("argv.--cuda-graph-bs"), Some("1 2 4"));
        assert_ne!(sglang(&["--x", "a", "--x", "b"]), sglang(&["--x", "a", "b"]));
        assert_ne!(sglang(&["--no-x", "--x"]), sglang(&["--x", "--no-x"]));
        let generic = |words: &[&str]| facts(&[&["prog"], words].concat(), "generic-dir");
        assert_ne!(generic(&["-i", "a", "-o", "b"]), generic(&["-o", "b", "-i", "a"]));
    }

    #[test]
    fn no_word_of_a_secret_is_shown() {
        let base = facts(&["vllm", "serve", "m"], "vllm");
        assert_eq!(facts(&["vllm", "serve", "m", "--api-key", "hunter2", "hunter3"], "vllm"), base);
        let words = ["python", "-c", "login('hunter2')", "hunter2", "--token", "hunter2", "hunter3"];
        let text = format!("{:?}", facts(&words, "torch-inductor"));
        assert!(!text.contains("hunter") && text.contains("argv.@1") && text.contains("argv.--token"), "{text}");
        assert_eq!(base.value("argv.@1"), Some("serve"));
        assert_eq!(
            facts(&["vllm", "serve", "--max-num-batched-tokens", "8192"], "vllm")
                .value("argv.--max-num-batched-tokens"),
            Some("8192")
        );
    }
}
