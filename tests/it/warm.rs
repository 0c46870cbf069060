//! The tier `memory` and the keep-warm list, through the built daemon, with pages dropped from outside.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use preheat::doors::client::{Client, Target};
use preheat::prewarm::wire::{JobState, JobView, ModelView, PrewarmRequest, Tier};
use preheat::sys::residency::{drop_cache, resident_bytes};

use super::support::command::{Daemon, fails, preheat};
use super::support::model::{Files, MIB, model, shard, total};
use super::support::web::{Fault, Web};

const SHARD: &str = "model-00001-of-00002.safetensors";

struct Node {
    // Dropped before its directory.
    daemon: Daemon,
    directory: tempfile::TempDir,
}

/// A directory on the disk that the build is on: pages of a tmpfs cannot be dropped.
fn on_disk() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

impl Node {
    /// One that looks often. `prewarm` are lines of that section, and sections after it.
    fn start(webs: &[&Web], prewarm: &str) -> Self {
        let directory = on_disk();
        let allow: Vec<String> = webs.iter().map(|web| format!("\"{},allow_private\"", web.url)).collect();
        let floor = if prewarm.contains("memory_free") { "" } else { "memory_free = \"64MiB\"\n" };
        let config = format!(
            "[origins]\nallow = [{}]\n[store]\nkeep_free = \"64MiB\"\n\
             [transfer]\nretry_attempts = 1\nretry_first = \"10ms\"\nretry_longest = \"50ms\"\n\
             [prewarm]\nmemory_check = \"200ms\"\n{floor}{prewarm}",
            allow.join(", ")
        );
        let file = directory.path().join("config.toml");
        std::fs::write(&file, config).unwrap();
        let daemon = Daemon::start(directory.path(), &["--config", file.to_str().unwrap()]);
        Self { daemon, directory }
    }

    fn client(&self) -> Client {
        Client::new(Target::Http(self.daemon.url.parse().unwrap()), None)
    }

    async fn to_memory(&self, reference: &str, lease_seconds: Option<u64>) -> JobView {
        let request = PrewarmRequest {
            reference: reference.to_owned(),
            tier: Tier::Memory,
            lease_seconds,
            wait: true,
            ..PrewarmRequest::default()
        };
        self.client().prewarm(&request).await.unwrap()
    }

    async fn is_resident(&self, id: &str) -> u64 {
        self.client().job(id).await.unwrap().resident_bytes.unwrap()
    }

    /// Pages of a tree leave memory by another process's hand. Dirty ones do not, so it is waited until they are written.
    async fn drop_pages(&self, tree: &Path) {
        until("its pages can be dropped", async || {
            for file in files(tree) {
                drop_cache(&file);
            }
            resident(tree) < MIB as u64
        })
        .await;
    }

    async fn metric(&self, name: &str) -> u64 {
        let text = reqwest::get(format!("{}/metrics", self.daemon.url)).await.unwrap().text().await.unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} in\n{text}")).parse().unwrap()
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap()
    }
}

fn files(tree: &Path) -> Vec<File> {
    let entries = std::fs::read_dir(tree).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.is_file()).map(|path| File::open(path).unwrap()).collect()
}

fn resident(tree: &Path) -> u64 {
    files(tree).iter().map(|file| resident_bytes(file).unwrap()).sum()
}

#[track_caller]
fn assert_ready(job: &JobView, files: &Files) {
    assert_eq!(job.state, JobState::Ready, "{:?}", job.error);
    assert_eq!(job.resident_bytes, Some(total(files)));
    assert_eq!(resident(job.path.as_ref().unwrap()), total(files), "as counted from outside");
}

async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn what_is_said_to_be_in_memory_is_and_what_has_gone_is_not_said_to_be() {
    preheat::origin::install_tls_provider();
    let files = model(1, 2, 12 * MIB);
    let web = Web::serve(&files).await;
    let node = Node::start(&[&web], "");
    let job = node.to_memory(&web.url, None).await;
    assert_ready(&job, &files);
    let tree = job.path.unwrap();
    node.drop_pages(&tree).await;
    // Older than what is taken for fresh, and two looks later: nobody leases it, so it stays gone.
    tokio::time::sleep(Duration::from_millis(1300)).await;
    assert!(node.is_resident(&job.id).await < MIB as u64, "it is told at the time of asking");
    assert_eq!(node.metric("preheat_rewarmed_bytes_total").await, 0);
    // What is on disk is read from there, hashed and there again.
    let sent = web.sent_of_shards();
    let again = node.to_memory(&format!("{}@{}", web.url, job.revision.unwrap()), None).await;
    assert_ready(&again, &files);
    assert_eq!(web.sent_of_shards(), sent);
}

