//! The node daemon: builds everything, runs it, drains it. The only file that knows everyone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::access::{Access, Tokens};
use crate::base::lifecycle::{CancellationToken, Gate};
use crate::base::units::MIB;
use crate::config::Settings;
use crate::doors::{self, Captures, Node, Outgoing, Readiness};
use crate::engines::Engines;
use crate::model::{OriginId, Tenant};
use crate::origin::Origins;
use crate::prewarm::Jobs;
use crate::store::{Holder, Options, ScrubProgress, Store};
use crate::sys::peer::own_uid;
use crate::telemetry::metrics::{Metrics, Which};
use crate::transfer::Fetcher;

/// How often watermarks, leases and gauges are looked after.
const HOUSEKEEPING: Duration = Duration::from_secs(5);

/// Bytes that the scrub reads between two pauses: small beside a second of any disk.
const SCRUB_STEP: u64 = 8 * MIB;

/// The least pause of the scrub, and how often it looks at a store that has nothing for it.
const SCRUB_PAUSE: Duration = Duration::from_secs(1);

/// When the scrub goes on.
#[derive(Debug)]
struct ScrubPace {
    bytes_per_second: u64,
    /// From the beginning of a round to that of the next, at least.
    every: Duration,
    /// When the round began.
    round_since: Instant,
    /// Whether it has found anything to hash.
    looked_at: bool,
}

/// Runs a daemon until SIGTERM or SIGINT. `announce` is called with each address once it is served.
///
/// # Errors
/// What keeps it from starting: an address or a store that is taken, an unreadable token.
pub async fn serve(settings: Settings, announce: impl Fn(&str)) -> anyhow::Result<()> {
    let address = settings.server.address()?;
    let tokens = Tokens::read(settings.server.token_file.as_deref(), &settings.access.scopes, own_uid())?;
    let mut terminate = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let origins = Origins::new(settings.origins.clone())?;
    let bound = doors::bind(&settings.server, address).await?;
    let metrics = Arc::new(Metrics::new());
    let disk = settings.store.start_disk()?;
    metrics.disk.get_or_create(&Which { which: disk.kind().name() }).set(1);
    let store = {
        let root = settings.store.root.clone();
        let admissions = settings.access.admissions();
        let options = Options { admissions, disk: Some(disk), ..settings.store.options().context("read the boot id")? };
        let holder = Holder { role: "serve".to_owned(), pid: std::process::id() };
        tokio::task::spawn_blocking(move || Store::open(&root, &holder, options)).await??
    };
    let (gate, stop) = (Gate::default(), CancellationToken::new());
    let fetcher = Fetcher::new(store.clone(), Arc::clone(&metrics), settings.transfer.clone())
        .context("start transfer threads")?;
    let engines = {
        let origins = Origins::new(settings.engines.origins(&settings.origins))?;
        let (config, store, metrics) = (settings.engines.clone(), store.clone(), Arc::clone(&metrics));
        Engines::new(config, store, &origins, metrics)?
    };
    let access = Access::new(settings.access.clone(), origins, withdraw(&store));
    let limits = access.clone();
    engines.limit(Box::new(move |scope| limits.bytes_max(scope)));
    let jobs = {
        let (config, access) = (settings.prewarm.clone(), access.clone());
        Jobs::new(config, store.clone(), access, fetcher.clone(), Arc::clone(&metrics), gate.clone())
            .context("start threads that warm")?
            .with_engines(engines.clone())
    };
    // The list is the operator's, and the daemon's own directories are read for it.
    let operator = tokens.of_uid(own_uid());
    let ready = Readiness::default();
    let node = Node {
        store: store.clone(),
        jobs: jobs.clone(),
        access,
        metrics: Arc::clone(&metrics),
        buffers: Outgoing::default(),
        ready: ready.clone(),
        stop: stop.clone(),
        engines: engines.clone(),
        captures: Captures::default(),
        tokens: Arc::new(tokens),
    };
    let background = Gate::default();
    // The handles are not needed: closing the gate waits for them.
    let _sealer = background.spawn("sealer", seal(store.clone(), Arc::clone(&metrics), background.token()));
    let _keeper = background
        .spawn("housekeeping", keep(store.clone(), fetcher.clone(), Arc::clone(&metrics), background.token()));
    if let Some(rate) = settings.store.scrub_rate {
        let pace = ScrubPace::new(rate.0, settings.store.scrub_every.0, Instant::now());
        let _scrub = background.spawn("scrub", scrub(store.clone(), pace, Arc::clone(&metrics), background.token()));
    }
    let (tcp, socket) = (bound.address()?, bound.socket().cloned());
    let connections = Gate::default();
    let doors = tokio::spawn({
        let (stop, connections) = (stop.clone(), connections.clone());
        async move { bound.serve(node, stop, &connections).await }
    });
    ready.set(true);
    jobs.resume();
    jobs.keep_warm(&operator);
    announce(&format!("listening on http://{tcp}"));
    if let Some(path) = &socket {
        announce(&format!("listening on unix:{}", path.display()));
    }
    tracing::info!(%tcp, root = %store.root().display(), version = env!("CARGO_PKG_VERSION"), "serving");
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("draining; a second signal ends at once");
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        std::process::exit(i32::from(crate::base::ErrorKind::Cancelled.exit_code()));
    });
    ready.set(false);
    stop.cancel();
    gate.close().await;
    fetcher.drain().await;
    let drained = async {
        // The accept loops end with `stop`; answers under way end by themselves.
        let _ = doors.await;
        connections.close().await;
    };
    if tokio::time::timeout(settings.server.drain_timeout.0, drained).await.is_err() {
        tracing::warn!("some answers did not end in time and are broken off");
    }
    if tokio::time::timeout(settings.server.drain_timeout.0, engines.drain()).await.is_err() {
        tracing::warn!("a bundle was not published in time; the next capture of its key tries again");
    }
    background.close().await;
    tokio::task::spawn_blocking(move || store.close()).await??;
    tracing::info!("stopped; everything that was readable is durable");
    Ok(())
}

