//! A web server in memory, with strong entity tags, ranges and conditions, that counts what it sends and misbehaves to order.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::TokioIo;

use super::model::Files;

/// What a fault can look at.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// The how-manieth request for this path, from 1, HEAD not counted.
    pub(crate) number: usize,
    pub(crate) path: String,
    /// The bytes asked for.
    pub(crate) range: std::ops::Range<u64>,
}

/// What goes wrong with one answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fault {
    /// This status and no body.
    pub(crate) status: Option<u16>,
    pub(crate) headers: Vec<(&'static str, String)>,
    /// The body breaks off after so many bytes.
    pub(crate) body_bytes: Option<usize>,
    /// After so many bytes nothing comes any more, and the connection stays.
    pub(crate) stall_after: Option<usize>,
    /// The byte at this offset of the file is inverted.
    pub(crate) flip_at: Option<u64>,
    /// 200 and the whole file, whatever was asked.
    pub(crate) ignore_range: bool,
    /// The answer claims, and sends, a range that begins so much later.
    pub(crate) shift: u64,
    /// A pause before each 64 KiB.
    pub(crate) drip: Duration,
    /// Without an entity tag.
    pub(crate) untagged: bool,
}

type Judge = dyn Fn(&Asked) -> Fault + Send + Sync;

#[derive(Default)]
struct State {
    files: Mutex<HashMap<String, Arc<(Bytes, String)>>>,
    fault: Mutex<Option<Arc<Judge>>>,
    body_bytes: Mutex<HashMap<String, u64>>,
    gets: Mutex<HashMap<String, usize>>,
    requests: Mutex<usize>,
    /// Bearer tokens that open it; `None`: it is open to all.
    tokens: Mutex<Option<Vec<String>>>,
}

/// The server; it ends with the runtime.
#[derive(Clone)]
pub(crate) struct Web {
    state: Arc<State>,
    pub(crate) url: String,
}

