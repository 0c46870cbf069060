//! `preheat import`: what is on the machine already is not fetched again.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;

use sha2::Digest;

use super::support::command::{code, fails, json, preheat, preheat_under, stderr};
use super::support::model::{Files, MIB, manifest, model, read, total, with_more, write};

const SHARD: &str = "model-00001-of-00002.safetensors";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Nobody is there: whoever asks it fails.
const HUB: &str = "http://127.0.0.1:1";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The cache of the hub's own tools: large files by SHA-256, small ones by their git blob name.
fn cache(files: &Files, place: &Path) -> PathBuf {
    let model = place.join("models--org--name");
    let (blobs, snapshot) = (model.join("blobs"), model.join("snapshots").join(COMMIT));
    std::fs::create_dir_all(&blobs).unwrap();
    for (path, bytes) in files {
        let name = if bytes.len() > 4096 {
            hex(&sha2::Sha256::digest(bytes))
        } else {
            hex(&sha1::Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
        };
        std::fs::write(blobs.join(&name), bytes).unwrap();
        let link = snapshot.join(path);
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        let up = "../".repeat(path.matches('/').count() + 2);
        symlink(format!("{up}blobs/{name}"), link).unwrap();
    }
    snapshot
}

/// A hub that has nothing.
fn another_hub() -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    url
}

struct Rig {
    directory: tempfile::TempDir,
    files: Files,
}

impl Rig {
    fn new(seed: u64) -> Self {
        Self { directory: tempfile::tempdir().unwrap(), files: with_more(model(seed, 2, 10 * MIB)) }
    }

