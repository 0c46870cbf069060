//! What a compiled engine may be reused for: the *engine key*.
//!
//! An engine's own cache key leaves things out (another GPU, another count of speculative tokens) and then a hit crashes or is
//! wrong. So ours is a superset: facts of the GPU, the toolchain, the installed packages, the model, the arguments and the
//! environment, each a *field* with a name, a value, and a role. A **hard** field must be equal; a **soft** one is recorded and
//! shown and never decides. What is hard depends on the [`BundleKind`], by the table in [`rules`](rule). A hard field that could
//! not be found out makes the key [unusable](EngineKey::unusable): nothing is restored by it and nothing published, for a guess
//! is how a cache becomes a crash loop.
//!
//! The digest is BLAKE3 over canonical JSON (sorted keys, no white space) of the hard fields alone. The key itself travels with
//! its bundle, all fields in clear, so that a miss is explained field by field ([`EngineKey::diff`]); values of environment
//! variables are in it as digests only.
//!
//! Turned down: keeping the digest alone (a miss could not be explained), and believing the engine's own key (see above).

mod diff;
mod field;
mod rules;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use diff::Difference;
pub use field::{Field, KeyError, Role};
pub use rules::{CUDA_CACHE, Circumstances, rule};

use crate::digest::Hash;

/// Version of the meaning of the fields: another one is another key.
pub const KEY_SCHEMA: u32 = 1;

/// Most fields of one key: some hundreds of packages, arguments and variables, ten times over.
pub const FIELD_LIMIT: usize = 8192;

/// Whom a bundle may serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum BundleKind {
    /// Compiled graphs and plans: an identical run only.
    Graph,
    /// Kernels that name themselves by source, compiler and architecture: any run on the same GPU and toolchain.
    Kernel,
}

/// The key of one bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Document", into = "Document")]
pub struct EngineKey {
    kind: BundleKind,
    profile: String,
    node_rank: u32,
    fields: BTreeMap<String, Field>,
}

/// The JSON form.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    schema: u32,
    kind: BundleKind,
    profile: String,
    node_rank: u32,
    fields: BTreeMap<String, Field>,
}

/// What the digest is over; the order of the fields is that of their names.
#[derive(Serialize)]
struct Canonical<'a> {
    hard: BTreeMap<&'a str, Option<&'a str>>,
    kind: BundleKind,
    node_rank: u32,
    profile: &'a str,
    schema: u32,
}

// === impl BundleKind ===

impl BundleKind {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Graph, Self::Kernel];

    /// The word in JSON, metrics and paths.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Graph => "graph",
            Self::Kernel => "kernel",
        }
    }
}

impl std::fmt::Display for BundleKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for BundleKind {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.as_str() == text)
            .ok_or_else(|| KeyError::Kind(text.chars().take(40).collect()))
    }
}

// === impl EngineKey ===

