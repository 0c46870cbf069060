//! Metrics. Every name, unit and stability stands in this file and nowhere else.
//!
//! Stability: *stable* names keep name and meaning within a major version; *experimental* ones may change in any.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

/// What `/metrics` answers with.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// One word that says which.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Which {
    /// `sealed`, `partial`, `reserved`, `free`, `capacity` and the like, as the metric's help says.
    pub which: &'static str,
}

/// A served request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Served {
    /// Route pattern, not path: bounded.
    pub route: String,
    /// HTTP status.
    pub status: u16,
}

/// Whether something went well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Outcome {
    /// It did.
    Done,
    /// It did not.
    Failed,
    /// It was called off.
    Cancelled,
}

/// A finished fetch.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Ended {
    /// How it ended.
    pub outcome: Outcome,
}

/// All metrics of a process.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Stable. Body bytes received from origins.
    pub origin_bytes: Counter,
    /// Stable. Retried requests to origins; `which`: error kind.
    pub origin_retries: Family<Which, Counter>,
    /// Stable. Bytes that did not match a digest; `which`: origin, read, scrub, warm.
    pub corrupt: Family<Which, Counter>,
    /// Stable. Fetches ended.
    pub fetches: Family<Ended, Counter>,
    /// Stable. Seconds of a fetch by stage; `which`: resolve, transfer, publish, total.
    pub fetch_seconds: Family<Which, Histogram, fn() -> Histogram>,
    /// Stable. Bytes in the store; `which`: blobs, partials, reserved, quarantined.
    pub store_bytes: Family<Which, Gauge>,
    /// Stable. The cap.
    pub store_capacity_bytes: Gauge,
    /// Stable. 1 for who reads and writes; `which`: io_uring, pool.
    pub disk: Family<Which, Gauge>,
    /// Stable. Models published.
    pub models: Gauge,
    /// Stable. Blobs held.
    pub blobs: Gauge,
    /// Stable. Bytes evicted.
    pub evicted_bytes: Counter,
    /// Stable. Bytes hashed by the scrub.
    pub scrubbed_bytes: Counter,
    /// Stable. Bytes served to clients, each verified before it left.
    pub served_bytes: Counter,
    /// Experimental. Seconds of a sealing step.
    pub seal_seconds: Histogram,
    /// Stable. Jobs; `which`: queued, running.
    pub jobs: Family<Which, Gauge>,
    /// Stable. Seconds of a job by stage; `which`: queue, resolve, first_byte, transfer, verify, publish, seal, warm.
    pub job_stage_seconds: Family<Which, Histogram, fn() -> Histogram>,
    /// Stable. What jobs took, as a multiple of the middle of their first estimate.
    pub estimate_ratio: Histogram,
    /// Stable. Jobs by where they ended in the spread of their first estimate; `which`: p50, p90, beyond.
    pub estimates: Family<Which, Counter>,
    /// Stable. Bytes of models and the page cache, as of the last look; `which`: wanted (size of what is to be in memory),
    /// resident (of it, what is there), idle (warm, and nobody asks for it).
    pub memory_bytes: Family<Which, Gauge>,
    /// Stable. Bytes read again because they had left the page cache while they were to be there.
    pub rewarmed_bytes: Counter,
    /// Stable. Bytes of the page cache given back because memory ran short.
    pub released_bytes: Counter,
    /// Stable. Starts of engines as they were told; `which`: hit, partial, inert, cold, refused.
    pub engine_runs: Family<Which, Counter>,
    /// Stable. Milliseconds that starts took less than the recorded cold start of their bundle.
    pub engine_saved_milliseconds: Counter,
    /// Stable. Bytes of engine bundles restored.
    pub engine_restored_bytes: Counter,
    /// Stable. Captures; `which`: created, unchanged, existed, nothing, failed.
    pub engine_captures: Family<Which, Counter>,
    /// Stable. Engine bundles quarantined.
    pub engine_quarantines: Counter,
    /// Stable. What became of bundles at the shared origin; `which`: fetched, absent, refused, published, existed, failed.
    pub engine_shared: Family<Which, Counter>,
    /// Experimental. Flights under way.
    pub flights: Gauge,
    /// Experimental. Bytes of transfer buffers in use.
    pub buffer_bytes: Gauge,
    /// Stable. API requests answered.
    pub requests: Family<Served, Counter>,
    /// Experimental. Smoothed receive rate of all transfers.
    pub transfer_rate: Gauge<f64, AtomicU64>,
}

/// From 1 ms to about 17 minutes, doubling.
fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 21))
}

// === impl Metrics ===

