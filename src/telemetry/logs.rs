//! Logs go to stderr, once, where an event is consumed. ERROR means that a person must look.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

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
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let json = match format {
        Format::Text => false,
        Format::Json => true,
        Format::Auto => !std::io::stderr().is_terminal(),
    };
    // Failing means that somebody has set a subscriber already: tests do.
    let _ = if json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init()
    };
    if let Some(error) = complaint {
        tracing::warn!(variable = FILTER_VARIABLE, value = %wanted, %error, "log filter not understood, using {default_filter}");
    }
}
