//! Caches as engines leave them, keys, and libraries.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use preheat::engines::{self, Capture, CaptureRoot, LocalLibrary, SignerConfig};
use preheat::model::engine::{BundleKind, EngineKey, Field};
use preheat::model::{Evidence, SigningKey};
use preheat::origin::{self, Origins};

use super::model::noise;

/// Path, bytes, mode, time in nanoseconds.
pub(crate) type Tree = BTreeMap<String, (Vec<u8>, u32, u64)>;

/// A key of a kind; another `run` is another key.
pub(crate) fn key(kind: BundleKind, run: &str) -> EngineKey {
    let fields = [("gpu.name", "NVIDIA H100 80GB HBM3"), ("package.torch", "2.15.0"), ("argv.--model", run)];
    let fields = fields.map(|(name, value)| (name.to_owned(), Field::hard(value, "test")));
    EngineKey::new(kind, "vllm", 0, fields.into()).unwrap()
}

/// A file with a mode and a time of its own.
pub(crate) fn put(path: &Path, bytes: &[u8], mode: u32, mtime_ns: u64) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    let file = std::fs::File::open(path).unwrap();
    file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_nanos(mtime_ns)).unwrap();
}

/// A cache of vLLM: some files of many sizes, one of them empty, one larger than a group.
pub(crate) fn cache(directory: &Path, seed: u64) -> PathBuf {
    let root = directory.join(format!("cache-{seed}"));
    let base = 1_700_000_000_123_456_789 + seed * 1_000;
    for (number, (path, size, mode)) in [
        ("torch_compile_cache/0a1b2c3d4e/rank_0_0/backbone/cache_key_factors.json", 700, 0o644),
        ("torch_compile_cache/0a1b2c3d4e/rank_0_0/backbone/computation_graph.py", 40_000, 0o644),
        ("torch_compile_cache/0a1b2c3d4e/inductor_cache/aa/caa.so", 1_300_000, 0o755),
        ("torch_compile_cache/0a1b2c3d4e/inductor_cache/aa/caa.py", 9_000, 0o600),
        ("torch_compile_cache/0a1b2c3d4e/inductor_cache/zz/empty", 0, 0o644),
        ("startup_plan/plan.json", 80, 0o444),
    ]
    .into_iter()
    .enumerate()
    {
        put(&root.join(path), &noise(seed * 100 + number as u64, size), mode, base + number as u64);
    }
    root
}

/// What is below a directory.
pub(crate) fn tree(root: &Path) -> Tree {
    let (mut found, mut waiting) = (Tree::new(), vec![root.to_owned()]);
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            let facts = path.symlink_metadata().unwrap();
            if facts.is_dir() {
                waiting.push(path);
                continue;
            }
            assert!(facts.is_file(), "{}", path.display());
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let mtime = facts.mtime() as u64 * 1_000_000_000 + facts.mtime_nsec() as u64;
            found.insert(name, (std::fs::read(&path).unwrap(), facts.mode() & 0o7777, mtime));
        }
    }
    found
}

pub(crate) fn capture(key: EngineKey, roots: &[(&str, &Path)]) -> Capture {
    let root = |(name, path): &(&str, &Path)| CaptureRoot { name: (*name).to_owned(), path: (*path).to_owned() };
    Capture {
        key,
        roots: roots.iter().map(root).collect(),
        base: None,
        evidence: Evidence { cold_ms: Some(42_000), ..Evidence::default() },
        secrets: Vec::new(),
        refresh: false,
        in_place: false,
    }
}

/// A library on a root of its own.
pub(crate) async fn library(root: &Path, change: impl FnOnce(&mut engines::Config)) -> LocalLibrary {
    preheat::origin::install_tls_provider();
    let mut config = engines::Config::default();
    change(&mut config);
    let origins = Origins::unguarded(origin::Config::default()).unwrap();
    LocalLibrary::open(root, config, origins).await.unwrap()
}

/// A key file, and the same as a signer.
pub(crate) fn signer(directory: &Path, name: &str) -> (PathBuf, SignerConfig) {
    let (key, text) = SigningKey::generate().unwrap();
    let file = directory.join(format!("{name}.pem"));
    put(&file, text.as_bytes(), 0o600, 1_700_000_000_000_000_000);
    (file, SignerConfig { name: name.to_owned(), key: key.signer() })
}
