//! Bundles on a root without a daemon: what is captured comes back as it was, and nothing else ever comes.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use preheat::base::ErrorKind;
use preheat::engines::{
    AttemptEnd, Begun, BundleRef, Capture, Captured, Library, LocalLibrary, Refusal, Sending, Standing,
};
use preheat::model::Secret;
use preheat::model::engine::{BundleKind, EngineKey, Field, Role};

use super::support::engine::{cache, capture, key, library, put, tree};

const SOON: Duration = Duration::from_secs(5);

fn created(captured: Captured) -> BundleRef {
    match captured {
        Captured::Created { bundle, .. } => bundle,
        other => panic!("{other:?}"),
    }
}

async fn exact(library: &LocalLibrary, key: &EngineKey) -> BundleRef {
    library.lookup(key, SOON).await.unwrap().exact.expect("an exact bundle")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_captured_is_restored_with_its_modes_and_times() {
    let directory = tempfile::tempdir().unwrap();
    let library = library(&directory.path().join("root"), |_| {}).await;
    let (vllm, inductor) = (cache(directory.path(), 1), cache(directory.path(), 2));
    let graph = key(BundleKind::Graph, "a");
    let nothing = library.lookup(&graph, SOON).await.unwrap();
    assert!(nothing.exact.is_none() && nothing.refused.is_empty() && nothing.nearest.is_empty());
    let bundle =
        created(library.capture(capture(graph.clone(), &[("vllm", &vllm), ("inductor", &inductor)])).await.unwrap());
    assert_eq!((bundle.files, bundle.kind, bundle.evidence.cold_ms), (12, BundleKind::Graph, Some(42_000)));
    let found = exact(&library, &graph).await;
    assert_eq!(found, bundle);
    let into = directory.path().join("view");
    let restored = library.restore(&found, &into).await.unwrap();
    assert_eq!((restored.files, restored.bytes, restored.entries.len()), (12, bundle.bytes, 12));
    assert_eq!(tree(&into.join("vllm")), tree(&vllm));
    assert_eq!(tree(&into.join("inductor")), tree(&inductor));
    // A view is written to, and nobody else sees it.
    let file = into.join("vllm/startup_plan/plan.json");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::fs::write(&file, "other").unwrap();
    let second = directory.path().join("second");
    library.restore(&found, &second).await.unwrap();
    assert_eq!(tree(&second.join("vllm")), tree(&vllm));
    let error = library.restore(&found, &second).await.unwrap_err();
    assert!(error.to_string().contains("is there already"), "{error}");
    let left: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().contains("preheat-")), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_key_finds_nothing_and_is_told_what_is_near() {
    let directory = tempfile::tempdir().unwrap();
    let library = library(&directory.path().join("root"), |_| {}).await;
    let root = cache(directory.path(), 1);
    for run in ["a", "b"] {
        created(library.capture(capture(key(BundleKind::Graph, run), &[("vllm", &root)])).await.unwrap());
    }
    let found = library.lookup(&key(BundleKind::Graph, "c"), SOON).await.unwrap();
    assert!(found.exact.is_none());
    assert_eq!(found.nearest.len(), 2);
    let other = library.lookup(&key(BundleKind::Kernel, "a"), SOON).await.unwrap();
    assert!(other.exact.is_none() && other.nearest.is_empty(), "another kind is not near");
    assert_eq!(library.list().await.unwrap().len(), 2);
    let shown = library.show(&found.nearest[0].bundle.id).await.unwrap();
    assert_eq!((shown.refusal, shown.document.key), (None, found.nearest[0].key.clone()));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_hard_field_restores_and_captures_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let library = library(&directory.path().join("root"), |_| {}).await;
    let mut fields = key(BundleKind::Graph, "a").fields().clone();
    fields.insert("gpu.name".to_owned(), Field { value: None, role: Role::Hard, from: "no driver".to_owned() });
    let unknown = EngineKey::new(BundleKind::Graph, "vllm", 0, fields).unwrap();
    let found = library.lookup(&unknown, SOON).await.unwrap();
    assert!(found.exact.is_none());
    assert!(matches!(&found.refused[0].why, Refusal::Unusable { fields } if fields[0].contains("gpu.name")));
    let root = cache(directory.path(), 1);
    let error = library.capture(capture(unknown, &[("vllm", &root)])).await.unwrap_err();
    assert!(error.to_string().contains("gpu.name"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_capture_of_a_graph_stays_until_it_is_refreshed() {
    let directory = tempfile::tempdir().unwrap();
    let library = library(&directory.path().join("root"), |_| {}).await;
    let (first, second) = (cache(directory.path(), 1), cache(directory.path(), 2));
    let graph = key(BundleKind::Graph, "a");
    let empty = directory.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    assert_eq!(library.capture(capture(graph.clone(), &[("vllm", &empty)])).await.unwrap(), Captured::Nothing);
    let bundle = created(library.capture(capture(graph.clone(), &[("vllm", &first)])).await.unwrap());
    let again = Capture { base: Some(bundle.id), ..capture(graph.clone(), &[("vllm", &first)]) };
    let again = library.capture(again).await.unwrap();
    assert!(matches!(again, Captured::Unchanged { bundle: same } if same == bundle));
    let other = library.capture(capture(graph.clone(), &[("vllm", &second)])).await.unwrap();
    assert!(matches!(other, Captured::Existed { bundle: theirs } if theirs == bundle));
    assert_eq!(exact(&library, &graph).await, bundle);
    // What grew out of it is its next version; so is what is asked for.
    let grown = Capture { base: Some(bundle.id), ..capture(graph.clone(), &[("vllm", &second)]) };
    let grown = created(library.capture(grown).await.unwrap());
    assert_eq!(exact(&library, &graph).await, grown);
    let refresh = Capture { refresh: true, ..capture(graph.clone(), &[("vllm", &first)]) };
    let refreshed = created(library.capture(refresh).await.unwrap());
    assert_eq!(exact(&library, &graph).await, refreshed);
    let ids: Vec<_> = library.list().await.unwrap().into_iter().map(|near| near.bundle.id).collect();
    assert_eq!(ids, [refreshed.id, grown.id], "two versions are kept");
}

#[tokio::test(flavor = "multi_thread")]
async fn kernels_of_another_model_are_taken_over_by_whole_entries() {
    let directory = tempfile::tempdir().unwrap();
    let library = library(&directory.path().join("root"), |_| {}).await;
    let kernel = key(BundleKind::Kernel, "any");
    let (a, b) = (directory.path().join("a"), directory.path().join("b"));
    for (path, text) in [("one/k.cubin", "1"), ("one/k.json", "1j"), ("both/k.cubin", "A"), ("both/a.json", "Aj")] {
        put(&a.join(path), text.as_bytes(), 0o644, 1);
    }
    for (path, text) in [("two/k.cubin", "2"), ("both/k.cubin", "B")] {
        put(&b.join(path), text.as_bytes(), 0o644, 2);
    }
    let first = created(library.capture(capture(kernel.clone(), &[("triton", &a)])).await.unwrap());
    // B was started before A's were there, and captures what it made by itself.
    let second = library.capture(capture(kernel.clone(), &[("triton", &b)])).await.unwrap();
    let Captured::Created { bundle, taken_over, conflicts } = second else { panic!("{second:?}") };
    assert_eq!((taken_over, conflicts, bundle.files), (2, 1, 4));
    let into = directory.path().join("view");
    library.restore(&exact(&library, &kernel).await, &into).await.unwrap();
    let paths: Vec<_> = tree(&into).into_iter().map(|(path, (bytes, ..))| (path, bytes)).collect();
    let expected = [("both/k.cubin", "B"), ("one/k.cubin", "1"), ("one/k.json", "1j"), ("two/k.cubin", "2")];
    let expected = expected.map(|(path, text)| (format!("triton/{path}"), text.as_bytes().to_vec()));
    assert_eq!(paths, expected, "entries are not mixed");
    assert_eq!(tree(&into)["triton/one/k.cubin"].2, 1, "times are kept");
    assert_ne!(first.id, bundle.id);
    // C comes out of it with nothing new.
    let again = Capture { base: Some(bundle.id), ..capture(kernel, &[("triton", &into.join("triton"))]) };
    assert!(matches!(library.capture(again).await.unwrap(), Captured::Unchanged { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn eight_captures_at_once_make_one_bundle_and_eight_views() {
    let directory = tempfile::tempdir().unwrap();
    let library = Arc::new(library(&directory.path().join("root"), |_| {}).await);
    let graph = key(BundleKind::Graph, "a");
    let roots: Vec<_> = (1..=8).map(|seed| cache(directory.path(), seed)).collect();
    let captures = roots.iter().map(|root| {
        let (library, capture) = (Arc::clone(&library), capture(graph.clone(), &[("vllm", root)]));
        tokio::spawn(async move { library.capture(capture).await.unwrap() })
    });
    let outcomes = futures_util::future::join_all(captures.collect::<Vec<_>>()).await;
    let count = |wanted: fn(&Captured) -> bool| outcomes.iter().filter(|one| wanted(one.as_ref().unwrap())).count();
    assert_eq!(count(|one| matches!(one, Captured::Created { .. })), 1);
    assert_eq!(count(|one| matches!(one, Captured::Existed { .. })), 7);
    assert_eq!(library.list().await.unwrap().len(), 1);
    let bundle = exact(&library, &graph).await;
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
async fn what_must_not_leave_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let library = library(&directory.path().join("root"), |_| {}).await;
    let root = cache(directory.path(), 1);
    put(&root.join("factors.json"), b"{\"env\": {\"HF_TOKEN\": \"hf_0123456789\"}}", 0o644, 1);
    let graph = key(BundleKind::Graph, "a");
    let secrets = vec![("HF_TOKEN".to_owned(), Secret::new("hf_0123456789".to_owned()))];
    let with = |secrets| Capture { secrets, ..capture(graph.clone(), &[("vllm", &root)]) };
    let error = library.capture(with(secrets)).await.unwrap_err().to_string();
    assert!(
        error.contains("factors.json") && error.contains("$HF_TOKEN") && !error.contains("hf_0123456789"),
        "{error}"
    );
    assert!(library.list().await.unwrap().is_empty());
    std::fs::remove_file(root.join("factors.json")).unwrap();
    symlink("/etc/passwd", root.join("link")).unwrap();
    let error = library.capture(with(Vec::new())).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Invalid && error.to_string().contains("leads out"), "{error}");
    assert!(library.list().await.unwrap().is_empty());
}

/// The one file of the store that has these bytes.
fn stored(root: &Path, bytes: &[u8]) -> std::path::PathBuf {
    let blobs = std::fs::read_dir(root.join("blobs")).unwrap().map(|entry| entry.unwrap().path());
    let mut found = blobs.filter(|path| std::fs::read(path).unwrap() == bytes);
    found.next().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_rot_on_the_node_never_reach_a_view() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let library = library(&root, |_| {}).await;
    let source = cache(directory.path(), 1);
    let graph = key(BundleKind::Graph, "a");
    let bundle = created(library.capture(capture(graph.clone(), &[("vllm", &source)])).await.unwrap());
    let spoil = |path: &Path, at: usize| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let mut bytes = std::fs::read(path).unwrap();
        bytes[at] ^= 1;
        std::fs::write(path, bytes).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o444)).unwrap();
    };
    let pack: Vec<u8> = tree(&source).into_values().flat_map(|(bytes, ..)| bytes).collect();
    let pack = stored(&root, &pack);
    spoil(&pack, 700_000);
    let into = directory.path().join("view");
    let error = library.restore(&bundle, &into).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Corrupt && error.to_string().contains("caa.so"), "{error}");
    assert!(!into.exists());
    spoil(&pack, 700_000);
    library.restore(&bundle, &into).await.unwrap();
    let shown = library.show(&bundle.id).await.unwrap();
    spoil(&stored(&root, &shown.document.to_json()), 200);
    let found = library.lookup(&graph, SOON).await.unwrap();
    assert!(found.exact.is_none());
    assert!(matches!(found.refused[0].why, Refusal::Corrupt { .. }));
    // It is out of the way: the next capture takes its place.
    let again = created(library.capture(capture(graph.clone(), &[("vllm", &source)])).await.unwrap());
    assert_eq!(exact(&library, &graph).await, again);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_that_breaks_an_engine_is_not_restored_again() {
    let directory = tempfile::tempdir().unwrap();
    let library = library(&directory.path().join("root"), |_| {}).await;
    let root = cache(directory.path(), 1);
    let graph = key(BundleKind::Graph, "a");
    let bundle = created(library.capture(capture(graph.clone(), &[("vllm", &root)])).await.unwrap());
    let attempt = library.begin_attempt(&bundle.id).await.unwrap();
    assert_eq!(exact(&library, &graph).await.unfinished.len(), 1);
    let suspect = AttemptEnd::Suspect { reason: "exit code 1".to_owned() };
    library.end_attempt(&bundle.id, &attempt, suspect).await.unwrap();
    let found = exact(&library, &graph).await;
    assert!(matches!(found.standing, Standing::Suspect { .. }) && found.unfinished.is_empty());
    let attempt = library.begin_attempt(&bundle.id).await.unwrap();
    let bad = AttemptEnd::Quarantine { reason: "it is ready without it".to_owned() };
    library.end_attempt(&bundle.id, &attempt, bad).await.unwrap();
    let found = library.lookup(&graph, SOON).await.unwrap();
    assert!(found.exact.is_none());
    assert!(matches!(&found.refused[0].why, Refusal::Quarantined { reason } if reason.contains("ready without")));
    let error = library.restore(&bundle, &directory.path().join("view")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    // It is no hindrance to a better one.
    let other = cache(directory.path(), 2);
    let better = created(library.capture(capture(graph.clone(), &[("vllm", &other)])).await.unwrap());
    assert_eq!(exact(&library, &graph).await, better);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capture_that_breaks_off_leaves_nothing_and_lets_the_next_in() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let library = library(&root, |_| {}).await;
    let source = cache(directory.path(), 1);
    let graph = key(BundleKind::Graph, "a");
    let store = library.engines().await.unwrap();
    let (mut sending, draft) = Sending::prepare(&capture(graph.clone(), &[("vllm", &source)])).unwrap();
    let partials = || std::fs::read_dir(root.join("partials")).unwrap().count();
    for ends in ["in the middle", "before the last byte"] {
        let begun = store.0.begin_capture(library.scope(), draft.clone()).await.unwrap();
        let Begun::Wanted(mut capturing) = begun else { panic!("{begun:?}") };
        capturing.push(&[7; 1_200_000]).unwrap();
        assert_eq!(partials(), 1);
        if ends == "in the middle" {
            drop(capturing);
        } else {
            let error = capturing.finish().await.unwrap_err();
            assert!(error.to_string().contains("fewer bytes"), "{error}");
        }
        assert_eq!(partials(), 0, "{ends}");
    }
    let begun = store.0.begin_capture(library.scope(), draft).await.unwrap();
    let Begun::Wanted(mut capturing) = begun else { panic!("{begun:?}") };
    sending.read(&mut |bytes| capturing.push(bytes)).unwrap();
    assert!(capturing.push(&[0]).unwrap_err().to_string().contains("more bytes"));
    created(capturing.finish().await.unwrap());
    library.close(store).await.unwrap();
    exact(&library, &graph).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_before_anything_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let root = cache(directory.path(), 1);
    let library = library(&directory.path().join("root"), |config| {
        config.bundle_bytes_max = preheat::base::units::ByteSize(1_000_000);
    })
    .await;
    let error = library.capture(capture(key(BundleKind::Graph, "a"), &[("vllm", &root)])).await.unwrap_err();
    assert!(error.to_string().contains("bundle_bytes_max"), "{error}");
}
