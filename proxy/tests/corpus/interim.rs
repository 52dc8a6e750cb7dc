//! Responses before the response (1xx) and `Expect: 100-continue`, over both versions of HTTP: what the application says
//! reaches the client when it is said, and a body that the application does not want is not sent.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::client::{Client, find};
use super::frames::{ACK, DATA, END_HEADERS, END_STREAM, End, HEADERS, SETTINGS, Wire, block, frame, head, literal};
use super::place::{APP, APP_H2, Direction, PATIENCE, POD, Place, alone, wait};

/// What the application does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Acts {
    /// Says 103, waits until the test goes on, says 102, and answers.
    #[default]
    Hints,
    /// Asks for the body, and answers when it has it.
    Asks,
    /// Waits for the body without a word.
    Waits,
    /// Answers 401 at once.
    Refuses,
    /// Says 103 so many times, and answers.
    Says(usize),
}

/// An application that speaks both versions, each at its port.
#[derive(Clone, Default)]
struct App {
    acts: Arc<Mutex<Acts>>,
    goes_on: Arc<AtomicBool>,
    /// Octets of bodies that came.
    body: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl App {
    fn start() -> Self {
        let app = Self::default();
        for (port, serve) in [(APP, Self::http1 as fn(&Self, TcpStream) -> Option<()>), (APP_H2, Self::http2)] {
            let listener = TcpListener::bind((Ipv4Addr::from(POD), port)).expect("the port is free");
            let app = app.clone();
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let app = app.clone();
                    thread::spawn(move || serve(&app, stream));
                }
            });
        }
        app
    }

    fn follow(&self, acts: Acts) {
        *self.acts.lock().expect("whole") = acts;
        self.goes_on.store(false, Ordering::SeqCst);
        self.body.store(0, Ordering::SeqCst);
        self.heads.lock().expect("whole").clear();
    }

    fn waits(&self) {
        wait("the test goes on", || self.goes_on.load(Ordering::SeqCst));
    }

    /// One request on a connection of HTTP/1.1.
    fn http1(&self, mut stream: TcpStream) -> Option<()> {
        let mut read = Vec::new();
        let end = loop {
            if let Some(at) = find(&read, b"\r\n\r\n") {
                break at + 4;
            }
            more(&mut stream, &mut read)?;
        };
        let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
        let length = if head.contains("content-length: 5") { 5 } else { 0 };
        self.heads.lock().expect("whole").push(head);
        let acts = *self.acts.lock().expect("whole");
        let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x-a\r\nX-A: 1\r\n\r\n";
        let mut say = |text: &str| stream.write_all(text.as_bytes()).ok();
        match acts {
            Acts::Hints => {
                say(hint)?;
                self.waits();
                say("HTTP/1.1 102 Processing\r\n\r\n")?;
            }
            Acts::Asks => say("HTTP/1.1 100 Continue\r\n\r\n")?,
            Acts::Waits => {}
            Acts::Refuses => say("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")?,
            Acts::Says(count) => say(&hint.repeat(count))?,
        }
        while acts != Acts::Refuses && read.len() < end + length {
            more(&mut stream, &mut read)?;
        }
        self.body.fetch_add(read.len() - end, Ordering::SeqCst);
        if acts == Acts::Refuses {
            let came = more(&mut stream, &mut read).map_or(0, |()| read.len() - end);
            self.body.fetch_add(came, Ordering::SeqCst);
            return None;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").ok()
    }

    /// The requests of a connection of HTTP/2.
    fn http2(&self, stream: TcpStream) -> Option<()> {
        let mut wire = Wire { stream, buffer: Vec::new() };
        wire.stream.read_exact(&mut [0; 24]).ok()?;
        wire.send(frame(SETTINGS, 0, 0, &[]));
        let answer = |wire: &mut Wire, id: u32| {
            wire.send(frame(HEADERS, END_HEADERS, id, &literal(":status", "200")));
            wire.send(frame(DATA, END_STREAM, id, b"ok"));
        };
        while let Ok(came) = wire.next() {
            let (id, ends) = (came.stream, came.flags & END_STREAM != 0);
            let acts = *self.acts.lock().expect("whole");
            let says = |wire: &mut Wire, status: &str| {
                let head = block(&[(":status", status), ("link", "</a.css>")]);
                wire.send(frame(HEADERS, END_HEADERS, id, &head));
            };
            match (came.kind, acts) {
                (SETTINGS, _) if came.flags & ACK == 0 => {
                    wire.send(frame(SETTINGS, ACK, 0, &[]));
                }
                (HEADERS, Acts::Hints) => {
                    says(&mut wire, "103");
                    self.waits();
                    says(&mut wire, "102");
                    answer(&mut wire, id);
                }
                (HEADERS, Acts::Asks) => says(&mut wire, "100"),
                (HEADERS, Acts::Refuses) => {
                    wire.send(frame(HEADERS, END_HEADERS | END_STREAM, id, &literal(":status", "401")));
                }
                (HEADERS, Acts::Says(count)) => {
                    let hint = frame(HEADERS, END_HEADERS, id, &block(&[(":status", "103")]));
                    wire.send(hint.repeat(count));
                    answer(&mut wire, id);
                }
                (DATA, _) => {
                    self.body.fetch_add(came.payload.len(), Ordering::SeqCst);
                    if ends && acts != Acts::Refuses {
                        answer(&mut wire, id);
                    }
                }
                _ => {}
            }
        }
        Some(())
    }
}

