//! Compiled engines: what decides whether one is reused.

mod keys;
mod run;
