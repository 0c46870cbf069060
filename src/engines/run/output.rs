//! The engine's output: passed on as it is, and read on the way. A pipe whose reader dies would end the engine with it, so what
//! passes it on is a small process of its own, which lives as long as somebody writes; what this process does not take in time
//! is not shown to it, and nobody waits.

use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use super::super::profile::Log;
use crate::base::lifecycle::CancellationToken;

/// The verb of the process that passes output on.
pub const VERB: &str = "pass-on";

/// Longest line that is looked at, and most lines that are kept.
const LINE_LIMIT: usize = 2000;
const KEPT: usize = 64;
const KEPT_LENGTH: usize = 500;

/// What has been read so far.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Heard {
    /// Lines that say that something was reused.
    pub hit: u64,
    /// Lines that say that something was compiled.
    pub miss: u64,
    /// Lines that say that something could not be used.
    pub bad: u64,
    /// These lines, and those that tell how long something took.
    pub lines: Vec<String>,
}

/// Reads along.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    heard: Arc<Mutex<Heard>>,
    /// Set when the line that means "ready" has come.
    pub(super) ready: CancellationToken,
    log: Arc<Log>,
    line: Option<Arc<str>>,
}

/// Streams of a child, and what ends when all of them have.
#[derive(Debug)]
pub(super) struct Streams {
    pub(super) stdout: Stdio,
    pub(super) stderr: Stdio,
    pub(super) readers: Vec<std::thread::JoinHandle<()>>,
}

// === impl Listener ===

impl Listener {
    pub(super) fn new(log: &Log, line: Option<&str>) -> Self {
        Self {
            heard: Arc::default(),
            ready: CancellationToken::new(),
            log: Arc::new(log.clone()),
            line: line.map(Arc::from),
        }
    }

    /// Whether there is anything to listen for.
    pub(super) fn listens(&self) -> bool {
        self.line.is_some() || *self.log != Log::default()
    }

    pub(super) fn heard(&self) -> Heard {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn hear(&self, line: &str) {
        if self.line.as_ref().is_some_and(|wanted| line.contains(wanted.as_ref())) {
            self.ready.cancel();
        }
        let says = |parts: &[String]| parts.iter().any(|part| line.contains(part.as_str()));
        let (hit, miss, bad) = (says(&self.log.hit), says(&self.log.miss), says(&self.log.bad));
        if hit || miss || bad || says(&self.log.stages) {
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            heard.hit += u64::from(hit);
            heard.miss += u64::from(miss);
            heard.bad += u64::from(bad);
            if heard.lines.len() < KEPT {
                heard.lines.push(line.chars().filter(|c| !c.is_control()).take(KEPT_LENGTH).collect());
            }
        }
    }

    /// Puts itself between a child's output and ours. Of a terminal it keeps away: programs behave otherwise there.
    ///
    /// # Errors
    /// When pipes or the process that passes on cannot be had; then the child gets our own streams.
    pub(super) fn streams(&self) -> io::Result<Option<Streams>> {
        use std::io::IsTerminal;
        let (stdout, stderr) = (io::stdout(), io::stderr());
        if !self.listens() || stdout.is_terminal() || stderr.is_terminal() {
            return Ok(None);
        }
        let (out, out_copy) = pass_on(stdout.as_fd().try_clone_to_owned()?)?;
        let mut readers = vec![self.clone().read(out_copy)];
        // One file for both keeps the order of their lines.
        let same = |one: &OwnedFd, other: &OwnedFd| -> io::Result<bool> {
            let (one, other) = (rustix::fs::fstat(one)?, rustix::fs::fstat(other)?);
            Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
        };
        let err = if same(&stdout.as_fd().try_clone_to_owned()?, &stderr.as_fd().try_clone_to_owned()?)? {
            out.try_clone()?
        } else {
            let (err, err_copy) = pass_on(stderr.as_fd().try_clone_to_owned()?)?;
            readers.push(self.clone().read(err_copy));
            err
        };
        Ok(Some(Streams { stdout: Stdio::from(out), stderr: Stdio::from(err), readers }))
    }

    fn read(self, copy: PipeReader) -> std::thread::JoinHandle<()> {
        std::thread::spawn(move || {
            let mut copy = BufReader::new(copy);
            let mut line = Vec::new();
            loop {
                line.clear();
                match (&mut copy).take(LINE_LIMIT as u64).read_until(b'\n', &mut line) {
                    Ok(0) | Err(_) => return,
                    Ok(_) => self.hear(&String::from_utf8_lossy(&line)),
                }
            }
        })
    }
}

/// Starts the process that passes on to `to`: what is written here, and a copy of it.
fn pass_on(to: OwnedFd) -> io::Result<(io::PipeWriter, PipeReader)> {
    let (from_child, to_us) = io::pipe()?;
    let (copy, copied) = io::pipe()?;
    // Its own number is never needed: the copy ends with it.
    let _child = Command::new("/proc/self/exe")
        .arg(VERB)
        .stdin(Stdio::from(from_child))
        .stdout(Stdio::from(to))
        .stderr(Stdio::from(copied))
        .spawn()?;
    Ok((to_us, copy))
}

/// The process that passes on: standard input to standard output, and what fits to standard error. It ends when nobody writes any
/// more, and when nobody reads: then whoever writes is told as it would have been without.
///
/// # Errors
/// When reading or writing fails.
pub fn pass_on_here() -> io::Result<()> {
    // Keys on the terminal are for the engine, whose last words are still to be passed on.
    let _held = crate::sys::signals::Held::back()?;
    let (mut input, mut output, copy) = (io::stdin().lock(), io::stdout().lock(), io::stderr());
    fcntl_setfl(&copy, fcntl_getfl(&copy)? | OFlags::NONBLOCK)?;
    let mut copy = Some(copy);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = match input.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        output.write_all(&buffer[..length])?;
        output.flush()?;
        // What does not fit is lost to whoever reads along; whoever is gone is not written to again.
        let lost = |error: io::Error| error.kind() != io::ErrorKind::WouldBlock;
        if copy.as_mut().is_some_and(|copy| copy.write(&buffer[..length]).is_err_and(lost)) {
            copy = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_counted_and_kept_within_limits() {
        let log = Log {
            hit: vec!["Directly load".to_owned()],
            bad: vec!["corrupted".to_owned()],
            stages: vec!["took".to_owned()],
            ..Log::default()
        };
        let listener = Listener::new(&log, Some("fired up"));
        for line in ["INFO Directly load AOT", "nothing", "\u{1b}[31mcorrupted", "it took 3 s"] {
            listener.hear(line);
        }
        assert!(!listener.ready.is_cancelled());
        listener.hear("The server is fired up and ready to roll!");
        assert!(listener.ready.is_cancelled());
        for _ in 0..1000 {
            listener.hear(&"took ".repeat(1000));
        }
        let heard = listener.heard();
        assert_eq!((heard.hit, heard.miss, heard.bad), (1, 0, 1));
        assert!(heard.lines.len() <= KEPT && heard.lines.iter().all(|line| line.len() <= KEPT_LENGTH));
        assert!(heard.lines[1].starts_with("[31mcorrupted"), "no control characters");
        assert!(!Listener::new(&Log::default(), None).listens());
    }
}
