//! Before the command is started: what is there for it, restored into a view, and the view put where the engine looks. Everything
//! that goes wrong here is a note, and makes the start a cold one.

use std::path::Path;
use std::time::{Duration, Instant};

use super::report::Report;
use super::scan::{Snapshot, Watched, mark_unread, scan, shows_reads};
use super::shown::Shown;
use super::verdict::Verdict;
use super::view::{Placed, View, is_cramped, place, with_files};
use super::{Options, Request};
use crate::base::ErrorKind;
use crate::engines::fingerprint::Fingerprint;
use crate::engines::roots::Root;
use crate::engines::{AttemptId, BundleRef, EngineError, InPlace, Library, Lookup, Refusal, Standing};
use crate::model::engine::{BundleKind, EngineKey, Role};
use crate::model::{BundleId, ManifestEntry};
use crate::sys::mutant::mutant;

/// So many starts that were broken off before they were ready, and a bundle is tried without.
const UNFINISHED_MOST: usize = 2;

/// Longest wait for a word that is only written down.
pub(super) const A_WORD: Duration = Duration::from_secs(10);

/// A restore may take this long, however short the cold start was.
const RESTORE_LEAST: Duration = Duration::from_secs(30);

/// An attempt that is younger than this, beside twice what a start takes, may still be under way.
pub(super) const UNDER_WAY: Duration = Duration::from_secs(60);

/// One kind of bundle of a start.
#[derive(Debug)]
pub(super) struct Kind {
    pub(super) kind: BundleKind,
    pub(super) key: EngineKey,
    /// Its roots.
    pub(super) roots: Vec<Root>,
    /// What was restored.
    pub(super) restored: Option<Held>,
    /// What of it is shown where the store has it.
    pub(super) shown: Vec<Shown>,
    /// A bundle that is suspected: this start is without it, and tells.
    pub(super) trial: Option<(BundleRef, AttemptId)>,
    /// Why nothing was restored.
    pub(super) reason: String,
    /// Why nothing will be captured.
    pub(super) blocked: Option<String>,
    /// The disk of the view had no room for it.
    pub(super) cramped: bool,
    /// What this start was kept as.
    pub(super) kept: Option<BundleId>,
    /// Something of this key is there and may not be used.
    pub(super) refused: bool,
    pub(super) lookup: Lookup,
}

/// What was restored of a bundle.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bundle: BundleRef,
    pub(super) attempt: Option<AttemptId>,
    pub(super) entries: Vec<ManifestEntry>,
    pub(super) bytes: u64,
    pub(super) files: u64,
    /// Held for as long as it is shown: what is open is not evicted.
    pub(super) _in_place: Option<InPlace>,
}

/// All that a start needs.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) kinds: Vec<Kind>,
    pub(super) view: Option<View>,
    pub(super) placed: Option<Placed>,
    pub(super) shows_reads: bool,
    pub(super) before: Snapshot,
    pub(super) report: Report,
    /// Processes of a start that failed are still there.
    pub(super) left_behind: bool,
}

// === impl Kind ===

impl Kind {
    /// What is watched of it: what is its own, and what it is shown.
    pub(super) fn watched(&self, view: &View, placed: &Placed, fingerprint: &Fingerprint) -> Vec<Watched> {
        let mut watched = self.own(view, placed, fingerprint);
        for shown in &self.shown {
            let ignored = fingerprint.profile.ignored_in(&shown.root.name);
            let places = shown.places().into_iter();
            watched.extend(places.map(|(name, path)| Watched { name, path, ignored: ignored.clone() }));
        }
        watched
    }

