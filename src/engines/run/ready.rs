//! Whether the engine is ready: an answer of 200, a line of its output, a file. A question that nobody answers costs nothing and
//! decides nothing.

use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::super::profile::Ready;
use crate::base::lifecycle::CancellationToken;

/// Between two questions: small beside any start, and nothing to a server.
const PAUSE: Duration = Duration::from_millis(100);

/// Longest wait for one answer: an engine that is busy compiling answers late.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `GET path` on this machine's `port` answers 200.
    Http {
        /// Where.
        port: u16,
        /// What.
        path: String,
    },
    /// A line of output has this in it.
    Line(String),
    /// This file exists.
    File(PathBuf),
    /// The command ends well.
    Exit,
}

// === impl Probe ===

impl Probe {
    /// What a profile says.
    #[must_use]
    pub fn of(ready: Option<Ready>) -> Self {
        match ready {
            Some(Ready { path: Some(path), port: Some(port), .. }) => Self::Http { port, path },
            Some(Ready { line: Some(line), .. }) => Self::Line(line),
            Some(Ready { file: Some(file), .. }) => Self::File(file),
            _ => Self::Exit,
        }
    }

    /// Returns once it is so. A line is told of by `seen`; an exit is for others to see.
    pub(super) async fn wait(&self, seen: &CancellationToken) {
        match self {
            Self::Http { port, path } => {
                while !answers(*port, path).await {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Self::File(path) => {
                while !path.exists() {
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Self::Line(_) => seen.cancelled().await,
            Self::Exit => std::future::pending().await,
        }
    }
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
                Ok(Self::Http { port, path: format!("/{path}") })
            }
            Some(("line", rest)) if !rest.is_empty() => Ok(Self::Line(rest.to_owned())),
            Some(("file", rest)) if !rest.is_empty() => Ok(Self::File(rest.into())),
            None if text == "exit" => Ok(Self::Exit),
            _ => Err(wrong()),
        }
    }
}

async fn answers(port: u16, path: &str) -> bool {
    tokio::time::timeout(PATIENCE, ask(port, path)).await.is_ok_and(|answer| answer.unwrap_or(false))
}

async fn ask(port: u16, path: &str) -> std::io::Result<bool> {
    let stream = match TcpStream::connect(("127.0.0.1", port)).await {
        Err(_) => TcpStream::connect(("::1", port)).await?,
        Ok(stream) => stream,
    };
    let (mut reader, mut writer) = stream.into_split();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    writer.write_all(request.as_bytes()).await?;
    let mut head = [0; 12];
    reader.read_exact(&mut head).await?;
    Ok(&head[..5] == b"HTTP/" && &head[8..] == b" 200")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probes_are_written_in_one_way() {
        for (text, probe) in [
            ("http:8000/health", Probe::Http { port: 8000, path: "/health".to_owned() }),
            ("http:8000", Probe::Http { port: 8000, path: "/health".to_owned() }),
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
        assert!(!answers(port, "/ok").await);
        assert!(answers(port, "/ok").await);
        server.await.unwrap();
        assert!(!answers(port, "/ok").await, "nobody is there");
    }
}
