//! After the command is ready: what it has made of what was restored, and what of its own is worth keeping.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::output::Heard;
use super::prepare::{A_WORD, Kind, Prepared, within};
use super::report::{OfKind, stages};
use super::scan::{Snapshot, Watched, scan, summary};
use super::verdict::{Counts, Verdict};
use super::{Options, factors};
use crate::base::lifecycle::CancellationToken;
use crate::engines::fingerprint::Fingerprint;
use crate::engines::library::Outcome;
use crate::engines::{Capture, CaptureRoot, Captured, Library, RunReport};
use crate::model::engine::BundleKind;
use crate::model::{BundleId, Evidence, ManifestEntry};
use crate::sys::mutant::mutant;

/// Between two looks at the files.
const LOOK: Duration = Duration::from_millis(500);

/// Longest wait for files that never come to rest.
const SETTLE_MOST: Duration = Duration::from_secs(120);

/// Longest capture: some gigabytes to a slow disk, beside a start that is over.
const CAPTURE_MOST: Duration = Duration::from_secs(900);

/// Starts at once do not all capture: each waits for a moment of its own, and looks whether another has been first.
const BACKOFF: Duration = Duration::from_millis(1500);

/// What proving needs of a start.
pub(super) struct Proof {
    pub(super) library: Arc<dyn Library>,
    pub(super) fingerprint: Fingerprint,
    pub(super) options: Options,
    /// Seconds from the start until it was ready.
    pub(super) ready: f64,
    pub(super) heard: Heard,
    /// Bundles that have broken it: what it has made without them takes their place.
    pub(super) broken: bool,
    /// The command has ended, so that nothing moves any more.
    pub(super) ended: CancellationToken,
    /// There is no time left for more than saying what was found.
    pub(super) hurry: CancellationToken,
}

