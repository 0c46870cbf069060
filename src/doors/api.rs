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
use axum::{Json, Router};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;

use super::problem::{in_our_shape, problem};
use super::reader::{Reader, identify};
use super::{Node, blobs};
use crate::access::Identity;
use crate::access::Verdict;
use crate::base::ErrorKind;
use crate::base::units::MIB;
use crate::digest::Hash;
use crate::model::{Credential, ModelId, Reference, Tenant};
use crate::prewarm::wire::{
    Estimate, EstimateRequest, GcReport, GcRequest, ModelView, PinRequest, PrewarmRequest, Problem,
};
use crate::prewarm::{Estimation, Submission, Submitted};
use crate::store::{Model, Pin, StoreError};
use crate::sys::host::HostFacts;
use crate::telemetry::metrics::{CONTENT_TYPE, Served};

/// Largest request body: references and pins are a few hundred bytes.
const BODY_LIMIT: usize = MIB as usize;

/// Between two comments on a quiet event stream; a client takes four times this for a hang.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// Models of one request.
const SET_LIMIT: usize = 64;

/// How long an answer waits for the origin to say how much there is to do: a listing rarely takes half of it.
const VERDICT_WAIT: Duration = Duration::from_secs(2);

type Answer<T> = Result<T, Problem>;

/// All routes.
pub(super) fn router(node: Node) -> Router {
    Router::new()
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/v1/node", get(node_facts))
        .route("/v1/prewarm", post(prewarm).get(jobs))
        .route("/v1/estimate", post(estimate))
        .route("/v1/prewarm/{id}", get(job).delete(cancel))
        .route("/v1/prewarm/{id}/events", get(events))
        .route("/v1/models", get(models))
        .route("/v1/models/{id}", get(model).delete(remove))
        .route("/v1/models/{id}/pins/{pin}", put(pin).delete(unpin))
        .route("/v1/manifests/{digest}", get(manifest))
        .route("/v1/blobs/{hash}", get(blobs::blob))
        .route("/v1/gc", post(gc))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn_with_state(node.clone(), identify))
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
    reader: Reader,
    body: Bytes,
) -> Answer<(StatusCode, Json<serde_json::Value>)> {
    let mut request: PrewarmRequest = parse_with_credential(&body)?;
    if request.deadline_seconds.is_some_and(|seconds| !(seconds.is_finite() && seconds >= 0.0)) {
        return Err(problem(ErrorKind::Invalid, "deadline_seconds must be a number of seconds from now, not negative"));
    }
    if !node.ready.is_ready() {
        return Err(problem(ErrorKind::Cancelled, "the daemon starts or drains: ask again later"));
    }
    let references = parse_references(&request.reference, &request.references)?;
    let Reader { identity, credential } = reader;
    request.credential = request.credential.or(credential);
    may_try(&node, &identity, &references, request.credential.as_ref())?;
    if let Some(pin) = &request.pin
        && !crate::store::Pin::is_name(pin)
    {
        return Err(problem(ErrorKind::Invalid, "pin: a name has 1 to 63 characters of a-z, 0-9 and -"));
    }
    let (wait, planned) = (request.wait, request.deadline_seconds.is_some());
    let submitted = node.jobs.submit(Submission { identity: identity.clone(), references, request });
    let Submitted::Job(mut view) = submitted else {
        return Err(problem(ErrorKind::Busy, "too many jobs wait on this node: ask again later"));
    };
    // Whoever has a deadline wants to hear at once whether it can hold, which is known when the origin has answered.
    if planned
        && !wait
        && let Some(estimated) = node.jobs.wait_for_estimate(&identity, &view.id, VERDICT_WAIT).await
    {
        *view = estimated;
    }
    if wait {
        let waited = tokio::select! {
            waited = node.jobs.wait(&identity, &view.id) => waited,
            () = node.stop.cancelled() => None,
        };
        if let Some(waited) = waited {
            *view = waited;
        }
    }
    let status = if view.state.is_over() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(serde_json::to_value(view).unwrap_or_default())))
}

/// The references of a request: one, or a set.
fn parse_references(one: &str, many: &[String]) -> Answer<Vec<Reference>> {
    let invalid = |detail: String| problem(ErrorKind::Invalid, detail);
    let texts: Vec<&str> = match (one.is_empty(), many.is_empty()) {
        (false, true) => vec![one],
        (true, false) => many.iter().map(String::as_str).collect(),
        _ => return Err(invalid("write either `reference` or `references`, and something in it".to_owned())),
    };
    if texts.len() > SET_LIMIT {
        return Err(invalid(format!("references: a set has at most {SET_LIMIT} members, this one {}", texts.len())));
    }
    let mut references: Vec<Reference> = Vec::with_capacity(texts.len());
    for text in texts {
        let reference = text.parse().map_err(|error| invalid(format!("{error}")))?;
        if !references.contains(&reference) {
            references.push(reference);
        }
    }
    Ok(references)
}

