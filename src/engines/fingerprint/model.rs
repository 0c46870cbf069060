//! The model as the engine sees it, and how it is spread: the path or the repository as it is written (engines hash that text),
//! its revision, and what its configuration says.

use std::path::{Path, PathBuf};

use super::arguments::Arguments;
use super::facts::Facts;
use super::named::content;
use super::scene::Scene;
use crate::engines::profile::Profile;

/// Takes model and parallelism out of the arguments; the rank of this node.
pub(super) fn detect(scene: &Scene, arguments: &mut Arguments, profile: &Profile, facts: &mut Facts) -> u32 {
    if !profile.model_arguments.is_empty() || profile.model_after.is_some() {
        reference(scene, arguments, profile, facts);
    }
    for (name, options) in [
        ("tp", &profile.parallel.tp),
        ("pp", &profile.parallel.pp),
        ("dp", &profile.parallel.dp),
        ("ep", &profile.parallel.ep),
    ] {
        if !options.is_empty() {
            let name = format!("parallel.{name}");
            match arguments.take(options) {
                Ok(value) => {
                    // A flag without a value: switched on.
                    let value = value.map(|value| if value.is_empty() { "on".to_owned() } else { value });
                    facts.know(name, value.unwrap_or_else(|| "1".to_owned()), "argv");
                }
                Err(why) => facts.miss(name, why),
            }
        }
    }
    match arguments.take(&profile.parallel.nodes) {
        Ok(nodes) => {
            let nodes = nodes.or_else(|| scene.variable("LWS_GROUP_SIZE").map(str::to_owned));
            facts.know("parallel.nnodes", nodes.unwrap_or_else(|| "1".to_owned()), "argv, LWS_GROUP_SIZE");
        }
        Err(why) => facts.miss("parallel.nnodes", why),
    }
    let rank = arguments.take(&profile.parallel.node_rank).and_then(|rank| {
        let rank = rank.or_else(|| scene.variable("LWS_WORKER_INDEX").map(str::to_owned));
        let Some(rank) = rank else { return Ok(0) };
        rank.parse().map_err(|_| format!("`{}` is no rank", rank.chars().take(40).collect::<String>()))
    });
    rank.unwrap_or_else(|why| {
        facts.miss("parallel.node_rank", why);
        0
    })
}

fn reference(scene: &Scene, arguments: &mut Arguments, profile: &Profile, facts: &mut Facts) {
    let mut named = match arguments.take(&profile.model_arguments) {
        Ok(named) => named,
        Err(why) => return facts.miss("model.reference", why),
    };
    if let Some(word) = &profile.model_after
        && arguments.positional.first() == Some(word)
        && arguments.positional.len() > 1
    {
        let model = arguments.positional.remove(1);
        if named.as_ref().is_some_and(|named| *named != model) {
            return facts.miss("model.reference", "the command names two models; name one");
        }
        named = Some(model);
    }
    let Some(model) = named else {
        // Behind an option it may be the option's.
        let how = match &profile.model_after {
            Some(word) => format!("write it right after `{word}`"),
            None => format!("give {}", profile.model_arguments.join(" or ")),
        };
        return facts
            .miss("model.reference", format!("the command names no model that can be told from other words; {how}"));
    };
    facts.know("model.reference", &model, "argv");
    let revision = match arguments.take(&["--revision".to_owned()]) {
        Ok(revision) => revision,
        Err(why) => return facts.miss("model.revision", why),
    };
    let path = scene.absolute(Path::new(&model));
    if scene.at(&path).is_dir() {
        facts.know("model.revision", revision.as_deref().unwrap_or("none"), "argv");
        return describe(scene, &path, facts);
    }
    let is_commit = |text: &str| text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let pinned = revision.as_deref().filter(|text| is_commit(text)).map(str::to_owned);
    let commit = pinned.clone().or_else(|| cached_commit(scene, &model, revision.as_deref().unwrap_or("main")));
    match commit {
        Some(commit) => {
            let from = if pinned.is_some() { "argv" } else { "the hub's cache" };
            facts.know("model.revision", &commit, from);
            // The commit says what is in it.
            facts.know("model.config", format!("of {commit}"), from);
        }
        None => {
            let why = "it is neither a directory nor in the hub's cache: give a directory (`preheat fetch` prints one), or \
                       --revision COMMIT";
            facts.miss("model.revision", why);
        }
    }
}

