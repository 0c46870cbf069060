//! Listening and serving. One accept loop a listener; each connection is served under a permit, so that a flood waits in the
//! kernel's queue and not in our memory.

use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::Semaphore;

use super::api::router;
use super::draining::Draining;
use super::{Caller, Config, Node};
use crate::base::ErrorKind;
use crate::base::lifecycle::{CancellationToken, Gate};
use crate::sys::peer::peer_of;

/// Largest request header: a path, a range, a token.
const HEADER_BYTES: usize = 16 * 1024;

/// After an accept fails for lack of descriptors, others need time to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Listeners that are bound and not yet served.
#[derive(Debug)]
pub struct Bound {
    tcp: TcpListener,
    unix: Option<(UnixListener, PathBuf)>,
    connections: Arc<Semaphore>,
    header_timeout: Duration,
    write_timeout: Duration,
}

/// An address that cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The TCP address.
    #[error("listen on {address}: {source}; is another daemon running there? Choose another with --listen HOST:PORT")]
    Tcp {
        /// Which.
        address: SocketAddr,
        /// The system's word.
        source: std::io::Error,
    },
    /// The Unix socket is in use.
    #[error("listen on {0}: a daemon answers there; stop it, or choose another with --socket PATH")]
    SocketInUse(PathBuf),
    /// The Unix socket cannot be made.
    #[error("listen on {path}: {source}; choose another with --socket PATH")]
    Socket {
        /// Which.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
}

// === impl BindError ===

impl BindError {
    /// What it means to whoever has to act.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Tcp { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => ErrorKind::Busy,
            Self::SocketInUse(_) => ErrorKind::Busy,
            Self::Tcp { source, .. } | Self::Socket { source, .. } => ErrorKind::of_io(source),
        }
    }
}

/// Binds the TCP address and, where one is set, the Unix socket.
///
/// # Errors
/// [`BindError`]
pub async fn bind(config: &Config, address: SocketAddr) -> Result<Bound, BindError> {
    let tcp = TcpListener::bind(address).await.map_err(|source| BindError::Tcp { address, source })?;
    let unix = if config.socket.as_os_str().is_empty() {
        None
    } else {
        match bind_socket(&config.socket, config.socket_mode).await {
            Ok(listener) => Some((listener, config.socket.clone())),
            // Nobody has asked for the default one, and a second daemon, or one of a plain user, cannot have it.
            Err(error) if config.socket == Config::default().socket => {
                tracing::warn!(%error, "serving over TCP only");
                None
            }
            Err(error) => return Err(error),
        }
    };
    let connections = Arc::new(Semaphore::new(config.connections_max.max(1)));
    let (header_timeout, write_timeout) = (config.header_timeout.0, config.write_timeout.0);
    Ok(Bound { tcp, unix, connections, header_timeout, write_timeout })
}

async fn bind_socket(path: &Path, mode: u32) -> Result<UnixListener, BindError> {
    let error = |source| BindError::Socket { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(error)?;
    }
    if let Ok(found) = path.symlink_metadata() {
        if !found.file_type().is_socket() {
            return Err(error(std::io::Error::new(
                std::io::ErrorKind::AlreadyExists,
                "a file that is no socket is there",
            )));
        }
        // A socket that nobody answers on was left by a killed daemon.
        if UnixStream::connect(path).await.is_ok() {
            return Err(BindError::SocketInUse(path.to_owned()));
        }
        std::fs::remove_file(path).map_err(error)?;
    }
    let listener = UnixListener::bind(path).map_err(error)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(error)?;
    Ok(listener)
}

// === impl Bound ===

impl Bound {
    /// The TCP address, with the port that was chosen.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The Unix socket, if there is one.
    #[must_use]
    pub fn socket(&self) -> Option<&PathBuf> {
        self.unix.as_ref().map(|(_, path)| path)
    }

    /// Serves until `stop`; then takes no more connections. Those under way are held by `gate`.
    pub async fn serve(self, node: Node, stop: CancellationToken, gate: &Gate) {
        let Self { tcp, unix, connections, header_timeout, write_timeout } = self;
        // Made once: describing thirty routes takes a millisecond, which a connection for one request would pay each time.
        let router = router(node);
        let serving =
            Serving { router, connections, header_timeout, write_timeout, stop: stop.clone(), gate: gate.clone() };
        let over_tcp = serving.clone();
        let tcp_loop = async move {
            loop {
                let permit = Arc::clone(&over_tcp.connections).acquire_owned().await;
                match tcp.accept().await {
                    Ok((stream, _)) => {
                        // Answers are small or already batched.
                        let _ = stream.set_nodelay(true);
                        over_tcp.connection(stream, Caller::Network, permit.ok());
                    }
                    Err(error) => pause(&error).await,
                }
            }
        };
        let unix_loop = async move {
            let Some((listener, path)) = unix else { return std::future::pending().await };
            let _remove = RemoveOnDrop(path);
            loop {
                let permit = Arc::clone(&serving.connections).acquire_owned().await;
                match listener.accept().await {
                    Ok((stream, _)) => match peer_of(&stream) {
                        Ok(peer) => serving.connection(stream, Caller::Local { uid: peer.uid }, permit.ok()),
                        Err(error) => tracing::warn!(%error, "a local caller could not be identified"),
                    },
                    Err(error) => pause(&error).await,
                }
            }
        };
        tokio::select! {
            () = tcp_loop => {}
            () = unix_loop => {}
            () = stop.cancelled() => {}
        }
    }
}

async fn pause(error: &std::io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        // A new daemon removes what is left.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What every connection needs.
#[derive(Clone)]
struct Serving {
    router: Router,
    connections: Arc<Semaphore>,
    header_timeout: Duration,
    write_timeout: Duration,
    stop: CancellationToken,
    gate: Gate,
}

// === impl Serving ===

impl Serving {
    fn connection<S>(&self, stream: S, caller: Caller, permit: Option<tokio::sync::OwnedSemaphorePermit>)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let routes = TowerToHyperService::new(self.router.clone());
        let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(caller);
            routes.call(request)
        });
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(self.header_timeout)
            .max_buf_size(HEADER_BYTES.max(8192))
            .half_close(false);
        let stop = self.stop.clone();
        let stream = Draining::new(stream, self.write_timeout);
        let _task = self.gate.spawn("connection", async move {
            let connection = http.serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            // A client that goes away or misbehaves ends its own connection; it is no event for us.
            tokio::select! {
                _ = connection.as_mut() => {}
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                }
            }
            drop(permit);
        });
    }
}
