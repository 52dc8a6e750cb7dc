//! Parses message heads and trailers. Ambiguous ones are rejected here, before anything depends on them.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use httparse::{Header, Status};

use super::framing::{self, Framing};
use crate::limits::{HEAD_BYTES_MAX, HEADERS_MAX};

/// Longest request target, in bytes. Source: the limit of `http::Uri`.
const TARGET_BYTES_MAX: usize = 65_534;

/// Longest method, in bytes. No known method comes near it.
const METHOD_BYTES_MAX: usize = 256;

/// Why a message is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct BadMessage {
    /// What is wrong. It becomes the body of the response.
    pub text: &'static str,
    /// The status for the client that sent it.
    pub status: StatusCode,
}

/// The head of a request.
#[derive(Debug)]
pub struct RequestHead {
    /// Method, target, version and headers.
    pub request: Request<()>,
    /// How its body is delimited.
    pub framing: Framing,
    /// Whether the client may send another request on the connection.
    pub keep_alive: bool,
}

/// The head of a response.
#[derive(Debug)]
pub struct ResponseHead {
    /// Status, version and headers.
    pub response: Response<()>,
    /// How its body is delimited.
    pub framing: Framing,
    /// Whether the server accepts another request on the connection.
    pub keep_alive: bool,
}

/// A head and its length in bytes. None: it is incomplete.
pub type Parsed<T> = Result<Option<(T, usize)>, BadMessage>;

/// Parses the head of a request at the start of `bytes`.
pub fn request(bytes: &[u8]) -> Parsed<RequestHead> {
    let mut parsed = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut []);
    let length = match head.parse_with_uninit_headers(bytes, &mut parsed) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return partial_request(bytes),
        Err(error) => return Err(BadMessage::of(error)),
    };
    let (Some(method), Some(target)) = (head.method, head.path) else { return partial(bytes) };
    if target.len() > TARGET_BYTES_MAX {
        return Err(BadMessage::TARGET_TOO_LONG);
    }
    if length > HEAD_BYTES_MAX {
        return Err(BadMessage::TOO_LARGE);
    }
    if method.len() > METHOD_BYTES_MAX {
        return Err(BadMessage { text: "method longer than 256 bytes", status: StatusCode::NOT_IMPLEMENTED });
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| BadMessage::new("invalid method"))?;
    let version = version(head.version);
    let block = Bytes::copy_from_slice(&bytes[..length]);
    let uri = Uri::from_maybe_shared(block.slice(range_of(bytes, target.as_bytes())))
        .map_err(|_| BadMessage::new("invalid request target"))?;
    let mut headers = headers(head.headers, bytes, &block)?;
    if version == Version::HTTP_10 {
        // RFC 9110 10.1.1: `Expect` in HTTP/1.0 is ignored.
        headers.remove(header::EXPECT);
    }
    let mut keep_alive = keeps_alive(&headers, version)?;
    if headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH) {
        // `Transfer-Encoding` takes precedence, and the connection is closed afterwards (RFC 9112 6.3).
        let lengths = headers.get_all(header::CONTENT_LENGTH).iter();
        framing(&lengths.map(|length| (header::CONTENT_LENGTH, length.clone())).collect(), version)?;
        headers.remove(header::CONTENT_LENGTH);
        keep_alive = false;
    }
    let framing = framing(&headers, version)?.unwrap_or(Framing::Length(0));
    // The bytes after a CONNECT belong to the tunnel.
    let framing = if method == Method::CONNECT { Framing::Length(0) } else { framing };
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = version;
    *request.headers_mut() = headers;
    Ok(Some((RequestHead { request, framing, keep_alive }, length)))
}

/// Parses the head of a response to a request with this method at the start of `bytes`.
pub fn response(bytes: &[u8], method: &Method) -> Parsed<ResponseHead> {
    let mut parsed = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut head, bytes, &mut parsed) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return partial(bytes),
        Err(error) => return Err(BadMessage::of(error)),
    };
    if length > HEAD_BYTES_MAX {
        return Err(BadMessage::TOO_LARGE);
    }
    let status = (head.code.and_then(|code| StatusCode::from_u16(code).ok()))
        .ok_or_else(|| BadMessage::new("invalid status code"))?;
    let version = version(head.version);
    let headers = headers(head.headers, bytes, &Bytes::copy_from_slice(&bytes[..length]))?;
    let framing = framing(&headers, version)?;
    let bodiless = *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framing = if bodiless { Framing::Length(0) } else { framing.unwrap_or(Framing::Close) };
    let keep_alive = keeps_alive(&headers, version)? && framing != Framing::Close;
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = version;
    *response.headers_mut() = headers;
    Ok(Some((ResponseHead { response, framing, keep_alive }, length)))
}

