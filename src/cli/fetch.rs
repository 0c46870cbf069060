//! `preheat fetch`: what an init container runs.
//!
//! The daemon is asked first. If this process can open the tree that the daemon names, that path is the answer and no byte is
//! copied. If it cannot (another mount namespace, another machine), the blobs are streamed from the daemon into `--to`. If
//! there is no daemon, or it hangs, or it has no room, the origin itself is asked: a start is never slower than without
//! preheat. What happened is said on stderr and in `source`.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures_util::StreamExt;
use serde::Serialize;

use super::args::FetchArgs;
use super::destination::Destination;
use super::direct::{Direct, cancelled_by_signals};
use super::error::{CliError, kind_of};
use super::node_stream::NodeSource;
use super::place::{Take, into_directory};
use super::progress::{Meter, Reading};
use super::target;
use crate::base::ErrorKind;
use crate::base::lifecycle::CancellationToken;
use crate::doors::client::{Client, ClientError};
use crate::model::{Manifest, OriginId, Reference, Rights};
use crate::origin::Origins;
use crate::prewarm::wire::{JobState, JobView, PrewarmRequest, Priority, Tier};
use crate::transfer::Fetched;

/// A daemon at work sends an event at least every two seconds; four missed ones mean that it hangs.
const SILENCE: Duration = Duration::from_secs(8);

/// The last line of `--json`.
#[derive(Debug, Serialize)]
struct Outcome {
    reference: String,
    path: PathBuf,
    manifest: String,
    revision: Option<String>,
    files: u64,
    bytes: u64,
    origin_bytes: u64,
    seconds: f64,
    source: Source,
    placed: Option<&'static str>,
    durable: bool,
    warnings: Vec<String>,
}

/// Where the bytes came from, for this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Source {
    /// A tree of the daemon's store, opened in place or copied.
    Daemon,
    /// Streamed from the daemon over its API.
    DaemonStream,
    /// The origin, without a daemon.
    Origin,
}

/// A step that the daemon takes part in.
enum FromDaemon<T> {
    Done(Box<T>),
    /// Absent, hung or broken: said, and the origin is next.
    Unusable(String),
}

pub(super) async fn run(args: FetchArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let reference: Reference = args.reference.parse().map_err(|error| CliError::invalid(format!("{error}")))?;
    let cancel = cancelled_by_signals()?;
    let mut meter = Meter::new("fetch", args.json);
    let outcome = fetch(&args, &reference, &mut meter, &cancel).await;
    meter.finish();
    let mut outcome = outcome?;
    outcome.seconds = started.elapsed().as_secs_f64();
    for warning in &outcome.warnings {
        eprintln!("preheat: {warning}");
    }
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        println!("{}", outcome.path.display());
    }
    Ok(ExitCode::SUCCESS)
}

async fn fetch(
    args: &FetchArgs,
    reference: &Reference,
    meter: &mut Meter,
    cancel: &CancellationToken,
) -> anyhow::Result<Outcome> {
    let clients = if args.direct { Vec::new() } else { target::candidates(&args.daemon)? };
    for client in clients {
        let client = target::with_credential(client, reference, args.pass_credential)?;
        match ask(&client, args, meter, cancel).await? {
            FromDaemon::Done(job) => match deliver(&client, args, *job, meter, cancel).await? {
                FromDaemon::Done(outcome) => return Ok(*outcome),
                FromDaemon::Unusable(why) => not_used(meter, &client, &why),
            },
            FromDaemon::Unusable(why) => not_used(meter, &client, &why),
        }
    }
    from_origin(args, reference, meter, cancel).await
}

fn not_used(meter: &Meter, client: &Client, why: &str) {
    meter.note(&format!("daemon at {client} not used: {why}; going on without it"));
}

