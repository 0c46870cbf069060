//! One connection at work on one part: bytes are read into a buffer of one group, and a thread hashes and writes that while
//! the next group is being received. Two groups are under way to the disk at most; then receiving waits, and the origin feels it
//! through the window of its connection.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::digests;
use super::error::{Remedy, TransferError};
use super::gear::Gear;
use super::pump::{FileSource, Reporter};
use super::schedule::{Order, PartEnd};
use super::sink::{LargeSink, OutboardSink, Sink, SmallSink};
use super::span::Span;
use super::stall::Patience;
use super::tally::Tally;
use crate::base::ErrorKind;
use crate::digest::{GROUP_BYTES, GroupCv, Outboard, group_range};
use crate::model::body::Body;
use crate::model::source::{RangeBody, SourceError};
use crate::store::StoreError;
use crate::sys::hands::WorkPanicked;
use crate::sys::mutant::mutant;
use crate::telemetry::metrics::Which;

/// A part under way.
pub(super) struct Stream {
    pub(super) gear: Arc<Gear>,
    pub(super) file: Arc<FileSource>,
    pub(super) order: Order,
    pub(super) span: Arc<Span>,
    /// Ends it after what it has claimed.
    pub(super) abort: CancellationToken,
    /// Bytes received and silence, for the schedule's ticks.
    pub(super) tally: Arc<Tally>,
    pub(super) reporter: Reporter,
}

/// Why a body was left.
enum Left {
    Aborted,
    Failed(TransferError),
}

/// The body, and how far it has come.
struct Arriving {
    bytes: Box<dyn Body>,
    /// The origin has answered with the range that was asked for, and not with the whole file.
    ranged: bool,
    /// Offset in the file of the next byte.
    position: u64,
    patience: Patience,
}

/// Writes on their way to the disk, oldest first, and what has been written and not marked.
struct Writes {
    sink: Arc<LargeSink>,
    size: u64,
    under_way: VecDeque<(u64, Write)>,
    first: u64,
    cvs: Vec<GroupCv>,
    marked_at: Instant,
    /// Groups that were not what they must be.
    wrong: u32,
}

/// One group being hashed and written.
type Write = JoinHandle<Result<Result<Option<GroupCv>, StoreError>, WorkPanicked>>;

/// Groups on their way to the disk for one connection: one is being written while the next waits for its thread.
const UNDER_WAY: usize = 2;
/// Groups are marked when so many are written, or after [`MARK_TIME`]: a line in the journal for each would cost as many
/// calls as the writing.
const MARK_GROUPS: usize = 8;
/// See [`MARK_GROUPS`].
const MARK_TIME: Duration = Duration::from_secs(1);
/// Wrong groups after which the rest of an answer is not waited for: one is an accident, two are another object.
const WRONG_GROUPS: u32 = 2;
/// Read at a time of what is passed over.
const PAST: usize = 64 << 10;
/// What a body may take to say that it has ended. Without it the connection cannot be used again.
const LAST_WORD: Duration = Duration::from_millis(100);

// === impl Stream ===

impl Stream {
    /// Works until the part ends, whatever the reason. Everything that arrived whole is on disk, marked and reported before
    /// this returns.
    pub(super) async fn run(self) -> PartEnd<TransferError> {
        match self.file.sink.clone() {
            Sink::Large(sink) => self.large(sink).await,
            Sink::Small(sink) => ended(self.small(sink).await),
            Sink::Outboard(sink) => match ended(self.outboard(sink).await) {
                // It only makes wrong bytes cheaper: not worth waiting long for.
                PartEnd::Failed(error, Remedy::Retry) if error.kind() == ErrorKind::Timeout => {
                    PartEnd::Failed(error, Remedy::GiveUp)
                }
                PartEnd::Failed(error, Remedy::Retry) => PartEnd::Failed(error, Remedy::RetryLittle),
                end => end,
            },
        }
    }

