//! The job that takes a reference to a warm model. One job for each content and tier however many ask; a caller may wait,
//! watch, come back, or call it off.

mod budget;
mod compiled;
mod config;
mod estimate;
mod estimating;
mod job;
mod journal;
mod keep_warm;
mod ledger;
mod member;
mod rates;
mod registry;
mod residents;
mod timeline;
mod warm;
pub mod wire;
mod work;

pub use budget::Shortage;
pub use config::{Config, KeepWarm, KeepWarmEntry};
pub use job::JobError;
pub use registry::{Estimation, Jobs, Submission, Submitted};