    /// What of it is a directory of the start's own, where something new may be.
    pub(super) fn own(&self, view: &View, placed: &Placed, fingerprint: &Fingerprint) -> Vec<Watched> {
        let inside = |root: &&Root| placed.inside.iter().any(|one| one.name == root.name);
        let whole = |root: &&Root| self.shown.iter().any(|one| one.parts.is_empty() && one.root.name == root.name);
        let roots = self.roots.iter().filter(|root| inside(root) && !whole(root));
        roots
            .map(|root| Watched {
                name: root.name.clone(),
                path: view.root(root),
                ignored: fingerprint.profile.ignored_in(&root.name),
            })
            .collect()
    }
}

// === impl Prepared ===

impl Prepared {
    /// What is watched of all kinds.
    pub(super) fn watched(&self, fingerprint: &Fingerprint) -> Vec<Watched> {
        let (Some(view), Some(placed)) = (&self.view, &self.placed) else { return Vec::new() };
        self.kinds.iter().flat_map(|kind| kind.watched(view, placed, fingerprint)).collect()
    }

    /// What is watched of them and is the start's own.
    fn own(&self, fingerprint: &Fingerprint) -> Vec<Watched> {
        let (Some(view), Some(placed)) = (&self.view, &self.placed) else { return Vec::new() };
        self.kinds.iter().flat_map(|kind| kind.own(view, placed, fingerprint)).collect()
    }

    /// Without any view.
    pub(super) fn plain(reason: String) -> Self {
        let report = Report::cold(reason);
        Self {
            kinds: Vec::new(),
            view: None,
            placed: None,
            shows_reads: false,
            before: Snapshot::new(),
            report,
            left_behind: false,
        }
    }
}

pub(super) async fn prepare(request: &Request) -> Prepared {
    let fingerprint = match &request.fingerprint {
        Ok(fingerprint) => fingerprint,
        Err(why) => return Prepared::plain(format!("the command is not understood: {why}")),
    };
    let library = match &request.library {
        Ok(library) => library.as_ref(),
        Err(why) => {
            let mut prepared = Prepared::plain(why.clone());
            prepared.report.profile = Some(fingerprint.profile.name.clone());
            prepared.report.key = fingerprint.key(BundleKind::Graph).ok().map(|key| key.digest().to_string());
            return prepared;
        }
    };
    let mut report = Report::cold(String::new());
    report.profile = Some(fingerprint.profile.name.clone());
    let started = Instant::now();
    let mut kinds = Vec::new();
    for kind in BundleKind::ALL {
        let roots: Vec<Root> = fingerprint.roots.iter().filter(|root| root.kind == kind).cloned().collect();
        if roots.is_empty() {
            continue;
        }
        match fingerprint.key(kind) {
            // One deadline for both.
            Ok(key) => {
                let left = request.options.lookup_timeout.saturating_sub(started.elapsed());
                kinds.push(find(library, key, roots, left).await);
            }
            Err(error) => report.notes.push(format!("{kind}: {error}")),
        }
    }
    report.lookup_seconds = started.elapsed().as_secs_f64();
    report.key = kinds.first().map(|kind| kind.key.digest().to_string());
    if kinds.is_empty() {
        report.reason =
            format!("profile {} has no directory; name one with --cache-dir NAME=PATH", fingerprint.profile.name);
        return Prepared { report, ..Prepared::plain(String::new()) };
    }
    let view = match View::make(request.options.view_dir.as_deref(), &request.scene) {
        Ok(view) => view,
        Err(error) => {
            report.reason = format!("there is no place for a view: {error}");
            return Prepared { kinds, report, ..Prepared::plain(String::new()) };
        }
    };
    let restoring = Instant::now();
    for kind in &mut kinds {
        if request.options.refresh && kind.lookup.exact.is_some() {
            "the bundle of this key is to be replaced (--refresh)".clone_into(&mut kind.reason);
            continue;
        }
        restore(library, kind, &view.of(kind.kind)).await;
    }
    report.restore_seconds = restoring.elapsed().as_secs_f64();
    let mut prepared = Prepared {
        kinds,
        view: None,
        placed: None,
        shows_reads: false,
        before: Snapshot::new(),
        report,
        left_behind: false,
    };
    settle_in(&mut prepared, view, fingerprint, &request.options);
    for kind in &mut prepared.kinds {
        begin(library, kind, &mut prepared.report.notes).await;
    }
    prepared
}

