//! One read, write or sync from the asking to the answer: which step is next, and what a step's outcome means. Both hands
//! drive this; neither decides anything.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use tokio::sync::oneshot;

use super::{DiskFile, Done};
use crate::sys::buffer::Buffer;

/// What the kernel does in one call at most: a page less than 2 GiB, here in whole units.
const MOST: usize = 1 << 30;

/// Of a kind that passes, such as `EAGAIN`: after so many a call is made that waits instead.
const MOST_HICCUPS: u8 = 3;

/// Where the answer goes.
pub(super) type Reply = oneshot::Sender<io::Result<Option<Done>>>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// `exact`: a file that ends before is an error.
    Read {
        exact: bool,
    },
    Write,
    SyncData,
}

/// It owns all that the kernel may use until it is answered.
#[derive(Debug)]
pub(super) struct Operation {
    work: Work,
    file: DiskFile,
    /// None only for syncs.
    buffer: Option<Buffer>,
    offset: u64,
    length: usize,
    done: usize,
    /// Past the page cache, as long as the file system goes along.
    direct: bool,
    hiccups: u8,
    reply: Reply,
}

/// What to ask the kernel for next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Past the page cache.
    pub(super) direct: bool,
    /// Of the buffer. Its end is past `length` where a direct read takes the last unit whole.
    pub(super) bytes: Range<usize>,
    pub(super) offset: u64,
}

/// What a step's outcome means.
#[derive(Debug)]
pub(super) enum Progress {
    /// Another step.
    Again(Operation),
    /// The kernel refuses to begin for the moment: a call that waits comes next.
    Wait(Operation),
    Answered,
}

// === impl Operation ===

impl Operation {
    /// Or why not, with the place for the answer.
    pub(super) fn new(
        work: Work,
        file: DiskFile,
        offset: u64,
        buffer: Option<Buffer>,
        length: usize,
        reply: Reply,
    ) -> Result<Self, (Reply, io::Error)> {
        let room = buffer.as_ref().map_or(0, |buffer| buffer.len());
        // The kernel counts with a sign.
        let fits = length <= room && offset.checked_add(length as u64).is_some_and(|end| i64::try_from(end).is_ok());
        if !fits {
            let detail = format!("{length} bytes at {offset} do not fit a buffer of {room} bytes or a file");
            return Err((reply, io::Error::new(io::ErrorKind::InvalidInput, detail)));
        }
        let direct = file.direct.is_some();
        Ok(Self { work, file, buffer, offset, length, done: 0, direct, hiccups: 0, reply })
    }

    pub(super) fn work(&self) -> Work {
        self.work
    }

    /// A read that nobody waits for.
    pub(super) fn abandoned(&self) -> bool {
        matches!(self.work, Work::Read { .. }) && self.reply.is_closed()
    }

