//! `preheat run`: restore what was compiled for this very command, start it, prove that it was used, keep what is new.
//!
//! ```text
//! fingerprint -> lookup -> restore into a view -> put the view where the engine looks -> start
//!   -> ready -> settle -> compare: hit, partial, inert, cold -> capture
//!   -> ended before it was ready: suspect; once more without; ready: quarantined; ended again: cleared
//! ```
//!
//! The outcome says what became of the bundle, as far as the files show it, however the command ended; how that was, and whether the
//! bundle is to blame, is in the reason, the exit code and the bundle's standing.
//!
//! Two promises rule it. It never makes a start worse than none: whatever goes wrong here makes the start a cold one and is told. And
//! it stands aside: streams, terminal, signals and exit code are the command's, and the command does not end when this process does.
//!
//! Turned down: replacing itself by the command (nothing could be proved or captured afterwards), and starting any program a second
//! time when it fails (what it does may not be done twice): only what says that it is ready is, or what somebody says may be.

mod child;
mod conviction;
mod factors;
mod output;
mod prepare;
mod prove;
mod ready;
mod report;
mod scan;
mod shown;
mod unready;
mod verdict;
mod view;

use std::ffi::OsString;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use self::child::{Child, Phase, Signals, code, words};
use self::conviction::keep_noted;
use self::output::Listener;
pub use self::output::{Heard, VERB as PASS_ON, pass_on_here};
use self::prepare::{A_WORD, Prepared, fill_in, prepare, within};
use self::prove::Proof;
pub use self::ready::Probe;
pub use self::report::{OfKind, Report};
use self::shown::READ_ONLY;
pub use self::verdict::{Counts, Verdict};
pub use self::view::Placement;
use super::fingerprint::{Fingerprint, Scene};
use super::{AttemptEnd, Library};
use crate::base::lifecycle::{CancellationToken, supervise};
use crate::sys::launch::adopt_orphans;
use crate::sys::signals::Held;

/// A command to be run.
#[derive(Debug)]
pub struct Request {
    /// As it was given.
    pub argv: Vec<OsString>,
    /// Where it will run.
    pub scene: Scene,
    /// What it is, or why that is not known.
    pub fingerprint: Result<Fingerprint, String>,
    /// Where bundles are, or why there is no such place.
    pub library: Result<Arc<dyn Library>, String>,
    /// How it is to be run.
    pub options: Options,
}

/// How a command is to be run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Longest lookup, of all kinds.
    pub lookup_timeout: Duration,
    /// How it says that it is ready; `None`: as its profile says.
    pub ready: Option<Probe>,
    /// After this it is taken for hanging.
    pub ready_timeout: Duration,
    /// How long its files must not change before they are looked at.
    pub settle: Duration,
    /// When its files are looked at once more.
    pub second_look: Duration,
    /// Start it once more, without a bundle, whenever it fails or hangs with one.
    pub retry_cold: bool,
    /// Begin with empty directories, also where the engine has files of its own.
    pub fresh: bool,
    /// Begin without a bundle, and replace it by what this start has made.
    pub refresh: bool,
    /// Keep nothing.
    pub no_capture: bool,
    /// Whether views may be mounted.
    pub namespaces: bool,
    /// Where views are made.
    pub view_dir: Option<PathBuf>,
    /// Where the report goes.
    pub report: Option<PathBuf>,
}

/// A command that has ended.
#[derive(Debug)]
pub struct Ended {
    /// What there is to say.
    pub report: Report,
    /// How it ended.
    pub status: ExitStatus,
}

/// Longest capture after the command was ended by somebody: who ends a container waits for no more.
const AFTERWARDS: Duration = Duration::from_secs(20);

/// Longest wait for what a capture that is broken off has found out: a look at 200,000 files.
const LAST_LOOK: Duration = Duration::from_secs(3);

