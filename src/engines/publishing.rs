//! Giving a bundle to the shared origin: pack, document, signature, and the key's pointer last, so that who finds a key finds all of
//! it; what a kill leaves is named by its digest and found again by the next.
//!
//! Whoever is first at a key stays there ([`Existing::Keep`]), and a newer version takes its place only if it came out of what
//! stands there, or was asked to, or if what stands there is of no use to anybody: revoked, without its document, its signature or
//! its pack, or not what its name says. Otherwise one revocation or one damaged object would keep a key cold for all nodes for
//! good. A signer that only this node does not know is no reason: two nodes that do not know each other's would take turns.
//!
//! The places know no comparison of both: of two that replace at once one is lost, and its nodes have theirs all the same.

use std::collections::HashSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::capture::Publication;
use super::library::Refusal;
use super::seekable::compress;
use super::service::Engines;
use super::shared::{Offered, Pointer, Shared, pack_path, path};
use super::shelf::Held;
use super::{EngineError, blocking};
use crate::base::ErrorKind;
use crate::digest::Hash;
use crate::model::sink::{Content, Existing, Put};
use crate::model::{BundleId, Pack};
use crate::store::Store;
use crate::sys::durable::temporary_name;
use crate::telemetry::metrics::Which;

/// Packs at the shared origin that were fetched and are not what their names say. Their sizes and tables may be right, so that
/// nothing less than a fetch tells.
#[derive(Clone, Debug, Default)]
pub(super) struct Damaged {
    packs: Arc<Mutex<HashSet<Hash>>>,
}

/// More are forgotten: each costs a fetch to find again.
const DAMAGED_MOST: usize = 1024;

/// What stands at a key.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Nothing,
    /// A pointer or a bundle that nobody can use.
    Useless,
    /// Ours, whole.
    Ours,
    Theirs(BundleId),
}

/// A file that goes with this value.
#[derive(Debug)]
struct Temporary(std::path::PathBuf);

// === impl Damaged ===

impl Damaged {
    pub(super) fn note(&self, pack: Hash) {
        let mut packs = self.packs.lock().unwrap_or_else(PoisonError::into_inner);
        if packs.len() >= DAMAGED_MOST {
            packs.clear();
        }
        packs.insert(pack);
    }

    fn has(&self, pack: &Hash) -> bool {
        self.packs.lock().unwrap_or_else(PoisonError::into_inner).contains(pack)
    }

    fn forget(&self, pack: &Hash) {
        self.packs.lock().unwrap_or_else(PoisonError::into_inner).remove(pack);
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // What stays is swept when the store is opened.
        let _ = std::fs::remove_file(&self.0);
    }
}

// === impl Engines ===

impl Engines {
    /// Publishes without anybody waiting for it.
    pub(super) fn publish_later(&self, publication: Publication) {
        if self.inner.shared.is_none() {
            return;
        }
        let engines = self.clone();
        // The handle is not needed: closing the gate waits for it.
        let _publishing = self.inner.background.spawn("engine publish", async move {
            let Some(shared) = &engines.inner.shared else { return };
            let id = publication.held.id;
            let which = match engines.publish(shared, &publication).await {
                Ok(true) => {
                    tracing::info!(bundle = %id, "an engine bundle is published");
                    "published"
                }
                Ok(false) => {
                    tracing::info!(bundle = %id, "an engine bundle is not published: another stands at its key");
                    "existed"
                }
                Err(error) => {
                    tracing::warn!(bundle = %id, %error, "an engine bundle could not be published; the next capture tries again");
                    "failed"
                }
            };
            engines.inner.metrics.engine_shared.get_or_create(&Which { which }).inc();
        });
    }

    /// Writes all of a bundle. False: another stands at its key, and stays there.
    async fn publish(&self, shared: &Shared, publication: &Publication) -> Result<bool, EngineError> {
        let Publication { held, replaces } = publication;
        let Some(signature) = &held.signature else { return Ok(false) };
        let key = held.bundle.key.digest();
        let existing = match (self.standing(shared, held).await?, replaces) {
            (Standing::Ours, _) => return Ok(true),
            (Standing::Nothing, _) => Existing::Keep,
            (Standing::Useless, _) | (Standing::Theirs(_), Some(None)) => Existing::Replace,
            (Standing::Theirs(theirs), Some(Some(older))) if theirs == *older => Existing::Replace,
            (Standing::Theirs(_), _) => return Ok(false),
        };
        for (pack, place) in held.packs() {
            self.publish_pack(shared, pack, place).await?;
        }
        // Replaced also where there is one: bytes of this name that are damaged would stay so.
        let document = Content::Bytes(held.document.to_vec().into());
        shared.put(&path(format!("bundles/{}.json", held.id))?, document, Existing::Replace).await?;
        // The same document may have been signed by another key: ours is the one that is known to fit.
        let signature = Content::Bytes(signature.to_json().into());
        shared.put(&path(format!("bundles/{}.sig", held.id))?, signature, Existing::Replace).await?;
        let pointer = Pointer { format: "preheat-engine".to_owned(), version: 1, key, bundle: held.id };
        let pointer = Content::Bytes(serde_json::to_vec(&pointer).unwrap_or_default().into());
        let put = shared.put(&path(format!("keys/{key}.json"))?, pointer, existing).await?;
        Ok(put == Put::Created || shared.pointer(&key).await? == Some(held.id))
    }

    /// What stands at the key of a bundle.
    async fn standing(&self, shared: &Shared, held: &Held) -> Result<Standing, EngineError> {
        let key = held.bundle.key.digest();
        let id = match shared.pointer(&key).await {
            Ok(None) => return Ok(Standing::Nothing),
            Ok(Some(id)) => id,
            Err(EngineError::Corrupt { .. }) => return Ok(Standing::Useless),
            Err(error) => return Err(error),
        };
        let stands = if id == held.id { Standing::Ours } else { Standing::Theirs(id) };
        let packs = match self.offered(shared, &key, id).await? {
            Ok(Offered { bundle, .. }) => bundle.packs(),
            // Not for this node to say.
            Err(Refusal::UnknownSigner { .. } | Refusal::Unavailable { .. }) => return Ok(stands),
            Err(_) => return Ok(Standing::Useless),
        };
        for pack in packs {
            if !self.pack_is_there(shared, pack).await? {
                return Ok(Standing::Useless);
            }
        }
        Ok(stands)
    }

    /// Whether a pack is there, as far as its size, its table and earlier fetches tell.
    async fn pack_is_there(&self, shared: &Shared, pack: Pack) -> Result<bool, EngineError> {
        if self.inner.damaged.has(&pack.blake3) {
            return Ok(false);
        }
        match shared.table(pack).await {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Corrupt => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn publish_pack(&self, shared: &Shared, pack: Pack, place: PathBuf) -> Result<(), EngineError> {
        if self.pack_is_there(shared, pack).await? {
            return Ok(());
        }
        let store: Store = self.inner.store.clone();
        let (temporary, size, _room) = blocking(move || {
            let room = store.reserve(pack.size, &[])?;
            let temporary = store.engines_directory().1.join(temporary_name());
            let removed = Temporary(temporary.clone());
            let file = File::open(&place).map_err(|error| EngineError::io("open", &place, error))?;
            let size = compress(&file, pack.size, &temporary)?;
            Ok((removed, size, room))
        })
        .await?;
        let content = Content::File { path: temporary.0.clone(), size, blake3: None };
        // Of two that bring the same pack either is right.
        shared.put(&pack_path(pack)?, content, Existing::Replace).await?;
        self.inner.damaged.forget(&pack.blake3);
        Ok(())
    }
}
