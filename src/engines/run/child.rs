//! The command itself: started with its view, given the signals that are meant for it, waited for until it is ready and until it
//! ends. Its standard streams, its terminal and its process group are ours, as if nobody stood before it.

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use rustix::process::Pid;
use tokio::sync::{mpsc, oneshot};

use super::output::Listener;
use super::ready::Probe;
use super::view::{Placed, View};
use crate::sys::launch::{descendants, reap, reap_orphans, start, wait_for_end};
use crate::sys::signals::{self, Held, Received};

/// Signals that wait to be passed on; more at once are one flood.
const QUEUE: usize = 64;

/// How long what passes output on may take after the command has ended: somebody who has inherited the streams may write on.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Between asking a command to end and making it.
const GRACE: Duration = Duration::from_secs(10);

/// Signals that arrive.
#[derive(Debug)]
pub(super) struct Signals {
    received: mpsc::Receiver<Received>,
    held: Held,
}

/// A command that runs, or has ended.
#[derive(Debug)]
pub(super) struct Child {
    pid: Pid,
    ended: oneshot::Receiver<()>,
    readers: Vec<std::thread::JoinHandle<()>>,
    pub(super) started: Instant,
    /// What it was told to end with, by somebody else.
    pub(super) told: Option<i32>,
    /// This process has ended it, for hanging.
    pub(super) ended_by_us: bool,
}

/// How waiting for a command has ended.
#[derive(Debug)]
pub(super) enum Phase {
    /// It is ready, and runs.
    Ready,
    /// It has ended before.
    Ended(ExitStatus),
    /// The time is over, and it runs.
    Late,
}

// === impl Signals ===

impl Signals {
    pub(super) fn new(held: Held) -> Self {
        let (sender, received) = mpsc::channel(QUEUE);
        // Ends with the process.
        std::thread::spawn(move || {
            while let Ok(signal) = held.next() {
                // A flood is cut short.
                let _ = sender.try_send(signal);
            }
        });
        Self { received, held }
    }

    /// The next one that asks for an end.
    pub(super) async fn told(&mut self) -> i32 {
        loop {
            let received = self.next().await;
            if is_end(received.signal) {
                return received.signal;
            }
        }
    }

    /// One that asks for an end and has come already. What else has come while there was nobody to be told of it is let go.
    pub(super) fn already_told(&mut self) -> Option<i32> {
        std::iter::from_fn(|| self.received.try_recv().ok())
            .map(|received| received.signal)
            .find(|signal| is_end(*signal))
    }

    /// The next one. Pending for ever when there will be none.
    pub(super) async fn next(&mut self) -> Received {
        match self.received.recv().await {
            Some(received) => received,
            None => std::future::pending().await,
        }
    }
}

// === impl Child ===

impl Child {
    /// Starts the command.
    ///
    /// # Errors
    /// That the program is not there, among others.
    pub(super) fn start(
        argv: &[OsString],
        placed: Option<&Placed>,
        view: Option<&View>,
        listener: &Listener,
        signals: &Signals,
    ) -> std::io::Result<Self> {
        let Some((program, arguments)) = argv.split_first() else {
            return Err(std::io::ErrorKind::InvalidInput.into());
        };
        let mut command = Command::new(program);
        command.args(arguments);
        let mut readers = Vec::new();
        // Without a process that passes on, the command has our own streams and nobody reads along.
        if let Ok(Some(streams)) = listener.streams() {
            command.stdout(streams.stdout).stderr(streams.stderr);
            readers = streams.readers;
        }
        let mut mounts = None;
        if let Some(placed) = placed {
            mounts.clone_from(&placed.mounts);
            command.envs(placed.variables.iter().map(|(name, path)| (name, path)));
        }
        let started = Instant::now();
        let pid = start(&mut command, mounts, signals.held.before(), view.map(|view| view.lock().as_fd()))?;
        let (sender, ended) = oneshot::channel();
        std::thread::spawn(move || {
            // An error means that there is nothing to wait for.
            let _ = wait_for_end(pid);
            let _ = sender.send(());
        });
        Ok(Self { pid, ended, readers, started, told: None, ended_by_us: false })
    }

    /// Waits until it is ready, ends, or `patience` is over.
    pub(super) async fn until_ready(
        &mut self,
        probe: &Probe,
        other: bool,
        listener: &Listener,
        patience: Duration,
        signals: &mut Signals,
    ) -> Phase {
        let late = tokio::time::sleep_until((self.started + patience).into());
        let ready = probe.wait(&listener.ready, other);
        tokio::pin!(late, ready);
        loop {
            tokio::select! {
                biased;
                // An end is an end, also of what has just answered.
                _ = &mut self.ended => return Phase::Ended(self.reap().await),
                received = signals.next() => self.pass(received),
                () = &mut ready => return Phase::Ready,
                () = &mut late => return Phase::Late,
            }
        }
    }

    /// Waits until it has ended.
    pub(super) async fn until_end(&mut self, signals: &mut Signals) -> ExitStatus {
        loop {
            tokio::select! {
                biased;
                _ = &mut self.ended => return self.reap().await,
                received = signals.next() => self.pass(received),
            }
        }
    }

    /// Ends it.
    pub(super) async fn end(&mut self, signals: &mut Signals) -> ExitStatus {
        self.ended_by_us = true;
        // One that is gone has ended.
        let _ = signals::send(self.pid, libc::SIGTERM);
        match tokio::time::timeout(GRACE, self.until_end(signals)).await {
            Ok(status) => status,
            Err(_) => {
                let _ = signals::send(self.pid, libc::SIGKILL);
                self.until_end(signals).await
            }
        }
    }

    fn pass(&mut self, received: Received) {
        // A terminal that is gone tells the leader of its session alone, which may be this process.
        if !received.from_terminal || received.signal == libc::SIGHUP {
            // It is not reaped before `ended` is seen, so that the number is still its own.
            let _ = signals::send(self.pid, received.signal);
        }
        if is_end(received.signal) {
            self.told = Some(received.signal);
        }
    }

    async fn reap(&mut self) -> ExitStatus {
        let until = Instant::now() + LAST_WORDS;
        while self.readers.iter().any(|reader| !reader.is_finished()) && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        // What was waited for is a child of ours.
        reap(self.pid).unwrap_or_default()
    }
}

/// Whether a signal asks for an end.
pub(super) fn is_end(signal: i32) -> bool {
    matches!(signal, libc::SIGTERM | libc::SIGINT | libc::SIGHUP | libc::SIGQUIT)
}

/// Ends everything that stems from a command that has ended, and waits until it is gone: a worker that lives on holds the memory of its
/// GPU, and the next start would fail for that. False: something is still there.
pub(super) async fn clear_out() -> bool {
    let until = Instant::now() + GRACE;
    loop {
        reap_orphans();
        let left = descendants();
        if left.is_empty() || Instant::now() > until {
            return left.is_empty();
        }
        for pid in left {
            // One that is gone has ended.
            let _ = signals::send(pid, libc::SIGKILL);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The code that a shell would give.
pub(super) fn code(status: ExitStatus) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())
}

/// How a command ended, in words.
pub(super) fn words(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(signal) => format!("it was ended by signal {signal}"),
        None => format!("it ended with exit code {}", code(status)),
    }
}