impl Metrics {
    /// Fresh metrics, registered.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("preheat");
        let metrics = Self {
            origin_bytes: Counter::default(),
            origin_retries: Family::default(),
            corrupt: Family::default(),
            fetches: Family::default(),
            fetch_seconds: Family::new_with_constructor(seconds),
            store_bytes: Family::default(),
            store_capacity_bytes: Gauge::default(),
            disk: Family::default(),
            models: Gauge::default(),
            blobs: Gauge::default(),
            evicted_bytes: Counter::default(),
            scrubbed_bytes: Counter::default(),
            served_bytes: Counter::default(),
            seal_seconds: seconds(),
            job_stage_seconds: Family::new_with_constructor(seconds),
            estimate_ratio: Histogram::new([0.25, 0.5, 0.7, 0.85, 1.0, 1.15, 1.3, 1.5, 2.0, 4.0, 8.0]),
            estimates: Family::default(),
            jobs: Family::default(),
            memory_bytes: Family::default(),
            rewarmed_bytes: Counter::default(),
            released_bytes: Counter::default(),
            engine_runs: Family::default(),
            engine_saved_milliseconds: Counter::default(),
            engine_restored_bytes: Counter::default(),
            engine_captures: Family::default(),
            engine_quarantines: Counter::default(),
            engine_shared: Family::default(),
            flights: Gauge::default(),
            buffer_bytes: Gauge::default(),
            requests: Family::default(),
            transfer_rate: Gauge::default(),
            registry: Registry::default(),
        };
        let build = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
        registry.register("build", "Version of this binary", build);
        let bytes = || Unit::Bytes;
        registry.register_with_unit("origin", "Body bytes from origins", bytes(), metrics.origin_bytes.clone());
        registry.register("origin_retries", "Retried origin requests", metrics.origin_retries.clone());
        registry.register("corrupt", "Bytes that failed a digest, by where it was noticed", metrics.corrupt.clone());
        registry.register("fetches", "Fetches ended", metrics.fetches.clone());
        registry.register_with_unit("fetch", "Fetch stages", Unit::Seconds, metrics.fetch_seconds.clone());
        registry.register_with_unit("store", "Bytes in the store", bytes(), metrics.store_bytes.clone());
        registry.register_with_unit(
            "store_capacity",
            "Cap of the store",
            bytes(),
            metrics.store_capacity_bytes.clone(),
        );
        registry.register("disk", "Who reads and writes", metrics.disk.clone());
        registry.register("models", "Models published", metrics.models.clone());
        registry.register("blobs", "Blobs held", metrics.blobs.clone());
        registry.register_with_unit("evicted", "Bytes evicted", bytes(), metrics.evicted_bytes.clone());
        registry.register_with_unit("scrubbed", "Bytes hashed by the scrub", bytes(), metrics.scrubbed_bytes.clone());
        registry.register_with_unit("served", "Verified bytes served", bytes(), metrics.served_bytes.clone());
        registry.register_with_unit("seal", "Sealing steps", Unit::Seconds, metrics.seal_seconds.clone());
        let unit = Unit::Seconds;
        registry.register_with_unit("job_stage", "Stages of jobs", unit, metrics.job_stage_seconds.clone());
        registry.register("estimate_ratio", "What jobs took over their first estimate", metrics.estimate_ratio.clone());
        registry.register("estimates", "Jobs by where they ended in their estimate", metrics.estimates.clone());
        registry.register("jobs", "Jobs by state", metrics.jobs.clone());
        registry.register_with_unit("memory", "Models and the page cache", bytes(), metrics.memory_bytes.clone());
        registry.register_with_unit("rewarmed", "Bytes read again", bytes(), metrics.rewarmed_bytes.clone());
        registry.register_with_unit("released", "Memory given back", bytes(), metrics.released_bytes.clone());
        registry.register("engine_runs", "Starts of engines by how their bundle fared", metrics.engine_runs.clone());
        registry.register(
            "engine_saved_milliseconds",
            "Less than the recorded cold starts",
            metrics.engine_saved_milliseconds.clone(),
        );
        registry.register_with_unit(
            "engine_restored",
            "Engine bundles restored",
            bytes(),
            metrics.engine_restored_bytes.clone(),
        );
        registry.register("engine_captures", "Captures of engines by outcome", metrics.engine_captures.clone());
        registry.register("engine_quarantines", "Engine bundles quarantined", metrics.engine_quarantines.clone());
        registry.register("engine_shared", "Bundles at the shared origin by outcome", metrics.engine_shared.clone());
        registry.register("flights", "Flights under way", metrics.flights.clone());
        registry.register_with_unit("buffer", "Transfer buffers in use", bytes(), metrics.buffer_bytes.clone());
        registry.register("requests", "API requests answered", metrics.requests.clone());
        registry.register("transfer_rate_bytes_per_second", "Smoothed receive rate", metrics.transfer_rate.clone());
        Self { registry, ..metrics }
    }

    /// All of them in OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_things_are_encoded_with_unit_and_suffix() {
        let metrics = Metrics::new();
        metrics.origin_bytes.inc_by(7);
        metrics.corrupt.get_or_create(&Which { which: "scrub" }).inc();
        let text = metrics.encode();
        for line in [
            "preheat_origin_bytes_total 7",
            "preheat_corrupt_total{which=\"scrub\"} 1",
            "# UNIT preheat_seal_seconds seconds",
            "preheat_build_info{version=",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
