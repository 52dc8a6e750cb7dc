//! Message heads from the fields of header blocks (RFC 9113 8), and back.

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{self, Authority, PathAndQuery, Scheme};
use http::{Method, Request, StatusCode, Uri, Version};

use super::error::Reason;
use super::frame::{CONTINUATION, END_HEADERS, END_STREAM, FrameHeader, HEADER_BYTES, HEADERS, PAYLOAD_MAX};
use crate::hpack::Field;
use crate::hpack::decode::Decoder;
use crate::hpack::encode::Encoder;
use crate::limits::HEADERS_MAX;

/// The decoded fields of one header block.
#[derive(Default)]
pub(super) struct Fields {
    method: Option<Method>,
    scheme: Option<Scheme>,
    authority: Option<Authority>,
    path: Option<PathAndQuery>,
    status: Option<StatusCode>,
    headers: HeaderMap,
    size: usize,
    /// The fields exceed the size limit; those beyond it were dropped.
    pub(super) is_oversized: bool,
    /// A field is forbidden, or has an invalid name or value.
    is_malformed: bool,
}

/// A malformed head or trailers (RFC 9113 8.1.1): the stream is reset.
#[derive(Debug)]
pub(super) struct Malformed;

// === impl Fields ===

impl Fields {
    /// Decodes a header block.
    pub(super) fn decode(decoder: &mut Decoder, block: Bytes, size_max: u32) -> Result<Self, Reason> {
        let mut fields = Self::default();
        decoder
            .decode(block, |field, size| {
                fields.size += size;
                if fields.size > size_max as usize {
                    fields.is_oversized = true;
                } else if fields.add(field).is_none() {
                    fields.is_malformed = true;
                }
            })
            .map_err(|error| {
                tracing::debug!(%error, "invalid header block");
                Reason::COMPRESSION_ERROR
            })?;
        Ok(fields)
    }

    /// None: the field is forbidden.
    fn add(&mut self, field: Field) -> Option<()> {
        match field {
            Field::Header(name, value) => {
                if is_connection_header(&name) || (name == header::TE && value != "trailers") {
                    return None;
                }
                self.headers.append(name, value);
                Some(())
            }
            // Pseudo-headers come first (RFC 9113 8.3).
            _ if !self.headers.is_empty() => None,
            Field::Method(method) => set_once(&mut self.method, method),
            Field::Scheme(scheme) => set_once(&mut self.scheme, scheme),
            Field::Authority(authority) => set_once(&mut self.authority, authority),
            Field::Path(path) => set_once(&mut self.path, path),
            Field::Status(status) => set_once(&mut self.status, status),
            // Extended CONNECT (RFC 8441) is not offered.
            Field::Protocol | Field::Malformed => None,
        }
    }

    /// Whether a response or trailers exceed the limits. The number of headers of a request is left to the caller, who
    /// first joins split cookies.
    pub(super) fn is_too_large(&self) -> bool {
        self.is_oversized || self.headers.len() > HEADERS_MAX
    }

    fn has_pseudo(&self) -> bool {
        self.method.is_some()
            || self.scheme.is_some()
            || self.authority.is_some()
            || self.path.is_some()
            || self.status.is_some()
    }

    pub(super) fn into_request(self) -> Result<Request<()>, Malformed> {
        let method = self.method.ok_or(Malformed)?;
        // RFC 9113 8.5: CONNECT has an authority, and neither scheme nor path.
        let is_connect = method == Method::CONNECT;
        let parts = self.scheme.is_some() && self.path.is_some();
        let none = self.scheme.is_none() && self.path.is_none();
        let is_whole = if is_connect { none && self.authority.is_some() } else { parts };
        if self.is_malformed || self.status.is_some() || !is_whole {
            return Err(Malformed);
        }
        let mut target = uri::Parts::default();
        // `Uri` has no scheme without an authority.
        target.scheme = self.scheme.filter(|_| self.authority.is_some());
        target.authority = self.authority;
        target.path_and_query = self.path;
        let mut request = Request::new(());
        *request.method_mut() = method;
        *request.uri_mut() = Uri::from_parts(target).map_err(|_| Malformed)?;
        *request.version_mut() = Version::HTTP_2;
        *request.headers_mut() = self.headers;
        Ok(request)
    }

