//! The arguments of the verbs that ask a node: what it would take, where it stands, what stays.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::{DaemonArgs, PassCredential};
use crate::base::units::Span;

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(in super::super) enum TierArg {
    /// On the node, verified, tree published.
    Disk,
    /// Also resident in the page cache.
    Memory,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(in super::super) enum PriorityArg {
    /// Somebody waits for it: goes before every prefetch.
    Demand,
    /// Nobody waits yet.
    Prefetch,
}

/// What is asked for, how ready, for whom and by when: the same for a prewarm and for its estimate.
#[derive(Debug, Args)]
pub(in super::super) struct WantedArgs {
    /// What to have ready; several are a set (a base, its adapters, a draft model), at most 64.
    #[arg(required = true, value_name = "REF")]
    pub(in super::super) references: Vec<String>,
    /// How ready.
    #[arg(long, value_enum, default_value = "disk")]
    pub(in super::super) tier: TierArg,
    /// Who waits.
    #[arg(long, value_enum, default_value = "prefetch")]
    pub(in super::super) priority: PriorityArg,
    /// When it has to be ready, from now; the answer says whether that will be met.
    #[arg(long, value_name = "SPAN")]
    pub(in super::super) deadline: Option<Span>,
    /// Have the bundle of this engine key there as well (repeatable); `preheat engine fingerprint` prints keys.
    #[arg(long, value_name = "KEY")]
    pub(in super::super) engine: Vec<crate::digest::Hash>,
    /// Show the daemon this process's own credential for the origin, as for fetch.
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    pub(in super::super) pass_credential: PassCredential,
}

#[derive(Debug, Args)]
pub(in super::super) struct PrewarmArgs {
    #[command(flatten)]
    pub(in super::super) wanted: WantedArgs,
    /// Stay until it is ready or has failed. Interrupted, the job goes on: see `status` and `cancel`.
    #[arg(long)]
    pub(in super::super) wait: bool,
    /// How long it may not be evicted once ready.
    #[arg(long, value_name = "SPAN")]
    pub(in super::super) lease: Option<Span>,
    /// Pin every model of it under this name once it is ready, until `pin --remove`.
    #[arg(long, value_name = "NAME")]
    pub(in super::super) pin: Option<String>,
    #[command(flatten)]
    pub(in super::super) daemon: DaemonArgs,
    /// Print the job as JSON.
    #[arg(long)]
    pub(in super::super) json: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct EstimateArgs {
    #[command(flatten)]
    pub(in super::super) wanted: WantedArgs,
    #[command(flatten)]
    pub(in super::super) daemon: DaemonArgs,
    /// Print the estimate as JSON.
    #[arg(long)]
    pub(in super::super) json: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct StatusArgs {
    /// Which job. Without it: the node.
    pub(in super::super) job: Option<String>,
    /// Follow the job until it has ended; the exit code is then that of its outcome.
    #[arg(long, requires = "job")]
    pub(in super::super) watch: bool,
    /// Draw when the job did what, as wide as the terminal.
    #[arg(long, requires = "job", conflicts_with = "json")]
    pub(in super::super) timeline: bool,
    /// Write that picture as SVG to a file, or to stdout (`-`) in place of everything else.
    #[arg(long, requires = "job", value_name = "FILE|-")]
    pub(in super::super) svg: Option<PathBuf>,
    #[command(flatten)]
    pub(in super::super) daemon: DaemonArgs,
    /// Print as JSON; with --watch a line for each change.
    #[arg(long)]
    pub(in super::super) json: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct CancelArgs {
    /// Which job.
    pub(in super::super) job: String,
    #[command(flatten)]
    pub(in super::super) daemon: DaemonArgs,
    /// Print the job as JSON.
    #[arg(long)]
    pub(in super::super) json: bool,
}

/// A pin, of a model or a bundle.
#[derive(Debug, Args)]
pub(in super::super) struct NamedPinArgs {
    /// Name of the pin; the same name replaces. Of a-z, 0-9 and -.
    #[arg(long, default_value = "manual", value_name = "NAME")]
    pub(in super::super) name: String,
    /// Let it end by itself.
    #[arg(long, value_name = "SPAN")]
    pub(in super::super) lease: Option<Span>,
    /// Why, for people.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub(in super::super) reason: String,
    /// Take the pin away instead.
    #[arg(long, conflicts_with_all = ["lease", "reason"])]
    pub(in super::super) remove: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct PinArgs {
    /// Which model: its id, or a reference of which the node has exactly one revision.
    #[arg(value_name = "MODEL|REF")]
    pub(in super::super) model: String,
    #[command(flatten)]
    pub(in super::super) pin: NamedPinArgs,
    #[command(flatten)]
    pub(in super::super) daemon: DaemonArgs,
    /// Print the model as JSON.
    #[arg(long)]
    pub(in super::super) json: bool,
}
