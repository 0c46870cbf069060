//! The client of the native API, over TCP or a Unix socket: what the command line uses.
//!
//! One connection a call: calls are few, and a connection that outlives its call would have to be watched for a daemon that
//! stops. Bodies of blobs are streamed; everything else is read whole, up to a limit.

mod calls;
mod engines;
mod events;

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, RANGE};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::base::ErrorKind;
use crate::digest::Hash;
use crate::model::{Credential, DOCUMENT_LIMIT, Manifest, Secret};
use crate::prewarm::wire::{CREDENTIAL_HEADER, Problem};
use crate::sys::peer::{listeners_on, own_uid};

/// A request's body.
type Outgoing = UnsyncBoxBody<Bytes, std::io::Error>;

/// Largest answer that is read whole.
const ANSWER_LIMIT: usize = DOCUMENT_LIMIT;

pub use self::engines::DaemonLibrary;
pub use self::events::JobEvent;

/// Where a daemon listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A Unix socket.
    Unix(PathBuf),
    /// `http://host:port`
    Http(url::Url),
}

/// A client of one daemon. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    target: Arc<Target>,
    token: Option<Arc<Secret>>,
    /// Shown with every request, for what not everybody may read.
    credential: Option<Arc<Credential>>,
}

/// Why a call did not give its answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No connection, or it broke.
    #[error("{daemon}: {detail}")]
    Transport {
        /// Which daemon.
        daemon: String,
        /// What happened.
        detail: String,
    },
    /// The daemon answered with an error.
    #[error("{}", .0.detail)]
    Refused(Problem),
    /// What answered does not speak this API.
    #[error("{daemon} does not answer as a preheat daemon does: {detail}")]
    Strange {
        /// Which daemon.
        daemon: String,
        /// What is strange.
        detail: String,
    },
}

// === impl ClientError ===

impl ClientError {
    /// What it means to whoever has to act.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Transport { .. } | Self::Strange { .. } => ErrorKind::Unavailable,
            Self::Refused(problem) => problem.kind.unwrap_or(ErrorKind::Internal),
        }
    }

    /// Whether the daemon was not reached, or is not one.
    #[must_use]
    pub fn is_transport(&self) -> bool {
        !matches!(self, Self::Refused(_))
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Http(url) => f.write_str(url.as_str().trim_end_matches('/')),
        }
    }
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.target.fmt(f)
    }
}

// === impl Client ===

impl Client {
    /// A client; nothing is connected yet.
    #[must_use]
    pub fn new(target: Target, token: Option<String>) -> Self {
        Self { target: Arc::new(target), token: token.map(Secret::new).map(Arc::new), credential: None }
    }

    /// The same client, which shows a credential with every request.
    #[must_use]
    pub fn with_credential(mut self, credential: Option<Credential>) -> Self {
        self.credential = credential.map(Arc::new);
        self
    }