impl EngineKey {
    /// Checks names, lengths and counts.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn new(
        kind: BundleKind,
        profile: impl Into<String>,
        node_rank: u32,
        fields: BTreeMap<String, Field>,
    ) -> Result<Self, KeyError> {
        let profile = profile.into();
        field::check_profile(&profile)?;
        if fields.len() > FIELD_LIMIT {
            return Err(KeyError::Limit { what: format!("{} fields", fields.len()), limit: FIELD_LIMIT });
        }
        for (name, field) in &fields {
            field.check(name)?;
        }
        Ok(Self { kind, profile, node_rank, fields })
    }

    /// Reads the JSON form.
    ///
    /// # Errors
    /// [`KeyError`]
    pub fn parse(json: &[u8]) -> Result<Self, KeyError> {
        Ok(serde_json::from_slice(json)?)
    }

    /// Whom its bundle may serve.
    #[must_use]
    pub fn kind(&self) -> BundleKind {
        self.kind
    }

    /// The profile that says where the engine keeps what: `vllm`, `sglang`, `torch-inductor`, ...
    #[must_use]
    pub fn profile(&self) -> &str {
        &self.profile
    }

    /// Which node of the replica it is; 0 for the head and for replicas of one node.
    #[must_use]
    pub fn node_rank(&self) -> u32 {
        self.node_rank
    }

    /// All fields by name.
    #[must_use]
    pub fn fields(&self) -> &BTreeMap<String, Field> {
        &self.fields
    }

    /// The value of a field, if it is known.
    #[must_use]
    pub fn value(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.value.as_deref()
    }

    /// The `engine_key`.
    #[must_use]
    pub fn digest(&self) -> Hash {
        let hard = self.fields.iter().filter(|(_, field)| field.role == Role::Hard);
        let canonical = Canonical {
            hard: hard.map(|(name, field)| (name.as_str(), field.value.as_deref())).collect(),
            kind: self.kind,
            node_rank: self.node_rank,
            profile: &self.profile,
            schema: KEY_SCHEMA,
        };
        // Maps of text to text and numbers: nothing that JSON could not say.
        Hash::of(&serde_json::to_vec(&canonical).unwrap_or_default())
    }

    /// The hard fields that nobody could find out, with the reasons. Unless there is none, the key restores and publishes
    /// nothing.
    #[must_use]
    pub fn unusable(&self) -> Vec<(&str, &str)> {
        let unknown = self.fields.iter().filter(|(_, field)| field.role == Role::Hard && field.value.is_none());
        unknown.map(|(name, field)| (name.as_str(), field.from.as_str())).collect()
    }

    /// Whether a bundle under this key may go to others.
    ///
    /// # Errors
    /// Why not, in words for a person.
    pub fn check_publishable(&self) -> Result<(), String> {
        if let Some((name, why)) = self.unusable().first() {
            return Err(format!("{name} is not known ({why}), and a guess is not good enough for others"));
        }
        if self.is_asserted() {
            let asserted = "the GPU was named by a facts file; only what a driver says is published";
            return Err(asserted.to_owned());
        }
        Ok(())
    }

    /// The JSON form, keys sorted; reading it and writing it again gives the same bytes.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        // Maps of text to text and numbers: nothing that JSON could not say.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Whether somebody has merely said what the GPU is, in a facts file: what is captured under such a key stays on its node.
    #[must_use]
    pub fn is_asserted(&self) -> bool {
        self.fields.iter().any(|(name, field)| name.starts_with("gpu.") && field.from == FROM_FACTS)
    }
}

/// Where a field of a GPU comes from when a facts file says it.
pub const FROM_FACTS: &str = "facts file";

impl TryFrom<Document> for EngineKey {
    type Error = KeyError;

    fn try_from(document: Document) -> Result<Self, KeyError> {
        if document.schema != KEY_SCHEMA {
            return Err(KeyError::Schema(document.schema));
        }
        Self::new(document.kind, document.profile, document.node_rank, document.fields)
    }
}

