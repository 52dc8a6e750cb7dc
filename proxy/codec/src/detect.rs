//! Protocol detection from a client's first bytes. Pure: bytes in, verdict out. The verdict does not depend on how
//! the bytes are split into reads.
//!
//! Detection matches the request parser (`http1/parse`), which accepts empty lines before a request, methods of any
//! token characters, and lines of any length up to its bound. Whatever the parser accepts, or answers with a status
//! other than 400, is HTTP here. What it would answer with 400 is HTTP only if the first line names an HTTP version.

use crate::http2::frame::PREFACE;

/// Bytes of a first line after which its beginning decides, without its end.
const LINE_BYTES_MAX: usize = 16 * 1024;

/// How a version begins, in any letter case.
const VERSION: &[u8] = b"HTTP/";

/// The longest version and the CR that ends its line: `HTTP/1.1\r`.
const VERSION_BYTES_MAX: usize = 9;

/// The protocol of the bytes so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not decided yet.
    NeedMore,
    /// A request line of HTTP/1.0 or 1.1, or of a version that the parser refuses.
    Http1,
    /// The HTTP/2 preface.
    Http2,
    /// Anything else, TLS included.
    Opaque,
}

/// Detects the protocol. `bytes` are all bytes received so far.
pub fn detect(bytes: &[u8]) -> Verdict {
    let shared = bytes.len().min(PREFACE.len());
    if bytes[..shared] == PREFACE[..shared] {
        return if shared == PREFACE.len() { Verdict::Http2 } else { Verdict::NeedMore };
    }
    let empty = empty_lines(bytes);
    if empty >= LINE_BYTES_MAX {
        return Verdict::Http1;
    }
    let line = &bytes[empty..];
    if matches!(line, b"" | b"\r") {
        return Verdict::NeedMore;
    }
    let method = method(line);
    if method < line.len() && (method == 0 || line[method] != b' ') {
        return Verdict::Opaque;
    }
    // A method and a space also begin a line of SMTP or Redis: only the end of the line decides.
    match line.iter().take(LINE_BYTES_MAX).position(|byte| *byte == b'\n') {
        Some(end) if names_version(&line[..end]) => Verdict::Http1,
        Some(_) => Verdict::Opaque,
        None if line.len() < LINE_BYTES_MAX => Verdict::NeedMore,
        None if looks_like_request(&line[..LINE_BYTES_MAX]) => Verdict::Http1,
        None => Verdict::Opaque,
    }
}

/// The verdict on undecided bytes when no more arrive in time. The beginning of a request line is HTTP: the request
/// parser waits for the rest within its own timeout.
pub fn detect_partial(bytes: &[u8]) -> Verdict {
    if looks_like_request(&bytes[empty_lines(bytes)..]) { Verdict::Http1 } else { Verdict::Opaque }
}

/// Bytes of empty lines at the beginning (RFC 9112 2.2).
fn empty_lines(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some(next) = rest.strip_prefix(b"\r\n").or_else(|| rest.strip_prefix(b"\n")) {
        rest = next;
    }
    bytes.len() - rest.len()
}

/// Length of the method at the beginning of a line.
fn method(line: &[u8]) -> usize {
    line.iter().take_while(|byte| is_token(**byte)).count()
}

/// Whether a whole line names an HTTP version where a request has it: as its third word or, if there are spaces in
/// the target, as its last word.
fn names_version(line: &[u8]) -> bool {
    let begins = |word: &[u8]| word.get(..VERSION.len()).is_some_and(|start| start.eq_ignore_ascii_case(VERSION));
    let is_number = |byte: &u8| byte.is_ascii_digit() || *byte == b'.';
    let third = line.split(|byte| *byte == b' ').nth(2).unwrap_or_default();
    let last = line.trim_ascii_end().rsplit(|byte| *byte == b' ').next().unwrap_or_default();
    begins(third) || (begins(last) && last.len() > VERSION.len() && last[VERSION.len()..].iter().all(is_number))
}

