//! Where the hub sends those who want the bytes of a large file.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use reqwest::Url;
use url::Host;

use crate::model::source::SourceError;

/// A signed URL, and until when it is good.
#[derive(Clone)]
pub(super) struct Location {
    pub(super) url: Url,
    until: Option<Instant>,
}

/// Renewed this long before it ends: a part that begins must also be able to begin again.
const MARGIN: Duration = Duration::from_secs(30);

// === impl Location ===

impl Location {
    pub(super) fn new(url: Url) -> Self {
        let until = lifetime(&url, SystemTime::now()).map(|left| Instant::now() + left);
        Self { url, until }
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.until.is_none_or(|until| Instant::now() + MARGIN < until)
    }

    pub(super) fn host(&self) -> &str {
        self.url.host_str().unwrap_or_default()
    }
}

/// Whether a URL is not the hub itself, so that the token must not go there.
pub(super) fn leads_elsewhere(hub: &Url, url: &Url) -> bool {
    hub.origin() != url.origin()
}

/// Refuses what a hub has no reason to send us to: plain HTTP from HTTPS, and addresses inside the own network. A hub that is
/// itself in there may name others that are.
pub(super) fn check(hub: &Url, url: &Url, what: &str) -> Result<(), SourceError> {
    let denied = |detail: &str| {
        let detail = format!("the hub redirects to {}, {detail}", url.host_str().unwrap_or("no host"));
        Err(SourceError::Denied { what: what.to_owned(), detail })
    };
    if url.scheme() != "https" && (url.scheme() != "http" || hub.scheme() != "http") {
        return denied("without TLS");
    }
    let inside = |url: &Url| match url.host() {
        Some(Host::Ipv4(address)) => is_inside(IpAddr::V4(address)),
        Some(Host::Ipv6(address)) => is_inside(IpAddr::V6(address)),
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost") || name.ends_with(".internal"),
        None => true,
    };
    if inside(url) && !inside(hub) { denied("an address inside this network") } else { Ok(()) }
}

fn is_inside(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_private() || address.is_loopback() || address.is_link_local() || address.is_unspecified()
        }
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(mapped) => is_inside(IpAddr::V4(mapped)),
            None => {
                address.is_loopback()
                    || address.is_unspecified()
                    || address.is_unique_local()
                    || address.is_unicast_link_local()
            }
        },
    }
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
    fn a_hub_may_not_send_us_inside() {
        let hub = url("https://hub.example");
        for (target, allowed) in [
            ("https://cdn.example/x?sig", true),
            ("http://cdn.example/x", false),
            ("https://169.254.169.254/latest/meta-data", false),
            ("https://10.0.0.1/x", false),
            ("https://[::ffff:127.0.0.1]/x", false),
            ("https://[fd00::1]/x", false),
            ("https://localhost/x", false),
            ("https://metadata.google.internal/x", false),
            ("file:///etc/passwd", false),
        ] {
            assert_eq!(check(&hub, &url(target), "x").is_ok(), allowed, "{target}");
        }
        assert!(check(&url("http://127.0.0.1:1"), &url("http://127.0.0.1:2/x"), "x").is_ok());
        assert!(leads_elsewhere(&hub, &url("https://hub.example:8443/x")));
        assert!(!leads_elsewhere(&hub, &url("https://hub.example/other")));
    }
}
