//! Bodies read straight from the socket: which connection serves what, and what is left to the ordinary client.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use preheat::base::units;
use preheat::model::Rights;
use preheat::model::source::{Origin, RemoteFile, SourceError, read_range};
use preheat::origin::{Config, Origins};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

const SIZE: u64 = 100_000;
/// How long the server may be silent: more than a busy machine is, and little enough to wait for.
const STALL: Duration = Duration::from_secs(2);

/// A server of one file of [`SIZE`] bytes. How it answers a range is up to the test; everything else it does well.
struct Server {
    origin: Arc<dyn Origin>,
    file: RemoteFile,
    /// For each request of a range: the connection that it came over.
    asked: Arc<Mutex<Vec<usize>>>,
}

/// What is sent for a range.
struct Sent {
    bytes: Vec<u8>,
    /// The connection ends here, whatever the head said.
    closes: bool,
}

impl Server {
    async fn start(answer: impl Fn(Range<u64>) -> Sent + Send + Sync + 'static) -> Self {
        Self::start_at("http", answer).await
    }

    /// Over TLS as well.
    async fn start_at(scheme: &str, answer: impl Fn(Range<u64>) -> Sent + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{}/model.safetensors", listener.local_addr().unwrap());
        let tls = (scheme == "https").then(tls);
        let (asked, answer) = (Arc::<Mutex<Vec<usize>>>::default(), Arc::new(answer));
        let seen = Arc::clone(&asked);
        tokio::spawn(async move {
            for number in 0.. {
                let (stream, _) = listener.accept().await.unwrap();
                let (tls, seen, answer) = (tls.clone(), Arc::clone(&seen), Arc::clone(&answer));
                tokio::spawn(async move {
                    match tls {
                        // Whoever has gone has gone.
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                serve(stream, number, seen, answer).await;
                            }
                        }
                        None => serve(stream, number, seen, answer).await,
                    }
                });
            }
        });
        let reference = url.parse().unwrap();
        let authority = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/support/tls/ca.pem"));
        let config = Config { stall_timeout: units::Span(STALL), ca_bundle: Some(authority), ..Config::default() };
        let origin = Origins::unguarded(config).unwrap().open(&reference, &Rights::Own).unwrap();
        let file = origin.resolve(&reference).await.unwrap().files.remove(0);
        assert_eq!((file.size, asked.lock().unwrap().len()), (SIZE, 0));
        Self { origin, file, asked }
    }

    async fn read(&self, range: Range<u64>) -> Result<Vec<u8>, SourceError> {
        self.origin.open(&self.file, range).await?.bytes.read_up_to(SIZE as usize).await
    }

    async fn reads(&self, range: Range<u64>) {
        assert_eq!(self.read(range.clone()).await.unwrap(), content(range));
    }

    fn asked(&self) -> Vec<usize> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

/// What certifies the server, and is trusted.
fn tls() -> TlsAcceptor {
    preheat::origin::install_tls_provider();
    let chain = vec![CertificateDer::from_pem_slice(include_bytes!("support/tls/server.pem")).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("support/tls/server.key")).unwrap();
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn serve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    number: usize,
    asked: Arc<Mutex<Vec<usize>>>,
    answer: Arc<impl Fn(Range<u64>) -> Sent>,
) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let range = head.lines().find_map(|line| line.strip_prefix("range: bytes="));
        let sent = match range {
            Some(range) => {
                let (first, last) = range.split_once('-').unwrap();
                asked.lock().unwrap().push(number);
                answer(first.parse().unwrap()..last.parse::<u64>().unwrap() + 1)
            }
            None => Sent {
                bytes: format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\netag: \"e\"\r\n\r\n").into(),
                closes: false,
            },
        };
        // Whoever has gone has gone.
        if stream.write_all(&sent.bytes).await.is_err() || sent.closes {
            return;
        }
    }
}

fn content(range: Range<u64>) -> Vec<u8> {
    range.map(|at| (at % 251) as u8).collect()
}

/// A good answer, with more lines in its head.
fn good(range: Range<u64>, fields: &str) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {}-{}/{SIZE}\r\ncontent-length: {}\r\netag: \"e\"\r\n{fields}\r\n",
        range.start,
        range.end - 1,
        range.end - range.start
    );
    [head.into_bytes(), content(range)].concat()
}

