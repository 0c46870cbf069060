//! What integration tests share: a model, a web server that misbehaves to order, and a node in a directory of its own.

pub(crate) mod command;
pub(crate) mod emulator;
pub(crate) mod engine;
pub(crate) mod hub;
pub(crate) mod model;
pub(crate) mod node;
pub(crate) mod proxy;
pub(crate) mod s3;
pub(crate) mod stub;
pub(crate) mod web;

/// A credential of a test. `scripts/rigs/secrets.py --suite` puts a canary into each, and searches all that is printed and left.
pub(crate) fn secret(name: &str) -> String {
    std::env::var("PREHEAT_TEST_CANARY").map_or_else(|_| name.to_owned(), |canary| format!("{name}-{canary}"))
}

/// Whether what is printed and left is to be searched: then logs are, and directories stay.
pub(crate) fn searched() -> bool {
    std::env::var_os("PREHEAT_TEST_CANARY").is_some()
}
