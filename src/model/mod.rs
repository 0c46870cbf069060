//! Nouns: pure, serialisable, no I/O.

mod facts;
mod key;
mod manifest;
mod path;
mod reference;
mod select;
pub mod source;

pub use facts::{FileFacts, ModelRecord, OriginFacts};
pub use key::{FlightKey, ModelId, Tenant};
pub use manifest::{Kind, Manifest, ManifestEntry, ManifestError};
pub use path::{FilePath, PathError};
pub use reference::{OriginId, Reference, ReferenceError, Revision, Scheme, Selection};
pub use select::{SelectError, Selected, select};
