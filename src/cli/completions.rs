//! `preheat completions`: what a shell asks for to complete verbs and flags, from the definition that also parses them.

use std::process::ExitCode;

use clap::CommandFactory;

use super::args::{Cli, CompletionsArgs};
use super::screen::print;

pub(super) fn run(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "preheat", &mut script);
    print(script)?;
    Ok(ExitCode::SUCCESS)
}
