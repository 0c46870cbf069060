//! The schedule against origins that exist only here: every group arrives exactly once, whatever fails.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::base::units::MIB;

pub(super) type Act = Action<&'static str>;

/// Four connections at first and parts of 16 MiB: few enough to be written down.
pub(super) fn plain() -> Config {
    Config {
        connections_start: 4,
        connections_max: 16,
        connections_total: 64,
        part_bytes: crate::base::units::ByteSize(16 * MIB),
        ..Config::default()
    }
}

pub(super) fn schedule(config: &Config) -> Schedule<&'static str> {
    Schedule::new(Limits { unknown: false, ..Limits::new(config) }, 1)
}

pub(super) fn file(id: u64, groups: u64, shape: Shape) -> NewFile {
    let missing = std::iter::once(0..groups).filter(|run| !run.is_empty()).collect();
    NewFile {
        id: FileId(id),
        lane: LaneId(0),
        class: Priority::Demand,
        groups,
        missing,
        shape,
        steady: shape != Shape::Sequential,
        ordered: false,
    }
}

pub(super) fn orders(actions: &[Act]) -> Vec<Order> {
    actions.iter().filter_map(|act| if let Action::Open(order) = act { Some(order.clone()) } else { None }).collect()
}

pub(super) fn closes(actions: &[Act]) -> Vec<(u64, Outcome<&'static str>)> {
    let close = |act: &Act| match act {
        Action::Close { file, outcome } => Some((file.0, outcome.clone())),
        _ => None,
    };
    actions.iter().filter_map(close).collect()
}

pub(super) fn seconds(n: f64) -> Duration {
    Duration::from_secs_f64(n)
}

// === single decisions ===

#[test]
fn an_origin_shows_first_that_it_knows_ranges() {
    let now = Instant::now();
    let mut schedule = Schedule::<&str>::new(Limits::new(&plain()), 1);
    let first = orders(&schedule.on(Event::Add(file(1, 1000, Shape::Ranges)), now));
    assert_eq!(first.len(), 1);
    assert_eq!(orders(&schedule.on(Event::Answered { part: first[0].part }, now)).len(), 3);
    // A small file that came as the range that was asked for has shown it.
    let mut schedule = Schedule::<&str>::new(Limits::new(&plain()), 1);
    let small = orders(&schedule.on(Event::Add(file(1, 1, Shape::Whole)), now));
    schedule.on(Event::Answered { part: small[0].part }, now);
    schedule.on(Event::Ended { part: small[0].part, end: PartEnd::Done }, now);
    assert_eq!(orders(&schedule.on(Event::Add(file(2, 1000, Shape::Ranges)), now)).len(), 4);
    let mut schedule = Schedule::<&str>::new(Limits::new(&plain()), 1);
    let first = orders(&schedule.on(Event::Add(file(1, 1000, Shape::Ranges)), now));
    let again = orders(&schedule.on(Event::Ended { part: first[0].part, end: PartEnd::RangesIgnored }, now));
    assert_eq!(
        again.iter().map(|order| order.groups.clone()).collect::<Vec<_>>(),
        std::iter::once(0..1000).collect::<Vec<_>>()
    );
    // The next file of that origin is asked for whole at once.
    let other = orders(&schedule.on(Event::Add(file(2, 1000, Shape::Ranges)), now));
    assert_eq!(other.iter().map(|order| order.groups.end).collect::<Vec<_>>(), [1000]);
}

#[test]
fn a_file_is_asked_for_from_its_start_in_parts() {
    let now = Instant::now();
    let mut schedule = schedule(&plain());
    let opened = orders(&schedule.on(Event::Add(file(1, 1000, Shape::Ranges)), now));
    let ranges: Vec<_> = opened.iter().map(|order| order.groups.clone()).collect();
    assert_eq!(ranges, [0..16, 16..32, 32..48, 48..64]);
}

#[test]
fn parts_shrink_towards_the_end_and_leave_no_crumbs() {
    let mut schedule = schedule(&plain());
    let opened = orders(&schedule.on(Event::Add(file(1, 33, Shape::Ranges)), Instant::now()));
    let sizes: Vec<_> = opened.iter().map(|order| order.groups.end - order.groups.start).collect();
    assert_eq!(sizes, [5, 4, 4, 4]);
    let mut one = self::schedule(&plain());
    assert_eq!(orders(&one.on(Event::Add(file(1, 5, Shape::Ranges)), Instant::now()))[0].groups, 0..5);
}

