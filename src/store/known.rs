//! What blobs are elsewhere: the object version that became one, and the digest that an origin declares of it. Kept in both
//! directions, so that forgetting a blob costs what it is called and not what all are: emptying a store of 100,000 blobs went
//! through all names for each.

use std::collections::HashMap;

use crate::digest::Hash;
use crate::model::FlightKey;

/// Names of blobs elsewhere.
#[derive(Debug, Default)]
pub(super) struct Known {
    by_key: HashMap<FlightKey, Hash>,
    by_sha256: HashMap<String, Hash>,
    of: HashMap<Hash, Called>,
}

/// What one blob is called.
#[derive(Debug, Default)]
struct Called {
    keys: Vec<FlightKey>,
    sha256: Vec<String>,
}

// === impl Known ===

impl Known {
    /// The blob that an object version became.
    pub(super) fn by_key(&self, key: &FlightKey) -> Option<Hash> {
        self.by_key.get(key).copied()
    }

    /// The blob that has this digest, in hex.
    pub(super) fn by_sha256(&self, hex: &str) -> Option<Hash> {
        self.by_sha256.get(hex).copied()
    }

    /// The object versions that became a blob.
    pub(super) fn keys_of(&self, hash: &Hash) -> &[FlightKey] {
        self.of.get(hash).map_or(&[], |called| &called.keys)
    }

    /// The digest that is declared of a blob.
    pub(super) fn sha256_of(&self, hash: &Hash) -> Option<&str> {
        self.of.get(hash)?.sha256.last().map(String::as_str)
    }

    /// Notes what an object version became. Returns whether that is news.
    pub(super) fn learn_key(&mut self, key: FlightKey, hash: Hash) -> bool {
        let before = self.by_key.insert(key, hash);
        if before == Some(hash) {
            return false;
        }
        if let Some(called) = before.and_then(|before| self.of.get_mut(&before)) {
            called.keys.retain(|other| *other != key);
        }
        self.of.entry(hash).or_default().keys.push(key);
        true
    }

    /// Notes the digest of a blob.
    pub(super) fn learn_sha256(&mut self, hex: &str, hash: Hash) {
        let before = self.by_sha256.insert(hex.to_owned(), hash);
        if before == Some(hash) {
            return;
        }
        if let Some(called) = before.and_then(|before| self.of.get_mut(&before)) {
            called.sha256.retain(|other| other != hex);
        }
        self.of.entry(hash).or_default().sha256.push(hex.to_owned());
    }

    /// Forgets a blob.
    pub(super) fn forget(&mut self, hash: &Hash) {
        let Some(called) = self.of.remove(hash) else { return };
        for key in called.keys {
            self.by_key.remove(&key);
        }
        for hex in called.sha256 {
            self.by_sha256.remove(&hex);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{OriginId, Tenant};

    #[test]
    fn what_is_forgotten_is_found_by_no_name_and_others_are() {
        let key = |number: u64| {
            FlightKey::new(&Tenant::default(), &OriginId::new("file:///a".to_owned()), "a", "s:1", number)
        };
        let (one, other) = (Hash::of(b"1"), Hash::of(b"2"));
        let mut known = Known::default();
        assert!(known.learn_key(key(1), one) && known.learn_key(key(2), one) && !known.learn_key(key(1), one));
        known.learn_sha256("aa", one);
        // The object changed, though its validator did not.
        assert!(known.learn_key(key(2), other));
        known.learn_sha256("bb", other);
        assert_eq!((known.keys_of(&one), known.sha256_of(&one)), (&[key(1)][..], Some("aa")));
        known.forget(&one);
        assert_eq!((known.by_key(&key(1)), known.by_sha256("aa"), known.keys_of(&one)), (None, None, &[][..]));
        assert_eq!((known.by_key(&key(2)), known.by_sha256("bb")), (Some(other), Some(other)));
        known.forget(&one);
        known.forget(&other);
        assert!(known.by_key.is_empty() && known.by_sha256.is_empty() && known.of.is_empty());
    }
}
