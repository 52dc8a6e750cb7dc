//! Heads out of bytes. What could be read in two ways is refused here, before anybody has looked at it.

use std::mem::MaybeUninit;
use std::ops::Range;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use httparse::{Header, Status};

use super::HEAD_BYTES_MAX;
use super::decode::Decoder;
use crate::http::head::{self, HEADERS_MAX};

/// Bytes of a request's target. Source: what `http::Uri` can hold.
const TARGET_BYTES_MAX: usize = 65_534;

/// A longer method is none that anybody has, in bytes.
const METHOD_BYTES_MAX: usize = 256;

/// What is wrong with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub(crate) struct BadMessage {
    pub(crate) text: &'static str,
    /// What a client gets that sent it.
    pub(crate) status: StatusCode,
}

/// The head of a request.
#[derive(Debug)]
pub(crate) struct RequestHead {
    pub(crate) request: Request<()>,
    pub(crate) framing: Framing,
    /// Whether the client may send another request behind this one.
    pub(crate) keep_alive: bool,
}

/// The head of a response.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) response: Response<()>,
    pub(crate) framing: Framing,
    /// Whether the server takes another request behind this one.
    pub(crate) keep_alive: bool,
}

/// How a body says where it ends (RFC 9112 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    /// It ends with its connection.
    Close,
}

/// A head and how many bytes it has, or nothing if they are not all here.
pub(crate) type Parsed<T> = Result<Option<(T, usize)>, BadMessage>;

/// The head of a request at the beginning of `bytes`.
pub(crate) fn request(bytes: &[u8]) -> Parsed<RequestHead> {
    let mut space = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut head = httparse::Request::new(&mut []);
    let length = match head.parse_with_uninit_headers(bytes, &mut space) {
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
        return Err(BadMessage { text: "the method is too long", status: StatusCode::NOT_IMPLEMENTED });
    }
    let method = Method::from_bytes(method.as_bytes()).map_err(|_| BadMessage::new("the method is none"))?;
    let version = version(head.version);
    let block = Bytes::copy_from_slice(&bytes[..length]);
    let uri = Uri::from_maybe_shared(block.slice(place(bytes, target.as_bytes())))
        .map_err(|_| BadMessage::new("the target is none"))?;
    let mut headers = headers(head.headers, bytes, &block)?;
    if version == Version::HTTP_10 {
        // RFC 9110 10.1.1: HTTP/1.0 has no expectations, and gets no answer before the answer.
        headers.remove(header::EXPECT);
    }
    let mut keep_alive = keeps_alive(&headers, version)?;
    if headers.contains_key(header::TRANSFER_ENCODING) && headers.contains_key(header::CONTENT_LENGTH) {
        // The encoding wins, and what follows is not taken for a request (RFC 9112 6.3).
        let lengths = headers.get_all(header::CONTENT_LENGTH).iter();
        framing(&lengths.map(|length| (header::CONTENT_LENGTH, length.clone())).collect(), version)?;
        headers.remove(header::CONTENT_LENGTH);
        keep_alive = false;
    }
    let said = framing(&headers, version)?.unwrap_or(Framing::Length(0));
    // What follows is the tunnel's.
    let framing = if method == Method::CONNECT { Framing::Length(0) } else { said };
    let mut request = Request::new(());
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.version_mut() = version;
    *request.headers_mut() = headers;
    Ok(Some((RequestHead { request, framing, keep_alive }, length)))
}

/// The head of a response at the beginning of `bytes`, to a request with this method.
pub(crate) fn response(bytes: &[u8], method: &Method) -> Parsed<ResponseHead> {
    let mut space = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut head = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let length = match config.parse_response_with_uninit_headers(&mut head, bytes, &mut space) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return partial(bytes),
        Err(error) => return Err(BadMessage::of(error)),
    };
    if length > HEAD_BYTES_MAX {
        return Err(BadMessage::TOO_LARGE);
    }
    let status = (head.code.and_then(|code| StatusCode::from_u16(code).ok()))
        .ok_or_else(|| BadMessage::new("the status is none"))?;
    let version = version(head.version);
    let headers = headers(head.headers, bytes, &Bytes::copy_from_slice(&bytes[..length]))?;
    let said = framing(&headers, version)?;
    let bodiless = *method == Method::HEAD
        || status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framing = if bodiless { Framing::Length(0) } else { said.unwrap_or(Framing::Close) };
    let keep_alive = keeps_alive(&headers, version)? && framing != Framing::Close;
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.version_mut() = version;
    *response.headers_mut() = headers;
    Ok(Some((ResponseHead { response, framing, keep_alive }, length)))
}

