//! What people decide about bundles: released from quarantine, pinned, and how much of the node they may take.

use std::time::Duration;

use preheat::base::ErrorKind;
use preheat::engines::{AttemptEnd, BundleRef, Library, Refusal, Standing};
use preheat::model::engine::BundleKind;
use serde_json::Value;

use super::super::engines_daemon::{Node, created};
use super::super::support::command::{code, fails, json, preheat, stdout};
use super::super::support::engine::{cache, capture, key, library};

const SOON: Duration = Duration::from_secs(10);

async fn quarantine(library: &dyn Library, bundle: &BundleRef) {
    let attempt = library.begin_attempt(&bundle.id).await.unwrap();
    let end = AttemptEnd::Quarantine { reason: "exit 1".to_owned() };
    library.end_attempt(&bundle.id, &attempt, end).await.unwrap();
}

async fn may_be_restored(library: &dyn Library, run: &str) -> bool {
    let found = library.lookup(&key(BundleKind::Graph, run), SOON).await.unwrap();
    assert!(found.exact.is_some() || matches!(found.refused[0].why, Refusal::Quarantined { .. }), "{found:?}");
    found.exact.is_some()
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_root_the_command_releases_and_pins() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let library = library(&root, |_| {}).await;
    let files = cache(directory.path(), 1);
    let bundle = created(library.capture(capture(key(BundleKind::Graph, "a"), &[("vllm", &files)])).await.unwrap());
    quarantine(&library, &bundle).await;
    assert!(!may_be_restored(&library, "a").await);
    let (root, id) = (root.display().to_string(), bundle.id.to_string());
    let run = |verb: &[&str]| preheat().args(["engine"]).args(verb).args(["--root", &root]).output().unwrap();
    let released: Value = json(&run(&["release", &id[..8], "--reason", "mended", "--json"]));
    assert_eq!((&released["id"], &released["standing"]["state"]), (&Value::from(id.as_str()), &"clean".into()));
    assert!(may_be_restored(&library, "a").await);
    // Attempts that were broken off are taken back as well.
    library.begin_attempt(&bundle.id).await.unwrap();
    assert_eq!(code(&run(&["release", &id])), 0);
    assert!(library.show(&bundle.id).await.unwrap().bundle.unfinished.is_empty());
    let pinned: Value = json(&run(&["pin", &id, "--name", "release-7", "--reason", "for ever", "--json"]));
    assert_eq!((&pinned["pins"][0]["id"], &pinned["pins"][0]["expires_at"]), (&"release-7".into(), &Value::Null));
    assert!(stdout(&run(&["list"])).contains("kept by release-7"));
    let gc = || json(&preheat().args(["gc", "--all", "--json", "--root", &root]).output().unwrap());
    assert!(gc()["kept"].to_string().contains("pinned"));
    assert!(may_be_restored(&library, "a").await);
    assert!(!stdout(&run(&["pin", &id, "--name", "release-7", "--remove"])).contains("kept by"));
    fails(
        &run(&["pin", &id, "--name", "release-7", "--remove"]),
        ErrorKind::NotFound.exit_code().into(),
        &["release-7"],
    );
    fails(&run(&["pin", &id, "--name", "A b"]), ErrorKind::Invalid.exit_code().into(), &["--name"]);
    let leased: Value = json(&run(&["pin", &id, "--lease", "1h", "--json"]));
    assert!(leased["pins"][0]["expires_at"].is_u64(), "{leased}");
    assert!(gc()["kept"].to_string().contains("leased"));
    run(&["pin", &id, "--remove"]);
    assert_eq!(gc()["models"].as_array().unwrap().len(), 1);
    fails(&run(&["release", &id]), ErrorKind::NotFound.exit_code().into(), &["no bundle"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_takes_its_own_word_back_and_an_operator_everybodys() {
    let directory = tempfile::tempdir().unwrap();
    let (key_file, _) = super::super::support::engine::signer(directory.path(), "ci");
    let publishing = format!("[engines]\nsigning_key_file = \"{}\"\npublish = [\"team-a\"]\n", key_file.display());
    let node = Node::start(directory.path(), "node", &publishing, &[]);
    let (a, b, operator) = (node.library("team-a"), node.library("team-b"), node.library("node"));
    let files = cache(directory.path(), 1);
    let bundle = created(a.capture(capture(key(BundleKind::Graph, "a"), &[("vllm", &files)])).await.unwrap());
    for library in [&a, &b] {
        quarantine(library, &bundle).await;
    }
    assert!(!may_be_restored(&operator, "a").await, "two say so, and it holds for all");
    let released = a.release(&bundle.id, "").await.unwrap();
    assert_eq!(released.standing, Standing::Clean);
    assert!(may_be_restored(&a, "a").await && !may_be_restored(&b, "a").await);
    // The operator's word holds for all, and only an operator takes it back.
    quarantine(&operator, &bundle).await;
    let error = a.release(&bundle.id, "").await.unwrap_err();
    assert!(error.kind() == ErrorKind::Denied && error.to_string().contains("operator"), "{error}");
    assert!(!may_be_restored(&a, "a").await);
    operator.release(&bundle.id, "it was the driver").await.unwrap();
    assert!(may_be_restored(&a, "a").await && may_be_restored(&b, "a").await);
    // A pin takes room from everybody; a lease ends.
    let error = a.pin(&bundle.id, "mine", "", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
    assert_eq!(a.pin(&bundle.id, "mine", "", Some(60)).await.unwrap().pins.len(), 1);
    assert_eq!(a.unpin(&bundle.id, "mine").await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(operator.pin(&bundle.id, "all", "", None).await.unwrap().pins.len(), 2);
    assert_eq!(operator.unpin(&bundle.id, "mine").await.unwrap().pins.len(), 1);
    // One's own, which nobody else sees; the operator knows it by its name.
    let own = created(b.capture(capture(key(BundleKind::Graph, "b"), &[("vllm", &files)])).await.unwrap());
    assert_eq!(b.pin(&own.id, "mine", "", None).await.unwrap().pins.len(), 1);
    assert_eq!(a.pin(&own.id, "x", "", Some(60)).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(operator.unpin(&own.id, "mine").await.unwrap().pins.len(), 0);
    let log = std::fs::read_to_string(directory.path().join("node/log")).unwrap();
    assert!(log.contains("released from quarantine") && log.contains("it was the driver"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_brings_no_more_than_it_may_in_bundles_either() {
    let directory = tempfile::tempdir().unwrap();
    // A cache has some 1.35 MB.
    let node = Node::start(directory.path(), "node", "", &[("PREHEAT_ACCESS__BYTES_MAX", "3MB")]);
    let (a, b) = (node.library("team-a"), node.library("team-b"));
    let (one, two) = (cache(directory.path(), 1), cache(directory.path(), 2));
    let take = async |library: &dyn Library, run: &str, files| {
        library.capture(capture(key(BundleKind::Graph, run), &[("vllm", files)])).await
    };
    created(take(&a, "a", &one).await.unwrap());
    created(take(&a, "b", &two).await.unwrap());
    let over = take(&a, "c", &one).await.unwrap_err();
    assert_eq!(over.kind(), ErrorKind::NoSpace, "{over}");
    let words = over.to_string();
    for says in ["scope team-a", "access.bytes_max", "evict"] {
        assert!(words.contains(says), "{says}: {words}");
    }
    // It is each scope's own, and what is refused has taken nothing.
    created(take(&b, "a", &one).await.unwrap());
    assert!(take(&a, "c", &one).await.is_err());
    assert_eq!(a.list().await.unwrap().len(), 2);
    // A version more of a key takes the place of its oldest.
    for files in [&two, &one, &two] {
        let refresh =
            preheat::engines::Capture { refresh: true, ..capture(key(BundleKind::Graph, "a"), &[("vllm", files)]) };
        created(b.capture(refresh).await.unwrap());
        assert!(b.list().await.unwrap().len() <= 2);
    }
    assert!(take(&b, "d", &one).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_announced_count_until_they_have_come_or_not() {
    use preheat::engines::{Begun, Draft, DraftFile};
    let directory = tempfile::tempdir().unwrap();
    let library = library(&directory.path().join("root"), |_| {}).await;
    let (engines, store) = library.engines().await.unwrap();
    engines.limit(Box::new(|_| Some(preheat::base::units::ByteSize(100_000))));
    let draft = |run: &str, size| Draft {
        key: key(BundleKind::Graph, run),
        files: vec![DraftFile {
            path: preheat::model::FilePath::new("vllm/file").unwrap(),
            size,
            mode: 0o644,
            mtime_ns: 1,
        }],
        base: None,
        evidence: preheat::model::Evidence::default(),
        refresh: false,
        in_place: false,
    };
    let begin = async |run: &str, size| engines.begin_capture(library.scope(), draft(run, size)).await;
    let first = begin("a", 30_000).await.unwrap();
    assert!(matches!(first, Begun::Wanted(_)));
    let over = begin("b", 70_001).await.unwrap_err();
    assert_eq!(over.kind(), ErrorKind::NoSpace, "{over}");
    drop(begin("b", 70_000).await.unwrap());
    drop(first);
    drop(begin("b", 100_000).await.unwrap());
    library.close((engines, store)).await.unwrap();
}
