//! One field of an engine key: what it says, how much it decides, and who says so.

use serde::{Deserialize, Serialize};

/// Longest value. Longer things (a command line, an environment) are cut into fields or given as digests.
const VALUE_LIMIT: usize = 16 << 10;

/// Longest name: an argument or a variable with its prefix.
const NAME_LIMIT: usize = 256;

/// What a difference in a field means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It must be equal.
    Hard,
    /// It is recorded and shown, and never decides.
    Soft,
}

/// One fact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// What it is; `None` when it could not be found out.
    pub value: Option<String>,
    /// What a difference means.
    pub role: Role,
    /// Who says so: a detector. Of an unknown field, why it is unknown.
    pub from: String,
}

/// Why a key was refused.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not JSON of the documented shape.
    #[error("engine key is not of the documented shape: {0}")]
    Shape(#[from] serde_json::Error),
    /// Of another preheat.
    #[error("engine key has schema {0}, this preheat reads 1")]
    Schema(u32),
    /// Neither of the two.
    #[error("`{0}` is no kind of bundle: there are graph and kernel")]
    Kind(String),
    /// A name that a path, a metric or a terminal should not have to bear.
    #[error("`{name}` cannot be {what}")]
    Name {
        /// What was given.
        name: String,
        /// What it should have named.
        what: &'static str,
    },
    /// Too much of something.
    #[error("engine key has {what}, the limit is {limit}")]
    Limit {
        /// What there is too much of.
        what: String,
        /// How much is allowed.
        limit: usize,
    },
}

// === impl Field ===

impl Field {
    /// A hard field.
    #[must_use]
    pub fn hard(value: impl Into<String>, from: impl Into<String>) -> Self {
        Self { value: Some(value.into()), role: Role::Hard, from: from.into() }
    }

    /// A soft one.
    #[must_use]
    pub fn soft(value: impl Into<String>, from: impl Into<String>) -> Self {
        Self { value: Some(value.into()), role: Role::Soft, from: from.into() }
    }

    pub(super) fn check(&self, name: &str) -> Result<(), KeyError> {
        // Names are shown, sorted and matched by prefix; arguments and variables bring their own.
        let plain = |c: char| c.is_ascii_graphic();
        if name.is_empty() || name.len() > NAME_LIMIT || !name.chars().all(plain) {
            return Err(KeyError::Name { name: name.escape_debug().take(80).collect(), what: "the name of a field" });
        }
        for (what, text) in [("value", self.value.as_deref().unwrap_or_default()), ("source", &self.from)] {
            if text.len() > VALUE_LIMIT {
                let what = format!("a {what} of {} bytes in `{name}`", text.len());
                return Err(KeyError::Limit { what, limit: VALUE_LIMIT });
            }
        }
        Ok(())
    }
}

pub(super) fn check_profile(name: &str) -> Result<(), KeyError> {
    let ok = (1..=63).contains(&name.len())
        && !name.starts_with('-')
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let wrong =
        || KeyError::Name { name: name.escape_debug().take(80).collect(), what: "a profile: write a-z, 0-9 and -" };
    if ok { Ok(()) } else { Err(wrong()) }
}
