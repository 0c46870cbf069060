//! Published models, their pins, and manifests.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::openapi::{NotHere, OriginProblems, Problems};
use super::parse::{Page, Whole, parse};
use super::{Answer, blocking};
use crate::access::Verdict;
use crate::base::ErrorKind;
use crate::digest::Hash;
use crate::doors::Node;
use crate::doors::problem::problem;
use crate::doors::reader::Reader;
use crate::engines::is_bundle;
use crate::model::{ModelId, Tenant};
use crate::prewarm::wire::{GcReport, ModelView, PinRequest, Problem};
use crate::store::{Model, Pin};

/// Models that the caller may read, and those of their own scope that have to be proved again, by id.
#[utoipa::path(get, path = "/v1/models", params(Page), responses(
    (status = 200, body = Vec<ModelView>, headers(("Link" = String, description = "The next page, as `rel=\"next\"`, if there is one"))),
    (status = 304, description = "As `If-None-Match` has it"),
    Problems,
))]
pub(super) async fn list(State(node): State<Node>, reader: Reader, page: Page) -> (HeaderMap, Json<Vec<ModelView>>) {
    let mut models = node.store.models();
    models.retain(|model| !is_bundle(&model.record));
    models.retain(|model| node.access.may_read(&reader.identity, &model.record.provenance()) != Verdict::Hidden);
    models.sort_by(|one, other| one.record.id.cmp(&other.record.id));
    let (headers, models) = page.cut(models, |model| model.record.id.as_str(), "/v1/models");
    (headers, Json(models.into_iter().map(ModelView::from).collect()))
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

/// A model.
#[utoipa::path(get, path = "/v1/models/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = ModelView),
    (status = 304, description = "As `If-None-Match` has it"),
    Problems,
    NotHere,
    OriginProblems,
))]
pub(super) async fn one(State(node): State<Node>, reader: Reader, Path(id): Path<String>) -> Answer<Response> {
    let model = find(&node, &reader, &id)?;
    reader.may_read(&node, vec![model.record.provenance()], no_model).await?;
    Ok(Json(ModelView::from(model)).into_response())
}

/// Evicts a model. For operators, and for whoever is of its scope.
#[utoipa::path(delete, path = "/v1/models/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = GcReport),
    (status = 409, description = "`busy`: it is pinned, leased or in use", body = Problem, content_type = "application/problem+json"),
    Problems,
    NotHere,
))]
pub(super) async fn remove(State(node): State<Node>, reader: Reader, Path(id): Path<String>) -> Answer<Json<GcReport>> {
    let model = find_to_change(&node, &reader, &id)?;
    let done = blocking(move || node.store.remove(&model.record.tenant, &model.record.id)).await?;
    Ok(Json(done.into()))
}

/// Pins a model, or with `lease_seconds` leases it: it is not evicted. With `in_memory` it is kept in memory as well.
#[utoipa::path(put, path = "/v1/models/{id}/pins/{pin}", params(("id" = String, Path), ("pin" = String, Path)),
    request_body = Option<PinRequest>, responses((status = 200, body = ModelView), Problems, NotHere))]
pub(super) async fn pin(
    State(node): State<Node>,
    reader: Reader,
    Path((id, pin)): Path<(String, String)>,
    Whole(body): Whole,
) -> Answer<Json<ModelView>> {
    let request: PinRequest = if body.is_empty() { PinRequest::default() } else { parse(&body)? };
    // A lease ends by itself; what stays for ever takes room from everybody.
    let model =
        if request.lease_seconds.is_some() { find(&node, &reader, &id)? } else { find_to_change(&node, &reader, &id)? };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let expires_at = request.lease_seconds.map(|seconds| now.saturating_add(seconds));
    let pin = Pin { id: pin, reason: request.reason, expires_at, in_memory: request.in_memory };
    let (store, record) = (node.store.clone(), model.record);
    blocking(move || store.pin(&record.tenant, &record.id, pin)).await?;
    Ok(Json(ModelView::from(find(&node, &reader, &id)?)))
}

/// Takes a pin or lease away.
#[utoipa::path(delete, path = "/v1/models/{id}/pins/{pin}", params(("id" = String, Path), ("pin" = String, Path)),
    responses((status = 204, description = "It is gone"), Problems, NotHere))]
pub(super) async fn unpin(
    State(node): State<Node>,
    reader: Reader,
    Path((id, pin)): Path<(String, String)>,
) -> Answer<StatusCode> {
    let model = find_to_change(&node, &reader, &id)?;
    let store = node.store.clone();
    let was_there = blocking(move || store.unpin(&model.record.tenant, &model.record.id, &pin)).await?;
    if was_there { Ok(StatusCode::NO_CONTENT) } else { Err(problem(ErrorKind::NotFound, "the model has no such pin")) }
}

/// A manifest, by its digest.
#[utoipa::path(get, path = "/v1/manifests/{digest}", params(("digest" = String, Path)), responses(
    (status = 200, body = serde_json::Value),
    (status = 304, description = "As `If-None-Match` has it"),
    Problems,
    NotHere,
    OriginProblems,
))]
pub(super) async fn manifest(State(node): State<Node>, reader: Reader, Path(digest): Path<String>) -> Answer<Response> {
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
