//! HTTP/2: malformed heads and frames, floods, resets, flow control and GOAWAY.

use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, End, GoAwayApp, HEADERS, Http2App, PING, PRIORITY, RST_STREAM,
    SETTINGS, WINDOW_UPDATE, Wire, block, frame, head, indexed_literal, literal,
};
use super::place::{BOTH, Direction, Options, Proxy, TIMEOUT, in_namespace};

const MEBIBYTE: u64 = 1024 * 1024;

/// Sends one request on a new connection: the head, then `rest`.
fn ask(direction: Direction, head: &[u8], flags: u8, rest: &[Vec<u8>]) -> End {
    let mut wire = Wire::connect(direction.address_h2());
    wire.send(frame(HEADERS, END_HEADERS | flags, 1, head));
    for frame in rest {
        wire.send(frame);
    }
    wire.end(1)
}

/// Asserts that a valid request is answered 200.
fn assert_served(direction: Direction) {
    assert_eq!(
        ask(direction, &head("GET", "/served"), END_STREAM, &[]),
        End::Status(200),
        "{direction:?}: a valid request"
    );
}

/// SM-13, SM-16, SM-20, SM-21, H2-11, PB-02, PB-03, PB-08, PB-15, PB-22: malformed heads, bodies and trailers.
#[test]
fn malformed_http2_heads_are_refused() {
    in_namespace(module_path!(), "malformed_http2_heads_are_refused", || {
        let app = Http2App::start();
        let _proxy = Proxy::start();
        let [method, scheme, authority, path] =
            [(":method", "GET"), (":scheme", "http"), (":authority", "app"), (":path", "/x")];
        let plain = [method, scheme, authority, path];
        let with = |name, value| [&plain[..], &[(name, value)]].concat();
        let instead =
            |name: &str, value| plain.map(|(own, old)| if own == name { (own, value) } else { (own, old) }).to_vec();
        let refused: Vec<(&str, Vec<(&str, &str)>)> = vec![
            ("no method", vec![scheme, authority, path]),
            ("no scheme", vec![method, authority, path]),
            ("no path", vec![method, scheme, authority]),
            ("an empty path", instead(":path", "")),
            ("two methods", with(":method", "POST")),
            ("two paths", with(":path", "/y")),
            ("two authorities", with(":authority", "b")),
            ("an unknown pseudo header", with(":unknown", "1")),
            ("a status", with(":status", "200")),
            ("a pseudo header after others", vec![method, scheme, ("x-a", "1"), path]),
            ("a protocol", vec![("x-a", "1"), (":protocol", "websocket"), method, scheme, path]),
            ("extended CONNECT", vec![(":method", "CONNECT"), (":protocol", "websocket"), scheme, path, authority]),
            ("CONNECT", vec![(":method", "CONNECT"), authority]),
            ("an upper-case name", with("X-Upper", "1")),
            ("an empty name", with("", "1")),
            ("a name with a space", with("x a", "1")),
            ("a name with a colon", with("x:a", "1")),
            ("a name that smuggles", with("x\r\nhost: evil\r\ny", "1")),
            ("a value that smuggles", with("x-a", "1\r\nhost: evil")),
            ("a NUL", with("x-a", "a\0b")),
            ("a space in front of a value", with("x-a", " evil")),
            ("a space behind a value", with("x-a", "evil ")),
            ("a tab in front of a value", with("x-a", "\tevil")),
            ("a tab behind a value", with("x-a", "evil\t")),
            ("a space for a value", with("x-a", " ")),
            ("a quotation mark in a name", with("x\"a", "1")),
            ("a space in front of the authority", instead(":authority", " app")),
            ("a space in front of the path", instead(":path", " /x")),
            ("a space behind the path", instead(":path", "/x ")),
            ("a space in front of the method", instead(":method", " GET")),
            ("a space behind the scheme", instead(":scheme", "http ")),
            ("a space in front of a cookie's crumb", [&plain[..], &[("cookie", "a=1"), ("cookie", " b=2")]].concat()),
            ("connection", with("connection", "close")),
            ("transfer-encoding", with("transfer-encoding", "chunked")),
            ("upgrade", with("upgrade", "websocket")),
            ("keep-alive", with("keep-alive", "1")),
            ("proxy-connection", with("proxy-connection", "close")),
            ("te", with("te", "gzip")),
            ("another host", with("host", "evil")),
            ("two hosts", [&plain[..], &[("host", "app"), ("host", "app")]].concat()),
            ("an authority with a user", instead(":authority", "u@app")),
            ("an authority with a list", instead(":authority", "a,b")),
            ("an authority with a path", instead(":authority", "a/b")),
            ("an authority with a space", instead(":authority", "a b")),
            ("an authority with a bad port", instead(":authority", "a:b")),
            ("a path without a slash", instead(":path", "pkg.Service/Method")),
            ("an asterisk for a GET", instead(":path", "*")),
            ("a whole URL", instead(":path", "http://app/x")),
            ("a path with a space", instead(":path", "/a b")),
            ("a path that smuggles", instead(":path", "/x HTTP/1.1\r\nhost: evil")),
            ("a path with a NUL", instead(":path", "/a\0")),
            ("a method with a space", instead(":method", "GET /private")),
            ("an empty method", instead(":method", "")),
            ("a method that smuggles", instead(":method", "GET\r\n")),
            ("a length with END_STREAM", with("content-length", "10")),
            ("an invalid length", with("content-length", "x")),
            ("two lengths", [&plain[..], &[("content-length", "0"), ("content-length", "1")]].concat()),
        ];
        for direction in BOTH {
            for (name, headers) in &refused {
                let end = ask(direction, &block(headers), END_STREAM, &[]);
                assert!(end.is_refusal(), "{direction:?} {name}: {end:?}");
                assert!(app.take().is_empty(), "{direction:?} {name} got through");
            }
            // SM-20: the DATA does not add up to content-length.
            let posted = [head("POST", "/x"), literal("content-length", "10")].concat();
            for (name, data) in [
                ("short", vec![frame(DATA, END_STREAM, 1, b"hello")]),
                ("long", vec![frame(DATA, 0, 1, b"hello"), frame(DATA, END_STREAM, 1, b"hello hello")]),
            ] {
                let end = ask(direction, &posted, 0, &data);
                assert!(end.is_refusal(), "{direction:?} {name}: {end:?}");
                assert!(app.take().iter().all(|got| got.body.is_none()), "{direction:?} {name}: it looked complete");
            }
            // SM-23: trailers.
            for (name, trailers) in [
                ("framing", block(&[("transfer-encoding", "chunked")])),
                ("upper case", block(&[("X-A", "1")])),
                ("another path", block(&[(":path", "/y")])),
                ("a padded value", block(&[("x-a", " evil")])),
            ] {
                let end = ask(
                    direction,
                    &head("POST", "/x"),
                    0,
                    &[frame(DATA, 0, 1, b"hello"), frame(HEADERS, END_HEADERS | END_STREAM, 1, &trailers)],
                );
                assert!(end.is_refusal(), "{direction:?} {name}: {end:?}");
            }
            let again = ask(
                direction,
                &head("POST", "/x"),
                0,
                &[frame(DATA, 0, 1, b"hello"), frame(HEADERS, END_HEADERS, 1, &block(&[("x-a", "1")]))],
            );
            assert!(again.is_refusal(), "{direction:?}: trailers without END_STREAM: {again:?}");
            // A field from the dynamic table is validated too.
            let mut wire = Wire::connect(direction.address_h2());
            for (id, field) in [(1, indexed_literal("x-a", b" evil")), (3, vec![0xbe]), (5, vec![0xbe])] {
                let head = [head("GET", "/x"), field].concat();
                wire.send(frame(HEADERS, END_HEADERS | END_STREAM, id, &head));
                assert!(matches!(wire.end(id), End::Reset(_)), "{direction:?}: a padded value in the table, {id}");
            }
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 7, &head("GET", "/x")));
            assert_eq!(wire.end(7), End::Status(200), "{direction:?}: the connection goes on");
            assert_served(direction);
            app.take();
            // Unusual but valid heads.
            for (name, headers) in [
                ("no authority", vec![method, scheme, path]),
                ("a host instead", vec![method, scheme, path, ("host", "app")]),
                ("the same host", with("host", "app")),
                ("another scheme", instead(":scheme", "HtTp")),
                ("te: trailers", with("te", "trailers")),
                ("a fragment", instead(":path", "/x#private")),
                ("a port", instead(":authority", "app:80")),
                ("latin-1", with("x-a", "\u{e9}")),
            ] {
                let end = ask(direction, &block(&headers), END_STREAM, &[]);
                assert_eq!(end, End::Status(200), "{direction:?} {name}");
                let got = app.take().pop().expect("a request");
                assert_eq!((got.method.as_str(), got.uri.path()), ("GET", "/x"), "{direction:?} {name}");
            }
        }
        // Policies read a path as in HTTP/1.1.
        for path in ["/private", "/x/../private", "/%70rivate", "//private", "/private#x", "/%2fprivate", "/\\private"]
        {
            let end = ask(Direction::Inbound, &head("GET", path), END_STREAM, &[]);
            assert!(end.is_refusal(), "{path}: {end:?}");
        }
        assert!(app.take().is_empty());
    });
}

