//! Large engines that stay as they are: shown where the store has them, read-only, and never copied.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use preheat::base::ErrorKind;
use preheat::engines::{Capture, Captured, Library};
use preheat::model::Tenant;
use preheat::model::engine::BundleKind;
use serde_json::Value;

use super::super::support::command::{Daemon, code, json, preheat, stderr, stdout, undisturbed};
use super::super::support::engine::{cache, capture, key, library, signer, tree};
use super::run::{Bench, ENGINE, is, says};

const SOON: Duration = Duration::from_secs(10);

fn bench() -> Bench {
    Bench { kind: ",in-place", ..Bench::new() }
}

/// The engine, and then what `$THEN` says, with its cache as `$0`: another script is no other key.
fn argv(bench: &Bench, engine: &str) -> Vec<String> {
    let script = format!("python3 {engine} --cache \"$0\"; eval \"$THEN\"");
    ["sh", "-c", &script, &bench.text("cache")].map(str::to_owned).to_vec()
}

fn command(bench: &Bench, then: &str) -> Command {
    let argv = argv(bench, ENGINE);
    let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
    let mut command = bench.command("report.json", &argv);
    command.env("THEN", then);
    command
}

fn run(bench: &Bench, then: &str) -> (Output, Value) {
    let output = command(bench, then).output().unwrap();
    (output, bench.report("report.json"))
}

/// Files of this name below a directory.
fn find(directory: &Path, name: &str) -> Vec<PathBuf> {
    let (mut found, mut waiting) = (Vec::new(), vec![directory.to_owned()]);
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.is_symlink() {
                waiting.push(path);
            } else if entry.file_name() == name {
                found.push(path);
            }
        }
    }
    found
}

fn stored(bench: &Bench) -> Vec<PathBuf> {
    find(&bench.at("store/trees"), "0.so")
}

#[test]
fn starts_are_shown_the_stores_own_files_and_cannot_write_to_them() {
    let bench = bench();
    let (_, cold) = run(&bench, "true");
    is(&cold, "cold");
    assert_eq!(cold["captured"], true, "{cold:#}");
    let [own] = stored(&bench).try_into().unwrap();
    let inode = std::fs::metadata(&own).unwrap().ino();
    let views = bench.text("views");
    let then = format!(
        "echo z > \"$0\"/k/0/0.so; rm \"$0\"/k/0/0.so; touch \"$0\"/k/new; stat -c 'inode %i' \"$0\"/k/0/0.so; \
         echo copies $(find {views} -name '*.so' | wc -l); true"
    );
    let (output, hit) = run(&bench, &then);
    let said = stdout(&output);
    for says in ["used 4, made 0", &format!("inode {inode}"), "copies 0"] {
        assert!(said.contains(says), "{says}: {said}");
    }
    assert_eq!(stderr(&output).matches("Read-only file system").count(), 4, "{}", stderr(&output));
    is(&hit, "hit");
    assert_eq!((&hit["files"]["restored"], &hit["files"]["read"]), (&4.into(), &Value::Null));
    assert!(hit["view"].as_str().unwrap().starts_with("mounted"), "{hit:#}");
    let notes = hit["notes"].to_string();
    assert!(notes.contains("EROFS") && notes.contains("may not write to what the store shows it"), "{notes}");
    assert_eq!(std::fs::read_to_string(&own).unwrap(), "compiled 0");
    assert_eq!((bench.left_in_cache(), bench.views()), (0, 0));
}

#[test]
fn what_is_compiled_beside_is_kept_with_what_was_shown() {
    let bench = bench();
    is(&run(&bench, "true").1, "cold");
    let (_, partial) = run(&bench, "mkdir \"$0\"/other; echo engine > \"$0\"/other/rank0.engine");
    is(&partial, "partial");
    assert_eq!((&partial["captured"], &partial["files"]["new"]), (&true.into(), &1.into()), "{partial:#}");
    let (output, hit) = run(&bench, "cat \"$0\"/other/rank0.engine");
    assert!(stdout(&output).contains("used 4, made 0\nengine"), "{}", stdout(&output));
    is(&hit, "hit");
    assert_eq!(hit["files"]["restored"], 5);
}

