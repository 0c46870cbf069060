//! Which bytes are asked for next, over how many connections. Pure: it sees neither socket nor disk nor clock, and every
//! decision can be replayed from its events.
//!
//! One schedule holds the files of all fetches of the process, because what runs out is shared: connections to one origin,
//! connections of the process, the link. A schedule per fetch was turned down; sixteen of them would each find out alone what
//! the origin can bear, and none could let a waiting pod's bytes pass before a prefetch.
//!
//! - **Small files** are asked for whole. They are bound by latency, so they use connections beyond the measured number.
//! - **Large files** are asked for in parts, first group first, over a few files at a time. Where an origin's digest is sequential
//!   over the file, over as many as there are connections: what comes in order is hashed as it comes, and with one connection a
//!   file everything does.
//! - **Parts** take about 0.75 s each at the measured rate, and get smaller when little is left, so that connections end
//!   together. A connection that falls behind all the same gives the second half of its rest to an idle one: its end is
//!   lowered, and what it has claimed it finishes, so no byte is asked for twice.
//! - **A failure** costs the part's unfinished groups and nothing else. Waiting is per range and, where the origin itself is in
//!   trouble, for all its ranges together, with one connection trying first; that lasts until anything goes well.
//! - **A silent connection** is left while its neighbours flow: see [`silent`].
//! - **A wrong group** is asked for again by itself: see [`wrong`].

mod lane;
mod parts;
mod silent;
#[cfg(test)]
mod tests;
mod wrong;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::backoff::{Backoff, Jitter};
use super::error::Remedy;
use super::{Config, Priority};
use crate::digest::{GROUP_BYTES, Hash};
use crate::model::OriginId;
use lane::Lane;
use parts::{File, Part, Run};
pub(super) use silent::AMONG_OTHERS;

/// A file under transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FileId(pub(super) u64);

/// One request and its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct PartId(pub(super) u64);

/// An origin, as far as its capacity is one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LaneId(pub(super) u64);

/// How a file may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// In one request, kept only when all of it has arrived.
    Whole,
    /// In ranges, in any order.
    Ranges,
    /// From its first byte on, since the origin ignores ranges or cannot say which version a range is of.
    Sequential,
}

/// A file to schedule.
#[derive(Clone, Debug)]
pub(super) struct NewFile {
    pub(super) id: FileId,
    pub(super) lane: LaneId,
    pub(super) class: Priority,
    pub(super) groups: u64,
    /// Runs of groups that are not here.
    pub(super) missing: Vec<Range<u64>>,
    pub(super) shape: Shape,
    /// Whether bytes of two responses are known to be of one version. If not, a broken response means to start over.
    pub(super) steady: bool,
    /// Whether a digest is computed over its bytes in their order.
    pub(super) ordered: bool,
}

/// What happened.
#[derive(Debug)]
pub(super) enum Event<E> {
    /// A file to fetch.
    Add(NewFile),
    /// Nobody wants the file any more.
    Remove(FileId),
    /// Who wants it has changed.
    Reclass(FileId, Priority),
    /// The origin has begun to send the range that a part asked for.
    Answered { part: PartId },
    /// Groups of a part are on disk and marked.
    Arrived { part: PartId, groups: Range<u64> },
    /// A group of a part has come, and is not what it must be.
    Wrong { part: PartId, group: u64, error: E },
    /// A part has been waiting for its origin, and for nothing on this side, for so long.
    Silent { part: PartId, since: Duration },
    /// The answer to [`Action::Shorten`]: the part now ends before group `end`.
    Shortened { part: PartId, end: u64 },
    /// A part has ended; everything that it brought has been reported.
    Ended { part: PartId, end: PartEnd<E> },
    /// Time has passed; bytes received by each open part since it was opened.
    Tick(Vec<(PartId, u64)>),
}

/// How a part ended.
#[derive(Debug)]
pub(super) enum PartEnd<E> {
    /// All that was asked for and not taken away is here.
    Done,
    /// As [`Action::Abort`] asked.
    Aborted,
    /// The origin answers with the whole file from its start.
    RangesIgnored,
    /// With an error.
    Failed(E, Remedy),
}

/// What to do.
#[derive(Debug)]
pub(super) enum Action<E> {
    /// Ask for groups.
    Open(Order),
    /// Lower the end of a part to `to`, or as near as what it has begun allows; then tell [`Event::Shortened`] at once.
    Shorten { part: PartId, to: u64 },
    /// End a part after what it has claimed; then tell [`Event::Ended`].
    Abort(PartId),
    /// The file is out of the schedule.
    Close { file: FileId, outcome: Outcome<E> },
}

