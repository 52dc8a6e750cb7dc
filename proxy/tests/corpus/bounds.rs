//! What applications and clients may do too much of, or take too long for. `docs/bounds.md` has the whole list.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::app::{App, Reply, Then};
use super::client::Client;
use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, End, GOAWAY, HEADERS, Http2App, PING, PRIORITY, SETTINGS, Wire,
    application, frame, head, literal,
};
use super::place::{APP, APP_H2, BOTH, Direction, Options, PROXY_UID, Place, alone};

/// `:status: 200`.
const OK: &[u8] = &[0x88];

/// Enhance your calm.
const CALM: u32 = 11;

fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        values.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(SETTINGS, 0, 0, &payload)
}

/// One request on a connection of its own: what became of it, and its body.
fn ask(direction: Direction, method: &str) -> (End, String) {
    let mut wire = Wire::connect(direction.address_h2());
    wire.stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head(method, "/x")));
    match wire.end(1) {
        End::Status(status) => (End::Status(status), String::from_utf8_lossy(&wire.body(1).0).into_owned()),
        end => (end, String::new()),
    }
}

/// A block of headers in as many frames as it needs, the last of its stream or not.
fn split(stream: u32, ends: u8, block: &[u8]) -> Vec<u8> {
    let count = block.chunks(16_000).count();
    let one = |(at, part): (usize, &[u8])| {
        let last = if at + 1 == count { END_HEADERS } else { 0 };
        if at == 0 { frame(HEADERS, ends | last, stream, part) } else { frame(CONTINUATION, last, stream, part) }
    };
    block.chunks(16_000).enumerate().flat_map(one).collect()
}

/// Clients that begin what must come whole, and do not end it, are not waited for; data and connections at rest are.
#[test]
fn incomplete_client_heads_time_out() {
    alone(module_path!(), "incomplete_client_heads_time_out", || {
        let app = Http2App::start();
        let timeouts = json!({"head": 1000, "idle": 60_000}).to_string();
        let _place = Place::with(Options { environment: vec![("WEFT_TIMEOUTS_MS", timeouts)], ..Options::default() });
        let begun = |rest: &[u8]| [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &settings(&[])[..], rest].concat();
        let request = head("POST", "/x");
        let (open, block) = (frame(HEADERS, END_HEADERS, 1, &request), frame(HEADERS, 0, 1, &request));
        let more = frame(CONTINUATION, 0, 1, &literal("x-a", "1"));
        for direction in BOTH {
            let slow = [
                ("the preface", begun(b"")[..24].to_vec(), b"".to_vec()),
                ("settings", begun(b"")[..30].to_vec(), b"".to_vec()),
                ("the head of a frame", begun(&[0, 0]), b"".to_vec()),
                ("a frame of headers", begun(&open[..open.len() - 3]), b"".to_vec()),
                ("a block", begun(&block), b"".to_vec()),
                ("a block in several frames", begun(&[&block[..], &more.repeat(8)].concat()), b"".to_vec()),
                ("a block that goes on", begun(&block), more.clone()),
                ("another frame", begun(&frame(PRIORITY, 0, 1, &[0; 5])[..12]), b"".to_vec()),
            ];
            let mut clients: Vec<_> = (slow.iter())
                .map(|(name, bytes, drip)| {
                    let mut client = Client::connect(direction.address_h2());
                    client.send(bytes);
                    (*name, client, drip)
                })
                .collect();
            let since = Instant::now();
            while since.elapsed() < Duration::from_millis(1500) {
                clients.iter_mut().for_each(|(_, client, drip)| {
                    client.send(drip);
                });
                thread::sleep(Duration::from_millis(100));
            }
            for (name, client, _) in &mut clients {
                assert!(client.closes_within(Duration::from_secs(2)), "{direction:?}: {name}");
            }
            let mut wire = Wire::connect(direction.address_h2());
            let data = frame(DATA, END_STREAM, 1, b"hello");
            wire.send(&open).send(&data[..12]);
            thread::sleep(Duration::from_millis(2500));
            wire.send(&data[12..]);
            assert_eq!(wire.end(1), End::Status(200), "{direction:?}: data may be slow");
            thread::sleep(Duration::from_millis(2500));
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, &head("GET", "/x")));
            assert_eq!(wire.end(3), End::Status(200), "{direction:?}: a connection may be at rest");
        }
        app.take();
    });
}

