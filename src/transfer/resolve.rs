//! Asking an origin what a reference stands for, as often as it takes and no oftener: the same patience for every kind.

use std::future::Future;
use std::time::{SystemTime, UNIX_EPOCH};

use super::backoff::{Backoff, Jitter};
use super::error::{Remedy, TransferError};
use super::gear::Gear;
use crate::model::source::SourceError;
use crate::telemetry::metrics::Which;

/// Repeats `ask` while its failure may pass. Cancelled by dropping.
pub(super) async fn patiently<T, F>(
    gear: &Gear,
    what: &(impl ToString + ?Sized),
    mut ask: impl FnMut() -> F,
) -> Result<T, TransferError>
where
    F: Future<Output = Result<T, SourceError>>,
{
    let config = &gear.config;
    let backoff = Backoff::new(config);
    let mut jitter =
        Jitter::new(u64::from(SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |t| t.subsec_nanos())));
    let mut failures = 0;
    loop {
        let error = match ask().await {
            Ok(found) => return Ok(found),
            Err(error) => TransferError::source(what, error),
        };
        failures += 1;
        let wait = match error.remedy() {
            Remedy::Retry if failures < config.retry_attempts => backoff.wait(failures, &mut jitter),
            Remedy::RetryLittle if failures < config.retry_attempts.min(3) => backoff.wait(failures, &mut jitter),
            Remedy::SlowDown(after) if failures < config.retry_attempts => {
                let wait = after.unwrap_or_else(|| backoff.wait(failures, &mut jitter));
                if wait > config.retry_after_longest.0 {
                    return Err(error);
                }
                // All that wait for one server would come back in one moment.
                wait + backoff.wait(1, &mut jitter)
            }
            // A listing that changed while it was read is read again.
            _ if error.is_change() && failures < config.retry_attempts => backoff.wait(failures, &mut jitter),
            _ => return Err(error),
        };
        let which = error.kind().as_str();
        gear.metrics.origin_retries.get_or_create(&Which { which }).inc();
        tracing::debug!(%error, ?wait, "resolving again");
        tokio::time::sleep(wait).await;
    }
}