#[test]
fn a_damaged_file_is_found_before_the_command_sees_it_and_its_tree_goes() {
    for by_daemon in [false, true] {
        let mut bench = bench();
        let daemon = by_daemon.then(|| Daemon::start(bench.directory.path(), &[]));
        let trees = match &daemon {
            Some(daemon) => {
                bench.daemon = Some(format!("unix:{}", daemon.socket.display()));
                bench.directory.path().to_owned()
            }
            None => bench.at("store/trees"),
        };
        is(&run(&bench, "true").1, "cold");
        is(&run(&bench, "true").1, "hit");
        let damaged: Vec<PathBuf> = find(&trees, "0.so");
        std::fs::set_permissions(&damaged[0], std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::write(&damaged[0], "compiled 9").unwrap();
        let (output, cold) = run(&bench, "true");
        assert_eq!(stdout(&output).trim(), "fake engine: used 0, made 4", "{}", stderr(&output));
        is(&cold, "cold");
        says(&cold, "reason", &["cannot be shown", "0.so", "not what the document says"]);
        assert!(!damaged[0].exists(), "its tree is gone");
        // What took its place is right.
        is(&run(&bench, "true").1, "hit");
    }
}

#[test]
fn it_counts_and_is_evicted_like_a_model_but_not_while_it_is_shown() {
    let bench = bench();
    is(&run(&bench, "true").1, "cold");
    let store = bench.text("store");
    let gc = || json(&preheat().args(["gc", "--all", "--json", "--root", &store]).output().unwrap());
    let mut running = command(&bench, "echo up; exec sleep 60").stdout(Stdio::piped()).spawn().unwrap();
    let started = Instant::now();
    while stored(&bench).is_empty() || !bench.at("views").exists() || bench.views() == 0 {
        assert!(started.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(20));
    }
    let mut said = std::io::BufReader::new(running.stdout.take().unwrap());
    let mut line = String::new();
    while !line.contains("up") {
        line.clear();
        std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    }
    let kept = gc();
    assert!(kept["kept"].to_string().contains("in use") && kept["models"].as_array().unwrap().is_empty(), "{kept:#}");
    assert_eq!(stored(&bench).len(), 1);
    let pid = rustix::process::Pid::from_child(&running);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    running.wait().unwrap();
    let gone = gc();
    assert_eq!(gone["models"].as_array().unwrap().len(), 1, "{gone:#}");
    assert!(gone["blobs"].as_u64().unwrap() >= 5 && stored(&bench).is_empty(), "{gone:#}");
}

#[test]
fn an_engine_that_dies_of_what_it_is_shown_comes_up_without() {
    let bench = Bench { kind: ",in-place", ..Bench::new() }.with(&["--retry-cold"]);
    is(&run(&bench, "true").1, "cold");
    let (output, report) = run(&bench, "touch \"$0\"/k/again || exit 9");
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    is(&report, "quarantined");
    says(&report, "reason", &["exit code 9", "may not write to what it is shown"]);
    // Not for that reason is it gone: somebody may want to know why.
    assert!(report["retried"] == true && !stored(&bench).is_empty());
}

#[test]
fn where_nothing_may_be_mounted_it_is_a_link_that_nobody_can_write_through() {
    let own = rustix::process::geteuid();
    let bench = bench();
    let as_other = |command: &mut Command| {
        if own.is_root() {
            command.uid(65534).gid(65534);
        }
    };
    // Copies: not everybody may look where they were built.
    let (program, engine) = (bench.at("preheat"), bench.text("engine.py"));
    std::fs::copy(preheat().get_program(), &program).unwrap();
    std::fs::copy(ENGINE, &engine).unwrap();
    if own.is_root() {
        std::os::unix::fs::chown(bench.directory.path(), Some(65534), Some(65534)).unwrap();
    }
    let start = |more: &[&str], then: &str| {
        let argv = argv(&bench, &engine);
        let mut command = undisturbed(Command::new(&program));
        command.args(["run", "--engine", "generic-dir", "--settle", "200ms", "--root", &bench.text("store")]);
        command.args(["--report", &bench.text("report.json"), "--view-dir", &bench.text("views")]);
        command.args(["--cache-dir", &format!("c={},in-place", bench.text("cache"))]).args(more).arg("--").args(&argv);
        command.current_dir(bench.directory.path()).env("HOME", bench.directory.path()).env("THEN", then);
        as_other(&mut command);
        let output = command.output().unwrap();
        (output, bench.report("report.json"))
    };
    let (output, cold) = start(&[], "true");
    is(&cold, "cold");
    if cold["view"] == "in_place" {
        // Where this user may have no namespace nothing can be captured, and there is nothing to be shown.
        assert!(cold["notes"].to_string().contains("no mount namespace"), "{}", stderr(&output));
        return;
    }
    assert_eq!(cold["captured"], true, "{cold:#}");
    let then = "readlink \"$0\"; echo z > \"$0\"/k/0/0.so; touch \"$0\"/new; true";
    let (output, linked) = start(&["--no-namespace"], then);
    is(&linked, "hit");
    assert_eq!(linked["view"], "linked");
    assert!(stdout(&output).contains("/store/trees/") && stdout(&output).contains("used 4"), "{}", stdout(&output));
    assert_eq!(stderr(&output).matches("Permission denied").count(), 2, "{}", stderr(&output));
    let cache = bench.at("cache");
    assert!(!cache.is_symlink() && bench.left_in_cache() == 0, "the link has gone");
    assert_eq!(std::fs::read_to_string(&stored(&bench)[0]).unwrap(), "compiled 0");
    // A directory with something in it is not put aside.
    std::fs::write(cache.join("own"), "x").unwrap();
    let (_, own_files) = start(&["--no-namespace"], "true");
    is(&own_files, "cold");
    says(&own_files, "reason", &["cannot be shown", "is not empty"]);
    assert!(cache.join("own").exists());
    if own.is_root() {
        // Root writes to whatever it likes.
        let bench = self::bench();
        is(&run(&bench, "true").1, "cold");
        let (_, cold) = run(&bench.with(&["--no-namespace"]), "true");
        is(&cold, "cold");
        says(&cold, "reason", &["would let the command write into the store", "read-only"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_to_another_node_file_by_file_and_as_an_archive() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    std::fs::create_dir(at("shared")).unwrap();
    let (key_file, signer) = signer(directory.path(), "ci");
    let shared = Some(format!("file://{}", at("shared").display()));
    let own = Tenant::of_uid(rustix::process::geteuid().as_raw());
    let publisher = library(&at("a"), |config| {
        (config.origin, config.signing_key_file, config.publish) = (shared.clone(), Some(key_file), vec![own]);
    })
    .await;
    let engines = cache(directory.path(), 1);
    let graph = key(BundleKind::Graph, "a");
    let wanted = Capture { in_place: true, ..capture(graph.clone(), &[("engines", &engines)]) };
    let Captured::Created { bundle, .. } = publisher.capture(wanted).await.unwrap() else { panic!() };
    assert!(bundle.in_place && publisher.show(&bundle.id).await.unwrap().document.pack.is_none());
    let reader =
        library(&at("b"), |config| (config.origin, config.signers) = (shared.clone(), vec![signer.clone()])).await;
    let found = reader.lookup(&graph, SOON).await.unwrap().exact.unwrap();
    assert_eq!((found.id, found.in_place), (bundle.id, true));
    let bytes = |tree: super::super::support::engine::Tree| -> Vec<(String, Vec<u8>)> {
        tree.into_iter().map(|(path, (bytes, ..))| (path, bytes)).collect()
    };
    let shown = reader.in_place(&found).await.unwrap();
    assert_eq!(bytes(tree(&shown.files.join("engines"))), bytes(tree(&engines)));
    assert!(tree(&shown.files).values().all(|(_, mode, _)| *mode == 0o444));
    // Copied, for who asks for a copy, it is as it was.
    reader.restore(&found, &at("copy")).await.unwrap();
    assert_eq!(tree(&at("copy/engines")), tree(&engines));
    // As a file.
    let view = reader.show(&found.id).await.unwrap();
    let mut pack = reader.pack(&found.id).await.unwrap();
    let mut archive = Vec::new();
    preheat::engines::export(&view.document, view.signature.as_ref(), pack.as_mut(), &mut archive).unwrap();
    let third = library(&at("c"), |config| config.signers = vec![signer]).await;
    let taken = third.import(Box::new(std::io::Cursor::new(archive.clone()))).await.unwrap();
    assert_eq!((taken.id, taken.in_place), (bundle.id, true));
    third.in_place(&taken).await.unwrap();
    let middle = archive.len() - 5_000;
    archive[middle] ^= 1;
    let damaged = third.import(Box::new(std::io::Cursor::new(archive))).await.unwrap_err();
    assert_eq!(damaged.kind(), ErrorKind::Corrupt);
    let packed = publisher.capture(capture(key(BundleKind::Graph, "b"), &[("engines", &engines)])).await.unwrap();
    let Captured::Created { bundle: packed, .. } = packed else { panic!("{packed:?}") };
    assert!(publisher.in_place(&packed).await.is_err(), "what has a pack is nowhere as files");
}
