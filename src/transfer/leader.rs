//! What a flight does from its first request to its blob: begin or resume the partial, hand it to the schedule, follow with the
//! origin's digests, sync now and then, compare, complete.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::digests::{self, Mismatch};
use super::flight::{Errand, Flight, Flights};
use super::gear::Gear;
use super::pump::{FileSource, Pump};
use super::schedule::{FileId, NewFile, Outcome, Shape};
use super::sink::{LargeSink, OutboardSink, Sink, SmallSink, Use};
use super::{Priority, TransferError};
use crate::base::lifecycle::supervise;
use crate::digest::{GROUP_BYTES, Hash, Outboard, group_count};
use crate::model::FlightKey;
use crate::model::source::{RemoteFile, Validator};
use crate::store::{BlobHold, Partial, StoreError};
use crate::sys::mutant::mutant;
use crate::telemetry::metrics::Which;

/// The task of one flight.
pub(super) struct Leader {
    pub(super) gear: Arc<Gear>,
    pub(super) pump: Pump,
    pub(super) flight: Arc<Flight>,
    /// To be waited for before the first byte is asked for.
    pub(super) go: Option<CancellationToken>,
    /// The process is ending.
    pub(super) drain: CancellationToken,
}

/// How one attempt ended short of a blob.
enum Short {
    /// For good.
    Failed(TransferError),
    /// The bytes are not what was declared; they are gone.
    Mismatched(TransferError),
    /// The response broke, and what had arrived could not be kept; it is gone.
    Broken(TransferError),
}

/// A partial and everything that goes with fetching it.
struct Fetching<'a> {
    leader: &'a Leader,
    sink: Arc<LargeSink>,
    answer: oneshot::Receiver<Outcome<TransferError>>,
}

/// Longest outboard that is held in memory: of a file of 512 GiB. Files beyond are checked at the end.
const OUTBOARD_BYTES: u64 = 16 << 20;
/// How often the need for a sync is looked at.
const SYNC_CHECK: Duration = Duration::from_millis(500);

// === impl Leader ===

impl Leader {
    /// Runs the flight to its end, which `flights` then tells everybody.
    pub(super) async fn run(self, flights: Arc<Flights>) {
        self.gear.metrics.flights.inc();
        let outcome = supervise("flight", Box::pin(self.attempts())).await.unwrap_or_else(|panicked| {
            tracing::error!(task = panicked.task, message = %panicked.message, "task panicked");
            Err(TransferError::Defect { task: panicked.task, detail: panicked.message })
        });
        self.gear.metrics.flights.dec();
        flights.end(&self.flight, outcome);
    }

    /// Attempts until one succeeds, or fails in a way that another cannot mend.
    async fn attempts(&self) -> Result<BlobHold, TransferError> {
        let (mut mismatches, mut breaks) = (0, 0);
        if let Some(go) = &self.go {
            go.cancelled().await;
        }
        loop {
            // Whoever began it may have found a reason not to, before a byte was asked for.
            if self.drain.is_cancelled() || self.flight.close_if_idle() {
                return Err(TransferError::Cancelled);
            }
            match self.attempt(mismatches + breaks).await {
                Ok(hold) => return Ok(hold),
                Err(Short::Failed(error)) => return Err(error),
                Err(Short::Mismatched(error)) => {
                    self.gear.metrics.corrupt.get_or_create(&Which { which: "origin" }).inc();
                    mismatches += 1;
                    if mismatches > 1 {
                        return Err(error);
                    }
                    tracing::warn!(%error, "bytes of an origin are not what it declares; fetching them once more");
                }
                Err(Short::Broken(error)) => {
                    breaks += 1;
                    if breaks >= self.gear.config.retry_attempts {
                        return Err(error);
                    }
                    tracing::debug!(%error, "starting over");
                }
            }
            self.flight.flow.start_over();
        }
    }

    async fn attempt(&self, number: u32) -> Result<BlobHold, Short> {
        let remote = &self.flight.errand.remote;
        let errand = self.flight.errand.clone();
        // A small file that came wrong comes again group by group, where that can tell which one it is.
        let whole = remote.size <= self.gear.small_bytes && (number == 0 || remote.outboard.is_none());
        // Somebody may have completed it between the plan and now. Asking that of a small file costs as much as fetching it.
        if (!whole || number > 0)
            && let Some(hold) = self.gear.ask(&remote.path, move |store| Ok(errand.find(store))).await?
        {
            self.flight.flow.verified(hold.size);
            return Ok(hold);
        }
        let key = self.flight.errand.key_for_store(number);
        if whole { self.small(key).await } else { self.large(key).await }
    }

