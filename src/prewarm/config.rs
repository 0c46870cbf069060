//! Settings of prewarming.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::units::Span;

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
}

impl Default for Config {
    fn default() -> Self {
        Self {
            running_max: 64,
            queued_max: 10_000,
            history_max: 1_000,
            // A lease that nobody asked for would fill a small disk with models that may not go.
            lease: Span(Duration::ZERO),
            lease_max: Span(Duration::from_secs(7 * 24 * 3600)),
        }
    }
}
