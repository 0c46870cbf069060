//! How long a model will take that nobody has asked for yet. Pure: it is given what is missing, what origins, disk and memory have
//! been seen to do, and who else is at it.
//!
//! Bytes of one server come at its rate, behind those that go first: a demand waits for other demands as far as they share the
//! rate with it, a prefetch also for every demand. Servers give at the same time, so the slowest decides. Then, for the tier
//! `memory`, what was on disk is read and everything is hashed.
//!
//! Turned down: telling one number. A plan needs to know how wrong it may be, and whether anything was measured at all.

use super::wire::{Basis, Estimate, EtaSeconds, Priority, RateView};
use crate::transfer::OriginRate;

/// What has to come from one server.
#[derive(Clone, Debug)]
pub(super) struct FromServer {
    /// Scheme and host.
    pub(super) server: String,
    /// Bytes.
    pub(super) missing: u64,
    /// What it has been seen to give; `None`: never seen.
    pub(super) rate: Option<OriginRate>,
    /// Bytes that others still want of it.
    pub(super) others: Vec<Other>,
}

/// Somebody else's transfer from the same server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Other {
    pub(super) left: u64,
    pub(super) priority: Priority,
}

/// Bytes a second of something that is measured on this node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct NodeRate {
    pub(super) p50: f64,
    pub(super) p10: f64,
    /// Seconds since it was measured; `None`: assumed.
    pub(super) age: Option<f64>,
}

/// What the tier `memory` takes beside.
#[derive(Clone, Copy, Debug)]
pub(super) struct ToMemory {
    /// Bytes that are on disk and not in memory.
    pub(super) cold: u64,
    /// Bytes that are hashed from memory: everything else.
    pub(super) hot: u64,
    pub(super) read: NodeRate,
    pub(super) hash: NodeRate,
}

/// What is asked.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) priority: Priority,
    pub(super) servers: Vec<FromServer>,
    pub(super) memory: Option<ToMemory>,
    /// What servers give that were seen, for those that were not.
    pub(super) prior: Option<OriginRate>,
}

/// A rate that was measured longer ago is no measure any more: an hour is a working day of a link.
const STALE: f64 = 3600.0;

/// What an assumed rate may be off by.
const PRIOR_SPREAD: f64 = 3.0;

/// Answers in bytes and seconds.
pub(super) fn estimate(question: &Question) -> Estimate {
    let mut rates = Vec::new();
    let mut basis = Basis::Measured;
    let (mut own, mut queue) = (Some(Spread::default()), Spread::default());
    for server in question.servers.iter().filter(|server| server.missing > 0) {
        let (rate, of) = match (server.rate, question.prior) {
            (Some(rate), _) if rate.age.as_secs_f64() <= STALE => (Some(rate), Basis::Measured),
            (Some(rate), _) => (Some(rate), Basis::Prior),
            (None, Some(prior)) => (Some(spread_out(prior)), Basis::Prior),
            (None, None) => (None, Basis::None),
        };
        basis = basis.max(of);
        let Some(rate) = rate else {
            rates.push(RateView {
                of: "origin".to_owned(),
                server: Some(server.server.clone()),
                basis: of,
                ..RateView::default()
            });
            own = None;
            continue;
        };
        rates.push(RateView {
            of: "origin".to_owned(),
            server: Some(server.server.clone()),
            basis: of,
            bytes_per_second_p50: Some(rate.rate_p50),
            bytes_per_second_p10: Some(rate.rate_p10),
            age_seconds: server.rate.is_some().then_some(rate.age.as_secs_f64()),
        });
        let before: u64 = server.others.iter().map(|other| ahead(question.priority, server.missing, *other)).sum();
        let alone = Spread {
            p50: rate.overhead_p50 + server.missing as f64 / rate.rate_p50,
            p90: rate.overhead_p90 + server.missing as f64 / rate.rate_p10,
        };
        let wait = Spread { p50: before as f64 / rate.rate_p50, p90: before as f64 / rate.rate_p10 };
        own = own.map(|own| own.max(alone));
        queue = queue.max(wait);
    }
    if let Some(ToMemory { cold, hot, read, hash }) = question.memory {
        let mut add = |of: &str, bytes: u64, rate: NodeRate| {
            let of_rate = if rate.age.is_some_and(|age| age <= STALE) { Basis::Measured } else { Basis::Prior };
            if bytes > 0 {
                basis = basis.max(of_rate);
            }
            rates.push(RateView {
                of: of.to_owned(),
                server: None,
                basis: of_rate,
                bytes_per_second_p50: Some(rate.p50),
                bytes_per_second_p10: Some(rate.p10),
                age_seconds: rate.age,
            });
            Spread { p50: bytes as f64 / rate.p50, p90: bytes as f64 / rate.p10 }
        };
        let (cold, hot) = (add("disk", cold, read), add("memory", hot, hash));
        own = own.map(|own| own.plus(cold).plus(hot));
    }
    let total = own.map(|own| own.plus(queue));
    Estimate {
        seconds: total.map(Spread::seconds),
        queue_seconds: total.map(|_| queue.seconds()),
        basis: if total.is_none() { Basis::None } else { basis },
        rates,
        ..Estimate::default()
    }
}

