//! Limits and timeouts for clients and applications. `docs/bounds.md` lists all of them.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::app::{After, App, Reply};
use super::client::Client;
use super::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, End, GOAWAY, HEADERS, Http2App, PING, PREFACE, PRIORITY, Wire,
    application, frame, head, literal, settings_frame,
};
use super::place::{APP, APP_H2, BOTH, Direction, Options, PROXY_UID, Proxy, in_namespace};

/// A header block: `:status: 200`.
const OK: &[u8] = &[0x88];

/// Error code of RFC 9113 7.
const ENHANCE_YOUR_CALM: u32 = 11;

/// Sends one request on a new connection. Returns how it ended, and the response body.
fn request(direction: Direction, method: &str) -> (End, String) {
    let mut wire = Wire::connect(direction.address_h2());
    wire.stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head(method, "/x")));
    match wire.end(1) {
        End::Status(status) => (End::Status(status), String::from_utf8_lossy(&wire.body(1).0).into_owned()),
        end => (end, String::new()),
    }
}

/// A header block in a HEADERS frame and as many CONTINUATION frames as it needs. `ends` is END_STREAM or 0.
fn split(stream: u32, ends: u8, block: &[u8]) -> Vec<u8> {
    let count = block.chunks(16_000).count();
    let one = |(at, part): (usize, &[u8])| {
        let last = if at + 1 == count { END_HEADERS } else { 0 };
        if at == 0 { frame(HEADERS, ends | last, stream, part) } else { frame(CONTINUATION, last, stream, part) }
    };
    block.chunks(16_000).enumerate().flat_map(one).collect()
}

