//! `preheat engine`: compiled engines, their keys, and why they are or are not reused.

mod bundles;
mod doctor;
mod explain;
mod fingerprint;
mod keeping;
mod library;

use std::process::ExitCode;

pub(super) use fingerprint::asked;
pub(super) use library::{library, settings};

use super::args::{EngineArgs, EngineVerb};
use super::{block_on, until_interrupted};

pub(super) fn run(args: EngineArgs) -> anyhow::Result<ExitCode> {
    match args.what {
        EngineVerb::Fingerprint(args) => fingerprint::run(args),
        EngineVerb::Doctor(args) => doctor::run(args),
        EngineVerb::Explain(args) => block_on(until_interrupted(explain::run(args))),
        EngineVerb::List(args) => block_on(until_interrupted(bundles::list(args))),
        EngineVerb::Show(args) => block_on(until_interrupted(bundles::show(args))),
        EngineVerb::Export(args) => block_on(until_interrupted(bundles::export(args))),
        EngineVerb::Import(args) => block_on(until_interrupted(bundles::import(args))),
        EngineVerb::Restore(args) => block_on(until_interrupted(bundles::restore(args))),
        EngineVerb::Pin(args) => block_on(until_interrupted(keeping::pin(args))),
        EngineVerb::Release(args) => block_on(until_interrupted(keeping::release(args))),
        EngineVerb::Keygen(args) => bundles::keygen(&args),
    }
}
