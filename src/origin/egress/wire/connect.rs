//! A connection from nothing: the name looked up and judged, an address that answers found, TLS agreed.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use url::Host;

use super::{Place, Wires};

/// One connection.
#[derive(Debug)]
pub(super) enum Line {
    Plain(TcpStream),
    /// Records are read 4 KiB at a time by `rustls`, so the socket is read in larger pieces in front of it.
    Tls(Box<TlsStream<BufReader<TcpStream>>>),
}

/// How it went.
pub(super) enum Connecting {
    Made(Line),
    /// Not within the time for it.
    Late,
    /// In any other way.
    Failed,
}

/// After this the next address is tried beside the one that has not answered yet (RFC 8305 recommends 250 ms).
const NEXT_ADDRESS: Duration = Duration::from_millis(250);
/// Encrypted bytes read at a time: several records, and still in the core's own cache when they are decrypted.
const ENCRYPTED: usize = 128 << 10;

// === impl Wires ===

impl Wires {
    pub(super) async fn connect(&self, place: &Place) -> Connecting {
        match tokio::time::timeout(self.connect_timeout, self.line(place)).await {
            Ok(Ok(line)) => Connecting::Made(line),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a connection failed; the ordinary client will say why");
                Connecting::Failed
            }
            Err(_) => Connecting::Late,
        }
    }

    async fn line(&self, place: &Place) -> io::Result<Line> {
        let addresses: Vec<SocketAddr> = match &place.host {
            // A number was judged with its URL.
            Host::Ipv4(number) => vec![SocketAddr::new(IpAddr::V4(*number), place.port)],
            Host::Ipv6(number) => vec![SocketAddr::new(IpAddr::V6(*number), place.port)],
            Host::Domain(name) => {
                let found = self.names.addresses(name, place.reach).await?;
                found.into_iter().map(|found| SocketAddr::new(found.ip(), place.port)).collect()
            }
        };
        let stream = first_of(addresses).await?;
        stream.set_nodelay(true)?;
        if !place.tls {
            return Ok(Line::Plain(stream));
        }
        let connector = self.tls.connector().ok_or_else(|| io::Error::other("TLS cannot be spoken"))?;
        let name = match &place.host {
            Host::Ipv4(number) => ServerName::from(IpAddr::V4(*number)),
            Host::Ipv6(number) => ServerName::from(IpAddr::V6(*number)),
            Host::Domain(name) => ServerName::try_from(name.clone()).map_err(io::Error::other)?,
        };
        let stream = connector.connect(name, BufReader::with_capacity(ENCRYPTED, stream)).await?;
        Ok(Line::Tls(Box::new(stream)))
    }
}

/// The first address that answers.
async fn first_of(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut waiting = addresses.into_iter();
    let mut trying = FuturesUnordered::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        let more = match waiting.next() {
            Some(address) => {
                trying.push(TcpStream::connect(address));
                true
            }
            None => false,
        };
        let answered = if more {
            // A timeout: the next one is tried beside.
            let Ok(answered) = tokio::time::timeout(NEXT_ADDRESS, trying.next()).await else { continue };
            answered
        } else {
            trying.next().await
        };
        match answered {
            Some(Ok(stream)) => return Ok(stream),
            Some(Err(error)) => last = error,
            None => return Err(last),
        }
    }
}

// === impl Line ===

impl Line {
    /// Whether nothing has come on an idle connection: neither its end nor bytes that nobody asked for, which would be taken
    /// for the next answer. What TLS says for itself (tickets) is read over.
    pub(super) fn is_open(&mut self) -> bool {
        let mut byte = [0];
        let read = poll_fn(|cx| Pin::new(&mut *self).poll_read(cx, &mut ReadBuf::new(&mut byte)));
        // A task that has used up its turn would see nothing on any connection.
        let read = pin!(tokio::task::unconstrained(read));
        read.poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }
}

impl AsyncRead for Line {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, into),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, into),
        }
    }
}

impl AsyncWrite for Line {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_address_that_refuses_is_passed_over() {
        let closed = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let open = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let found = first_of(vec![closed, open.local_addr().unwrap()]).await.unwrap();
        assert_eq!(found.peer_addr().unwrap(), open.local_addr().unwrap());
        assert!(first_of(vec![closed]).await.is_err());
        assert_eq!(first_of(Vec::new()).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
