//! Who may read what, as README.md states it: every kind of caller at every door, for public and private models,
//! with the origin up, down, and of another mind.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use futures_util::TryStreamExt;
use preheat::digest::Hash;
use preheat::doors::client::{Client, ClientError, Target};
use preheat::model::{Credential, Secret};
use preheat::prewarm::wire::{JobState, PrewarmRequest};

use super::support::command::Daemon;
use super::support::model::{Files, MIB, manifest, model};
use super::support::secret;
use super::support::web::{Fault, Web};

const SHARD: &str = "model-00001-of-00002.safetensors";
const KEY: &str = "the-key-of-team-a";

/// How long a proof counts in these tests.
const FRESH: Duration = Duration::from_secs(2);

struct Place {
    web: Web,
    files: Files,
}

impl Place {
    async fn new(seed: u64) -> Self {
        let files = model(seed, 2, 2 * MIB);
        let web = Web::serve(&files).await;
        web.put("preheat-manifest.json", &manifest(&files).to_json());
        Self { web, files }
    }

    fn digest(&self) -> Hash {
        manifest(&self.files).digest()
    }

    fn shard(&self) -> Hash {
        Hash::of(&self.files[SHARD])
    }

    /// With its revision, so that what is here needs no origin.
    fn reference(&self) -> String {
        format!("{}@manifest:{}", self.web.url, self.digest())
    }
}

struct Node {
    directory: tempfile::TempDir,
    daemon: Daemon,
}

impl Node {
    fn start(webs: &[&Web], more: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Other users have to reach the trees in it.
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        Self::start_in(directory, webs, more)
    }

    fn start_in(directory: tempfile::TempDir, webs: &[&Web], more: &str) -> Self {
        let put = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let allow: Vec<String> = webs.iter().map(|web| format!("\"{},allow_private\"", web.url)).collect();
        let config = format!(
            "[server]\ntoken_file = {:?}\n[origins]\nallow = [{}]\n\
             [transfer]\nretry_attempts = 2\nretry_first = \"10ms\"\nretry_longest = \"50ms\"\n\
             [access]\nrevalidate_after = \"{}s\"\n{more}\
             [[access.scopes]]\nname = \"team-a\"\ntoken_file = {:?}\nuids = [4001]\nbytes_max = \"1GiB\"\n\
             [[access.scopes]]\nname = \"team-b\"\ntoken_file = {:?}\nuids = [4002]\n",
            put("operator", &secret("token-of-the-operator")),
            allow.join(", "),
            FRESH.as_secs(),
            put("a", &secret("the-token-of-team-a")),
            put("b", &secret("the-token-of-team-b")),
        );
        let config = put("config.toml", &config);
        let daemon = Daemon::start(directory.path(), &["--config", &config]);
        Self { directory, daemon }
    }

    fn client(&self, token: Option<&str>, credential: Option<&str>) -> Client {
        let target = Target::Http(self.daemon.url.parse().unwrap());
        let credential = credential.map(|text| Credential::Bearer(Secret::new(secret(text))));
        Client::new(target, token.map(secret)).with_credential(credential)
    }
}

/// A caller: what they send, and as which user they look at trees.
struct Who {
    name: &'static str,
    token: Option<&'static str>,
    credential: Option<&'static str>,
    uid: u32,
}

const fn who(name: &'static str, token: Option<&'static str>, credential: Option<&'static str>, uid: u32) -> Who {
    Who { name, token, credential, uid }
}

fn word<T>(outcome: Result<T, ClientError>) -> String {
    match outcome {
        Ok(_) => "ok".to_owned(),
        Err(ClientError::Refused(problem)) => problem.status.to_string(),
        Err(error) => error.to_string(),
    }
}

async fn fetch(client: &Client, reference: &str) -> String {
    let request = PrewarmRequest { reference: reference.to_owned(), wait: true, ..PrewarmRequest::default() };
    match client.prewarm(&request).await {
        Ok(job) if job.state == JobState::Ready => "ok".to_owned(),
        Ok(job) => job.error.and_then(|problem| problem.kind).map_or_else(|| "?".to_owned(), |kind| kind.to_string()),
        Err(error) => word::<()>(Err(error)),
    }
}

