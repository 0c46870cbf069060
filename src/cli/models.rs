//! `preheat models`: what a store has. With a root it looks itself, without lock; else it asks the daemon.

use std::process::ExitCode;

use super::args::ModelsArgs;
use super::error::CliError;
use super::target;
use crate::base::units::ByteSize;
use crate::prewarm::wire::ModelView;
use crate::store::ReadOnlyStore;

pub(super) async fn run(args: ModelsArgs) -> anyhow::Result<ExitCode> {
    let models: Vec<ModelView> = match &args.root {
        Some(root) if args.daemon.daemon.is_none() => {
            ReadOnlyStore::open(root)?.models()?.into_iter().map(ModelView::from).collect()
        }
        _ => {
            let client = target::required(&args.daemon)?;
            client.models().await.map_err(|error| CliError::new(error.kind(), error.to_string()))?
        }
    };
    if args.json {
        println!("{}", serde_json::to_string(&models)?);
        return Ok(ExitCode::SUCCESS);
    }
    for model in &models {
        let durable = if model.durable { "durable" } else { "not yet durable" };
        let kept = if model.pins.is_empty() { String::new() } else { format!(", {} pins", model.pins.len()) };
        println!(
            "{}  {}  {durable}{kept}\n    {}\n    {}",
            model.id,
            ByteSize(model.bytes),
            model.reference,
            model.path.display()
        );
    }
    Ok(ExitCode::SUCCESS)
}