/// Runs the job at the daemon. Refusals that the origin would repeat are errors; a daemon in trouble is `Unusable`.
async fn ask(
    client: &Client,
    args: &FetchArgs,
    meter: &mut Meter,
    cancel: &CancellationToken,
) -> anyhow::Result<FromDaemon<JobView>> {
    let patience = target::patience(&args.daemon);
    let request = PrewarmRequest {
        reference: args.reference.clone(),
        tier: Tier::Disk,
        priority: Some(Priority::Demand),
        ..PrewarmRequest::default()
    };
    let mut job = match tokio::time::timeout(patience, client.prewarm(&request)).await {
        Ok(Ok(job)) => job,
        Ok(Err(error)) => return refusal(&error, args),
        Err(_) => return Ok(FromDaemon::Unusable(format!("no answer within {patience:?}"))),
    };
    let mut events = match tokio::time::timeout(patience, client.events(&job.id)).await {
        Ok(Ok(events)) => events,
        Ok(Err(error)) => return refusal(&error, args),
        Err(_) => return Ok(FromDaemon::Unusable(format!("no events within {patience:?}"))),
    };
    while matches!(job.state, JobState::Queued | JobState::Running) {
        let next = tokio::select! {
            () = cancel.cancelled() => {
                // Others may wait for the same job: it goes on without us.
                return Err(CliError::new(ErrorKind::Cancelled, "interrupted; the daemon goes on with the transfer").into());
            }
            next = tokio::time::timeout(SILENCE.max(patience), events.next()) => next,
        };
        match next {
            Ok(Some(Ok(Some(view)))) => job = view,
            // A heartbeat.
            Ok(Some(Ok(None))) => {}
            Ok(Some(Err(error))) => return Ok(FromDaemon::Unusable(error.to_string())),
            Ok(None) => return Ok(FromDaemon::Unusable("it closed the connection".to_owned())),
            Err(_) => return Ok(FromDaemon::Unusable(format!("silent for {:?}", SILENCE.max(patience)))),
        }
        meter.update(Reading::of(&job));
    }
    if job.state == JobState::Ready {
        return Ok(FromDaemon::Done(Box::new(job)));
    }
    let problem = job.error.unwrap_or_default();
    let kind = problem.kind.unwrap_or(ErrorKind::Internal);
    let detail = problem.detail;
    if falls_back(kind) && has_destination(args) {
        return Ok(FromDaemon::Unusable(detail));
    }
    Err(CliError::new(kind, detail).into())
}

/// What the origin might do better than this daemon.
fn falls_back(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NoSpace | ErrorKind::Busy | ErrorKind::Internal | ErrorKind::Cancelled)
}

fn has_destination(args: &FetchArgs) -> bool {
    args.to.is_some() || args.root.is_some()
}

fn refusal(error: &ClientError, args: &FetchArgs) -> anyhow::Result<FromDaemon<JobView>> {
    let kind = error.kind();
    // Not reached at all, or a daemon in trouble.
    if error.is_transport() || (falls_back(kind) && has_destination(args)) {
        return Ok(FromDaemon::Unusable(error.to_string()));
    }
    Err(CliError::new(kind, error.to_string()).into())
}

