//! The command as its users meet it: exit codes, messages that say what to do, and nothing half-done.

use std::path::Path;
use std::time::Duration;

use preheat::model::Manifest;

use super::support::command::{Daemon, code, fails, json, preheat, run, stderr, stdout};
use super::support::model::{Files, MIB, manifest, model, read, shard, total, with_more, write};
use super::support::web::{Fault, Web};

const SHARD: &str = "model-00001-of-00002.safetensors";

fn source(directory: &Path, files: &Files) -> String {
    let place = directory.join("source");
    write(files, &place);
    format!("file://{}", place.display())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn references_that_make_no_sense_are_usage_errors() {
    for (reference, word) in [
        ("ftp://host/model", "ftp"),
        ("model", "scheme"),
        ("s3://", "bucket"),
        ("https:///x", "host"),
        ("file:relative", "file"),
        ("https://host/m?include=[", "glob"),
        ("https://user:secret@host/m", "user"),
        ("https://host/../../etc", ".."),
    ] {
        let output = run(&["fetch", reference, "--to", "/nonexistent/x"]);
        fails(&output, 64, &[]);
        let message = stderr(&output);
        assert!(message.to_lowercase().contains(word) || message.contains(reference), "{reference}: {message}");
        assert!(!message.contains("secret"), "{message}");
    }
    fails(&run(&["fetch"]), 64, &["REFERENCE"]);
    fails(&run(&["fetch", "file:///x", "--link"]), 64, &["--to"]);
    assert_eq!(code(&run(&["--help"])), 0);
    assert!(stdout(&run(&["--version"])).starts_with("preheat "));
}

#[test]
fn without_daemon_and_destination_the_remedy_is_named() {
    fails(&run(&["fetch", "file:///tmp"]), 64, &["--to DIR", "--root DIR", "PREHEAT_ROOT"]);
    fails(&run(&["prewarm", "file:///tmp"]), 69, &["preheat serve"]);
}

#[test]
fn a_directory_goes_to_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let files = with_more(model(1, 2, 9 * MIB));
    let reference = source(directory.path(), &files);
    let to = directory.path().join("to");
    for round in 0..2 {
        let output = run(&["fetch", &reference, "--to", text(&to), "--json"]);
        assert_eq!(code(&output), 0, "{}", stderr(&output));
        let told = json(&output);
        assert_eq!(read(&to), files, "round {round}");
        assert_eq!(told["source"], "origin");
        assert_eq!(told["path"], text(&to));
        assert_eq!(told["files"], files.len());
        assert_eq!(told["bytes"], total(&files));
        assert_eq!(told["manifest"], manifest(&files).digest().to_string());
        assert!(told["origin_bytes"].is_u64() && told["seconds"].is_f64());
    }
    std::fs::write(to.join("config.json"), "changed").unwrap();
    let output = run(&["fetch", &reference, "--to", text(&to)]);
    assert_eq!(stdout(&output).trim(), text(&to), "the path and nothing else");
    assert_eq!(read(&to), files, "what somebody changed is put right");
}

#[test]
fn files_of_equal_content_are_files_of_their_own() {
    use std::os::unix::fs::MetadataExt;
    let directory = tempfile::tempdir().unwrap();
    let mut files = model(14, 1, MIB);
    files.insert("copy.json".to_owned(), files["config.json"].clone());
    let reference = source(directory.path(), &files);
    let to = directory.path().join("to");
    assert_eq!(code(&run(&["fetch", &reference, "--to", text(&to)])), 0);
    assert_eq!(read(&to), files);
    let inode = |name: &str| std::fs::metadata(to.join(name)).unwrap().ino();
    assert_ne!(inode("copy.json"), inode("config.json"));
}

#[test]
fn a_store_of_ones_own_stays() {
    let directory = tempfile::tempdir().unwrap();
    let files = model(2, 2, 9 * MIB);
    let reference = source(directory.path(), &files);
    let root = directory.path().join("root");
    let first = json(&run(&["fetch", &reference, "--root", text(&root), "--json"]));
    assert_eq!((&first["origin_bytes"], &first["durable"]), (&total(&files).into(), &true.into()));
    assert_eq!(read(Path::new(first["path"].as_str().unwrap())), files);
    let again = json(&run(&["fetch", &reference, "--root", text(&root), "--json"]));
    assert_eq!((&again["origin_bytes"], &again["path"]), (&0.into(), &first["path"]));
    let listed = json(&run(&["models", "--root", text(&root), "--json"]));
    assert_eq!(listed.as_array().unwrap().len(), 1);
    let verified = json(&run(&["verify", "--root", text(&root), "--json"]));
    assert_eq!((&verified["models"], verified["faults"].as_array().unwrap().len()), (&1.into(), 0));
    let gone = json(&run(&["gc", "--all", "--root", text(&root), "--json"]));
    assert!(gone["bytes"].as_u64().unwrap() >= total(&files));
    assert_eq!(json(&run(&["models", "--root", text(&root), "--json"])).as_array().unwrap().len(), 0);
}

