//! Whose word is taken: of callers that cannot be told apart, of daemons that cannot be, and of who holds a key.

use std::path::Path;
use std::time::Duration;

use preheat::base::ErrorKind;
use preheat::doors::client::{Client, DaemonLibrary, Target};
use preheat::engines::{AttemptEnd, Captured, Config, Library, Refusal, SignerConfig, Standing, Trust};
use preheat::model::engine::BundleKind;

use super::support::command::{Daemon, preheat, stderr};
use super::support::engine::{cache, capture, key, signer, tree};

const SOON: Duration = Duration::from_secs(20);

fn unix(daemon: &Daemon) -> DaemonLibrary {
    DaemonLibrary::new(Client::new(Target::Unix(daemon.socket.clone()), None))
}

fn http(url: &str, token: Option<&str>) -> DaemonLibrary {
    preheat::origin::install_tls_provider();
    DaemonLibrary::new(Client::new(Target::Http(url.parse().unwrap()), token.map(str::to_owned)))
}

/// A daemon that signs what its own user captures.
fn signing(directory: &Path, token: bool) -> (Daemon, SignerConfig) {
    let (key_file, signer) = signer(directory, "ci");
    let uid = rustix::process::geteuid().as_raw();
    std::fs::write(directory.join("token"), "token-of-the-operator-0123\n").unwrap();
    let server = format!("[server]\ntoken_file = \"{}\"\n", directory.join("token").display());
    let config = format!(
        "{}[engines]\nsigning_key_file = \"{}\"\npublish = [\"uid-{uid}\"]\n",
        if token { &server } else { "" },
        key_file.display()
    );
    std::fs::write(directory.join("config.toml"), config).unwrap();
    let daemon = Daemon::start(directory, &["--config", &directory.join("config.toml").display().to_string()]);
    (daemon, signer)
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_without_a_token_is_nobody() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), &[]);
    let root = cache(directory.path(), 1);
    let graph = key(BundleKind::Graph, "a");
    // Any user of the machine could have sent it, and any could be given it.
    let error = http(&daemon.url, None).capture(capture(graph.clone(), &[("vllm", &root)])).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Denied && error.to_string().contains("socket"), "{error}");
    unix(&daemon).capture(capture(graph.clone(), &[("vllm", &root)])).await.unwrap();
    let found = http(&daemon.url, None).lookup(&graph, SOON).await.unwrap();
    assert!(found.exact.is_none() && found.refused.is_empty() && found.nearest.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_without_a_token_speaks_for_nobody_else() {
    let directory = tempfile::tempdir().unwrap();
    let (daemon, _) = signing(directory.path(), false);
    let root = cache(directory.path(), 1);
    let graph = key(BundleKind::Graph, "a");
    let captured = unix(&daemon).capture(capture(graph.clone(), &[("vllm", &root)])).await.unwrap();
    let Captured::Created { bundle, .. } = captured else { panic!("{captured:?}") };
    assert_eq!(bundle.scope.as_str(), "node");
    let anybody = http(&daemon.url, None);
    let attempt = anybody.begin_attempt(&bundle.id).await.unwrap();
    anybody.end_attempt(&bundle.id, &attempt, AttemptEnd::Quarantine { reason: "so".to_owned() }).await.unwrap();
    let found = anybody.lookup(&graph, SOON).await.unwrap();
    assert!(matches!(found.refused[0].why, Refusal::Quarantined { .. }));
    let found = unix(&daemon).lookup(&graph, SOON).await.unwrap().exact;
    assert_eq!(found.map(|bundle| bundle.standing), Some(Standing::Clean));
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_network_a_daemons_word_is_not_enough() {
    let directory = tempfile::tempdir().unwrap();
    let (daemon, signer) = signing(directory.path(), true);
    let root = cache(directory.path(), 1);
    let graph = key(BundleKind::Graph, "a");
    unix(&daemon).capture(capture(graph.clone(), &[("vllm", &root)])).await.unwrap();
    // The same daemon at an address that is not loopback's.
    let url = daemon.url.replace("127.0.0.1", "0.0.0.0");
    let far = || http(&url, Some("token-of-the-operator-0123"));
    let bundle = far().lookup(&graph, SOON).await.unwrap().exact.unwrap();
    let into = directory.path().join("view");
    let error = far().restore(&bundle, &into).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Denied && !into.exists(), "{error}");
    for says in ["engines.signers", "does not trust", "Unix socket"] {
        assert!(error.to_string().contains(says), "{says}: {error}");
    }
    let trust = Trust::new(&Config { signers: vec![signer], ..Config::default() }).unwrap();
    far().with_trust(trust.clone()).restore(&bundle, &into).await.unwrap();
    assert_eq!(tree(&into.join("vllm")), tree(&root));
    // What nobody has signed goes over no network, whoever asks.
    let unsigned = far().capture(capture(key(BundleKind::Graph, "b"), &[("vllm", &root)])).await.unwrap();
    let Captured::Created { bundle, .. } = unsigned else { panic!("{unsigned:?}") };
    let error = far().with_trust(trust).restore(&bundle, &directory.path().join("b")).await.unwrap_err();
    assert!(error.to_string().contains("not signed"), "{error}");
    // On this machine the kernel says who listens.
    let near = http(&daemon.url, Some("token-of-the-operator-0123"));
    near.restore(&bundle, &directory.path().join("c")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_has_so_many_captures_under_way_and_waits_for_more() {
    let directory = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(directory.path(), &[]);
    let root = cache(directory.path(), 1);
    let before = std::fs::read_dir(daemon.root.join("partials")).unwrap().count();
    let client = reqwest_over(&daemon);
    let gathered = preheat::engines::gather(&[preheat::engines::CaptureRoot { name: "vllm".to_owned(), path: root }]);
    let files: Vec<serde_json::Value> = (gathered.unwrap().files.iter())
        .map(|file| {
            let facts = &file.facts;
            serde_json::json!({"path": file.path.as_str(), "size": 1_u64 << 30, "mode": facts.mode, "mtime_ns": facts.mtime_ns})
        })
        .collect();
    for number in 0..5 {
        let draft = serde_json::json!({"key": key(BundleKind::Graph, &number.to_string()), "files": files});
        let answer = client.post("http://localhost/v1/engines").json(&draft).send().await.unwrap();
        // 6 GiB each, and no room is made for a word.
        assert_eq!(answer.status().as_u16(), if number < 4 { 202 } else { 503 }, "{number}");
    }
    assert_eq!(std::fs::read_dir(daemon.root.join("partials")).unwrap().count(), before);
}

fn reqwest_over(daemon: &Daemon) -> reqwest::Client {
    preheat::origin::install_tls_provider();
    reqwest::Client::builder().unix_socket(daemon.socket.clone()).build().unwrap()
}

#[test]
fn a_start_signs_nothing_unless_it_is_told_to() {
    let directory = tempfile::tempdir().unwrap();
    let (key_file, signer) = signer(directory.path(), "ci");
    let at = |name: &str| directory.path().join(name).display().to_string();
    let uid = rustix::process::geteuid().as_raw();
    let config = format!(
        "[engines]\nsigning_key_file = \"{}\"\npublish = [\"uid-{uid}\"]\n[[engines.signers]]\nname = \"ci\"\nkey = \"{}\"\n",
        key_file.display(),
        signer.key
    );
    std::fs::write(at("config.toml"), config).unwrap();
    for (sign, more) in [(false, &[][..]), (true, &["--sign"][..])] {
        let root = at(&format!("store-{sign}"));
        let script = format!("mkdir -p {0} && echo x > {0}/a.so", at("cache"));
        let output = preheat()
            .args([
                "run",
                "--engine",
                "generic-dir",
                "--settle",
                "50ms",
                "--root",
                &root,
                "--config",
                &at("config.toml"),
            ])
            .args(["--cache-dir", &format!("c={}", at("cache")), "--fresh"])
            .args(more)
            .args(["--", "/bin/sh", "-c", &script])
            .env("HOME", directory.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!(stderr(&output).contains("nothing is signed"), !sign, "{}", stderr(&output));
        let list = preheat().args(["engine", "list", "--json", "--root", &root]).output().unwrap();
        let list = super::support::command::json(&list);
        assert_eq!(list[0]["bundle"]["signer"].is_string(), sign, "{list}");
    }
}
