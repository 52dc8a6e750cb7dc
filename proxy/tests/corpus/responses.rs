//! HTTP/1.1 responses: ambiguous framing, disconnects at each point, early responses. No client gets a response to
//! another request, and a truncated response never looks complete.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use weft_config::bootstrap::ENV_POD_IPS;

use super::app::{After, App, Reply};
use super::client::{Client, ResponseError};
use super::place::{BOTH, Direction, Options, POD, Proxy, SERVICE, TIMEOUT, in_namespace, ip, wait};

fn ask(client: &mut Client, path: &str) -> Result<super::client::Response, ResponseError> {
    client.send(format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n"));
    client.response()
}

/// SM-24: an ambiguous or malformed response is answered with 502, and its connection is not reused.
#[test]
fn ambiguous_responses_answer_502() {
    in_namespace(module_path!(), "ambiguous_responses_answer_502", || {
        let app = App::start();
        let _proxy = Proxy::start();
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
                Reply::new(format!("HTTP/1.1 200 OK\r\n{rest}{evil}"), After::Keep),
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
            app.reply(&format!("/{name}"), Reply::new(bytes, After::Close));
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
                let response = ask(&mut client, &format!("/{name}"));
                assert_eq!(
                    response.as_ref().map(|response| response.status),
                    Ok(502),
                    "{direction:?} {name}: {response:?}"
                );
                let next = ask(&mut client, "/next").map(|response| response.body);
                assert_eq!(next, Ok(b"GET /next".to_vec()), "{direction:?} {name}: the response to another request");
            }
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// Unusual but unambiguous responses are forwarded, and bytes after a response are never the next response.
#[test]
fn unusual_valid_responses_are_forwarded() {
    in_namespace(module_path!(), "unusual_valid_responses_are_forwarded", || {
        let app = App::start();
        let _proxy = Proxy::start();
        let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
        for (name, bytes, then) in [
            ("two-equal-lengths", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello".into(), After::Keep),
            ("extra-bytes", format!("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello{evil}"), After::Keep),
            ("extra-after-chunks", format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n{evil}"), After::Keep),
            ("extensions-and-trailers", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nContent-Length: 3\r\nX-A: 1\r\n\r\n".into(), After::Keep),
            ("to-the-end", "HTTP/1.1 200 OK\r\n\r\nhello".into(), After::Close),
            ("old", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello".into(), After::Close),
            ("interim", format!("{}HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n".repeat(100)), After::Keep),
            ("bare-line-ends", "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello".into(), After::Keep),
            ("hop-by-hop", "HTTP/1.1 200 OK\r\nConnection: x-secret, keep-alive\r\nKeep-Alive: timeout=5\r\nX-Secret: 1\r\nProxy-Connection: x\r\nUpgrade: x\r\nContent-Length: 5\r\n\r\nhello".into(), After::Keep),
            ("speaks-for-the-proxy", "HTTP/1.1 200 OK\r\nweft-unprocessed: true\r\nContent-Length: 5\r\n\r\nhello".into(), After::Keep),
        ] {
            app.reply(&format!("/{name}"), Reply::new(bytes, then));
        }
        app.reply(
            "/204",
            Reply::new(format!("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n{evil}"), After::Keep),
        );
        app.reply(
            "/304",
            Reply::new(format!("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n{evil}"), After::Keep),
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
                    let response = ask(&mut client, &format!("/{name}"))
                        .unwrap_or_else(|error| panic!("{direction:?} {name}: {error:?}"));
                    assert_eq!(
                        (response.status, response.body.as_slice()),
                        (200, &b"hello"[..]),
                        "{direction:?} {name} {round}"
                    );
                    for header in ["keep-alive", "x-secret", "proxy-connection", "upgrade", "x-a"] {
                        assert_eq!(response.header(header), None, "{direction:?} {name}");
                    }
                    let next = ask(&mut client, "/next").map(|response| response.body);
                    assert_eq!(
                        next,
                        Ok(b"GET /next".to_vec()),
                        "{direction:?} {name} {round}: the response to another request"
                    );
                }
            }
            for name in ["204", "304"] {
                let mut client = Client::connect(direction.address());
                let response = ask(&mut client, &format!("/{name}"));
                assert_eq!(response.map(|response| response.status.to_string()), Ok(name.to_owned()), "{direction:?}");
                let next = ask(&mut client, "/next").map(|response| response.body);
                assert_eq!(next, Ok(b"GET /next".to_vec()), "{direction:?} {name}: the response to another request");
            }
            let mut client = Client::connect(direction.address());
            client.send("HEAD /head HTTP/1.1\r\nHost: app\r\n\r\n");
            let head = client.response_to("HEAD").expect("a response");
            assert_eq!(head.header("content-length"), Some("10"), "{direction:?}: the length that GET would have");
            assert_eq!(
                ask(&mut client, "/next").map(|response| response.body),
                Ok(b"GET /next".to_vec()),
                "{direction:?}"
            );
        }
        let mut client = Client::connect(super::place::Direction::Inbound.address());
        app.take();
        let response = ask(&mut client, "/speaks-for-the-proxy").expect("a response");
        assert_eq!(response.header("weft-unprocessed"), None, "an application cannot request a retry");
        assert_eq!(app.take().len(), 1);
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// D08: the application disconnects at each point of a response. Before the head is complete the client gets 502,
/// after it a truncated response. A response delimited by the end of its connection looks complete after FIN (RFC
/// 9112 8), but not after RST.
#[test]
fn truncated_responses_are_not_forwarded_as_complete() {
    in_namespace(module_path!(), "truncated_responses_are_not_forwarded_as_complete", || {
        let app = App::start();
        let _proxy = Proxy::start();
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
        for (how, then) in [("closed", After::Close), ("reset", After::Reset)] {
            for (name, bytes, _) in points {
                app.reply(&format!("/{name}-{how}"), Reply::new(bytes, then));
            }
        }
        app.reply("/to-the-end-reset", Reply::new("HTTP/1.1 200 OK\r\n\r\nhello", After::Reset));
        for direction in BOTH {
            for how in ["closed", "reset"] {
                for (name, _, begun) in points {
                    let mut client = Client::connect(direction.address());
                    let response = ask(&mut client, &format!("/{name}-{how}"));
                    match (begun, &response) {
                        (false, Ok(response)) => assert_eq!(response.status, 502, "{direction:?} {name} {how}"),
                        (true, Err(ResponseError::Truncated { status: 200, .. })) => {}
                        // The proxy may not have sent the head yet when the body fails.
                        (true, Err(ResponseError::Closed)) => {}
                        _ => panic!("{direction:?} {name} {how}: {response:?}"),
                    }
                }
            }
            let mut client = Client::connect(direction.address());
            let response = ask(&mut client, "/to-the-end-reset");
            assert!(!matches!(response, Ok(ref response) if response.status == 200), "{direction:?}: {response:?}");
            // A POST that the application has received.
            let posts = "POST /in-the-body-reset HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello";
            app.take();
            let mut client = Client::connect(direction.address());
            client.send(posts);
            assert!(
                matches!(client.response(), Err(ResponseError::Truncated { .. } | ResponseError::Closed)),
                "{direction:?}"
            );
            assert_eq!(app.take().len(), 1, "{direction:?}: a received POST is not retried");
        }
    });
}

/// The same for HTTP/1.0 clients, whose chunked responses are delimited by the end of the connection: truncation is
/// signaled by RST.
#[test]
fn truncated_responses_reset_http10_clients() {
    in_namespace(module_path!(), "truncated_responses_reset_http10_clients", || {
        let app = App::start();
        let _proxy = Proxy::start();
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        app.reply("/whole", Reply::new(format!("{head}5\r\nhello\r\n0\r\n\r\n"), After::Keep));
        app.reply("/cut", Reply::new(format!("{head}5\r\nhello\r\n"), After::Close));
        for direction in BOTH {
            for (path, whole) in [("/whole", true), ("/cut", false)] {
                let mut client = TcpStream::connect(direction.address()).expect("connects");
                client.set_read_timeout(Some(Duration::from_secs(5))).expect("set");
                write!(client, "GET {path} HTTP/1.0\r\nHost: app\r\n\r\n").expect("asks");
                let mut response = Vec::new();
                let end = client.read_to_end(&mut response).map_err(|error| error.kind());
                let text = String::from_utf8_lossy(&response);
                match whole {
                    true => assert!(end.is_ok() && text.ends_with("\r\n\r\nhello"), "{direction:?}: {end:?}, {text}"),
                    false => assert_eq!(end, Err(ErrorKind::ConnectionReset), "{direction:?}: {text}"),
                }
            }
        }
    });
}

/// D09: closing idle connections fails none of 100,000 retryable requests.
#[test]
fn idle_connections_closed_by_the_application_fail_no_request() {
    const CLIENTS: usize = 4;
    const REQUESTS_EACH: usize = 12_500;
    in_namespace(module_path!(), "idle_connections_closed_by_the_application_fail_no_request", || {
        let app = App::start();
        let _proxy = Proxy::start();
        app.reply("/short", Reply::new("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", After::Close));
        for direction in BOTH {
            std::thread::scope(|scope| {
                for _ in 0..CLIENTS {
                    scope.spawn(|| {
                        let mut client = Client::connect(direction.address());
                        for round in 0..REQUESTS_EACH {
                            let response = ask(&mut client, "/short");
                            assert_eq!(response.map(|response| response.status), Ok(200), "{direction:?} {round}");
                        }
                    });
                }
            });
            assert!(app.take().len() >= CLIENTS * REQUESTS_EACH, "{direction:?}");
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// A response that comes while the body is being sent reaches the client. Connections are reused only if both
/// messages are complete.
#[test]
fn early_responses_reach_http1_clients() {
    in_namespace(module_path!(), "early_responses_reach_http1_clients", || {
        let app = App::start();
        let _proxy = Proxy::start();
        let early = |text: &str, then| Reply { early: true, ..Reply::new(text, then) };
        app.reply("/too-large", early("HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno", After::Close));
        app.reply("/meanwhile", early("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", After::Keep));
        for direction in BOTH {
            for round in 0..20 {
                let mut client = Client::connect(direction.address());
                client.send("POST /meanwhile HTTP/1.1\r\nHost: app\r\nContent-Length: 10\r\n\r\nhello");
                assert_eq!(
                    client.response().map(|response| response.status),
                    Ok(200),
                    "{direction:?} {round}: before the end of the body"
                );
                client.send("hello");
                assert_eq!(
                    ask(&mut client, "/next").map(|response| response.body),
                    Ok(b"GET /next".to_vec()),
                    "{direction:?} {round}"
                );
                let mut client = Client::connect(direction.address());
                client.send("POST /too-large HTTP/1.1\r\nHost: app\r\nContent-Length: 100000000\r\n\r\n");
                client.send(vec![b'x'; 100_000]);
                let response = client.response();
                assert_eq!(response.map(|response| response.status), Ok(413), "{direction:?} {round}");
                client.send(vec![b'x'; 100_000]);
            }
            let mut client = Client::connect(direction.address());
            assert_eq!(
                ask(&mut client, "/next").map(|response| response.body),
                Ok(b"GET /next".to_vec()),
                "{direction:?}"
            );
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// When a client disconnects within its request, the application sees a truncated request.
#[test]
fn aborted_requests_are_not_forwarded_as_complete() {
    in_namespace(module_path!(), "aborted_requests_are_not_forwarded_as_complete", || {
        let app = App::start();
        let _proxy = Proxy::start();
        for direction in BOTH {
            for headers in ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"] {
                for half in [false, true] {
                    let mut client = Client::connect(direction.address());
                    client.send(format!("POST /cut HTTP/1.1\r\nHost: app\r\n{headers}"));
                    thread::sleep(Duration::from_millis(20));
                    if half {
                        client.finish();
                        let response = client.response();
                        assert!(
                            !matches!(response, Ok(ref response) if response.status == 200),
                            "{direction:?}: {response:?}"
                        );
                    }
                }
            }
            assert_eq!(super::client::get(direction.address(), "/after"), 200);
        }
        thread::sleep(Duration::from_millis(100));
        let seen: Vec<String> = app.take().iter().map(|seen| seen.summary()).collect();
        assert_eq!(seen, ["GET /after", "GET /after"], "no truncated request");
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// Where the application does not listen, only the client's proxy retries, so that retries do not multiply. Any
/// method is retried, because nothing was sent.
#[test]
fn refused_connections_are_retried_by_the_client_side_proxy_only() {
    in_namespace(module_path!(), "refused_connections_are_retried_by_the_client_side_proxy_only", || {
        let _client_side = Proxy::with(Options { remote: true, ..Options::default() });
        let server_side = Proxy::second();
        let attempts = || server_side.log().lines().filter(|line| line.contains("connect-failed")).count();
        for (round, method) in ["GET", "POST"].into_iter().enumerate() {
            let mut client = Client::connect(super::place::Direction::Outbound.address());
            client.send(format!("{method} / HTTP/1.1\r\nHost: app\r\nContent-Length: 0\r\n\r\n"));
            let response = client.response().expect("a response");
            assert_eq!((response.status, response.header("weft-reason")), (503, Some("connect-failed")), "{method}");
            assert_eq!(response.header("weft-unprocessed"), None, "{method}");
            super::place::wait("one attempt and three retries", || attempts() == 4 * (round + 1));
        }
        let log = server_side.log();
        let lines = log.lines().filter(|line| line.contains("connect-failed"));
        assert!(lines.clone().all(|line| line.contains("\"attempts\":1,")), "one connection each: {log}");
    });
}

/// A port that its Service declares as TCP is not detected on the server's side either: bytes reach the application at
/// once, also if a request could begin with them. A policy with conditions on requests needs the detection.
#[test]
fn declared_tcp_is_relayed_without_detection() {
    in_namespace(module_path!(), "declared_tcp_is_relayed_without_detection", || {
        let pod: SocketAddr = (POD, 9083).into();
        let listener = TcpListener::bind(pod).expect("the port is free");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accepted");
                thread::spawn(move || std::io::copy(&mut stream.try_clone().expect("a descriptor"), &mut stream));
            }
        });
        let echoes = |to: SocketAddr, patience: Duration| {
            let Ok(mut client) = TcpStream::connect(to) else { return false };
            client.set_read_timeout(Some(patience)).expect("a timeout");
            client.write_all(b"GET").expect("sends");
            client.read_exact(&mut [0; 3]).is_ok()
        };
        for (policies, is_detected) in [(json!([]), false), (Value::Null, true)] {
            let environment = vec![(ENV_POD_IPS, ip(POD))];
            let proxy = Proxy::with(Options { environment, policies, ..Options::default() });
            proxy.export(&json!({"services": [{"name": "db", "addresses": [ip(SERVICE)],
                "ports": [{"port": 83, "protocol": "tcp", "endpoints": [{"address": pod}]}]}]}));
            let service = (SERVICE, 83).into();
            wait("the client's side knows the Service", || echoes(service, TIMEOUT));
            assert_eq!(!echoes(pod, Duration::from_secs(2)), is_detected, "detected for 5 s only for the policy");
        }
    });
}

/// A silent client to which policies allow no TCP connection is refused and logged, though not before it may have sent
/// a request.
#[test]
fn silent_clients_that_policies_deny_are_refused() {
    in_namespace(module_path!(), "silent_clients_that_policies_deny_are_refused", || {
        let proxy = Proxy::with(Options {
            policies: json!([{"name": "p", "target": "namespace", "rules": [{"action": "deny"}]}]),
            ..Options::default()
        });
        let mut client = Client::connect(Direction::Inbound.address());
        assert!(!client.closes_within(Duration::from_secs(2)), "it may still send a request");
        assert!(client.closes_within(TIMEOUT));
        wait("the refusal is logged", || proxy.log().contains("\"policy-denied\""));
        let mut client = Client::connect(Direction::Inbound.address());
        thread::sleep(Duration::from_millis(500));
        client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
        assert_eq!(client.response().map(|response| response.status), Ok(403));
    });
}

/// While it is not known which policies there are, nothing reaches the application.
#[test]
fn nothing_passes_while_the_policies_are_unknown() {
    in_namespace(module_path!(), "nothing_passes_while_the_policies_are_unknown", || {
        let app = App::start();
        let proxy = Proxy::with(Options { without_policies: true, ..Options::default() });
        let mut client = Client::connect(Direction::Inbound.address());
        client.send("GET / HTTP/1.1\r\nHost: app\r\n\r\n");
        let response = client.response().expect("a response");
        assert_eq!((response.status, response.header("weft-reason")), (503, Some("config-unavailable")));
        let mut client = Client::connect(Direction::Inbound.address());
        client.send("\x16\x03not HTTP\r\n");
        assert!(client.closes_within(TIMEOUT));
        assert_eq!(app.take().len(), 0);
        drop(client);
        proxy.write_raw("i.shop", "{}");
        wait("the policies are known", || super::client::get(Direction::Inbound.address(), "/") == 200);
    });
}

/// Server-first TCP works with protocol detection, and each direction closes independently.
#[test]
fn server_first_tcp_and_half_close_are_relayed() {
    in_namespace(module_path!(), "server_first_tcp_and_half_close_are_relayed", || {
        use std::io::{Read, Write};
        let _proxy = Proxy::start();
        let listener = TcpListener::bind((std::net::Ipv4Addr::from(super::place::POD), super::place::APP))
            .expect("the port is free");
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.expect("accepted");
                thread::spawn(move || {
                    stream.write_all(b"220 ready\r\n").expect("greets");
                    let mut received = Vec::new();
                    stream.read_to_end(&mut received).expect("reads until the client has finished");
                    stream.write_all(&received).expect("answers after that");
                });
            }
        });
        let mut client = Client::connect((super::place::SERVICE, 82).into());
        assert_eq!(client.bytes(11), b"220 ready\r\n");
        client.send("QUIT\r\n").finish();
        assert_eq!(client.bytes(6), b"QUIT\r\n");
        assert!(client.closes_within(super::place::TIMEOUT));
    });
}
