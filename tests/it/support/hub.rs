//! A hub as the wire contract has it: commits, branches, pages of a tree, tokens, small files itself, large ones behind a signed
//! URL on another host that expires. It misbehaves to order, and remembers every header that either host was sent.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use sha1::Digest;

use super::model::Files;

/// Files of this size and more are kept outside git.
pub(crate) const LARGE: usize = 100_000;

/// The first commit, which `main` names.
pub(crate) const COMMIT: &str = "cccccccccccccccccccccccccccccccccccccccc";

/// Status, header fields and body of an answer that stands in for the true one.
pub(crate) type Refusal = (u16, Vec<(&'static str, String)>, &'static str);

/// A request, as a fault sees it.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// With its query.
    pub(crate) path: String,
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    /// The how-manieth request for either host, from 1.
    pub(crate) number: usize,
}

type Judge = Arc<dyn Fn(&Asked) -> Option<Refusal> + Send + Sync>;

/// Who may have what; as a new hub has it, everybody everything.
#[derive(Clone, Default)]
pub(crate) struct Access {
    /// Tokens that the hub knows; `None`: whatever is sent will do.
    pub(crate) tokens: Option<HashSet<String>>,
    /// Of these, those whose owners have accepted the terms; `None`: it is not gated.
    pub(crate) let_in: Option<HashSet<String>>,
    /// Without a token it does not exist.
    pub(crate) private: bool,
}

#[derive(Default)]
struct State {
    commits: Mutex<BTreeMap<String, Files>>,
    branches: Mutex<HashMap<String, String>>,
    access: Mutex<Access>,
    /// Declared instead of the truth.
    lies: Mutex<HashMap<String, String>>,
    /// Given by the storage instead of the truth.
    wrong: Mutex<HashMap<String, Vec<u8>>>,
    /// A file that is too large to be there: its path and size.
    huge: Mutex<Option<(String, u64)>>,
    /// Entries of a listing that is made up, instead of the files.
    many: Mutex<usize>,
    storage: Mutex<String>,
    /// Signatures given so far.
    good: Mutex<u64>,
    page: Mutex<usize>,
    hub_fault: Mutex<Option<Judge>>,
    storage_fault: Mutex<Option<Judge>>,
    hub_log: Mutex<Vec<Asked>>,
    storage_log: Mutex<Vec<Asked>>,
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
        *state.page.lock().unwrap() = 1000;
        *state.uses.lock().unwrap() = usize::MAX;
        *state.storage.lock().unwrap() = listen(Arc::clone(&state), storage_answer).await;
        let url = listen(Arc::clone(&state), hub_answer).await;
        let hub = Self { state, url };
        hub.branch("refs/pr/1", COMMIT);
        hub.branch("feature/slash", COMMIT);
        hub.commit(COMMIT, files);
        hub
    }

    /// A new commit, and `main` is moved to it.
    pub(crate) fn commit(&self, commit: &str, files: &Files) {
        self.state.commits.lock().unwrap().insert(commit.to_owned(), files.clone());
        self.branch("main", commit);
    }

    pub(crate) fn branch(&self, name: &str, commit: &str) {
        self.state.branches.lock().unwrap().insert(name.to_owned(), commit.to_owned());
    }

    pub(crate) fn access(&self, access: Access) {
        *self.state.access.lock().unwrap() = access;
    }

    /// What the hub declares of a file instead of the truth.
    pub(crate) fn lie(&self, path: &str, digest: &str) {
        self.state.lies.lock().unwrap().insert(path.to_owned(), digest.to_owned());
    }

    /// What either host sends of a file instead of the truth.
    pub(crate) fn send_wrong(&self, path: &str, bytes: Vec<u8>) {
        self.state.wrong.lock().unwrap().insert(path.to_owned(), bytes);
    }

    pub(crate) fn tell_the_truth(&self) {
        self.state.lies.lock().unwrap().clear();
        self.state.wrong.lock().unwrap().clear();
    }

    /// Adds a file of any size, whose bytes are made when they are asked for: see [`made_up`].
    pub(crate) fn huge(&self, path: &str, size: u64) {
        *self.state.huge.lock().unwrap() = Some((path.to_owned(), size));
    }

    /// Lists so many files that are not there.
    pub(crate) fn many(&self, files: usize) {
        *self.state.many.lock().unwrap() = files;
    }

    /// What the hub answers instead, where this says something.
    pub(crate) fn fault(&self, judge: impl Fn(&Asked) -> Option<Refusal> + Send + Sync + 'static) {
        *self.state.hub_fault.lock().unwrap() = Some(Arc::new(judge));
    }

    /// What the storage answers instead, where this says something.
    pub(crate) fn storage_fault(&self, judge: impl Fn(&Asked) -> Option<Refusal> + Send + Sync + 'static) {
        *self.state.storage_fault.lock().unwrap() = Some(Arc::new(judge));
    }

    /// Both hosts do what they should.
    pub(crate) fn heal(&self) {
        *self.state.hub_fault.lock().unwrap() = None;
        *self.state.storage_fault.lock().unwrap() = None;
    }

    pub(crate) fn page(&self, entries: usize) {
        *self.state.page.lock().unwrap() = entries;
    }

    /// Signatures that have been given expire every so many requests; with 0 none is ever good.
    pub(crate) fn expire_every(&self, requests: usize) {
        *self.state.uses.lock().unwrap() = requests;
    }

    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.state.hub_log.lock().unwrap().clone()
    }

    pub(crate) fn asked_of_storage(&self) -> Vec<Asked> {
        self.state.storage_log.lock().unwrap().clone()
    }
}

