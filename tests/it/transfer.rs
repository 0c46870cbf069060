//! Transfers against a web server: what is asked for, how often, and what becomes of it when the server misbehaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use preheat::base::ErrorKind;
use preheat::base::units::{ByteSize, Span};
use preheat::transfer::Config;

use super::support::model::{Files, MIB, manifest, model, noise, total, with_more};
use super::support::node::{Node, config};
use super::support::web::{Fault, Web};

const SHARD: &str = "model-00001-of-00002.safetensors";
const OTHER: &str = "model-00002-of-00002.safetensors";

/// Larger than what is held whole, so that it goes to disk part by part.
const LARGE: usize = 10 * MIB;

#[tokio::test]
async fn sixteen_at_once_cost_the_origin_the_bytes_once() {
    let files = model(1, 2, LARGE);
    let (web, node) = (Web::serve(&files).await, Arc::new(Node::new()));
    let crowd: Vec<_> = (0..16)
        .map(|_| {
            let (node, url) = (Arc::clone(&node), web.url.clone());
            tokio::spawn(async move { node.files(&url).await })
        })
        .collect();
    let mut paid = 0;
    for fetch in crowd {
        let (fetched, found) = fetch.await.unwrap();
        assert_eq!(found, files);
        paid += fetched.origin_bytes;
    }
    assert_eq!((web.sent(SHARD), web.sent(OTHER)), (files[SHARD].len() as u64, files[OTHER].len() as u64));
    assert_eq!(paid, total(&files), "the answers' origin bytes add up to what was sent");
    assert_eq!(node.fetcher.in_flight(), 0);
}