    /// A read or write of no bytes asks the kernel nothing.
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0 && self.work != Work::SyncData
    }

    pub(super) fn next(&self) -> Step {
        let (at, left) = (self.offset + self.done as u64, self.length - self.done);
        let room = self.buffer.as_ref().map_or(0, |buffer| buffer.len());
        if let Some(direct) = self.file.direct.as_ref().filter(|_| self.direct) {
            let unit = direct.unit as usize;
            let aligned = |start: &Buffer| start.as_ptr().addr() + self.done;
            let memory = self.buffer.as_ref().map_or(0, aligned);
            if at.is_multiple_of(direct.unit) && memory.is_multiple_of(unit) {
                let (down, up) = (left / unit * unit, left.next_multiple_of(unit));
                let whole = matches!(self.work, Work::Read { .. }) && self.done + up <= room;
                let take = if whole { up } else { down }.min(MOST);
                if take > 0 {
                    return Step { direct: true, bytes: self.done..self.done + take, offset: at };
                }
            }
        }
        Step { direct: false, bytes: self.done..self.done + left.min(MOST), offset: at }
    }

    /// The file that a step is for.
    pub(super) fn file_of(&self, step: &Step) -> &File {
        match &self.file.direct {
            Some(direct) if step.direct => &direct.file,
            _ => &self.file.cached,
        }
    }

    /// Where the bytes of a step are.
    pub(super) fn bytes_of(&mut self, step: &Step) -> &mut [u8] {
        self.buffer.as_mut().and_then(|buffer| buffer.get_mut(step.bytes.clone())).unwrap_or_default()
    }

    /// Makes one step on this thread, and waits for it.
    pub(super) fn perform(&mut self) -> io::Result<usize> {
        let step = self.next();
        let file = match &self.file.direct {
            Some(direct) if step.direct => &direct.file,
            _ => &self.file.cached,
        };
        let bytes = self.buffer.as_mut().and_then(|buffer| buffer.get_mut(step.bytes.clone())).unwrap_or_default();
        match self.work {
            Work::Read { .. } => file.read_at(bytes, step.offset),
            Work::Write => file.write_at(bytes, step.offset),
            Work::SyncData => file.sync_data().map(|()| 0),
        }
    }

    /// Takes the outcome of the last step.
    pub(super) fn advance(mut self, outcome: io::Result<usize>) -> Progress {
        let moved = match outcome {
            Ok(moved) => moved,
            Err(error) => return self.stumbled(error),
        };
        self.hiccups = 0;
        if self.work == Work::SyncData {
            return self.answer(Ok(()));
        }
        // A direct read may bring more than was asked for, up to the end of its unit.
        self.done = (self.done + moved).min(self.length);
        if self.done == self.length {
            return self.answer(Ok(()));
        }
        match (moved, self.work) {
            (0, Work::Read { exact: false }) => self.answer(Ok(())),
            (0, Work::Read { exact: true }) => {
                let end = self.offset + self.done as u64;
                let detail = format!("the file ends at byte {end}, {} bytes early", self.length - self.done);
                self.answer(Err(io::Error::new(io::ErrorKind::UnexpectedEof, detail)))
            }
            (0, _) => self.answer(Err(io::ErrorKind::WriteZero.into())),
            _ => Progress::Again(self),
        }
    }

    fn stumbled(mut self, error: io::Error) -> Progress {
        match error.raw_os_error() {
            // Of a sync every error is final.
            _ if self.work == Work::SyncData && error.raw_os_error() != Some(libc::EINTR) => self.answer(Err(error)),
            Some(libc::EINTR | libc::EAGAIN | libc::ECANCELED) => {
                self.hiccups = self.hiccups.saturating_add(1);
                if self.hiccups > MOST_HICCUPS { Progress::Wait(self) } else { Progress::Again(self) }
            }
            // The file system does not do it after all.
            Some(libc::EINVAL) if self.next().direct => {
                self.direct = false;
                Progress::Again(self)
            }
            _ => self.answer(Err(error)),
        }
    }

    /// Nobody may be waiting any more.
    pub(super) fn answer(self, outcome: io::Result<()>) -> Progress {
        let bytes = self.done;
        let _ = self.reply.send(outcome.map(|()| self.buffer.map(|buffer| Done { buffer, bytes })));
        Progress::Answered
    }

    /// Makes all its steps on this thread.
    pub(super) fn finish(mut self) {
        if self.is_empty() {
            self.answer(Ok(()));
            return;
        }
        loop {
            let outcome = self.perform();
            match self.advance(outcome) {
                Progress::Again(operation) | Progress::Wait(operation) => self = operation,
                Progress::Answered => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::file::Direct;
    use super::*;
    use crate::sys::buffer::Buffers;

    const UNIT: usize = 4096;

    fn operation(
        work: Work,
        direct: bool,
        offset: u64,
        length: usize,
    ) -> (Operation, oneshot::Receiver<io::Result<Option<Done>>>) {
        let file = Arc::new(File::open("/dev/null").unwrap());
        let direct = direct.then(|| Direct { file: Arc::clone(&file), unit: UNIT as u64 });
        let buffer = (work != Work::SyncData).then(|| Buffers::new(65536, 65536).try_acquire().unwrap());
        let (reply, answer) = oneshot::channel();
        let operation = Operation::new(work, DiskFile { cached: file, direct }, offset, buffer, length, reply).unwrap();
        (operation, answer)
    }

    fn again(progress: Progress) -> Operation {
        let Progress::Again(operation) = progress else { panic!("{progress:?}") };
        operation
    }

    const READ: Work = Work::Read { exact: true };

    #[test]
    fn short_steps_are_continued_where_they_ended() {
        for work in [READ, Work::Write] {
            let (operation, mut answer) = operation(work, false, 10, 1000);
            assert_eq!(operation.next(), Step { direct: false, bytes: 0..1000, offset: 10 });
            let operation = again(operation.advance(Ok(300)));
            assert_eq!(operation.next(), Step { direct: false, bytes: 300..1000, offset: 310 });
            assert!(matches!(operation.advance(Ok(700)), Progress::Answered));
            assert_eq!(answer.try_recv().unwrap().unwrap().unwrap().bytes, 1000);
        }
    }

    #[test]
    fn whole_units_go_past_the_cache_and_the_rest_through_it() {
        let (write, _answer) = operation(Work::Write, true, 8192, 2 * UNIT + 5);
        assert_eq!(write.next(), Step { direct: true, bytes: 0..2 * UNIT, offset: 8192 });
        let write = again(write.advance(Ok(2 * UNIT)));
        assert_eq!(write.next(), Step { direct: false, bytes: 2 * UNIT..2 * UNIT + 5, offset: 16384 });
        // A read takes its last unit whole where the buffer has room, and tells only of what was asked for.
        let (read, mut answer) = operation(READ, true, 8192, UNIT + 5);
        assert_eq!(read.next(), Step { direct: true, bytes: 0..2 * UNIT, offset: 8192 });
        assert!(matches!(read.advance(Ok(UNIT + 900)), Progress::Answered));
        assert_eq!(answer.try_recv().unwrap().unwrap().unwrap().bytes, UNIT + 5);
        let (full, _answer) = operation(READ, true, 0, 65536);
        assert_eq!(full.next(), Step { direct: true, bytes: 0..65536, offset: 0 });
        // Neither at an odd offset, nor after a step that ended at one.
        let (odd, _answer) = operation(READ, true, 1, 8192);
        assert!(!odd.next().direct);
        let (cut, _answer) = operation(Work::Write, true, 0, 8192);
        assert!(!again(cut.advance(Ok(100))).next().direct);
    }

    #[test]
    fn a_file_system_that_does_not_do_it_is_asked_through_the_cache() {
        let (operation, mut answer) = operation(READ, true, 0, 8192);
        let operation = again(operation.advance(Err(io::Error::from_raw_os_error(libc::EINVAL))));
        assert_eq!(operation.next(), Step { direct: false, bytes: 0..8192, offset: 0 });
        assert!(matches!(operation.advance(Err(io::Error::from_raw_os_error(libc::EINVAL))), Progress::Answered));
        assert_eq!(answer.try_recv().unwrap().unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn what_passes_is_tried_again_and_then_waited_for() {
        for errno in [libc::EINTR, libc::EAGAIN, libc::ECANCELED] {
            let (mut operation, _answer) = operation(Work::Write, false, 0, 10);
            for _ in 0..MOST_HICCUPS {
                operation = again(operation.advance(Err(io::Error::from_raw_os_error(errno))));
            }
            let last = operation.advance(Err(io::Error::from_raw_os_error(errno)));
            assert!(matches!(last, Progress::Wait(_)), "{errno}");
        }
    }

    #[test]
    fn a_failed_sync_is_never_tried_again() {
        for errno in [libc::EAGAIN, libc::EIO, libc::ECANCELED] {
            let (sync, mut answer) = operation(Work::SyncData, false, 0, 0);
            assert!(matches!(sync.advance(Err(io::Error::from_raw_os_error(errno))), Progress::Answered));
            assert_eq!(answer.try_recv().unwrap().unwrap_err().raw_os_error(), Some(errno));
        }
    }

    #[test]
    fn a_write_that_gets_nowhere_is_an_error() {
        let (write, mut answer) = operation(Work::Write, false, 0, 10);
        assert!(matches!(write.advance(Ok(0)), Progress::Answered));
        assert_eq!(answer.try_recv().unwrap().unwrap_err().kind(), io::ErrorKind::WriteZero);
    }
}
