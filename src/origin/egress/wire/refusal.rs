//! What a server says besides a refusal. It is read whichever way it comes, in chunks too, as stores send their errors: a
//! server that says "slow down" so is not asked a second time for the sake of its words.

use std::time::Duration;

use tokio::io::AsyncReadExt;

use super::connect::Line;
use super::incoming::Incoming;

/// What is read of it; see [`crate::origin::range::Reply`].
const MOST: usize = 8 << 10;
/// Bytes on the wire that are read for it in chunks: as much again for their sizes.
const WIRE: usize = 2 * MOST;

/// Reads the body of a refusal, which says how long it is. One that breaks off, falls silent or drips for `stall` is what has
/// come of it by then.
pub(super) async fn of_length(mut incoming: Incoming, length: u64, stall: Duration) -> Vec<u8> {
    let mut body = vec![0; MOST.min(usize::try_from(length).unwrap_or(MOST))];
    let mut filled = 0;
    let reading = async {
        while filled < body.len() {
            match incoming.read(&mut body[filled..]).await {
                Ok(0) | Err(_) => break,
                Ok(read) => filled += read,
            }
        }
    };
    let _ = tokio::time::timeout(stall, reading).await;
    body.truncate(filled);
    body
}

/// The same where no length is said. `came` is what came with the head. Also whether `line` has nothing more to say and can be
/// used again.
pub(super) async fn of_no_length(line: &mut Line, came: Vec<u8>, chunked: bool, stall: Duration) -> (Vec<u8>, bool) {
    let mut bytes = came;
    let reading = async {
        while bytes.len() < WIRE && !(chunked && chunks(&bytes).is_over()) {
            bytes.reserve(WIRE - bytes.len());
            match line.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    };
    let _ = tokio::time::timeout(stall, reading).await;
    if !chunked {
        bytes.truncate(MOST);
        return (bytes, false);
    }
    let Chunks { mut body, end } = chunks(&bytes);
    body.truncate(MOST);
    // More than its end has come: whose answer that is, nobody knows.
    (body, matches!(end, End::At(at) if at == bytes.len()))
}

/// As much of a body in chunks as has come.
#[derive(Debug)]
struct Chunks {
    body: Vec<u8>,
    end: End,
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    /// Behind this many bytes.
    At(usize),
    /// Not come yet.
    Open,
    /// What follows is no chunk.
    Unreadable,
}

// === impl Chunks ===

impl Chunks {
    fn is_over(&self) -> bool {
        self.end != End::Open
    }
}

fn chunks(bytes: &[u8]) -> Chunks {
    let (mut body, mut at) = (Vec::new(), 0);
    let end = loop {
        match httparse::parse_chunk_size(&bytes[at..]) {
            Ok(httparse::Status::Partial) => break End::Open,
            Err(_) => break End::Unreadable,
            Ok(httparse::Status::Complete((line, 0))) => {
                // Behind the last chunk there may be fields; an empty line ends them.
                let fields = at + line - 2;
                let ends = bytes[fields..].windows(4).position(|four| four == b"\r\n\r\n");
                break ends.map_or(End::Open, |ends| End::At(fields + ends + 4));
            }
            Ok(httparse::Status::Complete((line, size))) => {
                let rest = &bytes[at + line..];
                let size = usize::try_from(size).unwrap_or(usize::MAX);
                body.extend_from_slice(&rest[..size.min(rest.len())]);
                match rest.get(size..size.saturating_add(2)) {
                    Some(b"\r\n") => at += line + size + 2,
                    Some(_) => break End::Unreadable,
                    None => break End::Open,
                }
            }
        }
    };
    Chunks { body, end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_read_as_far_as_they_have_come() {
        let whole = b"4\r\nslow\r\n6;x=y\r\n down!\r\n0\r\nx: y\r\n\r\n";
        for come in 0..whole.len() {
            let found = chunks(&whole[..come]);
            assert!(b"slow down!".starts_with(&found.body) && !found.is_over(), "{come}: {found:?}");
        }
        let found = chunks(whole);
        assert_eq!((found.body.as_slice(), found.end), (&b"slow down!"[..], End::At(whole.len())));
        assert_eq!(chunks(b"0\r\n\r\nHTTP/1.1").end, End::At(5));
        for bad in [&b"x\r\n"[..], b"1\r\nabc", b"fffffffffffffffff\r\n"] {
            assert_eq!(chunks(bad).end, End::Unreadable, "{bad:?}");
        }
        assert_eq!(chunks(b"ffffffffffffffff\r\nabc").end, End::Open);
    }
}
