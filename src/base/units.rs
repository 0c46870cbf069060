//! Sizes and durations as people write them: `80GiB`, `64MB`, `25Gbps`, `30s`, `1h30m`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// 2^20 bytes.
pub const MIB: u64 = 1 << 20;
/// 2^30 bytes.
pub const GIB: u64 = 1 << 30;

/// Why a size, rate or duration could not be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// No digits, or more than one decimal point.
    #[error("`{0}` does not start with a number (write e.g. `{1}`)")]
    Number(String, &'static str),
    /// The suffix is not one of the listed.
    #[error("`{0}` has an unknown unit (use {1})")]
    Unit(String, &'static str),
    /// More than 2^63 bytes, or a duration of more than 10 years.
    #[error("`{0}` is out of range")]
    Range(String),
}

/// A number of bytes. Reads `B`, `kB`/`MB`/`GB`/`TB` (powers of 1000), `KiB`/`MiB`/`GiB`/`TiB` (powers of 1024) and plain
/// numbers; shows the largest binary unit that keeps one decimal, and serialises as text that reads as the same number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

/// A rate in bytes per second. Reads `25Gbps`, `400Mbps` (bits) and `2GB/s`, `800MiB/s` (bytes); serialises as a size and `/s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRate(pub u64);

/// A duration written `500ms`, `30s`, `10m`, `1h30m`, `7d`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span(pub Duration);

const SIZE_UNITS: &str = "B, kB, MB, GB, TB, KiB, MiB, GiB or TiB";
const RATE_UNITS: &str = "kbps, Mbps, Gbps, or a size followed by /s";
const SPAN_UNITS: &str = "ms, s, m, h or d";

// === impl ByteSize ===

impl FromStr for ByteSize {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (number, unit) = split_number(text, "80GiB")?;
        let factor = size_factor(unit).ok_or_else(|| UnitError::Unit(text.to_owned(), SIZE_UNITS))?;
        scale(text, number, factor).map(Self)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        if unit == 0 || value.fract() == 0.0 {
            write!(f, "{value:.0} {}", UNITS[unit])
        } else {
            write!(f, "{value:.1} {}", UNITS[unit])
        }
    }
}

// === impl ByteRate ===

impl FromStr for ByteRate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        if let Some(size) = text.trim().strip_suffix("/s") {
            return size.parse::<ByteSize>().map(|size| Self(size.0));
        }
        let (number, unit) = split_number(text, "25Gbps")?;
        let bits = match unit {
            "kbps" | "kbit" => 1e3,
            "Mbps" | "Mbit" => 1e6,
            "Gbps" | "Gbit" => 1e9,
            _ => return Err(UnitError::Unit(text.to_owned(), RATE_UNITS)),
        };
        scale(text, number, bits / 8.0).map(Self)
    }
}

impl fmt::Display for ByteRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", ByteSize(self.0))
    }
}

// === impl Span ===

impl FromStr for Span {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const TEN_YEARS: f64 = 10.0 * 366.0 * 86_400.0;
        let mut rest = text.trim();
        let mut seconds = 0.0;
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
            let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
            let number: f64 = rest[..digits].parse().map_err(|_| UnitError::Number(text.to_owned(), "30s"))?;
            seconds += number
                * match &rest[digits..unit_end] {
                    "ms" => 1e-3,
                    "s" => 1.0,
                    "m" | "min" => 60.0,
                    "h" => 3600.0,
                    "d" => 86_400.0,
                    _ => return Err(UnitError::Unit(text.to_owned(), SPAN_UNITS)),
                };
            rest = &rest[unit_end..];
        }
        if text.trim().is_empty() {
            return Err(UnitError::Number(text.to_owned(), "30s"));
        }
        if seconds > TEN_YEARS {
            return Err(UnitError::Range(text.to_owned()));
        }
        Ok(Self(Duration::from_secs_f64(seconds)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let total = self.0.as_secs();
        let (d, h, m, s) = (total / 86_400, total / 3600 % 24, total / 60 % 60, total % 60);
        let ms = self.0.subsec_millis();
        let mut wrote = false;
        for (value, unit) in [(d, "d"), (h, "h"), (m, "m"), (s, "s"), (u64::from(ms), "ms")] {
            if value > 0 {
                write!(f, "{value}{unit}")?;
                wrote = true;
            }
        }
        if wrote { Ok(()) } else { f.write_str("0s") }
    }
}

