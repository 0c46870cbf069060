//! Files and the parts of them that are being asked for.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::{FileId, LaneId, NewFile, Outcome, PartId, Priority, Shape};
use crate::digest::GROUP_BYTES;

/// Groups that are not here and not asked for.
#[derive(Clone, Debug)]
pub(super) struct Run {
    pub(super) groups: Range<u64>,
    /// Tries in a row that brought nothing.
    pub(super) tries: u32,
    /// Answers in a row that contradicted the protocol.
    pub(super) contradictions: u32,
    /// Answers whose bytes were not those of the group; a run with any is a single group.
    pub(super) wrong: u32,
}

/// A file of the schedule.
#[derive(Debug)]
pub(super) struct File<E> {
    pub(super) lane: LaneId,
    pub(super) class: Priority,
    pub(super) shape: Shape,
    pub(super) steady: bool,
    pub(super) ordered: bool,
    groups: u64,
    /// Groups that have not arrived.
    pub(super) left: u64,
    /// Whether any has arrived since it was added.
    pub(super) arrived: bool,
    pub(super) ready: VecDeque<Run>,
    /// Runs that wait before they are ready again.
    pub(super) waiting: u32,
    pub(super) parts: Vec<PartId>,
    /// The queue of its lane that it stands in.
    pub(super) queued: Option<Priority>,
    /// Set when it is to end once its parts have.
    pub(super) ending: Option<Outcome<E>>,
    /// Groups that came wrong too often, and the error of the first: told when nothing else is left to fetch.
    pub(super) given_up: BTreeSet<u64>,
    pub(super) wrong: Option<E>,
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Part {
    pub(super) file: FileId,
    /// What of it has not arrived, in order.
    wanted: VecDeque<Range<u64>>,
    pub(super) tries: u32,
    pub(super) contradictions: u32,
    pub(super) wrong: u32,
    pub(super) progress: bool,
    pub(super) opened_at: Instant,
    /// When its answer began.
    pub(super) answered_at: Option<Instant>,
    /// Bytes received, as of the last tick.
    pub(super) received: u64,
    /// The last tick that saw more of them.
    pub(super) moved_at: Option<Instant>,
    /// It was called off for its silence.
    pub(super) left_for_silence: bool,
    /// Groups arrived.
    arrived: u64,
    /// When its end was last lowered.
    pub(super) helped_at: Option<Instant>,
}

/// No rate is taken from less than this.
const LEAST_TIME: Duration = Duration::from_secs(1);

// === impl Run ===

impl Run {
    pub(super) fn new(groups: Range<u64>) -> Self {
        Self { groups, tries: 0, contradictions: 0, wrong: 0 }
    }

    fn len(&self) -> u64 {
        self.groups.end - self.groups.start
    }
}

// === impl File ===

impl<E> File<E> {
    pub(super) fn new(new: NewFile) -> Self {
        let ready: VecDeque<Run> = match new.shape {
            // The empty file has one group, and nothing to ask for; who adds it says so by an empty `missing`.
            Shape::Whole if !new.missing.is_empty() => [Run::new(0..new.groups)].into(),
            _ => new.missing.into_iter().filter(|run| !run.is_empty()).map(Run::new).collect(),
        };
        Self {
            lane: new.lane,
            class: new.class,
            shape: new.shape,
            steady: new.steady,
            ordered: new.ordered,
            groups: new.groups,
            left: ready.iter().map(Run::len).sum(),
            arrived: false,
            ready,
            waiting: 0,
            parts: Vec::new(),
            queued: None,
            ending: None,
            given_up: BTreeSet::new(),
            wrong: None,
        }
    }

    /// Whether a part of it can be opened.
    pub(super) fn is_ready(&self) -> bool {
        let alone = self.parts.is_empty() && self.waiting == 0;
        self.ending.is_none() && !self.ready.is_empty() && (self.shape == Shape::Ranges || alone)
    }

    /// Groups that could be asked for now.
    pub(super) fn ready_groups(&self) -> u64 {
        self.ready.iter().map(Run::len).sum()
    }

