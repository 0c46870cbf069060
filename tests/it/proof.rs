//! Models whose origin publishes outboards: every group is proved as it arrives, and a wrong one costs itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use preheat::base::ErrorKind;
use preheat::base::units::ByteSize;
use preheat::model::FilePath;
use preheat::transfer::Config;

use super::support::model::{Files, MIB, manifest, model, total, write};
use super::support::node::{Node, config};
use super::support::web::{Fault, Web};

const SHARD: &str = "model-00001-of-00002.safetensors";
const LARGE: usize = 24 * MIB;
/// The part of [`config`] is a single group; here it is the default.
const PART: u64 = 16 * MIB as u64;

/// The chaining values of the groups, as the `blake3` crate's own subtree interface has them.
fn outboard(bytes: &[u8]) -> Vec<u8> {
    use blake3::hazmat::HasherExt;
    let group = |(number, group): (usize, &[u8])| {
        blake3::Hasher::new().set_input_offset((number * MIB) as u64).update(group).finalize_non_root()
    };
    bytes.chunks(MIB).enumerate().flat_map(group).collect()
}

fn outboard_of(bytes: &[u8]) -> String {
    format!("preheat-outboards/{}", blake3::hash(bytes))
}

/// A web server with what a publisher puts beside the files.
async fn published(files: &Files) -> Web {
    let web = Web::serve(files).await;
    let manifest = manifest(files).with_outboards(FilePath::new("preheat-outboards").unwrap());
    web.put("preheat-manifest.json", &manifest.to_json());
    for bytes in files.values().filter(|bytes| bytes.len() > MIB) {
        web.put(&outboard_of(bytes), &outboard(bytes));
    }
    web
}

fn node() -> Node {
    Node::with(Config { part_bytes: ByteSize(PART), ..config() }, |_| {})
}

/// Inverts the byte at `at` of the first shard in the first `answers` that have it.
fn flip(web: &Web, at: u64, answers: usize) {
    let flips = Arc::new(AtomicUsize::new(0));
    let group = at / MIB as u64 * MIB as u64;
    web.fault(move |asked| {
        let hit = asked.path.ends_with(SHARD) && asked.range.contains(&at) && asked.range.contains(&group);
        let flip = hit && flips.fetch_add(1, Ordering::SeqCst) < answers;
        Fault { flip_at: flip.then_some(at), ..Fault::default() }
    });
}

#[tokio::test]
async fn a_byte_that_was_spoilt_on_its_way_costs_one_group() {
    let files = model(1, 2, LARGE);
    let (web, node) = (published(&files).await, node());
    let at = 9 * MIB as u64 + 77;
    flip(&web, at, 1);
    let (fetched, found) = node.files(&web.url).await;
    assert!(found == files, "other bytes");
    assert_eq!(web.sent(SHARD), files[SHARD].len() as u64 + MIB as u64, "the wrong group, once more, and nothing else");
    assert!(fetched.model.record.revision.to_string().starts_with("manifest:"));
}