/// SM-16 over HTTP/2: every byte in a name and in a value.
#[test]
fn every_byte_in_http2_names_and_values_is_validated() {
    in_namespace(module_path!(), "every_byte_in_http2_names_and_values_is_validated", || {
        let app = Http2App::start();
        let _proxy = Proxy::start();
        for direction in BOTH {
            for byte in 0..=255u8 {
                let name = [head("GET", "/x"), literal([b"x", &[byte][..], b"y"].concat(), "1")].concat();
                let good = super::app::is_token(byte) && !byte.is_ascii_uppercase();
                let end = ask(direction, &name, END_STREAM, &[]);
                assert_eq!(end == End::Status(200), good, "{direction:?} {byte:#04x} in a name: {end:?}");
                let value = [head("GET", "/x"), literal("x-byte", [b"a", &[byte][..], b"b"].concat())].concat();
                let good = byte == b'\t' || byte >= 0x20 && byte != 0x7f;
                let end = ask(direction, &value, END_STREAM, &[]);
                assert_eq!(end == End::Status(200), good, "{direction:?} {byte:#04x} in a value: {end:?}");
            }
            for got in app.take() {
                if let Some(value) = got.headers.get("x-byte") {
                    assert_eq!(value.len(), 3, "{direction:?}: a value is forwarded unchanged");
                }
            }
        }
    });
}

