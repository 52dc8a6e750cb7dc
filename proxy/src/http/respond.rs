//! Answers of the proxy's own. Each says why it was made (`weft-reason`) and whose word it is (`weft-source`), in headers
//! and in the access log.

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Response, StatusCode, Version};

use super::body::ResponseBody;
use super::date;
use super::forward::RequestGuard;
use super::head::{REASON, SOURCE};

/// What came of a call of gRPC.
pub(crate) const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// Why the proxy answered, in one closed list. The words are those of headers, logs and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// The request could mean two things.
    BadRequest,
    /// The client took too long to send its body.
    SlowRequest,
    /// No rule takes the CONNECT.
    ConnectRefused,
    /// No rule of the port's routes takes the request.
    NoRoute,
    /// The backend of this share does not exist.
    BackendNotFound,
    /// The backend, or its subset, has no ready endpoint.
    NoEndpoints,
    /// The backend has ready endpoints, none of them on this pod's node, and traffic is to stay there.
    NoLocalEndpoints,
    /// No endpoint could be connected to.
    ConnectFailed,
    /// The endpoint closed the connection before it answered.
    UpstreamReset,
    /// A client broke its connection of bytes off, as it may.
    DownstreamReset,
    /// Nothing moved on a connection of bytes for too long.
    IdleTimeout,
    /// The proxy was asked to stop, and a connection of bytes did not end in time.
    Draining,
    /// The endpoint's answer was not HTTP.
    UpstreamProtocol,
    /// The time for the whole request was over.
    RequestTimeout,
    /// The time for an attempt was over, and there was none left.
    AttemptTimeout,
    /// A limit of the MeshCluster was reached.
    Overflow,
    /// The proxy is about to use up its memory.
    Overload,
    /// A MeshPolicy refuses it.
    PolicyDenied,
    /// The destination is not of this pod, or is the proxy itself.
    WrongDestination,
    /// A rule answers directly.
    DirectResponse,
    /// A rule redirects.
    Redirect,
    /// The request says that it is not to be passed on any further.
    MaxForwards,
    /// A rule makes requests fail on purpose.
    Fault,
    /// A rule answers a browser that asks on behalf of another origin's page.
    CorsPreflight,
    /// It does not let that origin call.
    CorsRefused,
    /// A rule's pace is exceeded.
    RateLimited,
    /// A TLS client does not say which server it wants.
    NoServerName,
    /// A client did not get through the handshake of TLS.
    TlsHandshake,
}

