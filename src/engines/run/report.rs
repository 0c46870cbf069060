//! What a start says of itself, for whoever scripts against it: one JSON object, written whole.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::output::Heard;
use super::verdict::{Counts, Verdict};
use super::view::Placement;
use crate::model::engine::{BundleKind, Difference};
use crate::sys::durable::write_temporary;

/// The report of one start.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What became of what was restored. Of a command that was not seen to be ready: until it ended, or until now.
    pub outcome: Verdict,
    /// Why, in a sentence; of a command that failed first how.
    pub reason: String,
    /// The engine key of the graph, or of the kernels where there is no graph.
    pub key: Option<String>,
    /// What was restored for it.
    pub bundle: Option<String>,
    /// The profile of the engine.
    pub profile: Option<String>,
    /// Bytes restored, of all kinds.
    pub restored_bytes: u64,
    /// Files restored.
    pub restored_files: u64,
    /// Seconds that finding took.
    pub lookup_seconds: f64,
    /// Seconds that restoring took.
    pub restore_seconds: f64,
    /// Seconds from the start of the command until it was ready; absent if it never was.
    pub ready_seconds: Option<f64>,
    /// The same of the cold start that the bundle comes from.
    pub cold_seconds: Option<f64>,
    /// What that makes.
    pub saved_seconds: Option<f64>,
    /// Whether a new bundle was kept of this start.
    pub captured: bool,
    /// What became of the capture.
    pub capture: String,
    /// How the engine found its view.
    pub view: Placement,
    /// Whether the command was started a second time, without a bundle.
    pub retried: bool,
    /// Files counted, over all kinds.
    pub files: Counts,
    /// The engine's own log.
    pub log: Heard,
    /// Each kind by itself.
    pub bundles: Vec<OfKind>,
    /// Against the nearest bundle, where there was none for the key.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub differences: Vec<Difference>,
    /// What went wrong or was left out on the way.
    pub notes: Vec<String>,
    /// Exit code of the command, once it has ended; 128 and the number for a signal.
    pub exit_code: Option<i32>,
}

/// What is said of one kind of bundle.
#[derive(Clone, Debug, Serialize)]
pub struct OfKind {
    /// Which.
    pub kind: BundleKind,
    /// Its engine key.
    pub key: String,
    /// What was restored.
    pub bundle: Option<String>,
    /// How it was used.
    pub outcome: Verdict,
    /// Why.
    pub reason: String,
    /// Files counted.
    pub files: Counts,
    /// Bytes restored.
    pub restored_bytes: u64,
    /// The new bundle.
    pub captured: Option<String>,
    /// What became of the capture.
    pub capture: String,
}

// === impl Report ===

impl Report {
    /// Of a start of which nothing is known yet.
    pub(super) fn cold(reason: impl Into<String>) -> Self {
        Self {
            outcome: Verdict::Cold,
            reason: reason.into(),
            key: None,
            bundle: None,
            profile: None,
            restored_bytes: 0,
            restored_files: 0,
            lookup_seconds: 0.0,
            restore_seconds: 0.0,
            ready_seconds: None,
            cold_seconds: None,
            saved_seconds: None,
            captured: false,
            capture: "none".to_owned(),
            view: Placement::InPlace,
            retried: false,
            files: Counts::default(),
            log: Heard::default(),
            bundles: Vec::new(),
            differences: Vec::new(),
            notes: Vec::new(),
            exit_code: None,
        }
    }

    /// Writes it to a file, which is the old or the new one whole.
    ///
    /// # Errors
    /// Of the file system.
    pub fn write(&self, path: &Path) -> std::io::Result<()> {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut text = serde_json::to_vec(self)?;
        text.push(b'\n');
        // A device or a pipe is written to, not replaced.
        if path.symlink_metadata().is_ok_and(|found| !found.is_file()) {
            return std::fs::write(path, text);
        }
        let (temporary, _file) = write_temporary(directory, &text)?;
        std::fs::rename(&temporary, path).inspect_err(|_| {
            // Its own error is the one to report.
            let _ = std::fs::remove_file(&temporary);
        })
    }

    /// In a line for people.
    #[must_use]
    pub fn line(&self) -> String {
        let mut text = format!("{}: {}", self.outcome.as_str(), self.reason);
        if let Some(seconds) = self.ready_seconds {
            text.push_str(&format!("; ready after {seconds:.1} s"));
        }
        if let Some(saved) = self.saved_seconds.filter(|saved| *saved > 0.0) {
            text.push_str(&format!(", {saved:.1} s less than cold"));
        }
        text
    }
}

/// What engines say about themselves, as evidence.
pub(super) fn stages(heard: &Heard) -> BTreeMap<String, u64> {
    let mut found = BTreeMap::new();
    for line in &heard.lines {
        let Some((before, after)) = line.rsplit_once(" took ").or_else(|| line.rsplit_once(" in ")) else { continue };
        let number: String = after.trim_start().chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
        let Ok(seconds) = number.parse::<f64>() else { continue };
        // What stands before the stage is the logger's.
        let name: String = before.rsplit("] ").next().unwrap_or(before).chars().take(60).collect();
        if !name.trim().is_empty() && seconds < 1e6 {
            found.insert(name.trim().to_owned(), (seconds * 1000.0) as u64);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_replaced_whole_and_has_what_scripts_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("report.json");
        let mut report = Report::cold("nothing is known");
        report.write(&path).unwrap();
        report.exit_code = Some(3);
        report.write(&path).unwrap();
        let read: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        for field in
            ["outcome", "key", "bundle", "reason", "restored_bytes", "restore_seconds", "ready_seconds", "captured"]
        {
            assert!(read.get(field).is_some(), "{field}");
        }
        assert_eq!((&read["outcome"], &read["exit_code"]), (&"cold".into(), &3.into()));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn stages_are_read_out_of_lines() {
        let lines = [
            "INFO 11-24 [core.py:12] init engine (profile, create kv cache, warmup model) took 17.71 seconds",
            "INFO [x] Graph capturing finished in 9 secs, took 1.2 GiB",
            "it took ages",
        ];
        let heard = Heard { lines: lines.map(str::to_owned).to_vec(), ..Heard::default() };
        let found = stages(&heard);
        assert_eq!(found["init engine (profile, create kv cache, warmup model)"], 17_710);
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
