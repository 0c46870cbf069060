//! `preheat demo`: what a cold start costs four replicas that pull by themselves, and what it costs with preheat, on this
//! machine, with no network. The origin is in this process; daemon and fetches are the real binary in processes of their
//! own, so what is shown is what a user gets.

mod architecture;
mod content;
mod origin;
mod replica;
mod timeline;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;

use self::architecture::{GeneratedModel, SMALLEST};
use self::content::Content;
use self::origin::{DemoOrigin, Limits};
use self::replica::Node;
use self::timeline::{Replica, Scene};
use super::args::DemoArgs;
use super::error::CliError;
use super::screen::Screen;
use crate::base::units::{ByteRate, ByteSize};
use crate::digest::{GROUP_BYTES, group_count, group_cv, group_range, merge_root};
use crate::model::{FilePath, Kind, Manifest, ManifestEntry};

/// Replicas in the crowded scenes.
const REPLICAS: usize = 4;

/// What one connection to an object store gives, roughly: AWS names 85-90 MB/s a connection in its S3 performance guide.
const CONNECTION_RATE: u64 = 90_000_000;

/// First byte of a small S3 GET: the same guide names 100-200 ms; a store in the same zone is nearer to this.
const LATENCY: Duration = Duration::from_millis(30);

pub(super) async fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let say = |text: String| {
        if !args.json {
            eprintln!("{text}");
        }
    };
    let scratch = scratch_directory(args.scratch.as_deref())?;
    let (description, mut files) = match &args.model {
        Some(reference) => real_model(reference, &scratch.path().join("model")).await?,
        None => generated(args.size.0)?,
    };
    let bytes: u64 = files.iter().map(|(_, content)| content.len()).sum();
    // The store holds one copy; the rest is room for the file system itself.
    let free = crate::sys::space::Filesystem::of(scratch.path())?.available;
    if free < bytes + bytes / 10 {
        return Err(CliError::new(
            crate::base::ErrorKind::NoSpace,
            format!(
                "the demonstration needs {} in {}, {} are free: choose a smaller --size or another --scratch",
                ByteSize(bytes + bytes / 10),
                scratch.path().display(),
                ByteSize(free)
            ),
        )
        .into());
    }
    let limits = Limits {
        bytes_per_second: args.bandwidth.0.max(1),
        connection_bytes_per_second: CONNECTION_RATE,
        latency: LATENCY,
    };
    say(format!("model   {description}, {}", ByteSize(bytes)));
    say(format!(
        "origin  {}, {} a connection, {} ms to the first byte",
        ByteRate(limits.bytes_per_second),
        ByteRate(limits.connection_bytes_per_second),
        limits.latency.as_millis()
    ));
    let manifest = hashed(files.clone()).await?;
    let names: Vec<(String, u64)> = files.iter().map(|(name, content)| (name.clone(), content.len())).collect();
    files.push(("preheat-manifest.json".to_owned(), Content::fixed(manifest.to_json())));
    let origin = DemoOrigin::start(files, limits).await?;
    let node =
        Node { binary: std::env::current_exe().context("find this program's own file")?, scratch: scratch.path() };
    let scene = |name, title, replicas: Vec<Replica>, sent: u64, verified| {
        let slowest = replicas.iter().map(|replica| replica.weights_seconds).fold(0.0, f64::max);
        Scene {
            name,
            title,
            replicas,
            origin_bytes: sent,
            origin_ratio: sent as f64 / bytes as f64,
            times_line_speed: slowest / (bytes as f64 / limits.bytes_per_second as f64),
            verified,
        }
    };
    let mut scenes = Vec::new();

    say("        1 of 4: four replicas, each pulling by itself".to_owned());
    origin.take_sent();
    let alone = replica::pull_alone(&origin.reference(), &names, REPLICAS).await?;
    scenes.push(scene("alone", "four replicas, each pulling by itself", alone, origin.take_sent(), "none"));

    say("        2 of 4: preheat, cold".to_owned());
    let daemon = node.serve("first", &origin.reference()).await?;
    let cold = node.start_replica(&daemon, &origin.reference()).await?;
    let manifest_found = cold.manifest;
    scenes.push(scene(
        "cold",
        "preheat, one replica, nothing on the node",
        vec![cold.replica],
        origin.take_sent(),
        "blake3",
    ));

    say("        3 of 4: preheat, prewarmed".to_owned());
    let warm = node.start_replica(&daemon, &origin.reference()).await?;
    // What a start costs when the node was told before: the manifest is asked for again, no body of a file is.
    let sent = origin.take_sent().saturating_sub(manifest.to_json().len() as u64);
    scenes.push(scene("prewarmed", "preheat, one replica, prewarmed", vec![warm.replica], sent, "blake3"));
    let mut verified = vec![node.verify_and_remove(&daemon.stop().await?).await?];

    say("        4 of 4: preheat, four replicas at once".to_owned());
    let daemon = node.serve("second", &origin.reference()).await?;
    let reference = origin.reference();
    let starts = (0..REPLICAS).map(|_| node.start_replica(&daemon, &reference));
    let crowd = futures_util::future::try_join_all(starts).await?;
    let crowd = crowd.into_iter().map(|start| start.replica).collect();
    scenes.push(scene(
        "crowd",
        "preheat, four replicas at once, nothing on the node",
        crowd,
        origin.take_sent(),
        "blake3",
    ));

    verified.push(node.verify_and_remove(&daemon.stop().await?).await?);
    let blobs: u64 = verified.iter().filter_map(|outcome| outcome["blobs"].as_u64()).sum();
    let wrong: usize = verified.iter().map(|outcome| outcome["faults"].as_array().map_or(0, Vec::len)).sum();
    if manifest_found != manifest.digest().to_string() {
        return Err(CliError::new(
            crate::base::ErrorKind::Corrupt,
            format!("the node reports manifest {manifest_found}, the origin published {}", manifest.digest()),
        )
        .into());
    }
    if args.json {
        let outcome = json!({
            "model": description,
            "bytes": bytes,
            "manifest": manifest_found,
            "origin": {
                "bytes_per_second": limits.bytes_per_second,
                "connection_bytes_per_second": limits.connection_bytes_per_second,
                "latency_seconds": limits.latency.as_secs_f64(),
            },
            "line_seconds": bytes as f64 / limits.bytes_per_second as f64,
            "scenes": scenes,
            "verify": {"blobs": blobs, "wrong": wrong},
        });
        println!("{outcome}");
    } else {
        print!("{}", timeline::draw(&scenes, &Screen::of_stdout()));
        println!("\nboth stores verified afterwards: {blobs} blobs, {wrong} wrong");
    }
    let code = if wrong == 0 { 0 } else { crate::base::ErrorKind::Corrupt.exit_code() };
    Ok(ExitCode::from(code))
}

