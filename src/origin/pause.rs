//! A server that asks to be left alone is left alone by everybody in this process: what one request is told, all plannings and
//! transfers hear before they ask.
//!
//! A hub counts what comes from one account, or anonymously from one address, in windows of five minutes; the office's other
//! jobs share them. A job that waits by itself is followed by thirty-one that find out by asking. So a request first looks
//! here, and is answered `RateLimited` with the time that is left, as if the server had said so; the waiting itself, its bounds
//! and its end are the caller's, who retries anyway.
//!
//! Two kinds of pause: a 429 is about one account (another tenant's token has a window of its own, and must not be stopped by
//! it), a 503 with `Retry-After` about the server. `RateLimit` fields come with every answer; one that says that nothing is left
//! stops further questions of its kind before they are refused.
//!
//! Turned down: to wait here. A part that waits holds a connection's place, and would count as stalled.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use reqwest::StatusCode;
use reqwest::header::HeaderMap;

use super::range::retry_after;

/// What is asked for; servers count it apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Class {
    /// Listings and metadata.
    Questions,
    /// Bytes, or where they are.
    Bytes,
}

/// The pauses of all servers. Cheap to clone; all clones are one.
#[derive(Clone, Debug, Default)]
pub(super) struct Pauses {
    table: Arc<Mutex<Table>>,
    /// Accounts are told apart by a hash that means nothing outside this process.
    hasher: RandomState,
}

/// The pauses that matter to one account at one server.
#[derive(Clone, Debug)]
pub(super) struct Limit {
    table: Arc<Mutex<Table>>,
    server: String,
    /// Tells accounts apart, and nothing of them.
    pub(super) account: u64,
}

/// Who has to wait. `None`: everybody, and every class.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Who {
    server: String,
    account: Option<u64>,
    class: Option<Class>,
}

/// The decider: until when who has to wait.
#[derive(Debug, Default)]
struct Table {
    until: HashMap<Who, Instant>,
}

/// Pauses that are remembered. Each stands for an answer of a server in the last minutes, so this is reached by attack only; the
/// one that ends first then goes.
const MOST: usize = 4096;

/// For a 429 that names no time: long enough that others hear of it, short beside the back-off that follows.
const UNNAMED: Duration = Duration::from_secs(1);

// === impl Pauses ===

impl Pauses {
    /// The limit of whoever shows `credential` to `server`.
    pub(super) fn limit(&self, server: &url::Url, credential: Option<&[u8]>) -> Limit {
        let server = server.origin().ascii_serialization();
        Limit { table: Arc::clone(&self.table), server, account: self.hasher.hash_one(credential) }
    }
}

// === impl Limit ===

impl Limit {
    /// How long nothing of this class may be asked; `None`: it may.
    pub(super) fn left(&self, class: Class, now: Instant) -> Option<Duration> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).left(self, class, now)
    }

    /// Takes in what an answer says of limits.
    pub(super) fn heard(&self, class: Class, status: StatusCode, headers: &HeaderMap, now: Instant) {
        let Some((who, wait)) = told(status, headers) else { return };
        let account = (who != Asks::Server).then_some(self.account);
        let class = (who == Asks::Window).then_some(class);
        let who = Who { server: self.server.clone(), account, class };
        tracing::debug!(server = self.server, ?wait, %status, "asks to be left alone");
        self.table.lock().unwrap_or_else(PoisonError::into_inner).pause(who, wait, now);
    }
}

// === impl Table ===

impl Table {
    fn pause(&mut self, who: Who, wait: Duration, now: Instant) {
        let Some(until) = now.checked_add(wait) else { return };
        self.until.retain(|_, until| *until > now);
        if self.until.len() >= MOST
            && let Some(first) = self.until.iter().min_by_key(|(_, until)| **until).map(|(who, _)| who.clone())
        {
            self.until.remove(&first);
        }
        let known = self.until.entry(who).or_insert(until);
        *known = until.max(*known);
    }

    fn left(&self, of: &Limit, class: Class, now: Instant) -> Option<Duration> {
        let find = |account, class| self.until.get(&Who { server: of.server.clone(), account, class });
        let pauses = [find(None, None), find(Some(of.account), None), find(Some(of.account), Some(class))];
        let until = pauses.into_iter().flatten().max()?;
        until.checked_duration_since(now).filter(|left| !left.is_zero())
    }
}

/// Who is asked to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Asks {
    Server,
    Account,
    /// The account, for what the answer was about.
    Window,
}

fn told(status: StatusCode, headers: &HeaderMap) -> Option<(Asks, Duration)> {
    let field = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    match status {
        StatusCode::TOO_MANY_REQUESTS => Some((Asks::Account, wait_of(headers).unwrap_or(UNNAMED))),
        StatusCode::SERVICE_UNAVAILABLE => Some((Asks::Server, field("retry-after").and_then(retry_after)?)),
        _ => Some((Asks::Window, field("ratelimit").and_then(until_reset)?)),
    }
}

