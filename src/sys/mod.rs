//! The kernel, and the only `unsafe`. Everything here blocks; async code reaches it through [`hands`].

pub mod acl;
pub mod beneath;
pub mod buffer;
pub mod copy;
pub mod cuda;
pub mod disk;
pub mod dump;
pub mod durable;
mod dynamic;
pub mod hands;
pub mod host;
pub mod in_use;
pub mod launch;
pub mod memory;
pub mod mutant;
pub mod nvml;
pub mod open_files;
pub mod peer;
pub mod read_write;
pub mod residency;
pub mod signals;
pub mod space;
pub mod terminal;
