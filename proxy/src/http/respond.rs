//! The end of a request's way: its [`Reply`] becomes the response for the client.
//!
//! Responses that the proxy generates itself are [`Answer`]s until then. Each carries the reason (`weft-reason`) and
//! the object and rule that decided (`weft-source`), in headers and in the access log.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, Response, StatusCode, Version};
use weft_codec::http1::framing::BadHead;

use super::date;
use super::guard::RequestGuard;
use super::head::GRPC_STATUS;
use super::response_body::{Content, ResponseBody};
use crate::judge::{Refusal, RefusedRequest};
use crate::reason::{REASON, Reason, SOURCE, UNPROCESSED};

/// Longest reading of a path that a 403 response quotes, in bytes.
const READING_BYTES_MAX: usize = 256;

/// What a request leads to: a response of an endpoint, or an answer of the proxy itself.
pub(crate) type Reply = Result<Response<Content>, Box<Answer>>;

/// A response to be generated (Envoy: local reply). Boxed: large.
pub(crate) struct Answer {
    pub(crate) reason: Reason,
    /// None: the reason's default.
    pub(crate) status: Option<StatusCode>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

/// Turns the reply to a request into its response. Every request ends here, so that one place gives the response what
/// `guard` holds, and records its status and reason.
pub(crate) fn finish(reply: Reply, mut guard: Box<RequestGuard>) -> Response<ResponseBody> {
    let response = reply.unwrap_or_else(|answer| answer.into_response(&mut guard));
    response.map(|content| ResponseBody::new(content, guard))
}

/// The headers of the response that a reply becomes.
pub(crate) fn headers_mut(reply: &mut Reply) -> &mut HeaderMap {
    match reply {
        Ok(response) => response.headers_mut(),
        Err(answer) => &mut answer.headers,
    }
}

impl Answer {
    /// An answer with one line of text as its body.
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Box<Self> {
        let mut line: String = detail.into();
        if !line.is_empty() {
            line.push('\n');
        }
        Box::new(Self { reason, status: None, headers: HeaderMap::new(), body: line.into() })
    }

    /// The answer to a request with an invalid head.
    pub(crate) fn bad_request(BadHead(text): BadHead) -> Box<Self> {
        Self::new(Reason::BadRequest, text)
    }

    /// The answer to a CORS preflight, with these headers. Err: its origin is not allowed.
    pub(crate) fn preflight(headers: Result<HeaderMap, HeaderMap>) -> Box<Self> {
        let (reason, headers) = match headers {
            Ok(headers) => (Reason::CorsPreflight, headers),
            Err(headers) => (Reason::CorsRefused, headers),
        };
        let mut answer = Self::new(reason, "");
        answer.headers = headers;
        answer
    }

    /// The answer to an inbound request that is not allowed. `path`: its path.
    pub(crate) fn refused(refused: &RefusedRequest, path: &str) -> Box<Self> {
        let RefusedRequest { refusal, reading } = refused;
        let text = match refusal {
            Refusal::Plaintext => "mutual TLS is required here (mode Strict), and the client proved no identity",
            Refusal::Denied(_) => "a policy denies the request",
            Refusal::NotAllowed(_) => "no policy allows the request",
            Refusal::Unknown => {
                "the policies of this pod are not known: its proxy has not read the configuration of its namespace"
            }
            Refusal::TooManyReadings => "the path has too many possible readings to be checked against policies",
        };
        let mut answer = match reading {
            Some(reading) if reading.len() <= READING_BYTES_MAX && reading != path => {
                Self::new(refusal.reason(), format!("{text}: its path can be read as {reading}"))
            }
            _ => Self::new(refusal.reason(), text),
        };
        if matches!(refusal, Refusal::Unknown) {
            answer.headers.insert(UNPROCESSED, HeaderValue::from_static("true"));
        }
        answer
    }

    /// The answer while the proxy is close to its memory limit.
    pub(crate) fn overload() -> Box<Self> {
        Self::new(Reason::Overload, "the memory of the proxy is exhausted")
    }

