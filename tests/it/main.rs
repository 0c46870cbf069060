//! Integration tests: one binary, so that linking is paid once. One module per subject.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise, and the line that says so is the report")]

mod access;
mod architecture;
mod cli;
mod conformance;
mod definition;
mod egress;
mod engines;
mod engines_cli;
mod engines_cost;
mod engines_daemon;
mod engines_local;
mod engines_shared;
mod engines_trust;
mod golden;
mod hub;
mod hub_rights;
mod import;
mod proof;
mod push;
mod serving;
mod status;
mod support;
mod transfer;
mod warm;
mod wire;