    async fn small(&self, key: FlightKey) -> Result<BlobHold, Short> {
        let remote = &self.flight.errand.remote;
        let sink = Arc::new(SmallSink {
            key,
            declared: remote.declared.clone(),
            expected: remote.blake3,
            reservation: Arc::clone(&self.flight.reservation),
            stored: std::sync::OnceLock::new(),
        });
        let new = self.new_file(Shape::Whole, std::iter::once(0..group_count(remote.size)).collect());
        let answer = self.pump.add(new, self.source(remote, Sink::Small(Arc::clone(&sink)))).await;
        match self.outcome(self.flight.file, answer).await {
            Outcome::Done => sink.stored.get().cloned().ok_or_else(|| defect("stored nothing").into()),
            Outcome::Failed(error @ TransferError::WrongDigest { .. }) => Err(Short::Mismatched(error)),
            Outcome::Failed(error) | Outcome::Broken(error) => Err(Short::Failed(error)),
            Outcome::Removed => Err(TransferError::Cancelled.into()),
        }
    }

    async fn large(&self, key: FlightKey) -> Result<BlobHold, Short> {
        let remote = Arc::clone(&self.flight.errand.remote);
        let (size, reservation) = (remote.size, Arc::clone(&self.flight.reservation));
        let outboard = self.outboard().await?;
        let partial = self.gear.ask(&remote.path, move |store| store.begin(key, size, &reservation)).await?;
        if let Some(outboard) = &outboard {
            partial.hold_against(outboard);
        }
        let absent: u64 = partial.missing().iter().map(|run| bytes_of(run, size)).sum();
        self.flight.flow.verified(size - absent);
        let (partial, outboard) = self.share(partial, outboard).await?;
        let (partial, users) = (Arc::new(partial), TaskTracker::new());
        let missing = partial.missing();
        let of = Use::new(Arc::clone(&partial), users.token());
        let sink = Arc::new(LargeSink::new(of, &remote.declared, outboard, &missing));
        let shape = if self.flight.errand.is_steady() { Shape::Ranges } else { Shape::Sequential };
        let answer =
            self.pump.add(self.new_file(shape, missing), self.source(&remote, Sink::Large(Arc::clone(&sink)))).await;
        let fetching = Fetching { leader: self, sink, answer };
        let outcome = Box::pin(fetching.run()).await;
        if outcome.is_err() {
            // It may have failed beside the schedule, which then still has the file.
            self.pump.remove(self.flight.file).await;
        }
        users.close();
        users.wait().await;
        let Some(partial) = Arc::into_inner(partial) else { return Err(defect("a partial is still in use").into()) };
        self.conclude(partial, outcome).await
    }

    /// Takes the bytes from a file of this machine, where the origin knows one and the file system can share blocks.
    async fn share(
        &self,
        partial: Partial,
        outboard: Option<Outboard>,
    ) -> Result<(Partial, Option<Outboard>), TransferError> {
        let Errand { remote, origin, .. } = self.flight.errand.clone();
        let (path, flow) = (remote.path.clone(), Arc::clone(&self.flight.flow));
        let share = move |_: &_| {
            let mut problem = None;
            match origin.local(&remote) {
                Ok(None) => {}
                Ok(Some(file)) => {
                    let shared = partial.share(&file, outboard.as_ref(), &|bytes| flow.verified(bytes))?;
                    // What was shared before a change that is seen now may be either version.
                    problem = if shared { origin.local(&remote).err() } else { None };
                }
                Err(error) => problem = Some(error),
            }
            Ok((partial, outboard, problem))
        };
        match self.gear.ask(&path, share).await? {
            (partial, outboard, None) => Ok((partial, outboard)),
            (partial, _, Some(error)) => {
                self.gear.ask(&path, move |_| partial.discard()).await?;
                Err(TransferError::source(&path, error))
            }
        }
    }

    /// Turns a partial that nobody uses any more into what the outcome says.
    async fn conclude(&self, partial: Partial, outcome: Result<(), Short>) -> Result<BlobHold, Short> {
        let remote = Arc::clone(&self.flight.errand.remote);
        match outcome {
            Ok(()) => {
                let path = remote.path.clone();
                let complete = move |_: &_| {
                    // Compared before; this binds it.
                    let expected = remote.blake3.filter(|_| !mutant("final_digest_skipped"));
                    partial.complete(expected, &remote.declared)
                };
                Ok(self.gear.ask(&path, complete).await?)
            }
            Err(short) => {
                let keep = matches!(&short, Short::Failed(error) if !error.is_change() && self.flight.errand.is_versioned())
                    && !self.flight.is_forgotten();
                let end = move |_: &_| if keep { keep_partial(partial) } else { partial.discard() };
                // What arrived is kept as well as can be; why the flight ended is what matters.
                if let Err(error) = self.gear.ask(&remote.path, end).await {
                    tracing::debug!(%error, "a partial was left as it is");
                }
                Err(short)
            }
        }
    }