/// Refuses at once what cannot be tried at all.
fn may_try(node: &Node, identity: &Identity, references: &[Reference], credential: Option<&Credential>) -> Answer<()> {
    for reference in references {
        node.access
            .ladder(identity, reference, credential)
            .map_err(|error| problem(error.kind(), error.to_string()))?;
    }
    Ok(())
}

async fn estimate(State(node): State<Node>, reader: Reader, body: Bytes) -> Answer<Json<Estimate>> {
    let mut request: EstimateRequest = parse_with_credential(&body)?;
    if request.deadline_seconds.is_some_and(|seconds| !(seconds.is_finite() && seconds >= 0.0)) {
        return Err(problem(ErrorKind::Invalid, "deadline_seconds must be a number of seconds from now, not negative"));
    }
    let references = parse_references(&request.reference, &request.references)?;
    let Reader { identity, credential } = reader;
    request.credential = request.credential.or(credential);
    may_try(&node, &identity, &references, request.credential.as_ref())?;
    let asked = node.jobs.estimate(Estimation { identity, references, request });
    let answered = tokio::select! {
        answered = asked => answered,
        () = node.stop.cancelled() => return Err(problem(ErrorKind::Cancelled, "the daemon drains: ask again later")),
    };
    answered.map(Json).map_err(|error| problem(error.kind(), error.to_string()))
}

async fn jobs(State(node): State<Node>, reader: Reader) -> Json<serde_json::Value> {
    Json(serde_json::to_value(node.jobs.list(&reader.identity)).unwrap_or_default())
}

async fn job(State(node): State<Node>, reader: Reader, Path(id): Path<String>) -> Answer<Response> {
    let view = node.jobs.get(&reader.identity, &id).ok_or_else(|| no_job(&id))?;
    Ok(Json(view).into_response())
}

async fn cancel(State(node): State<Node>, reader: Reader, Path(id): Path<String>) -> Answer<Response> {
    let view = node.jobs.cancel(&reader.identity, &id).ok_or_else(|| no_job(&id))?;
    Ok(Json(view).into_response())
}

