//! Drives the schedule: one task that takes events in, hands decisions out, and starts a task for each part.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::error::Remedy;
use super::flow::Flow;
use super::gear::Gear;
use super::rate::Meter;
use super::schedule::{
    AMONG_OTHERS, Action, Event, FileId, Limits, NewFile, Order, Outcome, PartEnd, PartId, Schedule,
};
use super::sink::Sink;
use super::span::Span;
use super::stream::Stream;
use super::tally::Tally;
use super::{Priority, TransferError};
use crate::base::lifecycle::supervise;
use crate::model::source::{RangeSource, RemoteFile};
use crate::telemetry::metrics::Which;

/// Where a file comes from and goes to.
#[derive(Debug)]
pub(super) struct FileSource {
    pub(super) origin: Arc<dyn RangeSource>,
    pub(super) remote: Arc<RemoteFile>,
    pub(super) sink: Sink,
    pub(super) flow: Arc<Flow>,
    prefetch: AtomicBool,
}

/// Hands files to the schedule. Cheap to clone; the task behind it ends when the last clone is gone.
#[derive(Clone, Debug)]
pub(super) struct Pump {
    messages: mpsc::Sender<Message>,
}

/// How a stream tells what it has done.
#[derive(Clone, Debug)]
pub(super) struct Reporter {
    messages: mpsc::Sender<Message>,
}

#[derive(Debug)]
enum Message {
    Add(NewFile, Arc<FileSource>, oneshot::Sender<Outcome<TransferError>>),
    Remove(FileId),
    Reclass(FileId, Priority),
    Answered(PartId),
    Arrived(PartId, Range<u64>),
    Wrong(PartId, u64, TransferError),
    Ended(PartId, PartEnd<TransferError>),
}

/// The task.
struct Work {
    gear: Arc<Gear>,
    schedule: Schedule<TransferError>,
    files: HashMap<FileId, (Arc<FileSource>, oneshot::Sender<Outcome<TransferError>>)>,
    parts: HashMap<PartId, OpenPart>,
    messages: mpsc::WeakSender<Message>,
    rate: Meter,
    ticked_at: Instant,
}

struct OpenPart {
    span: Arc<Span>,
    abort: CancellationToken,
    tally: Arc<Tally>,
}

/// How often the schedule hears of time and rates: several times in each window that it measures over.
const TICK: Duration = Duration::from_millis(100);
/// Messages under way; senders wait beyond. Twice what all connections can have to say at once.
const QUEUE: usize = 256;

// === impl FileSource ===

impl FileSource {
    pub(super) fn new(
        origin: Arc<dyn RangeSource>,
        remote: Arc<RemoteFile>,
        sink: Sink,
        flow: Arc<Flow>,
        class: Priority,
    ) -> Self {
        Self { origin, remote, sink, flow, prefetch: AtomicBool::new(class == Priority::Prefetch) }
    }

    pub(super) fn class(&self) -> Priority {
        if self.prefetch.load(Ordering::Relaxed) { Priority::Prefetch } else { Priority::Demand }
    }
}

// === impl Pump ===

impl Pump {
    /// Starts the task; needs a tokio runtime.
    pub(super) fn start(gear: Arc<Gear>) -> Self {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let seed =
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |since| since.as_nanos());
        let work = Work {
            schedule: Schedule::new(Limits::new(&gear.config), seed as u64),
            gear,
            files: HashMap::new(),
            parts: HashMap::new(),
            messages: sender.downgrade(),
            rate: Meter::default(),
            ticked_at: Instant::now(),
        };
        tokio::spawn(async move {
            if let Err(panicked) = supervise("transfer schedule", work.run(receiver)).await {
                // Whoever waits for a file sees its sender gone.
                tracing::error!(task = panicked.task, message = %panicked.message, "task panicked; transfers fail until restart");
            }
        });
        Self { messages: sender }
    }

    /// Hands a file over. The receiver gets its outcome once no part of it is open any more.
    pub(super) async fn add(&self, new: NewFile, source: FileSource) -> oneshot::Receiver<Outcome<TransferError>> {
        let (answer, answered) = oneshot::channel();
        // Refused, the answer's sender is dropped, which its receiver sees.
        let _ = self.messages.send(Message::Add(new, Arc::new(source), answer)).await;
        answered
    }

    pub(super) async fn remove(&self, file: FileId) {
        let _ = self.messages.send(Message::Remove(file)).await;
    }

    pub(super) async fn reclass(&self, file: FileId, class: Priority) {
        let _ = self.messages.send(Message::Reclass(file, class)).await;
    }
}

// === impl Reporter ===

impl Reporter {
    /// The part's answer has begun.
    pub(super) async fn answered(&self, part: PartId) {
        let _ = self.messages.send(Message::Answered(part)).await;
    }

    pub(super) async fn arrived(&self, part: PartId, groups: Range<u64>) {
        let _ = self.messages.send(Message::Arrived(part, groups)).await;
    }

    /// A group came, and is not what it must be.
    pub(super) async fn wrong(&self, part: PartId, group: u64, error: TransferError) {
        let _ = self.messages.send(Message::Wrong(part, group, error)).await;
    }
}

// === impl Work ===

