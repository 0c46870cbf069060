//! Nouns: pure, serialisable, no I/O.

mod authority;
mod credential;
pub mod engine;
mod facts;
mod key;
mod manifest;
mod path;
mod reference;
mod revision;
mod select;
pub mod sink;
pub mod source;
pub mod tensor;

pub use credential::{Credential, Rights, Secret};
pub use facts::{FileFacts, ModelRecord, OriginFacts, Provenance};
pub use key::{FlightKey, ModelId, Tenant, alias_name};
pub use manifest::{DOCUMENT_LIMIT, Kind, Manifest, ManifestEntry, ManifestError, TensorDigest, outboard_path};
pub use path::{FilePath, PathError};
pub use reference::{OriginId, Reference, ReferenceError, Scheme, Selection};
pub use revision::{Revision, RevisionError};
pub use select::{INDEX_LIMIT, IndexError, SelectError, Selected, check_globs, index_shards, select};
