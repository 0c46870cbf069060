//! The shared origin: where nodes give bundles to each other. A directory or a bucket has
//!
//! ```text
//! packs/<blake3>.zst          a pack (zstd, seekable), by the digest of what it gives; of a bundle without one each of its files
//! bundles/<id>.json           a document
//! bundles/<id>.sig            its signature
//! keys/<engine key>.json      which bundle it is for a key
//! ```
//!
//! How they are written is in [`super::publishing`].
//!
//! Nothing of it is believed: a document is held against its id, its signature and the key it was asked for; a pack against the
//! document. Whoever may write there can take bundles away and put older ones back, and no more than that.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};

use super::config::Config;
use super::in_place::IN_PLACE_FILES_MOST;
use super::library::{Refusal, Refused};
use super::seekable::{Table, decompress};
use super::service::Engines;
use super::shelf;
use super::under_way::Counter;
use super::{EngineError, blocking};
use crate::base::ErrorKind;
use crate::base::lifecycle::CancellationToken;
use crate::digest::{GROUP_BYTES, Hash};
use crate::model::sink::{Content, Existing, Put, Sink, Stored};
use crate::model::source::{Origin, RemoteFile, SourceError, read_range};
use crate::model::{
    BUNDLE_DOCUMENT_LIMIT, Bundle, BundleId, FilePath, FlightKey, OriginId, Pack, Rights, SIGNATURE_LIMIT, Signature,
    Tenant,
};
use crate::origin::Origins;
use crate::store::{BlobHold, Partial, Store};
use crate::telemetry::metrics::Which;

/// The place.
#[derive(Clone, Debug)]
pub(super) struct Shared {
    sink: Arc<dyn Sink>,
    source: Arc<dyn Origin>,
    id: OriginId,
}

/// What is for a key.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pointer {
    pub(super) format: String,
    pub(super) version: u32,
    pub(super) key: Hash,
    pub(super) bundle: BundleId,
}

/// A bundle at the shared origin that may be restored, without its pack.
#[derive(Debug)]
pub(super) struct Offered {
    pub(super) bundle: Bundle,
    signature: Signature,
}

/// Nothing; a bundle that was fetched; or one that is refused, and why.
pub(super) type Fetched = Option<Result<(), Box<Refused>>>;

/// Tries of a request that fails for a moment, and the first wait between them.
const TRIES: u32 = 4;
const WAIT: Duration = Duration::from_millis(250);
/// Frames asked for with one request, and requests at once: 96 MiB of a pack under way, and as many connections as a bucket needs
/// to fill a link of some Gbit/s.
const FRAMES_A_REQUEST: usize = 4;
const REQUESTS: usize = 6;
/// Fetches of less say nothing of a rate.
const RATED: u64 = 8 << 20;
/// Between two looks whether the last frames of a fetch that has ended are written.
const STILL_WRITING: Duration = Duration::from_millis(2);
/// Largest pointer.
const POINTER_LIMIT: usize = 4096;

// === impl Shared ===

impl Shared {
    /// The place that is configured, if one is.
    pub(super) fn new(config: &Config, origins: &Origins) -> Result<Option<Self>, EngineError> {
        let wrong = |detail| EngineError::refused("engines.origin", detail);
        let Some(reference) = config.shared().map_err(wrong)? else { return Ok(None) };
        let (sink, source) = (origins.sink(&reference, &Rights::Own)?, origins.open(&reference, &Rights::Own)?);
        Ok(Some(Self { sink, source, id: origins.identity(&reference) }))
    }

    async fn head(&self, path: &FilePath) -> Result<Option<Stored>, SourceError> {
        again(|| self.sink.head(path)).await
    }

    fn remote(&self, path: &FilePath, stored: &Stored) -> RemoteFile {
        stored.remote(path, self.sink.locator(path))
    }

    async fn range(&self, file: &RemoteFile, range: std::ops::Range<u64>) -> Result<Vec<u8>, SourceError> {
        again(|| read_range(self.source.as_ref(), file, range.clone())).await
    }

    /// A small object, whole; `None` if it is not there.
    async fn small(&self, path: &FilePath, limit: usize) -> Result<Option<Vec<u8>>, EngineError> {
        let Some(stored) = self.head(path).await? else { return Ok(None) };
        if stored.size > limit as u64 {
            let detail = format!("it has {} bytes, the limit is {limit}", stored.size);
            return Err(EngineError::Corrupt { what: self.sink.locator(path), detail });
        }
        Ok(Some(self.range(&self.remote(path, &stored), 0..stored.size).await?))
    }

