//! What the detectors have found, before roles: facts by the names of the key's fields.

use std::collections::BTreeMap;

use crate::digest::Hash;
use crate::engines::secrets::Secrets;

/// Values longer than this are in the key as digests.
const SHOWN_LIMIT: usize = 1024;

/// Longest name of a field that is kept as it is.
const NAME_SHOWN: usize = 160;

/// One thing found, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// What it is, unless that is unknown.
    pub value: Option<String>,
    /// Who says so, or why it is unknown.
    pub from: String,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts(pub BTreeMap<String, Fact>);

// === impl Facts ===

impl Facts {
    /// Something is known.
    pub fn know(&mut self, name: impl AsRef<str>, value: impl Into<String>, from: impl Into<String>) {
        let value = value.into();
        let value = if value.len() > SHOWN_LIMIT {
            format!("blake3:{} ({} bytes)", short(&Hash::of(value.as_bytes())), value.len())
        } else {
            value
        };
        self.0.insert(field_name(name.as_ref()), Fact { value: Some(value), from: from.into() });
    }

    /// Something should be known and is not.
    pub fn miss(&mut self, name: impl AsRef<str>, why: impl Into<String>) {
        self.0.insert(field_name(name.as_ref()), Fact { value: None, from: why.into() });
    }

    /// One or the other.
    pub fn know_or_miss(&mut self, name: &str, value: Option<String>, from: &str, why: &str) {
        match value {
            Some(value) => self.know(name, value, from),
            None => self.miss(name, why),
        }
    }

    /// Puts digests in the place of values, and of names, that have a secret in them, wherever that has come from.
    pub(super) fn hide(&mut self, secrets: &Secrets) {
        let has = |text: &str| secrets.in_text(text).is_some();
        for fact in self.0.values_mut() {
            if let Some(value) = fact.value.as_mut().filter(|value| has(value)) {
                *value = hidden(value);
            }
            if has(&fact.from) {
                fact.from = "not shown: it has a secret in it".to_owned();
            }
        }
        let named: Vec<String> = self.0.keys().filter(|name| has(name)).cloned().collect();
        for name in named {
            if let Some(fact) = self.0.remove(&name) {
                let (family, rest) = name.split_once('.').unwrap_or(("", &name));
                self.0.insert(format!("{family}.{}", hidden(rest)), fact);
            }
        }
    }

    /// A value that is known.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.value.as_deref()
    }
}

/// 32 hex digits: enough to tell values apart, short enough to read.
pub(super) fn short(hash: &Hash) -> String {
    hash.to_string()[..32].to_owned()
}

/// The digest that stands for a value that must not be seen.
#[must_use]
pub(super) fn hidden(value: &str) -> String {
    format!("blake3:{}", short(&Hash::of(value.as_bytes())))
}

/// A name that a key accepts: printable ASCII of bounded length.
fn field_name(name: &str) -> String {
    let mut plain = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_graphic() && byte != b'%' {
            plain.push(char::from(byte));
        } else {
            plain.push_str(&format!("%{byte:02X}"));
        }
    }
    if plain.len() > NAME_SHOWN {
        let digest = short(&Hash::of(plain.as_bytes()));
        plain.truncate(NAME_SHOWN);
        plain.push_str("...");
        plain.push_str(&digest);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_a_secret_in_it_is_a_digest() {
        let secrets = [("HF_TOKEN".to_owned(), crate::model::Secret::new("hf_abcdefgh".to_owned()))];
        let mut facts = Facts::default();
        facts.know("argv.--x", "a hf_abcdefgh b", "argv");
        facts.know("file./x/hf_abcdefgh", "1", "argv");
        facts.miss("path.y", "hf_abcdefgh is absent");
        facts.know("argv.--y", "plain", "argv");
        facts.hide(&Secrets::new(&secrets).unwrap());
        assert!(!format!("{facts:?}").contains("hf_abc"), "{facts:?}");
        assert_eq!((facts.0.len(), facts.value("argv.--y")), (4, Some("plain")));
        assert_eq!(facts.value("argv.--x"), Some(hidden("a hf_abcdefgh b").as_str()));
    }

    #[test]
    fn names_and_values_fit_a_key() {
        let mut facts = Facts::default();
        facts.know("argv.--\u{e9} x", "1", "argv");
        facts.know(format!("argv.{}", "a".repeat(5000)), "v".repeat(5000), "argv");
        let names: Vec<&String> = facts.0.keys().collect();
        assert!(names.iter().all(|name| name.len() <= 256 && name.bytes().all(|byte| byte.is_ascii_graphic())));
        assert_eq!(facts.value("argv.--%C3%A9%20x"), Some("1"));
        assert!(facts.0.values().all(|fact| fact.value.as_ref().unwrap().len() < 200));
        assert_ne!(field_name(&"a".repeat(5000)), field_name(&"a".repeat(5001)));
    }
}