impl Work {
    async fn run(mut self, mut messages: mpsc::Receiver<Message>) {
        let mut ticker = tokio::time::interval(TICK);
        ticker.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let wake = self.schedule.next_wake(Instant::now()).map(tokio::time::Instant::from_std);
            let busy = !self.files.is_empty();
            tokio::select! {
                message = messages.recv() => match message {
                    Some(message) => self.take(message),
                    None => return,
                },
                _ = ticker.tick(), if busy => self.tick(),
                () = sleep_until(wake) => self.decide(Event::Tick(Vec::new())),
            }
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Add(new, source, answer) => {
                self.files.insert(new.id, (source, answer));
                self.decide(Event::Add(new));
            }
            Message::Remove(file) => self.decide(Event::Remove(file)),
            Message::Reclass(file, class) => {
                if let Some((source, _)) = self.files.get(&file) {
                    source.prefetch.store(class == Priority::Prefetch, Ordering::Relaxed);
                }
                self.decide(Event::Reclass(file, class));
            }
            Message::Answered(part) => self.decide(Event::Answered { part }),
            Message::Arrived(part, groups) => self.decide(Event::Arrived { part, groups }),
            Message::Wrong(part, group, error) => self.decide(Event::Wrong { part, group, error }),
            Message::Ended(part, end) => {
                // What came since the last tick counts too, or rates would be told too low by as much.
                if let Some(open) = self.parts.remove(&part) {
                    self.decide(Event::Tick(vec![(part, open.tally.bytes())]));
                }
                if let PartEnd::Failed(error, remedy) = &end
                    && *remedy != Remedy::GiveUp
                {
                    let which = error.kind().as_str();
                    self.gear.metrics.origin_retries.get_or_create(&Which { which }).inc();
                    tracing::debug!(%error, "a part failed");
                }
                self.decide(Event::Ended { part, end });
                if self.files.is_empty() {
                    // No tick will say so any more.
                    self.measure();
                }
            }
        }
    }

    fn tick(&mut self) {
        let received = self.parts.iter().map(|(id, part)| (*id, part.tally.bytes())).collect();
        self.decide(Event::Tick(received));
        let now = Instant::now();
        // Whoever is late himself, with a machine that stood still, calls nobody silent.
        if now.duration_since(self.ticked_at) <= 2 * TICK {
            let silence = self.parts.iter().map(|(id, part)| (*id, part.tally.silence(now)));
            for (part, since) in silence.filter(|(_, since)| *since >= AMONG_OTHERS).collect::<Vec<_>>() {
                self.decide(Event::Silent { part, since });
            }
        }
        self.ticked_at = now;
        for (lane, received, full) in self.schedule.busy_lanes() {
            self.gear.observed.sample(lane, received, full, now);
        }
        // Whoever handed the file over has gone without a word.
        let orphans: Vec<FileId> =
            self.files.iter().filter(|(_, (_, answer))| answer.is_closed()).map(|(id, _)| *id).collect();
        for file in orphans {
            self.decide(Event::Remove(file));
        }
        self.measure();
    }

    fn measure(&mut self) {
        let metrics = &self.gear.metrics;
        self.rate.sample(Instant::now(), metrics.origin_bytes.get());
        metrics.transfer_rate.set(if self.parts.is_empty() { 0.0 } else { self.rate.rate() });
        let buffers = &self.gear.buffers;
        metrics.buffer_bytes.set(i64::try_from(buffers.in_use() * buffers.each()).unwrap_or(i64::MAX));
    }

    fn decide(&mut self, event: Event<TransferError>) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.schedule.on(event, Instant::now()) {
                match action {
                    Action::Open(order) => self.open(order),
                    Action::Shorten { part, to } => {
                        if let Some(open) = self.parts.get(&part) {
                            events.push(Event::Shortened { part, end: open.span.lower(to) });
                        }
                    }
                    Action::Abort(part) => {
                        if let Some(open) = self.parts.get(&part) {
                            open.abort.cancel();
                        }
                    }
                    Action::Close { file, outcome } => {
                        if let Some((source, answer)) = self.files.remove(&file) {
                            // Gone before the answer, which says that nobody uses it any more.
                            drop(source);
                            let _ = answer.send(outcome);
                        }
                    }
                }
            }
        }
    }

    fn open(&mut self, order: Order) {
        let (Some((source, _)), Some(messages)) = (self.files.get(&order.file), self.messages.upgrade()) else {
            return;
        };
        let part = order.part;
        let open = OpenPart {
            span: Arc::new(Span::new(order.groups.start, order.groups.end)),
            abort: CancellationToken::new(),
            tally: Arc::new(Tally::new(Instant::now())),
        };
        let stream = Stream {
            gear: Arc::clone(&self.gear),
            file: Arc::clone(source),
            order,
            span: Arc::clone(&open.span),
            abort: open.abort.clone(),
            tally: Arc::clone(&open.tally),
            reporter: Reporter { messages: messages.clone() },
        };
        self.parts.insert(part, open);
        let flow = Arc::clone(&source.flow);
        tokio::spawn(async move {
            flow.connected();
            let end = supervise("connection", stream.run()).await.unwrap_or_else(|panicked| {
                let error = TransferError::Defect { task: panicked.task, detail: panicked.message };
                let remedy = error.remedy();
                PartEnd::Failed(error, remedy)
            });
            flow.disconnected();
            let _ = messages.send(Message::Ended(part, end)).await;
        });
    }
}

async fn sleep_until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
