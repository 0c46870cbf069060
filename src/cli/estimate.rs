//! `preheat estimate`: asks a node how long a prewarm would take, and starts nothing.

use std::process::ExitCode;
use std::time::Duration;

use super::args::EstimateArgs;
use super::screen::{Screen, print, print_json};
use super::target::{answered, patience};
use super::wanted::Wanted;
use super::words;
use crate::base::ErrorKind;
use crate::prewarm::wire::{EstimateRequest, Verdict};

/// What an answer takes beyond the daemon's own: the origin lists its files first, and one in trouble is asked again for half a
/// minute.
const LISTING: Duration = Duration::from_secs(60);

pub(super) async fn run(args: EstimateArgs) -> anyhow::Result<ExitCode> {
    let patience = patience(&args.daemon) + LISTING;
    let Wanted { client, reference, references, tier, priority, deadline_seconds, engine } =
        Wanted::of(args.wanted, &args.daemon)?;
    let request = EstimateRequest {
        reference,
        references,
        tier,
        priority: Some(priority),
        deadline_seconds,
        engine,
        credential: None,
    };
    let estimate = answered(&client, patience, client.estimate(&request)).await?;
    if args.json {
        print_json(&estimate)?;
    } else {
        let screen = Screen::of_stdout();
        let mut lines = vec![words::estimate(&estimate, tier)];
        lines.extend(estimate.rates.iter().map(|rate| format!("  {}", words::rate(rate))));
        if let Some((verdict, seconds)) = estimate.deadline.zip(deadline_seconds) {
            lines.push(format!("{} ({})", words::verdict(verdict), words::seconds(seconds)));
        }
        print(lines.iter().map(|line| format!("{}\n", screen.plain(line))).collect::<String>())?;
    }
    let missed = estimate.deadline == Some(Verdict::Missed);
    Ok(if missed { ExitCode::from(ErrorKind::Timeout.exit_code()) } else { ExitCode::SUCCESS })
}
