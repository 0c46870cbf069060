//! Bytes that change on disk: found by every reader, set aside, fetched again.

use std::os::unix::fs::{FileExt, PermissionsExt};

use super::*;
use crate::base::ErrorKind;

/// Flips one bit of a file behind the store's back.
fn flip(path: &Path, offset: u64) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o444)).unwrap();
}

fn damaged(offset: u64) -> (Fixture, Store, Vec<u8>, Model) {
    let fixture = Fixture::new();
    let store = fixture.open("one");
    let large = noise(1, 3 * GROUP_BYTES as usize + 9);
    let model = publish(&store, "m", &[("model.safetensors", &large), ("config.json", b"{}")]).unwrap();
    store.flush().unwrap();
    flip(&store.inner.layout.blob(&Hash::of(&large)), offset);
    (fixture, store, large, model)
}

#[test]
fn every_group_is_proved_when_it_is_read() {
    let (_fixture, store, large, _) = damaged(GROUP_BYTES + 3);
    let reader = store.open_blob(&Hash::of(&large)).unwrap();
    let mut buffer = vec![0; GROUP_BYTES as usize];
    for index in [0, 2, 3] {
        let range = group_range(large.len() as u64, index);
        assert_eq!(**reader.group(index, &mut buffer).unwrap(), large[range.start as usize..range.end as usize]);
    }
    assert_eq!(reader.group(1, &mut buffer).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn the_scrub_finds_every_flip_and_the_next_fetch_heals_it() {
    // The last, short group too.
    for offset in [0, 2 * GROUP_BYTES, 3 * GROUP_BYTES + 8] {
        let (fixture, store, large, model) = damaged(offset);
        let files: [(&str, &[u8]); 2] = [("model.safetensors", &large), ("config.json", b"{}")];
        let before = fixture.verify();
        assert!(before.faults.iter().any(|fault| fault.blob == Some(Hash::of(&large))), "{before:?}");
        let found = store.scrub_step(u64::MAX).unwrap();
        assert_eq!((found.faults.len(), found.round_done), (1, true));
        assert!(store.models().is_empty() && !model.path.exists());
        assert_eq!(store.usage().blob_count, 1, "the right blob stays");
        assert!(store.usage().quarantined > 0);
        assert_eq!(fixture.verify().faults, []);
        let healed = publish(&store, "m", &files).unwrap();
        assert!(is_right(&healed, &files) && healed.path == model.path);
        assert!(!healed.durable, "its new blob is not sealed yet");
        // A process that ends here leaves a record, and a blob that only this boot may trust.
        drop(store);
        let store = fixture.open("one");
        assert!(!store.models()[0].durable);
        store.flush().unwrap();
        assert!(store.models()[0].durable);
        assert_eq!(store.scrub_step(u64::MAX).unwrap().faults, []);
        assert_eq!(fixture.verify().faults, []);
    }
}

#[test]
fn the_scrub_goes_on_within_a_blob_where_it_stopped_and_leaves_the_page_cache_alone() {
    use crate::sys::residency::{drop_cache, resident_bytes};
    for rotten in [None, Some(6)] {
        let fixture = Fixture::new();
        let store = fixture.open("one");
        let (large, other) = (noise(3, 7 * GROUP_BYTES as usize + 9), noise(4, 3 * GROUP_BYTES as usize));
        publish(&store, "m", &[("large", &large), ("other", &other)]).unwrap();
        store.flush().unwrap();
        if let Some(group) = rotten {
            flip(&store.inner.layout.blob(&Hash::of(&large)), group * GROUP_BYTES + 1);
        }
        let file = std::fs::File::open(store.inner.layout.blob(&Hash::of(&large))).unwrap();
        file.sync_all().unwrap();
        let warm = rotten.is_some();
        if !warm {
            drop_cache(&file);
        }
        let before = resident_bytes(&file).unwrap();
        let (mut steps, mut bytes, mut faults) = (0, 0, 0);
        loop {
            let step = store.scrub_step(2 * GROUP_BYTES).unwrap();
            assert!(step.bytes < 3 * GROUP_BYTES, "a started group is ended");
            (steps, bytes, faults) = (steps + 1, bytes + step.bytes, faults + step.faults.len());
            if step.round_done || steps == 20 {
                break;
            }
        }
        assert_eq!(resident_bytes(&file).unwrap(), before, "neither more nor less is in memory");
        match rotten {
            None => assert_eq!((faults, bytes), (0, (large.len() + other.len()) as u64), "each group once"),
            Some(_) => assert_eq!(faults, 1),
        }
        assert!((5..=7).contains(&steps), "{steps}");
        assert_eq!(store.usage().blob_count, if rotten.is_some() { 1 } else { 2 });
    }
}

/// Each costs an opening and a seek: a store of a hundred thousand configurations is not hashed in a second.
#[test]
fn small_blobs_count_as_more_than_their_bytes_and_each_is_hashed_once_a_round() {
    let fixture = Fixture::new();
    let store = fixture.open("one");
    let files: Vec<Vec<u8>> = (0..10).map(|seed| noise(seed, 100)).collect();
    let named: Vec<_> = files.iter().enumerate().map(|(number, bytes)| (format!("f{number}"), bytes)).collect();
    let named: Vec<(&str, &[u8])> = named.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    publish(&store, "m", &named).unwrap();
    store.flush().unwrap();
    for round in 0..2 {
        let steps: Vec<_> = (0..3).map(|_| store.scrub_step(GROUP_BYTES).unwrap()).collect();
        let seen: Vec<_> = steps.iter().map(|step| (step.bytes, step.cost, step.round_done)).collect();
        assert_eq!(
            seen,
            [(400, GROUP_BYTES, false), (400, GROUP_BYTES, false), (200, GROUP_BYTES / 2, true)],
            "{round}"
        );
    }
    // What is sealed during a round is part of it.
    assert!(!store.scrub_step(GROUP_BYTES).unwrap().round_done);
    publish(&store, "n", &[("g", &noise(11, 100))]).unwrap();
    store.flush().unwrap();
    let rest = store.scrub_step(u64::MAX).unwrap();
    assert_eq!((rest.bytes, rest.round_done), (700, true));
    assert_eq!(store.scrub_step(u64::MAX).unwrap().bytes, 1100);
}

#[test]
fn what_is_evicted_in_the_middle_of_its_scrub_is_gone() {
    let fixture = Fixture::new();
    let store = fixture.open("one");
    let large = noise(3, 4 * GROUP_BYTES as usize);
    publish(&store, "m", &[("large", &large)]).unwrap();
    store.flush().unwrap();
    assert!(!store.scrub_step(GROUP_BYTES).unwrap().round_done);
    // Whoever read the last group lets go of the file in a moment, and for good.
    let (id, begun) = (store.models()[0].record.id.clone(), std::time::Instant::now());
    while let Err(error) = store.remove(&Tenant::default(), &id) {
        assert!(begun.elapsed().as_secs() < 10, "{error}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let step = store.scrub_step(GROUP_BYTES).unwrap();
    assert_eq!((step.bytes, step.round_done, step.faults), (0, true, vec![]));
}

#[test]
fn what_is_brought_is_in_memory_and_what_is_wrong_is_an_error_of_the_reading() {
    use crate::sys::residency::{drop_cache, resident_in};
    let (_fixture, store, large, _) = damaged(GROUP_BYTES + 3);
    let reader = store.open_blob(&Hash::of(&large)).unwrap();
    reader.file().sync_all().unwrap();
    drop_cache(reader.file());
    for groups in [1..3, 0..4, 2..2] {
        reader.bring(groups.clone());
        let range = groups.start * GROUP_BYTES..(groups.end * GROUP_BYTES).min(large.len() as u64);
        let waited = std::time::Instant::now();
        // Where the kernel only takes hints it takes a moment.
        while resident_in(reader.file(), range.clone()).unwrap() < range.end.saturating_sub(range.start) {
            assert!(waited.elapsed().as_secs() < 10, "{groups:?}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    let mut buffer = vec![0; GROUP_BYTES as usize];
    assert_eq!(reader.group(1, &mut buffer).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn verifying_beside_a_store_at_work_finds_no_fault() {
    let fixture = Fixture::new();
    let boot = serde_json::to_value(crate::base::BootId::current().unwrap()).unwrap();
    let store = fixture.open(boot.as_str().unwrap());
    let first = noise(1, 8 * GROUP_BYTES as usize);
    publish(&store, "first", &[("model.safetensors", &first)]).unwrap();
    store.flush().unwrap();
    let mut second = Some(noise(2, 2 * GROUP_BYTES as usize));
    let found = ReadOnlyStore::open(&fixture.root()).unwrap().verify(&mut |_, _| {
        // The blobs have been listed.
        if let Some(second) = second.take() {
            publish(&store, "second", &[("model.safetensors", &second)]).unwrap();
            store.flush().unwrap();
        }
    });
    assert!(second.is_none(), "nothing was sealed meanwhile");
    assert_eq!(found.unwrap().faults, [], "one is sealed while the others are hashed");
    store.quarantine(&Hash::of(&first), "test").unwrap();
    let mended = publish(&store, "first", &[("model.safetensors", &first)]).unwrap();
    assert!(!mended.durable);
    assert_eq!(fixture.verify().faults, [], "one is being mended");
    store.flush().unwrap();
    std::fs::remove_file(store.inner.layout.blob(&Hash::of(&first))).unwrap();
    assert!(fixture.verify().faults.iter().any(|fault| fault.what == "its blob is missing"));
}

#[test]
fn outboards_manifests_and_trees_are_verified_too() {
    let (fixture, store, large, model) = damaged(0);
    flip(&store.inner.layout.blob(&Hash::of(&large)), 0);
    assert_eq!(fixture.verify().faults, []);
    let check = |path: &Path, damage: &dyn Fn(&Path), says: &str| {
        let kept = std::fs::read(path).ok();
        damage(path);
        let faults = fixture.verify().faults;
        assert!(faults.iter().any(|fault| fault.what.contains(says)), "{says}: {faults:?}");
        let _ = std::fs::remove_file(path);
        if let Some(kept) = kept {
            std::fs::write(path, kept).unwrap();
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o444)).unwrap();
        }
    };
    let layout = &store.inner.layout;
    check(&layout.outboard(&Hash::of(&large)), &|path| flip(path, 40), "outboard is wrong");
    check(&layout.outboard(&Hash::of(&large)), &|path| std::fs::remove_file(path).unwrap(), "missing");
    check(&layout.manifest(&model.record.manifest), &|path| std::fs::write(path, "{}").unwrap(), "shape");
    if rustix::process::geteuid().is_root() {
        check(&model.path.join("stranger"), &|path| std::fs::write(path, "").unwrap(), "not in the manifest");
        let gone = model.path.join("config.json");
        check(&gone, &|path| std::fs::remove_file(path).unwrap(), "missing");
    }
    drop(store);
}

/// What an earlier process left, out of reach for a while: where a small file is there is a directory, which can be opened and not
/// be read; where a large one is, a link that leads nowhere.
fn unreadable(path: &Path, large: bool, then: impl FnOnce()) {
    let aside = path.with_extension("aside");
    std::fs::rename(path, &aside).unwrap();
    if large {
        std::os::unix::fs::symlink(path, path).unwrap();
    } else {
        std::fs::create_dir(path).unwrap();
    }
    then();
    if large {
        std::fs::remove_file(path).unwrap();
    } else {
        std::fs::remove_dir(path).unwrap();
    }
    std::fs::rename(&aside, path).unwrap();
}

#[test]
fn bytes_that_cannot_be_read_now_are_neither_used_nor_thrown_away() {
    for large in [false, true] {
        let fixture = Fixture::new();
        let bytes = noise(1, if large { 2 * GROUP_BYTES as usize } else { 700 });
        let other = noise(2, 900);
        let store = fixture.open("one");
        publish(&store, "m", &[("model.safetensors", &bytes)]).unwrap();
        publish(&store, "other", &[("config.json", &other)]).unwrap();
        let (hash, layout) = (Hash::of(&bytes), &store.inner.layout);
        let path =
            if large { layout.partial(&key(&bytes)).join("data") } else { layout.received_blob(&key(&bytes), &hash) };
        drop(store);
        let store = fixture.open("one");
        unreadable(&path, large, || {
            assert!(store.hold(&hash).is_none(), "it is not used");
            // The others become durable, and nothing of it is taken for wrong.
            store.flush().unwrap();
            let durable: Vec<bool> = store.models().iter().map(|model| model.durable).collect();
            assert_eq!(durable.iter().filter(|durable| **durable).count(), 1, "{durable:?}");
            assert_eq!(store.usage().quarantined, 0);
        });
        assert!(store.hold(&hash).is_some(), "it was well all the time");
        store.flush().unwrap();
        assert!(store.models().iter().all(|model| model.durable) && store.models().len() == 2);
        assert_eq!(fixture.verify().faults, []);
    }
}

#[test]
fn what_could_not_be_read_is_replaced_by_what_is_fetched_again() {
    let fixture = Fixture::new();
    let bytes = noise(1, 700);
    let files: [(&str, &[u8]); 1] = [("config.json", &bytes)];
    let store = fixture.open("one");
    publish(&store, "m", &files).unwrap();
    let path = store.inner.layout.received_blob(&key(&bytes), &Hash::of(&bytes));
    drop(store);
    let store = fixture.open("one");
    let before = store.usage();
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    let other = FlightKey::new(&Tenant::default(), &origin(), "elsewhere", "s:1", bytes.len() as u64);
    let reservation = store.reserve(store.cost_to_begin(&other, bytes.len() as u64), &[other]).unwrap();
    let hold = store.put_small(other, &bytes, &[], &reservation).unwrap();
    drop(reservation);
    assert_eq!((store.usage().blobs, store.usage().reserved), (before.blobs, 0), "charged once");
    drop(hold);
    let model = publish(&store, "m", &files).unwrap();
    assert!(is_right(&model, &files));
}

#[test]
fn a_bad_sector_is_told_from_wrong_bytes() {
    let (_fixture, store, large, _) = damaged(0);
    let reader = store.open_blob(&Hash::of(&large)).unwrap();
    let said = |code| reader.unreadable(std::io::Error::from_raw_os_error(code));
    for code in [libc::EIO, libc::EILSEQ] {
        let error = said(code);
        assert!(matches!(error, StoreError::Medium { .. }) && error.kind() == ErrorKind::Corrupt, "{error}");
    }
    for code in [libc::EMFILE, libc::ENOMEM] {
        assert!(matches!(said(code), StoreError::Io { .. }));
    }
    let short = reader.unreadable(std::io::ErrorKind::UnexpectedEof.into());
    assert!(matches!(short, StoreError::Corrupt { .. }));
}

#[test]
fn bytes_left_by_a_killed_process_are_hashed_before_they_are_used() {
    let fixture = Fixture::new();
    let large = noise(1, 2 * GROUP_BYTES as usize);
    let files: [(&str, &[u8]); 2] = [("model.safetensors", &large), ("config.json", b"{}")];
    let store = fixture.open("one");
    publish(&store, "m", &files).unwrap();
    let data = store.inner.layout.partial(&key(&large)).join("data");
    drop(store);
    flip(&data, 5);
    let store = fixture.open("one");
    assert!(store.hold_by_key(&key(&large)).is_none(), "its bytes are wrong");
    assert!(store.models().is_empty());
    store.flush().unwrap();
    let model = publish(&store, "m", &files).unwrap();
    assert!(is_right(&model, &files));
}
