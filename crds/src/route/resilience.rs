//! Timeouts, retries and hedging of a rule.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::matches::Method;
use crate::duration::Duration;

/// CEL: the timeout of an attempt is not longer than that of the request.
const ATTEMPT_FITS_REQUEST: &str = "\
    !has(self.request) || !has(self.backendRequest) || duration(self.request) == duration('0s') || \
    duration(self.backendRequest) <= duration(self.request)";

/// Timeouts of requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(ATTEMPT_FITS_REQUEST)
        .message("backendRequest must not be longer than request")
)]
pub struct Timeouts {
    /// Timeout of the whole request, including retries, until the last byte of the response; then the client gets
    /// 504. Default: none; 0s also means none. At most 24h. Example: `2s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = Rule::new("duration(self) <= duration('24h')")
            .message("timeouts.request must be at most 24h")
    )]
    pub request: Option<Duration>,
    /// Timeout of each attempt, until the headers of the response. Default: none; 0s also means none. At most 24h.
    /// Example: `500ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(
        validation = Rule::new("duration(self) <= duration('24h')")
            .message("timeouts.backendRequest must be at most 24h")
    )]
    pub backend_request: Option<Duration>,
}

/// When failed requests are retried. Requests that no backend has received (failed connections) are retried without
/// it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// Maximum retries of a request, 1 to 10. Default: 1.
    #[serde(default = "Retry::default_attempts")]
    #[schemars(range(min = 1, max = 10))]
    pub attempts: u32,
    /// Response statuses that are retried. Broken connections and attempts that time out are always retried. Default:
    /// 502, 503, 504. A gRPC status counts as the corresponding HTTP status: UNAVAILABLE is 503, DEADLINE_EXCEEDED
    /// 504, RESOURCE_EXHAUSTED 429, CANCELLED 499, ABORTED 409, INTERNAL, UNKNOWN and DATA_LOSS are 500. gRPC calls
    /// are POST requests: add POST to `methods`. A gRPC status after the first message is not considered.
    #[serde(default = "Retry::default_codes")]
    #[schemars(length(max = 16), inner(range(min = 400, max = 599)), extend("x-kubernetes-list-type" = "set"))]
    pub codes: Vec<u16>,
    /// Methods that are retried after a backend has received the request. Default: the idempotent ones, GET, HEAD,
    /// OPTIONS, TRACE, PUT and DELETE. Add POST or PATCH only if the backend handles duplicates. Requests with a body
    /// of more than 64 KiB, or with trailers, are not retried.
    #[serde(default = "Retry::default_methods")]
    #[schemars(length(min = 1, max = 9), extend("x-kubernetes-list-type" = "set"))]
    pub methods: Vec<Method>,
    /// Minimum wait before the first retry, 1ms to 1m. It doubles with each retry, up to ten times this value; up to
    /// half of it is added at random (jitter). Default: 25ms.
    #[serde(default = "Retry::default_backoff")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('1m')")
            .message("retry.backoff must be between 1ms and 1m")
    )]
    pub backoff: Duration,
}

impl Retry {
    fn default_attempts() -> u32 {
        1
    }

    fn default_codes() -> Vec<u16> {
        vec![502, 503, 504]
    }

    fn default_methods() -> Vec<Method> {
        vec![Method::Get, Method::Head, Method::Options, Method::Trace, Method::Put, Method::Delete]
    }

    fn default_backoff() -> Duration {
        Duration("25ms".into())
    }
}

/// Hedging: sends a request that is not answered in time to another pod as well. The first good response is used, and
/// the other attempt is cancelled; a response is good unless `retry` would retry it. Only for requests that may be
/// retried: with a method of `retry.methods` (without `retry`: an idempotent one) and a body of at most 64 KiB, and
/// not tied to a pod by a session cookie. Each hedged attempt counts as a retry in the MeshCluster's retry budget and
/// as a request in its limits; if these do not allow it, it is not sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hedge {
    /// Time without a response after which the next attempt is sent, 1ms to 1m. Set it to the 95th percentile of
    /// latency: then about 5 % of requests are sent twice. Example: `50ms`.
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('1m')")
            .message("hedge.after must be between 1ms and 1m")
    )]
    pub after: Duration,
    /// Maximum additional attempts, 1 to 3, each after another `after`. Default: 1.
    #[serde(default = "Hedge::default_attempts")]
    #[schemars(range(min = 1, max = 3))]
    pub attempts: u32,
}

impl Hedge {
    fn default_attempts() -> u32 {
        1
    }
}