/// Waits until nothing changes any more, for a while.
pub(super) async fn settle(watched: &[Watched], still: Duration) {
    let started = Instant::now();
    let (mut last, mut since) = (summary(&scan(watched)), Instant::now());
    while since.elapsed() < still && started.elapsed() < SETTLE_MOST {
        tokio::time::sleep(LOOK.min(still)).await;
        let now = summary(&scan(watched));
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}

impl Proof {
    /// Compares and captures. Fills the report in.
    pub(super) async fn prove(&self, prepared: &mut Prepared) {
        let watched = prepared.watched(&self.fingerprint);
        tokio::select! {
            biased;
            () = self.ended.cancelled() => {}
            () = settle(&watched, self.options.settle) => {}
        }
        let after = scan(&watched);
        self.judge(prepared, &after);
        let mut kinds = std::mem::take(&mut prepared.kinds);
        for (at, kind) in kinds.iter_mut().enumerate() {
            let (capture, captured) = tokio::select! {
                biased;
                kept = self.capture(prepared, kind, at) => kept,
                () = self.hurry.cancelled() => ("not kept: the command was told to end, and there was no time".to_owned(), None),
            };
            kind.kept = captured;
            let captured = captured.map(|id| id.to_string());
            if let Some(shown) = prepared.report.bundles.get_mut(at) {
                prepared.report.captured |= captured.is_some();
                shown.captured = captured;
                shown.capture = capture;
            }
        }
        prepared.kinds = kinds;
        prepared.before = after;
        let parts: Vec<String> =
            prepared.report.bundles.iter().map(|shown| format!("{}: {}", shown.kind, shown.capture)).collect();
        prepared.report.capture = parts.join("; ");
        tell(self.library.as_ref(), prepared).await;
    }

    fn judge(&self, prepared: &mut Prepared, after: &Snapshot) {
        let entries = compare(prepared, after, Counts::judge);
        if self.broken {
            for (kind, shown) in prepared.kinds.iter().zip(&mut prepared.report.bundles) {
                if kind.trial.is_some() {
                    shown.outcome = Verdict::Quarantined;
                }
            }
        }
        let (outcome, mut reason) = prepared.report.files.judge();
        let report = &mut prepared.report;
        if self.broken {
            report.outcome = Verdict::Quarantined;
            return;
        }
        report.outcome = outcome;
        match outcome {
            Verdict::Cold => return,
            Verdict::Inert | Verdict::Partial => {
                if let Some(view) = &prepared.view
                    && let Some(found) = factors::differing(&self.fingerprint.profile, view.path(), &entries, after)
                {
                    reason.push_str(&format!("; {found}"));
                }
            }
            _ => {}
        }
        if self.heard.bad > 0 {
            reason.push_str(&format!("; its log says {} times that something could not be used", self.heard.bad));
        }
        report.reason = reason;
        report.saved_seconds = report.cold_seconds.map(|cold| cold - self.ready);
    }

    async fn capture(&self, prepared: &Prepared, kind: &Kind, at: usize) -> (String, Option<BundleId>) {
        let Some(shown) = prepared.report.bundles.get(at) else { return ("nothing new".to_owned(), None) };
        if self.options.no_capture {
            return ("not wanted".to_owned(), None);
        }
        if let Some(why) = &kind.blocked {
            return (why.clone(), None);
        }
        let made = shown.files.new + shown.files.changed;
        if made == 0 {
            return ("nothing new".to_owned(), None);
        }
        // Kernels that this model does not need serve others, and the next of this one needs those that it has made.
        if shown.outcome == Verdict::Inert && kind.kind == BundleKind::Graph && !self.options.refresh {
            let why = "not kept: another start would not use it either; --refresh replaces the bundle with it";
            return (why.to_owned(), None);
        }
        let refresh = self.options.refresh || self.broken && kind.trial.is_some();
        if kind.restored.is_none() && !refresh && !mutant("captured_by_all") {
            tokio::time::sleep(BACKOFF.mul_f64(chance())).await;
            let again = within(A_WORD, self.library.lookup(&kind.key, Duration::from_secs(5))).await;
            if let Ok(Some(bundle)) = again.map(|lookup| lookup.exact) {
                return (format!("another start was first: {}", bundle.id), None);
            }
        }
        self.keep(prepared, kind, kind.restored.as_ref().map(|held| held.bundle.id), refresh).await
    }

    /// Looks once more, later: some kernels are compiled when the first requests come. What is new since is kept as well.
    pub(super) async fn prove_again(&self, prepared: &mut Prepared) {
        let watched = prepared.watched(&self.fingerprint);
        settle(&watched, self.options.settle).await;
        let after = scan(&watched);
        for at in 0..prepared.kinds.len() {
            let kind = &prepared.kinds[at];
            let base = kind.kept.or_else(|| kind.restored.as_ref().map(|held| held.bundle.id));
            let ours = |path: &str| kind.roots.iter().any(|root| path.split('/').next() == Some(root.name.as_str()));
            let is_new = |(path, seen): (&String, &super::scan::Seen)| {
                ours(path) && prepared.before.get(path).is_none_or(|was| was.mtime_ns != seen.mtime_ns)
            };
            let new = after.iter().filter(|(path, seen)| is_new((path, seen))).count();
            if new == 0 || base.is_none() || kind.blocked.is_some() {
                continue;
            }
            let (capture, captured) = self.keep(prepared, kind, base, false).await;
            prepared.report.notes.push(format!("{new} files came later; {}: {capture}", kind.kind));
            prepared.kinds[at].kept = captured.or(base);
        }
        prepared.before = after;
    }

    async fn keep(
        &self,
        prepared: &Prepared,
        kind: &Kind,
        base: Option<BundleId>,
        refresh: bool,
    ) -> (String, Option<BundleId>) {
        let (Some(view), Some(placed)) = (&prepared.view, &prepared.placed) else {
            return ("there is no view".to_owned(), None);
        };
        let watched = kind.own(view, placed, &self.fingerprint);
        let capture = Capture {
            key: kind.key.clone(),
            roots: watched.into_iter().map(|one| CaptureRoot { name: one.name, path: one.path }).collect(),
            base,
            evidence: self.evidence(kind),
            secrets: self.fingerprint.secrets.clone(),
            refresh,
            in_place: kind.kind == BundleKind::Graph && kind.roots.iter().all(|root| root.in_place),
        };
        match within(CAPTURE_MOST, self.library.capture(capture)).await {
            Ok(Captured::Created { bundle, .. }) => ("created".to_owned(), Some(bundle.id)),
            Ok(Captured::Unchanged { bundle }) => (format!("the same as {}", bundle.id), None),
            Ok(Captured::Existed { bundle }) => (format!("another start was first: {}", bundle.id), None),
            Ok(Captured::Nothing) => ("there is no file to keep".to_owned(), None),
            Err(error) => (format!("not kept: {error}"), None),
        }
    }

    fn evidence(&self, kind: &Kind) -> Evidence {
        let milliseconds = (self.ready * 1000.0) as u64;
        let cold = kind.restored.as_ref().map_or(Some(milliseconds), |held| held.bundle.evidence.cold_ms);
        let facts = &self.fingerprint.facts;
        let profile = &self.fingerprint.profile;
        let package = [profile.name.as_str()].into_iter().chain(profile.packages.iter().map(String::as_str));
        let version = package
            .filter_map(|name| Some((name, facts.value(&format!("package.{name}"))?.split(' ').next()?)))
            .map(|(name, version)| format!("{name} {version}"))
            .next();
        Evidence {
            engine: version,
            cold_ms: cold,
            ready_ms: Some(milliseconds),
            stages: stages(&self.heard),
            log: self.heard.lines.iter().take(32).cloned().collect(),
        }
    }
}

/// A number from 0 to 1, another in every process: in containers all of them have the number 1.
fn chance() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    // Keyed by the system's randomness.
    (RandomState::new().hash_one(0) >> 11) as f64 / (1_u64 << 53) as f64
}

