//! Following a job at its daemon until it has ended, and what its end means for a command.

use std::process::ExitCode;
use std::time::Duration;

use futures_util::StreamExt;

use super::error::CliError;
use super::target::answered;
use crate::base::ErrorKind;
use crate::doors::client::Client;
use crate::prewarm::wire::{JobState, JobView};

/// A daemon at work sends an event at least every two seconds; four missed ones mean that it hangs.
const SILENCE: Duration = Duration::from_secs(8);

/// The job once it has ended; `each` sees every snapshot on the way, the last included.
///
/// # Errors
/// `Unavailable` for a daemon that stops before, `Timeout` for one that falls silent.
pub(super) async fn follow(
    client: &Client,
    id: &str,
    patience: Duration,
    mut each: impl FnMut(&JobView) -> anyhow::Result<()>,
) -> anyhow::Result<JobView> {
    let mut events = answered(client, patience, client.events(id)).await?;
    loop {
        let next = tokio::time::timeout(SILENCE.max(patience), events.next()).await;
        let next = next.map_err(|_| CliError::new(ErrorKind::Timeout, format!("{client} has fallen silent")))?;
        let Some(event) = next else {
            return Err(CliError::new(ErrorKind::Unavailable, format!("{client} stopped before the job ended")).into());
        };
        // Without a job in it, it is a sign of life.
        let Some(job) = event? else { continue };
        each(&job)?;
        if job.state.is_over() {
            return Ok(job);
        }
    }
}

/// The exit code of a command that has waited for a job. Its error is said, unless the caller reads it in JSON.
///
/// # Errors
/// That of the job.
pub(super) fn outcome(job: &JobView, json: bool) -> anyhow::Result<ExitCode> {
    let kind = match (&job.error, job.state) {
        (Some(problem), _) => {
            let kind = problem.kind.unwrap_or(ErrorKind::Internal);
            if !json {
                return Err(CliError::new(kind, problem.detail.clone()).into());
            }
            kind
        }
        (None, JobState::Cancelled) => ErrorKind::Cancelled,
        (None, JobState::NeedsCredentials) => ErrorKind::Denied,
        (None, JobState::Ready) if job.deadline_met == Some(false) => ErrorKind::Timeout,
        (None, JobState::Failed) => ErrorKind::Internal,
        (None, _) => return Ok(ExitCode::SUCCESS),
    };
    Ok(ExitCode::from(kind.exit_code()))
}