    /// The bundle that stands at a key.
    pub(super) async fn pointer(&self, key: &Hash) -> Result<Option<BundleId>, EngineError> {
        let path = path(format!("keys/{key}.json"))?;
        let Some(text) = self.small(&path, POINTER_LIMIT).await? else { return Ok(None) };
        let corrupt = |detail: String| EngineError::Corrupt { what: self.sink.locator(&path), detail };
        let pointer: Pointer = serde_json::from_slice(&text).map_err(|error| corrupt(error.to_string()))?;
        if (pointer.format.as_str(), pointer.version, pointer.key) != ("preheat-engine", 1, *key) {
            return Err(corrupt("it is not for this key, or of another format".to_owned()));
        }
        Ok(Some(pointer.bundle))
    }

    pub(super) async fn put(&self, path: &FilePath, content: Content, existing: Existing) -> Result<Put, EngineError> {
        Ok(self.sink.put(path, &content, existing, Arc::new(|_| {})).await?)
    }

    /// A pack's object and the table of its frames.
    ///
    /// # Errors
    /// `Corrupt` for one that is missing, or cannot be the pack by its size or its table.
    pub(super) async fn table(&self, pack: Pack) -> Result<(RemoteFile, Table), EngineError> {
        let path = pack_path(pack)?;
        let missing = || EngineError::Corrupt { what: self.sink.locator(&path), detail: "it is missing".to_owned() };
        let stored = self.head(&path).await?.ok_or_else(missing)?;
        let object = self.remote(&path, &stored);
        let length = Table::length(pack.size).min(stored.size);
        let tail = self.range(&object, stored.size - length..stored.size).await?;
        let table = Table::parse(&tail, stored.size, pack.size)?;
        Ok((object, table))
    }

    /// Fetches a pack into the store, going on where an earlier fetch broke off. Told to stop, it leaves what it has to the next.
    async fn fetch_pack(
        &self,
        store: &Store,
        pack: Pack,
        counter: &Counter,
        stop: &CancellationToken,
    ) -> Result<BlobHold, EngineError> {
        let object_path = pack_path(pack)?;
        let (object, table) = stop.run_until_cancelled(self.table(pack)).await.unwrap_or_else(|| Err(stopped()))?;
        let key = FlightKey::new(&Tenant::node(), &self.id, object_path.as_str(), "-", pack.size);
        let keeper = store.clone();
        let partial = blocking(move || {
            let reservation = keeper.reserve(keeper.cost_to_begin(&key, pack.size), &[key])?;
            Ok(Arc::new(keeper.begin(key, pack.size, &reservation)?))
        })
        .await?;
        if table.frames.is_empty() {
            let partial = Arc::clone(&partial);
            blocking(move || write_groups(&partial, 0, &[])).await?;
        }
        let missing = partial.missing();
        let is_missing = |frame: usize| {
            let raw = table.raw(frame);
            let groups = raw.start / GROUP_BYTES..raw.end.div_ceil(GROUP_BYTES);
            missing.iter().any(|run| run.start < groups.end && groups.start < run.end)
        };
        let frames: Vec<usize> = (0..table.frames.len()).filter(|frame| is_missing(*frame)).collect();
        let to_come: u64 = frames.iter().map(|frame| table.raw(*frame)).map(|raw| raw.end - raw.start).sum();
        counter.here(pack.size - to_come.min(pack.size));
        // Neighbours are asked for together.
        let requests = frames.chunk_by(|one, next| one + 1 == *next).flat_map(|run| run.chunks(FRAMES_A_REQUEST));
        let fetches = requests.map(|frames| self.fetch_frames(&object, &table, frames, &partial, counter));
        let fetches: Vec<_> = fetches.collect();
        let fetched = stop.run_until_cancelled(stream::iter(fetches).buffer_unordered(REQUESTS).try_collect::<()>());
        let fetched = fetched.await.unwrap_or_else(|| Err(stopped()));
        // What is being written is written, whoever waits: some frames, in milliseconds.
        while Arc::strong_count(&partial) > 1 {
            tokio::time::sleep(STILL_WRITING).await;
        }
        fetched?;
        let partial = Arc::into_inner(partial).ok_or(EngineError::Defect)?;
        blocking(move || Ok(partial.complete(Some(pack.blake3), &[])?)).await
    }

