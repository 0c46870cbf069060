//! Publishing a directory into an origin, so that a pull can prove any group of it alone.
//!
//! Files go first, then their outboards, and the manifest last: a reader who finds the manifest finds all that it names. Nothing
//! is sent that can be shown to be there already ([`super::published`]), so a push that was killed goes on by running it again: it
//! sends what had not come whole. Resuming inside a file was turned down: the identity of a half-sent upload lives in the memory
//! of the process, and a journal of it would be a second truth to hold against the place.
//!
//! While an older model is being replaced, its manifest names files that change under it: readers are told by name and get
//! nothing wrong. Whoever cannot have that pushes to a new place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::published::{Place, blocking, file_path};
use super::{Directory, HashedFile, PlacementError};
use crate::base::lifecycle::CancellationToken;
use crate::digest::{Hash, group_count};
use crate::model::sink::{Content, Existing, Put, Sent, Sink};
use crate::model::source::RangeSource;
use crate::model::{FilePath, Manifest, outboard_path};

/// A push.
#[derive(Debug)]
pub struct Push {
    /// What.
    pub directory: Directory,
    /// Where to, safe to print.
    pub destination: String,
    /// The place, to be written.
    pub sink: Arc<dyn Sink>,
    /// The same place, to be read.
    pub source: Arc<dyn RangeSource>,
    /// Reading the place costs no more than writing it: a directory.
    pub is_near: bool,
    /// Overwrite another model; over the same one, send all of it again, whatever the place says that it has.
    pub replace: bool,
    /// Find out only.
    pub dry_run: bool,
    /// Written by the push, read by whoever wants to know.
    pub progress: Arc<PushProgress>,
    /// Calls it off.
    pub cancel: CancellationToken,
}

/// How far a push is, in bytes.
#[derive(Debug, Default)]
pub struct PushProgress {
    /// Of the directory.
    pub bytes: AtomicU64,
    /// Hashed of them.
    pub hashed: AtomicU64,
    /// To be sent; zero until that is known.
    pub to_send: AtomicU64,
    /// Sent.
    pub sent: AtomicI64,
}

/// What a push did, or would do.
#[derive(Clone, Debug)]
pub struct Pushed {
    /// The digest of the manifest that is there now.
    pub manifest: Hash,
    /// Files of the model.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes sent: files, outboards and manifest. Of a dry run: that would be.
    pub uploaded_bytes: u64,
    /// Files that were there.
    pub skipped_files: u64,
}

/// What is to be sent.
struct Plan {
    files: Vec<(HashedFile, Existing)>,
    outboards: Vec<(FilePath, bytes::Bytes, Existing)>,
    manifest: Option<Existing>,
}

/// Questions under way at once.
const QUESTIONS: usize = 16;
/// Files under way at once. Each is sent in parts, several at a time; with more files nothing goes faster and a kill costs more.
const FILES: usize = 4;
/// Outboards under way at once: small, so bound by latency.
const OUTBOARDS: usize = 8;

// === impl Push ===

