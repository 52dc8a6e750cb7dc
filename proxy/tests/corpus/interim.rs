//! Interim responses (1xx) and `Expect: 100-continue`, over both versions of HTTP: the proxy forwards interim
//! responses at once, and does not forward a body that the application refuses.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use super::client::{Client, find};
use super::frames::{ACK, DATA, END_HEADERS, END_STREAM, End, HEADERS, SETTINGS, Wire, block, frame, head, literal};
use super::place::{APP, APP_H2, Direction, POD, Proxy, TIMEOUT, in_namespace, wait};

/// What the application does with a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Behavior {
    /// Sends 103, waits for [`App::resume`], then sends 102 and 200.
    #[default]
    Hints,
    /// Sends 100, then 200 when it has the body.
    Continue,
    /// Sends no 100, and 200 when it has the body.
    WaitForBody,
    /// Sends 401 at once.
    Refuse,
    /// Sends 103 this many times, then 200.
    ManyHints(usize),
}

/// An application that speaks HTTP/1.1 and HTTP/2, each on its port.
#[derive(Clone, Default)]
struct App {
    behavior: Arc<Mutex<Behavior>>,
    resume: Arc<AtomicBool>,
    /// Body octets received.
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

    fn behave(&self, behavior: Behavior) {
        *self.behavior.lock().expect("not poisoned") = behavior;
        self.resume.store(false, Ordering::SeqCst);
        self.body.store(0, Ordering::SeqCst);
        self.heads.lock().expect("not poisoned").clear();
    }

    fn await_resume(&self) {
        wait("the test resumes the application", || self.resume.load(Ordering::SeqCst));
    }

