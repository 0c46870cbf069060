//! What a restore takes beside `cp -a` of the same files. Not a test: `scripts/benches/restore_cost` runs it, alone on the machine.

use std::path::Path;
use std::time::{Duration, Instant};

use preheat::engines::{Captured, Library};
use preheat::model::engine::BundleKind;

use super::support::engine::{capture, key, library, put};
use super::support::model::noise;

/// `count` files of `size` bytes in directories of sixteen.
fn files(root: &Path, count: usize, size: usize) {
    for number in 0..count {
        let path = root.join(format!("{:03}/{number}/k.cubin", number / 16));
        put(&path, &noise(number as u64, size), 0o644, 1_700_000_000_000_000_000 + number as u64);
    }
}

fn copy(from: &Path, to: &Path) -> Duration {
    let started = Instant::now();
    let status = std::process::Command::new("cp").arg("-a").args([from, to]).status().unwrap();
    assert!(status.success());
    started.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn a_restore_beside_a_copy() {
    let place = std::env::var("PLACE").map_or_else(|_| std::env::temp_dir(), Into::into);
    for (count, size) in [(4, 128 << 20), (400, 1 << 20), (20_000, 20 << 10)] {
        let directory = tempfile::tempdir_in(&place).unwrap();
        let root = directory.path().join("cache");
        files(&root, count, size);
        let library = library(&directory.path().join("root"), |_| {}).await;
        let started = Instant::now();
        let captured = library.capture(capture(key(BundleKind::Kernel, "a"), &[("triton", &root)])).await.unwrap();
        let capturing = started.elapsed();
        let Captured::Created { bundle, .. } = captured else { panic!("{captured:?}") };
        let (mut copies, mut restores) = (Vec::new(), Vec::new());
        for round in 0..5 {
            let (copied, restored) = (directory.path().join("copied"), directory.path().join("restored"));
            // In turns, and each first as often.
            for turn in [round % 2, 1 - round % 2] {
                if turn == 0 {
                    copies.push(copy(&root, &copied));
                    std::fs::remove_dir_all(&copied).unwrap();
                } else {
                    let started = Instant::now();
                    library.restore(&bundle, &restored).await.unwrap();
                    restores.push(started.elapsed());
                    std::fs::remove_dir_all(&restored).unwrap();
                }
            }
        }
        let median = |times: &mut Vec<Duration>| {
            times.sort();
            times[times.len() / 2].as_secs_f64()
        };
        let (copy, restore) = (median(&mut copies), median(&mut restores));
        println!(
            "{count:>6} files of {size:>9} bytes: cp -a {copy:.3} s, restore {restore:.3} s, {:.2} times; capture {:.3} s",
            restore / copy,
            capturing.as_secs_f64()
        );
    }
}