#[test]
fn several_files_are_under_way_but_not_all() {
    let now = Instant::now();
    let config = Config { connections_start: 16, ..plain() };
    let mut schedule = schedule(&config);
    let mut opened = Vec::new();
    for id in 0..8 {
        opened.extend(orders(&schedule.on(Event::Add(file(id, 1000, Shape::Ranges)), now)));
    }
    // The first file had no company when it came; as its parts end, three others get theirs, and the last four nothing.
    for order in opened.clone() {
        schedule.on(Event::Arrived { part: order.part, groups: order.groups.clone() }, now);
        opened.extend(orders(&schedule.on(Event::Ended { part: order.part, end: PartEnd::Done }, now)));
    }
    let files: BTreeSet<_> = opened.iter().map(|order| order.file.0).collect();
    assert_eq!(files, BTreeSet::from([0, 1, 2, 3]));
}

#[test]
fn small_files_use_connections_beyond_the_measured_number() {
    let now = Instant::now();
    let mut schedule = schedule(&plain());
    schedule.on(Event::Add(file(0, 1000, Shape::Ranges)), now);
    for id in 1..100 {
        schedule.on(Event::Add(file(id, 1, Shape::Whole)), now);
    }
    assert_eq!(schedule.open_parts(), 16);
    let large = schedule.parts.values().filter(|part| part.file == FileId(0)).count();
    assert_eq!(large, 4);
}

#[test]
fn an_empty_file_needs_no_request() {
    let mut schedule = schedule(&plain());
    for shape in [Shape::Whole, Shape::Ranges] {
        let new = NewFile { missing: Vec::new(), ..file(1, 1, shape) };
        assert_eq!(closes(&schedule.on(Event::Add(new), Instant::now())), [(1, Outcome::Done)]);
    }
}

#[test]
fn demand_goes_first_and_prefetch_does_not_starve() {
    let now = Instant::now();
    let config = Config { connections_start: 8, connections_max: 8, connections_total: 8, ..plain() };
    let mut schedule = schedule(&config);
    let prefetch = NewFile { class: Priority::Prefetch, ..file(1, 1000, Shape::Ranges) };
    let mut running = orders(&schedule.on(Event::Add(prefetch), now));
    assert_eq!(running.len(), 8);
    schedule.on(Event::Add(file(2, 10_000, Shape::Ranges)), now);
    // As connections come free the demand takes all of them but one.
    for _ in 0..40 {
        let order = running.remove(0);
        schedule.on(Event::Arrived { part: order.part, groups: order.groups.clone() }, now);
        running.extend(orders(&schedule.on(Event::Ended { part: order.part, end: PartEnd::Done }, now)));
    }
    let of_prefetch = running.iter().filter(|order| order.file == FileId(1)).count();
    assert_eq!((running.len(), of_prefetch), (8, 1));
    // Somebody waits for it now: it is demand like the other.
    schedule.on(Event::Reclass(FileId(1), Priority::Demand), now);
    assert_eq!(schedule.open, [8, 0]);
}

#[test]
fn a_straggler_gives_half_of_its_rest_away() {
    let start = Instant::now();
    let config = Config { connections_start: 2, part_bytes: crate::base::units::ByteSize(8 * MIB), ..plain() };
    let mut schedule = schedule(&config);
    let opened = orders(&schedule.on(Event::Add(file(1, 32, Shape::Ranges)), start));
    let (slow, fast) = (opened[0].clone(), opened[1].clone());
    let mut fast = vec![fast];
    let mut shortened = None;
    for step in 1..40_u32 {
        let now = start + seconds(f64::from(step) / 4.0);
        let mut actions = schedule.on(Event::Tick(vec![(slow.part, u64::from(step) * 1000)]), now);
        let Some(order) = fast.pop() else { break };
        schedule.on(Event::Arrived { part: order.part, groups: order.groups.clone() }, now);
        actions.extend(schedule.on(Event::Ended { part: order.part, end: PartEnd::Done }, now));
        fast.extend(orders(&actions));
        shortened = shortened.or(actions.iter().find_map(|act| match act {
            Action::Shorten { part, to } => Some((*part, *to)),
            _ => None,
        }));
    }
    // Eight groups, one of them begun: the idle connection gets half of the other seven.
    assert_eq!(shortened, Some((slow.part, 4)));
    let now = start + seconds(20.0);
    let helped = orders(&schedule.on(Event::Shortened { part: slow.part, end: 5 }, now));
    assert_eq!(
        helped.iter().map(|order| order.groups.clone()).collect::<Vec<_>>(),
        std::iter::once(5..8).collect::<Vec<_>>()
    );
    // Its end has just been lowered: not again at once.
    assert!(schedule.on(Event::Tick(Vec::new()), now).is_empty());
}