    /// The answer to a request with Max-Forwards 0 (RFC 9110 7.6.2). A TRACE is not echoed: its headers may contain
    /// secrets.
    pub(crate) fn max_forwards_reached(method: &Method) -> Box<Self> {
        let mut answer = Self::new(Reason::MaxForwards, "");
        if *method == Method::TRACE {
            answer.status = Some(StatusCode::METHOD_NOT_ALLOWED);
        }
        answer.headers.insert(header::ALLOW, HeaderValue::from_static("OPTIONS"));
        answer
    }

    /// Builds the response. `guard` supplies the rule that decided, and records status and reason.
    fn into_response(self, guard: &mut RequestGuard) -> Response<Content> {
        let Self { reason, status, headers, body } = self;
        let status = status.unwrap_or(reason.status());
        guard.set_answer(reason, status);
        // RFC 9110 6.4.1: these have no content, and HTTP/2 has no framing that would suppress it.
        let is_bodiless =
            guard.log.method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let body = if is_bodiless { Bytes::new() } else { body };
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        let out = response.headers_mut();
        if matches!(reason, Reason::BadRequest | Reason::ConnectRefused) && guard.log.version != Version::HTTP_2 {
            // The end of an ambiguous request is ambiguous too: nothing after it is read as another request.
            out.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        out.insert(REASON, HeaderValue::from_static(reason.as_str()));
        if let Some(rule_name) = guard.rule_name() {
            out.insert(SOURCE, rule_name.header.clone());
        }
        let is_error = !matches!(reason, Reason::DirectResponse | Reason::Redirect);
        if guard.is_grpc() && is_error {
            // gRPC clients read the status from here: a trailers-only response is a head without a body.
            out.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            if !out.contains_key(GRPC_STATUS) {
                out.insert(GRPC_STATUS, HeaderValue::from_static(grpc_status(status)));
            }
            out.insert("grpc-message", HeaderValue::from_static(reason.as_str()));
            guard.record_rpc_status(out);
            return response.map(|()| Content::Full(Bytes::new()));
        }
        *response.status_mut() = status;
        if !body.is_empty() && !response.headers().contains_key(header::CONTENT_TYPE) {
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        }
        response.map(|()| Content::Full(body))
    }
}

/// The headers of the answer to an invalid request head.
pub(crate) fn bad_message_headers() -> HeaderMap {
    let reason = (REASON, HeaderValue::from_static(Reason::BadRequest.as_str()));
    [reason, (header::DATE, date::now())].into_iter().collect()
}

/// The HTTP status equivalent to a gRPC status, used by retries, hedges and outlier detection. Source:
/// google/rpc/code.proto. None: not a gRPC status.
pub(crate) fn http_status(grpc_status: &[u8]) -> Option<StatusCode> {
    let code = match grpc_status {
        b"0" => 200,
        b"1" => 499,
        b"2" | b"13" | b"15" => 500,
        b"3" | b"9" | b"11" => 400,
        b"4" => 504,
        b"5" => 404,
        b"6" | b"10" => 409,
        b"7" => 403,
        b"8" => 429,
        b"12" => 501,
        b"14" => 503,
        b"16" => 401,
        _ => return None,
    };
    StatusCode::from_u16(code).ok()
}

/// The gRPC status for an HTTP status. Source: gRPC's "HTTP to gRPC Status Code Mapping"; 500 is mapped as in the
/// Gateway API: a backend that does not exist is UNAVAILABLE.
fn grpc_status(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "13",
        401 => "16",
        403 => "7",
        404 => "12",
        429 | 500 | 502..=504 => "14",
        _ => "2",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http_status_maps_each_grpc_status() {
        let expected = [200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401];
        for (code, status) in expected.into_iter().enumerate() {
            let found = http_status(code.to_string().as_bytes());
            assert_eq!(found.map(|status| status.as_u16()), Some(status), "gRPC status {code}");
        }
        for unknown in ["", "17", "014", "x", "-1"] {
            assert_eq!(http_status(unknown.as_bytes()), None, "{unknown:?}");
        }
    }
}
