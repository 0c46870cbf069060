//! `preheat import DIR`: what is on this machine already becomes a model of the store, without a download.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use serde::Serialize;

use super::args::ImportArgs;
use super::direct::{Direct, cancelled_by_signals};
use super::error::CliError;
use super::progress::Meter;
use crate::model::source::Origin;
use crate::model::{Reference, Revision, Rights, Scheme, Selection};
use crate::origin::{Held, Origins, Snapshot};

/// The last line of `--json`.
#[derive(Debug, Serialize)]
struct Outcome {
    reference: String,
    path: PathBuf,
    manifest: String,
    revision: String,
    files: u64,
    bytes: u64,
    /// Copied; the rest was there already, or shares its blocks with the directory.
    copied_bytes: u64,
    seconds: f64,
    durable: bool,
    warnings: Vec<String>,
}

pub(super) async fn run(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let started = Instant::now();
    let reference = identity(&args)?;
    let Some(root) = &args.root else {
        return Err(CliError::invalid("give --root DIR (or PREHEAT_ROOT): the store that it goes into").into());
    };
    let cancel = cancelled_by_signals()?;
    let origins = Origins::unguarded(crate::origin::Config::default())?;
    let origin_id = origins.identity(&reference);
    // A directory that stays itself is an origin like any other.
    let origin: Arc<dyn Origin> = match reference.scheme {
        Scheme::File => origins.open(&reference, &Rights::Own)?,
        _ => Arc::new(Held::new(&args.directory, origin_id.clone())),
    };
    let mut meter = Meter::new("import", args.json);
    let direct = Direct::open(root, &meter, &cancel).await?;
    let fetched = direct.fetch(reference, origin_id, origin, &mut meter, &cancel).await;
    meter.finish();
    // What has been taken in is kept, whatever the outcome.
    let closed = direct.close(true).await;
    let fetched = fetched.with_context(|| format!("import {}", args.directory.display()))?;
    closed.context("close the store")?;
    let record = fetched.model.record;
    let outcome = Outcome {
        reference: pinned(&record.reference, &record.revision),
        path: fetched.model.path,
        manifest: record.manifest.to_string(),
        revision: record.revision.to_string(),
        files: record.files,
        bytes: record.bytes,
        copied_bytes: fetched.origin_bytes,
        seconds: started.elapsed().as_secs_f64(),
        durable: true,
        warnings: fetched.warnings,
    };
    for warning in &outcome.warnings {
        eprintln!("preheat: {warning}");
    }
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        eprintln!("preheat: it is {}", outcome.reference);
        println!("{}", outcome.path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// The reference that the directory is taken in as.
fn identity(args: &ImportArgs) -> anyhow::Result<Reference> {
    let directory = &args.directory;
    std::fs::read_dir(directory).with_context(|| format!("read directory {}", directory.display()))?;
    let snapshot = Snapshot::of(directory);
    let parse = |text: &str| text.parse::<Reference>().map_err(|error| CliError::invalid(format!("{error}")));
    let mut reference = match (&args.reference, &snapshot) {
        (Some(text), _) => parse(text)?,
        (None, Some(snapshot)) => parse(&format!("hf://{}@{}", snapshot.repository, snapshot.commit))
            .with_context(|| format!("{} is a snapshot; name its model with --as", directory.display()))?,
        (None, None) => itself(directory)?,
    };
    if reference.scheme == Scheme::File {
        if args.reference.is_some() {
            return Err(CliError::invalid("--as file:// is what it is without --as; name another origin").into());
        }
        return Ok(reference);
    }
    if reference.selection.subfolder.is_some() {
        let detail = "--as has a subfolder: import the folder that holds the whole model";
        return Err(CliError::invalid(detail).into());
    }
    if let (Scheme::Hf, None, Some(snapshot)) = (reference.scheme, &reference.revision, &snapshot) {
        reference.revision = Some(snapshot.commit.clone());
    }
    match (reference.scheme, reference.pinned()) {
        (Scheme::Hf, Some(Revision::Commit(_))) => Ok(reference),
        (Scheme::Hf, _) => {
            let detail =
                "--as names no commit: a branch is what the hub says it is, write hf://org/model@<40 hex digits>";
            Err(CliError::invalid(detail).into())
        }
        (_, None | Some(Revision::Manifest(_))) => Ok(reference),
        _ => Err(CliError::invalid("--as names a listing, which only its origin has: leave the revision out").into()),
    }
}

/// What to fetch to have exactly this again.
fn pinned(reference: &str, revision: &Revision) -> String {
    match reference.parse::<Reference>() {
        Ok(parsed) => Reference { revision: Some(revision.to_string()), ..parsed }.to_string(),
        Err(_) => reference.to_owned(),
    }
}

/// The directory as a reference to itself.
fn itself(directory: &Path) -> anyhow::Result<Reference> {
    let absolute = directory.canonicalize().with_context(|| format!("resolve {}", directory.display()))?;
    let text = absolute.to_str().ok_or_else(|| CliError::invalid("the directory's name is not UTF-8"))?;
    Ok(Reference {
        scheme: Scheme::File,
        authority: String::new(),
        place: text.trim_start_matches('/').to_owned(),
        revision: None,
        selection: Selection::default(),
    })
}
