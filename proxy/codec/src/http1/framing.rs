//! The framing that the headers of a message declare, and whether its connection persists (RFC 9112 6.3 and 9.3).
//! Knows no parser: HTTP/1.1 heads are checked while they are parsed, HTTP/2 heads afterwards.

use http::{HeaderMap, Version, header};

use crate::limits::HEADERS_MAX;

/// Maximum number of options in a message's `Connection` headers, the same as of headers: each costs a header lookup.
const CONNECTION_OPTIONS_MAX: usize = HEADERS_MAX;

/// How a body is delimited (RFC 9112 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// By its length in bytes.
    Length(u64),
    /// By its last chunk.
    Chunked,
    /// By the end of the connection.
    Close,
}

/// A message head is invalid or ambiguous. The text becomes the body of the 400 or 502.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHead(pub &'static str);

/// The framing that a message's headers declare, if any. It may be declared only once.
pub fn framing(headers: &HeaderMap) -> Result<Option<Framing>, BadHead> {
    // One pass over a message's few headers is cheaper than a lookup of each name.
    if !headers.keys().any(|name| *name == header::TRANSFER_ENCODING || *name == header::CONTENT_LENGTH) {
        return Ok(None);
    }
    let mut encodings = headers.get_all(header::TRANSFER_ENCODING).iter();
    if let Some(encoding) = encodings.next() {
        if !encoding.as_bytes().eq_ignore_ascii_case(b"chunked") || encodings.next().is_some() {
            return Err(BadHead("unsupported Transfer-Encoding: it must be \"chunked\", once"));
        }
        if headers.contains_key(header::CONTENT_LENGTH) {
            return Err(BadHead("both Content-Length and Transfer-Encoding are present"));
        }
        return Ok(Some(Framing::Chunked));
    }
    let mut lengths = headers.get_all(header::CONTENT_LENGTH).iter();
    let length = lengths.next().filter(|length| lengths.all(|other| other == length)).and_then(|length| {
        let digits = length.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
        digits.parse().ok()
    });
    length
        .map(|length| Some(Framing::Length(length)))
        .ok_or(BadHead("invalid Content-Length: it must be a single number"))
}

/// Whether a message with these headers lets its connection persist (RFC 9112 9.3).
pub(super) fn keeps_alive(version: Version, headers: &HeaderMap) -> Result<bool, BadHead> {
    let (mut count, mut close, mut keep_alive) = (0, false, false);
    for value in headers.get_all(header::CONNECTION) {
        for option in value.as_bytes().split(|byte| *byte == b',') {
            // Empty options count too: they cost the same.
            count += 1;
            if count > CONNECTION_OPTIONS_MAX {
                return Err(BadHead("more than 100 options in the Connection header"));
            }
            let option = option.trim_ascii();
            close |= option.eq_ignore_ascii_case(b"close");
            keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
    Ok(!close && (version == Version::HTTP_11 || keep_alive))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    #[test]
    fn framing_refuses_conflicting_headers() {
        let (chunked, length) = (("transfer-encoding", "chunked"), ("content-length", "3"));
        for (desc, headers, expected) in [
            ("nothing", vec![], Some(None)),
            ("chunked", vec![("transfer-encoding", "Chunked")], Some(Some(Framing::Chunked))),
            ("chunked twice", vec![chunked, chunked], None),
            ("a list", vec![("transfer-encoding", "chunked, chunked")], None),
            ("another encoding", vec![("transfer-encoding", "gzip")], None),
            ("both framings", vec![chunked, length], None),
            ("a length", vec![length], Some(Some(Framing::Length(3)))),
            ("two equal lengths", vec![length, length], Some(Some(Framing::Length(3)))),
            ("two lengths", vec![length, ("content-length", "4")], None),
            ("a signed length", vec![("content-length", "+3")], None),
            ("a length above u64", vec![("content-length", "18446744073709551616")], None),
        ] {
            let headers = headers
                .into_iter()
                .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
            assert_eq!(framing(&headers.collect()).ok(), expected, "{desc}");
        }
    }

    #[test]
    fn keeps_alive_follows_version_and_connection_header() {
        for (version, value, expected) in [
            (Version::HTTP_11, &b""[..], Some(true)),
            (Version::HTTP_11, b"keep-alive", Some(true)),
            (Version::HTTP_11, b"Close", Some(false)),
            (Version::HTTP_11, b"\xff, close", Some(false)),
            (Version::HTTP_11, b"\xffclose", Some(true)),
            (Version::HTTP_10, b"a", Some(false)),
            (Version::HTTP_10, b"\xe9, Keep-Alive", Some(true)),
            (Version::HTTP_10, b"keep-alive, close", Some(false)),
            (Version::HTTP_11, &[b','; 99], Some(true)),
            (Version::HTTP_11, &[b','; 100], None),
        ] {
            let headers =
                [(header::CONNECTION, HeaderValue::from_bytes(value).expect("a value"))].into_iter().collect();
            assert_eq!(keeps_alive(version, &headers).ok(), expected, "{version:?} {value:?}");
        }
    }
}