#[test]
fn a_break_costs_what_had_not_arrived() {
    let start = Instant::now();
    let mut schedule = schedule(&Config { connections_start: 1, ..plain() });
    let order = orders(&schedule.on(Event::Add(file(1, 16, Shape::Ranges)), start)).remove(0);
    let groups = order.groups.start..order.groups.start + 3;
    schedule.on(Event::Arrived { part: order.part, groups }, start);
    let end = PartEnd::Failed("reset", Remedy::Retry);
    let actions = schedule.on(Event::Ended { part: order.part, end }, start);
    assert!(actions.is_empty(), "{actions:?}");
    let at = schedule.next_wake(start).unwrap();
    assert!((seconds(0.125)..=seconds(0.25)).contains(&(at - start)));
    let again = orders(&schedule.on(Event::Tick(Vec::new()), at)).remove(0);
    assert_eq!(again.groups, 3..order.groups.end);
}

#[test]
fn tries_without_progress_are_bounded() {
    for (remedy, expected) in [(Remedy::Retry, 8), (Remedy::RetryLittle, 3), (Remedy::GiveUp, 1)] {
        let mut now = Instant::now();
        let mut schedule = schedule(&plain());
        let mut order = orders(&schedule.on(Event::Add(file(1, 1, Shape::Whole)), now)).remove(0);
        let mut tries = 1;
        loop {
            let end = PartEnd::Failed("no", remedy);
            let actions = schedule.on(Event::Ended { part: order.part, end }, now);
            if !actions.is_empty() {
                assert_eq!(closes(&actions), [(1, Outcome::Failed("no"))]);
                break;
            }
            now = schedule.next_wake(now).unwrap();
            order = orders(&schedule.on(Event::Tick(Vec::new()), now)).remove(0);
            tries += 1;
        }
        assert_eq!(tries, expected, "{remedy:?}");
    }
}

#[test]
fn an_origin_that_is_down_is_asked_by_one_connection_and_given_up() {
    let mut now = Instant::now();
    let mut schedule = schedule(&plain());
    let mut open = Vec::new();
    for id in 0..1000 {
        open.extend(orders(&schedule.on(Event::Add(file(id, 1, Shape::Whole)), now)));
    }
    let (mut requests, mut failed) = (open.len(), 0);
    while failed == 0 {
        for order in std::mem::take(&mut open) {
            let end = PartEnd::Failed("refused", Remedy::Retry);
            let actions = schedule.on(Event::Ended { part: order.part, end }, now);
            failed += closes(&actions).len();
            open.extend(orders(&actions));
        }
        if open.is_empty() && failed == 0 {
            now = schedule.next_wake(now).unwrap();
            open.extend(orders(&schedule.on(Event::Tick(Vec::new()), now)));
            requests += open.len();
        }
    }
    // The first wave of 16, then one at a time.
    assert_eq!(requests, 16 + 7);
}

#[test]
fn a_request_to_slow_down_is_obeyed_by_all() {
    let start = Instant::now();
    let mut schedule = schedule(&Config { connections_start: 8, ..plain() });
    let opened = orders(&schedule.on(Event::Add(file(1, 1000, Shape::Ranges)), start));
    assert_eq!(opened.len(), 8);
    for order in &opened {
        let end = PartEnd::Failed("429", Remedy::SlowDown(Some(seconds(3.0))));
        assert!(schedule.on(Event::Ended { part: order.part, end }, start).is_empty());
    }
    assert!(schedule.on(Event::Tick(Vec::new()), start + seconds(2.9)).is_empty());
    let actions = schedule.on(Event::Tick(Vec::new()), start + seconds(3.0));
    let first = orders(&actions);
    assert_eq!(first.len(), 1);
    // One refusal by eight connections is one refusal: eight become four.
    let arrived = Event::Arrived { part: first[0].part, groups: first[0].groups.start..first[0].groups.start + 1 };
    assert_eq!(orders(&schedule.on(arrived, start + seconds(3.1))).len(), 3);
    // Too long a wait is refused at once.
    let end = PartEnd::Failed("429", Remedy::SlowDown(Some(seconds(3600.0))));
    schedule.on(Event::Ended { part: first[0].part, end }, start + seconds(3.2));
    assert!(schedule.files[&FileId(1)].ending.is_some());
}

