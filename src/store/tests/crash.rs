//! What a kill or a power cut between two steps leaves: the numbered arguments of `cache-layout/README.md`.

use super::*;

/// Runs `work` on a store that stops at `step`, then gives it up without an orderly stop.
fn crash_at(fixture: &Fixture, step: &'static str, work: impl FnOnce(&Store) -> Result<(), StoreError>) {
    let store = fixture.open("one");
    *store.inner.crash_at.lock().unwrap() = Some(step);
    let error = work(&store).expect_err("the step is reached");
    assert!(error.to_string().contains(step), "{error}");
}

#[test]
fn a_kill_keeps_what_was_received_and_a_power_cut_what_was_durable() {
    let bytes = noise(1, 6 * GROUP_BYTES as usize);
    for (boot, missing) in [("one", 5..6), ("two", 2..6)] {
        let fixture = Fixture::new();
        let store = fixture.open("one");
        let reservation = store.reserve(store.cost_to_begin(&key(&bytes), bytes.len() as u64), &[]).unwrap();
        let partial = store.begin(key(&bytes), bytes.len() as u64, &reservation).unwrap();
        write(&partial, 0, &bytes);
        write(&partial, 1, &bytes);
        partial.sync().unwrap();
        for index in 2..5 {
            write(&partial, index, &bytes);
        }
        drop((partial, reservation, store));
        let store = fixture.open(boot);
        let reservation = store.reserve(store.cost_to_begin(&key(&bytes), bytes.len() as u64), &[]).unwrap();
        let partial = store.begin(key(&bytes), bytes.len() as u64, &reservation).unwrap();
        assert_eq!(partial.missing(), [missing], "boot {boot}");
        write_missing(&partial, &bytes);
        assert_eq!(partial.complete(None, &[]).unwrap().hash, Hash::of(&bytes));
    }
}

#[test]
fn received_groups_that_do_not_hash_are_fetched_again() {
    let bytes = noise(2, 4 * GROUP_BYTES as usize);
    let fixture = Fixture::new();
    let store = fixture.open("one");
    let reservation = store.reserve(store.cost_to_begin(&key(&bytes), bytes.len() as u64), &[]).unwrap();
    let partial = store.begin(key(&bytes), bytes.len() as u64, &reservation).unwrap();
    write(&partial, 0, &bytes);
    write(&partial, 2, &bytes);
    partial.sync().unwrap();
    let data = store.inner.layout.partial(&key(&bytes)).join("data");
    drop((partial, reservation, store));
    let file = std::fs::File::options().write(true).open(data).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"torn", 2 * GROUP_BYTES + 77).unwrap();
    let store = fixture.open("two");
    let reservation = store.reserve(0, &[]).unwrap();
    assert_eq!(store.begin(key(&bytes), bytes.len() as u64, &reservation).unwrap().missing(), vec![1..4]);
}

#[test]
fn a_whole_blob_of_no_model_is_taken_up_again_whoever_runs_it() {
    use std::os::unix::fs::PermissionsExt;
    let bytes = noise(2, 3 * GROUP_BYTES as usize);
    let fixture = Fixture::new();
    let store = fixture.open("one");
    // Complete, and its process killed before the model that it belongs to had its other files.
    drop(fetch(&store, &bytes));
    let data = store.inner.layout.partial(&key(&bytes)).join("data");
    drop(store);
    let store = fixture.open("one");
    let reservation = store.reserve(0, &[]).unwrap();
    let partial = store.begin(key(&bytes), bytes.len() as u64, &reservation).unwrap();
    let mode = std::fs::metadata(&data).unwrap().permissions().mode() & 0o777;
    assert_eq!((partial.missing(), mode), (vec![], 0o600), "a process that is not root may write to it");
    assert_eq!(partial.complete(None, &[]).unwrap().hash, Hash::of(&bytes));
    assert_eq!(std::fs::metadata(&data).unwrap().permissions().mode() & 0o777, 0o444);
}

#[test]
fn sealing_stopped_at_any_step_loses_nothing_readable() {
    let large = noise(3, 2 * GROUP_BYTES as usize + 1);
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &large)];
    for step in ["synced", "named", "directories synced", "catalogued", "manifest written", "record written"] {
        let fixture = Fixture::new();
        crash_at(&fixture, step, |store| {
            publish(store, "m", &files).unwrap();
            store.flush()
        });
        let store = fixture.open("one");
        let model = store.models().pop().unwrap_or_else(|| panic!("killed at `{step}`: the model is gone"));
        assert!(is_right(&model, &files), "killed at `{step}`");
        store.flush().unwrap();
        assert!(store.models()[0].durable, "killed at `{step}`");
        store.close().unwrap();
        assert_eq!(fixture.verify().faults, [], "killed at `{step}`");
    }
}