    fn at(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn run(&self, hub: &str, arguments: &[&str]) -> Output {
        let root = self.at("store");
        preheat().env("HF_ENDPOINT", hub).args(arguments).args(["--root", &root, "--json"]).output().unwrap()
    }

    fn import(&self, directory: &Path, more: &[&str]) -> Output {
        self.run(HUB, &[&["import", &directory.display().to_string()], more].concat())
    }

    fn assert_nothing_published(&self) {
        let models = preheat().args(["models", "--root", &self.at("store"), "--json"]).output().unwrap();
        assert_eq!(json(&models), serde_json::json!([]), "a model is published");
    }
}

#[test]
fn a_snapshot_becomes_the_model_that_the_hub_would_have_given() {
    let rig = Rig::new(1);
    let snapshot = cache(&rig.files, rig.directory.path());
    let output = rig.import(&snapshot, &[]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let imported = json(&output);
    let reference = format!("hf://org/name@{COMMIT}");
    assert_eq!(imported["reference"], reference);
    assert_eq!(imported["manifest"], manifest(&rig.files).digest().to_string());
    // On a file system that can share blocks it is less.
    assert!(imported["copied_bytes"].as_u64().unwrap() <= total(&rig.files));
    assert!(read(Path::new(imported["path"].as_str().unwrap())) == rig.files, "other bytes");
    let fetched = rig.run(HUB, &["fetch", &reference, "--direct"]);
    assert_eq!(code(&fetched), 0, "nobody is asked: {}", stderr(&fetched));
    assert_eq!((&json(&fetched)["origin_bytes"], &json(&fetched)["path"]), (&0.into(), &imported["path"]));
    // Another hub's model of that name is another model.
    fails(&rig.run(&another_hub(), &["fetch", &reference, "--direct"]), 66, &["org/name"]);
    // Again: nothing is read.
    assert_eq!(json(&rig.import(&snapshot, &[]))["copied_bytes"], 0);
    // How it was checked is kept.
    let id = Path::new(imported["path"].as_str().unwrap()).file_name().unwrap().to_str().unwrap();
    let record = std::fs::read(rig.at(&format!("store/models/default/{id}.json"))).unwrap();
    let facts = serde_json::from_slice::<serde_json::Value>(&record).unwrap()["facts"]["files"].clone();
    let verified = |path: &str| {
        let fact = facts.as_array().unwrap().iter().find(|fact| fact["path"] == path).unwrap();
        fact["origin_verified"].as_str().unwrap().to_owned()
    };
    assert_eq!((verified(SHARD), verified("config.json")), ("sha256".to_owned(), "git-sha1".to_owned()));
}

#[test]
fn a_wrong_blob_is_refused_by_name() {
    for (seed, name) in [SHARD, "config.json"].into_iter().enumerate() {
        let rig = Rig::new(10 + seed as u64);
        let snapshot = cache(&rig.files, rig.directory.path());
        let blob = snapshot.join(name).canonicalize().unwrap();
        let mut bytes = std::fs::read(&blob).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(&blob, &bytes).unwrap();
        let etag = blob.file_name().unwrap().to_str().unwrap().to_owned();
        fails(&rig.import(&snapshot, &[]), 65, &[name, &etag, "corrupt"]);
        rig.assert_nothing_published();
        std::fs::write(&blob, &rig.files[name]).unwrap();
        let output = rig.import(&snapshot, &[]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
    }
}

#[test]
fn links_are_followed_into_the_blobs_and_nowhere_else() {
    let rig = Rig::new(2);
    let snapshot = cache(&rig.files, rig.directory.path());
    let link = snapshot.join("config.json");
    let replace = |target: &str| {
        std::fs::remove_file(&link).unwrap();
        symlink(target, &link).unwrap();
    };
    replace("/etc/hostname");
    fails(&rig.import(&snapshot, &[]), 64, &["config.json", "/etc/hostname", "is not in"]);
    std::fs::create_dir_all(rig.directory.path().join("models--org--other/blobs")).unwrap();
    let other = "../../../models--org--other/blobs/44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
    std::fs::write(snapshot.join(other), "{}").unwrap();
    replace(other);
    fails(&rig.import(&snapshot, &[]), 64, &["config.json", "models--org--other"]);
    replace("../../blobs/gone");
    fails(&rig.import(&snapshot, &[]), 66, &["config.json", "does not exist"]);
    std::fs::write(snapshot.join("../../blobs/odd-name"), "{}").unwrap();
    replace("../../blobs/odd-name");
    fails(&rig.import(&snapshot, &[]), 64, &["odd-name", "nothing tells what it is"]);
    rig.assert_nothing_published();
    // Elsewhere than in a snapshot no link leaves.
    let plain = rig.directory.path().join("plain");
    write(&rig.files, &plain);
    symlink("/etc/hostname", plain.join("vocab2.txt")).unwrap();
    fails(&rig.import(&plain, &[]), 64, &["vocab2.txt", "outside the directory"]);
}

#[test]
fn a_directory_is_taken_in_as_what_it_is_said_to_be() {
    let rig = Rig::new(3);
    let plain = rig.directory.path().join("plain dir");
    write(&rig.files, &plain);
    let digest = manifest(&rig.files).digest().to_string();
    let imported = rig.import(&plain, &["--as", "https://host.invalid/models/m"]);
    assert_eq!(code(&imported), 0, "{}", stderr(&imported));
    let reference = format!("https://host.invalid/models/m@manifest:{digest}");
    assert_eq!(json(&imported)["reference"], reference);
    let fetched = rig.run(HUB, &["fetch", &reference, "--direct"]);
    assert_eq!((code(&fetched), &json(&fetched)["origin_bytes"]), (0, &0.into()), "{}", stderr(&fetched));
    // As itself, and by selection: the bytes are there already.
    let itself = rig.import(&plain, &[]);
    assert_eq!(code(&itself), 0, "{}", stderr(&itself));
    assert!(json(&itself)["reference"].as_str().unwrap().starts_with("file:///"), "{}", json(&itself));
    let part = rig.import(&plain, &["--as", &format!("hf://org/name@{COMMIT}?include=*.json")]);
    assert_eq!(code(&part), 0, "{}", stderr(&part));
    assert_eq!(json(&part)["files"].as_u64(), Some(4), "{}", json(&part));
    for (reference, words) in [
        ("hf://org/name", "no commit"),
        ("hf://org/name@main", "no commit"),
        ("s3://bucket/m@/onnx", "subfolder"),
        ("nonsense", "no scheme"),
    ] {
        fails(&rig.import(&plain, &["--as", reference]), 64, &[words]);
    }
    fails(&rig.import(&rig.directory.path().join("none"), &[]), 66, &["none"]);
}

/// Making a batch durable has a window of its files open, and not all of them; and what a process may raise by itself it raises.
#[test]
fn many_small_files_need_few_open_ones() {
    let directory = tempfile::tempdir().unwrap();
    let mut files = model(3, 1, MIB);
    for number in 0..400 {
        files.insert(format!("parts/{number}.json"), format!("{{\"number\": {number}}}").into_bytes());
    }
    let place = directory.path().join("model");
    write(&files, &place);
    // The hard limit with the soft one; and a soft one that is less than a window.
    for (name, limit) in [("hard", "-n 256"), ("soft", "-Sn 100")] {
        let root = directory.path().join(name);
        let mut command = preheat_under(limit);
        let output = command.arg("import").arg(&place).arg("--root").arg(&root).arg("--json").output().unwrap();
        assert_eq!(code(&output), 0, "{limit}: {}", stderr(&output));
        assert!(read(Path::new(json(&output)["path"].as_str().unwrap())) == files, "{limit}: other bytes");
    }
}
