//! Settings of access.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::base::units::{ByteSize, Span};
use crate::model::Tenant;

/// Settings of [`super::Access`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How long a scope that has proved access to a private origin may read from the node without proving it again. Half and
    /// the origin is asked twice as often (one listing each time); twice and a withdrawn right lives twice as long.
    pub revalidate_after: Span,
    /// How much longer, while the origin cannot be reached. Zero: an outage closes private models.
    pub grace_when_down: Span,
    /// Bytes that a scope may bring to the node, where its own section does not say. Absent: as many as fit.
    pub bytes_max: Option<ByteSize>,
    /// Requests a second of one scope, where its own section does not say. Absent: no limit.
    pub requests_per_second: Option<f64>,
    /// Scopes beyond those that every user of the machine has.
    pub scopes: Vec<ScopeConfig>,
}

/// A scope: who belongs to it and what they may use up.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScopeConfig {
    /// `[a-z0-9-]`, at most 63; a part of the path of its trees.
    pub name: Tenant,
    /// File with the tokens of its callers, one a line.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// Users that belong to it, on the socket and at its trees.
    #[serde(default)]
    pub uids: Vec<u32>,
    /// Groups that may enter its trees.
    #[serde(default)]
    pub gids: Vec<u32>,
    /// Bytes that it may bring to the node.
    #[serde(default)]
    pub bytes_max: Option<ByteSize>,
    /// Requests a second.
    #[serde(default)]
    pub requests_per_second: Option<f64>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            revalidate_after: Span(Duration::from_secs(60)),
            grace_when_down: Span(Duration::from_secs(3600)),
            bytes_max: None,
            requests_per_second: None,
            scopes: Vec::new(),
        }
    }
}

// === impl Config ===

impl Config {
    /// Everything that cannot work, each with its key.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let rate = |rate: Option<f64>| rate.is_none_or(|rate| rate.is_finite() && rate > 0.0);
        if !rate(self.requests_per_second) {
            problems.push("access.requests_per_second: must be a number above 0".to_owned());
        }
        for (number, scope) in self.scopes.iter().enumerate() {
            let name = &scope.name;
            if name.is_reserved() {
                problems.push(format!(
                    "access.scopes: `{name}` is a scope that preheat itself has; choose another name than default, node, token, \
                     loopback and uid-..."
                ));
            }
            if self.scopes[..number].iter().any(|other| other.name == *name) {
                problems.push(format!("access.scopes: `{name}` is there twice"));
            }
            if scope.token_file.is_none() && scope.uids.is_empty() {
                problems.push(format!("access.scopes: nobody belongs to `{name}`: set token_file or uids"));
            }
            let shared = |other: &&ScopeConfig| other.uids.iter().any(|uid| scope.uids.contains(uid));
            if let Some(other) = self.scopes[..number].iter().find(shared) {
                problems.push(format!("access.scopes: `{name}` and `{}` have a user in common", other.name));
            }
            if !rate(scope.requests_per_second) {
                problems.push(format!("access.scopes: requests_per_second of `{name}` must be a number above 0"));
            }
        }
        problems
    }

    /// Who may enter the trees of which scope.
    #[must_use]
    pub fn admissions(&self) -> crate::store::Admissions {
        let of = |scope: &ScopeConfig| {
            let admitted = crate::store::Admitted { uids: scope.uids.clone(), gids: scope.gids.clone() };
            (scope.name.clone(), admitted)
        };
        self.scopes.iter().map(of).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_that_cannot_be_told_apart_are_refused() {
        let scope = |name: &str, uids: &[u32]| ScopeConfig {
            name: Tenant::try_from(name.to_owned()).unwrap(),
            uids: uids.to_vec(),
            ..ScopeConfig::default()
        };
        let check = |scopes: Vec<ScopeConfig>| Config { scopes, ..Config::default() }.check().join("; ");
        assert_eq!(check(vec![scope("a", &[1]), scope("b", &[2])]), "");
        for (scopes, says) in [
            (vec![scope("node", &[1])], "itself has"),
            (vec![scope("uid-7", &[1])], "itself has"),
            (vec![scope("a", &[1]), scope("a", &[2])], "twice"),
            (vec![scope("a", &[1]), scope("b", &[1])], "in common"),
            (vec![scope("a", &[])], "nobody"),
        ] {
            let problems = check(scopes);
            assert!(problems.contains(says), "{says}: {problems}");
        }
        let config = Config { requests_per_second: Some(0.0), ..Config::default() };
        assert!(config.check().join("").contains("above 0"));
    }
}
