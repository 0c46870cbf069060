//! The hot pieces in time: `cargo bench --bench hot`, or `cargo bench --bench hot -- outboard` for one of them.
#![allow(clippy::expect_used, reason = "a bench stops at the first surprise")]

mod cases;

use criterion::{Criterion, Throughput};

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    for case in cases::all() {
        let mut group = criterion.benchmark_group("hot");
        if let Some(bytes) = case.bytes {
            group.throughput(Throughput::Bytes(bytes));
        }
        group.bench_function(case.name, |bencher| bencher.iter(|| (case.run)()));
        group.finish();
    }
    criterion.final_summary();
}