#[tokio::test]
async fn what_is_leased_is_read_again_for_as_long_as_the_lease_lives() {
    preheat::origin::install_tls_provider();
    let files = model(2, 2, 12 * MIB);
    let web = Web::serve(&files).await;
    let node = Node::start(&[&web], "");
    let job = node.to_memory(&web.url, Some(3600)).await;
    assert_ready(&job, &files);
    let tree = job.path.unwrap();
    node.drop_pages(&tree).await;
    until("it is in memory again", async || resident(&tree) == total(&files)).await;
    until("the metric says so", async || node.metric("preheat_rewarmed_bytes_total").await > 20 * MIB as u64).await;
    until("the job says so", async || node.is_resident(&job.id).await == total(&files)).await;
    until("the gauge says so", async || node.metric("preheat_memory_bytes{which=\"resident\"}").await == total(&files))
        .await;
    // The lease ends.
    let models = node.client().models().await.unwrap();
    let pin = models[0].pins.iter().find(|pin| pin.in_memory).unwrap();
    let url = format!("{}/v1/models/{}/pins/{}", node.daemon.url, models[0].id, pin.id);
    assert_eq!(reqwest::Client::new().delete(&url).send().await.unwrap().status(), 204);
    until("nobody wants it", async || node.metric("preheat_memory_bytes{which=\"wanted\"}").await == 0).await;
    node.drop_pages(&tree).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(resident(&tree) < MIB as u64, "it was read again for nobody");
    // A pin that says so has the same effect.
    let body = "{\"reason\": \"live\", \"in_memory\": true}";
    let url = format!("{}/v1/models/{}/pins/live", node.daemon.url, models[0].id);
    assert_eq!(reqwest::Client::new().put(&url).body(body).send().await.unwrap().status(), 200);
    until("it is in memory again", async || resident(&tree) == total(&files)).await;
}

#[tokio::test]
async fn a_lease_in_memory_outlives_the_daemon() {
    preheat::origin::install_tls_provider();
    let files = model(3, 2, 12 * MIB);
    let web = Web::serve(&files).await;
    let Node { daemon, directory } = Node::start(&[&web], "");
    let node = Node { daemon, directory };
    let job = node.to_memory(&web.url, Some(3600)).await;
    assert_ready(&job, &files);
    let tree = job.path.unwrap();
    until("it is durable", async || node.client().job(&job.id).await.unwrap().durable).await;
    let Node { daemon, directory } = node;
    drop(daemon);
    for file in self::files(&tree) {
        drop_cache(&file);
    }
    assert!(resident(&tree) < MIB as u64);
    let config = directory.path().join("config.toml");
    let daemon = Daemon::start(directory.path(), &["--config", config.to_str().unwrap()]);
    let node = Node { daemon, directory };
    until("it is in memory again", async || resident(&tree) == total(&files)).await;
    assert!(node.client().models().await.unwrap()[0].pins[0].in_memory);
}

#[tokio::test]
async fn what_has_no_room_is_refused_before_a_byte_is_asked_for() {
    preheat::origin::install_tls_provider();
    let files = model(4, 2, 12 * MIB);
    let web = Web::serve(&files).await;
    for (setting, words) in [
        ("memory_max = \"20MiB\"\n", vec!["24", "20 MiB", "prewarm.memory_max"]),
        ("memory_free = \"1000TiB\"\n", vec!["24", "1000 TiB", "prewarm.memory_free"]),
    ] {
        let node = Node::start(&[&web], setting);
        let job = node.to_memory(&web.url, None).await;
        assert_eq!(job.state, JobState::Failed);
        let problem = job.error.unwrap();
        for word in words {
            assert!(problem.detail.contains(word), "{word} in {}", problem.detail);
        }
        assert_eq!((problem.status, web.sent_of_shards()), (507, 0), "{}", problem.detail);
    }
    let node = Node::start(&[&web], "memory_max = \"20MiB\"\n");
    let request = PrewarmRequest { reference: web.url.clone(), wait: true, ..PrewarmRequest::default() };
    assert_eq!(node.client().prewarm(&request).await.unwrap().state, JobState::Ready, "on disk there is room");
}

