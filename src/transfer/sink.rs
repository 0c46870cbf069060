//! Where the bytes of one file go.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::watch;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::digests::{Crcs, Sequence};
use crate::digest::{Declared, GroupCv, Hash, Outboard, WrongBytes, group_count};
use crate::model::FlightKey;
use crate::store::{BlobHold, Partial, Reservation, StoreError};

/// A partial in use by several tasks. Who counts the tokens knows when nobody uses it any more; so the partial is let go
/// first (fields drop in order), and cannot be had without its token: a closure takes along the fields that it names only.
#[derive(Clone, Debug)]
pub(super) struct Use {
    partial: Arc<Partial>,
    _token: TaskTrackerToken,
}

/// A file that goes to disk group by group.
#[derive(Debug)]
pub(super) struct LargeSink {
    pub(super) of: Use,
    pub(super) crcs: Crcs,
    /// The digests that are sequential over the file, if any is declared.
    pub(super) sequence: Option<Sequence>,
    /// What every group must be, where the origin can prove it.
    outboard: Option<Outboard>,
    front: Mutex<Front>,
    /// Groups on disk without a gap from the first.
    pub(super) contiguous: watch::Sender<u64>,
}

/// Which groups are on disk and marked.
#[derive(Debug)]
struct Front {
    here: Vec<bool>,
    contiguous: usize,
}

/// A file that is held whole until it is checked.
#[derive(Debug)]
pub(super) struct SmallSink {
    pub(super) key: FlightKey,
    pub(super) declared: Vec<Declared>,
    pub(super) expected: Option<Hash>,
    pub(super) reservation: Arc<Reservation>,
    /// Set when it is stored.
    pub(super) stored: OnceLock<BlobHold>,
}

/// An outboard, believed only once it proves itself.
#[derive(Debug)]
pub(super) struct OutboardSink {
    /// Size and root of the file that it is of.
    pub(super) size: u64,
    pub(super) root: Hash,
    /// Set when it has come.
    pub(super) come: OnceLock<Result<Outboard, WrongBytes>>,
}

/// One of them.
#[derive(Clone, Debug)]
pub(super) enum Sink {
    Large(Arc<LargeSink>),
    Small(Arc<SmallSink>),
    Outboard(Arc<OutboardSink>),
}

// === impl Use ===

impl Use {
    pub(super) fn new(partial: Arc<Partial>, token: TaskTrackerToken) -> Self {
        Self { partial, _token: token }
    }
}

impl std::ops::Deref for Use {
    type Target = Partial;

    fn deref(&self) -> &Partial {
        &self.partial
    }
}

// === impl LargeSink ===

impl LargeSink {
    pub(super) fn new(
        of: Use,
        declared: &[Declared],
        outboard: Option<Outboard>,
        missing: &[std::ops::Range<u64>],
    ) -> Self {
        let size = of.size();
        let mut here = vec![true; usize::try_from(group_count(size)).unwrap_or(usize::MAX)];
        for run in missing {
            here[run.start as usize..run.end as usize].fill(false);
        }
        let mut front = Front { here, contiguous: 0 };
        front.advance();
        let contiguous = watch::Sender::new(front.contiguous as u64);
        let (crcs, sequence) = (Crcs::new(size, declared), Sequence::new(size, declared));
        Self { of, crcs, sequence, outboard, front: Mutex::new(front), contiguous }
    }

    /// Hashes and writes one group. `None`: it is not what it must be, and is not written. Blocking.
    pub(super) fn write(&self, group: u64, bytes: &[u8]) -> Result<Option<GroupCv>, StoreError> {
        let written = match self.outboard.as_ref().and_then(|outboard| outboard.group(group)) {
            Some(expected) => self.of.write_proved(group, expected, bytes)?,
            None => Some(self.of.write_group(group, bytes)?),
        };
        if written.is_some() {
            self.crcs.update(group, bytes);
            if let Some(sequence) = &self.sequence {
                sequence.offer(group, bytes);
            }
        }
        Ok(written)
    }

    /// Groups have been marked as received.
    pub(super) fn arrived(&self, groups: std::ops::Range<u64>) {
        let mut front = self.front.lock().unwrap_or_else(PoisonError::into_inner);
        for group in groups {
            if let Some(slot) = usize::try_from(group).ok().and_then(|group| front.here.get_mut(group)) {
                *slot = true;
            }
        }
        front.advance();
        let contiguous = front.contiguous as u64;
        self.contiguous.send_if_modified(|value| std::mem::replace(value, contiguous) != contiguous);
    }
}

// === impl Front ===

impl Front {
    fn advance(&mut self) {
        self.contiguous += self.here[self.contiguous..].iter().take_while(|here| **here).count();
    }
}