/// Whether the beginning of a line looks like a request and hardly like anything else: a method, the beginning of a
/// target and, at most, the beginning of a version.
fn looks_like_request(line: &[u8]) -> bool {
    let Some(rest) = line.get(method(line)..).and_then(|rest| rest.strip_prefix(b" ")) else { return false };
    let mut words = rest.splitn(2, |byte| *byte == b' ');
    let (target, version) = (words.next().unwrap_or_default(), words.next());
    let scheme = || {
        let letters = target.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
        letters > 0 && target[letters..].starts_with(b"://")
    };
    method(line) > 0
        && (target.starts_with(b"/") || target == b"*" || scheme())
        && !target.iter().any(|byte| byte.is_ascii_control())
        && version.is_none_or(|version| {
            let shared = version.len().min(VERSION.len());
            version.len() <= VERSION_BYTES_MAX && version[..shared] == VERSION[..shared]
        })
}

/// Characters of a method (RFC 9110 5.6.2).
fn is_token(byte: u8) -> bool {
    crate::token::is_token_byte(byte)
}

/// A verdict is final: more bytes do not change it.
#[cfg(any(test, fuzzing))]
pub fn check_properties(bytes: &[u8]) {
    let mut known = None;
    for end in 0..=bytes.len() {
        let verdict = detect(&bytes[..end]);
        assert!(
            known.is_none_or(|known| known == verdict),
            "{known:?} became {verdict:?} with byte {end} of {bytes:?}"
        );
        known = known.or((verdict != Verdict::NeedMore).then_some(verdict));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CASES: &[(&str, &[u8], Verdict)] = &[
        ("a GET", b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", Verdict::Http1),
        ("a bare line end", b"GET / HTTP/1.1\n", Verdict::Http1),
        ("version 1.0", b"POST /x HTTP/1.0\r\n", Verdict::Http1),
        ("an extension method", b"M-SEARCH * HTTP/1.1\r\n", Verdict::Http1),
        ("a method that begins as the preface does", b"PROPFIND / HTTP/1.1\r\n", Verdict::Http1),
        ("the preface", PREFACE, Verdict::Http2),
        ("the preface and a frame", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04", Verdict::Http2),
        ("TLS", b"\x16\x03\x01\x02\x00\x01", Verdict::Opaque),
        ("SMTP", b"EHLO mail.example\r\n", Verdict::Opaque),
        ("Redis inline", b"PING\r\n", Verdict::Opaque),
        ("Redis", b"*1\r\n$4\r\nPING\r\n", Verdict::Opaque),
        ("HTTP/0.9", b"GET /\r\n", Verdict::Opaque),
        ("an unknown version", b"GET / HTTP/1.32\r\n", Verdict::Http1),
        ("a version to come", b"GET / HTTP/3.0\r\n", Verdict::Http1),
        ("a version in lower case", b"GET / http/1.1\r\n", Verdict::Http1),
        ("a blank behind the version", b"GET / HTTP/1.1 \r\n", Verdict::Http1),
        ("a NUL behind the version", b"GET / HTTP/1.1\0\r\n", Verdict::Http1),
        ("a blank in the target", b"GET /a b HTTP/1.1\r\n", Verdict::Http1),
        ("a method of many letters", b"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA / HTTP/1.1\r\n", Verdict::Http1),
        ("a method of all characters", b"a!#$%&'*+-.^_`|~9 / HTTP/1.1\r\n", Verdict::Http1),
        ("an empty line before", b"\r\nGET / HTTP/1.1\r\n", Verdict::Http1),
        ("empty lines before", b"\n\r\n\nGET / HTTP/1.1\r\n", Verdict::Http1),
        ("an empty line before the preface", b"\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Verdict::Http1),
        ("a preface that breaks off", b"PRI * HTTP/2.0\r\n\r\nXX", Verdict::Http1),
        ("an empty line before SMTP", b"\r\nEHLO mail.example\r\n", Verdict::Opaque),
        ("a line of a log", b"10.0.0.1 - - [1/Jan] \"GET / HTTP/1.1\" 200 5\r\n", Verdict::Opaque),
        ("RTSP", b"OPTIONS rtsp://a/b RTSP/1.0\r\n", Verdict::Opaque),
        ("SIP", b"INVITE sip:a@b SIP/2.0\r\n", Verdict::Opaque),
        ("memcached", b"get HTTP/1.1x y\r\n", Verdict::Opaque),
        ("STOMP", b"CONNECT\naccept-version:1.2\n\n\0", Verdict::Opaque),
        ("a carriage return alone", b"\rGET / HTTP/1.1\r\n", Verdict::Opaque),
        ("a NUL", b"\0", Verdict::Opaque),
        ("a response", b"HTTP/1.1 200 OK\r\n", Verdict::Opaque),
    ];

    #[test]
    fn protocols_are_detected() {
        for (desc, bytes, expected) in CASES {
            assert_eq!(detect(bytes), *expected, "{desc}");
        }
    }

    #[test]
    fn verdict_does_not_depend_on_read_boundaries() {
        for (desc, bytes, expected) in CASES {
            let first =
                (1..=bytes.len()).map(|end| detect(&bytes[..end])).find(|verdict| *verdict != Verdict::NeedMore);
            assert_eq!(first, Some(*expected), "{desc}");
        }
    }

    #[test]
    fn beginning_of_a_long_line_decides() {
        for (begin, fill, expected) in [
            ("GET /", 'a', Verdict::Http1),
            ("GET http://app/", 'a', Verdict::Http1),
            ("\r\n\r\nGET /", 'a', Verdict::Http1),
            ("SET /key ", 'a', Verdict::Opaque),
            ("MAIL FROM:", 'a', Verdict::Opaque),
            ("", 'a', Verdict::Opaque),
            ("", '\n', Verdict::Http1),
        ] {
            let empty = empty_lines(begin.as_bytes());
            let mut bytes = begin.as_bytes().to_vec();
            bytes.resize(empty + LINE_BYTES_MAX - 1, fill as u8);
            assert_eq!(detect(&bytes), Verdict::NeedMore, "{begin:?}");
            bytes.push(fill as u8);
            assert_eq!(detect(&bytes), expected, "{begin:?}");
            bytes.extend_from_slice(b" HTTP/1.1\r\n");
            assert_eq!(detect(&bytes), expected, "{begin:?}: bytes that arrive at once do not change it");
        }
    }

    #[test]
    fn partial_first_lines_are_detected() {
        for (text, expected) in [
            ("GET /", Verdict::Http1),
            ("\r\nGET /x HTT", Verdict::Http1),
            ("OPTIONS * HTTP/1.1\r", Verdict::Http1),
            ("GET http://app/x", Verdict::Http1),
            ("GET", Verdict::Opaque),
            ("GET ", Verdict::Opaque),
            ("SET /key value", Verdict::Opaque),
            ("EHLO mail", Verdict::Opaque),
            ("\r\n", Verdict::Opaque),
            ("", Verdict::Opaque),
        ] {
            assert_eq!(detect_partial(text.as_bytes()), expected, "{text:?}");
        }
    }

    fn seeds() -> Vec<Vec<u8>> {
        let texts: Vec<String> = serde_json::from_str(include_str!("../seeds/detect.json")).expect("a list of texts");
        // Each character is one byte.
        texts.iter().map(|text| text.chars().map(|byte| byte as u8).collect()).collect()
    }

    #[test]
    fn verdicts_on_seeds_are_final() {
        for bytes in seeds() {
            check_properties(&bytes);
        }
    }

    proptest::proptest! {
        #[test]
        fn verdicts_on_any_bytes_are_final(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            check_properties(&bytes);
        }

        /// Detection is no stricter than the request parser.
        #[test]
        fn whatever_the_parser_accepts_is_http(
            text in "(\r\n|\n){0,2}(GET|[A-Z]{1,40}|[!-~]{1,4})[ \t]{1,2}(/|\\*|http://a/|[!-~]{0,8})[ ]{0,2}(HTTP/(1\\.[0-2]|2\\.0|1)|http/1.1)?[ \r]?\n(host: a\r\n){0,2}\r\n",
        ) {
            let (bytes, verdict) = (text.as_bytes(), detect(text.as_bytes()));
            match crate::http1::parse::request(bytes) {
                Ok(Some(_)) => assert_eq!(verdict, Verdict::Http1, "{text:?}"),
                Ok(None) => {}
                Err(bad) if bad.status == http::StatusCode::BAD_REQUEST => {}
                Err(bad) => assert_eq!(verdict, Verdict::Http1, "{text:?}: {bad}"),
            }
        }

        #[test]
        fn verdicts_on_http_like_text_are_final(text in "(GET|PRI|P|HTTP)?[ *]?(/|\\*)?[ ]?(HTTP/(1\\.[01]|2\\.0))?[\r\n ]{0,4}(SM)?[\r\n]{0,4}.{0,4}") {
            check_properties(text.as_bytes());
        }
    }
}
