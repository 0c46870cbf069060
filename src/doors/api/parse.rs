//! Request bodies and queries, read so that a mistake is named and a secret is not.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, header};
use serde::de::DeserializeOwned;

use super::Answer;
use crate::base::ErrorKind;
use crate::doors::problem::problem;
use crate::model::{Credential, Reference};
use crate::prewarm::wire::Problem;

/// Models of one request.
const SET_LIMIT: usize = 64;

/// Engine keys of one request: a replica has two (graph, kernel) for each of its nodes.
const ENGINES_LIMIT: usize = 16;

/// Entries of a page at most, and where the query does not say: a node has tens of models and remembers a thousand jobs, so that
/// few callers ever meet a second page.
const PAGE_LIMIT: usize = 1000;

/// Which part of a list is asked for.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Page {
    /// How many at most.
    #[serde(default = "page")]
    #[param(minimum = 1, maximum = 1000, default = 1000)]
    pub(super) limit: usize,
    /// The id of the last entry of the page before, as its `Link` header has it.
    #[serde(default)]
    #[param(max_length = 128)]
    pub(super) after: Option<String>,
}

fn page() -> usize {
    PAGE_LIMIT
}

impl<S: Send + Sync> FromRequestParts<S> for Page {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let invalid = |detail: String| problem(ErrorKind::Invalid, detail);
        let axum::extract::Query(page) = axum::extract::Query::<Self>::try_from_uri(&parts.uri)
            .map_err(|error| invalid(format!("{}; write ?limit=NUMBER&after=ID", error.body_text())))?;
        if !(1..=PAGE_LIMIT).contains(&page.limit) {
            return Err(invalid(format!("limit: write a number from 1 to {PAGE_LIMIT}")));
        }
        Ok(page)
    }
}

// === impl Page ===

impl Page {
    /// The page of a list that is sorted the way it is walked, and the header that names the next one.
    pub(super) fn cut<T>(&self, list: Vec<T>, id: impl Fn(&T) -> &str, route: &str) -> (HeaderMap, Vec<T>) {
        let start = match &self.after {
            Some(after) => list.iter().position(|one| id(one) == after).map_or(list.len(), |at| at + 1),
            None => 0,
        };
        let more = list.len() > start.saturating_add(self.limit);
        let page: Vec<T> = list.into_iter().skip(start).take(self.limit).collect();
        let mut headers = HeaderMap::new();
        if let Some(last) = page.last().filter(|_| more) {
            let next = format!("<{route}?limit={}&after={}>; rel=\"next\"", self.limit, id(last));
            headers.extend(HeaderValue::from_str(&next).ok().map(|value| (header::LINK, value)));
        }
        (headers, page)
    }
}

/// A whole request body, however it is said to be typed.
#[derive(Debug)]
pub(super) struct Whole(pub(super) Bytes);

impl<S: Send + Sync> FromRequest<S> for Whole {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        Bytes::from_request(request, state)
            .await
            .map(Self)
            .map_err(|refused| Problem::with_status(ErrorKind::Invalid, refused.status().as_u16(), refused.body_text()))
    }
}

/// JSON whatever the content type says; the parser's word names the field.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Answer<T> {
    serde_json::from_slice(body).map_err(|error| problem(ErrorKind::Invalid, format!("request body: {error}")))
}

/// The same for a body that may have a credential in it. What a parser says quotes what it has read, so of a credential that is
/// none nothing is passed on, and of the rest no value.
pub(super) fn parse_with_credential<T: DeserializeOwned>(body: &[u8]) -> Answer<T> {
    let invalid = |word: String| problem(ErrorKind::Invalid, format!("request body: {word}"));
    let body: serde_json::Value = serde_json::from_slice(body).map_err(|error| {
        invalid(format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column()))
    })?;
    let Some(fields) = body.as_object() else { return Err(invalid("must be an object".to_owned())) };
    if let Some(credential) = fields.get("credential")
        && serde_json::from_value::<Option<Credential>>(credential.clone()).is_err()
    {
        let word = "credential: write {\"bearer\": TOKEN}, {\"aws\": {...}} or another kind";
        return Err(invalid(word.to_owned()));
    }
    serde_json::from_value(body).map_err(|error| {
        let word = error.to_string();
        // `invalid type: string "...", expected ...`: everything quoted with double quotes is a value.
        invalid(match (word.find('"'), word.rfind('"')) {
            (Some(from), Some(to)) if from < to => format!("{}(a value){}", &word[..from], &word[to + 1..]),
            _ => word,
        })
    })
}

