//! Compiled engines: what a command may reuse of what others have compiled.

pub mod doctor;
pub mod fingerprint;
pub mod profile;
mod roots;

pub use roots::{Root, roots};
