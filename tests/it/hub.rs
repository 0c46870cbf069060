//! Models of a hub: pages, redirects to a storage that expires, digests, and where the token goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use preheat::base::ErrorKind;
use preheat::digest::OriginVerified;
use preheat::model::source::{Origin, Resolution};
use preheat::model::{Reference, Rights};
use preheat::origin::{Config, Origins};

use super::support::hub::{COMMIT, Hub, made_up};
use super::support::model::{Files, MIB, model, with_more};
use super::support::node::Node;
use super::support::secret;

pub(crate) const SHARD: &str = "model-00001-of-00002.safetensors";
pub(crate) const MODEL: &str = "hf://org/m";

/// Sets a variable of this process, which is this test's own; tokens as [`secret`] has them.
pub(crate) fn set(name: &str, value: Option<&str>) {
    #[expect(unsafe_code, reason = "the test runner gives every test a process, and its runtime has one thread")]
    // SAFETY: no other thread reads the environment meanwhile.
    unsafe {
        match value {
            Some(value) if name == "HF_TOKEN" => std::env::set_var(name, secret(value)),
            Some(value) => std::env::set_var(name, value),
            None => std::env::remove_var(name),
        }
    }
}

/// Runs a test with a hub that is the one in force.
pub(crate) fn with_hub<F: Future<Output = ()>>(files: &Files, token: Option<&str>, test: impl FnOnce(Hub) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let hub = Hub::serve(files).await;
        set("HF_ENDPOINT", Some(&hub.url));
        set("HF_HOME", Some("/nonexistent"));
        set("HF_TOKEN", token);
        test(hub).await;
    });
}

/// Requests for a file's bytes or their place.
pub(crate) fn resolved(hub: &Hub, path: &str) -> usize {
    hub.asked().iter().filter(|asked| asked.path.contains("/resolve/") && asked.path.ends_with(path)).count()
}

async fn resolve(reference: &str, config: Config) -> Result<(Arc<dyn Origin>, Resolution), String> {
    preheat::origin::install_tls_provider();
    let reference: Reference = reference.parse().unwrap();
    let origin = Origins::unguarded(config).unwrap().open(&reference, &Rights::Own).unwrap();
    let resolution = origin.resolve(&reference).await.map_err(|error| error.to_string())?;
    Ok((origin, resolution))
}

#[test]
fn a_model_comes_with_its_digests_checked_and_the_token_stays_at_the_hub() {
    let files = with_more(model(1, 2, 10 * MIB));
    with_hub(&files, Some("hf_secret"), |hub| async move {
        let node = Node::new();
        let (fetched, found) = node.files(MODEL).await;
        assert_eq!(found, with_more(model(1, 2, 10 * MIB)));
        assert_eq!(fetched.model.record.revision.to_string(), COMMIT);
        let facts = &fetched.model.record.facts.files;
        let verified = |path: &str| facts.iter().find(|fact| fact.path.as_str() == path).unwrap().origin_verified;
        assert_eq!((verified(SHARD), verified("config.json")), (OriginVerified::Sha256, OriginVerified::GitSha1));
        assert!(
            hub.asked()
                .iter()
                .all(|asked| asked.header("authorization") == Some(&format!("Bearer {}", secret("hf_secret"))))
        );
        assert!(!hub.asked_of_storage().is_empty());
        for asked in hub.asked_of_storage() {
            let seen = format!("{} {:?}", asked.path, asked.headers);
            assert!(!seen.contains("hf_secret") && !asked.headers.contains_key("authorization"), "{seen}");
        }
        let all = hub.asked().into_iter().chain(hub.asked_of_storage());
        assert!(all.clone().all(|asked| asked.header("accept-encoding") == Some("identity")));
        assert_eq!(resolved(&hub, SHARD), 1, "the hub is asked once a file, not once a part");
        let asked = hub.asked().len();
        let again = node.fetch(&format!("{MODEL}@{COMMIT}")).await.unwrap();
        assert_eq!((again.origin_bytes, hub.asked().len()), (0, asked));
    });
}

