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
mod factors;
mod output;
mod prepare;
mod prove;
mod ready;
mod report;
mod scan;
mod unready;
mod verdict;
mod view;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use self::child::{Child, Phase, Signals, code, words};
use self::output::Listener;
pub use self::output::{Heard, VERB as PASS_ON, pass_on_here};
use self::prepare::{A_WORD, Prepared, fill_in, prepare, within};
use self::prove::Proof;
pub use self::ready::Probe;
pub use self::report::{OfKind, Report};
pub use self::verdict::{Counts, Verdict};
pub use self::view::Placement;
use super::fingerprint::{Fingerprint, Scene};
use super::{AttemptEnd, Library};
use crate::base::lifecycle::{CancellationToken, supervise};
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
    let prepared = supervise("prepare", prepare(&request)).await;
    let mut prepared = prepared.unwrap_or_else(|panicked| Prepared::plain(panicked.to_string()));
    fill_in(&mut prepared);
    let probe = match &request.fingerprint {
        Ok(fingerprint) => request.options.ready.clone().unwrap_or_else(|| Probe::of(fingerprint.ready())),
        Err(_) => request.options.ready.clone().unwrap_or(Probe::Exit),
    };
    let mut start = Start { request, probe, signals: &mut signals };
    let (mut child, mut phase, mut heard) = start.attempt(&mut prepared).await?;
    let mut broken = None;
    if let Phase::Ended(status) = phase
        && let Some(why) = start.failed_with_bundle(&mut prepared, &child, status, &heard).await
    {
        for kind in &mut prepared.kinds {
            if let Some(held) = kind.restored.take() {
                kind.reason = format!("a start with bundle {} failed: {why}", held.bundle.id);
                kind.trial = held.attempt.map(|attempt| (held.bundle, attempt));
            }
        }
        wipe(&mut prepared);
        fill_in(&mut prepared);
        prepared.report.retried = true;
        broken = Some(why);
        (child, phase, heard) = start.attempt(&mut prepared).await?;
    }
    let status = start.finish(&mut prepared, child, phase, heard, broken).await;
    prepared.report.exit_code = Some(code(status));
    start.write(&mut prepared.report);
    Ok(Ended { report: prepared.report, status })
}

struct Start<'a> {
    request: Request,
    probe: Probe,
    signals: &'a mut Signals,
}

impl Start<'_> {
    /// Starts the command and waits until it is ready or has ended.
    async fn attempt(&mut self, prepared: &mut Prepared) -> std::io::Result<(Child, Phase, Listener)> {
        let profile = self.request.fingerprint.as_ref().ok().map(|fingerprint| &fingerprint.profile);
        let log = profile.map(|profile| profile.log.clone()).unwrap_or_default();
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
                    kind.blocked.get_or_insert_with(|| "the view was not used".to_owned());
                }
                prepared.placed = None;
                prepared.report.view = Placement::InPlace;
                fill_in(prepared);
            }
        }
        let mut child = started?;
        let patience = self.request.options.ready_timeout;
        let mut phase = child.until_ready(&self.probe, &listener, patience, self.signals).await;
        if matches!(phase, Phase::Late) && self.probe != Probe::Exit {
            let why = format!("it was not ready after {} s", patience.as_secs());
            prepared.report.notes.push(why);
            let with_bundle = prepared.kinds.iter().any(|kind| kind.restored.is_some());
            if self.request.options.retry_cold && with_bundle {
                phase = Phase::Ended(child.end(self.signals).await);
                child.told = None;
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
        let done = self.probe == Probe::Exit && status.success();
        let by_itself = self.probe == Probe::Exit && !self.request.options.retry_cold;
        // Who was told to end has not failed. Of what says when it is ready the attempt stays open: too many of them speak against
        // the bundle. Of what says nothing before its end they would speak against whoever ends it.
        let told = child.told.is_some();
        if done || !with_bundle || told && !by_itself {
            return None;
        }
        let why = format!("{} before it was ready", words(status));
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
        broken: Option<String>,
    ) -> ExitStatus {
        let ready_after = child.started.elapsed().as_secs_f64();
        let (ready, ended) = match phase {
            Phase::Ready => (true, None),
            Phase::Ended(status) => (self.probe == Probe::Exit && status.success(), Some(status)),
            Phase::Late => (false, None),
        };
        self.verdict(prepared, ready, ended, &child, broken.as_deref()).await;
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
            scene: self.request.scene.clone(),
            options: self.request.options.clone(),
            ready: ready_after,
            heard: listener.heard(),
            broken: broken.is_some() || prepared.report.outcome == Verdict::Quarantined,
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

    /// Ends the attempts: what this start says of the bundles that it had, and of those that it was without.
    async fn verdict(
        &self,
        prepared: &mut Prepared,
        ready: bool,
        ended: Option<ExitStatus>,
        child: &Child,
        broken: Option<&str>,
    ) {
        let Ok(library) = &self.request.library else { return };
        let mut told = Vec::new();
        for kind in &mut prepared.kinds {
            if let Some(held) = &mut kind.restored
                && ready
                && let Some(attempt) = held.attempt.take()
            {
                told.push((held.bundle.id, attempt, AttemptEnd::Ready));
            }
            let Some((bundle, attempt)) = kind.trial.clone() else { continue };
            let id = bundle.id;
            if ready {
                let why = broken.map_or_else(|| kind.reason.clone(), str::to_owned);
                let reason = format!("{why}; without it the command came up");
                prepared.report.outcome = Verdict::Quarantined;
                prepared.report.bundle = Some(id.to_string());
                prepared.report.reason = format!("bundle {id} is quarantined: {reason}");
                told.push((id, attempt, AttemptEnd::Quarantine { reason }));
            } else if ended.is_some() && child.told.is_none() {
                let how = ended.map(words).unwrap_or_default();
                prepared.report.reason = format!("the command fails without bundle {id} as well: {how}");
                told.push((id, attempt, AttemptEnd::Cleared));
            }
        }
        if let Some(status) = ended
            && !ready
            && prepared.kinds.iter().all(|kind| kind.trial.is_none())
        {
            let why = if child.told.is_some() { "it was told to end" } else { "the command fails by itself" };
            let before = if self.probe == Probe::Exit { "" } else { " before it was ready" };
            let had = prepared.report.reason.clone();
            prepared.report.reason =
                format!("{why}{before}: {}{}", words(status), if had.is_empty() { had } else { format!(" ({had})") });
        }
        for (bundle, attempt, end) in told {
            if let Err(error) = within(A_WORD, library.end_attempt(&bundle, &attempt, end)).await {
                prepared.report.notes.push(format!("what happened to bundle {bundle} is not noted: {error}"));
            }
        }
    }

    fn write(&self, report: &mut Report) {
        if let Some(path) = &self.request.options.report
            && let Err(error) = report.write(path)
        {
            let note = format!("the report cannot be written to {}: {error}", path.display());
            if !report.notes.contains(&note) {
                report.notes.push(note);
            }
        }
    }
}

/// Takes away what was restored, so that the command begins with empty directories.
fn wipe(prepared: &mut Prepared) {
    let Some(view) = &prepared.view else { return };
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