/// RFC 9113 8.2.3 and 8.3.1: for policies and the application, cookie crumbs are one `cookie` header, and
/// `:authority` is `host`.
#[test]
fn cookie_crumbs_and_authority_are_normalized() {
    in_namespace(module_path!(), "cookie_crumbs_and_authority_are_normalized", || {
        let app = Http2App::start();
        let policies = json!([{"name": "p", "target": "namespace", "rules": [
            {"action": "deny", "headers": [{"name": "cookie", "test": {"regex": ".*a=1; b=2.*"}}]},
            {"action": "deny", "headers": [{"name": "host", "test": {"exact": "evil"}}]}
        ]}]);
        let _proxy = Proxy::with(Options { policies, ..Options::default() });
        let with = |rest: &[(&str, &str)]| [head("GET", "/x"), block(rest)].concat();
        assert_eq!(
            ask(Direction::Inbound, &with(&[("cookie", "a=1"), ("cookie", "b=2")]), END_STREAM, &[]),
            End::Status(403)
        );
        assert_eq!(
            ask(Direction::Inbound, &with(&[("cookie", "b=2"), ("cookie", "a=1")]), END_STREAM, &[]),
            End::Status(200)
        );
        assert_eq!(app.take()[0].headers["cookie"], "b=2; a=1");
        let evil = block(&[(":method", "GET"), (":scheme", "http"), (":authority", "evil"), (":path", "/x")]);
        assert_eq!(ask(Direction::Inbound, &evil, END_STREAM, &[]), End::Status(403));
    });
}

