//! What the page cache may take: the node's memory as the kubelet counts it, and the limits of the cgroups that this process
//! is in.
//!
//! A page of a file is charged to the cgroup whose process touches it first, at every level up to the root, and each level
//! may have a limit. What a limit kills for is what cannot be given up (anonymous memory, kernel memory, shared memory);
//! pages of files are reclaimed instead. Version 1 and version 2 of the interface are read, and hosts that have both.

use std::path::{Path, PathBuf};
use std::{fs, io};

/// Memory of the machine, in bytes. In a container too these are the machine's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineMemory {
    /// All of it.
    pub total: u64,
    /// In nobody's use.
    pub free: u64,
    /// The kernel's word on what a new process could have without swapping.
    pub available: u64,
    /// Pages of files that were used more than once: the kubelet counts them as used.
    pub active_file: u64,
    /// Pages of files that were used once, or long ago: the kubelet counts them as free.
    pub inactive_file: u64,
}

/// One cgroup that this process is in, at any level.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CgroupMemory {
    /// Its directory.
    pub path: PathBuf,
    /// What it may have; `None`: no limit at this level.
    pub limit: Option<u64>,
    /// What is charged to it.
    pub usage: u64,
    /// Of that, pages of files, dirty ones included, shared memory not.
    pub file: u64,
    /// Of these, those that were used more than once.
    pub active_file: u64,
}

// === impl MachineMemory ===

impl MachineMemory {
    /// Reads it now.
    ///
    /// # Errors
    /// When `/proc/meminfo` cannot be read.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/meminfo")?))
    }

    fn parse(text: &str) -> Self {
        let of = |key| kilobytes(text, key).unwrap_or(0);
        Self {
            total: of("MemTotal:"),
            free: of("MemFree:"),
            available: of("MemAvailable:"),
            active_file: of("Active(file):"),
            inactive_file: of("Inactive(file):"),
        }
    }
}

// === impl CgroupMemory ===

impl CgroupMemory {
    /// Those of this process, innermost first. Empty where no memory controller is to be seen.
    #[must_use]
    pub fn read_all() -> Vec<Self> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let Some(Hierarchy { version, top, own }) =
            hierarchy(&read("/proc/self/cgroup"), &read("/proc/self/mountinfo"))
        else {
            return Vec::new();
        };
        // With a cgroup namespace of its own a process may be outside of what it sees.
        let own = if own.is_dir() { own } else { top.clone() };
        let levels = own.ancestors().take_while(|path| path.starts_with(&top));
        levels.filter_map(|path| Self::read_one(version, path)).collect()
    }

    fn read_one(version: Version, path: &Path) -> Option<Self> {
        let read = |name: &str| fs::read_to_string(path.join(name)).ok();
        // `max`, or a number near 2^63, is no limit.
        let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
        let limit = |name: &str| number(name).filter(|limit| *limit < 1 << 60);
        let stat = read("memory.stat");
        let of = |key: &str| stat.as_deref().and_then(|text| value(text, key));
        let found = match version {
            Version::One => {
                let (active, inactive) = (of("total_active_file")?, of("total_inactive_file")?);
                Self {
                    path: path.to_owned(),
                    // The second is of a level above that cannot be seen from in here.
                    limit: [limit("memory.limit_in_bytes"), of("hierarchical_memory_limit").filter(|it| *it < 1 << 60)]
                        .into_iter()
                        .flatten()
                        .min(),
                    usage: number("memory.usage_in_bytes")?,
                    file: active + inactive,
                    active_file: active,
                }
            }
            Version::Two => {
                let (active, inactive) = (of("active_file")?, of("inactive_file")?);
                Self {
                    path: path.to_owned(),
                    // Above `memory.high` every allocation waits for reclaim.
                    limit: [limit("memory.max"), limit("memory.high")].into_iter().flatten().min(),
                    // The root of the machine has no such file, and no limit.
                    usage: number("memory.current")?,
                    file: active + inactive,
                    active_file: active,
                }
            }
        };
        Some(found)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Where the memory controller shows this process.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    version: Version,
    /// Where it is mounted.
    top: PathBuf,
    /// The cgroup of this process, at or below `top`.
    own: PathBuf,
}

/// From `/proc/self/cgroup` and `/proc/self/mountinfo`. A machine that has both versions keeps memory in one of them: in
/// version 1 if it is named there.
fn hierarchy(cgroup: &str, mounts: &str) -> Option<Hierarchy> {
    let line = |wanted: fn(&str) -> bool| {
        cgroup.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            wanted(controllers).then_some(path)
        })
    };
    if let Some(path) = line(|controllers| controllers.split(',').any(|one| one == "memory"))
        && let Some((top, own)) =
            place(mounts, path, |kind, options| kind == "cgroup" && options.split(',').any(|option| option == "memory"))
    {
        return Some(Hierarchy { version: Version::One, top, own });
    }
    let (top, own) = place(mounts, line(str::is_empty)?, |kind, _| kind == "cgroup2")?;
    Some(Hierarchy { version: Version::Two, top, own })
}

