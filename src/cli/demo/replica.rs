//! The replicas of the demonstration, and the node they start on.

use std::collections::VecDeque;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use futures_util::StreamExt;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use super::super::error::CliError;
use super::timeline::Replica;
use crate::base::ErrorKind;
use crate::base::units::MIB;

/// Connections and range size of a replica that pulls by itself: what common downloaders open by default.
const ALONE_CONNECTIONS: usize = 8;
const ALONE_PART: u64 = 16 * MIB;

/// A safetensors header is a few megabytes at most; ours never comes near.
const HEADER_LIMIT: u64 = 100 * MIB;

/// The machine as the demonstration sees it.
#[derive(Debug)]
pub(super) struct Node<'a> {
    /// This program.
    pub(super) binary: PathBuf,
    /// Where everything is kept.
    pub(super) scratch: &'a Path,
}

/// A running daemon; killed when dropped.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
    socket: PathBuf,
    root: PathBuf,
}

/// A replica that has started through preheat.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) replica: Replica,
    pub(super) manifest: String,
}

/// Starts `replicas` plain downloads of everything at once: ranged GETs on several connections each, nothing written and
/// nothing verified, which is better than real replicas do.
pub(super) async fn pull_alone(
    reference: &str,
    files: &[(String, u64)],
    replicas: usize,
) -> anyhow::Result<Vec<Replica>> {
    let client = reqwest::Client::builder().http1_only().no_proxy().build()?;
    let pulls = (0..replicas).map(|_| async {
        let started = Instant::now();
        let parts: VecDeque<(String, u64, u64)> = files
            .iter()
            .flat_map(|(name, size)| {
                (0..size.div_ceil(ALONE_PART)).map(move |part| {
                    (format!("{reference}/{name}"), part * ALONE_PART, ((part + 1) * ALONE_PART).min(*size))
                })
            })
            .collect();
        let parts = Arc::new(Mutex::new(parts));
        let connections = (0..ALONE_CONNECTIONS).map(|_| {
            let (client, parts) = (client.clone(), Arc::clone(&parts));
            async move {
                loop {
                    let next = parts.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                    let Some((url, start, end)) = next else { return anyhow::Ok(()) };
                    let answer = client.get(url).header("range", format!("bytes={start}-{}", end - 1)).send().await?;
                    let mut body = answer.error_for_status()?.bytes_stream();
                    while let Some(piece) = body.next().await {
                        piece?;
                    }
                }
            }
        });
        futures_util::future::try_join_all(connections).await?;
        let seconds = started.elapsed().as_secs_f64();
        // Its weights are in memory: the first tensor is there.
        anyhow::Ok(Replica { weights_seconds: seconds, first_tensor_seconds: seconds })
    });
    futures_util::future::try_join_all(pulls).await
}

// === impl Node ===

