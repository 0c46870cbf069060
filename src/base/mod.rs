//! Ground: error kinds, units, boot identity, lifecycle. No policy, no network.

mod boot;
mod error;
pub mod lifecycle;
pub mod recent;
pub mod units;

pub use boot::BootId;
pub use error::ErrorKind;