impl Web {
    pub(crate) async fn serve(files: &Files) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/m", listener.local_addr().unwrap());
        let state = Arc::<State>::default();
        let web = Self { state: Arc::clone(&state), url };
        files.iter().for_each(|(path, bytes)| web.put(path, bytes));
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                // Else head and body of a small file are 40 ms apart.
                stream.set_nodelay(true).unwrap();
                let state = Arc::clone(&state);
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request| answer(Arc::clone(&state), request));
                    let http = hyper::server::conn::http1::Builder::new();
                    // Clients break connections off; that is what many tests are about.
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        web
    }

    /// Puts a file in place, under an entity tag that follows from its bytes.
    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        self.put_tagged(path, bytes, &blake3::hash(bytes).to_hex()[..16]);
    }

    pub(crate) fn put_tagged(&self, path: &str, bytes: &[u8], tag: &str) {
        let object = Arc::new((Bytes::copy_from_slice(bytes), format!("\"{tag}\"")));
        self.state.files.lock().unwrap().insert(format!("/m/{path}"), object);
    }

    pub(crate) fn remove(&self, path: &str) {
        self.state.files.lock().unwrap().remove(&format!("/m/{path}"));
    }

    /// Sets what goes wrong from now on.
    pub(crate) fn fault(&self, judge: impl Fn(&Asked) -> Fault + Send + Sync + 'static) {
        *self.state.fault.lock().unwrap() = Some(Arc::new(judge));
    }

    pub(crate) fn heal(&self) {
        *self.state.fault.lock().unwrap() = None;
    }

    /// Opens it to those who show one of these tokens, and to nobody else.
    pub(crate) fn close_to_all_but(&self, tokens: &[&str]) {
        *self.state.tokens.lock().unwrap() = Some(tokens.iter().map(|token| super::secret(token)).collect());
    }

    /// Body bytes sent of one file.
    pub(crate) fn sent(&self, path: &str) -> u64 {
        self.state.body_bytes.lock().unwrap().get(&format!("/m/{path}")).copied().unwrap_or(0)
    }

    /// Body bytes sent of all shards.
    pub(crate) fn sent_of_shards(&self) -> u64 {
        let sent = self.state.body_bytes.lock().unwrap();
        sent.iter().filter(|(path, _)| path.ends_with(".safetensors")).map(|(_, bytes)| bytes).sum()
    }

    pub(crate) fn requests(&self) -> usize {
        *self.state.requests.lock().unwrap()
    }

    pub(crate) fn gets(&self, path: &str) -> usize {
        self.state.gets.lock().unwrap().get(&format!("/m/{path}")).copied().unwrap_or(0)
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, std::io::Error>>;

async fn answer(state: Arc<State>, request: Request<Incoming>) -> Result<Answer, Infallible> {
    *state.requests.lock().unwrap() += 1;
    let path = percent_encoding::percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned();
    let shown = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let shown = shown.and_then(|value| value.strip_prefix("Bearer ")).unwrap_or_default();
    if state.tokens.lock().unwrap().as_ref().is_some_and(|tokens| !tokens.iter().any(|token| token == shown)) {
        return Ok(empty(StatusCode::UNAUTHORIZED));
    }
    let found = state.files.lock().unwrap().get(&path).cloned();
    let Some(object) = found else { return Ok(empty(StatusCode::NOT_FOUND)) };
    let (bytes, tag) = &*object;
    let size = bytes.len() as u64;
    let range = range_of(request.headers(), size);
    let get = request.method() == Method::GET;
    let number = {
        let mut gets = state.gets.lock().unwrap();
        let count = gets.entry(path.clone()).or_default();
        *count += usize::from(get);
        *count
    };
    let (first, last) = range.unwrap_or((0, size));
    let asked = Asked { number, path: path.clone(), range: first..last };
    let judge = state.fault.lock().unwrap().clone();
    let fault = judge.filter(|_| get).map(|judge| judge(&asked)).unwrap_or_default();
    if let Some(status) = fault.status {
        let mut answer = empty(StatusCode::from_u16(status).unwrap());
        add(answer.headers_mut(), &fault.headers);
        return Ok(answer);
    }
    let wanted = request.headers().get(header::IF_MATCH).map(|value| value.to_str().unwrap().to_owned());
    if wanted.is_some_and(|wanted| wanted != "*" && wanted != *tag) {
        return Ok(empty(StatusCode::PRECONDITION_FAILED));
    }
    let (start, end) = range.filter(|_| !fault.ignore_range).unwrap_or((0, size));
    let mut answer = empty(StatusCode::OK);
    let headers = answer.headers_mut();
    headers.insert(header::ACCEPT_RANGES, "bytes".parse().unwrap());
    if !fault.untagged {
        headers.insert(header::ETAG, tag.parse().unwrap());
    }
    let start = (start + fault.shift).min(end);
    headers.insert(header::CONTENT_LENGTH, (end - start).into());
    if range.is_some() && !fault.ignore_range {
        headers.insert(header::CONTENT_RANGE, format!("bytes {start}-{}/{size}", end - 1).parse().unwrap());
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
    }
    add(answer.headers_mut(), &fault.headers);
    if get {
        *answer.body_mut() = body(&state, path, bytes.slice(start as usize..end as usize), start, fault);
    }
    Ok(answer)
}

fn body(
    state: &Arc<State>,
    path: String,
    bytes: Bytes,
    start: u64,
    fault: Fault,
) -> UnsyncBoxBody<Bytes, std::io::Error> {
    const CHUNK: usize = 64 << 10;
    let state = Arc::clone(state);
    let pieces = stream::unfold((0_usize, false), move |(at, broken)| {
        let (state, bytes, fault, path) = (Arc::clone(&state), bytes.clone(), fault.clone(), path.clone());
        async move {
            if broken || at >= bytes.len() {
                return None;
            }
            tokio::time::sleep(fault.drip).await;
            let stop = fault.body_bytes.or(fault.stall_after).map_or(bytes.len(), |most| most.min(bytes.len()));
            if at >= stop {
                if fault.stall_after.is_some() {
                    std::future::pending::<()>().await;
                }
                return Some((Err(std::io::Error::other("broken off")), (at, true)));
            }
            let end = (at + CHUNK).min(stop);
            let mut piece = bytes.slice(at..end);
            if let Some(flip) = fault.flip_at.and_then(|flip| flip.checked_sub(start))
                && (at as u64..end as u64).contains(&flip)
            {
                let mut changed = piece.to_vec();
                changed[flip as usize - at] ^= 0xff;
                piece = Bytes::from(changed);
            }
            *state.body_bytes.lock().unwrap().entry(path).or_default() += piece.len() as u64;
            Some((Ok(piece), (end, false)))
        }
    });
    UnsyncBoxBody::new(StreamBody::new(pieces.map(|piece| piece.map(Frame::data)).boxed()))
}

fn empty(status: StatusCode) -> Answer {
    let nothing = StreamBody::new(stream::empty::<Result<Frame<Bytes>, std::io::Error>>());
    let mut answer = Response::new(UnsyncBoxBody::new(nothing));
    *answer.status_mut() = status;
    answer.headers_mut().insert(header::CONTENT_LENGTH, 0.into());
    answer
}

fn add(headers: &mut HeaderMap, more: &[(&'static str, String)]) {
    for (name, value) in more {
        headers.insert(*name, value.parse().unwrap());
    }
}

fn range_of(headers: &HeaderMap, size: u64) -> Option<(u64, u64)> {
    let text = headers.get(header::RANGE)?.to_str().ok()?.strip_prefix("bytes=")?;
    let (first, last) = text.split_once('-')?;
    let end = if last.is_empty() { size } else { (last.parse::<u64>().ok()? + 1).min(size) };
    Some((first.parse().ok()?, end))
}
