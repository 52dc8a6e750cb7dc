//! What applications answer: doubtful framing, resets at each point, answers that come too early. No client ever gets
//! what was not meant for it, and what was cut short never looks whole.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::app::{App, Reply, Then};
use super::client::{Client, NoAnswer};
use super::place::{BOTH, Options, Place, alone};

fn ask(client: &mut Client, path: &str) -> Result<super::client::Answer, NoAnswer> {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n"));
    client.answer()
}

/// SM-24: what could be read in two ways is not passed on, and its connection is not used again.
#[test]
fn ambiguous_responses_answer_502() {
    alone(module_path!(), "ambiguous_responses_answer_502", || {
        let app = App::start();
        let _place = Place::start();
        let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
        let chunked = "Transfer-Encoding: chunked\r\n";
        let body = "5\r\nhello\r\n0\r\n\r\n";
        let refused: Vec<(&str, String)> = vec![
            ("both framings", format!("Content-Length: 5\r\n{chunked}\r\n{body}")),
            ("both framings, turned", format!("{chunked}Content-Length: 5\r\n\r\n{body}")),
            ("chunked twice", format!("{chunked}{chunked}\r\n{body}")),
            ("a list", format!("Transfer-Encoding: chunked, chunked\r\n\r\n{body}")),
            ("gzip, chunked", format!("Transfer-Encoding: gzip, chunked\r\n\r\n{body}")),
            ("gzip", "Transfer-Encoding: gzip\r\n\r\nhello".into()),
            ("identity", "Transfer-Encoding: identity\r\n\r\nhello".into()),
            ("two lengths", "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello".into()),
            ("a list of lengths", "Content-Length: 5, 5\r\n\r\nhello".into()),
            ("a signed length", "Content-Length: +5\r\n\r\nhello".into()),
            ("an empty length", "Content-Length: \r\n\r\nhello".into()),
            ("a length in hexadecimal", "Content-Length: 0x5\r\n\r\nhello".into()),
            ("a length beyond numbers", "Content-Length: 18446744073709551616\r\n\r\nhello".into()),
            ("a space before the colon", "Content-Length : 5\r\n\r\nhello".into()),
            ("a folded header", "X-A: a\r\n b\r\nContent-Length: 5\r\n\r\nhello".into()),
            ("a NUL", "X-A: \x00\r\nContent-Length: 5\r\n\r\nhello".into()),
            ("a bare CR", "X-A: a\rb\r\nContent-Length: 5\r\n\r\nhello".into()),
            ("an empty name", ": a\r\nContent-Length: 5\r\n\r\nhello".into()),
            ("no colon", "nonsense\r\nContent-Length: 5\r\n\r\nhello".into()),
            ("too many headers", format!("{}Content-Length: 5\r\n\r\nhello", "X-A: 1\r\n".repeat(200))),
        ];
        for (name, rest) in &refused {
            app.reply(
                &format!("/{}", name.replace(' ', "-")),
                Reply::new(format!("HTTP/1.1 200 OK\r\n{rest}{evil}"), Then::Keep),
            );
        }
        for (name, bytes) in [
            ("no-version", "200 OK\r\n\r\n"),
            ("version-2", "HTTP/2.0 200 OK\r\n\r\n"),
            ("version-9", "HTTP/1.9 200 OK\r\n\r\n"),
            ("status-two-digits", "HTTP/1.1 20 OK\r\n\r\n"),
            ("status-letters", "HTTP/1.1 2x0 OK\r\n\r\n"),
            ("status-1000", "HTTP/1.1 1000 OK\r\n\r\n"),
            ("status-0", "HTTP/1.1 000 OK\r\n\r\n"),
            ("not-http", "220 ready\r\n"),
            ("http-0.9", "hello"),
            ("binary", "\x16\x03\x01"),
        ] {
            app.reply(&format!("/{name}"), Reply::new(bytes, Then::Close));
        }
        let malformed = [
            "no-version",
            "version-2",
            "version-9",
            "status-two-digits",
            "status-letters",
            "status-1000",
            "status-0",
            "not-http",
            "http-0.9",
            "binary",
        ];
        for direction in BOTH {
            let names = refused.iter().map(|(name, _)| name.replace(' ', "-")).chain(malformed.map(str::to_owned));
            for name in names {
                let mut client = Client::connect(direction.address());
                let answer = ask(&mut client, &format!("/{name}"));
                assert_eq!(answer.as_ref().map(|answer| answer.status), Ok(502), "{direction:?} {name}: {answer:?}");
                let next = ask(&mut client, "/next").map(|answer| answer.body);
                assert_eq!(next, Ok(b"GET /next".to_vec()), "{direction:?} {name}: the answer to another request");
            }
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// What is clear passes, however odd, and extra bytes are never the answer to the next request.
#[test]
fn unusual_valid_responses_are_forwarded() {
    alone(module_path!(), "unusual_valid_responses_are_forwarded", || {
        let app = App::start();
        let _place = Place::start();
        let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
        for (name, bytes, then) in [
            ("two-equal-lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello".into(), Then::Keep),
            ("extra-bytes", format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello{evil}"), Then::Keep),
            ("extra-after-chunks", format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n{evil}"), Then::Keep),
            ("extensions-and-trailers", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nContent-Length: 3\r\nX-A: 1\r\n\r\n".into(), Then::Keep),
            ("to-the-end", "HTTP/1.1 200 OK\r\n\r\nhello".into(), Then::Close),
            ("old", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello".into(), Then::Close),
            ("interim", format!("{}HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n".repeat(100)), Then::Keep),
            ("bare-line-ends", "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello".into(), Then::Keep),
            ("hop-by-hop", "HTTP/1.1 200 OK\r\nConnection: x-secret, keep-alive\r\nKeep-Alive: timeout=5\r\nX-Secret: 1\r\nProxy-Connection: x\r\nUpgrade: x\r\nContent-Length: 5\r\n\r\nhello".into(), Then::Keep),
            ("speaks-for-the-proxy", "HTTP/1.1 200 OK\r\nweft-unprocessed: true\r\nContent-Length: 5\r\n\r\nhello".into(), Then::Keep),
        ] {
            app.reply(&format!("/{name}"), Reply::new(bytes, then));
        }
        app.reply(
            "/204",
            Reply::new(format!("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n{evil}"), Then::Keep),
        );
        app.reply(
            "/304",
            Reply::new(format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n{evil}"), Then::Keep),
        );
        for direction in BOTH {
            for name in [
                "two-equal-lengths",
                "extra-bytes",
                "extra-after-chunks",
                "extensions-and-trailers",
                "to-the-end",
                "old",
                "interim",
                "bare-line-ends",
                "hop-by-hop",
            ] {
                for round in 0..3 {
                    let mut client = Client::connect(direction.address());
                    let answer = ask(&mut client, &format!("/{name}"))
                        .unwrap_or_else(|error| panic!("{direction:?} {name}: {error:?}"));
                    assert_eq!(
                        (answer.status, answer.body.as_slice()),
                        (200, &b"hello"[..]),
                        "{direction:?} {name} {round}"
                    );
                    for header in ["keep-alive", "x-secret", "proxy-connection", "upgrade", "x-a"] {
                        assert_eq!(answer.header(header), None, "{direction:?} {name}");
                    }
                    let next = ask(&mut client, "/next").map(|answer| answer.body);
                    assert_eq!(
                        next,
                        Ok(b"GET /next".to_vec()),
                        "{direction:?} {name} {round}: the answer to another request"
                    );
                }
            }
            for name in ["204", "304"] {
                let mut client = Client::connect(direction.address());
                let answer = ask(&mut client, &format!("/{name}"));
                assert_eq!(answer.map(|answer| answer.status.to_string()), Ok(name.to_owned()), "{direction:?}");
                let next = ask(&mut client, "/next").map(|answer| answer.body);
                assert_eq!(next, Ok(b"GET /next".to_vec()), "{direction:?} {name}: the answer to another request");
            }
            let mut client = Client::connect(direction.address());
            client.send("HEAD /head HTTP/1.1\r\nHost: app\r\n\r\n");
            let head = client.answer_to("HEAD").expect("an answer");
            assert_eq!(head.header("content-length"), Some("10"), "{direction:?}: what a GET would get");
            assert_eq!(ask(&mut client, "/next").map(|answer| answer.body), Ok(b"GET /next".to_vec()), "{direction:?}");
        }
        let mut client = Client::connect(super::place::Direction::Inbound.address());
        app.take();
        let answer = ask(&mut client, "/speaks-for-the-proxy").expect("an answer");
        assert_eq!(answer.header("weft-unprocessed"), None, "an application cannot ask for a repetition");
        assert_eq!(app.take().len(), 1);
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// D08: the application goes at each point of a response. What was cut short is seen to be; what was not begun is 502.
/// A response that ends where its connection ends cannot be told from one that was cut by an orderly close, by nobody:
/// HTTP has no mark for it (RFC 9112 8). A reset is told.
#[test]
fn truncated_responses_are_not_forwarded_as_complete() {
    alone(module_path!(), "truncated_responses_are_not_forwarded_as_complete", || {
        let app = App::start();
        let _place = Place::start();
        let points: [(&str, &str, bool); 9] = [
            ("before-the-head", "", false),
            ("in-the-status-line", "HTTP/1.1 2", false),
            ("in-the-head", "HTTP/1.1 200 OK\r\nContent-Le", false),
            ("after-the-head", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n", true),
            ("in-the-body", "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", true),
            ("before-chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", true),
            ("in-a-chunk", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", true),
            ("between-chunks", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", true),
            ("before-the-last-line", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n", true),
        ];
        for (how, then) in [("closed", Then::Close), ("reset", Then::Reset)] {
            for (name, bytes, _) in points {
                app.reply(&format!("/{name}-{how}"), Reply::new(bytes, then));
            }
        }
        app.reply("/to-the-end-reset", Reply::new("HTTP/1.1 200 OK\r\n\r\nhello", Then::Reset));
        for direction in BOTH {
            for how in ["closed", "reset"] {
                for (name, _, begun) in points {
                    let mut client = Client::connect(direction.address());
                    let answer = ask(&mut client, &format!("/{name}-{how}"));
                    match (begun, &answer) {
                        (false, Ok(answer)) => assert_eq!(answer.status, 502, "{direction:?} {name} {how}"),
                        (true, Err(NoAnswer::Cut { status: 200, .. })) => {}
                        // The head of the answer may still be held back when the rest of it turns out not to come.
                        (true, Err(NoAnswer::Closed)) => {}
                        _ => panic!("{direction:?} {name} {how}: {answer:?}"),
                    }
                }
            }
            let mut client = Client::connect(direction.address());
            let answer = ask(&mut client, "/to-the-end-reset");
            assert!(!matches!(answer, Ok(ref answer) if answer.status == 200), "{direction:?}: {answer:?}");
            // HTTP/1.0 has no chunks: the end of the connection is all there is, and it is no orderly one.
            let posts = "POST /in-the-body-reset HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello";
            app.take();
            let mut client = Client::connect(direction.address());
            client.send(posts);
            assert!(matches!(client.answer(), Err(NoAnswer::Cut { .. } | NoAnswer::Closed)), "{direction:?}");
            assert_eq!(app.take().len(), 1, "{direction:?}: a POST that was seen is not sent again");
        }
    });
}

/// The same to a client of HTTP/1.0, which has no chunks: its answer ends where its connection ends, so what was cut short is
/// told by a reset.
#[test]
fn truncated_responses_reset_http10_clients() {
    alone(module_path!(), "truncated_responses_reset_http10_clients", || {
        let app = App::start();
        let _place = Place::start();
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        app.reply("/whole", Reply::new(format!("{head}5\r\nhello\r\n0\r\n\r\n"), Then::Keep));
        app.reply("/cut", Reply::new(format!("{head}5\r\nhello\r\n"), Then::Close));
        for direction in BOTH {
            for (path, whole) in [("/whole", true), ("/cut", false)] {
                let mut client = TcpStream::connect(direction.address()).expect("connects");
                client.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
                write!(client, "GET {path} HTTP/1.0\r\nHost: app\r\n\r\n").expect("asks");
                let mut answer = Vec::new();
                let end = client.read_to_end(&mut answer).map_err(|error| error.kind());
                let text = String::from_utf8_lossy(&answer);
                match whole {
                    true => assert!(end.is_ok() && text.ends_with("\r\n\r\nhello"), "{direction:?}: {end:?}, {text}"),
                    false => assert_eq!(end, Err(ErrorKind::ConnectionReset), "{direction:?}: {text}"),
                }
            }
        }
    });
}

/// D09: an idle connection that the application closes costs no request that may be repeated: none of 100,000.
#[test]
fn idle_connections_closed_by_the_application_fail_no_request() {
    const CLIENTS: usize = 4;
    const REQUESTS_EACH: usize = 12_500;
    alone(module_path!(), "idle_connections_closed_by_the_application_fail_no_request", || {
        let app = App::start();
        let _place = Place::start();
        app.reply("/short", Reply::new("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Then::Close));
        for direction in BOTH {
            std::thread::scope(|scope| {
                for _ in 0..CLIENTS {
                    scope.spawn(|| {
                        let mut client = Client::connect(direction.address());
                        for round in 0..REQUESTS_EACH {
                            let answer = ask(&mut client, "/short");
                            assert_eq!(answer.map(|answer| answer.status), Ok(200), "{direction:?} {round}");
                        }
                    });
                }
            });
            assert!(app.take().len() >= CLIENTS * REQUESTS_EACH, "{direction:?}");
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// An answer comes while the body is being sent: it reaches the client, and the connections are not used again unless
/// both messages came to their ends.
#[test]
fn early_responses_reach_http1_clients() {
    alone(module_path!(), "early_responses_reach_http1_clients", || {
        let app = App::start();
        let _place = Place::start();
        let early = |text: &str, then| Reply { early: true, ..Reply::new(text, then) };
        app.reply("/too-large", early("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno", Then::Close));
        app.reply("/meanwhile", early("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", Then::Keep));
        for direction in BOTH {
            for round in 0..20 {
                let mut client = Client::connect(direction.address());
                client.send("POST /meanwhile HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\nhello");
                assert_eq!(
                    client.answer().map(|answer| answer.status),
                    Ok(200),
                    "{direction:?} {round}: before the body's end"
                );
                client.send("hello");
                assert_eq!(
                    ask(&mut client, "/next").map(|answer| answer.body),
                    Ok(b"GET /next".to_vec()),
                    "{direction:?} {round}"
                );
                let mut client = Client::connect(direction.address());
                client.send("POST /too-large HTTP/1.1\r\nHost: app\r\nContent-Length: 100000000\r\n\r\n");
                client.send(vec![b'x'; 100_000]);
                let answer = client.answer();
                assert_eq!(answer.map(|answer| answer.status), Ok(413), "{direction:?} {round}");
                client.send(vec![b'x'; 100_000]);
            }
            let mut client = Client::connect(direction.address());
            assert_eq!(ask(&mut client, "/next").map(|answer| answer.body), Ok(b"GET /next".to_vec()), "{direction:?}");
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// A client that goes within its request takes the request with it: the application sees no end that there was not.
#[test]
fn aborted_requests_are_not_forwarded_as_complete() {
    alone(module_path!(), "aborted_requests_are_not_forwarded_as_complete", || {
        let app = App::start();
        let _place = Place::start();
        for direction in BOTH {
            for headers in ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
                for half in [false, true] {
                    let mut client = Client::connect(direction.address());
                    client.send(format!("POST /cut HTTP/1.1\r\nHost: app\r\n{headers}"));
                    thread::sleep(Duration::from_millis(20));
                    if half {
                        client.finish();
                        let answer = client.answer();
                        assert!(!matches!(answer, Ok(ref answer) if answer.status == 200), "{direction:?}: {answer:?}");
                    }
                }
            }
            assert_eq!(super::client::get(direction.address(), "/after"), 200);
        }
        thread::sleep(Duration::from_millis(100));
        let seen: Vec<String> = app.take().iter().map(|seen| seen.summary()).collect();
        assert_eq!(seen, ["GET /after", "GET /after"], "no request that was cut short");
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// Where the application does not listen, the client's proxy tries again and the one beside the application does not: their tries
/// would multiply. Whatever the request is, it can be tried again.
#[test]
fn refused_connections_are_retried_by_the_client_side_proxy_only() {
    alone(module_path!(), "refused_connections_are_retried_by_the_client_side_proxy_only", || {
        let _near = Place::with(Options { far: true, ..Options::default() });
        let far = Place::second();
        let attempts = || far.log().lines().filter(|line| line.contains("connect-failed")).count();
        for (round, method) in ["GET", "POST"].into_iter().enumerate() {
            let mut client = Client::connect(super::place::Direction::Outbound.address());
            client.send(format!("{method} / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n"));
            let answer = client.answer().expect("an answer");
            assert_eq!((answer.status, answer.header("weft-reason")), (503, Some("connect-failed")), "{method}");
            assert_eq!(answer.header("weft-unprocessed"), None, "{method}");
            super::place::wait("one try and three more", || attempts() == 4 * (round + 1));
        }
        let log = far.log();
        let lines = log.lines().filter(|line| line.contains("connect-failed"));
        assert!(lines.clone().all(|line| line.contains("\"attempts\":1,")), "one connection each: {log}");
    });
}

/// A server that speaks first is heard, and both halves of a connection close by themselves.
#[test]
fn server_first_tcp_and_half_close_are_relayed() {
    alone(module_path!(), "server_first_tcp_and_half_close_are_relayed", || {
        use std::io::{Read, Write};
        let _place = Place::start();
        let listener = TcpListener::bind((std::net::Ipv4Addr::from(super::place::POD), super::place::APP))
            .expect("the port is free");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accepted");
                thread::spawn(move || {
                    stream.write_all(b"220 ready\r\n").expect("greets");
                    let mut said = Vec::new();
                    stream.read_to_end(&mut said).expect("reads until the client has finished");
                    stream.write_all(&said).expect("answers after that");
                });
            }
        });
        let mut client = Client::connect((super::place::SERVICE, 82).into());
        assert_eq!(client.bytes(11), b"220 ready\r\n");
        client.send("QUIT\r\n").finish();
        assert_eq!(client.bytes(6), b"QUIT\r\n");
        assert!(client.closes_within(super::place::PATIENCE));
    });
}
