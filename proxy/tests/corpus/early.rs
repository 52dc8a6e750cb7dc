//! Responses that come before their request is complete. The rest of the request is forwarded to its end, or the
//! upstream stream is reset (HTTP/1.1: the connection is closed), so that the application sees a truncated request.
//! The proxy keeps nothing of it.

use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::app::{After, App, Reply};
use super::client::{Client, ResponseError};
use super::frames::{
    DATA, END_HEADERS, END_STREAM, End, GOAWAY, HEADERS, RST_STREAM, Script, ScriptedApp, StreamRecord, Wire, block,
    frame, head, literal,
};
use super::place::{BOTH, Direction, Options, Proxy, in_namespace, scrape, wait};

/// How a client sends its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Length,
    Chunks,
    Http2,
}

const ALL: [Framing; 3] = [Framing::Length, Framing::Chunks, Framing::Http2];

/// A request whose body is partly sent.
enum Upload {
    Http1(Client, Framing),
    Http2(Wire),
}

impl Upload {
    /// Sends the head, and the first part of the body.
    fn start(framing: Framing, address: SocketAddr, first: usize, total: usize) -> Self {
        let mut upload = match framing {
            Framing::Http2 => {
                let mut wire = Wire::connect(address);
                let head = [head("POST", "/early"), literal("content-length", total.to_string())].concat();
                wire.send(frame(HEADERS, END_HEADERS, 1, &head));
                Self::Http2(wire)
            }
            Framing::Length | Framing::Chunks => {
                let mut client = Client::connect(address);
                let header = match framing {
                    Framing::Length => format!("Content-Length: {total}"),
                    _ => "Transfer-Encoding: chunked".into(),
                };
                client.send(format!("POST /early HTTP/1.1\r\nHost: app\r\n{header}\r\n\r\n"));
                Self::Http1(client, framing)
            }
        };
        upload.send_part(first, false);
        upload
    }

    fn send_part(&mut self, count: usize, ends: bool) {
        match self {
            Self::Http2(wire) => {
                // Within the proxy's initial window.
                for part in vec![b'x'; count].chunks(16_000) {
                    wire.send(frame(DATA, 0, 1, part));
                }
                if ends {
                    wire.send(frame(DATA, END_STREAM, 1, b""));
                }
            }
            Self::Http1(client, Framing::Length) => drop(client.send(vec![b'x'; count])),
            Self::Http1(client, _) => {
                client.send(format!("{count:x}\r\n{}\r\n", "x".repeat(count)));
                if ends {
                    client.send("0\r\n\r\n");
                }
            }
        }
    }

    /// The status and the body of the response, if it is complete.
    fn response(&mut self) -> Result<(u16, Vec<u8>), String> {
        match self {
            Self::Http1(client, _) => {
                let response = client.response().map_err(|error| format!("{error:?}"))?;
                Ok((response.status, response.body))
            }
            Self::Http2(wire) => match wire.end(1) {
                End::Status(status) => match wire.body(1) {
                    (body, Ok(())) => Ok((status, body)),
                    (body, Err(end)) => Err(format!("{status}, {} octets and {end:?}", body.len())),
                },
                end => Err(format!("{end:?}")),
            },
        }
    }
}

/// The frames of a response with status 202 and body `no`.
fn response_202(has_length: bool, has_trailers: bool) -> Vec<(u8, u8, Vec<u8>)> {
    let mut head = literal(":status", "202");
    if has_length {
        head.extend(literal("content-length", "2"));
    }
    let mut frames = vec![(HEADERS, END_HEADERS, head)];
    if has_trailers {
        frames.push((DATA, 0, b"no".to_vec()));
        frames.push((HEADERS, END_HEADERS | END_STREAM, block(&[("x-sum", "1")])));
    } else {
        frames.push((DATA, END_STREAM, b"no".to_vec()));
    }
    frames
}

fn complete(octets: usize) -> StreamRecord {
    StreamRecord { octets, has_ended: true, reset: None }
}

/// The requests that reach the HTTP/2 application. Inbound, HTTP/1.1 is forwarded as HTTP/1.1, so it does not.
fn cases() -> Vec<(Direction, Framing)> {
    let outbound = ALL.map(|framing| (Direction::Outbound, framing));
    [&outbound[..], &[(Direction::Inbound, Framing::Http2)]].concat()
}

