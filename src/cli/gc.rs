//! `preheat gc`: gives space back, by the daemon if one runs, else on the store itself.

use std::process::ExitCode;

use super::args::GcArgs;
use super::direct::Direct;
use super::error::CliError;
use super::progress::Meter;
use super::target;
use crate::base::lifecycle::CancellationToken;
use crate::base::units::ByteSize;
use crate::prewarm::wire::{GcReport, GcRequest};
use crate::store::ReadOnlyStore;

pub(super) async fn run(args: GcArgs) -> anyhow::Result<ExitCode> {
    let report: GcReport = match &args.root {
        Some(root) if args.daemon.daemon.is_none() => {
            // A mistyped root is no reason to make a store there.
            ReadOnlyStore::open(root)?;
            let meter = Meter::new("gc", args.json);
            let direct = Direct::open(root, &meter, &CancellationToken::new()).await?;
            let (store, all) = (direct.store().clone(), args.all);
            let done = tokio::task::spawn_blocking(move || store.gc(all)).await??;
            direct.close(true).await?;
            done.into()
        }
        _ => {
            let client = target::required(&args.daemon)?;
            let request = GcRequest { all: args.all };
            client.gc(request).await.map_err(|error| CliError::new(error.kind(), error.to_string()))?
        }
    };
    if args.json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} models, {} blobs, {} given back", report.models.len(), report.blobs, ByteSize(report.bytes));
    for kept in &report.kept {
        println!("{} stays: {}", kept.model, kept.why);
    }
    Ok(ExitCode::SUCCESS)
}
