//! Making room without taking what anybody needs.

use super::*;
use crate::base::ErrorKind;

const MODEL: usize = 2 * GROUP_BYTES as usize;

fn model(store: &Store, number: u64) -> Result<Model, StoreError> {
    let bytes = noise(number, MODEL);
    let model =
        publish(store, &format!("m{number}"), &[("model.safetensors", &bytes), ("config.json", &[number as u8])])?;
    store.flush()?;
    store.touch(&model.record.tenant, &model.record.id);
    // The order of use must not depend on the clock's resolution.
    let id = (model.record.tenant.clone(), model.record.id.clone());
    if let Some(entry) = store.inner.index().models.get_mut(&id) {
        entry.last_used = number;
    }
    Ok(model)
}

fn pin(id: &str, expires_at: Option<u64>) -> Pin {
    Pin { id: id.to_owned(), reason: "test".to_owned(), expires_at, in_memory: false }
}

#[test]
fn the_least_recently_used_goes_and_what_is_kept_stays() {
    let mut fixture = Fixture::new();
    fixture.capacity = Some(5 * (MODEL as u64 + 80_000));
    let store = fixture.open("one");
    let models: Vec<Model> = (1..=4).map(|number| model(&store, number).unwrap()).collect();
    let tenant = Tenant::default();
    store.pin(&tenant, &models[0].record.id, pin("keep", None)).unwrap();
    store.pin(&tenant, &models[1].record.id, pin("lease", Some(now() + 3600))).unwrap();
    let open = std::fs::File::open(models[2].path.join("model.safetensors")).unwrap();
    for number in 5..=9 {
        model(&store, number).unwrap();
        assert!(store.usage().blobs <= fixture.capacity.unwrap());
    }
    let ids: Vec<String> = store.models().into_iter().map(|model| model.record.reference).collect();
    for (number, there) in [(1, true), (2, true), (3, true), (4, false), (5, false), (9, true)] {
        assert_eq!(ids.contains(&format!("file:///models/m{number}")), there, "m{number} in {ids:?}");
    }
    drop(open);
    let done = store.gc(true).unwrap();
    let mut kept: Vec<&str> = done.kept.iter().map(|(_, why)| why.as_str()).collect();
    kept.sort_unstable();
    assert_eq!(kept, ["leased", "pinned"]);
    assert_eq!(store.models().len(), 2);
    store.close().unwrap();
    // Pins outlive the process; a lapsed lease does not.
    let store = fixture.open("two");
    assert_eq!(store.models().iter().map(|model| model.pins.len()).sum::<usize>(), 2);
    store.pin(&tenant, &models[1].record.id, pin("lease", Some(now() - 1))).unwrap();
    assert!(store.unpin(&tenant, &models[0].record.id, "keep").unwrap());
    assert!(!store.unpin(&tenant, &models[0].record.id, "keep").unwrap());
    store.gc(true).unwrap();
    assert_eq!((store.models().len(), store.usage().blobs), (0, 0));
    assert_eq!(fixture.verify().faults, []);
}

#[test]
fn what_does_not_fit_is_refused_with_the_reasons() {
    let mut fixture = Fixture::new();
    fixture.capacity = Some(3 * MODEL as u64 / 2);
    let store = fixture.open("one");
    let first = model(&store, 1).unwrap();
    store.pin(&first.record.tenant, &first.record.id, pin("keep", None)).unwrap();
    let error = store.reserve(MODEL as u64, &[]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoSpace);
    assert!(error.to_string().contains("pinned") && error.to_string().contains("store.capacity"), "{error}");
    assert_eq!(store.inner.index().account.reserved, 0);
}

#[test]
fn shared_blobs_stay_while_any_model_names_them() {
    let fixture = Fixture::new();
    let store = fixture.open("one");
    let shared = noise(1, MODEL);
    let one = publish(&store, "one", &[("a", &shared), ("b", b"1")]).unwrap();
    let two = publish(&store, "two", &[("a", &shared), ("b", b"2")]).unwrap();
    let done = store.remove(&one.record.tenant, &one.record.id).unwrap();
    assert_eq!(done.blobs, 1);
    assert!(is_right(&two, &[("a", &shared), ("b", b"2")]));
    assert!(store.model(&one.record.tenant, &one.record.id).is_none());
    assert_eq!(store.remove(&one.record.tenant, &one.record.id).unwrap_err().kind(), ErrorKind::NotFound);
}