    async fn large(&self, sink: Arc<LargeSink>) -> PartEnd<TransferError> {
        let start = group_range(self.file.remote.size, self.order.groups.start).start;
        let mut body = match self.open(start).await {
            Ok(Some(body)) => body,
            Ok(None) => return PartEnd::RangesIgnored,
            Err(left) => return left.into(),
        };
        self.reporter.answered(self.order.part).await;
        let mut writes = Writes::new(sink, self.file.remote.size, self.order.groups.start);
        let received = self.receive(&mut body, &mut writes).await;
        let written = writes.finish(self).await;
        match (written, received) {
            (Err(error), _) => PartEnd::Failed(error.clone(), error.remedy()),
            (Ok(()), Err(left)) => left.into(),
            (Ok(()), Ok(())) => {
                // Dropped in the middle the connection is closed; at its end it can serve the next part.
                if self.span.end() == self.order.groups.end {
                    let _ = tokio::time::timeout(LAST_WORD, body.bytes.read(&mut [0])).await;
                }
                PartEnd::Done
            }
        }
    }

    async fn receive(&self, body: &mut Arriving, writes: &mut Writes) -> Result<(), Left> {
        while let Some(group) = self.span.claim() {
            let range = group_range(self.file.remote.size, group);
            let length = (range.end - range.start) as usize;
            if !self.order.wanted.iter().any(|run| run.contains(&group)) {
                self.skip(body, length).await?;
                continue;
            }
            let mut buffer = self.unless_aborted(self.gear.buffers.acquire()).await?;
            self.fill(body, &mut buffer[..length]).await?;
            writes.room(self).await.map_err(Left::Failed)?;
            if writes.wrong >= WRONG_GROUPS {
                return Err(Left::Aborted);
            }
            let sink = Arc::clone(&writes.sink);
            let gear = Arc::clone(&self.gear);
            let write = tokio::spawn(async move { gear.write.run(move || sink.write(group, &buffer[..length])).await });
            writes.under_way.push_back((group, write));
        }
        Ok(())
    }