/// H2-04, H2-10: encoded size, number and decoded size of headers.
#[test]
fn header_count_size_and_frames_are_bounded() {
    in_namespace(module_path!(), "header_count_size_and_frames_are_bounded", || {
        let app = Http2App::start();
        let proxy = Proxy::start();
        let before = proxy.memory();
        let split = |block: &[u8]| {
            let mut frames: Vec<Vec<u8>> = block
                .chunks(16_000)
                .enumerate()
                .map(|(at, part)| {
                    frame(if at == 0 { HEADERS } else { CONTINUATION }, u8::from(at == 0) * END_STREAM, 1, part)
                })
                .collect();
            if let Some(last) = frames.last_mut() {
                last[4] |= END_HEADERS;
            }
            frames.concat()
        };
        let send = |direction: Direction, block: &[u8]| {
            let mut wire = Wire::connect(direction.address_h2());
            wire.send(split(block));
            wire.end(1)
        };
        for direction in BOTH {
            let headers = |count: usize| [head("GET", "/x"), literal("x-a", "1").repeat(count)].concat();
            assert_eq!(send(direction, &headers(99)), End::Status(200), "{direction:?}");
            for count in [101, 1_000, 10_000, 100_000] {
                assert!(send(direction, &headers(count)).is_refusal(), "{direction:?} {count} headers");
            }
            let cookies = |count: usize| [head("GET", "/x"), literal("cookie", "a").repeat(count)].concat();
            assert_eq!(send(direction, &cookies(400)), End::Status(200), "{direction:?}: crumbs are one header");
            for count in [5_000, 100_000] {
                assert!(send(direction, &cookies(count)).is_refusal(), "{direction:?} {count} crumbs");
            }
            let large = |size: usize| [head("GET", "/x"), literal("x-a", vec![b'v'; size])].concat();
            assert_eq!(send(direction, &large(10_000)), End::Status(200), "{direction:?}");
            for size in [100_000, 1_000_000, 10_000_000] {
                assert!(send(direction, &large(size)).is_refusal(), "{direction:?} {size} bytes");
            }
            // HPACK bomb: one table entry, and thousands of one-byte references to it.
            for name in ["x-a", "cookie"] {
                for round in 0..20 {
                    let bomb = [head("GET", "/x"), indexed_literal(name, &[b'v'; 4000]), vec![0xbe; 16_000]].concat();
                    let end = send(direction, &bomb);
                    assert!(end.is_refusal(), "{direction:?} {name} {round}: {end:?}");
                }
            }
            // H2-03: CONTINUATION without end.
            for part in [literal("x-a", "1").repeat(100), Vec::new(), vec![0xbe; 1000]] {
                let mut wire = Wire::connect(direction.address_h2());
                wire.send(frame(HEADERS, END_STREAM, 1, &[head("GET", "/x"), indexed_literal("x-b", b"v")].concat()));
                let flood = frame(CONTINUATION, 0, 1, &part).repeat(1_000);
                let ended = (0..100).any(|_| !wire.flood(&flood)) || wire.ends_within(TIMEOUT);
                assert!(ended, "{direction:?}: endless CONTINUATION of {} bytes each", part.len());
            }
            assert_served(direction);
        }
        let after = proxy.memory();
        assert!(after < before + 16 * MEBIBYTE, "{before} bytes became {after}");
        app.take();
    });
}

