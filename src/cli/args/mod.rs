//! The arguments of every verb, as parsed; validation belongs to the verbs.

mod bundles;
mod engine;
mod node;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

pub(super) use self::bundles::{
    EngineExportArgs, EngineImportArgs, EngineKeygenArgs, EngineListArgs, EnginePinArgs, EngineReleaseArgs,
    EngineRestoreArgs, EngineShowArgs, LibraryArgs,
};
pub(super) use self::engine::{CommandArgs, DoctorArgs, EngineArgs, EngineVerb, ExplainArgs, FingerprintArgs, RunArgs};
pub(super) use self::node::{
    CancelArgs, EstimateArgs, NamedPinArgs, PinArgs, PrewarmArgs, PriorityArg, StatusArgs, TierArg, WantedArgs,
};
use crate::base::units::Span;

/// preheat: verified model weights, local and warm before the replica starts.
#[derive(Debug, Parser)]
#[command(name = "preheat", version, about, after_help = super::exit::summary(), max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Run the node daemon.
    Serve(ServeArgs),
    /// Make a model present and print the path of its files.
    Fetch(FetchArgs),
    /// Ask a node to have a model, or a set of them, ready before it is needed.
    Prewarm(PrewarmArgs),
    /// Ask a node how long that would take, and start nothing. Exit code 124 if the deadline would be missed.
    Estimate(EstimateArgs),
    /// Show a node, or one of its jobs.
    Status(StatusArgs),
    /// Call a job off: its connections, memory and room are free within a second.
    Cancel(CancelArgs),
    /// Keep a model from being evicted.
    Pin(PinArgs),
    /// List the models of a store.
    Models(ModelsArgs),
    /// Publish a directory into a bucket or another directory, provable group by group.
    Push(PushArgs),
    /// Take a directory, or a snapshot of a Hugging Face cache, into a store without a download.
    Import(ImportArgs),
    /// Run a command with what was compiled for it: restored, proved to be used, kept if it is new. Its streams, its signals and its
    /// exit code are the command's own.
    Run(RunArgs),
    /// Passes output on, for `run`.
    #[command(hide = true)]
    PassOn,
    /// Compiled engines: their keys, and why they are or are not reused.
    Engine(EngineArgs),
    /// Write the manifest of a directory to stdout.
    Manifest(ManifestArgs),
    /// Hash everything in a store and compare.
    Verify(VerifyArgs),
    /// Give space back: orphans, or with --all everything not pinned, leased or in use.
    Gc(GcArgs),
    /// Show the configuration of a daemon, or check it.
    Config(ConfigArgs),
    /// Write completions for a shell to stdout.
    Completions(CompletionsArgs),
    /// Write the manual pages.
    Man(ManArgs),
    /// Show on this machine what preheat does: no network, no server to install.
    #[cfg(feature = "demo")]
    Demo(DemoArgs),
}

#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// Directory of the store; made if absent.
    #[arg(long, env = "PREHEAT_ROOT", value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    /// Address of the HTTP API; port 0 takes a free one.
    #[arg(long, value_name = "HOST:PORT")]
    pub(super) listen: Option<String>,
    /// Unix socket of the API.
    #[arg(long, env = "PREHEAT_SOCKET", value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// TOML configuration.
    #[arg(long, env = "PREHEAT_CONFIG", value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Serve only references below this URL prefix (repeatable). After the prefix: `,allow_private` for addresses inside the
    /// own network, `,credentials` to read with the daemon's own, `,scope=NAME` for whom. Without any: every public origin,
    /// anonymously.
    #[arg(long, value_name = "URL_PREFIX")]
    pub(super) allow_origin: Vec<crate::origin::Listing>,
    /// File with the bearer token that TCP callers must send.
    #[arg(long, env = "PREHEAT_TOKEN_FILE", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct ConfigArgs {
    /// What to do with it.
    #[command(subcommand)]
    pub(super) what: ConfigVerb,
}

#[derive(Debug, Subcommand)]
pub(super) enum ConfigVerb {
    /// Print every setting, its value, and where that came from. What is printed is a configuration file.
    Show(ConfigShowArgs),
    /// Say nothing if the configuration is right, and everything that is wrong with it otherwise (exit code 64). Nothing is
    /// bound, made or locked, and the files that it names are not opened.
    Check(ServeArgs),
}

#[derive(Debug, Args)]
pub(super) struct ConfigShowArgs {
    #[command(flatten)]
    pub(super) serve: ServeArgs,
    /// Print one JSON object: a key each, with `value` and `sources`.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// Which shell.
    #[arg(value_enum)]
    pub(super) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(super) struct ManArgs {
    /// Write a page for each verb into this directory, which is made if absent. Without it: all of them to stdout, for `man -l -`.
    #[arg(long, value_name = "DIR")]
    pub(super) out: Option<PathBuf>,
}

/// Where the daemon is.
#[derive(Clone, Debug, Args)]
pub(super) struct DaemonArgs {
    /// Daemon to ask: http://HOST:PORT or unix:PATH. Default: the socket in PREHEAT_SOCKET or /run/preheat/preheat.sock,
    /// then PREHEAT_ADDR.
    #[arg(long, value_name = "URL|unix:PATH")]
    pub(super) daemon: Option<String>,
    /// File with the bearer token for a daemon that wants one.
    #[arg(long, env = "PREHEAT_TOKEN_FILE", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// A daemon that does not answer for this long is treated as none.
    #[arg(long, default_value = "5s", value_name = "SPAN")]
    pub(super) daemon_timeout: Span,
}

/// Whether a daemon is shown the credential that this process has for the origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum PassCredential {
    /// If the daemon is on this machine: on its socket or a loopback address.
    Auto,
    /// Even over the network, in clear text.
    Always,
    /// No.
    Never,
}