// === shared ===

fn split_number<'a>(text: &'a str, example: &'static str) -> Result<(f64, &'a str), UnitError> {
    let trimmed = text.trim();
    let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let number = trimmed[..end].parse().map_err(|_| UnitError::Number(text.to_owned(), example))?;
    Ok((number, trimmed[end..].trim_start()))
}

fn size_factor(unit: &str) -> Option<f64> {
    Some(match unit {
        "" | "B" => 1.0,
        "kB" | "KB" => 1e3,
        "MB" => 1e6,
        "GB" => 1e9,
        "TB" => 1e12,
        "KiB" | "K" | "k" => 1024.0,
        "MiB" | "M" => MIB as f64,
        "GiB" | "G" => GIB as f64,
        "TiB" | "T" => 1024.0 * GIB as f64,
        _ => return None,
    })
}

fn scale(text: &str, number: f64, factor: f64) -> Result<u64, UnitError> {
    let value = number * factor;
    if value.is_finite() && value < 9.2e18 { Ok(value.round() as u64) } else { Err(UnitError::Range(text.to_owned())) }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&exact(self.0))
    }
}

impl Serialize for ByteRate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{}/s", exact(self.0)))
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Bytes in the largest unit of which they are a whole number: what is written must not be rounded.
fn exact(bytes: u64) -> String {
    const UNITS: [&str; 8] = ["TiB", "TB", "GiB", "GB", "MiB", "MB", "KiB", "kB"];
    let whole = |unit: &&&str| size_factor(unit).is_some_and(|factor| bytes > 0 && bytes.is_multiple_of(factor as u64));
    let unit = UNITS.iter().find(whole).copied().unwrap_or("B");
    format!("{}{unit}", bytes / size_factor(unit).unwrap_or(1.0) as u64)
}

/// A unit may be written as text with a suffix or as a plain number (bytes, bytes per second, seconds).
#[derive(Deserialize)]
#[serde(untagged)]
enum NumberOrText {
    Number(u64),
    Text(String),
}

macro_rules! from_number_or_text {
    ($($unit:ty: $number:expr),* $(,)?) => {$(
        impl<'de> Deserialize<'de> for $unit {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                match NumberOrText::deserialize(deserializer)? {
                    NumberOrText::Number(number) => Ok($number(number)),
                    NumberOrText::Text(text) => text.parse().map_err(serde::de::Error::custom),
                }
            }
        }
    )*};
}
from_number_or_text!(ByteSize: ByteSize, ByteRate: ByteRate, Span: |s| Span(Duration::from_secs(s)));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_written() {
        for (text, bytes) in [("2GiB", 2 * GIB), ("1.5 MiB", 3 * MIB / 2), ("10MB", 10_000_000), ("42", 42), ("0B", 0)]
        {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in ["", "GiB", "1.2.3MB", "5 parsecs", "-1", "99999999999TiB"] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_written_reads_as_the_same() {
        for (bytes, text) in [
            (0, "0B"),
            (3 * GIB, "3GiB"),
            (500_000_000_000, "500GB"),
            (3_125_000_000, "3125MB"),
            (1_000_001, "1000001B"),
        ] {
            assert_eq!(serde_json::to_value(ByteSize(bytes)).unwrap(), text);
            assert_eq!(text.parse(), Ok(ByteSize(bytes)));
        }
        assert_eq!(serde_json::to_value(ByteRate(3_125_000_000)).unwrap(), "3125MB/s");
        assert_eq!("3125MB/s".parse(), "25Gbps".parse::<ByteRate>());
    }

    #[test]
    fn rates_know_bits_from_bytes() {
        assert_eq!("8Gbps".parse(), Ok(ByteRate(1_000_000_000)));
        assert_eq!("200MB/s".parse(), Ok(ByteRate(200_000_000)));
        assert!("200MB".parse::<ByteRate>().is_err());
    }

    #[test]
    fn durations_add_up_and_round_trip() {
        assert_eq!("1h30m".parse(), Ok(Span(Duration::from_secs(5400))));
        assert_eq!("500ms".parse(), Ok(Span(Duration::from_millis(500))));
        assert_eq!("1h30m".parse::<Span>().map(|s| s.to_string()), Ok("1h30m".to_owned()));
        for bad in ["", "30", "s", "1 fortnight", "99999d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }
}
