//! What goes wrong while something is written.

use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine;
use crc_fast::{CrcAlgorithm, checksum};
use preheat::base::ErrorKind;
use preheat::base::units::Span;
use preheat::model::sink::{Content, Existing, Put};
use preheat::model::source::SourceError;
use preheat::model::{FilePath, Rights};
use preheat::origin::{Config, Origins};

use super::{Proxy, Verdict, gcs, open, resolve, s3, set, sink};
use crate::support::model::noise;

/// A local file that is sent to `here/model.safetensors`.
struct Sending {
    directory: tempfile::TempDir,
    bytes: Vec<u8>,
    here: &'static str,
    told: Arc<AtomicI64>,
}

impl Sending {
    fn new(here: &'static str, bytes: Vec<u8>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), &bytes).unwrap();
        Self { directory, bytes, here, told: Arc::default() }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("file")
    }

    async fn put(&self) -> Result<Put, SourceError> {
        let content = Content::File { path: self.path(), size: self.bytes.len() as u64, blake3: None };
        let told = Arc::clone(&self.told);
        let sent = Arc::new(move |bytes| {
            told.fetch_add(bytes, Ordering::Relaxed);
        });
        sink(self.here).put(&self.name(), &content, Existing::Keep, sent).await
    }

    fn name(&self) -> FilePath {
        FilePath::new("model.safetensors").unwrap()
    }

    /// What was sent is there, and was told of once.
    async fn arrived(&self) {
        assert_eq!(self.told.load(Ordering::Relaxed), self.bytes.len() as i64, "every byte is told of once");
        let (reference, origin) = open(self.here);
        let resolved = resolve(&*origin, &reference).await;
        let mut body = origin.open(&resolved.files[0], 0..self.bytes.len() as u64).await.unwrap();
        assert!(body.bytes.read_up_to(self.bytes.len()).await.unwrap() == self.bytes, "what was sent is there");
    }

    /// Nothing is there.
    async fn left_nothing(&self) {
        assert_eq!(sink(self.here).head(&self.name()).await.unwrap(), None, "nothing is there");
    }
}

/// S3 behind a proxy.
async fn s3_behind() -> (tempfile::TempDir, Proxy) {
    let (directory, url) = s3::with_keys().await;
    let proxy = Proxy::before(&url).await;
    set(&[&s3::KEYS[..], &[("AWS_ENDPOINT_URL", &proxy.url)]].concat());
    (directory, proxy)
}

#[tokio::test]
async fn parts_that_are_lost_are_sent_again() {
    let (_directory, proxy) = s3_behind().await;
    let sending = Sending::new("s3://bucket/m", noise(3, 40 << 20));
    let (tries, crc) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None)));
    let (counted, seen) = (Arc::clone(&tries), Arc::clone(&crc));
    proxy.judge(move |asked| {
        let query = asked.uri.query().unwrap_or_default();
        if query.starts_with("partNumber=2&") {
            return match counted.fetch_add(1, Ordering::Relaxed) {
                0 => Verdict::LoseAnswer,
                1 => Verdict::Answer(503, "<Error><Code>SlowDown</Code></Error>"),
                _ => Verdict::Pass,
            };
        }
        if asked.method == http::Method::POST && query.starts_with("uploadId=") {
            *seen.lock().unwrap() = asked.headers.get("x-amz-checksum-crc64nvme").cloned();
            assert_eq!(asked.headers["x-amz-checksum-type"], "FULL_OBJECT");
            assert_eq!(asked.headers["if-none-match"], "*");
        }
        Verdict::Pass
    });
    assert_eq!(sending.put().await.unwrap(), Put::Created);
    assert_eq!(tries.load(Ordering::Relaxed), 3);
    sending.arrived().await;
    let whole = checksum(CrcAlgorithm::Crc64Nvme, &sending.bytes).to_be_bytes();
    let declared = crc.lock().unwrap().take().expect("a checksum of the whole object");
    assert_eq!(declared, base64::prelude::BASE64_STANDARD.encode(whole).as_str(), "the parts' merge to it");
}

