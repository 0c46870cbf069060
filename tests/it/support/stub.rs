//! A daemon that answers what it is told to: for how the command shows what no real one says to order.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What is answered to one request: further header lines, and a body.
#[derive(Clone, Debug)]
struct Answer {
    status: u16,
    headers: String,
    body: String,
    /// Nothing comes after the body, and the connection stays.
    hangs: bool,
}

/// The stub; its thread ends with the test.
pub(crate) struct Stub {
    pub(crate) url: String,
    answers: Arc<Mutex<HashMap<String, Answer>>>,
    /// Each request as it came: request line, headers, body.
    pub(crate) asked: Arc<Mutex<Vec<String>>>,
}

impl Stub {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stub = Self { url, answers: Arc::default(), asked: Arc::default() };
        let (answers, asked) = (Arc::clone(&stub.answers), Arc::clone(&stub.asked));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (answers, asked) = (Arc::clone(&answers), Arc::clone(&asked));
                std::thread::spawn(move || serve(&stream.unwrap(), &answers, &asked));
            }
        });
        stub
    }

    /// From now on `request` (`GET /v1/node`) is answered so.
    pub(crate) fn answer(&self, request: &str, body: &serde_json::Value) -> &Self {
        self.put(request, 200, "", body.to_string(), false)
    }

    pub(crate) fn answer_with(&self, request: &str, headers: &str, body: &serde_json::Value) -> &Self {
        self.put(request, 200, headers, body.to_string(), false)
    }

    /// A stream of events, after which the connection ends, or hangs.
    pub(crate) fn events(&self, request: &str, events: &[serde_json::Value], hangs: bool) -> &Self {
        let body = events.iter().map(|event| format!("event: job\ndata: {event}\n\n")).collect();
        self.put(request, 200, "", body, hangs)
    }

    fn put(&self, request: &str, status: u16, headers: &str, body: String, hangs: bool) -> &Self {
        let answer = Answer { status, headers: headers.to_owned(), body, hangs };
        self.answers.lock().unwrap().insert(request.to_owned(), answer);
        self
    }
}

fn serve(mut stream: &TcpStream, answers: &Mutex<HashMap<String, Answer>>, asked: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream);
    let (mut text, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
        text.push_str(&line);
        if line == "\r\n" {
            break;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let request = text.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
    text.push_str(&String::from_utf8(body).unwrap());
    asked.lock().unwrap().push(text);
    let missing =
        r#"{"type":"about:blank","title":"Not Found","status":404,"detail":"there is none","kind":"not_found"}"#;
    let none = Answer { status: 404, headers: String::new(), body: missing.to_owned(), hangs: false };
    let Answer { status, headers, body, hangs } = answers.lock().unwrap().get(&request).cloned().unwrap_or(none);
    // Without a length the body ends with the connection.
    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n{headers}connection: close\r\n\r\n");
    // A command that was interrupted has gone.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body.as_bytes()));
    if hangs {
        // Longer than any test.
        std::thread::sleep(Duration::from_secs(600));
    }
}