#[test]
fn a_thousand_and_more_files_are_on_several_pages() {
    let mut files = Files::new();
    for number in 0..2203 {
        files.insert(format!("folder/{number}.json"), format!("{{\"n\":{number}}}").into_bytes());
    }
    files.insert("config.json".to_owned(), b"{}".to_vec());
    with_hub(&files.clone(), None, |hub| async move {
        // Of three pages, files of the first and of the last.
        for reference in ["hf://org/m@refs%2Fpr%2F1", "hf://org/m@feature%2Fslash"] {
            let asked = hub.asked().len();
            let (fetched, found) =
                Node::new().files(&format!("{reference}?include=folder/1*9.json&include=folder/99*")).await;
            let wanted = |path: &str| {
                (path.starts_with("folder/1") && path.ends_with("9.json")) || path.starts_with("folder/99")
            };
            let wanted: Files =
                files.iter().filter(|(path, _)| wanted(path)).map(|(a, b)| (a.clone(), b.clone())).collect();
            assert!(found == wanted && found.len() > 100, "{} of {}", found.len(), wanted.len());
            let pages = hub.asked()[asked..].iter().filter(|asked| asked.path.contains("/tree/")).count();
            assert_eq!((fetched.model.record.revision.to_string().as_str(), pages), (COMMIT, 3));
        }
    });
}

#[test]
fn a_hundred_thousand_files_are_planned_and_one_more_is_refused_by_name() {
    with_hub(&Files::new(), None, |hub| async move {
        hub.many(100_000);
        let (before, begun) = (preheat::sys::host::anonymous_rss().unwrap(), Instant::now());
        let (_origin, resolution) = resolve(MODEL, Config::default()).await.unwrap();
        let grown = preheat::sys::host::anonymous_rss().unwrap().saturating_sub(before) >> 20;
        assert_eq!(resolution.files.len(), 100_000);
        // 75 MiB and 2 s in one debug run on two cores, the hub in the same process.
        assert!(grown < 256, "{grown} MiB");
        assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
        println!("{grown} MiB, {:?}", begun.elapsed());
        hub.many(100_001);
        let error = resolve(MODEL, Config::default()).await.unwrap_err();
        assert!(error.contains("more than 100000 files") && error.contains("origins.files_max"), "{error}");
        let asked = hub.asked().len();
        let error = resolve(MODEL, Config { files_max: 5000, ..Config::default() }).await.unwrap_err();
        assert!(error.contains("more than 5000 files") && hub.asked().len() - asked < 10, "{error}");
    });
}

#[test]
fn a_signature_that_expires_in_the_middle_is_renewed_once_for_all_connections() {
    let files = model(2, 1, 24 * MIB);
    let wanted = files.clone();
    with_hub(&files, Some("hf_secret"), |hub| async move {
        hub.expire_every(4);
        let (_, found) = Node::new().files(MODEL).await;
        assert_eq!(found, wanted);
        let (refused, expired) = (hub.asked_of_storage().len(), hub.asked_of_storage().len() / 4);
        assert!(refused > 8, "{refused} requests");
        let asked = resolved(&hub, ".safetensors");
        assert!((2..=1 + expired).contains(&asked), "asked {asked} times, {expired} signatures expired");
        for asked in hub.asked_of_storage() {
            assert!(!format!("{asked:?}").contains("hf_secret"), "{asked:?}");
        }
        // A storage that refuses every new signature is a refusal, and is told as one without a stampede.
        hub.expire_every(0);
        hub.commit(&"d".repeat(40), &model(3, 1, 24 * MIB));
        let before = (hub.asked_of_storage().len(), resolved(&hub, ".safetensors"));
        let error = Node::new().fetch(MODEL).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Denied, "{error}");
        assert!(error.to_string().contains("Request has expired"), "the storage's own word: {error}");
        assert!(!error.to_string().contains("Signature"), "{error}");
        assert!(hub.asked_of_storage().len() - before.0 < 20);
        assert!(resolved(&hub, ".safetensors") - before.1 < 10);
    });
}

