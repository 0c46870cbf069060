//! Bundles of compiled engines: finding, giving out, and what became of them. Every answer is for the caller's own scope.

pub(super) mod captures;

use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use self::captures::Captures;
pub(crate) use self::captures::Wanted;
use super::Answer;
use super::openapi::{NotHere, OriginProblems, Problems};
use super::parse::{Whole, parse};
use crate::base::ErrorKind;
use crate::doors::problem::problem;
use crate::doors::reader::Reader;
use crate::doors::{Node, blobs};
use crate::engines::{AttemptEnd, AttemptId, BundleRef, Decider, EngineError, Lookup, Near, Refusal, RunReport};
use crate::model::BundleId;
use crate::model::engine::EngineKey;
use crate::prewarm::wire::{PinRequest, Problem};
use crate::store::Pin;

/// Longest wait for the shared origin that a lookup may ask for.
const LOOKUP_LONGEST: Duration = Duration::from_secs(600);

/// The header that says where a pack lies, for callers who may open it themselves.
pub(crate) const PACK_HEADER: &str = "preheat-pack";

/// The header that says where the files of a bundle lie that is used in place.
pub(crate) const FILES_HEADER: &str = "preheat-files";

/// What is looked for.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct LookupRequest {
    /// The engine key, all fields in clear.
    #[schema(value_type = Object)]
    pub(crate) key: EngineKey,
    /// How long the shared origin may take, in milliseconds; at most ten minutes. 0: what is on the node.
    #[serde(default)]
    pub(crate) deadline_ms: u64,
}

/// Everything about one bundle.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct Shown {
    /// In short.
    pub(crate) bundle: BundleRef,
    /// Its document.
    #[schema(value_type = Object)]
    pub(crate) document: Box<RawValue>,
    /// Its signature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub(crate) signature: Option<serde_json::Value>,
    /// Why it would not be restored for the caller. Absent: it would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) refusal: Option<Refusal>,
}

/// An attempt that has begun.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub(crate) struct Begun {
    /// Its name.
    pub(crate) attempt: AttemptId,
}

pub(super) fn refused(error: &EngineError) -> Problem {
    problem(error.kind(), error.to_string())
}

fn name(id: &str) -> Answer<BundleId> {
    id.parse().map_err(|error| problem(ErrorKind::Invalid, format!("{error}")))
}

/// Finds the bundle that may be restored for an engine key: on the node, else at the shared origin. Says why others may not, and what
/// is near.
#[utoipa::path(post, path = "/v1/engines/lookup", request_body = LookupRequest,
    responses((status = 200, body = Lookup), Problems, OriginProblems))]
pub(super) async fn lookup(State(node): State<Node>, reader: Reader, Whole(body): Whole) -> Answer<Json<Lookup>> {
    let request: LookupRequest = parse(&body)?;
    let deadline = Duration::from_millis(request.deadline_ms).min(LOOKUP_LONGEST);
    let found = node.engines.lookup(&reader.identity.scope, &request.key, deadline).await;
    found.map(Json).map_err(|error| refused(&error))
}

/// Bundles that the caller may know, with their keys, newest first.
#[utoipa::path(get, path = "/v1/engines", responses((status = 200, body = Vec<Near>), Problems))]
pub(super) async fn list(State(node): State<Node>, reader: Reader) -> Answer<Json<Vec<Near>>> {
    node.engines.list(&reader.identity.scope).await.map(Json).map_err(|error| refused(&error))
}

/// A bundle: its document in clear, its signature, and whether it would be restored.
#[utoipa::path(get, path = "/v1/engines/{id}", params(("id" = String, Path)),
    responses((status = 200, body = Shown), Problems, NotHere))]
pub(super) async fn one(State(node): State<Node>, reader: Reader, Path(id): Path<String>) -> Answer<Json<Shown>> {
    let view = node.engines.show(&reader.identity.scope, &name(&id)?).await.map_err(|error| refused(&error))?;
    let document = String::from_utf8(view.document.to_json()).ok().and_then(|text| RawValue::from_string(text).ok());
    Ok(Json(Shown {
        bundle: view.bundle,
        document: document.ok_or_else(|| problem(ErrorKind::Internal, "a document that is no JSON"))?,
        signature: view.signature.and_then(|signature| serde_json::from_slice(&signature.to_json()).ok()),
        refusal: view.refusal,
    }))
}

/// The canonical document of a bundle that may be restored now. `Preheat-Pack` says where its pack lies on the node, `Preheat-Files`
/// where its files do, if it is used in place.
#[utoipa::path(get, path = "/v1/engines/{id}/document", params(("id" = String, Path)),
    responses((status = 200, body = serde_json::Value), Problems, NotHere))]
pub(super) async fn document(State(node): State<Node>, reader: Reader, Path(id): Path<String>) -> Answer<Response> {
    let opened = node.engines.open(&reader.identity.scope, &name(&id)?).await.map_err(|error| refused(&error))?;
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let places = [(PACK_HEADER, opened.pack.map(|(_, path)| path)), (FILES_HEADER, opened.files)];
    for (name, path) in places.into_iter().filter_map(|(name, path)| Some((name, path?))) {
        if let Ok(path) = HeaderValue::from_bytes(path.as_os_str().as_encoded_bytes()) {
            headers.insert(name, path);
        }
    }
    Ok((headers, opened.bytes.to_vec()).into_response())
}

