//! Models as plain files at a place: a directory that is published into an origin, or taken into the store.

mod directory;
mod error;
mod published;
mod push;

pub use directory::{Directory, HashedFile};
pub use error::PlacementError;
pub use push::{Push, PushProgress, Pushed};