#[test]
fn wrong_digests_are_refused_by_name_and_the_truth_is_fetched() {
    let files = model(4, 2, 10 * MIB);
    let wanted = files.clone();
    with_hub(&files, None, |hub| async move {
        let node = Node::new();
        for (path, digest, algorithm) in
            [(SHARD, "ab".repeat(32), "sha256"), ("config.json", "ab".repeat(20), "git-sha1")]
        {
            hub.lie(path, &digest);
            let error = node.fetch(MODEL).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            let text = error.to_string();
            assert!(text.contains(path) && text.contains(algorithm) && text.contains(&digest), "{text}");
            node.assert_nothing_published();
            hub.tell_the_truth();
        }
        let (_, found) = node.files(MODEL).await;
        assert_eq!(found, wanted);
    });
}

#[test]
fn one_wrong_byte_is_refused_with_both_digests_and_the_truth_is_fetched_without_a_restart() {
    let files = model(5, 2, 10 * MIB);
    let wanted = files.clone();
    with_hub(&files, None, |hub| async move {
        let mut node = Node::new();
        let flipped = |path: &str| {
            let mut bytes = wanted[path].clone();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            bytes
        };
        let replaced = |path: &str| wanted[path].iter().rev().copied().collect::<Vec<u8>>();
        for (path, wrong, algorithm) in [
            (SHARD, flipped(SHARD), "sha256"),
            (SHARD, replaced(SHARD), "sha256"),
            ("tokenizer.json", flipped("tokenizer.json"), "git-sha1"),
        ] {
            let (truth, lie) = match algorithm {
                "sha256" => (sha256(&wanted[path]), sha256(&wrong)),
                _ => (git_name(&wanted[path]), git_name(&wrong)),
            };
            hub.send_wrong(path, wrong);
            let error = node.fetch(MODEL).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            for word in [path, algorithm, &truth, &lie] {
                assert!(error.to_string().contains(word), "`{word}` is not in: {error}");
            }
            node.assert_nothing_published();
            hub.tell_the_truth();
            let (_, found) = std::mem::replace(&mut node, Node::new()).files(MODEL).await;
            assert!(found == wanted);
        }
    });
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn sha256(bytes: &[u8]) -> String {
    hex(&<sha2::Sha256 as sha2::Digest>::digest(bytes))
}

fn git_name(bytes: &[u8]) -> String {
    hex(&<sha1::Sha1 as sha1::Digest>::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()))
}

#[test]
fn a_branch_that_moves_while_it_is_planned_and_fetched_gives_one_commit() {
    let (old, mut new) = (model(6, 2, 10 * MIB), model(7, 2, 10 * MIB));
    new.insert("more.json".to_owned(), b"{}".to_vec());
    with_hub(&old.clone(), None, |hub| async move {
        let later = "d".repeat(40);
        // At its first word about the branch, and again between two files.
        for moves in ["/revision/", "config.json", SHARD] {
            hub.commit(&later, &new);
            hub.branch("main", COMMIT);
            let (moving, target) = (hub.clone(), later.clone());
            let told = AtomicUsize::new(0);
            hub.fault(move |asked| {
                // The answer to the first is still the old commit.
                if told.load(Ordering::Relaxed) > 0 {
                    moving.branch("main", &target);
                }
                told.fetch_add(usize::from(asked.path.contains(moves)), Ordering::Relaxed);
                None
            });
            let node = Node::new();
            let (fetched, found) = node.files(MODEL).await;
            assert!(found == old, "{moves}: a mix");
            assert_eq!(fetched.model.record.revision.to_string(), COMMIT);
            hub.heal();
            hub.branch("main", &later);
            let (fetched, found) = node.files(MODEL).await;
            assert!(found == new, "{moves}");
            assert_eq!(fetched.model.record.revision.to_string(), later);
        }
    });
}

#[test]
fn a_new_commit_fetches_what_changed() {
    let mut files = model(5, 2, 10 * MIB);
    with_hub(&files.clone(), None, |hub| async move {
        let node = Node::new();
        node.fetch(MODEL).await.unwrap();
        files.insert("config.json".to_owned(), b"{\"new\":1}".to_vec());
        hub.commit(&"d".repeat(40), &files);
        let (fetched, found) = node.files(MODEL).await;
        assert_eq!(found, files);
        assert_eq!(fetched.origin_bytes, 9);
    });
}

