//! Fetching without a daemon: the same store and the same transfer, in this process.
//!
//! With `--root` the store stays, so the next fetch finds it. With `--to` alone the store is private (`DIR/.preheat`), lives
//! until the files are in place, and makes an interrupted fetch resumable by the same command.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;

use super::error::CliError;
use super::progress::{Meter, Reading};
use crate::base::ErrorKind;
use crate::base::lifecycle::CancellationToken;
use crate::base::units::{ByteSize, MIB};
use crate::model::source::Origin;
use crate::model::{OriginId, Reference, Tenant};
use crate::store::{Holder, Options, Store, StoreError};
use crate::telemetry::metrics::Metrics;
use crate::transfer::{Config, Fetched, Fetcher, Priority, Progress, Request};

/// Buffers of a fetch in an init container, whose memory limit is often 64 MiB or 128 MiB. A quarter of them is for small files.
/// A daemon takes more.
const BUFFER_BYTES: u64 = 40 * MIB;

/// Connections of a single fetch: 10 Gbps take fifteen at the 85 MB/s that a store gives each, and a third of them may be waiting
/// for an answer. With [`BUFFER_BYTES`] each has a group arriving, and those that the disk is behind with wait for one.
const CONNECTIONS: u32 = 24;

/// How often a wait for another fetch looks again.
pub(super) const LOCK_POLL: Duration = Duration::from_millis(200);

/// A store open in this process, with a transfer on it.
pub(super) struct Direct {
    store: Store,
    fetcher: Fetcher,
}

// === impl Direct ===

impl Direct {
    /// Opens the store at `root`, waiting while another fetch has it.
    ///
    /// # Errors
    /// [`StoreError::Locked`] at once if a daemon has it.
    pub(super) async fn open(root: &Path, meter: &Meter, cancel: &CancellationToken) -> anyhow::Result<Self> {
        let options = Options::for_process().context("read the boot id")?;
        let holder = Holder { role: "fetch".to_owned(), pid: std::process::id() };
        let mut said = false;
        let store = loop {
            let (root, holder, options) = (root.to_owned(), holder.clone(), options.clone());
            match tokio::task::spawn_blocking(move || Store::open(&root, &holder, options)).await? {
                Ok(store) => break store,
                Err(StoreError::Locked { root, holder }) if holder.role == "fetch" => {
                    if !said {
                        meter.note(&format!("waiting for the fetch of process {} on {}", holder.pid, root.display()));
                        said = true;
                    }
                    tokio::select! {
                        () = cancel.cancelled() => {
                            return Err(CliError::new(ErrorKind::Cancelled, "interrupted while waiting").into());
                        }
                        () = tokio::time::sleep(LOCK_POLL) => {}
                    }
                }
                Err(error) => return Err(error.into()),
            }
        };
        let config = Config { memory: ByteSize(BUFFER_BYTES), connections_max: CONNECTIONS, ..Config::default() };
        let fetcher =
            Fetcher::new(store.clone(), Arc::new(Metrics::new()), config).context("start transfer threads")?;
        Ok(Self { store, fetcher })
    }

    /// The store.
    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// Runs one fetch to its end, showing progress; Ctrl-C and SIGTERM keep what has arrived.
    pub(super) async fn fetch(
        &self,
        reference: Reference,
        origin_id: OriginId,
        origin: Arc<dyn Origin>,
        meter: &mut Meter,
        cancel: &CancellationToken,
    ) -> anyhow::Result<Fetched> {
        let progress = Arc::new(Progress::default());
        let request = Request {
            tenant: Tenant::default(),
            reference,
            origin,
            origin_id,
            resolved: None,
            asked_by: None,
            priority: Priority::Demand,
            progress: Arc::clone(&progress),
            cancel: cancel.clone(),
        };
        let fetch = self.fetcher.fetch(request);
        tokio::pin!(fetch);
        let mut tick = tokio::time::interval(Duration::from_millis(250));
        loop {
            tokio::select! {
                outcome = &mut fetch => return Ok(outcome?),
                _ = tick.tick() => {
                    let now = progress.snapshot();
                    meter.update(Reading {
                        done: now.bytes_done,
                        total: now.bytes_total,
                        bytes_per_second: now.bytes_per_second,
                        eta_seconds: now.eta_seconds.map(|eta| eta.p50),
                    });
                }
            }
        }
    }

    /// Stops transfers and closes the store; with `durable` everything is on disk afterwards.
    pub(super) async fn close(self, durable: bool) -> anyhow::Result<()> {
        self.fetcher.drain().await;
        let Self { store, .. } = self;
        if durable {
            tokio::task::spawn_blocking(move || store.close()).await??;
        }
        Ok(())
    }
}

/// A token that the first SIGINT or SIGTERM cancels; the second ends the process at once.
pub(super) fn cancelled_by_signals() -> anyhow::Result<CancellationToken> {
    use tokio::signal::unix::{SignalKind, signal};
    let token = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let cancel = token.clone();
    tokio::spawn(async move {
        for round in 0.. {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if round > 0 {
                std::process::exit(i32::from(ErrorKind::Cancelled.exit_code()));
            }
            cancel.cancel();
        }
    });
    Ok(token)
}