/// Runs a command to its end.
///
/// # Errors
/// That it could not be started, which is its own error and not preheat's.
pub async fn run(request: Request, held: Held) -> std::io::Result<Ended> {
    let mut signals = Signals::new(held);
    // Without it a worker that outlives its parent cannot be found; the command runs all the same.
    let _ = adopt_orphans();
    let prepared = tokio::select! {
        biased;
        signal = signals.told() => return Ok(not_started(&request, signal)),
        prepared = supervise("prepare", prepare(&request)) => prepared,
    };
    if let Some(signal) = signals.already_told() {
        return Ok(not_started(&request, signal));
    }
    let mut prepared = prepared.unwrap_or_else(|panicked| Prepared::plain(panicked.to_string()));
    fill_in(&mut prepared);
    let probe = match &request.fingerprint {
        Ok(fingerprint) => {
            let asked = request.options.ready.clone();
            asked.unwrap_or_else(|| Probe::of(fingerprint.ready(), &request.scene.argv))
        }
        Err(_) => request.options.ready.clone().unwrap_or(Probe::Exit),
    };
    let other = probe.answers().await;
    if other {
        prepared
            .report
            .notes
            .push("somebody else answers already where the command will: it is waited for to be gone".to_owned());
    }
    let mut start = Start { request, probe, other, signals: &mut signals };
    let (mut child, mut phase, mut heard) = start.attempt(&mut prepared).await?;
    let mut broken = None;
    if let Phase::Ended(status) = phase
        && let Some(why) = start.failed_with_bundle(&mut prepared, &child, status, &heard).await
        && start.may_start_again(&mut prepared, &mut child).await
    {
        let by_us = child.ended_by_us;
        for kind in &mut prepared.kinds {
            if let Some(held) = kind.restored.take() {
                kind.reason = format!("a start with bundle {} failed: {why}", held.bundle.id);
                kind.shown.clear();
                kind.trial = held.attempt.map(|attempt| (held.bundle, attempt));
            }
        }
        wipe(&mut prepared);
        fill_in(&mut prepared);
        prepared.report.retried = true;
        broken = Some(Broken { why, killed: status.signal() == Some(libc::SIGKILL) && !by_us });
        (child, phase, heard) = start.attempt(&mut prepared).await?;
    }
    let status = start.finish(&mut prepared, child, phase, heard, broken).await;
    prepared.report.exit_code = Some(code(status));
    if wants_to_write(&prepared.report.log) {
        let note = format!("the command says \"{READ_ONLY}\": it may not write to what the store shows it");
        prepared.report.notes.push(note);
    }
    start.write(&mut prepared.report);
    Ok(Ended { report: prepared.report, status })
}

/// Whether the command has said that it may not write. It is listened for only where something is shown.
fn wants_to_write(heard: &Heard) -> bool {
    heard.lines.iter().any(|line| line.contains(READ_ONLY))
}

/// Told to end before there was a command to tell.
fn not_started(request: &Request, signal: i32) -> Ended {
    let mut report = Report::cold("it was told to end before the command was started".to_owned());
    let status = ExitStatus::from_raw(signal);
    report.exit_code = Some(code(status));
    write(&request.options, &mut report);
    Ended { report, status }
}

/// A start with a bundle that has failed.
struct Broken {
    why: String,
    /// Somebody has killed it, which it may not have been to blame for: want of memory does.
    killed: bool,
}

struct Start<'a> {
    request: Request,
    probe: Probe,
    /// Somebody else has answered the probe before.
    other: bool,
    signals: &'a mut Signals,
}

