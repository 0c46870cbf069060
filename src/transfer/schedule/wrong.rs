//! Groups that arrive and are not what they must be, where the file's outboard tells.
//!
//! The part goes on, so that what a wrong group costs is that group. It is asked for again by itself, in a request of its own,
//! a bounded number of times: what a cache or a cable spoilt comes right, what lies wrong at the origin stays wrong. Then it is
//! given up, and told when the rest of the file is here: the rest is needed as soon as the origin is mended, and fetching again
//! then costs no more than what was wrong. A file with many such groups is another file, and ends at once.
//!
//! Ending the part at the wrong group was turned down: what is in the socket's buffers by then, several MiB, would be lost.

use std::time::Instant;

use super::parts::Run;
use super::{Action, Outcome, PartId, Schedule};

/// Answers with a wrong group before it is given up. With two, a bad cache that is asked twice looks like a bad origin; each
/// more costs 1 MiB and a wait.
const ANSWERS: u32 = 3;
/// Groups of one file that may be given up before it ends at once: together they cost less than the smallest part.
const GIVEN_UP: usize = 3;

// === impl Schedule ===

impl<E: Clone + std::fmt::Debug> Schedule<E> {
    /// Has one group of a part asked for again, or gives it up.
    pub(super) fn wrong(&mut self, id: PartId, group: u64, error: E, now: Instant, actions: &mut Vec<Action<E>>) {
        let Some(part) = self.parts.get_mut(&id) else { return };
        if !part.lose(group) {
            return;
        }
        let (of, wrong) = (part.file, part.wrong + 1);
        let Some(file) = self.files.get_mut(&of) else { return };
        if wrong < ANSWERS {
            let at = now + self.limits.backoff.wait(wrong, &mut self.jitter);
            self.wait(of, Run { wrong, ..Run::new(group..group + 1) }, at);
            return;
        }
        file.left -= 1;
        file.given_up.insert(group);
        let first = file.wrong.get_or_insert(error).clone();
        if file.given_up.len() > GIVEN_UP {
            self.end(of, Outcome::Failed(first), actions);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{closes, file, orders, schedule, seconds};
    use super::super::{Event, FileId, PartEnd, Shape};
    use super::*;
    use crate::transfer::Config;

    /// A schedule of one connection at work on one file, and the order it has given.
    fn alone(groups: u64) -> (Schedule<&'static str>, super::super::Order, Instant) {
        let now = Instant::now();
        let mut schedule = schedule(&Config { connections_start: 1, connections_max: 1, ..Config::default() });
        let order = orders(&schedule.on(Event::Add(file(1, groups, Shape::Ranges)), now)).remove(0);
        (schedule, order, now)
    }

    #[test]
    fn one_wrong_group_is_asked_for_alone_and_the_part_goes_on() {
        let (mut schedule, order, now) = alone(5);
        assert_eq!(order.groups, 0..5);
        let part = order.part;
        schedule.on(Event::Arrived { part, groups: 0..3 }, now);
        assert!(schedule.on(Event::Wrong { part, group: 3, error: "wrong" }, now).is_empty());
        schedule.on(Event::Arrived { part, groups: 4..5 }, now);
        assert!(schedule.on(Event::Ended { part, end: PartEnd::Done }, now).is_empty());
        let at = schedule.next_wake(now).unwrap();
        let again = orders(&schedule.on(Event::Tick(Vec::new()), at)).remove(0);
        assert_eq!(again.groups, 3..4);
        schedule.on(Event::Arrived { part: again.part, groups: 3..4 }, at);
        let actions = schedule.on(Event::Ended { part: again.part, end: PartEnd::Done }, at);
        assert_eq!(closes(&actions), [(1, Outcome::Done)]);
    }

    #[test]
    fn a_group_that_stays_wrong_is_told_when_the_rest_is_here() {
        let (mut schedule, mut order, mut now) = alone(100);
        let mut asked = 0;
        let closed = loop {
            let (part, groups) = (order.part, order.groups.clone());
            let mut actions = Vec::new();
            if groups.contains(&5) {
                asked += 1;
                actions.extend(schedule.on(Event::Arrived { part, groups: groups.start..5 }, now));
                actions.extend(schedule.on(Event::Wrong { part, group: 5, error: "wrong" }, now));
                actions.extend(schedule.on(Event::Arrived { part, groups: 6..groups.end }, now));
            } else {
                actions.extend(schedule.on(Event::Arrived { part, groups }, now));
            }
            actions.extend(schedule.on(Event::Ended { part, end: PartEnd::Done }, now));
            now += seconds(0.1);
            actions.extend(schedule.on(Event::Tick(Vec::new()), now));
            match orders(&actions).pop() {
                Some(next) => order = next,
                None if !closes(&actions).is_empty() => break closes(&actions),
                None => {
                    now = schedule.next_wake(now).unwrap();
                    order = orders(&schedule.on(Event::Tick(Vec::new()), now)).remove(0);
                }
            }
        };
        assert_eq!((closed, asked), (vec![(1, Outcome::Failed("wrong"))], ANSWERS));
    }

    #[test]
    fn another_file_in_its_place_ends_soon() {
        let (mut schedule, mut order, mut now) = alone(100_000);
        let mut asked = 0;
        let closed = loop {
            asked += 1;
            let (part, first) = (order.part, order.groups.start);
            let mut actions = Vec::new();
            for group in (first..first + 2).filter(|group| order.groups.contains(group)) {
                actions.extend(schedule.on(Event::Wrong { part, group, error: "wrong" }, now));
            }
            actions.extend(schedule.on(Event::Ended { part, end: PartEnd::Aborted }, now));
            now += seconds(0.05);
            actions.extend(schedule.on(Event::Tick(Vec::new()), now));
            if !closes(&actions).is_empty() {
                break closes(&actions);
            }
            order = orders(&actions).remove(0);
        };
        assert_eq!(closed, [(1, Outcome::Failed("wrong"))]);
        assert!(asked < 40, "{asked} requests");
        assert!(!schedule.files.contains_key(&FileId(1)));
    }
}
