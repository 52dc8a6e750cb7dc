//! Label sets of metrics. Names and values are those of the OpenTelemetry semantic conventions (HTTP: stable since
//! 1.23, RPC: since 1.45) where these have one, in Prometheus' spelling.
//!
//! Values come from configuration and closed lists, never from what a client sends, so that clients cannot create
//! series.

use std::fmt;

use http::{Method, Version};
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use crate::direction::Direction;
use crate::reason::Reason;
use crate::security::Security;

/// The value for anything that is not in a closed list.
const OTHER: &str = "_OTHER";

/// The names of gRPC statuses, in the order of their numbers. Source: google/rpc/code.proto.
const RPC_STATUSES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Statuses that are failures of the server, by name. Source: the conventions for spans of gRPC servers.
const RPC_FAILURES: [&str; 6] =
    ["UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"];

/// The status of a gRPC call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct RpcStatus(&'static str);

/// Why a request failed (`error.type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum ErrorType {
    /// It did not fail.
    None,
    Status(u16),
    Reason(Reason),
}

/// Labels of the histogram of requests to this pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ServerLabels {
    pub(super) service: String,
    pub(super) http_request_method: &'static str,
    pub(super) http_response_status_code: u16,
    pub(super) error_type: ErrorType,
    pub(super) network_protocol_version: &'static str,
    pub(super) url_scheme: &'static str,
}

/// Labels of the histogram of requests from this pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ClientLabels {
    #[prometheus(flatten)]
    pub(super) request: ServerLabels,
    /// `service.namespace.svc`
    pub(super) server_address: String,
    pub(super) server_port: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct RequestLabels {
    pub(super) direction: Direction,
    pub(super) service: String,
    pub(super) source: String,
    pub(super) reason: ReasonValue,
    pub(super) http_response_status_code: u16,
    pub(super) rpc_status_code: RpcValue,
    #[prometheus(flatten)]
    pub(super) security: SecurityLabels,
}

/// How a connection is secured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct SecurityLabels {
    pub(super) security: &'static str,
    /// Why it is plaintext.
    pub(super) plaintext: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct CauseLabels {
    pub(super) service: String,
    pub(super) reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DetectorLabels {
    pub(super) service: String,
    pub(super) detector: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct MirrorLabels {
    pub(super) service: String,
    pub(super) source: String,
    pub(super) outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ServiceLabels {
    pub(super) service: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct DirectionLabels {
    pub(super) direction: Direction,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct ConnectionLabels {
    pub(super) direction: Direction,
    pub(super) service: String,
    pub(super) source: String,
    pub(super) reason: ReasonValue,
    #[prometheus(flatten)]
    pub(super) security: SecurityLabels,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct BytesLabels {
    pub(super) direction: Direction,
    pub(super) service: String,
}

/// A reason, or the empty value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ReasonValue(pub(super) Option<Reason>);

/// A gRPC status, or the empty value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RpcValue(pub(super) Option<RpcStatus>);

/// The method, if it is one that the conventions know.
pub(super) fn method(method: &Method) -> &'static str {
    const KNOWN: [&str; 10] = ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE", "QUERY"];
    KNOWN.into_iter().find(|known| *known == method.as_str()).unwrap_or(OTHER)
}

/// The version of HTTP.
pub(super) fn protocol_version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_11 => "1.1",
        Version::HTTP_2 => "2",
        _ => OTHER,
    }
}

// === impl RpcStatus ===

impl RpcStatus {
    /// The status in a `grpc-status` header or trailer.
    pub(crate) fn parse(value: &[u8]) -> Self {
        let number = std::str::from_utf8(value).ok().and_then(|text| text.parse::<usize>().ok());
        Self(number.and_then(|number| RPC_STATUSES.get(number).copied()).unwrap_or(OTHER))
    }

    /// Its name.
    pub(crate) fn as_str(self) -> &'static str {
        self.0
    }

    /// Whether it is a failure of the server, like a status of 500 or more in HTTP.
    pub(crate) fn is_failure(self) -> bool {
        self.0 == OTHER || RPC_FAILURES.contains(&self.0)
    }
}

// === impl SecurityLabels ===

impl From<Security> for SecurityLabels {
    fn from(security: Security) -> Self {
        Self { security: security.as_str(), plaintext: security.why() }
    }
}

// === impl ErrorType ===

impl ErrorType {
    /// By the conventions, a status from 500 on is an error, for clients one from 400 on. A response that the proxy
    /// made, or could not send completely, has a reason, which says more.
    pub(super) fn of(direction: Direction, status: u16, reason: Option<Reason>, body_error: Option<Reason>) -> Self {
        let first = match direction {
            Direction::Inbound => 500,
            Direction::Outbound => 400,
        };
        match reason.filter(|reason| reason.is_failure()).or(body_error) {
            Some(reason) => Self::Reason(reason),
            None if status >= first => Self::Status(status),
            None => Self::None,
        }
    }
}

impl EncodeLabelValue for ErrorType {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match self {
            Self::None => Ok(()),
            Self::Status(status) => status.encode(encoder),
            Self::Reason(reason) => reason.as_str().encode(encoder),
        }
    }
}

impl EncodeLabelValue for ReasonValue {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.0.map_or("", Reason::as_str).encode(encoder)
    }
}