/// H2-01: rapid reset (CVE-2023-44487).
#[test]
fn rapid_resets_end_the_connection() {
    in_namespace(module_path!(), "rapid_resets_end_the_connection", || {
        let app = Http2App::start();
        let mut proxy = Proxy::start();
        let before = proxy.memory();
        for direction in BOTH {
            for round in 0..10 {
                let mut wire = Wire::connect(direction.address_h2());
                let mut ended = false;
                for batch in 0..200u32 {
                    let frames: Vec<u8> = (0..100)
                        .flat_map(|at| {
                            let id = (batch * 100 + at) * 2 + 1;
                            [
                                frame(HEADERS, END_HEADERS | END_STREAM, id, &head("GET", "/hang")),
                                frame(RST_STREAM, 0, id, &8u32.to_be_bytes()),
                            ]
                            .concat()
                        })
                        .collect();
                    if !wire.flood(&frames) {
                        ended = true;
                        break;
                    }
                }
                assert!(ended || wire.ends_within(TIMEOUT), "{direction:?} {round}: 20,000 resets were accepted");
            }
            assert_served(direction);
        }
        super::place::wait("reset requests are cancelled", || app.open.load(Ordering::SeqCst) == 0);
        assert!(
            app.max_open.load(Ordering::SeqCst) <= 1_000,
            "{} requests at once",
            app.max_open.load(Ordering::SeqCst)
        );
        assert!(proxy.is_alive());
        let after = proxy.memory();
        assert!(after < before + 16 * MEBIBYTE, "{before} bytes became {after}");
    });
}

/// Frames that force the proxy to reset the stream with this ID.
type Provocation = fn(u32) -> Vec<u8>;

/// H2-02: a client that forces the proxy to reset streams (CVE-2025-8671, MadeYouReset).
#[test]
fn provoked_resets_end_the_connection() {
    in_namespace(module_path!(), "provoked_resets_end_the_connection", || {
        let _app = Http2App::start();
        let proxy = Proxy::start();
        let before = proxy.memory();
        let provocations: [(&str, Provocation); 4] = [
            ("an increment of 0", |id| frame(WINDOW_UPDATE, 0, id, &0u32.to_be_bytes())),
            ("a window beyond the largest", |id| frame(WINDOW_UPDATE, 0, id, &0x7fff_ffffu32.to_be_bytes())),
            ("a malformed head", |id| frame(HEADERS, END_HEADERS | END_STREAM, id, &block(&[("X", "1")]))),
            ("data after the end", |id| frame(DATA, END_STREAM, id, b"x")),
        ];
        for direction in BOTH {
            for (name, provoke) in provocations {
                let mut wire = Wire::connect(direction.address_h2());
                let mut ended = false;
                for id in (1..6_000u32).step_by(2) {
                    let bytes =
                        [frame(HEADERS, END_HEADERS | END_STREAM, id, &head("GET", "/hang")), provoke(id)].concat();
                    if !wire.flood(&bytes) {
                        ended = true;
                        break;
                    }
                }
                assert!(ended || wire.ends_within(TIMEOUT), "{direction:?} {name}: 3,000 resets were provoked");
            }
            assert_served(direction);
        }
        let after = proxy.memory();
        assert!(after < before + 32 * MEBIBYTE, "{before} bytes became {after}");
    });
}

/// H2-05, H2-06: floods of frames that carry nothing, from a client that does not read.
#[test]
fn floods_of_control_frames_are_bounded() {
    in_namespace(module_path!(), "floods_of_control_frames_are_bounded", || {
        let app = Http2App::start();
        let mut proxy = Proxy::start();
        let before = proxy.memory();
        let priority = |weight: u8| frame(PRIORITY, 0, 3, &[0, 0, 0, 0, weight]);
        for direction in BOTH {
            for (name, frames) in [
                ("empty data", frame(DATA, 0, 1, b"")),
                ("data of padding only", frame(DATA, 8, 1, &[&[255][..], &[0; 255]].concat())),
                ("pings", frame(PING, 0, 0, &[0; 8])),
                ("settings", frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 100])),
                ("priorities", priority(1)),
                ("window updates", frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())),
                ("acknowledged settings", frame(SETTINGS, ACK, 0, &[])),
                ("unknown frames", frame(0xee, 0, 0, &[0; 64])),
            ] {
                let mut wire = Wire::connect(direction.address_h2());
                // The client does not read, so the proxy's replies queue up unless they are bounded.
                wire.stream.set_write_timeout(Some(Duration::from_millis(300))).expect("a timeout");
                wire.send(frame(HEADERS, END_HEADERS, 1, &head("POST", "/hang")));
                let batch = frames.repeat(1_000);
                let stopped = (0..300).any(|_| !wire.flood(&batch));
                let memory = proxy.memory();
                assert!(memory < before + 32 * MEBIBYTE, "{direction:?} {name}: {before} bytes became {memory}");
                assert!(stopped || wire.ends_within(TIMEOUT), "{direction:?} {name}: 300,000 were accepted");
                assert_served(direction);
            }
        }
        assert!(proxy.is_alive());
        app.take();
    });
}

