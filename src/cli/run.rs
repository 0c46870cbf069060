//! `preheat run -- CMD`: the command, with what was compiled for it. Whatever is wrong with preheat, the command runs.

use std::ffi::OsString;
use std::io::ErrorKind as Io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitCode};
use std::sync::Arc;

use super::args::{BundlesArgs, CommandArgs, RunArgs};
use super::engine::{asked, settings};
use super::target;
use crate::base::lifecycle::supervise;
use crate::doors::client::DaemonLibrary;
use crate::engines::fingerprint::{Fingerprint, Scene};
use crate::engines::run::{Ended, Options, Request, pass_on_here};
use crate::engines::{Library, LocalLibrary, Trust};
use crate::origin::Origins;
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
    let signs = || settings(&args.command).is_ok_and(|settings| settings.engines.signing_key_file.is_some());
    if !args.quiet && !args.sign && args.bundles.root.is_some() && args.bundles.daemon.daemon.is_none() && signs() {
        eprintln!(
            "preheat: nothing is signed: this process is the command's user, who could take the key; let a daemon sign, or give --sign"
        );
    }
    let library = supervise("open the library", library(&args.bundles, &args.command, args.sign));
    let library = library.await.unwrap_or_else(|panicked| Err(panicked.to_string()));
    let options = Options {
        lookup_timeout: args.bundles.lookup_timeout.0,
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

/// Where bundles are, or why there is no such place: the daemon that is named, the root that is named, a daemon that is there.
///
/// `sign`: a store of one's own signs, with a key that whoever is the command's user could take.
pub(super) async fn library(args: &BundlesArgs, command: &CommandArgs, sign: bool) -> Result<Arc<dyn Library>, String> {
    let named = args.daemon.daemon.is_some();
    let mut config = settings(command).map_err(|error| error.to_string())?;
    if let (false, Some(root)) = (named, &args.root) {
        if !sign {
            config.engines.signing_key_file = None;
            config.engines.publish.clear();
        }
        let origins = Origins::unguarded(config.origins).map_err(|error| format!("origins: {error}"))?;
        let library = LocalLibrary::open(root, config.engines, origins);
        let library = library.await.map_err(|error| format!("the root {} is of no use: {error}", root.display()))?;
        return Ok(Arc::new(library));
    }
    let daemons = target::candidates(&args.daemon).map_err(|error| error.to_string())?;
    let trust = Trust::new(&config.engines).map_err(|error| error.to_string())?;
    let mut reason = "there is no daemon and no --root, so that there are no bundles".to_owned();
    for client in daemons {
        // One that hangs is treated as none.
        match target::answered(&client, target::patience(&args.daemon), client.node()).await {
            Ok(_) => return Ok(Arc::new(DaemonLibrary::new(client).with_trust(trust))),
            Err(error) => reason = format!("the daemon {client} is of no use: {error:#}"),
        }
    }
    Err(reason)
}
