//! Progress for people: a bar where stderr is a terminal, a plain line every few seconds elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::base::units::{ByteRate, ByteSize};
use crate::prewarm::wire::JobView;

/// Between plain lines. A build log wants signs of life, not a film.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// One transfer as it is shown.
#[derive(Debug)]
pub(super) struct Meter {
    label: String,
    bar: Option<ProgressBar>,
    last_line: Instant,
    quiet: bool,
}

/// What a meter is told.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Reading {
    pub(super) done: u64,
    pub(super) total: u64,
    pub(super) bytes_per_second: u64,
    pub(super) eta_seconds: Option<f64>,
}

// === impl Reading ===

impl Reading {
    /// What a job's snapshot says.
    pub(super) fn of(job: &JobView) -> Self {
        Self {
            done: job.bytes_done,
            total: job.bytes_total,
            bytes_per_second: job.bytes_per_second,
            eta_seconds: job.eta_seconds.map(|eta| eta.p50),
        }
    }
}

// === impl Meter ===

impl Meter {
    /// A meter for stderr. A bar needs a terminal; `json` callers get neither bar nor lines.
    pub(super) fn new(label: &str, json: bool) -> Self {
        let bar = (!json && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
            let style = ProgressStyle::with_template("{prefix} [{bar:32}] {binary_bytes}/{binary_total_bytes} {msg}");
            if let Ok(style) = style {
                bar.set_style(style.progress_chars("=> "));
            }
            bar.set_prefix(label.to_owned());
            bar
        });
        Self { label: label.to_owned(), bar, last_line: Instant::now(), quiet: json }
    }

    /// Shows where things stand.
    pub(super) fn update(&mut self, reading: Reading) {
        if self.quiet || reading.total == 0 {
            return;
        }
        let rate = ByteRate(reading.bytes_per_second);
        let eta = reading.eta_seconds.map(|seconds| format!(", {seconds:.0} s left")).unwrap_or_default();
        if let Some(bar) = &self.bar {
            bar.set_length(reading.total);
            bar.set_position(reading.done);
            bar.set_message(format!("{rate}{eta}"));
        } else if self.last_line.elapsed() >= LINE_EVERY {
            self.last_line = Instant::now();
            let percent = reading.done as f64 * 100.0 / reading.total as f64;
            let (done, total) = (ByteSize(reading.done), ByteSize(reading.total));
            eprintln!("{}: {done} of {total} ({percent:.0} %), {rate}{eta}", self.label);
        }
    }

    /// A note that stays above the bar.
    pub(super) fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprintln!("preheat: {text}")),
            None => eprintln!("preheat: {text}"),
        }
    }

    /// Ends the meter and clears the bar.
    pub(super) fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
