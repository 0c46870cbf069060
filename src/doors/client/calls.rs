//! The calls about jobs, models and the node: JSON there and JSON back.

use hyper::Method;
use hyper::header::{HeaderMap, LINK};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Client, ClientError};
use crate::model::ModelId;
use crate::prewarm::wire::{
    Estimate, EstimateRequest, GcReport, GcRequest, JobView, ModelView, NodeView, PinRequest, PrewarmRequest,
};

/// Pages of one list at most: a node remembers a thousand ended jobs and queues ten thousand, and a page has up to a thousand.
const PAGES: usize = 64;

/// What stands for itself in a path segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A name as one segment of a path, whatever a person typed.
pub(super) fn segment(name: &str) -> String {
    match name {
        // These two would be taken for directions.
        "." => "%2E".to_owned(),
        ".." => "%2E%2E".to_owned(),
        _ => utf8_percent_encode(name, SEGMENT).to_string(),
    }
}

// === impl Client ===

impl Client {
    /// `POST /v1/prewarm`
    ///
    /// # Errors
    /// [`ClientError`], as for every call.
    pub async fn prewarm(&self, request: &PrewarmRequest) -> Result<JobView, ClientError> {
        self.json(Method::POST, "/v1/prewarm", body(request)).await
    }

    /// `POST /v1/estimate`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn estimate(&self, request: &EstimateRequest) -> Result<Estimate, ClientError> {
        self.json(Method::POST, "/v1/estimate", body(request)).await
    }

    /// `GET /v1/prewarm`: the jobs that the caller may see, newest first.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn jobs(&self) -> Result<Vec<JobView>, ClientError> {
        self.list("/v1/prewarm").await
    }

    /// `GET /v1/prewarm/{id}`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn job(&self, id: &str) -> Result<JobView, ClientError> {
        self.json(Method::GET, &format!("/v1/prewarm/{}", segment(id)), Vec::new()).await
    }

    /// `DELETE /v1/prewarm/{id}`: the job as it stands when it is called off; it ends soon after.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn cancel(&self, id: &str) -> Result<JobView, ClientError> {
        self.json(Method::DELETE, &format!("/v1/prewarm/{}", segment(id)), Vec::new()).await
    }

    /// `GET /v1/models`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn models(&self) -> Result<Vec<ModelView>, ClientError> {
        self.list("/v1/models").await
    }

    /// `PUT /v1/models/{id}/pins/{pin}`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn pin(&self, model: &ModelId, pin: &str, request: &PinRequest) -> Result<ModelView, ClientError> {
        self.json(Method::PUT, &format!("/v1/models/{model}/pins/{}", segment(pin)), body(request)).await
    }

    /// `DELETE /v1/models/{id}/pins/{pin}`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn unpin(&self, model: &ModelId, pin: &str) -> Result<(), ClientError> {
        let path = format!("/v1/models/{model}/pins/{}", segment(pin));
        self.whole(Method::DELETE, &path, Vec::new()).await.map(drop)
    }

    /// `POST /v1/gc`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn gc(&self, request: GcRequest) -> Result<GcReport, ClientError> {
        self.json(Method::POST, "/v1/gc", body(&request)).await
    }

    /// `GET /v1/node`
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn node(&self) -> Result<NodeView, ClientError> {
        self.json(Method::GET, "/v1/node", Vec::new()).await
    }

    /// A whole list, page by page.
    async fn list<T: DeserializeOwned>(&self, route: &str) -> Result<Vec<T>, ClientError> {
        let (mut all, mut path) = (Vec::new(), route.to_owned());
        for _ in 0..PAGES {
            let answer = self.send(Method::GET, &path, None, Vec::new()).await?;
            let next = next_page(answer.headers(), route);
            let bytes = self.read(answer).await?;
            let page: Vec<T> = serde_json::from_slice(&bytes).map_err(|error| self.strange(error.to_string()))?;
            all.extend(page);
            match next {
                Some(next) => path = next,
                None => return Ok(all),
            }
        }
        Err(self.strange(format!("the list at {route} has more than {PAGES} pages")))
    }
}

/// Where the next page of a list is: `Link: <PATH>; rel="next"` (RFC 8288), on the same route.
fn next_page(headers: &HeaderMap, route: &str) -> Option<String> {
    let links = headers.get_all(LINK).iter().filter_map(|value| value.to_str().ok());
    links.flat_map(|value| value.split(',')).find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        let is_next = parameters.split(';').any(|one| matches!(one.trim(), "rel=\"next\"" | "rel=next"));
        let (path, _) = target.split_once('?')?;
        (is_next && path == route).then(|| target.to_owned())
    })
}

pub(super) fn body(request: &impl Serialize) -> Vec<u8> {
    // Of types of this crate, none of which refuses to be written.
    serde_json::to_vec(request).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    #[test]
    fn the_next_page_is_on_the_same_route() {
        let next = |link: &'static str| {
            let headers = HeaderMap::from_iter([(LINK, HeaderValue::from_static(link))]);
            next_page(&headers, "/v1/models")
        };
        assert_eq!(next("</v1/models?limit=2&after=b>; rel=\"next\""), Some("/v1/models?limit=2&after=b".to_owned()));
        assert_eq!(next("</v1/models?after=a>; rel=\"prev\", </v1/models?after=c>; rel=\"next\"").unwrap().len(), 18);
        for elsewhere in
            ["<http://other/v1/models?after=b>; rel=\"next\"", "</v1/gc?after=b>; rel=\"next\"", "nonsense"]
        {
            assert_eq!(next(elsewhere), None, "{elsewhere}");
        }
    }

    #[test]
    fn what_is_typed_stays_one_segment() {
        assert_eq!(segment("job-0a.b_c~d"), "job-0a.b_c~d");
        assert_eq!(segment("../models?x#y z"), "..%2Fmodels%3Fx%23y%20z");
        assert_eq!((segment("..").as_str(), segment(".").as_str()), ("%2E%2E", "%2E"));
    }
}