/// A request to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Order {
    pub(super) part: PartId,
    pub(super) file: FileId,
    /// Groups to ask for.
    pub(super) groups: Range<u64>,
    /// Those of them to keep; others are skipped over as they pass.
    pub(super) wanted: Vec<Range<u64>>,
}

/// How a file ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome<E> {
    /// Everything is here.
    Done,
    /// It was removed.
    Removed,
    /// It failed for good.
    Failed(E),
    /// It broke, and what arrived cannot be told to be of the version that a new request would give.
    Broken(E),
}

/// Fixed numbers of a schedule.
#[derive(Clone, Debug)]
pub(super) struct Limits {
    pub(super) start: u32,
    pub(super) per_lane: u32,
    pub(super) total: u32,
    pub(super) first_part: u64,
    /// Whether an origin has to show that it knows ranges before several parts are asked of it at once.
    pub(super) unknown: bool,
    pub(super) attempts: u32,
    pub(super) longest_after: Duration,
    pub(super) backoff: Backoff,
}

/// The schedule.
#[derive(Debug)]
pub(super) struct Schedule<E> {
    limits: Limits,
    lanes: BTreeMap<LaneId, Lane>,
    files: BTreeMap<FileId, File<E>>,
    parts: BTreeMap<PartId, Part>,
    /// Ranges that wait before they are asked for again.
    waiting: BTreeSet<(Instant, u64)>,
    waiting_runs: BTreeMap<u64, (FileId, Run)>,
    /// Open parts by class.
    open: [u32; 2],
    next: u64,
    jitter: Jitter,
}

/// Contradictions of an origin that are taken for a passing fault of something between.
const CONTRADICTIONS: u32 = 3;
/// Share of the connections of one origin that prefetches have at most while demand wants any.
const PREFETCH_SHARE: u32 = 8;
/// Origins that are remembered while nothing is fetched from them; some hundred bytes each.
const LANES: usize = 256;
/// A connection this far from its end is worth helping: giving up half costs a request and what is in the socket's buffers.
const WORTH_HELPING: Duration = Duration::from_secs(2);

// === impl LaneId ===

impl LaneId {
    /// Any number will do that is the same for the same server: its limits are for all that is asked of it.
    pub(super) fn of(origin: &OriginId) -> Self {
        let digest = Hash::of(origin.server().as_bytes());
        Self(digest.as_bytes().iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b)))
    }
}

// === impl Limits ===

impl Limits {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            start: config.connections_start,
            per_lane: config.connections_max,
            total: config.connections_total,
            unknown: true,
            first_part: (config.part_bytes.0 / GROUP_BYTES).max(1),
            attempts: config.retry_attempts,
            longest_after: config.retry_after_longest.0,
            backoff: Backoff::new(config),
        }
    }
}

// === impl Schedule ===

