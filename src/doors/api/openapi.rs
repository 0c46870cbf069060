//! The document that describes the API (OpenAPI 3.1): made of the annotations of the handlers, served, and checked in.

use std::sync::OnceLock;

use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::OpenApi as Document;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{IntoResponses, Modify, OpenApi};

use crate::prewarm::wire::Problem;

/// What stands around the routes.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "preheat",
        description = "Makes models ready on a node before they are needed, says how long that takes, and gives out their bytes. Every error \
                       is a problem document (RFC 9457) whose `kind` says what it means. A private model needs a credential: as \
                       `credential` of a request, or as the same JSON in the header `Preheat-Credential`.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    modifiers(&Token),
    security(("token" = []), ()),
)]
pub(super) struct Frame;

struct Token;

impl Modify for Token {
    fn modify(&self, document: &mut Document) {
        let token = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        document.components.get_or_insert_default().add_security_scheme("token", token);
    }
}

/// What may be wrong with any request.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it is a table of statuses for the document")]
pub(crate) enum Problems {
    /// `invalid`: the request is wrong; `detail` says which part and what to write.
    #[response(status = 400, content_type = "application/problem+json")]
    Invalid(Problem),
    /// `denied`: a token is needed, or this one is nobody's.
    #[response(status = 401, content_type = "application/problem+json")]
    Unidentified(Problem),
    /// `denied`: not allowed, or access to the origin has to be proved.
    #[response(status = 403, content_type = "application/problem+json")]
    Denied(Problem),
    /// `invalid`: the body is larger than any request may be.
    #[response(status = 413, content_type = "application/problem+json")]
    TooLarge(Problem),
    /// `busy`: this scope asks too often; see `Retry-After`.
    #[response(status = 429, content_type = "application/problem+json")]
    TooOften(Problem),
    /// `internal`: a defect of preheat.
    #[response(status = 500, content_type = "application/problem+json")]
    Internal(Problem),
    /// `busy` or `cancelled`: too much waits already, or the daemon starts or drains; see `Retry-After`.
    #[response(status = 503, content_type = "application/problem+json")]
    Busy(Problem),
}

/// `not_found`, beside those.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it is a table of statuses for the document")]
pub(crate) enum NotHere {
    /// `not_found`: it does not exist, as far as this caller goes.
    #[response(status = 404, content_type = "application/problem+json")]
    NotFound(Problem),
}

/// What an origin may have to do with it.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "it is a table of statuses for the document")]
pub(crate) enum OriginProblems {
    /// `conflict`: it changed at its origin again and again.
    #[response(status = 409, content_type = "application/problem+json")]
    Conflict(Problem),
    /// `unavailable` or `corrupt`: the origin is down, or gives other bytes than it declares.
    #[response(status = 502, content_type = "application/problem+json")]
    Origin(Problem),
    /// `timeout`: the origin is silent.
    #[response(status = 504, content_type = "application/problem+json")]
    Silent(Problem),
    /// `no_space`: no room, and nothing that may be evicted; or the scope's quota.
    #[response(status = 507, content_type = "application/problem+json")]
    NoSpace(Problem),
}

/// The document, as it is served: the same for the life of the process.
fn text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let (_, document) = super::described();
        document.to_pretty_json().unwrap_or_default()
    })
}

/// `GET /v1/openapi.json`
pub(super) async fn document() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], text()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_the_one_that_is_checked_in() {
        let document: serde_json::Value = serde_json::from_str(text()).unwrap();
        assert_eq!(document["openapi"], "3.1.0");
        insta::assert_snapshot!("openapi", text());
    }
}