fn scratch_directory(wanted: Option<&Path>) -> anyhow::Result<tempfile::TempDir> {
    let made = match wanted {
        Some(directory) => tempfile::Builder::new().prefix("preheat-demo-").tempdir_in(directory),
        None => tempfile::Builder::new().prefix("preheat-demo-").tempdir(),
    };
    made.context("make a scratch directory (choose another with --scratch)")
}

type Described = (String, Vec<(String, Content)>);

fn generated(size: u64) -> anyhow::Result<Described> {
    let model = GeneratedModel::of_size(size).ok_or_else(|| {
        CliError::invalid(format!("--size {} is too small: take {} or more", ByteSize(size), ByteSize(SMALLEST)))
    })?;
    Ok((model.description, model.files))
}

/// A real model, fetched once into the scratch directory and served from there, so that the origin's limits are known.
async fn real_model(reference: &str, into: &Path) -> anyhow::Result<Described> {
    let binary = std::env::current_exe().context("find this program's own file")?;
    let status = tokio::process::Command::new(binary)
        .args(["fetch", "--direct", "--json", "--to"])
        .arg(into)
        .arg("--")
        .arg(reference)
        .stdout(std::process::Stdio::null())
        .env_remove("PREHEAT_ROOT")
        .status()
        .await?;
    if !status.success() {
        return Err(CliError::new(
            crate::base::ErrorKind::Unavailable,
            format!("fetching {reference} failed ({status})"),
        )
        .into());
    }
    let mut files = Vec::new();
    for path in crate::origin::list_directory(into)? {
        let file: PathBuf = into.join(&path);
        files.push((path.to_string(), Content::stored(&file).with_context(|| format!("open {}", file.display()))?));
    }
    Ok((reference.to_owned(), files))
}

/// The manifest of the files, hashed on all cores: a publisher does this once.
async fn hashed(files: Vec<(String, Content)>) -> anyhow::Result<Manifest> {
    let hashing = files.into_iter().map(|(name, content)| {
        tokio::task::spawn_blocking(move || {
            let size = content.len();
            let mut buffer = vec![0; GROUP_BYTES as usize];
            let mut cvs = Vec::new();
            for index in 0..group_count(size) {
                let range = group_range(size, index);
                let group = &mut buffer[..(range.end - range.start) as usize];
                content.read(range.start, group)?;
                cvs.push(group_cv(size, index, group));
            }
            let root = merge_root(&cvs).context("hash a file")?;
            anyhow::Ok(ManifestEntry::new(FilePath::new(name)?, size, root))
        })
    });
    let mut entries = Vec::new();
    for task in hashing.collect::<Vec<_>>() {
        entries.push(task.await??);
    }
    Ok(Manifest::new(Kind::Model, entries)?)
}
