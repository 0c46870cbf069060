//! `preheat push`: what is sent, in which order, how often, and what a pull makes of it.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::support::command::{code, fails, json, preheat, stderr, stdout};
use super::support::model::{Files, MIB, manifest, model, noise, read, total, with_more, write};
use super::support::s3::S3;

const SHARD: &str = "model-00001-of-00003.safetensors";
/// Larger than a part of an upload.
const LARGE: usize = 20 * MIB;

/// A directory to push, a bucket, and the server in front of it.
struct Rig {
    directory: tempfile::TempDir,
    files: Files,
    s3: S3,
}

impl Rig {
    async fn new(seed: u64) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let files = with_more(model(seed, 3, LARGE));
        write(&files, &directory.path().join("m"));
        std::fs::create_dir_all(directory.path().join("s3/bucket")).unwrap();
        let s3 = S3::serve(&directory.path().join("s3")).await;
        Self { directory, files, s3 }
    }

    fn source(&self) -> String {
        self.directory.path().join("m").display().to_string()
    }

    /// The object behind a path of the model.
    fn object(&self, path: &str) -> std::path::PathBuf {
        self.directory.path().join("s3/bucket/team/m").join(path)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = preheat();
        self.s3.speak(&mut command).args(arguments);
        command
    }

    async fn run(&self, arguments: &[&str]) -> Output {
        let mut command = self.command(arguments);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    async fn push(&self, more: &[&str]) -> Output {
        self.run(&[&["push", &self.source(), "s3://bucket/team/m"], more].concat()).await
    }

    async fn pushed(&self, more: &[&str]) -> Value {
        let output = self.push(&[more, &["--json"]].concat()).await;
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        json(&output)
    }

    async fn fetch(&self, to: &str) -> Output {
        let to = self.directory.path().join(to).display().to_string();
        self.run(&["fetch", "s3://bucket/team/m", "--direct", "--to", &to, "--json"]).await
    }

    /// A fetch to `pulled` has brought what was pushed.
    #[track_caller]
    fn assert_pulled(&self, output: &Output) {
        assert_eq!(code(output), 0, "{}", stderr(output));
        // Equal or not, but not printed: it is tens of megabytes.
        assert!(read(&self.directory.path().join("pulled")) == self.files, "other bytes");
    }
}

