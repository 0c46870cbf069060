//! Whether the engine is ready: an answer of 200, a line of its output, a file. A question that nobody answers costs nothing and
//! decides nothing. Where to ask is in the command itself: its address, its port, its socket; what speaks TLS only is listened to.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use super::super::profile::Ready;
use crate::base::lifecycle::CancellationToken;

/// Between two questions: small beside any start, and nothing to a server.
const PAUSE: Duration = Duration::from_millis(100);

/// Longest wait for one answer: an engine that is busy compiling answers late.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `GET path` at `port` answers 200.
    Http {
        /// At which address; `None`: on this machine.
        host: Option<String>,
        /// Where.
        port: u16,
        /// What.
        path: String,
    },
    /// The same on a Unix socket.
    Unix {
        /// Where.
        socket: PathBuf,
        /// What.
        path: String,
    },
    /// A line of output has this in it.
    Line(String),
    /// This file exists.
    File(PathBuf),
    /// The command ends well.
    Exit,
    /// It serves others and tells nobody.
    Silent,
}

// === impl Probe ===

impl Probe {
    /// What a profile says of this command.
    #[must_use]
    pub fn of(ready: Option<Ready>, argv: &[String]) -> Self {
        let Some(ready) = ready else { return Self::Exit };
        let is = |word: &String, name: &String| word == name || word.rsplit('/').next() == Some(name.as_str());
        if !ready.serves.is_empty() && !argv.iter().any(|word| ready.serves.iter().any(|name| is(word, name))) {
            // It measures, or works through a list.
            return Self::Exit;
        }
        if has(argv, &ready.silent_arguments) {
            return Self::Silent;
        }
        let otherwise = |line: Option<String>| line.map_or(Self::Silent, Self::Line);
        match ready {
            Ready { path: Some(path), port: Some(port), .. } => {
                if let Some(socket) = value(argv, &ready.socket_arguments) {
                    return Self::Unix { socket: socket.into(), path };
                }
                if has(argv, &ready.tls_arguments) {
                    return otherwise(ready.line_otherwise);
                }
                // Who listens everywhere listens here as well.
                let host = value(argv, &ready.host_arguments);
                let host = host.filter(|host| !matches!(host.as_str(), "" | "*" | "0.0.0.0" | "::" | "[::]"));
                let host = host.map(|host| host.trim_matches(['[', ']']).to_owned());
                Self::Http { host, port, path }
            }
            Ready { line: Some(line), .. } => Self::Line(line),
            Ready { file: Some(file), .. } => Self::File(file),
            _ => Self::Exit,
        }
    }

