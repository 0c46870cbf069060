//! Who asks: over TCP the token says it, on the Unix socket the kernel does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::config::ScopeConfig;
use crate::model::Tenant;

/// A caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Whose content they may read, beside what is public.
    pub scope: Tenant,
    /// Whether they look after the node: evict what is not their own, see every job.
    pub operator: bool,
    /// Whether they could read the daemon's files by themselves: the same user, or root, on the socket.
    pub has_our_rights: bool,
}

/// Everybody who may be known by a token or a user id.
#[derive(Clone)]
pub struct Tokens {
    /// Digests of tokens, so that comparing takes the same time wherever two differ, and a dump has no token in it.
    by_token: Vec<(blake3::Hash, Identity)>,
    by_uid: BTreeMap<u32, Tenant>,
    own_uid: u32,
}

/// A token file that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// It cannot be read.
    #[error("read token file {path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// It has no token, or one that can be guessed.
    #[error("token file {0}: a token is one line of at least 16 characters")]
    Weak(PathBuf),
    /// Two callers could not be told apart.
    #[error("token file {0}: this token is another scope's already")]
    Twice(PathBuf),
}

/// Shortest token: 16 characters of base64 are 96 bits.
const TOKEN_MIN: usize = 16;

/// Largest token file: a few tokens, for changing them without a gap.
const FILE_LIMIT: u64 = 64 * 1024;

// === impl Tokens ===

impl Tokens {
    /// Reads all token files. `node` is the operator's.
    ///
    /// # Errors
    /// [`TokenError`]
    pub fn read(node: Option<&Path>, scopes: &[ScopeConfig], own_uid: u32) -> Result<Self, TokenError> {
        let mut tokens = Self { by_token: Vec::new(), by_uid: BTreeMap::new(), own_uid };
        if let Some(file) = node {
            tokens.add(file, &Identity { scope: Tenant::of_token(), operator: true, has_our_rights: false })?;
        }
        for scope in scopes {
            let identity = Identity { scope: scope.name.clone(), operator: false, has_our_rights: false };
            if let Some(file) = &scope.token_file {
                tokens.add(file, &identity)?;
            }
            tokens.by_uid.extend(scope.uids.iter().map(|uid| (*uid, scope.name.clone())));
        }
        Ok(tokens)
    }

    fn add(&mut self, file: &Path, identity: &Identity) -> Result<(), TokenError> {
        let read = |source| TokenError::Read { path: file.to_owned(), source };
        let size = std::fs::metadata(file).map_err(read)?.len();
        if size > FILE_LIMIT {
            return Err(TokenError::Weak(file.to_owned()));
        }
        let text = std::fs::read_to_string(file).map_err(read)?;
        let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if lines.is_empty() || lines.iter().any(|line| line.len() < TOKEN_MIN || line.contains(char::is_whitespace)) {
            return Err(TokenError::Weak(file.to_owned()));
        }
        for line in lines {
            let digest = blake3::hash(line.as_bytes());
            if self.by_token.iter().any(|(known, of)| *known == digest && of != identity) {
                return Err(TokenError::Twice(file.to_owned()));
            }
            self.by_token.push((digest, identity.clone()));
        }
        Ok(())
    }

    /// Who sends `token` over TCP; `None` if it is nobody's. Where no token is set, which is possible on the loopback address
    /// only, all callers are one: they cannot be told apart.
    #[must_use]
    pub fn of_token(&self, token: Option<&str>) -> Option<Identity> {
        if self.by_token.is_empty() {
            return Some(Identity { scope: Tenant::of_loopback(), operator: true, has_our_rights: false });
        }
        let digest = blake3::hash(token?.as_bytes());
        // `blake3::Hash` compares in constant time, and all are looked at.
        let mut found = None;
        for (known, identity) in &self.by_token {
            if *known == digest {
                found = Some(identity);
            }
        }
        found.cloned()
    }

    /// Who is at the other end of the socket.
    #[must_use]
    pub fn of_uid(&self, uid: u32) -> Identity {
        let ours = uid == 0 || uid == self.own_uid;
        let scope = self.by_uid.get(&uid).cloned().unwrap_or_else(|| Tenant::of_uid(uid));
        Identity { scope, operator: ours, has_our_rights: ours }
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens", self.by_token.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(directory: &Path, name: &str, text: &str) -> PathBuf {
        let path = directory.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    #[test]
    fn a_token_names_its_scope_and_nobody_elses() {
        let directory = tempfile::tempdir().unwrap();
        let node = file(directory.path(), "node", "operator-token-0123\n");
        let team = file(directory.path(), "team", "old-token-of-team-a\nnew-token-of-team-a\n");
        let scope = ScopeConfig {
            name: Tenant::try_from("team-a".to_owned()).unwrap(),
            token_file: Some(team.clone()),
            uids: vec![1001],
            ..ScopeConfig::default()
        };
        let tokens = Tokens::read(Some(&node), std::slice::from_ref(&scope), 500).unwrap();
        let of = |token: &str| tokens.of_token(Some(token)).map(|who| (who.scope.to_string(), who.operator));
        assert_eq!(of("operator-token-0123"), Some(("token".to_owned(), true)));
        assert_eq!(of("old-token-of-team-a"), Some(("team-a".to_owned(), false)));
        assert_eq!(of("new-token-of-team-a"), Some(("team-a".to_owned(), false)));
        assert_eq!(of("new-token-of-team-b"), None);
        assert_eq!(of(""), None);
        assert_eq!(tokens.of_token(None), None);
        assert_eq!(tokens.of_uid(1001).scope.as_str(), "team-a");
        assert_eq!(tokens.of_uid(1002).scope.as_str(), "uid-1002");
        assert!(tokens.of_uid(0).operator && tokens.of_uid(500).has_our_rights && !tokens.of_uid(1001).operator);
        assert!(!format!("{tokens:?}").contains("token-"));
        let both = Tokens::read(Some(&team), std::slice::from_ref(&scope), 0).unwrap_err();
        assert!(matches!(both, TokenError::Twice(_)), "{both}");
        for weak in ["", "short\n", "with a blank in it, long enough\n"] {
            let path = file(directory.path(), "weak", weak);
            assert!(matches!(Tokens::read(Some(&path), &[], 0), Err(TokenError::Weak(_))), "{weak:?}");
        }
    }

    #[test]
    fn without_any_token_the_loopback_is_one_caller() {
        let tokens = Tokens::read(None, &[], 0).unwrap();
        assert_eq!(tokens.of_token(None).unwrap().scope.as_str(), "loopback");
        assert_eq!(tokens.of_token(Some("whatever")).unwrap().scope.as_str(), "loopback");
    }
}
