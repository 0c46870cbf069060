//! preheat makes every cold start warm.
pub mod base;
pub mod digest;
pub mod model;
pub mod store;
