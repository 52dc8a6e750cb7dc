//! HTTP/1.1 requests: message length, request smuggling, malformed heads, detection, upgrades and expectations.

use super::app::{After, App, Reply, is_token};
use super::client::{Client, ResponseError};
use super::frames::{CONTINUATION, DATA, END_HEADERS, END_STREAM, End, HEADERS, Wire, frame, head, literal};
use super::place::{BOTH, Direction, Proxy, TIMEOUT, in_namespace, scrape};

/// The expected result of a case.
#[derive(Clone, Debug)]
enum Expected {
    /// An error response or none, then the connection is closed. The application sees no request.
    Closed,
    /// The application sees exactly these requests, all are answered 200, and the connection stays open.
    Passes(&'static [&'static str]),
    /// The same, but then the connection is closed, perhaps after an error response.
    PassesAndCloses(&'static [&'static str]),
}

use Expected::{Closed, Passes, PassesAndCloses};

struct Case {
    id: String,
    bytes: Vec<u8>,
    expected: Expected,
}

fn case(id: impl Into<String>, bytes: impl AsRef<[u8]>, expected: Expected) -> Case {
    Case { id: id.into(), bytes: bytes.as_ref().to_vec(), expected }
}

/// A POST to `/x` with these headers, and `rest` after the head.
fn post(headers: &str, rest: &str) -> String {
    format!("POST /x HTTP/1.1\r\nHost: app\r\n{headers}\r\n\r\n{rest}")
}

const CHUNKED: &str = "5\r\nhello\r\n0\r\n\r\n";
const HELLO: &[&str] = &["POST /x hello"];
const SMUGGLED: &str = "GET /private HTTP/1.1\r\nHost: app\r\n\r\n";

