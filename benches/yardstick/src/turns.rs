//! Threads that all begin at once and are timed together.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Runs `work(number)` on `threads` threads, and answers what each returned and the time from the first to the last.
pub(crate) fn together<T: Send>(
    threads: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<(Vec<T>, Duration)> {
    let start = Barrier::new(threads + 1);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|number| {
                let (work, start) = (&work, &start);
                scope.spawn(move || {
                    start.wait();
                    work(number)
                })
            })
            .collect();
        start.wait();
        let began = Instant::now();
        let ended: Vec<_> = running.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        let took = began.elapsed();
        let done =
            ended.into_iter().map(|end| end.map_err(|_| anyhow!("a thread panicked"))?).collect::<Result<Vec<T>>>()?;
        Ok((done, took))
    })
}
