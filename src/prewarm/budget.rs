//! Whether there is memory for a model. Pure: numbers in, a verdict out.
//!
//! Three things bound it, and the tightest decides.
//!
//! * `prewarm.memory_max`: what all warm models together may have.
//! * The cgroups of the daemon. A page is charged to who touches it first, which is the daemon. What a cgroup cannot give up
//!   (anonymous memory and the like) and a reserve for what the daemon still needs are taken off; so are the models that are to
//!   stay, and not other pages of files, since those make way.
//! * The node. The kubelet evicts pods when `capacity - working set` is small, and it counts in the working set every page of
//!   a file that was used *twice*, although the kernel could have it back at once. Reading a model for warming is its first use
//!   and costs nothing by that count; an engine's reading is the second, and then 300 GB are suddenly "used". So whatever is
//!   warm, or about to be, is counted as used before it is: what is left after that must be more than `prewarm.memory_free`.
//!   What of the warm models is in active use already the machine's numbers have in them; as a bound for it serves what the
//!   daemon's cgroup says of its active pages.
//!
//! Turned down: to go by `MemAvailable` alone. It is right about what the kernel can do, and the kubelet evicts all the same.

use std::fmt;
use std::path::PathBuf;

use crate::base::units::ByteSize;
use crate::sys::memory::{CgroupMemory, MachineMemory};

/// What may be taken, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Always left on the node.
    pub(super) floor: u64,
    /// All warm models together.
    pub(super) most: u64,
    /// Left in the daemon's cgroups.
    pub(super) reserve: u64,
}

/// What there is, in bytes.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    pub(super) machine: MachineMemory,
    /// The daemon's, innermost first.
    pub(super) cgroups: Vec<CgroupMemory>,
    /// In the page cache, of models that are to stay there.
    pub(super) resident: u64,
    /// Of models that are being read, still to come.
    pub(super) promised: u64,
    /// In the page cache, of models that nobody asks for any more.
    pub(super) idle: u64,
}

/// What is lacking.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// The configured most of all warm models.
    Most {
        /// What would have to come.
        needed: ByteSize,
        /// What may still come.
        left: ByteSize,
        /// `prewarm.memory_max`
        most: ByteSize,
    },
    /// A memory limit.
    Cgroup {
        /// What would have to come.
        needed: ByteSize,
        /// What may still come.
        left: ByteSize,
        /// The limit.
        limit: ByteSize,
        /// Of which.
        path: PathBuf,
        /// Of it, what is not pages of files.
        fixed: ByteSize,
    },
    /// The node, as the kubelet counts.
    Node {
        /// What would have to come.
        needed: ByteSize,
        /// What may still come.
        left: ByteSize,
        /// `prewarm.memory_free`
        floor: ByteSize,
    },
}

/// Whether a model may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict<K> {
    /// There is room.
    Allow,
    /// There may be once these have gone; then the numbers are read again.
    Release(Vec<(K, u64)>, Shortage),
    /// There is none.
    Refuse(Shortage),
}

/// How far below its bound something is, in bytes; negative: above it.
type Short = i128;

// === impl Limits ===

impl Limits {
    /// Whether a model of `total` bytes could be in memory if nothing else were.
    ///
    /// # Errors
    /// What forbids it.
    pub(super) fn could_ever_hold(&self, numbers: &Numbers, total: u64) -> Result<(), Shortage> {
        let alone = Numbers {
            machine: MachineMemory {
                free: numbers.machine.total,
                available: numbers.machine.total,
                inactive_file: 0,
                ..numbers.machine
            },
            cgroups: numbers
                .cgroups
                .iter()
                .map(|group| CgroupMemory { usage: 0, file: 0, active_file: 0, ..group.clone() })
                .collect(),
            ..Numbers::default()
        };
        match self.tightest(&alone, total) {
            (short, shortage) if short > 0 => Err(shortage),
            _ => Ok(()),
        }
    }

    /// Whether `need` more bytes may be read. `idle`: models that may go, the first to go first.
    pub(super) fn decide<K: Clone>(&self, numbers: &Numbers, need: u64, idle: &[(K, u64)]) -> Verdict<K> {
        let (short, shortage) = self.tightest(numbers, need);
        if short <= 0 {
            return Verdict::Allow;
        }
        let chosen = if matches!(shortage, Shortage::Cgroup { .. }) { Vec::new() } else { choose(short, idle) };
        if chosen.is_empty() { Verdict::Refuse(shortage) } else { Verdict::Release(chosen, shortage) }
    }

