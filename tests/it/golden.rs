//! The stores of `cache-layout/golden`: what was written by a released version is read by every later one.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use preheat::base::BootId;
use preheat::digest::{Hash, group_count};
use preheat::model::FlightKey;
use preheat::store::{Holder, Options, ReadOnlyStore, Store};

use super::support::model::read;

const MODEL: &str = "tiny-0cb57908695ebbf896001d6def50d608";
const BOOT: &str = "00000000-0000-4000-8000-000000000001";
const PARTIAL: &str = "68efd0dccde230782a20a2843827cd6995ea0a34c835eaeac1d77ffe8a14bb33";
const PARTIAL_BYTES: u64 = 9437264;

fn copy() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("store");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("cache-layout/golden/1");
    for (path, bytes) in read(&golden) {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        // Version control keeps no modes.
        if path.parent().unwrap().ends_with("blobs") {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o444)).unwrap();
        }
    }
    (directory, root)
}

fn open(root: &Path, boot: &str) -> Store {
    let holder = Holder { role: "test".to_owned(), pid: 1 };
    Store::open(root, &holder, Options::new(BootId::from(boot))).unwrap()
}

#[test]
fn the_sealed_model_is_there_and_right() {
    let (_directory, root) = copy();
    let store = open(&root, "another boot");
    let models = store.models();
    assert_eq!(models.len(), 1);
    let model = &models[0];
    assert_eq!((model.record.id.as_str(), model.durable), (MODEL, true));
    assert_eq!(model.record.reference, "file:///models/tiny");
    assert_eq!(model.record.manifest.to_string(), "b1e83e05d6b464b10a30e112257023d2c026a8c5152267d5d4f16250524274d4");
    assert_eq!(model.pins.iter().map(|pin| pin.id.as_str()).collect::<Vec<_>>(), ["production"]);
    let files = read(&model.path);
    assert_eq!(
        files.keys().collect::<Vec<_>>(),
        ["1_Pooling/config.json", "config.json", "model.safetensors", "tokenizer.json", "vocab.txt"]
    );
    let manifest = store.manifest(&model.record.manifest).unwrap();
    assert!(manifest.files().iter().all(|entry| Hash::of(&files[entry.path.as_str()]) == entry.blake3));
    let verified = ReadOnlyStore::open(&root).unwrap().verify(&mut |_, _| {}).unwrap();
    assert_eq!((verified.models, verified.blobs, verified.faults.len()), (1, 5, 0), "{:?}", verified.faults);
}

#[test]
fn of_the_partial_what_is_durable_is_kept_and_on_the_same_boot_what_was_received() {
    for (boot, kept) in [("another boot", 5), (BOOT, 6)] {
        let (_directory, root) = copy();
        let store = open(&root, boot);
        let key: FlightKey = PARTIAL.parse().unwrap();
        let reservation = store.reserve(store.cost_to_begin(&key, PARTIAL_BYTES), &[key]).unwrap();
        let partial = store.begin(key, PARTIAL_BYTES, &reservation).unwrap();
        let missing: u64 = partial.missing().iter().map(|run| run.end - run.start).sum();
        assert_eq!(group_count(PARTIAL_BYTES) - missing, kept, "{boot}");
    }
}
