//! What is kept beside a manifest: how a model came to be here. A manifest says *what* the bytes are and is the same from
//! any origin; facts say *where from* and *how checked*, and differ.

use serde::{Deserialize, Serialize};

use super::{FilePath, ModelId, OriginId, Revision, Tenant};
use crate::digest::{Declared, Hash, OriginVerified};

/// How one file of a model was obtained and checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileFacts {
    /// Its place in the model.
    pub path: FilePath,
    /// Its place at the origin.
    pub locator: String,
    /// [`super::source::Validator::as_key`].
    pub validator: String,
    /// What the origin declared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub declared: Vec<Declared>,
    /// The strongest check against the origin's word that the bytes passed.
    pub origin_verified: OriginVerified,
}

/// How a manifest was obtained from one origin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OriginFacts {
    /// Which origin.
    pub origin: OriginId,
    /// When planning saw these files, seconds since the epoch.
    pub resolved_at: u64,
    /// One entry a file, sorted by path.
    pub files: Vec<FileFacts>,
}

/// One published model: what a reference stood for, and where its tree is. Stored canonical, one file a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    /// Version of this record's field set: 1.
    pub version: u32,
    /// Its name, from tenant, origin, selection and revision.
    pub id: ModelId,
    /// Whose.
    pub tenant: Tenant,
    /// The reference as typed, without secrets.
    pub reference: String,
    /// What it resolved to.
    pub revision: Revision,
    /// Digest of its manifest.
    pub manifest: Hash,
    /// Sum of file sizes.
    pub bytes: u64,
    /// Number of files.
    pub files: u64,
    /// When it was first published, seconds since the epoch.
    pub published_at: u64,
    /// The scope whose quota its bytes count against, where that is not `tenant`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<Tenant>,
    /// Where from and how checked.
    pub facts: OriginFacts,
}

/// Where something on the node comes from, as far as the right to read it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Provenance {
    /// The scope that keeps it.
    pub scope: Tenant,
    /// Its origin.
    pub origin: OriginId,
    /// The reference as typed.
    pub reference: String,
}

// === impl ModelRecord ===

impl ModelRecord {
    /// Where it comes from.
    #[must_use]
    pub fn provenance(&self) -> Provenance {
        let Self { tenant, reference, facts, .. } = self;
        Provenance { scope: tenant.clone(), origin: facts.origin.clone(), reference: reference.clone() }
    }

    /// The scope whose quota its bytes count against.
    #[must_use]
    pub fn charged_to(&self) -> &Tenant {
        self.asked_by.as_ref().unwrap_or(&self.tenant)
    }
}