#[test]
fn a_byte_flipped_on_disk_is_found() {
    let directory = tempfile::tempdir().unwrap();
    let files = model(3, 2, 9 * MIB);
    let reference = source(directory.path(), &files);
    let root = directory.path().join("root");
    let path = json(&run(&["fetch", &reference, "--root", text(&root), "--json"]))["path"].as_str().unwrap().to_owned();
    let file = Path::new(&path).join(SHARD);
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[5 * MIB] ^= 1;
    let blob = root.join("blobs").join(preheat::digest::Hash::of(&files[SHARD]).to_string());
    make_writable(&blob);
    std::fs::write(&blob, &bytes).unwrap();
    let output = run(&["verify", "--root", text(&root), "--json"]);
    assert_eq!(code(&output), 65);
    assert!(json(&output)["faults"].to_string().contains(&preheat::digest::Hash::of(&files[SHARD]).to_string()));
}

fn make_writable(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
}

#[test]
fn what_is_wrong_with_a_root_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let reference = source(directory.path(), &model(4, 1, MIB));
    let other = directory.path().join("other");
    write(&Files::from([("mine.txt".to_owned(), b"x".to_vec())]), &other);
    fails(&run(&["fetch", &reference, "--root", text(&other)]), 64, &["not empty", "--root"]);
    assert_eq!(read(&other).len(), 1, "it was left as it is");
    let root = directory.path().join("root");
    assert_eq!(code(&run(&["fetch", &reference, "--root", text(&root)])), 0);
    let format = std::fs::read_to_string(root.join("FORMAT")).unwrap();
    std::fs::write(root.join("FORMAT"), format.replace('1', "9")).unwrap();
    fails(&run(&["fetch", &reference, "--root", text(&root)]), 64, &["format 9", "upgrade"]);
    fails(&run(&["models", "--root", text(&root)]), 64, &["format 9", "upgrade"]);
    fails(&run(&["verify", "--root", text(&directory.path().join("none"))]), 66, &["none", "--root"]);
    fails(&run(&["gc", "--root", text(&directory.path().join("none"))]), 66, &["none", "--root"]);
    assert!(!directory.path().join("none").exists(), "looking makes no store");
    let file = other.join("mine.txt");
    for verb in ["verify", "models", "gc"] {
        fails(&run(&[verb, "--root", text(&file)]), 64, &["mine.txt", "ot a directory"]);
    }
    for place in [&file, &file.join("below")] {
        fails(&run(&["fetch", &reference, "--root", text(place)]), 64, &["mine.txt", "ot a directory"]);
        fails(&run(&["fetch", &reference, "--to", text(place)]), 64, &["mine.txt", "ot a directory"]);
    }
    fails(&run(&["manifest", text(&file)]), 64, &["mine.txt", "directory"]);
    fails(&run(&["fetch", "file:///does/not/exist", "--to", text(&root.join("x"))]), 66, &["/does/not/exist"]);
}

#[test]
fn broken_sources_leave_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let mut files = model(5, 2, MIB);
    let mut broken = shard("w", 1, MIB);
    broken[..8].copy_from_slice(&u64::to_le_bytes(900 << 20));
    files.insert(SHARD.to_owned(), broken);
    let reference = source(directory.path(), &files);
    let to = directory.path().join("to");
    fails(&run(&["fetch", &reference, "--to", text(&to)]), 65, &[SHARD, "safetensors"]);
    let visible = read(&to).into_keys().filter(|path| !path.starts_with(".preheat")).count();
    assert_eq!(visible, 0);
    files.insert(SHARD.to_owned(), shard("w", 1, MIB));
    write(&files, &directory.path().join("source"));
    assert_eq!(code(&run(&["fetch", &reference, "--to", text(&to)])), 0);
    assert_eq!(read(&to), files);
}