#[test]
fn ambiguous_transfer_encodings_and_lengths_are_refused() {
    in_namespace(module_path!(), "ambiguous_transfer_encodings_and_lengths_are_refused", || {
        let mut cases = Vec::new();
        // SM-01: anything but exactly one `chunked`.
        for (name, headers) in [
            ("twice", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
            ("list of two", "Transfer-Encoding: chunked, chunked"),
            ("identity last", "Transfer-Encoding: chunked, identity"),
            ("identity first", "Transfer-Encoding: identity, chunked"),
            ("identity", "Transfer-Encoding: identity"),
            ("gzip first", "Transfer-Encoding: gzip, chunked"),
            ("gzip", "Transfer-Encoding: gzip"),
            ("prefix", "Transfer-Encoding: xchunked"),
            ("suffix", "Transfer-Encoding: chunkedx"),
            ("leading comma", "Transfer-Encoding: ,chunked"),
            ("trailing comma", "Transfer-Encoding: chunked,"),
            ("parameter", "Transfer-Encoding: chunked;x=y"),
            ("quoted", "Transfer-Encoding: \"chunked\""),
            ("vertical tab", "Transfer-Encoding: \x0bchunked"),
            ("NUL", "Transfer-Encoding: chunked\x00"),
            ("no-break space", "Transfer-Encoding: \u{a0}chunked"),
            ("empty", "Transfer-Encoding: "),
            ("empty and chunked", "Transfer-Encoding: \r\nTransfer-Encoding: chunked"),
            ("chunked and identity in two", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity"),
            ("space before the colon", "Transfer-Encoding : chunked"),
            ("tab before the colon", "Transfer-Encoding\t: chunked"),
            ("folded", "Transfer-Encoding:\r\n chunked"),
            ("split name", "Transfer-\r\n Encoding: chunked"),
            ("a word between", "Transfer Encoding: chunked"),
        ] {
            cases.push(case(format!("SM-01 {name}"), post(headers, CHUNKED), Closed));
        }
        for (name, headers) in [
            ("plain", "Transfer-Encoding: chunked"),
            ("letter case", "tRANSFER-eNCODING: ChUnKeD"),
            ("spaces around", "Transfer-Encoding: \t chunked \t"),
            ("no space", "Transfer-Encoding:chunked"),
        ] {
            cases.push(case(format!("SM-01 {name}"), post(headers, CHUNKED), Passes(HELLO)));
        }
        // SM-02: both framings. Transfer-Encoding wins, and nothing after the message is parsed as a request.
        for (name, headers) in [
            ("length first", "Content-Length: 4\r\nTransfer-Encoding: chunked"),
            ("encoding first", "Transfer-Encoding: chunked\r\nContent-Length: 4"),
            ("between", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\nContent-Length: 4"),
        ] {
            let rest = format!("{CHUNKED}{SMUGGLED}");
            cases.push(case(format!("SM-02 {name}"), post(headers, &rest), PassesAndCloses(HELLO)));
        }
        for (name, headers) in [
            ("an invalid length first", "Content-Length: x\r\nTransfer-Encoding: chunked"),
            ("an invalid length after", "Transfer-Encoding: chunked\r\nContent-Length: x"),
            ("two lengths", "Content-Length: 4\r\nTransfer-Encoding: chunked\r\nContent-Length: 5"),
        ] {
            cases.push(case(format!("SM-02 {name}"), post(headers, CHUNKED), Closed));
        }
        // SM-03: lengths that are not a plain number.
        for length in [
            "+5",
            "-1",
            "-0",
            "+0",
            "0x5",
            "0x10",
            "1_0",
            "1 0",
            "5Z",
            "",
            " ",
            "5,5",
            "5, 5",
            "5,6",
            ",5",
            "5,",
            "5;5",
            "5.0",
            "5e0",
            "\"5\"",
            "18446744073709551616",
            "99999999999999999999999999",
            "\u{665}",
            "5\x005",
            "0005 ,",
        ] {
            cases.push(case(format!("SM-03 {length:?}"), post(&format!("Content-Length: {length}"), "hello"), Closed));
        }
        for (name, headers) in [
            ("two different", "Content-Length: 5\r\nContent-Length: 6"),
            ("two different, one empty", "Content-Length: \r\nContent-Length: 5"),
            ("second empty", "Content-Length: 5\r\nContent-Length: "),
            ("space before the colon", "Content-Length : 5"),
            ("a tab before the name", "\tContent-Length: 5"),
            ("folded", "Content-Length: \r\n 5"),
            ("folded further", "Content-Length: 5\r\n 5"),
        ] {
            cases.push(case(format!("SM-03 {name}"), post(headers, "hello"), Closed));
        }
        cases.push(case("SM-03 two equal", post("Content-Length: 5\r\nContent-Length: 5", "hello"), Passes(HELLO)));
        cases.push(case("SM-03 leading zeros", post("Content-Length: 005", "hello"), Passes(HELLO)));
        cases.push(case("SM-03 zero", post("Content-Length: 0", ""), Passes(&["POST /x"])));
        cases.push(case("SM-03 none", post("X-A: 1", ""), Passes(&["POST /x"])));
        // SM-08: HTTP/1.0 has no Transfer-Encoding, and no body without Content-Length.
        cases.push(case(
            "SM-08 encoding in 1.0",
            format!("POST /x HTTP/1.0\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n{CHUNKED}"),
            Closed,
        ));
        cases.push(case(
            "SM-08 no body in 1.0",
            format!("POST /x HTTP/1.0\r\nHost: app\r\n\r\n{SMUGGLED}"),
            PassesAndCloses(&["POST /x"]),
        ));
        cases.push(case(
            "SM-08 length in 1.0",
            "POST /x HTTP/1.0\r\nHost: app\r\nContent-Length: 5\r\n\r\nhello",
            PassesAndCloses(HELLO),
        ));
        cases.push(case(
            "SM-08 keep-alive in 1.0",
            "POST /x HTTP/1.0\r\nHost: app\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
            Passes(HELLO),
        ));
        // SM-11: bodies of methods that usually have none.
        for method in ["GET", "HEAD", "OPTIONS", "DELETE"] {
            let summary: &'static [&'static str] = match method {
                "GET" => &["GET /x hello"],
                "HEAD" => &["HEAD /x hello"],
                "OPTIONS" => &["OPTIONS /x hello"],
                _ => &["DELETE /x hello"],
            };
            for headers in ["Content-Length: 5\r\n\r\nhello", &format!("Transfer-Encoding: chunked\r\n\r\n{CHUNKED}")] {
                let bytes = format!("{method} /x HTTP/1.1\r\nHost: app\r\n{headers}");
                cases.push(case(format!("SM-11 {method} {}", &headers[..14]), bytes, Passes(summary)));
            }
        }
        run(cases);
    });
}

#[test]
fn malformed_chunks_and_trailers_are_refused() {
    in_namespace(module_path!(), "malformed_chunks_and_trailers_are_refused", || {
        let chunked = |rest: &str| post("Transfer-Encoding: chunked", rest);
        let mut cases = Vec::new();
        // SM-04: chunk sizes.
        for size in [
            "10000000000000005",
            "fffffffffffffffff",
            "ffffffffffffffff5",
            "-1",
            "-5",
            "+5",
            "0x5",
            "5_0",
            " 5",
            "\t5",
            "",
            "g",
            "5h",
            "5.0",
            "5 5",
            "\x005",
            "5\x00",
            "\u{665}",
            ";5",
        ] {
            let bytes = chunked(&format!("{size}\r\nhello\r\n0\r\n\r\n{SMUGGLED}"));
            cases.push(case(format!("SM-04 {size:?}"), bytes, Closed));
        }
        cases.push(case("SM-04 leading zeros", chunked("0005\r\nhello\r\n0\r\n\r\n"), Passes(HELLO)));
        cases.push(case("SM-04 spaces after", chunked("5  \r\nhello\r\n0\r\n\r\n"), Passes(HELLO)));
        cases.push(case("SM-04 upper case", chunked("A\r\nhellohello\r\n0\r\n\r\n"), Passes(&["POST /x hellohello"])));
        cases.push(case("SM-04 several", chunked("1\r\nh\r\n4\r\nello\r\n000\r\n\r\n"), Passes(HELLO)));
        // SM-05: bare CR and LF, and chunk extensions.
        for (name, rest) in [
            ("bare LF after the size", "5\nhello\r\n0\r\n\r\n"),
            ("bare CR after the size", "5\rhello\r\n0\r\n\r\n"),
            ("two CR after the size", "5\r\rhello\r\n0\r\n\r\n"),
            ("bare LF in an extension", "5;a\nhello\r\n0\r\n\r\n"),
            ("bare LF after a space", "5 \nhello\r\n0\r\n\r\n"),
            ("two CR in an extension", "5;a=b\r\rXX\r\nhello\r\n0\r\n\r\n"),
            ("bare CR in an extension", "5;a=\rb\r\nhello\r\n0\r\n\r\n"),
            ("bare LF after the data", "5\r\nhello\n0\r\n\r\n"),
            ("bare CR after the data", "5\r\nhello\r0\r\n\r\n"),
            ("bare LF after the last size", "5\r\nhello\r\n0\n\r\n"),
            ("no line end after the data", "5\r\nhello0\r\n\r\n"),
        ] {
            cases.push(case(format!("SM-05 {name}"), chunked(&format!("{rest}{SMUGGLED}")), Closed));
        }
        cases.push(case("SM-05 an extension", chunked("5;a=b;c=\"d\"\r\nhello\r\n0;x\r\n\r\n"), Passes(HELLO)));
        let bare = chunked(&format!("5\r\nhello\r\n0\r\n\n{SMUGGLED}"));
        cases.push(case("SM-05 bare LF at the end", bare, Closed));
        // SM-06: the end of the message.
        for (name, rest) in [
            ("bytes after the last chunk", "5\r\nhello\r\n0\r\nXX"),
            ("bytes for a line end", "5\r\nhelloXX0\r\n\r\n"),
            ("an extra line end", "5\r\nhello\r\n\r\n0\r\n\r\n"),
            ("an invalid chunk", "5\r\nhello\r\nXYZ\r\n\r\n"),
            ("a chunk that is longer than it says", "4\r\nhello\r\n0\r\n\r\n"),
        ] {
            cases.push(case(format!("SM-06 {name}"), chunked(&format!("{rest}{SMUGGLED}")), Closed));
        }
        cases.push(case(
            "SM-06 more than was declared",
            post("Content-Length: 5", "helloXX / HTTP/1.1\r\n\r\n"),
            PassesAndCloses(HELLO),
        ));
        cases.push(case(
            "SM-06 two requests, one after the other",
            post("Content-Length: 5", "helloGET /y HTTP/1.1\r\nHost: app\r\n\r\n"),
            Passes(&["POST /x hello", "GET /y"]),
        ));
        // SM-07: chunk extensions are limited to 16 KiB per body.
        let extension = format!("1;{}\r\nh\r\n", "e".repeat(4096));
        cases.push(case("SM-07 long extensions", chunked(&format!("{}0\r\n\r\n", extension.repeat(64))), Closed));
        // SM-23: forbidden trailers are removed.
        for name in [
            "Content-Length: 3",
            "Transfer-Encoding: chunked",
            "Host: other",
            "Authorization: x",
            "Cookie: a=b",
            "X-Plain: 1",
        ] {
            let bytes = post(
                "Transfer-Encoding: chunked\r\nTrailer: X-Plain, Host, Content-Length, Authorization, Transfer-Encoding, Cookie",
                &format!("5\r\nhello\r\n0\r\n{name}\r\n\r\n"),
            );
            cases.push(case(format!("SM-23 {name}"), bytes, Passes(HELLO)));
        }
        cases.push(case("SM-23 a malformed trailer", chunked("5\r\nhello\r\n0\r\nno trailer\r\n\r\n"), Closed));
        cases.push(case("SM-23 endless trailers", chunked(&format!("0\r\n{}", "X-A: 1\r\n".repeat(20_000))), Closed));
        run(cases);
    });
}

#[test]
fn malformed_http1_heads_are_refused() {
    in_namespace(module_path!(), "malformed_http1_heads_are_refused", || {
        let get = |line: &str| format!("{line}\r\nHost: app\r\n\r\n");
        let header = |line: &str| format!("GET /x HTTP/1.1\r\nHost: app\r\n{line}\r\n\r\n");
        let x: Expected = Passes(&["GET /x"]);
        let mut cases = Vec::new();
        // SM-13, SM-17: field names.
        for line in [
            ": x",
            " : x",
            "X : y",
            "X\t: y",
            "no colon",
            " X: y",
            "\tX: y",
            "X Y: z",
            "X: a\r\n folded",
            "X: a\r\n\tfolded",
            "X:\r\n y",
            "X\x00: y",
            "X: y\x00",
            "(X): y",
            "X\"Y: z",
            "\u{e9}: y",
            "X: y\rZ: w",
            "X: a\nb",
            "X@Y: z",
            "X/Y: z",
            "[X]: y",
        ] {
            cases.push(case(format!("SM-17 {line:?}"), header(line), Closed));
        }
        for line in ["X:", "X: ", "X:y", "X: \t y \t ", "X-Long_Name.9~: y", "X: \u{e9}\u{ff}", "!#$%&'*+-.^_`|~: y"] {
            cases.push(case(format!("SM-17 {line:?}"), header(line), x.clone()));
        }
        // Bare LF and empty lines before a request are allowed (RFC 9112 2.2): the forwarded head is serialized anew.
        cases.push(case("SM-17 bare line ends", "GET /x HTTP/1.1\nHost: app\n\n", x.clone()));
        cases.push(case(
            "SM-17 an empty line between requests",
            format!("{}\r\n{}", header("A: b"), header("A: b")),
            Passes(&["GET /x", "GET /x"]),
        ));
        // SM-15: name lengths that overflow 8 or 16 bits.
        for length in [255, 256, 270, 4096] {
            cases.push(case(
                format!("SM-15 a name of {length} bytes"),
                header(&format!("{}: y", "a".repeat(length))),
                x.clone(),
            ));
        }
        for length in [65_535, 65_536, 66_000] {
            cases.push(case(
                format!("SM-15 a name of {length} bytes"),
                header(&format!("{}: y", "a".repeat(length))),
                Closed,
            ));
        }
        // SM-18: request lines.
        for line in [
            "GET /x\nHTTP/1.1",
            "GET /x HTTP/1.32",
            "GET /x HTTP/2.0",
            "GET /x HTTP/0.9",
            "GET /x HTTP/1.2",
            "GET /x HTTP/11",
            "GET /x HTTP/4294967295.255",
            "GET /x HTTP/1",
            "GET /x HTTP/1.",
            "GET /x http/1.1",
            "GET /x",
            "GET",
            "\x00 / HTTP/1.1",
            "GET  /x HTTP/1.1",
            "GET /x  HTTP/1.1",
            "GET\t/x HTTP/1.1",
            "GET /x\tHTTP/1.1",
            "GET /x HTTP/1.1 ",
            "GET /x HTTP/1.1\x00",
            "GET /x y HTTP/1.1",
            "GET /\x00x HTTP/1.1",
            "GET /\x01 HTTP/1.1",
            "G=\":<> /x HTTP/1.1",
            "G(T /x HTTP/1.1",
            "GET /x HTTP/1.1 HTTP/1.1",
            " GET /x HTTP/1.1",
            "GET\x0b/x HTTP/1.1",
            "G\u{e9}T /x HTTP/1.1",
            "GET http:// HTTP/1.1",
        ] {
            cases.push(case(format!("SM-18 {line:?}"), get(line), Closed));
        }
        // SM-19: a client cannot switch the proxy to HTTP/2.
        cases.push(case(
            "SM-19 h2c",
            "GET /x HTTP/1.1\r\nHost: app\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
            x.clone(),
        ));
        cases.push(case(
            "SM-19 h2c with frames for a body",
            "POST /x HTTP/1.1\r\nHost: app\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 9\r\n\r\n\0\0\0\x04\0\0\0\0\0",
            Passes(&["POST /x \0\0\0\x04\0\0\0\0\0"]),
        ));
        cases.push(case(
            "SM-19 the preface after a request",
            format!("{}PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", header("A: b")),
            PassesAndCloses(&["GET /x"]),
        ));
        // H2-10 for HTTP/1.1: size and count of headers.
        cases.push(case("H2-10 100 headers", header("X-A: 1\r\n".repeat(99).trim_end()), x.clone()));
        cases.push(case("H2-10 101 headers", header("X-A: 1\r\n".repeat(100).trim_end()), Closed));
        cases.push(case("H2-10 a value of 60 KiB", header(&format!("X-A: {}", "v".repeat(60 * 1024))), x.clone()));
        cases.push(case("H2-10 a value of 70 KiB", header(&format!("X-A: {}", "v".repeat(70 * 1024))), Closed));
        cases.push(case("H2-10 a target of 70 KiB", get(&format!("GET /{} HTTP/1.1", "p".repeat(70 * 1024))), Closed));
        cases.push(case("H2-10 never ends", format!("GET /x HTTP/1.1\r\n{}", "X-A: 1\r\n".repeat(50_000)), Closed));
        // SM-22, PB-22: CONNECT is refused, and the bytes after it are discarded.
        for rest in [String::new(), SMUGGLED.to_owned()] {
            cases.push(case("SM-22 CONNECT", format!("CONNECT app:80 HTTP/1.1\r\nHost: app:80\r\n\r\n{rest}"), Closed));
            cases.push(case(
                "SM-22 CONNECT with a length",
                format!("CONNECT app:80 HTTP/1.1\r\nHost: app:80\r\nContent-Length: 5\r\n\r\nhello{rest}"),
                Closed,
            ));
        }
        cases.push(case("SM-22 CONNECT to a path", "CONNECT /x HTTP/1.1\r\nHost: app\r\n\r\n", Closed));
        run(cases);
    });
}

/// SM-16: every byte value in a name, a value and a method.
#[test]
fn every_byte_in_http1_names_values_and_methods_is_validated() {
    in_namespace(module_path!(), "every_byte_in_http1_names_values_and_methods_is_validated", || {
        let mut cases = Vec::new();
        for byte in 0..=255u8 {
            let named = [b"GET /x HTTP/1.1\r\nHost: app\r\nx", &[byte][..], b"y: 1\r\n\r\n"].concat();
            let valued = [b"GET /x HTTP/1.1\r\nHost: app\r\nX-Byte: a", &[byte][..], b"b\r\n\r\n"].concat();
            let method = [b"G", &[byte][..], b"T /x HTTP/1.1\r\nHost: app\r\n\r\n"].concat();
            let passes = |good: bool| if good { Passes(&["GET /x"]) } else { Closed };
            cases.push(case(format!("SM-16 {byte:#04x} in a name"), named, passes(is_token(byte) || byte == b':')));
            let fine = byte == b'\t' || byte >= 0x20 && byte != 0x7f;
            cases.push(case(format!("SM-16 {byte:#04x} in a value"), valued, passes(fine)));
            if !is_token(byte) {
                cases.push(case(format!("SM-16 {byte:#04x} in a method"), method, Closed));
            }
        }
        run(cases);
    });
}

/// A malformed or truncated request body is the client's error: 400, and no failure of the endpoint.
#[test]
fn broken_request_bodies_answer_400_and_do_not_count_as_failures() {
    in_namespace(module_path!(), "broken_request_bodies_answer_400_and_do_not_count_as_failures", || {
        let _app = App::start();
        let _proxy = Proxy::start();
        for direction in BOTH {
            for _ in 0..20 {
                let mut client = Client::connect(direction.address());
                client.send(post("Transfer-Encoding: chunked", "5\r\nhello\r\nXYZ\r\n\r\n"));
                let response = client.response().unwrap_or_else(|error| panic!("{direction:?}: {error:?}"));
                assert_eq!(
                    (response.status, response.header("weft-reason")),
                    (400, Some("bad-request")),
                    "{direction:?}"
                );
                let mut client = Client::connect(direction.address());
                client.send(post("Content-Length: 10", "hello"));
            }
            assert_eq!(super::client::get(direction.address(), "/after"), 200, "{direction:?}");
        }
    });
}

/// SM-09: bytes are relayed only after a 101 of the application.
#[test]
fn upgrades_pass_bytes_only_after_a_101() {
    in_namespace(module_path!(), "upgrades_pass_bytes_only_after_a_101", || {
        let app = App::start();
        let _proxy = Proxy::start();
        app.reply(
            "/switch",
            Reply::new("HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n", After::Echo),
        );
        app.reply("/refuses", Reply::new("HTTP/1.1 400 Bad Request\r\nContent-Length: 2\r\n\r\nno", After::Keep));
        app.reply("/ok", Reply::new("HTTP/1.1 200 OK\r\nUpgrade: echo\r\nContent-Length: 2\r\n\r\nok", After::Keep));
        app.reply("/unasked", Reply::new("HTTP/1.1 101 Switching Protocols\r\nUpgrade: echo\r\n\r\n", After::Echo));
        for direction in BOTH {
            let upgrade = |path: &str| {
                format!("GET {path} HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
            };
            let mut client = Client::connect(direction.address());
            client.send(upgrade("/switch")).send("early");
            assert_eq!(client.response().map(|response| response.status), Ok(101), "{direction:?}");
            assert_eq!(client.bytes(5), b"early", "{direction:?}: early bytes are relayed after the 101");
            client.send("late");
            assert_eq!(client.bytes(4), b"late", "{direction:?}");
            drop(client);
            for (path, status) in [("/refuses", 400), ("/ok", 200)] {
                let mut client = Client::connect(direction.address());
                client
                    .send(upgrade(path))
                    .send("GET /private HTTP/1.1\r\nHost: app\r\n\r\nGET /after HTTP/1.1\r\nHost: app\r\n\r\n");
                assert_eq!(client.response().map(|response| response.status), Ok(status), "{direction:?} {path}");
                let second = client.response().map(|response| response.status);
                let expected = if direction == Direction::Inbound { 403 } else { 200 };
                assert_eq!(
                    second,
                    Ok(expected),
                    "{direction:?} {path}: the bytes after a refused upgrade are requests"
                );
                assert_eq!(client.response().map(|response| response.status), Ok(200), "{direction:?} {path}");
            }
            let mut client = Client::connect(direction.address());
            client.send("GET /unasked HTTP/1.1\r\nHost: app\r\n\r\n");
            assert_eq!(client.response().map(|response| response.status), Ok(502), "{direction:?}: an unsolicited 101");
            let mut client = Client::connect(direction.address());
            client.send("GET /ok HTTP/1.0\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n");
            assert_eq!(client.response().map(|response| response.status), Ok(200), "{direction:?}");
        }
        let asked: Vec<bool> = app
            .take()
            .iter()
            .filter(|seen| seen.target == "/ok")
            .map(|seen| seen.header("upgrade").is_some())
            .collect();
        assert_eq!(asked, [true, false, true, false], "HTTP/1.0 has no upgrades");
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// SM-10, SM-22: an unread request body is never parsed as a request, and the response is not lost to a reset.
#[test]
fn unread_request_bodies_are_never_parsed_as_requests() {
    in_namespace(module_path!(), "unread_request_bodies_are_never_parsed_as_requests", || {
        let app = App::start();
        let _proxy = Proxy::start();
        for direction in BOTH {
            let (path, status) = match direction {
                Direction::Inbound => ("/private", 403),
                Direction::Outbound => ("x", 400),
            };
            let mut client = Client::connect(direction.address());
            client.send(format!(
                "POST {path} HTTP/1.1\r\nHost: app\r\nContent-Length: {}\r\n\r\n{SMUGGLED}",
                SMUGGLED.len()
            ));
            assert_eq!(client.response().map(|response| response.status), Ok(status), "{direction:?}");
            client.send("GET /after HTTP/1.1\r\nHost: app\r\n\r\n");
            match client.response() {
                Ok(response) => {
                    assert_eq!((response.status, response.body.as_slice()), (200, &b"GET /after"[..]), "{direction:?}")
                }
                Err(end) => assert_eq!(end, ResponseError::Closed, "{direction:?}"),
            }
            // 800 kB of the body are in flight when the response comes.
            let mut client = Client::connect(direction.address());
            client.send(format!("POST {path} HTTP/1.1\r\nHost: app\r\nContent-Length: 800000\r\n\r\n"));
            client.send(vec![b'x'; 800_000]);
            assert_eq!(
                client.response().map(|response| response.status),
                Ok(status),
                "{direction:?}: the response is not lost"
            );
        }
        let seen: Vec<String> = app.take().iter().map(|seen| seen.summary()).collect();
        assert!(seen.iter().all(|seen| seen == "GET /after"), "{seen:?}");
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// RFC 9112 9.6: after `Connection: close` or HTTP/1.0 the connection is closed, and the response arrives whole even
/// if the client sends more bytes after its last request.
#[test]
fn connection_close_delivers_the_last_response_whole() {
    in_namespace(module_path!(), "connection_close_delivers_the_last_response_whole", || {
        let app = App::start();
        let _proxy = Proxy::start();
        let body = "x".repeat(1_000_000);
        app.reply(
            "/long",
            Reply::new(format!("HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n{body}"), After::Keep),
        );
        app.reply("/short", Reply::new("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", After::Keep));
        app.reply("/open", Reply::new(format!("HTTP/1.1 200 OK\r\n\r\n{body}"), After::Close));
        for direction in BOTH {
            for (path, length) in [("/short", 5), ("/long", body.len()), ("/open", body.len())] {
                for last in ["1.1\r\nConnection: close", "1.0"] {
                    for behind in [&b""[..], b"\r\n", b"GET /next HTTP/1.1\r\nHost: app\r\n\r\n", &[b'x'; 300_000]] {
                        let case = format!("{direction:?}, {path}, {last:?}, {} bytes behind", behind.len());
                        let mut client = Client::connect(direction.address());
                        client.send(format!("GET {path} HTTP/{last}\r\nHost: app\r\n\r\n")).send(behind);
                        let response = client.response().map(|response| (response.status, response.body.len()));
                        assert_eq!(response, Ok((200, length)), "{case}");
                        assert!(client.closes_within(TIMEOUT), "{case}");
                        assert_eq!(client.unparsed(), "", "{case}");
                    }
                }
            }
        }
        assert!(app.take().iter().all(|seen| !seen.summary().contains("/next")));
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// Refused requests are answered, counted in the metrics and written to the access log.
#[test]
fn refused_requests_are_answered_counted_and_logged() {
    in_namespace(module_path!(), "refused_requests_are_answered_counted_and_logged", || {
        let _app = App::start();
        let proxy = Proxy::start();
        let long = "x".repeat(70_000);
        for (direction, name) in [(Direction::Outbound, "outbound"), (Direction::Inbound, "inbound")] {
            for (field, status) in [("X y: 1", 400), (&*format!("X: {long}"), 431)] {
                let mut client = Client::connect(direction.address());
                client.send(format!("GET / HTTP/1.1\r\nHost: app\r\n{field}\r\n\r\n"));
                let response = client.response().expect("a response");
                let fields = (response.status, response.header("weft-reason"), response.header("connection"));
                assert_eq!(fields, (status, Some("bad-request"), Some("close")), "{direction:?}");
            }
            let mut wire = Wire::connect(direction.address_h2());
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("GET\r\n", "/")));
            assert_eq!(wire.end(1), End::Reset(1), "{direction:?}: PROTOCOL_ERROR");
            // With or without a body, which is not waited for; the next request on the connection is served.
            let mut wire = Wire::connect(direction.address_h2());
            for (stream, ends) in [(1, END_STREAM), (3, 0)] {
                let block = [head("POST", "/"), literal("x", &long)].concat();
                let mut parts = block.chunks(16_000);
                wire.send(frame(HEADERS, ends, stream, parts.next().unwrap_or_default()));
                for part in parts {
                    wire.send(frame(CONTINUATION, 0, stream, part));
                }
                wire.send(frame(CONTINUATION, END_HEADERS, stream, &literal("y", "1")));
                if ends == 0 {
                    wire.send(frame(DATA, END_STREAM, stream, b"a body"));
                }
            }
            wire.send(frame(HEADERS, END_HEADERS | END_STREAM, 5, &head("GET", "/")));
            assert_eq!(wire.end(1), End::Status(431), "{direction:?}");
            assert_eq!(wire.body(3).1, Ok(()), "{direction:?}: the response is complete");
            assert_eq!(wire.body(5).1, Ok(()), "{direction:?}: the next is answered");

            let page = scrape(15020, "/metrics").expect("metrics");
            for (status, expected) in [(400, "2"), (431, "3")] {
                let labels = [
                    format!("direction=\"{name}\""),
                    format!("http_response_status_code=\"{status}\""),
                    "reason=\"bad-request\"".into(),
                ];
                let mut lines = page.lines().filter(|line| line.starts_with("weft_requests_total{"));
                let line = lines.find(|line| labels.iter().all(|label| line.contains(label)));
                let count = line.and_then(|line| line.rsplit(' ').next()).unwrap_or("none");
                assert_eq!(count, expected, "{direction:?} {status}");
            }
            let log = proxy.log();
            let logged = log.lines().filter(|line| line.contains("bad-request") && line.contains(name)).count();
            assert_eq!(logged, 5, "{log}");
        }
    });
}

/// SM-12: the application answers `Expect: 100-continue`, and a final response to it keeps later responses in order.
#[test]
fn expect_100_continue_keeps_responses_in_order() {
    in_namespace(module_path!(), "expect_100_continue_keeps_responses_in_order", || {
        let app = App::start();
        let _proxy = Proxy::start();
        app.reply(
            "/refuses",
            Reply {
                early: true,
                ..Reply::new("HTTP/1.1 417 Expectation Failed\r\nContent-Length: 0\r\n\r\n", After::Keep)
            },
        );
        for direction in BOTH {
            for round in 0..100 {
                for path in ["/accepts", "/refuses"] {
                    let mut client = Client::connect(direction.address());
                    client.send(format!(
                        "POST {path} HTTP/1.1\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n"
                    ));
                    client.send("hello");
                    let expected = if path == "/accepts" { 200 } else { 417 };
                    let response = client.response().unwrap_or_else(|error| panic!("{direction:?} {path}: {error:?}"));
                    assert_eq!(response.status, expected, "{direction:?} {path} {round}");
                    if path == "/refuses" && response.header("connection") == Some("close") {
                        // The response came before the body.
                        assert!(client.closes_within(TIMEOUT), "{direction:?} {path} {round}");
                        continue;
                    }
                    client.send("GET /next HTTP/1.1\r\nHost: app\r\n\r\n");
                    let next = client.response().map(|response| response.body);
                    assert_eq!(
                        next,
                        Ok(b"GET /next".to_vec()),
                        "{direction:?} {path} {round}: the response to another request"
                    );
                }
            }
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}

fn run(cases: Vec<Case>) {
    let app = App::start();
    let mut proxy = Proxy::start();
    let mut failures = Vec::new();
    for direction in BOTH {
        for (number, case) in cases.iter().enumerate() {
            if let Err(failure) = try_case(&app, direction, case, number) {
                failures.push(format!("{direction:?} {}: {failure}", case.id));
            }
        }
    }
    assert!(proxy.is_alive());
    assert!(failures.is_empty(), "{} of {} failed:\n{}", failures.len(), 2 * cases.len(), failures.join("\n"));
    eprintln!("{} cases in two directions", cases.len());
}

fn try_case(app: &App, direction: Direction, case: &Case, number: usize) -> Result<(), String> {
    let mut client = Client::connect(direction.address());
    client.send(&case.bytes);
    let expected: &[&str] = match &case.expected {
        Closed => &[],
        Passes(expected) | PassesAndCloses(expected) => expected,
    };
    let mut problem = None;
    for request in expected {
        let method = request.split(' ').next().unwrap_or_default();
        match client.response_to(method) {
            Ok(response) if response.status == 200 => {}
            other => problem = problem.or(Some(format!("{request} was answered by {other:?}"))),
        }
    }
    match (&case.expected, problem.is_none()) {
        (_, false) => {}
        (Closed | PassesAndCloses(_), _) => match client.response() {
            Ok(response) if response.status >= 400 => {
                if !client.closes_within(TIMEOUT) {
                    problem = Some(format!("the connection stays open after {}", response.status));
                }
            }
            Err(ResponseError::Closed) => {}
            other => problem = Some(format!("answered by {other:?}")),
        },
        (Passes(_), _) => {
            client.send("GET /again HTTP/1.1\r\nHost: app\r\n\r\n");
            match client.response() {
                Ok(response) if response.status == 200 && response.body == b"GET /again" => {}
                other => problem = Some(format!("the next request was answered by {other:?}")),
            }
        }
    }
    drop(client);
    // Requests of the case reach the application before this one.
    let canary = format!("/canary-{direction:?}-{number}");
    let status = super::client::get(direction.address(), &canary);
    if status != 200 {
        return Err(format!("a request after it was answered {status}"));
    }
    let seen: Vec<String> =
        app.take_up_to(&canary).iter().map(|seen| seen.summary()).filter(|seen| seen != "GET /again").collect();
    let violations = app.violations();
    if !violations.is_empty() {
        return Err(format!("the application got {violations:?}"));
    }
    if seen != expected {
        return Err(format!("the application saw {seen:?} instead of {expected:?}; {problem:?}"));
    }
    problem.map_or(Ok(()), Err)
}

/// A request gets the same response as the first on a connection and as the second: protocol detection accepts what
/// the parser accepts.
#[test]
fn protocol_detection_accepts_what_the_parser_accepts() {
    in_namespace(module_path!(), "protocol_detection_accepts_what_the_parser_accepts", || {
        let app = App::start();
        let _proxy = Proxy::start();
        let get = |line: &str| format!("{line}\r\nHost: app\r\n\r\n");
        let long = "a".repeat(17 * 1024);
        let fields = "X: y\r\n".repeat(200);
        let cases: Vec<(String, Option<u16>)> = vec![
            (get("GET /x HTTP/1.1"), Some(200)),
            (get("GET /x HTTP/1.0"), Some(200)),
            (get(&format!("GET /{long} HTTP/1.1")), Some(200)),
            (get(&format!("GET http://app/{long} HTTP/1.1")), Some(200)),
            (get(&format!("GET /{} HTTP/1.1", "a".repeat(70 * 1024))), Some(414)),
            (get(&format!("\r\nGET /{} HTTP/1.1", "a".repeat(70 * 1024))), Some(414)),
            (get(&format!("GET /x HTTP/1.1\r\nX: {}", "a".repeat(70 * 1024))), Some(431)),
            (get(&format!("GET /x HTTP/1.1\r\n{fields}X: y")), Some(431)),
            (get("\r\nGET /x HTTP/1.1"), Some(200)),
            (get("\r\n\r\n\nGET /x HTTP/1.1"), Some(200)),
            (get("\nGET /x HTTP/1.1"), Some(200)),
            (get(&format!("{} /x HTTP/1.1", "M".repeat(30))), Some(200)),
            (get(&format!("{} /x HTTP/1.1", "M".repeat(300))), Some(501)),
            (get("M!#$%&'*+-.^_`|~9 /x HTTP/1.1"), Some(200)),
            (get("*GET /x HTTP/1.1"), Some(200)),
            (get("GET x HTTP/1.1"), Some(400)),
            (get("OPTIONS * HTTP/1.1"), Some(200)),
            (get("GET /x HTTP/1.2"), Some(400)),
            (get("GET /x HTTP/1.32"), Some(400)),
            (get("GET /x HTTP/2.0"), Some(400)),
            (get("GET /x HTTP/3.0"), Some(400)),
            (get("GET /x http/1.1"), Some(400)),
            (get("GET /x HTTP/1.1 "), Some(400)),
            (get("GET /x HTTP/1.1\r"), Some(400)),
            (get("GET /x HTTP/1.1\x00"), Some(400)),
            (get("GET /x y HTTP/1.1"), Some(400)),
            (get("GET  /x HTTP/1.1"), Some(400)),
            (get("GET /x HTTP/1.1 HTTP/1.1"), Some(400)),
            (get("GET /\u{1} HTTP/1.1"), Some(400)),
            (get("PRI * HTTP/2.0"), Some(400)),
            ("GET /x HTTP/1.1\r\nno field\r\n\r\n".to_owned(), Some(400)),
            ("GET /x HTTP/1.1\r\n\r\n".to_owned(), Some(400)),
        ];
        // An outbound port declared as HTTP, one with detection, and the inbound port.
        let undeclared = (super::place::SERVICE, 82).into();
        for address in [Direction::Outbound.address(), undeclared, Direction::Inbound.address()] {
            for (bytes, expected) in &cases {
                let desc = &bytes[..bytes.len().min(40)];
                let mut first = Client::connect(address);
                first.send(bytes);
                let first = first.response().map(|response| response.status).ok();
                let mut second = Client::connect(address);
                second.send("GET /before HTTP/1.1\r\nHost: app\r\n\r\n");
                assert_eq!(second.response().map(|response| response.status), Ok(200), "{address} {desc:?}");
                second.send(bytes);
                let second = second.response().map(|response| response.status).ok();
                assert_eq!((first, second), (*expected, *expected), "{address} {desc:?}");
            }
            // A slow request line is still detected as HTTP.
            let mut slow = Client::connect(address);
            slow.send("GET /private HTT");
            std::thread::sleep(std::time::Duration::from_secs(6));
            slow.send("P/1.1\r\nHost: app\r\n\r\n");
            let expected = if address == Direction::Inbound.address() { 403 } else { 200 };
            assert_eq!(slow.response().map(|response| response.status), Ok(expected), "{address}");
        }
        app.take();
        assert_eq!(app.violations(), [""; 0]);
    });
}

/// Unusual requests that RFC 9110 and RFC 9112 define.
#[test]
fn unusual_requests_are_handled_by_rfc_9110_and_9112() {
    in_namespace(module_path!(), "unusual_requests_are_handled_by_rfc_9110_and_9112", || {
        let app = App::start();
        let _proxy = Proxy::start();
        for (target, bytes) in [("/octet", "X"), ("/word", "HELLO"), ("/cut", "HTTX"), ("/nul", "\0")] {
            app.reply(target, Reply::new(bytes, After::Hang));
        }
        for direction in BOTH {
            // RFC 9112 3.2: an HTTP/1.1 request needs Host for any target; 3.2.2: it must equal the target's authority.
            for (request, status) in [
                ("GET http://app/x HTTP/1.1\r\n\r\n", 400),
                ("GET http://app/x HTTP/1.1\r\nHost: app\r\n\r\n", 200),
                ("GET http://app/x HTTP/1.1\r\nHost: other\r\n\r\n", 400),
                ("GET http://app/x HTTP/1.0\r\n\r\n", 200),
                ("GET /x HTTP/1.1\r\nHost: [evil]\r\n\r\n", 400),
                ("GET /x HTTP/1.1\r\nHost: []\r\n\r\n", 400),
                ("GET /x HTTP/1.1\r\nHost: [v1.a]\r\n\r\n", 400),
                ("GET /x HTTP/1.1\r\nHost: [::1%25eth0]\r\n\r\n", 400),
                ("GET /x HTTP/1.1\r\nHost: [1.2.3.4]\r\n\r\n", 400),
                ("GET /x HTTP/1.1\r\nHost: [::ffff:1.2.3.4]:80\r\n\r\n", 200),
            ] {
                let mut client = Client::connect(direction.address());
                client.send(request);
                assert_eq!(client.response().map(|response| response.status), Ok(status), "{direction:?} {request:?}");
            }
            let hosts: Vec<_> = app.take().into_iter().map(|seen| seen.header("host")).collect();
            assert_eq!(hosts, ["app", "app", "[::ffff:1.2.3.4]:80"].map(|host| Some(host.to_owned())), "{direction:?}");
            // RFC 9110 10.1.1 and 15.2: no interim response to HTTP/1.0.
            let mut client = Client::connect(direction.address());
            client.send("POST /x HTTP/1.0\r\nHost: app\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\nhello");
            assert_eq!(client.bytes(12), b"HTTP/1.1 200", "{direction:?}");
            assert_eq!(app.take().pop().and_then(|seen| seen.header("expect")), None, "{direction:?}");
            // RFC 9110 7.6.2: Max-Forwards.
            for (method, forwards, status, passed) in [
                ("OPTIONS", "0", 204, None),
                ("OPTIONS", "1", 200, Some("0")),
                ("OPTIONS", "070", 200, Some("69")),
                ("OPTIONS", "18446744073709551616", 200, Some("18446744073709551615")),
                ("OPTIONS", "x", 400, None),
                ("OPTIONS", "-1", 400, None),
                ("OPTIONS", "5\r\nMax-Forwards: 6", 400, None),
                ("TRACE", "0", 405, None),
                ("TRACE", "2", 200, Some("1")),
                ("GET", "0", 200, Some("0")),
            ] {
                let mut client = Client::connect(direction.address());
                client.send(format!("{method} /x HTTP/1.1\r\nHost: app\r\nMax-Forwards: {forwards}\r\n\r\n"));
                assert_eq!(
                    client.response().map(|response| response.status),
                    Ok(status),
                    "{direction:?} {method} {forwards}"
                );
                let seen = app.take().pop();
                assert_eq!(seen.is_some(), status == 200, "{direction:?} {method} {forwards}");
                let value = seen.and_then(|seen| seen.header("max-forwards"));
                assert_eq!(value.as_deref(), passed, "{direction:?} {method} {forwards}");
            }
            for target in ["/octet", "/word", "/cut", "/nul"] {
                let mut client = Client::connect(direction.address());
                client.send(format!("GET {target} HTTP/1.1\r\nHost: app\r\n\r\n"));
                let response = client.response().unwrap_or_else(|error| panic!("{direction:?} {target}: {error:?}"));
                let fields = (response.status, response.header("weft-reason"));
                assert_eq!(fields, (502, Some("upstream-protocol")), "{direction:?} {target}");
            }
            app.take();
        }
        assert_eq!(app.violations(), [""; 0]);
    });
}
