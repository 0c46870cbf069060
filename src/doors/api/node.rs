//! The node itself: whether it lives, what it has, and room to be given back.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::openapi::Problems;
use super::parse::{Whole, parse};
use super::{Answer, blocking};
use crate::base::ErrorKind;
use crate::doors::Node;
use crate::doors::problem::problem;
use crate::doors::reader::Reader;
use crate::prewarm::wire::{DiskView, GcReport, GcRequest, NodeView, Problem};
use crate::sys::host::HostFacts;
use crate::telemetry::metrics::CONTENT_TYPE;

/// Whether the process lives.
#[utoipa::path(get, path = "/livez", security(()), responses((status = 200, body = str, content_type = "text/plain")))]
pub(super) async fn live() -> &'static str {
    "ok\n"
}

/// Whether it takes new work.
#[utoipa::path(get, path = "/readyz", security(()), responses(
    (status = 200, body = str, content_type = "text/plain"),
    (status = 503, description = "It starts, drains, or its disk has failed", body = Problem, content_type = "application/problem+json"),
))]
pub(super) async fn ready(State(node): State<Node>) -> Answer<&'static str> {
    if let Some(detail) = node.store.halted() {
        return Err(problem(ErrorKind::Cancelled, format!("the store has stopped writing: {detail}")));
    }
    if node.ready.is_ready() { Ok("ok\n") } else { Err(problem(ErrorKind::Cancelled, "the daemon starts or drains")) }
}

/// Metrics (OpenMetrics).
#[utoipa::path(get, path = "/metrics", security(()), responses(
    (status = 200, body = str, content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"),
))]
pub(super) async fn metrics(State(node): State<Node>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], node.metrics.encode()).into_response()
}

/// What this node is and holds.
#[utoipa::path(get, path = "/v1/node", responses((status = 200, body = NodeView), Problems))]
pub(super) async fn facts(State(node): State<Node>) -> Answer<Json<NodeView>> {
    let store = node.store.clone();
    let usage = blocking(move || Ok(store.usage())).await?;
    let HostFacts { hostname, kernel, cpus, memory_bytes, gpus } = HostFacts::read();
    Ok(Json(NodeView {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ready: node.ready.is_ready(),
        hostname,
        kernel,
        cpus,
        memory_bytes,
        gpus,
        root: node.store.root().to_owned(),
        usage,
        disk: DiskView {
            kind: node.store.disk().kind().name().to_owned(),
            ring_refused: node.store.disk().refusal().map(ToString::to_string),
        },
        halted: node.store.halted().map(str::to_owned),
    }))
}

/// Gives space back. For operators.
#[utoipa::path(post, path = "/v1/gc", request_body = Option<GcRequest>, responses((status = 200, body = GcReport), Problems))]
pub(super) async fn gc(State(node): State<Node>, reader: Reader, Whole(body): Whole) -> Answer<Json<GcReport>> {
    reader.must_operate("giving space back")?;
    let request: GcRequest = if body.is_empty() { GcRequest::default() } else { parse(&body)? };
    let metrics = Arc::clone(&node.metrics);
    let done = blocking(move || node.store.gc(request.all)).await?;
    metrics.evicted_bytes.inc_by(done.bytes);
    Ok(Json(done.into()))
}