/// Finds what is there for a key, and decides whether it is tried.
async fn find(library: &dyn Library, key: EngineKey, roots: Vec<Root>, deadline: Duration) -> Kind {
    let mut found = Kind {
        kind: key.kind(),
        key,
        roots,
        restored: None,
        shown: Vec::new(),
        trial: None,
        reason: String::new(),
        blocked: None,
        cramped: false,
        kept: None,
        refused: false,
        lookup: Lookup::default(),
    };
    if let Some((field, why)) = found.key.unusable().first() {
        let why = format!("{field} is not known ({why}), and nothing is reused or kept on a guess");
        found.blocked = Some(why.clone());
        found.reason = why;
        return found;
    }
    match tokio::time::timeout(deadline + Duration::from_secs(5), library.lookup(&found.key, deadline)).await {
        Ok(Ok(lookup)) => found.lookup = lookup,
        Ok(Err(error)) => {
            found.reason = format!("bundles cannot be looked up: {error}");
            found.blocked = Some(found.reason.clone());
            return found;
        }
        Err(_) => {
            found.reason = format!("the lookup had no answer after {} s", deadline.as_secs());
            return found;
        }
    }
    found.refused = !found.lookup.refused.is_empty();
    found.reason = why_not(&found.key, &found.lookup);
    found
}

/// Why there is no hit, in a sentence.
pub(super) fn why_not(key: &EngineKey, lookup: &Lookup) -> String {
    if let Some(refused) = lookup.refused.first() {
        let why = &refused.why;
        return match (&refused.id, why) {
            (Some(id), _) => format!("bundle {id} has this key and is refused: {why}"),
            // Whether there is one, nobody could tell.
            (None, Refusal::Unavailable { .. } | Refusal::NotInTime) => format!("no bundle is to be had: {why}"),
            (None, _) => format!("a bundle has this key and is refused: {why}"),
        };
    }
    let nearest = lookup.nearest.first().map(|near| key.diff(&near.key));
    let hard = nearest.iter().flatten().find(|difference| difference.role == Role::Hard);
    match hard {
        Some(difference) => format!("no bundle has this key; the nearest differs in {difference}"),
        None => "no bundle has this key, nor another of its kind".to_owned(),
    }
}

async fn restore(library: &dyn Library, kind: &mut Kind, into: &Path) {
    let Some(bundle) = kind.lookup.exact.clone() else { return };
    if let Some(why) = distrusted(&bundle) {
        kind.reason = format!("bundle {} is tried without: {why}", bundle.id);
        // What comes of this start is the verdict on it.
        match within(A_WORD, library.begin_attempt(&bundle.id)).await {
            Ok(attempt) => kind.trial = Some((bundle, attempt)),
            Err(error) => kind.reason.push_str(&format!(" (and cannot be judged: {error})")),
        }
        return;
    }
    // A cold start is what there is otherwise: no longer than that is waited for.
    let patience = Duration::from_millis(bundle.evidence.cold_ms.unwrap_or_default()).max(RESTORE_LEAST);
    if bundle.in_place {
        match within(patience, library.in_place(&bundle)).await {
            Ok(shown) => {
                let (bytes, files, entries) = (shown.bytes, shown.entries.len() as u64, shown.entries.clone());
                kind.reason.clear();
                kind.shown = Shown::of(&shown, &kind.roots);
                kind.restored = Some(Held { bundle, attempt: None, entries, bytes, files, _in_place: Some(shown) });
            }
            Err(error) => kind.reason = format!("bundle {} cannot be shown: {error}", bundle.id),
        }
        return;
    }
    match within(patience, library.restore(&bundle, into)).await {
        Ok(restored) => {
            let (bytes, files) = (restored.bytes, restored.files);
            kind.reason.clear();
            kind.restored =
                Some(Held { bundle, attempt: None, entries: restored.entries, bytes, files, _in_place: None });
        }
        Err(error) => {
            kind.reason = format!("bundle {} cannot be restored: {error}", bundle.id);
            kind.cramped = error.kind() == ErrorKind::NoSpace && !mutant("view_on_full_disk");
            // It is verified whole before it is there; this is for a library that breaks off.
            if !mutant("half_restored") {
                let _ = std::fs::remove_dir_all(into);
            }
        }
    }
}

