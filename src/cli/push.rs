//! `preheat push DIR DEST`: publishes a directory, so that whoever pulls it can prove any group of it.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::args::PushArgs;
use super::direct::cancelled_by_signals;
use super::error::CliError;
use super::progress::{Meter, Reading};
use crate::base::units::ByteSize;
use crate::model::{Reference, Rights, Scheme};
use crate::origin::Origins;
use crate::placement::{Directory, Push, PushProgress, Pushed};

/// The last line of `--json`.
#[derive(Debug, Serialize)]
struct Outcome {
    destination: String,
    manifest: String,
    files: u64,
    bytes: u64,
    uploaded_bytes: u64,
    skipped_files: u64,
    seconds: f64,
    dry_run: bool,
}

pub(super) async fn run(args: PushArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let reference = destination(&args.destination)?;
    let cancel = cancelled_by_signals()?;
    let origins = Origins::unguarded(crate::origin::Config::default())?;
    let (sink, source) = (origins.sink(&reference, &Rights::Own)?, origins.open(&reference, &Rights::Own)?);
    let (place, selection) = (args.directory.clone(), reference.selection.clone());
    let directory = tokio::task::spawn_blocking(move || Directory::list(&place, &selection)).await??;
    let progress = Arc::new(PushProgress::default());
    let mut meter = Meter::new("push", args.json);
    for warning in &directory.warnings {
        meter.note(warning);
    }
    if directory.left_out > 0 {
        meter.note(&format!(
            "{} files that no engine reads are left out; DEST?include=GLOB names what to push instead",
            directory.left_out
        ));
    }
    let push = Push {
        directory,
        destination: reference.base(),
        sink,
        source,
        is_near: reference.scheme == Scheme::File,
        replace: args.replace,
        dry_run: args.dry_run,
        progress: Arc::clone(&progress),
        cancel,
    };
    let outcome = watched(push, &progress, &mut meter).await;
    meter.finish();
    let pushed = outcome?;
    tell(&args, &reference, &pushed, started.elapsed())
}

/// Where to push to: a place, with perhaps a selection of what.
fn destination(text: &str) -> Result<Reference, CliError> {
    let reference: Reference = text.parse().map_err(|error| CliError::invalid(format!("{error}")))?;
    if reference.revision.is_some() || reference.selection.subfolder.is_some() {
        let detail = "has a revision or a subfolder: name the place alone, the manifest makes the revision";
        return Err(CliError::invalid(format!("`{text}` {detail}")));
    }
    crate::model::check_globs(&reference.selection).map_err(|error| CliError::invalid(error.to_string()))?;
    Ok(reference)
}

async fn watched(push: Push, progress: &PushProgress, meter: &mut Meter) -> anyhow::Result<Pushed> {
    let mut work = std::pin::pin!(push.run());
    let mut tick = tokio::time::interval(Duration::from_millis(250));
    let (mut sending, mut begun) = (false, Instant::now());
    loop {
        tokio::select! {
            outcome = &mut work => return Ok(outcome?),
            _ = tick.tick() => {
                let to_send = progress.to_send.load(Ordering::Relaxed);
                if !sending && to_send > 0 {
                    // Sending is another speed than hashing.
                    (sending, begun) = (true, Instant::now());
                }
                let (done, total) = if sending {
                    (progress.sent.load(Ordering::Relaxed).try_into().unwrap_or(0), to_send)
                } else {
                    (progress.hashed.load(Ordering::Relaxed), progress.bytes.load(Ordering::Relaxed))
                };
                meter.update(reading(done, total, begun.elapsed()));
            }
        }
    }
}

fn reading(done: u64, total: u64, since: Duration) -> Reading {
    let rate = done as f64 / since.as_secs_f64().max(0.001);
    let left = total.saturating_sub(done) as f64 / rate;
    Reading { done, total, bytes_per_second: rate as u64, eta_seconds: (done > 0).then_some(left) }
}

fn tell(args: &PushArgs, reference: &Reference, pushed: &Pushed, took: Duration) -> anyhow::Result<ExitCode> {
    let outcome = Outcome {
        destination: reference.base(),
        manifest: pushed.manifest.to_string(),
        files: pushed.files,
        bytes: pushed.bytes,
        uploaded_bytes: pushed.uploaded_bytes,
        skipped_files: pushed.skipped_files,
        seconds: took.as_secs_f64(),
        dry_run: args.dry_run,
    };
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
        return Ok(ExitCode::SUCCESS);
    }
    let (sent, verb) = (ByteSize(pushed.uploaded_bytes), if args.dry_run { "would be sent" } else { "sent" });
    let (skipped, files) = (pushed.skipped_files, pushed.files);
    eprintln!("preheat: {sent} {verb}; {skipped} of {files} files were there");
    // A reference that stays what it is, whatever is pushed there later.
    println!("{}@manifest:{}", reference.base(), pushed.manifest);
    Ok(ExitCode::SUCCESS)
}
