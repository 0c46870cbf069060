//! Bundles by a daemon: who gets whose, what becomes of many at once, and what a kill leaves.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use preheat::base::ErrorKind;
use preheat::doors::client::{Client, DaemonLibrary, Target};
use preheat::engines::{
    AttemptEnd, BundleRef, Capture, Captured, Library, Outcome, Refusal, RunReport, SignerConfig, Standing,
};
use preheat::model::Secret;
use preheat::model::engine::BundleKind;
use preheat::prewarm::wire::{EngineState, EstimateRequest, JobState, PrewarmRequest};

use super::support::command::Daemon;
use super::support::engine::{cache, capture, key, put, signer, tree};
use super::support::s3::S3;

const SOON: Duration = Duration::from_secs(20);

/// A daemon with two teams that have a token each.
pub(crate) struct Node {
    directory: PathBuf,
    pub(crate) daemon: Daemon,
}

impl Node {
    pub(crate) fn start(directory: &Path, name: &str, engines: &str, environment: &[(&str, &str)]) -> Self {
        let directory = directory.join(name);
        std::fs::create_dir_all(&directory).unwrap();
        for team in ["team-a", "team-b"] {
            std::fs::write(directory.join(team), format!("token-of-{team}-0123456789\n")).unwrap();
        }
        std::fs::write(directory.join("node"), "token-of-the-operator-0123\n").unwrap();
        let scope = |team: &str| {
            format!("[[access.scopes]]\nname = \"{team}\"\ntoken_file = \"{}\"\n", directory.join(team).display())
        };
        let config = format!(
            "[server]\ntoken_file = \"{}\"\n{}{}{engines}",
            directory.join("node").display(),
            scope("team-a"),
            scope("team-b")
        );
        std::fs::write(directory.join("config.toml"), config).unwrap();
        preheat::origin::install_tls_provider();
        let file = directory.join("config.toml").display().to_string();
        let daemon = Daemon::start_with(&directory, &["--config", &file], environment);
        Self { directory, daemon }
    }

    pub(crate) fn library(&self, who: &str) -> DaemonLibrary {
        let token = std::fs::read_to_string(self.directory.join(who)).unwrap();
        let url = url::Url::parse(&self.daemon.url).unwrap();
        DaemonLibrary::new(Client::new(Target::Http(url), Some(token.trim().to_owned())))
    }

    /// As the user that runs the tests.
    pub(crate) fn local(&self) -> DaemonLibrary {
        DaemonLibrary::new(Client::new(Target::Unix(self.daemon.socket.clone()), None))
    }

    async fn metric(&self, name: &str) -> String {
        let text = reqwest::get(format!("{}/metrics", self.daemon.url)).await.unwrap().text().await.unwrap();
        text.lines().find(|line| line.starts_with(name)).unwrap_or_default().to_owned()
    }
}

pub(crate) fn created(captured: Captured) -> BundleRef {
    match captured {
        Captured::Created { bundle, .. } => bundle,
        other => panic!("{other:?}"),
    }
}