#[tokio::test]
async fn a_byte_that_lies_wrong_is_named_and_costs_what_is_wrong() {
    let files = model(2, 2, LARGE);
    let (web, node) = (published(&files).await, node());
    let at = 9 * MIB as u64 + 77;
    let mut wrong = files[SHARD].clone();
    wrong[at as usize] ^= 1;
    web.put(SHARD, &wrong);
    let error = node.fetch(&web.url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    let text = error.to_string();
    for word in [SHARD, "group 9", "bytes 9437184 to 10485760"] {
        assert!(text.contains(word), "`{word}` is not in: {text}");
    }
    node.assert_nothing_published();
    let first = web.sent_of_shards();
    assert!(first <= total(&files) + PART, "{first}");
    // The origin tells the truth: what was right is here.
    web.put(SHARD, &files[SHARD]);
    let (fetched, found) = node.files(&web.url).await;
    assert!(found == files, "other bytes");
    let again = web.sent_of_shards() - first;
    assert_eq!(again, MIB as u64, "only the group that was wrong");
    assert!(web.sent_of_shards() <= total(&files) + PART, "at most a part beside the model, in both fetches");
    assert_eq!(fetched.origin_bytes, again + outboard(&files[SHARD]).len() as u64, "and the outboard");
}

#[tokio::test]
async fn a_small_file_that_lies_wrong_is_named_by_group_too() {
    let files = model(3, 2, 3 * MIB);
    let (web, node) = (published(&files).await, node());
    let mut wrong = files[SHARD].clone();
    wrong[2 * MIB + 5] ^= 1;
    web.put(SHARD, &wrong);
    let error = node.fetch(&web.url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("group 2"), "{error}");
    node.assert_nothing_published();
    let first = web.sent(SHARD);
    web.put(SHARD, &files[SHARD]);
    assert!(node.files(&web.url).await.1 == files, "other bytes");
    assert!(web.sent(SHARD) - first <= files[SHARD].len() as u64);
}

#[tokio::test]
async fn another_object_in_the_place_of_a_shard_is_noticed_early() {
    let (files, others) = (model(4, 2, 4 * LARGE), model(5, 2, 4 * LARGE));
    let (web, node) = (published(&files).await, node());
    web.put(SHARD, &others[SHARD]);
    let error = node.fetch(&web.url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    node.assert_nothing_published();
    web.put(SHARD, &files[SHARD]);
    assert!(node.files(&web.url).await.1 == files, "other bytes");
}

#[tokio::test]
async fn an_outboard_that_is_missing_or_wrong_is_not_believed_and_hinders_nothing() {
    for (seed, what) in ["missing", "wrong", "short", "broken", "slow"].into_iter().enumerate() {
        let files = model(10 + seed as u64, 2, LARGE);
        let (web, node) = (published(&files).await, node());
        let place = outboard_of(&files[SHARD]);
        let mut bytes = outboard(&files[SHARD]);
        match what {
            "missing" => web.remove(&place),
            "wrong" => {
                bytes[100] ^= 1;
                web.put(&place, &bytes);
            }
            "short" => web.put(&place, &bytes[..96]),
            "broken" => {
                let place = format!("/{place}");
                web.fault(move |asked| Fault {
                    status: asked.path.ends_with(&place).then_some(500),
                    ..Fault::default()
                });
            }
            _ => {
                let place = format!("/{place}");
                web.fault(move |asked| Fault {
                    stall_after: asked.path.ends_with(&place).then_some(10),
                    ..Fault::default()
                });
            }
        }
        assert!(node.files(&web.url).await.1 == files, "{what}");
        assert_eq!(web.sent_of_shards(), (files[SHARD].len() * 2) as u64, "{what}");
        assert!(web.gets(&place) <= 3, "{what}: {} tries", web.gets(&place));
    }
}

#[tokio::test]
async fn what_came_unproved_is_dropped_when_it_can_be_proved() {
    let files = model(6, 2, LARGE);
    let (web, node) = (published(&files).await, Arc::new(node()));
    let place = outboard_of(&files[SHARD]);
    web.remove(&place);
    let mut wrong = files[SHARD].clone();
    wrong[5] ^= 1;
    web.put(SHARD, &wrong);
    // Without an outboard the first group is taken, and the fetch is left in the middle.
    web.fault(|_| Fault { drip: std::time::Duration::from_millis(2), ..Fault::default() });
    let request = node.request(&web.url);
    let cancel = request.cancel.clone();
    let fetch = tokio::spawn({
        let node = Arc::clone(&node);
        async move { node.fetcher.fetch(request).await }
    });
    while web.sent(SHARD) < 12 * MIB as u64 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    cancel.cancel();
    assert_eq!(fetch.await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    while node.fetcher.in_flight() > 0 {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    web.heal();
    web.put(SHARD, &files[SHARD]);
    web.put(&place, &outboard(&files[SHARD]));
    let before = web.sent(SHARD);
    assert!(node.files(&web.url).await.1 == files, "other bytes");
    assert!(web.sent(SHARD) - before < files[SHARD].len() as u64, "what was right is kept, what was not is not");
}

#[tokio::test]
async fn a_directory_is_held_to_its_manifest() {
    let files = model(7, 2, LARGE);
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().join("m");
    write(&files, &place);
    let outboards = FilePath::new("preheat-outboards").unwrap();
    let mut beside = Files::new();
    beside.insert("preheat-manifest.json".to_owned(), manifest(&files).with_outboards(outboards).to_json());
    files.values().filter(|bytes| bytes.len() > MIB).for_each(|bytes| {
        beside.insert(outboard_of(bytes), outboard(bytes));
    });
    // Named by nobody: not part of the model.
    beside.insert("notes.json".to_owned(), b"{}".to_vec());
    write(&beside, &place);
    let reference = format!("file://{}", place.display());
    let (fetched, found) = node().files(&reference).await;
    assert!(found == files, "other bytes");
    assert_eq!(fetched.model.record.manifest, manifest(&files).digest());
    assert_eq!(fetched.model.record.revision.to_string(), format!("manifest:{}", manifest(&files).digest()));
    let mut wrong = files[SHARD].clone();
    wrong[20 * MIB] ^= 1;
    std::fs::write(place.join(SHARD), &wrong).unwrap();
    let error = node().fetch(&reference).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert!(error.to_string().contains("group 20"), "{error}");
    // What contradicts the listing is told before a byte of a file moves.
    std::fs::write(place.join(SHARD), &wrong[..wrong.len() - 1]).unwrap();
    let error = node().fetch(&reference).await.unwrap_err().to_string();
    assert!(error.contains(SHARD) && error.contains("the listing says") && error.contains("push it again"), "{error}");
    std::fs::remove_file(place.join(SHARD)).unwrap();
    let error = node().fetch(&reference).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains(SHARD), "{error}");
}