/// Reads more. None: the other side has ended.
fn more(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<()> {
    let mut space = [0; 4096];
    let count = stream.read(&mut space).ok().filter(|count| *count > 0)?;
    read.extend_from_slice(&space[..count]);
    Some(())
}

/// A request, and who sends it.
enum Sender {
    Http1(Client),
    Http2(Wire),
}

impl Sender {
    /// A request with a body of five octets that is to come, if the client `expects` to be asked for it; else without one.
    fn begin(http2: bool, address: SocketAddr, expects: bool) -> Self {
        if http2 {
            // Without a table in HPACK, so that each status is there to be read.
            let mut wire = Wire::with_settings(address, &[(1, 0)]);
            if expects {
                let more = block(&[("content-length", "5"), ("expect", "100-continue")]);
                wire.send(frame(HEADERS, END_HEADERS, 1, &[head("POST", "/x"), more].concat()));
            } else {
                wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("GET", "/x")));
            }
            return Self::Http2(wire);
        }
        let mut client = Client::connect(address);
        if expects {
            client.send("POST /x HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
        } else {
            client.send("GET /x HTTP/1.1\r\nHost: app\r\n\r\n");
        }
        Self::Http1(client)
    }

    fn body(&mut self) {
        match self {
            Self::Http1(client) => drop(client.send("hello")),
            Self::Http2(wire) => drop(wire.send(frame(DATA, END_STREAM, 1, b"hello"))),
        }
    }

    /// The status of the next response, before the response or the response itself. 0: none in so short a time.
    fn status_within(&mut self, time: Duration) -> u16 {
        match self {
            Self::Http1(client) => {
                client.stream.set_read_timeout(Some(time)).expect("a timeout");
                let answer = client.one_answer("GET");
                client.stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                let Ok(answer) = answer else { return 0 };
                assert_eq!(answer.header("x-a"), None, "it concerns one connection: {answer:?}");
                answer.status
            }
            Self::Http2(wire) => {
                wire.stream.set_read_timeout(Some(time)).expect("a timeout");
                let end = wire.end(1);
                wire.stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
                if let End::Status(status) = end { status } else { 0 }
            }
        }
    }

    fn status(&mut self) -> u16 {
        self.status_within(PATIENCE)
    }
}