/// H2-07, H2-08: frames of every type, and invalid settings.
#[test]
fn unknown_frames_are_ignored_and_invalid_settings_refused() {
    in_namespace(module_path!(), "unknown_frames_are_ignored_and_invalid_settings_refused", || {
        let app = Http2App::start();
        let mut proxy = Proxy::start();
        for kind in 0..=255u8 {
            for length in [0usize, 1, 4, 9] {
                for stream in [0, 1, 7] {
                    let mut wire = Wire::connect(Direction::Inbound.address_h2());
                    wire.send(frame(HEADERS, END_HEADERS, 1, &head("POST", "/x"))).send(frame(
                        kind,
                        0xff,
                        stream,
                        &vec![0; length],
                    ));
                    wire.send(frame(DATA, END_STREAM, 1, b"x"));
                    if kind > CONTINUATION && kind != 0x10 {
                        // RFC 9113 5.5: unknown types are ignored.
                        assert_eq!(
                            wire.end(1),
                            End::Status(200),
                            "a frame of type {kind:#04x}, {length} bytes, stream {stream}"
                        );
                    }
                }
            }
        }
        for direction in BOTH {
            for (name, settings, good) in [
                ("frames of 0 bytes", vec![(5, 0)], false),
                ("frames beyond the largest", vec![(5, 1 << 24)], false),
                ("a window beyond the largest", vec![(4, 1 << 31)], false),
                ("push neither on nor off", vec![(2, 2)], false),
                ("no table", vec![(1, 0)], true),
                ("a large table", vec![(1, u32::MAX)], true),
                ("no streams", vec![(3, 0)], true),
                ("no headers", vec![(6, 0)], true),
                ("unknown ones", (10..60).map(|id| (id, u32::MAX)).collect(), true),
            ] {
                let mut wire = Wire::with_settings(direction.address_h2(), &settings);
                wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("GET", "/x")));
                let end = wire.end(1);
                assert_eq!(end == End::Status(200), good, "{direction:?} {name}: {end:?}");
            }
            assert_served(direction);
        }
        assert!(proxy.is_alive());
        app.take();
    });
}

/// H2-07 from the other side: applications that violate the protocol are answered with 502 or 503.
#[test]
fn malformed_application_responses_answer_502() {
    in_namespace(module_path!(), "malformed_application_responses_answer_502", || {
        use std::io::{Read, Write};
        let mut proxy = Proxy::start();
        let settings = frame(SETTINGS, 0, 0, &[]);
        let answers: Vec<(&str, Vec<u8>)> = vec![
            ("not HTTP/2", b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n".to_vec()),
            ("frames of 0 bytes", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 0])),
            ("a window beyond the largest", frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0])),
            (
                "a response to nothing",
                [settings.clone(), frame(HEADERS, END_HEADERS, 99, &literal(":status", "200"))].concat(),
            ),
            (
                "a response without a status",
                [settings.clone(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &literal("x-a", "1"))].concat(),
            ),
            (
                "a connection header",
                [
                    settings.clone(),
                    frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[(":status", "200"), ("connection", "close")])),
                ]
                .concat(),
            ),
            (
                "a padded value",
                [
                    settings.clone(),
                    frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&[(":status", "200"), ("x-a", " 1")])),
                ]
                .concat(),
            ),
            ("push", frame(SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 1])),
            (
                "an encoding",
                [
                    settings.clone(),
                    frame(
                        HEADERS,
                        END_HEADERS | END_STREAM,
                        1,
                        &block(&[(":status", "200"), ("transfer-encoding", "chunked")]),
                    ),
                ]
                .concat(),
            ),
            (
                "a promise",
                [settings.clone(), frame(5, END_HEADERS, 1, &[&[0, 0, 0, 2][..], &head("GET", "/x")].concat())]
                    .concat(),
            ),
            (
                "a table that is broken",
                [settings.clone(), frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0xff, 0xff, 0xff, 0xff])]
                    .concat(),
            ),
            ("half a frame", [settings.clone(), vec![0, 0]].concat()),
            ("a GOAWAY", [settings.clone(), frame(7, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 2])].concat()),
            ("nothing", Vec::new()),
        ];
        let listener = TcpListener::bind((std::net::Ipv4Addr::from(super::place::POD), super::place::APP_H2))
            .expect("the port is free");
        let current = std::sync::Arc::new(std::sync::Mutex::new(Vec::<u8>::new()));
        let shared = current.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let response = shared.lock().expect("not poisoned").clone();
                thread::spawn(move || {
                    let _ = stream.read(&mut [0; 4096]);
                    let _ = stream.write_all(&response);
                    thread::sleep(Duration::from_millis(50));
                });
            }
        });
        for direction in BOTH {
            for (name, response) in &answers {
                current.lock().expect("not poisoned").clone_from(response);
                let end = ask(direction, &head("GET", "/x"), END_STREAM, &[]);
                assert!(matches!(end, End::Status(502 | 503)), "{direction:?} {name}: {end:?}");
            }
        }
        assert!(proxy.is_alive());
    });
}

