//! The command line: one file a verb. Results go to stdout, and nothing else does, so that `$(preheat fetch ...)` is a path;
//! progress, notes and errors go to stderr. Exit codes are those of [`ErrorKind::exit_code`].

mod args;
#[cfg(feature = "demo")]
mod demo;
mod destination;
mod direct;
mod error;
mod fetch;
mod gc;
mod hash_file;
mod import;
mod manifest;
mod models;
mod node_stream;
mod place;
mod prewarm;
mod progress;
mod push;
mod serve;
mod target;
mod verify;

use std::process::ExitCode;

use clap::Parser;

pub use args::Cli;
use args::Verb;
use error::report;

use crate::base::ErrorKind;

/// Parses the arguments, runs the verb, reports its error.
#[must_use]
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
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
    let outcome = run(cli);
    match outcome {
        Ok(code) => code,
        Err(error) => report(&error),
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let verb = cli.verb;
    if !matches!(verb, Verb::Serve(_)) {
        // Verbs for people speak for themselves; their logs are for finding faults.
        crate::telemetry::logs::init(crate::telemetry::logs::Format::Text, "warn");
    }
    match verb {
        Verb::Serve(args) => serve::run(args),
        Verb::Fetch(args) => block_on(fetch::run(args)),
        Verb::Prewarm(args) => block_on(prewarm::run(args)),
        Verb::Push(args) => block_on(push::run(args)),
        Verb::Import(args) => block_on(import::run(args)),
        Verb::Manifest(args) => manifest::run(&args),
        Verb::Verify(args) => verify::run(&args),
        Verb::Models(args) => block_on(models::run(args)),
        Verb::Gc(args) => block_on(gc::run(args)),
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
