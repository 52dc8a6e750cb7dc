//! Responses that come before their request is complete. The rest of the request goes on to its end, or it is seen to be cut:
//! the stream is reset, or the connection closed. Nothing of it stays at the proxy, whatever either side does meanwhile.

use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::app::{App, Reply, Then};
use super::client::{Client, NoAnswer};
use super::frames::{
    Came, DATA, END_HEADERS, END_STREAM, End, GOAWAY, HEADERS, RST_STREAM, Script, Scripted, Wire, block, frame, head,
    literal,
};
use super::place::{BOTH, Direction, Options, Place, alone, scrape, wait};

/// How a client sends its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sends {
    Length,
    Chunks,
    Http2,
}

const ALL: [Sends; 3] = [Sends::Length, Sends::Chunks, Sends::Http2];

/// A request of which a part is sent.
enum Upload {
    Http1(Client, Sends),
    Http2(Wire),
}

impl Upload {
    /// Sends the head, and the first part of the body.
    fn begin(sends: Sends, address: SocketAddr, first: usize, total: usize) -> Self {
        let mut upload = match sends {
            Sends::Http2 => {
                let mut wire = Wire::connect(address);
                let head = [head("POST", "/early"), literal("content-length", total.to_string())].concat();
                wire.send(frame(HEADERS, END_HEADERS, 1, &head));
                Self::Http2(wire)
            }
            Sends::Length | Sends::Chunks => {
                let mut client = Client::connect(address);
                let framing = match sends {
                    Sends::Length => format!("Content-Length: {total}"),
                    _ => "Transfer-Encoding: chunked".into(),
                };
                client.send(format!("POST /early HTTP/1.1\r\nHost: app\r\n{framing}\r\n\r\n"));
                Self::Http1(client, sends)
            }
        };
        upload.part(first, false);
        upload
    }

    fn part(&mut self, count: usize, ends: bool) {
        match self {
            Self::Http2(wire) => {
                // Within the window that the proxy gives from the start.
                for part in vec![b'x'; count].chunks(16_000) {
                    wire.send(frame(DATA, 0, 1, part));
                }
                if ends {
                    wire.send(frame(DATA, END_STREAM, 1, b""));
                }
            }
            Self::Http1(client, Sends::Length) => drop(client.send(vec![b'x'; count])),
            Self::Http1(client, _) => {
                client.send(format!("{count:x}\r\n{}\r\n", "x".repeat(count)));
                if ends {
                    client.send("0\r\n\r\n");
                }
            }
        }
    }

