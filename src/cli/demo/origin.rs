//! The demonstration's origin: an HTTP server in this process with a stated bandwidth, latency and per-connection cap, as an
//! object store has them. It counts every body byte that it sends.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use tokio::time::Instant;

use super::content::Content;

/// Bytes handed out between two looks at the clock: small enough that the pace is even, large enough to cost little.
const PIECE: u64 = 256 * 1024;

/// What the origin can do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// All connections together, bytes a second.
    pub(super) bytes_per_second: u64,
    /// One connection, bytes a second.
    pub(super) connection_bytes_per_second: u64,
    /// Before the first byte of each answer.
    pub(super) latency: Duration,
}

/// A running origin; stops when dropped.
#[derive(Debug)]
pub(super) struct DemoOrigin {
    address: SocketAddr,
    shared: Arc<Shared>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    files: HashMap<String, Content>,
    limits: Limits,
    sent: AtomicU64,
    /// When the shared line is free again.
    free_at: Mutex<Instant>,
}

// === impl DemoOrigin ===

impl DemoOrigin {
    /// Serves `files` below `/model/` on a free loopback port.
    pub(super) async fn start(files: Vec<(String, Content)>, limits: Limits) -> std::io::Result<Self> {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            files: files.into_iter().collect(),
            limits,
            sent: AtomicU64::new(0),
            free_at: Mutex::new(Instant::now()),
        });
        let router = Router::new().route("/model/{*path}", axum::routing::get(serve)).with_state(Arc::clone(&shared));
        let server = tokio::spawn(async move {
            // Ends with the task; there is nobody to tell about a failing accept but the requests that then fail.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, shared, server })
    }

    /// The reference of the model.
    pub(super) fn reference(&self) -> String {
        format!("http://{}/model", self.address)
    }

    /// Body bytes sent since the last call.
    pub(super) fn take_sent(&self) -> u64 {
        self.shared.sent.swap(0, Ordering::Relaxed)
    }
}

impl Drop for DemoOrigin {
    fn drop(&mut self) {
        self.server.abort();
    }
}

// === impl Shared ===

impl Shared {
    /// When the shared line has carried another `bytes`.
    fn line(&self, bytes: u64) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let start = (*free_at).max(Instant::now());
        *free_at = start + at_rate(bytes, self.limits.bytes_per_second);
        *free_at
    }
}

fn at_rate(bytes: u64, bytes_per_second: u64) -> Duration {
    Duration::from_secs_f64(bytes as f64 / bytes_per_second.max(1) as f64)
}

async fn serve(State(shared): State<Arc<Shared>>, Path(path): Path<String>, headers: HeaderMap) -> Response {
    tokio::time::sleep(shared.limits.latency).await;
    let Some(content) = shared.files.get(&path).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let size = content.len();
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).and_then(|text| parse(text, size));
    let (start, end) = range.unwrap_or((0, size));
    let mut answer = Response::builder()
        .header(header::ETAG, format!("\"{path}-{size}\""))
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::CONTENT_LENGTH, end - start);
    if range.is_some() {
        answer = answer
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {start}-{}/{size}", end - 1));
    }
    let begun = Instant::now();
    let stream = futures_util::stream::unfold(start, move |position| {
        let (shared, content) = (Arc::clone(&shared), content.clone());
        async move {
            if position >= end {
                return None;
            }
            let take = PIECE.min(end - position);
            let mut piece = vec![0; take as usize];
            if let Err(error) = content.read(position, &mut piece) {
                return Some((Err(error), end));
            }
            let line = shared.line(take);
            let connection = begun + at_rate(position + take - start, shared.limits.connection_bytes_per_second);
            tokio::time::sleep_until(line.max(connection)).await;
            shared.sent.fetch_add(take, Ordering::Relaxed);
            Some((Ok(Bytes::from(piece)), position + take))
        }
    });
    answer.body(Body::from_stream(stream)).unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

/// `bytes=a-b` or `bytes=a-` within `size`; anything else is answered whole.
fn parse(text: &str, size: u64) -> Option<(u64, u64)> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let end = if last.is_empty() { size } else { last.parse::<u64>().ok()?.checked_add(1)?.min(size) };
    (first < end).then_some((first, end))
}
