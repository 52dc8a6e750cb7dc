//! RateLimit.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

/// CEL: a header or cookie has a name that it can have.
const NAME_IS_TOKEN: &str =
    "!has(self.name) || self.type == 'QueryParam' || self.name.matches('^[A-Za-z0-9!#$%&\\'*+.^_`|~-]+$')";

/// Maximum request rate of the rule (token bucket). Each client proxy counts its own requests, over all its worker
/// threads: ten client pods may send ten times the rate in total. Requests above the rate are answered 429 with
/// `retry-after` and `weft-reason: rate-limited`; `ratelimit-limit`, `ratelimit-remaining` and `ratelimit-reset` are
/// on every response of the rule. What Envoy calls local rate limiting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// Requests allowed per `per`. Example: 100.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// The time in which `requests` are allowed, 1s to 24h. Default: 1s.
    #[serde(default = "RateLimit::default_per")]
    #[x_kube(
        validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')")
            .message("rateLimit.per must be between 1s and 24h")
    )]
    pub per: Duration,
    /// Burst size: requests that may arrive at once after an idle time (size of the token bucket). Default:
    /// `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<u32>,
    /// Key of the limit: requests with different keys are limited separately, requests without the key together. A
    /// proxy tracks at most 10000 keys of a rule; requests with further keys are limited together. Default: no key,
    /// one limit for all requests of the rule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<RateLimitKey>,
}

impl RateLimit {
    fn default_per() -> Duration {
        Duration("1s".into())
    }
}

/// What a rate limit is keyed by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type == 'SourceAddress' ? !has(self.name) : has(self.name)")
        .message("types Header, QueryParam and Cookie require a name; remove name for SourceAddress"),
    validation = Rule::new(NAME_IS_TOKEN)
        .message("name is not a valid header or cookie name")
)]
pub struct RateLimitKey {
    /// Where the key comes from. Header, QueryParam or Cookie: its first value. SourceAddress: the client's IP
    /// address; in the proxy of a client pod that is the pod's own.
    #[serde(rename = "type")]
    pub kind: RateLimitKeyType,
    /// Name of the header, query parameter or cookie. Example: `x-user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
}

/// Types of rate limit keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RateLimitKeyType {
    /// See [`RateLimitKey::kind`].
    Header,
    /// See [`RateLimitKey::kind`].
    QueryParam,
    /// See [`RateLimitKey::kind`].
    Cookie,
    /// See [`RateLimitKey::kind`].
    SourceAddress,
}
