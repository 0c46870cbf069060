//! What a prewarm or an estimate asks for, checked and in the words of the API.

use super::args::{DaemonArgs, PriorityArg, TierArg, WantedArgs};
use super::error::CliError;
use super::target;
use crate::digest::Hash;
use crate::doors::client::Client;
use crate::model::Reference;
use crate::prewarm::wire::{Priority, Tier};

/// The daemon to ask, with the credential that may be shown to it, and the request's own fields.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) client: Client,
    /// The one reference of a single model; empty for a set.
    pub(super) reference: String,
    /// The references of a set; empty for a single model.
    pub(super) references: Vec<String>,
    pub(super) tier: Tier,
    pub(super) priority: Priority,
    pub(super) deadline_seconds: Option<f64>,
    /// Engine keys.
    pub(super) engine: Vec<Hash>,
}

// === impl Wanted ===

impl Wanted {
    pub(super) fn of(args: WantedArgs, daemon: &DaemonArgs) -> anyhow::Result<Self> {
        let WantedArgs { references, tier, priority, deadline, engine, pass_credential } = args;
        let parsed: Result<Vec<Reference>, _> = references.iter().map(|text| text.parse()).collect();
        let parsed = parsed.map_err(|error| CliError::invalid(format!("{error}")))?;
        let client = target::with_shared_credential(target::required(daemon)?, &parsed, pass_credential)?;
        let (reference, references) = match <[String; 1]>::try_from(references) {
            Ok([one]) => (one, Vec::new()),
            Err(several) => (String::new(), several),
        };
        Ok(Self {
            client,
            reference,
            references,
            tier: match tier {
                TierArg::Disk => Tier::Disk,
                TierArg::Memory => Tier::Memory,
            },
            priority: match priority {
                PriorityArg::Demand => Priority::Demand,
                PriorityArg::Prefetch => Priority::Prefetch,
            },
            deadline_seconds: deadline.map(|deadline| deadline.0.as_secs_f64()),
            engine,
        })
    }
}