    /// The status and the body of the response, if it comes whole.
    fn answer(&mut self) -> Result<(u16, Vec<u8>), String> {
        match self {
            Self::Http1(client, _) => {
                let answer = client.answer().map_err(|error| format!("{error:?}"))?;
                Ok((answer.status, answer.body))
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

/// A response of 202 whose body is `no`.
fn answer(has_length: bool, has_trailers: bool) -> Vec<(u8, u8, Vec<u8>)> {
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

fn complete(octets: usize) -> Came {
    Came { octets, has_ended: true, reset: None }
}

/// Ways of a request to the application that speaks HTTP/2. To that of this pod, HTTP/1.1 goes on as HTTP/1.1.
fn ways() -> Vec<(Direction, Sends)> {
    let outbound = ALL.map(|sends| (Direction::Outbound, sends));
    [&outbound[..], &[(Direction::Inbound, Sends::Http2)]].concat()
}

/// The application answers, goes on to read, and gets all of it. More such requests than one connection has streams.
#[test]
fn uploads_complete_after_an_early_response() {
    alone(module_path!(), "uploads_complete_after_an_early_response", || {
        let app = Scripted::start(&[(3, 100)]);
        let place = Place::start();
        for (direction, sends) in ways() {
            for (has_length, has_trailers) in [(false, false), (true, false), (false, true), (true, true)] {
                app.follow(Script { answer: answer(has_length, has_trailers), takes: true, then: None });
                let case = format!("{direction:?}, {sends:?}, length {has_length}, trailers {has_trailers}");
                for round in 0..30 {
                    let mut upload = Upload::begin(sends, direction.address_h2(), 100, 1000);
                    assert_eq!(upload.answer(), Ok((202, b"no".to_vec())), "{case}, {round}");
                    upload.part(900, true);
                    let came = app.take_once(&case, |came| came.has_ended || came.reset.is_some());
                    assert_eq!(came, [complete(1000)], "{case}, {round}");
                }
                place.settle();
            }
        }
    });
}

/// The same where the rest is far larger than all windows, and is sent while nobody looks at the response.
#[test]
fn uploads_larger_than_all_windows_complete_after_an_early_response() {
    const TOTAL: usize = 8_000_000;
    alone(module_path!(), "uploads_larger_than_all_windows_complete_after_an_early_response", || {
        let app = Scripted::start(&[(3, 100)]);
        let place = Place::start();
        // As long as a window: the client takes none of it before it has sent everything.
        let long = vec![(HEADERS, END_HEADERS, literal(":status", "202")), (DATA, END_STREAM, vec![b'n'; 16_000])];
        app.follow(Script { answer: long, takes: true, then: None });
        for sends in [Sends::Length, Sends::Chunks] {
            let mut upload = Upload::begin(sends, Direction::Outbound.address_h2(), 100, TOTAL);
            thread::sleep(Duration::from_millis(50));
            upload.part(TOTAL - 100, true);
            let came = app.take_once("the rest", |came| came.has_ended || came.reset.is_some());
            assert_eq!(came, [complete(TOTAL)], "{sends:?}");
            assert_eq!(upload.answer(), Ok((202, vec![b'n'; 16_000])), "{sends:?}");
            drop(upload);
            place.settle();
        }
    });
}

/// The application answers and gives no window for the rest: the response comes, and when the client leaves the stream is
/// reset. The endpoint has room for others all the while.
#[test]
fn uploads_without_window_are_reset_when_the_client_disconnects() {
    const AT_ONCE: usize = 120;
    alone(module_path!(), "uploads_without_window_are_reset_when_the_client_disconnects", || {
        // Streams have no window but 50 octets.
        let app = Scripted::start(&[(3, 100), (4, 50)]);
        let place = Place::start();
        for (direction, sends) in ways() {
            app.follow(Script { answer: answer(true, false), takes: false, then: None });
            let begin = |_| Upload::begin(sends, direction.address_h2(), 100, 1000);
            let mut uploads: Vec<Upload> = (0..AT_ONCE).map(begin).collect();
            for (round, upload) in uploads.iter_mut().enumerate() {
                assert_eq!(upload.answer(), Ok((202, b"no".to_vec())), "{direction:?} {sends:?} {round}");
            }
            drop(uploads);
            let came = app.take_once("each is reset", |came| came.has_ended || came.reset.is_some());
            assert_eq!(came.len(), AT_ONCE, "{direction:?} {sends:?}");
            // The first on a connection is sent before its windows are known.
            let cut = |came: &Came| came.octets <= 100 && !came.has_ended && came.reset.is_some();
            assert!(came.iter().all(cut), "{direction:?} {sends:?}: {came:?}");
            place.settle();
        }
    });
}

/// A reset is noticed though more of the body waits in front of it than is ever read ahead, before and behind the response.
#[test]
fn client_resets_behind_unread_data_are_detected() {
    alone(module_path!(), "client_resets_behind_unread_data_are_detected", || {
        let app = Scripted::start(&[(3, 100), (4, 50)]);
        let place = Place::start();
        for answer in [answer(true, false), Vec::new()] {
            let is_answered = !answer.is_empty();
            app.follow(Script { answer, takes: false, then: None });
            let mut upload = Upload::begin(Sends::Length, Direction::Outbound.address_h2(), 300_000, 1_000_000);
            if is_answered {
                assert_eq!(upload.answer(), Ok((202, b"no".to_vec())));
            }
            thread::sleep(Duration::from_millis(100));
            if let Upload::Http1(client, _) = &upload {
                socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).expect("set");
            }
            drop(upload);
            let came = app.take_once("it is reset", |came| came.has_ended || came.reset.is_some());
            assert!(came.iter().all(|came| !came.has_ended), "{came:?}");
            place.settle();
        }
    });
}

/// A client that resets its stream, or leaves within its body, cuts the rest; it never ends it.
#[test]
fn client_disconnects_reset_the_upstream_stream() {
    alone(module_path!(), "client_disconnects_reset_the_upstream_stream", || {
        let app = Scripted::start(&[(3, 100)]);
        let place = Place::start();
        let begins = vec![(HEADERS, END_HEADERS, literal(":status", "202")), (DATA, 0, b"n".to_vec())];
        for (direction, sends) in ways() {
            // Whole, begun, and not begun.
            for answer in [answer(true, false), begins.clone(), Vec::new()] {
                for code in [0u32, 8] {
                    let case = format!("{direction:?}, {sends:?}, {} frames, code {code}", answer.len());
                    app.follow(Script { answer: answer.clone(), takes: true, then: None });
                    let mut upload = Upload::begin(sends, direction.address_h2(), 100, 1000);
                    thread::sleep(Duration::from_millis(50));
                    match &mut upload {
                        Upload::Http2(wire) => drop(wire.send(frame(RST_STREAM, 0, 1, &code.to_be_bytes()))),
                        Upload::Http1(client, _) if code == 0 => client.finish(),
                        Upload::Http1(..) => {}
                    }
                    if matches!(upload, Upload::Http1(..)) && code != 0 {
                        drop(upload);
                    }
                    let came = app.take_once(&case, |came| came.has_ended || came.reset.is_some());
                    assert!(came.iter().all(|came| !came.has_ended && came.octets == 100), "{case}: {came:?}");
                    assert!(came.iter().all(|came| came.reset.is_some_and(|code| code != 0)), "{case}: {came:?}");
                }
            }
            place.settle();
        }
    });
}

/// The application wants no more: it resets the stream behind a whole response, or closes its connection. The client gets the
/// response, and its connection is of use.
#[test]
fn applications_may_stop_reading_after_an_early_response() {
    alone(module_path!(), "applications_may_stop_reading_after_an_early_response", || {
        let app = Scripted::start(&[(3, 100)]);
        let place = Place::start();
        let resets = |code: u32| [answer(true, false), vec![(RST_STREAM, 0, code.to_be_bytes().to_vec())]].concat();
        for (direction, sends) in ways() {
            for (what, answer, then) in [
                ("NO_ERROR", resets(0), None),
                ("CANCEL", resets(8), None),
                ("closes", answer(true, false), Some(Shutdown::Both)),
            ] {
                let case = format!("{direction:?}, {sends:?}, {what}");
                app.follow(Script { answer, takes: true, then });
                for round in 0..5 {
                    let mut upload = Upload::begin(sends, direction.address_h2(), 100, 1000);
                    assert_eq!(upload.answer(), Ok((202, b"no".to_vec())), "{case}, {round}");
                    if let Upload::Http2(wire) = &mut upload {
                        let mut reset = None;
                        while reset.is_none() {
                            let next = wire.next().unwrap_or_else(|end| panic!("{case}, {round}: {end:?}"));
                            reset = (next.kind == RST_STREAM).then_some(next.payload);
                        }
                        assert_eq!(reset, Some(vec![0; 4]), "{case}, {round}: NO_ERROR, as RFC 9113 8.1 has it");
                    }
                    upload.part(900, true);
                    app.take_once(&case, |_| true);
                }
                app.follow(Script { answer: self::answer(false, false), takes: true, then: None });
                let mut next = Client::connect(Direction::Outbound.address_h2());
                next.send("GET /next HTTP/1.1\r\nHost: app\r\n\r\n");
                assert_eq!(next.answer().map(|answer| answer.status), Ok(202), "{case}");
                app.take_once(&case, |_| true);
                drop(next);
                place.settle();
            }
        }
    });
}

/// The same to an application that speaks HTTP/1.1: it reads on, hangs, closes, or resets.
#[test]
fn early_responses_over_http1_are_forwarded() {
    alone(module_path!(), "early_responses_over_http1_are_forwarded", || {
        let app = App::start();
        let place = Place::start();
        let early = |text: &str, then| Reply { early: true, ..Reply::new(text, then) };
        let bodies = [
            "Content-Length: 2\r\n\r\nno",
            "Transfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
            "Transfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\nX-Sum: 1\r\n\r\n",
        ];
        for direction in BOTH {
            for sends in [Sends::Length, Sends::Chunks] {
                for body in bodies {
                    for then in [Then::Keep, Then::Hang, Then::Close, Then::Reset] {
                        let case = format!("{direction:?}, {sends:?}, {body:?}, {then:?}");
                        app.reply("/early", early(&format!("HTTP/1.1 202 Accepted\r\n{body}"), then));
                        for round in 0..5 {
                            let mut upload = Upload::begin(sends, direction.address(), 100, 1000);
                            assert_eq!(upload.answer(), Ok((202, b"no".to_vec())), "{case}, {round}");
                            if then == Then::Keep {
                                upload.part(900, true);
                                let seen = app.take_up_to("/early");
                                assert!(seen.is_empty(), "{case}, {round}: {seen:?}");
                            }
                        }
                    }
                }
                place.settle();
            }
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// A client that writes all of a long upload before it reads gets the response of an application that refuses the upload,
/// instead of a reset in the middle of its writing.
#[test]
fn early_413_reaches_clients_that_write_before_they_read() {
    alone(module_path!(), "early_413_reaches_clients_that_write_before_they_read", || {
        const LENGTH: usize = 12 * 1024 * 1024;
        let app = App::start();
        let place = Place::start();
        let refusal = "HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        app.reply("/refused", Reply { early: true, ..Reply::new(refusal, Then::Close) });
        for direction in BOTH {
            for round in 0..5 {
                let mut client = Client::connect(direction.address());
                client.send(format!("POST /refused HTTP/1.1\r\nHost: app\r\nContent-Length: {LENGTH}\r\n\r\n"));
                let written = client.stream.write_all(&vec![b'x'; LENGTH]);
                assert!(written.is_ok(), "{direction:?}, {round}: {written:?}");
                assert_eq!(client.answer().map(|answer| answer.status), Ok(413), "{direction:?}, {round}");
            }
        }
        place.settle();
    });
}

/// Opens a connection to the application, so that its windows are known to requests behind this one.
fn warm_up(app: &Scripted) {
    app.follow(Script { answer: answer(true, false), takes: false, then: None });
    let mut client = Client::connect(Direction::Outbound.address());
    client.send("GET /warm HTTP/1.1\r\nHost: app\r\n\r\n");
    client.answer().expect("an answer");
    app.take_once("a first request", |came| came.has_ended);
}

/// Routes of port 80: one rule that goes to a port of the Service, with fields beside its action.
fn routes(port: u16, more: Value) -> Option<Value> {
    let backend = json!({"weight": 1, "target": {"cluster": {"namespace": "shop", "service": "app", "port": port}}});
    let mut rule = json!({
        "route": {"namespace": "shop", "name": "app"}, "name": "0", "action": {"forward": {"backends": [backend]}}
    });
    rule.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    Some(json!({"matches": [{"rule": 0}], "rules": [rule]}))
}

/// Attempts whose response is not taken, or not waited for, end with all that they sent.
#[test]
fn abandoned_attempts_reset_their_upload() {
    alone(module_path!(), "abandoned_attempts_reset_their_upload", || {
        let app = Scripted::start(&[(3, 100), (4, 50)]);
        let refusal = vec![(HEADERS, END_HEADERS, literal(":status", "503")), (DATA, END_STREAM, b"no".to_vec())];
        let retry = json!({"attempts": 2, "codes": [503], "methods": ["POST"], "backoffMs": 5});
        let hedge = json!({"afterMs": 20, "attempts": 1});
        for (what, more, answer, status, is_repeated) in [
            ("a retry", json!({"retry": retry}), refusal.clone(), 503, true),
            ("an attempt that times out", json!({"retry": retry, "attemptTimeoutMs": 50}), Vec::new(), 504, true),
            ("a request that times out", json!({"requestTimeoutMs": 100}), Vec::new(), 504, false),
            ("a hedge", json!({"retry": retry, "hedge": hedge, "requestTimeoutMs": 200}), Vec::new(), 504, false),
        ] {
            // A client that has sent all of its request and got its response has no part in what the application takes: that is
            // waited for as long as a connection may be idle.
            let environment = vec![("WEFT_TIMEOUTS_MS", json!({"idle": 2000}).to_string())];
            let place = Place::with(Options { routes: routes(81, more), environment, ..Options::default() });
            warm_up(&app);
            app.follow(Script { answer, takes: false, then: None });
            // A body that is here, and one whose rest is to come.
            for first in [1000, 100] {
                let begin = |_| Upload::begin(Sends::Length, Direction::Outbound.address(), first, 1000);
                let mut uploads: Vec<Upload> = (0..10).map(begin).collect();
                for upload in &mut uploads {
                    assert_eq!(upload.answer().map(|(status, _)| status), Ok(status), "{what}, {first} octets");
                }
                drop(uploads);
                let came = app.take_once(what, |came| came.reset.is_some() || came.has_ended);
                assert!(came.iter().all(|came| !came.has_ended), "{what}, {first} octets: {came:?}");
                // As many as the budget for retries allows.
                let count = came.len();
                assert!((10..=30).contains(&count) && (count > 10) == is_repeated, "{what}, {first} octets: {came:?}");
            }
            drop(place);
        }
    });
}

/// Copies whose backend answers early and takes no more are cut when their time is over, and count as answered.
#[test]
fn mirrored_requests_answered_early_are_reset_at_the_timeout() {
    const COPIES: usize = 20;
    alone(module_path!(), "mirrored_requests_answered_early_are_reset_at_the_timeout", || {
        let _app = App::start();
        let copied = Scripted::start(&[(3, 100), (4, 50)]);
        let mirror = json!({
            "target": {"namespace": "shop", "service": "app", "port": 81}, "share": {"numerator": 1, "denominator": 1}
        });
        let more = json!({"mirrors": [mirror], "requestTimeoutMs": 500});
        let place = Place::with(Options { routes: routes(80, more), ..Options::default() });
        warm_up(&copied);
        for (answer, outcome, more) in [(answer(true, false), "answered", 1), (Vec::new(), "timeout", 0)] {
            copied.follow(Script { answer, takes: false, then: None });
            for _ in 0..COPIES {
                let mut upload = Upload::begin(Sends::Length, Direction::Outbound.address(), 1000, 1000);
                assert_eq!(upload.answer().map(|(status, _)| status), Ok(200));
            }
            let count = || {
                let page = scrape(15000, "/metrics").expect("metrics");
                let label = format!("outcome=\"{outcome}\"");
                let mut lines = page.lines().filter(|line| line.starts_with("weft_mirrored_requests_total{"));
                lines.find(|line| line.contains(&label)).and_then(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
            };
            wait(outcome, || count() == Some(COPIES + more));
            let came = copied.take_once("each is cut", |came| came.reset.is_some() || came.has_ended);
            assert!(came.len() == COPIES && came.iter().all(|came| !came.has_ended), "{came:?}");
            place.settle();
        }
    });
}

/// What comes before END_STREAM is incomplete, whatever the code of the RST_STREAM or GOAWAY behind it.
#[test]
fn truncated_responses_stay_truncated_for_every_error_code() {
    alone(module_path!(), "truncated_responses_stay_truncated_for_every_error_code", || {
        let app = Scripted::start(&[(3, 100)]);
        let place = Place::start();
        let resets = |code: u32| (RST_STREAM, 0, code.to_be_bytes().to_vec());
        let leaves = |code: u32| (GOAWAY, 0, [[0; 4], code.to_be_bytes()].concat());
        for (direction, sends) in ways() {
            for has_length in [false, true] {
                for end in [resets(0), resets(8), leaves(0), leaves(2)] {
                    let case = format!("{direction:?}, {sends:?}, length {has_length}, {end:?}");
                    let mut head = literal(":status", "200");
                    if has_length {
                        head.extend(literal("content-length", "10"));
                    }
                    let answer = vec![(HEADERS, END_HEADERS, head), (DATA, 0, b"part".to_vec()), end];
                    app.follow(Script { answer, takes: true, then: None });
                    let mut upload = Upload::begin(sends, direction.address_h2(), 5, 5);
                    upload.part(0, true);
                    match &mut upload {
                        Upload::Http1(client, _) => {
                            let answer = client.answer();
                            let is_cut = matches!(answer, Err(NoAnswer::Cut { status: 200, .. } | NoAnswer::Closed));
                            assert!(is_cut, "{case}: {answer:?}");
                        }
                        Upload::Http2(wire) => {
                            let end = match wire.end(1) {
                                End::Status(200) => wire.body(1).1.expect_err("it looks whole"),
                                end => end,
                            };
                            assert!(matches!(end, End::Reset(1..)), "{case}: {end:?}");
                        }
                    }
                }
            }
        }
        place.settle();
    });
}
