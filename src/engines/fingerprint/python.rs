//! The interpreter and what is installed for it: found from files where they tell (`pyvenv.cfg`, `*.dist-info`), by asking the
//! interpreter where they do not. Nothing is imported: an import of torch alone takes seconds.

use std::path::{Path, PathBuf};

use super::facts::{Facts, short};
use super::packages::{self, Packages, Sites};
use super::scene::Scene;
use crate::digest::Hash;

/// What was found of the interpreter that the command starts.
#[derive(Clone, Debug, Default)]
pub(super) struct Interpreter {
    /// As it is called, links unresolved: a virtual environment's says where the environment is.
    pub(super) program: Option<PathBuf>,
    /// Arguments before its first own one: empty when `argv[0]` is the interpreter, the script when that names it.
    pub(super) by_script: bool,
    /// Directories of packages, in the order in which they are imported from.
    pub(super) sites: Vec<PathBuf>,
    /// What is in them.
    pub(super) packages: Packages,
}

/// Asked of an interpreter that no file describes.
const QUESTION: &str = "import sys, sysconfig\n\
    print(sys.implementation.name)\nprint('.'.join(map(str, sys.version_info[:3])))\n\
    print(sysconfig.get_config_var('SOABI') or '')\n\
    for p in sys.path:\n    print(p)";

/// Longest interpreter that is hashed: statically linked ones have 30 MB.
const BINARY_LIMIT: u64 = 256 << 20;

pub(super) fn detect(scene: &Scene, required: bool, facts: &mut Facts) -> Interpreter {
    let mut found = Interpreter::default();
    match program(scene) {
        Some((program, by_script)) => {
            found.by_script = by_script;
            match described(scene, &program).or_else(|| asked(scene, &program)) {
                Some(told) => {
                    facts.know("python.implementation", told.implementation, told.from);
                    facts.know("python.version", told.version, told.from);
                    facts.know("python.abi", told.abi, told.from);
                    found.sites = told.sites;
                }
                None => {
                    let why = format!("{} has no pyvenv.cfg and does not answer", program.display());
                    facts.miss("python.version", why);
                }
            }
            // An environment's configuration is not written anew when the interpreter beneath it is replaced.
            facts.know_or_miss(
                "python.build",
                binary(scene, &program),
                "interpreter",
                "the interpreter cannot be read",
            );
            found.program = Some(program);
        }
        None if required => {
            let command = scene.argv.first().map(String::as_str).unwrap_or_default();
            let why =
                format!("`{command}` starts no Python that can be seen; give the engine's own command, not a shell's");
            facts.miss("python.version", why);
        }
        None => facts.know("python.version", "none", "argv"),
    }
    let added = added(scene);
    found.sites.retain(|site| !added.contains(site));
    found.packages = packages::detect(scene, Sites { added: &added, own: &found.sites }, facts);
    found.sites.splice(0..0, added);
    if found.program.is_some() {
        let sites: Vec<String> = found.sites.iter().map(|site| site.display().to_string()).collect();
        facts.know("path.site_packages", sites.join(":"), "interpreter");
    }
    found
}

/// The interpreter that `argv[0]` is, or that the script which it is names in its first line.
fn program(scene: &Scene) -> Option<(PathBuf, bool)> {
    let found = scene.which(scene.argv.first()?)?;
    if is_python(&found) {
        return Some((found, false));
    }
    use std::io::Read;
    let mut head = Vec::new();
    std::fs::File::open(scene.at(&found)).ok()?.take(512).read_to_end(&mut head).ok()?;
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let mut words = std::str::from_utf8(line).ok()?.split_whitespace();
    let first = words.next()?;
    let named =
        if first.ends_with("/env") { scene.which(words.find(|word| !word.starts_with('-'))?)? } else { first.into() };
    is_python(&named).then_some((named, true))
}

fn is_python(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let rest = name.strip_prefix("python").or_else(|| name.strip_prefix("pypy"));
    rest.is_some_and(|rest| rest.chars().all(|c| c.is_ascii_digit() || c == '.' || c == 't'))
}

struct Told {
    implementation: String,
    version: String,
    abi: String,
    sites: Vec<PathBuf>,
    from: &'static str,
}

/// What a virtual environment's `pyvenv.cfg` says; nothing where it shows the packages of its base as well, since only the
/// interpreter knows those.
fn described(scene: &Scene, program: &Path) -> Option<Told> {
    let environment = program.parent()?.parent()?;
    let text = scene.read(environment.join("pyvenv.cfg"))?;
    let value = |name: &str| {
        let lines = text.lines().filter_map(|line| line.split_once('='));
        lines.map(|(key, value)| (key.trim(), value.trim())).find(|(key, _)| *key == name).map(|(_, value)| value)
    };
    if value("include-system-site-packages").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return None;
    }
    // `3.11.7`, and of virtualenv `3.11.7.final.0`.
    let version: Vec<&str> = value("version").or_else(|| value("version_info"))?.split('.').take(3).collect();
    let &[major, minor, _] = version.as_slice() else { return None };
    let implementation = value("implementation").unwrap_or("CPython").to_ascii_lowercase();
    let libraries = std::fs::read_dir(scene.at(environment.join("lib"))).ok()?;
    // A `t` at the end: without the global lock, another ABI.
    let name = libraries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).find(|name| {
        let rest = name.strip_prefix("python").or_else(|| name.strip_prefix("pypy"));
        rest.is_some_and(|rest| rest.trim_end_matches('t') == format!("{major}.{minor}"))
    })?;
    let free = if name.ends_with('t') { "t" } else { "" };
    Some(Told {
        abi: format!("{implementation}-{major}{minor}{free}"),
        implementation,
        version: version.join("."),
        sites: vec![environment.join("lib").join(name).join("site-packages")],
        from: "pyvenv.cfg",
    })
}

