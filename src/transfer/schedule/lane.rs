//! One origin, as far as its capacity is one: how many connections it gets, how large parts are, and whether it is well.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::parts::{File, Part};
use super::{FileId, Limits, Priority, Shape};
use crate::digest::GROUP_BYTES;
use crate::transfer::climb::Climb;

/// The state of an origin.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) climb: Climb,
    per_lane: u32,
    first_part: u64,
    queues: [Queue; 2],
    open_small: u32,
    open_large: u32,
    /// Files in it, in any state.
    pub(super) files: usize,
    /// Bytes received by its parts.
    pub(super) received: u64,
    /// When any of it last came.
    pub(super) moved_at: Option<Instant>,
    /// Smoothed rate of one connection.
    rate: Option<f64>,
    /// Smoothed time from a request to the head of its answer.
    pub(super) answer_time: Option<Duration>,
    /// Whether it knows ranges; `false`: its answers begin at the first byte whatever is asked. Until that is known it is
    /// asked for one part alone, since each further one would cost it a whole file.
    pub(super) ranges: Option<bool>,
    /// Nothing is asked before this: the origin has said so.
    asked_until: Option<Instant>,
    /// Nothing is asked before this, unless something goes well earlier.
    unwell_until: Option<Instant>,
    /// Waves of failures since anything last went well.
    streak: u32,
    /// When the last of them was noticed; failures of older parts belong to it.
    wave: Option<Instant>,
}

/// Files with something to ask for.
#[derive(Debug, Default)]
struct Queue {
    small: VecDeque<FileId>,
    large: VecDeque<FileId>,
}

/// Large files that are asked for at once where their order is of no account. More would finish all of them at the very end.
const WIDTH: usize = 4;
/// What a part should take. At half, requests cost a connection with 30 ms of latency 8 % of its time; at twice, a break or
/// a late end costs twice as much.
const PART_SECONDS: f64 = 0.75;
/// Smallest part that is worth a request, in groups, but for what is left over.
const SMALLEST: u64 = 4;
/// Largest part, in groups.
const LARGEST: u64 = 64;

// === impl Lane ===

impl Lane {
    pub(super) fn new(limits: &Limits) -> Self {
        Self {
            climb: Climb::new(limits.start, limits.per_lane),
            per_lane: limits.per_lane,
            first_part: limits.first_part,
            queues: [Queue::default(), Queue::default()],
            open_small: 0,
            open_large: 0,
            files: 0,
            received: 0,
            moved_at: None,
            rate: None,
            answer_time: None,
            ranges: (!limits.unknown).then_some(true),
            asked_until: None,
            unwell_until: None,
            streak: 0,
            wave: None,
        }
    }

    pub(super) fn open(&self) -> u32 {
        self.open_small + self.open_large
    }

    /// Whether it has anything to ask for, in a class.
    pub(super) fn has(&self, class: Priority) -> bool {
        let queue = &self.queues[class as usize];
        !queue.small.is_empty() || !queue.large.is_empty()
    }

    /// Whether it has anything to ask for at all.
    pub(super) fn wants(&self) -> bool {
        self.has(Priority::Demand) || self.has(Priority::Prefetch)
    }

    pub(super) fn can_open(&self, class: Priority, now: Instant) -> bool {
        self.is_well(now) && (self.small_slot(class) || self.large_slot(class))
    }

    /// Connections are idle though everything has been asked for.
    pub(super) fn could_help(&self, now: Instant) -> bool {
        self.streak == 0
            && self.ranges.is_some()
            && self.is_well(now)
            && !self.wants()
            && self.open_large < self.climb.target()
    }

    /// After failures one connection goes ahead, and the others follow when it gets something.
    fn is_well(&self, now: Instant) -> bool {
        self.wait_until().is_none_or(|at| at <= now) && (self.streak == 0 || self.open() == 0)
    }

    fn small_slot(&self, class: Priority) -> bool {
        !self.queues[class as usize].small.is_empty() && self.open() < self.per_lane
    }

    fn large_slot(&self, class: Priority) -> bool {
        // Small files are bound by latency and large ones by bandwidth: neither may keep the other out.
        if self.ranges.is_none() && self.open_large > 0 {
            return false;
        }
        let small_waits = self.queues.iter().any(|queue| !queue.small.is_empty());
        let most = if small_waits { self.climb.target().min(self.per_lane.div_ceil(2)) } else { self.climb.target() };
        !self.queues[class as usize].large.is_empty() && self.open_large < most && self.open() < self.per_lane
    }

    /// The next file and how many of its groups to take. The caller has seen [`Lane::can_open`].
    pub(super) fn choose<E>(&mut self, class: Priority, files: &BTreeMap<FileId, File<E>>) -> Option<(FileId, u64)> {
        if self.large_slot(class) && !self.small_first(class) {
            let queue = &self.queues[class as usize];
            let parts = |id: &FileId| files.get(id).map_or(usize::MAX, |file| file.parts.len());
            let ordered = queue.large.front().and_then(|id| files.get(id)).is_some_and(|file| file.ordered);
            let width = if ordered { WIDTH.max(self.climb.target() as usize) } else { WIDTH };
            let id = queue.large.iter().take(width).min_by_key(|id| parts(id)).copied()?;
            let left = queue.large.iter().filter_map(|id| files.get(id)).map(File::ready_groups).sum();
            return Some((id, self.part_groups(left)));
        }
        self.queues[class as usize].small.front().map(|id| (*id, u64::MAX))
    }

