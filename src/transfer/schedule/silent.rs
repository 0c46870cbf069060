//! A connection that has fallen silent while its neighbours flow.
//!
//! Of many connections to one origin, one may hang: a backend that died behind a load balancer, a flow that one path of several
//! drops. Its groups are the last to arrive, so the whole fetch waits for as long as a stall is waited out (`transfer.stall`),
//! although the origin is well. A part that has brought nothing for a while is therefore called off when most of the other
//! connections to the same origin have moved within the last moment, and its groups are asked for again before all others.
//!
//! An origin that gives its bytes in bursts keeps most connections silent at any moment, and one that has stopped keeps all of
//! them silent: neither is touched, and a part that was called off often enough without progress is left to the ordinary
//! timeout, which has an error to tell. What is lost is the part of one group, and a connection.
//!
//! Turned down: asking for the same groups twice and taking whichever comes first. It costs the origin bytes each time a
//! connection is merely slow, and a slow one is helped already by halving its rest.

use std::time::{Duration, Instant};

use super::parts::Part;
use super::{Action, PartId, Schedule, Shape};

/// Silence of one connection among others that flow. Several round trips around the world, and a few ticks; a lost packet is
/// sent again after 200 ms.
pub(in crate::transfer) const AMONG_OTHERS: Duration = Duration::from_millis(500);
/// The same of one that is alone at the end of a transfer, where nothing but the moment before tells how the origin is.
const ALONE: Duration = Duration::from_secs(1);
/// Whatever has moved within this is flowing: two ticks and some.
const LATELY: Duration = Duration::from_millis(250);
/// Answers may take so many times what they usually do.
const LATE_ANSWER: u32 = 4;
/// So many times a range may be called off without progress; the next silence is waited out.
const CALLS_OFF: u32 = 3;

