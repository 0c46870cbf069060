//! `preheat cancel`: calls a job off, and answers when it has ended. A verb and no flag of `prewarm`, which would have to do
//! without its reference then, and none of whose other flags would mean anything.

use std::process::ExitCode;

use super::args::CancelArgs;
use super::follow::follow;
use super::job;
use super::screen::{Screen, print, print_json};
use super::target::{self, answered, patience};

pub(super) async fn run(args: CancelArgs) -> anyhow::Result<ExitCode> {
    let client = target::required(&args.daemon)?;
    let patience = patience(&args.daemon);
    let mut called_off = answered(&client, patience, client.cancel(&args.job)).await?;
    // It lets go of what it holds when it has ended, not when it is told to.
    if !called_off.state.is_over() {
        called_off = follow(&client, &called_off.id, patience, |_| Ok(())).await?;
    }
    if args.json {
        print_json(&called_off)?;
    } else {
        let said = format!("{}: {}", called_off.id, job::state(&called_off));
        print(format!("{}\n", Screen::of_stdout().plain(&said)))?;
    }
    Ok(ExitCode::SUCCESS)
}
