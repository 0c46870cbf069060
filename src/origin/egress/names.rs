//! Names that connections of our own lead to, looked up once for many. A fetch opens sixteen connections to one place at once and
//! more as it goes: with a look-up for each, a name server gets a burst for every fetch, and all connections go to whichever
//! address it names first. Here those who want a name at the same time share a look-up, its answer is good for a moment, and each
//! connection begins at the next of its addresses.
//!
//! What is kept has been judged, and exactly those addresses are connected to, so a name that is given another address meanwhile
//! gains nothing.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::address::Reach;
use super::resolve;

/// How long an answer is good. Stores change theirs every few seconds to spread load; at half, a fetch that grows asks again.
const FRESH: Duration = Duration::from_secs(5);
/// How long a failure is: those who waited for the same look-up need not each wait for another.
const FAILED: Duration = Duration::from_secs(1);
/// Names kept: more servers than a node fetches from in a moment.
const NAMES: usize = 1024;

/// The names of a process.
#[derive(Debug, Default)]
pub(super) struct Names {
    known: Mutex<HashMap<(String, Reach), Arc<Known>>>,
}

#[derive(Debug, Default)]
struct Known {
    /// Held while it is looked up.
    answer: tokio::sync::Mutex<Option<Answer>>,
    /// How often it has been asked for.
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Answer {
    at: Instant,
    /// `None`: there was none, or none that may be asked.
    addresses: Option<Arc<[SocketAddr]>>,
}

// === impl Names ===

impl Names {
    /// The addresses of a name, if all of them may be asked, in the order in which they are to be tried. Their ports mean
    /// nothing.
    ///
    /// # Errors
    /// When there are none, or some that may not be asked.
    pub(super) async fn addresses(&self, name: &str, reach: Reach) -> io::Result<Vec<SocketAddr>> {
        self.addresses_by(name, reach, || resolve::judged(name, reach)).await
    }

    async fn addresses_by<F>(&self, name: &str, reach: Reach, look_up: impl Fn() -> F) -> io::Result<Vec<SocketAddr>>
    where
        F: Future<Output = Result<Vec<SocketAddr>, Box<dyn Error + Send + Sync>>>,
    {
        let known = self.known(name, reach);
        let mut answer = known.answer.lock().await;
        if answer.as_ref().is_none_or(|answer| !answer.is_good(Instant::now())) {
            let found = look_up().await;
            let at = Instant::now();
            match found {
                Ok(found) => *answer = Some(Answer { at, addresses: Some(found.into()) }),
                Err(error) => {
                    *answer = Some(Answer { at, addresses: None });
                    return Err(io::Error::other(error));
                }
            }
        }
        let addresses = answer.as_ref().and_then(|answer| answer.addresses.clone());
        drop(answer);
        let addresses = addresses.ok_or_else(|| io::Error::other("could not be looked up a moment ago"))?;
        Ok(in_turn(&addresses, known.turn.fetch_add(1, Ordering::Relaxed)))
    }

    fn known(&self, name: &str, reach: Reach) -> Arc<Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.to_owned(), reach);
        if known.len() >= NAMES && !known.contains_key(&key) {
            let now = Instant::now();
            // Those in use are kept, so that nobody waits for a look-up that others do not share.
            known.retain(|_, known| {
                known.answer.try_lock().map_or(true, |answer| answer.as_ref().is_some_and(|answer| answer.is_good(now)))
            });
        }
        if known.len() >= NAMES && !known.contains_key(&key) {
            return Arc::default();
        }
        Arc::clone(known.entry(key).or_default())
    }
}

// === impl Answer ===

impl Answer {
    fn is_good(&self, now: Instant) -> bool {
        let time = if self.addresses.is_some() { FRESH } else { FAILED };
        now.saturating_duration_since(self.at) < time
    }
}

/// Both families by turns, beginning with that of the first address: the resolver has its reasons for the order of families. Within
/// a family its order is that of chance, and `turn` says with which to begin.
fn in_turn(addresses: &[SocketAddr], turn: usize) -> Vec<SocketAddr> {
    let Some(first) = addresses.first().map(SocketAddr::is_ipv6) else { return Vec::new() };
    let families = [first, !first].map(|family| {
        let mut members: Vec<_> = addresses.iter().filter(|address| address.is_ipv6() == family).copied().collect();
        let begin = if members.is_empty() { 0 } else { turn % members.len() };
        members.rotate_left(begin);
        members
    });
    let longest = families[0].len().max(families[1].len());
    (0..longest).flat_map(|at| families.iter().filter_map(move |family| family.get(at).copied())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(texts: &[&str]) -> Vec<SocketAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn families_take_turns_and_each_begins_with_its_next() {
        let found = addresses(&["[::1]:1", "[::2]:1", "1.1.1.1:1", "[::3]:1"]);
        assert_eq!(in_turn(&found, 0), addresses(&["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"]));
        assert_eq!(in_turn(&found, 4), addresses(&["[::2]:1", "1.1.1.1:1", "[::3]:1", "[::1]:1"]));
        assert_eq!(in_turn(&[], 3), []);
    }

    #[tokio::test]
    async fn those_who_ask_at_once_share_a_look_up_and_begin_at_different_addresses() {
        let (names, asked) = (Names::default(), AtomicUsize::new(0));
        let look_up = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(addresses(&["1.1.1.1:0", "2.2.2.2:0"]))
        };
        let all = (0..4).map(|_| names.addresses_by("a.example", Reach::Public, look_up));
        let found: Vec<_> =
            futures_util::future::join_all(all).await.into_iter().map(|found| found.unwrap()[0]).collect();
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        let first: Vec<_> = found.iter().map(ToString::to_string).collect();
        assert_eq!(first, ["1.1.1.1:0", "2.2.2.2:0", "1.1.1.1:0", "2.2.2.2:0"]);
        // What one may reach is not what another may.
        names.addresses_by("a.example", Reach::Inside, look_up).await.unwrap();
        names.addresses_by("b.example", Reach::Public, look_up).await.unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test]
    async fn a_failure_is_shared_and_soon_forgotten() {
        let (names, asked) = (Names::default(), AtomicUsize::new(0));
        let look_up = || async {
            asked.fetch_add(1, Ordering::Relaxed);
            Err(io::Error::other("no such name").into())
        };
        let all = (0..4).map(|_| names.addresses_by("a.example", Reach::Public, look_up));
        assert!(futures_util::future::join_all(all).await.iter().all(Result::is_err));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        let now = Instant::now();
        let answer = |addresses: Option<Arc<[SocketAddr]>>| Answer { at: now, addresses };
        assert!(answer(None).is_good(now) && !answer(None).is_good(now + FAILED));
        let found = answer(Some(Arc::from([])));
        assert!(found.is_good(now + FAILED) && !found.is_good(now + FRESH));
    }
}