#[test]
fn held_blobs_and_open_partials_are_not_orphans() {
    let fixture = Fixture::new();
    let store = fixture.open("one");
    let (held, free, large) = (noise(1, 100), noise(2, 100), noise(3, MODEL));
    let hold = fetch(&store, &held);
    drop(fetch(&store, &free));
    let reservation = store.reserve(store.cost_to_begin(&key(&large), MODEL as u64), &[]).unwrap();
    let partial = store.begin(key(&large), MODEL as u64, &reservation).unwrap();
    store.gc(true).unwrap();
    assert!(store.hold(&hold.hash).is_some());
    assert!(store.hold(&Hash::of(&free)).is_none());
    write_missing(&partial, &large);
    drop(partial);
    store.gc(false).unwrap();
    assert!(store.cost_to_begin(&key(&large), MODEL as u64) == 0, "an idle partial can be resumed for a day");
    store.gc(true).unwrap();
    assert!(store.cost_to_begin(&key(&large), MODEL as u64) > 0);
    drop((reservation, hold));
    store.gc(true).unwrap();
    assert_eq!(store.inner.index().account, space::Account::default());
}

#[test]
fn bad_pins_are_refused() {
    let fixture = Fixture::new();
    let store = fixture.open("one");
    let model = model(&store, 1).unwrap();
    for id in ["", "../../x", "UPPER", &"x".repeat(64)] {
        let error = store.pin(&model.record.tenant, &model.record.id, pin(id, None)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{id}");
    }
}

#[test]
fn publishing_and_evicting_at_once_leaves_whole_models_and_nothing_else() {
    let fixture = Fixture::new();
    let store = fixture.open("one");
    let files: Vec<(String, Vec<u8>)> = (0..24).map(|number| (format!("d/{number}"), noise(number, 64))).collect();
    let files: Vec<(&str, &[u8])> = files.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice())).collect();
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            for _ in 0..100 {
                publish(&store, "m", &files).unwrap();
            }
        });
        while !publisher.is_finished() {
            store.gc(true).unwrap();
        }
    });
    let known: Vec<Model> = store.models();
    assert!(known.iter().all(|model| is_right(model, &files)));
    let trees = fixture.root().join("trees/default");
    assert_eq!(listing(&trees).len(), known.len());
    store.gc(true).unwrap();
    for place in ["trees/default", "blobs", "manifests", "models/default", "pending/default", "received", "tmp"] {
        assert_eq!(listing(&fixture.root().join(place)), [""; 0], "{place}");
    }
    assert_eq!(store.inner.index().account, space::Account::default());
}

/// What a model costs to evict is what it has, and not what the store has: in the index alone, where the lock is held. Minutes
/// where each blob is looked for among all names.
#[test]
fn many_blobs_are_forgotten_at_once() {
    const BLOBS: u64 = 60_000;
    let mut index = crate::store::index::Index::default();
    let hash = |number: u64| Hash::of(&number.to_le_bytes());
    let key = |number: u64| FlightKey::new(&Tenant::default(), &origin(), "a", "s:1", number);
    for number in 0..BLOBS {
        let blob = crate::store::index::Blob::new(1, Home::Sealed, None, false);
        index.add_blob(hash(number), blob);
        index.known.learn_key(key(number), hash(number));
        index.known.learn_sha256(&format!("{number:064x}"), hash(number));
    }
    let begun = std::time::Instant::now();
    for number in 0..BLOBS {
        index.remove_blob(&hash(number)).unwrap();
        assert_eq!(index.known.by_key(&key(number)), None);
    }
    assert_eq!(index.account.blobs, 0);
    assert!(begun.elapsed().as_secs() < 10, "{:?}", begun.elapsed());
}
