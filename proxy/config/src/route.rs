//! Routes as the proxy reads them: matches in order of precedence, and the rules that they refer to.

use serde::{Deserialize, Serialize};

use crate::filters::{Cors, Filters, Mirror};
use crate::refs::{ClusterRef, RouteRef};
use crate::{compact_vec, is_default};

/// The routes of one port of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RouteTable {
    /// In order of precedence: the first match wins.
    #[serde(default, deserialize_with = "compact_vec", skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<Match>,
    /// The rules of the matches, by index.
    #[serde(default, deserialize_with = "compact_vec", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// Rules for TLS connections, by server name. Absent: TLS is handled as TCP.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<ServerName>,
    /// The rule for all other TCP connections, as an index into `streams`. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<usize>,
    /// The rules of `tls` and `tcp`, by index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<StreamRule>,
}

/// A server name (SNI) in a ClientHello. Exact names come before wildcards, longer wildcards before shorter ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServerName {
    /// Index into [`RouteTable::streams`].
    pub rule: usize,
    /// In lower case. `*.example` matches all names below `example`.
    pub name: String,
}

/// A rule for TCP or TLS connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct StreamRule {
    /// The user's object.
    pub route: RouteRef,
    /// The rule in it: its name, or its position as `0`, `1`, ...
    pub name: String,
    /// At least one, without filters and redirects; the weights' sum is not zero. Connections for an invalid backend are
    /// closed.
    #[serde(deserialize_with = "compact_vec")]
    pub backends: Vec<Backend>,
}

/// Conditions on a request; all of them must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Match {
    /// Index into [`RouteTable::rules`].
    pub rule: usize,
    /// Condition on the path. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// The method. Absent: any except CONNECT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// Conditions on headers; names in lower case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<ValueMatch>,
    /// Conditions on query parameters; names are case-sensitive.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<ValueMatch>,
}

/// A condition on the path, query excluded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole path segments from the start: `/abc` matches `/abc`, `/abc/` and `/abc/d`, not `/abcd`.
    Prefix(String),
    /// A regular expression for the whole path, in the syntax of the `regex` crate (linear time).
    Regex(String),
}

/// A condition on a header or query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ValueMatch {
    /// The name of the header or parameter.
    pub name: String,
    /// The condition on its value.
    pub test: ValueTest,
}

/// A condition on a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ValueTest {
    /// The value is exactly this.
    Exact(String),
    /// A regular expression for the whole value, in the syntax of the `regex` crate.
    Regex(String),
    /// The header or parameter is present.
    Present,
    /// The header or parameter is absent.
    Absent,
}

/// A rule for requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rule {
    /// The user's object.
    pub route: RouteRef,
    /// The rule in it: its name, or its position as `0`, `1`, ...
    pub name: String,
    /// Edits of the request's headers, before it is forwarded.
    #[serde(default, skip_serializing_if = "is_default")]
    pub request_headers: HeaderEdit,
    /// Edits of the response's headers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub response_headers: HeaderEdit,
    /// What else is done with its requests; their fields are fields of the rule.
    #[serde(flatten)]
    pub filters: Filters,
    /// The action.
    pub action: Action,
    /// Timeout of the whole request, retries included, in milliseconds. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_timeout_ms: Option<u64>,
    /// Timeout of one attempt, until the response's head, in milliseconds. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt_timeout_ms: Option<u64>,
    /// Retries. Absent: only of requests that no backend has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Hedging. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
}

/// The action of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Forwarded to one of the backends, by weight. A CONNECT request opens a tunnel to it.
    #[serde(rename_all = "camelCase")]
    Forward {
        /// At least one; the weights' sum is not zero.
        #[serde(deserialize_with = "compact_vec")]
        backends: Vec<Backend>,
        /// Rewrite of authority and path.
        #[serde(default, skip_serializing_if = "is_default")]
        rewrite: Rewrite,
    },
    /// A redirect response.
    Redirect(Redirect),
    /// A fixed response.
    Respond(Respond),
}

/// A weighted backend of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Backend {
    /// Its share of the requests is this weight divided by the sum of the rule's weights.
    pub weight: u32,
    /// The destination.
    pub target: BackendTarget,
    /// What is done with its requests alone. Absent: nothing. Boxed: few backends have any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filters: Option<Box<BackendFilters>>,
}

/// The destination of a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BackendTarget {
    /// A port of a Service.
    Cluster(ClusterRef),
    /// No backend: requests are answered with this redirect.
    Redirect(Redirect),
    /// An invalid reference: requests are answered 500 with this reason.
    Invalid(String),
}

/// The filters of a backend. They apply to the requests for which it was picked: after the filters of the rule to the
/// request, before them to the response.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct BackendFilters {
    /// Edits of the request's headers, after those of the rule.
    #[serde(default, skip_serializing_if = "is_default")]
    pub request_headers: HeaderEdit,
    /// Edits of the response's headers, before those of the rule.
    #[serde(default, skip_serializing_if = "is_default")]
    pub response_headers: HeaderEdit,
    /// Rewrite of authority and path. What it has replaces what the rule's rewrite has.
    #[serde(default, skip_serializing_if = "is_default")]
    pub rewrite: Rewrite,
    /// CORS: which origins may call. A preflight picks a backend as any other request does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// Mirrors of its requests, beside those of the rule.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<Mirror>,
}

/// Header edits: first `remove`, then `set`, then `add`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HeaderEdit {
    /// Names to remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
    /// Values that replace existing ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<HeaderValue>,
    /// Values that are added to existing ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<HeaderValue>,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HeaderValue {
    /// Name, in lower case.
    pub name: String,
    /// Value.
    pub value: String,
}

/// Rewrite of authority and path of a forwarded request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rewrite {
    /// Replaces the authority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Replaces the path; the query stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
}

/// Rewrite of a path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathRewrite {
    /// Replaces the whole path.
    Full(String),
    /// Replaces the prefix that matched.
    Prefix(String),
}

/// A redirect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Redirect {
    /// Absent: the request's scheme.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Absent: the request's hostname.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Absent: the well-known port of `scheme` if that is given, else the Service's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Rewrite of the path; the query stays. Absent: the request's path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// A fixed response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Respond {
    /// 200 to 599.
    pub status: u16,
    /// The body; `text/plain` unless the rule sets a content type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub body: String,
}

/// Retries of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Retry {
    /// Maximum of retries, not counting the first attempt. 0: the request is sent to one endpoint, also if no connection
    /// to it can be made.
    pub attempts: u32,
    /// Statuses that are retried.
    pub codes: Vec<u16>,
    /// Methods that may be retried after a backend has seen the request. Empty: for a status, every method, because the
    /// backend has rejected the request; for a reset or an attempt that timed out, the idempotent ones.
    pub methods: Vec<String>,
    /// The base backoff before the first retry, in milliseconds; it doubles with each retry, up to ten times the
    /// base.
    pub backoff_ms: u64,
}

/// Hedging: a request without a response is sent to another endpoint as well.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hedge {
    /// The time without a response, in milliseconds; not 0.
    pub after_ms: u64,
    /// Maximum of further endpoints, each `after_ms` after the previous one.
    pub attempts: u32,
}