impl<E: Clone + std::fmt::Debug> Schedule<E> {
    pub(super) fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            lanes: BTreeMap::new(),
            files: BTreeMap::new(),
            parts: BTreeMap::new(),
            waiting: BTreeSet::new(),
            waiting_runs: BTreeMap::new(),
            open: [0; 2],
            next: 0,
            jitter: Jitter::new(seed),
        }
    }

    /// Takes in what happened and says what to do. Events about parts and files that are gone are ignored.
    pub(super) fn on(&mut self, event: Event<E>, now: Instant) -> Vec<Action<E>> {
        let mut actions = Vec::new();
        match event {
            Event::Add(new) => self.add(new, &mut actions),
            Event::Remove(file) => self.end(file, Outcome::Removed, &mut actions),
            Event::Reclass(file, class) => self.reclass(file, class),
            Event::Answered { part } => self.answered(part, now),
            Event::Arrived { part, groups } => self.arrived(part, &groups),
            Event::Wrong { part, group, error } => self.wrong(part, group, error, now, &mut actions),
            Event::Silent { part, since } => self.silent(part, since, now, &mut actions),
            Event::Shortened { part, end } => self.shortened(part, end, now),
            Event::Ended { part, end } => self.ended(part, end, now, &mut actions),
            Event::Tick(received) => self.tick(&received, now),
        }
        self.wake(now);
        self.fill(now, &mut actions);
        actions
    }

    /// When to come back with [`Event::Tick`] though nothing happens.
    pub(super) fn next_wake(&self, now: Instant) -> Option<Instant> {
        let runs = self.waiting.first().map(|(at, _)| *at);
        let lanes = self.lanes.values().filter(|lane| lane.wants()).filter_map(Lane::wait_until);
        // A lane whose wait is over waits for a connection, not for time.
        runs.into_iter().chain(lanes.filter(|at| *at > now)).min()
    }

    /// The origins that something is fetched from: the bytes they have sent, and whether as many connections are open as each is
    /// worth.
    pub(super) fn busy_lanes(&self) -> impl Iterator<Item = (LaneId, u64, bool)> {
        self.lanes.iter().filter(|(_, lane)| lane.files > 0).map(|(id, lane)| (*id, lane.received, lane.is_full()))
    }

    /// Open parts.
    #[cfg(test)]
    pub(super) fn open_parts(&self) -> usize {
        self.parts.len()
    }

    fn add(&mut self, new: NewFile, actions: &mut Vec<Action<E>>) {
        let limits = &self.limits;
        let lane = self.lanes.entry(new.lane).or_insert_with(|| Lane::new(limits));
        lane.files += 1;
        let (id, ignored) = (new.id, lane.ranges == Some(false));
        let mut file = File::new(new);
        if ignored && file.shape == Shape::Ranges {
            file.shape = Shape::Sequential;
        }
        let done = file.left == 0;
        self.files.insert(id, file);
        if done {
            self.end(id, Outcome::Done, actions);
        } else {
            self.enqueue(id, false);
        }
    }

    fn reclass(&mut self, id: FileId, class: Priority) {
        let Some(file) = self.files.get_mut(&id) else { return };
        if file.class == class {
            return;
        }
        self.open[file.class as usize] -= file.parts.len() as u32;
        self.open[class as usize] += file.parts.len() as u32;
        file.class = class;
        self.enqueue(id, false);
    }

    fn answered(&mut self, id: PartId, now: Instant) {
        let Some(part) = self.parts.get_mut(&id) else { return };
        part.answered_at = Some(now);
        let Some(file) = self.files.get(&part.file) else { return };
        let Some(lane) = self.lanes.get_mut(&file.lane) else { return };
        lane.answered_in(now.saturating_duration_since(part.opened_at));
        // Small files come before the large ones, so that usually nothing large has to be tried alone.
        if file.shape != Shape::Sequential {
            lane.ranges.get_or_insert(true);
        }
    }

    fn arrived(&mut self, id: PartId, groups: &Range<u64>) {
        let Some(part) = self.parts.get_mut(&id) else { return };
        let Some(file) = self.files.get_mut(&part.file) else { return };
        let removed = part.take(groups);
        part.progress |= removed > 0;
        file.left -= removed;
        file.arrived |= removed > 0;
        if let Some(lane) = self.lanes.get_mut(&file.lane) {
            lane.went_well();
        }
    }

    fn shortened(&mut self, id: PartId, end: u64, now: Instant) {
        let Some(part) = self.parts.get_mut(&id) else { return };
        part.helped_at = Some(now);
        let freed = part.cut(end);
        let file = part.file;
        if let Some(state) = self.files.get_mut(&file) {
            state.ready.extend(freed.into_iter().map(Run::new));
        }
        self.enqueue(file, true);
    }

    fn ended(&mut self, id: PartId, end: PartEnd<E>, now: Instant, actions: &mut Vec<Action<E>>) {
        let Some(part) = self.parts.remove(&id) else { return };
        let Some(file) = self.files.get_mut(&part.file) else { return };
        let Some(lane) = self.lanes.get_mut(&file.lane) else { return };
        file.parts.retain(|other| *other != id);
        self.open[file.class as usize] -= 1;
        lane.closed(file.shape, &part, now);
        let mut rest = part.rest();
        match end {
            PartEnd::Done => {
                lane.went_well();
                if file.shape == Shape::Whole {
                    file.left = 0;
                    rest.clear();
                }
                file.ready.extend(rest);
            }
            PartEnd::Aborted if part.left_for_silence => {
                let tries = if part.progress { 0 } else { part.tries + 1 };
                for run in rest.into_iter().rev() {
                    file.ready.push_front(Run { tries, ..run });
                }
            }
            PartEnd::Aborted => file.ready.extend(rest),
            PartEnd::RangesIgnored => {
                lane.ranges = Some(false);
                file.ready.extend(rest);
                let of = file.lane;
                for file in self.files.values_mut().filter(|file| file.lane == of && file.shape == Shape::Ranges) {
                    file.shape = Shape::Sequential;
                    actions.extend(file.parts.iter().map(|part| Action::Abort(*part)));
                }
            }
            PartEnd::Failed(error, remedy) => {
                self.failed(part.file, rest, (&part, error, remedy), now, actions);
                return;
            }
        }
        self.settle(part.file, actions);
    }

    fn failed(
        &mut self,
        id: FileId,
        rest: Vec<Run>,
        (part, error, remedy): (&Part, E, Remedy),
        now: Instant,
        actions: &mut Vec<Action<E>>,
    ) {
        let Some(file) = self.files.get_mut(&id) else { return };
        let Some(lane) = self.lanes.get_mut(&file.lane) else { return };
        let after = match remedy {
            Remedy::SlowDown(after) => after,
            _ => None,
        };
        let tries = if part.progress { 0 } else { part.tries + 1 };
        let contradictions = match remedy {
            Remedy::RetryLittle if !part.progress => part.contradictions + 1,
            _ => part.contradictions,
        };
        // A missing object says nothing about how the origin is.
        let streak = if remedy == Remedy::GiveUp { None } else { lane.went_wrong(part.opened_at, now) };
        let hopeless = remedy == Remedy::GiveUp
            || tries.max(streak.unwrap_or(0)) >= self.limits.attempts
            || contradictions >= CONTRADICTIONS
            || after.is_some_and(|after| after > self.limits.longest_after);
        if file.ending.is_some() || hopeless {
            self.end(id, Outcome::Failed(error), actions);
            self.settle(id, actions);
            return;
        }
        if !file.steady && file.arrived {
            self.end(id, Outcome::Broken(error), actions);
            self.settle(id, actions);
            return;
        }
        let mut wait = self.limits.backoff.wait(tries.max(1), &mut self.jitter);
        if let Remedy::SlowDown(after) = remedy {
            wait = after.unwrap_or(wait);
            lane.asked_to_wait(now + wait);
            if streak.is_some() {
                lane.climb.refused(now);
            }
        } else if let Some(streak) = streak {
            // All its ranges wait, unless another connection shows before that it is well.
            wait = wait.max(self.limits.backoff.wait(streak, &mut self.jitter));
            lane.unwell(now + wait);
        }
        for mut run in rest {
            (run.tries, run.contradictions) = (tries, contradictions);
            self.wait(id, run, now + wait);
        }
        self.settle(id, actions);
    }

    /// Keeps a range of a file back until `at`.
    fn wait(&mut self, id: FileId, run: Run, at: Instant) {
        let Some(file) = self.files.get_mut(&id) else { return };
        file.waiting += 1;
        self.next += 1;
        self.waiting.insert((at, self.next));
        self.waiting_runs.insert(self.next, (id, run));
    }

    fn tick(&mut self, received: &[(PartId, u64)], now: Instant) {
        for (id, bytes) in received {
            let Some(part) = self.parts.get_mut(id) else { continue };
            let more = bytes.saturating_sub(part.received);
            part.received = *bytes;
            if more > 0 {
                part.moved_at = Some(now);
            }
            let lane = self.files.get(&part.file).map(|file| file.lane);
            if let Some(lane) = lane.and_then(|lane| self.lanes.get_mut(&lane)).filter(|_| more > 0) {
                lane.received += more;
                lane.moved_at = Some(now);
            }
        }
        for lane in self.lanes.values_mut() {
            lane.measure(now);
        }
    }

    /// Ranges whose wait is over are ready, before others of their file.
    fn wake(&mut self, now: Instant) {
        while let Some((at, number)) = self.waiting.first().copied() {
            if at > now {
                return;
            }
            self.waiting.pop_first();
            let Some((id, run)) = self.waiting_runs.remove(&number) else { continue };
            let Some(file) = self.files.get_mut(&id) else { continue };
            file.waiting -= 1;
            file.ready.push_front(run);
            self.enqueue(id, true);
        }
    }

    /// After a part has gone: is the file finished, or is there more to ask for?
    fn settle(&mut self, id: FileId, actions: &mut Vec<Action<E>>) {
        let Some(file) = self.files.get_mut(&id) else { return };
        if file.parts.is_empty() && (file.ending.is_some() || file.left == 0) {
            let outcome = file.wrong.take().map_or(Outcome::Done, Outcome::Failed);
            self.end(id, outcome, actions);
        } else {
            self.enqueue(id, true);
        }
    }

    /// Ends a file with the first outcome that was found for it, once its last part is gone.
    fn end(&mut self, id: FileId, outcome: Outcome<E>, actions: &mut Vec<Action<E>>) {
        let Some(file) = self.files.get_mut(&id) else { return };
        if file.ending.is_none() {
            file.ending = Some(outcome);
            actions.extend(file.parts.iter().map(|part| Action::Abort(*part)));
        }
        if !file.parts.is_empty() {
            return;
        }
        let Some(file) = self.files.remove(&id) else { return };
        if let Some(lane) = self.lanes.get_mut(&file.lane) {
            lane.files -= 1;
            // What was learnt of the origin is kept for its next fetch, unless that is only that it was unwell.
            if lane.files == 0 {
                lane.rest();
            }
        }
        if self.lanes.len() > LANES {
            self.lanes.retain(|_, lane| lane.files > 0);
        }
        actions.extend(file.ending.map(|outcome| Action::Close { file: id, outcome }));
    }

    fn enqueue(&mut self, id: FileId, first: bool) {
        let Some(file) = self.files.get_mut(&id) else { return };
        let Some(lane) = self.lanes.get_mut(&file.lane) else { return };
        if file.is_ready() && file.queued != Some(file.class) {
            lane.push(id, file.class, file.shape, first);
            file.queued = Some(file.class);
        }
    }

    /// Opens parts while there are connections and anything to ask for.
    fn fill(&mut self, now: Instant, actions: &mut Vec<Action<E>>) {
        for lane in self.lanes.values_mut() {
            lane.prune(&mut self.files);
        }
        while (self.parts.len() as u32) < self.limits.total {
            let Some((lane, class)) = self.next_lane(now) else {
                self.help(now, actions);
                return;
            };
            let Some(order) = self.open(lane, class, now) else { return };
            actions.push(Action::Open(order));
        }
    }

    /// Whose turn it is: demand before prefetch, and the origin with the fewest open connections among equals.
    fn next_lane(&self, now: Instant) -> Option<(LaneId, Priority)> {
        let pick = |class: Priority| {
            let able = self.lanes.iter().filter(|(_, lane)| lane.can_open(class, now));
            able.min_by_key(|(_, lane)| lane.open()).map(|(id, _)| (*id, class))
        };
        let demand = pick(Priority::Demand);
        let demand_wants = self.lanes.values().any(|lane| lane.has(Priority::Demand));
        let open = self.open[Priority::Prefetch as usize];
        // Of what one origin gives: a demand has one, and eight connections of a prefetch to it would be half of its rate.
        let share = self.limits.per_lane.min(self.limits.total) / PREFETCH_SHARE;
        let limit = if demand_wants { share.max(1) } else { self.limits.total };
        let prefetch = || if open < limit { pick(Priority::Prefetch) } else { None };
        // With nothing of its own open a prefetch goes first, or it would starve while pods keep coming.
        let starving = open == 0 && self.open[Priority::Demand as usize] > 0;
        if starving { prefetch().or(demand) } else { demand.or_else(prefetch) }
    }

    fn open(&mut self, lane: LaneId, class: Priority, now: Instant) -> Option<Order> {
        let lane = self.lanes.get_mut(&lane)?;
        let (id, most) = lane.choose(class, &self.files)?;
        let file = self.files.get_mut(&id)?;
        let (groups, runs) = file.take(most);
        self.next += 1;
        let part = PartId(self.next);
        lane.opened(file.shape);
        file.parts.push(part);
        self.open[class as usize] += 1;
        let wanted = runs.iter().map(|run| run.groups.clone()).collect();
        self.parts.insert(part, Part::new(id, &runs, now));
        lane.prune(&mut self.files);
        Some(Order { part, file: id, groups, wanted })
    }

    /// Connections are idle and nothing is left to ask for: take half of what the slowest still has before it.
    fn help(&mut self, now: Instant, actions: &mut Vec<Action<E>>) {
        let mut slowest: BTreeMap<LaneId, (Duration, PartId)> = BTreeMap::new();
        for (id, part) in &self.parts {
            let Some(file) = self.files.get(&part.file) else { continue };
            let Some(left) = part.time_left(now).filter(|left| *left >= WORTH_HELPING) else { continue };
            if file.shape == Shape::Ranges && file.ending.is_none() {
                let entry = slowest.entry(file.lane).or_insert((left, *id));
                *entry = (*entry).max((left, *id));
            }
        }
        for (lane, (_, id)) in slowest {
            let able = self.lanes.get(&lane).is_some_and(|lane| lane.could_help(now));
            let Some(part) = self.parts.get_mut(&id).filter(|_| able) else { continue };
            if let Some(to) = part.half() {
                part.helped_at = Some(now);
                actions.push(Action::Shorten { part: id, to });
            }
        }
    }
}