#[test]
fn sealing_that_fails_halfway_hides_nothing_and_goes_on_the_next_time() {
    let large = noise(3, 2 * GROUP_BYTES as usize + 1);
    let small = noise(4, 100);
    let files: [(&str, &[u8]); 2] = [("config.json", &small), ("model.safetensors", &large)];
    for step in ["synced", "named", "directories synced", "catalogued", "manifest written", "record written"] {
        let fixture = Fixture::new();
        let store = fixture.open("one");
        let model = publish(&store, "m", &files).unwrap();
        *store.inner.crash_at.lock().unwrap() = Some(step);
        store.flush().expect_err(step);
        for bytes in [&small, &large] {
            let reader =
                store.open_blob(&Hash::of(bytes)).unwrap_or_else(|error| panic!("failed at `{step}`: {error}"));
            reader.verify(&mut |_| {}).unwrap();
        }
        *store.inner.crash_at.lock().unwrap() = None;
        store.flush().unwrap_or_else(|error| panic!("failed at `{step}`: {error}"));
        assert!(store.models()[0].durable && is_right(&model, &files), "failed at `{step}`");
        assert_eq!(listing(&fixture.root().join("tmp")), [""; 0], "failed at `{step}`");
        store.close().unwrap();
        assert_eq!(fixture.verify().faults, [], "failed at `{step}`");
    }
}

#[test]
fn bytes_whose_sync_failed_are_fetched_again_and_never_called_durable() {
    let large = noise(6, 2 * GROUP_BYTES as usize + 1);
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &large)];
    let fixture = Fixture::new();
    let store = fixture.open("one");
    let fault = |at| *store.inner.crash_at.lock().unwrap() = at;
    publish(&store, "m", &files).unwrap();
    fault(Some("disk full in a sync"));
    assert_eq!(store.flush().unwrap_err().kind(), crate::base::ErrorKind::NoSpace);
    fault(None);
    store.flush().unwrap();
    // Not all need have been tried; whatever was is gone, and with it the tree.
    assert!(store.models().is_empty() && store.halted().is_none());
    let model = publish(&store, "m", &files).unwrap();
    store.flush().unwrap();
    assert!(is_right(&model, &files) && store.models()[0].durable);

    let other = noise(7, 3 * GROUP_BYTES as usize);
    let reservation = store.reserve(store.cost_to_begin(&key(&other), other.len() as u64), &[]).unwrap();
    let begin = || store.begin(key(&other), other.len() as u64, &reservation).unwrap();
    let partial = begin();
    write_missing(&partial, &other);
    fault(Some("disk full in a sync"));
    partial.sync().unwrap_err();
    fault(None);
    partial.sync().expect_err("a second sync proves nothing");
    partial.complete(None, &[]).unwrap_err();
    assert_eq!(begin().missing(), vec![0..3]);
}

#[test]
fn a_mended_model_is_durable_again_only_when_its_new_bytes_are() {
    let large = noise(8, 2 * GROUP_BYTES as usize);
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &large)];
    let fixture = Fixture::new();
    let store = fixture.open("one");
    let told = || {
        let beside = ReadOnlyStore::open(&fixture.root()).unwrap().models().unwrap();
        (store.models().iter().map(|model| model.durable).collect(), beside.iter().map(|model| model.durable).collect())
    };
    publish(&store, "m", &files).unwrap();
    store.flush().unwrap();
    assert_eq!(told(), (vec![true], vec![true]));
    store.quarantine(&Hash::of(&large), "test").unwrap();
    assert_eq!(told(), (vec![], vec![]));
    publish(&store, "m", &files).unwrap();
    assert_eq!(told(), (vec![false], vec![false]));
    store.flush().unwrap();
    assert_eq!(told(), (vec![true], vec![true]));
}

