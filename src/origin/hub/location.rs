//! Where the hub sends those who want the bytes of a large file.

use std::time::{Duration, Instant, SystemTime};

use reqwest::Url;

/// A signed URL, and until when it is good.
#[derive(Clone)]
pub(super) struct Location {
    pub(super) url: Url,
    /// Redirects that may still follow.
    pub(super) hops: usize,
    until: Option<Instant>,
}

/// Renewed this long before it ends: a part that begins must also be able to begin again.
const MARGIN: Duration = Duration::from_secs(30);

// === impl Location ===

impl Location {
    pub(super) fn new(url: Url, hops: usize) -> Self {
        let until = lifetime(&url, SystemTime::now()).map(|left| Instant::now() + left);
        Self { url, hops, until }
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() + MARGIN < until)
    }
}

/// Whether a URL is not the hub itself, so that the token must not go there.
pub(super) fn leads_elsewhere(hub: &Url, url: &Url) -> bool {
    hub.origin() != url.origin()
}

/// How long a signed URL is good for, as its own query says; unsigned ones say nothing.
fn lifetime(url: &Url, now: SystemTime) -> Option<Duration> {
    let field = |name: &str| url.query_pairs().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value);
    let now = now.duration_since(SystemTime::UNIX_EPOCH).ok()?;
    let end = match field("Expires") {
        Some(seconds) => Duration::from_secs(seconds.parse().ok()?),
        None => {
            let signed: jiff::Timestamp = basic_iso8601(&field("X-Amz-Date")?)?.parse().ok()?;
            let seconds: u64 = field("X-Amz-Expires")?.parse().ok()?;
            Duration::from_secs(u64::try_from(signed.as_second()).ok()?).checked_add(Duration::from_secs(seconds))?
        }
    };
    Some(end.saturating_sub(now))
}

/// `20260102T030405Z` with its separators.
fn basic_iso8601(text: &str) -> Option<String> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let digits = |text: &str, len| text.len() == len && text.bytes().all(|b| b.is_ascii_digit());
    (digits(date, 8) && digits(time, 6)).then(|| {
        format!("{}-{}-{}T{}:{}:{}Z", &date[..4], &date[4..6], &date[6..], &time[..2], &time[2..4], &time[4..])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    #[test]
    fn lifetimes_are_read_from_both_kinds_of_signature() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_323_045);
        let left = |text: &str| lifetime(&url(text), now).map(|left| left.as_secs());
        assert_eq!(left("https://cdn/x?Expires=1767323145&Signature=s"), Some(100));
        assert_eq!(left("https://cdn/x?X-Amz-Date=20260102T030405Z&X-Amz-Expires=3600"), Some(3600));
        assert_eq!(left("https://cdn/x?Expires=1"), Some(0));
        assert_eq!(left("https://cdn/x"), None);
        assert_eq!(left("https://cdn/x?Expires=soon"), None);
    }

    #[test]
    fn another_port_is_elsewhere() {
        let hub = url("https://hub.example");
        assert!(leads_elsewhere(&hub, &url("https://hub.example:8443/x")));
        assert!(leads_elsewhere(&hub, &url("http://hub.example/x")));
        assert!(!leads_elsewhere(&hub, &url("https://hub.example/other")));
    }
}
