//! Bundles between nodes: what an identical second node gets, and what nobody gets.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use preheat::base::ErrorKind;
use preheat::digest::Hash;
use preheat::engines::{BundleRef, Capture, Captured, Config, Library, LocalLibrary, Refusal, SignerConfig};
use preheat::model::engine::BundleKind;
use preheat::model::{Kind, Manifest, Pack, SigningKey, Tenant};

use super::support::engine::{cache, capture, key, library, put, signer, tree};
use super::support::model::noise;

const SOON: Duration = Duration::from_secs(10);

/// A place that nodes share, and a key that signs.
struct Rig {
    directory: tempfile::TempDir,
    key_file: PathBuf,
    signer: SignerConfig,
}

impl Rig {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("shared")).unwrap();
        let (key_file, signer) = signer(directory.path(), "ci");
        Self { directory, key_file, signer }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn shares(&self, config: &mut Config) {
        config.origin = Some(format!("file://{}", self.path("shared").display()));
    }

    /// A node that captures, signs and publishes.
    async fn publisher(&self, name: &str) -> LocalLibrary {
        let own = Tenant::of_uid(rustix::process::geteuid().as_raw());
        library(&self.path(name), |config| {
            self.shares(config);
            config.signing_key_file = Some(self.key_file.clone());
            config.publish = vec![own];
        })
        .await
    }

    /// One that trusts it.
    async fn reader(&self, name: &str, change: impl FnOnce(&mut Config)) -> LocalLibrary {
        library(&self.path(name), |config| {
            self.shares(config);
            config.signers = vec![self.signer.clone()];
            change(config);
        })
        .await
    }

    async fn published(&self, publisher: &LocalLibrary, run: &str, root: &Path) -> BundleRef {
        match publisher.capture(capture(key(BundleKind::Graph, run), &[("vllm", root)])).await.unwrap() {
            Captured::Created { bundle, .. } => bundle,
            other => panic!("{other:?}"),
        }
    }
}

async fn refusal(library: &LocalLibrary, run: &str) -> Refusal {
    let mut found = library.lookup(&key(BundleKind::Graph, run), SOON).await.unwrap();
    assert!(found.exact.is_none(), "{found:?}");
    found.refused.remove(0).why
}

