//! A hub as the wire contract has it: commits, pages of a tree, small files itself, large ones behind a signed URL on another
//! host that expires.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha1::Digest;

use super::model::Files;

/// Files of this size and more are kept outside git.
pub(crate) const LARGE: usize = 100_000;

/// Status and header fields of an answer without a body.
pub(crate) type Refusal = (u16, Vec<(&'static str, String)>);

#[derive(Default)]
struct State {
    files: Mutex<Files>,
    commit: Mutex<String>,
    /// Declared instead of the truth.
    lies: Mutex<HashMap<String, String>>,
    storage: Mutex<String>,
    /// Signatures that are good now.
    good: Mutex<u64>,
    page: Mutex<usize>,
    refusal: Mutex<Option<Refusal>>,
    /// Path and `Authorization` of every request, to the hub and to the storage.
    hub_log: Mutex<Vec<(String, Option<String>)>>,
    storage_log: Mutex<Vec<(String, Option<String>)>>,
    /// Every so many requests to the storage, all signatures that were given until then expire; 0: none is ever good.
    uses: Mutex<usize>,
    expired: Mutex<u64>,
}

/// The hub; it ends with the runtime.
#[derive(Clone)]
pub(crate) struct Hub {
    state: Arc<State>,
    pub(crate) url: String,
}

impl Hub {
    pub(crate) async fn serve(files: &Files) -> Self {
        let state = Arc::<State>::default();
        *state.files.lock().unwrap() = files.clone();
        *state.commit.lock().unwrap() = "c".repeat(40);
        *state.page.lock().unwrap() = 1000;
        *state.uses.lock().unwrap() = usize::MAX;
        let storage = listen(Arc::clone(&state), storage_answer).await;
        *state.storage.lock().unwrap() = storage;
        let url = listen(Arc::clone(&state), hub_answer).await;
        Self { state, url }
    }

    /// What the hub declares of a file instead of the truth.
    pub(crate) fn lie(&self, path: &str, digest: &str) {
        self.state.lies.lock().unwrap().insert(path.to_owned(), digest.to_owned());
    }

    pub(crate) fn tell_the_truth(&self) {
        self.state.lies.lock().unwrap().clear();
    }

    /// Everything is refused like this; `None`: no more.
    pub(crate) fn refuse(&self, refusal: Option<Refusal>) {
        *self.state.refusal.lock().unwrap() = refusal;
    }

    pub(crate) fn page(&self, entries: usize) {
        *self.state.page.lock().unwrap() = entries;
    }

    /// Signatures that have been given expire every so many requests; with 0 none is ever good.
    pub(crate) fn expire_every(&self, requests: usize) {
        *self.state.uses.lock().unwrap() = requests;
    }

    pub(crate) fn commit(&self, commit: &str, files: &Files) {
        *self.state.commit.lock().unwrap() = commit.to_owned();
        *self.state.files.lock().unwrap() = files.clone();
    }

    pub(crate) fn asked(&self) -> Vec<(String, Option<String>)> {
        self.state.hub_log.lock().unwrap().clone()
    }

    pub(crate) fn asked_of_storage(&self) -> Vec<(String, Option<String>)> {
        self.state.storage_log.lock().unwrap().clone()
    }
}

type Answer = Response<Full<Bytes>>;
type Handler = fn(&State, &Request<Incoming>, &str) -> Answer;

async fn listen(state: Arc<State>, handler: Handler) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let own = url.clone();
    tokio::spawn(async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else { return };
            stream.set_nodelay(true).unwrap();
            let (state, own) = (Arc::clone(&state), own.clone());
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                    let answer = handler(&state, &request, &own);
                    async move { Ok::<_, Infallible>(answer) }
                });
                // Clients leave when they have what they want.
                let _ =
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
    url
}

fn authorization(request: &Request<Incoming>) -> Option<String> {
    request.headers().get(header::AUTHORIZATION).map(|value| value.to_str().unwrap().to_owned())
}

