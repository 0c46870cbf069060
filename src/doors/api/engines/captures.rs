//! Captures: first the draft, then, if it is wanted, the bytes. In two steps, so that of many who have compiled the same only one
//! sends anything; and the node hashes and signs what it has received itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};

use super::refused;
use crate::base::ErrorKind;
use crate::doors::Node;
use crate::doors::api::Answer;
use crate::doors::api::openapi::{NotHere, OriginProblems, Problems};
use crate::doors::api::parse::{Whole, parse};
use crate::doors::problem::problem;
use crate::doors::reader::Reader;
use crate::engines::{Begun, BundleRef, Captured, Capturing, Draft, EngineError};
use crate::model::Tenant;
use crate::sys::durable::temporary_name;

/// Drafts whose bytes are awaited at once: each holds its engine key against others.
const WAITING_MOST: usize = 64;
/// How long they are awaited.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a sender may pause: what sends has read the files before.
const PAUSE_LONGEST: Duration = Duration::from_secs(60);
/// Pieces of a body that wait for the disk.
const PIECES: usize = 16;

/// Drafts whose bytes are awaited.
#[derive(Clone, Debug, Default)]
pub struct Captures {
    waiting: Arc<Mutex<HashMap<String, (Tenant, Capturing)>>>,
}

/// The answer to a draft.
#[derive(Debug, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Wanted {
    /// Where its bytes go, within a minute.
    Upload(String),
    /// They are not wanted.
    Done(Box<Captured>),
}

// === impl Captures ===

impl Captures {
    /// Keeps a capture until its bytes come, or too long.
    fn keep(&self, scope: &Tenant, capturing: Capturing) -> Option<String> {
        let id = temporary_name();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() >= WAITING_MOST {
                return None;
            }
            waiting.insert(id.clone(), (scope.clone(), capturing));
        }
        let (captures, late) = (self.clone(), id.clone());
        tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            drop(captures.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&late));
        });
        Some(id)
    }

    fn take(&self, scope: &Tenant, id: &str) -> Option<Capturing> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else's is not there.
        waiting.get(id).filter(|(of, _)| of == scope)?;
        waiting.remove(id).map(|(_, capturing)| capturing)
    }
}

/// Begins a capture: says whether its bytes are wanted, and where they go. Waits while another capture of the same key is coming in.
#[utoipa::path(post, path = "/v1/engines", request_body = Draft, responses(
    (status = 200, description = "Its bytes are not wanted: there is such a bundle, or nothing to capture", body = Wanted),
    (status = 202, description = "Its bytes are awaited at `/v1/engines/captures/{upload}`", body = Wanted),
    Problems,
    OriginProblems,
))]
pub(in crate::doors::api) async fn begin(
    State(node): State<Node>,
    reader: Reader,
    Whole(body): Whole,
) -> Answer<Response> {
    let draft: Draft = parse(&body)?;
    if !node.ready.is_ready() {
        return Err(problem(ErrorKind::Cancelled, "the daemon starts or drains: ask again later"));
    }
    let scope = &reader.identity.scope;
    match node.engines.begin_capture(scope, draft).await.map_err(|error| refused(&error))? {
        Begun::Done(captured) => Ok(Json(Wanted::Done(captured)).into_response()),
        Begun::Wanted(capturing) => match node.captures.keep(scope, *capturing) {
            Some(id) => Ok((StatusCode::ACCEPTED, Json(Wanted::Upload(id))).into_response()),
            None => Err(problem(ErrorKind::Busy, "too many captures are awaited on this node: ask again later")),
        },
    }
}

/// The bytes of a capture: those of the draft's files, one after the other, in its order.
#[utoipa::path(put, path = "/v1/engines/captures/{upload}", params(("upload" = String, Path)),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = Captured), Problems, NotHere, OriginProblems))]
pub(in crate::doors::api) async fn upload(
    State(node): State<Node>,
    reader: Reader,
    Path(upload): Path<String>,
    body: Body,
) -> Answer<Json<Captured>> {
    let missing = || problem(ErrorKind::NotFound, "no such capture is awaited: its time is over, or it is another's");
    let mut capturing = node.captures.take(&reader.identity.scope, &upload).ok_or_else(missing)?;
    let (pieces, mut arrived) = tokio::sync::mpsc::channel::<Bytes>(PIECES);
    let packing = tokio::task::spawn_blocking(move || {
        while let Some(piece) = arrived.blocking_recv() {
            capturing.push(&piece)?;
        }
        Ok::<_, EngineError>(capturing)
    });
    let received = receive(body, pieces).await;
    let packed = packing.await.unwrap_or(Err(EngineError::Defect));
    // What the disk says explains why nothing more was taken.
    let capturing = packed.map_err(|error| refused(&error))?;
    received?;
    capturing.finish().await.map(Json).map_err(|error| refused(&error))
}

/// Takes an archive of `preheat engine export` in, for all who may ask this node. A trusted signer must vouch for it.
#[utoipa::path(post, path = "/v1/engines/import", request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = BundleRef), Problems, OriginProblems))]
pub(in crate::doors::api) async fn import(
    State(node): State<Node>,
    reader: Reader,
    body: Body,
) -> Answer<Json<BundleRef>> {
    let (pieces, arrived) = tokio::sync::mpsc::channel::<Bytes>(PIECES);
    let (engines, scope) = (node.engines.clone(), reader.identity.scope);
    let taking =
        tokio::task::spawn_blocking(move || engines.import(&scope, &mut Pieces { arrived, current: Bytes::new() }));
    let received = receive(body, pieces).await;
    // What was wrong with it explains why no more was taken.
    let taken = taking.await.unwrap_or(Err(EngineError::Defect));
    match (taken, received) {
        (Ok(bundle), Ok(())) => Ok(Json(bundle)),
        // Not the node's bytes, nor an origin's: the caller's.
        (Err(error), Ok(())) if error.kind() == ErrorKind::Corrupt => {
            Err(crate::prewarm::wire::Problem::with_status(ErrorKind::Corrupt, 400, error.to_string()))
        }
        (Err(error), Ok(())) => Err(refused(&error)),
        (_, Err(problem)) => Err(problem),
    }
}

/// Pieces of a body, read as they come.
struct Pieces {
    arrived: tokio::sync::mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl std::io::Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            let Some(piece) = self.arrived.blocking_recv() else { return Ok(0) };
            self.current = piece;
        }
        let taken = self.current.split_to(into.len().min(self.current.len()));
        into[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

/// Passes a body on, piece by piece.
async fn receive(mut body: Body, pieces: tokio::sync::mpsc::Sender<Bytes>) -> Answer<()> {
    loop {
        let frame = tokio::time::timeout(PAUSE_LONGEST, body.frame()).await;
        match frame {
            Err(_) => return Err(problem(ErrorKind::Timeout, "the capture's bytes stopped coming")),
            Ok(None) => return Ok(()),
            Ok(Some(Err(error))) => {
                return Err(problem(ErrorKind::Unavailable, format!("the capture broke off: {error}")));
            }
            Ok(Some(Ok(frame))) => {
                let Ok(piece) = frame.into_data() else { continue };
                if pieces.send(piece).await.is_err() {
                    // The disk has refused; the rest is not read.
                    return Ok(());
                }
            }
        }
    }
}