impl Reason {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad-request",
            Self::SlowRequest => "slow-request",
            Self::ConnectRefused => "connect-refused",
            Self::NoRoute => "no-route",
            Self::BackendNotFound => "backend-not-found",
            Self::NoEndpoints => "no-endpoints",
            Self::NoLocalEndpoints => "no-local-endpoints",
            Self::ConnectFailed => "connect-failed",
            Self::UpstreamReset => "upstream-reset",
            Self::DownstreamReset => "downstream-reset",
            Self::IdleTimeout => "idle-timeout",
            Self::Draining => "draining",
            Self::UpstreamProtocol => "upstream-protocol",
            Self::RequestTimeout => "request-timeout",
            Self::AttemptTimeout => "attempt-timeout",
            Self::Overflow => "overflow",
            Self::Overload => "overload",
            Self::PolicyDenied => "policy-denied",
            Self::WrongDestination => "wrong-destination",
            Self::DirectResponse => "direct-response",
            Self::Redirect => "redirect",
            Self::MaxForwards => "max-forwards",
            Self::Fault => "fault",
            Self::CorsPreflight => "cors-preflight",
            Self::CorsRefused => "cors-refused",
            Self::RateLimited => "rate-limited",
            Self::NoServerName => "no-server-name",
            Self::TlsHandshake => "tls-handshake",
        }
    }

    /// Whether something is wrong; what a rule answers is meant so, and a client may go as it likes.
    pub(crate) fn is_failure(self) -> bool {
        !matches!(self, Self::DirectResponse | Self::Redirect | Self::MaxForwards | Self::DownstreamReset)
    }

    /// The status of the answer, where no rule gives one.
    fn status(self) -> StatusCode {
        match self {
            Self::BadRequest | Self::TlsHandshake => StatusCode::BAD_REQUEST,
            Self::SlowRequest => StatusCode::REQUEST_TIMEOUT,
            Self::ConnectRefused => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::BackendNotFound => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NoEndpoints
            | Self::NoLocalEndpoints
            | Self::ConnectFailed
            | Self::Overflow
            | Self::Overload
            | Self::Fault
            | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamReset | Self::UpstreamProtocol | Self::DownstreamReset => StatusCode::BAD_GATEWAY,
            Self::RequestTimeout | Self::AttemptTimeout | Self::IdleTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::PolicyDenied | Self::CorsRefused => StatusCode::FORBIDDEN,
            Self::WrongDestination | Self::NoServerName => StatusCode::MISDIRECTED_REQUEST,
            Self::DirectResponse | Self::Redirect => StatusCode::OK,
            Self::CorsPreflight | Self::MaxForwards => StatusCode::NO_CONTENT,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

/// An answer to be made.
pub(crate) struct Answer {
    pub(crate) reason: Reason,
    /// Absent: the reason's.
    pub(crate) status: Option<StatusCode>,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// An answer that says what the matter is, in a line for people.
    pub(crate) fn new(reason: Reason, detail: impl Into<String>) -> Self {
        let mut line: String = detail.into();
        if !line.is_empty() {
            line.push('\n');
        }
        Self { reason, status: None, headers: HeaderMap::new(), body: line.into() }
    }

    /// An answer to a request that is not to be passed on any further (RFC 9110 7.6.2). A TRACE is not given back: it may have
    /// secrets in its headers.
    pub(crate) fn to_last_forward(method: &Method) -> Self {
        let mut answer = Self::new(Reason::MaxForwards, "");
        if *method == Method::TRACE {
            answer.status = Some(StatusCode::METHOD_NOT_ALLOWED);
        }
        answer.headers.insert(header::ALLOW, HeaderValue::from_static("OPTIONS"));
        answer
    }

    /// The response; `guard` says whose word it is and notes what came of it.
    pub(crate) fn into_response(self, mut guard: Box<RequestGuard>) -> Response<ResponseBody> {
        let Self { reason, status, headers, body } = self;
        let status = status.unwrap_or(reason.status());
        guard.answered(reason, status);
        // RFC 9110 6.4.1: behind these there is no content, and HTTP/2 has no framing that would hide it.
        let is_bodiless =
            guard.log.method == Method::HEAD || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let body = if is_bodiless { Bytes::new() } else { body };
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        let out = response.headers_mut();
        if matches!(reason, Reason::BadRequest | Reason::ConnectRefused) && guard.log.version != Version::HTTP_2 {
            // Where it ends is as doubtful as what it means: what follows is not taken for another request.
            out.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        out.insert(REASON, HeaderValue::from_static(reason.as_str()));
        if let Some(origin) = guard.origin() {
            out.insert(SOURCE, origin.header.clone());
        }
        let own_failure = !matches!(reason, Reason::DirectResponse | Reason::Redirect);
        if guard.is_grpc() && own_failure {
            // A gRPC client reads the status from here; a trailers-only response is a head and no body.
            out.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            out.insert(GRPC_STATUS, HeaderValue::from_static(grpc_status(status)));
            out.insert("grpc-message", HeaderValue::from_static(reason.as_str()));
            return response.map(|()| ResponseBody::full(Bytes::new(), guard));
        }
        *response.status_mut() = status;
        if !body.is_empty() && !response.headers().contains_key(header::CONTENT_TYPE) {
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        }
        response.map(|()| ResponseBody::full(body, guard))
    }
}

/// Headers of an answer to what is no request.
pub(crate) fn to_bad_message() -> HeaderMap {
    let reason = (REASON, HeaderValue::from_static(Reason::BadRequest.as_str()));
    [reason, (header::DATE, date::now())].into_iter().collect()
}

/// The HTTP status that stands for a gRPC one, for all that judges answers: retries, hedges and outlier detection. Source:
/// google/rpc/code.proto. None: it is not a status of gRPC.
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

/// The gRPC status for an HTTP one. Source: "HTTP to gRPC Status Code Mapping" of the gRPC project; 500 is the Gateway
/// API's: a backend that does not exist is UNAVAILABLE.
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
    fn each_grpc_status_has_an_http_status_that_stands_for_it() {
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