#[tokio::test]
async fn who_is_not_asked_for_any_more_makes_way_and_who_is_leased_does_not() {
    preheat::origin::install_tls_provider();
    let models = [model(5, 2, 12 * MIB), model(6, 2, 12 * MIB), model(7, 2, 12 * MIB)];
    let mut webs = Vec::new();
    for files in &models {
        webs.push(Web::serve(files).await);
    }
    let node = Node::start(&webs.iter().collect::<Vec<_>>(), "memory_max = \"40MiB\"\n");
    let first = node.to_memory(&webs[0].url, None).await;
    assert_ready(&first, &models[0]);
    until("it can be dropped", async || node.client().job(&first.id).await.unwrap().durable).await;
    let second = node.to_memory(&webs[1].url, Some(3600)).await;
    assert_ready(&second, &models[1]);
    let (idle, leased) = (first.path.unwrap(), second.path.unwrap());
    assert!(resident(&idle) < total(&models[0]), "it had to make way");
    assert!(node.metric("preheat_released_bytes_total").await > 4 * MIB as u64);
    let third = node.to_memory(&webs[2].url, None).await;
    assert_eq!(third.state, JobState::Failed, "two do not fit, and one is leased");
    assert!(third.error.unwrap().detail.contains("prewarm.memory_max"));
    assert_eq!(resident(&leased), total(&models[1]));
}

#[tokio::test]
async fn the_list_is_kept_here_while_its_origin_comes_and_goes_and_moves() {
    preheat::origin::install_tls_provider();
    let files = model(8, 2, 3 * MIB);
    let web = Web::serve(&files).await;
    web.fault(|_| Fault { status: Some(503), ..Fault::default() });
    let list = format!(
        "keep_warm_refresh = \"400ms\"\n\
         [[prewarm.keep_warm]]\nreference = \"{0}\"\n\
         [[prewarm.keep_warm]]\nreference = \"{0}/other\"\ngpu = \"*no such GPU*\"\n",
        web.url
    );
    let node = Node::start(&[&web], &list);
    let models = async || node.client().models().await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(models().await.is_empty());
    web.heal();
    until("it is here", async || models().await.len() == 1).await;
    let leased = |model: &ModelView| {
        model.pins.iter().find(|pin| pin.in_memory && pin.id == "prewarm-memory").and_then(|pin| pin.expires_at)
    };
    until("it is leased in memory", async || models().await.iter().all(|model| leased(model).is_some())).await;
    let tree = models().await[0].path.clone();
    assert_eq!(resident(&tree), total(&files));
    // A lease of 1 s, the shortest there is, goes on being renewed, the origin down or not.
    web.fault(|_| Fault { status: Some(503), ..Fault::default() });
    let asked = web.requests();
    tokio::time::sleep(Duration::from_millis(3000)).await;
    assert!(web.requests() > asked, "it is asked for again and again");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(models().await.iter().filter_map(leased).all(|until| until + 1 >= now), "{:?}", models().await);
    web.heal();
    // The reference moves.
    web.put(SHARD, &shard("layers.1", 99, 3 * MIB));
    until("what it stands for now is here", async || models().await.len() == 2).await;
    let text = reqwest::get(format!("{}/v1/prewarm", node.daemon.url)).await.unwrap().text().await.unwrap();
    let jobs: Vec<JobView> = serde_json::from_str(&text).unwrap();
    assert!(jobs.len() <= 2, "of an entry one job is remembered: {}", jobs.len());
    assert!(jobs.iter().all(|job| !job.reference.contains("other")), "that node has not the GPU");
    assert_eq!(node.log().matches("is not ready").count(), 2, "an outage is told once: {}", node.log());
}

#[test]
fn entries_that_are_wrong_are_named_all_at_once() {
    let directory = on_disk();
    let file = directory.path().join("config.toml");
    std::fs::write(
        &file,
        "[prewarm]\nmemory_check = \"1ms\"\n[[prewarm.keep_warm]]\nreference = \"nothing\"\n\
         [[prewarm.keep_warm]]\nreference = \"hf://org/model\"\n\
         [[prewarm.keep_warm]]\nreference = \"hf://org/model\"\ntire = \"memory\"\n\
         [[prewarm.keep_warm]]\nreference = \"hf://org/model\"\ngpu = \"[\"\n",
    )
    .unwrap();
    let output = preheat()
        .args(["serve", "--listen", "127.0.0.1:0", "--config", file.to_str().unwrap(), "--root"])
        .arg(directory.path().join("store"))
        .output()
        .unwrap();
    fails(&output, 64, &["prewarm.memory_check", "keep_warm[0]", "keep_warm[2]", "tire", "keep_warm[3].gpu"]);
    assert!(!super::support::command::stderr(&output).contains("keep_warm[1]"));
}
