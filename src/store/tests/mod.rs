//! The store as its callers see it. A crash is simulated by stopping between two steps, dropping the store, and opening the
//! root again: with the same boot id it was a kill, with another a power cut after which unsynced bytes are not believed.

mod crash;
mod evict;
mod rot;

use std::path::Path;

use super::*;
use crate::digest::{GROUP_BYTES, group_range};
use crate::model::{FilePath, Kind, ManifestEntry, OriginFacts, OriginId, Revision, Selection};

/// A store in a directory of its own.
struct Fixture {
    directory: tempfile::TempDir,
    capacity: Option<u64>,
}

impl Fixture {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), capacity: None }
    }

    fn root(&self) -> std::path::PathBuf {
        self.directory.path().join("root")
    }

    fn open(&self, boot: &str) -> Store {
        self.try_open(boot).unwrap()
    }

    fn try_open(&self, boot: &str) -> Result<Store, StoreError> {
        let mut options = Options::new(boot.into());
        options.capacity = self.capacity.map(crate::base::units::ByteSize);
        options.keep_free = Some(crate::base::units::ByteSize(0));
        let holder = Holder { role: "test".to_owned(), pid: 1 };
        Store::open(&self.root(), &holder, options)
    }

    fn verify(&self) -> Verification {
        ReadOnlyStore::open(&self.root()).unwrap().verify(&mut |_, _| {}).unwrap()
    }
}

/// Noise that differs by seed.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn origin() -> OriginId {
    OriginId::new("file:///models/test".to_owned())
}

fn key(bytes: &[u8]) -> FlightKey {
    FlightKey::new(&Tenant::default(), &origin(), &Hash::of(bytes).to_string(), "s:1", bytes.len() as u64)
}

/// Fetches `bytes` as a transfer would: small ones whole, large ones by groups.
fn fetch(store: &Store, bytes: &[u8]) -> BlobHold {
    let size = bytes.len() as u64;
    let key = key(bytes);
    if let Some(hold) = store.hold_by_key(&key) {
        return hold;
    }
    let reservation = store.reserve(store.cost_to_begin(&key, size), &[key]).unwrap();
    if size <= GROUP_BYTES {
        return store.put_small(key, bytes, &[], &reservation).unwrap();
    }
    let partial = store.begin(key, size, &reservation).unwrap();
    write_missing(&partial, bytes);
    partial.complete(None, &[]).unwrap()
}

fn write_missing(partial: &Partial, bytes: &[u8]) {
    for run in partial.missing() {
        for index in run {
            write(partial, index, bytes);
        }
    }
}

fn write(partial: &Partial, index: u64, bytes: &[u8]) {
    let range = group_range(partial.size(), index);
    let cv = partial.write_group(index, &bytes[range.start as usize..range.end as usize]).unwrap();
    partial.received(index, &[cv]).unwrap();
}

/// Publishes `files` as a model named `name`.
fn publish(store: &Store, name: &str, files: &[(&str, &[u8])]) -> Result<Model, StoreError> {
    let blobs: Vec<BlobHold> = files.iter().map(|(_, bytes)| fetch(store, bytes)).collect();
    let entries = files
        .iter()
        .map(|(path, bytes)| ManifestEntry::new(FilePath::new(*path).unwrap(), bytes.len() as u64, Hash::of(bytes)))
        .collect();
    let manifest = Manifest::new(Kind::Model, entries).unwrap();
    let revision = Revision::Listing(Hash::of(name.as_bytes()));
    let tenant = Tenant::default();
    let record = ModelRecord {
        version: 1,
        id: ModelId::new(&tenant, &origin(), &Selection::default(), &revision),
        tenant,
        reference: format!("file:///models/{name}"),
        revision,
        manifest: manifest.digest(),
        bytes: manifest.total_bytes(),
        files: files.len() as u64,
        published_at: 1,
        asked_by: None,
        facts: OriginFacts { origin: origin(), resolved_at: 1, files: Vec::new() },
    };
    store.publish(Publication { record, manifest, blobs, alias: Some(name.to_owned()) })
}

fn is_right(model: &Model, files: &[(&str, &[u8])]) -> bool {
    files.iter().all(|(path, bytes)| std::fs::read(model.path.join(path)).is_ok_and(|found| found == *bytes))
}

#[test]
fn a_model_is_readable_at_once_and_durable_after_sealing() {
    let fixture = Fixture::new();
    let large = noise(1, 3 * GROUP_BYTES as usize + 5);
    let files: [(&str, &[u8]); 4] =
        [("a/model.safetensors", &large), ("config.json", b"{}"), ("empty", b""), ("b/c/d", b"{}")];
    let store = fixture.open("one");
    let model = publish(&store, "m", &files).unwrap();
    assert!(is_right(&model, &files) && !model.durable);
    assert_eq!(store.blob_state(&Hash::of(&large)), Some(BlobState::Readable));
    assert!(
        std::fs::read_link(fixture.root().join("aliases/default/m"))
            .is_ok_and(|to| to.ends_with(model.record.id.as_str()))
    );
    let mode = |path: &Path| std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(path).unwrap()) & 0o777;
    assert_eq!((mode(&model.path), mode(&model.path.join("config.json"))), (0o555, 0o444));
    store.flush().unwrap();
    let sealed = store.model(&model.record.tenant, &model.record.id).unwrap();
    assert!(sealed.durable && is_right(&sealed, &files) && sealed.path == model.path);
    assert_eq!(store.blob_state(&Hash::of(&large)), Some(BlobState::Sealed));
    assert_eq!(fixture.verify().faults, []);
    store.close().unwrap();
    for boot in ["one", "two"] {
        let store = fixture.open(boot);
        let model = store.models().pop().unwrap();
        assert!(model.durable && is_right(&model, &files), "boot {boot}");
        assert!(store.hold_by_key(&key(&large)).is_some());
        store.close().unwrap();
    }
}