    async fn fetch_frames(
        &self,
        object: &RemoteFile,
        table: &Table,
        frames: &[usize],
        partial: &Arc<Partial>,
        counter: &Counter,
    ) -> Result<(), EngineError> {
        let (Some(first), Some(last)) = (frames.first(), frames.last()) else { return Ok(()) };
        let start = table.frames[*first].start;
        let bytes = self.range(object, start..table.frames[*last].end).await?;
        let pieces: Vec<_> = frames.iter().map(|frame| (table.frames[*frame].clone(), table.raw(*frame))).collect();
        let come: u64 = pieces.iter().map(|(_, raw)| raw.end - raw.start).sum();
        let partial = Arc::clone(partial);
        blocking(move || {
            for (packed, raw) in pieces {
                let frame = &bytes[(packed.start - start) as usize..(packed.end - start) as usize];
                let unpacked = decompress(frame, (raw.end - raw.start) as usize)?;
                write_groups(&partial, raw.start / GROUP_BYTES, &unpacked)?;
            }
            Ok(())
        })
        .await?;
        counter.came(come);
        Ok(())
    }
}

// === impl Engines ===

impl Engines {
    /// Brings what the shared origin has for a key to the node, for all who may ask it. Goes on when nobody waits any more.
    pub(super) async fn fetch(&self, scope: &Tenant, key: &Hash) -> Result<Fetched, EngineError> {
        let (engines, scope, key) = (self.clone(), scope.clone(), *key);
        let stop = self.inner.background.token();
        let fetch = self.inner.background.spawn("engine fetch", async move {
            let outcome = engines.fetch_now(&scope, &key, &stop).await;
            let which = match &outcome {
                Ok(None) => "absent",
                Ok(Some(Ok(()))) => "fetched",
                Ok(Some(Err(_))) => "refused",
                Err(_) => "failed",
            };
            engines.inner.metrics.engine_shared.get_or_create(&Which { which }).inc();
            outcome
        });
        fetch.await.ok().flatten().unwrap_or(Err(EngineError::Defect))
    }

