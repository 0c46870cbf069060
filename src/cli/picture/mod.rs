//! Pictures of time: bars on a common axis, as text for a terminal ([`text`]) and as SVG ([`svg`]). What a row is about, those
//! who draw know: the stages of a job ([`stages`]), the replicas of the demonstration.
//!
//! A library for charts was turned down: the smallest brings a font renderer, and none draws text.

pub(super) mod stages;
pub(super) mod svg;
pub(super) mod text;

/// Rows on one axis.
#[derive(Clone, Debug, Default)]
pub(super) struct Chart {
    /// What it shows, for readers of the SVG.
    pub(super) title: String,
    /// More about it, a line each.
    pub(super) subtitles: Vec<String>,
    /// From top to bottom.
    pub(super) rows: Vec<Row>,
    /// Where the axis ends.
    pub(super) seconds: f64,
}

/// A line of a chart.
#[derive(Clone, Debug)]
pub(super) enum Row {
    /// What the rows below it are about.
    Heading(String),
    /// Bars.
    Bars {
        /// What stands before them.
        label: String,
        /// Not overlapping.
        bars: Vec<Bar>,
        /// What stands behind them.
        note: String,
    },
}

/// From when to when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bar {
    /// Seconds from the left end of the axis.
    pub(super) start: f64,
    /// Not before `start`.
    pub(super) end: f64,
    /// Whether it goes on.
    pub(super) open: bool,
    /// Its colour.
    pub(super) tone: Tone,
}

/// Colours by meaning. Eight that people with any common colour blindness tell apart, after Okabe and Ito.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tone {
    /// Waiting for others.
    Wait,
    /// Asking.
    Ask,
    /// Waiting for the first byte.
    FirstByte,
    /// Bytes come.
    Transfer,
    /// Digests.
    Verify,
    /// Names and syncs.
    Keep,
    /// Into memory.
    Warm,
    /// Nothing in particular.
    Plain,
}

// === impl Tone ===

impl Tone {
    /// Each once.
    pub(super) const ALL: [Self; 8] =
        [Self::Wait, Self::Ask, Self::FirstByte, Self::Transfer, Self::Verify, Self::Keep, Self::Warm, Self::Plain];

    /// Its name in the SVG's style sheet.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Wait => "wait",
            Self::Ask => "ask",
            Self::FirstByte => "first-byte",
            Self::Transfer => "transfer",
            Self::Verify => "verify",
            Self::Keep => "keep",
            Self::Warm => "warm",
            Self::Plain => "plain",
        }
    }
}

/// Where the axis is marked: 1, 2 or 5 times a power of ten below half a minute, then steps of clocks; at most `most` steps.
pub(super) fn step(seconds: f64, most: usize) -> f64 {
    const CLOCK: [f64; 12] =
        [60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 14_400.0, 28_800.0, 86_400.0, 172_800.0, 604_800.0];
    let least = seconds / most.max(1) as f64;
    let decimal = (-3..=1).flat_map(|power| [1.0, 2.0, 5.0].map(|factor| factor * 10_f64.powi(power)));
    let steps = decimal.filter(|step| *step < 30.0).chain(CLOCK);
    // Of more than a year the last is doubled.
    let mut longest = 0.0;
    for step in steps {
        if step >= least {
            return step;
        }
        longest = step;
    }
    while longest < least {
        longest *= 2.0;
    }
    longest
}

/// A mark's name: with the unit of the step, so that all of one axis read alike.
pub(super) fn mark(at: f64, step: f64) -> String {
    let (per, unit) = match step {
        step if step < 1.0 => (0.001, "ms"),
        step if step < 60.0 => (1.0, "s"),
        step if step < 3600.0 => (60.0, "min"),
        step if step < 86_400.0 => (3600.0, "h"),
        _ => (86_400.0, "d"),
    };
    format!("{:.0} {unit}", at / per)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_has_round_marks_and_not_too_many() {
        for (seconds, most, expected) in [
            (0.004, 8, 0.001),
            (0.9, 8, 0.2),
            (12.0, 8, 2.0),
            (12.0, 3, 5.0),
            (100.0, 8, 20.0),
            (300.0, 8, 60.0),
            (5000.0, 8, 1800.0),
            (1e9, 8, 154_828_800.0),
        ] {
            assert_eq!(step(seconds, most), expected, "{seconds} {most}");
            assert!(seconds / expected <= most as f64);
        }
        assert_eq!(
            (mark(0.4, 0.2), mark(10.0, 5.0), mark(120.0, 60.0)),
            ("400 ms".into(), "10 s".into(), "2 min".into())
        );
    }
}