fn asked(scene: &Scene, program: &Path) -> Option<Told> {
    let text = scene.say(program, &["-c", QUESTION])?;
    let mut lines = text.lines();
    let (implementation, version, abi) = (lines.next()?, lines.next()?, lines.next()?);
    // `cpython-311-x86_64-linux-gnu`: the platform has fields of its own.
    let abi: Vec<&str> = abi.split('-').take(2).collect();
    let sites = lines.filter(|path| path.ends_with("-packages")).map(PathBuf::from).collect();
    Some(Told {
        implementation: implementation.to_owned(),
        version: version.to_owned(),
        abi: abi.join("-"),
        sites,
        from: "interpreter",
    })
}

/// What the environment puts before the interpreter's own directories, and what is imported from first.
fn added(scene: &Scene) -> Vec<PathBuf> {
    let path = scene.variable("PYTHONPATH").unwrap_or_default();
    let parts = path.split(':').filter(|part| !part.is_empty());
    let mut added: Vec<PathBuf> = Vec::new();
    for part in parts.map(|part| scene.absolute(Path::new(part)).components().collect()) {
        if !added.contains(&part) {
            added.push(part);
        }
    }
    added
}

fn binary(scene: &Scene, program: &Path) -> Option<String> {
    let place = scene.at(program).canonicalize().ok()?;
    if std::fs::metadata(&place).ok()?.len() > BINARY_LIMIT {
        return None;
    }
    Some(format!("blake3:{}", short(&Hash::of(&std::fs::read(place).ok()?))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let place = root.join(path);
        std::fs::create_dir_all(place.parent().unwrap()).unwrap();
        std::fs::write(&place, text).unwrap();
        std::fs::set_permissions(place, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn take(root: &Path, argv: &[&str]) -> (Facts, Interpreter) {
        take_with(root, argv, "")
    }

    fn take_with(root: &Path, argv: &[&str], path: &str) -> (Facts, Interpreter) {
        let scene = Scene {
            root: root.into(),
            environment: [("PATH", "/venv/bin"), ("PYTHONPATH", path)]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            argv: argv.iter().map(|word| (*word).to_owned()).collect(),
            directory: "/".into(),
        };
        let mut facts = Facts::default();
        let found = detect(&scene, true, &mut facts);
        (facts, found)
    }

    #[test]
    fn a_virtual_environment_describes_itself() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "venv/bin/python3", "binary");
        write(root, "venv/pyvenv.cfg", "home = /usr/bin\nversion = 3.11.7\ninclude-system-site-packages = false\n");
        write(root, "venv/lib/python3.11/site-packages/x-1.dist-info/RECORD", "");
        let (facts, found) = take(root, &["python3", "a.py"]);
        for (name, value) in [
            ("python.version", "3.11.7"),
            ("python.implementation", "cpython"),
            ("python.abi", "cpython-311"),
            ("path.site_packages", "/venv/lib/python3.11/site-packages"),
        ] {
            assert_eq!(facts.value(name), Some(value), "{name}");
        }
        assert!(!found.by_script && facts.value("package.x").is_some());
        write(root, "venv/bin/vllm", "#!/venv/bin/python3\nimport x\n");
        let (by_script, found) = take(root, &["vllm", "serve"]);
        assert!(found.by_script);
        assert_eq!(by_script, facts);
        write(root, "venv/bin/python3", "another binary");
        assert_ne!(take(root, &["vllm"]).0.value("python.build"), facts.value("python.build"));
    }

    #[test]
    fn what_the_environment_adds_is_imported_first() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        write(root, "venv/bin/python3", "binary");
        write(root, "venv/pyvenv.cfg", "home = /usr/bin\nversion = 3.11.7\n");
        write(root, "venv/lib/python3.11/site-packages/torch-2.dist-info/RECORD", "");
        write(root, "over/torch-3.dist-info/RECORD", "torch/x.py,,\n");
        write(root, "over/torch/x.py", "in the RECORD");
        let (facts, found) = take_with(root, &["python3"], "/over/:/over:/absent:");
        assert_eq!(found.packages["torch"], "3");
        assert!(facts.value("package.torch").unwrap().starts_with("3 ("), "{facts:?}");
        assert_eq!(found.sites[0], Path::new("/over"));
        assert_eq!(facts.value("source./over"), None);
        write(root, "over/vllm/__init__.py", "a checkout");
        assert!(take_with(root, &["python3"], "/over").0.value("source./over").is_some());
    }

    #[test]
    fn an_interpreter_without_an_environment_is_asked() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            "venv/bin/python3",
            "#!/bin/sh\nprintf 'cpython\\n3.12.1\\ncpython-312-x86_64-linux-gnu\\n/none\\n/usr/lib/python3/dist-packages\\n'\n",
        );
        let (facts, _) = take(root.path(), &["python3"]);
        assert_eq!(facts.value("python.version"), Some("3.12.1"));
        assert_eq!(facts.value("python.abi"), Some("cpython-312"));
        assert_eq!(facts.value("path.site_packages"), Some("/usr/lib/python3/dist-packages"));
        write(root.path(), "venv/bin/python3", "#!/bin/sh\nexit 1\n");
        let (facts, _) = take(root.path(), &["python3"]);
        assert_eq!(facts.0["python.version"].value, None);
    }

    #[test]
    fn a_shell_hides_its_python() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "venv/bin/start", "#!/bin/sh\nexec python3\n");
        for argv in [&["start"][..], &["absent"], &[]] {
            let (facts, _) = take(root.path(), argv);
            assert_eq!(facts.0["python.version"].value, None, "{argv:?}");
        }
    }
}