/// Turns a finished job into files that this process can open. With a destination a daemon that fails only now is `Unusable`:
/// the origin still has the files.
async fn deliver(
    client: &Client,
    args: &FetchArgs,
    job: JobView,
    meter: &mut Meter,
    cancel: &CancellationToken,
) -> anyhow::Result<FromDaemon<Outcome>> {
    let (Some(tree), Some(digest)) = (job.path.clone(), job.manifest) else {
        return Err(CliError::new(ErrorKind::Internal, "the daemon says ready and names no tree").into());
    };
    let mut outcome = Outcome {
        reference: args.reference.clone(),
        path: tree.clone(),
        manifest: digest.to_string(),
        revision: job.revision.clone(),
        files: job.files,
        bytes: job.bytes_total,
        origin_bytes: job.origin_bytes,
        seconds: 0.0,
        source: Source::Daemon,
        placed: None,
        durable: job.durable,
        warnings: job.warnings.clone(),
    };
    let visible = is_same_directory(&tree, &job);
    let Some(to) = &args.to else {
        if visible {
            return Ok(FromDaemon::Done(Box::new(outcome)));
        }
        return Err(CliError::new(
            ErrorKind::NotFound,
            format!(
                "the model is ready at {} on the node, which this process cannot see: mount the store's trees read-only at \
                 the same path, or give --to DIR to have the files streamed",
                tree.display()
            ),
        )
        .into());
    };
    let to = Destination::take(to, meter, cancel).await?;
    let patience = target::patience(&args.daemon);
    let manifest = match tokio::time::timeout(patience, client.manifest(&digest)).await {
        Ok(Ok(manifest)) => manifest,
        Ok(Err(error)) => return Ok(FromDaemon::Unusable(format!("read the manifest: {error}"))),
        Err(_) => return Ok(FromDaemon::Unusable(format!("no manifest within {patience:?}"))),
    };
    to.path().clone_into(&mut outcome.path);
    // A copy of somebody else's disk is durable when the caller's own system says so.
    outcome.durable = false;
    let placed = if visible {
        let take = if args.link { Take::Link } else { Take::Copy };
        let placed = place(tree, manifest, to.path(), take).await;
        if placed.is_ok() {
            to.clear()?;
        }
        placed
    } else {
        outcome.source = Source::DaemonStream;
        stream(client, manifest, &to, SILENCE.max(patience), meter, cancel).await
    };
    match placed {
        Ok(placed) => outcome.placed = Some(placed),
        Err(error) if is_the_daemons(kind_of(&error)) => return Ok(FromDaemon::Unusable(format!("{error:#}"))),
        Err(error) => return Err(error),
    }
    Ok(FromDaemon::Done(Box::new(outcome)))
}

/// What can go wrong on the daemon's side once it has said ready: it ends or hangs, or evicts the model meanwhile.
fn is_the_daemons(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Unavailable | ErrorKind::Timeout | ErrorKind::NotFound | ErrorKind::Corrupt)
}

/// Has the files streamed from the daemon.
async fn stream(
    client: &Client,
    manifest: Manifest,
    to: &Destination,
    silence: Duration,
    meter: &mut Meter,
    cancel: &CancellationToken,
) -> anyhow::Result<&'static str> {
    let origin_id = OriginId::new(format!("node+{client}/{}", manifest.digest()));
    let source = NodeSource::new(client.clone(), manifest, silence);
    let (reference, gone) = (source.reference(), source.gone());
    // The transfer ends in order, and what has come is kept, whoever calls it off.
    let calling_off = cancel.child_token();
    let transfer = into_private(to, reference, origin_id, Arc::new(source), meter, &calling_off);
    tokio::pin!(transfer, gone);
    tokio::select! {
        done = &mut transfer => done.map(|(_, placed)| placed),
        why = &mut gone => {
            calling_off.cancel();
            match transfer.await {
                Ok((_, placed)) => Ok(placed),
                Err(_) if !cancel.is_cancelled() => Err(CliError::new(ErrorKind::Unavailable, why).into()),
                Err(error) => Err(error),
            }
        }
    }
}

/// Whether `path`, as this process sees it, is the very directory that the daemon published.
fn is_same_directory(path: &Path, job: &JobView) -> bool {
    let Ok(seen) = std::fs::metadata(path) else { return false };
    let same = job.tree.as_ref().is_some_and(|tree| tree.inode == seen.ino() && tree.device == seen.dev());
    // Seeing is not opening: a security policy may forbid the second.
    same && std::fs::read_dir(path).is_ok()
}

async fn from_origin(
    args: &FetchArgs,
    reference: &Reference,
    meter: &mut Meter,
    cancel: &CancellationToken,
) -> anyhow::Result<Outcome> {
    if !has_destination(args) {
        return Err(CliError::invalid(
            "no daemon answers, so the files need a place: give --to DIR, or --root DIR (or PREHEAT_ROOT) for a store that stays",
        )
        .into());
    }
    let origins = Origins::unguarded(crate::origin::Config::default())?;
    let origin = origins.open(reference, &Rights::Own)?;
    let origin_id = origins.identity(reference);
    let to = match &args.to {
        Some(to) => Some(Destination::take(to, meter, cancel).await?),
        None => None,
    };
    if let Some(root) = &args.root {
        match Direct::open(root, meter, cancel).await {
            Ok(direct) => {
                let fetched = direct.fetch(reference.clone(), origin_id, origin, meter, cancel).await;
                return finish_in_root(direct, fetched, args, to.as_ref()).await;
            }
            // A daemon that could not be used still owns its store; the caller's own directory is left.
            Err(error) if kind_of(&error) == ErrorKind::Busy && to.is_some() => {
                meter.note(&format!("{error}; using --to alone"));
            }
            Err(error) => return Err(error),
        }
    }
    let Some(to) = to else {
        return Err(CliError::new(ErrorKind::Internal, "neither --to nor --root is left").into());
    };
    let (fetched, placed) = into_private(&to, reference.clone(), origin_id, origin, meter, cancel).await?;
    let mut outcome = described(args, &fetched, to.path().to_owned());
    outcome.placed = Some(placed);
    outcome.durable = false;
    Ok(outcome)
}