    /// Whether reading that was allowed must stop, because others have taken the room. What is left may be a quarter below its
    /// bound, so that a model that just fits is not broken off for every small thing that happens beside it.
    pub(super) fn must_stop(&self, numbers: &Numbers) -> Option<Shortage> {
        let eased = Self { floor: self.floor - self.floor / 4, reserve: self.reserve - self.reserve / 4, ..*self };
        let (short, shortage) = eased.tightest(numbers, 0);
        (short > 0 && !matches!(shortage, Shortage::Most { .. })).then_some(shortage)
    }

    /// What has to go now, with how many bytes of it. Below the floor that is what nobody asks for any more; below half of it
    /// also what is leased, pinned or configured: a start that is slower costs less than pods that are evicted.
    pub(super) fn relieve<K: Clone>(&self, numbers: &Numbers, idle: &[(K, u64)], wanted: &[(K, u64)]) -> Vec<(K, u64)> {
        let left = headroom(numbers);
        let below = |floor: u64| Short::from(floor) - left;
        if below(self.floor) > 0 && !idle.is_empty() {
            return choose(below(self.floor), idle);
        }
        if below(self.floor / 2) > 0 { choose(below(self.floor / 2), wanted) } else { Vec::new() }
    }

    /// The bound that is missed by most, or met most narrowly, if `need` more bytes come.
    fn tightest(&self, numbers: &Numbers, need: u64) -> (Short, Shortage) {
        let needed = ByteSize(need);
        let left = |short: Short| ByteSize((Short::from(need) - short).clamp(0, Short::from(u64::MAX)) as u64);
        let claimed = Short::from(numbers.resident) + Short::from(numbers.promised) + Short::from(need);
        let short = claimed + Short::from(numbers.idle) - Short::from(self.most);
        let mut tightest = (short, Shortage::Most { needed, left: left(short), most: ByteSize(self.most) });
        let mut hold = |short: Short, shortage: Shortage| {
            if short > tightest.0 {
                tightest = (short, shortage);
            }
        };
        let short = Short::from(self.floor) + Short::from(need) - headroom(numbers);
        hold(short, Shortage::Node { needed, left: left(short), floor: ByteSize(self.floor) });
        for group in &numbers.cgroups {
            let Some(limit) = group.limit else { continue };
            let fixed = group.usage.saturating_sub(group.file);
            // Those that another cgroup touched first are charged there; at most all pages here are ours.
            let staying = numbers.resident.min(group.file);
            let short = Short::from(fixed)
                + Short::from(staying)
                + Short::from(numbers.promised)
                + Short::from(need)
                + Short::from(self.reserve)
                - Short::from(limit);
            let (limit, fixed, path) = (ByteSize(limit), ByteSize(fixed), group.path.clone());
            hold(short, Shortage::Cgroup { needed, left: left(short), limit, path, fixed });
        }
        tightest
    }
}

/// What the kubelet would call available if everything that is warm, or about to be, were in use.
fn headroom(numbers: &Numbers) -> Short {
    let Numbers { machine, cgroups, resident, promised, idle } = numbers;
    let active = cgroups.first().map_or(machine.active_file, |group| group.active_file.min(machine.active_file));
    // Of what nobody asks for any more all may be active.
    let counted_already = active.saturating_sub(*idle).min(*resident);
    let to_be_used = Short::from(resident - counted_already) + Short::from(*promised);
    let kubelet = Short::from(machine.free) + Short::from(machine.inactive_file) - to_be_used;
    let kernel = Short::from(machine.available) - Short::from(*resident) - Short::from(*promised);
    kubelet.min(kernel)
}

/// As many of the first as make up for `short`.
fn choose<K: Clone>(short: Short, from: &[(K, u64)]) -> Vec<(K, u64)> {
    let mut left = short;
    let mut chosen = Vec::new();
    for (key, bytes) in from {
        if left <= 0 {
            break;
        }
        if *bytes > 0 {
            let taken = Short::from(*bytes).min(left);
            chosen.push((key.clone(), taken as u64));
            left -= taken;
        }
    }
    chosen
}

