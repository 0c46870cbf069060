//! Bytes on their way out, and clients that do not take them.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use preheat::digest::Hash;

use super::support::command::{Daemon, code, preheat, stderr};
use super::support::model::{MIB, model, write};

const SHARD: &str = "model-00001-of-00001.safetensors";

/// More than the kernel holds between the two.
const LARGE: usize = 48 * MIB;

#[test]
fn a_client_that_takes_nothing_is_left_and_one_that_is_slow_is_served() {
    let directory = tempfile::tempdir().unwrap();
    let files = model(1, 1, LARGE);
    let (place, root) = (directory.path().join("model"), directory.path().join("store"));
    write(&files, &place);
    let imported = preheat().arg("import").arg(&place).arg("--root").arg(&root).output().unwrap();
    assert_eq!(code(&imported), 0, "{}", stderr(&imported));
    let config = directory.path().join("config.toml");
    std::fs::write(&config, "[server]\nwrite_timeout = \"2s\"\n").unwrap();
    let daemon = Daemon::start(directory.path(), &["--config", config.to_str().unwrap()]);
    let ask = || {
        let mut stream = UnixStream::connect(&daemon.socket).unwrap();
        let hash = Hash::of(&files[SHARD]);
        write!(stream, "GET /v1/blobs/{hash} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        stream
    };
    let (mut silent, mut slow) = (ask(), ask());
    let mut taken = 0;
    let mut piece = vec![0; MIB];
    loop {
        match slow.read(&mut piece).unwrap() {
            0 => break,
            read => taken += read,
        }
        if taken < 16 * MIB {
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    assert!(taken > files[SHARD].len(), "{taken}");
    std::thread::sleep(Duration::from_secs(4));
    let mut rest = Vec::new();
    // Whether the kernel tells of the end or of a reset is up to it.
    let _ = silent.read_to_end(&mut rest);
    assert!(rest.starts_with(b"HTTP/1.1 200 ") && rest.len() < files[SHARD].len(), "{} bytes", rest.len());
}
