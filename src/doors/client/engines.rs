//! The library by a daemon. What is captured is searched here and hashed there; what is restored was vouched for there and is hashed
//! here, on its way to its place.
//!
//! A daemon on this machine says where a pack lies, and who may open it reads it there: that saves sending gigabytes through a
//! socket. Who may not is sent it.
//!
//! That a bundle was vouched for is the daemon's word. Over a network, where anybody may speak for it, the caller looks at the
//! signature itself ([`Trust`]).

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::Method;
use hyper::body::{Frame, Incoming};
use tokio::sync::mpsc;

use super::calls::{body, segment};
use super::{Client, ClientError};
use crate::base::ErrorKind;
use crate::doors::api::engines::{Begun, FILES_HEADER, LookupRequest, PACK_HEADER, ReleaseRequest, Shown, Wanted};
use crate::engines::{
    AttemptEnd, AttemptId, BundleRef, BundleView, Capture, Captured, Config, EngineError, InPlace, Library, Lookup,
    Near, Restored, RunReport, Sending, Trust, pack_of, unpack, unpack_stream, until_settled,
};
use crate::model::engine::EngineKey;
use crate::model::{Bundle, BundleId, Signature};
use crate::prewarm::wire::PinRequest;

/// Bundles of the node that a daemon serves.
#[derive(Clone, Debug)]
pub struct DaemonLibrary {
    client: Client,
    /// Whose signatures are looked for where the daemon's word is not enough. `None`: nobody's.
    trust: Option<Trust>,
}

/// Pieces of a body between the disk and the connection.
const PIECES: usize = 16;
/// Bytes of an archive that are read at once.
const CHUNK: usize = 256 << 10;
/// What a daemon may take for a lookup beyond the deadline that it is given.
const GRACE: Duration = Duration::from_secs(10);

impl From<ClientError> for EngineError {
    fn from(error: ClientError) -> Self {
        Self::Remote { kind: error.kind(), detail: error.to_string() }
    }
}

fn strange(detail: impl std::fmt::Display) -> EngineError {
    EngineError::Remote { kind: ErrorKind::Unavailable, detail: format!("the daemon answers wrongly: {detail}") }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(EngineError::Defect))
}

/// Pieces of a body, read as they come.
struct Pieces {
    arrived: mpsc::Receiver<Result<Bytes, ClientError>>,
    current: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        while self.current.is_empty() {
            match self.arrived.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.current = piece.map_err(std::io::Error::other)?,
            }
        }
        let taken = self.current.split_to(into.len().min(self.current.len()));
        into[..taken.len()].copy_from_slice(&taken);
        Ok(taken.len())
    }
}

/// Passes a body on to whoever reads its pieces.
async fn pass_on(client: Client, mut body: Incoming, pieces: mpsc::Sender<Result<Bytes, ClientError>>) {
    while let Some(frame) = body.frame().await {
        let piece = match frame.map(Frame::into_data) {
            Ok(Ok(piece)) => Ok(piece),
            // Trailers.
            Ok(Err(_)) => continue,
            Err(error) => Err(client.broken(&error)),
        };
        let ends = piece.is_err();
        if pieces.send(piece).await.is_err() || ends {
            return;
        }
    }
}

// === impl DaemonLibrary ===

