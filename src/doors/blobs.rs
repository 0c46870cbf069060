//! Bytes of a blob. Every group is hashed before any of it leaves; `sendfile` was turned down for that reason. A group that is
//! wrong quarantines the blob: before the first byte it is an error, later the connection is broken off, and a client that
//! counts its bytes knows. A wrong byte is never sent.
//!
//! A group that is in memory is copied, hashed and sent by one thread, so that it stays in that core's cache. That keeps an
//! executor's thread for a quarter of a millisecond; handing it to another and back costs more than it saves the others. What
//! a disk would have to be waited for is read elsewhere, and ahead.

use std::ops::Range;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt, stream};

use tokio::task::JoinHandle;

use super::Node;
use super::api::{NotHere, OriginProblems, Problems};
use super::outgoing::Outgoing;
use super::problem::problem;
use super::reader::Reader;
use crate::base::ErrorKind;
use crate::digest::{GROUP_BYTES, Hash, Verified, group_range};
use crate::model::Tenant;
use crate::prewarm::wire::Problem;
use crate::store::{BlobReader, Store, StoreError};
use crate::telemetry::metrics::{Metrics, Which};

/// A blob or a range of it: every group of 1 MiB is proved before a byte of it leaves.
#[utoipa::path(get, path = "/v1/blobs/{hash}",
    params(("hash" = String, Path), ("range" = Option<String>, Header, description = "One range of bytes")),
    responses(
        (status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 206, body = Vec<u8>, content_type = "application/octet-stream"),
        (status = 304, description = "As `If-None-Match` has it"),
        (status = 416, description = "The blob has no such range", body = Problem, content_type = "application/problem+json"),
        Problems,
        NotHere,
        OriginProblems,
    ))]
pub(super) async fn blob(
    State(node): State<Node>,
    reader: Reader,
    method: Method,
    Path(hash): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let hash: Hash = hash.parse().map_err(|error| problem(ErrorKind::Invalid, format!("{error}")))?;
    let scopes = [Tenant::default(), Tenant::node(), reader.identity.scope.clone()];
    let places = scopes.iter().flat_map(|scope| node.store.naming(scope, &hash)).collect();
    let missing = || problem(ErrorKind::NotFound, format!("blob {hash} is not on this node"));
    reader.may_read(&node, places, missing).await?;
    give(&node, hash, &method, &headers).await
}

/// The bytes of a blob that the caller may read, or the range of them that the headers ask for.
pub(super) async fn give(node: &Node, hash: Hash, method: &Method, headers: &HeaderMap) -> Result<Response, Problem> {
    let (store, metrics) = (node.store.clone(), Arc::clone(&node.metrics));
    let reader = open(&store, &metrics, hash).await?;
    let size = reader.size();
    let asked = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let range = match asked.map(|text| parse(text, size)) {
        None | Some(Asked::Whole) => None,
        Some(Asked::Part(range)) => Some(range),
        Some(Asked::Outside) => {
            let mut response = Problem::with_status(
                ErrorKind::Invalid,
                StatusCode::RANGE_NOT_SATISFIABLE.as_u16(),
                format!("the blob has {size} bytes"),
            )
            .into_response();
            if let Ok(value) = format!("bytes */{size}").parse() {
                response.headers_mut().insert(header::CONTENT_RANGE, value);
            }
            return Ok(response);
        }
    };
    let (start, end) = range.as_ref().map_or((0, size), |range| (range.start, range.end));
    let mut answer = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::ACCEPT_RANGES, "bytes")
        .header(header::ETAG, format!("\"{hash}\""))
        .header(header::CONTENT_LENGTH, end - start);
    if range.is_some() {
        answer = answer
            .status(StatusCode::PARTIAL_CONTENT)
            .header(header::CONTENT_RANGE, format!("bytes {start}-{}/{size}", end.saturating_sub(1)));
    }
    let body = if *method == Method::HEAD || start == end {
        Body::empty()
    } else {
        let begin = start / GROUP_BYTES;
        let (reader, buffers) = (Arc::new(reader), node.buffers.clone());
        let pieces = Pieces { store, metrics, hash, reader, buffers, left: start..end, brought: begin, coming: None };
        // The first group is proved before the status is sent, so that a corrupt blob is an error and not a broken body.
        let (first, pieces) = pieces.next().await?;
        let rest = stream::unfold(Some(pieces), |pieces| async move {
            let pieces = pieces.filter(|pieces| !pieces.left.is_empty())?;
            match pieces.next().await {
                Ok((bytes, pieces)) => Some((Ok(bytes), Some(pieces))),
                Err(problem) => Some((Err(std::io::Error::other(problem.detail)), None)),
            }
        });
        Body::from_stream(stream::iter([Ok(first)]).chain(rest))
    };
    answer.body(body).map_err(|error| problem(ErrorKind::Internal, error.to_string()))
}

async fn open(store: &Store, metrics: &Arc<Metrics>, hash: Hash) -> Result<BlobReader, Problem> {
    let (store, metrics) = (store.clone(), Arc::clone(metrics));
    super::api::blocking(move || match store.open_blob(&hash) {
        Err(error) if error.kind() == ErrorKind::Corrupt => Err(aside(&store, &metrics, &hash, error)),
        outcome => outcome,
    })
    .await
}

/// Quarantines and passes the error on.
fn aside(store: &Store, metrics: &Metrics, hash: &Hash, error: StoreError) -> StoreError {
    metrics.corrupt.get_or_create(&Which { which: "read" }).inc();
    match store.quarantine(hash, "read") {
        Ok(()) => error,
        Err(worse) => worse,
    }
}