#[test]
fn an_origin_without_ranges_is_read_in_one_stream() {
    let now = Instant::now();
    let mut schedule = schedule(&plain());
    let opened = orders(&schedule.on(Event::Add(file(1, 64, Shape::Ranges)), now));
    let arrived = Event::Arrived { part: opened[0].part, groups: 0..2 };
    schedule.on(arrived, now);
    let actions = schedule.on(Event::Ended { part: opened[1].part, end: PartEnd::RangesIgnored }, now);
    let aborts = actions.iter().filter(|act| matches!(act, Action::Abort(_))).count();
    assert_eq!((aborts, orders(&actions).len()), (3, 0));
    let mut last = Vec::new();
    for order in [&opened[0], &opened[2], &opened[3]] {
        last = orders(&schedule.on(Event::Ended { part: order.part, end: PartEnd::Aborted }, now));
    }
    // From the first byte, keeping what is missing.
    let kept: Vec<Range<u64>> = last[0].wanted.clone();
    assert_eq!((last.len(), last[0].groups.clone()), (1, 0..64));
    assert_eq!((kept[0].start, kept.iter().map(|run| run.end - run.start).sum::<u64>()), (2, 62));
    // The next file of this origin is asked for so from the start.
    schedule.on(Event::Add(file(2, 64, Shape::Ranges)), now);
    assert_eq!(schedule.files[&FileId(2)].shape, Shape::Sequential);
}

#[test]
fn what_has_no_version_starts_over_when_it_breaks() {
    let now = Instant::now();
    let mut schedule = schedule(&plain());
    let order = orders(&schedule.on(Event::Add(file(1, 8, Shape::Sequential)), now)).remove(0);
    schedule.on(Event::Arrived { part: order.part, groups: 0..1 }, now);
    let end = PartEnd::Failed("reset", Remedy::Retry);
    let actions = schedule.on(Event::Ended { part: order.part, end }, now);
    assert_eq!(closes(&actions), [(1, Outcome::Broken("reset"))]);
}

#[test]
fn a_file_nobody_wants_closes_after_its_parts() {
    let now = Instant::now();
    let mut schedule = schedule(&Config { connections_start: 2, ..plain() });
    let opened = orders(&schedule.on(Event::Add(file(1, 64, Shape::Ranges)), now));
    let actions = schedule.on(Event::Remove(FileId(1)), now);
    assert_eq!(actions.iter().filter(|act| matches!(act, Action::Abort(_))).count(), 2);
    assert!(schedule.on(Event::Ended { part: opened[0].part, end: PartEnd::Aborted }, now).is_empty());
    let actions = schedule.on(Event::Ended { part: opened[1].part, end: PartEnd::Aborted }, now);
    assert_eq!(closes(&actions), [(1, Outcome::Removed)]);
    assert_eq!(schedule.open, [0, 0]);
}

// === whole runs ===

/// A part as a driver would have it.
#[derive(Debug)]
struct Stream {
    order: Order,
    /// Groups begun, from the start of the order.
    next: u64,
    end: u64,
    received: u64,
    aborted: bool,
}

/// Draws numbers; the property test shrinks by seed and size only.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % n
    }
}

/// The groups of each file that have arrived.
type Arrived = BTreeMap<FileId, BTreeSet<u64>>;

struct World {
    schedule: Schedule<&'static str>,
    config: Config,
    now: Instant,
    streams: BTreeMap<PartId, Stream>,
    files: BTreeMap<FileId, NewFile>,
    arrived: BTreeMap<FileId, BTreeSet<u64>>,
    closed: BTreeMap<FileId, Outcome<&'static str>>,
    dice: Dice,
}