/// Configuration, quantisation and code of a model directory.
fn describe(scene: &Scene, path: &Path, facts: &mut Facts) {
    let mut add = |field: &str, names: &[PathBuf], required: bool| match content(&scene.at(path), names) {
        Ok(Some(digest)) => facts.know(field, digest, "model directory"),
        Ok(None) if required => facts.miss(field, format!("{} has none", path.display())),
        Ok(None) => facts.know(field, "none", "model directory"),
        Err(why) => facts.miss(field, why),
    };
    add("model.config", &["config.json".into(), "params.json".into()], true);
    add("model.quantization", &["quantize_config.json".into(), "hf_quant_config.json".into()], false);
    let mut code: Vec<PathBuf> = std::fs::read_dir(scene.at(path))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| PathBuf::from(entry.file_name()))
        .filter(|name| name.extension().is_some_and(|extension| extension == "py"))
        .collect();
    code.sort();
    add("model.code", &code, false);
}

/// The commit that the hub's own tools have in their cache for a branch.
pub(super) fn cached_commit(scene: &Scene, model: &str, revision: &str) -> Option<String> {
    let simple = |text: &str| !text.is_empty() && !text.contains("..") && !text.starts_with('/');
    if !simple(model) || !simple(revision) {
        return None;
    }
    let hub = scene.variable("HF_HUB_CACHE").map(PathBuf::from).or_else(|| {
        let home = scene.variable("HF_HOME").map(PathBuf::from);
        let home =
            home.or_else(|| Some(scene.variable("XDG_CACHE_HOME")?.parse::<PathBuf>().ok()?.join("huggingface")));
        Some(home.or_else(|| Some(scene.home()?.join(".cache/huggingface")))?.join("hub"))
    })?;
    let repository = hub.join(format!("models--{}", model.replace('/', "--")));
    let commit = scene.read(repository.join("refs").join(revision))?.trim().to_owned();
    let whole = commit.len() == 40 && scene.at(repository.join("snapshots").join(&commit)).is_dir();
    whole.then_some(commit)
}

#[cfg(test)]
mod tests {
    use super::super::python::Interpreter;
    use super::*;
    use crate::engines::profile::built_in;

    fn take(root: &Path, argv: &[&str], environment: &[(&str, &str)]) -> (Facts, u32) {
        let scene = Scene {
            root: root.into(),
            environment: environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            directory: "/".into(),
        };
        let python = Interpreter { program: Some("/bin/python".into()), by_script: true, ..Interpreter::default() };
        let mut arguments = Arguments::parse(&scene, &python);
        let vllm = built_in().into_iter().find(|profile| profile.name == "vllm").unwrap();
        let mut facts = Facts::default();
        let rank = detect(&scene, &mut arguments, &vllm, &mut facts);
        assert!(!arguments.positional.contains(&"/m".to_owned()), "the model is taken out");
        (facts, rank)
    }

