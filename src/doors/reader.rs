//! Who asks, with what, and whether they may read a thing that is on the node: asked at every door before the store is.

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use axum::{Extension, RequestPartsExt};

use super::problem::problem;
use super::{Caller, Node};
use crate::access::{Identity, Verdict};
use crate::base::ErrorKind;
use crate::model::{Credential, Provenance};
use crate::prewarm::wire::{CREDENTIAL_HEADER, Problem};

/// A caller, and the credential that came with the request.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    pub(super) identity: Identity,
    pub(super) credential: Option<Credential>,
}

/// Finds out who asks. Over TCP everything but health and metrics needs a token, where one is set; on the socket the kernel
/// names the caller.
pub(super) async fn identify(
    State(node): State<Node>,
    Extension(caller): Extension<Caller>,
    mut request: Request,
    next: Next,
) -> Response {
    if matches!(request.uri().path(), "/livez" | "/readyz" | "/metrics") {
        return next.run(request).await;
    }
    let identity = match caller {
        Caller::Local { uid } => Some(node.tokens.of_uid(uid)),
        Caller::Network => node.tokens.of_token(bearer(request.headers())),
    };
    let Some(identity) = identity else {
        let detail = "a bearer token is needed: give --token-file FILE (PREHEAT_TOKEN_FILE), or use the Unix socket";
        let mut response = Problem::with_status(ErrorKind::Denied, 401, detail).into_response();
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return response;
    };
    if let Err(wait) = node.access.count(&identity) {
        let detail = format!("scope {} asks more often than it may: see access.requests_per_second", identity.scope);
        let mut response = Problem::with_status(ErrorKind::Busy, 429, detail).into_response();
        let seconds = wait.as_secs_f64().ceil().max(1.0) as u64;
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        return response;
    }
    let credential = match credential(request.headers()) {
        Ok(credential) => credential,
        Err(problem) => return problem.into_response(),
    };
    request.extensions_mut().insert(Reader { identity, credential });
    next.run(request).await
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Bearer ")
}

/// The credential in a request's header. The parser's own word is not passed on: it may quote what it has read.
fn credential(headers: &HeaderMap) -> Result<Option<Credential>, Problem> {
    let Some(value) = headers.get(CREDENTIAL_HEADER) else { return Ok(None) };
    let invalid = |detail: String| problem(ErrorKind::Invalid, format!("{CREDENTIAL_HEADER}: {detail}"));
    let credential: Credential = serde_json::from_slice(value.as_bytes()).map_err(|_| {
        invalid("is not a credential; write {\"bearer\": TOKEN}, {\"aws\": {...}} or another kind".to_owned())
    })?;
    credential.check().map_err(invalid)?;
    Ok(Some(credential))
}

impl<S: Send + Sync> FromRequestParts<S> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let found = parts.extract::<Extension<Self>>().await;
        found.map(|Extension(reader)| reader).map_err(|_| {
            // Every route that takes a reader is behind `identify`.
            problem(ErrorKind::Internal, "a request came in without its caller: a defect of preheat")
        })
    }
}

// === impl Reader ===

impl Reader {
    /// Lets pass who may read something that comes from one of these places.
    ///
    /// # Errors
    /// `missing` where nothing is there as far as this caller goes; `Denied` where it is theirs and has to be proved again.
    pub(super) async fn may_read(
        &self,
        node: &Node,
        places: Vec<Provenance>,
        missing: impl FnOnce() -> Problem,
    ) -> Result<(), Problem> {
        let mut unproved = Vec::new();
        for place in places {
            match node.access.may_read(&self.identity, &place) {
                Verdict::Yes => return Ok(()),
                Verdict::Unproved => unproved.push(place),
                Verdict::Hidden => {}
            }
        }
        let mut refusal = None;
        for place in unproved {
            let outcome = node.access.prove_again(&self.identity, &place, self.credential.as_ref()).await;
            // Also when the origin could not be asked: a proof of a while ago may still count.
            if node.access.may_read(&self.identity, &place) == Verdict::Yes {
                return Ok(());
            }
            if let Err(error) = outcome {
                refusal = Some(problem(error.kind(), error.to_string()));
            }
        }
        Err(refusal.unwrap_or_else(missing))
    }

    /// Whether the caller may change what everybody has.
    pub(super) fn must_operate(&self, what: &str) -> Result<(), Problem> {
        if self.identity.operator {
            return Ok(());
        }
        Err(problem(
            ErrorKind::Denied,
            format!("{what} is for the operator: root or the daemon's user on the socket, or the node's own token"),
        ))
    }
}
