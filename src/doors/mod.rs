//! Inbound: the native API over TCP and a Unix socket, and the client that speaks to it.
//!
//! Limits are the first thing that a connection meets: how many there are, how large a header and a body may be, how long a
//! client may take. A framework's server was turned down for the accept loop alone: it has no per-connection limits.

mod api;
mod blobs;
pub mod client;
mod config;
mod draining;
mod listen;
mod outgoing;
mod problem;
mod reader;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use api::engines::Captures;
pub use config::{Config, ConfigError};
pub use listen::{BindError, Bound, bind};
pub use outgoing::Outgoing;

use crate::access::{Access, Tokens};
use crate::base::lifecycle::CancellationToken;
use crate::engines::Engines;
use crate::prewarm::Jobs;
use crate::store::Store;
use crate::telemetry::metrics::Metrics;

/// What the handlers work with. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Node {
    /// Blobs and models.
    pub store: Store,
    /// Jobs.
    pub jobs: Jobs,
    /// Who may read what.
    pub access: Access,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Memory for bytes of blobs on their way out.
    pub buffers: Outgoing,
    /// False once the daemon drains.
    pub ready: Readiness,
    /// Ends event streams and waits at shutdown.
    pub stop: CancellationToken,
    /// Bundles of compiled engines.
    pub engines: Engines,
    /// Captures whose bytes are awaited.
    pub captures: Captures,
    /// Who is known by what.
    pub tokens: Arc<Tokens>,
}

/// Whether the node takes new work.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    ready: Arc<AtomicBool>,
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// Over TCP: nobody in particular.
    Network,
    /// Over the Unix socket: a user, on the kernel's word.
    Local {
        /// User id.
        uid: u32,
    },
}

// === impl Readiness ===

impl Readiness {
    /// Says so from now on.
    pub fn set(&self, ready: bool) {
        self.ready.store(ready, Ordering::SeqCst);
    }

    /// Whether it is.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::SeqCst)
    }
}