#[tokio::test(flavor = "multi_thread")]
async fn an_identical_second_node_restores_what_the_first_has_published() {
    let rig = Rig::new();
    let root = cache(rig.directory.path(), 1);
    let bundle = rig.published(&rig.publisher("one").await, "a", &root).await;
    assert_eq!((bundle.scope.as_str(), bundle.signed_by.as_deref()), ("node", Some("this node")));
    let second = rig.reader("two", |_| {}).await;
    let found = second.lookup(&key(BundleKind::Graph, "a"), SOON).await.unwrap();
    let found = found.exact.unwrap_or_else(|| panic!("{:?}", found.refused));
    assert_eq!((found.id, found.signed_by.as_deref()), (bundle.id, Some("ci")));
    // From now on without the origin.
    std::fs::rename(rig.path("shared"), rig.path("away")).unwrap();
    let into = rig.path("view");
    second.restore(&found, &into).await.unwrap();
    assert_eq!(tree(&into.join("vllm")), tree(&root));
    let other = second.lookup(&key(BundleKind::Graph, "b"), SOON).await.unwrap();
    assert!(other.exact.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_is_given_what_no_trusted_signer_vouches_for() {
    let rig = Rig::new();
    let root = cache(rig.directory.path(), 1);
    let bundle = rig.published(&rig.publisher("one").await, "a", &root).await;
    let stranger = library(&rig.path("stranger"), |config| rig.shares(config)).await;
    assert!(matches!(refusal(&stranger, "a").await, Refusal::UnknownSigner { .. }));
    let revoked = rig.reader("revoked", |config| config.revoked_signers = vec![rig.signer.key]).await;
    assert!(matches!(refusal(&revoked, "a").await, Refusal::RevokedSigner { .. }));
    let revoked = rig.reader("revoked-bundle", |config| config.revoked_bundles = vec![bundle.id]).await;
    assert_eq!(refusal(&revoked, "a").await, Refusal::Revoked);
    let signature = rig.path(&format!("shared/bundles/{}.sig", bundle.id));
    std::fs::remove_file(&signature).unwrap();
    assert_eq!(refusal(&rig.reader("unsigned", |_| {}).await, "a").await, Refusal::Unsigned);
    // Nothing of any of them came to the nodes.
    for node in ["stranger", "revoked", "revoked-bundle", "unsigned"] {
        assert_eq!(std::fs::read_dir(rig.path(node).join("blobs")).unwrap().count(), 0, "{node}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signer_that_is_revoked_later_is_refused_from_then_on() {
    let rig = Rig::new();
    let root = cache(rig.directory.path(), 1);
    let bundle = rig.published(&rig.publisher("one").await, "a", &root).await;
    let list = rig.path("revoked");
    std::fs::write(&list, "").unwrap();
    let node = rig.reader("two", |config| config.revocations_file = Some(list.clone())).await;
    let found = node.lookup(&key(BundleKind::Graph, "a"), SOON).await.unwrap().exact.unwrap();
    node.restore(&found, &rig.path("view")).await.unwrap();
    std::fs::write(&list, format!("signer {}\n", rig.signer.key)).unwrap();
    let error = node.restore(&found, &rig.path("second")).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Denied && error.to_string().contains("revoked"), "{error}");
    assert!(matches!(refusal(&node, "a").await, Refusal::RevokedSigner { .. }));
    assert!(node.show(&bundle.id).await.unwrap().refusal.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_to_be_published_stays_on_its_node() {
    let rig = Rig::new();
    let root = cache(rig.directory.path(), 1);
    let publisher = rig.publisher("one").await;
    // A key that rests on what somebody has merely said of the GPU.
    let mut fields = key(BundleKind::Graph, "a").fields().clone();
    let said = preheat::model::engine::Field::hard("NVIDIA B200", preheat::model::engine::FROM_FACTS);
    fields.insert("gpu.name".to_owned(), said);
    let asserted = preheat::model::engine::EngineKey::new(BundleKind::Graph, "vllm", 0, fields).unwrap();
    let captured = publisher.capture(capture(asserted, &[("vllm", &root)])).await.unwrap();
    let Captured::Created { bundle, .. } = captured else { panic!("{captured:?}") };
    assert!(bundle.signer.is_none() && bundle.scope.uid().is_some());
    assert_eq!(std::fs::read_dir(rig.path("shared")).unwrap().count(), 0);
    // Somebody who may not publish.
    let other = rig.reader("two", |_| {}).await;
    let captured = other.capture(capture(key(BundleKind::Graph, "b"), &[("vllm", &root)])).await.unwrap();
    assert!(matches!(captured, Captured::Created { bundle, .. } if bundle.signer.is_none()));
    assert_eq!(std::fs::read_dir(rig.path("shared")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_to_publish_stays_and_a_refresh_replaces() {
    let rig = Rig::new();
    let (one, two) = (rig.publisher("one").await, rig.publisher("two").await);
    let (root, other) = (cache(rig.directory.path(), 1), cache(rig.directory.path(), 2));
    let graph = key(BundleKind::Graph, "a");
    let first = rig.published(&one, "a", &root).await;
    // It has not looked, so it captures its own, and keeps it; the place keeps the first.
    let second = rig.published(&two, "a", &other).await;
    let at_the_place = async |name: &str| {
        let node = rig.reader(name, |_| {}).await;
        node.lookup(&graph, SOON).await.unwrap().exact.unwrap().id
    };
    assert_ne!(first.id, second.id);
    assert_eq!(at_the_place("three").await, first.id);
    let refresh = Capture { refresh: true, ..capture(graph.clone(), &[("vllm", &other)]) };
    let refreshed = two.capture(refresh).await.unwrap();
    assert!(matches!(refreshed, Captured::Unchanged { bundle } if bundle.id == second.id));
    assert_eq!(at_the_place("four").await, second.id);
    let third = cache(rig.directory.path(), 3);
    let grown = Capture { base: Some(second.id), ..capture(graph.clone(), &[("vllm", &third)]) };
    let Captured::Created { bundle: grown, .. } = two.capture(grown).await.unwrap() else { panic!() };
    assert_eq!(at_the_place("five").await, grown.id, "what came out of it takes its place");
}

/// Deterministic: what is done to which object by the number of the mutation.
fn mutate(bytes: &mut Vec<u8>, seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    let at = next() % bytes.len();
    match next() % 4 {
        0 => bytes[at] ^= 1 << (next() % 8),
        1 => bytes.truncate(at),
        2 => bytes.insert(at, next() as u8),
        _ => {
            let end = (at + 1 + next() % 64).min(bytes.len());
            let before = bytes[at..end].to_vec();
            bytes[at..end].iter_mut().for_each(|byte| *byte = byte.wrapping_add(97));
            assert_ne!(before, bytes[at..end]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_done_to_what_is_shared_nothing_wrong_is_restored() {
    let rig = Rig::new();
    let root = cache(rig.directory.path(), 1);
    let bundle = rig.published(&rig.publisher("one").await, "a", &root).await;
    let graph = key(BundleKind::Graph, "a");
    let mut objects = Vec::new();
    for folder in ["packs", "bundles", "keys"] {
        objects.extend(std::fs::read_dir(rig.path("shared").join(folder)).unwrap().map(|entry| entry.unwrap().path()));
    }
    objects.sort();
    assert_eq!(objects.len(), 4);
    let node = rig.reader("two", |_| {}).await;
    let store = node.engines().await.unwrap();
    let scope = node.scope().clone();
    for seed in 0..400 {
        let object = &objects[seed as usize % objects.len()];
        let right = std::fs::read(object).unwrap();
        let mut wrong = right.clone();
        mutate(&mut wrong, seed);
        std::fs::write(object, &wrong).unwrap();
        let found = store.0.lookup(&scope, &graph, SOON).await.unwrap();
        let name = object.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(found.exact.is_none(), "mutation {seed} of {name}: {found:?}");
        assert!(!found.refused.is_empty(), "mutation {seed} of {name} is passed over in silence");
        std::fs::write(object, right).unwrap();
    }
    let found = store.0.lookup(&scope, &graph, SOON).await.unwrap();
    assert_eq!(found.exact.unwrap().id, bundle.id, "and it is still there for who has the right bytes");
}

/// An archive as whoever wants to deceive writes it: everything fits but what a key is needed for.
fn forged(document: &[u8], signature: &[u8], pack: &[u8]) -> Vec<u8> {
    let head = format!("preheat-bundle-archive 1\n{} {} {}\n", document.len(), signature.len(), pack.len());
    let mut archive = [head.as_bytes(), document, signature, pack].concat();
    let digest = blake3::hash(&archive).to_hex();
    archive.extend(digest.as_bytes());
    archive
}

/// A bundle of three small files as an archive, and the node that takes it in.
async fn archived(rig: &Rig) -> (Vec<u8>, preheat::engines::BundleView, Vec<u8>) {
    let root = rig.path("small");
    for (number, (path, size)) in [("a/x.so", 5_000), ("a/y.pickle", 3_000), ("b/empty", 0)].into_iter().enumerate() {
        put(&root.join(path), &noise(number as u64, size), 0o644, 1_700_000_000_000_000_007);
    }
    let publisher = rig.publisher("one").await;
    let id = rig.published(&publisher, "a", &root).await.id;
    let view = publisher.show(&id).await.unwrap();
    let mut pack = publisher.pack(&id).await.unwrap();
    let (mut archive, mut bytes) = (Vec::new(), Vec::new());
    pack.read_to_end(&mut bytes).unwrap();
    preheat::engines::export(&view.document, view.signature.as_ref(), &mut &bytes[..], &mut archive).unwrap();
    (archive, view, bytes)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_damaged_bundles_are_all_refused() {
    let rig = Rig::new();
    let (archive, view, _) = archived(&rig).await;
    let node = rig.reader("two", |config| config.origin = None).await;
    let store = node.engines().await.unwrap();
    let scope = node.scope().clone();
    for seed in 0..1_000 {
        let mut wrong = archive.clone();
        mutate(&mut wrong, seed);
        let outcome = store.0.import(&scope, true, &mut &wrong[..]);
        let error = outcome.expect_err(&format!("mutation {seed}"));
        assert!(
            matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Denied | ErrorKind::Invalid),
            "mutation {seed}: {error}"
        );
    }
    assert!(store.0.list(&scope).await.unwrap().is_empty());
    assert_eq!(std::fs::read_dir(rig.path("two/partials")).unwrap().count(), 0);
    let bundle = store.0.import(&scope, true, &mut &archive[..]).unwrap();
    node.close(store).await.unwrap();
    assert_eq!(bundle.id, view.bundle.id);
    let into = rig.path("view");
    node.restore(&bundle, &into).await.unwrap();
    assert_eq!(tree(&into.join("vllm")), tree(&rig.path("small")));
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_no_key_changes_nothing_and_whoever_has_one_does_not_leave_the_directory() {
    let rig = Rig::new();
    let (_, view, pack) = archived(&rig).await;
    let node = rig.reader("two", |config| config.origin = None).await;
    let store = node.engines().await.unwrap();
    let scope = node.scope().clone();
    let import = |document: &[u8], signature: &[u8], pack: &[u8]| {
        store.0.import(&scope, true, &mut &forged(document, signature, pack)[..]).map(|bundle| bundle.id)
    };
    let (document, signature) = (view.document.to_json(), view.signature.unwrap().to_json());
    // Another pickle of the same length.
    let mut poisoned = pack.clone();
    poisoned[5_000..8_000].fill(b'.');
    let error = import(&document, &signature, &poisoned).unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("y.pickle"), "{error}");
    // And a document that fits it.
    let mut bundle = view.document.clone();
    let mut files = bundle.manifest.files().to_vec();
    files[1].blake3 = Hash::of(&poisoned[5_000..8_000]);
    bundle.manifest = Manifest::new(Kind::Bundle, files).unwrap();
    bundle.pack = Some(Pack { blake3: Hash::of(&poisoned), size: poisoned.len() as u64 });
    let changed = bundle.to_json();
    let error = import(&changed, &signature, &poisoned).unwrap_err();
    assert!(error.kind() == ErrorKind::Denied && error.to_string().contains("does not fit"), "{error}");
    assert!(import(&changed, b"", &poisoned).unwrap_err().to_string().contains("not signed"));
    let (stranger, _) = SigningKey::generate().unwrap();
    let error = import(&changed, &stranger.sign(&changed).to_json(), &poisoned).unwrap_err();
    assert!(error.to_string().contains("does not trust"), "{error}");
    // Whoever has the key may lie about the files, and still writes nowhere else.
    let key = SigningKey::parse(&std::fs::read_to_string(&rig.key_file).unwrap()).unwrap();
    let text = String::from_utf8(document.clone()).unwrap();
    for (from, to) in [
        ("vllm/a/x.so", "vllm/../../x.so"),
        ("vllm/a/x.so", "/etc/cron.d/x"),
        ("vllm/a/x.so", "vllm/a/y.pickle"),
        ("\"mode\":420", "\"mode\":2541"),
        ("\"size\":5000", "\"size\":18446744073709551615"),
        ("\"size\":5000", "\"size\":5001"),
    ] {
        let lie = text.replacen(from, to, 1);
        assert_ne!(lie, text, "{from}");
        let error = import(lie.as_bytes(), &key.sign(lie.as_bytes()).to_json(), &pack).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{to}: {error}");
    }
    assert!(store.0.list(&scope).await.unwrap().is_empty());
    assert_eq!(import(&document, &signature, &pack).unwrap(), view.bundle.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_can_use_gives_way_at_the_shared_origin() {
    let rig = Rig::new();
    let (one, other) = (cache(rig.directory.path(), 1), cache(rig.directory.path(), 2));
    let own = Tenant::of_uid(rustix::process::geteuid().as_raw());
    let spoil = |name: &str, id: &BundleRef| {
        let pack = std::fs::read_dir(rig.path("shared/packs")).unwrap().next().unwrap().unwrap().path();
        let damage = |path: &Path, change: fn(&mut Vec<u8>)| {
            let mut bytes = std::fs::read(path).unwrap();
            change(&mut bytes);
            std::fs::write(path, bytes).unwrap();
        };
        match name {
            "document" => std::fs::remove_file(rig.path(&format!("shared/bundles/{}.json", id.id))).unwrap(),
            "signature" => damage(&rig.path(&format!("shared/bundles/{}.sig", id.id)), |bytes| bytes.truncate(9)),
            "pointer" => damage(&rig.path(&format!("shared/keys/{}.json", id.key)), |bytes| bytes[0] = b'['),
            "table" => damage(&pack, |bytes| bytes.truncate(bytes.len() / 2)),
            // Only who fetches it can tell.
            "frame" => damage(&pack, |bytes| bytes[100_000] ^= 1),
            "missing" => std::fs::remove_file(&pack).unwrap(),
            _ => {}
        }
    };
    for name in ["revoked", "document", "signature", "pointer", "table", "frame", "missing"] {
        let _ = std::fs::remove_dir_all(rig.path("shared"));
        std::fs::create_dir(rig.path("shared")).unwrap();
        let bad = rig.published(&rig.publisher(&format!("{name}-one")).await, "a", &one).await;
        spoil(name, &bad);
        let second = library(&rig.path(&format!("{name}-two")), |config| {
            rig.shares(config);
            config.signing_key_file = Some(rig.key_file.clone());
            config.publish = vec![own.clone()];
            config.revoked_bundles = if name == "revoked" { vec![bad.id] } else { Vec::new() };
        })
        .await;
        let found = second.lookup(&key(BundleKind::Graph, "a"), SOON).await.unwrap();
        assert!(found.exact.is_none() && !found.refused.is_empty(), "{name}");
        let good = rig.published(&second, "a", &other).await;
        let third = rig.reader(&format!("{name}-three"), |_| {}).await;
        let found = third.lookup(&key(BundleKind::Graph, "a"), SOON).await.unwrap();
        assert_eq!(found.exact.map(|bundle| bundle.id), Some(good.id), "{name}: {:?}", found.refused);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_published_mends_what_is_damaged() {
    let rig = Rig::new();
    let root = cache(rig.directory.path(), 1);
    let publisher = rig.publisher("one").await;
    let bundle = rig.published(&publisher, "a", &root).await;
    let pack = std::fs::read_dir(rig.path("shared/packs")).unwrap().next().unwrap().unwrap().path();
    let whole = std::fs::read(&pack).unwrap();
    std::fs::write(&pack, &whole[..whole.len() / 2]).unwrap();
    let graph = key(BundleKind::Graph, "a");
    let again = publisher.capture(capture(graph.clone(), &[("vllm", &root)])).await.unwrap();
    assert!(matches!(again, Captured::Existed { bundle: theirs } if theirs.id == bundle.id));
    assert!(std::fs::read(&pack).unwrap() == whole, "it has been written again");
    // A stranger's is not for this node to judge.
    let (stranger, _) = signer(rig.directory.path(), "stranger");
    let own = Tenant::of_uid(rustix::process::geteuid().as_raw());
    let other = library(&rig.path("two"), |config| {
        rig.shares(config);
        config.signing_key_file = Some(stranger);
        config.publish = vec![own];
    })
    .await;
    assert!(matches!(refusal(&other, "a").await, Refusal::UnknownSigner { .. }));
    rig.published(&other, "a", &cache(rig.directory.path(), 2)).await;
    let found = rig.reader("three", |_| {}).await.lookup(&graph, SOON).await.unwrap();
    assert_eq!(found.exact.map(|bundle| bundle.id), Some(bundle.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_operator_puts_an_older_one_back() {
    let rig = Rig::new();
    let (older, view, _) = archived(&rig).await;
    let publisher = rig.publisher("one").await;
    let root = cache(rig.directory.path(), 1);
    let refresh = Capture { refresh: true, ..capture(key(BundleKind::Graph, "a"), &[("vllm", &root)]) };
    let Captured::Created { bundle: newer, .. } = publisher.capture(refresh).await.unwrap() else { panic!() };
    assert!(newer.captured_at > view.document.captured_at);
    let node = rig.reader("two", |_| {}).await;
    let found = node.lookup(&key(BundleKind::Graph, "a"), SOON).await.unwrap().exact.unwrap();
    assert_eq!(found.id, newer.id);
    let store = node.engines().await.unwrap();
    let user = Tenant::of_uid(4_000);
    let error = store.0.import(&user, false, &mut &older[..]).unwrap_err();
    assert!(error.kind() == ErrorKind::Denied && error.to_string().contains("newer"), "{error}");
    let found = store.0.lookup(&user, &key(BundleKind::Graph, "a"), SOON).await.unwrap().exact.unwrap();
    assert_eq!(found.id, newer.id);
    store.0.import(&user, true, &mut &older[..]).unwrap();
    let found = store.0.lookup(&user, &key(BundleKind::Graph, "a"), SOON).await.unwrap().exact.unwrap();
    assert_eq!(found.id, view.bundle.id);
    node.close(store).await.unwrap();
}