    fn small_first(&self, class: Priority) -> bool {
        self.small_slot(class) && self.open_small <= self.open_large
    }

    /// Groups in the next part when `left` are still to be asked for: what fits the aimed time, and less towards the end.
    fn part_groups(&self, left: u64) -> u64 {
        let aim = match self.rate {
            Some(rate) => ((rate * PART_SECONDS) as u64 / GROUP_BYTES).clamp(SMALLEST, LARGEST),
            None => self.first_part,
        };
        let share = left.div_ceil(2 * u64::from(self.climb.target()));
        aim.min(share.max(SMALLEST))
    }

    pub(super) fn push(&mut self, id: FileId, class: Priority, shape: Shape, first: bool) {
        let queue = &mut self.queues[class as usize];
        let queue = if shape == Shape::Whole { &mut queue.small } else { &mut queue.large };
        if first { queue.push_front(id) } else { queue.push_back(id) }
    }

    /// Drops entries of files that have nothing to ask for (any more, or in this class).
    pub(super) fn prune<E>(&mut self, files: &mut BTreeMap<FileId, File<E>>) {
        for class in [Priority::Demand, Priority::Prefetch] {
            let mut stands = |id: &FileId| {
                let Some(file) = files.get_mut(id) else { return false };
                let stands = file.class == class && file.is_ready();
                if !stands && file.queued == Some(class) {
                    file.queued = None;
                }
                stands
            };
            let queue = &mut self.queues[class as usize];
            // Thousands of small files are common, so of them only the front is looked at; large ones are few.
            while queue.small.front().is_some_and(|id| !stands(id)) {
                queue.small.pop_front();
            }
            queue.large.retain(|id| stands(id));
        }
    }

    pub(super) fn opened(&mut self, shape: Shape) {
        if shape == Shape::Whole { self.open_small += 1 } else { self.open_large += 1 }
    }

    pub(super) fn closed(&mut self, shape: Shape, part: &Part, now: Instant) {
        if shape == Shape::Whole {
            self.open_small -= 1;
        } else {
            self.open_large -= 1;
        }
        if let Some(rate) = part.rate(now) {
            self.rate = Some(self.rate.map_or(rate, |before| 0.7 * before + 0.3 * rate));
        }
    }

    pub(super) fn answered_in(&mut self, time: Duration) {
        self.answer_time = Some(self.answer_time.map_or(time, |before| (before * 7 + time * 3) / 10));
    }

    pub(super) fn measure(&mut self, now: Instant) {
        let full = self.is_full();
        self.climb.measure(now, self.received, full);
    }

    /// Whether as many connections are open as it is worth.
    pub(super) fn is_full(&self) -> bool {
        self.open_large >= self.climb.target()
    }

    pub(super) fn went_well(&mut self) {
        self.streak = 0;
        self.wave = None;
        self.unwell_until = None;
    }

    /// A part that was opened at `opened_at` failed. Returns the number of waves in a row if this begins one.
    pub(super) fn went_wrong(&mut self, opened_at: Instant, now: Instant) -> Option<u32> {
        if self.wave.is_some_and(|wave| opened_at <= wave) {
            return None;
        }
        self.wave = Some(now);
        self.streak += 1;
        Some(self.streak)
    }

    /// When it may be asked again, if it has to be left alone for a while.
    pub(super) fn wait_until(&self) -> Option<Instant> {
        self.asked_until.max(self.unwell_until)
    }

    /// The origin asked to be left alone until `at`.
    pub(super) fn asked_to_wait(&mut self, at: Instant) {
        self.asked_until = self.asked_until.max(Some(at));
    }

    /// Nothing went well since the last failure: leave it alone until `at`.
    pub(super) fn unwell(&mut self, at: Instant) {
        self.unwell_until = self.unwell_until.max(Some(at));
    }

    /// Nothing is left to fetch.
    pub(super) fn rest(&mut self) {
        self.went_well();
        self.queues = [Queue::default(), Queue::default()];
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{file, orders, plain};
    use super::super::{Event, NewFile, Schedule};
    use super::*;
    use crate::transfer::Config;

    #[test]
    fn files_whose_digest_wants_their_order_are_asked_for_side_by_side() {
        let now = Instant::now();
        let config = Config { connections_start: 8, connections_max: 8, ..plain() };
        for (ordered, most) in [(false, 2), (true, 1)] {
            let mut schedule = Schedule::<&str>::new(Limits::new(&config), 1);
            let mut opened = Vec::new();
            for id in 1..=8 {
                opened.extend(orders(
                    &schedule.on(Event::Add(NewFile { ordered, ..file(id, 1000, Shape::Ranges) }), now),
                ));
            }
            opened.extend(orders(&schedule.on(Event::Answered { part: opened[0].part }, now)));
            assert_eq!(opened.len(), 8);
            let of = |id| opened.iter().filter(|order| order.file == FileId(id)).count();
            assert_eq!((1..=8).map(of).max(), Some(most), "ordered: {ordered}");
        }
    }
}