/// Whether the client speaks HTTP/2, and where to: to the application that speaks either version, through either proxy.
fn ways() -> [(bool, SocketAddr); 5] {
    [
        (false, Direction::Outbound.address()),
        (false, Direction::Outbound.address_h2()),
        (true, Direction::Outbound.address_h2()),
        (false, Direction::Inbound.address()),
        (true, Direction::Inbound.address_h2()),
    ]
}

/// RFC 9110 15.2: what is said before the response arrives before it, and not at clients that do not know of such.
#[test]
fn informational_responses_are_forwarded_at_once() {
    alone(module_path!(), "informational_responses_are_forwarded_at_once", || {
        let app = App::start();
        let _place = Place::start();
        for (http2, address) in ways() {
            app.follow(Acts::Hints);
            let mut sender = Sender::begin(http2, address, false);
            assert_eq!(sender.status(), 103, "{http2} {address}");
            app.goes_on.store(true, Ordering::SeqCst);
            assert_eq!((sender.status(), sender.status()), (102, 200), "{http2} {address}");
        }
        for address in [Direction::Outbound.address(), Direction::Inbound.address()] {
            app.goes_on.store(true, Ordering::SeqCst);
            let mut client = Client::connect(address);
            client.send("GET /x HTTP/1.0\r\nHost: app\r\n\r\n");
            assert_eq!(client.one_answer("GET").map(|answer| answer.status), Ok(200), "{address}: HTTP/1.0");
        }
    });
}

/// RFC 9110 10.1.1: the application asks for a body or refuses it, and nobody does it for the application.
#[test]
fn expect_100_continue_is_answered_by_the_application() {
    alone(module_path!(), "expect_100_continue_is_answered_by_the_application", || {
        let app = App::start();
        let _place = Place::start();
        for (http2, address) in ways() {
            let case = format!("{http2} {address}");
            app.follow(Acts::Asks);
            let mut sender = Sender::begin(http2, address, true);
            assert_eq!(sender.status(), 100, "{case}");
            assert_eq!(app.body.load(Ordering::SeqCst), 0, "{case}: before it was asked for");
            sender.body();
            assert_eq!((sender.status(), app.body.load(Ordering::SeqCst)), (200, 5), "{case}");
            let heads = app.heads.lock().expect("whole").clone();
            assert!(heads.iter().all(|head| head.contains("expect: 100-continue")), "{case}: {heads:?}");

            app.follow(Acts::Waits);
            let mut sender = Sender::begin(http2, address, true);
            assert_eq!(sender.status_within(Duration::from_millis(300)), 0, "{case}: nobody asks");
            sender.body();
            assert_eq!(sender.status(), 200, "{case}: the client does not wait for ever");

            app.follow(Acts::Refuses);
            let mut sender = Sender::begin(http2, address, true);
            assert_eq!(sender.status(), 401, "{case}");
            if let Sender::Http1(client) = &mut sender {
                assert!(client.closes_within(PATIENCE), "{case}: nobody knows whether the body comes");
            }
            assert_eq!(app.body.load(Ordering::SeqCst), 0, "{case}: it was refused");
        }
    });
}

/// Many are passed on, and of those that never end nobody waits for the end.
#[test]
fn informational_responses_beyond_10000_answer_502() {
    alone(module_path!(), "informational_responses_beyond_10000_answer_502", || {
        let app = App::start();
        let mut place = Place::start();
        for (http2, address) in ways() {
            for (count, expected) in [(20, 200), (10_001, 502)] {
                app.follow(Acts::Says(count));
                let mut sender = Sender::begin(http2, address, false);
                let (mut hints, mut status) = (0, sender.status());
                while status == 103 {
                    (hints, status) = (hints + 1, sender.status());
                }
                assert_eq!(status, expected, "{http2} {address}: {hints} of {count}");
                assert!(expected != 200 || hints == count, "{http2} {address}: {hints} of {count}");
            }
        }
        assert!(place.is_alive());
    });
}