impl From<EngineKey> for Document {
    fn from(key: EngineKey) -> Self {
        let EngineKey { kind, profile, node_rank, fields } = key;
        Self { schema: KEY_SCHEMA, kind, profile, node_rank, fields }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(fields: &[(&str, Option<&str>, Role)]) -> EngineKey {
        let fields = fields.iter().map(|(name, value, role)| {
            ((*name).to_owned(), Field { value: value.map(str::to_owned), role: *role, from: "test".to_owned() })
        });
        EngineKey::new(BundleKind::Graph, "vllm", 0, fields.collect()).unwrap()
    }

    #[test]
    fn hard_fields_alone_make_the_digest() {
        let one = key(&[("gpu.name", Some("NVIDIA H100 PCIe"), Role::Hard), ("gpu.driver", Some("580"), Role::Soft)]);
        let soft = key(&[("gpu.name", Some("NVIDIA H100 PCIe"), Role::Hard), ("gpu.driver", Some("590"), Role::Soft)]);
        let hard = key(&[("gpu.name", Some("NVIDIA H100 NVL"), Role::Hard), ("gpu.driver", Some("580"), Role::Soft)]);
        let without = key(&[("gpu.driver", Some("580"), Role::Soft)]);
        assert_eq!(one.digest(), soft.digest());
        assert_ne!(one.digest(), hard.digest());
        assert_ne!(one.digest(), without.digest());
        let fields = one.fields().clone();
        for other in [
            EngineKey::new(BundleKind::Kernel, "vllm", 0, fields.clone()),
            EngineKey::new(BundleKind::Graph, "sglang", 0, fields.clone()),
            EngineKey::new(BundleKind::Graph, "vllm", 1, fields),
        ] {
            assert_ne!(other.unwrap().digest(), one.digest());
        }
    }

    #[test]
    fn the_digest_is_over_the_documented_text() {
        let one = key(&[("b", Some("2\"é"), Role::Hard), ("a", None, Role::Hard), ("c", Some("3"), Role::Soft)]);
        let text = r#"{"hard":{"a":null,"b":"2\"é"},"kind":"graph","node_rank":0,"profile":"vllm","schema":1}"#;
        assert_eq!(one.digest(), Hash::of(text.as_bytes()));
    }

    #[test]
    fn an_unknown_hard_field_makes_it_unusable_and_an_unknown_soft_one_does_not() {
        let one = key(&[("gpu.name", None, Role::Hard), ("gpu.driver", None, Role::Soft)]);
        assert_eq!(one.unusable(), [("gpu.name", "test")]);
        assert!(one.check_publishable().unwrap_err().contains("gpu.name"));
        let soft = key(&[("gpu.driver", None, Role::Soft)]);
        assert!(soft.unusable().is_empty() && soft.check_publishable().is_ok());
        let empty = key(&[("gpu.name", Some(""), Role::Hard)]);
        assert_ne!(one.digest(), empty.digest(), "unknown is not empty");
    }

    #[test]
    fn json_round_trips_and_what_is_wrong_with_it_is_said() {
        let one = key(&[("gpu.name", Some("x"), Role::Hard), ("gpu.driver", None, Role::Soft)]);
        let json = String::from_utf8(one.to_json()).unwrap();
        let again = EngineKey::parse(json.as_bytes()).unwrap();
        assert_eq!((again.digest(), &again), (one.digest(), &one));
        for (from, to, says) in [
            ("\"schema\":1", "\"schema\":2", "schema 2"),
            ("\"graph\"", "\"grape\"", "grape"),
            ("gpu.driver", "gpu driver", "gpu driver"),
            ("\"profile\":\"vllm\"", "\"profile\":\"../x\"", "profile"),
            ("\"node_rank\":0", "\"node_rank\":0,\"more\":1", "more"),
        ] {
            let wrong = json.replace(from, to);
            assert_ne!(wrong, json, "{from}");
            let error = EngineKey::parse(wrong.as_bytes()).expect_err(&wrong).to_string();
            assert!(error.contains(says), "{error}");
        }
        let many = (0..=FIELD_LIMIT).map(|at| (format!("env.A{at}"), Field::hard("x", "test"))).collect();
        assert!(matches!(EngineKey::new(BundleKind::Graph, "vllm", 0, many), Err(KeyError::Limit { .. })));
    }

    #[test]
    fn a_key_of_a_facts_file_says_so() {
        let mut fields = key(&[("gpu.name", Some("x"), Role::Hard)]).fields().clone();
        assert!(!EngineKey::new(BundleKind::Graph, "vllm", 0, fields.clone()).unwrap().is_asserted());
        fields.insert("gpu.count".to_owned(), Field::hard("1", FROM_FACTS));
        let asserted = EngineKey::new(BundleKind::Graph, "vllm", 0, fields).unwrap();
        assert!(asserted.is_asserted() && asserted.check_publishable().unwrap_err().contains("facts file"));
    }
}
