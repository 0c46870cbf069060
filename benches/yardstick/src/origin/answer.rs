//! One connection: requests read, answers sent at their pace.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};

use super::Site;
use super::pace::Turn;
use super::routes::{Content, Route};

/// Longest line of a request's head.
const LINE_BYTES: u64 = 16 << 10;
/// Most of them.
const LINES: usize = 200;
/// Bytes sent at once: TLS records are 16 KiB, and at 85 MB/s this is 3 ms.
const PIECE: usize = 256 << 10;

/// What is asked for.
struct Asked {
    method: String,
    path: String,
    range: Option<(u64, Option<u64>)>,
    condition: Option<String>,
    close: bool,
}

/// Answers requests until the other side ends, or is to be left waiting.
pub(crate) fn converse<S: Read + Write>(site: &Site, stream: S, turn: &mut Turn<'_>) -> Result<()> {
    let mut stream = BufReader::with_capacity(LINE_BYTES as usize, stream);
    let mut piece = vec![0; PIECE];
    while let Some(asked) = read(&mut stream)? {
        // What is asked of the origin itself, by who measures with it: no request of a client's.
        match asked.path.as_str() {
            "/-/run" => site.link.run(true),
            "/-/run?faults=none" => site.link.run(false),
            _ => {}
        }
        if asked.path.starts_with("/-/") {
            let text = site.counters();
            write!(stream.get_mut(), "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len())?;
        } else {
            site.requests.fetch_add(1, Ordering::Relaxed);
            turn.first_byte();
            if !answer(site, &mut stream, &asked, turn, &mut piece)? {
                // Held open, silent, until the client gives up: what it must find out by itself.
                while stream.read(&mut piece)? > 0 {}
                return Ok(());
            }
        }
        stream.get_mut().flush()?;
        if asked.close {
            return Ok(());
        }
    }
    Ok(())
}

/// Reads a request's head; `None` when the connection is over.
fn read<S: Read>(stream: &mut BufReader<S>) -> Result<Option<Asked>> {
    let (mut asked, mut line) = (None, String::new());
    for _ in 0..LINES {
        line.clear();
        if stream.by_ref().take(LINE_BYTES).read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let text = line.trim_end();
        let Some(asked) = &mut asked else {
            let mut words = text.split(' ');
            let (method, path) = (words.next().unwrap_or(""), words.next().context("a request without a path")?);
            asked = Some(Asked {
                method: method.to_owned(),
                path: path.to_owned(),
                range: None,
                condition: None,
                close: false,
            });
            continue;
        };
        if text.is_empty() {
            break;
        }
        let Some((name, value)) = text.split_once(':') else { continue };
        match name.to_ascii_lowercase().as_str() {
            "range" => asked.range = range(value.trim()),
            "if-match" => asked.condition = Some(value.trim().to_owned()),
            "connection" => asked.close = value.trim().eq_ignore_ascii_case("close"),
            _ => {}
        }
    }
    Ok(asked)
}

fn range(value: &str) -> Option<(u64, Option<u64>)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    Some((first.parse().ok()?, if last.is_empty() { None } else { Some(last.parse().ok()?) }))
}

/// `false`: the connection has fallen silent.
fn answer<S: Read + Write>(
    site: &Site,
    stream: &mut BufReader<S>,
    asked: &Asked,
    turn: &mut Turn<'_>,
    piece: &mut [u8],
) -> Result<bool> {
    let path = asked.path.split('?').next().unwrap_or("");
    let Some(Route { status, headers, content }) = site.route(path, &asked.path) else {
        write!(stream.get_mut(), "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(true);
    };
    let size = content.size();
    let tag = headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("etag")).map(|(_, value)| value.as_str());
    if asked.condition.as_deref().is_some_and(|wanted| wanted != "*" && Some(wanted) != tag) {
        write!(stream.get_mut(), "HTTP/1.1 412 Precondition Failed\r\nContent-Length: 0\r\n\r\n")?;
        return Ok(true);
    }
    // A redirect has no ranges.
    let wanted = asked.range.filter(|_| *status == 200);
    let (start, end) = match wanted {
        Some((first, _)) if first >= size => {
            write!(
                stream.get_mut(),
                "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{size}\r\nContent-Length: 0\r\n\r\n"
            )?;
            return Ok(true);
        }
        Some((first, last)) => (first, last.map_or(size, |last| size.min(last + 1))),
        None => (0, size),
    };
    ensure!(start <= end, "a range that ends before it begins");
    let mut head = match wanted {
        Some(_) => {
            format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {start}-{}/{size}\r\n", end - 1)
        }
        None => format!("HTTP/1.1 {status} Found\r\n"),
    };
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &format!("Accept-Ranges: bytes\r\nContent-Length: {}\r\n\r\n", end - start);
    stream.get_mut().write_all(head.as_bytes())?;
    if asked.method == "HEAD" {
        return Ok(true);
    }
    let file = match content {
        Content::File(path, _) => Some(File::open(path)?),
        Content::Made(_) => None,
    };
    let mut at = start;
    while at < end {
        let length = piece.len().min(usize::try_from(end - at)?);
        match (&file, content) {
            (Some(file), _) => file.read_exact_at(&mut piece[..length], at)?,
            (None, Content::Made(body)) => body.read(at, &mut piece[..length]),
            (None, Content::File(..)) => {}
        }
        if !turn.take(length as u64) {
            return Ok(false);
        }
        stream.get_mut().write_all(&piece[..length])?;
        site.bytes.fetch_add(length as u64, Ordering::Relaxed);
        at += length as u64;
    }
    Ok(true)
}