#[tokio::test]
async fn a_place_that_falls_silent_is_asked_again() {
    let (_directory, proxy) = s3_behind().await;
    let tries = AtomicUsize::new(0);
    proxy.judge(move |asked| {
        let first = asked.method == http::Method::PUT && tries.fetch_add(1, Ordering::Relaxed) == 0;
        if first { Verdict::Silence } else { Verdict::Pass }
    });
    let impatient = Config { stall_timeout: Span(Duration::from_millis(200)), ..Config::default() };
    let sink = Origins::unguarded(impatient).unwrap().sink(&"s3://bucket/m".parse().unwrap(), &Rights::Own).unwrap();
    let start = Instant::now();
    let content = Content::Bytes(noise(1, 100).into());
    let put = sink.put(&FilePath::new("config.json").unwrap(), &content, Existing::Keep, Arc::new(|_| {})).await;
    assert_eq!(put.unwrap(), Put::Created);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn what_cannot_be_sent_leaves_nothing() {
    let (_directory, proxy) = s3_behind().await;
    let sending = Sending::new("s3://bucket/m", noise(3, 40 << 20));
    let given_up = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&given_up);
    proxy.judge(move |asked| {
        if asked.method == http::Method::DELETE {
            counted.fetch_add(1, Ordering::Relaxed);
        }
        if asked.uri.query().is_some_and(|query| query.starts_with("partNumber=3&")) {
            return Verdict::Answer(403, "<Error><Code>AccessDenied</Code></Error>");
        }
        Verdict::Pass
    });
    assert_eq!(sending.put().await.unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(given_up.load(Ordering::Relaxed), 1, "the parts are given up");
    sending.left_nothing().await;
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_sent_leaves_nothing() {
    let (_directory, proxy) = s3_behind().await;
    type Change = fn(&std::path::Path);
    let shorter: Change = |path| std::fs::OpenOptions::new().write(true).open(path).unwrap().set_len(1 << 20).unwrap();
    let other: Change = |path| std::fs::write(path, noise(4, 40 << 20)).unwrap();
    for change in [shorter, other] {
        let sending = Sending::new("s3://bucket/m", noise(3, 40 << 20));
        let path = sending.path();
        let once = AtomicUsize::new(0);
        proxy.judge(move |asked| {
            let part = asked.uri.query().is_some_and(|query| query.starts_with("partNumber="));
            if part && once.fetch_add(1, Ordering::Relaxed) == 0 {
                change(&path);
            }
            Verdict::Pass
        });
        let error = sending.put().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict, "{error}");
        sending.left_nothing().await;
    }
}

#[tokio::test]
async fn a_server_without_conditions_is_written_to_without() {
    let (_directory, proxy) = s3_behind().await;
    proxy.judge(|asked| {
        if asked.headers.contains_key("if-none-match") {
            return Verdict::Answer(501, "<Error><Code>NotImplemented</Code></Error>");
        }
        Verdict::Pass
    });
    let sending = Sending::new("s3://bucket/m", noise(3, 1 << 20));
    assert_eq!(sending.put().await.unwrap(), Put::Created);
    sending.arrived().await;
    assert_eq!(sending.put().await.unwrap(), Put::Existed, "what is there is found before anything is sent");
}

#[tokio::test]
async fn a_session_goes_on_where_it_was() {
    let server = gcs::with_bucket().await;
    let proxy = Proxy::before(&server.url).await;
    set(&[("GOOGLE_BASE_URL", &proxy.url)]);
    let sending = Sending::new("gs://my_bucket.example/m", noise(3, 80 << 20));
    let asked_for = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked_for);
    proxy.judge(move |asked| {
        let Some(range) = asked.headers.get("content-range") else { return Verdict::Pass };
        let mut seen = seen.lock().unwrap();
        seen.push(range.to_str().unwrap().to_owned());
        match seen.len() {
            1 => Verdict::LoseAnswer,
            // Asked how much it has, the server here takes that for the end: this is what the service says.
            2 => Verdict::Headers(308, &[("range", "bytes=0-67108863")]),
            _ => Verdict::Pass,
        }
    });
    assert_eq!(sending.put().await.unwrap(), Put::Created);
    let wanted = ["bytes 0-67108863/83886080", "bytes */83886080", "bytes 67108864-83886079/83886080"];
    assert_eq!(*asked_for.lock().unwrap(), wanted, "nothing is sent twice");
    sending.arrived().await;
}
