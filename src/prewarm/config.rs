//! Settings of prewarming.

use std::time::Duration;

use globset::{GlobBuilder, GlobMatcher};
use serde::{Deserialize, Deserializer, Serialize};

use super::budget::Limits;
use super::wire::{Priority, Tier};
use crate::base::units::{ByteSize, GIB, MIB, Span};
use crate::model::Reference;
use crate::store::Pin;
use crate::sys::host::memory_bytes;
use crate::sys::memory::MachineMemory;

/// Settings of [`super::Jobs`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Jobs that run at once; they share connections, so more of them is not more speed.
    pub running_max: usize,
    /// Jobs that may wait for a place. Beyond it: 503.
    pub queued_max: usize,
    /// Ended jobs that are remembered.
    pub history_max: usize,
    /// How long a tree may not be evicted after it became ready, where the caller does not say. Zero: no lease; a model that
    /// has just been used is the last to go anyway.
    pub lease: Span,
    /// Longest lease a caller may ask for.
    pub lease_max: Span,
    /// What all warm models together may have of memory. Default: 80 % of the machine's, or of the smallest memory limit that
    /// the daemon is under, since the rest is for the processes that the node is there for.
    pub memory_max: Option<ByteSize>,
    /// What stays available on the node as the kubelet counts, were all warm models in use. Default: 5 % of the machine's
    /// memory, at least 1 GiB (of a small machine a quarter). The kubelet's own threshold is 100 MiB unless configured, and it
    /// looks every 10 s; a process that starts can take a gigabyte a second. At half of that two such processes are enough to get
    /// others evicted; at twice, a tenth of the node is never warm.
    pub memory_free: Option<ByteSize>,
    /// What is left in the daemon's cgroups for the daemon: buffers of transfers that have not begun (128 MiB), stacks, kernel
    /// memory, pages on their way to disk.
    pub memory_reserve: ByteSize,
    /// How often it is looked whether what is to be in memory is there.
    pub memory_check: Span,
    /// What is on its way from the disk into memory at most, over all models that are warmed: enough to keep a disk busy
    /// (at 4 GB/s and 10 ms 40 MB), and little to read in vain when one is called off.
    pub read_ahead: ByteSize,
    /// Threads that read and hash while warming. Default: one a CPU, at most 4: one hashes 3 to 7 GB/s.
    pub read_threads: Option<usize>,
    /// Models that are brought and kept here without anybody asking.
    pub keep_warm: Vec<KeepWarmEntry>,
    /// How often these are asked for again: what a moving reference stands for now, and their leases.
    pub keep_warm_refresh: Span,
}

/// One entry of `prewarm.keep_warm`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KeepWarm {
    /// What. This or `references`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub reference: String,
    /// A set that is to be here together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub references: Vec<String>,
    /// How ready; `memory` if absent.
    pub tier: Option<Tier>,
    /// Only where a GPU of the node has such a name, e.g. `*H100*`; case does not count. Absent: everywhere.
    pub gpu: Option<String>,
    /// Pin each model under this name; it stays when the entry goes.
    pub pin: Option<String>,
    /// Lease that is renewed all the while. Default, without `pin`: three times `prewarm.keep_warm_refresh`, so that two
    /// refreshes may fail.
    pub lease: Option<Span>,
    /// Who waits; `prefetch` if absent.
    pub priority: Option<Priority>,
}

/// An entry, or what is wrong with it: so that one wrong entry hides nothing that is wrong with others.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum KeepWarmEntry {
    /// It can be read.
    Right(KeepWarm),
    /// It cannot.
    Wrong(String),
}

/// Entries at most: each is looked after by a task.
const KEEP_WARM_MAX: usize = 256;

/// References of one entry.
const SET_LIMIT: usize = 64;

