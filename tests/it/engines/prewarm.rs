//! A prewarm with the bundles of engines: they count in what it says of itself.

use std::time::{Duration, Instant};

use preheat::doors::client::{Client, Target};
use preheat::engines::{Library, SignerConfig};
use preheat::model::engine::BundleKind;
use preheat::prewarm::wire::{JobState, PrewarmRequest};

use super::super::engines_daemon::{Node, created};
use super::super::support::engine::{cache, capture, key, put, signer};
use super::super::support::model::shard;

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_bundles_are_bytes_of_the_job() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("shared")).unwrap();
    let (key_file, SignerConfig { name, key: public }) = signer(directory.path(), "ci");
    let origin = format!("[engines]\norigin = \"file://{}/shared\"\n", directory.path().display());
    let publishing = format!("{origin}signing_key_file = \"{}\"\npublish = [\"team-a\"]\n", key_file.display());
    let trusting = format!("{origin}[[engines.signers]]\nname = \"{name}\"\nkey = \"{public}\"\n");
    let one = Node::start(directory.path(), "one", &publishing, &[]);
    let two = Node::start(directory.path(), "two", &trusting, &[]);
    let (files, graph) = (cache(directory.path(), 1), key(BundleKind::Graph, "a"));
    let bundle = created(one.library("team-a").capture(capture(graph.clone(), &[("vllm", &files)])).await.unwrap());
    let pointer = directory.path().join(format!("shared/keys/{}.json", graph.digest()));
    let started = Instant::now();
    while !pointer.exists() {
        assert!(started.elapsed() < Duration::from_secs(20), "it was never published");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let model = directory.path().join("model");
    let weights = shard("w", 1, 1000);
    put(&model.join("model.safetensors"), &weights, 0o644, 1);
    let client = Client::new(Target::Unix(two.daemon.socket.clone()), None);
    let reference = format!("file://{}", model.display());
    let other = key(BundleKind::Graph, "b").digest();
    let engine = vec![graph.digest(), other];
    let request = PrewarmRequest { reference, engine, wait: true, ..PrewarmRequest::default() };
    let job = client.prewarm(&request).await.unwrap();
    assert_eq!(job.state, JobState::Ready, "{job:?}");
    let whole = weights.len() as u64 + bundle.bytes;
    assert_eq!((job.bytes_total, job.bytes_done, job.stage.as_str()), (whole, whole, "done"), "{job:?}");
    assert_eq!((job.engines[0].bytes_done, job.engines[1].bytes_done), (bundle.bytes, 0));
    let estimate = job.estimate.unwrap();
    assert_eq!(estimate.bytes_total, whole);
    assert!(estimate.bytes_missing.disk >= bundle.bytes, "{estimate:?}");
}
