//! The arguments of the verbs about compiled engines.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::bundles::{
    EngineExportArgs, EngineImportArgs, EngineKeygenArgs, EngineListArgs, EnginePinArgs, EngineReleaseArgs,
    EngineRestoreArgs, EngineShowArgs, LibraryArgs,
};
use crate::base::units::Span;
use crate::engines::run::Probe;

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
    /// Say why a command would be warm or not, field by field against the nearest bundle. Nothing is started.
    Explain(ExplainArgs),
    /// List the bundles of a node.
    List(EngineListArgs),
    /// Show a bundle: its key, its files, who vouches for it, and whether it would be restored.
    Show(EngineShowArgs),
    /// Write a bundle to a file.
    Export(EngineExportArgs),
    /// Take such a file in.
    Import(EngineImportArgs),
    /// Restore a bundle into a new directory.
    Restore(EngineRestoreArgs),
    /// Keep a bundle from being evicted.
    Pin(EnginePinArgs),
    /// Release a bundle from quarantine: it is restored again at the next start. One's own word is taken back; by an operator
    /// everybody's. It is written into the node's log.
    Release(EngineReleaseArgs),
    /// Make a key that signs bundles, and print its public half.
    Keygen(EngineKeygenArgs),
}

#[derive(Debug, Args)]
pub(in super::super) struct RunArgs {
    #[command(flatten)]
    pub(in super::super) command: CommandArgs,
    #[command(flatten)]
    pub(in super::super) library: LibraryArgs,
    /// Longest lookup: on the node, then at the shared origin.
    #[arg(long, default_value = "20s", value_name = "SPAN")]
    pub(in super::super) lookup_timeout: Span,
    /// Write what there is to say about the start here: one JSON object, as soon as it is known, and again when the command has
    /// ended.
    #[arg(long, value_name = "FILE")]
    pub(in super::super) report: Option<PathBuf>,
    /// How the command says that it is ready: http:PORT/PATH, line:TEXT, file:PATH or exit. Default: as its profile says.
    #[arg(long, value_name = "PROBE")]
    pub(in super::super) ready: Option<Probe>,
    /// A command that is not ready after this is taken for hanging. It is left alone, unless --retry-cold says otherwise.
    #[arg(long, default_value = "30m", value_name = "SPAN")]
    pub(in super::super) ready_timeout: Span,
    /// How long its files must not change before they are compared and kept.
    #[arg(long, default_value = "5s", value_name = "SPAN")]
    pub(in super::super) settle: Span,
    /// When its files are looked at once more: some kernels are compiled when the first requests come. Zero: never.
    #[arg(long, default_value = "10m", value_name = "SPAN")]
    pub(in super::super) second_look: Span,
    /// If it fails or hangs with a bundle, start it once more without, whatever it is. By default only what says by itself that it is
    /// ready is started twice.
    #[arg(long)]
    pub(in super::super) retry_cold: bool,
    /// Begin with empty directories, also where the engine has files of its own.
    #[arg(long)]
    pub(in super::super) fresh: bool,
    /// Begin without a bundle, and keep what this start compiles in place of what is kept of earlier ones.
    #[arg(long)]
    pub(in super::super) refresh: bool,
    /// Keep nothing of this start.
    #[arg(long)]
    pub(in super::super) no_capture: bool,
    /// Sign and publish what is kept in --root, as the configuration says. Without this the key is not read: this process is the
    /// command's user, and whoever takes the command over could take the key.
    #[arg(long)]
    pub(in super::super) sign: bool,
    /// Mount nothing: views are at paths of their own, for engines that can be told where to look.
    #[arg(long)]
    pub(in super::super) no_namespace: bool,
    /// Where views are made; on a local disk.
    #[arg(long, env = "PREHEAT_VIEW_DIR", value_name = "DIR")]
    pub(in super::super) view_dir: Option<PathBuf>,
    /// Say nothing on standard error.
    #[arg(long)]
    pub(in super::super) quiet: bool,
    /// The command.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(in super::super) argv: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub(in super::super) struct ExplainArgs {
    #[command(flatten)]
    pub(in super::super) command: CommandArgs,
    #[command(flatten)]
    pub(in super::super) library: LibraryArgs,
    /// Longest lookup: on the node, then at the shared origin.
    #[arg(long, default_value = "20s", value_name = "SPAN")]
    pub(in super::super) lookup_timeout: Span,
    /// Print one JSON object.
    #[arg(long)]
    pub(in super::super) json: bool,
    /// The command.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(in super::super) argv: Vec<String>,
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
    /// A directory of compiled things beside the profile's (repeatable). After the path: `,kernel` where any run on the same GPU
    /// may use it; `,in-place` where what is in it is large and never changes, as an engine of TensorRT, and is to be shown
    /// read-only instead of copied.
    #[arg(long, value_name = "NAME=PATH[,kernel|,in-place]")]
    pub(in super::super) cache_dir: Vec<String>,
    /// TOML configuration with profiles (`[[engines.profiles]]`), and whose bundles are trusted (`[[engines.signers]]`).
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