impl World {
    fn send(&mut self, event: Event<&'static str>) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            for action in self.schedule.on(event, self.now) {
                match action {
                    Action::Open(order) => {
                        assert!(!self.closed.contains_key(&order.file), "opened after it was closed");
                        let (next, end) = (order.groups.start, order.groups.end);
                        let stream = Stream { next, end, received: 0, aborted: false, order: order.clone() };
                        assert!(self.streams.insert(order.part, stream).is_none());
                    }
                    Action::Shorten { part, to } => {
                        let stream = self.streams.get_mut(&part).unwrap();
                        stream.end = stream.end.min(to.max(stream.next));
                        events.push(Event::Shortened { part, end: stream.end });
                    }
                    Action::Abort(part) => self.streams.get_mut(&part).unwrap().aborted = true,
                    Action::Close { file, outcome } => {
                        assert!(self.closed.insert(file, outcome).is_none(), "closed twice");
                    }
                }
            }
            self.check();
        }
    }

    /// Every group of an open file is in exactly one place.
    fn check(&self) {
        assert!(self.streams.len() as u32 <= self.config.connections_total);
        for (id, file) in self.schedule.files.iter().filter(|(_, file)| file.ending.is_none()) {
            let mut seen: BTreeSet<u64> = if file.shape == Shape::Whole {
                BTreeSet::new()
            } else {
                self.arrived.get(id).cloned().unwrap_or_default()
            };
            let mut place = |groups: Range<u64>, what: &str| {
                for group in groups {
                    assert!(seen.insert(group), "group {group} of {id:?} is in two places, one {what}");
                }
            };
            file.given_up.iter().for_each(|group| place(*group..*group + 1, "given up"));
            for run in &file.ready {
                place(run.groups.clone(), "ready");
            }
            for (_, run) in self.schedule.waiting_runs.values().filter(|(of, _)| of == id) {
                place(run.groups.clone(), "waiting");
            }
            for part in self.schedule.parts.values().filter(|part| part.file == *id) {
                for run in part.rest() {
                    place(run.groups, "under way");
                }
            }
            let missing: BTreeSet<u64> = match file.shape {
                Shape::Whole => (0..self.files[id].groups).collect(),
                _ => self.files[id].missing.iter().cloned().flatten().collect(),
            };
            assert_eq!(seen, missing, "{id:?} has lost or invented groups");
        }
    }

    /// One stream does something. `calm`: nothing fails any more.
    fn step(&mut self, calm: bool) {
        let at = self.dice.below(self.streams.len() as u64) as usize;
        let Some((&id, stream)) = self.streams.iter_mut().nth(at) else { return };
        let file = &self.files[&stream.order.file];
        let fate = self.dice.below(100);
        let end = if stream.aborted {
            Some(PartEnd::Aborted)
        } else if !calm && fate < 8 {
            let remedy = match fate {
                0 => Remedy::GiveUp,
                1 => Remedy::RetryLittle,
                2 => Remedy::SlowDown(Some(Duration::from_millis(300))),
                3 => Remedy::SlowDown(None),
                _ => Remedy::Retry,
            };
            Some(PartEnd::Failed("broken", remedy))
        } else if !calm && fate == 8 && stream.order.groups.start > 0 {
            Some(PartEnd::RangesIgnored)
        } else if file.shape == Shape::Whole || stream.next >= stream.end {
            Some(PartEnd::Done)
        } else {
            None
        };
        if let Some(end) = end {
            let stream = self.streams.remove(&id).unwrap();
            if file.shape == Shape::Whole && matches!(end, PartEnd::Done) {
                self.arrived.entry(stream.order.file).or_default().extend(stream.order.groups);
            }
            self.send(Event::Ended { part: id, end });
            return;
        }
        let group = stream.next;
        stream.next += 1;
        stream.received += MIB;
        if stream.order.wanted.iter().any(|run| run.contains(&group)) {
            if !calm && self.dice.below(100) == 0 {
                self.send(Event::Wrong { part: id, group, error: "wrong" });
                return;
            }
            let fresh = self.arrived.entry(stream.order.file).or_default().insert(group);
            assert!(fresh, "group {group} arrived twice");
            self.send(Event::Arrived { part: id, groups: group..group + 1 });
        }
    }

    fn run(mut self) -> (BTreeMap<FileId, Outcome<&'static str>>, Arrived) {
        for new in self.files.clone().into_values() {
            self.send(Event::Add(new));
        }
        let mut steps = 0_u64;
        while self.closed.len() < self.files.len() {
            steps += 1;
            assert!(steps < 200_000, "does not come to an end");
            if self.streams.is_empty() {
                let wake =
                    self.schedule.next_wake(self.now).expect("nothing is open, nothing is waiting, and files are left");
                self.now = self.now.max(wake);
                self.send(Event::Tick(Vec::new()));
                continue;
            }
            self.step(steps > 3000);
            match self.dice.below(40) {
                0 => {
                    self.now += Duration::from_millis(self.dice.below(3000));
                    let ticks = self.streams.iter().map(|(id, stream)| (*id, stream.received)).collect();
                    self.send(Event::Tick(ticks));
                }
                1 => {
                    let id = FileId(self.dice.below(self.files.len() as u64 * 4));
                    let class = if self.dice.below(2) == 0 { Priority::Demand } else { Priority::Prefetch };
                    self.send(Event::Reclass(id, class));
                }
                2 if self.dice.below(20) == 0 => {
                    let id = FileId(self.dice.below(self.files.len() as u64));
                    self.send(Event::Remove(id));
                }
                _ => {}
            }
        }
        assert_eq!(self.schedule.open_parts(), self.streams.len());
        assert_eq!((self.schedule.open, self.streams.len()), ([0, 0], 0), "closed with parts open");
        (self.closed, self.arrived)
    }
}