    async fn fetch_now(&self, scope: &Tenant, key: &Hash, stop: &CancellationToken) -> Result<Fetched, EngineError> {
        let Some(shared) = &self.inner.shared else { return Ok(None) };
        let Some(turn) = stop.run_until_cancelled(self.turn(&Tenant::node(), key)).await else { return Err(stopped()) };
        let _turn = turn;
        let pointed = stop.run_until_cancelled(shared.pointer(key)).await;
        let Some(id) = pointed.unwrap_or_else(|| Err(stopped()))? else { return Ok(None) };
        let here = shelf::records(&self.inner.store, &[Tenant::node()], Some(key));
        if here.iter().any(|model| shelf::id_of(model) == Some(id)) {
            // Somebody else has fetched it while we waited; what there is against it has been said.
            return Ok(Some(Ok(())));
        }
        let refused = |why| Ok(Some(Err(Box::new(Refused { bundle: None, id: Some(id), why }))));
        let offered = stop.run_until_cancelled(self.offered(shared, key, id)).await;
        let Offered { bundle, signature } = match offered.unwrap_or_else(|| Err(stopped()))? {
            Ok(offered) => offered,
            Err(why) => return refused(why),
        };
        let (limit, size) = (self.inner.policy.config().bundle_bytes_max.0, bundle.manifest.total_bytes());
        if size > limit {
            return refused(Refusal::TooLarge { bytes: size, limit });
        }
        let packs = bundle.packs();
        if packs.len() > IN_PLACE_FILES_MOST {
            let detail = format!("it is used in place and has more than {IN_PLACE_FILES_MOST} files");
            return refused(Refusal::Unavailable { detail });
        }
        let _claim = match self.inner.claim(scope, &Tenant::node(), key, size) {
            Ok(claim) => claim,
            Err(over) => return refused(Refusal::Unavailable { detail: over.to_string() }),
        };
        let begun = std::time::Instant::now();
        let listed = self.inner.fetching.begin(*key, size);
        let blobs = match self.fetch_packs(shared, packs, &listed.counter, stop).await {
            Ok(blobs) => {
                // Small ones say more of latency than of the rate.
                if size >= RATED {
                    let rate = size as f64 / begun.elapsed().as_secs_f64().max(0.001);
                    self.inner.rate.store(rate as u64, Ordering::Relaxed);
                }
                blobs
            }
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                return refused(Refusal::Corrupt { detail: error.to_string() });
            }
            Err(error) => return Err(error),
        };
        let (engines, scope, key) = (self.clone(), scope.clone(), *key);
        blocking(move || {
            let store = &engines.inner.store;
            shelf::put(store, &Tenant::node(), Some(&scope), &bundle, Some(&signature), blobs)?;
            engines.keep_versions(&Tenant::node(), &key);
            Ok(Some(Ok(())))
        })
        .await
    }

    /// One after the other: each is asked for over several connections.
    async fn fetch_packs(
        &self,
        shared: &Shared,
        packs: Vec<Pack>,
        counter: &Counter,
        stop: &CancellationToken,
    ) -> Result<Vec<BlobHold>, EngineError> {
        let mut blobs = Vec::with_capacity(packs.len());
        for pack in packs {
            let fetched = shared.fetch_pack(&self.inner.store, pack, counter, stop).await;
            blobs.push(fetched.inspect_err(|error| {
                if error.kind() == ErrorKind::Corrupt {
                    self.inner.damaged.note(pack.blake3);
                }
            })?);
        }
        Ok(blobs)
    }

    /// The size of the bundle that the shared origin has for a key, if it may be restored.
    pub(super) async fn size_at_origin(&self, key: &Hash) -> Result<Option<u64>, EngineError> {
        let Some(shared) = &self.inner.shared else { return Ok(None) };
        let Some(id) = shared.pointer(key).await? else { return Ok(None) };
        let offered = self.offered(shared, key, id).await?;
        Ok(offered.ok().map(|offered| offered.bundle.manifest.total_bytes()))
    }

    /// The document and signature of a bundle at the shared origin, checked.
    pub(super) async fn offered(
        &self,
        shared: &Shared,
        key: &Hash,
        id: BundleId,
    ) -> Result<Result<Offered, Refusal>, EngineError> {
        let corrupt = |detail: String| Ok(Err(Refusal::Corrupt { detail }));
        let document = shared.small(&path(format!("bundles/{id}.json"))?, BUNDLE_DOCUMENT_LIMIT).await?;
        let Some(document) = document else { return corrupt(format!("document {id} is missing")) };
        if BundleId::of(&document) != id {
            return corrupt(format!("document {id} hashes to {}", BundleId::of(&document)));
        }
        let signature = shared.small(&path(format!("bundles/{id}.sig"))?, SIGNATURE_LIMIT).await?;
        let signature = match signature.map(|text| Signature::parse(&text)).transpose() {
            Ok(signature) => signature,
            Err(error) => return Ok(Err(Refusal::BadSignature { detail: error.to_string() })),
        };
        // Before anything in the document is looked at.
        if let Err(why) = self.inner.policy.vouched(id, &document, signature.as_ref()) {
            return Ok(Err(why));
        }
        let Some(signature) = signature else { return Ok(Err(Refusal::Unsigned)) };
        let bundle = match Bundle::parse(&document) {
            Ok(bundle) => bundle,
            Err(error) => return corrupt(error.to_string()),
        };
        if bundle.key.digest() != *key {
            return Ok(Err(Refusal::OtherKey { key: bundle.key.digest().to_string() }));
        }
        Ok(Ok(Offered { bundle, signature }))
    }
}

/// The node stops, or a command gives its store back: what has come stays for the next.
fn stopped() -> EngineError {
    EngineError::Timeout { what: "fetching from the shared origin".to_owned() }
}

/// Writes consecutive groups and notes them as received. Blocking.
fn write_groups(partial: &Partial, first: u64, bytes: &[u8]) -> Result<(), EngineError> {
    let groups = bytes.chunks(GROUP_BYTES as usize).chain(bytes.is_empty().then_some(bytes));
    for (index, group) in (first..).zip(groups) {
        let cv = partial.write_group(index, group)?;
        partial.received(index, &[cv])?;
    }
    Ok(())
}

pub(super) fn pack_path(pack: Pack) -> Result<FilePath, EngineError> {
    path(format!("packs/{}.zst", pack.blake3))
}

pub(super) fn path(text: String) -> Result<FilePath, EngineError> {
    FilePath::new(text).map_err(|error| EngineError::refused("engines.origin", error.to_string()))
}

/// Tries again what fails for a moment.
async fn again<T, F>(mut call: impl FnMut() -> F) -> Result<T, SourceError>
where
    F: Future<Output = Result<T, SourceError>>,
{
    let mut wait = WAIT;
    for _ in 1..TRIES {
        match call().await {
            Err(error) if error.kind().is_retryable() => {}
            outcome => return outcome,
        }
        tokio::time::sleep(wait).await;
        wait *= 2;
    }
    call().await
}
