//! Why the proxy responded or closed by itself, and the headers by which mesh proxies tell each other.

use http::StatusCode;
use http::header::HeaderName;

/// On a response that a proxy generated: the reason.
pub(crate) const REASON: HeaderName = HeaderName::from_static("weft-reason");
/// On a response that a proxy generated: the object and the rule that decided, `MeshRoute/namespace/name/rule`.
pub(crate) const SOURCE: HeaderName = HeaderName::from_static("weft-source");
/// On a response that the backend's sidecar generated: the backend never received the request, so a retry is safe for
/// any method.
pub(crate) const UNPROCESSED: HeaderName = HeaderName::from_static("weft-unprocessed");

/// Why the proxy generated a response, or why a TCP connection failed: a closed list, used in headers, logs and
/// metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// The request is invalid or ambiguous.
    BadRequest,
    /// The client sent its body below the minimum rate.
    SlowRequest,
    /// No rule matches the CONNECT.
    ConnectRefused,
    /// No rule of the port's routes matches the request.
    NoRoute,
    /// The selected backend does not exist.
    BackendNotFound,
    /// The proxy has no configuration of the selected backend: its namespace's document did not arrive or was refused,
    /// or does not contain it.
    ConfigUnavailable,
    /// The backend, or its subset, has no ready endpoint.
    NoEndpoints,
    /// The backend has ready endpoints, but none on this pod's node, and `internalTrafficPolicy` is `Local`.
    NoLocalEndpoints,
    /// No connection to an endpoint could be established.
    ConnectFailed,
    /// The endpoint closed or reset the connection before it responded.
    UpstreamReset,
    /// The client reset a TCP connection. Not a failure.
    DownstreamReset,
    /// A TCP connection was idle for too long.
    IdleTimeout,
    /// The proxy was shutting down and a TCP connection did not end in time.
    Draining,
    /// The endpoint's response is invalid HTTP.
    UpstreamProtocol,
    /// The endpoint's response exceeds a limit.
    ResponseTooLarge,
    /// The request timeout expired.
    RequestTimeout,
    /// The attempt timeout expired and no retry was left.
    AttemptTimeout,
    /// A limit of the MeshCluster is reached.
    Overflow,
    /// The proxy is close to its memory limit.
    Overload,
    /// A MeshPolicy denies the request or connection.
    PolicyDenied,
    /// The destination is not this pod, or is the proxy itself.
    WrongDestination,
    /// A rule responds directly.
    DirectResponse,
    /// A rule redirects.
    Redirect,
    /// Max-Forwards is 0.
    MaxForwards,
    /// A rule injects a fault.
    Fault,
    /// A rule answers a CORS preflight.
    CorsPreflight,
    /// A rule's CORS settings do not allow the origin.
    CorsRefused,
    /// A rule's rate limit is exceeded.
    RateLimited,
    /// A TLS client sends no server name (SNI).
    NoServerName,
    /// A TLS handshake failed.
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
            Self::ConfigUnavailable => "config-unavailable",
            Self::NoEndpoints => "no-endpoints",
            Self::NoLocalEndpoints => "no-local-endpoints",
            Self::ConnectFailed => "connect-failed",
            Self::UpstreamReset => "upstream-reset",
            Self::DownstreamReset => "downstream-reset",
            Self::IdleTimeout => "idle-timeout",
            Self::Draining => "draining",
            Self::UpstreamProtocol => "upstream-protocol",
            Self::ResponseTooLarge => "response-too-large",
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

    /// Whether the access log counts this as a failure.
    pub(crate) fn is_failure(self) -> bool {
        !matches!(self, Self::DirectResponse | Self::Redirect | Self::MaxForwards | Self::DownstreamReset)
    }

    /// The status of the response, unless a rule sets one.
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::BadRequest | Self::TlsHandshake => StatusCode::BAD_REQUEST,
            Self::SlowRequest => StatusCode::REQUEST_TIMEOUT,
            Self::ConnectRefused => StatusCode::METHOD_NOT_ALLOWED,
            Self::NoRoute => StatusCode::NOT_FOUND,
            Self::BackendNotFound => StatusCode::INTERNAL_SERVER_ERROR,
            Self::ConfigUnavailable
            | Self::NoEndpoints
            | Self::NoLocalEndpoints
            | Self::ConnectFailed
            | Self::Overflow
            | Self::Overload
            | Self::Fault
            | Self::Draining => StatusCode::SERVICE_UNAVAILABLE,
            Self::UpstreamReset | Self::UpstreamProtocol | Self::ResponseTooLarge | Self::DownstreamReset => {
                StatusCode::BAD_GATEWAY
            }
            Self::RequestTimeout | Self::AttemptTimeout | Self::IdleTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::PolicyDenied | Self::CorsRefused => StatusCode::FORBIDDEN,
            Self::WrongDestination | Self::NoServerName => StatusCode::MISDIRECTED_REQUEST,
            Self::DirectResponse | Self::Redirect => StatusCode::OK,
            Self::CorsPreflight | Self::MaxForwards => StatusCode::NO_CONTENT,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// docs/reasons.md has a row for each reason, with its status.
    #[test]
    fn reasons_are_documented() {
        let (code, page) = (include_str!("reason.rs"), include_str!("../../docs/reasons.md"));
        let of_code = code.split("fn as_str").nth(1).and_then(|rest| rest.split("fn ").next()).expect("a function");
        let names: Vec<&str> = of_code.split('"').skip(1).step_by(2).collect();
        let rows: Vec<Vec<&str>> = (page.lines().filter(|line| line.starts_with("| `")))
            .map(|line| line.trim_matches(['|', ' ']).split(" | ").collect())
            .collect();
        let documented: Vec<&str> = rows.iter().map(|row| row[0].trim_matches('`')).collect();
        assert_eq!(documented, names);
        for (row, reason) in rows.iter().zip(ALL) {
            assert_eq!(row[0].trim_matches('`'), reason.as_str());
            if let Ok(status) = row[1].parse::<u16>() {
                assert_eq!(status, reason.status().as_u16(), "{}", row[0]);
            }
        }
        assert_eq!(ALL.len(), rows.len());
    }

    const ALL: [Reason; 30] = [
        Reason::BadRequest,
        Reason::SlowRequest,
        Reason::ConnectRefused,
        Reason::NoRoute,
        Reason::BackendNotFound,
        Reason::ConfigUnavailable,
        Reason::NoEndpoints,
        Reason::NoLocalEndpoints,
        Reason::ConnectFailed,
        Reason::UpstreamReset,
        Reason::DownstreamReset,
        Reason::IdleTimeout,
        Reason::Draining,
        Reason::UpstreamProtocol,
        Reason::ResponseTooLarge,
        Reason::RequestTimeout,
        Reason::AttemptTimeout,
        Reason::Overflow,
        Reason::Overload,
        Reason::PolicyDenied,
        Reason::WrongDestination,
        Reason::DirectResponse,
        Reason::Redirect,
        Reason::MaxForwards,
        Reason::Fault,
        Reason::CorsPreflight,
        Reason::CorsRefused,
        Reason::RateLimited,
        Reason::NoServerName,
        Reason::TlsHandshake,
    ];
}