impl Asked {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// The bytes of a huge file.
pub(crate) fn made_up(range: std::ops::Range<u64>) -> Vec<u8> {
    range.map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

type Answer = Response<Full<Bytes>>;
type Handler = fn(&State, &Asked, &str) -> Answer;

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
                    let asked = Asked {
                        path: request.uri().to_string(),
                        method: request.method().clone(),
                        headers: request.headers().clone(),
                        number: 0,
                    };
                    let answer = handler(&state, &asked, &own);
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

/// Writes the request down, and answers it wrongly where that is ordered.
fn ordered(log: &Mutex<Vec<Asked>>, fault: &Mutex<Option<Judge>>, asked: &Asked) -> Option<Answer> {
    let asked = {
        let mut log = log.lock().unwrap();
        let asked = Asked { number: log.len() + 1, ..asked.clone() };
        log.push(asked.clone());
        asked
    };
    let judge = fault.lock().unwrap().clone();
    let (status, headers, body) = judge?(&asked)?;
    let mut answer = plain(status, body);
    for (name, value) in headers {
        answer.headers_mut().insert(name, value.parse().unwrap());
    }
    Some(answer)
}

fn refused(status: u16, code: &'static str, message: &'static str) -> Answer {
    let mut answer = plain(status, "");
    answer.headers_mut().insert("x-error-code", code.parse().unwrap());
    answer.headers_mut().insert("x-error-message", message.parse().unwrap());
    answer
}

fn hub_answer(state: &State, asked: &Asked, own: &str) -> Answer {
    if let Some(answer) = ordered(&state.hub_log, &state.hub_fault, asked) {
        return answer;
    }
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let path = percent_encoding::percent_decode_str(path).decode_utf8_lossy().into_owned();
    let access = state.access.lock().unwrap().clone();
    let token = asked.header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let knows = |tokens: &HashSet<String>| token.is_some_and(|token| tokens.contains(token));
    if token.is_some() && access.tokens.as_ref().is_some_and(|tokens| !knows(tokens)) {
        let mut answer = refused(401, "-", "Invalid credentials in Authorization header");
        answer.headers_mut().remove("x-error-code");
        return answer;
    }
    let known = path.starts_with("/api/models/org/m/") || path.starts_with("/org/m/");
    if !known || (access.private && token.is_none()) {
        let status = if token.is_some() { 404 } else { 401 };
        return refused(status, "RepoNotFound", "Repository not found");
    }
    if let Some(revision) = path.strip_prefix("/api/models/org/m/revision/") {
        return match state.branches.lock().unwrap().get(revision) {
            Some(commit) => plain(200, &json!({"sha": commit, "id": "org/m", "gated": false}).to_string()),
            None => refused(404, "RevisionNotFound", "Invalid rev id"),
        };
    }
    let commits = state.commits.lock().unwrap();
    if let Some(commit) = path.strip_prefix("/api/models/org/m/tree/") {
        return match commits.get(commit) {
            Some(files) => tree(state, files, &asked.path, query, own),
            None => refused(404, "RevisionNotFound", "Invalid rev id"),
        };
    }
    let asked_for = path.strip_prefix("/org/m/resolve/").and_then(|rest| rest.split_once('/'));
    let Some((commit, name)) = asked_for else { return plain(404, "") };
    if access.let_in.as_ref().is_some_and(|let_in| !knows(let_in)) {
        return refused(if token.is_some() { 403 } else { 401 }, "GatedRepo", "Access to model org/m is restricted");
    }
    let Some(files) = commits.get(commit) else { return refused(404, "RevisionNotFound", "Invalid rev id") };
    let large = state.huge.lock().unwrap().as_ref().is_some_and(|(huge, _)| huge == name)
        || files.get(name).is_some_and(|bytes| bytes.len() >= LARGE);
    if large {
        let good = {
            let mut good = state.good.lock().unwrap();
            *good += 1;
            *good
        };
        let mut answer = plain(302, "");
        let storage = state.storage.lock().unwrap().clone();
        let target = format!("{storage}/{commit}/{name}?Expires=99999999999&Signature=secret{good}");
        answer.headers_mut().insert(header::LOCATION, target.parse().unwrap());
        return answer;
    }
    let wrong = state.wrong.lock().unwrap().get(name).cloned();
    match wrong.as_ref().or(files.get(name)) {
        None => refused(404, "EntryNotFound", "Entry not found"),
        Some(_) if asked.method == Method::HEAD => plain(200, ""),
        Some(bytes) => {
            ranged(asked, bytes.len() as u64, |range| bytes[range.start as usize..range.end as usize].to_vec())
        }
    }
}

fn tree(state: &State, files: &Files, path: &str, query: &str, own: &str) -> Answer {
    let from: usize = query.split("cursor=").nth(1).map_or(0, |cursor| cursor.parse().unwrap());
    let (page, many) = (*state.page.lock().unwrap(), *state.many.lock().unwrap());
    let total = if many > 0 { many } else { files.len() };
    let mut entries: Vec<_> = if many > 0 {
        let entry = |number: usize| {
            let oid = format!("{number:040x}");
            json!({"type": "file", "path": format!("d{}/{number:07}.json", number / 500), "size": 2, "oid": oid})
        };
        (from..(from + page).min(many)).map(entry).collect()
    } else {
        files.iter().skip(from).take(page).map(|(path, bytes)| entry(state, path, bytes)).collect()
    };
    entries.push(json!({"type": "directory", "path": "folder", "size": 0, "oid": "a".repeat(40)}));
    if let Some((path, size)) = state.huge.lock().unwrap().as_ref().filter(|_| from == 0) {
        entries.push(json!({"type": "file", "path": path, "size": size, "oid": "f".repeat(40),
            "lfs": {"oid": "ab".repeat(32), "size": size, "pointerSize": 134}}));
    }
    let mut answer = plain(200, &serde_json::Value::Array(entries).to_string());
    if from + page < total {
        let path = path.split('?').next().unwrap();
        let link = format!("<{own}{path}?recursive=true&cursor={}>; rel=\"next\"", from + page);
        answer.headers_mut().insert(header::LINK, link.parse().unwrap());
    }
    answer
}

fn entry(state: &State, path: &str, bytes: &[u8]) -> serde_json::Value {
    let lie = state.lies.lock().unwrap().get(path).cloned();
    if bytes.len() < LARGE {
        let git = hex(&sha1::Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat()));
        return json!({"type": "file", "path": path, "size": bytes.len(), "oid": lie.unwrap_or(git)});
    }
    let sha256 = lie.unwrap_or_else(|| hex(&sha2::Sha256::digest(bytes)));
    json!({"type": "file", "path": path, "size": bytes.len(), "oid": "f".repeat(40),
        "lfs": {"oid": sha256, "size": bytes.len(), "pointerSize": 134}, "xetHash": "e".repeat(64)})
}

fn storage_answer(state: &State, asked: &Asked, _: &str) -> Answer {
    if let Some(answer) = ordered(&state.storage_log, &state.storage_fault, asked) {
        return answer;
    }
    let (path, query) = asked.path.split_once('?').unwrap_or((&asked.path, ""));
    let signature: u64 = query.split("Signature=secret").nth(1).and_then(|text| text.parse().ok()).unwrap_or(0);
    let every = *state.uses.lock().unwrap();
    let mut expired = state.expired.lock().unwrap();
    if every == 0 || state.storage_log.lock().unwrap().len().is_multiple_of(every) {
        *expired = *state.good.lock().unwrap();
    }
    if signature <= *expired {
        return plain(403, "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>");
    }
    let (commit, name) = path.trim_start_matches('/').split_once('/').unwrap();
    if let Some((_, size)) = state.huge.lock().unwrap().as_ref().filter(|(huge, _)| huge == name) {
        return ranged(asked, *size, made_up);
    }
    let wrong = state.wrong.lock().unwrap().get(name).cloned();
    let bytes = wrong.or_else(|| state.commits.lock().unwrap().get(commit)?.get(name).cloned());
    match bytes {
        None => plain(404, ""),
        Some(bytes) => {
            ranged(asked, bytes.len() as u64, |range| bytes[range.start as usize..range.end as usize].to_vec())
        }
    }
}

fn ranged(asked: &Asked, size: u64, bytes: impl Fn(std::ops::Range<u64>) -> Vec<u8>) -> Answer {
    let range = asked.header("range").and_then(|value| value.strip_prefix("bytes="));
    let Some((first, last)) = range.and_then(|range| range.split_once('-')) else {
        // As the bridge in front of large files has it.
        return plain(400, "a range, please");
    };
    let (first, last): (u64, u64) = (first.parse().unwrap(), last.parse().unwrap());
    let last = last.min(size - 1);
    let mut answer = Response::new(Full::new(Bytes::from(bytes(first..last + 1))));
    *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
    // A storage's own tag is another value than the hub's digest.
    answer.headers_mut().insert(header::ETAG, format!("\"{}\"", "9".repeat(64)).parse().unwrap());
    answer.headers_mut().insert(header::CONTENT_RANGE, format!("bytes {first}-{last}/{size}").parse().unwrap());
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
