//! `preheat verify`: hashes everything, takes no lock, changes nothing.

use std::process::ExitCode;

use super::args::VerifyArgs;
use super::error::CliError;
use super::progress::{Meter, Reading};
use crate::base::ErrorKind;
use crate::base::units::ByteSize;
use crate::store::ReadOnlyStore;

pub(super) fn run(args: &VerifyArgs) -> anyhow::Result<ExitCode> {
    let root =
        args.root.as_ref().ok_or_else(|| CliError::invalid("which store? Give --root DIR or set PREHEAT_ROOT"))?;
    let store = ReadOnlyStore::open(root)?;
    let mut meter = Meter::new("verify", args.json);
    let started = std::time::Instant::now();
    let outcome = store.verify(&mut |done, total| {
        let bytes_per_second = (done as f64 / started.elapsed().as_secs_f64().max(1e-3)) as u64;
        let eta_seconds = (bytes_per_second > 0).then(|| total.saturating_sub(done) as f64 / bytes_per_second as f64);
        meter.update(Reading { done, total, bytes_per_second, eta_seconds });
    })?;
    meter.finish();
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        for fault in &outcome.faults {
            println!("{}: {}", fault.file.display(), fault.what);
        }
        println!(
            "{} models, {} blobs, {}: {} wrong",
            outcome.models,
            outcome.blobs,
            ByteSize(outcome.bytes),
            outcome.faults.len()
        );
    }
    let code = if outcome.faults.is_empty() { 0 } else { ErrorKind::Corrupt.exit_code() };
    Ok(ExitCode::from(code))
}
