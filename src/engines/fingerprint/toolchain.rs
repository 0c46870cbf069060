//! CUDA, TensorRT and the compilers.

use std::path::{Path, PathBuf};

use super::facts::Facts;
use super::python::Interpreter;
use super::scene::Scene;

/// What torch is built for, beside CUDA and the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Torch {
    /// AMD's ROCm.
    pub(super) rocm: bool,
    /// Intel's XPU.
    pub(super) xpu: bool,
}

/// What the command's torch is built for; none if it has none.
pub(super) fn torch(scene: &Scene, python: &Interpreter) -> Option<Torch> {
    python.packages.get("torch")?;
    let text = version_file(scene, python)?;
    let named = |name: &str| declared(&text, name).is_some_and(|value| value != "None");
    Some(Torch { rocm: named("hip") || named("rocm"), xpu: named("xpu") })
}

fn version_file(scene: &Scene, python: &Interpreter) -> Option<String> {
    python.sites.iter().find_map(|site| scene.read(site.join("torch/version.py")))
}

/// The value of a name in a file of Python: of `name: type = 'value'` or `name = 'value'`.
fn declared(text: &str, name: &str) -> Option<String> {
    let is_it = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with([':', '=']));
    let line = text.lines().find(is_it)?;
    Some(line.split_once('=')?.1.trim().trim_matches(['\'', '"']).to_owned())
}

pub(super) fn detect(scene: &Scene, python: &Interpreter, facts: &mut Facts) {
    runtime(scene, python, facts);
    let tensorrt = python
        .packages
        .iter()
        .find(|(name, _)| matches!(name.as_str(), "tensorrt" | "tensorrt-cu12" | "tensorrt-cu13" | "tensorrt-libs"));
    facts.know("tensorrt.version", tensorrt.map_or("none", |(_, version)| version), "dist-info");
    let home = cuda_home(scene);
    match &home {
        Some(home) => {
            let resolved = scene.at(home).canonicalize().unwrap_or_else(|_| home.clone());
            let resolved =
                resolved.strip_prefix(&scene.root).map_or(resolved.clone(), |rest| Path::new("/").join(rest));
            facts.know("path.cuda_home", resolved.display().to_string(), "environment");
        }
        None => facts.know("path.cuda_home", "none", "environment"),
    }
    let nvcc = home.as_deref().and_then(|home| nvcc(scene, home));
    match (nvcc, &home) {
        (Some(version), _) => facts.know("toolchain.nvcc", version, "version.json"),
        (None, None) => facts.know("toolchain.nvcc", "none", "environment"),
        (None, Some(home)) => facts.miss("toolchain.nvcc", format!("{} does not tell its version", home.display())),
    }
    // Whoever compiles on a machine without a compiler fails by itself; that it has none is known.
    let compiler = scene.variable("CXX").or_else(|| scene.variable("CC")).and_then(|words| words.split(' ').next());
    let gcc = scene.which(compiler.unwrap_or("g++")).or_else(|| scene.which("gcc"));
    match &gcc {
        Some(gcc) => {
            let version = scene.say(gcc, &["-dumpfullversion"]).map(|text| text.trim().to_owned());
            let version = version.filter(|version| !version.is_empty());
            facts.know_or_miss(
                "toolchain.gcc",
                version,
                "gcc -dumpfullversion",
                "the compiler does not tell its version",
            );
        }
        None => facts.know("toolchain.gcc", "none", "PATH"),
    }
    let glibc = scene.which("ldd").and_then(|ldd| scene.say(&ldd, &["--version"]));
    let glibc = glibc.and_then(|text| Some(text.lines().next()?.split_whitespace().next_back()?.to_owned()));
    // An image without `ldd` is one without a shell: the C library comes with the image, and so does all else.
    facts.know("toolchain.glibc", glibc.unwrap_or_else(|| "none".to_owned()), "ldd --version");
    if let Some(image) = scene.variable("PREHEAT_IMAGE_DIGEST") {
        facts.know("image.digest", image, "PREHEAT_IMAGE_DIGEST");
    }
}