    /// Serves one request on an HTTP/1.1 connection.
    fn http1(&self, mut stream: TcpStream) -> Option<()> {
        let mut read = Vec::new();
        let end = loop {
            if let Some(at) = find(&read, b"\r\n\r\n") {
                break at + 4;
            }
            read_more(&mut stream, &mut read)?;
        };
        let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
        let length = if head.contains("content-length: 5") { 5 } else { 0 };
        self.heads.lock().expect("not poisoned").push(head);
        let behavior = *self.behavior.lock().expect("not poisoned");
        let hint = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\nConnection: x-a\r\nX-A: 1\r\n\r\n";
        let mut send = |text: &str| stream.write_all(text.as_bytes()).ok();
        match behavior {
            Behavior::Hints => {
                send(hint)?;
                self.await_resume();
                send("HTTP/1.1 102 Processing\r\n\r\n")?;
            }
            Behavior::Continue => send("HTTP/1.1 100 Continue\r\n\r\n")?,
            Behavior::WaitForBody => {}
            Behavior::Refuse => send("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")?,
            Behavior::ManyHints(count) => send(&hint.repeat(count))?,
        }
        while behavior != Behavior::Refuse && read.len() < end + length {
            read_more(&mut stream, &mut read)?;
        }
        self.body.fetch_add(read.len() - end, Ordering::SeqCst);
        if behavior == Behavior::Refuse {
            let came = read_more(&mut stream, &mut read).map_or(0, |()| read.len() - end);
            self.body.fetch_add(came, Ordering::SeqCst);
            return None;
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok").ok()
    }

    /// Serves an HTTP/2 connection.
    fn http2(&self, stream: TcpStream) -> Option<()> {
        let mut wire = Wire { stream, buffer: Vec::new() };
        wire.stream.read_exact(&mut [0; 24]).ok()?;
        wire.send(frame(SETTINGS, 0, 0, &[]));
        let respond = |wire: &mut Wire, id: u32| {
            wire.send(frame(HEADERS, END_HEADERS, id, &literal(":status", "200")));
            wire.send(frame(DATA, END_STREAM, id, b"ok"));
        };
        while let Ok(came) = wire.next() {
            let (id, ends) = (came.stream, came.flags & END_STREAM != 0);
            let behavior = *self.behavior.lock().expect("not poisoned");
            let send_status = |wire: &mut Wire, status: &str| {
                let head = block(&[(":status", status), ("link", "</a.css>")]);
                wire.send(frame(HEADERS, END_HEADERS, id, &head));
            };
            match (came.kind, behavior) {
                (SETTINGS, _) if came.flags & ACK == 0 => {
                    wire.send(frame(SETTINGS, ACK, 0, &[]));
                }
                (HEADERS, Behavior::Hints) => {
                    send_status(&mut wire, "103");
                    self.await_resume();
                    send_status(&mut wire, "102");
                    respond(&mut wire, id);
                }
                (HEADERS, Behavior::Continue) => send_status(&mut wire, "100"),
                (HEADERS, Behavior::Refuse) => {
                    wire.send(frame(HEADERS, END_HEADERS | END_STREAM, id, &literal(":status", "401")));
                }
                (HEADERS, Behavior::ManyHints(count)) => {
                    let hint = frame(HEADERS, END_HEADERS, id, &block(&[(":status", "103")]));
                    wire.send(hint.repeat(count));
                    respond(&mut wire, id);
                }
                (DATA, _) => {
                    self.body.fetch_add(came.payload.len(), Ordering::SeqCst);
                    if ends && behavior != Behavior::Refuse {
                        respond(&mut wire, id);
                    }
                }
                _ => {}
            }
        }
        Some(())
    }
}

/// Reads once. None: end of stream.
fn read_more(stream: &mut TcpStream, read: &mut Vec<u8>) -> Option<()> {
    let mut buffer = [0; 4096];
    let count = stream.read(&mut buffer).ok().filter(|count| *count > 0)?;
    read.extend_from_slice(&buffer[..count]);
    Some(())
}

/// The client of one request.
enum Sender {
    Http1(Client),
    Http2(Wire),
}

impl Sender {
    /// Sends the head of a request: with `expects` a POST with `Expect: 100-continue` and a body of five octets, else
    /// a GET.
    fn start(http2: bool, address: SocketAddr, expects: bool) -> Self {
        if http2 {
            // Table size 0, so that HPACK encodes each status literally.
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

    fn send_body(&mut self) {
        match self {
            Self::Http1(client) => drop(client.send("hello")),
            Self::Http2(wire) => drop(wire.send(frame(DATA, END_STREAM, 1, b"hello"))),
        }
    }

    /// The status of the next interim or final response. 0: none within `time`.
    fn status_within(&mut self, time: Duration) -> u16 {
        match self {
            Self::Http1(client) => {
                client.stream.set_read_timeout(Some(time)).expect("a timeout");
                let response = client.next_response("GET");
                client.stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
                let Ok(response) = response else { return 0 };
                assert_eq!(response.header("x-a"), None, "a hop-by-hop header: {response:?}");
                response.status
            }
            Self::Http2(wire) => {
                wire.stream.set_read_timeout(Some(time)).expect("a timeout");
                let end = wire.end(1);
                wire.stream.set_read_timeout(Some(TIMEOUT)).expect("a timeout");
                if let End::Status(status) = end { status } else { 0 }
            }
        }
    }

    fn status(&mut self) -> u16 {
        self.status_within(TIMEOUT)
    }
}

/// Whether the client speaks HTTP/2, and its target: each application, outbound and inbound.
fn cases() -> [(bool, SocketAddr); 5] {
    [
        (false, Direction::Outbound.address()),
        (false, Direction::Outbound.address_h2()),
        (true, Direction::Outbound.address_h2()),
        (false, Direction::Inbound.address()),
        (true, Direction::Inbound.address_h2()),
    ]
}

/// RFC 9110 15.2: interim responses are forwarded before the final one, but not to HTTP/1.0 clients.
#[test]
fn informational_responses_are_forwarded_at_once() {
    in_namespace(module_path!(), "informational_responses_are_forwarded_at_once", || {
        let app = App::start();
        let _proxy = Proxy::start();
        for (http2, address) in cases() {
            app.behave(Behavior::Hints);
            let mut sender = Sender::start(http2, address, false);
            assert_eq!(sender.status(), 103, "{http2} {address}");
            app.resume.store(true, Ordering::SeqCst);
            assert_eq!((sender.status(), sender.status()), (102, 200), "{http2} {address}");
        }
        for address in [Direction::Outbound.address(), Direction::Inbound.address()] {
            app.resume.store(true, Ordering::SeqCst);
            let mut client = Client::connect(address);
            client.send("GET /x HTTP/1.0\r\nHost: app\r\n\r\n");
            assert_eq!(client.next_response("GET").map(|response| response.status), Ok(200), "{address}: HTTP/1.0");
        }
    });
}

/// RFC 9110 10.1.1: only the application sends 100 or refuses the body; the proxy sends no 100 of its own.
#[test]
fn expect_100_continue_is_answered_by_the_application() {
    in_namespace(module_path!(), "expect_100_continue_is_answered_by_the_application", || {
        let app = App::start();
        let _proxy = Proxy::start();
        for (http2, address) in cases() {
            let case = format!("{http2} {address}");
            app.behave(Behavior::Continue);
            let mut sender = Sender::start(http2, address, true);
            assert_eq!(sender.status(), 100, "{case}");
            assert_eq!(app.body.load(Ordering::SeqCst), 0, "{case}: no body before the 100");
            sender.send_body();
            assert_eq!((sender.status(), app.body.load(Ordering::SeqCst)), (200, 5), "{case}");
            let heads = app.heads.lock().expect("not poisoned").clone();
            assert!(heads.iter().all(|head| head.contains("expect: 100-continue")), "{case}: {heads:?}");

            app.behave(Behavior::WaitForBody);
            let mut sender = Sender::start(http2, address, true);
            assert_eq!(sender.status_within(Duration::from_millis(300)), 0, "{case}: no 100 from the proxy");
            sender.send_body();
            assert_eq!(sender.status(), 200, "{case}: a body sent without a 100 is forwarded");

            app.behave(Behavior::Refuse);
            let mut sender = Sender::start(http2, address, true);
            assert_eq!(sender.status(), 401, "{case}");
            if let Sender::Http1(client) = &mut sender {
                assert!(client.closes_within(TIMEOUT), "{case}: the body may or may not follow");
            }
            assert_eq!(app.body.load(Ordering::SeqCst), 0, "{case}: the body was refused");
        }
    });
}

/// Up to 10,000 interim responses are forwarded; more are answered 502.
#[test]
fn informational_responses_beyond_10000_answer_502() {
    in_namespace(module_path!(), "informational_responses_beyond_10000_answer_502", || {
        let app = App::start();
        let mut proxy = Proxy::start();
        for (http2, address) in cases() {
            for (count, expected) in [(20, 200), (10_001, 502)] {
                app.behave(Behavior::ManyHints(count));
                let mut sender = Sender::start(http2, address, false);
                let (mut hints, mut status) = (0, sender.status());
                while status == 103 {
                    (hints, status) = (hints + 1, sender.status());
                }
                assert_eq!(status, expected, "{http2} {address}: {hints} of {count}");
                assert!(expected != 200 || hints == count, "{http2} {address}: {hints} of {count}");
            }
        }
        assert!(proxy.is_alive());
    });
}