/// D08 and D11 over HTTP/2: a truncated response is reset, never ended; responses that the client does not read take
/// bounded memory and time out.
#[test]
fn truncated_and_unread_responses_are_reset() {
    in_namespace(module_path!(), "truncated_and_unread_responses_are_reset", || {
        let app = Http2App::start();
        let timeouts = json!({"idle": 5000}).to_string();
        let proxy = Proxy::with(Options { environment: vec![("WEFT_TIMEOUTS_MS", timeouts)], ..Options::default() });
        for direction in BOTH {
            let mut wire = Wire::connect(direction.address_h2());
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("GET", "/cut")));
            match wire.end(1) {
                End::Status(200) => assert!(matches!(wire.body(1), (_, Err(End::Reset(_)))), "{direction:?}"),
                end => assert!(matches!(end, End::Reset(_)), "{direction:?}: {end:?}"),
            }
            let before = proxy.memory();
            // 20 connections of 100 streams each, which request 4 MiB and have no window.
            let mut wires = Vec::new();
            for _ in 0..20 {
                let mut wire = Wire::with_settings(direction.address_h2(), &[(4, 0)]);
                for id in (1..200).step_by(2) {
                    wire.send(frame(HEADERS, END_HEADERS | END_STREAM, id, &head("GET", "/big")));
                }
                wires.push(wire);
            }
            thread::sleep(Duration::from_secs(1));
            // Each stream buffers at most one window of the application.
            let each = proxy.memory().saturating_sub(before) / 2_000;
            eprintln!("{direction:?}: {each} bytes for each stream that waits");
            assert!(each < (256 + 64) * 1024, "{direction:?}: {each} bytes for each stream that waits");
            assert_served(direction);
            for (at, wire) in wires.iter_mut().enumerate() {
                let mut resets = 0;
                loop {
                    match wire.next() {
                        Ok(frame) if frame.kind == RST_STREAM => resets += 1,
                        Ok(_) => {}
                        Err(_) => break,
                    }
                    if resets == 100 {
                        break;
                    }
                }
                let closed = wire.ends_within(Duration::ZERO) || resets < 100;
                assert!(resets == 100 || closed, "{direction:?} {at}: {resets} of 100 streams were reset");
            }
        }
        super::place::wait("the application's requests end", || app.open.load(Ordering::SeqCst) == 0);
    });
}