#[test]
fn names_that_differ_in_case_only_are_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    let mut files = model(6, 1, MIB);
    files.insert("Config.json".to_owned(), b"{}".to_vec());
    let reference = source(directory.path(), &files);
    let output = run(&["fetch", &reference, "--to", text(&directory.path().join("to"))]);
    assert_eq!(code(&output), 0);
    assert!(stderr(&output).contains("case"), "{}", stderr(&output));
}

#[test]
fn configurations_are_checked_before_a_port_is_bound() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("preheat.toml");
    let root = directory.path().join("root");
    let serve = |content: &str| {
        std::fs::write(&file, content).unwrap();
        preheat().args(["serve", "--root", text(&root), "--config", text(&file)]).output().unwrap()
    };
    fails(
        &serve("[store]\ncapcity = \"1GiB\"\n[transfer]\nconnections_max = 0\n"),
        64,
        &["capcity", "connections_max"],
    );
    fails(&serve("[server]\nlisten = \"0.0.0.0:7420\"\n"), 64, &["token"]);
    fails(&serve("listen = "), 64, &["preheat.toml"]);
    fails(&run(&["serve", "--root", text(&root), "--config", "/nonexistent.toml"]), 64, &["/nonexistent.toml"]);
    fails(&run(&["serve", "--root", text(&root), "--allow-origin", "models"]), 64, &["models", "scheme"]);
    assert!(!root.exists());
}

#[test]
fn a_port_and_a_root_belong_to_one_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), &[]);
    let other = tempfile::tempdir().unwrap();
    let address = daemon.url.strip_prefix("http://").unwrap();
    let taken = preheat()
        .args([
            "serve",
            "--root",
            text(&other.path().join("r")),
            "--listen",
            address,
            "--socket",
            text(&other.path().join("s")),
        ])
        .output()
        .unwrap();
    fails(&taken, 75, &[address, "--listen"]);
    let second = preheat()
        .args([
            "serve",
            "--root",
            text(&daemon.root),
            "--listen",
            "127.0.0.1:0",
            "--socket",
            text(&other.path().join("s")),
        ])
        .output()
        .unwrap();
    fails(&second, 75, &["store"]);
    let direct = run(&["fetch", "file:///tmp", "--direct", "--root", text(&daemon.root)]);
    fails(&direct, 75, &["serve"]);
    // Looking needs no lock.
    assert_eq!(code(&run(&["models", "--root", text(&daemon.root), "--json"])), 0);
    assert_eq!(code(&run(&["verify", "--root", text(&daemon.root)])), 0);
}

