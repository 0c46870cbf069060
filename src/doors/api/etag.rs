//! Entity tags: whoever asks again for what has not changed gets no body. Answers that are small JSON are tagged by their digest;
//! manifests and blobs have tags of their own.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

/// Larger answers are sent as they are made.
const LIMIT: usize = 4 << 20;

/// Adds a tag to an answer that can have one.
pub(super) async fn remember(response: Response) -> Response {
    let json = response.headers().get(header::CONTENT_TYPE).is_some_and(|found| found == "application/json");
    let sized = axum::body::HttpBody::size_hint(response.body()).exact().is_some_and(|size| size <= LIMIT as u64);
    if !json || !sized || response.status() != StatusCode::OK || response.headers().contains_key(header::ETAG) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    // It is all there already: its size is known.
    let Ok(bytes) = to_bytes(body, LIMIT).await else {
        return Response::from_parts(parts, Body::empty());
    };
    let digest = blake3::hash(&bytes).to_hex();
    if let Ok(tag) = HeaderValue::from_str(&format!("\"{}\"", &digest[..32])) {
        parts.headers.insert(header::ETAG, tag);
    }
    Response::from_parts(parts, Body::from(bytes))
}

/// Answers 304 to a reader that has what it would be sent.
pub(super) async fn compare(request: Request, next: Next) -> Response {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let known = request.headers().get(header::IF_NONE_MATCH).cloned().filter(|_| reads);
    let response = next.run(request).await;
    let tag = response.headers().get(header::ETAG);
    let same = known.zip(tag).is_some_and(|(known, tag)| names(&known, tag));
    // Part of a blob is no whole representation: RFC 9110 compares before ranges, and so do we.
    if !same || !(response.status() == StatusCode::OK || response.status() == StatusCode::PARTIAL_CONTENT) {
        return response;
    }
    let mut headers = HeaderMap::new();
    if let Some(tag) = tag {
        headers.insert(header::ETAG, tag.clone());
    }
    let mut unchanged = Response::new(Body::empty());
    *unchanged.status_mut() = StatusCode::NOT_MODIFIED;
    *unchanged.headers_mut() = headers;
    unchanged
}

/// Whether `If-None-Match` names a tag; weak and strong compare alike.
fn names(known: &HeaderValue, tag: &HeaderValue) -> bool {
    let (Ok(known), Ok(tag)) = (known.to_str(), tag.to_str()) else { return false };
    known.split(',').map(str::trim).any(|one| one == "*" || one.strip_prefix("W/").unwrap_or(one) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_found_in_lists() {
        let value = |text: &str| HeaderValue::from_str(text).unwrap();
        for (known, found) in
            [("\"a\"", true), ("W/\"a\"", true), ("\"b\", \"a\"", true), ("*", true), ("\"b\"", false), ("a", false)]
        {
            assert_eq!(names(&value(known), &value("\"a\"")), found, "{known}");
        }
    }
}
