//! Nouns: pure, serialisable, no I/O.

mod authority;
pub mod body;
mod bundle;
mod credential;
pub mod engine;
mod facts;
mod key;
mod manifest;
mod path;
mod reference;
mod revision;
mod select;
mod signature;
pub mod sink;
pub mod source;
pub mod tensor;

pub use bundle::{BUNDLE_DOCUMENT_LIMIT, Bundle, BundleError, BundleId, Evidence, Pack, Producer, is_root_name};
pub use credential::{Credential, Rights, Secret};
pub use facts::{FileFacts, ModelRecord, OriginFacts, Provenance};
pub use key::{FlightKey, ModelId, Tenant, alias_name};
pub use manifest::{DOCUMENT_LIMIT, Kind, Manifest, ManifestEntry, ManifestError, TensorDigest, outboard_path};
pub use path::{FilePath, PathError};
pub use reference::{OriginId, Reference, ReferenceError, Scheme, Selection};
pub use revision::{Revision, RevisionError};
pub use select::{INDEX_LIMIT, IndexError, SelectError, Selected, check_globs, index_shards, select};
pub use signature::{SIGNATURE_LIMIT, Signature, SignatureError, Signer, SigningKey};