/// The pack of a bundle that may be restored now; every group of 1 MiB is proved before a byte of it leaves.
#[utoipa::path(get, path = "/v1/engines/{id}/pack", params(("id" = String, Path)), responses(
    (status = 200, body = Vec<u8>, content_type = "application/octet-stream"),
    Problems,
    NotHere,
))]
pub(super) async fn pack(
    State(node): State<Node>,
    reader: Reader,
    method: Method,
    Path(id): Path<String>,
) -> Answer<Response> {
    let opened = node.engines.open(&reader.identity.scope, &name(&id)?).await.map_err(|error| refused(&error))?;
    let Some(pack) = opened.document.pack else {
        return Err(problem(ErrorKind::Invalid, "the bundle has no pack: it is used in place"));
    };
    blobs::give(&node, pack.blake3, &method, &HeaderMap::new()).await
}

/// Hashes the blobs of a bundle, and puts aside what is wrong: for a caller on this machine who has found that out by reading.
#[utoipa::path(post, path = "/v1/engines/{id}/recheck", params(("id" = String, Path)),
    responses((status = 204, description = "What was wrong is no longer given to anybody"), Problems, NotHere))]
pub(super) async fn recheck(State(node): State<Node>, reader: Reader, Path(id): Path<String>) -> Answer<StatusCode> {
    let rechecked = node.engines.recheck(&reader.identity.scope, &name(&id)?).await;
    rechecked.map(|()| StatusCode::NO_CONTENT).map_err(|error| refused(&error))
}

/// What is said for a release.
#[derive(Debug, Default, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReleaseRequest {
    /// For whoever reads the log.
    #[serde(default)]
    pub(crate) reason: String,
}

fn decider(reader: &Reader) -> Decider {
    Decider { scope: reader.identity.scope.clone(), operator: reader.identity.operator }
}

/// Releases a bundle from quarantine and suspicion. Callers take back their own word; an operator everybody's. It is logged.
#[utoipa::path(post, path = "/v1/engines/{id}/release", params(("id" = String, Path)),
    request_body = Option<ReleaseRequest>, responses((status = 200, body = BundleRef), Problems, NotHere))]
pub(super) async fn release(
    State(node): State<Node>,
    reader: Reader,
    Path(id): Path<String>,
    Whole(body): Whole,
) -> Answer<Json<BundleRef>> {
    let request: ReleaseRequest = if body.is_empty() { ReleaseRequest::default() } else { parse(&body)? };
    let released = node.engines.release(&decider(&reader), &name(&id)?, &request.reason).await;
    released.map(Json).map_err(|error| refused(&error))
}

/// Pins a bundle, or with `lease_seconds` leases it: it is not evicted. A pin of what others restore too is for the operator.
#[utoipa::path(put, path = "/v1/engines/{id}/pins/{pin}", params(("id" = String, Path), ("pin" = String, Path)),
    request_body = Option<PinRequest>, responses((status = 200, body = BundleRef), Problems, NotHere))]
pub(super) async fn pin(
    State(node): State<Node>,
    reader: Reader,
    Path((id, pin)): Path<(String, String)>,
    Whole(body): Whole,
) -> Answer<Json<BundleRef>> {
    let request: PinRequest = if body.is_empty() { PinRequest::default() } else { parse(&body)? };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let expires_at = request.lease_seconds.map(|seconds| now.saturating_add(seconds));
    let pin = Pin { id: pin, reason: request.reason, expires_at, in_memory: request.in_memory };
    let pinned = node.engines.pin(&decider(&reader), &name(&id)?, pin).await;
    pinned.map(Json).map_err(|error| refused(&error))
}

/// Takes a pin or lease of a bundle away.
#[utoipa::path(delete, path = "/v1/engines/{id}/pins/{pin}", params(("id" = String, Path), ("pin" = String, Path)),
    responses((status = 200, body = BundleRef), Problems, NotHere))]
pub(super) async fn unpin(
    State(node): State<Node>,
    reader: Reader,
    Path((id, pin)): Path<(String, String)>,
) -> Answer<Json<BundleRef>> {
    let unpinned = node.engines.unpin(&decider(&reader), &name(&id)?, &pin).await;
    unpinned.map(Json).map_err(|error| refused(&error))
}

/// Notes, durably, that a start with a bundle begins.
#[utoipa::path(post, path = "/v1/engines/{id}/attempts", params(("id" = String, Path)),
    responses((status = 200, body = Begun), Problems, NotHere))]
pub(super) async fn begin_attempt(
    State(node): State<Node>,
    reader: Reader,
    Path(id): Path<String>,
) -> Answer<Json<Begun>> {
    let attempt = node.engines.begin_attempt(&reader.identity.scope, &name(&id)?).await;
    attempt.map(|attempt| Json(Begun { attempt })).map_err(|error| refused(&error))
}

/// Notes how it ended: `ready`, `suspect`, `cleared` or `quarantine`.
#[utoipa::path(put, path = "/v1/engines/{id}/attempts/{attempt}", params(("id" = String, Path), ("attempt" = String, Path)),
    request_body = AttemptEnd, responses((status = 204, description = "It is noted"), Problems, NotHere))]
pub(super) async fn end_attempt(
    State(node): State<Node>,
    reader: Reader,
    Path((id, attempt)): Path<(String, String)>,
    Whole(body): Whole,
) -> Answer<StatusCode> {
    let end: AttemptEnd = parse(&body)?;
    let (scope, operator) = (&reader.identity.scope, reader.identity.operator);
    let ended = node.engines.end_attempt(scope, operator, &name(&id)?, &AttemptId(attempt), end).await;
    ended.map(|()| StatusCode::NO_CONTENT).map_err(|error| refused(&error))
}

/// Counts how a start went, for the metrics of the node.
#[utoipa::path(post, path = "/v1/engines/runs", request_body = RunReport,
    responses((status = 204, description = "It is counted"), Problems))]
pub(super) async fn report(State(node): State<Node>, Whole(body): Whole) -> Answer<StatusCode> {
    let report: RunReport = parse(&body)?;
    node.engines.report(&report);
    Ok(StatusCode::NO_CONTENT)
}