/// How long a 429 asks to wait, if it says: until its window ends, else as `Retry-After` has it.
pub(super) fn wait_of(headers: &HeaderMap) -> Option<Duration> {
    let field = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    field("ratelimit").and_then(until_reset).or_else(|| field("retry-after").and_then(retry_after))
}

/// The time until the window ends, of `RateLimit: "api";r=0;t=55`, where nothing remains. Of several windows the last to end.
fn until_reset(field: &str) -> Option<Duration> {
    let window = |item: &str| {
        let value = |name: &str| item.split(';').find_map(|part| part.trim().strip_prefix(name)?.parse::<u64>().ok());
        // A second more: it counts in whole ones.
        (value("r=")? == 0).then_some(Duration::from_secs(value("t=")?.saturating_add(1)))
    };
    let longest = field.split(',').filter_map(window).max()?;
    Some(longest.min(super::range::RETRY_AFTER_LIMIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    fn limit(pauses: &Pauses, credential: Option<&str>) -> Limit {
        pauses.limit(&"https://hub/some/path".parse().unwrap(), credential.map(str::as_bytes))
    }

    #[test]
    fn windows_are_read() {
        assert_eq!(until_reset("\"api\";r=0;t=55"), Some(Duration::from_secs(56)));
        assert_eq!(until_reset("\"api\";r=3;t=55"), None);
        assert_eq!(until_reset("\"api\";r=0;t=5, \"pages\"; r=0; t=9"), Some(Duration::from_secs(10)));
        assert_eq!(until_reset("\"api\";r=0;t=18446744073709551615"), Some(super::super::range::RETRY_AFTER_LIMIT));
        assert_eq!(until_reset("nonsense"), None);
    }

    #[test]
    fn what_one_is_told_all_of_the_account_hear() {
        let (pauses, now) = (Pauses::default(), Instant::now());
        let [one, other, nobody] = [Some("a"), Some("b"), None].map(|token| limit(&pauses, token));
        let refused = headers(&[("ratelimit", "\"api\";r=0;t=55"), ("retry-after", "7")]);
        one.heard(Class::Questions, StatusCode::TOO_MANY_REQUESTS, &refused, now);
        for class in [Class::Questions, Class::Bytes] {
            assert_eq!(limit(&pauses, Some("a")).left(class, now), Some(Duration::from_secs(56)), "a new transfer");
            assert_eq!(
                other.left(class, now).or(nobody.left(class, now)),
                None,
                "other accounts have windows of their own"
            );
        }
        assert_eq!(one.left(Class::Bytes, now + Duration::from_secs(56)), None);
    }

    #[test]
    fn a_server_in_trouble_is_left_alone_by_all() {
        let (pauses, now) = (Pauses::default(), Instant::now());
        let [one, other] = [Some("a"), None].map(|token| limit(&pauses, token));
        one.heard(Class::Bytes, StatusCode::SERVICE_UNAVAILABLE, &headers(&[]), now);
        assert_eq!(one.left(Class::Bytes, now), None, "without a time it is an error like others");
        one.heard(Class::Bytes, StatusCode::SERVICE_UNAVAILABLE, &headers(&[("retry-after", "7")]), now);
        assert_eq!(other.left(Class::Questions, now), Some(Duration::from_secs(7)));
        let elsewhere = pauses.limit(&"https://hub:8443/".parse().unwrap(), None);
        assert_eq!(elsewhere.left(Class::Questions, now), None);
    }

    #[test]
    fn an_empty_window_stops_its_own_class_only() {
        let (pauses, now) = (Pauses::default(), Instant::now());
        let one = limit(&pauses, None);
        one.heard(Class::Questions, StatusCode::OK, &headers(&[("ratelimit", "\"api\";r=0;t=9")]), now);
        assert_eq!(one.left(Class::Questions, now), Some(Duration::from_secs(10)));
        assert_eq!(one.left(Class::Bytes, now), None);
        // A shorter word does not take back a longer one.
        one.heard(Class::Questions, StatusCode::OK, &headers(&[("ratelimit", "\"api\";r=0;t=1")]), now);
        assert_eq!(one.left(Class::Questions, now), Some(Duration::from_secs(10)));
    }

    #[test]
    fn the_table_is_bounded() {
        let (pauses, now) = (Pauses::default(), Instant::now());
        for number in 0..MOST + 10 {
            let token = number.to_string();
            let refused = headers(&[("retry-after", "60")]);
            limit(&pauses, Some(&token)).heard(Class::Bytes, StatusCode::TOO_MANY_REQUESTS, &refused, now);
        }
        assert_eq!(pauses.table.lock().unwrap().until.len(), MOST);
        let later = now + Duration::from_secs(61);
        limit(&pauses, None).heard(Class::Bytes, StatusCode::TOO_MANY_REQUESTS, &headers(&[]), later);
        assert_eq!(pauses.table.lock().unwrap().until.len(), 1, "what is over is forgotten");
    }
}
