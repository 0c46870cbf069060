//! Connections for large bodies, read by ourselves.
//!
//! An HTTP library reads the socket into memory of its own and hands that out in pieces, to be copied once more into the
//! buffer that is hashed and written. On a node whose cores are what limits a fetch, that copy and the allocations behind it
//! cost a tenth of everything. So a range is asked for here: one request, one head, and then the socket is read straight into
//! the caller's buffer.
//!
//! It is done for what large files are fetched by and for nothing else: a GET without a proxy, whose answer has a
//! `Content-Length`. A body in chunks, or without a length, is let go and asked for again by the ordinary client, and so is
//! whatever else its server has for some minutes. What a server refuses is read here, however it says so. A connection that
//! cannot be made at all is tried by the ordinary client too, which has the words for everything that can be wrong with one.
//!
//! Addresses are judged as the ordinary client's are ([`super::resolve`]), once for many connections ([`super::names`]), and a
//! connection that was made for one reach never serves another.
//!
//! Turned down: `hyper` on connections of our own, which has the same buffer inside; and `splice` from the socket to the file,
//! which cannot hash what passes.

mod connect;
mod head;
mod incoming;
mod refusal;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use reqwest::{Method, Request, Response, StatusCode};
use tokio::io::AsyncWriteExt;
use url::{Host, Url};

use self::connect::{Connecting, Line};
use self::head::{Head, HeadError};
pub(in crate::origin) use self::incoming::{Broken, Incoming};
use super::address::Reach;
use super::names::Names;
use super::tls::Tls;
use crate::model::source::SourceError;
use crate::origin::excerpt::excerpt;

/// The connections of a process.
#[derive(Debug)]
pub(super) struct Wires {
    tls: Arc<Tls>,
    names: Names,
    connect_timeout: Duration,
    /// How long a server may be silent: before the head of its answer is whole, and between two pieces of its body.
    stall: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    idle: HashMap<Place, Vec<(Instant, Line)>>,
    /// Whether a task looks after them.
    kept: bool,
    /// Servers whose bodies have no length, and when that was seen.
    unsuited: HashMap<Place, Instant>,
}

/// Where a connection leads, and how far it may.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    tls: bool,
    host: Host<String>,
    port: u16,
    reach: Reach,
}

/// What comes back.
pub(super) enum Outcome {
    /// The head of a success, whose bytes are still to come.
    Begun(Response, Incoming),
    /// Any other answer, with as much of its body as is worth reading.
    Answered(Response),
    /// It has to be asked for in the ordinary way.
    Unsuited,
}

/// Idle connections kept to one place: as many as transfers ever open to it.
const IDLE: usize = 64;
/// How long. Servers close after 5 s (Node), 20 s (S3) or 75 s (nginx); one that was closed meanwhile costs a try.
const IDLE_TIME: Duration = Duration::from_secs(15);
/// How often idle connections are looked at. Each has its buffers, and one whose server has closed it stands half-closed until then.
const IDLE_CHECK: Duration = Duration::from_secs(5);
/// Servers remembered for being unsuited. One that is forgotten costs a request.
const UNSUITED: usize = 1024;
/// How long: a server may have sent one object so and not the next. Each time again costs a request for one of its objects.
const UNSUITED_TIME: Duration = Duration::from_secs(600);

// === impl Wires ===

impl Wires {
    pub(super) fn new(tls: Arc<Tls>, connect_timeout: Duration, stall: Duration) -> Self {
        Self { tls, names: Names::default(), connect_timeout, stall, state: Mutex::default() }
    }