#[tokio::test]
async fn a_pinned_revision_that_is_here_asks_nobody() {
    let files = model(2, 2, MIB);
    let (web, node) = (Web::serve(&files).await, Node::new());
    let first = node.fetch(&web.url).await.unwrap();
    let asked = web.requests();
    let pinned = format!("{}@{}", web.url, first.model.record.revision);
    let again = node.fetch(&pinned).await.unwrap();
    assert_eq!((again.origin_bytes, web.requests()), (0, asked));
    assert_eq!(again.model.path, first.model.path);
    let other = format!("{}@listing:{}", web.url, "00".repeat(32));
    let error = node.fetch(&other).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

#[tokio::test]
async fn a_caller_who_leaves_takes_nothing_from_the_others() {
    let files = model(3, 2, LARGE);
    let web = Web::serve(&files).await;
    web.fault(|_| Fault { drip: Duration::from_millis(2), ..Fault::default() });
    let node = Arc::new(Node::new());
    let request = node.request(&web.url);
    let cancel = request.cancel.clone();
    let leaving = tokio::spawn({
        let node = Arc::clone(&node);
        async move { node.fetcher.fetch(request).await }
    });
    while web.sent_of_shards() == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let staying = tokio::spawn({
        let (node, url) = (Arc::clone(&node), web.url.clone());
        async move { node.files(&url).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    cancel.cancel();
    assert_eq!(leaving.await.unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    let (_, found) = staying.await.unwrap();
    assert_eq!(found, files);
    // What an idle connection takes over from a slow one is on its way from the server already.
    let tail = 4 * MIB as u64;
    assert!(web.sent(SHARD) < files[SHARD].len() as u64 + tail, "{} bytes: nothing was fetched twice", web.sent(SHARD));
}

#[tokio::test]
async fn what_has_arrived_is_not_fetched_again() {
    let files = model(4, 2, 24 * MIB);
    let web = Web::serve(&files).await;
    let node = Node::new();
    let mut sent = 0;
    for attempt in 0..3 {
        // A connection that breaks at the second MiB of a part, and a caller who gives up at some point.
        web.fault(move |asked| Fault {
            drip: Duration::from_micros(300),
            body_bytes: (asked.number % 3 == attempt % 3).then_some(MIB + 5),
            ..Fault::default()
        });
        let request = node.request(&web.url);
        let cancel = request.cancel.clone();
        let goal = sent + 10 * MIB as u64;
        let watch = tokio::spawn({
            let web = web.clone();
            async move {
                while web.sent_of_shards() < goal {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                cancel.cancel();
            }
        });
        let error = node.fetcher.fetch(request).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Cancelled, "{error}");
        watch.await.unwrap();
        // The flights end by themselves a moment after nobody waits for them.
        while node.fetcher.in_flight() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        sent = web.sent_of_shards();
    }
    web.heal();
    let (_, found) = node.files(&web.url).await;
    assert_eq!(found, files);
    let (all, shards) = (web.sent_of_shards(), (files[SHARD].len() + files[OTHER].len()) as u64);
    // Four connections lose at most a group that has not come whole, at each break and each end; the tail of a part may also
    // be fetched by whoever is idle.
    let breaks = (web.gets(SHARD) + web.gets(OTHER)) as u64;
    assert!(all <= shards + breaks * 3 * MIB as u64 / 2, "{all} bytes for {shards}, {breaks} requests");
    assert!(all < 2 * shards);
}

#[tokio::test]
async fn a_new_revision_fetches_what_changed() {
    let mut files = model(5, 2, LARGE);
    let (web, node) = (Web::serve(&files).await, Node::new());
    let first = node.fetch(&web.url).await.unwrap();
    let before = web.sent(OTHER);
    let changed = model(6, 2, LARGE).remove(SHARD).unwrap();
    files.insert(SHARD.to_owned(), changed.clone());
    web.put(SHARD, &changed);
    let (second, found) = node.files(&web.url).await;
    assert_eq!(found, files);
    assert_ne!(second.model.path, first.model.path);
    assert_eq!(second.origin_bytes, changed.len() as u64);
    assert_eq!(web.sent(OTHER), before);
}

#[tokio::test]
async fn four_thousand_small_files_arrive() {
    let mut files = Files::new();
    for number in 0..4000 {
        files.insert(format!("tokens/{:02}/{number}.json", number % 50), format!("{{\"n\":{number}}}").into_bytes());
    }
    files.insert("config.json".to_owned(), b"{}".to_vec());
    let web = Web::serve(&files).await;
    web.put("preheat-manifest.json", &manifest(&files).to_json());
    let (fetched, found) = Node::new().files(&web.url).await;
    assert_eq!(fetched.model.record.files, 4001);
    assert!(found == files, "4,001 files are equal");
}

#[tokio::test]
async fn equal_contents_and_empty_files() {
    let mut files = with_more(model(7, 1, MIB));
    files.insert("a/copy.safetensors".to_owned(), files["model-00001-of-00001.safetensors"].clone());
    files.insert("empty.txt".to_owned(), Vec::new());
    let web = Web::serve(&files).await;
    web.put("preheat-manifest.json", &manifest(&files).to_json());
    let (fetched, found) = Node::new().files(&web.url).await;
    assert_eq!(found, files);
    let once = files["model-00001-of-00001.safetensors"].len() as u64;
    assert_eq!(web.sent_of_shards(), once);
    assert_eq!(fetched.model.record.bytes, total(&files));
}

/// Faults that pass: the fetch succeeds, after asking again.
#[tokio::test]
async fn passing_faults_are_outlasted() {
    type Passing = (&'static str, fn(usize) -> Fault);
    let passing: [Passing; 8] = [
        ("500", |_| Fault { status: Some(500), ..Fault::default() }),
        ("503", |_| Fault { status: Some(503), headers: vec![("retry-after", "0".to_owned())], ..Fault::default() }),
        ("429", |_| Fault { status: Some(429), headers: vec![("retry-after", "1".to_owned())], ..Fault::default() }),
        ("408", |_| Fault { status: Some(408), ..Fault::default() }),
        ("short", |number| Fault { body_bytes: Some(number * 100_000), ..Fault::default() }),
        ("stalled", |_| Fault { stall_after: Some(1000), ..Fault::default() }),
        ("nothing", |_| Fault { body_bytes: Some(0), ..Fault::default() }),
        ("another range", |_| Fault { shift: 512, ..Fault::default() }),
    ];
    for (seed, (name, fault)) in passing.into_iter().enumerate() {
        let files = model(100 + seed as u64, 2, LARGE);
        let (web, node) = (Web::serve(&files).await, Node::new());
        web.fault(move |asked| {
            if asked.number <= 2 && asked.path.ends_with(".safetensors") {
                fault(asked.number)
            } else {
                Fault::default()
            }
        });
        let (_, found) = node.files(&web.url).await;
        assert!(found == files, "{name}");
        assert!(web.gets(SHARD) > 2, "{name}: it was asked again");
    }
}

/// The timeout is an hour: only the neighbours tell that this connection hangs.
#[tokio::test]
async fn a_connection_that_hangs_among_others_is_left() {
    let files = model(150, 1, 48 * MIB);
    let (web, node) =
        (Web::serve(&files).await, Node::with(Config { stall: Span(Duration::from_secs(3600)), ..config() }, |_| {}));
    web.fault(|asked| Fault {
        stall_after: (asked.number == 3 && asked.path.ends_with(".safetensors")).then_some(100_000),
        drip: Duration::from_millis(6),
        ..Fault::default()
    });
    let (_, found) = node.files(&web.url).await;
    assert!(found == files);
}

/// Faults that stay: a bounded number of tries, a clear error, nothing published, and success once the cause is gone.
#[tokio::test]
async fn lasting_faults_are_told_and_healed() {
    type Lasting = (&'static str, ErrorKind, fn() -> Fault);
    let lasting: [Lasting; 6] = [
        ("500", ErrorKind::Unavailable, || Fault { status: Some(500), ..Fault::default() }),
        ("429", ErrorKind::Unavailable, || Fault { status: Some(429), ..Fault::default() }),
        ("403", ErrorKind::Denied, || Fault { status: Some(403), ..Fault::default() }),
        ("404", ErrorKind::NotFound, || Fault { status: Some(404), ..Fault::default() }),
        ("stalled", ErrorKind::Timeout, || Fault { stall_after: Some(100), ..Fault::default() }),
        ("nothing", ErrorKind::Unavailable, || Fault { body_bytes: Some(0), ..Fault::default() }),
    ];
    for (seed, (name, kind, fault)) in lasting.into_iter().enumerate() {
        let files = model(200 + seed as u64, 2, LARGE);
        let (web, node) = (Web::serve(&files).await, Node::new());
        web.fault(move |asked| if asked.path.ends_with(OTHER) { fault() } else { Fault::default() });
        let error = node.fetch(&web.url).await.unwrap_err();
        assert!(error.to_string().contains(OTHER), "{name}: {error}");
        let acceptable = error.kind() == kind || (name == "429" && error.kind() == ErrorKind::Busy);
        assert!(acceptable, "{name}: {:?} {error}", error.kind());
        assert!(web.gets(OTHER) <= 4 * 4 + 1, "{name}: {} tries", web.gets(OTHER));
        node.assert_nothing_published();
        web.heal();
        let (_, found) = node.files(&web.url).await;
        assert!(found == files, "{name}: healed without a restart");
    }
}

#[tokio::test]
async fn a_server_that_knows_no_ranges_is_read_from_the_start() {
    let files = model(8, 2, LARGE);
    let (web, node) = (Web::serve(&files).await, Node::new());
    web.put("preheat-manifest.json", &manifest(&files).to_json());
    web.fault(|_| Fault { ignore_range: true, ..Fault::default() });
    let (_, found) = node.files(&web.url).await;
    assert_eq!(found, files);
    assert_eq!(web.gets(SHARD) + web.gets(OTHER), 3, "one request shows it, and each file is asked for once");
}

#[tokio::test]
async fn an_object_replaced_in_the_middle_is_never_mixed() {
    for tagged in [true, false] {
        let (old, new) = (model(9, 1, LARGE), model(10, 1, LARGE));
        let name = "model-00001-of-00001.safetensors";
        assert_eq!(old[name].len(), new[name].len());
        let web = Web::serve(&old).await;
        let (count, replacing, bytes) = (Arc::new(AtomicUsize::new(0)), web.clone(), new[name].clone());
        web.fault(move |asked| {
            if asked.path.ends_with(name) && count.fetch_add(1, Ordering::Relaxed) == 3 {
                replacing.put(name, &bytes);
            }
            Fault { untagged: !tagged, drip: Duration::from_micros(200), ..Fault::default() }
        });
        let node = Node::new();
        match node.fetch(&web.url).await {
            Ok(fetched) => {
                let found = std::fs::read(fetched.model.path.join(name)).unwrap();
                assert!(found == new[name] || (!tagged && found == old[name]), "whole, of one version");
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error}"),
        }
        let found = node.files(&web.url).await.1;
        assert!(found[name] == new[name], "the new version, next time at the latest");
    }
}

#[tokio::test]
async fn bytes_that_are_not_those_declared_are_never_sealed() {
    for name in [SHARD, "config.json"] {
        let files = model(11, 2, LARGE);
        let (web, node) = (Web::serve(&files).await, Node::new());
        web.put("preheat-manifest.json", &manifest(&files).to_json());
        let lying = format!("/{name}");
        web.fault(move |asked| Fault { flip_at: asked.path.ends_with(&lying).then_some(5), ..Fault::default() });
        let error = node.fetch(&web.url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        assert!(error.to_string().contains(name) && error.to_string().contains("blake3"), "{error}");
        node.assert_nothing_published();
        web.heal();
        let (fetched, found) = node.files(&web.url).await;
        assert_eq!(found, files);
        assert_eq!(fetched.model.record.facts.files[0].origin_verified, preheat::digest::OriginVerified::Blake3);
    }
}

#[tokio::test]
async fn a_shard_that_is_missing_is_named_before_the_others_move() {
    let files = model(12, 2, LARGE);
    let (web, node) = (Web::serve(&files).await, Node::new());
    let without: Files = files.iter().filter(|(path, _)| *path != OTHER).map(|(p, b)| (p.clone(), b.clone())).collect();
    web.put("preheat-manifest.json", &manifest(&without).to_json());
    web.remove(OTHER);
    let error = node.fetch(&web.url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains(OTHER), "{error}");
    assert_eq!(web.sent(SHARD), 0);
    node.assert_nothing_published();
}

#[tokio::test]
async fn a_broken_tensor_file_is_refused() {
    let mut files = model(13, 2, MIB);
    let mut broken = u64::to_le_bytes(1 << 40).to_vec();
    broken.extend(noise(1, 1000));
    files.insert(SHARD.to_owned(), broken);
    let (web, node) = (Web::serve(&files).await, Node::new());
    let error = node.fetch(&web.url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(SHARD) && error.to_string().contains("safetensors"), "{error}");
    node.assert_nothing_published();
}

#[tokio::test]
async fn without_room_nothing_moves_and_nothing_is_lost() {
    let (small, large) = (model(14, 1, 2 * MIB), model(15, 2, LARGE));
    let (web, other) = (Web::serve(&small).await, Web::serve(&large).await);
    let node = Node::with(config(), |options| options.capacity = Some(ByteSize(12 * MIB as u64)));
    node.fetch(&web.url).await.unwrap();
    let error = node.fetch(&other.url).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
    assert_eq!(other.sent_of_shards(), 0, "space is promised before the first byte is asked for");
    assert_eq!(node.store.usage().reserved, 0);
    let (_, found) = node.files(&web.url).await;
    assert_eq!(found, small);
}

#[tokio::test]
async fn lists_that_no_manifest_may_have_are_refused() {
    let web = Web::serve(&Files::new()).await;
    let entry = |path: &str, size: &str| format!(r#"{{"path":"{path}","size":{size},"blake3":"{}"}}"#, "ab".repeat(32));
    let document = |entries: &[String]| {
        format!(r#"{{"format":"preheat-manifest","version":1,"kind":"model","files":[{}]}}"#, entries.join(","))
    };
    let lists = [
        document(&[entry("../etc/passwd", "1")]),
        document(&[entry("/etc/passwd", "1")]),
        document(&[entry("a/../../b", "1")]),
        document(&[entry("a", "1"), entry("a", "1")]),
        document(&[entry("a\\u0000b", "1")]),
        document(&[entry("a", "18446744073709551615"), entry("b", "18446744073709551615")]),
        document(&[entry("a", "-1")]),
        document(&[entry("a", "1")]).replace("\"version\":1", "\"version\":2"),
        document(&[entry("a", "1")]).replace("\"kind\"", "\"extra\":1,\"kind\""),
        "{".to_owned(),
    ];
    let node = Node::new();
    for list in lists {
        web.put("preheat-manifest.json", list.as_bytes());
        let error = node.fetch(&web.url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{list}: {error}");
        node.assert_nothing_published();
    }
    assert_eq!(web.sent("a"), 0);
}

#[tokio::test]
async fn draining_keeps_what_has_arrived() {
    let files = model(16, 2, 24 * MIB);
    let web = Web::serve(&files).await;
    web.fault(|_| Fault { drip: Duration::from_micros(500), ..Fault::default() });
    let node = Node::with(Config { connections_max: 2, ..config() }, |_| {});
    let request = node.request(&web.url);
    let draining = async {
        while web.sent_of_shards() < 16 * MIB as u64 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        node.fetcher.drain().await;
    };
    let (outcome, ()) = tokio::join!(node.fetcher.fetch(request), draining);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(node.store.usage().partials > 8 * MIB as u64, "{:?}", node.store.usage());
    assert_eq!(node.fetch(&web.url).await.unwrap_err().kind(), ErrorKind::Cancelled, "none begins any more");
}

/// What an earlier process left is hashed before it is used. That may be hundreds of gigabytes, and other fetches have nothing to
/// do with it.
#[tokio::test]
async fn a_fetch_that_hashes_what_was_left_holds_up_no_other() {
    let (files, others) = (model(17, 2, MIB), model(18, 1, MIB));
    let (web, other) = (Web::serve(&files).await, Web::serve(&others).await);
    // The others arrive meanwhile.
    web.fault(|asked| Fault { stall_after: asked.path.ends_with(OTHER).then_some(100), ..Fault::default() });
    let node = Node::new();
    node.fetch(&web.url).await.unwrap_err();
    web.heal();
    let node = Arc::new(node.reopened().await);
    let received = node.directory.path().join("store/received");
    let left = std::fs::read_dir(received).unwrap().next().expect("something was left").unwrap().path();
    // Hashing it takes until somebody writes to it.
    std::fs::remove_file(&left).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, &left, rustix::fs::Mode::RWXU).unwrap();
    let before = web.requests();
    let hashing = tokio::spawn({
        let (node, url) = (Arc::clone(&node), web.url.clone());
        async move { node.files(&url).await }
    });
    while web.requests() == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // From the last answer to the hash.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let passed = tokio::time::timeout(Duration::from_secs(30), node.files(&other.url)).await;
    assert!(!hashing.is_finished(), "it waits for its hash");
    // Nothing comes, which is not what was left.
    drop(std::fs::File::options().write(true).open(&left).unwrap());
    let (_, found) = hashing.await.unwrap();
    assert!(found == files, "other bytes");
    let (_, found) = passed.expect("nothing of its own to hash");
    assert!(found == others, "other bytes");
}
