//! An origin as far away as it is told to be, for what a loopback cannot show: the round trips of a new connection, a wait before
//! each first byte, a rate that one connection has, a link that all share, connections that fall silent, TLS. It also serves models
//! that it makes while they are read, larger than this machine could store twice.
//!
//! A thread a connection, blocking: what it costs must be little and the same whoever asks. The kernel's own means for this
//! (netem) are missing on many machines.

mod answer;
mod pace;
mod routes;

use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ProtocolVersion, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// HOST:PORT
    listen: String,
    /// Files below it are served under their paths
    #[arg(long)]
    root: Option<PathBuf>,
    /// A table of further paths, as JSON
    #[arg(long)]
    routes: Option<PathBuf>,
    /// A model that is made while it is read: NAME=SHARDSxBYTES
    #[arg(long)]
    made: Vec<String>,
    /// Certificate and key, in one PEM file: speaks TLS
    #[arg(long)]
    tls: Option<PathBuf>,
    #[command(flatten)]
    pace: pace::Pace,
}

/// All that connections share.
pub(crate) struct Site {
    routes: HashMap<String, routes::Route>,
    link: pace::Link,
    bytes: AtomicU64,
    requests: AtomicU64,
}

/// Serves until it is killed.
pub(crate) fn run(arguments: &Arguments) -> Result<Value> {
    let mut routes = match &arguments.routes {
        Some(path) => routes::table(path)?,
        None => HashMap::new(),
    };
    if let Some(root) = &arguments.root {
        routes::directory(root, &mut routes)?;
    }
    for description in &arguments.made {
        routes::made(description, &mut routes)?;
    }
    let tls = arguments.tls.as_deref().map(server).transpose()?;
    let site = Arc::new(Site {
        routes,
        link: pace::Link::new(arguments.pace),
        bytes: AtomicU64::new(0),
        requests: AtomicU64::new(0),
    });
    let listener = TcpListener::bind(&arguments.listen).with_context(|| format!("listen on {}", arguments.listen))?;
    for stream in listener.incoming() {
        let (stream, site, tls) = (stream?, Arc::clone(&site), tls.clone());
        std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
            // Clients leave when they have what they want.
            let _ = serve(&site, stream, tls);
        })?;
    }
    Ok(json!({}))
}

fn serve(site: &Site, stream: TcpStream, tls: Option<Arc<ServerConfig>>) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut turn = site.link.turn();
    match tls {
        None => answer::converse(site, stream, &mut turn),
        Some(config) => {
            let (mut connection, mut stream) = (ServerConnection::new(config)?, stream);
            site.link.round_trip();
            while connection.is_handshaking() {
                connection.complete_io(&mut stream)?;
            }
            if connection.protocol_version() == Some(ProtocolVersion::TLSv1_2) {
                site.link.round_trip();
            }
            // A whole piece goes through at once.
            connection.set_buffer_limit(Some(1 << 20));
            answer::converse(site, StreamOwned::new(connection, stream), &mut turn)
        }
    }
}

fn server(path: &std::path::Path) -> Result<Arc<ServerConfig>> {
    let chain = CertificateDer::pem_file_iter(path)?
        .collect::<Result<Vec<_>, _>>()
        .with_context(|| format!("read {}", path.display()))?;
    let key = PrivateKeyDer::from_pem_file(path).with_context(|| format!("read the key in {}", path.display()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_no_client_auth().with_single_cert(chain, key)?))
}

// === impl Site ===

impl Site {
    /// What stands under a path, with its query or without.
    fn route(&self, path: &str, whole: &str) -> Option<&routes::Route> {
        self.routes.get(whole).or_else(|| self.routes.get(path))
    }

    fn counters(&self) -> String {
        json!({
            "bytes": self.bytes.load(Ordering::Relaxed),
            "requests": self.requests.load(Ordering::Relaxed),
            "stalls": self.link.stalls(),
        })
        .to_string()
    }
}