impl Node<'_> {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        // The demonstration is about its own node, whatever the caller's environment names.
        for variable in ["PREHEAT_ROOT", "PREHEAT_ADDR", "PREHEAT_SOCKET", "PREHEAT_CONFIG", "PREHEAT_TOKEN_FILE"] {
            command.env_remove(variable);
        }
        command.env("NO_PROXY", "127.0.0.1").kill_on_drop(true);
        command
    }

    /// Starts a daemon with an empty store, which may fetch below `allowed`, and waits until it listens.
    pub(super) async fn serve(&self, name: &str, allowed: &str) -> anyhow::Result<Daemon> {
        let socket = self.scratch.join(format!("{name}.sock"));
        let root = self.scratch.join(name);
        let mut child = self
            .command()
            .args(["serve", "--listen", "127.0.0.1:0", "--root"])
            .arg(&root)
            .arg("--socket")
            .arg(&socket)
            .args(["--allow-origin", allowed])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .env("PREHEAT_LOG", "warn")
            .spawn()
            .context("start the daemon")?;
        let stdout = child.stdout.take().context("read the daemon's output")?;
        let mut lines = BufReader::new(stdout).lines();
        while let Some(line) = lines.next_line().await? {
            if line.starts_with("listening on") {
                return Ok(Daemon { child, socket, root });
            }
        }
        let status = child.wait().await?;
        Err(CliError::new(ErrorKind::Internal, format!("the daemon ended before it listened ({status})")).into())
    }

    /// What an init container and an engine do: `preheat fetch`, then read a tensor from the path it prints.
    pub(super) async fn start_replica(&self, daemon: &Daemon, reference: &str) -> anyhow::Result<Started> {
        let started = Instant::now();
        let answer = self
            .json(&["fetch", "--json", reference, "--daemon", &format!("unix:{}", daemon.socket.display())])
            .await?;
        let weights_seconds = started.elapsed().as_secs_f64();
        let path = PathBuf::from(answer["path"].as_str().context("read `path` in the answer of fetch")?);
        tokio::task::spawn_blocking(move || read_a_tensor(&path)).await??;
        let first_tensor_seconds = started.elapsed().as_secs_f64();
        let manifest = answer["manifest"].as_str().unwrap_or_default().to_owned();
        Ok(Started { replica: Replica { weights_seconds, first_tensor_seconds }, manifest })
    }

    /// Hashes a stopped daemon's whole store from outside, then removes it to make room for the next.
    pub(super) async fn verify_and_remove(&self, root: &Path) -> anyhow::Result<Value> {
        let outcome = self.json(&["verify", "--json", "--root", &root.to_string_lossy()]).await;
        std::fs::remove_dir_all(root).with_context(|| format!("remove {}", root.display()))?;
        outcome
    }

    async fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let output = self.command().args(args).stderr(Stdio::inherit()).output().await?;
        // `verify` reports what it found wrong on stdout as well as by its exit code.
        let found_corrupt = output.status.code() == Some(i32::from(ErrorKind::Corrupt.exit_code()));
        if !output.status.success() && !found_corrupt {
            let what = format!("`preheat {}` failed ({})", args.first().copied().unwrap_or_default(), output.status);
            return Err(CliError::new(ErrorKind::Internal, what).into());
        }
        serde_json::from_slice(&output.stdout).context("read the JSON answer")
    }
}

// === impl Daemon ===

impl Daemon {
    /// Asks it to stop, waits, and gives the root it has left.
    pub(super) async fn stop(mut self) -> anyhow::Result<PathBuf> {
        if let Some(pid) = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(pid.cast_signed())) {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        self.child.wait().await?;
        Ok(self.root)
    }
}

/// Reads the first tensor of the first weights file under `path`, as an engine's loader would.
fn read_a_tensor(path: &Path) -> anyhow::Result<()> {
    let mut weights: Vec<PathBuf> = std::fs::read_dir(path)
        .with_context(|| format!("list {}", path.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| file.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    weights.sort();
    let Some(first) = weights.first() else {
        // A model in another format: opening its directory is all there is to show.
        return Ok(());
    };
    let mut file = std::fs::File::open(first)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let header_bytes = u64::from_le_bytes(length);
    anyhow::ensure!(header_bytes <= HEADER_LIMIT, "{} has a header of {header_bytes} bytes", first.display());
    let mut header = vec![0; header_bytes as usize];
    file.read_exact(&mut header)?;
    let header: Value = serde_json::from_slice(&header)?;
    let offsets = header
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(name, _)| *name != "__metadata__")
        .find_map(|(_, tensor)| Some((tensor["data_offsets"][0].as_u64()?, tensor["data_offsets"][1].as_u64()?)));
    let (start, end) = offsets.context("find a tensor in the header")?;
    file.seek(SeekFrom::Start(8 + header_bytes + start))?;
    let mut tensor = Vec::new();
    file.take(end.saturating_sub(start)).read_to_end(&mut tensor)?;
    anyhow::ensure!(tensor.len() as u64 == end - start, "{} ends inside its first tensor", first.display());
    Ok(())
}
