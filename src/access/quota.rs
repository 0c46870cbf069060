//! How often a scope may ask: a token bucket for each, of one second's worth. Pure: it is told the time.
//!
//! `governor` was turned down here: its keyed limiter wants a store of its own with clean-up, which is more than these lines.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use super::Config;
use crate::model::Tenant;

/// Scopes that are remembered; beyond, those that have filled up again go.
const MOST: usize = 4096;

#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// The rates of all scopes.
#[derive(Debug)]
pub(super) struct Rates {
    default: Option<f64>,
    named: HashMap<Tenant, f64>,
    buckets: HashMap<Tenant, Bucket>,
}

// === impl Rates ===

impl Rates {
    pub(super) fn new(config: &Config) -> Self {
        let named = config.scopes.iter().filter_map(|scope| Some((scope.name.clone(), scope.requests_per_second?)));
        Self { default: config.requests_per_second, named: named.collect(), buckets: HashMap::new() }
    }

    /// Takes one request from a scope's bucket, or says how long until there is one.
    pub(super) fn take(&mut self, scope: &Tenant, now: Instant) -> Result<(), Duration> {
        let Some(rate) = self.named.get(scope).copied().or(self.default) else { return Ok(()) };
        // Less than one request a second must still be one now and then.
        let full = rate.max(1.0);
        if self.buckets.len() >= MOST && !self.buckets.contains_key(scope) {
            self.buckets.retain(|_, bucket| now.saturating_duration_since(bucket.at) < Duration::from_secs(60));
        }
        let bucket = self.buckets.entry(scope.clone()).or_insert(Bucket { left: full, at: now });
        let since = now.saturating_duration_since(bucket.at).as_secs_f64();
        bucket.left = (bucket.left + since * rate).min(full);
        bucket.at = now;
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64(((1.0 - bucket.left) / rate).clamp(0.0, 3600.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::ScopeConfig;

    #[test]
    fn a_scope_uses_up_its_own_rate_and_no_others() {
        let named = ScopeConfig { name: Tenant::of_uid(1), requests_per_second: Some(2.0), ..ScopeConfig::default() };
        let config = Config { scopes: vec![named], requests_per_second: Some(0.5), ..Config::default() };
        let mut rates = Rates::new(&config);
        let (one, other, start) = (Tenant::of_uid(1), Tenant::of_uid(2), Instant::now());
        assert!(rates.take(&one, start).is_ok() && rates.take(&one, start).is_ok());
        assert_eq!(rates.take(&one, start), Err(Duration::from_millis(500)));
        assert!(rates.take(&other, start).is_ok());
        assert_eq!(rates.take(&other, start), Err(Duration::from_secs(2)));
        assert!(rates.take(&one, start + Duration::from_millis(500)).is_ok());
        let unlimited = &mut Rates::new(&Config::default());
        assert!((0..10_000).all(|_| unlimited.take(&one, start).is_ok()));
    }
}
