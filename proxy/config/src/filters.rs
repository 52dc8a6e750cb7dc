//! Filters of a rule: what the proxy does with its requests and responses besides picking a backend.

use serde::{Deserialize, Serialize};

use crate::is_default;
use crate::refs::ClusterRef;

/// The filters of a rule. Header edits are fields of the rule, because every forwarded request needs them; rewrites,
/// redirects and fixed responses are parts of its action.
///
/// Not `deny_unknown_fields`: in a rule, these fields are fields of the rule, which rejects unknown ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Filters {
    /// CORS: which origins may call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// Maximum rate of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Fault injection.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fault: Fault,
    /// Mirrors of forwarded requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<Mirror>,
    /// Maximum bytes of a response body of an endpoint; not 0. Absent: no maximum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_body_bytes_max: Option<u64>,
}

/// CORS settings. In a list, `*` stands alone and means all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Cors {
    /// Allowed origins. Absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origins: Option<Vec<Origin>>,
    /// Whether requests may have credentials, such as cookies.
    #[serde(default, skip_serializing_if = "is_default")]
    pub credentials: bool,
    /// Allowed methods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Allowed request headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Response headers that scripts may read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expose: Vec<String>,
    /// How long a preflight response may be cached, in seconds.
    pub max_age_s: u32,
}

/// An allowed origin, or a wildcard for its host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Origin {
    /// `http` or `https`.
    pub scheme: String,
    /// A host; `*.example` for all hosts below it; `*` for all hosts.
    pub host: String,
    /// The port, never left out.
    pub port: u16,
}

/// A rate limit: a token bucket that all workers of a proxy share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RateLimit {
    /// Requests in `per_ms`; not 0.
    pub requests: u32,
    /// The interval, in milliseconds; not 0.
    pub per_ms: u64,
    /// Capacity of the bucket; not 0.
    pub burst: u32,
    /// The key: each value has a bucket of its own. Absent: all requests share one bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<RateLimitKey>,
}

/// The key of a rate limit. Requests without it share one bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RateLimitKey {
    /// First value of a header; its name in lower case.
    Header(String),
    /// First value of a query parameter.
    Query(String),
    /// A cookie.
    Cookie(String),
    /// The address of the client's connection.
    SourceAddress,
}

/// Fault injection. Delay and abort are sampled independently.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Fault {
    /// Absent: no delay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<FaultDelay>,
    /// Absent: no abort.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<FaultAbort>,
}

/// A delay. It counts against the request timeout, not against that of an attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FaultDelay {
    /// The delay, in milliseconds.
    pub duration_ms: u64,
    /// The fraction of requests that are delayed.
    pub share: Fraction,
}

/// An error response instead of forwarding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FaultAbort {
    /// The status, 400 to 599.
    pub status: u16,
    /// The fraction of requests that are aborted.
    pub share: Fraction,
}

/// A mirror: copies of requests go to an endpoint of another cluster, and the responses are discarded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mirror {
    /// The cluster that receives the copies.
    pub target: ClusterRef,
    /// The fraction of requests that are mirrored.
    pub share: Fraction,
    /// A suffix for the host of copies. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_suffix: Option<String>,
}

/// A fraction of all requests, sampled at random.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Fraction {
    /// Numerator.
    pub numerator: u32,
    /// Denominator; not 0.
    pub denominator: u32,
}

#[cfg(test)]
mod tests {
    use crate::{Backend, Rule};

    #[test]
    fn fields_of_filters_are_fields_of_the_rule() {
        let text = concat!(
            r#"{"route":{"namespace":"shop","name":"web"},"name":"0","rateLimit":{"requests":5,"perMs":1000,"burst":5},"#,
            r#""fault":{"abort":{"status":503,"share":{"numerator":1,"denominator":2}}},"action":{"respond":{"status":200}}}"#
        );
        let rule: Rule = serde_json::from_str(text).expect("a rule");
        assert_eq!(rule.filters.rate_limit.as_ref().map(|limit| limit.requests), Some(5));
        assert_eq!(serde_json::to_string(&rule).expect("JSON"), text);
    }

    #[test]
    fn backends_without_filters_are_written_as_before() {
        let bare = r#"{"weight":1,"target":{"invalid":"why"}}"#;
        let backend: Backend = serde_json::from_str(bare).expect("a backend");
        assert_eq!((serde_json::to_string(&backend).expect("JSON").as_str(), &backend.filters), (bare, &None));
        let text = r#"{"weight":1,"target":{"redirect":{"status":301}},"filters":{"rewrite":{"hostname":"h"}}}"#;
        let backend: Backend = serde_json::from_str(text).expect("a backend");
        assert_eq!(serde_json::to_string(&backend).expect("JSON"), text);
        let unknown = text.replace("rewrite", "rateLimit");
        let error = serde_json::from_str::<Backend>(&unknown).expect_err("a filter of rules").to_string();
        assert!(error.contains("unknown field `rateLimit`"), "{error}");
    }

    /// Serde documents `flatten` with `deny_unknown_fields` as unsupported; in the enclosing struct alone it works.
    #[test]
    fn unknown_filters_are_refused() {
        let rule = |more: &str| {
            let head = r#"{"route":{"namespace":"shop","name":"web"},"name":"0","action":{"respond":{"status":200}}"#;
            serde_json::from_str::<Rule>(&format!("{head}{more}}}")).map_err(|error| error.to_string())
        };
        assert!(rule("").is_ok());
        for (more, field) in [
            (r#","newFilter":{"limit":1}"#, "newFilter"),
            (r#","fault":{"newFault":1}"#, "newFault"),
            (r#","filters":{}"#, "filters"),
        ] {
            let error = rule(more).expect_err(more);
            assert!(error.contains(&format!("unknown field `{field}`")), "{more}: {error}");
        }
    }
}
