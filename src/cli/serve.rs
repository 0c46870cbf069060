//! `preheat serve`: the node daemon.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use super::args::ServeArgs;
use super::error::CliError;
use crate::config::{Flags, Settings};
use crate::telemetry::logs;

pub(super) fn run(args: ServeArgs) -> anyhow::Result<ExitCode> {
    logs::init(logs::Format::Auto, "info");
    let (config, flags) = flags(args);
    let settings =
        Settings::load(config.as_deref(), &flags).map_err(|problems| CliError::invalid(problems.to_string()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(crate::daemon::serve(settings, |address| {
        let mut stdout = std::io::stdout().lock();
        // Whoever started us may have closed it; the log has the address too.
        let _ = writeln!(stdout, "{address}").and_then(|()| stdout.flush());
    }));
    runtime.shutdown_timeout(std::time::Duration::from_secs(5));
    outcome.map(|()| ExitCode::SUCCESS)
}

/// The file and the flags of a daemon's configuration.
pub(super) fn flags(args: ServeArgs) -> (Option<PathBuf>, Flags) {
    let ServeArgs { root, listen, socket, config, allow_origin, token_file } = args;
    (config, Flags { root, listen, socket, allow_origin, token_file })
}