/// Takes the trees away that a scope may no longer open.
fn withdraw(store: &Store) -> impl Fn(&Tenant, &OriginId) + Send + Sync + 'static {
    let store = store.clone();
    move |scope, origin| {
        let (store, scope, origin) = (store.clone(), scope.clone(), origin.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = store.withdraw(&scope, &origin) {
                tracing::warn!(%scope, %origin, %error, "trees of a scope that may no longer read them are still there");
            }
        });
    }
}

/// Makes readable blobs and models durable soon after they appear.
async fn seal(store: Store, metrics: Arc<Metrics>, stop: CancellationToken) {
    let delay = store.options().seal_delay;
    while !stop.is_cancelled() {
        let (sealing, started) = (store.clone(), Instant::now());
        let outcome = tokio::task::spawn_blocking(move || sealing.seal_step()).await;
        let more = match outcome {
            Ok(Ok(progress)) => {
                if progress.sealed > 0 {
                    metrics.seal_seconds.observe(started.elapsed().as_secs_f64());
                }
                progress.more
            }
            Ok(Err(error)) => {
                // A halted store has said so already; anything else may pass.
                if store.halted().is_none() {
                    tracing::warn!(%error, "sealing failed; tried again");
                }
                false
            }
            Err(_) => false,
        };
        if !more {
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(delay) => {}
            }
        }
    }
}