async fn events(State(node): State<Node>, reader: Reader, Path(id): Path<String>) -> Answer<Response> {
    let snapshots = node.jobs.watch(&reader.identity, &id).ok_or_else(|| no_job(&id))?;
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

/// Those that the caller may read, and those of their own scope that have to be proved again.
async fn models(State(node): State<Node>, reader: Reader) -> Json<Vec<ModelView>> {
    let mut models = node.store.models();
    models.retain(|model| node.access.may_read(&reader.identity, &model.record.provenance()) != Verdict::Hidden);
    Json(models.into_iter().map(ModelView::from).collect())
}

fn no_model() -> Problem {
    problem(ErrorKind::NotFound, "no such model is published on this node: see /v1/models")
}

/// A model that the caller knows to be there. Its name begins with a scope that they may read, or says nothing of one.
fn find(node: &Node, reader: &Reader, id: &str) -> Answer<Model> {
    let id: ModelId = id.parse().map_err(|_| no_model())?;
    let scopes = [Tenant::default(), Tenant::node(), reader.identity.scope.clone()];
    let mut found = scopes.iter().filter_map(|scope| node.store.model(scope, &id));
    found
        .find(|model| node.access.may_read(&reader.identity, &model.record.provenance()) != Verdict::Hidden)
        .ok_or_else(no_model)
}

/// The same, to be changed: what is not of the caller's own scope is the operator's.
fn find_to_change(node: &Node, reader: &Reader, id: &str) -> Answer<Model> {
    let model = find(node, reader, id)?;
    if model.record.tenant != reader.identity.scope {
        reader.must_operate("a model that others may read")?;
    }
    Ok(model)
}

async fn model(State(node): State<Node>, reader: Reader, Path(id): Path<String>) -> Answer<Response> {
    let model = find(&node, &reader, &id)?;
    reader.may_read(&node, vec![model.record.provenance()], no_model).await?;
    Ok(Json(ModelView::from(model)).into_response())
}

async fn remove(State(node): State<Node>, reader: Reader, Path(id): Path<String>) -> Answer<Json<GcReport>> {
    let model = find_to_change(&node, &reader, &id)?;
    let done = blocking(move || node.store.remove(&model.record.tenant, &model.record.id)).await?;
    Ok(Json(done.into()))
}

async fn pin(
    State(node): State<Node>,
    reader: Reader,
    Path((id, pin)): Path<(String, String)>,
    body: Bytes,
) -> Answer<Json<ModelView>> {
    let request: PinRequest = if body.is_empty() { PinRequest::default() } else { parse(&body)? };
    // A lease ends by itself; what stays for ever takes room from everybody.
    let model =
        if request.lease_seconds.is_some() { find(&node, &reader, &id)? } else { find_to_change(&node, &reader, &id)? };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let expires_at = request.lease_seconds.map(|seconds| now.saturating_add(seconds));
    let pin = Pin { id: pin, reason: request.reason, expires_at };
    let (store, record) = (node.store.clone(), model.record);
    blocking(move || store.pin(&record.tenant, &record.id, pin)).await?;
    Ok(Json(ModelView::from(find(&node, &reader, &id)?)))
}

async fn unpin(
    State(node): State<Node>,
    reader: Reader,
    Path((id, pin)): Path<(String, String)>,
) -> Answer<StatusCode> {
    let model = find_to_change(&node, &reader, &id)?;
    let store = node.store.clone();
    let was_there = blocking(move || store.unpin(&model.record.tenant, &model.record.id, &pin)).await?;
    if was_there { Ok(StatusCode::NO_CONTENT) } else { Err(problem(ErrorKind::NotFound, "the model has no such pin")) }
}

async fn manifest(State(node): State<Node>, reader: Reader, Path(digest): Path<String>) -> Answer<Response> {
    let digest: Hash = digest.parse().map_err(|error| problem(ErrorKind::Invalid, format!("{error}")))?;
    let missing = || problem(ErrorKind::NotFound, format!("manifest {digest} is not on this node"));
    reader.may_read(&node, node.store.with_manifest(&digest), missing).await?;
    let manifest = node.store.manifest(&digest).ok_or_else(missing)?;
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(etag) = HeaderValue::from_str(&format!("\"{digest}\"")) {
        headers.insert(header::ETAG, etag);
    }
    Ok((headers, manifest.to_json()).into_response())
}

async fn gc(State(node): State<Node>, reader: Reader, body: Bytes) -> Answer<Json<GcReport>> {
    reader.must_operate("giving space back")?;
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

/// The same for a body that may have a credential in it. What a parser says quotes what it has read, so of a credential that is
/// none nothing is passed on, and of the rest no value.
fn parse_with_credential<T: DeserializeOwned>(body: &[u8]) -> Answer<T> {
    let invalid = |word: String| problem(ErrorKind::Invalid, format!("request body: {word}"));
    let body: serde_json::Value = serde_json::from_slice(body).map_err(|error| {
        invalid(format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column()))
    })?;
    let Some(fields) = body.as_object() else { return Err(invalid("must be an object".to_owned())) };
    if let Some(credential) = fields.get("credential")
        && serde_json::from_value::<Option<Credential>>(credential.clone()).is_err()
    {
        let word = "credential: write {\"bearer\": TOKEN}, {\"aws\": {...}} or another kind";
        return Err(invalid(word.to_owned()));
    }
    serde_json::from_value(body).map_err(|error| {
        let word = error.to_string();
        // `invalid type: string "...", expected ...`: everything quoted with double quotes is a value.
        invalid(match (word.find('"'), word.rfind('"')) {
            (Some(from), Some(to)) if from < to => format!("{}(a value){}", &word[..from], &word[to + 1..]),
            _ => word,
        })
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_that_is_none_is_refused_without_its_values() {
        let good = br#"{"reference": "hf://a/b", "credential": {"bearer": "canary"}}"#;
        assert_eq!(parse_with_credential::<PrewarmRequest>(good).unwrap().credential.unwrap().kind(), "bearer");
        assert!(
            parse_with_credential::<PrewarmRequest>(br#"{"reference": "hf://a/b", "credential": null}"#)
                .unwrap()
                .credential
                .is_none()
        );
        for (body, says) in [
            (r#"{"reference": "r", "credential": {"canary": 1}}"#, "credential: write"),
            (r#"{"reference": "r", "credential": "canary"}"#, "credential: write"),
            (r#"{"reference": "r", "credential": {"bearer": ["canary"]}}"#, "credential: write"),
            (r#"{"reference": "r", "credential": {"bearer": "canary"}"#, "line 1 column"),
            (r#"{"reference": "r", "wait": "canary"}"#, "expected a boolean"),
            (r#"{"refernce": "canary"}"#, "unknown field `refernce`"),
            (r#"["canary"]"#, "must be an object"),
        ] {
            let detail = parse_with_credential::<PrewarmRequest>(body.as_bytes()).unwrap_err().detail;
            assert!(detail.contains(says) && !detail.contains("canary"), "{body}: {detail}");
        }
    }
}