    /// Whether somebody answers: before the command is started that is somebody else.
    pub(super) async fn answers(&self) -> bool {
        let asked = async {
            match self {
                Self::Http { host, port, path } => ask_tcp(host.as_deref(), *port, path).await,
                Self::Unix { socket, path } => ask(UnixStream::connect(socket).await?, path).await,
                _ => Ok(false),
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.is_ok_and(|answer| answer.unwrap_or(false))
    }

    /// Returns once it is so. A line is told of by `seen`; an exit is for others to see. `other`: somebody else has answered before
    /// the start, and is waited for to be gone first.
    pub(super) async fn wait(&self, seen: &CancellationToken, other: bool) {
        match self {
            Self::Http { .. } | Self::Unix { .. } => {
                while other && self.answers().await {
                    tokio::time::sleep(PAUSE).await;
                }
                while !self.answers().await {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Self::File(path) => {
                while !path.exists() {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Self::Line(_) => seen.cancelled().await,
            Self::Exit | Self::Silent => std::future::pending().await,
        }
    }
}

/// The value of the first of these options, written as `--x V` or `--x=V`.
fn value(argv: &[String], names: &[String]) -> Option<String> {
    let of = |name: &String| {
        argv.iter().enumerate().find_map(|(at, word)| match word.strip_prefix(name.as_str())? {
            "" => argv.get(at + 1).cloned(),
            rest => rest.strip_prefix('=').map(str::to_owned),
        })
    };
    names.iter().find_map(of)
}

fn has(argv: &[String], names: &[String]) -> bool {
    let is = |word: &String, name: &String| {
        word.strip_prefix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    };
    argv.iter().any(|word| names.iter().any(|name| is(word, name)))
}

impl std::str::FromStr for Probe {
    type Err = String;

    /// `http:PORT/PATH`, `line:TEXT`, `file:PATH` or `exit`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}`: write http:PORT/PATH, line:TEXT, file:PATH or exit");
        match text.split_once(':') {
            Some(("http", rest)) => {
                let (port, path) = rest.split_once('/').unwrap_or((rest, "health"));
                let plain = path.bytes().all(|byte| byte.is_ascii_graphic());
                let port = port.parse().ok().filter(|port| *port > 0 && plain).ok_or_else(wrong)?;
                Ok(Self::Http { host: None, port, path: format!("/{path}") })
            }
            Some(("line", rest)) if !rest.is_empty() => Ok(Self::Line(rest.to_owned())),
            Some(("file", rest)) if !rest.is_empty() => Ok(Self::File(rest.into())),
            None if text == "exit" => Ok(Self::Exit),
            _ => Err(wrong()),
        }
    }
}

async fn ask_tcp(host: Option<&str>, port: u16, path: &str) -> std::io::Result<bool> {
    let stream = match host {
        Some(host) => TcpStream::connect((host, port)).await?,
        None => match TcpStream::connect(("127.0.0.1", port)).await {
            Err(_) => TcpStream::connect(("::1", port)).await?,
            Ok(stream) => stream,
        },
    };
    ask(stream, path).await
}

async fn ask(mut stream: impl AsyncRead + AsyncWrite + Unpin, path: &str) -> std::io::Result<bool> {
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut head = [0; 12];
    stream.read_exact(&mut head).await?;
    Ok(&head[..5] == b"HTTP/" && &head[8..] == b" 200")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_written_in_one_way() {
        for (text, probe) in [
            ("http:8000/health", Probe::Http { host: None, port: 8000, path: "/health".to_owned() }),
            ("http:8000", Probe::Http { host: None, port: 8000, path: "/health".to_owned() }),
            ("line:fired up: go", Probe::Line("fired up: go".to_owned())),
            ("file:/tmp/x", Probe::File("/tmp/x".into())),
            ("exit", Probe::Exit),
        ] {
            assert_eq!(text.parse(), Ok(probe));
        }
        for wrong in ["", "http:", "http:0/x", "http:x/y", "http:80/a b", "line:", "soon", "file:"] {
            assert!(wrong.parse::<Probe>().is_err(), "{wrong}");
        }
    }

    #[tokio::test]
    async fn only_200_is_ready() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            for answer in ["HTTP/1.1 503 Busy\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"] {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = [0; 17];
                stream.read_exact(&mut request).await.unwrap();
                assert_eq!(&request, b"GET /ok HTTP/1.1\r");
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let probe = Probe::Http { host: None, port, path: "/ok".to_owned() };
        assert!(!probe.answers().await);
        assert!(probe.answers().await);
        server.await.unwrap();
        assert!(!probe.answers().await, "nobody is there");
    }

    #[tokio::test]
    async fn somebody_else_who_answers_is_not_the_command() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
            }
        });
        let (probe, seen) = (Probe::Http { host: None, port, path: "/".to_owned() }, CancellationToken::new());
        let soon = |other| tokio::time::timeout(Duration::from_millis(500), probe.wait(&seen, other));
        assert!(soon(false).await.is_ok());
        assert!(soon(true).await.is_err(), "it was there before");
        server.abort();
    }

    #[tokio::test]
    async fn a_socket_is_asked_as_well() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let probe = Probe::Unix { socket, path: "/health".to_owned() };
        let served = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 16];
            stream.read_exact(&mut request).await.unwrap();
            assert_eq!(&request, b"GET /health HTTP");
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        };
        assert!(tokio::join!(probe.answers(), served).0);
    }

    #[test]
    fn where_to_ask_is_in_the_command() {
        let profiles = super::super::super::profile::built_in();
        let of = |name: &str, line: &str| {
            let ready = profiles.iter().find(|profile| profile.name == name).unwrap().ready.clone();
            Probe::of(ready, &line.split(' ').map(str::to_owned).collect::<Vec<_>>())
        };
        let http =
            |host: Option<&str>| Probe::Http { host: host.map(str::to_owned), port: 8000, path: "/health".to_owned() };
        assert_eq!(of("vllm", "vllm serve m"), http(None));
        assert_eq!(of("vllm", "/usr/bin/vllm serve m --host 0.0.0.0"), http(None));
        assert_eq!(of("vllm", "vllm serve m --host 10.1.2.3"), http(Some("10.1.2.3")));
        assert_eq!(of("vllm", "python -m vllm.entrypoints.openai.api_server --host=::1"), http(Some("::1")));
        assert_eq!(of("vllm", "vllm serve m --headless"), Probe::Silent);
        let socket = Probe::Unix { socket: "/run/v.sock".into(), path: "/health".to_owned() };
        assert_eq!(of("vllm", "vllm serve m --uds /run/v.sock"), socket);
        let line = Probe::Line("Application startup complete".to_owned());
        assert_eq!(of("vllm", "vllm serve m --ssl-keyfile=k --ssl-certfile=c"), line);
        assert_eq!(of("sglang", "python -m sglang.launch_server --ssl-certfile c"), line);
        for batch in ["vllm bench latency --model m", "vllm run-batch -i a -o b", "python -m vllm.benchmarks.latency"] {
            assert_eq!(of("vllm", batch), Probe::Exit, "{batch}");
        }
        assert_eq!(of("trtllm-engine", "trtllm-build --checkpoint_dir d"), Probe::Exit);
        assert_eq!(Probe::of(None, &[]), Probe::Exit);
    }
}
