//! The native API: routes and handlers. Every handler is short; what it calls does the work.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{MatchedPath, Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use axum::{Extension, Json, Router};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

use super::problem::{in_our_shape, problem};
use super::{Caller, Node, blobs};
use crate::base::ErrorKind;
use crate::base::units::MIB;
use crate::digest::Hash;
use crate::model::{ModelId, Reference, Rights, Scheme, Tenant};
use crate::prewarm::Submitted;
use crate::prewarm::wire::{GcReport, GcRequest, JobState, ModelView, PinRequest, PrewarmRequest, Problem};
use crate::store::{Model, Pin, StoreError};
use crate::sys::host::HostFacts;
use crate::sys::peer::own_uid;
use crate::telemetry::metrics::{CONTENT_TYPE, Served};

/// Largest request body: references and pins are a few hundred bytes.
const BODY_LIMIT: usize = MIB as usize;

/// Between two comments on a quiet event stream; a client takes four times this for a hang.
const HEARTBEAT: Duration = Duration::from_secs(2);

type Answer<T> = Result<T, Problem>;

/// All routes.
pub(super) fn router(node: Node) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/node", get(node_facts))
        .route("/v1/prewarm", post(prewarm).get(jobs))
        .route("/v1/prewarm/{id}", get(job).delete(cancel))
        .route("/v1/prewarm/{id}/events", get(events))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model).delete(remove))
        .route("/v1/models/{id}/pins/{pin}", put(pin).delete(unpin))
        .route("/v1/manifests/{digest}", get(manifest))
        .route("/v1/blobs/{hash}", get(blobs::blob))
        .route("/v1/gc", post(gc))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn_with_state(node.clone(), authorise))
        .layer(middleware::map_response(in_our_shape))
        .layer(middleware::from_fn_with_state(node.clone(), count))
        .with_state(node)
}

/// Counts answers by route, never by path: paths are unbounded.
async fn count(State(node): State<Node>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let response = next.run(request).await;
    node.metrics.requests.get_or_create(&Served { route, status: response.status().as_u16() }).inc();
    response
}

/// Over TCP everything but health and metrics needs the token, where one is set. On the socket the kernel names the caller.
async fn authorise(
    State(node): State<Node>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let open = matches!(request.uri().path(), "/livez" | "/readyz" | "/metrics");
    if let (Some(token), Caller::Network, false) = (&node.token, caller, open) {
        let sent =
            request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
        // Comparing digests takes the same time wherever two tokens differ.
        let right = sent.is_some_and(|sent| blake3::hash(sent.as_bytes()) == blake3::hash(token.as_bytes()));
        if !right {
            let detail =
                "a bearer token is needed: give --token-file FILE (PREHEAT_TOKEN_FILE), or use the Unix socket";
            let mut response = Problem::with_status(ErrorKind::Denied, 401, detail).into_response();
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return response;
        }
    }
    next.run(request).await
}

async fn ready(State(node): State<Node>) -> Answer<&'static str> {
    if let Some(detail) = node.store.halted() {
        return Err(problem(ErrorKind::Cancelled, format!("the store has stopped writing: {detail}")));
    }
    if node.ready.is_ready() { Ok("ok\n") } else { Err(problem(ErrorKind::Cancelled, "the daemon starts or drains")) }
}

async fn metrics(State(node): State<Node>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], node.metrics.encode()).into_response()
}

async fn node_facts(State(node): State<Node>) -> Answer<Json<serde_json::Value>> {
    let store = node.store.clone();
    let usage = blocking(move || Ok(store.usage())).await?;
    Ok(Json(serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "host": HostFacts::read(),
        "store": { "root": node.store.root(), "usage": usage, "halted": node.store.halted() },
        "ready": node.ready.is_ready(),
    })))
}

// === prewarm ===

async fn prewarm(
    State(node): State<Node>,
    Extension(caller): Extension<Caller>,
    body: Bytes,
) -> Answer<(StatusCode, Json<serde_json::Value>)> {
    let request: PrewarmRequest = parse(&body)?;
    if request.deadline_seconds.is_some_and(|seconds| !(seconds.is_finite() && seconds >= 0.0)) {
        return Err(problem(ErrorKind::Invalid, "deadline_seconds must be a number of seconds from now, not negative"));
    }
    if !node.ready.is_ready() {
        return Err(problem(ErrorKind::Cancelled, "the daemon starts or drains: ask again later"));
    }
    let reference: Reference =
        request.reference.parse().map_err(|error| problem(ErrorKind::Invalid, format!("{error}")))?;
    may_read(&node, caller, &reference)?;
    let (origins, asked) = (node.origins.clone(), reference.clone());
    let origin = origins.open(&asked, &Rights::Own).map_err(|error| problem(error.kind(), error.to_string()))?;
    let identity = node.origins.identity(&reference);
    let submitted = node.jobs.submit(Tenant::default(), &reference, identity, origin, &request);
    let Submitted::Job(mut view) = submitted else {
        return Err(problem(ErrorKind::Busy, "too many jobs wait on this node: ask again later"));
    };
    if request.wait {
        let waited = tokio::select! {
            waited = node.jobs.wait(&view.id) => waited,
            () = node.stop.cancelled() => None,
        };
        if let Some(waited) = waited {
            *view = waited;
        }
    }
    let over = !matches!(view.state, JobState::Queued | JobState::Running);
    let status = if over { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(serde_json::to_value(view).unwrap_or_default())))
}

