//! Whose bundles are restored, and who publishes. Decided anew at every lookup and every restore, from the document's own bytes: a
//! bundle that was fine yesterday is not for that reason fine today.
//!
//! Loading a compiled engine is running its code. So what one scope has captured goes to no other, unless somebody whom this
//! node's operator has named vouches for it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::EngineError;
use super::config::Config;
use super::library::Refusal;
use super::shelf::{Held, read_limited};
use crate::model::engine::EngineKey;
use crate::model::{Bundle, BundleId, Signature, Signer, SigningKey, Tenant};
use crate::sys::mutant::mutant;
use crate::sys::peer::own_uid;

/// The policy of a node.
#[derive(Debug)]
pub(super) struct Policy {
    config: Config,
    key: Option<SigningKey>,
    revocations: Mutex<Revocations>,
}

/// The content of the revocations file, as of its last change.
#[derive(Debug, Default)]
struct Revocations {
    stamp: Option<(SystemTime, u64)>,
    /// Inner error: why nothing signed may be restored.
    read: Option<Result<Revoked, String>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Revoked {
    signers: Vec<Signer>,
    bundles: Vec<BundleId>,
}

/// Largest key file.
const KEY_LIMIT: usize = 64 << 10;
/// Largest revocations file: some ten thousand lines.
const REVOCATIONS_LIMIT: usize = 1 << 20;

// === impl Policy ===

impl Policy {
    /// Reads the signing key.
    ///
    /// # Errors
    /// A key file that cannot be read or is none.
    pub(super) fn new(config: Config) -> Result<Self, EngineError> {
        let key = config.signing_key_file.as_deref().map(read_key).transpose()?;
        let policy = Self { config, key, revocations: Mutex::default() };
        // A file that cannot be read is told at once, not at the first start of an engine.
        policy.revoked().map_err(|detail| EngineError::refused("engines.revocations_file", detail))?;
        Ok(policy)
    }

    pub(super) fn config(&self) -> &Config {
        &self.config
    }

    /// The key, if captures of this scope are signed and published. `asserted`: the engine key rests on a facts file.
    pub(super) fn signs_for(&self, scope: &Tenant, bundle: &Bundle) -> Option<&SigningKey> {
        self.signs_key_for(scope, &bundle.key)
    }

    /// The same before there is a bundle.
    pub(super) fn signs_key_for(&self, scope: &Tenant, key: &EngineKey) -> Option<&SigningKey> {
        let stated = key.is_asserted() && !mutant("asserted_published");
        let publishes = self.config.publish.contains(scope) && scope.is_somebody() && !stated;
        self.key.as_ref().filter(|_| publishes)
    }

    /// What people call a signer.
    pub(super) fn name_of(&self, signer: &Signer) -> Option<String> {
        if self.key.as_ref().is_some_and(|key| key.signer() == *signer) {
            return Some("this node".to_owned());
        }
        self.config.signers.iter().find(|known| known.key == *signer).map(|known| known.name.clone())
    }

    /// Whether a bundle that is here may be restored for a scope.
    pub(super) fn verdict(&self, scope: &Tenant, held: &Held) -> Result<(), Refusal> {
        // Who asks over the loopback address without a token may be any user of the machine.
        let own =
            (held.scope == *scope && scope.is_somebody()) || (mutant("scopes_ignored") && held.scope != Tenant::node());
        if own && held.signature.is_none() && !self.config.require_signature {
            // Captured here, under the same identity.
            let revoked = self.revoked().map_err(|detail| Refusal::Unavailable { detail })?;
            return if revoked.bundles.contains(&held.id) { Err(Refusal::Revoked) } else { Ok(()) };
        }
        self.vouched(held.id, &held.document, held.signature.as_ref())
    }

    /// Whether somebody trusted vouches for a document.
    pub(super) fn vouched(&self, id: BundleId, document: &[u8], signature: Option<&Signature>) -> Result<(), Refusal> {
        let revoked = self.revoked().map_err(|detail| Refusal::Unavailable { detail })?;
        if revoked.bundles.contains(&id) {
            return Err(Refusal::Revoked);
        }
        let signature = signature.ok_or(Refusal::Unsigned)?;
        let signer = signature.signer;
        let shown = || self.name_of(&signer).map_or_else(|| signer.to_string(), |name| format!("{name} ({signer})"));
        if revoked.signers.contains(&signer) && !mutant("revocations_ignored") {
            return Err(Refusal::RevokedSigner { signer: shown() });
        }
        if self.name_of(&signer).is_none() {
            return Err(Refusal::UnknownSigner { signer: shown() });
        }
        signature.verify(document).map_err(|error| Refusal::BadSignature { detail: error.to_string() })
    }