/// Parses trailers, up to and including the empty line.
pub(super) fn trailers(bytes: &[u8]) -> Result<HeaderMap, BadMessage> {
    let mut parsed = [httparse::EMPTY_HEADER; HEADERS_MAX];
    match httparse::parse_headers(bytes, &mut parsed) {
        Ok(Status::Complete((_, parsed))) => headers(parsed, bytes, &Bytes::copy_from_slice(bytes)),
        Ok(Status::Partial) => Err(BadMessage::new("incomplete trailers")),
        Err(error) => Err(BadMessage::of(error)),
    }
}

fn partial<T>(bytes: &[u8]) -> Parsed<T> {
    if bytes.len() > HEAD_BYTES_MAX { Err(BadMessage::TOO_LARGE) } else { Ok(None) }
}

/// An incomplete request head: an error if it is too large already.
fn partial_request(bytes: &[u8]) -> Parsed<RequestHead> {
    let empty = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    if bytes.len() > HEAD_BYTES_MAX && empty < bytes.len() && !bytes[empty..].contains(&b'\n') {
        return Err(BadMessage::TARGET_TOO_LONG);
    }
    partial(bytes)
}

fn version(minor: Option<u8>) -> Version {
    if minor == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 }
}

/// The range of `part` within `bytes`.
fn range_of(bytes: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr() - bytes.as_ptr().addr();
    start..start + part.len()
}

