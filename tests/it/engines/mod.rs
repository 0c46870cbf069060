//! Compiled engines: what decides whether one is reused.

mod endings;
mod keys;
mod run;
