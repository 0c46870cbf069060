//! The arguments of the verbs about bundles of compiled engines.

use std::path::PathBuf;

use clap::Args;

use super::{DaemonArgs, NamedPinArgs};

/// Where bundles are kept.
#[derive(Clone, Debug, Args)]
pub(in super::super) struct LibraryArgs {
    /// Store to use without a daemon; made if absent.
    #[arg(long, env = "PREHEAT_ROOT", value_name = "DIR")]
    pub(in super::super) root: Option<PathBuf>,
    #[command(flatten)]
    pub(in super::super) daemon: DaemonArgs,
}

/// The configuration of verbs that work on a root themselves.
#[derive(Clone, Debug, Args)]
pub(in super::super) struct RootConfigArgs {
    /// TOML configuration whose `[engines]` counts for --root, and whose signers are trusted where a daemon is asked over a network.
    #[arg(long, env = "PREHEAT_CONFIG", value_name = "FILE")]
    pub(in super::super) config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(in super::super) struct EngineListArgs {
    #[command(flatten)]
    pub(in super::super) library: LibraryArgs,
    #[command(flatten)]
    pub(in super::super) settings: RootConfigArgs,
    /// Print them as JSON, with their keys.
    #[arg(long)]
    pub(in super::super) json: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct EngineShowArgs {
    /// Which bundle; the first digits are enough where no other has them.
    #[arg(value_name = "BUNDLE")]
    pub(in super::super) bundle: String,
    #[command(flatten)]
    pub(in super::super) library: LibraryArgs,
    #[command(flatten)]
    pub(in super::super) settings: RootConfigArgs,
    /// Print it as JSON, with its document.
    #[arg(long)]
    pub(in super::super) json: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct EngineExportArgs {
    /// Which bundle; the first digits are enough where no other has them.
    #[arg(value_name = "BUNDLE")]
    pub(in super::super) bundle: String,
    /// Where to, or `-`.
    #[arg(value_name = "FILE|-")]
    pub(in super::super) to: PathBuf,
    #[command(flatten)]
    pub(in super::super) library: LibraryArgs,
    #[command(flatten)]
    pub(in super::super) settings: RootConfigArgs,
}

#[derive(Debug, Args)]
pub(in super::super) struct EngineImportArgs {
    /// An archive of `preheat engine export`, or `-`. A signer that the node trusts must vouch for it.
    #[arg(value_name = "FILE|-")]
    pub(in super::super) from: PathBuf,
    #[command(flatten)]
    pub(in super::super) library: LibraryArgs,
    #[command(flatten)]
    pub(in super::super) settings: RootConfigArgs,
    /// Print the bundle as JSON.
    #[arg(long)]
    pub(in super::super) json: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct EngineRestoreArgs {
    /// Which bundle; the first digits are enough where no other has them.
    #[arg(value_name = "BUNDLE")]
    pub(in super::super) bundle: String,
    /// Where to: a directory that does not exist yet.
    #[arg(value_name = "DIR")]
    pub(in super::super) into: PathBuf,
    #[command(flatten)]
    pub(in super::super) library: LibraryArgs,
    #[command(flatten)]
    pub(in super::super) settings: RootConfigArgs,
    /// Print what was done as JSON.
    #[arg(long)]
    pub(in super::super) json: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct EnginePinArgs {
    /// Which bundle; the first digits are enough where no other has them.
    #[arg(value_name = "BUNDLE")]
    pub(in super::super) bundle: String,
    #[command(flatten)]
    pub(in super::super) pin: NamedPinArgs,
    #[command(flatten)]
    pub(in super::super) library: LibraryArgs,
    #[command(flatten)]
    pub(in super::super) settings: RootConfigArgs,
    /// Print the bundle as JSON.
    #[arg(long)]
    pub(in super::super) json: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct EngineReleaseArgs {
    /// Which bundle; the first digits are enough where no other has them.
    #[arg(value_name = "BUNDLE")]
    pub(in super::super) bundle: String,
    /// Why, for whoever reads the log.
    #[arg(long, default_value = "", hide_default_value = true, value_name = "TEXT")]
    pub(in super::super) reason: String,
    #[command(flatten)]
    pub(in super::super) library: LibraryArgs,
    #[command(flatten)]
    pub(in super::super) settings: RootConfigArgs,
    /// Print the bundle as JSON.
    #[arg(long)]
    pub(in super::super) json: bool,
}

#[derive(Debug, Args)]
pub(in super::super) struct EngineKeygenArgs {
    /// Where the private key goes: a file that does not exist yet.
    #[arg(value_name = "FILE")]
    pub(in super::super) file: PathBuf,
}
