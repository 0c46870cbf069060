//! Profiles: what preheat has to know of an engine, as a declaration. Where it keeps what it compiles and which variable moves
//! that, how it says that it is ready, which of its arguments say nothing, what it writes into its log. The built-in ones are files of
//! the same form as those of a configuration (`[[engines.profiles]]`), which add to them or replace one of the same name.

use std::path::PathBuf;

use figment::Figment;
use figment::providers::{Format, Toml};
use globset::{Glob, GlobSet, GlobSetBuilder};
use serde::{Deserialize, Serialize};

use crate::model::engine::BundleKind;

/// An engine's declaration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Profile {
    /// `[a-z0-9-]`
    pub name: String,
    /// Commands that it is for: the file name of a program, or `-m MODULE` of Python; `*` at the end.
    pub commands: Vec<String>,
    /// Without a command that fits: Python programs where one of these distributions is installed.
    pub packages: Vec<String>,
    /// Whether it is a program in Python, so that a command that hides its interpreter is not understood.
    pub python: bool,
    /// Whether its caches may be used at another path than that at which they were made.
    pub relocatable: bool,
    /// Options whose value is the model.
    pub model_arguments: Vec<String>,
    /// Or the word after which the model stands.
    pub model_after: Option<String>,
    /// Options that change nothing of what is compiled; `*` at the end.
    pub ignored_arguments: Vec<String>,
    /// The amount of GPU memory is compiled in.
    pub memory_compiled_in: bool,
    /// It is while one of these variables is on.
    pub memory_compiled_in_if: Vec<String>,
    /// The weights are compiled in.
    pub weights_compiled_in: bool,
    /// Options of parallelism.
    pub parallel: Parallel,
    /// Where it keeps what it compiles.
    pub directories: Vec<Directory>,
    /// How it says that it is ready. Absent: by ending well.
    pub ready: Option<Ready>,
    /// What it writes into its log.
    pub log: Log,
    /// Name of a file, beside what it has compiled, of what went into the engine's own key.
    pub factors: Option<String>,
}

/// Options of parallelism; the first that is given counts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Parallel {
    /// Tensors.
    pub tp: Vec<String>,
    /// Layers.
    pub pp: Vec<String>,
    /// Data.
    pub dp: Vec<String>,
    /// Experts.
    pub ep: Vec<String>,
    /// How many nodes.
    pub nodes: Vec<String>,
    /// Which of them this is.
    pub node_rank: Vec<String>,
}

/// A directory of compiled things.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Directory {
    /// One segment of a path, `[a-z0-9._-]`.
    pub name: String,
    /// Whom its contents may serve.
    pub kind: BundleKind,
    /// The variable that moves it.
    #[serde(default)]
    pub variable: Option<String>,
    /// Where it is if that is not set: `{home}`, `{xdg_cache}`, `{tmp}`, `{user}` are filled in. It may begin with
    /// `${VARIABLE:-DIRECTORY}/`, for what moves with another directory.
    pub default: String,
    /// Where it is below what the variable says.
    #[serde(default)]
    pub below: Option<PathBuf>,
    /// Files in it that are nobody else's business, as globs.
    #[serde(default)]
    pub ignore: Vec<String>,
    /// What is compiled there is large and stays as it is: it is shown where the store has it, read-only, and not copied.
    #[serde(default)]
    pub in_place: bool,
}

/// How an engine says that it is ready; one of these.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ready {
    /// Path that answers 200, on this machine.
    pub path: Option<String>,
    /// Options that give the port.
    pub port_arguments: Vec<String>,
    /// The port otherwise.
    pub port: Option<u16>,
    /// Options that give the address it listens on.
    pub host_arguments: Vec<String>,
    /// Options that give a Unix socket instead.
    pub socket_arguments: Vec<String>,
    /// With one of these options it answers TLS only: then `line_otherwise` counts.
    pub tls_arguments: Vec<String>,
    /// With one of these options it answers nobody, and ends when it is told to.
    pub silent_arguments: Vec<String>,
    /// A line of its output that means the same as an answer, where nobody can ask.
    pub line_otherwise: Option<String>,
    /// Words of the command, one of which is there if it serves; otherwise it is done when it ends. Empty: it always serves.
    pub serves: Vec<String>,
    /// A line of its output has this in it.
    pub line: Option<String>,
    /// A file that exists.
    pub file: Option<PathBuf>,
}

/// Parts of lines that an engine logs: the second witness, after its files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Something was reused.
    pub hit: Vec<String>,
    /// Something was compiled.
    pub miss: Vec<String>,
    /// Something could not be used.
    pub bad: Vec<String>,
    /// How long something took.
    pub stages: Vec<String>,
}

/// What is never captured, whichever engine: locks, temporary files, and what the file system leaves.
const PASSING: [&str; 8] =
    ["**/*.lock", "**/*.tmp", "**/*.tmp.*", "**/tmp.*", "**/.tmp*", "**/locks/**", "**/.nfs*", "**/*.pid"];

const FILES: [&str; 5] = [
    include_str!("profiles/vllm.toml"),
    include_str!("profiles/sglang.toml"),
    include_str!("profiles/trtllm-engine.toml"),
    include_str!("profiles/torch-inductor.toml"),
    include_str!("profiles/generic-dir.toml"),
];

/// The profiles that preheat comes with; those for a command before those for a package.
#[must_use]
pub fn built_in() -> Vec<Profile> {
    // A test reads every one of them.
    FILES.iter().filter_map(|text| Profile::parse(text).ok()).collect()
}

/// The built-in profiles with those of a configuration.
#[must_use]
pub fn with_configured(configured: &[Profile]) -> Vec<Profile> {
    let mut all = configured.to_vec();
    all.extend(built_in().into_iter().filter(|one| configured.iter().all(|other| other.name != one.name)));
    all
}