fn stays(bytes: Vec<u8>) -> Sent {
    Sent { bytes, closes: false }
}

#[tokio::test]
async fn a_connection_serves_one_range_after_the_other() {
    for scheme in ["http", "https"] {
        let server = Server::start_at(scheme, |range| stays(good(range, ""))).await;
        for range in [0..10, 10..SIZE, 5..6] {
            server.reads(range).await;
        }
        let asked = server.asked();
        assert!(asked.iter().all(|connection| *connection == asked[0]), "{scheme}: {asked:?}");
    }
    let server = Server::start(|range| stays(good(range, ""))).await;
    // Two at a time take two, and one that is dropped in the middle is not used again.
    let (one, two) = tokio::join!(server.origin.open(&server.file, 0..SIZE), server.origin.open(&server.file, 0..SIZE));
    drop((one.unwrap(), two.unwrap()));
    server.reads(0..10).await;
    let asked = server.asked();
    assert!(asked[0] != asked[1] && !asked[..2].contains(&asked[2]), "{asked:?}");
}

#[tokio::test]
async fn an_end_that_nobody_saw_costs_a_connection_and_no_error() {
    let server = Server::start(|range| Sent { bytes: good(range, ""), closes: true }).await;
    for _ in 0..3 {
        server.reads(0..10).await;
    }
    let said = Server::start(|range| Sent { bytes: good(range, "connection: close\r\n"), closes: false }).await;
    said.reads(0..10).await;
    said.reads(0..10).await;
    for asked in [server.asked(), said.asked()] {
        assert!(asked.is_sorted_by(|one, next| one < next), "each its own connection: {asked:?}");
    }
}

#[tokio::test]
async fn what_has_no_length_is_left_to_the_ordinary_client_from_then_on() {
    let chunked = |range: Range<u64>| {
        let body = content(range.clone());
        let head = format!(
            "HTTP/1.1 206 Partial Content\r\ncontent-range: bytes {}-{}/{SIZE}\r\ntransfer-encoding: chunked\r\n\r\n{:x}\r\n",
            range.start,
            range.end - 1,
            body.len()
        );
        stays([head.into_bytes(), body, b"\r\n0\r\n\r\n".to_vec()].concat())
    };
    let server = Server::start(chunked).await;
    server.reads(0..1000).await;
    assert_eq!(server.asked().len(), 2, "once by each client");
    server.reads(1000..SIZE).await;
    assert_eq!(server.asked().len(), 1);
}

/// Stores send their errors in chunks. Whoever says "slow down" is asked once, and goes on being asked over the same connection.
#[tokio::test]
async fn a_refusal_without_a_length_is_read_and_no_reason_to_ask_again() {
    for (refusal, keeps) in [
        (&b"HTTP/1.1 503 X\r\ntransfer-encoding: chunked\r\n\r\n4\r\nslow\r\n5\r\n down\r\n0\r\n\r\n"[..], true),
        (b"HTTP/1.1 503 X\r\nconnection: close\r\n\r\nslow down", false),
    ] {
        let refused = AtomicBool::new(false);
        let server = Server::start(move |range| {
            if refused.swap(true, SeqCst) {
                return stays(good(range, ""));
            }
            Sent { bytes: refusal.to_vec(), closes: !keeps }
        });
        let server = server.await;
        let error = server.read(0..10).await.unwrap_err();
        assert!(error.to_string().contains("slow down"), "{error}");
        assert_eq!(server.asked().len(), 1, "asked once");
        server.reads(0..10).await;
        server.reads(0..10).await;
        let asked = server.asked();
        assert_eq!(asked, if keeps { vec![1, 1] } else { vec![2, 2] }, "by the same client");
    }
}

#[tokio::test]
async fn interim_answers_are_passed_over() {
    let hints = b"HTTP/1.1 103 Early Hints\r\nlink: <x>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n";
    let server = Server::start(|range| stays([hints.to_vec(), good(range, "")].concat())).await;
    server.reads(0..SIZE).await;
    let endless = Server::start(|_| stays(b"HTTP/1.1 100 Continue\r\n\r\n".repeat(100))).await;
    let error = endless.read(0..10).await.unwrap_err();
    assert!(matches!(error, SourceError::Protocol { .. }), "{error}");
}