async fn blob(client: &Client, place: &Place) -> String {
    let outcome = async {
        let body = client.blob(&place.shard(), 5..15).await?;
        body.try_collect::<Vec<_>>().await.map(|pieces| pieces.concat())
    };
    match outcome.await {
        Ok(bytes) if bytes == place.files[SHARD][5..15] => "ok".to_owned(),
        Ok(_) => "wrong bytes".to_owned(),
        Err(error) => word::<()>(Err(error)),
    }
}

/// Whether a user can read a file of a tree. Only root can try that as somebody else; others go by the mode.
fn tree(path: &Path, uid: u32) -> String {
    if !path.exists() {
        return "gone".to_owned();
    }
    let open = if rustix::process::geteuid().is_root() {
        let mut cat = Command::new("cat");
        cat.arg(path.join("config.json")).stdout(Stdio::null()).stderr(Stdio::null()).uid(uid).gid(uid);
        cat.status().unwrap().success()
    } else {
        let mode = path.parent().unwrap().metadata().unwrap().permissions().mode();
        mode & 0o005 == 0o005 || uid == 4001
    };
    if open { "ok" } else { "closed" }.to_owned()
}

/// Fetch, blob range, manifest, tree, job: in one line.
async fn row(node: &Node, who: &Who, place: &Place, reference: &str, path: &Path, job: &str) -> String {
    let client = node.client(who.token, who.credential);
    let fetched = fetch(&client, reference).await;
    let blob = blob(&client, place).await;
    let manifest = word(client.manifest(&place.digest()).await);
    format!("{fetched} {blob} {manifest} {} {}", tree(path, who.uid), word(client.job(job).await))
}

/// Whoever is let in first; the tree and the job are what the others are then held against.
async fn bring(node: &Node, place: &Place, credential: Option<&str>) -> (PathBuf, String) {
    let client = node.client(Some("the-token-of-team-a"), credential);
    let request = PrewarmRequest { reference: place.reference(), wait: true, ..PrewarmRequest::default() };
    let job = client.prewarm(&request).await.unwrap();
    assert_eq!(job.state, JobState::Ready, "{:?}", job.error);
    (job.path.unwrap(), job.id)
}