// === impl Shortage ===

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Most { needed, left, most } => write!(
                f,
                "{needed} more are needed and {left} are left of the {most} that warm models may have together: raise \
                 prewarm.memory_max, or end a lease"
            ),
            Self::Cgroup { needed, left, limit, path, fixed } => write!(
                f,
                "{needed} more are needed and {left} are left in the cgroup {} (limit {limit}, of which {fixed} are not pages of \
                 files): raise the daemon's memory limit by what is to be warm, or end a lease",
                path.display()
            ),
            Self::Node { needed, left, floor } => write!(
                f,
                "{needed} more are needed and {left} are left on this node before only {floor} were, which stay free so that the \
                 kubelet evicts nobody: ask on a node with more memory, end a lease, or lower prewarm.memory_free"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::GIB;

    const LIMITS: Limits = Limits { floor: 10 * GIB, most: 200 * GIB, reserve: GIB };

    /// A node of 256 GiB: 56 used for good, 40 free, 160 of files, of which `active` are used more than once.
    fn node(active: u64) -> Numbers {
        let machine = MachineMemory {
            total: 256 * GIB,
            free: 40 * GIB,
            available: 210 * GIB,
            active_file: active * GIB,
            inactive_file: (160 - active) * GIB,
        };
        Numbers { machine, ..Numbers::default() }
    }

    fn left(verdict: &Verdict<u8>) -> (&str, u64) {
        match verdict {
            Verdict::Refuse(Shortage::Most { left, .. }) => ("most", left.0 / GIB),
            Verdict::Refuse(Shortage::Cgroup { left, .. }) => ("cgroup", left.0 / GIB),
            Verdict::Refuse(Shortage::Node { left, .. }) => ("node", left.0 / GIB),
            Verdict::Allow => ("allow", 0),
            Verdict::Release(..) => ("release", 0),
        }
    }

    #[test]
    fn pages_of_others_that_are_in_use_are_not_for_us() {
        // The kernel would give 210; the kubelet counts the 100 that others have in use as used.
        let numbers = node(100);
        assert_eq!(LIMITS.decide::<u8>(&numbers, 90 * GIB, &[]), Verdict::Allow);
        assert_eq!(left(&LIMITS.decide(&numbers, 91 * GIB, &[])), ("node", 90));
        let unused = node(0);
        assert_eq!(left(&LIMITS.decide(&unused, 191 * GIB, &[])), ("node", 190));
        // Where the kernel itself has less, that is what counts.
        let machine = MachineMemory { available: 150 * GIB, ..unused.machine };
        let tight = Numbers { machine, ..unused };
        assert_eq!(left(&LIMITS.decide(&tight, 191 * GIB, &[])), ("node", 140));
    }

    #[test]
    fn what_is_warm_counts_as_used_before_an_engine_has_read_it() {
        // 80 GiB of the 160 are warm and unused so far; the daemon's cgroup says that none of its pages is active.
        let own = CgroupMemory { usage: 81 * GIB, file: 80 * GIB, ..CgroupMemory::default() };
        let before = Numbers { resident: 80 * GIB, cgroups: vec![own.clone()], ..node(0) };
        assert_eq!(left(&LIMITS.decide(&before, 111 * GIB, &[])), ("node", 110));
        let few = Limits { most: 100 * GIB, ..LIMITS };
        assert_eq!(left(&few.decide(&before, 111 * GIB, &[])), ("most", 20));
        // Once an engine has: 80 more are active, and the same is left.
        let own = CgroupMemory { active_file: 80 * GIB, ..own };
        let after = Numbers { resident: 80 * GIB, cgroups: vec![own], ..node(80) };
        assert_eq!(LIMITS.decide::<u8>(&after, 110 * GIB, &[]), Verdict::Allow);
        assert_eq!(left(&LIMITS.decide(&after, 111 * GIB, &[])), ("node", 110));
        // What is promised to others is as good as taken.
        let promised = Numbers { promised: 60 * GIB, ..after };
        assert_eq!(left(&LIMITS.decide(&promised, 51 * GIB, &[])), ("node", 50));
    }

    #[test]
    fn a_limit_is_less_what_cannot_be_given_up_and_what_is_to_stay() {
        let pod = |limit| CgroupMemory {
            path: "/pod".into(),
            limit: Some(limit * GIB),
            usage: 30 * GIB,
            file: 28 * GIB,
            active_file: 0,
        };
        let numbers = Numbers { cgroups: vec![pod(64)], ..node(0) };
        // 28 GiB of other files make way.
        assert_eq!(LIMITS.decide::<u8>(&numbers, 61 * GIB, &[]), Verdict::Allow);
        let verdict = LIMITS.decide(&numbers, 62 * GIB, &[(1, 100 * GIB)]);
        assert_eq!(left(&verdict), ("cgroup", 61), "releasing helps nothing there");
        let Verdict::Refuse(shortage) = verdict else { panic!() };
        let text = shortage.to_string();
        for part in ["62 GiB more", "61 GiB are left", "cgroup /pod", "limit 64 GiB", "2 GiB are not pages"] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let staying = Numbers { resident: 20 * GIB, ..numbers.clone() };
        assert_eq!(left(&LIMITS.decide(&staying, 42 * GIB, &[])), ("cgroup", 41));
        // Of several levels the tightest counts.
        let nested = Numbers { cgroups: vec![pod(64), pod(40)], ..node(0) };
        assert_eq!(left(&LIMITS.decide(&nested, 38 * GIB, &[])), ("cgroup", 37));
        // A limit that nothing fits in.
        let tiny = Numbers { cgroups: vec![pod(2)], ..node(0) };
        assert_eq!(left(&LIMITS.decide(&tiny, GIB, &[])), ("cgroup", 0));
    }

    #[test]
    fn what_could_never_be_is_told_at_once() {
        let pod = CgroupMemory { limit: Some(64 * GIB), usage: 60 * GIB, ..CgroupMemory::default() };
        let numbers = Numbers { cgroups: vec![pod], resident: 50 * GIB, ..node(100) };
        assert_eq!(LIMITS.could_ever_hold(&numbers, 63 * GIB), Ok(()));
        assert!(matches!(LIMITS.could_ever_hold(&numbers, 64 * GIB), Err(Shortage::Cgroup { .. })));
        let free = Numbers { cgroups: Vec::new(), ..numbers };
        assert_eq!(LIMITS.could_ever_hold(&free, 200 * GIB), Ok(()));
        assert!(matches!(LIMITS.could_ever_hold(&free, 201 * GIB), Err(Shortage::Most { .. })));
        let large = Limits { most: 1000 * GIB, ..LIMITS };
        assert!(matches!(large.could_ever_hold(&free, 247 * GIB), Err(Shortage::Node { .. })));
    }

    #[test]
    fn who_is_not_asked_for_any_more_makes_way_the_longest_unasked_first() {
        // 30 GiB idle and in use by nobody we know: they hold the working set up.
        let idle = [(1, 4 * GIB), (2, 0), (3, 26 * GIB)];
        let numbers = Numbers { idle: 30 * GIB, ..node(100) };
        let Verdict::Release(chosen, _) = LIMITS.decide(&numbers, 100 * GIB, &idle) else { panic!() };
        assert_eq!(chosen, [(1, 4 * GIB), (3, 6 * GIB)]);
        let few = Limits { most: 50 * GIB, ..LIMITS };
        let Verdict::Release(chosen, _) = few.decide(&numbers, 23 * GIB, &idle) else { panic!() };
        assert_eq!(chosen, [(1, 3 * GIB)]);
    }

    #[test]
    fn below_the_floor_the_idle_go_and_below_half_of_it_the_wanted() {
        let (idle, wanted) = ([(1, 3 * GIB)], [(7, 20 * GIB), (8, 90 * GIB)]);
        let with = |free: u64| {
            let machine = MachineMemory { free: free * GIB, inactive_file: 0, ..node(0).machine };
            Numbers { machine, ..Numbers::default() }
        };
        assert_eq!(LIMITS.relieve(&with(10), &idle, &wanted), []);
        assert_eq!(LIMITS.relieve(&with(8), &idle, &wanted), [(1, 2 * GIB)]);
        assert_eq!(LIMITS.relieve(&with(8), &[], &wanted), []);
        assert_eq!(LIMITS.relieve(&with(3), &[], &wanted), [(7, 2 * GIB)]);
        // While reading: a quarter below the floor is borne, more is not.
        assert_eq!(LIMITS.must_stop(&with(8)), None);
        assert!(matches!(LIMITS.must_stop(&with(7)), Some(Shortage::Node { .. })));
    }
}