/// The application responds early, reads on, and gets the whole body. The rounds exceed the 100 streams of a
/// connection, so a stream that is not freed fails the test.
#[test]
fn uploads_complete_after_an_early_response() {
    in_namespace(module_path!(), "uploads_complete_after_an_early_response", || {
        let app = ScriptedApp::start(&[(3, 100)]);
        let proxy = Proxy::start();
        for (direction, framing) in cases() {
            for (has_length, has_trailers) in [(false, false), (true, false), (false, true), (true, true)] {
                app.follow(Script {
                    response: response_202(has_length, has_trailers),
                    updates_windows: true,
                    shutdown: None,
                });
                let case = format!("{direction:?}, {framing:?}, length {has_length}, trailers {has_trailers}");
                for round in 0..30 {
                    let mut upload = Upload::start(framing, direction.address_h2(), 100, 1000);
                    assert_eq!(upload.response(), Ok((202, b"no".to_vec())), "{case}, {round}");
                    upload.send_part(900, true);
                    let came = app.take_when(&case, |came| came.has_ended || came.reset.is_some());
                    assert_eq!(came, [complete(1000)], "{case}, {round}");
                }
                proxy.settle();
            }
        }
    });
}

/// The same with a body much larger than all windows, from a client that reads the response only after sending it.
#[test]
fn uploads_larger_than_all_windows_complete_after_an_early_response() {
    const TOTAL: usize = 8_000_000;
    in_namespace(module_path!(), "uploads_larger_than_all_windows_complete_after_an_early_response", || {
        let app = ScriptedApp::start(&[(3, 100)]);
        let proxy = Proxy::start();
        // A response that needs windows: the client reads none of it before it has sent everything.
        let long = vec![(HEADERS, END_HEADERS, literal(":status", "202")), (DATA, END_STREAM, vec![b'n'; 16_000])];
        app.follow(Script { response: long, updates_windows: true, shutdown: None });
        for framing in [Framing::Length, Framing::Chunks] {
            let mut upload = Upload::start(framing, Direction::Outbound.address_h2(), 100, TOTAL);
            thread::sleep(Duration::from_millis(50));
            upload.send_part(TOTAL - 100, true);
            let came = app.take_when("the rest", |came| came.has_ended || came.reset.is_some());
            assert_eq!(came, [complete(TOTAL)], "{framing:?}");
            assert_eq!(upload.response(), Ok((202, vec![b'n'; 16_000])), "{framing:?}");
            drop(upload);
            proxy.settle();
        }
    });
}

/// The application responds early and sends no WINDOW_UPDATE for the rest: the response is forwarded, and the stream
/// is reset when the client disconnects. Meanwhile the endpoint accepts other requests.
#[test]
fn uploads_without_window_are_reset_when_the_client_disconnects() {
    const AT_ONCE: usize = 120;
    in_namespace(module_path!(), "uploads_without_window_are_reset_when_the_client_disconnects", || {
        // An initial stream window of 50 octets.
        let app = ScriptedApp::start(&[(3, 100), (4, 50)]);
        let proxy = Proxy::start();
        for (direction, framing) in cases() {
            app.follow(Script { response: response_202(true, false), updates_windows: false, shutdown: None });
            let begin = |_| Upload::start(framing, direction.address_h2(), 100, 1000);
            let mut uploads: Vec<Upload> = (0..AT_ONCE).map(begin).collect();
            for (round, upload) in uploads.iter_mut().enumerate() {
                assert_eq!(upload.response(), Ok((202, b"no".to_vec())), "{direction:?} {framing:?} {round}");
            }
            drop(uploads);
            let came = app.take_when("each is reset", |came| came.has_ended || came.reset.is_some());
            assert_eq!(came.len(), AT_ONCE, "{direction:?} {framing:?}");
            // The first request on a connection is sent before the application's SETTINGS arrive.
            let cut = |came: &StreamRecord| came.octets <= 100 && !came.has_ended && came.reset.is_some();
            assert!(came.iter().all(cut), "{direction:?} {framing:?}: {came:?}");
            proxy.settle();
        }
    });
}

/// A client's RST is detected even behind more unread body data than the proxy reads ahead, before and after the
/// response.
#[test]
fn client_resets_behind_unread_data_are_detected() {
    in_namespace(module_path!(), "client_resets_behind_unread_data_are_detected", || {
        let app = ScriptedApp::start(&[(3, 100), (4, 50)]);
        let proxy = Proxy::start();
        for response in [response_202(true, false), Vec::new()] {
            let is_answered = !response.is_empty();
            app.follow(Script { response, updates_windows: false, shutdown: None });
            let mut upload = Upload::start(Framing::Length, Direction::Outbound.address_h2(), 300_000, 1_000_000);
            if is_answered {
                assert_eq!(upload.response(), Ok((202, b"no".to_vec())));
            }
            thread::sleep(Duration::from_millis(100));
            if let Upload::Http1(client, _) = &upload {
                socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).expect("set");
            }
            drop(upload);
            let came = app.take_when("it is reset", |came| came.has_ended || came.reset.is_some());
            assert!(came.iter().all(|came| !came.has_ended), "{came:?}");
            proxy.settle();
        }
    });
}