impl Start<'_> {
    /// Starts the command and waits until it is ready or has ended.
    async fn attempt(&mut self, prepared: &mut Prepared) -> std::io::Result<(Child, Phase, Listener)> {
        let profile = self.request.fingerprint.as_ref().ok().map(|fingerprint| &fingerprint.profile);
        let mut log = profile.map(|profile| profile.log.clone()).unwrap_or_default();
        if prepared.kinds.iter().any(|kind| !kind.shown.is_empty()) {
            log.bad.push(READ_ONLY.to_owned());
        }
        let line = match &self.probe {
            Probe::Line(line) => Some(line.as_str()),
            _ => None,
        };
        let listener = Listener::new(&log, line);
        let mut started =
            Child::start(&self.request.argv, prepared.placed.as_ref(), prepared.view.as_ref(), &listener, self.signals);
        if started.is_err() && prepared.placed.is_some() {
            // Perhaps it is the view that is in the way. If it is the command, this says so.
            started = Child::start(&self.request.argv, None, None, &listener, self.signals);
            if let Ok(_child) = &started {
                prepared.report.notes.push("the command cannot be started with its view, and is without".to_owned());
                for kind in &mut prepared.kinds {
                    kind.restored = None;
                    kind.shown.clear();
                    kind.blocked.get_or_insert_with(|| "the view was not used".to_owned());
                }
                prepared.placed = None;
                prepared.report.view = Placement::InPlace;
                fill_in(prepared);
            }
        }
        let mut child = started?;
        let patience = self.request.options.ready_timeout;
        let library = self.request.library.as_deref().ok();
        let mut phase = tokio::select! {
            phase = child.until_ready(&self.probe, self.other, &listener, patience, self.signals) => phase,
            never = keep_noted(library, &mut prepared.kinds) => never,
        };
        if matches!(phase, Phase::Late) && !matches!(self.probe, Probe::Exit | Probe::Silent) {
            let why = format!("it was not ready after {} s", patience.as_secs());
            prepared.report.notes.push(why);
            let with_bundle = prepared.kinds.iter().any(|kind| kind.restored.is_some());
            if self.request.options.retry_cold && with_bundle {
                phase = Phase::Ended(child.end(self.signals).await);
            }
        }
        Ok((child, phase, listener))
    }

    /// Whether a command that has ended is to be started again without its bundle, and why.
    async fn failed_with_bundle(
        &self,
        prepared: &mut Prepared,
        child: &Child,
        status: ExitStatus,
        heard: &Listener,
    ) -> Option<String> {
        let with_bundle = prepared.kinds.iter().any(|kind| kind.restored.is_some());
        // Whatever it was asked to do, it has done.
        let done = status.success();
        let by_itself = self.probe == Probe::Exit && !self.request.options.retry_cold;
        // Who was told to end has not failed. What that says of the bundle is for `verdict`; of what says nothing before its end it
        // says nothing.
        let told = child.told.is_some();
        if done || !with_bundle || told && !by_itself {
            return None;
        }
        // Somebody has killed it, for want of memory as a rule: an attempt that stays open.
        if by_itself && !told && status.signal() == Some(libc::SIGKILL) {
            return None;
        }
        let read_only = if wants_to_write(&heard.heard()) { ": it may not write to what it is shown" } else { "" };
        let why = format!("{} before it was ready{read_only}", words(status));
        // A program that may not be run twice says by its code what it likes; a signal, or its own word, speaks against the bundle.
        let end = if by_itself && (told || status.code().is_some()) && heard.heard().bad == 0 {
            AttemptEnd::Cleared
        } else {
            AttemptEnd::Suspect { reason: why.clone() }
        };
        for kind in &mut prepared.kinds {
            let Some(held) = &mut kind.restored else { continue };
            // For a verdict after the second start the attempt is kept.
            let attempt = if by_itself { held.attempt.take() } else { held.attempt.clone() };
            let (Some(attempt), Ok(library)) = (attempt, &self.request.library) else { continue };
            if let Err(error) = within(A_WORD, library.end_attempt(&held.bundle.id, &attempt, end.clone())).await {
                prepared.report.notes.push(format!("what happened to bundle {} is not noted: {error}", held.bundle.id));
            }
        }
        (!by_itself).then_some(why)
    }

    /// From being ready, or having ended, to the end.
    async fn finish(
        &mut self,
        prepared: &mut Prepared,
        mut child: Child,
        phase: Phase,
        listener: Listener,
        broken: Option<Broken>,
    ) -> ExitStatus {
        let ready_after = child.started.elapsed().as_secs_f64();
        let (ready, ended) = match phase {
            Phase::Ready => (true, None),
            // What serves and was told to end may end well without ever having been ready.
            Phase::Ended(status) => {
                (status.success() && (self.probe == Probe::Exit || child.told.is_none()), Some(status))
            }
            Phase::Late => (false, None),
        };
        let convicted = self.verdict(prepared, ready, ended, &child, broken.as_ref()).await;
        if !ready {
            return self.unready(prepared, child, ended, listener).await;
        }
        prepared.report.ready_seconds = Some(ready_after);
        let (Ok(fingerprint), Ok(library)) = (&self.request.fingerprint, &self.request.library) else {
            self.write(&mut prepared.report);
            return match ended {
                Some(status) => status,
                None => child.until_end(self.signals).await,
            };
        };
        let proof = Proof {
            library: Arc::clone(library),
            fingerprint: fingerprint.clone(),
            options: self.request.options.clone(),
            ready: ready_after,
            heard: listener.heard(),
            broken: convicted,
            ended: CancellationToken::new(),
            hurry: CancellationToken::new(),
        };
        if ended.is_some() {
            proof.ended.cancel();
        }
        let (over, hurry) = (proof.ended.clone(), proof.hurry.clone());
        let mut taken = std::mem::replace(prepared, Prepared::plain(String::new()));
        let mut proving = tokio::spawn(async move {
            proof.prove(&mut taken).await;
            (taken, proof)
        });
        let status = match ended {
            Some(status) => status,
            None => {
                tokio::select! {
                    status = child.until_end(self.signals) => status,
                    done = &mut proving => {
                        let Ok((done, proof)) = done else { return child.until_end(self.signals).await };
                        *prepared = done;
                        prepared.report.log = listener.heard();
                        self.write(&mut prepared.report);
                        return self.until_end(prepared, &mut child, &proof).await;
                    }
                }
            }
        };
        // It has ended while it was looked at. Who was told to end has little time left.
        over.cancel();
        let stop = async {
            if child.told.is_none() && ended.is_some() {
                loop {
                    let received = self.signals.next().await;
                    if matches!(received.signal, libc::SIGTERM | libc::SIGINT | libc::SIGHUP | libc::SIGQUIT) {
                        return;
                    }
                }
            }
            tokio::time::sleep(AFTERWARDS).await;
        };
        tokio::select! {
            done = &mut proving => if let Ok((done, _)) = done {
                *prepared = done;
            },
            () = stop => {
                hurry.cancel();
                match tokio::time::timeout(LAST_LOOK, &mut proving).await {
                    Ok(Ok((done, _))) => *prepared = done,
                    _ => {
                        proving.abort();
                        prepared.report.ready_seconds = Some(ready_after);
                        prepared.report.reason = "it was told to end before anything was proved".to_owned();
                    }
                }
            }
        }
        prepared.report.log = listener.heard();
        status
    }

    /// The long part: it serves. Its files are looked at once more.
    async fn until_end(&mut self, prepared: &mut Prepared, child: &mut Child, proof: &Proof) -> ExitStatus {
        let second = self.request.options.second_look;
        let later = async {
            tokio::time::sleep(second).await;
            if !second.is_zero() {
                proof.prove_again(prepared).await;
            }
        };
        tokio::select! {
            status = child.until_end(self.signals) => return status,
            () = later => {}
        }
        self.write(&mut prepared.report);
        child.until_end(self.signals).await
    }

    fn write(&self, report: &mut Report) {
        write(&self.request.options, report);
    }
}

