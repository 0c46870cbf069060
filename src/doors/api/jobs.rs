//! Prewarming: jobs, and what they would take.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;

use super::Answer;
use super::openapi::{NotHere, OriginProblems, Problems};
use super::parse::{Page, Whole, deadline, engine_keys, parse_with_credential, references};
use crate::access::Identity;
use crate::base::ErrorKind;
use crate::doors::Node;
use crate::doors::problem::problem;
use crate::doors::reader::Reader;
use crate::model::{Credential, Reference, Scheme};
use crate::prewarm::wire::{Estimate, EstimateRequest, JobEvent, JobView, PrewarmRequest, Problem};
use crate::prewarm::{Estimation, Submission, Submitted};
use crate::store::Pin;

/// Between two comments on a quiet event stream; a client takes four times this for a hang.
const HEARTBEAT: Duration = Duration::from_secs(2);

/// How long an answer waits for the origin to say how much there is to do: a listing rarely takes half of it.
const VERDICT_WAIT: Duration = Duration::from_secs(2);

/// Has a model, or a set of models, ready: begins a job, or joins the one that is at it.
#[utoipa::path(post, path = "/v1/prewarm", request_body = PrewarmRequest, responses(
    (status = 200, description = "The job has ended: see its `state`", body = JobView),
    (status = 202, description = "The job waits or runs", body = JobView),
    Problems,
))]
pub(super) async fn prewarm(
    State(node): State<Node>,
    reader: Reader,
    Whole(body): Whole,
) -> Answer<(StatusCode, Json<JobView>)> {
    let mut request: PrewarmRequest = parse_with_credential(&body)?;
    deadline(request.deadline_seconds)?;
    engine_keys(&request.engine)?;
    if !node.ready.is_ready() {
        return Err(problem(ErrorKind::Cancelled, "the daemon starts or drains: ask again later"));
    }
    let references = references(&request.reference, &request.references)?;
    let Reader { identity, credential } = reader;
    request.credential = request.credential.or(credential);
    may_try(&node, &identity, &references, request.credential.as_ref())?;
    if request.pin.as_ref().is_some_and(|pin| !Pin::is_name(pin)) {
        return Err(problem(ErrorKind::Invalid, "pin: a name has 1 to 63 characters of a-z, 0-9 and -"));
    }
    let (wait, planned) = (request.wait, request.deadline_seconds.is_some());
    let submitted = node.jobs.submit(Submission { identity: identity.clone(), references, request });
    let Submitted::Job(mut view) = submitted else {
        return Err(problem(ErrorKind::Busy, "too many jobs wait on this node: ask again later"));
    };
    let waited = tokio::select! {
        waited = async {
            if wait {
                node.jobs.wait(&identity, &view.id).await
            } else if planned {
                // Whoever has a deadline wants to hear at once whether it can hold, which is known when the origin has answered.
                node.jobs.wait_for_estimate(&identity, &view.id, VERDICT_WAIT).await
            } else {
                None
            }
        } => waited,
        () = node.stop.cancelled() => None,
    };
    if let Some(waited) = waited {
        *view = waited;
    }
    let status = if view.state.is_over() { StatusCode::OK } else { StatusCode::ACCEPTED };
    Ok((status, Json(*view)))
}

/// Says how long it would take, and starts nothing.
#[utoipa::path(post, path = "/v1/estimate", request_body = EstimateRequest, responses(
    (status = 200, body = Estimate),
    Problems,
    NotHere,
    OriginProblems,
))]
pub(super) async fn estimate(State(node): State<Node>, reader: Reader, Whole(body): Whole) -> Answer<Json<Estimate>> {
    let mut request: EstimateRequest = parse_with_credential(&body)?;
    deadline(request.deadline_seconds)?;
    engine_keys(&request.engine)?;
    let references = references(&request.reference, &request.references)?;
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

/// Refuses at once what cannot be tried at all.
fn may_try(node: &Node, identity: &Identity, references: &[Reference], credential: Option<&Credential>) -> Answer<()> {
    for reference in references {
        node.access
            .ladder(identity, reference, credential)
            .map_err(|error| problem(error.kind(), error.to_string()))?;
    }
    if credential.is_some() {
        one_origin(references)?;
    }
    Ok(())
}

/// Refuses a set that one credential would be shown to several parties for: the owner of one would learn what opens another. All
/// buckets of a scheme are one party, as are all models of the hub; directories are shown none.
fn one_origin(references: &[Reference]) -> Answer<()> {
    let party = |reference: &Reference| match reference.scheme {
        Scheme::File => None,
        Scheme::Http | Scheme::Https => Some(format!("{}://{}", reference.scheme.as_str(), reference.authority)),
        scheme => Some(scheme.as_str().to_owned()),
    };
    let mut parties = references.iter().filter_map(party);
    let Some(first) = parties.next() else { return Ok(()) };
    match parties.find(|other| *other != first) {
        None => Ok(()),
        Some(other) => Err(problem(
            ErrorKind::Invalid,
            format!("one credential goes to one origin, and this set has {first} and {other}: ask for each by itself"),
        )),
    }
}

/// Jobs that the caller may see, newest first.
#[utoipa::path(get, path = "/v1/prewarm", params(Page), responses(
    (status = 200, body = Vec<JobView>, headers(("Link" = String, description = "The next page, as `rel=\"next\"`, if there is one"))),
    (status = 304, description = "As `If-None-Match` has it"),
    Problems,
))]
pub(super) async fn list(State(node): State<Node>, reader: Reader, page: Page) -> (HeaderMap, Json<Vec<JobView>>) {
    let (headers, jobs) = page.cut(node.jobs.list(&reader.identity), |job| &job.id, "/v1/prewarm");
    (headers, Json(jobs))
}

/// A job.
#[utoipa::path(get, path = "/v1/prewarm/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = JobView),
    (status = 304, description = "As `If-None-Match` has it"),
    Problems,
    NotHere,
))]
pub(super) async fn one(State(node): State<Node>, reader: Reader, Path(id): Path<String>) -> Answer<Json<JobView>> {
    node.jobs.get(&reader.identity, &id).await.map(Json).ok_or_else(|| no_job(&id))
}

/// Calls a job off: connections, memory and room are free again within a second. What others wait for goes on.
#[utoipa::path(delete, path = "/v1/prewarm/{id}", params(("id" = String, Path)), responses(
    (status = 200, body = JobView),
    Problems,
    NotHere,
))]
pub(super) async fn cancel(State(node): State<Node>, reader: Reader, Path(id): Path<String>) -> Answer<Json<JobView>> {
    node.jobs.cancel(&reader.identity, &id).map(Json).ok_or_else(|| no_job(&id))
}

/// A job as server-sent events (`event: job`, `data:` a job): at least four a second while it runs, the last when it has ended.
#[utoipa::path(get, path = "/v1/prewarm/{id}/events", params(("id" = String, Path)), responses(
    (status = 200, body = JobEvent, content_type = "text/event-stream"),
    Problems,
    NotHere,
))]
pub(super) async fn events(State(node): State<Node>, reader: Reader, Path(id): Path<String>) -> Answer<Response> {
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