    /// Whether what is sent stays on this machine.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self.target.as_ref() {
            Target::Unix(_) => true,
            Target::Http(url) => match url.host() {
                Some(url::Host::Ipv4(address)) => address.is_loopback(),
                Some(url::Host::Ipv6(address)) => address.is_loopback(),
                Some(url::Host::Domain(name)) => name == "localhost",
                None => false,
            },
        }
    }

    /// Whether the kernel says who answers: on a Unix socket, whose place in the file system is its owner's; on a loopback address,
    /// if nobody but root and this user listens there, since any user may listen where no daemon does.
    pub(super) fn is_sure(&self) -> bool {
        match self.target.as_ref() {
            Target::Unix(_) => true,
            Target::Http(url) => {
                let listeners = listeners_on(url.port_or_known_default().unwrap_or(80));
                self.is_local()
                    && !listeners.is_empty()
                    && listeners.into_iter().all(|uid| uid == 0 || uid == own_uid())
            }
        }
    }

    /// `GET /v1/manifests/{digest}`; the answer is held against the digest.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn manifest(&self, digest: &Hash) -> Result<Manifest, ClientError> {
        let bytes = self.whole(Method::GET, &format!("/v1/manifests/{digest}"), Vec::new()).await?;
        let manifest = Manifest::parse(&bytes).map_err(|error| self.strange(error.to_string()))?;
        if manifest.digest() == *digest {
            return Ok(manifest);
        }
        Err(self.strange(format!("manifest {digest} was asked for, {} came", manifest.digest())))
    }

    /// `GET /v1/blobs/{hash}` with a range. Every group was proved before it was sent; the caller counts the bytes.
    ///
    /// # Errors
    /// [`ClientError`]
    pub async fn blob(
        &self,
        hash: &Hash,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, ClientError>>, ClientError> {
        if range.is_empty() {
            return Ok(stream::empty().boxed());
        }
        let wanted = range.end - range.start;
        let header = format!("bytes={}-{}", range.start, range.end - 1);
        let answer = self.send(Method::GET, &format!("/v1/blobs/{hash}"), Some(header), Vec::new()).await?;
        if answer.status() != StatusCode::PARTIAL_CONTENT {
            return Err(self.strange(format!("it answers {} to a range request", answer.status())));
        }
        let client = self.clone();
        Ok(stream::unfold(Some((answer.into_body(), wanted, client)), |state| async move {
            let (mut body, left, client) = state?;
            loop {
                match body.frame().await {
                    Some(Ok(frame)) => {
                        let Ok(bytes) = frame.into_data() else { continue };
                        let Some(left) = left.checked_sub(bytes.len() as u64) else {
                            return Some((Err(client.strange("it sends more than was asked for".to_owned())), None));
                        };
                        return Some((Ok(bytes), Some((body, left, client))));
                    }
                    Some(Err(error)) => return Some((Err(client.broken(&error)), None)),
                    None if left == 0 => return None,
                    None => {
                        let detail = format!("the body ended {left} bytes early");
                        let daemon = client.to_string();
                        return Some((Err(ClientError::Transport { daemon, detail }), None));
                    }
                }
            }
        })
        .boxed())
    }

    async fn json<T: DeserializeOwned>(&self, method: Method, path: &str, body: Vec<u8>) -> Result<T, ClientError> {
        let bytes = self.whole(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.strange(error.to_string()))
    }

    async fn whole(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, ClientError> {
        let answer = self.send(method, path, None, body).await?;
        self.read(answer).await
    }

    async fn read(&self, answer: Response<Incoming>) -> Result<Bytes, ClientError> {
        let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(|error| self.broken(error.as_ref()))
    }

    /// Sends one request on a connection of its own; an answer that is no success is an error.
    async fn send(
        &self,
        method: Method,
        path: &str,
        range: Option<String>,
        body: Vec<u8>,
    ) -> Result<Response<Incoming>, ClientError> {
        let kind = (!body.is_empty()).then_some("application/json");
        let body = Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed_unsync();
        self.send_body(method, path, range, kind, body).await
    }

    /// The same for a body of any kind.
    async fn send_body(
        &self,
        method: Method,
        path: &str,
        range: Option<String>,
        kind: Option<&'static str>,
        body: Outgoing,
    ) -> Result<Response<Incoming>, ClientError> {
        let authority = match self.target.as_ref() {
            Target::Unix(_) => "localhost".to_owned(),
            Target::Http(url) => url.authority().to_owned(),
        };
        let mut request = Request::builder().method(method).uri(path).header(HOST, authority);
        if let Some(kind) = kind {
            request = request.header(CONTENT_TYPE, kind);
        }
        if let Some(range) = range {
            request = request.header(RANGE, range);
        }
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {}", token.reveal()));
        }
        if let Some(credential) = &self.credential {
            let text = serde_json::to_string(credential.as_ref()).unwrap_or_default();
            let mut value = HeaderValue::from_str(&text)
                .map_err(|_| self.strange("a credential that no header can hold is not sent".to_owned()))?;
            value.set_sensitive(true);
            request = request.header(CREDENTIAL_HEADER, value);
        }
        let request = request.body(body).map_err(|error| self.strange(error.to_string()))?;
        let answer = match self.target.as_ref() {
            Target::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|error| self.broken(&error))?;
                self.exchange(stream, request).await?
            }
            Target::Http(url) => {
                let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
                let port = url.port_or_known_default().unwrap_or(80);
                let stream = TcpStream::connect((host, port)).await.map_err(|error| self.broken(&error))?;
                // Requests are single small writes.
                let _ = stream.set_nodelay(true);
                self.exchange(stream, request).await?
            }
        };
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let bytes = self.read(answer).await?;
        match serde_json::from_slice::<Problem>(&bytes) {
            Ok(problem) if problem.kind.is_some() => Err(ClientError::Refused(problem)),
            _ => Err(self.strange(format!("it answers {status}"))),
        }
    }

    async fn exchange<S>(&self, stream: S, request: Request<Outgoing>) -> Result<Response<Incoming>, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.broken(&error))?;
        // Ends when the answer's body has been read or dropped; its error reaches the reader of the body.
        tokio::spawn(async move { drop(connection.await) });
        sender.send_request(request).await.map_err(|error| self.broken(&error))
    }

    fn broken(&self, error: &(dyn std::error::Error + 'static)) -> ClientError {
        let mut cause = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        ClientError::Transport { daemon: self.to_string(), detail: cause.to_string() }
    }

    fn strange(&self, detail: String) -> ClientError {
        ClientError::Strange { daemon: self.to_string(), detail }
    }
}
