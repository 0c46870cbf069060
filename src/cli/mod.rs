//! The command line: one file a verb. Results go to stdout, and nothing else does, so that `$(preheat fetch ...)` is a path;
//! progress, notes and errors go to stderr. Exit codes are those of [`ErrorKind::exit_code`].

mod args;
mod cancel;
mod completions;
mod config;
#[cfg(feature = "demo")]
mod demo;
mod destination;
mod direct;
mod engine;
mod error;
mod estimate;
mod exit;
mod fetch;
mod follow;
mod gc;
mod hash_file;
mod import;
mod job;
mod man;
mod manifest;
mod models;
mod node_stream;
mod picture;
mod pin;
mod place;
mod prewarm;
mod progress;
mod push;
mod run;
mod screen;
mod serve;
mod status;
mod target;
mod verify;
mod wanted;
mod words;

use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory, FromArgMatches};

pub use args::Cli;
use args::Verb;
use error::{CliError, report};

use crate::base::ErrorKind;

/// Parses the arguments, runs the verb, reports its error.
#[must_use]
pub fn main() -> ExitCode {
    // The matches say what the arguments do not: whether a value was written or found in the environment.
    let parsed = Cli::command().try_get_matches().and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(usage) => {
            let code = if usage.use_stderr() { ErrorKind::Invalid.exit_code() } else { 0 };
            // Nobody is left to tell if stderr is closed.
            let _ = usage.print();
            return ExitCode::from(code);
        }
    };
    // A kernel that refuses leaves things as they were; nothing of ours depends on it.
    let _ = crate::sys::dump::forbid();
    crate::origin::install_tls_provider();
    let outcome = run(cli, &matches);
    match outcome {
        Ok(code) => code,
        Err(error) => report(&error),
    }
}

fn run(cli: Cli, matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let verb = cli.verb;
    if !matches!(verb, Verb::Serve(_)) {
        // Verbs for people speak for themselves; their logs are for finding faults.
        crate::telemetry::logs::init(crate::telemetry::logs::Format::Text, "warn");
    }
    // What `run` and `engine` start has the limits that they were given themselves. A refusal leaves things as they were.
    if !matches!(verb, Verb::Run(_) | Verb::PassOn | Verb::Engine(_)) {
        let _ = crate::sys::open_files::raise_limit();
    }
    match verb {
        Verb::Serve(args) => serve::run(args),
        Verb::Fetch(args) => block_on(fetch::run(args)),
        Verb::Prewarm(args) => block_on(until_interrupted(prewarm::run(args))),
        Verb::Estimate(args) => block_on(until_interrupted(estimate::run(args))),
        Verb::Status(args) => block_on(until_interrupted(status::run(args))),
        Verb::Cancel(args) => block_on(until_interrupted(cancel::run(args))),
        Verb::Pin(args) => block_on(until_interrupted(pin::run(args))),
        Verb::Models(args) => block_on(until_interrupted(models::run(args))),
        Verb::Push(args) => block_on(push::run(args)),
        Verb::Import(args) => block_on(import::run(args)),
        Verb::Run(args) => run::run(args),
        Verb::PassOn => run::pass_on(),
        Verb::Engine(args) => engine::run(args),
        Verb::Manifest(args) => manifest::run(&args),
        Verb::Verify(args) => verify::run(&args),
        Verb::Gc(args) => block_on(gc::run(args)),
        Verb::Config(args) => config::run(args, matches),
        Verb::Completions(args) => completions::run(&args),
        Verb::Man(args) => man::run(&args),
        #[cfg(feature = "demo")]
        Verb::Demo(args) => block_on(demo::run(args)),
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(work);
    // A stuck blocking call must not keep an init container from ending.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    outcome
}

/// Runs a verb that asks a daemon; an interruption ends it with its own exit code.
async fn until_interrupted(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        outcome = work => outcome,
        _ = interrupt.recv() => Err(interrupted().into()),
        _ = terminate.recv() => Err(interrupted().into()),
    }
}

fn interrupted() -> CliError {
    CliError::new(ErrorKind::Cancelled, "interrupted; a job that the node has begun goes on")
}
