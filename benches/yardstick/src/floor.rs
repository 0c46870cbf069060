//! The CPU floor: the least that a verified fetch can be. Blocking sockets, ranges over a few kept connections, each piece
//! hashed while it is in the core's own cache and then written at its place in a file whose length was set before.
//!
//! No TLS, no retries, no plan, no journal, no directory made durable: what is between this and preheat is what preheat's
//! promises cost.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use blake3::hazmat::HasherExt;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::{Value, json};
use sha2::Digest;

use super::turns;

/// The unit of hashing, as preheat has it.
const GROUP: u64 = 1 << 20;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// HOST:PORT
    server: String,
    /// What the files' paths begin with, such as /models/big/
    prefix: String,
    #[arg(required = true)]
    files: Vec<String>,
    /// Where they go; without it they are hashed only
    #[arg(long)]
    out: Option<PathBuf>,
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Bytes of one request
    #[arg(long, default_value_t = 64 << 20)]
    range: u64,
    /// Bytes between socket and file
    #[arg(long, default_value_t = 1 << 20)]
    piece: usize,
    /// Leaves the hashing out
    #[arg(long)]
    unhashed: bool,
    /// Computes SHA-256 as well, for which each file has to come in order over one connection
    #[arg(long)]
    sha256: bool,
    /// Speaks TLS with a server that the authority in this file vouches for
    #[arg(long)]
    authority: Option<PathBuf>,
}

/// A socket, or TLS on one.
trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// One file, and where its groups' values go.
struct Target {
    path: String,
    size: u64,
    file: Option<File>,
    values: Mutex<Vec<[u8; 32]>>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<Value> {
    ensure!(
        arguments.piece > 0 && arguments.range.is_multiple_of(GROUP),
        "a range is a whole number of groups of {GROUP} bytes"
    );
    let tls = arguments.authority.as_deref().map(client).transpose()?;
    let mut first = Connection::open(&arguments.server, tls.clone())?;
    let mut targets = Vec::new();
    for name in &arguments.files {
        let path = format!("{}{name}", arguments.prefix);
        let size = first.size(&path)?;
        let file = match &arguments.out {
            Some(directory) => {
                let file = File::create(directory.join(name)).with_context(|| format!("create {name}"))?;
                file.set_len(size)?;
                Some(file)
            }
            None => None,
        };
        targets.push(Target {
            path,
            size,
            file,
            values: Mutex::new(vec![[0; 32]; usize::try_from(size.div_ceil(GROUP))?]),
        });
    }
    drop(first);
    let length = if arguments.sha256 { u64::MAX } else { arguments.range };
    let step = usize::try_from(length)?;
    let ranges: Vec<(usize, u64)> = targets
        .iter()
        .enumerate()
        .flat_map(|(number, target)| (0..target.size).step_by(step).map(move |start| (number, start)))
        .collect();
    let next = AtomicU64::new(0);
    let (_, took) = turns::together(arguments.connections, |_| {
        let mut connection = Connection::open(&arguments.server, tls.clone())?;
        let mut piece = vec![0; arguments.piece];
        while let Some(&(number, start)) = ranges.get(usize::try_from(next.fetch_add(1, Ordering::Relaxed))?) {
            let target = &targets[number];
            let end = target.size.min(start.saturating_add(length));
            connection.range(target, start, end, &mut piece, arguments)?;
        }
        Ok(())
    })?;
    let bytes: u64 = targets.iter().map(|target| target.size).sum();
    Ok(json!({"bytes": bytes, "seconds": took.as_secs_f64(), "connections": arguments.connections}))
}

fn client(authority: &std::path::Path) -> Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(authority)? {
        roots.add(certificate?)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
}

/// One kept connection.
struct Connection {
    socket: BufReader<Box<dyn Stream>>,
    server: String,
}

// === impl Connection ===

impl Connection {
    fn open(server: &str, tls: Option<Arc<ClientConfig>>) -> Result<Self> {
        let socket = TcpStream::connect(server).with_context(|| format!("connect to {server}"))?;
        socket.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match tls {
            None => Box::new(socket),
            Some(config) => {
                let host = server.rsplit_once(':').map_or(server, |(host, _)| host).to_owned();
                Box::new(StreamOwned::new(ClientConnection::new(config, ServerName::try_from(host)?)?, socket))
            }
        };
        Ok(Self { socket: BufReader::with_capacity(8 << 10, stream), server: server.to_owned() })
    }

    fn size(&mut self, path: &str) -> Result<u64> {
        let (status, length) = self.ask("HEAD", path, "")?;
        ensure!(status == 200, "HEAD {path}: {status}");
        Ok(length)
    }

    fn range(&mut self, target: &Target, start: u64, end: u64, piece: &mut [u8], arguments: &Arguments) -> Result<()> {
        let (status, length) = self.ask("GET", &target.path, &format!("Range: bytes={start}-{}\r\n", end - 1))?;
        ensure!(status == 206 && length == end - start, "GET {}: {status} with {length} bytes", target.path);
        let (mut at, mut whole) = (start, sha2::Sha256::new());
        while at < end {
            let group = at / GROUP;
            let stop = ((group + 1) * GROUP).min(end);
            let mut hasher = blake3::Hasher::new();
            hasher.set_input_offset(group * GROUP);
            while at < stop {
                let length = piece.len().min(usize::try_from(stop - at)?);
                self.socket.read_exact(&mut piece[..length])?;
                if !arguments.unhashed {
                    hasher.update(&piece[..length]);
                }
                if arguments.sha256 {
                    whole.update(&piece[..length]);
                }
                if let Some(file) = &target.file {
                    file.write_all_at(&piece[..length], at)?;
                }
                at += length as u64;
            }
            if !arguments.unhashed {
                let mut values = target.values.lock().map_err(|_| anyhow::anyhow!("another thread panicked"))?;
                values[usize::try_from(group)?] = hasher.finalize_non_root();
            }
        }
        std::hint::black_box(whole.finalize());
        Ok(())
    }

    /// Sends a request and reads the head of the answer: its status and length.
    fn ask(&mut self, method: &str, path: &str, more: &str) -> Result<(u16, u64)> {
        let request = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\n{more}\r\n", self.server);
        self.socket.get_mut().write_all(request.as_bytes())?;
        let (mut line, mut status, mut length) = (String::new(), None, None);
        loop {
            line.clear();
            if self.socket.read_line(&mut line)? == 0 {
                bail!("{method} {path}: the connection ended");
            }
            let text = line.trim_end();
            if text.is_empty() {
                break;
            }
            if let Some(rest) = text.strip_prefix("HTTP/1.1 ") {
                status = rest.get(..3).and_then(|digits| digits.parse().ok());
            } else if let Some((name, value)) = text.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().ok();
            }
        }
        Ok((status.context("no status")?, length.context("no length")?))
    }
}
