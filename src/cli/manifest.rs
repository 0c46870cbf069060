//! `preheat manifest DIR`: the manifest that an HTTP server or a bucket publishes beside its files.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context;

use super::args::ManifestArgs;
use super::error::CliError;
use super::hash_file::hash_file;
use crate::base::ErrorKind;
use crate::model::{Kind, Manifest, ManifestEntry, Selection, select};

pub(super) fn run(args: &ManifestArgs) -> anyhow::Result<ExitCode> {
    let manifest = of_directory(&args.directory)?;
    let mut stdout = std::io::stdout().lock();
    if args.digest {
        writeln!(stdout, "{}", manifest.digest())?;
    } else {
        stdout.write_all(&manifest.to_json())?;
        stdout.write_all(b"\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The manifest of what [`select`] takes from `directory`: the same that a fetch of it makes.
pub(super) fn of_directory(directory: &Path) -> anyhow::Result<Manifest> {
    if directory.is_file() {
        let message = format!("{} is a file: give the directory that holds it", directory.display());
        return Err(CliError::invalid(message).into());
    }
    let paths = crate::origin::list_directory(directory)?;
    let selected = select(&paths, &Selection::default())
        .map_err(|error| CliError::new(ErrorKind::Invalid, format!("{}: {error}", directory.display())))?;
    for warning in &selected.warnings {
        eprintln!("preheat: {warning}");
    }
    let taken: Vec<_> = selected.taken.iter().map(|&index| &paths[index]).collect();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(taken.len().max(1));
    let entries = std::thread::scope(|scope| {
        let hands: Vec<_> = (0..threads)
            .map(|_| {
                scope.spawn(|| {
                    let mut mine = Vec::new();
                    while let Some(path) = taken.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let file = directory.join(path);
                        let (size, blake3) = hash_file(&file).with_context(|| format!("hash {}", file.display()))?;
                        mine.push(ManifestEntry::new((*path).clone(), size, blake3));
                    }
                    anyhow::Ok(mine)
                })
            })
            .collect();
        let mut entries = Vec::with_capacity(taken.len());
        for hand in hands {
            let mine = hand.join().map_err(|_| CliError::new(ErrorKind::Internal, "a hashing thread panicked"))?;
            entries.extend(mine?);
        }
        anyhow::Ok(entries)
    })?;
    Manifest::new(Kind::Model, entries)
        .map_err(|error| CliError::invalid(format!("{}: {error}", directory.display())).into())
}
