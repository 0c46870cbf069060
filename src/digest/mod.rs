//! Content hashing. A blob's name is its BLAKE3 root; bytes arrive out of order, so they are hashed in *groups* of 1 MiB
//! whose chaining values merge to that root. The list of chaining values (the *outboard*) proves any group alone.

mod group;
mod hash;
mod origin;
mod outboard;
mod running;
mod verified;

pub use group::{GROUP_BYTES, GroupCv, group_count, group_cv, group_range, merge_root};
pub use hash::{Hash, HashParseError};
pub use origin::{Algorithm, Declared, OriginVerified};
pub use outboard::Outboard;
pub use running::Running;
pub use verified::{Verified, WrongBytes};