#[derive(Debug, Args)]
pub(super) struct FetchArgs {
    /// What to fetch: file:///dir, https://host/path, s3://bucket/prefix, hf://org/model, each with `@revision`, `/subfolder`, `?include=GLOB`.
    pub(super) reference: String,
    /// Put a copy of the files here (reflink where the file system can).
    #[arg(long, value_name = "DIR")]
    pub(super) to: Option<PathBuf>,
    /// Let --to hard-link into the store. Whoever can write there can then corrupt the store.
    #[arg(long, requires = "to")]
    pub(super) link: bool,
    #[command(flatten)]
    pub(super) daemon: DaemonArgs,
    /// Show the daemon this process's own credential for the origin (HF_TOKEN, AWS_ACCESS_KEY_ID, ...). It is used only if the
    /// model cannot be read anonymously, and kept in memory only.
    #[arg(long, value_enum, default_value = "auto", value_name = "WHEN")]
    pub(super) pass_credential: PassCredential,
    /// Ask no daemon.
    #[arg(long, conflicts_with = "daemon")]
    pub(super) direct: bool,
    /// Store to use without a daemon.
    #[arg(long, env = "PREHEAT_ROOT", value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    /// End with one JSON object on stdout.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct PushArgs {
    /// Directory of the model.
    pub(super) directory: PathBuf,
    /// Where to: s3://bucket/prefix, gs://, az://, file:///dir; `?include=GLOB&exclude=GLOB` selects files as for a fetch.
    pub(super) destination: String,
    /// Overwrite another model that is published there; over the same one, send all of it again, which mends what a fetch has
    /// found wrong.
    #[arg(long)]
    pub(super) replace: bool,
    /// Send nothing; say what would be sent.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// End with one JSON object on stdout.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ImportArgs {
    /// Directory of the model; `models--ORG--NAME/snapshots/COMMIT` is known for what it is.
    pub(super) directory: PathBuf,
    /// The reference that it is the model of: a later fetch of that asks nobody. `?include=GLOB` as for a fetch.
    #[arg(long = "as", value_name = "REF")]
    pub(super) reference: Option<String>,
    /// Store to take it into; no daemon may run on it.
    #[arg(long, env = "PREHEAT_ROOT", value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    /// End with one JSON object on stdout.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ManifestArgs {
    /// Directory of the model.
    pub(super) directory: PathBuf,
    /// Print only the manifest's digest.
    #[arg(long)]
    pub(super) digest: bool,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Store to verify; may be in use by a daemon.
    #[arg(long, env = "PREHEAT_ROOT", value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    /// Print the outcome as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct ModelsArgs {
    /// Store to list without asking a daemon.
    #[arg(long, env = "PREHEAT_ROOT", value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    #[command(flatten)]
    pub(super) daemon: DaemonArgs,
    /// Print as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(super) struct GcArgs {
    /// Everything that is not pinned, leased or in use.
    #[arg(long)]
    pub(super) all: bool,
    /// Store to clean when no daemon runs on it.
    #[arg(long, env = "PREHEAT_ROOT", value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
    #[command(flatten)]
    pub(super) daemon: DaemonArgs,
    /// Print the outcome as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[cfg(feature = "demo")]
#[derive(Debug, Args)]
pub(super) struct DemoArgs {
    /// Size of the generated model.
    #[arg(long, default_value = "2GiB")]
    pub(super) size: crate::base::units::ByteSize,
    /// Use this model instead of a generated one.
    #[arg(long, value_name = "REF")]
    pub(super) model: Option<String>,
    /// Bandwidth of the demonstration's origin.
    #[arg(long, default_value = "400MB/s")]
    pub(super) bandwidth: crate::base::units::ByteRate,
    /// Where to put the demonstration's files; removed afterwards.
    #[arg(long, value_name = "DIR")]
    pub(super) scratch: Option<PathBuf>,
    /// Print the outcome as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

#[cfg(test)]
mod tests {
    use clap::{Command, CommandFactory};

    use super::Cli;
    use crate::config::NOT_SETTINGS;

    fn variables(of: &Command, found: &mut Vec<String>) {
        found.extend(of.get_arguments().filter_map(|argument| Some(argument.get_env()?.to_str()?.to_owned())));
        of.get_subcommands().for_each(|verb| variables(verb, found));
    }

    #[test]
    fn the_variable_of_an_argument_is_not_taken_for_a_setting() {
        let mut found = Vec::new();
        variables(&Cli::command(), &mut found);
        assert!(found.iter().any(|name| name == "PREHEAT_VIEW_DIR"), "{found:?}");
        for name in found {
            let known = name.strip_prefix("PREHEAT_").is_some_and(|rest| NOT_SETTINGS.contains(&rest));
            assert!(known, "with {name} set no daemon would start: name it in NOT_SETTINGS");
        }
    }
}