/// H2-13: the proxy respects SETTINGS_MAX_CONCURRENT_STREAMS of the application, and no request fails for it.
#[test]
fn max_concurrent_streams_of_the_application_is_respected() {
    in_namespace(module_path!(), "max_concurrent_streams_of_the_application_is_respected", || {
        let app = Http2App::with_streams(1);
        let _proxy = Proxy::start();
        for direction in BOTH {
            let mut wire = Wire::connect(direction.address_h2());
            for id in (1..100).step_by(2) {
                wire.send(frame(HEADERS, END_HEADERS | END_STREAM, id, &head("GET", "/slow")));
            }
            let mut ended = 0;
            while ended < 50 {
                match wire.next() {
                    Ok(frame) if frame.kind == RST_STREAM => panic!("{direction:?}: a stream was reset"),
                    Ok(frame) if frame.kind == DATA && frame.flags & END_STREAM != 0 => ended += 1,
                    Ok(frame) if frame.kind == HEADERS => {
                        assert_eq!(frame.flags & END_STREAM, 0, "{direction:?}: a local response of the proxy")
                    }
                    Ok(_) => {}
                    Err(end) => panic!("{direction:?}: {end:?} after {ended}"),
                }
            }
        }
        assert_eq!(app.take().len(), 100);
    });
}

/// Sends requests, `at_once` in parallel and every third with a body. Returns the failures: everything but status 200.
fn send_many(direction: Direction, requests: u32, at_once: u32) -> Vec<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(direction.address_h2()).await.expect("connects");
        let (sender, connection) = h2::client::handshake(stream).await.expect("a handshake");
        tokio::spawn(connection);
        let clients = (0..at_once).map(|first| {
            let sender = sender.clone();
            tokio::spawn(async move {
                let mut failed = Vec::new();
                for number in (first..requests).step_by(at_once as usize) {
                    if let Err(what) = send_one(sender.clone(), number).await {
                        failed.push(format!("{number}: {what}"));
                    }
                }
                failed
            })
        });
        let mut failed = Vec::new();
        for client in clients.collect::<Vec<_>>() {
            failed.extend(client.await.expect("it ends"));
        }
        failed
    })
}

async fn send_one(sender: h2::client::SendRequest<bytes::Bytes>, number: u32) -> Result<(), String> {
    let text = |error: h2::Error| error.to_string();
    let has_body = number.is_multiple_of(3);
    let request = http::Request::builder().method(if has_body { "POST" } else { "GET" });
    let request = request.uri(format!("http://app/{number}")).body(()).expect("a request");
    let mut sender = sender.ready().await.map_err(text)?;
    let (response, mut body) = sender.send_request(request, !has_body).map_err(text)?;
    if has_body {
        body.send_data(bytes::Bytes::from_static(b"an order"), true).map_err(text)?;
    }
    let response = response.await.map_err(text)?;
    if response.status() == 200 { Ok(()) } else { Err(format!("{} {:?}", response.status(), response.headers())) }
}

/// An application that sends GOAWAY after 25 requests on each connection: no request of a client fails.
#[test]
fn goaway_after_every_25_requests_fails_no_request() {
    const REQUESTS: u32 = 10_000;
    in_namespace(module_path!(), "goaway_after_every_25_requests_fails_no_request", || {
        let app = GoAwayApp::start(25);
        let proxy = Proxy::start();
        for direction in BOTH {
            assert_eq!(send_many(direction, REQUESTS, 8), [""; 0], "{direction:?}");
            let (before, begun) = (proxy.memory(), std::time::Instant::now());
            let go_aways = app.go_aways.load(Ordering::SeqCst);
            let failed = send_many(direction, 2 * REQUESTS, 8);
            let go_aways = app.go_aways.load(Ordering::SeqCst) - go_aways;
            let grown = proxy.memory().saturating_sub(before);
            println!("{direction:?}: {go_aways} GOAWAYs in {:?}, {grown} bytes more", begun.elapsed());
            assert!(failed.is_empty(), "{direction:?}: {} failed: {:?}", failed.len(), &failed[..failed.len().min(10)]);
            assert!(go_aways >= 2 * REQUESTS / 25 - 1, "{direction:?}: {go_aways} GOAWAYs");
            // Memory varies by 2 MB between runs; 800 leaked connections would take more than 8.
            assert!(grown <= 4 * MEBIBYTE, "{direction:?}: {grown} bytes more after {go_aways} GOAWAYs");
        }
        assert!(app.answered.load(Ordering::SeqCst) >= 6 * REQUESTS);
    });
}