/// A client that resets its stream or disconnects within its body makes the proxy reset the upstream stream, never
/// end it.
#[test]
fn client_disconnects_reset_the_upstream_stream() {
    in_namespace(module_path!(), "client_disconnects_reset_the_upstream_stream", || {
        let app = ScriptedApp::start(&[(3, 100)]);
        let proxy = Proxy::start();
        let begins = vec![(HEADERS, END_HEADERS, literal(":status", "202")), (DATA, 0, b"n".to_vec())];
        for (direction, framing) in cases() {
            // A complete response, an incomplete one, and none.
            for response in [response_202(true, false), begins.clone(), Vec::new()] {
                for code in [0u32, 8] {
                    let case = format!("{direction:?}, {framing:?}, {} frames, code {code}", response.len());
                    app.follow(Script { response: response.clone(), updates_windows: true, shutdown: None });
                    let mut upload = Upload::start(framing, direction.address_h2(), 100, 1000);
                    thread::sleep(Duration::from_millis(50));
                    match &mut upload {
                        Upload::Http2(wire) => drop(wire.send(frame(RST_STREAM, 0, 1, &code.to_be_bytes()))),
                        Upload::Http1(client, _) if code == 0 => client.finish(),
                        Upload::Http1(..) => {}
                    }
                    if matches!(upload, Upload::Http1(..)) && code != 0 {
                        drop(upload);
                    }
                    let came = app.take_when(&case, |came| came.has_ended || came.reset.is_some());
                    assert!(came.iter().all(|came| !came.has_ended && came.octets == 100), "{case}: {came:?}");
                    assert!(came.iter().all(|came| came.reset.is_some_and(|code| code != 0)), "{case}: {came:?}");
                }
            }
            proxy.settle();
        }
    });
}

/// The application stops reading: it resets the stream after a complete response, or closes the connection. The
/// client gets the response, and requests after it are served.
#[test]
fn applications_may_stop_reading_after_an_early_response() {
    in_namespace(module_path!(), "applications_may_stop_reading_after_an_early_response", || {
        let app = ScriptedApp::start(&[(3, 100)]);
        let proxy = Proxy::start();
        let resets =
            |code: u32| [response_202(true, false), vec![(RST_STREAM, 0, code.to_be_bytes().to_vec())]].concat();
        for (direction, framing) in cases() {
            for (what, response, shutdown) in [
                ("NO_ERROR", resets(0), None),
                ("CANCEL", resets(8), None),
                ("closes", response_202(true, false), Some(Shutdown::Both)),
            ] {
                let case = format!("{direction:?}, {framing:?}, {what}");
                app.follow(Script { response, updates_windows: true, shutdown });
                for round in 0..5 {
                    let mut upload = Upload::start(framing, direction.address_h2(), 100, 1000);
                    assert_eq!(upload.response(), Ok((202, b"no".to_vec())), "{case}, {round}");
                    if let Upload::Http2(wire) = &mut upload {
                        let mut reset = None;
                        while reset.is_none() {
                            let next = wire.next().unwrap_or_else(|end| panic!("{case}, {round}: {end:?}"));
                            reset = (next.kind == RST_STREAM).then_some(next.payload);
                        }
                        assert_eq!(reset, Some(vec![0; 4]), "{case}, {round}: NO_ERROR (RFC 9113 8.1)");
                    }
                    upload.send_part(900, true);
                    app.take_when(&case, |_| true);
                }
                app.follow(Script { response: response_202(false, false), updates_windows: true, shutdown: None });
                let mut next = Client::connect(Direction::Outbound.address_h2());
                next.send("GET /next HTTP/1.1\r\nHost: app\r\n\r\n");
                assert_eq!(next.response().map(|response| response.status), Ok(202), "{case}");
                app.take_when(&case, |_| true);
                drop(next);
                proxy.settle();
            }
        }
    });
}