    /// Waits for the schedule, and takes the file out of it when nobody waits for it any more.
    async fn outcome(
        &self,
        file: FileId,
        mut answer: oneshot::Receiver<Outcome<TransferError>>,
    ) -> Outcome<TransferError> {
        let gone = || Outcome::Failed(defect("the schedule is gone"));
        tokio::select! {
            outcome = &mut answer => return outcome.unwrap_or_else(|_| gone()),
            () = self.abandoned(file) => {}
        }
        self.pump.remove(file).await;
        answer.await.unwrap_or_else(|_| gone())
    }

    /// Returns when nobody has waited for the flight for a while, or the process ends. Meanwhile it tells the schedule who waits.
    async fn abandoned(&self, file: FileId) {
        let mut interest = self.flight.interest.subscribe();
        let mut class = None;
        loop {
            let now = interest.borrow_and_update().class();
            if let Some(now) = now.filter(|now| class != Some(*now)) {
                class = Some(now);
                self.pump.reclass(file, now).await;
            }
            let linger = async {
                match now {
                    Some(_) => std::future::pending().await,
                    None => tokio::time::sleep(self.gear.config.linger.0).await,
                }
            };
            tokio::select! {
                () = self.drain.cancelled() => {
                    self.flight.close();
                    return;
                }
                // Never an error: the flight has the other end.
                _ = interest.changed() => {}
                () = linger => if self.flight.close_if_idle() {
                    return;
                }
            }
        }
    }

    fn new_file(&self, shape: Shape, missing: Vec<std::ops::Range<u64>>) -> NewFile {
        let Errand { remote, lane, .. } = &self.flight.errand;
        NewFile {
            id: self.flight.file,
            lane: *lane,
            class: self.flight.class(),
            groups: group_count(remote.size),
            missing,
            shape,
            steady: self.flight.errand.is_steady(),
            ordered: remote.declared.iter().any(|one| one.algorithm.crc().is_none()),
        }
    }

    fn source(&self, remote: &Arc<RemoteFile>, sink: Sink) -> FileSource {
        let class: Priority = self.flight.class();
        let origin = Arc::clone(&self.flight.errand.origin);
        FileSource::new(origin, Arc::clone(remote), sink, Arc::clone(&self.flight.flow), class)
    }

    /// The file's outboard, where the origin keeps one that proves itself. Without it, bytes are checked when all are here.
    async fn outboard(&self) -> Result<Option<Outboard>, TransferError> {
        let remote = &self.flight.errand.remote;
        let Some((wanted, root)) = outboard_of(remote) else { return Ok(None) };
        let sink = Arc::new(OutboardSink { size: remote.size, root, come: std::sync::OnceLock::new() });
        let groups = group_count(wanted.size);
        let new = NewFile {
            id: self.flight.outboard,
            groups,
            ..self.new_file(Shape::Whole, std::iter::once(0..groups).collect())
        };
        let answer = self.pump.add(new, self.source(&Arc::new(wanted), Sink::Outboard(Arc::clone(&sink)))).await;
        let why = match self.outcome(self.flight.outboard, answer).await {
            Outcome::Done => match sink.come.get() {
                Some(Ok(outboard)) => return Ok(Some(outboard.clone())),
                _ => "it does not prove the digest of the manifest".to_owned(),
            },
            Outcome::Failed(error) | Outcome::Broken(error) => error.to_string(),
            Outcome::Removed => return Err(TransferError::Cancelled),
        };
        tracing::warn!(file = %remote.path, why, "the outboard at the origin is of no use: bytes are checked at the end only");
        Ok(None)
    }
}

// === impl Fetching ===

impl Fetching<'_> {
    /// Until everything is here and compared. Uses of the partial end with it.
    async fn run(self) -> Result<(), Short> {
        let Self { leader, sink, answer } = self;
        let arriving = async {
            match leader.outcome(leader.flight.file, answer).await {
                Outcome::Done => Ok(()),
                Outcome::Failed(error) => Err(Short::Failed(error)),
                Outcome::Broken(error) => Err(Short::Broken(error)),
                Outcome::Removed => Err(TransferError::Cancelled.into()),
            }
        };
        let all = async { tokio::try_join!(arriving, leader.follow(&sink)) };
        tokio::select! {
            outcome = all => drop(outcome?),
            short = leader.sync_now_and_then(&sink) => return Err(short),
        }
        leader.compare(sink).await
    }
}