impl EncodeLabelValue for RpcValue {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        self.0.map_or("", RpcStatus::as_str).encode(encoder)
    }
}

// === impl ClientLabels ===

impl ClientLabels {
    pub(super) fn new(request: ServerLabels) -> Self {
        let (namespace, rest) = request.service.split_once('/').unwrap_or_default();
        let (service, port) = rest.rsplit_once(':').unwrap_or_default();
        let server_address = if service.is_empty() { String::new() } else { format!("{service}.{namespace}.svc") };
        Self { server_address, server_port: port.to_owned(), request }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_and_statuses_are_closed_lists() {
        let of = |name: &str| method(&Method::from_bytes(name.as_bytes()).expect("a method"));
        assert_eq!(["GET", "QUERY", "PROPFIND", "get"].map(of), ["GET", "QUERY", OTHER, OTHER]);
        let of = |value: &str| RpcStatus::parse(value.as_bytes()).as_str();
        assert_eq!(
            ["0", "14", "16", "17", "", "x"].map(of),
            ["OK", "UNAVAILABLE", "UNAUTHENTICATED", OTHER, OTHER, OTHER]
        );
        let failures = (0..17).filter(|code: &u8| RpcStatus::parse(code.to_string().as_bytes()).is_failure());
        assert_eq!(failures.collect::<Vec<_>>(), [2, 4, 12, 13, 14, 15]);
    }

    #[test]
    fn error_type_is_the_reason_or_the_status() {
        use Direction::{Inbound, Outbound};
        for (direction, status, reason, body_error, expected) in [
            (Outbound, 200, None, None, ErrorType::None),
            (Outbound, 404, None, None, ErrorType::Status(404)),
            (Inbound, 404, None, None, ErrorType::None),
            (Inbound, 503, None, None, ErrorType::Status(503)),
            (Outbound, 503, Some(Reason::NoEndpoints), None, ErrorType::Reason(Reason::NoEndpoints)),
            (Inbound, 403, Some(Reason::PolicyDenied), None, ErrorType::Reason(Reason::PolicyDenied)),
            (Outbound, 302, Some(Reason::Redirect), None, ErrorType::None),
            (Outbound, 200, None, Some(Reason::UpstreamReset), ErrorType::Reason(Reason::UpstreamReset)),
        ] {
            let found = ErrorType::of(direction, status, reason, body_error);
            assert_eq!(found, expected, "{direction:?} {status} {reason:?} {body_error:?}");
        }
    }
}