#[test]
fn publishing_again_changes_nothing() {
    let fixture = Fixture::new();
    let store = fixture.open("one");
    let files: [(&str, &[u8]); 1] = [("config.json", b"{}")];
    let first = publish(&store, "m", &files).unwrap();
    let inode = |model: &Model| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&model.path).unwrap());
    let before = inode(&first);
    store.flush().unwrap();
    let second = publish(&store, "m", &files).unwrap();
    assert_eq!((inode(&second), second.durable), (before, true));
}

#[test]
fn a_second_writer_is_told_who_holds_the_root() {
    let fixture = Fixture::new();
    let _store = fixture.open("one");
    let error = fixture.try_open("one").unwrap_err().to_string();
    assert!(error.contains("preheat test") && error.contains("pid 1"), "{error}");
}

#[test]
fn other_formats_are_refused_and_left_alone() {
    let fixture = Fixture::new();
    fixture.open("one").close().unwrap();
    let format = fixture.root().join("FORMAT");
    for (text, says) in [
        (r#"{"format":"preheat-store","version":2,"anything":"new"}"#, "upgrade"),
        (r#"{"format":"something","version":1}"#, "not a preheat store"),
        ("", "not a preheat store"),
    ] {
        std::fs::write(&format, text).unwrap();
        let before = listing(&fixture.root());
        assert!(fixture.try_open("one").unwrap_err().to_string().contains(says));
        assert!(ReadOnlyStore::open(&fixture.root()).unwrap_err().to_string().contains(says));
        assert_eq!(listing(&fixture.root()), before);
    }
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("precious"), "x").unwrap();
    let holder = Holder { role: "test".to_owned(), pid: 1 };
    assert!(matches!(
        Store::open(other.path(), &holder, Options::new("one".into())),
        Err(StoreError::NotAStore { .. })
    ));
}

fn listing(root: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_wrong_root_is_never_a_blob() {
    let fixture = Fixture::new();
    let store = fixture.open("one");
    let bytes = noise(3, 2 * GROUP_BYTES as usize);
    let key = key(&bytes);
    let reservation = store.reserve(store.cost_to_begin(&key, bytes.len() as u64), &[]).unwrap();
    let partial = store.begin(key, bytes.len() as u64, &reservation).unwrap();
    write_missing(&partial, &bytes);
    let error = partial.complete(Some(Hash::of(b"other")), &[]).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }));
    assert!(store.hold_by_key(&key).is_none() && store.hold(&Hash::of(&bytes)).is_none());
    drop(reservation);
    assert_eq!(store.inner.index().account, space::Account::default(), "everything is given back");
}

#[test]
fn equal_bytes_under_two_keys_are_one_blob() {
    let fixture = Fixture::new();
    let store = fixture.open("one");
    let bytes = noise(4, 2 * GROUP_BYTES as usize);
    let first = fetch(&store, &bytes);
    store.flush().unwrap();
    let other = FlightKey::new(&Tenant::default(), &origin(), "elsewhere", "s:9", bytes.len() as u64);
    let reservation = store.reserve(store.cost_to_begin(&other, bytes.len() as u64), &[]).unwrap();
    let partial = store.begin(other, bytes.len() as u64, &reservation).unwrap();
    write_missing(&partial, &bytes);
    assert_eq!(partial.complete(None, &[]).unwrap().hash, first.hash);
    drop(reservation);
    assert_eq!(store.usage().blob_count, 1);
    assert_eq!(store.inner.index().account.partials, 0);
    store.close().unwrap();
    assert!(fixture.open("two").hold_by_key(&other).is_some(), "the catalog has both keys");
}

#[test]
fn equal_bytes_that_arrive_at_once_are_charged_once_and_held_by_both() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let fixture = Fixture::new();
    let store = fixture.open("one");
    let hash = Hash::of(b"shared");
    let turn = AtomicU64::new(0);
    let arrive = |name: &str, round: u64| {
        let key = FlightKey::new(&Tenant::default(), &origin(), name, &format!("s:{round}"), 6);
        // Spinning, so that both are woken within nanoseconds.
        turn.fetch_add(1, Ordering::SeqCst);
        while turn.load(Ordering::SeqCst) < 2 * (round + 1) {
            std::hint::spin_loop();
        }
        store.inner.adopt(key, hash, 6, Home::Received(key), None, &[])
    };
    for round in 0..300 {
        let (one, other) = std::thread::scope(|scope| {
            let one = scope.spawn(|| arrive("one", round));
            (arrive("other", round), one.join().unwrap())
        });
        assert_eq!(store.inner.index().account.blobs, space::cost(6), "round {round}");
        drop(one);
        assert!(store.inner.index().blobs[&hash].is_held(), "round {round}");
        drop(other);
        assert!(!store.inner.index().blobs[&hash].is_held(), "round {round}");
        store.inner.index().remove_blob(&hash);
    }
}