    /// Sends a GET and reads the head of its answer. Whether `request` may be sent so far is for the caller to say.
    ///
    /// # Errors
    /// `Stalled` for a connection that does not come about in time and for a server that says nothing, `Unavailable` for a
    /// connection that breaks, `Protocol` for an answer that is none.
    pub(super) async fn ask(
        self: &Arc<Self>,
        request: &Request,
        reach: Reach,
        what: &str,
    ) -> Result<Outcome, SourceError> {
        let Some(place) = Place::of(request.url(), reach) else { return Ok(Outcome::Unsuited) };
        if request.method() != Method::GET || self.state().is_unsuited(&place, Instant::now()) {
            return Ok(Outcome::Unsuited);
        }
        let text = head::request(request);
        loop {
            let (mut line, used) = match self.idle(&place) {
                Some(line) => (line, true),
                None => match self.connect(&place).await {
                    Connecting::Made(line) => (line, false),
                    Connecting::Late => {
                        return Err(SourceError::Stalled { what: what.to_owned(), after: self.connect_timeout });
                    }
                    Connecting::Failed => return Ok(Outcome::Unsuited),
                },
            };
            let exchanged = tokio::time::timeout(self.stall, exchange(&mut line, &text)).await;
            let silent = |_| SourceError::Stalled { what: what.to_owned(), after: self.stall };
            match exchanged.map_err(silent)? {
                Ok((head, rest)) => return Ok(self.answered(place, line, head, rest, what).await),
                // The server had closed it while nobody looked.
                Err(HeadError::Broken { began: false, .. }) if used => {}
                Err(HeadError::Broken { detail, .. }) => {
                    return Err(SourceError::Unavailable { what: what.to_owned(), detail: excerpt(&detail) });
                }
                Err(HeadError::Unreadable(detail)) => {
                    return Err(SourceError::Protocol { what: what.to_owned(), detail });
                }
            }
        }
    }

    async fn answered(
        self: &Arc<Self>,
        place: Place,
        mut line: Line,
        head: Head,
        rest: Vec<u8>,
        what: &str,
    ) -> Outcome {
        let has_body = matches!(head.status, StatusCode::OK | StatusCode::PARTIAL_CONTENT);
        let Some(length) = head.length else {
            if has_body {
                tracing::debug!(what, "a body has no length: its server is asked in the ordinary way for a while");
                self.state().unsuited(place, Instant::now());
                return Outcome::Unsuited;
            }
            let (body, ended) = refusal::of_no_length(&mut line, rest, head.chunked, self.stall).await;
            if ended && head.keeps {
                self.give_back(place, line);
            }
            return Outcome::Answered(head.response(body));
        };
        let home = head.keeps.then(|| (Arc::clone(self), place));
        let incoming = Incoming::new(line, rest, length, self.stall, home);
        if has_body {
            return Outcome::Begun(head.response(Vec::new()), incoming);
        }
        let body = refusal::of_length(incoming, length, self.stall).await;
        Outcome::Answered(head.response(body))
    }

    /// An idle connection, the one that was used last.
    fn idle(&self, place: &Place) -> Option<Line> {
        let mut state = self.state();
        let idle = state.idle.get_mut(place)?;
        let now = Instant::now();
        while let Some((since, mut line)) = idle.pop() {
            if now.duration_since(since) > IDLE_TIME {
                // Those below have waited longer.
                idle.clear();
                return None;
            }
            if line.is_open() {
                return Some(line);
            }
        }
        None
    }