fn write(options: &Options, report: &mut Report) {
    if let Some(path) = &options.report
        && let Err(error) = report.write(path)
    {
        let note = format!("the report cannot be written to {}: {error}", path.display());
        if !report.notes.contains(&note) {
            report.notes.push(note);
        }
    }
}

/// Takes away what was restored, so that the command begins with empty directories.
fn wipe(prepared: &mut Prepared) {
    let Some(view) = &prepared.view else { return };
    if let Some(placed) = &mut prepared.placed {
        placed.mounts.clone_from(&placed.plain);
        if placed.how == Placement::Linked {
            shown::unlink(view.path());
            placed.inside.clear();
            placed.how = Placement::InPlace;
            prepared.report.view = Placement::InPlace;
            for kind in &mut prepared.kinds {
                kind.blocked.get_or_insert_with(|| "the engine has used its own directory".to_owned());
            }
        }
    }
    let roots: Vec<_> = prepared.kinds.iter().flat_map(|kind| kind.roots.clone()).collect();
    for kind in &prepared.kinds {
        if let Err(error) = view.wipe(kind.kind) {
            prepared.report.notes.push(format!("the view cannot be emptied: {error}"));
        }
    }
    if let Err(error) = view.fill(&roots) {
        prepared.report.notes.push(format!("the view cannot be filled: {error}"));
    }
    prepared.before = scan::Snapshot::new();
    // What is left of a view that could not be emptied is not what the command may have.
}
