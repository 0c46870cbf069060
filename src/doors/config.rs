//! Settings of the doors.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::units::Span;

/// Settings of the native API.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the HTTP API. Off loopback a token is required.
    pub listen: String,
    /// Unix socket of the API; empty for none.
    pub socket: PathBuf,
    /// Mode of the socket: whoever may write to it may use the API as their own user.
    pub socket_mode: u32,
    /// File with the bearer token that TCP callers must send.
    pub token_file: Option<PathBuf>,
    /// Connections served at once; more wait in the kernel's queue.
    pub connections_max: usize,
    /// How long a client may take to send its request header.
    pub header_timeout: Span,
    /// How long a client may take nothing of its answer. At a tenth, one that is stopped for a moment loses it.
    pub write_timeout: Span,
    /// How long running answers may take to end at shutdown.
    pub drain_timeout: Span,
}

/// A setting that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {detail}")]
pub struct ConfigError {
    /// Which key.
    pub key: &'static str,
    /// What is wrong and what to write.
    pub detail: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7420".to_owned(),
            socket: PathBuf::from("/run/preheat/preheat.sock"),
            socket_mode: 0o660,
            token_file: None,
            // A node has tens of pods; what connections hold beside what they share stays within a small limit.
            connections_max: 1024,
            header_timeout: Span(Duration::from_secs(10)),
            write_timeout: Span(Duration::from_secs(60)),
            drain_timeout: Span(Duration::from_secs(30)),
        }
    }
}

// === impl Config ===

impl Config {
    /// The address to listen on.
    ///
    /// # Errors
    /// When it is not one, or is reachable from outside without a token.
    pub fn address(&self) -> Result<SocketAddr, ConfigError> {
        let error = |detail: String| ConfigError { key: "server.listen", detail };
        let address: SocketAddr = self.listen.replace("localhost:", "127.0.0.1:").parse().map_err(|_| {
            error(format!("`{}` is not HOST:PORT with a numeric address, e.g. 127.0.0.1:7420", self.listen))
        })?;
        if !address.ip().is_loopback() && self.token_file.is_none() {
            return Err(error(format!(
                "{address} is reachable from other machines: set server.token_file (--token-file), or listen on 127.0.0.1"
            )));
        }
        Ok(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn off_loopback_needs_a_token() {
        let listen = |listen: &str, token: bool| {
            let token_file = token.then(|| PathBuf::from("/token"));
            Config { listen: listen.to_owned(), token_file, ..Config::default() }.address()
        };
        assert!(
            listen("127.0.0.1:0", false).is_ok()
                && listen("[::1]:1", false).is_ok()
                && listen("localhost:1", false).is_ok()
        );
        assert!(listen("0.0.0.0:1", true).is_ok());
        assert!(listen("0.0.0.0:1", false).unwrap_err().to_string().contains("token"));
        assert!(listen("nonsense", true).is_err());
    }
}