/// Ends a fetch into a store that stays: everything durable, then, if asked, a copy.
async fn finish_in_root(
    direct: Direct,
    fetched: anyhow::Result<Fetched>,
    args: &FetchArgs,
    to: Option<&Destination>,
) -> anyhow::Result<Outcome> {
    let fetched = match fetched {
        Ok(fetched) => fetched,
        Err(error) => {
            // What has arrived is kept for the next attempt; the reason of the failure matters more than a failing close.
            if let Err(close) = direct.close(true).await {
                tracing::warn!(error = %close, "close the store");
            }
            return Err(error);
        }
    };
    let mut outcome = described(args, &fetched, fetched.model.path.clone());
    if let Some(to) = to {
        let manifest = direct
            .store()
            .manifest(&fetched.model.record.manifest)
            .ok_or_else(|| CliError::new(ErrorKind::Internal, "the manifest of a published model is gone"))?;
        let take = if args.link { Take::Link } else { Take::Copy };
        outcome.placed = Some(place(fetched.model.path.clone(), (*manifest).clone(), to.path(), take).await?);
        to.clear()?;
        to.path().clone_into(&mut outcome.path);
    }
    direct.close(true).await.context("close the store")?;
    outcome.durable = to.is_none();
    Ok(outcome)
}

/// Fetches into a private store below `to`, moves the files out of it, and removes it.
async fn into_private(
    to: &Destination,
    reference: Reference,
    origin_id: OriginId,
    origin: Arc<dyn crate::model::source::Origin>,
    meter: &mut Meter,
    cancel: &CancellationToken,
) -> anyhow::Result<(Fetched, &'static str)> {
    let direct = Direct::open(&to.private_store(), meter, cancel).await?;
    let fetched = match direct.fetch(reference, origin_id, origin, meter, cancel).await {
        Ok(fetched) => fetched,
        Err(error) => {
            if let Err(close) = direct.close(true).await {
                tracing::warn!(error = %close, "close the store");
            }
            return Err(error);
        }
    };
    let manifest = direct
        .store()
        .manifest(&fetched.model.record.manifest)
        .ok_or_else(|| CliError::new(ErrorKind::Internal, "the manifest of a published model is gone"))?;
    let placed = place(fetched.model.path.clone(), (*manifest).clone(), to.path(), Take::Move).await?;
    direct.close(false).await?;
    to.clear()?;
    Ok((fetched, placed))
}

async fn place(tree: PathBuf, manifest: Manifest, to: &Path, take: Take) -> anyhow::Result<&'static str> {
    let to = to.to_owned();
    let placement =
        tokio::task::spawn_blocking(move || into_directory(&tree, &manifest, &to, take, &mut |_| {})).await??;
    Ok(placement.word())
}

fn described(args: &FetchArgs, fetched: &Fetched, path: PathBuf) -> Outcome {
    let record = &fetched.model.record;
    Outcome {
        reference: args.reference.clone(),
        path,
        manifest: record.manifest.to_string(),
        revision: Some(record.revision.to_string()),
        files: record.files,
        bytes: record.bytes,
        origin_bytes: fetched.origin_bytes,
        seconds: 0.0,
        source: Source::Origin,
        placed: None,
        durable: true,
        warnings: fetched.warnings.clone(),
    }
}