#[test]
fn a_blob_that_sealing_has_named_can_be_evicted_and_quarantined() {
    let large = noise(5, 2 * GROUP_BYTES as usize + 1);
    for quarantined in [false, true] {
        let fixture = Fixture::new();
        let store = fixture.open("one");
        drop(fetch(&store, &large));
        *store.inner.crash_at.lock().unwrap() = Some("named");
        store.flush().unwrap_err();
        if quarantined {
            store.quarantine(&Hash::of(&large), "test").unwrap();
        }
        *store.inner.crash_at.lock().unwrap() = None;
        store.gc(true).unwrap();
        for place in ["blobs", "outboards", "partials", "quarantine"] {
            assert_eq!(listing(&fixture.root().join(place)), [""; 0], "{place}");
        }
        assert_eq!(store.inner.index().account, space::Account::default());
    }
}

#[test]
fn a_power_cut_before_the_record_shows_no_model_and_after_it_a_right_one() {
    let large = noise(4, 2 * GROUP_BYTES as usize + 1);
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &large)];
    for (step, visible) in
        [("synced", false), ("catalogued", false), ("manifest written", false), ("record written", true)]
    {
        let fixture = Fixture::new();
        crash_at(&fixture, step, |store| {
            publish(store, "m", &files).unwrap();
            store.flush()
        });
        let store = fixture.open("two");
        let models = store.models();
        assert_eq!(models.len(), usize::from(visible), "cut at `{step}`");
        assert!(models.iter().all(|model| is_right(model, &files)));
        let trees = std::fs::read_dir(fixture.root().join("trees/default")).unwrap().count();
        assert_eq!(trees, models.len(), "no tree without a model, cut at `{step}`");
        // Fetching again completes it.
        let model = publish(&store, "m", &files).unwrap();
        assert!(is_right(&model, &files));
        store.close().unwrap();
        assert_eq!(fixture.verify().faults, [], "cut at `{step}`");
    }
}

#[test]
fn publishing_stopped_before_the_tree_is_finished_at_the_next_start() {
    let files: [(&str, &[u8]); 1] = [("config.json", b"{}")];
    for (boot, models) in [("one", 1), ("two", 0)] {
        let fixture = Fixture::new();
        crash_at(&fixture, "pending written", |store| publish(store, "m", &files).map(|_| ()));
        let store = fixture.open(boot);
        assert_eq!(store.models().len(), models, "boot {boot}");
        store.close().unwrap();
        assert_eq!(fixture.verify().faults, []);
    }
}

#[test]
fn eviction_stopped_at_any_step_leaves_a_whole_model_or_none() {
    let large = noise(5, 2 * GROUP_BYTES as usize);
    let files: [(&str, &[u8]); 2] = [("config.json", b"{}"), ("model.safetensors", &large)];
    for (step, models) in [("tree withdrawn", 1), ("record removed", 0)] {
        let fixture = Fixture::new();
        crash_at(&fixture, step, |store| {
            publish(store, "m", &files).unwrap();
            store.flush()?;
            store.gc(true).map(|_| ())
        });
        for boot in ["one", "two"] {
            let store = fixture.open(boot);
            let found = store.models();
            assert_eq!(found.len(), models, "stopped at `{step}`");
            assert!(found.iter().all(|model| is_right(model, &files)));
            drop(store);
        }
        let store = fixture.open("two");
        store.gc(true).unwrap();
        assert_eq!(store.inner.index().account, space::Account::default());
        store.close().unwrap();
        assert_eq!(fixture.verify().faults, []);
    }
}

#[test]
fn temporaries_and_torn_files_are_swept() {
    let fixture = Fixture::new();
    fixture.open("one").close().unwrap();
    let root = fixture.root();
    std::fs::create_dir_all(root.join("tmp/tree/sub")).unwrap();
    std::fs::write(root.join("tmp/tree/sub/file"), "x").unwrap();
    std::fs::create_dir_all(root.join("pending/default")).unwrap();
    std::fs::write(root.join("pending/default/m-0123456789abcdef0123456789abcdef.json"), "{\"boot\":\"on").unwrap();
    std::fs::write(root.join("catalog.log"), "12345678 torn").unwrap();
    std::fs::write(root.join("blobs/not-a-blob"), "x").unwrap();
    let store = fixture.open("one");
    assert_eq!(listing(&root.join("tmp")), [""; 0]);
    assert_eq!(listing(&root.join("pending/default")), [""; 0]);
    assert_eq!(store.usage().blob_count, 0);
    store.close().unwrap();
    assert!(root.join("blobs/not-a-blob").exists(), "a stranger's file is left alone");
    assert_eq!(fixture.verify().faults.len(), 1);
}