/// An HTTP/1.1 application responds early and then reads on, hangs, closes or resets.
#[test]
fn early_responses_over_http1_are_forwarded() {
    in_namespace(module_path!(), "early_responses_over_http1_are_forwarded", || {
        let app = App::start();
        let proxy = Proxy::start();
        let early = |text: &str, after| Reply { early: true, ..Reply::new(text, after) };
        let bodies = [
            "Content-Length: 2\r\n\r\nno",
            "Transfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\nX-Sum: 1\r\n\r\n",
        ];
        for direction in BOTH {
            for framing in [Framing::Length, Framing::Chunks] {
                for body in bodies {
                    for after in [After::Keep, After::Hang, After::Close, After::Reset] {
                        let case = format!("{direction:?}, {framing:?}, {body:?}, {after:?}");
                        app.reply("/early", early(&format!("HTTP/1.1 202 Accepted\r\n{body}"), after));
                        for round in 0..5 {
                            let mut upload = Upload::start(framing, direction.address(), 100, 1000);
                            assert_eq!(upload.response(), Ok((202, b"no".to_vec())), "{case}, {round}");
                            if after == After::Keep {
                                upload.send_part(900, true);
                                let seen = app.take_up_to("/early");
                                assert!(seen.is_empty(), "{case}, {round}: {seen:?}");
                            }
                        }
                    }
                }
                proxy.settle();
            }
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// A client that writes a whole large upload before it reads gets the application's early 413, not a connection reset
/// while it writes.
#[test]
fn early_413_reaches_clients_that_write_before_they_read() {
    in_namespace(module_path!(), "early_413_reaches_clients_that_write_before_they_read", || {
        const LENGTH: usize = 12 * 1024 * 1024;
        let app = App::start();
        let proxy = Proxy::start();
        let refusal = "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        app.reply("/refused", Reply { early: true, ..Reply::new(refusal, After::Close) });
        for direction in BOTH {
            for round in 0..5 {
                let mut client = Client::connect(direction.address());
                client.send(format!("POST /refused HTTP/1.1\r\nHost: app\r\nContent-Length: {LENGTH}\r\n\r\n"));
                let written = client.stream.write_all(&vec![b'x'; LENGTH]);
                assert!(written.is_ok(), "{direction:?}, {round}: {written:?}");
                assert_eq!(client.response().map(|response| response.status), Ok(413), "{direction:?}, {round}");
            }
        }
        proxy.settle();
    });
}

/// Opens a connection to the application, so that later requests know its windows.
fn warm_up(app: &ScriptedApp) {
    app.follow(Script { response: response_202(true, false), updates_windows: false, shutdown: None });
    let mut client = Client::connect(Direction::Outbound.address());
    client.send("GET /warm HTTP/1.1\r\nHost: app\r\n\r\n");
    client.response().expect("a response");
    app.take_when("a first request", |came| came.has_ended);
}

/// Routes of port 80: one rule that forwards to a port of the Service. `more` has the rule's other fields.
fn routes(port: u16, more: Value) -> Option<Value> {
    let backend = json!({"weight": 1, "target": {"cluster": {"namespace": "shop", "service": "app", "port": port}}});
    let mut rule = json!({
        "route": {"namespace": "shop", "name": "app"}, "name": "0", "action": {"forward": {"backends": [backend]}}
    });
    rule.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    Some(json!({"matches": [{"rule": 0}], "rules": [rule]}))
}

/// Attempts whose response is discarded or not waited for are reset, whether their body was complete or not.
#[test]
fn abandoned_attempts_reset_their_upload() {
    in_namespace(module_path!(), "abandoned_attempts_reset_their_upload", || {
        let app = ScriptedApp::start(&[(3, 100), (4, 50)]);
        let refusal = vec![(HEADERS, END_HEADERS, literal(":status", "503")), (DATA, END_STREAM, b"no".to_vec())];
        let retry = json!({"attempts": 2, "codes": [503], "methods": ["POST"], "backoffMs": 5});
        let hedge = json!({"afterMs": 20, "attempts": 1});
        for (what, more, response, status, is_repeated) in [
            ("a retry", json!({"retry": retry}), refusal.clone(), 503, true),
            ("an attempt that times out", json!({"retry": retry, "attemptTimeoutMs": 50}), Vec::new(), 504, true),
            ("a request that times out", json!({"requestTimeoutMs": 100}), Vec::new(), 504, false),
            ("a hedge", json!({"retry": retry, "hedge": hedge, "requestTimeoutMs": 200}), Vec::new(), 504, false),
        ] {
            // A client with a complete request and response no longer bounds the upload to the application: the idle
            // timeout does.
            let environment = vec![("WEFT_TIMEOUTS_MS", json!({"idle": 2000}).to_string())];
            let proxy = Proxy::with(Options { routes: routes(81, more), environment, ..Options::default() });
            warm_up(&app);
            app.follow(Script { response, updates_windows: false, shutdown: None });
            // A complete body, and one whose rest is never sent.
            for first in [1000, 100] {
                let begin = |_| Upload::start(Framing::Length, Direction::Outbound.address(), first, 1000);
                let mut uploads: Vec<Upload> = (0..10).map(begin).collect();
                for upload in &mut uploads {
                    assert_eq!(upload.response().map(|(status, _)| status), Ok(status), "{what}, {first} octets");
                }
                drop(uploads);
                let came = app.take_when(what, |came| came.reset.is_some() || came.has_ended);
                assert!(came.iter().all(|came| !came.has_ended), "{what}, {first} octets: {came:?}");
                // The retry budget allows up to 20 more.
                let count = came.len();
                assert!((10..=30).contains(&count) && (count > 10) == is_repeated, "{what}, {first} octets: {came:?}");
            }
            drop(proxy);
        }
    });
}

/// A mirrored request whose backend responds early and stops reading is reset at the request timeout, and counts as
/// answered.
#[test]
fn mirrored_requests_answered_early_are_reset_at_the_timeout() {
    const COPIES: usize = 20;
    in_namespace(module_path!(), "mirrored_requests_answered_early_are_reset_at_the_timeout", || {
        let _app = App::start();
        let copied = ScriptedApp::start(&[(3, 100), (4, 50)]);
        let mirror = json!({
            "target": {"namespace": "shop", "service": "app", "port": 81}, "share": {"numerator": 1, "denominator": 1}
        });
        let more = json!({"mirrors": [mirror], "requestTimeoutMs": 500});
        let proxy = Proxy::with(Options { routes: routes(80, more), ..Options::default() });
        warm_up(&copied);
        for (response, outcome, more) in [(response_202(true, false), "answered", 1), (Vec::new(), "timeout", 0)] {
            copied.follow(Script { response, updates_windows: false, shutdown: None });
            for _ in 0..COPIES {
                let mut upload = Upload::start(Framing::Length, Direction::Outbound.address(), 1000, 1000);
                assert_eq!(upload.response().map(|(status, _)| status), Ok(200));
            }
            let count = || {
                let page = scrape(15000, "/metrics").expect("metrics");
                let label = format!("outcome=\"{outcome}\"");
                let mut lines = page.lines().filter(|line| line.starts_with("weft_mirrored_requests_total{"));
                lines.find(|line| line.contains(&label)).and_then(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
            };
            wait(outcome, || count() == Some(COPIES + more));
            let came = copied.take_when("each is reset", |came| came.reset.is_some() || came.has_ended);
            assert!(came.len() == COPIES && came.iter().all(|came| !came.has_ended), "{came:?}");
            proxy.settle();
        }
    });
}

/// A response without END_STREAM is truncated, whatever the error code of the RST_STREAM or GOAWAY after it.
#[test]
fn truncated_responses_stay_truncated_for_every_error_code() {
    in_namespace(module_path!(), "truncated_responses_stay_truncated_for_every_error_code", || {
        let app = ScriptedApp::start(&[(3, 100)]);
        let proxy = Proxy::start();
        let resets = |code: u32| (RST_STREAM, 0, code.to_be_bytes().to_vec());
        let go_aways = |code: u32| (GOAWAY, 0, [[0; 4], code.to_be_bytes()].concat());
        for (direction, framing) in cases() {
            for has_length in [false, true] {
                for end in [resets(0), resets(8), go_aways(0), go_aways(2)] {
                    let case = format!("{direction:?}, {framing:?}, length {has_length}, {end:?}");
                    let mut head = literal(":status", "200");
                    if has_length {
                        head.extend(literal("content-length", "10"));
                    }
                    let response = vec![(HEADERS, END_HEADERS, head), (DATA, 0, b"part".to_vec()), end];
                    app.follow(Script { response, updates_windows: true, shutdown: None });
                    let mut upload = Upload::start(framing, direction.address_h2(), 5, 5);
                    upload.send_part(0, true);
                    match &mut upload {
                        Upload::Http1(client, _) => {
                            let response = client.response();
                            let is_cut = matches!(
                                response,
                                Err(ResponseError::Truncated { status: 200, .. } | ResponseError::Closed)
                            );
                            assert!(is_cut, "{case}: {response:?}");
                        }
                        Upload::Http2(wire) => {
                            let end = match wire.end(1) {
                                End::Status(200) => wire.body(1).1.expect_err("the response looks complete"),
                                end => end,
                            };
                            assert!(matches!(end, End::Reset(1..)), "{case}: {end:?}");
                        }
                    }
                }
            }
        }
        proxy.settle();
    });
}