impl Leader {
    /// Computes the sequential digests of what came out of order, behind the front of what has arrived; compares when all has.
    async fn follow(&self, sink: &Arc<LargeSink>) -> Result<(), Short> {
        let Some(sequence) = &sink.sequence else { return Ok(()) };
        let remote: &RemoteFile = &self.flight.errand.remote;
        let mut front = sink.contiguous.subscribe();
        loop {
            let marked = |groups: &u64| (groups * GROUP_BYTES).min(remote.size);
            let due = |groups: &u64| marked(groups) == remote.size || marked(groups) > sequence.position();
            let end = match front.wait_for(due).await {
                Ok(groups) => marked(&groups),
                Err(_) => return Err(defect("a file lost its front").into()),
            };
            if end == remote.size && sequence.position() == end {
                return self.judge(sequence.finish());
            }
            let sink = Arc::clone(sink);
            let work = move || sink.sequence.as_ref().map_or(Ok(()), |sequence| sequence.advance(&sink.of, end));
            let outcome = self.gear.digest.run(work).await.map_err(|error| defect(&error.to_string()))?;
            outcome.map_err(|error| TransferError::store(&remote.path, error))?;
        }
    }

    /// Compares what is computed at the end: CRCs, and the root that a manifest names.
    async fn compare(&self, sink: Arc<LargeSink>) -> Result<(), Short> {
        let remote = Arc::clone(&self.flight.errand.remote);
        let work = move || {
            let checked = sink.crcs.check(&sink.of)?;
            let root = sink.of.root();
            Ok::<_, StoreError>(
                checked.and_then(|()| root.map_or(Ok(()), |root| digests::check_root(remote.blake3, root))),
            )
        };
        let checked = self.gear.digest.run(work).await.map_err(|error| defect(&error.to_string()))?;
        self.judge(checked.map_err(|error| TransferError::store(&self.flight.errand.remote.path, error))?)
    }

    fn judge(&self, checked: Result<(), Mismatch>) -> Result<(), Short> {
        match checked {
            Err(mismatch) if !mutant("final_digest_skipped") => {
                Err(Short::Mismatched(TransferError::wrong_digest(&self.flight.errand.remote.path, mismatch)))
            }
            _ => Ok(()),
        }
    }

    /// Syncs the partial after so many bytes or so much time, beside the transfer. Returns only with an error.
    async fn sync_now_and_then(&self, sink: &Arc<LargeSink>) -> Short {
        let config = &self.gear.config;
        let (mut synced, mut at) = (self.flight.flow.verified_bytes(), tokio::time::Instant::now());
        loop {
            tokio::time::sleep(SYNC_CHECK).await;
            let here = self.flight.flow.verified_bytes();
            let due = here - synced.min(here) >= config.sync_bytes.0 || at.elapsed() >= config.sync_every.0;
            if !due || here <= synced {
                continue;
            }
            let of = sink.of.clone();
            let outcome = self.gear.sync(&self.flight.errand.remote.path, move || of.sync()).await;
            if let Err(error) = outcome {
                return error.into();
            }
            (synced, at) = (here, tokio::time::Instant::now());
        }
    }
}

// === impl Short ===

impl From<TransferError> for Short {
    fn from(error: TransferError) -> Self {
        Self::Failed(error)
    }
}

/// What to ask for to have the outboard of a file, and the root that it has to prove.
fn outboard_of(remote: &RemoteFile) -> Option<(RemoteFile, Hash)> {
    let (locator, root) = (remote.outboard.clone()?, remote.blake3?);
    let size = Outboard::length(remote.size);
    let mut wanted = RemoteFile { size, locator, validator: Validator::None, outboard: None, ..remote.clone() };
    (wanted.declared, wanted.blake3) = (Vec::new(), None);
    (size <= OUTBOARD_BYTES).then_some((wanted, root))
}

/// Makes what has arrived last, then lets go of it.
fn keep_partial(partial: Partial) -> Result<(), StoreError> {
    let outcome = partial.sync();
    drop(partial);
    outcome
}

fn bytes_of(groups: &std::ops::Range<u64>, size: u64) -> u64 {
    (groups.end * GROUP_BYTES).min(size) - (groups.start * GROUP_BYTES).min(size)
}

fn defect(detail: &str) -> TransferError {
    TransferError::Defect { task: "flight", detail: detail.to_owned() }
}