impl<E: Clone + std::fmt::Debug> Schedule<E> {
    pub(super) fn silent(&mut self, id: PartId, since: Duration, now: Instant, actions: &mut Vec<Action<E>>) {
        let Some(part) = self.parts.get(&id).filter(|part| !part.left_for_silence) else { return };
        let Some(file) = self.files.get(&part.file) else { return };
        let Some(lane) = self.lanes.get(&file.lane) else { return };
        if file.shape != Shape::Ranges || file.ending.is_some() || part.tries >= CALLS_OFF {
            return;
        }
        let usual = match (part.answered_at, lane.answer_time) {
            (Some(_), _) => Duration::ZERO,
            (None, Some(time)) => time * LATE_ANSWER,
            // Nobody knows yet how long it takes to answer.
            (None, None) => return,
        };
        let of_lane = |other: &Part| self.files.get(&other.file).is_some_and(|other| other.lane == file.lane);
        let others = || self.parts.iter().filter(|(other, part)| **other != id && of_lane(part)).map(|(_, part)| part);
        let lately = |at: Option<Instant>| at.is_some_and(|at| now.saturating_duration_since(at) <= LATELY);
        let (all, flowing) = (others().count(), others().filter(|part| lately(part.moved_at)).count());
        let among_others = all >= 2 && flowing * 4 >= all * 3 && since >= AMONG_OTHERS + usual;
        // Just before it fell silent, something came; now there is nobody to compare with.
        let until = lane.moved_at.map(|at| now.saturating_duration_since(at));
        let alone = all < 2 && since >= ALONE + usual && until.is_some_and(|until| until <= since + LATELY);
        if among_others || alone {
            if let Some(part) = self.parts.get_mut(&id) {
                part.left_for_silence = true;
            }
            actions.push(Action::Abort(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{closes, file, orders, plain, schedule, seconds};
    use super::super::{Event, Order, PartEnd};
    use super::*;

    const TICK: Duration = Duration::from_millis(100);

    /// One large file over eight connections, all of which have been answered after 50 ms.
    fn eight(start: Instant) -> (Schedule<&'static str>, Vec<Order>) {
        let mut schedule = schedule(&crate::transfer::Config { connections_start: 8, connections_max: 8, ..plain() });
        let opened = orders(&schedule.on(Event::Add(file(1, 1000, Shape::Ranges)), start));
        assert_eq!(opened.len(), 8);
        for order in &opened {
            schedule.on(Event::Answered { part: order.part }, start + TICK / 2);
        }
        (schedule, opened)
    }

    /// A tick at which these have had more, by which they are `count` ticks old.
    fn tick(schedule: &mut Schedule<&'static str>, moving: &[Order], start: Instant, count: u32) -> Instant {
        let now = start + TICK * count;
        let received = moving.iter().map(|order| (order.part, u64::from(count) << 20)).collect();
        assert!(orders(&schedule.on(Event::Tick(received), now)).is_empty());
        now
    }

    fn aborted(schedule: &mut Schedule<&'static str>, part: PartId, since: Duration, now: Instant) -> bool {
        let actions = schedule.on(Event::Silent { part, since }, now);
        actions.iter().any(|action| matches!(action, Action::Abort(found) if *found == part))
    }

    #[test]
    fn one_that_is_silent_among_others_is_left_and_its_groups_come_first() {
        let start = Instant::now();
        let (mut schedule, opened) = eight(start);
        let mut now = start;
        for count in 1..=6 {
            now = tick(&mut schedule, &opened[1..], start, count);
        }
        let silent = &opened[0];
        assert!(!aborted(&mut schedule, silent.part, AMONG_OTHERS - TICK, now));
        assert!(aborted(&mut schedule, silent.part, AMONG_OTHERS + TICK, now));
        assert!(!aborted(&mut schedule, silent.part, seconds(3.0), now), "once is enough");
        // Two of its groups had come.
        let arrived = silent.groups.start..silent.groups.start + 2;
        schedule.on(Event::Arrived { part: silent.part, groups: arrived.clone() }, now);
        let again = orders(&schedule.on(Event::Ended { part: silent.part, end: PartEnd::Aborted }, now));
        assert_eq!(again[0].groups.start, arrived.end);
    }

    #[test]
    fn an_origin_that_stops_or_gives_in_bursts_is_left_alone() {
        let start = Instant::now();
        for moving in [0..0, 0..4, 0..5] {
            let (mut schedule, opened) = eight(start);
            let mut now = start;
            for count in 1..=20 {
                now = tick(&mut schedule, &opened[moving.clone()], start, count);
            }
            assert!(!aborted(&mut schedule, opened[7].part, seconds(1.5), now), "{moving:?}");
        }
    }

    #[test]
    fn who_stays_silent_is_left_to_the_timeout_in_the_end() {
        let start = Instant::now();
        let (mut schedule, opened) = eight(start);
        let (mut silent, mut now, mut calls) = (opened[0].clone(), start, 0);
        for count in 1..=60 {
            now = tick(&mut schedule, &opened[1..], start, count);
            if count % 10 == 0 && aborted(&mut schedule, silent.part, seconds(0.9), now) {
                calls += 1;
                let again = orders(&schedule.on(Event::Ended { part: silent.part, end: PartEnd::Aborted }, now));
                assert_eq!(again[0].groups, silent.groups);
                silent = again[0].clone();
                schedule.on(Event::Answered { part: silent.part }, now);
            }
        }
        assert_eq!(calls, CALLS_OFF);
        let end = PartEnd::Failed("stalled", crate::transfer::error::Remedy::Retry);
        assert!(closes(&schedule.on(Event::Ended { part: silent.part, end }, now)).is_empty(), "that is one failure");
    }

    #[test]
    fn the_last_one_is_compared_with_the_moment_before() {
        let start = Instant::now();
        for (stopped, expected) in [(12, true), (2, false)] {
            let mut schedule = schedule(&plain());
            let opened = orders(&schedule.on(Event::Add(file(1, 5, Shape::Ranges)), start));
            assert_eq!(opened.len(), 1);
            schedule.on(Event::Answered { part: opened[0].part }, start);
            let mut now = start;
            for count in 1..=24 {
                now = tick(&mut schedule, if count <= stopped { &opened } else { &[] }, start, count);
            }
            // Since the twelfth tick; a silence that began after the origin had stopped tells nothing.
            assert_eq!(aborted(&mut schedule, opened[0].part, seconds(1.2), now), expected, "{stopped}");
        }
    }

    #[test]
    fn an_answer_may_take_what_answers_take() {
        let start = Instant::now();
        let mut schedule = schedule(&crate::transfer::Config { connections_start: 8, connections_max: 8, ..plain() });
        let opened = orders(&schedule.on(Event::Add(file(1, 1000, Shape::Ranges)), start));
        let mut now = start;
        for count in 1..=9 {
            now = tick(&mut schedule, &opened[1..], start, count);
        }
        assert!(!aborted(&mut schedule, opened[0].part, seconds(0.9), now), "nobody knows how long answers take");
        for order in &opened[1..] {
            schedule.on(Event::Answered { part: order.part }, start + TICK * 2);
        }
        assert!(!aborted(&mut schedule, opened[0].part, seconds(0.9), now));
        for count in 10..=14 {
            now = tick(&mut schedule, &opened[1..], start, count);
        }
        assert!(aborted(&mut schedule, opened[0].part, seconds(1.4), now));
    }
}
