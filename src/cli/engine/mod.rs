//! `preheat engine`: compiled engines, their keys, and why they are or are not reused.

mod doctor;
mod explain;
mod fingerprint;

use std::process::ExitCode;

pub(super) use fingerprint::{asked, settings};

use super::args::{EngineArgs, EngineVerb};

pub(super) fn run(args: EngineArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        EngineVerb::Fingerprint(args) => fingerprint::run(args),
        EngineVerb::Doctor(args) => doctor::run(args),
        EngineVerb::Explain(args) => super::block_on(super::until_interrupted(explain::run(args))),
    }
}