// === impl Profile ===

impl Profile {
    fn parse(text: &str) -> Result<Self, String> {
        let profile: Self = Figment::from(Toml::string(text)).extract().map_err(|error| error.to_string())?;
        match profile.check().first() {
            Some(problem) => Err(problem.clone()),
            None => Ok(profile),
        }
    }

    /// Everything that is wrong with it.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if !word(&self.name) || self.name.contains(['.', '_']) {
            problems.push(format!("profile `{}`: a name is of a-z, 0-9 and -", self.name.escape_debug()));
        }
        let mut names: Vec<&str> = self.directories.iter().map(|directory| directory.name.as_str()).collect();
        names.sort_unstable();
        if names.windows(2).any(|two| two[0] == two[1]) {
            problems.push(format!("profile `{}` has two directories of one name", self.name));
        }
        for directory in &self.directories {
            let problems_of = directory.problems();
            problems.extend(problems_of.into_iter().map(|problem| format!("profile `{}`: {problem}", self.name)));
        }
        problems
    }

    /// Files that are not captured and prove nothing, of one directory.
    #[must_use]
    pub fn ignored_in(&self, directory: &str) -> GlobSet {
        let own = self.directories.iter().filter(|one| one.name == directory).flat_map(|one| &one.ignore);
        // Checked when the profile was read.
        globs(own.map(String::as_str).chain(PASSING)).unwrap_or_else(|_| GlobSet::empty())
    }

    /// Whether it is for a program, by its file name, or for a module of Python.
    #[must_use]
    pub fn fits(&self, program: &str, module: bool) -> bool {
        self.commands.iter().any(|pattern| {
            let (pattern, wants_module) =
                pattern.strip_prefix("-m ").map_or((pattern.as_str(), false), |rest| (rest, true));
            wants_module == module
                && match pattern.strip_suffix('*') {
                    Some(prefix) => program.starts_with(prefix),
                    None => program == pattern,
                }
        })
    }
}

// === impl Directory ===

impl Directory {
    /// Everything that is wrong with it.
    #[must_use]
    pub fn problems(&self) -> Vec<String> {
        let name = self.name.escape_debug();
        let mut problems = Vec::new();
        if !word(&self.name) {
            problems.push(format!("directory `{name}`: a name is of a-z, 0-9, -, . and _"));
        }
        if let Err(error) = globs(self.ignore.iter().map(String::as_str)) {
            problems.push(format!("directory `{name}`: {error}"));
        }
        let climbs = |path: &PathBuf| {
            path.is_absolute() || path.components().any(|part| !matches!(part, std::path::Component::Normal(_)))
        };
        if self.below.as_ref().is_some_and(climbs) {
            problems.push(format!("directory `{name}`: `below` is no relative path"));
        }
        problems
    }
}

/// A name that is good as one segment of a path.
fn word(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && !text.starts_with(['-', '.'])
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_'))
}

fn globs<'a>(patterns: impl Iterator<Item = &'a str>) -> Result<GlobSet, String> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern).map_err(|error| error.to_string())?);
    }
    set.build().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_profile_is_right() {
        for text in FILES {
            Profile::parse(text).unwrap();
        }
        let names: Vec<String> = built_in().into_iter().map(|profile| profile.name).collect();
        assert_eq!(names, ["vllm", "sglang", "trtllm-engine", "torch-inductor", "generic-dir"]);
    }

    #[test]
    fn commands_are_known_by_their_name_or_module() {
        let vllm = built_in().remove(0);
        for (program, module, fits) in [
            ("vllm", false, true),
            ("vllm", true, true),
            ("vllm.entrypoints.openai.api_server", true, true),
            ("vllm.entrypoints.openai.api_server", false, false),
            ("vllm-bench", false, false),
            ("x.vllm", true, false),
        ] {
            assert_eq!(vllm.fits(program, module), fits, "{program}");
        }
    }

    #[test]
    fn passing_files_are_ignored() {
        let vllm = built_in().remove(0);
        let set = vllm.ignored_in("vllm");
        for (path, ignored) in [
            ("torch_compile_cache/ab/rank_0_0/model", false),
            ("modelinfos/x.json", true),
            ("a/locks/x", true),
            ("a/b.lock", true),
            ("x.tmp", true),
            ("a/.tmp123", true),
            ("fxgraph/xx/fyy/zz", false),
        ] {
            assert_eq!(set.is_match(path), ignored, "{path}");
        }
    }

    #[test]
    fn a_configured_profile_replaces_its_name_and_what_is_wrong_is_told() {
        let mine = Profile { name: "vllm".to_owned(), ..Profile::default() };
        let all = with_configured(std::slice::from_ref(&mine));
        assert_eq!((all.len(), &all[0]), (5, &mine));
        for (text, says) in [
            ("name = \"V\"", "name is of"),
            ("name = \"a\"\nnme = 1", "nme"),
            ("name = \"a\"\n[[directories]]\nname = \"..\"\nkind = \"graph\"\ndefault = \"x\"", ".."),
            ("name = \"a\"\n[[directories]]\nname = \"b\"\nkind = \"grape\"\ndefault = \"x\"", "grape"),
            (
                "name = \"a\"\n[[directories]]\nname = \"b\"\nkind = \"graph\"\ndefault = \"x\"\nbelow = \"../x\"",
                "below",
            ),
            (
                "name = \"a\"\n[[directories]]\nname = \"b\"\nkind = \"graph\"\ndefault = \"x\"\nignore = [\"[\"]",
                "directory `b`",
            ),
        ] {
            let error = Profile::parse(text).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }
}
