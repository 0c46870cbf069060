//! What integration tests share: a model, a web server that misbehaves to order, and a node in a directory of its own.

pub(crate) mod command;
pub(crate) mod hub;
pub(crate) mod model;
pub(crate) mod node;
pub(crate) mod web;