    #[test]
    fn a_directory_is_known_by_its_path_and_its_configuration() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("m")).unwrap();
        let write = |name: &str, text: &str| std::fs::write(root.path().join("m").join(name), text).unwrap();
        assert_eq!(take(root.path(), &["vllm", "serve", "/m"], &[]).0.0["model.config"].value, None);
        write("config.json", "{}");
        let one = take(root.path(), &["vllm", "serve", "/m"], &[]).0;
        assert_eq!(take(root.path(), &["vllm", "serve", "--model", "/m"], &[]).0, one);
        assert_eq!(take(root.path(), &["vllm", "serve", "/m", "-tp", "1"], &[]).0, one);
        write("config.json", "{ }");
        assert_ne!(take(root.path(), &["vllm", "serve", "/m"], &[]).0, one);
        write("config.json", "{}");
        write("modeling.py", "x");
        let code = take(root.path(), &["vllm", "serve", "/m"], &[]).0;
        assert_ne!(code.value("model.code"), one.value("model.code"));
    }

    #[test]
    fn a_model_that_is_not_unequivocal_is_unknown() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("m")).unwrap();
        std::fs::write(root.path().join("m/config.json"), "{}").unwrap();
        for argv in [
            &["vllm", "serve", "--max-model-len", "1", "/m"][..],
            &["vllm", "serve", "/m", "--model", "/other"],
            &["vllm", "serve", "--model", "/m", "--model", "/other"],
        ] {
            let found = take(root.path(), argv, &[]).0.0;
            assert_eq!(found["model.reference"].value, None, "{argv:?}");
        }
        let told = take(root.path(), &["vllm", "serve", "--x", "1", "/m"], &[]).0.0;
        assert!(told["model.reference"].from.contains("right after `serve`"), "{told:?}");
        for argv in [&["vllm", "serve", "--max-model-len=1", "/m"][..], &["vllm", "serve", "/m", "--model=/m"]] {
            assert_eq!(
                take(root.path(), argv, &[]).0.value("model.config"),
                take(root.path(), &["vllm", "serve", "/m"], &[]).0.value("model.config")
            );
        }
        let twice = take(root.path(), &["vllm", "serve", "/m", "-tp", "2", "--tensor-parallel-size", "4"], &[]).0.0;
        assert_eq!(twice["parallel.tp"].value, None);
    }

    #[test]
    fn a_checkpoint_is_what_an_engine_is_built_of() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("m")).unwrap();
        std::fs::write(root.path().join("m/config.json"), "{}").unwrap();
        let argv = ["trtllm-build", "--checkpoint_dir", "/m", "--output_dir", "/engine"];
        let scene = Scene {
            root: root.path().into(),
            environment: std::collections::BTreeMap::new(),
            argv: argv.map(str::to_owned).to_vec(),
            directory: "/".into(),
        };
        let mut arguments = Arguments::parse(&scene, &Interpreter::default());
        let profile = built_in().into_iter().find(|profile| profile.fits("trtllm-build", false)).unwrap();
        let mut facts = Facts::default();
        detect(&scene, &mut arguments, &profile, &mut facts);
        assert_eq!(facts.value("model.reference"), Some("/m"));
        assert!(facts.value("model.config").is_some(), "{facts:?}");
    }

    #[test]
    fn a_repository_needs_a_commit() {
        let root = tempfile::tempdir().unwrap();
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let unknown = take(root.path(), &["vllm", "serve", "org/m"], &[("HOME", "/h")]).0;
        assert_eq!(unknown.0["model.revision"].value, None);
        let pinned = take(root.path(), &["vllm", "serve", "org/m", "--revision", commit], &[]).0;
        assert_eq!(pinned.value("model.revision"), Some(commit));
        let repository = root.path().join("h/.cache/huggingface/hub/models--org--m");
        std::fs::create_dir_all(repository.join("refs")).unwrap();
        std::fs::create_dir_all(repository.join("snapshots").join(commit)).unwrap();
        std::fs::write(repository.join("refs/main"), commit).unwrap();
        let cached = take(root.path(), &["vllm", "serve", "org/m"], &[("HOME", "/h")]).0;
        assert_eq!(cached.value("model.config"), pinned.value("model.config"));
        assert_eq!(
            take(root.path(), &["vllm", "serve", "../../m"], &[("HOME", "/h")]).0.0["model.revision"].value,
            None
        );
    }

    #[test]
    fn parallelism_and_rank_are_fields() {
        let root = tempfile::tempdir().unwrap();
        let lws = [("LWS_WORKER_INDEX", "3"), ("LWS_GROUP_SIZE", "4")];
        let (facts, rank) = take(root.path(), &["vllm", "serve", "/m", "-tp=8", "--enable-expert-parallel"], &lws);
        assert_eq!((rank, facts.value("parallel.tp"), facts.value("parallel.nnodes")), (3, Some("8"), Some("4")));
        assert_eq!(facts.value("parallel.ep"), Some("on"));
        let (facts, _) = take(root.path(), &["vllm", "serve", "/m", "--node-rank", "x"], &[]);
        assert_eq!(facts.0["parallel.node_rank"].value, None);
    }
}
