//! Trying once more what an upload failed at. Of what is read, `transfer` decides this for every kind of origin alike; what is
//! written goes part by part inside one call, and beginning again with the first part is no answer to the loss of the last.

use std::time::Duration;

use crate::model::source::SourceError;

/// Tries of one request that bring nothing: with the waits between them about half a minute, which outlives the restart of a
/// gateway. Half gives up in 4 s; twice would take over 4 minutes to say that a place is down.
const TRIES: u32 = 7;

/// The wait after the first failure; doubled after each.
const FIRST: Duration = Duration::from_millis(500);

/// The longest wait that a place may ask for.
const LONGEST: Duration = Duration::from_secs(60);

/// Runs `attempt` until it succeeds, fails for good, or has failed too often.
pub(super) async fn again<T, F>(mut attempt: impl FnMut() -> F + Send) -> Result<T, SourceError>
where
    F: Future<Output = Result<T, SourceError>> + Send,
{
    let mut failures = 0;
    loop {
        let error = match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        failures += 1;
        if failures >= TRIES || !error.kind().is_retryable() {
            return Err(error);
        }
        let wait = error.retry_after().unwrap_or(FIRST * (1 << (failures - 1))).min(LONGEST);
        tracing::debug!(%error, ?wait, "trying again");
        tokio::time::sleep(wait).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn down() -> SourceError {
        // As a place that asks for no wait at all.
        SourceError::RateLimited { what: "it".to_owned(), retry_after: Some(Duration::ZERO) }
    }

    #[tokio::test]
    async fn passing_faults_are_outlived_and_lasting_ones_are_not() {
        let tries = AtomicU32::new(0);
        let passing = again(|| async {
            let number = tries.fetch_add(1, Ordering::Relaxed);
            if number < 3 { Err(down()) } else { Ok(number) }
        });
        assert_eq!(passing.await.unwrap(), 3);
        tries.store(0, Ordering::Relaxed);
        let lasting = again(|| async {
            tries.fetch_add(1, Ordering::Relaxed);
            Err::<(), _>(down())
        });
        lasting.await.unwrap_err();
        assert_eq!(tries.swap(0, Ordering::Relaxed), TRIES);
        let denied = again(|| async {
            tries.fetch_add(1, Ordering::Relaxed);
            Err::<(), _>(SourceError::Denied { what: String::new(), detail: String::new() })
        });
        denied.await.unwrap_err();
        assert_eq!(tries.load(Ordering::Relaxed), 1);
    }
}