/// A client that stalls in the preface, in SETTINGS, in a head or in any frame but DATA is disconnected after the
/// head timeout. Slow DATA and idle connections are not.
#[test]
fn incomplete_client_heads_time_out() {
    in_namespace(module_path!(), "incomplete_client_heads_time_out", || {
        let app = Http2App::start();
        let timeouts = json!({"head": 1000, "idle": 60_000}).to_string();
        let _proxy = Proxy::with(Options { environment: vec![("WEFT_TIMEOUTS_MS", timeouts)], ..Options::default() });
        let begun = |rest: &[u8]| [PREFACE, &settings_frame(&[])[..], rest].concat();
        let request = head("POST", "/x");
        let (open, block) = (frame(HEADERS, END_HEADERS, 1, &request), frame(HEADERS, 0, 1, &request));
        let more = frame(CONTINUATION, 0, 1, &literal("x-a", "1"));
        for direction in BOTH {
            let slow = [
                ("the preface", begun(b"")[..24].to_vec(), b"".to_vec()),
                ("settings", begun(b"")[..30].to_vec(), b"".to_vec()),
                ("a frame header", begun(&[0, 0]), b"".to_vec()),
                ("a HEADERS frame", begun(&open[..open.len() - 3]), b"".to_vec()),
                ("a header block", begun(&block), b"".to_vec()),
                ("a header block in several frames", begun(&[&block[..], &more.repeat(8)].concat()), b"".to_vec()),
                ("a header block that goes on", begun(&block), more.clone()),
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
            assert_eq!(wire.end(3), End::Status(200), "{direction:?}: a connection may be idle");
        }
        app.take();
    });
}

/// An application that stalls in SETTINGS or in a response head times out after 10 s, over both versions.
#[test]
fn incomplete_application_heads_time_out() {
    in_namespace(module_path!(), "incomplete_application_heads_time_out", || {
        let app = App::start();
        app.reply("/slow", Reply::new("HTTP/1.1 200 OK\r\nX-A: ", After::Hang));
        application(|number, mut wire| {
            // Each request arrives on its own connection.
            let settled = [settings_frame(&[]), frame(HEADERS, 0, 1, OK)].concat();
            let variants = [b"".to_vec(), settled.clone(), settled[..settled.len() - 1].to_vec()];
            wire.send(&variants[number as usize % variants.len()]);
            while wire.next() != Err(End::Closed) {}
        });
        let _proxy = Proxy::start();
        thread::scope(|scope| {
            for direction in BOTH {
                let timed = move |response: &dyn Fn() -> String| {
                    let begun = Instant::now();
                    let response = response();
                    assert!(response == "502" || response == "503", "{direction:?}: {response}");
                    let took = begun.elapsed();
                    // A request that waits for SETTINGS was not sent, so it is retried.
                    assert!((9..45).contains(&took.as_secs()), "{direction:?}: {took:?}");
                };
                scope.spawn(move || {
                    timed(&|| {
                        let mut client = Client::connect(direction.address());
                        client.stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
                        client.send("GET /slow HTTP/1.1\r\nHost: app\r\n\r\n");
                        client
                            .response()
                            .map_or_else(|error| format!("{error:?}"), |response| response.status.to_string())
                    })
                });
                for _ in 0..3 {
                    scope.spawn(move || {
                        timed(&|| match request(direction, "POST") {
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

/// A silent stream stays open, even with a server that limits PINGs as gRPC servers do by default: one in 5 minutes,
/// and one after each HEADERS or DATA that it sends. A server that hangs is detected by PING.
#[test]
fn silent_streams_stay_open_and_hung_servers_are_detected() {
    in_namespace(module_path!(), "silent_streams_stay_open_and_hung_servers_are_detected", || {
        let hangs = Arc::new(AtomicBool::new(false));
        let hung = hangs.clone();
        application(move |_, mut wire| {
            wire.send(settings_frame(&[]));
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
                            let reason = [[0; 4], ENHANCE_YOUR_CALM.to_be_bytes()].concat();
                            wire.send(self::frame(GOAWAY, 0, 0, &[&reason[..], b"too_many_pings"].concat()));
                            return;
                        }
                        (pinged, is_welcome) = (Some(Instant::now()), false);
                    }
                }
                wire.send(frame(DATA, END_STREAM, stream, b"b"));
            }
        });
        let _proxy = Proxy::start();
        thread::scope(|scope| {
            for direction in BOTH {
                scope.spawn(move || {
                    assert_eq!(request(direction, "GET"), (End::Status(200), "ab".into()), "{direction:?}")
                });
            }
        });
        hangs.store(true, Ordering::SeqCst);
        thread::scope(|scope| {
            for direction in BOTH {
                scope.spawn(move || {
                    let begun = Instant::now();
                    // POST, which is not retried.
                    let (end, _) = request(direction, "POST");
                    assert_eq!(end, End::Status(502), "{direction:?}");
                    assert!(begun.elapsed() < Duration::from_secs(17), "{direction:?}: {:?}", begun.elapsed());
                });
            }
        });
    });
}

/// A host that vanishes is detected by TCP keep-alive and TCP_USER_TIMEOUT, over both versions.
#[test]
fn vanished_hosts_are_detected_by_the_kernel() {
    in_namespace(module_path!(), "vanished_hosts_are_detected_by_the_kernel", || {
        let app = App::start();
        app.reply("/hang", Reply::new("", After::Hang));
        application(|_, mut wire| {
            wire.send(settings_frame(&[]));
            while let Some(stream) = wire.request() {
                wire.send(frame(HEADERS, END_HEADERS, stream, OK)).send(frame(DATA, 0, stream, b"a"));
            }
        });
        let _proxy = Proxy::start();
        let timeout = Some(Duration::from_secs(40));
        let mut waiting = BOTH.map(|direction| {
            let mut wire = Wire::connect(direction.address_h2());
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("GET", "/x")));
            assert_eq!(wire.end(1), End::Status(200), "{direction:?}");
            let mut client = Client::connect(direction.address());
            client.send("POST /hang HTTP/1.1\r\nHost: app\r\n\r\n");
            wire.stream.set_read_timeout(timeout).expect("a timeout");
            client.stream.set_read_timeout(timeout).expect("a timeout");
            (direction, wire, client)
        });
        // By now the PING that follows the response DATA has been answered, and no other is due.
        thread::sleep(Duration::from_secs(13));
        let ports = format!("-m multiport --dports {APP},{APP_H2}");
        let rule = format!("-w -A OUTPUT -p tcp {ports} -m owner --uid-owner {PROXY_UID} -j DROP");
        assert!(Command::new("iptables-nft").args(rule.split(' ')).status().expect("iptables").success());
        let begun = Instant::now();
        for (direction, wire, client) in &mut waiting {
            let (_, end) = wire.body(1);
            assert!(matches!(end, Err(End::Reset(_))), "{direction:?}: {end:?} after {:?}", begun.elapsed());
            let status = client.response().map(|response| response.status);
            assert_eq!(status, Ok(502), "{direction:?} after {:?}", begun.elapsed());
        }
        assert!(begun.elapsed() < Duration::from_secs(35), "{:?}", begun.elapsed());
    });
}

/// When an application sets SETTINGS_MAX_CONCURRENT_STREAMS to 0, requests go to another connection, and its open
/// streams go on.
#[test]
fn requests_use_another_connection_when_a_server_allows_no_streams() {
    in_namespace(module_path!(), "requests_use_another_connection_when_a_server_allows_no_streams", || {
        application(|number, mut wire| {
            wire.send(settings_frame(&[]));
            let Some(first) = wire.request() else { return };
            // Of each three connections, only the first keeps its stream open.
            let ends = if number % 3 == 0 { 0 } else { END_STREAM };
            wire.send(frame(HEADERS, END_HEADERS | ends, first, OK)).send(settings_frame(&[(3, 0)]));
            let begun = Instant::now();
            wire.stream.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
            while begun.elapsed() < Duration::from_secs(3) {
                if let Ok(frame) = wire.next() {
                    assert_ne!(frame.kind, HEADERS, "a request on a connection that allows no streams");
                    wire.acknowledge(&frame);
                }
            }
            if ends == 0 {
                wire.send(frame(DATA, END_STREAM, first, b"late"));
            }
            while wire.next() != Err(End::Closed) {}
        });
        let _proxy = Proxy::start();
        for direction in BOTH {
            let mut wire = Wire::connect(direction.address_h2());
            for id in [1, 3, 5] {
                let begun = Instant::now();
                wire.send(frame(HEADERS, END_HEADERS | END_STREAM, id, &head("POST", "/x")));
                assert_eq!(wire.end(id), End::Status(200), "{direction:?} {id}");
                assert!(begun.elapsed() < Duration::from_millis(2500), "{direction:?} {id}: {:?}", begun.elapsed());
                thread::sleep(Duration::from_millis(50));
            }
            assert_eq!(wire.body(1), (b"late".to_vec(), Ok(())), "{direction:?}: the open stream goes on");
        }
    });
}

/// RFC 9113 6.8: streams beyond the last stream of a GOAWAY were not processed, whatever its error code, so they are
/// retried.
#[test]
fn requests_beyond_the_last_stream_of_a_goaway_are_retried() {
    in_namespace(module_path!(), "requests_beyond_the_last_stream_of_a_goaway_are_retried", || {
        application(|number, mut wire| {
            wire.send(settings_frame(&[]));
            while let Some(stream) = wire.request() {
                if number % 2 == 1 {
                    wire.send(frame(HEADERS, END_HEADERS | END_STREAM, stream, OK));
                } else if stream > 1 {
                    let go_away = [1u32.to_be_bytes(), ENHANCE_YOUR_CALM.to_be_bytes()].concat();
                    wire.send(frame(GOAWAY, 0, 0, &go_away));
                    wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, OK));
                }
            }
        });
        let _proxy = Proxy::start();
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

/// Heads and trailers of applications have the same limit as those of clients, 64 KiB. Larger heads are answered 502
/// with the reason.
#[test]
fn application_heads_and_trailers_are_bounded() {
    in_namespace(module_path!(), "application_heads_and_trailers_are_bounded", || {
        let app = App::start();
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n";
        for size in [20_000, 60_000, 70_000] {
            let value = "v".repeat(size);
            let head = format!("HTTP/1.1 200 OK\r\nX-A: {value}\r\nContent-Length: 2\r\n\r\nok");
            app.reply(&format!("/head-{size}"), Reply::new(head, After::Keep));
            app.reply(&format!("/trailers-{size}"), Reply::new(format!("{chunked}X-A: {value}\r\n\r\n"), After::Keep));
        }
        let sizes = [20_000usize, 60_000, 70_000];
        application(move |_, mut wire| {
            wire.send(settings_frame(&[]));
            while let Some(stream) = wire.request() {
                // By turns: a large head, large trailers.
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
        let _proxy = Proxy::start();
        for direction in BOTH {
            for size in sizes {
                let is_taken = size < 64 * 1024;
                let mut client = Client::connect(direction.address());
                client.send(format!("GET /head-{size} HTTP/1.1\r\nHost: app\r\n\r\n"));
                let response = client.response().expect("a response");
                let text = String::from_utf8_lossy(&response.body).into_owned();
                let expected = if is_taken { (200, None) } else { (502, Some("response-too-large")) };
                let fields = (response.status, response.header("weft-reason"));
                assert_eq!(fields, expected, "{direction:?} {size}: {text}");
                assert_eq!(text.contains("larger than 64 KiB"), !is_taken, "{direction:?} {size}: {text}");
                let mut client = Client::connect(direction.address());
                client.send(format!("GET /trailers-{size} HTTP/1.1\r\nHost: app\r\n\r\n"));
                assert_eq!(client.response().is_ok(), is_taken, "{direction:?} trailers of {size}");
            }
            // All of these share one connection to the application.
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
                    // A `v` has 7 bits in the Huffman code of RFC 7541 B; the rest of a large block may still be in
                    // flight.
                    assert_eq!(octets > size / 2 || size > 16_000 && octets > 10_000, is_taken, "{what}: {octets}");
                    id += 2;
                }
            }
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// Content after a response that cannot have any is neither forwarded nor taken for the next response.
#[test]
fn content_after_bodiless_responses_is_dropped() {
    in_namespace(module_path!(), "content_after_bodiless_responses_is_dropped", || {
        let app = App::start();
        let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
        for (path, status) in [("/200", "200 OK"), ("/204", "204 No Content"), ("/304", "304 Not Modified")] {
            app.reply(path, Reply::new(format!("HTTP/1.1 {status}\r\nContent-Length: 44\r\n\r\n{evil}"), After::Keep));
        }
        application(|_, mut wire| {
            wire.send(settings_frame(&[]));
            while let Some(stream) = wire.request() {
                // By turns 200 (to HEAD), 204, 304.
                let status = [0x88, 0x89, 0x8b][(stream as usize - 1) / 2 % 3];
                wire.send(frame(HEADERS, END_HEADERS, stream, &[status]));
                wire.send(frame(DATA, END_STREAM, stream, b"evil"));
            }
        });
        let _proxy = Proxy::start();
        for direction in BOTH {
            for (path, method) in [("/200", "HEAD"), ("/204", "GET"), ("/304", "GET"), ("/204", "POST")] {
                let mut client = Client::connect(direction.address());
                client.send(format!("{method} {path} HTTP/1.1\r\nHost: app\r\n\r\n"));
                assert!(client.response_to(method).is_ok(), "{direction:?} {method} {path}");
                client.send("GET /next HTTP/1.1\r\nHost: app\r\n\r\n");
                let next = client.response().map(|response| response.body);
                assert_eq!(next, Ok(b"GET /next".to_vec()), "{direction:?} {method} {path}");
            }
            // The proxy's own response to HEAD has no content either.
            let mut wire = Wire::connect(Direction::Inbound.address_h2());
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("HEAD", "/private")));
            let mut frames = std::iter::from_fn(|| wire.next().ok()).filter(|frame| frame.stream == 1);
            let first = frames.next().expect("a response");
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