/// What a library answers, in time.
pub(super) async fn within<T>(
    patience: Duration,
    answer: impl Future<Output = Result<T, EngineError>>,
) -> Result<T, EngineError> {
    let late = || EngineError::Timeout { what: format!("what was asked, within {} s,", patience.as_secs()) };
    tokio::time::timeout(patience, answer).await.unwrap_or_else(|_| Err(late()))
}

/// Why a bundle is not used this time.
fn distrusted(bundle: &BundleRef) -> Option<String> {
    match &bundle.standing {
        Standing::Suspect { reason, .. } => return Some(format!("a start with it failed ({reason})")),
        Standing::Quarantined { reason, .. } => return Some(format!("it is quarantined ({reason})")),
        Standing::Clean => {}
    }
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let age = |begun: &&u64| Duration::from_secs(now.saturating_sub(**begun));
    let old = bundle.unfinished.iter().filter(|begun| is_overdue(bundle, age(begun))).count();
    // One that was let off has one chance more.
    let most = if bundle.doubted { 1 } else { UNFINISHED_MOST };
    (old >= most).then(|| format!("{old} starts with it were broken off before they were ready"))
}

/// Whether a start that takes so long should have been ready before.
pub(super) fn is_overdue(bundle: &BundleRef, took: Duration) -> bool {
    let ready = bundle.evidence.ready_ms.or(bundle.evidence.cold_ms).unwrap_or_default();
    took > UNDER_WAY + 2 * Duration::from_millis(ready)
}

