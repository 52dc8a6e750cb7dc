//! What a client speaks, from its first bytes. Pure: bytes in, verdict out, the same verdict however they were cut up.

/// The HTTP/2 connection preface (RFC 9113 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A request line longer than this is not waited for, in bytes.
pub(crate) const LINE_BYTES_MAX: usize = 16 * 1024;

/// A longer method is none that anybody uses, in bytes.
const METHOD_BYTES_MAX: usize = 24;

/// What the bytes so far say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Could be several things yet.
    NeedMore,
    /// A request line of HTTP/1.0 or 1.1.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// Anything else; TLS too.
    Opaque,
}

/// Looks at all bytes that have arrived.
pub(crate) fn detect(bytes: &[u8]) -> Verdict {
    if bytes.is_empty() {
        return Verdict::NeedMore;
    }
    let shared = bytes.len().min(PREFACE.len());
    if bytes[..shared] == PREFACE[..shared] {
        return if shared == PREFACE.len() { Verdict::Http2 } else { Verdict::NeedMore };
    }
    let method = bytes.iter().take_while(|byte| is_token(**byte)).count();
    if method > METHOD_BYTES_MAX || (method < bytes.len() && (method == 0 || bytes[method] != b' ')) {
        return Verdict::Opaque;
    }
    // A method and a space begin a line of SMTP or Redis as well: only the line's end tells.
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => {
            let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
            let tail = &line[line.len().saturating_sub(9)..];
            if matches!(tail, b" HTTP/1.1" | b" HTTP/1.0") { Verdict::Http1 } else { Verdict::Opaque }
        }
        None if bytes.len() >= LINE_BYTES_MAX => Verdict::Opaque,
        None => Verdict::NeedMore,
    }
}

/// Characters of a method that somebody uses: those of an RFC 9110 token without the punctuation that begins other
/// protocols' messages (`*` and `$` of Redis, `+OK` of POP3).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_')
}

/// Once it is known what somebody speaks, more bytes change nothing.
#[cfg(any(test, fuzzing))]
pub(crate) fn check_laws(bytes: &[u8]) {
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
        ("an unknown version", b"GET / HTTP/1.32\r\n", Verdict::Opaque),
        ("a NUL", b"\0", Verdict::Opaque),
        ("a response", b"HTTP/1.1 200 OK\r\n", Verdict::Opaque),
    ];

    #[test]
    fn tells_protocols_apart() {
        for (desc, bytes, expected) in CASES {
            assert_eq!(detect(bytes), *expected, "{desc}");
        }
    }

    #[test]
    fn a_verdict_does_not_depend_on_how_bytes_are_cut() {
        for (desc, bytes, expected) in CASES {
            let first =
                (1..=bytes.len()).map(|end| detect(&bytes[..end])).find(|verdict| *verdict != Verdict::NeedMore);
            assert_eq!(first, Some(*expected), "{desc}");
        }
    }

    #[test]
    fn a_line_is_not_waited_for_for_ever() {
        let mut bytes = b"GET /".to_vec();
        bytes.resize(LINE_BYTES_MAX - 1, b'a');
        assert_eq!(detect(&bytes), Verdict::NeedMore);
        bytes.push(b'a');
        assert_eq!(detect(&bytes), Verdict::Opaque);
    }

    fn seeds() -> Vec<Vec<u8>> {
        let texts: Vec<String> =
            serde_json::from_str(include_str!("../tests/corpus/seeds/detect.json")).expect("a list of texts");
        // A character is a byte.
        texts.iter().map(|text| text.chars().map(|byte| byte as u8).collect()).collect()
    }

    #[test]
    fn verdicts_on_what_was_seen_before_last() {
        for bytes in seeds() {
            check_laws(&bytes);
        }
    }

    proptest::proptest! {
        #[test]
        fn verdicts_last(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            check_laws(&bytes);
        }

        #[test]
        fn verdicts_on_what_looks_like_http_last(text in "(GET|PRI|P|HTTP)?[ *]?(/|\\*)?[ ]?(HTTP/(1\\.[01]|2\\.0))?[\r\n ]{0,4}(SM)?[\r\n]{0,4}.{0,4}") {
            check_laws(text.as_bytes());
        }
    }
}
