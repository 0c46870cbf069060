//! Compiled engines: what decides whether one is reused.

mod convictions;
mod endings;
mod growing;
mod keys;
mod run;
