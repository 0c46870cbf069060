//! What a caller trusts by itself, of a daemon that it cannot be sure of. On the daemon's Unix socket the kernel says who answers;
//! over a network anybody on the way may, and what it answers is code that will be run. There the caller looks at the signature
//! itself, with the signers of its own configuration.
//!
//! Turned down: to take a token for proof. The caller shows it to whoever listens, and who listens has shown nothing.

use std::sync::Arc;

use super::EngineError;
use super::config::Config;
use super::policy::Policy;
use crate::model::{BundleId, Signature};

/// The signers and revocations of a configuration, without its key.
#[derive(Clone, Debug)]
pub struct Trust {
    policy: Arc<Policy>,
}

// === impl Trust ===

impl Trust {
    /// What a configuration says.
    ///
    /// # Errors
    /// A file of revocations that cannot be read.
    pub fn new(config: &Config) -> Result<Self, EngineError> {
        let config = Config { signing_key_file: None, ..config.clone() };
        Ok(Self { policy: Arc::new(Policy::new(config)?) })
    }

    /// Whether a trusted signer vouches for the canonical `document`; `daemon`: who has given it.
    ///
    /// # Errors
    /// `Denied`, saying why and what to do.
    pub fn vouches(
        &self,
        daemon: &dyn std::fmt::Display,
        document: &[u8],
        signature: Option<&Signature>,
    ) -> Result<(), EngineError> {
        let id = BundleId::of(document);
        self.policy.vouched(id, document, signature).map_err(|why| {
            let why = format!(
                "{daemon} is reached over a network, where its word alone is not enough, and {why}; name the signer in engines.signers \
                 of --config FILE (PREHEAT_CONFIG), or use the daemon's Unix socket"
            );
            EngineError::Denied { what: format!("bundle {id}"), why }
        })
    }
}