/// Watermarks, lapsed leases, gauges.
async fn keep(store: Store, fetcher: Fetcher, metrics: Arc<Metrics>, stop: CancellationToken) {
    loop {
        let keeper = store.clone();
        let outcome = tokio::task::spawn_blocking(move || {
            let evicted =
                if keeper.halted().is_none() { keeper.keep_watermarks() } else { Ok(crate::store::Evicted::default()) };
            (evicted, keeper.usage())
        })
        .await;
        if let Ok((evicted, usage)) = outcome {
            match evicted {
                Ok(evicted) => {
                    metrics.evicted_bytes.inc_by(evicted.bytes);
                    for model in &evicted.models {
                        tracing::info!(%model, "evicted");
                    }
                }
                Err(error) => tracing::warn!(%error, "eviction failed; tried again"),
            }
            let bytes = |bytes: u64| i64::try_from(bytes).unwrap_or(i64::MAX);
            for (which, value) in [
                ("blobs", usage.blobs),
                ("partials", usage.partials),
                ("reserved", usage.reserved),
                ("quarantined", usage.quarantined),
            ] {
                metrics.store_bytes.get_or_create(&Which { which }).set(bytes(value));
            }
            metrics.store_capacity_bytes.set(bytes(usage.capacity));
            metrics.blobs.set(bytes(usage.blob_count));
            metrics.models.set(bytes(usage.model_count));
            metrics.flights.set(i64::try_from(fetcher.in_flight()).unwrap_or(i64::MAX));
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(HOUSEKEEPING) => {}
        }
    }
}

/// Hashes everything again, slowly, for ever.
async fn scrub(store: Store, mut pace: ScrubPace, metrics: Arc<Metrics>, stop: CancellationToken) {
    loop {
        let scrubbing = store.clone();
        let outcome = tokio::task::spawn_blocking(move || scrubbing.scrub_step(SCRUB_STEP)).await;
        let progress = match outcome {
            Ok(Ok(progress)) => {
                metrics.scrubbed_bytes.inc_by(progress.bytes);
                let faults = progress.faults.len() as u64;
                metrics.corrupt.get_or_create(&Which { which: "scrub" }).inc_by(faults);
                progress
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "the scrub failed; tried again");
                ScrubProgress::default()
            }
            Err(_) => ScrubProgress::default(),
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pace.after(&progress, Instant::now())) => {}
        }
    }
}

// === impl ScrubPace ===

impl ScrubPace {
    fn new(bytes_per_second: u64, every: Duration, now: Instant) -> Self {
        Self { bytes_per_second, every, round_since: now, looked_at: false }
    }

    /// The pause after a step.
    fn after(&mut self, progress: &ScrubProgress, now: Instant) -> Duration {
        let pause = Duration::from_secs_f64(progress.cost as f64 / self.bytes_per_second.max(1) as f64);
        let pause = pause.max(SCRUB_PAUSE);
        self.looked_at |= progress.cost > 0;
        // A round of an empty store was none: what comes then is not left alone for days.
        let rest = match progress.round_done && self.looked_at {
            true => (self.round_since + self.every).saturating_duration_since(now),
            false => Duration::ZERO,
        };
        let pause = pause.max(rest);
        if progress.round_done {
            (self.round_since, self.looked_at) = (now + pause, false);
        }
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scrub_keeps_its_rate_and_rests_between_rounds() {
        let (start, day) = (Instant::now(), Duration::from_secs(24 * 3600));
        let mut pace = ScrubPace::new(MIB, day, start);
        let step = |cost: u64, round_done: bool| ScrubProgress { cost, round_done, ..ScrubProgress::default() };
        let seconds = Duration::from_secs;
        assert_eq!(pace.after(&step(8 * MIB, false), start), seconds(8));
        assert_eq!(pace.after(&step(0, false), start + seconds(8)), SCRUB_PAUSE, "after an error");
        // The last blob of the round, an hour after its beginning.
        let late = start + seconds(3600);
        assert_eq!(pace.after(&step(MIB, true), late), day - seconds(3600));
        // One that takes longer than it may goes on at once.
        assert_eq!(pace.after(&step(8 * MIB, true), start + 3 * day), seconds(8));
        // An empty store is looked at again.
        assert_eq!(pace.after(&step(0, true), start + 3 * day + seconds(8)), SCRUB_PAUSE);
    }
}
