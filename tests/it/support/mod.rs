//! What integration tests share: a model, a web server that misbehaves to order, and a node in a directory of its own.

pub(crate) mod command;
pub(crate) mod emulator;
pub(crate) mod hub;
pub(crate) mod model;
pub(crate) mod node;
pub(crate) mod proxy;
pub(crate) mod s3;
pub(crate) mod web;