/// Trailers, from the first to the empty line that ends them.
pub(super) fn trailers(bytes: &[u8]) -> Result<HeaderMap, BadMessage> {
    let mut space = [httparse::EMPTY_HEADER; HEADERS_MAX];
    match httparse::parse_headers(bytes, &mut space) {
        Ok(Status::Complete((_, parsed))) => headers(parsed, bytes, &Bytes::copy_from_slice(bytes)),
        Ok(Status::Partial) => Err(BadMessage::new("the trailers do not end")),
        Err(error) => Err(BadMessage::of(error)),
    }
}

fn partial<T>(bytes: &[u8]) -> Parsed<T> {
    if bytes.len() > HEAD_BYTES_MAX { Err(BadMessage::TOO_LARGE) } else { Ok(None) }
}

/// What is said of the beginning of a request's head.
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

/// Where a part of `bytes` lies in it.
fn place(bytes: &[u8], part: &[u8]) -> Range<usize> {
    let start = part.as_ptr().addr() - bytes.as_ptr().addr();
    start..start + part.len()
}

/// Headers whose values are parts of one block, a copy of `bytes`.
fn headers(parsed: &[Header<'_>], bytes: &[u8], block: &Bytes) -> Result<HeaderMap, BadMessage> {
    // And room for those that it gets on its way.
    let mut headers = HeaderMap::with_capacity(parsed.len() + 2);
    for header in parsed {
        let name = HeaderName::from_bytes(header.name.as_bytes())
            .map_err(|_| BadMessage::new("the name of a header is none"))?;
        let value = if header.value.is_empty() {
            HeaderValue::from_static("")
        } else {
            HeaderValue::from_maybe_shared(block.slice(place(bytes, header.value)))
                .map_err(|_| BadMessage::new("the value of a header is none"))?
        };
        headers.append(name, value);
    }
    Ok(headers)
}

/// The framing that headers say, if any.
fn framing(headers: &HeaderMap, version: Version) -> Result<Option<Framing>, BadMessage> {
    let framing = head::framing(headers).map_err(|head::BadHead(text)| BadMessage::new(text))?;
    if framing == Some(Framing::Chunked) && version == Version::HTTP_10 {
        return Err(BadMessage::new("HTTP/1.0 has no transfer encodings"));
    }
    Ok(framing)
}

/// Whether another message may follow on the connection (RFC 9112 9.3).
fn keeps_alive(headers: &HeaderMap, version: Version) -> Result<bool, BadMessage> {
    if !headers.contains_key(header::CONNECTION) {
        return Ok(version == Version::HTTP_11);
    }
    head::keeps_alive(version, headers).map_err(|head::BadHead(text)| BadMessage::new(text))
}

// === impl Framing ===

impl Framing {
    /// What finds the end of such a body.
    pub(crate) fn decoder(self) -> Decoder {
        match self {
            Self::Length(length) => Decoder::Length(length),
            Self::Chunked => Decoder::chunked(),
            Self::Close => Decoder::Close,
        }
    }
}

// === impl BadMessage ===

impl BadMessage {
    pub(crate) const TOO_LARGE: Self =
        Self { text: "the head is larger than 64 KiB", status: StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE };

    const TARGET_TOO_LONG: Self = Self { text: "the target is too long", status: StatusCode::URI_TOO_LONG };

    pub(super) const fn new(text: &'static str) -> Self {
        Self { text, status: StatusCode::BAD_REQUEST }
    }

    fn of(error: httparse::Error) -> Self {
        Self::new(match error {
            httparse::Error::HeaderName => "the name of a header is none",
            httparse::Error::HeaderValue => "the value of a header is none",
            httparse::Error::NewLine => "a line does not end as lines do",
            httparse::Error::Status => "the status is none",
            httparse::Error::Token => "there is a character that has no place there",
            httparse::Error::TooManyHeaders => {
                return Self { text: "there are more than 100 headers", ..Self::TOO_LARGE };
            }
            httparse::Error::Version => "the version is none",
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
    fn a_request_says_how_it_goes_on() {
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
                assert!(matches!(request(&bytes[..end]), Ok(None)), "{:?} is no whole head", &bytes[..end]);
            }
        }
    }

    #[test]
    fn what_could_mean_two_things_is_no_request() {
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
        assert_eq!(request(old).expect_err("refused").text, "HTTP/1.0 has no transfer encodings");
        let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(TARGET_BYTES_MAX));
        assert_eq!(request(long.as_bytes()).expect_err("refused").status, StatusCode::URI_TOO_LONG);
        let longer = format!("\r\nGET /{}", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(request(longer.as_bytes()).expect_err("refused").status, StatusCode::URI_TOO_LONG);
        let method = format!("{} / HTTP/1.1\r\nHost: app\r\n\r\n", "M".repeat(METHOD_BYTES_MAX + 1));
        assert_eq!(request(method.as_bytes()).expect_err("refused").status, StatusCode::NOT_IMPLEMENTED);
        assert!(request("GET / HTTP/1.1\r\n".repeat(5000).as_bytes()).is_err(), "a head that never ends");
    }

    #[test]
    fn a_response_ends_where_its_request_says() {
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