/// What a publisher has to send: files, outboards, manifest.
fn published_bytes(files: &Files, place: &Path) -> u64 {
    let outboards: u64 =
        files.values().filter(|bytes| bytes.len() > MIB).map(|bytes| bytes.len().div_ceil(MIB) as u64 * 32).sum();
    total(files) + outboards + std::fs::metadata(place.join("preheat-manifest.json")).unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pushed_model_is_pulled_and_pushing_again_sends_nothing() {
    let rig = Rig::new(1).await;
    let would = rig.pushed(&["--dry-run"]).await;
    assert_eq!(rig.s3.puts(), 0);
    let first = rig.pushed(&[]).await;
    let digest = manifest(&rig.files).digest().to_string();
    let bytes = published_bytes(&rig.files, &rig.object(""));
    assert_eq!(first["manifest"], digest);
    assert_eq!(first["destination"], "s3://bucket/team/m");
    assert_eq!((first["files"].as_u64(), first["bytes"].as_u64()), (Some(8), Some(total(&rig.files))));
    assert_eq!(first["uploaded_bytes"].as_u64(), Some(bytes));
    assert_eq!(would["uploaded_bytes"], first["uploaded_bytes"]);
    assert_eq!(rig.s3.put_bytes(), bytes, "every byte once");
    let again = rig.pushed(&[]).await;
    assert_eq!((again["uploaded_bytes"].as_u64(), again["skipped_files"].as_u64()), (Some(0), Some(8)));
    assert_eq!(rig.s3.put_bytes(), bytes);
    let pulled = rig.fetch("pulled").await;
    assert_eq!(json(&pulled)["manifest"], digest);
    rig.assert_pulled(&pulled);
    assert_eq!(json(&pulled)["revision"], format!("manifest:{digest}"));
    // The outboards, by the `blake3` crate's own subtree interface.
    use blake3::hazmat::HasherExt;
    let groups = rig.files[SHARD].chunks(MIB).enumerate();
    let values = groups.flat_map(|(number, group)| {
        blake3::Hasher::new().set_input_offset((number * MIB) as u64).update(group).finalize_non_root()
    });
    let place = rig.object(&format!("preheat-outboards/{}", blake3::hash(&rig.files[SHARD])));
    assert_eq!(std::fs::read(place).unwrap(), values.collect::<Vec<u8>>());
    // For people: a reference that stays.
    assert_eq!(stdout(&rig.push(&[]).await).trim(), format!("s3://bucket/team/m@manifest:{digest}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_byte_that_is_flipped_at_the_origin_is_named_and_costs_its_group() {
    let rig = Rig::new(2).await;
    rig.pushed(&[]).await;
    let object = rig.object(SHARD);
    let mut wrong = rig.files[SHARD].clone();
    wrong[7 * MIB + 3] ^= 1;
    std::fs::write(&object, &wrong).unwrap();
    fails(&rig.fetch("pulled").await, 65, &[SHARD, "group 7", "bytes 7340032 to 8388608"]);
    assert!(!rig.directory.path().join("pulled/config.json").exists(), "nothing half-made");
    // The server believes what it was told when it was written; asked to, a push sends it all the same.
    assert_eq!(rig.pushed(&[]).await["uploaded_bytes"], 0);
    let mended = rig.pushed(&["--replace"]).await;
    assert_eq!(
        (mended["uploaded_bytes"].as_u64(), mended["skipped_files"].as_u64()),
        (Some(total(&rig.files)), Some(0))
    );
    assert!(holds(&object, &rig.files[SHARD]));
    let pulled = rig.fetch("pulled").await;
    rig.assert_pulled(&pulled);
    let again = json(&pulled)["origin_bytes"].as_u64().unwrap();
    assert!(again < 2 * MIB as u64, "{again} bytes: a group and an outboard");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_that_was_killed_sends_what_is_missing() {
    for puts in [1, 4, 7, 12] {
        let rig = Rig::new(10 + puts as u64).await;
        rig.s3.take(puts);
        let mut process = rig
            .command(&["push", &rig.source(), "s3://bucket/team/m", "--json"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while rig.s3.puts() <= puts {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // What was begun with it ends meanwhile.
        tokio::time::sleep(Duration::from_millis(200)).await;
        process.kill().unwrap();
        process.wait().unwrap();
        rig.s3.take(usize::MAX);
        let whole: u64 =
            rig.files.iter().filter(|(path, bytes)| holds(&rig.object(path), bytes)).map(|f| f.1.len() as u64).sum();
        let before = rig.s3.put_bytes();
        assert!(!rig.object("preheat-manifest.json").exists());
        let second = rig.pushed(&[]).await;
        let bytes = published_bytes(&rig.files, &rig.object(""));
        let sent = second["uploaded_bytes"].as_u64().unwrap();
        assert_eq!(sent, rig.s3.put_bytes() - before);
        println!("{puts} puts: {whole} bytes were whole, {sent} of {bytes} were sent again");
        assert!(sent <= bytes - whole, "{sent} bytes of {bytes}, of which {whole} were there");
        let pulled = rig.fetch("pulled").await;
        rig.assert_pulled(&pulled);
    }
}

fn holds(path: &Path, bytes: &[u8]) -> bool {
    std::fs::read(path).is_ok_and(|found| found == bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn another_model_is_overwritten_only_when_asked_to() {
    let mut rig = Rig::new(3).await;
    rig.pushed(&[]).await;
    let other = with_more(model(4, 3, LARGE));
    rig.files.insert(SHARD.to_owned(), other[SHARD].clone());
    write(&rig.files, &rig.directory.path().join("m"));
    let refused = rig.push(&[]).await;
    fails(&refused, 76, &["has another model", "--replace", &manifest(&rig.files).digest().to_string()]);
    let before = rig.s3.put_bytes();
    let replaced = rig.pushed(&["--replace"]).await;
    let sent = rig.s3.put_bytes() - before;
    assert_eq!(replaced["uploaded_bytes"].as_u64(), Some(sent));
    // The shard, its outboard and the manifest; what the place declares shows that the rest is there.
    assert!(sent < rig.files[SHARD].len() as u64 + 8192, "{sent}");
    let pulled = rig.fetch("pulled").await;
    rig.assert_pulled(&pulled);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_same_size_is_not_taken_for_ours() {
    let rig = Rig::new(5).await;
    // Somebody else's object, with digests of its own.
    let other = Rig { directory: tempfile::tempdir().unwrap(), files: Files::new(), s3: rig.s3.clone() };
    let alien = noise(77, rig.files["config.json"].len());
    write(&Files::from([("config.json".to_owned(), alien.clone())]), &other.directory.path().join("m"));
    let output = other.run(&["push", &other.source(), "s3://bucket/team/m"]).await;
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    std::fs::remove_file(rig.object("preheat-manifest.json")).unwrap();
    fails(&rig.push(&[]).await, 76, &["config.json", "is another file", "--replace"]);
    assert_eq!(std::fs::read(rig.object("config.json")).unwrap(), alien);
    rig.pushed(&["--replace"]).await;
    let pulled = rig.fetch("pulled").await;
    rig.assert_pulled(&pulled);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_push_ends_clean_and_goes_on() {
    let rig = Rig::new(6).await;
    rig.s3.take(2);
    let process = rig
        .command(&["push", &rig.source(), "s3://bucket/team/m", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    while rig.s3.puts() <= 2 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let pid = rustix::process::Pid::from_child(&process);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = tokio::task::spawn_blocking(move || process.wait_with_output().unwrap()).await.unwrap();
    fails(&output, 130, &["interrupted", "found again"]);
    rig.s3.take(usize::MAX);
    rig.pushed(&[]).await;
    assert_eq!(rig.pushed(&[]).await["uploaded_bytes"], 0);
}

/// What every kind of bucket must do, in an environment that leads to it: a push, a second one that finds everything there, and a
/// pull that is proved by the manifest.
pub(crate) fn pushes(destination: &str) {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let files = with_more(model(9, 2, LARGE));
    write(&files, &directory.path().join("m"));
    let run = |arguments: &[&str]| {
        let ours = std::env::vars().filter(|(name, _)| name.starts_with("AZURE_") || name.starts_with("STORAGE_"));
        let output = preheat().envs(ours).args(arguments).arg("--json").output().unwrap();
        assert_eq!(code(&output), 0, "{arguments:?}: {}", stderr(&output));
        json(&output)
    };
    let first = run(&["push", &at("m"), destination]);
    assert!(first["uploaded_bytes"].as_u64().unwrap() > total(&files));
    let again = run(&["push", &at("m"), destination]);
    assert_eq!((again["uploaded_bytes"].as_u64(), again["skipped_files"].as_u64()), (Some(0), first["files"].as_u64()));
    let pulled = run(&["fetch", destination, "--direct", "--to", &at("pulled")]);
    assert_eq!(pulled["revision"], format!("manifest:{}", manifest(&files).digest()));
    assert!(read(&directory.path().join("pulled")) == files, "other bytes");
}

#[test]
fn a_directory_is_pushed_to_a_directory_and_mended() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let files = with_more(model(7, 2, 3 * MIB));
    write(&files, &directory.path().join("m"));
    write(&Files::from([("README.md".to_owned(), b"prose".to_vec())]), &directory.path().join("m"));
    let destination = format!("file://{}", at("place"));
    let push = |more: &[&str]| {
        let output = preheat().args(["push", &at("m"), &destination, "--json"]).args(more).output().unwrap();
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        json(&output)
    };
    let first = push(&[]);
    let place = directory.path().join("place");
    assert_eq!(first["uploaded_bytes"].as_u64(), Some(published_bytes(&files, &place)));
    assert_eq!(push(&[])["uploaded_bytes"], 0);
    // A byte that rots there is found by reading it back, and only that file is sent.
    let name = "model-00001-of-00002.safetensors";
    let mut wrong = files[name].clone();
    wrong[MIB + 1] ^= 1;
    std::fs::write(place.join(name), &wrong).unwrap();
    assert_eq!(push(&[])["uploaded_bytes"].as_u64(), Some(files[name].len() as u64));
    assert!(holds(&place.join(name), &files[name]));
    // So is a spoilt outboard.
    let outboard = place.join(format!("preheat-outboards/{}", blake3::hash(&files[name])));
    std::fs::write(&outboard, vec![0; 4 * 32]).unwrap();
    assert_eq!(push(&[])["uploaded_bytes"], 4 * 32);
    let pulled = preheat().args(["fetch", &destination, "--direct", "--to", &at("pulled")]).output().unwrap();
    assert_eq!(code(&pulled), 0, "{}", stderr(&pulled));
    assert!(read(&directory.path().join("pulled")) == files, "other bytes");
}

#[test]
fn what_cannot_be_pushed_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    write(&model(8, 1, MIB), &directory.path().join("m"));
    let push = |from: &str, to: &str| preheat().args(["push", from, to]).output().unwrap();
    let place = format!("file://{}", at("place"));
    fails(&push(&at("none"), &place), 66, &["none"]);
    fails(&push(&at("m"), "https://host/m"), 64, &["cannot be written", "bucket"]);
    fails(&push(&at("m"), &format!("{place}@/onnx")), 64, &["subfolder"]);
    std::fs::create_dir(at("empty")).unwrap();
    fails(&push(&at("empty"), &place), 64, &["empty"]);
    std::os::unix::fs::symlink("/etc/hostname", directory.path().join("m/vocab.txt")).unwrap();
    fails(&push(&at("m"), &place), 64, &["vocab.txt", "outside the directory"]);
    assert!(!directory.path().join("place").exists(), "nothing was written");
}