#[test]
fn files_beyond_fifty_gigabytes_are_only_asked_for_in_ranges() {
    const SIZE: u64 = 51_000_000_000;
    with_hub(&model(8, 1, MIB), None, |hub| async move {
        hub.huge("huge.safetensors", SIZE);
        let (origin, resolution) = resolve(MODEL, Config::default()).await.unwrap();
        let file = resolution.files.iter().find(|file| file.path.as_str() == "huge.safetensors").unwrap();
        assert_eq!(file.size, SIZE);
        for range in [0..1 << 20, SIZE / 2..SIZE / 2 + 4096, SIZE - 1000..SIZE] {
            let mut body = origin.open(file, range.clone()).await.unwrap();
            assert!(!body.ignores_ranges && body.start == range.start);
            let bytes = body.bytes.read_up_to(1 << 20).await.unwrap();
            assert!(bytes == made_up(range.clone()), "{range:?}");
        }
        let asked: Vec<_> = hub.asked().into_iter().filter(|asked| asked.path.contains("/resolve/")).collect();
        assert_eq!((asked.len(), hub.asked_of_storage().len()), (1, 3));
        assert!(asked.iter().chain(&hub.asked_of_storage()).all(|asked| asked.header("range").is_some()));
    });
}

#[test]
fn answers_that_lead_astray_are_named() {
    let files = model(9, 1, 10 * MIB);
    let wanted = files.clone();
    with_hub(&files, Some("hf_secret"), |hub| async move {
        let node = Node::new();
        let location = |to: &str| vec![("location", to.to_owned())];
        let elsewhere = super::support::hub::Hub::serve(&Files::new()).await;
        // A circle of bytes, of questions, and a question that is sent to another host.
        for (part, to, word) in [
            ("/resolve/", "/org/m/resolve/again".to_owned(), "redirects more than 5 times"),
            ("/tree/", "/api/models/org/m/tree/again?recursive=true&expand=false".to_owned(), "in a circle"),
            ("/revision/", format!("{}/api/models/org/m/revision/main", elsewhere.url), "another host"),
        ] {
            let answer = (302, location(&to), "");
            hub.fault(move |asked| asked.path.contains(part).then(|| answer.clone()));
            let asked = hub.asked().len();
            let error = node.fetch(MODEL).await.unwrap_err();
            assert!(error.to_string().contains(word), "{part}: {error}");
            assert!(hub.asked().len() - asked < 60, "{part}: {}", hub.asked().len() - asked);
            hub.heal();
        }
        assert!(elsewhere.asked().is_empty());
        let link = vec![("link", format!("<{}/api/models/org/m/tree/x?cursor=1>; rel=\"next\"", elsewhere.url))];
        let page = "[{\"type\": \"directory\", \"path\": \"d\"}]";
        hub.fault(move |asked| asked.path.contains("/tree/").then(|| (200, link.clone(), page)));
        let error = node.fetch(MODEL).await.unwrap_err();
        assert!(error.to_string().contains("another host") && elsewhere.asked().is_empty(), "{error}");
        hub.heal();
        // What nobody asked for, a storage that sends us on to one that refuses, and one that sends us round.
        let onwards = format!("{}/x?sig=s3cr3t", elsewhere.url);
        for (answer, word) in [
            ((206, vec![("content-encoding", "gzip".to_owned())], "x"), "encoded (gzip)"),
            ((302, location(&onwards), ""), "401"),
            ((302, location("/round?sig=s3cr3t"), ""), "redirects more than 5 times"),
        ] {
            hub.storage_fault(move |_| Some(answer.clone()));
            let error = node.fetch(MODEL).await.unwrap_err();
            assert!(error.to_string().contains(word) && !error.to_string().contains("s3cr3t"), "{error}");
            hub.heal();
        }
        let asked = elsewhere.asked();
        assert!(!asked.is_empty() && asked.iter().all(|asked| asked.header("authorization").is_none()));
        node.assert_nothing_published();
        let (_, found) = node.files(MODEL).await;
        assert!(found == wanted, "no restart was needed");
    });
}