/// The mount point of a kind of mount, and where below it the cgroup `path` is.
fn place(mounts: &str, path: &str, wanted: fn(&str, &str) -> bool) -> Option<(PathBuf, PathBuf)> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let (kind, options) = (after.next()?, after.nth(1)?);
        if !wanted(kind, options) {
            return None;
        }
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, Path::new(before.next()?));
        // A container without a cgroup namespace sees its own cgroup mounted as if it were the root.
        let below = Path::new(path).strip_prefix(root).ok().filter(|below| !below.starts_with(".."));
        let own = below.map_or_else(|| point.to_owned(), |below| point.join(below));
        Some((point.to_owned(), own))
    })
}

/// `key 12345` of a `memory.stat`.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `key:  12 kB`, in bytes.
pub(super) fn kilobytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory() {
        let memory = MachineMemory::read().unwrap();
        assert!(memory.total > 0 && memory.free < memory.total && memory.available < memory.total);
        for group in CgroupMemory::read_all() {
            assert!(group.file <= group.usage + memory.total / 10 && group.active_file <= group.file, "{group:?}");
        }
    }

    #[test]
    fn kilobytes_are_read_by_key() {
        assert_eq!(kilobytes("VmRSS:\t 10 kB\nRssAnon:\t  2 kB\n", "RssAnon:"), Some(2048));
        assert_eq!(kilobytes("", "RssAnon:"), None);
        let memory = MachineMemory::parse("MemTotal: 8 kB\nActive: 9 kB\nActive(file): 2 kB\nInactive(file): 1 kB\n");
        assert_eq!((memory.total, memory.active_file, memory.inactive_file), (8192, 2048, 1024));
    }

    #[test]
    fn the_own_cgroup_is_found_in_both_versions_nested_and_in_containers() {
        let one = "31 24 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                   35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                   41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n";
        let two = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n";
        let bound = "88 80 0:32 /kubepods/pod1/c1 /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n";
        for (cgroup, mounts, version, own) in [
            ("9:name=systemd:/\n4:memory:/a/b\n0::/\n", one, Version::One, "/sys/fs/cgroup/memory/a/b"),
            ("0::/system.slice/preheat.service\n", two, Version::Two, "/sys/fs/cgroup/system.slice/preheat.service"),
            ("0::/\n", two, Version::Two, "/sys/fs/cgroup/"),
            ("0::/../../elsewhere\n", two, Version::Two, "/sys/fs/cgroup"),
            ("4:cpu,memory:/kubepods/pod1/c1\n", bound, Version::One, "/sys/fs/cgroup/memory/"),
            ("4:memory:/other\n", bound, Version::One, "/sys/fs/cgroup/memory"),
            ("4:memory:/a\n0::/b\n", two, Version::Two, "/sys/fs/cgroup/b"),
        ] {
            let found = hierarchy(cgroup, mounts).unwrap();
            assert_eq!((found.version, found.own.as_path()), (version, Path::new(own)), "{cgroup}");
        }
        assert_eq!(hierarchy("4:memory:/a\n", ""), None);
        assert_eq!(hierarchy("", two), None);
    }

    #[test]
    fn limits_usage_and_pages_of_files_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        put("memory.limit_in_bytes", "9223372036854771712\n");
        put("memory.usage_in_bytes", "900\n");
        put(
            "memory.stat",
            "active_file 1\nhierarchical_memory_limit 5000\ntotal_inactive_file 300\ntotal_active_file 200\n",
        );
        let one = CgroupMemory::read_one(Version::One, directory.path()).unwrap();
        assert_eq!((one.limit, one.usage, one.file, one.active_file), (Some(5000), 900, 500, 200));
        put("memory.max", "max\n");
        put("memory.high", "7000\n");
        put("memory.current", "800\n");
        put("memory.stat", "anon 5\ninactive_file 30\nactive_file 20\n");
        let two = CgroupMemory::read_one(Version::Two, directory.path()).unwrap();
        assert_eq!((two.limit, two.usage, two.file, two.active_file), (Some(7000), 800, 50, 20));
        put("memory.high", "max\n");
        assert_eq!(CgroupMemory::read_one(Version::Two, directory.path()).unwrap().limit, None);
        assert_eq!(CgroupMemory::read_one(Version::Two, Path::new("/none")), None);
    }
}