/// Puts the view where the engine looks, or gives up what was restored.
fn settle_in(prepared: &mut Prepared, view: View, fingerprint: &Fingerprint, options: &Options) {
    let roots: Vec<Root> = prepared.kinds.iter().flat_map(|kind| kind.roots.clone()).collect();
    if let Err(error) = view.fill(&roots) {
        prepared.report.notes.push(format!("the view cannot be filled: {error}"));
        give_up(prepared, "its view cannot be made");
        return;
    }
    // Files of the engine's own are hidden from it only where something verified takes their place.
    let cold = prepared.kinds.iter().filter(|kind| kind.restored.is_none() && !options.fresh);
    let warm = prepared.kinds.iter().filter(|kind| kind.restored.is_some());
    let covered: Vec<String> = warm.flat_map(|kind| &kind.roots).map(|root| root.name.clone()).collect();
    let own: Vec<String> = cold.flat_map(|kind| with_files(&kind.roots, &roots, &covered)).collect();
    // Nor is an engine that compiles led to a disk that has less room for it than its own.
    let mut left_alone = own.clone();
    for kind in prepared.kinds.iter().filter(|kind| kind.restored.is_none()) {
        let cramped = kind.roots.iter().filter(|root| kind.cramped || is_cramped(&view, &root.path));
        left_alone.extend(cramped.map(|root| root.name.clone()));
    }
    let shown: Vec<Shown> = prepared.kinds.iter().flat_map(|kind| kind.shown.clone()).collect();
    let placed = place(&view, &roots, &left_alone, &shown, fingerprint.profile.relocatable, options.namespaces);
    prepared.report.notes.extend(placed.notes.iter().cloned());
    prepared.report.view = placed.how;
    for kind in &mut prepared.kinds {
        let outside = kind.roots.iter().find(|root| !placed.inside.iter().any(|one| one.name == root.name));
        if let Some(root) = outside {
            let path = root.path.display();
            let why = if own.contains(&root.name) {
                format!(
                    "{path} has files that preheat did not put there; empty it, or run with --fresh, and what is compiled is kept"
                )
            } else if left_alone.contains(&root.name) {
                let view = view.path().parent().unwrap_or(view.path()).display();
                format!("{path} is used as it is, since {view} has less room; name a roomier place with --view-dir")
            } else {
                format!("{path} is used as it is, since no view can be put there")
            };
            kind.blocked.get_or_insert(why);
        }
        if !kind.shown.is_empty()
            && let Some(why) = &placed.not_shown
            && let Some(held) = kind.restored.take()
        {
            kind.shown.clear();
            kind.reason = format!("bundle {} cannot be shown to the engine: {why}", held.bundle.id);
        }
        for shown in &kind.shown {
            let path = shown.root.path.display();
            prepared
                .report
                .notes
                .push(format!("what is restored at {path} is read-only, and shared: a write to it fails (EROFS)"));
        }
        // A kind with nowhere to be is not there.
        if placed.inside.iter().all(|root| root.kind != kind.kind)
            && let Some(held) = kind.restored.take()
        {
            kind.shown.clear();
            kind.reason = format!("bundle {} was restored and cannot be shown to the engine", held.bundle.id);
        }
    }
    prepared.shows_reads = shows_reads(view.path());
    prepared.view = Some(view);
    prepared.placed = Some(placed);
    let watched = prepared.watched(fingerprint);
    if prepared.shows_reads {
        // Not what others are shown as well: whose reading would it be?
        mark_unread(&prepared.own(fingerprint));
    }
    prepared.before = scan(&watched);
}

fn give_up(prepared: &mut Prepared, why: &str) {
    for kind in &mut prepared.kinds {
        kind.blocked.get_or_insert_with(|| why.to_owned());
        kind.shown.clear();
        if let Some(held) = kind.restored.take() {
            kind.reason = format!("bundle {} was restored, and {why}", held.bundle.id);
        }
    }
}

/// Notes the attempt. Without a note the bundle is used all the same: the next start of it is not.
async fn begin(library: &dyn Library, kind: &mut Kind, notes: &mut Vec<String>) {
    let Some(held) = &mut kind.restored else { return };
    match within(A_WORD, library.begin_attempt(&held.bundle.id)).await {
        Ok(attempt) => held.attempt = Some(attempt),
        Err(error) => notes.push(format!("the attempt with bundle {} is not noted: {error}", held.bundle.id)),
    }
}

/// What the report says before anything has run.
pub(super) fn fill_in(prepared: &mut Prepared) {
    let Prepared { kinds, report, .. } = prepared;
    let held = || kinds.iter().filter_map(|kind| kind.restored.as_ref());
    report.restored_bytes = held().map(|held| held.bytes).sum();
    report.restored_files = held().map(|held| held.files).sum();
    let first = kinds.iter().find(|kind| kind.restored.is_some()).or(kinds.first());
    if let Some(kind) = first {
        report.key = Some(kind.key.digest().to_string());
        report.bundle = kind.restored.as_ref().map(|held| held.bundle.id.to_string());
        let cold = kind.restored.as_ref().and_then(|held| held.bundle.evidence.cold_ms);
        report.cold_seconds = cold.map(|ms| ms as f64 / 1000.0);
    }
    if held().next().is_none() {
        report.outcome = Verdict::Cold;
        if report.reason.is_empty() {
            report.reason = kinds.first().map(|kind| kind.reason.clone()).unwrap_or_default();
        }
        let nearest = kinds.first().and_then(|kind| Some(kind.key.diff(&kind.lookup.nearest.first()?.key)));
        report.differences = nearest.unwrap_or_default();
    }
}
