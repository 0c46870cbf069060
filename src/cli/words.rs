//! Numbers of the API in words: spans of time, estimates, verdicts. Every verb says them alike.

use crate::base::units::{ByteRate, ByteSize};
use crate::prewarm::wire::{Basis, Estimate, EtaSeconds, RateView, Tier, Verdict};

/// A span of time as people say it, with no more digits than anybody uses.
pub(super) fn seconds(seconds: f64) -> String {
    let seconds = if seconds.is_finite() { seconds.max(0.0) } else { 0.0 };
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 0.9995 => format!("{:.0} ms", seconds * 1000.0),
        _ if seconds < 99.95 => format!("{seconds:.1} s"),
        0..120 => format!("{whole} s"),
        120..3600 => with_rest(whole, 60, "min", "s"),
        3600..172_800 => with_rest(whole / 60, 60, "h", "min"),
        _ => with_rest(whole / 3600, 24, "d", "h"),
    }
}

fn with_rest(amount: u64, per: u64, large: &str, small: &str) -> String {
    match (amount / per, amount % per) {
        (whole, 0) => format!("{whole} {large}"),
        (whole, rest) => format!("{whole} {large} {rest} {small}"),
    }
}

/// Both ends of an estimate.
pub(super) fn eta(eta: EtaSeconds) -> String {
    format!("about {} (nine times in ten within {})", seconds(eta.p50), seconds(eta.p90))
}

/// How well an estimate is founded.
pub(super) fn basis(basis: Basis) -> &'static str {
    match basis {
        Basis::Measured => "measured",
        Basis::Prior => "in part assumed",
        Basis::None => "not known",
    }
}

pub(super) fn tier(tier: Tier) -> &'static str {
    match tier {
        Tier::Disk => "disk",
        Tier::Memory => "memory",
    }
}

/// What is missing and how long it takes, in one sentence without an end.
pub(super) fn estimate(estimate: &Estimate, tier: Tier) -> String {
    let (total, missing) = (ByteSize(estimate.bytes_total), estimate.bytes_missing);
    let mut text = match missing.disk {
        0 => format!("{total}, all on the node"),
        disk if disk == estimate.bytes_total => format!("{total}, none of it on the node"),
        disk => format!("{total}, {} of it not on the node", ByteSize(disk)),
    };
    if tier == Tier::Memory {
        match missing.memory {
            0 => text.push_str(", all in memory"),
            memory => text.push_str(&format!(", {} not in memory", ByteSize(memory))),
        }
    }
    match estimate.seconds {
        Some(time) => {
            text.push_str(&format!(": {}, {}", eta(time), basis(estimate.basis)));
            if let Some(queue) = estimate.queue_seconds.filter(|queue| queue.p50 >= 0.05) {
                text.push_str(&format!("; {} of it behind others", seconds(queue.p50)));
            }
        }
        None => text.push_str(": how long it takes is not known, nothing has been measured of its origin yet"),
    }
    text
}

/// One rate that an estimate goes by.
pub(super) fn rate(rate: &RateView) -> String {
    let of = match (&rate.server, rate.of.as_str()) {
        (Some(server), _) => format!("origin {server}"),
        (None, "disk") => "reading the disk".to_owned(),
        (None, "memory") => "hashing in memory".to_owned(),
        (None, other) => other.to_owned(),
    };
    let Some(usual) = rate.bytes_per_second_p50 else { return format!("{of}: never measured") };
    let slow = rate
        .bytes_per_second_p10
        .map(|slow| format!(" (one time in ten below {})", ByteRate(slow as u64)))
        .unwrap_or_default();
    let when = match (rate.age_seconds, rate.basis) {
        (Some(age), _) => format!("measured {} ago", seconds(age)),
        (None, Basis::Prior) => "assumed".to_owned(),
        (None, other) => basis(other).to_owned(),
    };
    format!("{of}: {}{slow}, {when}", ByteRate(usual as u64))
}

/// Whether a deadline will hold.
pub(super) fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Met => "the deadline will hold",
        Verdict::AtRisk => "the deadline is at risk: it will more likely hold than not",
        Verdict::Missed => "the deadline will be missed",
        Verdict::Unknown => "whether the deadline will hold is not known",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prewarm::wire::MissingBytes;

    #[test]
    fn spans_have_the_digits_that_people_use() {
        for (span, said) in [
            (0.0, "0 ms"),
            (0.0044, "4 ms"),
            (0.9996, "1.0 s"),
            (12.34, "12.3 s"),
            (99.96, "100 s"),
            (119.4, "119 s"),
            (120.0, "2 min"),
            (200.4, "3 min 20 s"),
            (3600.0, "1 h"),
            (3_660.0, "1 h 1 min"),
            (200_000.0, "2 d 7 h"),
            (f64::NAN, "0 ms"),
            (-1.0, "0 ms"),
        ] {
            assert_eq!(seconds(span), said, "{span}");
        }
    }

    #[test]
    fn an_estimate_is_a_sentence() {
        let gib = |n: u64| n << 30;
        let known = Estimate {
            bytes_total: gib(15),
            bytes_missing: MissingBytes { disk: gib(13), memory: gib(15) },
            seconds: Some(EtaSeconds { p50: 34.0, p90: 52.0 }),
            queue_seconds: Some(EtaSeconds { p50: 4.0, p90: 6.0 }),
            basis: Basis::Measured,
            ..Estimate::default()
        };
        assert_eq!(
            estimate(&known, Tier::Memory),
            "15 GiB, 13 GiB of it not on the node, 15 GiB not in memory: about 34.0 s (nine times in ten within 52.0 s), \
             measured; 4.0 s of it behind others"
        );
        let here = Estimate { bytes_missing: MissingBytes::default(), queue_seconds: None, ..known.clone() };
        assert!(estimate(&here, Tier::Disk).starts_with("15 GiB, all on the node: about"));
        let unseen = Estimate { seconds: None, queue_seconds: None, basis: Basis::None, ..known };
        assert!(estimate(&unseen, Tier::Disk).ends_with("nothing has been measured of its origin yet"));
    }

    #[test]
    fn a_rate_says_how_old_it_is() {
        let seen = RateView {
            of: "origin".to_owned(),
            server: Some("https://host".to_owned()),
            basis: Basis::Measured,
            bytes_per_second_p50: Some(400.0 * 1048576.0),
            bytes_per_second_p10: Some(200.0 * 1048576.0),
            age_seconds: Some(180.0),
        };
        assert_eq!(rate(&seen), "origin https://host: 400 MiB/s (one time in ten below 200 MiB/s), measured 3 min ago");
        let unseen = RateView { bytes_per_second_p50: None, age_seconds: None, ..seen.clone() };
        assert_eq!(rate(&unseen), "origin https://host: never measured");
        let assumed = RateView { server: None, of: "disk".to_owned(), basis: Basis::Prior, age_seconds: None, ..seen };
        assert!(rate(&assumed).starts_with("reading the disk: 400 MiB/s") && rate(&assumed).ends_with("assumed"));
    }
}