    pub(super) fn into_response(self) -> Result<(StatusCode, HeaderMap), Malformed> {
        let status = self.status.ok_or(Malformed)?;
        let is_request =
            self.method.is_some() || self.scheme.is_some() || self.authority.is_some() || self.path.is_some();
        // RFC 9113 8.6: there is no 101.
        if self.is_malformed || is_request || status == StatusCode::SWITCHING_PROTOCOLS {
            return Err(Malformed);
        }
        Ok((status, self.headers))
    }

    pub(super) fn into_trailers(self) -> Result<HeaderMap, Malformed> {
        if self.is_malformed || self.has_pseudo() { Err(Malformed) } else { Ok(self.headers) }
    }
}

fn set_once<T>(slot: &mut Option<T>, value: T) -> Option<()> {
    slot.replace(value).is_none().then_some(())
}

/// The value of `content-length`.
pub(super) fn content_length(headers: &HeaderMap) -> Result<Option<u64>, Malformed> {
    let Some(length) = headers.get(header::CONTENT_LENGTH) else { return Ok(None) };
    let digits = length.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    digits.and_then(|text| text.parse().ok()).map(Some).ok_or(Malformed)
}

/// Whether a header is specific to an HTTP/1.1 connection, and forbidden in HTTP/2 (RFC 9113 8.2.2).
fn is_connection_header(name: &HeaderName) -> bool {
    *name == header::CONNECTION
        || *name == header::TRANSFER_ENCODING
        || *name == header::UPGRADE
        || name == "keep-alive"
        || name == "proxy-connection"
}

/// Encodes the head of a request. `length`: the `content-length` to send if the headers have none.
pub(super) fn put_request(
    encoder: &mut Encoder,
    stream: u32,
    head: &Parts,
    length: Option<u64>,
    ends: bool,
    out: &mut BytesMut,
) {
    put_block(stream, ends, out, |out| {
        encoder.begin(out);
        encoder.method(&head.method, out);
        if head.method != Method::CONNECT {
            // The target of an HTTP/1.1 request has neither scheme nor authority: its Host header goes as it is.
            encoder.scheme(head.uri.scheme_str().unwrap_or("http"), out);
            let path = head.uri.path_and_query().map_or("", PathAndQuery::as_str);
            let path = match path {
                "" if head.method == Method::OPTIONS => "*",
                "" => "/",
                path => path,
            };
            encoder.path(path, out);
        }
        if let Some(authority) = head.uri.authority() {
            encoder.authority(authority.as_str(), out);
        }
        put_headers(encoder, &head.headers, out);
        if let Some(length) = length.filter(|_| !head.headers.contains_key(header::CONTENT_LENGTH)) {
            encoder.header(&header::CONTENT_LENGTH, &HeaderValue::from(length), out);
        }
    });
}

/// Encodes the head of a response.
pub(super) fn put_response(
    encoder: &mut Encoder,
    stream: u32,
    status: StatusCode,
    headers: &HeaderMap,
    ends: bool,
    out: &mut BytesMut,
) {
    put_block(stream, ends, out, |out| {
        encoder.begin(out);
        encoder.status(status, out);
        put_headers(encoder, headers, out);
    });
}

/// Encodes trailers, which end the stream.
pub(super) fn put_trailers(encoder: &mut Encoder, stream: u32, trailers: &HeaderMap, out: &mut BytesMut) {
    put_block(stream, true, out, |out| {
        encoder.begin(out);
        put_headers(encoder, trailers, out);
    });
}

fn put_headers(encoder: &mut Encoder, headers: &HeaderMap, out: &mut BytesMut) {
    for (name, value) in headers {
        if !is_connection_header(name) {
            encoder.header(name, value, out);
        }
    }
}

fn put_block(stream: u32, ends: bool, out: &mut BytesMut, put: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    put(out);
    let flags = if ends { END_STREAM } else { 0 };
    let length = out.len() - start - HEADER_BYTES;
    if length <= PAYLOAD_MAX {
        out[start..start + HEADER_BYTES].copy_from_slice(&FrameHeader::encode(
            HEADERS,
            flags | END_HEADERS,
            stream,
            length,
        ));
        return;
    }
    let block = out.split_off(start + HEADER_BYTES);
    out.truncate(start);
    let count = block.len().div_ceil(PAYLOAD_MAX);
    for (number, part) in block.chunks(PAYLOAD_MAX).enumerate() {
        let (kind, first) = if number == 0 { (HEADERS, flags) } else { (CONTINUATION, 0) };
        let last = if number + 1 == count { END_HEADERS } else { 0 };
        out.extend_from_slice(&FrameHeader::encode(kind, first | last, stream, part.len()));
        out.extend_from_slice(part);
    }
}