impl Default for Config {
    fn default() -> Self {
        Self {
            running_max: 64,
            queued_max: 10_000,
            history_max: 1_000,
            // A lease that nobody asked for would fill a small disk with models that may not go.
            lease: Span(Duration::ZERO),
            lease_max: Span(Duration::from_secs(7 * 24 * 3600)),
            memory_max: None,
            memory_free: None,
            memory_reserve: ByteSize(256 * MIB),
            memory_check: Span(Duration::from_secs(5)),
            read_ahead: ByteSize(64 * MIB),
            read_threads: None,
            keep_warm: Vec::new(),
            // A branch that moves is followed within 5 minutes; asking a hub more often than 300 times an hour for a list of 25
            // would come near the limits of anonymous callers.
            keep_warm_refresh: Span(Duration::from_secs(300)),
        }
    }
}

// === impl Config ===

impl Config {
    /// Everything that is wrong with it.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.running_max == 0 {
            problems.push("prewarm.running_max: 0 would run nothing; write 1 or more".to_owned());
        }
        if self.read_threads == Some(0) {
            problems.push("prewarm.read_threads: 0 would read nothing; write 1 or more, or leave it out".to_owned());
        }
        if self.read_ahead.0 < MIB {
            problems.push("prewarm.read_ahead: at least one group, 1MiB".to_owned());
        }
        for (key, value) in [("memory_check", self.memory_check), ("keep_warm_refresh", self.keep_warm_refresh)] {
            if value.0 < Duration::from_millis(100) {
                problems.push(format!("prewarm.{key}: at least 100ms"));
            }
        }
        if self.keep_warm.len() > KEEP_WARM_MAX {
            problems.push(format!("prewarm.keep_warm: {} entries; at most {KEEP_WARM_MAX}", self.keep_warm.len()));
        }
        for (number, entry) in self.keep_warm.iter().enumerate() {
            let wrong = match entry {
                KeepWarmEntry::Right(entry) => entry.check(),
                KeepWarmEntry::Wrong(problem) => vec![problem.clone()],
            };
            problems.extend(wrong.into_iter().map(|problem| format!("prewarm.keep_warm[{number}]{problem}")));
        }
        problems
    }

    /// The entries that can be read.
    pub(super) fn kept_warm(&self) -> impl Iterator<Item = &KeepWarm> {
        self.keep_warm.iter().filter_map(|entry| match entry {
            KeepWarmEntry::Right(entry) => Some(entry),
            KeepWarmEntry::Wrong(_) => None,
        })
    }

    /// The bounds of the tier `memory` on this machine.
    pub(super) fn memory_limits(&self) -> Limits {
        let machine = MachineMemory::read().map_or(0, |memory| memory.total);
        let floor = self.memory_free.map_or_else(|| (machine / 20).max(GIB.min(machine / 4)), |free| free.0);
        let most = self.memory_max.map_or_else(|| memory_bytes() / 5 * 4, |most| most.0);
        Limits { floor, most, reserve: self.memory_reserve.0 }
    }

    pub(super) fn threads(&self) -> usize {
        self.read_threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from).min(4)).max(1)
    }
}

// === impl KeepWarm ===

impl KeepWarm {
    /// What is wrong with it; each problem begins with where in the entry.
    fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let texts = self.texts();
        match (self.reference.is_empty(), self.references.is_empty()) {
            (true, true) => problems.push(": names nothing; write `reference` or `references`".to_owned()),
            (false, false) => problems.push(": has `reference` and `references`; write one of them".to_owned()),
            _ if texts.len() > SET_LIMIT => {
                problems.push(format!(".references: a set has at most {SET_LIMIT} members"))
            }
            _ => {}
        }
        for text in texts {
            if let Err(error) = text.parse::<Reference>() {
                problems.push(format!(": {error}"));
            }
        }
        if let Some(Err(error)) = self.gpu.as_deref().map(glob) {
            problems.push(format!(".gpu: {error}"));
        }
        if self.pin.as_deref().is_some_and(|pin| !Pin::is_name(pin)) {
            problems.push(".pin: a name has 1 to 63 characters of a-z, 0-9 and -".to_owned());
        }
        if self.pin.is_some() && self.lease.is_some() {
            problems.push(": has `pin` and `lease`; a pin needs no lease".to_owned());
        }
        problems
    }

    pub(super) fn texts(&self) -> Vec<&str> {
        let one = (!self.reference.is_empty()).then_some(self.reference.as_str());
        one.into_iter().chain(self.references.iter().map(String::as_str)).collect()
    }

    /// Whether it is for a node with these GPUs.
    pub(super) fn is_for(&self, gpus: &[String]) -> bool {
        match self.gpu.as_deref().map(glob) {
            None => true,
            Some(Ok(glob)) => gpus.iter().any(|gpu| glob.is_match(gpu)),
            Some(Err(_)) => false,
        }
    }
}