/// The same with applications, over both versions: what they begin is waited for 10 s.
#[test]
fn incomplete_application_heads_time_out() {
    alone(module_path!(), "incomplete_application_heads_time_out", || {
        let app = App::start();
        app.reply("/slow", Reply::new("HTTP/1.1 200 OK\r\nX-A: ", Then::Hang));
        application(|number, mut wire| {
            // Each request comes on a connection of its own.
            let settled = [settings(&[]), frame(HEADERS, 0, 1, OK)].concat();
            let said = [b"".to_vec(), settled.clone(), settled[..settled.len() - 1].to_vec()];
            wire.send(&said[number as usize % said.len()]);
            while wire.next() != Err(End::Closed) {}
        });
        let _place = Place::start();
        thread::scope(|scope| {
            for direction in BOTH {
                let timed = move |answer: &dyn Fn() -> String| {
                    let begun = Instant::now();
                    let answer = answer();
                    assert!(answer == "502" || answer == "503", "{direction:?}: {answer}");
                    let took = begun.elapsed();
                    // One that was not sent is sent again: settings have not come.
                    assert!((9..45).contains(&took.as_secs()), "{direction:?}: {took:?}");
                };
                scope.spawn(move || {
                    timed(&|| {
                        let mut client = Client::connect(direction.address());
                        client.stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
                        client.send("GET /slow HTTP/1.1\r\nHost: app\r\n\r\n");
                        client.answer().map_or_else(|error| format!("{error:?}"), |answer| answer.status.to_string())
                    })
                });
                for _ in 0..3 {
                    scope.spawn(move || {
                        timed(&|| match ask(direction, "POST") {
                            (End::Status(status), _) => status.to_string(),
                            (end, _) => format!("{end:?}"),
                        })
                    });
                    thread::sleep(Duration::from_millis(200));
                }
            }
        });
    });
}

/// A stream on which nothing is said lives for as long as both sides want, also where the server bears as few PINGs as gRPC's
/// does by default: one in 5 minutes, but for one behind each head or data of its own. A server that hangs is found out.
#[test]
fn silent_streams_stay_open_and_hung_servers_are_detected() {
    alone(module_path!(), "silent_streams_stay_open_and_hung_servers_are_detected", || {
        let hangs = Arc::new(AtomicBool::new(false));
        let hung = hangs.clone();
        application(move |_, mut wire| {
            wire.send(settings(&[]));
            let mut pinged: Option<Instant> = None;
            while let Some(stream) = wire.request() {
                if hung.load(Ordering::SeqCst) {
                    return thread::sleep(Duration::from_secs(60));
                }
                wire.send(frame(HEADERS, END_HEADERS, stream, OK)).send(frame(DATA, 0, stream, b"a"));
                let (begun, mut is_welcome) = (Instant::now(), true);
                wire.stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
                while begun.elapsed() < Duration::from_secs(25) {
                    let Ok(frame) = wire.next() else { continue };
                    wire.acknowledge(&frame);
                    if frame.kind == PING {
                        let is_early = pinged.is_some_and(|pinged| pinged.elapsed() < Duration::from_secs(300));
                        if is_early && !is_welcome {
                            let reason = [[0; 4], CALM.to_be_bytes()].concat();
                            wire.send(self::frame(GOAWAY, 0, 0, &[&reason[..], b"too_many_pings"].concat()));
                            return;
                        }
                        (pinged, is_welcome) = (Some(Instant::now()), false);
                    }
                }
                wire.send(frame(DATA, END_STREAM, stream, b"b"));
            }
        });
        let _place = Place::start();
        thread::scope(|scope| {
            for direction in BOTH {
                scope
                    .spawn(move || assert_eq!(ask(direction, "GET"), (End::Status(200), "ab".into()), "{direction:?}"));
            }
        });
        hangs.store(true, Ordering::SeqCst);
        thread::scope(|scope| {
            for direction in BOTH {
                scope.spawn(move || {
                    let begun = Instant::now();
                    // No request that is repeated.
                    let (end, _) = ask(direction, "POST");
                    assert_eq!(end, End::Status(502), "{direction:?}");
                    assert!(begun.elapsed() < Duration::from_secs(17), "{direction:?}: {:?}", begun.elapsed());
                });
            }
        });
    });
}

