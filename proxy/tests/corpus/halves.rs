//! Half-closed connections: a peer shuts down its sending side and goes on reading. The other direction must go on.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener};
use std::thread;
use std::time::Duration;

use super::app::{After, App, Reply};
use super::client::Client;
use super::frames::{
    DATA, END_HEADERS, END_STREAM, HEADERS, Http2App, Script, ScriptedApp, Wire, frame, head, literal,
};
use super::place::{APP, BOTH, Direction, POD, Proxy, in_namespace, wait};

/// Delay of responses, so that the client's FIN arrives first.
const DELAY: Duration = Duration::from_millis(50);

#[test]
fn half_closed_http1_clients_get_their_responses() {
    in_namespace(module_path!(), "half_closed_http1_clients_get_their_responses", || {
        let app = App::start();
        let proxy = Proxy::start();
        let long = format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{}", "x".repeat(1_000_000));
        app.reply(
            "/late",
            Reply { delay: DELAY, ..Reply::new("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlate", After::Keep) },
        );
        app.reply("/long", Reply { delay: DELAY, ..Reply::new(long, After::Keep) });
        app.reply("/open", Reply { delay: DELAY, ..Reply::new("HTTP/1.1 200 OK\r\n\r\nto the end", After::Close) });
        for direction in BOTH {
            for (path, length) in [("/now", None), ("/late", Some(4)), ("/long", Some(1_000_000)), ("/open", Some(10))]
            {
                for (request, answers) in [
                    (format!("GET {path} HTTP/1.1\r\nHost: app\r\nConnection: close\r\n\r\n"), 1),
                    (format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n"), 1),
                    (format!("GET {path} HTTP/1.0\r\nHost: app\r\n\r\n"), 1),
                    (format!("POST {path} HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello"), 1),
                    (
                        format!(
                            "POST {path} HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
                        ),
                        1,
                    ),
                    (format!("GET {path} HTTP/1.1\r\nHost: app\r\n\r\n").repeat(3), 3),
                    (format!("POST {path} HTTP/1.1\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello").repeat(3), 3),
                ] {
                    for wait in [Duration::ZERO, DELAY / 2] {
                        let mut client = Client::connect(direction.address());
                        client.send(&request);
                        thread::sleep(wait);
                        client.finish();
                        for round in 0..answers {
                            let response = client.response().map(|response| (response.status, response.body.len()));
                            let length =
                                length.unwrap_or(request.split(' ').next().map_or(0, str::len) + " /now".len());
                            assert_eq!(response, Ok((200, length)), "{direction:?}, {round}: {request}");
                        }
                        assert!(client.closes_within(super::place::TIMEOUT), "{direction:?}: {request}");
                    }
                }
            }
            proxy.settle();
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}

#[test]
fn half_closed_http2_clients_get_their_responses() {
    in_namespace(module_path!(), "half_closed_http2_clients_get_their_responses", || {
        let app = Http2App::start();
        let proxy = Proxy::start();
        for direction in BOTH {
            for path in ["/now", "/slow"] {
                for pause in [Duration::ZERO, DELAY / 2] {
                    let mut wire = Wire::connect(direction.address_h2());
                    wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("GET", path)));
                    wire.send(frame(HEADERS, END_HEADERS, 3, &head("POST", path)));
                    wire.send(frame(DATA, END_STREAM, 3, b"hello"));
                    // An incomplete request.
                    wire.send(frame(HEADERS, END_HEADERS, 5, &head("POST", "/cut-within")));
                    thread::sleep(pause);
                    let _ = wire.stream.shutdown(Shutdown::Write);
                    let mut ended = Vec::new();
                    while let Ok(frame) = wire.next() {
                        if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
                            ended.push(frame.stream);
                        }
                    }
                    ended.sort_unstable();
                    assert_eq!(ended, [1, 3], "{direction:?} {path}");
                }
            }
            proxy.settle();
            let got = app.take();
            assert!(got.iter().all(|got| got.uri.path() != "/cut-within" || got.body.is_none()), "{got:?}");
        }
        // The response ends at the client's window, because a half-closed client cannot send WINDOW_UPDATE.
        let mut wire = Wire::connect(Direction::Outbound.address_h2());
        wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("GET", "/big")));
        let _ = wire.stream.shutdown(Shutdown::Write);
        let mut octets = 0;
        while let Ok(frame) = wire.next() {
            assert!(
                frame.flags & END_STREAM == 0 || !matches!(frame.kind, HEADERS | DATA),
                "the response looks complete"
            );
            octets += if frame.kind == DATA { frame.payload.len() } else { 0 };
        }
        assert_eq!(octets, 65_535);
        drop(wire);
        proxy.settle();
        // A client that closes is detected, although the proxy has nothing to send to it.
        let mut wire = Wire::connect(Direction::Outbound.address_h2());
        wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("GET", "/hang")));
        wait("the application has it", || app.open.load(std::sync::atomic::Ordering::SeqCst) == 1);
        drop(wire);
        wait("the application's stream is reset", || app.open.load(std::sync::atomic::Ordering::SeqCst) == 0);
    });
}

/// Applications that half-close after their response and go on reading the request.
#[test]
fn half_closed_applications_get_the_whole_request() {
    in_namespace(module_path!(), "half_closed_applications_get_the_whole_request", || {
        let app = ScriptedApp::start(&[]);
        let proxy = Proxy::start();
        let listener = TcpListener::bind((Ipv4Addr::from(POD), APP)).expect("the port is free");
        let (sender, receiver) = std::sync::mpsc::channel();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).expect("the head is whole");
                    head.push(byte[0]);
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nno").expect("answers");
                stream.shutdown(Shutdown::Write).expect("ends its half");
                let mut body = Vec::new();
                sender.send(stream.read_to_end(&mut body).map(|_| body.len())).expect("the test waits");
            }
        });
        let head = literal(":status", "200");
        let response = vec![(HEADERS, END_HEADERS, head), (DATA, END_STREAM, b"no".to_vec())];
        app.follow(Script { response, updates_windows: false, shutdown: Some(Shutdown::Write) });
        for (direction, address, is_http2) in [
            (Direction::Outbound, Direction::Outbound.address(), false),
            (Direction::Inbound, Direction::Inbound.address(), false),
            (Direction::Outbound, Direction::Outbound.address_h2(), true),
        ] {
            for _ in 0..3 {
                let mut client = Client::connect(address);
                client.send("POST /x HTTP/1.1\r\nHost: app\r\nContent-Length: 1000\r\n\r\n");
                assert_eq!(client.response().map(|response| response.body), Ok(b"no".to_vec()), "{direction:?}");
                for _ in 0..10 {
                    thread::sleep(Duration::from_millis(5));
                    client.send([b'x'; 100]);
                }
                if is_http2 {
                    let came = app.take_when("the rest", |came| came.has_ended || came.reset.is_some());
                    assert_eq!((came[0].octets, came[0].has_ended), (1000, true), "{direction:?}: {came:?}");
                } else {
                    let count = receiver.recv_timeout(super::place::TIMEOUT).expect("it comes to its end");
                    assert_eq!(count.ok(), Some(1000), "{direction:?}");
                }
            }
            proxy.settle();
        }
    });
}