/// Bytes of another transfer that pass before the last of ours: all of one that goes first, and of one that shares the rate as
/// many as we have.
fn ahead(ours: Priority, missing: u64, other: Other) -> u64 {
    match (ours, other.priority) {
        (Priority::Prefetch, Priority::Demand) => other.left,
        (Priority::Demand, Priority::Prefetch) => 0,
        _ => other.left.min(missing),
    }
}

fn spread_out(prior: OriginRate) -> OriginRate {
    OriginRate { rate_p10: prior.rate_p10 / PRIOR_SPREAD, overhead_p90: prior.overhead_p90 * PRIOR_SPREAD, ..prior }
}

#[derive(Clone, Copy, Debug, Default)]
struct Spread {
    p50: f64,
    p90: f64,
}

// === impl Spread ===

impl Spread {
    fn plus(self, other: Self) -> Self {
        Self { p50: self.p50 + other.p50, p90: self.p90 + other.p90 }
    }

    fn max(self, other: Self) -> Self {
        Self { p50: self.p50.max(other.p50), p90: self.p90.max(other.p90) }
    }

    fn seconds(self) -> EtaSeconds {
        EtaSeconds { p50: self.p50, p90: self.p90.max(self.p50) }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn rate(rate: f64, age: u64) -> OriginRate {
        OriginRate {
            rate_p50: rate,
            rate_p10: rate / 2.0,
            overhead_p50: 1.0,
            overhead_p90: 2.0,
            age: Duration::from_secs(age),
        }
    }

    fn server(missing: u64, rate: Option<OriginRate>, others: Vec<Other>) -> FromServer {
        FromServer { server: "https://host".to_owned(), missing, rate, others }
    }

    fn ask(priority: Priority, servers: Vec<FromServer>, prior: Option<OriginRate>) -> Estimate {
        estimate(&Question { priority, servers, memory: None, prior })
    }

    fn seconds(estimate: &Estimate) -> (f64, f64) {
        estimate.seconds.map(|eta| (eta.p50, eta.p90)).unwrap()
    }

    #[test]
    fn bytes_take_their_time_after_the_overhead_and_behind_others() {
        let demand = |left| Other { left, priority: Priority::Demand };
        let prefetch = |left| Other { left, priority: Priority::Prefetch };
        for (priority, others, expected) in [
            (Priority::Demand, vec![], (11.0, 22.0)),
            (Priority::Demand, vec![prefetch(5000)], (11.0, 22.0)),
            (Priority::Demand, vec![demand(300)], (14.0, 28.0)),
            (Priority::Demand, vec![demand(5000)], (21.0, 42.0)),
            (Priority::Prefetch, vec![demand(5000)], (61.0, 122.0)),
            (Priority::Prefetch, vec![prefetch(5000)], (21.0, 42.0)),
        ] {
            let asked = ask(priority, vec![server(1000, Some(rate(100.0, 5)), others.clone())], None);
            assert_eq!(seconds(&asked), expected, "{priority:?} {others:?}");
            assert_eq!(asked.basis, Basis::Measured);
        }
        let both = ask(
            Priority::Demand,
            vec![server(1000, Some(rate(100.0, 0)), vec![]), server(1000, Some(rate(10.0, 0)), vec![])],
            None,
        );
        assert_eq!(seconds(&both), (101.0, 202.0), "the slower of two");
    }

    #[test]
    fn what_was_not_measured_says_so() {
        let unseen = ask(Priority::Demand, vec![server(1000, None, vec![])], None);
        assert_eq!((unseen.seconds, unseen.basis), (None, Basis::None));
        let prior = ask(Priority::Demand, vec![server(1000, None, vec![])], Some(rate(100.0, 0)));
        assert_eq!(prior.basis, Basis::Prior);
        assert!(seconds(&prior).1 > 60.0, "{prior:?}");
        let old = ask(Priority::Demand, vec![server(1000, Some(rate(100.0, 7200)), vec![])], None);
        assert_eq!(old.basis, Basis::Prior);
        let nothing = ask(Priority::Demand, vec![server(0, None, vec![])], None);
        assert_eq!((seconds(&nothing), nothing.basis), ((0.0, 0.0), Basis::Measured), "what is here needs no origin");
    }

    #[test]
    fn memory_comes_after_the_disk() {
        let node = |p50: f64, age| NodeRate { p50, p10: p50 / 2.0, age };
        let memory = |age| ToMemory { cold: 1000, hot: 500, read: node(100.0, age), hash: node(50.0, Some(1.0)) };
        let question =
            |age| Question { priority: Priority::Demand, servers: vec![], memory: Some(memory(age)), prior: None };
        let measured = estimate(&question(Some(1.0)));
        assert_eq!((seconds(&measured), measured.basis), ((20.0, 40.0), Basis::Measured));
        assert_eq!(estimate(&question(None)).basis, Basis::Prior);
        assert_eq!(measured.rates.len(), 2);
    }
}