/// A host that is gone is found out by the kernel, over both versions, where nothing else would end the wait.
#[test]
fn vanished_hosts_are_detected_by_the_kernel() {
    alone(module_path!(), "vanished_hosts_are_detected_by_the_kernel", || {
        let app = App::start();
        app.reply("/hang", Reply::new("", Then::Hang));
        application(|_, mut wire| {
            wire.send(settings(&[]));
            while let Some(stream) = wire.request() {
                wire.send(frame(HEADERS, END_HEADERS, stream, OK)).send(frame(DATA, 0, stream, b"a"));
            }
        });
        let _place = Place::start();
        let patience = Some(Duration::from_secs(40));
        let mut waiting = BOTH.map(|direction| {
            let mut wire = Wire::connect(direction.address_h2());
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("GET", "/x")));
            assert_eq!(wire.end(1), End::Status(200), "{direction:?}");
            let mut client = Client::connect(direction.address());
            client.send("POST /hang HTTP/1.1\r\nHost: app\r\n\r\n");
            wire.stream.set_read_timeout(patience).expect("a timeout");
            client.stream.set_read_timeout(patience).expect("a timeout");
            (direction, wire, client)
        });
        // The one PING that is allowed behind data has been answered.
        thread::sleep(Duration::from_secs(13));
        let ports = format!("-m multiport --dports {APP},{APP_H2}");
        let rule = format!("-w -A OUTPUT -p tcp {ports} -m owner --uid-owner {PROXY_UID} -j DROP");
        assert!(Command::new("iptables-nft").args(rule.split(' ')).status().expect("iptables").success());
        let begun = Instant::now();
        for (direction, wire, client) in &mut waiting {
            let (_, end) = wire.body(1);
            assert!(matches!(end, Err(End::Reset(_))), "{direction:?}: {end:?} after {:?}", begun.elapsed());
            let status = client.answer().map(|answer| answer.status);
            assert_eq!(status, Ok(502), "{direction:?} after {:?}", begun.elapsed());
        }
        assert!(begun.elapsed() < Duration::from_secs(35), "{:?}", begun.elapsed());
    });
}

/// An application that takes no more requests on a connection gets them on another, and its streams go on.
#[test]
fn requests_use_another_connection_when_a_server_allows_no_streams() {
    alone(module_path!(), "requests_use_another_connection_when_a_server_allows_no_streams", || {
        application(|number, mut wire| {
            wire.send(settings(&[]));
            let Some(first) = wire.request() else { return };
            // Of three connections the first has a stream open, and the others have none.
            let ends = if number % 3 == 0 { 0 } else { END_STREAM };
            wire.send(frame(HEADERS, END_HEADERS | ends, first, OK)).send(settings(&[(3, 0)]));
            let begun = Instant::now();
            wire.stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
            while begun.elapsed() < Duration::from_secs(3) {
                if let Ok(frame) = wire.next() {
                    assert_ne!(frame.kind, HEADERS, "a request on a connection that takes none");
                    wire.acknowledge(&frame);
                }
            }
            if ends == 0 {
                wire.send(frame(DATA, END_STREAM, first, b"late"));
            }
            while wire.next() != Err(End::Closed) {}
        });
        let _place = Place::start();
        for direction in BOTH {
            let mut wire = Wire::connect(direction.address_h2());
            for id in [1, 3, 5] {
                let begun = Instant::now();
                wire.send(frame(HEADERS, END_HEADERS | END_STREAM, id, &head("POST", "/x")));
                assert_eq!(wire.end(id), End::Status(200), "{direction:?} {id}");
                assert!(begun.elapsed() < Duration::from_millis(2500), "{direction:?} {id}: {:?}", begun.elapsed());
                thread::sleep(Duration::from_millis(50));
            }
            assert_eq!(wire.body(1), (b"late".to_vec(), Ok(())), "{direction:?}: what is open goes on");
        }
    });
}

