//! Settings of the library.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::profile::Profile;
use crate::base::units::{ByteSize, GIB};
use crate::model::{BundleId, Reference, Signer, Tenant};
use crate::origin::Listing;

/// Settings of [`super::Engines`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where nodes share bundles: a directory or a bucket, read and written with the daemon's own credentials. Absent: every node
    /// has its own.
    pub origin: Option<String>,
    /// File with the Ed25519 key (PEM, PKCS #8) that the daemon signs captures with. Absent: it signs and publishes nothing.
    pub signing_key_file: Option<PathBuf>,
    /// Scopes whose captures are signed and published. What others capture stays theirs, on this node.
    pub publish: Vec<Tenant>,
    /// Whose bundles may be restored, beside this node's own.
    pub signers: Vec<SignerConfig>,
    /// Signers that are trusted no longer, this node's own key included.
    pub revoked_signers: Vec<Signer>,
    /// Bundles that are trusted no longer.
    pub revoked_bundles: Vec<BundleId>,
    /// File of such, one a line, `signer HEX` or `bundle HEX`; read again when it changes, so that revoking needs no restart. While
    /// it cannot be read nothing signed is restored.
    pub revocations_file: Option<PathBuf>,
    /// Restore nothing without a signature, not even what the same identity captured here.
    pub require_signature: bool,
    /// Largest bundle that is captured or taken from the shared origin. Caches of large models have 0.5 to 2 GB.
    pub bundle_bytes_max: ByteSize,
    /// Bundles kept of one key and scope; the oldest go. Two, so that the one before is there when the newest turns out bad.
    pub versions_max: usize,
    /// Engines beside those that preheat knows, and in place of those of the same name. Read by `preheat run` and `engine`.
    pub profiles: Vec<Profile>,
}

/// A signer and what people call it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignerConfig {
    /// For people.
    pub name: String,
    /// Its public key, as `preheat engine keygen` prints it.
    pub key: Signer,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            origin: None,
            signing_key_file: None,
            publish: Vec::new(),
            signers: Vec::new(),
            revoked_signers: Vec::new(),
            revoked_bundles: Vec::new(),
            revocations_file: None,
            require_signature: false,
            bundle_bytes_max: ByteSize(8 * GIB),
            versions_max: 2,
            profiles: Vec::new(),
        }
    }
}

// === impl Config ===

impl Config {
    /// Everything that cannot work, each with its key.
    #[must_use]
    pub fn check(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Err(problem) = self.shared() {
            problems.push(format!("engines.origin: {problem}"));
        }
        for scope in self.publish.iter().filter(|scope| !scope.is_somebody()) {
            problems.push(format!("engines.publish: `{scope}` is nobody's identity; name the scopes of who captures"));
        }
        if !self.publish.is_empty() && self.signing_key_file.is_none() {
            problems
                .push("engines.publish: needs engines.signing_key_file: only what is signed is published".to_owned());
        }
        if self.versions_max == 0 {
            problems.push("engines.versions_max: must be at least 1".to_owned());
        }
        if self.bundle_bytes_max.0 == 0 {
            problems.push("engines.bundle_bytes_max: must be more than nothing".to_owned());
        }
        for (number, signer) in self.signers.iter().enumerate() {
            if signer.name.is_empty() || signer.name.len() > 100 || signer.name.chars().any(char::is_control) {
                problems.push(format!("engines.signers: {} needs a name of 1 to 100 characters", signer.key));
            }
            if self.signers[..number].iter().any(|other| other.key == signer.key) {
                problems.push(format!("engines.signers: {} is there twice", signer.key));
            }
        }
        problems.extend(
            self.profiles.iter().flat_map(Profile::check).map(|problem| format!("engines.profiles: {problem}")),
        );
        problems
    }

    /// The origins that the shared origin is one of, by the settings of all: the operator has named it, so that the daemon's own
    /// credentials may be shown there, and its address may be in the own network.
    #[must_use]
    pub fn origins(&self, all: &crate::origin::Config) -> crate::origin::Config {
        let prefix = self.origin.iter().cloned();
        let listing = |prefix| Listing { prefix, allow_private: true, credentials: true, scopes: Vec::new() };
        crate::origin::Config { allow: prefix.map(listing).collect(), ..all.clone() }
    }

    /// The shared origin as a reference.
    pub(super) fn shared(&self) -> Result<Option<Reference>, String> {
        let Some(text) = &self.origin else { return Ok(None) };
        let reference: Reference = text.parse().map_err(|error| format!("{error}"))?;
        if reference.revision.is_some() || reference.selection != crate::model::Selection::default() {
            return Err(format!("`{text}` has a revision or a selection: name the place alone"));
        }
        Ok(Some(reference))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_told_all_at_once() {
        assert_eq!(Config::default().check(), [""; 0]);
        let key: Signer = "ab".repeat(32).parse().unwrap();
        let signer = |name: &str| SignerConfig { name: name.to_owned(), key };
        let config = Config {
            origin: Some("s3://bucket@main".to_owned()),
            publish: vec![Tenant::of_uid(1), Tenant::node(), Tenant::of_loopback(), Tenant::default()],
            signers: vec![signer("ci"), signer("")],
            versions_max: 0,
            bundle_bytes_max: ByteSize(0),
            ..Config::default()
        };
        let problems = config.check();
        for says in
            ["revision", "nobody's identity", "signing_key_file", "versions_max", "bundle_bytes_max", "twice", "a name"]
        {
            assert!(problems.iter().any(|problem| problem.contains(says)), "{says}: {problems:?}");
        }
        assert_eq!(problems.len(), 9);
    }
}