fn hub_answer(state: &State, request: &Request<Incoming>, own: &str) -> Answer {
    let path = percent_encoding::percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned();
    state.hub_log.lock().unwrap().push((request.uri().to_string(), authorization(request)));
    if let Some((status, headers)) = state.refusal.lock().unwrap().clone() {
        let mut answer = plain(status, "");
        for (name, value) in headers {
            answer.headers_mut().insert(name, value.parse().unwrap());
        }
        return answer;
    }
    let commit = state.commit.lock().unwrap().clone();
    if let Some(revision) = path.strip_prefix("/api/models/org/m/revision/") {
        return if revision == "main" || revision == "refs/pr/1" {
            plain(200, &json!({"sha": commit, "id": "org/m", "gated": false}).to_string())
        } else {
            let mut answer = plain(404, "");
            answer.headers_mut().insert("x-error-code", "RevisionNotFound".parse().unwrap());
            answer
        };
    }
    if path == format!("/api/models/org/m/tree/{commit}") {
        return tree(state, request, own);
    }
    let Some(name) = path.strip_prefix(&format!("/org/m/resolve/{commit}/")).map(str::to_owned) else {
        let mut answer = plain(401, "");
        answer.headers_mut().insert("x-error-code", "RepoNotFound".parse().unwrap());
        return answer;
    };
    let found = state.files.lock().unwrap().get(&name).cloned();
    match found {
        None => plain(404, ""),
        Some(bytes) if bytes.len() < LARGE => ranged(&bytes, request),
        Some(_) => {
            let good = {
                let mut good = state.good.lock().unwrap();
                *good += 1;
                *good
            };
            let mut answer = plain(302, "");
            let storage = state.storage.lock().unwrap().clone();
            let target = format!("{storage}/{name}?Expires=99999999999&Signature=secret{good}");
            answer.headers_mut().insert(header::LOCATION, target.parse().unwrap());
            answer
        }
    }
}

fn tree(state: &State, request: &Request<Incoming>, own: &str) -> Answer {
    let query = request.uri().query().unwrap_or_default();
    let from: usize = query.split("cursor=").nth(1).map_or(0, |cursor| cursor.parse().unwrap());
    let (files, lies) = (state.files.lock().unwrap(), state.lies.lock().unwrap());
    let page = *state.page.lock().unwrap();
    let entries: Vec<_> = files
        .iter()
        .skip(from)
        .take(page)
        .map(|(path, bytes)| {
            let lie = lies.get(path).cloned();
            let git = hex(&sha1::Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()));
            if bytes.len() < LARGE {
                return json!({"type": "file", "path": path, "size": bytes.len(), "oid": lie.unwrap_or(git)});
            }
            let sha256 = lie.unwrap_or_else(|| hex(&sha2::Sha256::digest(bytes)));
            json!({"type": "file", "path": path, "size": bytes.len(), "oid": "f".repeat(40),
                "lfs": {"oid": sha256, "size": bytes.len(), "pointerSize": 134}})
        })
        .chain([json!({"type": "directory", "path": "folder", "size": 0, "oid": "a".repeat(40)})])
        .collect();
    let mut answer = plain(200, &serde_json::Value::Array(entries).to_string());
    if from + page < files.len() {
        let link = format!("<{own}{}?recursive=true&cursor={}>; rel=\"next\"", request.uri().path(), from + page);
        answer.headers_mut().insert(header::LINK, link.parse().unwrap());
    }
    answer
}

fn storage_answer(state: &State, request: &Request<Incoming>, _: &str) -> Answer {
    state.storage_log.lock().unwrap().push((request.uri().to_string(), authorization(request)));
    let query = request.uri().query().unwrap_or_default();
    let signature: u64 = query.split("Signature=secret").nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    let every = *state.uses.lock().unwrap();
    let mut expired = state.expired.lock().unwrap();
    if every == 0 || state.storage_log.lock().unwrap().len().is_multiple_of(every) {
        *expired = *state.good.lock().unwrap();
    }
    if signature <= *expired {
        return plain(403, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>");
    }
    let name = request.uri().path().trim_start_matches('/').to_owned();
    let bytes = state.files.lock().unwrap().get(&name).cloned();
    bytes.map_or_else(|| plain(404, ""), |bytes| ranged(&bytes, request))
}

fn ranged(bytes: &[u8], request: &Request<Incoming>) -> Answer {
    let range = request.headers().get(header::RANGE).and_then(|value| value.to_str().ok()?.strip_prefix("bytes="));
    let Some((first, last)) = range.and_then(|range| range.split_once('-')) else {
        return plain(400, "a range, please");
    };
    let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
    let last = last.min(bytes.len() - 1);
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(&bytes[first..=last])));
    *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
    // A storage's own tag is another value than the hub's digest.
    answer.headers_mut().insert(header::ETAG, format!("\"{}\"", "9".repeat(64)).parse().unwrap());
    answer
        .headers_mut()
        .insert(header::CONTENT_RANGE, format!("bytes {first}-{last}/{}", bytes.len()).parse().unwrap());
    answer
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn plain(status: u16, body: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}
