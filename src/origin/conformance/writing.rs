//! What every place that can be written to must do.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use futures_util::future::join;

use super::{read, resolve};
use crate::base::ErrorKind;
use crate::model::sink::{Content, Existing, Put, Sent, Sink};
use crate::model::source::Origin;
use crate::model::{FilePath, Reference};

/// Of which objects a place must know a digest after they were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digests {
    /// It keeps none.
    OfNone,
    /// Those written in one request.
    OfSmall,
    /// All.
    OfAll,
}

/// Runs all checks on an empty place. `large` has to be more than the place takes in one request.
///
/// # Panics
/// When the place does not conform.
pub async fn writing(sink: &dyn Sink, origin: &dyn Origin, reference: &Reference, large: &[u8], digests: Digests) {
    let path = |text: &str| FilePath::new(text).expect("a path");
    let directory = tempfile::tempdir().expect("a directory");
    let local = directory.path().join("large");
    std::fs::write(&local, large).expect("a local file");
    let size = large.len() as u64;
    let file = Content::File { path: local.clone(), size, blake3: None };
    let small = |text: &'static str| Content::Bytes(text.as_bytes().into());
    let (told, sent) = counter();
    let put = async |at: &str, content: &Content, existing| {
        sink.put(&path(at), content, existing, Arc::clone(&sent))
            .await
            .unwrap_or_else(|error| panic!("put {at}: {error}"))
    };

    let missing = sink.head(&path("a.json")).await.unwrap_or_else(|error| panic!("head of nothing: {error}"));
    assert_eq!(missing, None, "nothing is there yet");
    assert_eq!(put("a.json", &small("one"), Existing::Keep).await, Put::Created);
    assert_eq!(put("a.json", &small("two"), Existing::Keep).await, Put::Existed, "what is there stays");
    assert_eq!(put("b/c d+\u{fc}&x.json", &small("{}"), Existing::Keep).await, Put::Created, "folders, odd names");
    assert_eq!(put("empty.json", &small(""), Existing::Keep).await, Put::Created);
    told.store(0, Ordering::Relaxed);
    assert_eq!(put("large.safetensors", &file, Existing::Keep).await, Put::Created);
    assert_eq!(told.swap(0, Ordering::Relaxed), size as i64, "every byte is told of once");
    assert_eq!(put("large.safetensors", &file, Existing::Keep).await, Put::Existed);
    assert_eq!(told.load(Ordering::Relaxed), 0, "nothing is sent to find that out");

    let expected: [(&str, &[u8]); 4] =
        [("a.json", b"one"), ("b/c d+\u{fc}&x.json", b"{}"), ("empty.json", b""), ("large.safetensors", large)];
    let resolved = resolve(origin, reference).await;
    let found: Vec<&str> = resolved.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(found, expected.map(|(path, _)| path), "what was written is what is listed");
    for (file, (name, bytes)) in resolved.files.iter().zip(expected) {
        assert!(read(origin, file, 0..file.size).await == bytes, "{name} reads as it was written");
        let head = sink.head(&path(name)).await.unwrap_or_else(|error| panic!("head {name}: {error}"));
        let head = head.unwrap_or_else(|| panic!("{name} is there"));
        assert_eq!((head.size, &head.validator), (bytes.len() as u64, &file.validator), "{name}");
        let known = digests == Digests::OfAll || digests == Digests::OfSmall && bytes.len() < large.len();
        assert_eq!(!head.declared.is_empty(), known, "the digest of {name}: {:?}", head.declared);
        assert_eq!(head.declared, file.declared, "{name}");
    }

    assert_eq!(put("a.json", &small("three"), Existing::Replace).await, Put::Created);
    let replaced = resolve(origin, reference).await;
    assert_eq!(read(origin, &replaced.files[0], 0..5).await, b"three", "a replacement replaces");

    let (one, other) = (small("first"), small("other"));
    let both = join(put("race.json", &one, Existing::Keep), put("race.json", &other, Existing::Keep)).await;
    let (won, lost) = if both.0 == Put::Created { (b"first", both.1) } else { (b"other", both.0) };
    assert_eq!(lost, Put::Existed, "of two that create, one does");
    let race = resolve(origin, reference).await;
    let file = race.files.iter().find(|file| file.path.as_str() == "race.json").expect("one of them is there");
    assert_eq!(read(origin, file, 0..5).await, won, "and its bytes are there");

    let lies = Content::File { path: local, size: size + 1, blake3: None };
    let error = sink.put(&path("lies.json"), &lies, Existing::Keep, sent).await.expect_err("another size than hashed");
    assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
    assert_eq!(sink.head(&path("lies.json")).await.expect("head"), None, "nothing of it is there");
}

fn counter() -> (Arc<AtomicI64>, Sent) {
    let told = Arc::new(AtomicI64::new(0));
    let teller = Arc::clone(&told);
    let sent = move |bytes| {
        teller.fetch_add(bytes, Ordering::Relaxed);
    };
    (told, Arc::new(sent))
}