/// The daemon reads files with its own rights, so a caller must either have the same, or be allowed them by name.
fn may_read(node: &Node, caller: Caller, reference: &Reference) -> Answer<()> {
    let same_rights = matches!(caller, Caller::Local { uid } if uid == 0 || uid == own_uid());
    if reference.scheme != Scheme::File || same_rights || node.origins.lists(reference) {
        return Ok(());
    }
    Err(problem(
        ErrorKind::Denied,
        format!(
            "{base} would be read with the daemon's rights: start it with --allow-origin {base}, or ask over its Unix socket \
             as the same user",
            base = reference.base()
        ),
    ))
}

async fn jobs(State(node): State<Node>) -> Json<serde_json::Value> {
    Json(serde_json::to_value(node.jobs.list()).unwrap_or_default())
}

async fn job(State(node): State<Node>, Path(id): Path<String>) -> Answer<Response> {
    let view = node.jobs.get(&id).ok_or_else(|| no_job(&id))?;
    Ok(Json(view).into_response())
}

async fn cancel(State(node): State<Node>, Path(id): Path<String>) -> Answer<Response> {
    let view = node.jobs.cancel(&id).ok_or_else(|| no_job(&id))?;
    Ok(Json(view).into_response())
}

async fn events(State(node): State<Node>, Path(id): Path<String>) -> Answer<Response> {
    let snapshots = node.jobs.watch(&id).ok_or_else(|| no_job(&id))?;
    let events = snapshots.map(|view| {
        let text = serde_json::to_string(&view).unwrap_or_default();
        Ok::<_, Infallible>(Event::default().event("job").data(text))
    });
    let events = events.take_until(node.stop.cancelled_owned());
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(HEARTBEAT)).into_response())
}

fn no_job(id: &str) -> Problem {
    let id: String = id.chars().take(64).collect();
    problem(ErrorKind::NotFound, format!("no job `{id}` is known: ended jobs are forgotten after a while"))
}

// === models ===

async fn models(State(node): State<Node>) -> Json<Vec<ModelView>> {
    Json(node.store.models().into_iter().map(ModelView::from).collect())
}

fn find(node: &Node, id: &str) -> Answer<Model> {
    let unknown = || problem(ErrorKind::NotFound, "no such model is published on this node: see /v1/models");
    let id: ModelId = id.parse().map_err(|_| unknown())?;
    node.store.model(&Tenant::default(), &id).ok_or_else(unknown)
}

async fn model(State(node): State<Node>, Path(id): Path<String>) -> Answer<Response> {
    Ok(Json(ModelView::from(find(&node, &id)?)).into_response())
}

async fn remove(State(node): State<Node>, Path(id): Path<String>) -> Answer<Json<GcReport>> {
    let model = find(&node, &id)?;
    let done = blocking(move || node.store.remove(&model.record.tenant, &model.record.id)).await?;
    Ok(Json(done.into()))
}

async fn pin(
    State(node): State<Node>,
    Path((id, pin)): Path<(String, String)>,
    body: Bytes,
) -> Answer<Json<ModelView>> {
    let request: PinRequest = if body.is_empty() { PinRequest::default() } else { parse(&body)? };
    let model = find(&node, &id)?;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let expires_at = request.lease_seconds.map(|seconds| now.saturating_add(seconds));
    let pin = Pin { id: pin, reason: request.reason, expires_at };
    let (store, record) = (node.store.clone(), model.record);
    blocking(move || store.pin(&record.tenant, &record.id, pin)).await?;
    Ok(Json(ModelView::from(find(&node, &id)?)))
}

async fn unpin(State(node): State<Node>, Path((id, pin)): Path<(String, String)>) -> Answer<StatusCode> {
    let model = find(&node, &id)?;
    let store = node.store.clone();
    let was_there = blocking(move || store.unpin(&model.record.tenant, &model.record.id, &pin)).await?;
    if was_there { Ok(StatusCode::NO_CONTENT) } else { Err(problem(ErrorKind::NotFound, "the model has no such pin")) }
}

async fn manifest(State(node): State<Node>, Path(digest): Path<String>) -> Answer<Response> {
    let digest: Hash = digest.parse().map_err(|error| problem(ErrorKind::Invalid, format!("{error}")))?;
    let manifest = node
        .store
        .manifest(&digest)
        .ok_or_else(|| problem(ErrorKind::NotFound, format!("manifest {digest} is not on this node")))?;
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{digest}\"")) {
        headers.insert(header::ETAG, etag);
    }
    Ok((headers, manifest.to_json()).into_response())
}

async fn gc(State(node): State<Node>, body: Bytes) -> Answer<Json<GcReport>> {
    let request: GcRequest = if body.is_empty() { GcRequest::default() } else { parse(&body)? };
    let metrics = Arc::clone(&node.metrics);
    let done = blocking(move || node.store.gc(request.all)).await?;
    metrics.evicted_bytes.inc_by(done.bytes);
    Ok(Json(done.into()))
}

// === shared ===

/// JSON whatever the content type says; the parser's word names the field.
fn parse<T: DeserializeOwned>(body: &[u8]) -> Answer<T> {
    serde_json::from_slice(body).map_err(|error| problem(ErrorKind::Invalid, format!("request body: {error}")))
}

/// Runs a blocking call of the store.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Answer<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(problem(error.kind(), error.to_string())),
        Err(_) => Err(problem(ErrorKind::Internal, "the store panicked: a defect of preheat")),
    }
}