/// The CUDA that torch was built for: the `cuda:` line of its version file, which is read and not imported.
fn runtime(scene: &Scene, python: &Interpreter, facts: &mut Facts) {
    if python.packages.contains_key("torch") {
        let value = version_file(scene, python).and_then(|text| declared(&text, "cuda"));
        let value = value.map(|value| if value == "None" { "none".to_owned() } else { value });
        return facts.know_or_miss("cuda.runtime", value, "torch/version.py", "torch/version.py has no line `cuda:`");
    }
    let package = python.packages.iter().find(|(name, _)| name.starts_with("nvidia-cuda-runtime"));
    match package {
        Some((_, version)) => facts.know("cuda.runtime", version, "dist-info"),
        None => facts.know("cuda.runtime", "none", "dist-info"),
    }
}

fn cuda_home(scene: &Scene) -> Option<PathBuf> {
    let named = scene.variable("CUDA_HOME").or_else(|| scene.variable("CUDA_PATH")).map(PathBuf::from);
    let by_path = || scene.which("nvcc").and_then(|nvcc| Some(nvcc.parent()?.parent()?.to_owned()));
    let usual = || Some(PathBuf::from("/usr/local/cuda")).filter(|path| scene.at(path).is_dir());
    named.or_else(by_path).or_else(usual)
}

fn nvcc(scene: &Scene, home: &Path) -> Option<String> {
    if let Some(text) = scene.read(home.join("version.json")) {
        let json: serde_json::Value = serde_json::from_str(&text).ok()?;
        let version = json.pointer("/cuda_nvcc/version").or_else(|| json.pointer("/cuda/version"))?;
        return version.as_str().map(str::to_owned);
    }
    let nvcc = home.join("bin/nvcc");
    let text = scene.at(&nvcc).is_file().then(|| scene.say(&nvcc, &["--version"])).flatten()?;
    let version = text.split_whitespace().find(|word| word.starts_with('V') && word.contains('.'))?;
    Some(version.trim_start_matches('V').to_owned())
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

    #[test]
    fn versions_are_read_and_nothing_is_imported() {
        let root = tempfile::tempdir().unwrap();
        let scene = Scene {
            root: root.path().into(),
            environment: [("PATH".to_owned(), "/bin".to_owned()), ("CUDA_HOME".to_owned(), "/cuda".to_owned())].into(),
            argv: Vec::new(),
            directory: "/".into(),
        };
        let mut python = Interpreter { sites: vec!["/site".into()], ..Interpreter::default() };
        python.packages.insert("torch".to_owned(), "2.15.0".to_owned());
        python.packages.insert("tensorrt".to_owned(), "10.9".to_owned());
        write(
            root.path(),
            "site/torch/version.py",
            "__version__ = '2.15.0'\ncuda: Optional[str] = '13.2'\nhip = None\n",
        );
        write(
            root.path(),
            "cuda-13.2/version.json",
            r#"{"cuda": {"version": "13.2.0"}, "cuda_nvcc": {"version": "13.2.51"}}"#,
        );
        std::os::unix::fs::symlink("cuda-13.2", root.path().join("cuda")).unwrap();
        write(root.path(), "bin/g++", "#!/bin/sh\necho 12.2.0\n");
        write(root.path(), "bin/ldd", "#!/bin/sh\necho 'ldd (Debian GLIBC 2.36-9) 2.36'\n");
        let mut facts = Facts::default();
        detect(&scene, &python, &mut facts);
        for (name, value) in [
            ("cuda.runtime", "13.2"),
            ("tensorrt.version", "10.9"),
            ("path.cuda_home", "/cuda-13.2"),
            ("toolchain.nvcc", "13.2.51"),
            ("toolchain.gcc", "12.2.0"),
            ("toolchain.glibc", "2.36"),
        ] {
            assert_eq!(facts.value(name), Some(value), "{name}");
        }
        assert_eq!(torch(&scene, &python), Some(Torch { rocm: false, xpu: false }));
        for (line, rocm, xpu) in [("hip: Optional[str] = '6.4.2'", true, false), ("xpu = '20250101'", false, true)] {
            write(root.path(), "site/torch/version.py", &format!("__all__ = ['hip']\ncuda = None\n{line}\n"));
            assert_eq!(torch(&scene, &python), Some(Torch { rocm, xpu }), "{line}");
        }
        assert_eq!(torch(&scene, &Interpreter::default()), None);
        write(root.path(), "site/torch/version.py", "nothing of the kind\n");
        let mut facts = Facts::default();
        detect(&scene, &python, &mut facts);
        assert_eq!(facts.0["cuda.runtime"].value, None);
    }
}
