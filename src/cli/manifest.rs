//! `preheat manifest DIR`: the manifest that an HTTP server or a bucket publishes beside its files.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use super::args::ManifestArgs;
use crate::base::lifecycle::CancellationToken;
use crate::model::{Manifest, Selection};
use crate::placement::{Directory, HashedFile};

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

/// The manifest of what a fetch of `directory` would take.
pub(super) fn of_directory(directory: &Path) -> anyhow::Result<Manifest> {
    let listed = Directory::list(directory, &Selection::default())?;
    for warning in &listed.warnings {
        eprintln!("preheat: {warning}");
    }
    let files = listed.hash(&|_| {}, &CancellationToken::new())?;
    Ok(HashedFile::manifest(&files)?)
}