    /// All that is revoked now.
    fn revoked(&self) -> Result<Revoked, String> {
        let mut all =
            Revoked { signers: self.config.revoked_signers.clone(), bundles: self.config.revoked_bundles.clone() };
        if let Some(path) = &self.config.revocations_file {
            let mut known = self.revocations.lock().unwrap_or_else(PoisonError::into_inner);
            let stamp = fs::metadata(path).and_then(|found| Ok((found.modified()?, found.len()))).ok();
            if known.read.is_none() || stamp.is_none() || known.stamp != stamp {
                *known = Revocations { stamp, read: Some(read_revocations(path)) };
            }
            let Revoked { signers, bundles } = known.read.clone().unwrap_or_else(|| Ok(Revoked::default()))?;
            all.signers.extend(signers);
            all.bundles.extend(bundles);
        }
        Ok(all)
    }
}

fn read_key(path: &Path) -> Result<SigningKey, EngineError> {
    let what = || format!("signing key {}", path.display());
    if let Ok(facts) = fs::metadata(path) {
        // A secret that Kubernetes mounts is root's, and read through the group by a daemon that is not root.
        let open = if facts.uid() == 0 && own_uid() != 0 { 0o037 } else { 0o077 };
        if facts.mode() & open != 0 {
            let mode = facts.mode() & 0o777;
            let why = format!("it has mode {mode:o}, so that others than its owner may use it: chmod 600");
            return Err(EngineError::refused(what(), why));
        }
    }
    let text = read_limited(path, KEY_LIMIT)?.ok_or_else(|| EngineError::refused(what(), "there is no such file"))?;
    let text = String::from_utf8(text).map_err(|_| EngineError::refused(what(), "it is not text"))?;
    SigningKey::parse(&text).map_err(|error| EngineError::refused(what(), error.to_string()))
}

fn read_revocations(path: &Path) -> Result<Revoked, String> {
    let failed = |why: String| {
        format!("{}: {why}; nothing signed is restored until it is mended (engines.revocations_file)", path.display())
    };
    let text = read_limited(path, REVOCATIONS_LIMIT).map_err(|error| failed(error.to_string()))?;
    let text = text.ok_or_else(|| failed("there is no such file".to_owned()))?;
    let text = String::from_utf8(text).map_err(|_| failed("it is not text".to_owned()))?;
    let mut revoked = Revoked::default();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let wrong = || failed(format!("line {}: write `signer HEX` or `bundle HEX`", number + 1));
        match line.split_once(' ') {
            None if line.is_empty() => {}
            Some(("signer", hex)) => revoked.signers.push(hex.trim().parse().map_err(|_| wrong())?),
            Some(("bundle", hex)) => revoked.bundles.push(hex.trim().parse().map_err(|_| wrong())?),
            _ => return Err(wrong()),
        }
    }
    Ok(revoked)
}

#[cfg(test)]
mod tests {
    use super::super::config::SignerConfig;
    use super::*;

    fn policy(change: impl FnOnce(&mut Config)) -> Policy {
        let mut config = Config::default();
        change(&mut config);
        Policy::new(config).unwrap()
    }

    fn trusting(key: &SigningKey) -> SignerConfig {
        SignerConfig { name: "ci".to_owned(), key: key.signer() }
    }

    #[test]
    fn only_a_named_signer_vouches_and_only_until_revoked() {
        let (key, _) = SigningKey::generate().unwrap();
        let (document, id) = (b"document", BundleId::of(b"document"));
        let signature = key.sign(document);
        let verdict = |policy: &Policy| policy.vouched(id, document, Some(&signature));
        assert!(matches!(verdict(&policy(|_| {})), Err(Refusal::UnknownSigner { .. })));
        let trusted = policy(|config| config.signers = vec![trusting(&key)]);
        assert_eq!(verdict(&trusted), Ok(()));
        assert_eq!(trusted.vouched(id, document, None), Err(Refusal::Unsigned));
        assert!(matches!(trusted.vouched(id, b"other", Some(&signature)), Err(Refusal::BadSignature { .. })));
        let revoked = policy(|config| {
            config.signers = vec![trusting(&key)];
            config.revoked_signers = vec![key.signer()];
        });
        assert!(matches!(verdict(&revoked), Err(Refusal::RevokedSigner { .. })));
        let revoked = policy(|config| {
            config.signers = vec![trusting(&key)];
            config.revoked_bundles = vec![id];
        });
        assert_eq!(verdict(&revoked), Err(Refusal::Revoked));
    }

    #[test]
    fn a_revocations_file_counts_from_when_it_changes_and_closes_when_it_breaks() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("revoked");
        fs::write(&file, "# none\n").unwrap();
        let (key, _) = SigningKey::generate().unwrap();
        let (document, id) = (b"document", BundleId::of(b"document"));
        let signature = key.sign(document);
        let policy = policy(|config| {
            config.signers = vec![trusting(&key)];
            config.revocations_file = Some(file.clone());
        });
        let verdict = || policy.vouched(id, document, Some(&signature));
        assert_eq!(verdict(), Ok(()));
        fs::write(&file, format!("signer {} # left\n", key.signer())).unwrap();
        assert!(matches!(verdict(), Err(Refusal::RevokedSigner { .. })));
        fs::write(&file, format!("bundle {id}\n")).unwrap();
        assert_eq!(verdict(), Err(Refusal::Revoked));
        fs::write(&file, "sgner x\n").unwrap();
        assert!(matches!(verdict(), Err(Refusal::Unavailable { detail }) if detail.contains("line 1")));
        fs::remove_file(&file).unwrap();
        assert!(matches!(verdict(), Err(Refusal::Unavailable { .. })));
        fs::write(&file, "").unwrap();
        assert_eq!(verdict(), Ok(()));
        assert!(Policy::new(Config { revocations_file: Some("/absent".into()), ..Config::default() }).is_err());
    }

    #[test]
    fn a_key_file_that_is_none_is_told_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("key.pem");
        let error = || Policy::new(Config { signing_key_file: Some(file.clone()), ..Config::default() }).unwrap_err();
        let mode = |mode| fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        assert!(error().to_string().contains("no such file"));
        fs::write(&file, SigningKey::generate().unwrap().1).unwrap();
        for open in [0o644, 0o640, 0o620, 0o604, 0o602] {
            mode(open);
            let error = error().to_string();
            assert!(error.contains("key.pem") && error.contains("chmod 600"), "{open:o}: {error}");
        }
        mode(0o600);
        assert!(Policy::new(Config { signing_key_file: Some(file.clone()), ..Config::default() }).is_ok());
        fs::write(&file, "ssh-ed25519 AAAA").unwrap();
        let error = error().to_string();
        assert!(error.contains("key.pem") && error.contains("keygen"), "{error}");
    }
}