    /// Takes a connection back that has nothing more to say.
    fn give_back(self: &Arc<Self>, place: Place, line: Line) {
        let mut state = self.state();
        let idle = state.idle.entry(place).or_default();
        if idle.len() < IDLE {
            idle.push((Instant::now(), line));
        }
        if !state.kept
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            state.kept = true;
            runtime.spawn(keep(Arc::downgrade(self)));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes idle connections that nobody will use, until there are none.
async fn keep(wires: Weak<Wires>) {
    loop {
        tokio::time::sleep(IDLE_CHECK).await;
        let Some(wires) = wires.upgrade() else { return };
        let mut state = wires.state();
        state.close_unused(Instant::now());
        if state.idle.is_empty() {
            state.kept = false;
            return;
        }
    }
}

/// Sends a request and reads the head of its answer, and what has come with it of the body.
async fn exchange(line: &mut Line, text: &[u8]) -> Result<(Head, Vec<u8>), HeadError> {
    let broken = |error: std::io::Error| HeadError::Broken { began: false, detail: error.to_string() };
    line.write_all(text).await.map_err(broken)?;
    line.flush().await.map_err(broken)?;
    head::read(line).await
}

// === impl State ===

impl State {
    fn close_unused(&mut self, now: Instant) {
        self.idle.retain(|_, idle| {
            idle.retain_mut(|(since, line)| now.duration_since(*since) <= IDLE_TIME && line.is_open());
            !idle.is_empty()
        });
    }

    fn is_unsuited(&mut self, place: &Place, now: Instant) -> bool {
        let Some(since) = self.unsuited.get(place) else { return false };
        let still = now.duration_since(*since) <= UNSUITED_TIME;
        if !still {
            self.unsuited.remove(place);
        }
        still
    }

    fn unsuited(&mut self, place: Place, now: Instant) {
        if self.unsuited.len() >= UNSUITED {
            self.unsuited.retain(|_, since| now.duration_since(*since) <= UNSUITED_TIME);
        }
        if self.unsuited.len() < UNSUITED {
            self.unsuited.insert(place, now);
        }
    }
}

// === impl Place ===

impl Place {
    fn of(url: &Url, reach: Reach) -> Option<Self> {
        let tls = match url.scheme() {
            "https" => true,
            "http" => false,
            _ => return None,
        };
        let host = url.host()?.to_owned();
        // Link-local addresses are reached by number only, whatever the operator has said of the server's name.
        let reach = if matches!(host, Host::Domain(_)) { reach.min(Reach::Inside) } else { reach };
        Some(Self { tls, host, port: url.port_or_known_default()?, reach })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    /// After the last fetch nobody gives a connection back or asks for one.
    #[tokio::test]
    async fn idle_connections_are_closed_though_nobody_fetches() {
        let config = crate::origin::Config::default();
        let wires = Arc::new(Wires::new(Arc::new(Tls::new(&config).unwrap()), config.connect_timeout.0, IDLE_TIME));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let place = Place::of(&Url::parse("http://127.0.0.1:1/").unwrap(), Reach::Inside).unwrap();
        let idle = async || {
            let line = Line::Plain(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
            wires.give_back(place.clone(), line);
            listener.accept().await.unwrap().0
        };
        let (mut open, mut closed) = (idle().await, idle().await);
        closed.shutdown().await.unwrap();
        let end = tokio::time::timeout(3 * IDLE_CHECK, closed.read(&mut [0])).await;
        assert_eq!(end.expect("closed here too").unwrap(), 0);
        let now = Instant::now();
        wires.state().close_unused(now);
        assert_eq!(wires.state().idle[&place].len(), 1, "one is still good");
        wires.state().close_unused(now + IDLE_TIME);
        assert_eq!(open.read(&mut [0]).await.unwrap(), 0);
        assert!(wires.state().idle.is_empty());
    }

    #[test]
    fn a_name_never_leads_to_where_clouds_answer_with_credentials() {
        let reach = |url: &str| Place::of(&Url::parse(url).unwrap(), Reach::Link).unwrap().reach;
        assert_eq!(reach("http://store.example/x"), Reach::Inside);
        assert_eq!((reach("http://169.254.169.254/x"), reach("http://[fe80::1]/x")), (Reach::Link, Reach::Link));
    }

    #[test]
    fn a_server_is_unsuited_for_a_while() {
        let place = |number: usize| {
            Place::of(&Url::parse(&format!("http://h{number}.example/")).unwrap(), Reach::Public).unwrap()
        };
        let (mut state, start) = (State::default(), Instant::now());
        for number in 0..2 * UNSUITED {
            state.unsuited(place(number), start);
        }
        let (late, later) = (start + UNSUITED_TIME, start + UNSUITED_TIME + Duration::from_secs(1));
        assert!(state.is_unsuited(&place(0), late) && !state.is_unsuited(&place(UNSUITED), late));
        assert!(!state.is_unsuited(&place(0), later));
        state.unsuited(place(UNSUITED), start);
        state.unsuited(place(UNSUITED + 1), later);
        assert!(state.is_unsuited(&place(UNSUITED + 1), later), "those whose time is over make room");
    }
}