/// Compares the files of each kind, and of all, with what was restored. Fills the report in but for its outcome and reason; gives
/// what was restored.
pub(super) fn compare(
    prepared: &mut Prepared,
    after: &Snapshot,
    judge: impl Fn(&Counts) -> (Verdict, String),
) -> Vec<ManifestEntry> {
    let (mut shown, mut entries) = (Vec::new(), Vec::new());
    for kind in &prepared.kinds {
        let of_kind = |snapshot: &Snapshot| -> Snapshot {
            let ours = |path: &str| kind.roots.iter().any(|root| path.split('/').next() == Some(root.name.as_str()));
            snapshot.iter().filter(|(path, _)| ours(path)).map(|(path, seen)| (path.clone(), *seen)).collect()
        };
        let restored = kind.restored.as_ref().map(|held| held.entries.as_slice()).unwrap_or_default();
        // What the store shows to several starts tells nothing of one's reading.
        let shows_reads = prepared.shows_reads && kind.shown.is_empty();
        let counts = Counts::of(restored, &of_kind(&prepared.before), &of_kind(after), shows_reads);
        let (outcome, mut reason) = judge(&counts);
        if outcome == Verdict::Cold && !kind.reason.is_empty() {
            reason.clone_from(&kind.reason);
        }
        entries.extend(restored.iter().cloned());
        shown.push(OfKind {
            kind: kind.kind,
            key: kind.key.digest().to_string(),
            bundle: kind.restored.as_ref().map(|held| held.bundle.id.to_string()),
            outcome,
            reason,
            files: counts,
            restored_bytes: kind.restored.as_ref().map_or(0, |held| held.bytes),
            captured: None,
            capture: "nothing new".to_owned(),
        });
    }
    // Kinds overlap (a graph has its kernels in it), so that the start as a whole is judged by all files together.
    let shows_reads = prepared.shows_reads && prepared.kinds.iter().all(|kind| kind.shown.is_empty());
    prepared.report.files = Counts::of(&entries, &prepared.before, after, shows_reads);
    prepared.report.bundles = shown;
    entries
}

/// Tells the node, for its metrics. Nothing depends on it.
pub(super) async fn tell(library: &dyn Library, prepared: &mut Prepared) {
    let saved = prepared.report.saved_seconds.unwrap_or_default().max(0.0);
    let mut left = (saved * 1000.0) as u64;
    for (kind, shown) in prepared.kinds.iter().zip(&prepared.report.bundles) {
        let outcome = match shown.outcome {
            Verdict::Hit => Outcome::Hit,
            Verdict::Partial => Outcome::Partial,
            Verdict::Inert => Outcome::Inert,
            Verdict::Cold if kind.refused => Outcome::Refused,
            Verdict::Cold | Verdict::Quarantined => Outcome::Cold,
        };
        // What was saved is told once.
        let saved_ms = if kind.restored.is_some() { std::mem::take(&mut left) } else { 0 };
        let told = RunReport { kind: kind.kind, outcome, bytes: shown.restored_bytes, saved_ms };
        if let Err(error) = within(A_WORD, library.report(&told)).await {
            prepared.report.notes.push(format!("the node is not told: {error}"));
            return;
        }
    }
}
