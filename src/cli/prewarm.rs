//! `preheat prewarm`: asks a node to have a model, or a set of them, ready before it is needed.

use std::process::ExitCode;

use super::args::PrewarmArgs;
use super::follow::{follow, outcome};
use super::job;
use super::progress::{Meter, Reading};
use super::screen::{Screen, print, print_json};
use super::target::{answered, patience};
use super::wanted::Wanted;
use crate::prewarm::wire::{EngineState, PrewarmRequest};

pub(super) async fn run(args: PrewarmArgs) -> anyhow::Result<ExitCode> {
    let patience = patience(&args.daemon);
    let Wanted { client, reference, references, tier, priority, deadline_seconds, engine } =
        Wanted::of(args.wanted, &args.daemon)?;
    let request = PrewarmRequest {
        reference,
        references,
        tier,
        priority: Some(priority),
        deadline_seconds,
        lease_seconds: args.lease.map(|lease| lease.0.as_secs()),
        pin: args.pin,
        engine,
        ..PrewarmRequest::default()
    };
    let mut asked = answered(&client, patience, client.prewarm(&request)).await?;
    if args.wait && !asked.state.is_over() {
        let mut meter = Meter::new("prewarm", args.json);
        let followed = follow(&client, &asked.id, patience, |job| {
            meter.update(Reading::of(job));
            Ok(())
        });
        let followed = followed.await;
        meter.finish();
        asked = followed?;
    }
    if args.json {
        print_json(&asked)?;
    } else {
        let screen = Screen::of_stdout();
        print(format!("{}\n", screen.plain(&job::sentence(&asked))))?;
        for engine in asked.engines.iter().filter(|engine| engine.why.is_some() || engine.state == EngineState::Absent)
        {
            let why = engine.why.as_deref().unwrap_or("there is no bundle for it");
            eprintln!("preheat: engine key {}: {}", engine.key, screen.plain(why));
        }
        for warning in &asked.warnings {
            eprintln!("preheat: {}", screen.plain(warning));
        }
    }
    if args.wait || asked.error.is_some() { outcome(&asked, args.json) } else { Ok(ExitCode::SUCCESS) }
}