impl DaemonLibrary {
    /// The library of a daemon; nothing is connected yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, trust: None }
    }

    /// The same, with what its user trusts.
    #[must_use]
    pub fn with_trust(self, trust: Trust) -> Self {
        Self { trust: Some(trust), ..self }
    }

    /// The document of a bundle that may be restored, and where its pack lies, or its files, where that is to be believed.
    async fn document(&self, wanted: &BundleRef) -> Result<(Bundle, Option<PathBuf>), EngineError> {
        let (id, sure) = (&wanted.id, self.client.is_sure());
        let path = format!("/v1/engines/{id}/document");
        let answer = self.client.send(Method::GET, &path, None, Vec::new()).await?;
        let place = [PACK_HEADER, FILES_HEADER].iter().find_map(|name| answer.headers().get(*name)).map(|value| {
            use std::os::unix::ffi::OsStrExt;
            PathBuf::from(std::ffi::OsStr::from_bytes(value.as_bytes()))
        });
        let document = self.client.read(answer).await?;
        if BundleId::of(&document) != *id {
            return Err(strange(format!("the document of bundle {id} hashes to {}", BundleId::of(&document))));
        }
        if !sure {
            let signature = self.shown(id).await?.signature;
            let signature = signature.map(|value| Signature::parse(value.to_string().as_bytes())).transpose()?;
            let trust = self.trust.clone().map_or_else(|| Trust::new(&Config::default()), Ok)?;
            trust.vouches(&self.client, &document, signature.as_ref())?;
        }
        let bundle = Bundle::parse(&document)?;
        if bundle.key.digest() != wanted.key {
            return Err(strange(format!(
                "bundle {id} is for the engine key {}, not {}",
                bundle.key.digest(),
                wanted.key
            )));
        }
        Ok((bundle, place.filter(|_| sure)))
    }

    async fn shown(&self, id: &BundleId) -> Result<Shown, ClientError> {
        self.client.json(Method::GET, &format!("/v1/engines/{id}"), Vec::new()).await
    }

    /// Where the files of a bundle lie that is used in place.
    fn files(&self, place: Option<PathBuf>) -> Result<PathBuf, EngineError> {
        let why = "is used where its node's store has it, and the daemon is on another machine";
        place.filter(|_| self.client.is_local()).ok_or_else(|| EngineError::refused("bundle", why))
    }

    async fn streamed(&self, id: &BundleId, bundle: Bundle, into: PathBuf) -> Result<Restored, EngineError> {
        let path = format!("/v1/engines/{id}/pack");
        let answer = self.client.send(Method::GET, &path, None, Vec::new()).await?;
        let (pieces, arrived) = mpsc::channel(PIECES);
        let restoring = blocking(move || {
            let mut pieces = Pieces { arrived, current: Bytes::new() };
            unpack_stream(&bundle, &mut pieces, &into)
        });
        let (restored, ()) = tokio::join!(restoring, pass_on(self.client.clone(), answer.into_body(), pieces));
        restored
    }

    async fn capture_once(&self, capture: &std::sync::Arc<Capture>) -> Result<Captured, EngineError> {
        let listed = std::sync::Arc::clone(capture);
        // Searched before anything is asked: a daemon keeps others waiting while it awaits bytes.
        let (mut sending, draft) = blocking(move || {
            let (mut sending, draft) = Sending::prepare(&listed)?;
            sending.search()?;
            Ok((sending, draft))
        })
        .await?;
        let wanted: Wanted = self.client.json(Method::POST, "/v1/engines", body(&draft)).await?;
        let upload = match wanted {
            Wanted::Done(captured) => return Ok(*captured),
            Wanted::Upload(upload) => upload,
        };
        let (pieces, arrived) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(PIECES);
        let reading = blocking(move || {
            let outcome = sending.read(&mut |bytes| {
                // A connection that is gone tells its own reason.
                let _ = pieces.blocking_send(Ok(Frame::data(Bytes::copy_from_slice(bytes))));
                Ok(())
            });
            if outcome.is_err() {
                // So that the daemon does not take what came for all of it.
                let _ = pieces.blocking_send(Err(std::io::ErrorKind::Interrupted.into()));
            }
            outcome
        });
        let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(arrived)).boxed_unsync();
        let path = format!("/v1/engines/captures/{}", segment(&upload));
        let kind = Some("application/octet-stream");
        let sent = async {
            let answer = self.client.send_body(Method::PUT, &path, None, kind, body).await?;
            let answer = self.client.read(answer).await?;
            serde_json::from_slice::<Captured>(&answer).map_err(strange)
        };
        let (read, captured) = tokio::join!(reading, sent);
        read?;
        captured
    }
}

#[async_trait]
impl Library for DaemonLibrary {
    async fn lookup(&self, key: &EngineKey, deadline: Duration) -> Result<Lookup, EngineError> {
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        let request = LookupRequest { key: key.clone(), deadline_ms };
        let asked = self.client.json(Method::POST, "/v1/engines/lookup", body(&request));
        match tokio::time::timeout(deadline + GRACE, asked).await {
            Ok(found) => {
                let found: Lookup = found?;
                match &found.exact {
                    Some(bundle) if bundle.key != key.digest() => {
                        Err(strange(format!("{} was looked up, and a bundle for {} found", key.digest(), bundle.key)))
                    }
                    _ => Ok(found),
                }
            }
            Err(_) => Err(EngineError::Timeout { what: "the daemon's lookup".to_owned() }),
        }
    }

    async fn restore(&self, bundle: &BundleRef, into: &Path) -> Result<Restored, EngineError> {
        let (document, place) = self.document(bundle).await?;
        if document.pack.is_none() {
            let (files, into) = (self.files(place)?, into.to_owned());
            return blocking(move || unpack_stream(&document, pack_of(&document, &files).as_mut(), &into)).await;
        }
        let pack = place.filter(|_| self.client.is_local()).and_then(|place| File::open(place).ok());
        if let Some(pack) = pack {
            let (document, into) = (document.clone(), into.to_owned());
            match blocking(move || unpack(&document, &pack, &into)).await {
                // The daemon finds it too when it reads it, and puts it aside.
                Err(error) if error.kind() == ErrorKind::Corrupt => {}
                outcome => return outcome,
            }
        }
        self.streamed(&bundle.id, document, into.to_owned()).await
    }

