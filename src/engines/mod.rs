//! Compiled engines: bundles captured, signed, kept, shared and restored.
//!
//! After weights, compilation is the largest part of a cold start, and what it makes loads only where it was made for. So a bundle
//! is filed under an exact key ([`crate::model::engine`]), vouched for by a signature (`policy`), kept in the store beside the
//! weights (`shelf`), given to other nodes through a shared origin (`shared`), and restored whole or not at all
//! (`unpacking`). How it fares is written down (`guard`), so that one that breaks an engine breaks it once.
//!
//! ```text
//! capture   gather -> draft ------> begin_capture -> packing -> document, signature -> shelf -> shared origin
//! restore   lookup -> shelf, or shared origin -> policy -> open -> unpacking -> a directory that was not there before
//! ```
//!
//! [`Library`] is what a start of an engine asks; [`Engines`] is one node's answer, which the daemon's doors give to callers, and
//! [`LocalLibrary`] the same without a daemon.
//!
//! Turned down: trusting an engine's own cache key (it leaves out what makes a hit crash), one shared directory for all nodes
//! (engines lock locally, and write where they read), and hard links to blobs (engines write to what they find).

mod archive;
mod capture;
mod config;
pub mod doctor;
mod error;
pub mod fingerprint;
mod gather;
mod guard;
mod in_place;
mod keeping;
mod library;
mod local;
mod packing;
mod packs;
mod policy;
mod prewarm;
pub mod profile;
mod publishing;
mod quota;
mod roots;
pub mod run;
mod secrets;
mod seekable;
mod sending;
mod service;
mod shared;
mod shelf;
mod trust;
mod under_way;
mod unpacking;
mod volatile;

pub use archive::export;
pub use capture::{Begun, Capturing};
pub use config::{Config, SignerConfig};
pub use error::EngineError;
pub use gather::{CaptureRoot, Gathered, GatheredFile, gather, is_passing};
pub use in_place::{IN_PLACE_FILES_MOST, InPlace, pack_of};
pub use keeping::Decider;
pub use library::{
    AttemptEnd, AttemptId, BundleRef, BundleView, Capture, Captured, Draft, DraftFile, Library, Lookup, Near, Outcome,
    Refusal, Refused, RunReport, Standing,
};
pub use local::LocalLibrary;
pub use prewarm::{Fetching, Missing, Prewarmed};
pub use quota::Limit;
pub use roots::{Root, roots};
pub use sending::{Sending, until_settled};
pub use service::{Engines, Opened};
pub use shelf::is_bundle;
pub use trust::Trust;
pub use unpacking::{Restored, unpack, unpack_stream};

/// Seconds since the epoch.
fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, EngineError> + Send + 'static,
) -> Result<T, EngineError> {
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(EngineError::Defect))
}