#[test]
fn over_tcp_a_directory_must_be_listed() {
    let directory = tempfile::tempdir().unwrap();
    let reference = source(directory.path(), &model(7, 1, MIB));
    let daemon = Daemon::start(directory.path(), &[]);
    fails(&daemon.run(&["fetch", &reference]), 77, &["--allow-origin file://"]);
    let output = daemon.run_locally(&["fetch", &reference]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    drop(daemon);
    let allowed = format!("file://{}", directory.path().display());
    let daemon = Daemon::start(directory.path(), &["--allow-origin", &allowed]);
    assert_eq!(code(&daemon.run(&["fetch", &reference])), 0);
}

#[test]
fn a_daemon_prewarms_and_tells() {
    let directory = tempfile::tempdir().unwrap();
    let files = model(8, 2, 9 * MIB);
    let reference = source(directory.path(), &files);
    let daemon = Daemon::start(directory.path(), &[]);
    let output =
        daemon.run_locally(&["prewarm", &reference, "--tier", "memory", "--wait", "--deadline", "60s", "--json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let job = json(&output);
    assert_eq!((&job["state"], &job["tier"]), (&"ready".into(), &"memory".into()));
    assert_eq!((&job["bytes_total"], &job["bytes_done"]), (&total(&files).into(), &total(&files).into()));
    assert_eq!((&job["deadline_met"], &job["error"]), (&true.into(), &serde_json::Value::Null));
    for key in ["id", "bytes_per_second", "eta_seconds", "path", "manifest", "durable"] {
        assert!(job.get(key).is_some(), "{key}");
    }
    let fetched = json(&daemon.run_locally(&["fetch", &reference, "--json"]));
    assert_eq!(
        (&fetched["source"], &fetched["origin_bytes"], &fetched["path"]),
        (&"daemon".into(), &0.into(), &job["path"])
    );
    let to = directory.path().join("to");
    let placed = json(&daemon.run_locally(&["fetch", &reference, "--to", text(&to), "--json"]));
    assert!(["reflink", "copy_file_range", "copy"].contains(&placed["placed"].as_str().unwrap()), "{placed}");
    assert_eq!(read(&to), files);
    let link = directory.path().join("link");
    let placed = json(&daemon.run_locally(&["fetch", &reference, "--to", text(&link), "--link", "--json"]));
    assert_eq!(placed["placed"], "hard link");
    let failed = daemon.run_locally(&["prewarm", "file:///does/not/exist", "--wait", "--json"]);
    assert_eq!((code(&failed), &json(&failed)["error"]["kind"]), (66, &"not_found".into()));
    assert_eq!(json(&daemon.run_locally(&["models", "--json"])).as_array().unwrap().len(), 1);
    assert_eq!(json(&daemon.run_locally(&["gc", "--all", "--json"]))["models"].as_array().unwrap().len(), 1);
}

#[test]
fn a_stopped_daemon_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let files = model(9, 1, MIB);
    let reference = source(directory.path(), &files);
    let daemon = Daemon::start(directory.path(), &[]);
    daemon.signal(rustix::process::Signal::STOP);
    let to = directory.path().join("to");
    let output = daemon.run_locally(&["fetch", &reference, "--to", text(&to), "--daemon-timeout", "300ms", "--json"]);
    daemon.signal(rustix::process::Signal::CONT);
    assert_eq!(json(&output)["source"], "origin");
    assert!(stderr(&output).contains("not used"), "{}", stderr(&output));
    assert_eq!(read(&to), files);
}

/// A daemon that says ready, whose store nobody here can see, and that then hangs: before the manifest, or before the first byte of
/// a blob.
async fn daemon_that_hangs(manifest: &Manifest, gives_manifest: bool) -> String {
    use axum::Json;
    use axum::routing::{get, post};
    use preheat::prewarm::wire::{JobState, JobView};
    let job = JobView {
        id: "job-1".to_owned(),
        state: JobState::Ready,
        path: Some("/proc/none/tree".into()),
        manifest: Some(manifest.digest()),
        ..JobView::default()
    };
    let json = manifest.to_json();
    let answer = move || {
        let json = json.clone();
        async move {
            if !gives_manifest {
                std::future::pending::<()>().await;
            }
            json
        }
    };
    let blob = || async {
        let nothing = futures_util::stream::pending::<std::io::Result<axum::body::Bytes>>();
        (http::StatusCode::PARTIAL_CONTENT, axum::body::Body::from_stream(nothing))
    };
    let app = axum::Router::new()
        .route("/v1/prewarm", post(move || async { Json(job) }))
        .route("/v1/prewarm/{id}/events", get(|| async { "" }))
        .route("/v1/manifests/{digest}", get(answer))
        .route("/v1/blobs/{hash}", get(blob));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    at
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_hangs_after_it_said_ready_is_given_up() {
    let directory = tempfile::tempdir().unwrap();
    let files = model(19, 2, 9 * MIB);
    let reference = source(directory.path(), &files);
    for (name, gives_manifest) in [("manifest", false), ("blobs", true)] {
        let at = daemon_that_hangs(&manifest(&files), gives_manifest).await;
        let (reference, to) = (reference.clone(), directory.path().join(name));
        let place = to.clone();
        let fetch = move || {
            let named = ["--daemon", &at, "--daemon-timeout", "300ms", "--json"];
            run(&[&["fetch", &reference, "--to", text(&place)], &named[..]].concat())
        };
        let output = tokio::task::spawn_blocking(fetch).await.unwrap();
        assert_eq!(code(&output), 0, "{name}: {}", stderr(&output));
        assert_eq!(json(&output)["source"], "origin", "{name}");
        assert!(stderr(&output).contains("not used"), "{name}: {}", stderr(&output));
        assert_eq!(read(&to), files, "{name}");
    }
}

#[test]
fn a_daemon_ends_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let reference = source(directory.path(), &model(10, 1, MIB));
    let mut daemon = Daemon::start(directory.path(), &[]);
    assert_eq!(code(&daemon.run_locally(&["fetch", &reference])), 0);
    daemon.signal(rustix::process::Signal::TERM);
    assert!(daemon.process.wait().unwrap().success());
    let listed = json(&run(&["models", "--root", text(&daemon.root), "--json"]));
    assert_eq!(listed[0]["durable"], true, "a daemon that has ended owes nothing: {listed}");
}

#[tokio::test]
async fn an_interrupted_fetch_goes_on_where_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let files = model(11, 2, 24 * MIB);
    let web = Web::serve(&files).await;
    web.fault(|_| Fault { drip: Duration::from_micros(400), ..Fault::default() });
    let to = directory.path().join("to");
    let mut sent = 0;
    for _ in 0..2 {
        let child = preheat()
            .args(["fetch", &web.url, "--to", text(&to)])
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        while web.sent_of_shards() < sent + 14 * MIB as u64 {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
        assert_eq!(code(&output), 130, "{}", stderr(&output));
        sent = web.sent_of_shards();
    }
    web.heal();
    let url = web.url.clone();
    let place = to.clone();
    let output = tokio::task::spawn_blocking(move || run(&["fetch", &url, "--to", text(&place)])).await.unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(read(&to), files);
    let (all, size) = (web.sent_of_shards(), 48 * MIB as u64);
    assert!(all < size + 24 * MIB as u64, "{all} bytes for {size}: what had arrived was kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn fetches_into_one_directory_wait_for_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let files = with_more(model(17, 2, 9 * MIB));
    let web = Web::serve(&files).await;
    let daemon = Daemon::start(directory.path(), &["--allow-origin", &web.url]);
    for (name, at) in [("alone", "--direct"), ("beside", daemon.url.as_str())] {
        let to = directory.path().join(name);
        let start = || {
            let mut command = preheat();
            command.args(["fetch", &web.url, "--to", text(&to)]);
            if at == "--direct" {
                command.arg(at)
            } else {
                command.args(["--daemon", at])
            };
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
        };
        let children: Vec<_> = (0..6).map(|_| start()).collect();
        for child in children {
            let output = tokio::task::spawn_blocking(|| child.wait_with_output().unwrap()).await.unwrap();
            assert_eq!(code(&output), 0, "{name}: {}", stderr(&output));
        }
        assert_eq!(read(&to), files, "{name}");
        assert!(!to.join(".preheat").exists(), "{name}: nothing half-made is left");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_interrupted_fetch_kept_goes_when_another_ends() {
    let directory = tempfile::tempdir().unwrap();
    let files = model(18, 1, 9 * MIB);
    let web = Web::serve(&files).await;
    let daemon = Daemon::start(directory.path(), &["--allow-origin", &web.url]);
    let to = directory.path().join("to");
    std::fs::create_dir_all(to.join(".preheat/store/partials")).unwrap();
    std::fs::write(to.join(".preheat/store/partials/data"), "half").unwrap();
    let (url, at, place) = (web.url.clone(), daemon.url.clone(), to.clone());
    let fetch = move || run(&["fetch", &url, "--to", text(&place), "--daemon", &at]);
    let output = tokio::task::spawn_blocking(fetch).await.unwrap();
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert_eq!(read(&to), files);
    assert!(!to.join(".preheat").exists());
}

#[tokio::test]
async fn refusals_of_an_origin_have_their_codes() {
    let files = model(12, 1, MIB);
    let web = Web::serve(&files).await;
    let directory = tempfile::tempdir().unwrap();
    let to = text(&directory.path().join("to")).to_owned();
    for (status, exit) in [(403, 77), (401, 77), (404, 66)] {
        web.fault(move |_| Fault { status: Some(status), ..Fault::default() });
        let (url, to) = (web.url.clone(), to.clone());
        let output = tokio::task::spawn_blocking(move || run(&["fetch", &url, "--to", &to])).await.unwrap();
        fails(&output, exit, &[&web.url]);
    }
}

#[test]
fn a_destination_that_cannot_be_written_is_named() {
    if rustix::process::geteuid().is_root() {
        // Root may write anywhere but where nobody may.
        let directory = tempfile::tempdir().unwrap();
        let reference = source(directory.path(), &model(13, 1, MIB));
        fails(&run(&["fetch", &reference, "--to", "/proc/preheat"]), 66, &["/proc/preheat"]);
        fails(
            &run(&["serve", "--root", "/proc/preheat", "--listen", "127.0.0.1:0", "--socket", "/tmp/none.sock"]),
            66,
            &["/proc"],
        );
    }
}
