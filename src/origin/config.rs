//! Settings of the origins.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::units::Span;

/// Settings of [`super::Origins`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// URL prefixes that may be fetched: `https://host/path`, `s3://bucket/prefix`, `file:///dir`. Without one of the
    /// network, any web server and bucket may be; over TCP a directory only if it is listed.
    pub allow: Vec<String>,
    /// PEM file with certificate authorities to trust beside the system's.
    pub ca_bundle: Option<PathBuf>,
    /// How long a connection may take. Twice this and a dead address delays every retry; half and slow TLS fails.
    pub connect_timeout: Span,
    /// How long an origin may be silent, before the first byte and between two.
    pub stall_timeout: Span,
    /// Most files that one listing may have.
    pub files_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            allow: Vec::new(),
            ca_bundle: None,
            connect_timeout: Span(Duration::from_secs(10)),
            stall_timeout: Span(Duration::from_secs(20)),
            files_max: 100_000,
        }
    }
}
