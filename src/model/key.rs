//! Derived names. Each is BLAKE3 over a domain line and NUL-separated fields, so that no field can run into the next.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{FilePath, OriginId, Reference, Revision, Selection};
use crate::digest::Hash;

/// Whose content it is: a *scope*. `default` is public content, which everybody may read; `node` is what the daemon reads with
/// its own credentials for everybody who may ask it; any other is a tenant's own.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tenant(String);

/// The name is empty, too long, or not of `[a-z0-9-]`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("tenant `{0}` must be 1 to 63 characters of a-z, 0-9 and -, and not start with -")]
pub struct TenantError(String);

/// Names one model on a node: tenant, origin identity, selection and revision, and nothing else. The tree's path follows
/// from it, so the path is the same string on every node. Text form: `<slug>-<32 hex>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ModelId(String);

/// The text is not `<slug>-<32 hex>`.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a model id (slug, dash, 32 hex digits)")]
pub struct ModelIdError(String);

/// Names one transfer: the same object at the same version for the same tenant. Partials and single flight go by it,
/// since the BLAKE3 root is known only at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct FlightKey(Hash);

// === impl Tenant ===

impl Default for Tenant {
    fn default() -> Self {
        Self("default".to_owned())
    }
}

impl Tenant {
    /// The scope of what the daemon reads with its own credentials for everybody who may ask it.
    #[must_use]
    pub fn node() -> Self {
        Self("node".to_owned())
    }

    /// The scope of a user of this machine.
    #[must_use]
    pub fn of_uid(uid: u32) -> Self {
        Self(format!("uid-{uid}"))
    }

    /// The scope of who sends the node's own token.
    #[must_use]
    pub fn of_token() -> Self {
        Self("token".to_owned())
    }

    /// The scope of all who ask over the loopback address of a daemon that wants no token.
    #[must_use]
    pub fn of_loopback() -> Self {
        Self("loopback".to_owned())
    }

    /// Whether the name means something by itself, so that no configuration may use it.
    #[must_use]
    pub fn is_reserved(&self) -> bool {
        let ours = [Self::default(), Self::node(), Self::of_token(), Self::of_loopback()];
        ours.contains(self) || self.0.starts_with("uid-")
    }

    /// The user whose scope it is, if it is one's.
    #[must_use]
    pub fn uid(&self) -> Option<u32> {
        self.0.strip_prefix("uid-")?.parse().ok()
    }

    /// Whether its trees are open to everybody on the machine.
    #[must_use]
    pub fn is_open(&self) -> bool {
        *self == Self::default() || *self == Self::node()
    }

    /// Whether it is somebody: `default` and `node` are everybody's, and `loopback` is whoever runs on this machine.
    #[must_use]
    pub fn is_somebody(&self) -> bool {
        !self.is_open() && *self != Self::of_loopback()
    }

    /// The name, safe as one path segment.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Tenant {
    type Error = TenantError;

    fn try_from(name: String) -> Result<Self, TenantError> {
        let ok = (1..=63).contains(&name.len())
            && !name.starts_with('-')
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if ok { Ok(Self(name)) } else { Err(TenantError(name.chars().take(80).collect())) }
    }
}

impl From<Tenant> for String {
    fn from(tenant: Tenant) -> Self {
        tenant.0
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl ModelId ===

impl ModelId {
    /// The id of `revision` of what `selection` chooses at `origin`, for `tenant`.
    #[must_use]
    pub fn new(tenant: &Tenant, origin: &OriginId, selection: &Selection, revision: &Revision) -> Self {
        let digest = keyed(
            "preheat model 1",
            &[tenant.as_str(), origin.as_str(), &selection.canonical(), &revision.to_string()],
        );
        let mut id = slug(origin.last_segment(), selection.subfolder.as_ref().map(FilePath::as_str));
        id.push('-');
        id.push_str(&digest.to_string()[..32]);
        Self(id)
    }

    /// The text form, safe as one path segment.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ModelId {
    type Error = ModelIdError;

    fn try_from(text: String) -> Result<Self, ModelIdError> {
        let ok = text.len() <= 100
            && text.rsplit_once('-').is_some_and(|(slug, hex)| {
                !slug.is_empty()
                    && !slug.starts_with(['.', '-'])
                    && slug.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
                    && hex.len() == 32
                    && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
            });
        if ok { Ok(Self(text)) } else { Err(ModelIdError(text.chars().take(120).collect())) }
    }
}

impl FromStr for ModelId {
    type Err = ModelIdError;

    fn from_str(text: &str) -> Result<Self, ModelIdError> {
        Self::try_from(text.to_owned())
    }
}

impl From<ModelId> for String {
    fn from(id: ModelId) -> Self {
        id.0
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl FlightKey ===

impl FlightKey {
    /// The key of one object version. `locator` is the object's place at the origin, `validator` what pins its version.
    #[must_use]
    pub fn new(tenant: &Tenant, origin: &OriginId, locator: &str, validator: &str, size: u64) -> Self {
        Self(keyed("preheat flight 1", &[tenant.as_str(), origin.as_str(), locator, validator, &size.to_string()]))
    }
}

impl fmt::Display for FlightKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for FlightKey {
    type Err = crate::digest::HashParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// The name of the alias of a moving reference: for people who look into a store. `<slug>[@revision]-<8 hex>`.
#[must_use]
pub fn alias_name(origin: &OriginId, reference: &Reference) -> String {
    let mut name = slug(origin.last_segment(), reference.selection.subfolder.as_ref().map(FilePath::as_str));
    if let Some(revision) = &reference.revision {
        name.push('@');
        name.push_str(&slug(revision, None));
    }
    let asked = reference.revision.as_deref().unwrap_or_default();
    let digest = keyed("preheat alias 1", &[origin.as_str(), &reference.selection.canonical(), asked]);
    name.push('-');
    name.push_str(&digest.to_string()[..8]);
    name
}

// === shared ===

/// BLAKE3 over the domain, a newline, and each field followed by NUL.
pub(super) fn keyed(domain: &str, fields: &[&str]) -> Hash {
    let mut text = String::with_capacity(256);
    text.push_str(domain);
    text.push('\n');
    for field in fields {
        text.push_str(field);
        text.push('\0');
    }
    Hash::of(text.as_bytes())
}

/// A short readable prefix for people; the digest behind it is what identifies.
fn slug(name: &str, subfolder: Option<&str>) -> String {
    let last = subfolder.and_then(|path| path.rsplit('/').next());
    let mut slug = String::new();
    for part in std::iter::once(name).chain(last) {
        if !slug.is_empty() {
            slug.push('-');
        }
        slug.extend(
            part.chars().take(30).map(
                |c| {
                    if c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_') { c } else { '_' }
                },
            ),
        );
    }
    let trimmed = slug.trim_start_matches(['.', '-']);
    if trimmed.is_empty() { "model".to_owned() } else { trimmed.to_owned() }
}