#[tokio::test]
async fn every_caller_at_every_door() {
    let (public, private) = (Place::new(1).await, Place::new(2).await);
    private.web.close_to_all_but(&[KEY]);
    // An origin of team B's own, which says that it has team A's files, and has not.
    let mut lies = private.files.clone();
    lies.values_mut().for_each(|bytes| bytes.reverse());
    let liar = Web::serve(&lies).await;
    liar.put("preheat-manifest.json", &manifest(&private.files).to_json());
    let node = Node::start(&[&public.web, &private.web, &liar], "");

    let (public_tree, public_job) = bring(&node, &public, None).await;
    let (private_tree, private_job) = bring(&node, &private, Some(KEY)).await;
    assert!(public_tree.starts_with(node.daemon.root.join("trees/default")), "{}", public_tree.display());
    assert!(private_tree.starts_with(node.daemon.root.join("trees/team-a")), "{}", private_tree.display());

    let own = who("own", Some("the-token-of-team-a"), Some(KEY), 4001);
    let expired = who("expired", Some("the-token-of-team-a"), None, 4001);
    let other = who("other scope", Some("the-token-of-team-b"), None, 4002);
    let wrong = who("wrong credential", Some("the-token-of-team-b"), Some("not the key"), 4002);
    let none = who("none", None, None, 4003);
    let forged = who("wrong token", Some("token-of-nobody-at-all"), Some(KEY), 4003);
    let guessed = who("guessed digest", Some("the-token-of-team-b"), None, 4002);

    let mut cells = 0;
    for (who, of_public, of_private) in [
        (&own, "ok ok ok ok ok", "ok ok ok ok ok"),
        (&other, "ok ok ok ok 404", "denied 404 404 closed 404"),
        (&wrong, "ok ok ok ok 404", "denied 404 404 closed 404"),
        (&none, "401 401 401 ok 401", "401 401 401 closed 401"),
        (&forged, "401 401 401 ok 401", "401 401 401 closed 401"),
    ] {
        for (place, path, job, expected) in
            [(&public, &public_tree, &public_job, of_public), (&private, &private_tree, &private_job, of_private)]
        {
            let found = row(&node, who, place, &place.reference(), path, job).await;
            assert_eq!(found, expected, "{}, {}", who.name, place.web.url);
            cells += 5;
        }
    }
    // What is asked of the liar is not given from team A's store, and what it sends is not what it declares.
    let reference = format!("{}@manifest:{}", liar.url, private.digest());
    let found = row(&node, &guessed, &private, &reference, &private_tree, &private_job).await;
    assert_eq!(found, "corrupt 404 404 closed 404", "guessed digest");
    assert!(liar.sent_of_shards() > 0, "its bytes were asked for");
    let found = row(&node, &guessed, &public, &public.reference(), &public_tree, &public_job).await;
    assert_eq!(found, "ok ok ok ok 404", "guessed digest, public");
    // The list shows nothing of others.
    let models = node.client(Some("the-token-of-team-b"), None).models().await.unwrap();
    assert!(models.iter().all(|model| model.manifest == public.digest()), "{models:?}");
    cells += 10;

    // A proof lapses. The tree stays what it was: a process may have it open.
    tokio::time::sleep(FRESH + Duration::from_millis(300)).await;
    let sent = private.web.sent_of_shards();
    let found = row(&node, &expired, &private, &private.reference(), &private_tree, &private_job).await;
    assert_eq!(found, "denied 403 403 ok ok", "expired");
    let found = row(&node, &expired, &public, &public.reference(), &public_tree, &public_job).await;
    assert_eq!(found, "ok ok ok ok ok", "expired, public");
    // The same doors with the credential prove it anew, one at a time.
    assert_eq!(blob(&node.client(own.token, own.credential), &private).await, "ok");
    assert_eq!(blob(&node.client(own.token, None), &private).await, "ok", "proved a moment ago");
    cells += 10;

    // Down: who has proved access keeps it for the stated time, who has not gets in no more than before.
    tokio::time::sleep(FRESH + Duration::from_millis(300)).await;
    private.web.fault(|_| Fault { status: Some(503), ..Fault::default() });
    let found = row(&node, &own, &private, &private.reference(), &private_tree, &private_job).await;
    assert_eq!(found, "ok ok ok ok ok", "own, origin down");
    let found = row(&node, &other, &private, &private.reference(), &private_tree, &private_job).await;
    assert_eq!(found, "denied 404 404 closed 404", "other scope, origin down");
    private.web.heal();
    cells += 10;

    // Revoked: noticed at the next proof, and then nothing is left open.
    tokio::time::sleep(FRESH + Duration::from_millis(300)).await;
    private.web.close_to_all_but(&["another key"]);
    let client = node.client(own.token, own.credential);
    assert_eq!(fetch(&client, &private.reference()).await, "denied");
    for _ in 0..50 {
        if !private_tree.exists() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let found = row(&node, &own, &private, &private.reference(), &private_tree, &private_job).await;
    assert_eq!(found, "denied 403 403 gone ok", "revoked");
    let found = row(&node, &own, &public, &public.reference(), &public_tree, &public_job).await;
    assert_eq!(found, "ok ok ok ok ok", "revoked, public");
    cells += 10;
    // Let in again, nothing is fetched again.
    private.web.close_to_all_but(&[KEY]);
    assert_eq!(fetch(&client, &private.reference()).await, "ok");
    assert_eq!(tree(&private_tree, own.uid), "ok");
    assert_eq!(private.web.sent_of_shards(), sent);
    assert!(cells >= 60, "{cells}");
}

#[tokio::test]
async fn a_restart_finds_the_job_and_not_the_credential() {
    let (private, public) = (Place::new(4).await, Place::new(5).await);
    private.web.close_to_all_but(&[KEY]);
    let slowly = |_: &super::support::web::Asked| Fault { drip: Duration::from_millis(200), ..Fault::default() };
    private.web.fault(slowly);
    public.web.fault(slowly);
    let mut node = Node::start(&[&private.web, &public.web], "");
    let ask = |reference: String| PrewarmRequest { reference, ..PrewarmRequest::default() };
    let client = node.client(Some("the-token-of-team-a"), Some(KEY));
    let closed = client.prewarm(&ask(private.reference())).await.unwrap();
    let open = node.client(Some("the-token-of-team-a"), None).prewarm(&ask(public.reference())).await.unwrap();
    while private.web.sent_of_shards() == 0 || public.web.sent_of_shards() == 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    node.daemon.process.kill().unwrap();
    node.daemon.process.wait().unwrap();
    private.web.heal();
    public.web.heal();
    let jobs = node.daemon.root.join("jobs");
    for entry in std::fs::read_dir(&jobs).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!text.contains(KEY), "{text}");
    }
    let Node { directory, daemon } = node;
    drop(daemon);
    let node = Node::start_in(directory, &[&private.web, &public.web], "");
    let client = node.client(Some("the-token-of-team-a"), None);
    let found = client.job(&closed.id).await.unwrap();
    assert_eq!(found.state, JobState::NeedsCredentials, "{found:?}");
    assert!(found.error.unwrap().detail.contains("ask again"));
    for _ in 0..200 {
        if client.job(&open.id).await.unwrap().state == JobState::Ready {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(client.job(&open.id).await.unwrap().state, JobState::Ready, "it goes on by itself");
    // With a credential it is a new job, and the old one is forgotten.
    assert_eq!(fetch(&node.client(Some("the-token-of-team-a"), Some(KEY)), &private.reference()).await, "ok");
    assert_eq!(word(client.job(&closed.id).await), "404");
    assert_eq!(std::fs::read_dir(node.directory.path().join("store/jobs")).unwrap().count(), 0);
}

#[tokio::test]
async fn one_credential_is_not_shown_to_two_origins() {
    let (one, two) = (Place::new(8).await, Place::new(9).await);
    let node = Node::start(&[&one.web, &two.web], "");
    let ask = async |credential, references: &[String]| {
        let request = PrewarmRequest { references: references.to_vec(), wait: true, ..PrewarmRequest::default() };
        word(node.client(Some("the-token-of-team-a"), credential).prewarm(&request).await)
    };
    let both = [one.reference(), two.reference()];
    assert_eq!(ask(Some(KEY), &both).await, "400");
    assert_eq!(one.web.sent_of_shards() + two.web.sent_of_shards(), 0, "neither was tried");
    assert_eq!(ask(Some(KEY), &both[..1]).await, "ok");
    assert_eq!(ask(None, &both).await, "ok");
}

#[tokio::test]
async fn a_scope_is_held_to_its_bytes_and_its_rate() {
    let (one, two) = (Place::new(6).await, Place::new(7).await);
    let node = Node::start(&[&one.web, &two.web], "bytes_max = \"5MiB\"\n");
    // Team B has the default of 5 MiB, team A its own.
    let client = node.client(Some("the-token-of-team-b"), None);
    assert_eq!(fetch(&client, &one.reference()).await, "ok");
    assert_eq!(fetch(&client, &two.reference()).await, "no_space");
    assert_eq!(fetch(&client, &one.reference()).await, "ok", "what is here costs nothing more");
    assert_eq!(fetch(&node.client(Some("the-token-of-team-a"), None), &two.reference()).await, "ok");
    let limited = Node::start(&[], "requests_per_second = 1\n");
    let begun = std::time::Instant::now();
    let mut refused = 0;
    for _ in 0..30 {
        let answer = word(limited.client(Some("the-token-of-team-b"), None).models().await);
        refused += usize::from(answer == "429");
    }
    // One to begin with and one a second, however slow this machine is.
    let most = 2 + begun.elapsed().as_secs();
    assert!(30 - refused as u64 <= most, "{refused} of 30 refused in {:?}", begun.elapsed());
    assert_eq!(
        word(limited.client(Some("the-token-of-team-a"), None).models().await),
        "ok",
        "another scope is not slowed"
    );
    assert_eq!(
        word(
            node.client(Some("token-of-the-operator"), None).gc(preheat::prewarm::wire::GcRequest { all: false }).await
        ),
        "ok"
    );
    let refusal =
        node.client(Some("the-token-of-team-a"), None).gc(preheat::prewarm::wire::GcRequest { all: true }).await;
    assert_eq!(word(refusal), "403");
}
