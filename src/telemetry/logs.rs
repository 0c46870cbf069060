//! Logs go to stderr, once, where an event is consumed. ERROR means that a person must look.
//!
//! Of other crates only warnings are printed, whatever the filter says. What they say below that is of no use to who runs
//! preheat, and is not written with credentials in mind: HTTP clients tell URLs (signed ones too), headers and bodies. A list of
//! targets that are known to be harmless was turned down: it would be true of one version of each.

use std::io::IsTerminal;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::{FilterExt, FilterFn};
use tracing_subscriber::layer::{Filter, Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt};

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
}

/// The variable that overrides the filter, in `tracing` syntax: `info`, `preheat::store=debug`.
pub const FILTER_VARIABLE: &str = "PREHEAT_LOG";

/// Starts logging; the first call wins. An unreadable filter is replaced by `default_filter`, and said.
pub fn init(format: Format, default_filter: &str) {
    let wanted = std::env::var(FILTER_VARIABLE).unwrap_or_else(|_| default_filter.to_owned());
    let (filter, complaint) = match EnvFilter::try_new(&wanted) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(default_filter), Some(error)),
    };
    let json = match format {
        Format::Text => false,
        Format::Json => true,
        Format::Auto => !std::io::stderr().is_terminal(),
    };
    let lines = fmt::layer().with_writer(std::io::stderr);
    let layer = if json {
        lines.json().flatten_event(true).boxed()
    } else {
        lines.with_ansi(std::io::stderr().is_terminal()).with_target(false).boxed()
    };
    // Failing means that somebody has set a subscriber already: tests do.
    let _ = tracing_subscriber::registry().with(layer.with_filter(discreet(filter))).try_init();
    if let Some(error) = complaint {
        tracing::warn!(variable = FILTER_VARIABLE, value = %wanted, %error, "log filter not understood, using {default_filter}");
    }
}

/// The filter, and below warnings nobody's lines but ours.
fn discreet(filter: EnvFilter) -> impl Filter<Registry> {
    filter.and(FilterFn::new(ours_or_warning as fn(&Metadata<'_>) -> bool))
}

fn ours_or_warning(event: &Metadata<'_>) -> bool {
    let target = event.target();
    let ours = target == "preheat" || target.starts_with("preheat::");
    ours || *event.level() <= Level::WARN
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn other_crates_only_warn_whatever_the_filter_says() {
        for filter in ["trace", "hyper=trace,reqwest=trace,preheat=debug"] {
            let written = Written::default();
            let writer = written.clone();
            let layer = fmt::layer().with_writer(move || writer.clone()).with_filter(discreet(EnvFilter::new(filter)));
            tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
                tracing::trace!(target: "hyper::proto", "canary one");
                tracing::debug!(target: "reqwest", "canary two");
                tracing::info!(target: "preheatish", "canary three");
                tracing::warn!(target: "hyper", "a warning");
                tracing::debug!(target: "preheat::origin", "our own");
            });
            let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
            assert!(!text.contains("canary"), "{filter}: {text}");
            assert!(text.contains("our own") && text.contains("a warning"), "{filter}: {text}");
        }
    }
}