impl Push {
    /// Publishes.
    ///
    /// # Errors
    /// [`PlacementError`]; what was sent whole stays.
    pub async fn run(self) -> Result<Pushed, PlacementError> {
        let cancel = self.cancel.clone();
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(PlacementError::Cancelled),
            outcome = self.publish() => outcome,
        }
    }

    async fn publish(self) -> Result<Pushed, PlacementError> {
        let files = self.hash().await?;
        let mut ours = HashedFile::manifest(&files)?;
        if files.iter().any(has_outboard) {
            ours = ours.with_outboards(file_path(Manifest::OUTBOARDS)?);
        }
        let place = Place { sink: Arc::clone(&self.sink), source: Arc::clone(&self.source), is_near: self.is_near };
        let theirs = place.manifest().await?;
        let same = matches!(&theirs, Some(Ok(theirs)) if theirs.digest() == ours.digest());
        if let Some(theirs) = theirs.as_ref().filter(|_| !same && !self.replace) {
            let theirs = match theirs {
                Ok(theirs) => format!("manifest {}", theirs.digest()),
                Err(why) => format!("a manifest that cannot be read ({why})"),
            };
            let (destination, ours) = (self.destination.clone(), ours.digest().to_string());
            return Err(PlacementError::OtherManifest { destination, theirs, ours });
        }
        let json = ours.to_json();
        let (count, bytes) = (files.len() as u64, ours.total_bytes());
        let plan = Plan {
            outboards: self.outboards(&place, &files).await?,
            files: self.missing(&place, files, same).await?,
            manifest: match &theirs {
                None => Some(Existing::Keep),
                Some(Ok(theirs)) if same && theirs.outboards() == ours.outboards() => None,
                Some(_) => Some(Existing::Replace),
            },
        };
        let to_send = plan.bytes(json.len());
        self.progress.to_send.store(to_send, Ordering::Relaxed);
        let mut done = Pushed {
            manifest: ours.digest(),
            files: count,
            bytes,
            uploaded_bytes: to_send,
            skipped_files: count - plan.files.len() as u64,
        };
        if !self.dry_run {
            self.send(&place, plan, json, &ours).await?;
            done.uploaded_bytes = self.progress.sent.load(Ordering::Relaxed).try_into().unwrap_or(0);
        }
        Ok(done)
    }

    async fn hash(&self) -> Result<Vec<HashedFile>, PlacementError> {
        self.progress.bytes.store(self.directory.bytes(), Ordering::Relaxed);
        let (directory, progress) = (self.directory.clone(), Arc::clone(&self.progress));
        // Its threads see the token; this future is dropped before them.
        let cancel = self.cancel.clone();
        let count = move |bytes| {
            progress.hashed.fetch_add(bytes, Ordering::Relaxed);
        };
        blocking(move || directory.hash(&count, &cancel)).await
    }

    /// The files that are not there. `same`: the manifest that is there is ours.
    async fn missing(
        &self,
        place: &Place,
        files: Vec<HashedFile>,
        same: bool,
    ) -> Result<Vec<(HashedFile, Existing)>, PlacementError> {
        let asked = files.into_iter().map(|file| async move {
            let needed = self.needed(place, &file, same).await?;
            Ok::<_, PlacementError>(needed.map(|existing| (file, existing)))
        });
        let needed: Vec<_> = stream::iter(asked).buffered(QUESTIONS).try_collect().await?;
        Ok(needed.into_iter().flatten().collect())
    }

    /// How a file is to be sent; `None`: it is there.
    async fn needed(&self, place: &Place, file: &HashedFile, same: bool) -> Result<Option<Existing>, PlacementError> {
        let Some(stored) = place.head(&file.path).await? else { return Ok(Some(Existing::Keep)) };
        // Over the same model: a pull has found wrong what the place takes to be right.
        if same && self.replace {
            return Ok(Some(Existing::Replace));
        }
        match place.is_file(file, &self.directory.place.join(&file.path), &stored).await? {
            Some(true) => Ok(None),
            // Ours is to be there by the manifest: what is there has been spoilt.
            Some(false) if same || self.replace => Ok(Some(Existing::Replace)),
            Some(false) => Err(self.other(&file.path)),
            None if same => Ok(None),
            // Nothing shows what it is, but its length: most likely a push that was killed.
            None => Ok(Some(Existing::Replace)),
        }
    }

    /// The outboards that are not there. What is there is read: a wrong one proves nothing and helps nobody.
    async fn outboards(
        &self,
        place: &Place,
        files: &[HashedFile],
    ) -> Result<Vec<(FilePath, bytes::Bytes, Existing)>, PlacementError> {
        let directory = file_path(Manifest::OUTBOARDS)?;
        let distinct: BTreeMap<Hash, &HashedFile> =
            files.iter().filter(|file| has_outboard(file)).map(|file| (file.blake3(), file)).collect();
        let asked = distinct.into_iter().filter_map(|(hash, file)| Some((outboard_path(&directory, &hash)?, file)));
        let asked = asked.map(|(path, file)| async move {
            let bytes = bytes::Bytes::from(file.outboard.to_bytes());
            let existing = match place.is_exactly(&path, &bytes).await? {
                Some(true) => return Ok(None),
                Some(false) => Existing::Replace,
                None => Existing::Keep,
            };
            Ok::<_, PlacementError>(Some((path, bytes, existing)))
        });
        let asked: Vec<_> = stream::iter(asked).buffered(QUESTIONS).try_collect().await?;
        Ok(asked.into_iter().flatten().collect())
    }

    async fn send(&self, place: &Place, plan: Plan, json: Vec<u8>, ours: &Manifest) -> Result<(), PlacementError> {
        let files = plan.files.into_iter().map(|(file, existing)| self.send_file(place, file, existing));
        stream::iter(files).buffer_unordered(FILES).try_collect::<()>().await?;
        let outboards = plan.outboards.into_iter().map(|(path, bytes, existing)| async move {
            // Somebody who was faster has put the same there.
            self.sink.put(&path, &Content::Bytes(bytes), existing, self.sent()).await.map(|_| ())
        });
        stream::iter(outboards).buffer_unordered(OUTBOARDS).try_collect::<()>().await?;
        let Some(existing) = plan.manifest else { return Ok(()) };
        let path = file_path(Manifest::FILE_NAME)?;
        match self.sink.put(&path, &Content::Bytes(json.into()), existing, self.sent()).await? {
            Put::Created => Ok(()),
            Put::Existed => match place.manifest().await? {
                Some(Ok(theirs)) if theirs.digest() == ours.digest() => Ok(()),
                theirs => Err(PlacementError::OtherManifest {
                    destination: self.destination.clone(),
                    theirs: match theirs {
                        Some(Ok(theirs)) => format!("manifest {}", theirs.digest()),
                        _ => "one that was published meanwhile".to_owned(),
                    },
                    ours: ours.digest().to_string(),
                }),
            },
        }
    }

    async fn send_file(&self, place: &Place, file: HashedFile, existing: Existing) -> Result<(), PlacementError> {
        let local = self.directory.place.join(&file.path);
        file.check_unchanged(&local)?;
        let content = Content::File { path: local.clone(), size: file.size, blake3: Some(file.blake3()) };
        let put = self.sink.put(&file.path, &content, existing, self.sent()).await?;
        // What was sent is what was hashed, or the manifest would be wrong.
        file.check_unchanged(&local)?;
        // Somebody was faster: with the same, one hopes.
        if put == Put::Existed && self.needed(place, &file, false).await?.is_some() {
            return Err(self.other(&file.path));
        }
        Ok(())
    }

    fn other(&self, path: &FilePath) -> PlacementError {
        PlacementError::OtherObject { destination: self.destination.clone(), path: path.clone() }
    }

    fn sent(&self) -> Sent {
        let progress = Arc::clone(&self.progress);
        Arc::new(move |bytes| {
            progress.sent.fetch_add(bytes, Ordering::Relaxed);
        })
    }
}

// === impl Plan ===

impl Plan {
    fn bytes(&self, manifest: usize) -> u64 {
        let files: u64 = self.files.iter().map(|(file, _)| file.size).sum();
        let outboards: usize = self.outboards.iter().map(|(_, bytes, _)| bytes.len()).sum();
        files + outboards as u64 + self.manifest.map_or(0, |_| manifest as u64)
    }
}

/// A file of one group is proved by its name.
fn has_outboard(file: &HashedFile) -> bool {
    group_count(file.size) > 1
}
