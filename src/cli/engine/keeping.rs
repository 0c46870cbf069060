//! `preheat engine pin` and `release`: what people decide about a bundle.

use std::process::ExitCode;

use super::super::args::{EnginePinArgs, EngineReleaseArgs};
use super::super::error::CliError;
use super::super::models;
use super::super::screen::{Screen, print, print_json};
use super::bundles::{find, lines};
use super::library::library;
use crate::engines::BundleRef;
use crate::store::Pin;

pub(super) async fn pin(args: EnginePinArgs) -> anyhow::Result<ExitCode> {
    if !Pin::is_name(&args.pin.name) {
        let what = format!("--name {}: write 1 to 63 characters of a-z, 0-9 and -", args.pin.name);
        return Err(CliError::invalid(what).into());
    }
    let library = library(&args.library, args.settings.config.as_deref(), true).await?;
    let id = find(library.as_ref(), &args.bundle).await?;
    let bundle = if args.pin.remove {
        library.unpin(&id, &args.pin.name).await?
    } else {
        library.pin(&id, &args.pin.name, &args.pin.reason, args.pin.lease.map(|lease| lease.0.as_secs())).await?
    };
    tell(&bundle, args.json)
}

pub(super) async fn release(args: EngineReleaseArgs) -> anyhow::Result<ExitCode> {
    let library = library(&args.library, args.settings.config.as_deref(), true).await?;
    let id = find(library.as_ref(), &args.bundle).await?;
    tell(&library.release(&id, &args.reason).await?, args.json)
}

fn tell(bundle: &BundleRef, json: bool) -> anyhow::Result<ExitCode> {
    if json {
        print_json(bundle)?;
    } else {
        let screen = Screen::of_stdout();
        let lines = lines(bundle, models::now()).into_iter();
        print(lines.map(|line| format!("{}\n", screen.plain(&line))).collect::<String>())?;
    }
    Ok(ExitCode::SUCCESS)
}