async fn exact(library: &DaemonLibrary, run: &str) -> Option<BundleRef> {
    library.lookup(&key(BundleKind::Graph, run), SOON).await.unwrap().exact
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_given_what_another_has_captured_unsigned() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path(), "node", "", &[]);
    let root = cache(directory.path(), 1);
    let (a, b, local) = (node.library("team-a"), node.library("team-b"), node.local());
    let bundle = created(a.capture(capture(key(BundleKind::Graph, "a"), &[("vllm", &root)])).await.unwrap());
    assert_eq!(bundle.scope.as_str(), "team-a");
    assert_eq!(exact(&a, "a").await, Some(bundle.clone()));
    for other in [&b, &local, &node.library("node")] {
        let found = other.lookup(&key(BundleKind::Graph, "a"), SOON).await.unwrap();
        assert!(found.exact.is_none() && found.refused.is_empty() && found.nearest.is_empty(), "{found:?}");
        assert!(other.list().await.unwrap().is_empty());
        // Its name opens nothing.
        let into = directory.path().join("stolen");
        assert_eq!(other.restore(&bundle, &into).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(other.show(&bundle.id).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert_eq!(other.begin_attempt(&bundle.id).await.unwrap_err().kind(), ErrorKind::NotFound);
        assert!(other.pack(&bundle.id).await.is_err() && !into.exists());
    }
    // Nor does the pack's name at the door of blobs.
    let pack = a.show(&bundle.id).await.unwrap().document.pack.unwrap().blake3;
    let url = url::Url::parse(&node.daemon.url).unwrap();
    let client = Client::new(Target::Http(url), Some("token-of-team-b-0123456789".to_owned()));
    assert_eq!(client.blob(&pack, 0..1).await.map(drop).unwrap_err().kind(), ErrorKind::NotFound);
    let into = directory.path().join("view");
    let restored = a.restore(&bundle, &into).await.unwrap();
    assert_eq!((restored.files, tree(&into.join("vllm"))), (6, tree(&root)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_of_the_machine_restores_from_the_place_itself_and_by_the_socket() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path(), "node", "", &[]);
    let root = cache(directory.path(), 1);
    let local = node.local();
    let bundle = created(local.capture(capture(key(BundleKind::Graph, "a"), &[("vllm", &root)])).await.unwrap());
    let into = directory.path().join("view");
    local.restore(&bundle, &into).await.unwrap();
    assert_eq!(tree(&into.join("vllm")), tree(&root));
    let mut pack = local.pack(&bundle.id).await.unwrap();
    let bytes = tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        pack.read_to_end(&mut bytes).unwrap();
        bytes
    });
    assert_eq!(bytes.await.unwrap(), tree(&root).into_values().flat_map(|(bytes, ..)| bytes).collect::<Vec<_>>());
    // Once more after the pack has rotted: never a wrong byte, and it is put aside.
    let until = std::time::Instant::now() + SOON;
    let blob = loop {
        let blobs = std::fs::read_dir(node.daemon.root.join("blobs")).unwrap().map(|entry| entry.unwrap().path());
        match blobs.into_iter().find(|blob| blob.metadata().unwrap().len() > 1_000_000) {
            Some(blob) => break blob,
            None => assert!(std::time::Instant::now() < until, "it is never sealed"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    let mut bytes = std::fs::read(&blob).unwrap();
    bytes[500_000] ^= 1;
    std::fs::set_permissions(&blob, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&blob, bytes).unwrap();
    let second = directory.path().join("second");
    assert!(local.restore(&bundle, &second).await.is_err() && !second.exists());
    assert!(exact(&local, "a").await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_starts_at_once_make_one_capture() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path(), "node", "", &[]);
    let library = Arc::new(node.local());
    let roots: Vec<_> = (1..=8).map(|seed| cache(directory.path(), seed)).collect();
    let captures = roots.iter().map(|root| {
        let (library, capture) = (Arc::clone(&library), capture(key(BundleKind::Graph, "a"), &[("vllm", root)]));
        tokio::spawn(async move { library.capture(capture).await.unwrap() })
    });
    let outcomes = futures_util::future::join_all(captures.collect::<Vec<_>>()).await;
    let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
    let count = |wanted: fn(&Captured) -> bool| outcomes.iter().filter(|one| wanted(one)).count();
    assert_eq!(count(|one| matches!(one, Captured::Created { .. })), 1);
    assert_eq!(count(|one| matches!(one, Captured::Existed { .. })), 7);
    assert_eq!(node.metric("preheat_engine_captures_total{which=\"created\"}").await.split(' ').next_back(), Some("1"));
    let bundle = exact(&library, "a").await.unwrap();
    let restores = (0..8).map(|number| {
        let (library, bundle) = (Arc::clone(&library), bundle.clone());
        let into = directory.path().join(format!("view-{number}"));
        tokio::spawn(async move { library.restore(&bundle, &into).await.map(|_| tree(&into)).unwrap() })
    });
    let views = futures_util::future::join_all(restores.collect::<Vec<_>>()).await;
    let views: Vec<_> = views.into_iter().map(Result::unwrap).collect();
    assert!(views.iter().all(|view| *view == views[0]) && views[0].len() == 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_restores_through_a_bucket() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(directory.path().join("s3/bucket")).unwrap();
    let s3 = S3::serve(&directory.path().join("s3")).await;
    let environment = [("AWS_ENDPOINT_URL", s3.url.as_str()), ("AWS_REGION", "us-east-1")];
    let (key_file, SignerConfig { name, key: public }) = signer(directory.path(), "ci");
    let origin = "[engines]\norigin = \"s3://bucket/engines\"\n";
    let publishing = format!("{origin}signing_key_file = \"{}\"\npublish = [\"team-a\"]\n", key_file.display());
    let trusting = format!("{origin}[[engines.signers]]\nname = \"{name}\"\nkey = \"{public}\"\n");
    let one = Node::start(directory.path(), "one", &publishing, &environment);
    let two = Node::start(directory.path(), "two", &trusting, &environment);
    let root = cache(directory.path(), 1);
    // Larger than a frame, so that several come at once.
    put(&root.join("large.so"), &super::support::model::noise(7, 9 << 20), 0o755, 17);
    let bundle =
        created(one.library("team-a").capture(capture(key(BundleKind::Graph, "a"), &[("vllm", &root)])).await.unwrap());
    assert_eq!(bundle.scope.as_str(), "node");
    // What team-b captures stays theirs.
    created(one.library("team-b").capture(capture(key(BundleKind::Graph, "b"), &[("vllm", &root)])).await.unwrap());
    let until = std::time::Instant::now() + SOON;
    let found = loop {
        match exact(&two.library("team-b"), "a").await {
            Some(found) => break found,
            None => assert!(std::time::Instant::now() < until, "it was never published"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!((found.id, found.signed_by.as_deref()), (bundle.id, Some("ci")));
    let into = directory.path().join("view");
    two.library("team-b").restore(&found, &into).await.unwrap();
    assert_eq!(tree(&into.join("vllm")), tree(&root));
    assert!(exact(&two.library("team-b"), "b").await.is_none());
    assert!(exact(&two.library("team-a"), "a").await.is_some(), "it is everybody's on that node");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prewarm_brings_the_engine_with_the_model_and_an_estimate_counts_it() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("shared")).unwrap();
    let (key_file, SignerConfig { name, key: public }) = signer(directory.path(), "ci");
    let origin = format!("[engines]\norigin = \"file://{}/shared\"\n", directory.path().display());
    let publishing = format!("{origin}signing_key_file = \"{}\"\npublish = [\"team-a\"]\n", key_file.display());
    let trusting = format!("{origin}[[engines.signers]]\nname = \"{name}\"\nkey = \"{public}\"\n");
    let one = Node::start(directory.path(), "one", &publishing, &[]);
    let two = Node::start(directory.path(), "two", &trusting, &[]);
    let root = cache(directory.path(), 1);
    let graph = key(BundleKind::Graph, "a");
    let bundle = created(one.library("team-a").capture(capture(graph.clone(), &[("vllm", &root)])).await.unwrap());
    let pointer = directory.path().join(format!("shared/keys/{}.json", graph.digest()));
    let until = std::time::Instant::now() + SOON;
    while !pointer.exists() {
        assert!(std::time::Instant::now() < until, "it was never published");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let model = directory.path().join("model");
    put(&model.join("config.json"), b"{}", 0o644, 1);
    put(&model.join("model.safetensors"), &super::support::model::shard("w", 1, 1000), 0o644, 1);
    let reference = format!("file://{}", model.display());
    let (wanted, other) = (graph.digest(), key(BundleKind::Graph, "b").digest());
    // As the daemon's own user: the model is a directory of the machine.
    let client = Client::new(Target::Unix(two.daemon.socket.clone()), None);
    let plain = EstimateRequest { reference: reference.clone(), ..EstimateRequest::default() };
    let with = EstimateRequest { engine: vec![wanted, other], ..plain.clone() };
    let (plain, with) = (client.estimate(&plain).await.unwrap(), client.estimate(&with).await.unwrap());
    assert_eq!(with.bytes_missing.disk, plain.bytes_missing.disk + bundle.bytes);
    let request = PrewarmRequest { reference, engine: vec![wanted, other], wait: true, ..PrewarmRequest::default() };
    let job = client.prewarm(&request).await.unwrap();
    assert_eq!(job.state, JobState::Ready, "{job:?}");
    let states: Vec<_> = job.engines.iter().map(|engine| (engine.key, engine.state, engine.bytes)).collect();
    assert_eq!(states, [(wanted, EngineState::Ready, bundle.bytes), (other, EngineState::Absent, 0)]);
    let again = EstimateRequest { reference: request.reference, engine: vec![wanted], ..EstimateRequest::default() };
    assert_eq!(client.estimate(&again).await.unwrap().bytes_missing.disk, 0);
    // It is there for who starts: without the origin, and whoever it is.
    std::fs::remove_dir_all(directory.path().join("shared")).unwrap();
    let found = two.library("team-b").lookup(&graph, Duration::ZERO).await.unwrap().exact.unwrap();
    assert_eq!(found.id, bundle.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_start_tells_is_remembered_and_counted() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path(), "node", "", &[]);
    let root = cache(directory.path(), 1);
    let a = node.library("team-a");
    let bundle = created(a.capture(capture(key(BundleKind::Graph, "a"), &[("vllm", &root)])).await.unwrap());
    let attempt = a.begin_attempt(&bundle.id).await.unwrap();
    assert_eq!(exact(&a, "a").await.unwrap().unfinished.len(), 1);
    a.end_attempt(&bundle.id, &attempt, AttemptEnd::Suspect { reason: "exit 1".to_owned() }).await.unwrap();
    assert!(matches!(exact(&a, "a").await.unwrap().standing, Standing::Suspect { .. }));
    let attempt = a.begin_attempt(&bundle.id).await.unwrap();
    a.end_attempt(&bundle.id, &attempt, AttemptEnd::Quarantine { reason: "exit 1".to_owned() }).await.unwrap();
    let found = a.lookup(&key(BundleKind::Graph, "a"), SOON).await.unwrap();
    assert!(matches!(found.refused[0].why, Refusal::Quarantined { .. }));
    let report = RunReport { kind: BundleKind::Graph, outcome: Outcome::Hit, bytes: 7, saved_ms: 1_500 };
    a.report(&report).await.unwrap();
    for (name, value) in [
        ("preheat_engine_runs_total{which=\"hit\"}", "1"),
        ("preheat_engine_saved_milliseconds_total", "1500"),
        ("preheat_engine_restored_bytes_total", "7"),
        ("preheat_engine_quarantines_total", "1"),
    ] {
        assert_eq!(node.metric(name).await.split(' ').next_back(), Some(value), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_does_not_reach_the_node() {
    let directory = tempfile::tempdir().unwrap();
    let node = Node::start(directory.path(), "node", "", &[]);
    let root = cache(directory.path(), 1);
    let a = node.library("team-a");
    let secrets = vec![("HF_TOKEN".to_owned(), Secret::new("hf_0123456789".to_owned()))];
    let leaking = directory.path().join("leaking");
    put(&leaking.join("a"), &[7; 3_000_000], 0o644, 1);
    put(&leaking.join("z"), b"hf_0123456789", 0o644, 1);
    let leak = Capture { secrets, ..capture(key(BundleKind::Graph, "a"), &[("vllm", &leaking)]) };
    let error = a.capture(leak).await.unwrap_err().to_string();
    assert!(error.contains("$HF_TOKEN") && !error.contains("hf_0123456789"), "{error}");
    assert_eq!(std::fs::read_dir(node.daemon.root.join("partials")).unwrap().count(), 0);
    created(a.capture(capture(key(BundleKind::Graph, "a"), &[("vllm", &root)])).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_killed_in_a_capture_has_all_of_it_or_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let root = cache(directory.path(), 1);
    for number in 0..8 {
        put(&root.join(format!("large/{number}.so")), &super::support::model::noise(number, 4 << 20), 0o755, number);
    }
    let whole = tree(&root);
    let (mut before, mut after) = (0, 0);
    for delay in [0, 10, 30, 60, 100, 150, 250, 400, 800] {
        let place = directory.path().join(format!("after-{delay}"));
        let node = Node::start(&place, "node", "", &[]);
        let library = node.library("team-a");
        let taken = capture(key(BundleKind::Graph, "a"), &[("vllm", &root)]);
        let capturing = tokio::spawn(async move { library.capture(taken).await.is_ok() });
        tokio::time::sleep(Duration::from_millis(delay)).await;
        // SIGKILL.
        drop(node);
        let told = capturing.await.unwrap();
        let node = Node::start(&place, "node", "", &[]);
        let a = node.library("team-a");
        let found = exact(&a, "a").await;
        assert!(found.is_some() || !told, "what was acknowledged is there on the same boot: {delay} ms");
        if let Some(found) = found {
            after += 1;
            a.restore(&found, &place.join("view")).await.unwrap();
            assert_eq!(tree(&place.join("view/vllm")), whole);
        } else {
            before += 1;
            assert!(a.list().await.unwrap().is_empty());
            created(a.capture(capture(key(BundleKind::Graph, "a"), &[("vllm", &root)])).await.unwrap());
        }
        drop(node);
        let verified = super::support::command::run(&[
            "verify",
            "--root",
            &place.join("node/store").display().to_string(),
            "--json",
        ]);
        let verified = super::support::command::json(&verified);
        assert_eq!(verified["faults"].as_array().map(Vec::len), Some(0), "{verified}");
    }
    assert!(before > 0, "no kill came before the end: {before} {after}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_survives_the_daemon_that_took_it_in() {
    let directory = tempfile::tempdir().unwrap();
    let root = cache(directory.path(), 1);
    let node = Node::start(directory.path(), "node", "", &[]);
    let bundle = created(
        node.library("team-a").capture(capture(key(BundleKind::Graph, "a"), &[("vllm", &root)])).await.unwrap(),
    );
    // Killed at once: what was readable is found again on the same boot.
    drop(node);
    let node = Node::start(directory.path(), "node", "", &[]);
    let a = node.library("team-a");
    assert_eq!(exact(&a, "a").await.map(|found| found.id), Some(bundle.id));
    let into = directory.path().join("view");
    a.restore(&bundle, &into).await.unwrap();
    assert_eq!(tree(&into.join("vllm")), tree(&root));
}
