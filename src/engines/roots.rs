//! Where an engine keeps what it compiles, as it will find it itself: by its variable, else at its default.

use std::path::{Path, PathBuf};

use super::fingerprint::Scene;
use super::profile::Profile;
use crate::model::engine::BundleKind;

/// One directory of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Its name in the profile, and in a bundle.
    pub name: String,
    /// Whom it may serve.
    pub kind: BundleKind,
    /// Where the engine will look.
    pub path: PathBuf,
    /// The variable that moves it, and what is below what that says.
    pub variable: Option<(String, PathBuf)>,
    /// What is in it is shown where the store has it, and not copied.
    pub in_place: bool,
}

/// The directories of a command, outer ones before those in them.
#[must_use]
pub fn roots(scene: &Scene, profile: &Profile) -> Vec<Root> {
    let mut all: Vec<Root> = profile
        .directories
        .iter()
        .map(|directory| {
            let set = directory.variable.as_deref().and_then(|name| scene.variable(name));
            let base = set.map_or_else(|| filled_in(scene, &directory.default), PathBuf::from);
            let below = directory.below.clone().unwrap_or_default();
            let path = clean(&scene.absolute(&base).join(&below));
            let variable = directory.variable.clone().map(|name| (name, below));
            let in_place = directory.in_place;
            Root { name: directory.name.clone(), kind: directory.kind, path, variable, in_place }
        })
        .collect();
    all.sort_by(|one, other| {
        (one.path.components().count(), &one.path).cmp(&(other.path.components().count(), &other.path))
    });
    all.dedup_by(|one, other| one.path == other.path);
    all
}

fn filled_in(scene: &Scene, template: &str) -> PathBuf {
    if let Some((name, fallback, rest)) = moved(template) {
        let base = scene.variable(name).map_or_else(|| filled_in(scene, fallback), PathBuf::from);
        return base.join(filled_in(scene, rest));
    }
    let text = |path: PathBuf| path.to_string_lossy().into_owned();
    let home = scene.home().map_or_else(|| "/".to_owned(), text);
    let cache = scene.variable("XDG_CACHE_HOME").map_or_else(|| format!("{home}/.cache"), str::to_owned);
    let temporary = scene.variable("TMPDIR").unwrap_or("/tmp");
    let user = scene.variable("USER").or_else(|| scene.variable("LOGNAME")).map_or_else(name_of_user, str::to_owned);
    PathBuf::from(
        template
            .replace("{home}", &home)
            .replace("{xdg_cache}", &cache)
            .replace("{tmp}", temporary)
            .replace("{user}", &user),
    )
}

/// The parts of `${NAME:-FALLBACK}/REST`, as a shell has it: what an engine keeps below a directory that has a variable of its own.
fn moved(template: &str) -> Option<(&str, &str, &str)> {
    let (name, text) = template.strip_prefix("${")?.split_once(":-")?;
    let mut depth = 1;
    let end = text.bytes().position(|byte| {
        depth += i32::from(byte == b'{') - i32::from(byte == b'}');
        depth == 0
    })?;
    Some((name, &text[..end], text[end + 1..].trim_start_matches('/')))
}

/// The name that belongs to the user this process acts as, as Python's `getpass` finds it.
fn name_of_user() -> String {
    let uid = crate::sys::peer::own_uid().to_string();
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let mut lines = users.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.get(2) == Some(&uid.as_str())).map_or(uid.clone(), |fields| fields[0].to_owned())
}

/// Without `.` and double slashes; `..` stays, since what it means depends on links.
fn clean(path: &Path) -> PathBuf {
    path.components().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engines::profile::built_in;

    #[test]
    fn what_is_below_a_variable_moves_with_it_and_by_its_own() {
        let take = |environment: &[(&str, &str)]| {
            let scene = Scene {
                root: "/".into(),
                environment: environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
                argv: Vec::new(),
                directory: "/srv".into(),
            };
            let sglang = built_in().into_iter().find(|profile| profile.name == "sglang").unwrap();
            let all = roots(&scene, &sglang);
            move |name: &str| {
                let root = all.iter().find(|root| root.name == name).unwrap();
                (root.path.display().to_string(), root.kind)
            }
        };
        let (graph, kernel) = (BundleKind::Graph, BundleKind::Kernel);
        let plain = take(&[("HOME", "/h")]);
        let moved = take(&[("HOME", "/h"), ("SGLANG_CACHE_DIR", "/c"), ("TRITON_CACHE_DIR", "/t")]);
        for (name, usual, below, kind) in [
            ("inductor", "/h/.cache/sglang/inductor", "/c/inductor", graph),
            ("torch-compile", "/h/.cache/sglang/torch_compile_cache", "/c/torch_compile_cache", graph),
            ("autotune", "/h/.cache/sglang/flashinfer/autotune", "/c/flashinfer/autotune", graph),
            ("triton", "/h/.cache/sglang/triton", "/t", kernel),
            ("flashinfer", "/h/.cache/sglang/.cache/flashinfer", "/c/.cache/flashinfer", kernel),
            ("deep-gemm", "/h/.cache/sglang/deep_gemm", "/c/deep_gemm", kernel),
            ("jit", "/h/.cache/sglang/jit", "/h/.cache/sglang/jit", kernel),
        ] {
            assert_eq!((plain(name), moved(name)), ((usual.to_owned(), kind), (below.to_owned(), kind)), "{name}");
        }
    }

    #[test]
    fn the_drivers_cache_and_weights_are_in_no_directory_of_sglang() {
        let scene = Scene {
            root: "/".into(),
            environment: [("SGLANG_CACHE_DIR".to_owned(), "/c".to_owned())].into(),
            argv: Vec::new(),
            directory: "/".into(),
        };
        let sglang = built_in().into_iter().find(|profile| profile.name == "sglang").unwrap();
        for path in ["/c/nv/x", "/c/ple/m/table", "/c/model_streamer/x", "/c/gpu_p2p_access_cache_for_0,1.json"] {
            assert!(roots(&scene, &sglang).iter().all(|root| !Path::new(path).starts_with(&root.path)), "{path}");
        }
    }

    #[test]
    fn variables_move_directories_and_defaults_are_filled_in() {
        let take = |environment: &[(&str, &str)]| {
            let scene = Scene {
                root: "/".into(),
                environment: environment.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
                argv: Vec::new(),
                directory: "/srv".into(),
            };
            let all = roots(&scene, &built_in()[0]);
            move |name: &str| all.iter().find(|root| root.name == name).unwrap().path.display().to_string()
        };
        let plain = take(&[("HOME", "/h"), ("USER", "me")]);
        assert_eq!(
            (plain("vllm"), plain("flashinfer")),
            ("/h/.cache/vllm".to_owned(), "/h/.cache/flashinfer".to_owned())
        );
        assert_eq!(plain("inductor"), "/tmp/torchinductor_me");
        let moved = take(&[
            ("HOME", "/h"),
            ("VLLM_CACHE_ROOT", "cache//x/"),
            ("FLASHINFER_WORKSPACE_BASE", "/b"),
            ("XDG_CACHE_HOME", "/c"),
        ]);
        assert_eq!(
            (moved("vllm"), moved("flashinfer")),
            ("/srv/cache/x".to_owned(), "/b/.cache/flashinfer".to_owned())
        );
        assert_eq!(moved("cute-dsl"), "/c/cute_dsl");
    }
}