/// RFC 9113 6.8: what is beyond the last stream that a server names was not processed, whatever made it leave.
#[test]
fn requests_beyond_the_last_stream_of_a_goaway_are_retried() {
    alone(module_path!(), "requests_beyond_the_last_stream_of_a_goaway_are_retried", || {
        application(|number, mut wire| {
            wire.send(settings(&[]));
            while let Some(stream) = wire.request() {
                if number % 2 == 1 {
                    wire.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, OK));
                } else if stream > 1 {
                    let farewell = [1u32.to_be_bytes(), CALM.to_be_bytes()].concat();
                    wire.send(frame(GOAWAY, 0, 0, &farewell));
                    wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, OK));
                }
            }
        });
        let _place = Place::start();
        for direction in BOTH {
            let mut wire = Wire::connect(direction.address_h2());
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("POST", "/x")));
            thread::sleep(Duration::from_millis(300));
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, &head("POST", "/x")));
            let ends: Vec<End> = [1, 3].map(|_| wire.first_status()).to_vec();
            assert_eq!(ends, [End::Status(200); 2], "{direction:?}");
        }
    });
}

/// Heads and trailers of applications: as large as those of clients. What is larger is said to be.
#[test]
fn application_heads_and_trailers_are_bounded() {
    alone(module_path!(), "application_heads_and_trailers_are_bounded", || {
        let app = App::start();
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n";
        for size in [20_000, 60_000, 70_000] {
            let value = "v".repeat(size);
            let head = format!("HTTP/1.1 200 OK\r\nX-A: {value}\r\nContent-Length: 2\r\n\r\nok");
            app.reply(&format!("/head-{size}"), Reply::new(head, Then::Keep));
            app.reply(&format!("/trailers-{size}"), Reply::new(format!("{chunked}X-A: {value}\r\n\r\n"), Then::Keep));
        }
        let sizes = [20_000usize, 60_000, 70_000];
        application(move |_, mut wire| {
            wire.send(settings(&[]));
            while let Some(stream) = wire.request() {
                // The first request, and every other one: a head; the others: trailers.
                let number = (stream as usize - 1) / 2;
                let large = literal("x-a", "v".repeat(sizes[number / 2 % 3]));
                if number.is_multiple_of(2) {
                    wire.send(split(stream, END_STREAM, &[OK, &large].concat()));
                } else {
                    wire.send(frame(HEADERS, END_HEADERS, stream, OK)).send(frame(DATA, 0, stream, b"ok"));
                    wire.send(split(stream, END_STREAM, &large));
                }
            }
        });
        let _place = Place::start();
        for direction in BOTH {
            for size in sizes {
                let is_taken = size < 64 * 1024;
                let mut client = Client::connect(direction.address());
                client.send(format!("GET /head-{size} HTTP/1.1\r\nHost: app\r\n\r\n"));
                let answer = client.answer().expect("an answer");
                let text = String::from_utf8_lossy(&answer.body).into_owned();
                assert_eq!(answer.status, if is_taken { 200 } else { 502 }, "{direction:?} {size}: {text}");
                assert_eq!(text.contains("larger than 64 KiB"), !is_taken, "{direction:?} {size}: {text}");
                let mut client = Client::connect(direction.address());
                client.send(format!("GET /trailers-{size} HTTP/1.1\r\nHost: app\r\n\r\n"));
                assert_eq!(client.answer().is_ok(), is_taken, "{direction:?} trailers of {size}");
            }
            // One connection to the application carries all of this.
            let mut wire = Wire::connect(direction.address_h2());
            let mut id = 1;
            for size in sizes {
                let is_taken = size < 64 * 1024;
                for is_trailer in [false, true] {
                    wire.send(frame(HEADERS, END_HEADERS | END_STREAM, id, &head("GET", "/x")));
                    let mut octets = 0;
                    let (mut text, mut ends) = (Vec::new(), None);
                    while ends.is_none() {
                        let frame = wire.next().expect("a frame");
                        match frame.kind {
                            _ if frame.stream != id => {}
                            HEADERS | CONTINUATION => octets += frame.payload.len(),
                            DATA => text.extend(frame.payload),
                            super::frames::RST_STREAM => ends = Some(false),
                            _ => {}
                        }
                        if frame.stream == id && matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                            ends = Some(true);
                        }
                    }
                    let text = String::from_utf8_lossy(&text).into_owned();
                    let what = format!("{direction:?} {size} {is_trailer}: {text}");
                    assert_eq!(ends, Some(is_taken || !is_trailer), "{what}");
                    assert_eq!(text.contains("larger than 64 KiB"), !is_taken && !is_trailer, "{what}");
                    // In the code of RFC 7541 B a `v` has 7 bits; the rest of a large block may be on its way.
                    assert_eq!(octets > size / 2 || size > 16_000 && octets > 10_000, is_taken, "{what}: {octets}");
                    id += 2;
                }
            }
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// What comes behind an answer that has no content is not passed on, and is no answer to the next request.
#[test]
fn content_after_bodiless_responses_is_dropped() {
    alone(module_path!(), "content_after_bodiless_responses_is_dropped", || {
        let app = App::start();
        let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
        for (path, status) in [("/200", "200 OK"), ("/204", "204 No Content"), ("/304", "304 Not Modified")] {
            app.reply(path, Reply::new(format!("HTTP/1.1 {status}\r\nContent-Length: 44\r\n\r\n{evil}"), Then::Keep));
        }
        application(|_, mut wire| {
            wire.send(settings(&[]));
            while let Some(stream) = wire.request() {
                // By turns: 200 to a HEAD, 204, 304.
                let status = [0x88, 0x89, 0x8b][(stream as usize - 1) / 2 % 3];
                wire.send(frame(HEADERS, END_HEADERS, stream, &[status]));
                wire.send(frame(DATA, END_STREAM, stream, b"evil"));
            }
        });
        let _place = Place::start();
        for direction in BOTH {
            for (path, method) in [("/200", "HEAD"), ("/204", "GET"), ("/304", "GET"), ("/204", "POST")] {
                let mut client = Client::connect(direction.address());
                client.send(format!("{method} {path} HTTP/1.1\r\nHost: app\r\n\r\n"));
                assert!(client.answer_to(method).is_ok(), "{direction:?} {method} {path}");
                client.send("GET /next HTTP/1.1\r\nHost: app\r\n\r\n");
                let next = client.answer().map(|answer| answer.body);
                assert_eq!(next, Ok(b"GET /next".to_vec()), "{direction:?} {method} {path}");
            }
            // Nor is any behind an answer of the proxy's own.
            let mut wire = Wire::connect(Direction::Inbound.address_h2());
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("HEAD", "/private")));
            let mut frames = std::iter::from_fn(|| wire.next().ok()).filter(|frame| frame.stream == 1);
            let first = frames.next().expect("an answer");
            assert_eq!((first.kind, first.flags & END_STREAM), (HEADERS, END_STREAM));
            let mut wire = Wire::connect(direction.address_h2());
            for (id, method) in [(1, "HEAD"), (3, "GET"), (5, "GET")] {
                wire.send(frame(HEADERS, END_HEADERS | END_STREAM, id, &head(method, "/x")));
                match wire.end(id) {
                    End::Status(502) | End::Reset(_) => {}
                    End::Status(_) => {
                        let (body, end) = wire.body(id);
                        assert!(body.is_empty() && end.is_err(), "{direction:?} {method} {id}: {end:?} {body:?}");
                    }
                    end => panic!("{direction:?} {method} {id}: {end:?}"),
                }
            }
        }
    });
}
