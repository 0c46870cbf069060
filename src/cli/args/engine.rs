//! The arguments of the verbs about compiled engines.

use std::path::PathBuf;

use clap::{Args, Subcommand};

#[derive(Debug, Args)]
pub(in super::super) struct EngineArgs {
    /// What to do.
    #[command(subcommand)]
    pub(in super::super) what: EngineVerb,
}

#[derive(Debug, Subcommand)]
pub(in super::super) enum EngineVerb {
    /// Print the key of a command, field by field: what must be equal for an engine to be reused.
    Fingerprint(FingerprintArgs),
    /// Say what would keep a command from being warm, before it is started.
    Doctor(DoctorArgs),
}

/// A command, and what is said about it.
#[derive(Clone, Debug, Args)]
pub(in super::super) struct CommandArgs {
    /// Profile of the engine: auto, vllm, sglang, torch-inductor, trtllm-engine, generic-dir, or a configured one.
    #[arg(long, default_value = "auto", value_name = "PROFILE")]
    pub(in super::super) engine: String,
    /// What the GPUs are, as JSON, instead of asking the driver. What is captured so is never published.
    #[arg(long, value_name = "FILE")]
    pub(in super::super) gpu_facts: Option<PathBuf>,
    /// Text that keys must have in common beside all else.
    #[arg(long, env = "PREHEAT_CACHE_SALT", value_name = "S")]
    pub(in super::super) cache_salt: Option<String>,
    /// Let the version of the GPU's driver decide as well.
    #[arg(long)]
    pub(in super::super) strict_driver: bool,
    /// A directory of compiled things beside the profile's (repeatable); `,kernel` after the path where any run on the same GPU
    /// may use it.
    #[arg(long, value_name = "NAME=PATH[,kernel]")]
    pub(in super::super) cache_dir: Vec<String>,
    /// TOML configuration with profiles (`[[engines.profiles]]`).
    #[arg(long, env = "PREHEAT_CONFIG", value_name = "FILE")]
    pub(in super::super) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in super::super) struct FingerprintArgs {
    #[command(flatten)]
    pub(in super::super) command: CommandArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub(in super::super) json: bool,
    /// The command; without one, what is known of the machine.
    #[arg(last = true, value_name = "CMD")]
    pub(in super::super) argv: Vec<String>,
}

#[derive(Debug, Args)]
pub(in super::super) struct DoctorArgs {
    #[command(flatten)]
    pub(in super::super) command: CommandArgs,
    /// Print one JSON object.
    #[arg(long)]
    pub(in super::super) json: bool,
    /// The command.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(in super::super) argv: Vec<String>,
}