    /// All bytes of a file that is held whole.
    async fn whole(&self) -> Result<Vec<u8>, Left> {
        let size = self.file.remote.size;
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(usize::MAX)];
        if size > 0 {
            let Some(mut body) = self.open(0).await? else { return Err(Left::Failed(self.wrong_start(0, 0))) };
            if body.ranged {
                self.reporter.answered(self.order.part).await;
            }
            self.fill(&mut body, &mut bytes).await?;
            let _ = tokio::time::timeout(LAST_WORD, body.bytes.read(&mut [0])).await;
        }
        Ok(bytes)
    }

    async fn outboard(&self, sink: Arc<OutboardSink>) -> Result<(), Left> {
        let _memory = self.unless_aborted(self.gear.small_memory(self.file.remote.size)).await?;
        let bytes = self.whole().await?;
        let _ = sink.come.set(Outboard::parse(&bytes, sink.size, sink.root));
        Ok(())
    }

    async fn small(&self, sink: Arc<SmallSink>) -> Result<(), Left> {
        let size = self.file.remote.size;
        let memory = self.unless_aborted(self.gear.small_memory(size)).await?;
        let bytes = self.whole().await?;
        let (store, path) = (self.gear.store.clone(), self.file.remote.path.clone());
        let work = move || {
            let _memory = memory;
            let checked = digests::check_whole(&bytes, &sink.declared, sink.expected);
            if let Err(mismatch) = checked
                && !mutant("final_digest_skipped")
            {
                return Err(TransferError::wrong_digest(&path, mismatch));
            }
            let hold = store
                .put_small(sink.key, &bytes, &sink.declared, &sink.reservation)
                .map_err(|error| TransferError::store(&path, error))?;
            // The only part of its file: nobody else has set it.
            let _ = sink.stored.set(hold);
            Ok(())
        };
        match self.gear.write.run(work).await {
            Ok(Ok(())) => {
                self.file.flow.verified(size);
                Ok(())
            }
            Ok(Err(error)) => Err(Left::Failed(error)),
            Err(panicked) => Err(Left::Failed(disk_defect(&panicked))),
        }
    }

    /// Opens the body at byte `start`; `None` if it begins at the first byte instead.
    async fn open(&self, start: u64) -> Result<Option<Arriving>, Left> {
        let remote = &self.file.remote;
        let end = match self.order.groups.end {
            0 => 0,
            groups => group_range(remote.size, groups - 1).end,
        };
        let stall = self.gear.config.stall.0;
        let opening = tokio::time::timeout(stall, self.file.origin.open(remote, start..end));
        let _waiting = self.tally.wait();
        let RangeBody { start: begun, ignores_ranges, bytes } = match self.unless_aborted(opening).await? {
            Ok(opened) => opened.map_err(|error| self.failed(error))?,
            Err(_) => return Err(self.failed(SourceError::Stalled { what: remote.locator.clone(), after: stall })),
        };
        if begun != start && !mutant("resume_appends") {
            return if begun == 0 { Ok(None) } else { Err(Left::Failed(self.wrong_start(start, begun))) };
        }
        // Its start would do, but every further part would cost the origin the whole file.
        if ignores_ranges && end < remote.size && !mutant("whole_taken_for_range") {
            return Ok(None);
        }
        let patience = Patience::new(stall, self.gear.config.stall_bytes.0);
        Ok(Some(Arriving { bytes, ranged: !ignores_ranges, position: start, patience }))
    }

    /// Takes the next bytes into all of `into`.
    async fn fill(&self, body: &mut Arriving, into: &mut [u8]) -> Result<(), Left> {
        let mut filled = 0;
        while filled < into.len() {
            match self.more(body, &mut into[filled..]).await? {
                0 if mutant("short_body_accepted") => break,
                0 => return Err(self.ended_at(body.position)),
                read => filled += read,
            }
        }
        Ok(())
    }

    /// Lets the next `length` bytes go past.
    async fn skip(&self, body: &mut Arriving, mut length: usize) -> Result<(), Left> {
        let mut past = vec![0; length.min(PAST)];
        while length > 0 {
            let most = length.min(past.len());
            match self.more(body, &mut past[..most]).await? {
                0 => return Err(self.ended_at(body.position)),
                read => length -= read,
            }
        }
        Ok(())
    }

    /// Waits for the next bytes of the body. 0 at its end.
    async fn more(&self, body: &mut Arriving, into: &mut [u8]) -> Result<usize, Left> {
        let asked = Instant::now();
        let next = tokio::time::timeout(body.patience.left(), body.bytes.read(into));
        let waiting = self.tally.wait();
        let stalled = || {
            let after = self.gear.config.stall.0;
            self.failed(SourceError::Stalled { what: self.file.remote.locator.clone(), after })
        };
        let read = match self.unless_aborted(next).await? {
            Err(_) => return Err(stalled()),
            Ok(read) => read.map_err(|error| self.failed(error))?,
        };
        drop(waiting);
        let bytes = read as u64;
        self.tally.add(bytes);
        self.file.flow.received(bytes);
        self.gear.metrics.origin_bytes.inc_by(bytes);
        body.position += bytes;
        if read > 0 && !body.patience.got(bytes, asked.elapsed()) {
            return Err(stalled());
        }
        self.unless_aborted(self.gear.pace.pass(self.file.class(), bytes)).await?;
        Ok(read)
    }

    fn ended_at(&self, position: u64) -> Left {
        let detail = format!("the body ends at byte {position} of {}", self.file.remote.size);
        let what = self.file.remote.locator.clone();
        self.failed(SourceError::Unavailable { what, detail })
    }

    async fn unless_aborted<T>(&self, work: impl Future<Output = T>) -> Result<T, Left> {
        tokio::select! {
            biased;
            () = self.abort.cancelled() => Err(Left::Aborted),
            output = work => Ok(output),
        }
    }

    /// Tells of a group that is not what it must be.
    async fn wrong(&self, group: u64) {
        let remote = &self.file.remote;
        let error = TransferError::wrong_group(&remote.path, remote.size, group);
        let range = group_range(remote.size, group);
        tracing::warn!(file = %remote.path, group, start = range.start, end = range.end, "a wrong group came; it is asked for again");
        self.gear.metrics.corrupt.get_or_create(&Which { which: "origin" }).inc();
        self.reporter.wrong(self.order.part, group, error).await;
    }

    fn failed(&self, error: SourceError) -> Left {
        Left::Failed(TransferError::source(&self.file.remote.path, error))
    }

    fn wrong_start(&self, asked: u64, begun: u64) -> TransferError {
        let detail = format!("the body begins at byte {begun}, asked was {asked}");
        let what = self.file.remote.locator.clone();
        TransferError::source(&self.file.remote.path, SourceError::Protocol { what, detail })
    }
}