fn glob(text: &str) -> Result<GlobMatcher, globset::Error> {
    Ok(GlobBuilder::new(text).case_insensitive(true).build()?.compile_matcher())
}

// === impl KeepWarmEntry ===

impl<'de> Deserialize<'de> for KeepWarmEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        Ok(match serde_json::from_value(value) {
            Ok(entry) => Self::Right(entry),
            Err(error) => Self::Wrong(format!(": {error}")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(entries: serde_json::Value) -> Config {
        Config { keep_warm: serde_json::from_value(entries).unwrap(), ..Config::default() }
    }

    #[test]
    fn every_wrong_entry_is_named() {
        let config = read(serde_json::json!([
            {"reference": "hf://org/m", "gpu": "*H100*", "pin": "live", "priority": "demand", "tier": "disk"},
            {"reference": "no scheme"},
            {"tier": "memory"},
            {"reference": "hf://org/m", "references": ["hf://org/n"], "gpu": "[", "pin": "NOT A NAME", "lease": "1h"},
            {"reference": "hf://org/m", "tier": "gpu"},
            {"referense": "hf://org/m"},
            {"references": ["hf://org/m", "hf://org/adapter"], "lease": "10m"},
        ]));
        let problems = config.check();
        let of = |number: usize| {
            let begin = format!("prewarm.keep_warm[{number}]");
            problems.iter().filter(|problem| problem.starts_with(&begin)).count()
        };
        assert_eq!((0..7).map(of).collect::<Vec<_>>(), [0, 1, 1, 4, 1, 1, 0], "{problems:#?}");
        assert!(problems.iter().any(|problem| problem.contains("referense")), "{problems:#?}");
        assert_eq!(config.kept_warm().count(), 5);
        // What is written is read again.
        let again: Config = serde_json::from_value(serde_json::to_value(&config).unwrap()).unwrap();
        assert_eq!(again.keep_warm[0], config.keep_warm[0]);
    }

    #[test]
    fn settings_that_would_do_nothing_are_refused() {
        let config = Config {
            running_max: 0,
            read_threads: Some(0),
            read_ahead: ByteSize(1),
            memory_check: Span(Duration::ZERO),
            ..Config::default()
        };
        assert_eq!(config.check().len(), 4, "{:?}", config.check());
        assert_eq!(Config::default().check(), Vec::<String>::new());
    }

    #[test]
    fn a_gpu_is_found_by_part_of_its_name() {
        let entry = |gpu: &str| KeepWarm { gpu: Some(gpu.to_owned()), ..KeepWarm::default() };
        let gpus = ["NVIDIA H100 80GB HBM3".to_owned(), "NVIDIA L4".to_owned()];
        for (gpu, expected) in
            [("*H100*", true), ("*h100*", true), ("NVIDIA L4", true), ("H100", false), ("*A100*", false)]
        {
            assert_eq!(entry(gpu).is_for(&gpus), expected, "{gpu}");
        }
        assert!(KeepWarm::default().is_for(&[]) && !entry("*").is_for(&[]));
    }
}
