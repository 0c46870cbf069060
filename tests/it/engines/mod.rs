//! Compiled engines: what decides whether one is reused.

mod convictions;
mod endings;
mod growing;
mod in_place;
mod keeping;
mod keys;
mod prewarm;
mod run;
