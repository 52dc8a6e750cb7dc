//! Routes as the proxy reads them: matches in the order in which they are tried, and the rules that they lead to.

use serde::{Deserialize, Serialize};

use crate::{is_default, tight};

/// The routes of one port of one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RouteTable {
    /// In order of precedence: the first that takes the request wins.
    #[serde(default, deserialize_with = "tight", skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<Match>,
    /// What the matches lead to, by index.
    #[serde(default, deserialize_with = "tight", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<Rule>,
    /// For TLS connections. Absent: they are bytes like others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<ServerName>,
    /// For all other connections, as an index into `streams`. Absent: there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<usize>,
    /// What the two lead to, by index.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub streams: Vec<StreamRule>,
}

/// The name that a client's first TLS message asks for. A whole name comes before a wildcard, a longer one before a
/// shorter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServerName {
    /// Index into [`RouteTable::streams`].
    pub rule: usize,
    /// In lower case. `*.example`: all below it.
    pub name: String,
}

/// Where connections go, and whose word that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct StreamRule {
    /// The object that the user wrote.
    pub route: ObjectRef,
    /// The rule in it.
    pub name: String,
    /// At least one, and the weights' sum is not zero. The share of one that is invalid is closed.
    #[serde(deserialize_with = "tight")]
    pub backends: Vec<Backend>,
}

/// Conditions on a request; all of them must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Match {
    /// Index into [`RouteTable::rules`].
    pub rule: usize,
    /// On the path. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Absent: any but CONNECT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// On headers; names in lower case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<ValueMatch>,
    /// On query parameters; names as they are.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<ValueMatch>,
}

/// A condition on the path, query excluded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathMatch {
    /// The whole path.
    Exact(String),
    /// Whole segments from the start: `/abc` takes `/abc`, `/abc/` and `/abc/d`, not `/abcd`.
    Prefix(String),
    /// The whole path, in the syntax of the `regex` crate (linear time).
    Regex(String),
}

/// A condition on a named value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ValueMatch {
    /// Of the header or parameter.
    pub name: String,
    /// What must hold for it.
    pub test: ValueTest,
}

/// What must hold for a named value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ValueTest {
    /// It is exactly this.
    Exact(String),
    /// The whole of it, in the syntax of the `regex` crate.
    Regex(String),
    /// It is there.
    Present,
    /// It is not there.
    Absent,
}

/// What happens to a request, and whose word that is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rule {
    /// The object that the user wrote.
    pub route: ObjectRef,
    /// The rule in it: its name, or its position as `0`, `1`, ...
    pub name: String,
    /// Changes to the request's headers, before it is sent.
    #[serde(default, skip_serializing_if = "is_default")]
    pub request_headers: HeaderEdit,
    /// Changes to the response's headers.
    #[serde(default, skip_serializing_if = "is_default")]
    pub response_headers: HeaderEdit,
    /// What browsers are told of other origins' pages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// A pace that requests must keep.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Requests that wait or fail on purpose.
    #[serde(default, skip_serializing_if = "is_default")]
    pub fault: Fault,
    /// Copies of what is forwarded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mirrors: Vec<Mirror>,
    /// What is done.
    pub action: Action,
    /// For the whole request, retries included, in milliseconds. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_timeout_ms: Option<u64>,
    /// For one attempt, until the response's head, in milliseconds. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt_timeout_ms: Option<u64>,
    /// When to try again. Absent: only what no backend has seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// When to go to another endpoint as well. Absent: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
}

/// Names an object of the user's.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ObjectRef {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// What is done with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Sent to one of these, by weight. A CONNECT is not sent: it opens a tunnel to one.
    #[serde(rename_all = "camelCase")]
    Forward {
        /// At least one, and the weights' sum is not zero.
        #[serde(deserialize_with = "tight")]
        backends: Vec<Backend>,
        /// Changes to authority and path.
        #[serde(default, skip_serializing_if = "is_default")]
        rewrite: Rewrite,
    },
    /// Answered with a `Location`.
    Redirect(Redirect),
    /// Answered as it says.
    Respond(Respond),
}

/// A share of a rule's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Backend {
    /// Its share is this divided by the sum of the rule's weights.
    pub weight: u32,
    /// Where the share goes.
    pub target: BackendTarget,
}

/// Where a share goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum BackendTarget {
    /// To a Service's pods.
    Cluster(ClusterRef),
    /// Nowhere: answered 500 with this reason.
    Invalid(String),
}