/// The references of a request: one, or a set.
pub(super) fn references(one: &str, many: &[String]) -> Answer<Vec<Reference>> {
    let invalid = |detail: String| problem(ErrorKind::Invalid, detail);
    let texts: Vec<&str> = match (one.is_empty(), many.is_empty()) {
        (false, true) => vec![one],
        (true, false) => many.iter().map(String::as_str).collect(),
        _ => return Err(invalid("write either `reference` or `references`, and something in it".to_owned())),
    };
    if texts.len() > SET_LIMIT {
        return Err(invalid(format!("references: a set has at most {SET_LIMIT} members, this one {}", texts.len())));
    }
    let mut references: Vec<Reference> = Vec::with_capacity(texts.len());
    for text in texts {
        let reference = text.parse().map_err(|error| invalid(format!("{error}")))?;
        if !references.contains(&reference) {
            references.push(reference);
        }
    }
    Ok(references)
}

/// Engine keys of a request.
pub(super) fn engine_keys(keys: &[crate::digest::Hash]) -> Answer<()> {
    if keys.len() > ENGINES_LIMIT {
        let detail = format!("engine: a request has at most {ENGINES_LIMIT} engine keys, this one {}", keys.len());
        return Err(problem(ErrorKind::Invalid, detail));
    }
    Ok(())
}

/// Seconds from now, if any are given.
pub(super) fn deadline(seconds: Option<f64>) -> Answer<()> {
    if seconds.is_some_and(|seconds| !(seconds.is_finite() && seconds >= 0.0)) {
        return Err(problem(ErrorKind::Invalid, "deadline_seconds must be a number of seconds from now, not negative"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prewarm::wire::PrewarmRequest;

    #[test]
    fn a_body_that_is_none_is_refused_without_its_values() {
        let good = br#"{"reference": "hf://a/b", "credential": {"bearer": "canary"}}"#;
        assert_eq!(parse_with_credential::<PrewarmRequest>(good).unwrap().credential.unwrap().kind(), "bearer");
        assert!(
            parse_with_credential::<PrewarmRequest>(br#"{"reference": "hf://a/b", "credential": null}"#)
                .unwrap()
                .credential
                .is_none()
        );
        for (body, says) in [
            (r#"{"reference": "r", "credential": {"canary": 1}}"#, "credential: write"),
            (r#"{"reference": "r", "credential": "canary"}"#, "credential: write"),
            (r#"{"reference": "r", "credential": {"bearer": ["canary"]}}"#, "credential: write"),
            (r#"{"reference": "r", "credential": {"bearer": "canary"}"#, "line 1 column"),
            (r#"{"reference": "r", "wait": "canary"}"#, "expected a boolean"),
            (r#"{"refernce": "canary"}"#, "unknown field `refernce`"),
            (r#"["canary"]"#, "must be an object"),
        ] {
            let detail = parse_with_credential::<PrewarmRequest>(body.as_bytes()).unwrap_err().detail;
            assert!(detail.contains(says) && !detail.contains("canary"), "{body}: {detail}");
        }
    }
    #[test]
    fn a_list_is_walked_page_by_page() {
        let list = || vec!["a", "b", "c", "d", "e"];
        let page = |limit, after: Option<&str>| {
            let (headers, page) = Page { limit, after: after.map(str::to_owned) }.cut(list(), |id| id, "/v1/x");
            (page.concat(), headers.get(header::LINK).map(|link| link.to_str().unwrap().to_owned()))
        };
        assert_eq!(page(5, None), ("abcde".to_owned(), None));
        assert_eq!(page(2, None), ("ab".to_owned(), Some("</v1/x?limit=2&after=b>; rel=\"next\"".to_owned())));
        assert_eq!(page(2, Some("d")), ("e".to_owned(), None));
        assert_eq!(page(2, Some("gone")), (String::new(), None));
    }

    #[test]
    fn one_or_a_set_and_each_once() {
        let set = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(references("hf://a/b", &[]).unwrap().len(), 1);
        assert_eq!(references("", &set(&["hf://a/b", "hf://a/c", "hf://a/b"])).unwrap().len(), 2);
        assert!(references("", &[]).is_err() && references("hf://a/b", &set(&["hf://a/c"])).is_err());
        assert!(references("", &set(&["hf://a/b"; 65])).unwrap_err().detail.contains("64"));
        assert!(deadline(Some(f64::NAN)).is_err() && deadline(Some(-1.0)).is_err() && deadline(Some(0.0)).is_ok());
    }
}
