//! What of a resolution would have to be fetched: asked of the index, of flights under way and of journals, never of an origin.

use super::flight::Flights;
use crate::digest::Hash;
use crate::model::source::RemoteFile;
use crate::model::{FlightKey, OriginId, Tenant};
use crate::store::Store;

/// What is not here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Bytes that would have to come.
    pub bytes: u64,
    /// The blobs that are here, each once.
    pub here: Vec<Hash>,
}

/// Looks at every file. Blocking: partials have journals.
pub(super) fn missing(
    store: &Store,
    flights: &Flights,
    scope: &Tenant,
    origin: &OriginId,
    files: &[RemoteFile],
) -> Missing {
    let mut missing = Missing::default();
    let mut seen = std::collections::HashSet::new();
    for file in files {
        let key = FlightKey::new(scope, origin, &file.locator, &file.validator.as_key(), file.size);
        match store.peek(scope, &key, file.size, file.blake3, &file.declared) {
            Some(hash) => missing.here.push(hash),
            // One object under two paths is fetched once.
            None if !seen.insert(key) => {}
            None => {
                let arrived = flights.arrived(&key).unwrap_or_else(|| store.partial_bytes(&key, file.size));
                missing.bytes = missing.bytes.saturating_add(file.size.saturating_sub(arrived));
            }
        }
    }
    missing.here.sort_unstable();
    missing.here.dedup();
    missing
}
