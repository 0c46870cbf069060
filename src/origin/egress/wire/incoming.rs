//! A body under way on a connection of our own.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, ReadBuf};

use super::connect::Line;
use super::{Place, Wires};

/// The bytes of one answer. At its end the connection is given back; dropped before, it is closed.
#[derive(Debug)]
pub(in crate::origin) struct Incoming {
    line: Option<Line>,
    /// What came with the head.
    rest: Vec<u8>,
    taken: usize,
    left: u64,
    /// Where the connection goes afterwards.
    home: Option<(Arc<Wires>, Place)>,
}

// === impl Incoming ===

impl Incoming {
    pub(super) fn new(line: Line, rest: Vec<u8>, length: u64, home: Option<(Arc<Wires>, Place)>) -> Self {
        let mut incoming = Self { line: Some(line), rest, taken: 0, left: length, home };
        incoming.end_if_over();
        incoming
    }

    /// Fills the front of `into`; 0 at the end, early or not: the caller counts.
    pub(in crate::origin) fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        let Some(line) = &mut self.line else { return Poll::Ready(Ok(0)) };
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let came_along = &self.rest[self.taken..];
        let read = if came_along.is_empty() {
            let mut buffer = ReadBuf::new(&mut into[..most]);
            ready!(Pin::new(line).poll_read(cx, &mut buffer))?;
            buffer.filled().len()
        } else {
            let take = came_along.len().min(most);
            into[..take].copy_from_slice(&came_along[..take]);
            self.taken += take;
            take
        };
        self.left -= read as u64;
        self.end_if_over();
        Poll::Ready(Ok(read))
    }

    pub(super) async fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        poll_fn(|cx| self.poll_read(cx, into)).await
    }

    fn end_if_over(&mut self) {
        if self.left > 0 {
            return;
        }
        // More than was promised has come: whose answer the next bytes are, nobody knows.
        let clean = self.taken == self.rest.len();
        if let (Some(line), Some((wires, place)), true) = (self.line.take(), self.home.take(), clean) {
            wires.give_back(place, line);
        }
    }
}