/// Names a port of a Service, and perhaps a subset of its pods.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClusterRef {
    /// Of the Service.
    pub namespace: String,
    /// Of the Service.
    pub service: String,
    /// Of the Service.
    pub port: u16,
    /// Absent: all pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subset: Option<String>,
}

/// Changes to headers: first `remove`, then `set`, then `add`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HeaderEdit {
    /// Names to remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
    /// Values that replace what is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<HeaderValue>,
    /// Values beside what is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<HeaderValue>,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HeaderValue {
    /// In lower case.
    pub name: String,
    /// As it is.
    pub value: String,
}

/// Changes to authority and path of a forwarded request.
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

/// How a path is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PathRewrite {
    /// The whole of it.
    Full(String),
    /// The prefix that matched.
    Prefix(String),
}

/// A redirection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Redirect {
    /// Absent: the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// Absent: the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Absent: the well-known port of `scheme` if that is given, else the Service's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Absent: the request's; the query stays.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathRewrite>,
    /// 301, 302, 303, 307 or 308.
    pub status: u16,
}

/// An answer of the proxy's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Respond {
    /// 200 to 599.
    pub status: u16,
    /// As it is; `text/plain` unless the rule sets a content type.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub body: String,
}

/// What browsers are told of other origins' pages. In lists `*` stands alone and means all.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Cors {
    /// Origins that may call. Absent: every one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origins: Option<Vec<Origin>>,
    /// Whether cookies and the like may come along.
    #[serde(default, skip_serializing_if = "is_default")]
    pub credentials: bool,
    /// Methods that may be used.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Headers that requests may have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    /// Headers of responses that pages may read.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expose: Vec<String>,
    /// How long the answer to a preflight holds, in seconds.
    pub max_age_s: u32,
}

/// An origin, or all whose host ends in the same way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Origin {
    /// `http` or `https`.
    pub scheme: String,
    /// A host; `*.example` for all below it; `*` for all.
    pub host: String,
    /// Always given.
    pub port: u16,
}

/// A pace that requests must keep, by a token bucket that all workers share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RateLimit {
    /// How many requests; not 0.
    pub requests: u32,
    /// In how many milliseconds; not 0.
    pub per_ms: u64,
    /// What the bucket holds; not 0.
    pub burst: u32,
    /// What tells callers apart. Absent: nothing, they share one bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<RateLimitKey>,
}

/// What tells callers apart. Those without it share one bucket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RateLimitKey {
    /// First value of a header; its name in lower case.
    Header(String),
    /// First value of a query parameter.
    Query(String),
    /// A cookie.
    Cookie(String),
    /// The address that the connection comes from.
    SourceAddress,
}

/// Requests that wait or fail on purpose. The two are decided apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Fault {
    /// Absent: nobody waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<FaultDelay>,
    /// Absent: nobody fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<FaultAbort>,
}

/// A wait. It is part of the request's time, not of an attempt's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FaultDelay {
    /// How long, in milliseconds.
    pub duration_ms: u64,
    /// How many requests wait.
    pub share: Fraction,
}

/// An error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct FaultAbort {
    /// 400 to 599.
    pub status: u16,
    /// How many requests fail.
    pub share: Fraction,
}

/// Copies of requests to one endpoint of another cluster, whose answer nobody waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mirror {
    /// Where copies go.
    pub target: ClusterRef,
    /// How many requests are copied.
    pub share: Fraction,
    /// What is put behind the host of copies. Absent: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_suffix: Option<String>,
}

/// A part of all requests, each taken or left by chance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Fraction {
    /// How many.
    pub numerator: u32,
    /// Of how many; not 0.
    pub denominator: u32,
}

/// When a request is tried again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Retry {
    /// How often, beside the first attempt.
    pub attempts: u32,
    /// Statuses that are tried again.
    pub codes: Vec<u16>,
    /// Methods that may be repeated after a backend has seen them.
    pub methods: Vec<String>,
    /// The shortest wait before the first repetition, in milliseconds; it doubles each time, up to ten times it.
    pub backoff_ms: u64,
}

/// When a request goes to another endpoint as well, because nobody has answered it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hedge {
    /// How long nobody has, in milliseconds; not 0.
    pub after_ms: u64,
    /// How many more endpoints, each `after_ms` after the one before.
    pub attempts: u32,
}
