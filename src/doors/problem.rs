//! Errors as `application/problem+json` (RFC 9457), whoever notices them: a handler, the router, or the JSON parser.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use crate::base::ErrorKind;
use crate::prewarm::wire::Problem;

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let mut response = (status, body).into_response();
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("5"));
        }
        response
    }
}

/// A problem of a kind.
pub(super) fn problem(kind: ErrorKind, detail: impl Into<String>) -> Problem {
    Problem::new(kind, detail)
}

/// Answers of the framework itself (unknown route, wrong method) in our shape.
pub(super) async fn in_our_shape(response: Response) -> Response {
    let status = response.status();
    let ours = response.headers().get(header::CONTENT_TYPE).is_some();
    if ours || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (kind, detail) = match status {
        StatusCode::NOT_FOUND => {
            (ErrorKind::NotFound, "there is nothing at this path; see /v1/node, /v1/models, /v1/prewarm")
        }
        StatusCode::METHOD_NOT_ALLOWED => (ErrorKind::Invalid, "this path does not take this method"),
        _ => (ErrorKind::Invalid, "the request was refused"),
    };
    let allow = response.headers().get(header::ALLOW).cloned();
    let mut ours = Problem::with_status(kind, status.as_u16(), detail).into_response();
    if let Some(allow) = allow {
        ours.headers_mut().insert(header::ALLOW, allow);
    }
    ours
}
