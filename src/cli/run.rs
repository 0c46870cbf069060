//! `preheat run -- CMD`: the command, with what was compiled for it. Whatever is wrong with preheat, the command runs.

use std::ffi::OsString;
use std::io::ErrorKind as Io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode};

use super::args::RunArgs;
use super::engine::{asked, library, settings};
use crate::base::lifecycle::supervise;
use crate::engines::fingerprint::{Fingerprint, Scene};
use crate::engines::run::{Ended, Options, Request, pass_on_here};
use crate::sys::signals::{Held, die_of};

pub(super) fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    // Before there is a second thread, so that all of them hold them back.
    let held = match Held::back() {
        Ok(held) => held,
        Err(error) => return Ok(bare(&args.argv, &format!("signals cannot be held back: {error}"))),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            // A program that is not told of its signals is worse than one that is not warm.
            let _ = held.before().install();
            return Ok(bare(&args.argv, &format!("no threads: {error}")));
        }
    };
    let quiet = args.quiet;
    let program = args.argv.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
    let outcome = runtime.block_on(async {
        let request = request(args).await;
        crate::engines::run::run(request, held).await
    });
    // Nothing is under way that anybody waits for.
    runtime.shutdown_background();
    let Ended { report, status } = match outcome {
        Ok(ended) => ended,
        Err(error) => {
            eprintln!("preheat: {program}: {error}");
            // As shells have it.
            return Ok(ExitCode::from(if error.kind() == Io::NotFound { 127 } else { 126 }));
        }
    };
    if !quiet {
        eprintln!("preheat: {}", report.line());
        for note in &report.notes {
            eprintln!("preheat: {note}");
        }
    }
    if let Some(signal) = status.signal() {
        die_of(signal);
        return Ok(ExitCode::from(u8::try_from(128 + signal).unwrap_or(255)));
    }
    Ok(ExitCode::from(u8::try_from(status.code().unwrap_or_default()).unwrap_or(255)))
}

/// The process that passes output on.
pub(super) fn pass_on() -> anyhow::Result<ExitCode> {
    // Whoever reads is gone, and whoever writes hears of it.
    let _ = pass_on_here();
    Ok(ExitCode::SUCCESS)
}

/// Becomes the command.
fn bare(argv: &[OsString], why: &str) -> ExitCode {
    eprintln!("preheat: the command runs cold: {why}");
    let Some((program, arguments)) = argv.split_first() else { return ExitCode::from(127) };
    let error = Command::new(program).args(arguments).exec();
    eprintln!("preheat: {}: {error}", program.to_string_lossy());
    ExitCode::from(if error.kind() == Io::NotFound { 127 } else { 126 })
}

async fn request(args: RunArgs) -> Request {
    let text = args.argv.iter().map(|word| word.to_string_lossy().into_owned()).collect();
    let scene = Scene::of_process(text);
    let fingerprint = supervise("fingerprint", async {
        let (asked, profiles) = asked(&args.command, false).map_err(|error| format!("{error:#}"))?;
        Fingerprint::take(&scene, &asked, &profiles).map_err(|error| error.to_string())
    });
    let fingerprint = fingerprint.await.unwrap_or_else(|panicked| Err(panicked.to_string()));
    let config = args.command.config.as_deref();
    let signs = || settings(config).is_ok_and(|settings| settings.engines.signing_key_file.is_some());
    if !args.quiet && !args.sign && args.library.root.is_some() && args.library.daemon.daemon.is_none() && signs() {
        eprintln!(
            "preheat: nothing is signed: this process is the command's user, who could take the key; let a daemon sign, or give --sign"
        );
    }
    let opened = supervise("open the library", library(&args.library, config, args.sign));
    let library = match opened.await {
        Ok(opened) => opened.map_err(|error| error.to_string()),
        Err(panicked) => Err(panicked.to_string()),
    };
    let options = Options {
        lookup_timeout: args.lookup_timeout.0,
        ready: args.ready,
        ready_timeout: args.ready_timeout.0,
        settle: args.settle.0,
        second_look: args.second_look.0,
        retry_cold: args.retry_cold,
        fresh: args.fresh,
        refresh: args.refresh,
        no_capture: args.no_capture,
        namespaces: !args.no_namespace,
        view_dir: args.view_dir,
        report: args.report,
    };
    Request { argv: args.argv, scene, fingerprint, library, options }
}
