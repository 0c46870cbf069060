//! What is here of something that is not being fetched, without touching it: for estimates.

use super::Store;
use super::journal;
use super::partial::read_limited;
use crate::digest::{Declared, Hash, group_range};
use crate::model::{FlightKey, Tenant};

// === impl Store ===

impl Store {
    /// The blob that an object version would be found as from `scope`; nothing is hashed for the answer.
    #[must_use]
    pub fn peek(
        &self,
        scope: &Tenant,
        key: &FlightKey,
        size: u64,
        blake3: Option<Hash>,
        declared: &[Declared],
    ) -> Option<Hash> {
        let index = self.inner.index();
        let fits = |hash: &Hash| {
            blake3.is_none_or(|wanted| wanted == *hash) && index.blobs.get(hash).is_some_and(|blob| blob.size == size)
        };
        if let Some(hash) = index.known.by_key(key).filter(fits) {
            return Some(hash);
        }
        let by_digest = declared
            .iter()
            .filter(|one| one.algorithm.is_collision_resistant())
            .find_map(|one| index.known.by_sha256(&one.hex));
        blake3.or(by_digest).filter(fits).filter(|hash| index.is_named_in(scope, hash))
    }

    /// Bytes that the partial of an object version has, as its journal says. Reads the journal.
    #[must_use]
    pub fn partial_bytes(&self, key: &FlightKey, size: u64) -> u64 {
        let known = self.inner.index().partials.get(key).is_some_and(|entry| entry.size == size);
        if !known {
            return 0;
        }
        let path = self.inner.layout.partial(key).join("journal");
        let Some(claims) = journal::read(&read_limited(&path), *key, size, &self.inner.options.boot) else { return 0 };
        let kept = (0_u64..).zip(&claims.kept).filter(|(_, cv)| cv.is_some());
        kept.map(|(index, _)| group_range(size, index)).map(|range| range.end - range.start).sum()
    }
}
