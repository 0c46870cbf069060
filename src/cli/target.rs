//! Finding the daemon: what is named, else the socket, else the address in the environment. A daemon that is absent, hangs or
//! is broken must never make a start slower than having none, so every step has a deadline and its failure is a note, not
//! an error.

use std::path::PathBuf;
use std::time::Duration;

use super::args::{DaemonArgs, PassCredential};
use super::error::CliError;
use super::words;
use crate::base::ErrorKind;
use crate::doors::client::{Client, ClientError, Target};
use crate::model::source::SourceError;
use crate::model::{Reference, Scheme};
use crate::origin::own_credential;

/// Where the DaemonSet puts the socket, and where everybody looks for it.
pub(super) const DEFAULT_SOCKET: &str = "/run/preheat/preheat.sock";

/// The daemons to try, in order.
pub(super) fn candidates(args: &DaemonArgs) -> Result<Vec<Client>, CliError> {
    let token = args.token_file.as_ref().map(|file| read_token(file)).transpose()?;
    let mut targets = Vec::new();
    if let Some(named) = &args.daemon {
        targets.push(parse(named)?);
    } else {
        let socket = std::env::var_os("PREHEAT_SOCKET").map_or_else(|| PathBuf::from(DEFAULT_SOCKET), PathBuf::from);
        if socket.exists() {
            targets.push(Target::Unix(socket));
        }
        if let Ok(address) = std::env::var("PREHEAT_ADDR")
            && !address.is_empty()
        {
            // The variable is often written as HOST:PORT.
            let named = if address.contains("://") || address.starts_with("unix:") {
                address
            } else {
                format!("http://{address}")
            };
            targets.push(parse(&named)?);
        }
    }
    Ok(targets.into_iter().map(|target| Client::new(target, token.clone())).collect())
}

/// The one daemon that a verb without fallback talks to.
pub(super) fn required(args: &DaemonArgs) -> Result<Client, CliError> {
    candidates(args)?.into_iter().next().ok_or_else(|| {
        CliError::new(
            ErrorKind::Unavailable,
            format!("no daemon: {DEFAULT_SOCKET} does not exist and PREHEAT_ADDR is not set; start `preheat serve` or give --daemon"),
        )
    })
}

/// The client, with the credential that this process has for the origin of `reference`, where it may be shown to that daemon.
///
/// # Errors
/// For a credential that cannot be read.
pub(super) fn with_credential(
    client: Client,
    reference: &Reference,
    pass: PassCredential,
) -> Result<Client, SourceError> {
    if !passes(&client, pass) {
        return Ok(client);
    }
    let credential = own_credential(reference)?;
    Ok(client.with_credential(credential))
}

/// The same for a set, which goes with one credential: it is shown to the origins of all its models, so it is passed only if it is
/// that of all of them. A hub's token must not reach a web server that happens to be in the same set.
///
/// # Errors
/// For a credential that cannot be read.
pub(super) fn with_shared_credential(
    client: Client,
    references: &[Reference],
    pass: PassCredential,
) -> Result<Client, SourceError> {
    if !passes(&client, pass) {
        return Ok(client);
    }
    // Directories are shown none.
    let shown = references.iter().filter(|reference| reference.scheme != Scheme::File);
    let mut credentials = shown.map(own_credential).collect::<Result<Vec<_>, _>>()?;
    credentials.dedup();
    match <[_; 1]>::try_from(credentials) {
        Ok([credential]) => Ok(client.with_credential(credential)),
        Err(several) => {
            if several.iter().any(Option::is_some) {
                eprintln!(
                    "preheat: no credential is passed: the origins of this set do not share one; ask for each by itself, or have \
                     the daemon use its own"
                );
            }
            Ok(client)
        }
    }
}

fn passes(client: &Client, pass: PassCredential) -> bool {
    match pass {
        PassCredential::Auto => client.is_local(),
        PassCredential::Always => true,
        PassCredential::Never => false,
    }
}

/// An answer of the daemon, which has `patience` for it.
///
/// # Errors
/// The daemon's own, or `Timeout`.
pub(super) async fn answered<T>(
    client: &Client,
    patience: Duration,
    call: impl Future<Output = Result<T, ClientError>>,
) -> anyhow::Result<T> {
    match tokio::time::timeout(patience, call).await {
        Ok(answer) => Ok(answer?),
        Err(_) => {
            let patience = words::seconds(patience.as_secs_f64());
            Err(CliError::new(ErrorKind::Timeout, format!("{client} did not answer within {patience}")).into())
        }
    }
}

/// `--daemon-timeout` as a duration.
pub(super) fn patience(args: &DaemonArgs) -> Duration {
    args.daemon_timeout.0
}

fn parse(text: &str) -> Result<Target, CliError> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(Target::Unix(PathBuf::from(path.strip_prefix("//").unwrap_or(path))));
    }
    if text.contains('@') {
        // It would be in every message about the daemon.
        let detail = "a daemon's address has no user and password: give its token with --token-file FILE";
        return Err(CliError::invalid(detail));
    }
    match url::Url::parse(text) {
        Ok(url) if url.scheme() == "http" && url.host_str().is_some() => Ok(Target::Http(url)),
        _ => {
            Err(CliError::invalid(format!("`{text}` is not a daemon: write http://HOST:PORT or unix:/path/to/socket")))
        }
    }
}

fn read_token(file: &std::path::Path) -> Result<String, CliError> {
    match std::fs::read_to_string(file) {
        Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
        Ok(_) => Err(CliError::invalid(format!("token file {} is empty", file.display()))),
        Err(error) => Err(CliError::invalid(format!("read token file {}: {error}", file.display()))),
    }
}
