//! What a start says of bundles: of those that it had, and of those that it was without.
//!
//! A bundle is quarantined on evidence: a start with it has failed while this process looked on, and one without it came up. A start
//! that was broken off says less. Somebody scales down, interrupts, or takes its memory away; so what was told to end early says
//! nothing, what was killed or was told to end long after it should have been ready counts as an open attempt, and a start without
//! the bundle that comes up after such ones lets it off once before it convicts. A start of which nobody can see how it goes says
//! nothing either way.

use std::process::ExitStatus;
use std::time::Duration;

use super::child::{Child, Phase, clear_out, words};
use super::prepare::{A_WORD, Kind, Prepared, UNDER_WAY, is_overdue, within};
use super::ready::Probe;
use super::verdict::Verdict;
use super::{Broken, Start};
use crate::engines::{AttemptEnd, BundleRef, Library, Standing};

/// Notes the attempts of a start anew while it is under way, so that only those that nobody stands for grow old. Never ends.
pub(super) async fn keep_noted(library: Option<&dyn Library>, kinds: &mut [Kind]) -> Phase {
    let Some(library) = library else { return std::future::pending().await };
    loop {
        // Twice in the time after which an attempt is old.
        tokio::time::sleep(UNDER_WAY / 2).await;
        for held in kinds.iter_mut().filter_map(|kind| kind.restored.as_mut()) {
            let Some(before) = held.attempt.clone() else { continue };
            // What cannot be noted now is noted as it was.
            let Ok(now) = within(A_WORD, library.begin_attempt(&held.bundle.id)).await else { continue };
            held.attempt = Some(now);
            let _ = within(A_WORD, library.end_attempt(&held.bundle.id, &before, AttemptEnd::Unknown)).await;
        }
    }
}

/// How a start without a bundle that comes up ends the bundle's trial.
fn came_up(bundle: &BundleRef, reason: String, broken: Option<&Broken>) -> (AttemptEnd, bool) {
    let seen = match broken {
        Some(broken) => !broken.killed,
        None => matches!(bundle.standing, Standing::Suspect { .. }),
    };
    if seen { (AttemptEnd::Quarantine { reason }, true) } else { (AttemptEnd::Doubt { reason }, bundle.doubted) }
}

impl Start<'_> {
    /// Ends what a failed command has left behind, so that it is in nobody's way. False: it has been told to end meanwhile.
    pub(super) async fn may_start_again(&mut self, prepared: &mut Prepared, child: &mut Child) -> bool {
        if !clear_out().await {
            prepared.left_behind = true;
            prepared
                .report
                .notes
                .push("processes of the start that failed are still there, and cannot be ended".to_owned());
        }
        child.told = self.signals.already_told().or(child.told);
        child.told.is_none()
    }

    /// Ends the attempts: what this start says of the bundles that it had, and of those that it was without. True: one is
    /// quarantined.
    pub(super) async fn verdict(
        &self,
        prepared: &mut Prepared,
        ready: bool,
        ended: Option<ExitStatus>,
        child: &Child,
        broken: Option<&Broken>,
    ) -> bool {
        let Ok(library) = &self.request.library else { return false };
        let (mut said, mut convicted, took) = (Vec::new(), false, child.started.elapsed());
        for kind in &mut prepared.kinds {
            if let Some(held) = &mut kind.restored {
                let end = if ready { Some(AttemptEnd::Ready) } else { self.unseen(&held.bundle, ended, child, took) };
                if let (Some(end), Some(attempt)) = (end, held.attempt.clone()) {
                    held.attempt = None;
                    said.push((held.bundle.id, attempt, end));
                }
            }
            let Some((bundle, attempt)) = kind.trial.clone() else { continue };
            let id = bundle.id;
            let end = if ready {
                let why = broken.map_or_else(|| kind.reason.clone(), |broken| broken.why.clone());
                let reason = format!("{why}; without it the command came up");
                let (end, guilty) = came_up(&bundle, reason.clone(), broken);
                if guilty {
                    convicted = true;
                    prepared.report.outcome = Verdict::Quarantined;
                    prepared.report.bundle = Some(id.to_string());
                    prepared.report.reason = format!("bundle {id} is quarantined: {reason}");
                } else {
                    prepared.report.reason = format!(
                        "bundle {id} is tried once more at the next start, since nobody has seen what it did: {reason}"
                    );
                }
                end
            } else if let Some(status) = ended.filter(|_| child.told.is_none()) {
                prepared.report.reason = format!("the command fails without bundle {id} as well: {}", words(status));
                // Unless it fails for what the start before it has left behind.
                if prepared.left_behind { AttemptEnd::Unknown } else { AttemptEnd::Cleared }
            } else if ended.is_none() && bundle.standing == Standing::Clean && broken.is_none() {
                // It is never seen to be ready, with or without.
                AttemptEnd::Cleared
            } else {
                AttemptEnd::Unknown
            };
            said.push((id, attempt, end));
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
        for (bundle, attempt, end) in said {
            if let Err(error) = within(A_WORD, library.end_attempt(&bundle, &attempt, end)).await {
                prepared.report.notes.push(format!("what happened to bundle {bundle} is not noted: {error}"));
            }
        }
        convicted
    }

    /// How the attempt of a start that was not seen to be ready ends; `None`: it stays open, and speaks against the bundle.
    fn unseen(
        &self,
        bundle: &BundleRef,
        ended: Option<ExitStatus>,
        child: &Child,
        took: Duration,
    ) -> Option<AttemptEnd> {
        let told = child.told.is_some() && (self.probe == Probe::Silent || !is_overdue(bundle, took));
        (ended.is_none() || told).then_some(AttemptEnd::Unknown)
    }
}