fn any_file() -> impl Strategy<Value = (u64, Shape, bool, u64, bool, Vec<bool>)> {
    let shape = prop_oneof![
        3 => Just((Shape::Ranges, true)),
        2 => Just((Shape::Whole, true)),
        1 => Just((Shape::Sequential, true)),
        1 => Just((Shape::Sequential, false))
    ];
    (1_u64..120, shape, 0_u64..3, any::<bool>(), prop::collection::vec(any::<bool>(), 0..6)).prop_map(
        |(groups, (shape, steady), lane, prefetch, holes)| {
            let groups = if shape == Shape::Whole { groups.min(8) } else { groups };
            (groups, shape, steady, lane, prefetch, holes)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn every_group_arrives_exactly_once_whatever_fails(
        files in prop::collection::vec(any_file(), 1..12),
        seed in any::<u64>(),
        total in 1_u32..24,
        start in 1_u32..16,
    ) {
        let config = Config { connections_total: total, connections_start: start, ..plain() };
        let files: BTreeMap<FileId, NewFile> = files
            .into_iter()
            .enumerate()
            .map(|(id, (groups, shape, steady, lane, prefetch, holes))| {
                // Stretches of a tenth, of which some are here already.
                let tenth = groups.div_ceil(holes.len() as u64 + 1);
                let mut missing: Vec<Range<u64>> = holes
                    .iter()
                    .chain([&true])
                    .enumerate()
                    .filter(|(_, missing)| **missing)
                    .map(|(n, _)| (n as u64 * tenth).min(groups)..((n as u64 + 1) * tenth).min(groups))
                    .filter(|run| !run.is_empty())
                    .collect();
                if shape == Shape::Whole || !steady {
                    missing = std::iter::once(0..groups).collect();
                }
                let id = FileId(id as u64);
                let class = if prefetch { Priority::Prefetch } else { Priority::Demand };
                (id, NewFile { id, lane: LaneId(lane), class, groups, missing, shape, steady, ordered: id.0.is_multiple_of(2) })
            })
            .collect();
        let world = World {
            schedule: schedule(&config),
            config,
            now: Instant::now(),
            streams: BTreeMap::new(),
            files: files.clone(),
            arrived: BTreeMap::new(),
            closed: BTreeMap::new(),
            dice: Dice(seed),
        };
        let (closed, arrived) = world.run();
        for (id, outcome) in closed {
            if outcome == Outcome::Done {
                let missing: BTreeSet<u64> = files[&id].missing.iter().cloned().flatten().collect();
                prop_assert_eq!(arrived.get(&id).cloned().unwrap_or_default(), missing);
            }
        }
    }
}
