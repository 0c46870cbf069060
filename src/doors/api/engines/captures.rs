//! Captures: first the draft, then, if it is wanted, the bytes. In two steps, so that of many who have compiled the same only one
//! sends anything; and the node hashes and signs what it has received itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

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
use crate::prewarm::wire::Problem;
use crate::sys::durable::temporary_name;

/// Captures under way at once, awaited or coming in. Each has a buffer and, once its bytes come, room in the store.
const UNDER_WAY_MOST: usize = 64;
/// Of these, of one scope: whoever compiles more at once sends one after the other, and takes no more than this from the rest.
const OF_ONE_SCOPE: usize = 4;
/// How long bytes are awaited: a draft holds its engine key against others of its scope.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a sender may pause: what sends has read the files before.
const PAUSE_LONGEST: Duration = Duration::from_secs(60);
/// What it must give beside that, in bytes a second of waiting for it. An archive may come through a tunnel; a byte a minute keeps
/// room from others and nothing else.
const PACE_LEAST: u64 = 1 << 20;
/// Pieces of a body that wait for the disk.
const PIECES: usize = 16;

/// Captures under way.
#[derive(Clone, Debug, Default)]
pub struct Captures {
    waiting: Arc<Mutex<HashMap<String, Awaited>>>,
    /// Of each scope: how many.
    under_way: Arc<Mutex<HashMap<Tenant, usize>>>,
}

/// A draft whose bytes are awaited.
#[derive(Debug)]
struct Awaited {
    capturing: Capturing,
    slot: Slot,
}

/// One of the captures under way, until it is dropped.
#[derive(Debug)]
struct Slot {
    of: Captures,
    scope: Tenant,
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
    /// A place among those under way, if `scope` may have one more. How many bytes it may bring is the library's to say.
    fn slot(&self, scope: &Tenant) -> Result<Slot, Problem> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let all: usize = under_way.values().sum();
        let own = under_way.get(scope).copied().unwrap_or_default();
        if all >= UNDER_WAY_MOST || own >= OF_ONE_SCOPE {
            return Err(problem(ErrorKind::Busy, "too many captures are under way on this node: ask again later"));
        }
        under_way.insert(scope.clone(), own + 1);
        Ok(Slot { of: self.clone(), scope: scope.clone() })
    }

    /// Keeps a capture until its bytes come, or too long.
    fn keep(&self, slot: Slot, capturing: Capturing) -> String {
        let id = temporary_name();
        {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.insert(id.clone(), Awaited { capturing, slot });
        }
        let (captures, late) = (self.clone(), id.clone());
        tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            let late = captures.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&late);
            drop(late);
        });
        id
    }

    fn take(&self, scope: &Tenant, id: &str) -> Option<Awaited> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody else's is not there.
        waiting.get(id).filter(|awaited| awaited.slot.scope == *scope)?;
        waiting.remove(id)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut under_way = self.of.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(captures) = under_way.get_mut(&self.scope) {
            *captures = captures.saturating_sub(1);
            if *captures == 0 {
                under_way.remove(&self.scope);
            }
        }
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
        Begun::Wanted(capturing) => {
            let slot = node.captures.slot(scope)?;
            let id = node.captures.keep(slot, *capturing);
            Ok((StatusCode::ACCEPTED, Json(Wanted::Upload(id))).into_response())
        }
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
    let awaited = node.captures.take(&reader.identity.scope, &upload).ok_or_else(missing)?;
    let Awaited { mut capturing, slot: _slot } = awaited;
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
    // Over the loopback address without a token anybody is an operator: of what is nobody's in particular, and of nothing else.
    let operator = reader.identity.operator && scope.is_somebody();
    let taking = tokio::task::spawn_blocking(move || {
        engines.import(&scope, operator, &mut Pieces { arrived, current: Bytes::new() })
    });
    let received = receive(body, pieces).await;
    // What was wrong with it explains why no more was taken.
    let taken = taking.await.unwrap_or(Err(EngineError::Defect));
    match (taken, received) {
        (Ok(bundle), Ok(())) => Ok(Json(bundle)),
        // Not the node's bytes, nor an origin's: the caller's.
        (Err(error), Ok(())) if error.kind() == ErrorKind::Corrupt => {
            Err(Problem::with_status(ErrorKind::Corrupt, 400, error.to_string()))
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
    let (mut waited, mut received) = (Duration::ZERO, 0);
    loop {
        let asked = Instant::now();
        let frame = tokio::time::timeout(patience(waited, received), body.frame()).await;
        // What the disk takes is not the sender's.
        waited += asked.elapsed();
        match frame {
            Err(_) => return Err(problem(ErrorKind::Timeout, "the bytes stopped coming, or came too slowly")),
            Ok(None) => return Ok(()),
            Ok(Some(Err(error))) => {
                return Err(problem(ErrorKind::Unavailable, format!("the capture broke off: {error}")));
            }
            Ok(Some(Ok(frame))) => {
                let Ok(piece) = frame.into_data() else { continue };
                received += piece.len() as u64;
                if pieces.send(piece).await.is_err() {
                    // The disk has refused; the rest is not read.
                    return Ok(());
                }
            }
        }
    }
}

/// How long the next piece is waited for, after so much waiting for so many bytes.
fn patience(waited: Duration, received: u64) -> Duration {
    let earned = PAUSE_LONGEST + Duration::from_millis(received.saturating_mul(1000) / PACE_LEAST);
    earned.saturating_sub(waited).min(PAUSE_LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_has_its_own_places() {
        let (captures, one, other) = (Captures::default(), Tenant::of_uid(1), Tenant::of_uid(2));
        let kind = |outcome: Result<Slot, Problem>| outcome.map(drop).map_err(|problem| problem.kind.unwrap());
        let mut held: Vec<Slot> = (0..OF_ONE_SCOPE).map(|_| captures.slot(&one).unwrap()).collect();
        assert_eq!(kind(captures.slot(&one)), Err(ErrorKind::Busy));
        assert_eq!(kind(captures.slot(&other)), Ok(()), "another's are its own");
        held.pop();
        assert_eq!(kind(captures.slot(&one)), Ok(()));
        drop(held);
        assert!(captures.under_way.lock().unwrap().is_empty(), "nothing is kept of what is over");
        let many: Vec<_> = (0..UNDER_WAY_MOST).map(|uid| captures.slot(&Tenant::of_uid(uid as u32))).collect();
        assert!(many.iter().all(Result::is_ok));
        assert_eq!(kind(captures.slot(&Tenant::of_uid(1000))), Err(ErrorKind::Busy));
    }

    #[test]
    fn a_trickle_is_not_waited_for_and_a_pause_is() {
        let seconds = Duration::from_secs;
        assert_eq!(patience(Duration::ZERO, 0), PAUSE_LONGEST);
        assert_eq!(patience(seconds(59), 3), seconds(1));
        assert_eq!(patience(seconds(61), 3), Duration::ZERO);
        assert_eq!(patience(seconds(1000), 1000 << 20), PAUSE_LONGEST, "as fast as is asked for");
    }
}