/// Headers whose values are slices of `block`, a copy of `bytes`.
fn headers(parsed: &[Header<'_>], bytes: &[u8], block: &Bytes) -> Result<HeaderMap, BadMessage> {
    // Two more for headers that a proxy adds.
    let mut headers = HeaderMap::with_capacity(parsed.len() + 2);
    for header in parsed {
        let name =
            HeaderName::from_bytes(header.name.as_bytes()).map_err(|_| BadMessage::new("invalid header name"))?;
        let value = if header.value.is_empty() {
            HeaderValue::from_static("")
        } else {
            HeaderValue::from_maybe_shared(block.slice(range_of(bytes, header.value)))
                .map_err(|_| BadMessage::new("invalid header value"))?
        };
        headers.append(name, value);
    }
    Ok(headers)
}

/// The framing that the headers define, if any.
fn framing(headers: &HeaderMap, version: Version) -> Result<Option<Framing>, BadMessage> {
    let framing = framing::framing(headers).map_err(|framing::BadHead(text)| BadMessage::new(text))?;
    if framing == Some(Framing::Chunked) && version == Version::HTTP_10 {
        return Err(BadMessage::new("Transfer-Encoding in an HTTP/1.0 message"));
    }
    Ok(framing)
}

/// Whether another message may follow on the connection (RFC 9112 9.3).
fn keeps_alive(headers: &HeaderMap, version: Version) -> Result<bool, BadMessage> {
    if !headers.contains_key(header::CONNECTION) {
        return Ok(version == Version::HTTP_11);
    }
    framing::keeps_alive(version, headers).map_err(|framing::BadHead(text)| BadMessage::new(text))
}

// === impl BadMessage ===

impl BadMessage {
    /// The head is larger than [`HEAD_BYTES_MAX`].
    pub const TOO_LARGE: Self =
        Self { text: "headers larger than 64 KiB", status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE };

    const TARGET_TOO_LONG: Self = Self { text: "request target too long", status: StatusCode::URI_TOO_LONG };

    pub(super) const fn new(text: &'static str) -> Self {
        Self { text, status: StatusCode::BAD_REQUEST }
    }

    fn of(error: httparse::Error) -> Self {
        Self::new(match error {
            httparse::Error::HeaderName => "invalid header name",
            httparse::Error::HeaderValue => "invalid header value",
            httparse::Error::NewLine => "invalid line ending",
            httparse::Error::Status => "invalid status code",
            httparse::Error::Token => "invalid character in the start line",
            httparse::Error::TooManyHeaders => {
                return Self { text: "more than 100 headers", ..Self::TOO_LARGE };
            }
            httparse::Error::Version => "unsupported HTTP version",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(rest: &str) -> Vec<u8> {
        format!("GET /a?b HTTP/1.1\r\nHost: app\r\n{rest}\r\n").into_bytes()
    }

    #[test]
    fn requests_have_framing_and_keep_alive() {
        for (rest, framing, keep_alive) in [
            ("", Framing::Length(0), true),
            ("Connection: close\r\n", Framing::Length(0), false),
            ("Connection: keep-alive, Close\r\n", Framing::Length(0), false),
            ("Connection: \u{e9}, close\r\n", Framing::Length(0), false),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", Framing::Length(5), true),
            ("Transfer-Encoding: CHUNKED\r\n", Framing::Chunked, true),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", Framing::Chunked, false),
        ] {
            let bytes = get(rest);
            let (head, length) = request(&bytes).expect(rest).expect(rest);
            assert_eq!((head.framing, head.keep_alive, length), (framing, keep_alive, bytes.len()), "{rest:?}");
            assert_eq!(head.request.uri(), "/a?b");
            assert_eq!(head.request.headers()["host"], "app");
            for end in 0..bytes.len() {
                assert!(matches!(request(&bytes[..end]), Ok(None)), "{:?} is incomplete", &bytes[..end]);
            }
        }
    }

    #[test]
    fn ambiguous_requests_are_errors() {
        for (rest, status) in [
            ("Transfer-Encoding: gzip\r\n", 400),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
            ("Transfer-Encoding: chunked\r\nContent-Length: x\r\n", 400),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", 400),
            ("X : y\r\n", 400),
            ("X: a\r\n b\r\n", 400),
            (&format!("X: {}\r\n", "y".repeat(HEAD_BYTES_MAX)), 431),
            (&"X: y\r\n".repeat(HEADERS_MAX), 431),
            (&format!("Connection: {}\r\n", "a,".repeat(HEADERS_MAX)), 400),
        ] {
            let refused = request(&get(rest)).expect_err(rest);
            assert_eq!(refused.status.as_u16(), status, "{rest:.60?}: {refused}");
        }
        let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(request(old).expect_err("refused").text, "Transfer-Encoding in an HTTP/1.0 message");
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(TARGET_BYTES_MAX));
        assert_eq!(request(long.as_bytes()).expect_err("refused").status, StatusCode::URI_TOO_LONG);
        let longer = format!("\r\nGET /{}", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(request(longer.as_bytes()).expect_err("refused").status, StatusCode::URI_TOO_LONG);
        let method = format!("{} / HTTP/1.1\r\nHost: app\r\n\r\n", "M".repeat(METHOD_BYTES_MAX + 1));
        assert_eq!(request(method.as_bytes()).expect_err("refused").status, StatusCode::NOT_IMPLEMENTED);
        assert!(request("GET / HTTP/1.1\r\n".repeat(5000).as_bytes()).is_err(), "a head that never ends");
    }

    #[test]
    fn responses_are_framed_by_request_and_status() {
        let length = "Content-Length: 5\r\n";
        for (method, line, rest, framing, keep_alive) in [
            (Method::GET, "1.1 200 OK", length, Framing::Length(5), true),
            (Method::GET, "1.1 200", length, Framing::Length(5), true),
            (Method::HEAD, "1.1 200 OK", length, Framing::Length(0), true),
            (Method::GET, "1.1 204 No Content", length, Framing::Length(0), true),
            (Method::GET, "1.1 304 Not Modified", length, Framing::Length(0), true),
            (Method::GET, "1.1 100 Continue", "", Framing::Length(0), true),
            (Method::GET, "1.1 200 OK", "", Framing::Close, false),
            (Method::GET, "1.1 200 OK", "Transfer-Encoding: chunked\r\n", Framing::Chunked, true),
            (Method::GET, "1.0 200 OK", length, Framing::Length(5), false),
            (Method::GET, "1.0 200 OK", "Connection: Keep-Alive\r\nContent-Length: 5\r\n", Framing::Length(5), true),
        ] {
            let text = format!("HTTP/{line}\r\n{rest}\r\n");
            let (head, used) = response(text.as_bytes(), &method).expect(&text).expect(&text);
            assert_eq!((head.framing, head.keep_alive, used), (framing, keep_alive, text.len()), "{method} {text:?}");
        }
        for text in ["HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.1 099 X\r\n\r\n", "hello\r\n"] {
            assert!(response(text.as_bytes(), &Method::GET).is_err(), "{text:?}");
        }
    }
}
