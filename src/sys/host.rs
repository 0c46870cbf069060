//! What this machine, or this container, has.

use std::fs;

use super::memory::{CgroupMemory, MachineMemory, kilobytes};

/// Facts about the host as this process sees it.
#[derive(Clone, Debug, serde::Serialize)]
pub struct HostFacts {
    /// Host name.
    pub hostname: String,
    /// Kernel release.
    pub kernel: String,
    /// CPUs this process may use, with affinity and cgroup quota counted.
    pub cpus: usize,
    /// Bytes of memory: the machine's, or the cgroup's limit if that is smaller.
    pub memory_bytes: u64,
    /// Model names of NVIDIA GPUs, as the driver lists them in `/proc`; empty without its driver.
    pub gpus: Vec<String>,
}

// === impl HostFacts ===

impl HostFacts {
    /// Reads them now. What cannot be read is empty or zero.
    #[must_use]
    pub fn read() -> Self {
        let uname = rustix::system::uname();
        Self {
            hostname: uname.nodename().to_string_lossy().into_owned(),
            kernel: uname.release().to_string_lossy().into_owned(),
            // The standard library reads affinity and cgroup quota, v1 and v2.
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory_bytes(),
            gpus: gpus(),
        }
    }
}

/// Memory of the machine, or the smallest limit of a cgroup that this process is in.
#[must_use]
pub fn memory_bytes() -> u64 {
    let machine = MachineMemory::read().map_or(0, |memory| memory.total);
    CgroupMemory::read_all().iter().filter_map(|group| group.limit).fold(machine, u64::min)
}

/// Anonymous memory of this process in bytes: what a memory limit kills for; mapped model files are not in it.
#[must_use]
pub fn anonymous_rss() -> Option<u64> {
    kilobytes(&fs::read_to_string("/proc/self/status").ok()?, "RssAnon:")
}

fn gpus() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/proc/driver/nvidia/gpus") else { return Vec::new() };
    let mut models: Vec<String> = entries
        .filter_map(|entry| fs::read_to_string(entry.ok()?.path().join("information")).ok())
        .filter_map(|text| Some(text.lines().find_map(|line| line.strip_prefix("Model:"))?.trim().to_owned()))
        .collect();
    models.sort();
    models
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_something() {
        let facts = HostFacts::read();
        assert!(facts.cpus > 0 && facts.memory_bytes > 0 && !facts.kernel.is_empty());
        assert!(anonymous_rss().is_some_and(|bytes| bytes > 0));
    }
}
