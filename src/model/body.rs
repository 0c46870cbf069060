//! The bytes of a range, taken by whoever has room for them.
//!
//! A body is read into the caller's memory instead of handing out memory of its own. So the bytes of a large file go from the
//! socket into the very buffer that is hashed and written, and are copied once less on their way; and how much is in flight is
//! decided by who owns the buffers, not by the HTTP library.

use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

use super::source::SourceError;

/// Bytes that arrive in order.
pub trait Body: Send {
    /// Fills the front of `into` with what has come, at least one byte; 0 at the end, and for an empty `into`. After an error
    /// there is nothing more to be had.
    ///
    /// # Errors
    /// Whatever ends a body early.
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, SourceError>>;
}

/// A body that arrives in pieces of somebody else's memory.
struct Pieces {
    stream: BoxStream<'static, Result<Bytes, SourceError>>,
    rest: Bytes,
}

/// The body that a stream of pieces is.
#[must_use]
pub fn pieces(stream: BoxStream<'static, Result<Bytes, SourceError>>) -> Box<dyn Body> {
    Box::new(Pieces { stream, rest: Bytes::new() })
}

// === impl Body ===

impl dyn Body {
    /// Waits for bytes: see [`Body::poll_read`]. Dropping the future loses nothing.
    ///
    /// # Errors
    /// Whatever ends a body early.
    pub async fn read(&mut self, into: &mut [u8]) -> Result<usize, SourceError> {
        poll_fn(|cx| self.poll_read(cx, into)).await
    }

    /// All that comes, if it is at most `limit` bytes; else the first bytes, more than `limit` of them.
    ///
    /// # Errors
    /// As for `read`.
    pub async fn read_up_to(&mut self, limit: usize) -> Result<Vec<u8>, SourceError> {
        let (mut bytes, mut filled) = (vec![0; limit.min(64 << 10) + 1], 0);
        loop {
            match self.read(&mut bytes[filled..]).await? {
                0 => break,
                read => filled += read,
            }
            if filled > limit {
                break;
            }
            if filled == bytes.len() {
                bytes.resize((2 * filled).min(limit + 1), 0);
            }
        }
        bytes.truncate(filled);
        Ok(bytes)
    }
}

impl Body for Pieces {
    fn poll_read(&mut self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<Result<usize, SourceError>> {
        if into.is_empty() {
            return Poll::Ready(Ok(0));
        }
        while self.rest.is_empty() {
            match ready!(self.stream.poll_next_unpin(cx)) {
                None => return Poll::Ready(Ok(0)),
                Some(piece) => self.rest = piece?,
            }
        }
        let take = self.rest.len().min(into.len());
        self.rest.copy_to_slice(&mut into[..take]);
        Poll::Ready(Ok(take))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    fn body(of: &[&'static [u8]]) -> Box<dyn Body> {
        let of: Vec<_> = of.iter().map(|piece| Ok(Bytes::from_static(piece))).collect();
        pieces(stream::iter(of).boxed())
    }

    #[tokio::test]
    async fn pieces_are_read_in_order_and_empty_ones_are_no_end() {
        let mut body = body(&[b"abc", b"", b"defgh"]);
        let mut into = [0; 4];
        let mut seen = Vec::new();
        loop {
            match body.read(&mut into).await.unwrap() {
                0 => break,
                read => seen.push(into[..read].to_vec()),
            }
        }
        assert_eq!(seen, [b"abc".to_vec(), b"defg".to_vec(), b"h".to_vec()]);
        assert_eq!(body.read(&mut into).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_limit_is_noticed() {
        let long: &'static [u8] = vec![7; 200_000].leak();
        assert_eq!(body(&[long]).read_up_to(200_000).await.unwrap(), long);
        assert_eq!(body(&[long]).read_up_to(199_999).await.unwrap().len(), 200_000);
        assert_eq!(body(&[b"ab", b"c"]).read_up_to(2).await.unwrap(), b"abc");
        assert_eq!(body(&[]).read_up_to(0).await.unwrap(), b"");
    }
}
