//! A server in front of another that hands everything on, but for what a test wants otherwise.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};

/// What becomes of one request.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    Pass,
    /// This is the answer.
    Answer(u16, &'static str),
    /// This is the answer, and these are its headers.
    Headers(u16, &'static [(&'static str, &'static str)]),
    /// The byte at this offset of the object is inverted in what comes back.
    Flip(u64),
    /// The request arrives, and its answer is lost.
    LoseAnswer,
    /// Nothing comes, and the connection stays.
    Silence,
}

type Judge = dyn Fn(&Parts) -> Verdict + Send + Sync;

#[derive(Clone)]
pub(crate) struct Proxy {
    pub(crate) url: String,
    judge: Arc<Mutex<Arc<Judge>>>,
}

impl Proxy {
    /// Stands before `target`, a URL without a path.
    pub(crate) async fn before(target: &str) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let pass: Arc<Judge> = Arc::new(|_| Verdict::Pass);
        let judge = Arc::new(Mutex::new(pass));
        let proxy = Self { url, judge: Arc::clone(&judge) };
        let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
        let (target, us) = (target.to_owned(), proxy.url.clone());
        tokio::spawn(async move {
            loop {
                let Ok((stream, _)) = listener.accept().await else { return };
                stream.set_nodelay(true).unwrap();
                let (client, target, judge) = (client.clone(), (target.clone(), us.clone()), Arc::clone(&judge));
                tokio::spawn(async move {
                    let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                        let judge = Arc::clone(&judge.lock().unwrap());
                        hand_on(client.clone(), target.clone(), judge, request)
                    });
                    // A lost answer is an error that ends the connection.
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        proxy
    }

    /// Sets what happens from now on.
    pub(crate) fn judge(&self, judge: impl Fn(&Parts) -> Verdict + Send + Sync + 'static) {
        *self.judge.lock().unwrap() = Arc::new(judge);
    }
}

async fn hand_on(
    client: Client<HttpConnector, Full<Bytes>>,
    (target, us): (String, String),
    judge: Arc<Judge>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, std::io::Error> {
    let (mut parts, body) = request.into_parts();
    let verdict = judge(&parts);
    let body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    if let Verdict::Answer(status, text) = verdict {
        let mut answer = Response::new(Full::from(text));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        return Ok(answer);
    }
    if let Verdict::Silence = verdict {
        std::future::pending::<()>().await;
    }
    if let Verdict::Headers(status, headers) = verdict {
        let mut answer = Response::new(Full::default());
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in headers {
            answer.headers_mut().insert(*name, value.parse().unwrap());
        }
        return Ok(answer);
    }
    // Signatures of AWS are over the host; others want to be asked by their own name.
    let signed = parts.headers.get("authorization").is_some_and(|value| value.as_bytes().starts_with(b"AWS4"));
    if !signed {
        parts.headers.insert("host", target["http://".len()..].parse().unwrap());
    }
    parts.uri = format!("{target}{}", parts.uri.path_and_query().unwrap()).parse().unwrap();
    let answer = client.request(Request::from_parts(parts, Full::new(body))).await.map_err(std::io::Error::other)?;
    let (mut parts, body) = answer.into_parts();
    if let Some(location) = parts.headers.get_mut("location") {
        *location = location.to_str().unwrap().replace(&target, &us).parse().unwrap();
    }
    let mut body = body.collect().await.map_err(std::io::Error::other)?.to_bytes();
    match verdict {
        Verdict::LoseAnswer => return Err(std::io::Error::other("lost")),
        Verdict::Flip(offset) => {
            let start = parts.headers.get("content-range").map_or(0, |value| {
                let text = value.to_str().unwrap();
                text["bytes ".len()..text.find('-').unwrap()].parse().unwrap()
            });
            if let Some(at) = offset.checked_sub(start).filter(|at| *at < body.len() as u64) {
                let mut changed = body.to_vec();
                changed[at as usize] ^= 0xff;
                body = changed.into();
            }
        }
        Verdict::Pass | Verdict::Answer(..) | Verdict::Headers(..) | Verdict::Silence => {}
    }
    Ok(Response::from_parts(parts, Full::new(body)))
}
