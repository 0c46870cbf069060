//! What a program prints, within a time and a length. A compiler that hangs must not hang the start that asked for its version.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Most bytes that are taken.
const LIMIT: u64 = 64 << 10;

/// Standard output of a program that ends well in time.
pub(super) fn output_of(
    program: &Path,
    arguments: &[&str],
    environment: &BTreeMap<String, String>,
    directory: &Path,
    patience: Duration,
) -> Option<String> {
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .envs(environment)
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let stdout = child.stdout.take()?;
    // Ends with the child, or with those who have inherited its output; nobody waits for it then.
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        stdout.take(LIMIT).read_to_string(&mut text).ok().map(|_| text)
    });
    let started = Instant::now();
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break Some(status),
            Ok(None) if started.elapsed() < patience => std::thread::sleep(Duration::from_millis(2)),
            _ => {
                // It may have ended meanwhile.
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
        }
    };
    if !status?.success() {
        return None;
    }
    while !reader.is_finished() && started.elapsed() < patience {
        std::thread::sleep(Duration::from_millis(1));
    }
    if reader.is_finished() { reader.join().ok().flatten() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(script: &str, patience: u64) -> Option<String> {
        let patience = Duration::from_millis(patience);
        output_of(Path::new("/bin/sh"), &["-c", script], &BTreeMap::new(), Path::new("/"), patience)
    }

    #[test]
    fn a_program_is_heard_and_one_that_fails_or_hangs_is_not() {
        assert_eq!(say("echo 12.2.0", 5000).as_deref(), Some("12.2.0\n"));
        assert_eq!(say("echo 12; exit 1", 5000), None);
        let started = Instant::now();
        assert_eq!(say("echo 12; exec sleep 20", 100), None);
        assert!(started.elapsed() < Duration::from_secs(5));
        let none = output_of(Path::new("/none"), &[], &BTreeMap::new(), Path::new("/"), Duration::from_secs(1));
        assert_eq!(none, None);
    }
}
