//! The daemon as a source of bytes, for a process that cannot see its store. The manifest names the BLAKE3 root of every
//! file, so what arrives is verified here as well, with the same transfer that talks to origins.
//!
//! The transfer is as patient with the daemon as with an origin, for which there is no other place. For a daemon there is
//! one: as soon as it is silent for the time that makes a daemon none, [`NodeSource::gone`] says so, and whoever waits for
//! the transfer goes to the origin. Only waiting for the daemon counts; a slow disk on this side is not its fault.

use std::future::Future;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use crate::base::ErrorKind;
use crate::base::lifecycle::CancellationToken;
use crate::digest::Hash;
use crate::doors::client::{Client, ClientError};
use crate::model::body::pieces;
use crate::model::source::{Origin, RangeBody, RangeSource, RemoteFile, Resolution, SourceError, Validator};
use crate::model::{Manifest, OriginId, Reference, Revision, Scheme, Selection};

/// One published model of a daemon.
#[derive(Debug)]
pub(super) struct NodeSource {
    client: Client,
    manifest: Manifest,
    silence: Silence,
}

/// How long the daemon may be silent, on all connections together, and whether it was.
#[derive(Clone, Debug)]
struct Silence {
    limit: Duration,
    /// When it last gave a byte of a blob.
    broken: Arc<Mutex<Instant>>,
    over: CancellationToken,
    why: Arc<OnceLock<String>>,
}

/// Between two attempts to reach a daemon that refuses connections: it may just be starting again.
const REACH_AGAIN: Duration = Duration::from_millis(200);

// === impl Silence ===

impl Silence {
    /// What `work` gives, unless the daemon is silent meanwhile for longer than it may.
    async fn bound<T>(&self, work: impl Future<Output = T>) -> Result<T, String> {
        let began = Instant::now();
        tokio::pin!(work);
        loop {
            let until = began.max(self.broken()) + self.limit;
            match tokio::time::timeout_at(until, &mut work).await {
                Ok(done) => return Ok(done),
                // Another connection may have had its turn.
                Err(_) if self.broken() + self.limit > until => {}
                Err(_) => return Err(self.end(format!("silent for {:?}", self.limit))),
            }
        }
    }

    fn broken(&self) -> Instant {
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn break_now(&self) {
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn end(&self, why: String) -> String {
        let why = self.why.get_or_init(|| why).clone();
        self.over.cancel();
        why
    }
}

// === impl NodeSource ===

impl NodeSource {
    /// A model of the daemon that `client` talks to; `limit` is how long that may be silent.
    pub(super) fn new(client: Client, manifest: Manifest, limit: Duration) -> Self {
        let broken = Arc::new(Mutex::new(Instant::now()));
        let silence = Silence { limit, broken, over: CancellationToken::new(), why: Arc::default() };
        Self { client, manifest, silence }
    }

    /// Ends when the daemon was silent for too long, with how that showed.
    pub(super) fn gone(&self) -> impl Future<Output = String> + use<> {
        let silence = self.silence.clone();
        async move {
            silence.over.cancelled().await;
            silence.why.get().cloned().unwrap_or_default()
        }
    }

    /// Opens a blob at the daemon, again and again while that does not let itself be reached at all.
    async fn reach(
        &self,
        hash: &Hash,
        range: Range<u64>,
    ) -> Result<BoxStream<'static, Result<Bytes, ClientError>>, SourceError> {
        let unavailable = |detail| SourceError::Unavailable { what: self.client.to_string(), detail };
        let began = Instant::now();
        loop {
            let outcome = self.silence.bound(self.client.blob(hash, range.clone())).await.map_err(unavailable)?;
            match outcome {
                Ok(body) => return Ok(body),
                Err(error) if !error.is_transport() => return Err(self.explain(&error)),
                Err(error) if began.elapsed() >= self.silence.limit => {
                    return Err(unavailable(self.silence.end(error.to_string())));
                }
                Err(_) => tokio::time::sleep(REACH_AGAIN).await,
            }
        }
    }

    /// A stand-in: the model was named to the daemon, here it is known by its manifest alone.
    pub(super) fn reference(&self) -> Reference {
        Reference {
            scheme: Scheme::Http,
            authority: "node".to_owned(),
            place: format!("v1/manifests/{}", self.manifest.digest()),
            revision: None,
            selection: Selection::default(),
        }
    }

    fn explain(&self, error: &ClientError) -> SourceError {
        let what = self.client.to_string();
        let detail = error.to_string();
        match error.kind() {
            ErrorKind::NotFound => SourceError::NotFound { what: detail },
            ErrorKind::Denied => SourceError::Denied { what, detail },
            _ => SourceError::Unavailable { what, detail },
        }
    }
}

#[async_trait]
impl RangeSource for NodeSource {
    async fn open(&self, file: &RemoteFile, range: Range<u64>) -> Result<RangeBody, SourceError> {
        let hash =
            file.blake3.ok_or_else(|| SourceError::Invalid { detail: format!("{} has no digest", file.path) })?;
        let start = range.start;
        let body = self.reach(&hash, range).await?;
        let state = (body, self.silence.clone(), self.client.to_string());
        let stream = stream::unfold(Some(state), |state| async move {
            let (mut body, silence, what) = state?;
            let detail = match silence.bound(body.next()).await {
                Ok(None) => return None,
                Ok(Some(Ok(piece))) => {
                    silence.break_now();
                    return Some((Ok(piece), Some((body, silence, what))));
                }
                Ok(Some(Err(error))) => error.to_string(),
                Err(silent) => silent,
            };
            Some((Err(SourceError::Unavailable { what, detail }), None))
        });
        Ok(RangeBody { start, ignores_ranges: false, bytes: pieces(stream.boxed()) })
    }
}

#[async_trait]
impl Origin for NodeSource {
    async fn resolve(&self, _reference: &Reference) -> Result<Resolution, SourceError> {
        let digest = self.manifest.digest();
        let files = self
            .manifest
            .files()
            .iter()
            .map(|entry| RemoteFile {
                path: entry.path.clone(),
                size: entry.size,
                locator: entry.blake3.to_string(),
                validator: Validator::Strong(entry.blake3.to_string()),
                declared: Vec::new(),
                blake3: Some(entry.blake3),
                outboard: None,
            })
            .collect();
        Ok(Resolution {
            origin: OriginId::new(format!("node+{}/{digest}", self.client)),
            revision: Some(Revision::Manifest(digest)),
            files,
            manifest: Some(self.manifest.clone()),
        })
    }
}