    async fn in_place(&self, bundle: &BundleRef) -> Result<InPlace, EngineError> {
        let (document, place) = self.document(bundle).await?;
        let files = self.files(place)?;
        let shown = blocking(move || InPlace::verify(&document, Some(&files))).await;
        if shown.as_ref().is_err_and(|error| error.kind() == ErrorKind::Corrupt) {
            self.client.whole(Method::POST, &format!("/v1/engines/{}/recheck", bundle.id), Vec::new()).await?;
        }
        shown
    }

    async fn capture(&self, capture: Capture) -> Result<Captured, EngineError> {
        let capture = std::sync::Arc::new(capture);
        until_settled(|| self.capture_once(&capture)).await
    }

    async fn begin_attempt(&self, bundle: &BundleId) -> Result<AttemptId, EngineError> {
        let path = format!("/v1/engines/{bundle}/attempts");
        let begun: Begun = self.client.json(Method::POST, &path, Vec::new()).await?;
        Ok(begun.attempt)
    }

    async fn end_attempt(&self, bundle: &BundleId, attempt: &AttemptId, end: AttemptEnd) -> Result<(), EngineError> {
        let path = format!("/v1/engines/{bundle}/attempts/{}", segment(&attempt.0));
        self.client.whole(Method::PUT, &path, body(&end)).await?;
        Ok(())
    }

    async fn release(&self, bundle: &BundleId, reason: &str) -> Result<BundleRef, EngineError> {
        let request = ReleaseRequest { reason: reason.to_owned() };
        Ok(self.client.json(Method::POST, &format!("/v1/engines/{bundle}/release"), body(&request)).await?)
    }

    async fn pin(
        &self,
        bundle: &BundleId,
        name: &str,
        reason: &str,
        lease: Option<u64>,
    ) -> Result<BundleRef, EngineError> {
        let request = PinRequest { reason: reason.to_owned(), lease_seconds: lease, ..PinRequest::default() };
        let path = format!("/v1/engines/{bundle}/pins/{}", segment(name));
        Ok(self.client.json(Method::PUT, &path, body(&request)).await?)
    }

    async fn unpin(&self, bundle: &BundleId, name: &str) -> Result<BundleRef, EngineError> {
        let path = format!("/v1/engines/{bundle}/pins/{}", segment(name));
        Ok(self.client.json(Method::DELETE, &path, Vec::new()).await?)
    }

    async fn list(&self) -> Result<Vec<Near>, EngineError> {
        Ok(self.client.json(Method::GET, "/v1/engines", Vec::new()).await?)
    }

    async fn show(&self, bundle: &BundleId) -> Result<BundleView, EngineError> {
        let shown = self.shown(bundle).await?;
        let signature = shown.signature.map(|value| Signature::parse(value.to_string().as_bytes())).transpose()?;
        Ok(BundleView {
            bundle: shown.bundle,
            document: Bundle::parse(shown.document.get().as_bytes())?,
            signature,
            refusal: shown.refusal,
        })
    }

    async fn pack(&self, bundle: &BundleId) -> Result<Box<dyn Read + Send>, EngineError> {
        let shown = self.shown(bundle).await?.bundle;
        if shown.in_place {
            let (document, place) = self.document(&shown).await?;
            return Ok(pack_of(&document, &self.files(place)?));
        }
        let path = format!("/v1/engines/{bundle}/pack");
        let answer = self.client.send(Method::GET, &path, None, Vec::new()).await?;
        let (pieces, arrived) = mpsc::channel(PIECES);
        // Ends when the body does, or when nobody reads any more.
        tokio::spawn(pass_on(self.client.clone(), answer.into_body(), pieces));
        Ok(Box::new(Pieces { arrived, current: Bytes::new() }))
    }

    async fn import(&self, mut archive: Box<dyn Read + Send>) -> Result<BundleRef, EngineError> {
        let (pieces, arrived) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(PIECES);
        let reading = blocking(move || {
            loop {
                let mut buffer = vec![0; CHUNK];
                match archive.read(&mut buffer) {
                    Ok(0) => return Ok(()),
                    Ok(read) => {
                        buffer.truncate(read);
                        if pieces.blocking_send(Ok(Frame::data(buffer.into()))).is_err() {
                            return Ok(());
                        }
                    }
                    Err(error) => {
                        let detail = format!("the archive cannot be read: {error}");
                        let _ = pieces.blocking_send(Err(error));
                        return Err(EngineError::Remote { kind: ErrorKind::Invalid, detail });
                    }
                }
            }
        });
        let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(arrived)).boxed_unsync();
        let sent = async {
            let kind = Some("application/octet-stream");
            let answer = self.client.send_body(Method::POST, "/v1/engines/import", None, kind, body).await?;
            let answer = self.client.read(answer).await?;
            serde_json::from_slice::<BundleRef>(&answer).map_err(strange)
        };
        let (read, imported) = tokio::join!(reading, sent);
        read?;
        imported
    }

    async fn report(&self, report: &RunReport) -> Result<(), EngineError> {
        self.client.whole(Method::POST, "/v1/engines/runs", body(report)).await?;
        Ok(())
    }
}
