//! What every kind of origin must do, as one public suite: a new kind is a new row in the table that runs it.

mod writing;

pub use writing::{Digests, writing};

use crate::base::ErrorKind;
use crate::model::Reference;
use crate::model::source::{Origin, RemoteFile, Resolution};

/// A model as the suite knows it: path and bytes of each file that a selection takes, sorted by path.
pub type Expected = Vec<(String, Vec<u8>)>;

/// More than any file of the suite has.
const ALL: usize = 1 << 30;

/// Runs all checks that change nothing. Panics with the name of what fails.
///
/// # Panics
/// When the origin does not conform.
pub async fn reading(origin: &dyn Origin, reference: &Reference, expected: &Expected) {
    let resolved = resolve(origin, reference).await;
    let listed: Vec<(String, u64)> = resolved.files.iter().map(|file| (file.path.to_string(), file.size)).collect();
    let wanted: Vec<(String, u64)> = expected.iter().map(|(path, bytes)| (path.clone(), bytes.len() as u64)).collect();
    assert_eq!(listed, wanted, "resolve lists exactly the selected files, sorted, with their sizes");
    let again = resolve(origin, reference).await;
    assert_eq!(again.revision, resolved.revision, "the revision of what has not changed is the same");
    for (file, (path, bytes)) in resolved.files.iter().zip(expected) {
        let size = file.size;
        let ranges = [0..size, 0..1, size / 2..size, size.saturating_sub(1)..size, size / 3..(size / 3 + 10)];
        for range in ranges {
            if range.is_empty() || range.end > size {
                continue;
            }
            let (start, end) = (range.start as usize, range.end as usize);
            assert_eq!(read(origin, file, range.clone()).await, bytes[start..end], "{path} {range:?}");
        }
        assert_eq!(read(origin, file, 0..size).await, *bytes, "{path}, whole, empty files included");
    }
}

/// The same place after one file was replaced by another of equal length.
///
/// # Panics
/// When the old version's plan yields the new one and nothing would notice, or the revision stays the same.
pub async fn replaced(origin: &dyn Origin, reference: &Reference, before: &Resolution, changed: &str) {
    let file = before.files.iter().find(|file| file.path.as_str() == changed).expect("the changed file was planned");
    let outcome = match origin.open(file, 0..file.size).await {
        Ok(mut body) => body.bytes.read_up_to(ALL).await.map(|_| ()),
        Err(error) => Err(error),
    };
    // Where the source's manifest names the content, that is what pins it, and the transfer compares.
    if file.blake3.is_none() {
        let kind = outcome.expect_err("a planned version that is gone is not readable").kind();
        assert_eq!(kind, ErrorKind::Conflict, "it is reported as changed");
    }
    let after = resolve(origin, reference).await;
    assert_ne!(after.revision, before.revision, "another content is another revision");
}

/// A place where nothing is.
///
/// # Panics
/// When anything but `NotFound` is answered.
pub async fn absent(origin: &dyn Origin, reference: &Reference) {
    let error = origin.resolve(reference).await.expect_err("nothing is there");
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

/// Resolves.
///
/// # Panics
/// With the error.
pub async fn resolve(origin: &dyn Origin, reference: &Reference) -> Resolution {
    origin.resolve(reference).await.unwrap_or_else(|error| panic!("resolve {reference}: {error}"))
}

async fn read(origin: &dyn Origin, file: &RemoteFile, range: std::ops::Range<u64>) -> Vec<u8> {
    let mut body =
        origin.open(file, range.clone()).await.unwrap_or_else(|error| panic!("open {} {range:?}: {error}", file.path));
    let skip = (range.start - body.start) as usize;
    let bytes = body.bytes.read_up_to(ALL).await;
    bytes.unwrap_or_else(|error| panic!("read {} {range:?}: {error}", file.path))[skip..].to_vec()
}