#[tokio::test]
async fn bytes_behind_an_answer_never_begin_the_next_one() {
    for scheme in ["http", "https"] {
        // What follows would pass for the answer to the same question, asked again.
        let trap = |range: Range<u64>| {
            let mut other = good(range.clone(), "");
            other.iter_mut().rev().take((range.end - range.start) as usize).for_each(|byte| *byte ^= 1);
            stays([good(range, ""), other].concat())
        };
        let server = Server::start_at(scheme, trap).await;
        // More than comes with the head, so that what follows it is left on the connection.
        server.reads(0..50_000).await;
        server.reads(0..50_000).await;
        let asked = server.asked();
        assert_ne!(asked[0], asked[1], "{scheme}: a connection with something left on it is not used again");
    }
}

#[tokio::test]
async fn what_breaks_off_or_is_no_answer_says_so() {
    let short = |range: Range<u64>| {
        let mut bytes = good(range, "");
        bytes.truncate(bytes.len() - 7);
        Sent { bytes, closes: true }
    };
    for (sent, says) in [
        (short as fn(Range<u64>) -> Sent, "the body ended 7 bytes early"),
        (|_| Sent { bytes: b"HTTP/1.1 206 Par".to_vec(), closes: true }, "before the head of an answer was complete"),
        (|_| stays(b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()), "not HTTP/1.1"),
        (|_| stays(format!("HTTP/1.1 206 X\r\n{}", "a: b\r\n".repeat(200)).into()), "not HTTP/1.1"),
        (|_| stays(format!("HTTP/1.1 206 X\r\na: {}", "b".repeat(100_000)).into()), "longer than"),
        (|_| stays(b"HTTP/1.1 503 X\r\ncontent-length: 4\r\n\r\nbusy".to_vec()), "busy"),
    ] {
        let error = Server::start(sent).await.read(0..1000).await.unwrap_err();
        assert!(error.to_string().contains(says), "{says}: {error}");
    }
}

/// Whoever reads a small file sets no limit of its own: a server that takes the request and says nothing would hold a planning
/// for ever.
#[tokio::test]
async fn a_server_that_falls_silent_is_left() {
    let in_the_head: fn(Range<u64>) -> Sent = |_| stays(b"HTTP/1.1 206 Par".to_vec());
    let in_the_body: fn(Range<u64>) -> Sent = |range| {
        let mut bytes = good(range, "");
        bytes.truncate(bytes.len() - 7);
        stays(bytes)
    };
    for sent in [|_| stays(Vec::new()), in_the_head, in_the_body] {
        let server = Server::start(sent).await;
        let read = tokio::time::timeout(10 * STALL, read_range(server.origin.as_ref(), &server.file, 0..1000)).await;
        let error = read.expect("a limit of the connection's own").unwrap_err();
        assert!(matches!(error, SourceError::Stalled { after: STALL, .. }), "{error}");
    }
    // Of a refusal, what has come of its body is shown.
    let refuses = Server::start(|_| stays(b"HTTP/1.1 503 X\r\ncontent-length: 400\r\n\r\nbusy".to_vec())).await;
    let read = tokio::time::timeout(10 * STALL, refuses.read(0..1000)).await;
    let error = read.expect("a limit of the connection's own").unwrap_err();
    assert!(error.to_string().contains("busy"), "{error}");
}

/// Between two reads a flight may wait for its disk: that is not the server's silence.
#[tokio::test]
async fn a_reader_that_is_busy_elsewhere_is_not_the_servers_silence() {
    let server = Server::start(|range| stays(good(range, ""))).await;
    let mut body = server.origin.open(&server.file, 0..SIZE).await.unwrap();
    let mut seen = Vec::new();
    let mut into = vec![0; SIZE as usize];
    while seen.len() < SIZE as usize {
        let read = body.bytes.read(&mut into).await.unwrap();
        assert_ne!(read, 0);
        if seen.is_empty() {
            tokio::time::sleep(STALL + STALL / 2).await;
        }
        seen.extend_from_slice(&into[..read]);
    }
    assert_eq!(seen, content(0..SIZE));
}
