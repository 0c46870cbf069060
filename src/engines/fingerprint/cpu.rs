//! The processor: its architecture, what it can do, how many of it the command may use.

use super::facts::{Facts, short};
use super::scene::Scene;
use crate::digest::Hash;

pub(super) fn detect(scene: &Scene, facts: &mut Facts) {
    facts.know("cpu.arch", std::env::consts::ARCH, "build");
    let description = scene.read("/proc/cpuinfo").unwrap_or_default();
    let line = |names: &[&str]| {
        let lines = description.lines().filter_map(|line| line.split_once(':'));
        lines
            .map(|(name, value)| (name.trim(), value.trim()))
            .find(|(name, _)| names.contains(name))
            .map(|(_, value)| value)
    };
    // `Features` is what the kernel for arm64 calls them. Their order says nothing.
    match line(&["flags", "Features"]) {
        Some(flags) => {
            let mut flags: Vec<&str> = flags.split_ascii_whitespace().collect();
            flags.sort_unstable();
            flags.dedup();
            let digest = short(&Hash::of(flags.join(" ").as_bytes()));
            facts.know("cpu.isa", format!("{} flags, blake3:{digest}", flags.len()), "/proc/cpuinfo");
        }
        None => facts.miss("cpu.isa", "/proc/cpuinfo lists no flags"),
    }
    if let Some(model) = line(&["model name", "CPU part"]) {
        facts.know("cpu.model", model, "/proc/cpuinfo");
    }
    let allowed = scene
        .read("/proc/self/status")
        .and_then(|status| status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).and_then(count));
    let asked = scene.variable("OMP_NUM_THREADS").and_then(|value| value.split(',').next()?.trim().parse::<u64>().ok());
    match (asked, allowed) {
        (Some(threads), _) => facts.know("cpu.threads", threads.to_string(), "OMP_NUM_THREADS"),
        (None, Some(threads)) => facts.know("cpu.threads", threads.to_string(), "Cpus_allowed_list"),
        (None, None) => facts.miss("cpu.threads", "/proc/self/status has no Cpus_allowed_list"),
    }
}

/// How many there are in `0-3,7`.
fn count(list: &str) -> Option<u64> {
    list.trim().split(',').try_fold(0_u64, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_counted() {
        for (list, number) in [("0", Some(1)), ("0-3", Some(4)), (" 0-1,4,6-7\n", Some(5)), ("", None), ("3-1", None)] {
            assert_eq!(count(list), number, "{list}");
        }
    }

    #[test]
    fn flags_are_a_set_and_threads_can_be_asked_for() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(root.path().join("proc/self")).unwrap();
        let write = |flags: &str| {
            std::fs::write(root.path().join("proc/cpuinfo"), format!("model name\t: X\nflags\t\t: {flags}\n")).unwrap();
        };
        std::fs::write(root.path().join("proc/self/status"), "Cpus_allowed_list:\t0-1\n").unwrap();
        let take = |threads: Option<&str>| {
            let environment = threads.map(|threads| ("OMP_NUM_THREADS".to_owned(), threads.to_owned()));
            let scene = Scene {
                root: root.path().into(),
                environment: environment.into_iter().collect(),
                argv: Vec::new(),
                directory: "/".into(),
            };
            let mut facts = Facts::default();
            detect(&scene, &mut facts);
            facts
        };
        write("fpu avx2 sse");
        let one = take(None);
        write("sse fpu avx2");
        assert_eq!(take(None), one);
        assert_eq!(one.value("cpu.threads"), Some("2"));
        assert_eq!(take(Some("1")).value("cpu.threads"), Some("1"));
        write("sse fpu avx512");
        assert_ne!(take(None).value("cpu.isa"), one.value("cpu.isa"));
        std::fs::remove_file(root.path().join("proc/cpuinfo")).unwrap();
        assert_eq!(take(None).value("cpu.isa"), None);
    }
}
