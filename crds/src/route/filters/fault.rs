//! Fault: fault injection.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::fraction::{Fraction, PERCENT_OR_FRACTION};
use crate::duration::Duration;

/// Fault injection: delays requests or answers them with an error, to test how clients handle it. Done by the
/// client's proxy, before every other filter but CORS and RateLimit; no backend receives an aborted request. Delay
/// and abort are decided independently, so a request may get both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.delay) || has(self.abort)").message("a fault needs a delay or an abort"))]
pub struct Fault {
    /// Delays requests. The delay counts towards `timeouts.request` (if that is shorter, the client gets 504 as from
    /// a slow backend) but not towards `timeouts.backendRequest`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<FaultDelay>,
    /// Answers requests with an error and the header `weft-reason: fault`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<FaultAbort>,
}

/// A delay for a share of requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(PERCENT_OR_FRACTION).message("give percent or fraction, not both"))]
pub struct FaultDelay {
    /// The delay, 1ms to 5m. Example: `2s`.
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('5m')")
            .message("fault.delay.duration must be between 1ms and 5m")
    )]
    pub duration: Duration,
    /// Percent of requests that are delayed. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// As `percent`, with a denominator of your choice. Set only one of the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
}

/// An error response for a share of requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(PERCENT_OR_FRACTION).message("give percent or fraction, not both"))]
pub struct FaultAbort {
    /// HTTP status of the response, 400 to 599. A gRPC client gets the corresponding gRPC status.
    #[schemars(range(min = 400, max = 599))]
    pub status: u16,
    /// Percent of requests that are aborted. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// As `percent`, with a denominator of your choice. Set only one of the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
}
