//! Settings of the transfer.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::units::{ByteRate, ByteSize, MIB, Span};

/// Settings of [`super::Fetcher`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Most connections to one origin. The number in use is found by measuring: it starts at `connections_start` and grows
    /// while growing pays.
    pub connections_max: u32,
    /// Connections that the first bytes of an origin are asked over.
    pub connections_start: u32,
    /// Most connections of this process to all origins.
    pub connections_total: u32,
    /// Size of the first parts asked for; later ones follow the measured rate, between 4 and 64 MiB. Whole MiB.
    pub part_bytes: ByteSize,
    /// Memory for bytes on their way from origin to disk, however large the model.
    pub memory: ByteSize,
    /// Cap on the bytes received from all origins together. None: as fast as they come.
    pub bandwidth: Option<ByteRate>,
    /// Threads that hash and write. None: one a CPU, at most 8.
    pub write_threads: Option<usize>,
    /// Threads for the origins' sequential digests (SHA-256, SHA-1, MD5). None: one a CPU, at most 8.
    pub digest_threads: Option<usize>,
    /// Tries of one range that bring nothing, in a row, before its fetch fails. Any progress refills them.
    pub retry_attempts: u32,
    /// Wait before the second try; doubles with each further one, with jitter.
    pub retry_first: Span,
    /// Longest wait between tries that the origin has not asked for.
    pub retry_longest: Span,
    /// Longest wait that an origin may ask for (`Retry-After`); one that asks for more fails the fetch.
    pub retry_after_longest: Span,
    /// A connection that has brought fewer than `stall_bytes` in this time is dropped and its range asked for again.
    pub stall: Span,
    /// See `stall`.
    pub stall_bytes: ByteSize,
    /// How often a fetch plans again when the origin changes underneath, before it fails.
    pub replans: u32,
    /// A large transfer is synced to disk each time this many bytes have arrived.
    pub sync_bytes: ByteSize,
    /// A large transfer is synced to disk at least this often, so that a power cut costs little.
    pub sync_every: Span,
    /// How long a transfer that nobody waits for goes on, for a caller who comes back at once.
    pub linger: Span,
}

/// A setting outside what can work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: {remedy}")]
pub struct ConfigError {
    /// Which key.
    pub key: &'static str,
    /// Its value as read.
    pub value: String,
    /// What to write instead.
    pub remedy: &'static str,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            // Object stores give 50 to 100 MB/s a connection, so 24 fill 10 Gbps though some of them wait for an answer, and eight a
            // core all that a core can take in.
            connections_max: per_cpu(8, 32, 256),
            connections_start: 24,
            connections_total: per_cpu(16, 64, 512),
            // At 85 MB/s a connection, what object stores give, 0.4 s, of which 30 ms of waiting are 8 %; at 20 MB/s, 1.7 s.
            part_bytes: ByteSize(32 * MIB),
            // Three groups for each of 32 connections, and a quarter for small files.
            memory: ByteSize(128 * MIB),
            bandwidth: None,
            write_threads: None,
            digest_threads: None,
            // Waits of 0.25, 0.5, 1 ... 16 s: about half a minute, longer than a load balancer's failover.
            retry_attempts: 8,
            retry_first: Span(Duration::from_millis(250)),
            retry_longest: Span(Duration::from_secs(30)),
            // Hubs count in windows of 300 s, and are asked again a second after one ends.
            retry_after_longest: Span(Duration::from_secs(310)),
            stall: Span(Duration::from_secs(10)),
            stall_bytes: ByteSize(10 * 1024),
            replans: 2,
            sync_bytes: ByteSize(1024 * MIB),
            sync_every: Span(Duration::from_secs(10)),
            linger: Span(Duration::from_millis(200)),
        }
    }
}

/// So many for each CPU that this process may use, within bounds.
fn per_cpu(each: u32, least: u32, most: u32) -> u32 {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    u32::try_from(cpus).unwrap_or(most).saturating_mul(each).clamp(least, most)
}

impl Config {
    /// Every setting that cannot work.
    #[must_use]
    pub fn check(&self) -> Vec<ConfigError> {
        let mut wrong = Vec::new();
        let mut expect = |ok: bool, key, value: &dyn std::fmt::Display, remedy| {
            if !ok {
                wrong.push(ConfigError { key, value: value.to_string(), remedy });
            }
        };
        expect(
            (1..=256).contains(&self.connections_max),
            "connections_max",
            &self.connections_max,
            "write a number from 1 to 256",
        );
        expect(
            (1..=1024).contains(&self.connections_total),
            "connections_total",
            &self.connections_total,
            "write a number from 1 to 1024",
        );
        expect(self.connections_start >= 1, "connections_start", &self.connections_start, "write at least 1");
        expect(
            self.part_bytes.0 >= MIB && self.part_bytes.0.is_multiple_of(MIB),
            "part_bytes",
            &self.part_bytes,
            "write whole MiB",
        );
        expect(
            self.memory.0 >= 16 * MIB,
            "memory",
            &self.memory,
            "write at least 16MiB: a quarter of it holds small files, which are up to 8MiB, whole",
        );
        expect(
            self.bandwidth.is_none_or(|rate| rate.0 >= 1024),
            "bandwidth",
            &self.bandwidth.unwrap_or(ByteRate(0)),
            "write at least 1kB/s, or leave it out",
        );
        expect(self.retry_attempts >= 1, "retry_attempts", &self.retry_attempts, "write at least 1");
        expect(!self.stall.0.is_zero(), "stall", &self.stall, "write a time longer than zero, e.g. 10s");
        expect(!self.sync_every.0.is_zero(), "sync_every", &self.sync_every, "write a time longer than zero, e.g. 10s");
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_sound() {
        assert_eq!(Config::default().check(), []);
    }

    #[test]
    fn what_cannot_work_is_named() {
        let text = r#"{"connections_max":0,"part_bytes":"1000kB","memory":"1MiB","stall":"0s"}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        let keys: Vec<_> = config.check().into_iter().map(|error| error.key).collect();
        assert_eq!(keys, ["connections_max", "part_bytes", "memory", "stall"]);
        assert!(serde_json::from_str::<Config>(r#"{"conections_max":4}"#).is_err());
    }
}