fn ended(outcome: Result<(), Left>) -> PartEnd<TransferError> {
    outcome.map_or_else(Into::into, |()| PartEnd::Done)
}

// === impl Left ===

impl From<Left> for PartEnd<TransferError> {
    fn from(left: Left) -> Self {
        match left {
            Left::Aborted => Self::Aborted,
            Left::Failed(error) => {
                let remedy = error.remedy();
                Self::Failed(error, remedy)
            }
        }
    }
}

// === impl Writes ===

impl Writes {
    fn new(sink: Arc<LargeSink>, size: u64, first: u64) -> Self {
        Self { sink, size, under_way: VecDeque::new(), first, cvs: Vec::new(), marked_at: Instant::now(), wrong: 0 }
    }

    /// Waits until another write may be begun.
    async fn room(&mut self, stream: &Stream) -> Result<(), TransferError> {
        while self.under_way.len() >= UNDER_WAY {
            self.settle(stream).await?;
        }
        Ok(())
    }

    /// Waits for all writes and marks them. What was written before one that failed is marked all the same.
    async fn finish(&mut self, stream: &Stream) -> Result<(), TransferError> {
        let mut outcome = Ok(());
        while !self.under_way.is_empty() {
            outcome = self.settle(stream).await.and(outcome);
        }
        self.mark(stream).await.and(outcome)
    }

    /// Waits for the oldest write.
    async fn settle(&mut self, stream: &Stream) -> Result<(), TransferError> {
        let Some((group, write)) = self.under_way.pop_front() else { return Ok(()) };
        let cv = match write.await {
            Ok(Ok(Ok(cv))) => cv,
            Ok(Ok(Err(error))) => return Err(TransferError::store(&stream.file.remote.path, error)),
            Ok(Err(panicked)) => return Err(disk_defect(&panicked)),
            Err(error) => return Err(TransferError::Defect { task: "write", detail: error.to_string() }),
        };
        let Some(cv) = cv else {
            // What came before it is told before it.
            self.mark(stream).await?;
            self.wrong += 1;
            stream.wrong(group).await;
            return Ok(());
        };
        if group != self.first + self.cvs.len() as u64 {
            self.mark(stream).await?;
            self.first = group;
        }
        self.cvs.push(cv);
        if self.cvs.len() >= MARK_GROUPS || self.marked_at.elapsed() >= MARK_TIME {
            self.mark(stream).await?;
        }
        Ok(())
    }

    /// Marks what is written as received, and reports it.
    async fn mark(&mut self, stream: &Stream) -> Result<(), TransferError> {
        self.marked_at = Instant::now();
        if self.cvs.is_empty() {
            return Ok(());
        }
        let (first, cvs) = (self.first, std::mem::take(&mut self.cvs));
        let groups = first..first + cvs.len() as u64;
        self.first = groups.end;
        let sink = Arc::clone(&self.sink);
        match stream.gear.write.run(move || sink.of.received(first, &cvs)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(TransferError::store(&stream.file.remote.path, error)),
            Err(panicked) => return Err(disk_defect(&panicked)),
        }
        self.sink.arrived(groups.clone());
        let bytes = (groups.end * GROUP_BYTES).min(self.size) - groups.start * GROUP_BYTES;
        stream.file.flow.verified(bytes);
        stream.reporter.arrived(stream.order.part, groups).await;
        Ok(())
    }
}

fn disk_defect(panicked: &WorkPanicked) -> TransferError {
    TransferError::Defect { task: "write", detail: panicked.to_string() }
}
