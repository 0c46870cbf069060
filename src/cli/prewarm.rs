//! `preheat prewarm`: asks a node to have a model ready before it is needed.

use std::process::ExitCode;

use futures_util::StreamExt;

use super::args::{PrewarmArgs, TierArg};
use super::error::CliError;
use super::progress::{Meter, Reading};
use super::target;
use crate::base::ErrorKind;
use crate::base::units::ByteSize;
use crate::model::Reference;
use crate::prewarm::wire::{JobState, JobView, PrewarmRequest, Tier};

pub(super) async fn run(args: PrewarmArgs) -> anyhow::Result<ExitCode> {
    let reference: Reference = args.reference.parse().map_err(|error| CliError::invalid(format!("{error}")))?;
    let client = target::with_credential(target::required(&args.daemon)?, &reference, args.pass_credential)?;
    let request = PrewarmRequest {
        reference: args.reference.clone(),
        tier: match args.tier {
            TierArg::Disk => Tier::Disk,
            TierArg::Memory => Tier::Memory,
        },
        deadline_seconds: args.deadline.map(|deadline| deadline.0.as_secs_f64()),
        lease_seconds: args.lease.map(|lease| lease.0.as_secs()),
        ..PrewarmRequest::default()
    };
    let patience = target::patience(&args.daemon);
    let asked = tokio::time::timeout(patience, client.prewarm(&request)).await;
    let asked =
        asked.map_err(|_| CliError::new(ErrorKind::Timeout, format!("{client} did not answer within {patience:?}")))?;
    let mut job = asked.map_err(|error| CliError::new(error.kind(), error.to_string()))?;
    if args.wait {
        let mut meter = Meter::new("prewarm", args.json);
        let mut events =
            client.events(&job.id).await.map_err(|error| CliError::new(error.kind(), error.to_string()))?;
        while let Some(event) = events.next().await {
            if let Some(view) = event.map_err(|error| CliError::new(error.kind(), error.to_string()))? {
                job = view;
                meter.update(Reading::of(&job));
            }
        }
        meter.finish();
        if matches!(job.state, JobState::Queued | JobState::Running) {
            return Err(CliError::new(ErrorKind::Unavailable, format!("{client} stopped before the job ended")).into());
        }
    }
    if args.json {
        println!("{}", serde_json::to_string(&job)?);
    } else {
        println!("{}", sentence(&job));
        for warning in &job.warnings {
            eprintln!("preheat: {warning}");
        }
    }
    match (&job.error, job.state) {
        (Some(problem), _) => {
            let kind = problem.kind.unwrap_or(ErrorKind::Internal);
            if args.json {
                Ok(ExitCode::from(kind.exit_code()))
            } else {
                Err(CliError::new(kind, problem.detail.clone()).into())
            }
        }
        (None, JobState::Ready) if args.wait && job.deadline_met == Some(false) => {
            Ok(ExitCode::from(ErrorKind::Timeout.exit_code()))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

fn sentence(job: &JobView) -> String {
    let mut text = match job.state {
        JobState::Ready => {
            let path = job.path.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
            format!("{}: ready at {path}, {} in {:.1} s", job.id, ByteSize(job.bytes_total), job.seconds)
        }
        JobState::Queued | JobState::Running => {
            format!("{}: {}, {} of {}", job.id, job.stage, ByteSize(job.bytes_done), ByteSize(job.bytes_total))
        }
        JobState::Failed => format!("{}: failed", job.id),
        JobState::Cancelled => format!("{}: cancelled", job.id),
        JobState::NeedsCredentials => format!("{}: waits for a credential", job.id),
    };
    match job.deadline_met {
        Some(true) => text.push_str(", within the deadline"),
        Some(false) => text.push_str(", past the deadline"),
        None => {}
    }
    text
}
