//! The native API: routes and what they share. Every handler is short; what it calls does the work. Each says in its annotation
//! what it takes and answers, and the document at `/v1/openapi.json` is made of these.

pub(super) mod engines;
mod etag;
mod jobs;
mod models;
mod node;
mod openapi;
mod parse;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use utoipa::OpenApi;
use utoipa::openapi::OpenApi as Document;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(super) use self::openapi::{NotHere, OriginProblems, Problems};
use super::problem::{in_our_shape, problem};
use super::reader::identify;
use super::{Node, blobs};
use crate::base::ErrorKind;
use crate::base::units::MIB;
use crate::prewarm::wire::Problem;
use crate::store::StoreError;
use crate::telemetry::metrics::Served;

/// Largest request body: 64 references and a credential are some hundred KiB at most.
const BODY_LIMIT: usize = MIB as usize;

/// Largest draft of a capture: 100,000 files of some 300 bytes.
const DRAFT_LIMIT: usize = 32 * MIB as usize;

type Answer<T> = Result<T, Problem>;

/// All routes, and the document that describes them.
fn described() -> (Router<Node>, Document) {
    OpenApiRouter::with_openapi(openapi::Frame::openapi())
        .routes(routes!(node::live))
        .routes(routes!(node::ready))
        .routes(routes!(node::metrics))
        .routes(routes!(node::facts))
        .routes(routes!(jobs::prewarm, jobs::list))
        .routes(routes!(jobs::one, jobs::cancel))
        .routes(routes!(jobs::events))
        .routes(routes!(jobs::estimate))
        .routes(routes!(models::list))
        .routes(routes!(models::one, models::remove))
        .routes(routes!(models::pin, models::unpin))
        .routes(routes!(models::manifest))
        .routes(routes!(blobs::blob))
        .routes(routes!(node::gc))
        .routes(routes!(engines::lookup))
        .routes(routes!(engines::report))
        .routes(routes!(engines::captures::upload))
        .routes(routes!(engines::captures::import))
        .routes(routes!(engines::one))
        .routes(routes!(engines::document))
        .routes(routes!(engines::pack))
        .routes(routes!(engines::recheck))
        .routes(routes!(engines::release))
        .routes(routes!(engines::pin, engines::unpin))
        .routes(routes!(engines::begin_attempt))
        .routes(routes!(engines::end_attempt))
        .merge(
            OpenApiRouter::new()
                .routes(routes!(engines::list, engines::captures::begin))
                .layer(axum::extract::DefaultBodyLimit::max(DRAFT_LIMIT)),
        )
        .split_for_parts()
}

/// The API as a service.
pub(super) fn router(node: Node) -> Router {
    let (router, _) = described();
    router
        .route("/v1/openapi.json", get(openapi::document))
        .layer(axum::extract::DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::map_response(etag::remember))
        .layer(middleware::from_fn(etag::compare))
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

/// Runs a blocking call of the store.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Answer<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(value)) => Ok(value),
        // It works; what is asked stands against what somebody else has asked.
        Ok(Err(error @ StoreError::Kept { .. })) => {
            Err(Problem::with_status(ErrorKind::Busy, StatusCode::CONFLICT.as_u16(), error.to_string()))
        }
        Ok(Err(error)) => Err(problem(error.kind(), error.to_string())),
        Err(_) => Err(problem(ErrorKind::Internal, "the store panicked: a defect of preheat")),
    }
}
