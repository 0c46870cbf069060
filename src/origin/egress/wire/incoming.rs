//! A body under way on a connection of our own.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep};

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
    silence: Silence,
    /// Where the connection goes afterwards.
    home: Option<(Arc<Wires>, Place)>,
}

/// Why there are no more bytes.
#[derive(Debug)]
pub(in crate::origin) enum Broken {
    /// None came for so long.
    Silent(Duration),
    Connection(io::Error),
}

/// How long somebody has waited for the next bytes. A reader that is busy elsewhere is not the server's silence, so it begins
/// when a read has found nothing.
#[derive(Debug)]
struct Silence {
    most: Duration,
    /// Made when it is first needed, and set anew instead of made again.
    timer: Option<Pin<Box<Sleep>>>,
    /// Whether it runs.
    waits: bool,
}

// === impl Incoming ===

impl Incoming {
    /// `stall`: how long nothing may come while somebody waits for it.
    pub(super) fn new(
        line: Line,
        rest: Vec<u8>,
        length: u64,
        stall: Duration,
        home: Option<(Arc<Wires>, Place)>,
    ) -> Self {
        let silence = Silence { most: stall, timer: None, waits: false };
        let mut incoming = Self { line: Some(line), rest, taken: 0, left: length, silence, home };
        incoming.end_if_over();
        incoming
    }

    /// Fills the front of `into`; 0 at the end, early or not: the caller counts.
    pub(in crate::origin) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<Result<usize, Broken>> {
        let Some(line) = &mut self.line else { return Poll::Ready(Ok(0)) };
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(into.len());
        let came_along = &self.rest[self.taken..];
        let read = if came_along.is_empty() {
            let mut buffer = ReadBuf::new(&mut into[..most]);
            match Pin::new(line).poll_read(cx, &mut buffer) {
                Poll::Ready(read) => read.map_err(Broken::Connection)?,
                Poll::Pending => return self.silence.poll(cx).map(|()| Err(Broken::Silent(self.silence.most))),
            }
            self.silence.waits = false;
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

    pub(super) async fn read(&mut self, into: &mut [u8]) -> Result<usize, Broken> {
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

// === impl Silence ===

impl Silence {
    /// Ready when it has lasted too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.most)));
        if !self.waits {
            timer.as_mut().reset(Instant::now() + self.most);
            self.waits = true;
        }
        timer.as_mut().poll(cx)
    }
}