    /// Takes what the next part asks for, at most `most` groups where the shape leaves a choice.
    pub(super) fn take(&mut self, most: u64) -> (Range<u64>, Vec<Run>) {
        match self.shape {
            Shape::Whole | Shape::Sequential => {
                let mut runs: Vec<Run> = self.ready.drain(..).collect();
                runs.sort_by_key(|run| run.groups.start);
                (0..self.groups, runs)
            }
            Shape::Ranges => {
                let Some(mut run) = self.ready.pop_front() else { return (0..0, Vec::new()) };
                // A small remainder would cost a request of its own.
                if run.len() > most + most / 4 {
                    let rest = Run { groups: run.groups.start + most..run.groups.end, ..run };
                    run.groups.end = rest.groups.start;
                    self.ready.push_front(rest);
                }
                (run.groups.clone(), vec![run])
            }
        }
    }
}

// === impl Part ===

impl Part {
    pub(super) fn new(file: FileId, runs: &[Run], now: Instant) -> Self {
        Self {
            file,
            wanted: runs.iter().map(|run| run.groups.clone()).collect(),
            tries: runs.iter().map(|run| run.tries).max().unwrap_or(0),
            contradictions: runs.iter().map(|run| run.contradictions).max().unwrap_or(0),
            wrong: runs.iter().map(|run| run.wrong).max().unwrap_or(0),
            progress: false,
            opened_at: now,
            answered_at: None,
            received: 0,
            moved_at: None,
            left_for_silence: false,
            arrived: 0,
            helped_at: None,
        }
    }

    /// Notes groups that have arrived, which come in order. Returns how many of them were wanted.
    pub(super) fn take(&mut self, groups: &Range<u64>) -> u64 {
        let mut taken = 0;
        while let Some(front) = self.wanted.front_mut() {
            let end = groups.end.min(front.end);
            if groups.start > front.start || end <= front.start {
                break;
            }
            taken += end - front.start;
            front.start = end;
            if front.is_empty() {
                self.wanted.pop_front();
            } else {
                break;
            }
            // A run of arrivals never reaches over a gap: skipped groups are not reported.
        }
        self.arrived += taken;
        taken
    }

    /// Takes out one group, which arrived and was wrong. False if it was not wanted.
    pub(super) fn lose(&mut self, group: u64) -> bool {
        let Some(at) = self.wanted.iter().position(|run| run.contains(&group)) else { return false };
        let run = self.wanted[at].clone();
        self.wanted[at] = run.start..group;
        self.wanted.insert(at + 1, group + 1..run.end);
        self.wanted.retain(|run| !run.is_empty());
        true
    }

    /// Ends it before group `end` and returns what it loses.
    pub(super) fn cut(&mut self, end: u64) -> Vec<Range<u64>> {
        let mut lost = Vec::new();
        while let Some(last) = self.wanted.back_mut() {
            if last.end <= end {
                break;
            }
            let from = last.start.max(end);
            lost.push(from..last.end);
            last.end = from;
            if last.is_empty() {
                self.wanted.pop_back();
            }
        }
        lost.reverse();
        lost
    }

    /// What has not arrived.
    pub(super) fn rest(&self) -> Vec<Run> {
        let run = |groups: &Range<u64>| Run {
            groups: groups.clone(),
            tries: self.tries,
            contradictions: self.contradictions,
            wrong: self.wrong,
        };
        self.wanted.iter().map(run).collect()
    }

    /// Bytes a second since it was opened, from what has arrived whole.
    pub(super) fn rate(&self, now: Instant) -> Option<f64> {
        let seconds = now.saturating_duration_since(self.opened_at).as_secs_f64();
        (self.arrived > 0 && seconds > 0.0).then(|| (self.arrived * GROUP_BYTES) as f64 / seconds)
    }

    /// How long it will take to its end at the rate so far; `None` while it is too early to tell, or just after it was helped.
    pub(super) fn time_left(&self, now: Instant) -> Option<Duration> {
        let open = now.saturating_duration_since(self.opened_at);
        if open < LEAST_TIME || self.helped_at.is_some_and(|at| now.saturating_duration_since(at) < LEAST_TIME) {
            return None;
        }
        let left: u64 = self.wanted.iter().map(|run| run.end - run.start).sum();
        let rate = self.received.max(self.arrived * GROUP_BYTES) as f64 / open.as_secs_f64();
        // Nothing at all so far: as good as never.
        Some(Duration::from_secs_f64(((left * GROUP_BYTES) as f64 / rate.max(1.0)).min(1e9)))
    }

    /// Where to end so that half of what it has not begun is given away; `None` if there is nothing to give.
    pub(super) fn half(&self) -> Option<u64> {
        let only = self.wanted.front().filter(|_| self.wanted.len() == 1)?;
        // The group in flight belongs to it, and the one behind it may be begun at any moment.
        let begun = (only.start + (self.received / GROUP_BYTES).saturating_sub(self.arrived)).min(only.end) + 1;
        let spare = only.end.checked_sub(begun).filter(|spare| *spare > 0)?;
        Some(only.end - spare.div_ceil(2))
    }
}