/// Groups that are brought into memory at once: 8 MiB, of which one answer has two on their way or in memory ahead of its client
/// at most. They stay in the page cache, since other replicas of the node are likely to ask for the same.
const AHEAD: u64 = 8;

/// What of a blob is still to be sent.
struct Pieces {
    store: Store,
    metrics: Arc<Metrics>,
    hash: Hash,
    reader: Arc<BlobReader>,
    buffers: Outgoing,
    left: Range<u64>,
    /// Groups before this one are in memory as far as they can be.
    brought: u64,
    /// Those after it, up to the next boundary of [`AHEAD`], are on their way.
    coming: Option<JoinHandle<()>>,
}

// === impl Pieces ===

impl Pieces {
    /// Reads and proves the next group; gives the part of it that was asked for.
    async fn next(mut self) -> Result<(Bytes, Self), Problem> {
        if self.coming.is_none()
            && let Some(bytes) = self.at_hand()
        {
            return Ok((bytes, self));
        }
        self.bring().await;
        let Self { store, metrics, hash, reader, buffers, left, brought, coming } = self;
        let index = left.start / GROUP_BYTES;
        let group = group_range(reader.size(), index);
        let end = left.end.min(group.end);
        let wanted = (left.start - group.start) as usize..(end - group.start) as usize;
        let (read, keeper, counter) = (Arc::clone(&reader), store.clone(), Arc::clone(&metrics));
        let memory = buffers.acquire((group.end - group.start) as usize).await;
        let mut memory = memory.ok_or_else(|| {
            problem(ErrorKind::Busy, "other clients have all memory for bytes on their way out; try again")
        })?;
        let bytes = super::api::blocking(move || {
            let checked = |outcome: Result<Verified<&[u8]>, StoreError>| match outcome {
                Err(error) if error.kind() == ErrorKind::Corrupt => Err(aside(&keeper, &counter, &hash, error)),
                outcome => outcome.map(drop),
            };
            checked(read.group(index, &mut memory))?;
            Ok(Bytes::from_owner(memory).slice(wanted))
        })
        .await?;
        metrics.served_bytes.inc_by(bytes.len() as u64);
        Ok((bytes, Self { store, metrics, hash, reader, buffers, left: end..left.end, brought, coming }))
    }

    /// The next group, if it is in memory, and so is a buffer.
    fn at_hand(&mut self) -> Option<Bytes> {
        let index = self.left.start / GROUP_BYTES;
        let group = group_range(self.reader.size(), index);
        let end = self.left.end.min(group.end);
        let mut buffer = self.buffers.try_acquire()?;
        self.reader.group_at_hand(index, &mut buffer)?;
        let bytes =
            Bytes::from_owner(buffer).slice((self.left.start - group.start) as usize..(end - group.start) as usize);
        self.left.start = end;
        self.metrics.served_bytes.inc_by(bytes.len() as u64);
        Some(bytes)
    }

    /// Sees that the next group is in memory, and that what follows it is on its way while this is hashed and sent.
    async fn bring(&mut self) {
        let (index, last) = (self.left.start / GROUP_BYTES, self.left.end.div_ceil(GROUP_BYTES));
        if index < self.brought || last - index < AHEAD / 2 {
            return;
        }
        let begin = |from: u64| {
            let (reader, to) = (Arc::clone(&self.reader), boundary(from).min(last));
            tokio::task::spawn_blocking(move || reader.bring(from..to))
        };
        let coming = self.coming.take().unwrap_or_else(|| begin(index));
        // What was not brought is read all the same.
        let _ = coming.await;
        self.brought = boundary(index);
        self.coming = (self.brought < last).then(|| begin(self.brought));
    }
}

/// Where the groups end that are brought together with this one.
fn boundary(group: u64) -> u64 {
    (group / AHEAD + 1) * AHEAD
}

/// What a `Range` header asks of `size` bytes.
#[derive(Debug, PartialEq)]
enum Asked {
    /// Not a single byte range: answered whole, as RFC 9110 allows.
    Whole,
    Part(Range<u64>),
    Outside,
}

fn parse(text: &str, size: u64) -> Asked {
    let Some((first, last)) =
        text.strip_prefix("bytes=").filter(|spec| !spec.contains(',')).and_then(|spec| spec.split_once('-'))
    else {
        return Asked::Whole;
    };
    let range = match (first.trim().parse::<u64>(), last.trim().parse::<u64>()) {
        (Ok(first), Ok(last)) if last >= first => first..last.saturating_add(1).min(size),
        (Ok(first), Err(_)) if last.trim().is_empty() => first..size,
        (Err(_), Ok(count)) if first.trim().is_empty() => size.saturating_sub(count)..size,
        _ => return Asked::Whole,
    };
    if range.start < range.end { Asked::Part(range) } else { Asked::Outside }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_those_of_rfc_9110() {
        for (text, asked) in [
            ("bytes=0-9", Asked::Part(0..10)),
            ("bytes=5-", Asked::Part(5..100)),
            ("bytes=-7", Asked::Part(93..100)),
            ("bytes=-700", Asked::Part(0..100)),
            ("bytes=90-1000", Asked::Part(90..100)),
            ("bytes=100-", Asked::Outside),
            ("bytes=-0", Asked::Outside),
            ("bytes=5-3", Asked::Whole),
            ("bytes=0-1,3-4", Asked::Whole),
            ("lines=1-2", Asked::Whole),
            ("bytes=0-18446744073709551615", Asked::Part(0..100)),
        ] {
            assert_eq!(parse(text, 100), asked, "{text}");
        }
    }
}
