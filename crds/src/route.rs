//! MeshRoute: routing of HTTP requests, TLS connections and TCP connections that clients send to a Service.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;
use crate::refs::{ParentRef, ServiceKind};
use crate::status::Status;

/// Routes the traffic that clients send to a Service: to Services and subsets by weight, with filters, timeouts,
/// retries and hedging. What the Gateway API calls HTTPRoute, TLSRoute and TCPRoute, and Istio VirtualService.
///
/// A Service port without a MeshRoute sends to the Service's pods. If a MeshRoute is attached to it, a request that
/// matches no rule is answered 404.
///
/// Of all rules of all routes on a port the most specific match wins: exact path, regular expression, longest prefix,
/// method, most headers, most query parameters; then the oldest route, then namespace/name, then the first rule. If
/// two routes have equal matches, both get a condition that says so. (These are the rules of the Gateway API's
/// HTTPRoute.)
///
/// The `http` rules are for HTTP requests, the `tls` rules for TLS connections by server name (SNI), the `tcp` rule
/// for all other connections. The proxy detects the protocol of each connection. A connection that matches no rule is
/// closed.
///
/// ```yaml
/// apiVersion: weft.dev/v1alpha1
/// kind: MeshRoute
/// metadata: {name: reviews, namespace: shop}
/// spec:
///   parentRefs: [{kind: Service, name: reviews}]
///   http:
///   - backendRefs:
///     - {name: reviews, port: 9080, subset: v1, weight: 90}
///     - {name: reviews, port: 9080, subset: v2, weight: 10}
///     timeouts: {request: 2s}
/// ```
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MeshRoute",
    plural = "meshroutes",
    shortname = "mrt",
    category = "weft",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.parentRefs[*].name"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(
        name = "Resolved",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"ResolvedRefs\")].status"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("(has(self.http) && size(self.http) > 0) || (has(self.tls) && size(self.tls) > 0) || (has(self.tcp) && size(self.tcp) > 0)")
        .message("a route needs http, tls or tcp rules")
)]
pub struct MeshRouteSpec {
    /// The Services that the route is attached to.
    #[schemars(length(min = 1, max = 8))]
    pub parent_refs: Vec<ParentRef>,
    /// Rules for HTTP requests (HTTP/1.1, HTTP/2, gRPC, WebSocket). They do not apply to Service ports that are
    /// declared as opaque TCP (by appProtocol or port name).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = kube::core::Rule::new("self.all(a, !has(a.name) || self.exists_one(b, has(b.name) && a.name == b.name))")
        .message("rule names must be unique"))]
    pub http: Vec<HttpRule>,
    /// Rules for TLS connections, by the server name that the client asks for (SNI). TLS is not terminated. An exact
    /// name wins over a wildcard, a longer name over a shorter one. A connection without SNI, or with a name that
    /// matches no rule, is closed with the TLS alert `unrecognized_name`. They do not apply to Service ports that are
    /// declared as HTTP (by appProtocol or port name).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = kube::core::Rule::new("self.all(a, !has(a.name) || self.exists_one(b, has(b.name) && a.name == b.name))")
        .message("rule names must be unique"))]
    pub tls: Vec<TlsRule>,
    /// The rule for opaque TCP connections. Without `tls` rules it also applies to TLS, and without `http` rules also
    /// to HTTP. If a port has only this rule, protocol detection is off. It does not apply to Service ports that are
    /// declared as HTTP (by appProtocol or port name).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1))]
    pub tcp: Vec<TcpRule>,
}

impl MeshRouteSpec {
    /// The backendRefs of all rules, without those of RequestMirror filters.
    pub fn backend_refs(&self) -> impl Iterator<Item = &BackendRef> {
        let http = self.http.iter().map(|rule| &rule.backend_refs);
        let tls = self.tls.iter().map(|rule| &rule.backend_refs);
        let tcp = self.tcp.iter().map(|rule| &rule.backend_refs);
        http.chain(tls).chain(tcp).flatten()
    }
}

/// A rule for TLS connections: matches and backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("self.backendRefs.exists(b, b.weight > 0)")
    .message("the weights of backendRefs sum to zero: give at least one a weight above 0"))]
pub struct TlsRule {
    /// Name of the rule in logs. Default: its position, `tls-0`, `tls-1`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// Conditions: a connection matches the rule if it matches any of them.
    #[schemars(length(min = 1, max = 16))]
    pub matches: Vec<TlsMatch>,
    /// The Services that connections are sent to, by weight. The share of a backend that does not exist is closed.
    #[schemars(length(min = 1, max = 16))]
    pub backend_refs: Vec<BackendRef>,
}

/// A condition on a TLS connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsMatch {
    /// Server names; any of them matches. Examples: `shop.example`, or `*.shop.example` for all names below it at any
    /// depth.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 253), regex(pattern = "^(\\*\\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub sni: Vec<String>,
}

/// The rule for TCP connections: backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("self.backendRefs.exists(b, b.weight > 0)")
    .message("the weights of backendRefs sum to zero: give at least one a weight above 0"))]
pub struct TcpRule {
    /// Name of the rule in logs. Default: `tcp-0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// The Services that connections are sent to, by weight. The share of a backend that does not exist is closed.
    #[schemars(length(min = 1, max = 16))]
    pub backend_refs: Vec<BackendRef>,
}

/// A rule for HTTP requests: matches, filters, backends, timeouts and retries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new(
        "!(has(self.backendRefs) && size(self.backendRefs) > 0 && has(self.filters) && self.filters.exists(f, f.type == 'RequestRedirect' || f.type == 'DirectResponse'))"
    ).message("a rule with a RequestRedirect or DirectResponse filter has no backend: remove its backendRefs"),
    validation = kube::core::Rule::new(
        "(has(self.backendRefs) && size(self.backendRefs) > 0) || (has(self.filters) && self.filters.exists(f, f.type == 'RequestRedirect' || f.type == 'DirectResponse'))"
    ).message("a rule needs backendRefs, or a RequestRedirect or DirectResponse filter"),
    validation = kube::core::Rule::new(
        "!has(self.backendRefs) || size(self.backendRefs) == 0 || self.backendRefs.exists(b, b.weight > 0)"
    ).message("the weights of backendRefs sum to zero: give at least one a weight above 0"),
    validation = kube::core::Rule::new(
        "!has(self.filters) || !(self.filters.exists(f, f.type == 'RequestRedirect' || f.type == 'DirectResponse') && self.filters.exists(f, f.type == 'URLRewrite'))"
    ).message("URLRewrite cannot be combined with RequestRedirect or DirectResponse: there is no request to send"),
    validation = kube::core::Rule::new(
        "!has(self.filters) || ['RequestHeaderModifier', 'ResponseHeaderModifier', 'RequestRedirect', 'URLRewrite', 'DirectResponse', 'CORS', 'RateLimit', 'Fault'].all(t, self.filters.filter(f, f.type == t).size() <= 1)"
    ).message("a filter type may appear once in a rule, RequestMirror 4 times"),
    validation = kube::core::Rule::new(
        "!has(self.filters) || self.filters.filter(f, f.type == 'RequestMirror').size() <= 4"
    ).message("a rule has at most 4 RequestMirror filters"),
    validation = kube::core::Rule::new(
        "!has(self.filters) || !self.filters.exists(f, f.type == 'RequestMirror') || (has(self.backendRefs) && size(self.backendRefs) > 0)"
    ).message("RequestMirror has no effect with RequestRedirect or DirectResponse: there is no request to copy"),
    validation = kube::core::Rule::new(
        "!has(self.filters) || !(self.filters.exists(f, f.type == 'RequestRedirect') && self.filters.exists(f, f.type == 'DirectResponse'))"
    ).message("RequestRedirect and DirectResponse cannot be combined in a rule"),
    validation = kube::core::Rule::new(
        "!has(self.filters) || !self.filters.exists(f, (has(f.urlRewrite) && has(f.urlRewrite.path) && f.urlRewrite.path.type == 'ReplacePrefixMatch') || (has(f.requestRedirect) && has(f.requestRedirect.path) && f.requestRedirect.path.type == 'ReplacePrefixMatch')) || (has(self.matches) && size(self.matches) > 0 && self.matches.all(m, has(m.path) && m.path.type == 'PathPrefix'))"
    ).message("ReplacePrefixMatch needs a PathPrefix in every match of the rule"),
    validation = kube::core::Rule::new(
        "!(has(self.timeouts) || has(self.retry) || has(self.hedge)) || (has(self.backendRefs) && size(self.backendRefs) > 0)"
    ).message("timeouts, retry and hedge have no effect with RequestRedirect or DirectResponse: remove them"),
    validation = kube::core::Rule::new(
        "!has(self.hedge) || !has(self.timeouts) || ((!has(self.timeouts.request) || duration(self.timeouts.request) == duration('0s') || duration(self.hedge.after) < duration(self.timeouts.request)) && (!has(self.timeouts.backendRequest) || duration(self.timeouts.backendRequest) == duration('0s') || duration(self.hedge.after) < duration(self.timeouts.backendRequest)))"
    ).message("hedge.after must be shorter than timeouts.request and timeouts.backendRequest: no hedged request would be sent"),
    validation = kube::core::Rule::new(
        "!has(self.matches) || !self.matches.exists(m, has(m.method) && m.method == 'CONNECT') || self.matches.all(m, has(m.method) && m.method == 'CONNECT')"
    ).message("a rule that matches CONNECT cannot match other methods: move its other matches to another rule"),
    validation = kube::core::Rule::new(
        "!has(self.matches) || !self.matches.exists(m, has(m.method) && m.method == 'CONNECT') || !has(self.filters) || self.filters.all(f, f.type in ['ResponseHeaderModifier', 'RateLimit', 'Fault'])"
    ).message("a rule that matches CONNECT may only have filters of type ResponseHeaderModifier, RateLimit and Fault: a tunnel has no request that other filters could change or copy"),
    validation = kube::core::Rule::new(
        "!has(self.matches) || !self.matches.exists(m, has(m.method) && m.method == 'CONNECT') || !(has(self.retry) || has(self.hedge) || (has(self.timeouts) && has(self.timeouts.backendRequest)))"
    ).message("a rule that matches CONNECT cannot have retry, hedge or timeouts.backendRequest: other pods are tried anyway; set connect.timeout in the MeshCluster to limit connection attempts")
)]
pub struct HttpRule {
    /// Name of the rule in logs and headers. Default: its position, `0`, `1`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// Conditions: a request matches the rule if it matches any of them. Default: every request matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub matches: Vec<HttpMatch>,
    /// Changes to requests and responses, or a response without a backend. Order in the list does not matter: CORS is
    /// applied first, then RateLimit, then Fault, then the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 11))]
    pub filters: Vec<HttpFilter>,
    /// The Services that requests are sent to, by weight. Requests to a backend that does not exist are answered 500,
    /// to one without ready pods 503.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub backend_refs: Vec<BackendRef>,
    /// Timeouts of requests. For CONNECT: until the tunnel is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// When failed requests are retried. Default: only requests that no backend has received are retried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// Hedging: sends a request that is not answered in time to another pod as well. Default: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
}

/// Conditions on a request. A request must meet all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("!(has(self.method) && self.method == 'CONNECT') || !(has(self.path) || (has(self.queryParams) && size(self.queryParams) > 0))")
    .message("CONNECT requests have no path and no query: match them by headers"))]
pub struct HttpMatch {
    /// Condition on the path, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// Conditions on headers; all must hold. Of several conditions on one header name only the first counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// Conditions on query parameters; all must hold. Of a repeated parameter the first value counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub query_params: Vec<QueryParamMatch>,
    /// The method. CONNECT requests match only rules that name CONNECT; without such a rule they are answered 405.
    /// The tunnel goes to a pod of the rule's backend, whatever host the client named, and its content is not
    /// inspected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
}

/// A condition on the path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("self.type == 'RegularExpression' || self.value.startsWith('/')")
        .message("a path starts with /"),
    validation = kube::core::Rule::new("self.type == 'RegularExpression' || !(self.value.contains('//') || self.value.contains('/./') || self.value.contains('/../') || self.value.endsWith('/.') || self.value.endsWith('/..') || self.value.contains('#') || self.value.contains('?') || self.value.lowerAscii().contains('%2f'))")
        .message("a path cannot contain //, /./, /../, #, ? or %2F: no request would match it"),
    validation = kube::core::Rule::new("self.type != 'RegularExpression' || (''.matches(self.value) ? true : true)")
        .message("the regular expression does not compile")
)]
pub struct PathMatch {
    /// How the path is compared. Default: PathPrefix. Exact: the whole path, case-sensitive. PathPrefix: whole
    /// segments from the start: /abc matches /abc, /abc/ and /abc/d but not /abcd. RegularExpression: the whole path,
    /// in RE2 syntax without look-around.
    #[serde(rename = "type", default)]
    pub kind: PathMatchType,
    /// The path, prefix or regular expression. Example: `/api`.
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

/// How the path is compared with the value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathMatchType {
    /// See [`PathMatch::kind`].
    Exact,
    /// See [`PathMatch::kind`].
    #[default]
    PathPrefix,
    /// See [`PathMatch::kind`].
    RegularExpression,
}

/// A condition on a header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("self.type == 'Present' || self.type == 'Absent' ? !has(self.value) : has(self.value)")
        .message("types Exact and RegularExpression require a value; remove value for Present and Absent"),
    validation = kube::core::Rule::new("self.type != 'RegularExpression' || !has(self.value) || (''.matches(self.value) ? true : true)")
        .message("the regular expression does not compile")
)]
pub struct HeaderMatch {
    /// How the header is compared. Default: Exact. Exact: the value, case-sensitive. RegularExpression: the whole
    /// value, in RE2 syntax. Present: the header exists. Absent: it does not exist.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchType,
    /// Name of the header, case-insensitive.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$"))]
    pub name: String,
    /// The value or regular expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub value: Option<String>,
}

/// A condition on a query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("self.type == 'Present' || self.type == 'Absent' ? !has(self.value) : has(self.value)")
        .message("types Exact and RegularExpression require a value; remove value for Present and Absent"),
    validation = kube::core::Rule::new("self.type != 'RegularExpression' || !has(self.value) || (''.matches(self.value) ? true : true)")
        .message("the regular expression does not compile")
)]
pub struct QueryParamMatch {
    /// How the parameter is compared. Default: Exact. Exact: the value, case-sensitive. RegularExpression: the whole
    /// value, in RE2 syntax. Present: the parameter exists. Absent: it does not exist.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchType,
    /// Name of the parameter, case-sensitive.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// The value or regular expression, percent-decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub value: Option<String>,
}

/// How a value is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ValueMatchType {
    /// See [`HeaderMatch::kind`].
    #[default]
    Exact,
    /// See [`HeaderMatch::kind`].
    RegularExpression,
    /// See [`HeaderMatch::kind`].
    Present,
    /// See [`HeaderMatch::kind`].
    Absent,
}

/// An HTTP method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
#[expect(missing_docs, reason = "the methods of RFC 9110 and RFC 5789")]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Connect,
    Options,
    Trace,
    Patch,
}

/// A change to requests or responses, or a response without a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new(
        "has(self.requestHeaderModifier) == (self.type == 'RequestHeaderModifier') && has(self.responseHeaderModifier) == (self.type == 'ResponseHeaderModifier') && has(self.requestRedirect) == (self.type == 'RequestRedirect') && has(self.urlRewrite) == (self.type == 'URLRewrite') && has(self.directResponse) == (self.type == 'DirectResponse') && has(self.cors) == (self.type == 'CORS') && has(self.fault) == (self.type == 'Fault') && has(self.requestMirror) == (self.type == 'RequestMirror') && has(self.rateLimit) == (self.type == 'RateLimit')"
    ).message("a filter has exactly the field that its type names")
)]
pub struct HttpFilter {
    /// Type of the filter; the field of the same name configures it. RequestHeaderModifier and ResponseHeaderModifier
    /// change headers. URLRewrite changes host and path of the request that is sent. RequestRedirect and
    /// DirectResponse answer without a backend. CORS answers preflight requests and says which origins may call.
    /// RateLimit answers 429 above a request rate. Fault delays or aborts requests (fault injection). RequestMirror
    /// sends a copy of requests to another backend.
    #[serde(rename = "type")]
    pub kind: FilterType,
    /// For type RequestHeaderModifier: changes to the headers of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    /// For type ResponseHeaderModifier: changes to the headers of responses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    /// For type RequestRedirect: the redirect that is returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RequestRedirect>,
    /// For type URLRewrite: the new host and path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
    /// For type DirectResponse: the response that is returned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_response: Option<DirectResponse>,
    /// For type CORS: the origins that may call, and how.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// For type Fault: delays and aborts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// For type RequestMirror: the backend that gets copies of requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
    /// For type RateLimit: the maximum request rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
}

/// Types of filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FilterType {
    /// Changes the request's headers.
    RequestHeaderModifier,
    /// Changes the response's headers.
    ResponseHeaderModifier,
    /// Answers with a redirect.
    RequestRedirect,
    /// Changes host and path of the request that is sent.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// Answers with a fixed response.
    DirectResponse,
    /// Answers preflight requests and adds CORS headers.
    #[serde(rename = "CORS")]
    Cors,
    /// Delays or aborts requests.
    Fault,
    /// Sends copies of requests to another backend.
    RequestMirror,
    /// Answers 429 above a request rate.
    RateLimit,
}

/// Changes to headers. `remove` is applied first, then `set`, then `add`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("!has(self.remove) || self.remove.all(n, !(n.lowerAscii() in ['host', 'content-length', 'transfer-encoding', 'connection', 'keep-alive', 'proxy-connection', 'te', 'trailer', 'upgrade']))")
        .message("headers that frame or route the message cannot be removed")
)]
pub struct HeaderModifier {
    /// Headers to set: replaces all values of the header, or adds it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub set: Vec<Header>,
    /// Headers to add: the header keeps the values that it has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub add: Vec<Header>,
    /// Names of headers to remove.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub remove: Vec<String>,
}

/// A header.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Header {
    /// Name of the header, case-insensitive. Headers that frame or route a message (Host, Content-Length,
    /// Transfer-Encoding, Connection, ...) cannot be changed; to change the host use URLRewrite.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$"))]
    #[x_kube(validation = kube::core::Rule::new("!(self.lowerAscii() in ['host', 'content-length', 'transfer-encoding', 'connection', 'keep-alive', 'proxy-connection', 'te', 'trailer', 'upgrade'])")
        .message("this header frames or routes the message and cannot be changed; to change the host use URLRewrite"))]
    pub name: String,
    /// Value of the header.
    #[schemars(length(min = 1, max = 4096), regex(pattern = "^[\\x20-\\x7e\\t]+$"))]
    pub value: String,
}

/// A redirect response.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestRedirect {
    /// Scheme of the Location: http or https. Default: that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// Host of the Location. Default: that of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub hostname: Option<String>,
    /// Path of the Location. Default: that of the request. The query is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
    /// Port of the Location. Default: the default port of `scheme` if that is set, else the Service's port. 80 and
    /// 443 are omitted where the scheme implies them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// Status code: 301, 302, 303, 307 or 308. Default: 302.
    #[serde(default = "RequestRedirect::default_status_code")]
    #[schemars(extend("enum" = [301, 302, 303, 307, 308]))]
    pub status_code: u16,
}

impl RequestRedirect {
    fn default_status_code() -> u16 {
        302
    }
}

/// Schemes of a redirect's Location.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Without TLS.
    Http,
    /// With TLS.
    Https,
}

/// Changes to host and path of the request that is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("has(self.hostname) || has(self.path)").message("URLRewrite needs a hostname or a path"))]
pub struct UrlRewrite {
    /// The new host. Default: unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub hostname: Option<String>,
    /// The new path; the query is kept. Default: unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
}

/// How a path is replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("has(self.replaceFullPath) == (self.type == 'ReplaceFullPath') && has(self.replacePrefixMatch) == (self.type == 'ReplacePrefixMatch')")
        .message("a path modifier has exactly the field that its type names")
)]
pub struct PathModifier {
    /// ReplaceFullPath replaces the whole path, ReplacePrefixMatch the prefix that the rule matched.
    #[serde(rename = "type")]
    pub kind: PathModifierType,
    /// For type ReplaceFullPath: the new path. Example: `/v2/items`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = "^/[^?#\\s]*$"))]
    pub replace_full_path: Option<String>,
    /// For type ReplacePrefixMatch: the new prefix. Example: `/v2`; empty removes the prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = "^(/[^?#\\s]*)?$"))]
    pub replace_prefix_match: Option<String>,
}

/// Types of path modifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PathModifierType {
    /// The whole path.
    ReplaceFullPath,
    /// The prefix that matched.
    ReplacePrefixMatch,
}

/// A fixed response, without a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DirectResponse {
    /// Status code, 200 to 599.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// Body of the response, at most 4096 characters. Default: empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub body: String,
}

/// Which origins may call from a browser (CORS). The proxy answers preflight requests itself: 204, or 403 for an
/// origin that is not allowed. It adds the CORS headers to all other responses of the rule and removes those that the
/// backend sent. A preflight request is handled by the rule that matches the request it announces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("!(self.allowCredentials && has(self.exposeHeaders) && '*' in self.exposeHeaders)")
        .message("with allowCredentials, browsers do not treat exposeHeaders '*' as a wildcard: list the headers")
)]
pub struct Cors {
    /// Allowed origins: `*`, or a scheme, a host and optionally a port. Example: `https://shop.example`. Default
    /// port: that of the scheme, 80 or 443. `https://*.example` allows every host below, `a.example` and
    /// `a.b.example`; `https://*` every host.
    #[schemars(
        length(min = 1, max = 64),
        inner(length(max = 253), regex(pattern = "^(\\*|https?://(\\*|(\\*\\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?)(:[0-9]{1,5})?)$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = kube::core::Rule::new("!('*' in self && self.size() > 1)").message("'*' allows every origin: remove the others"))]
    pub allow_origins: Vec<String>,
    /// Whether browsers may send credentials (cookies, HTTP authentication, client certificates). Default: false.
    #[serde(default)]
    pub allow_credentials: bool,
    /// Allowed methods besides GET, HEAD and POST, which are always allowed. `*`: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 9),
        inner(length(max = 7), regex(pattern = "^(\\*|GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH)$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = kube::core::Rule::new("!('*' in self && self.size() > 1)").message("'*' allows every method: remove the others"))]
    pub allow_methods: Vec<String>,
    /// Allowed request headers, besides those that browsers always allow. `*`: all (without credentials all but
    /// Authorization, which browsers require to be named).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = kube::core::Rule::new("!('*' in self && self.size() > 1)").message("'*' allows every header: remove the others"))]
    pub allow_headers: Vec<String>,
    /// Response headers that pages may read, besides those that browsers always allow. `*`: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = kube::core::Rule::new("!('*' in self && self.size() > 1)").message("'*' allows every header: remove the others"))]
    pub expose_headers: Vec<String>,
    /// How long browsers may cache the answer to a preflight request, in seconds. Default: 5.
    #[serde(default = "Cors::default_max_age")]
    #[schemars(range(min = 1, max = 86_400))]
    pub max_age: u32,
}

impl Cors {
    fn default_max_age() -> u32 {
        5
    }
}

/// Fault injection: delays requests or answers them with an error, to test how clients handle it. Done by the
/// client's proxy, before every other filter but CORS and RateLimit; no backend receives an aborted request. Delay
/// and abort are decided independently, so a request may get both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("has(self.delay) || has(self.abort)").message("a fault needs a delay or an abort"))]
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
#[x_kube(validation = kube::core::Rule::new("!(has(self.percent) && has(self.fraction))").message("give percent or fraction, not both"))]
pub struct FaultDelay {
    /// The delay, 1ms to 5m. Example: `2s`.
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('5m')")
        .message("fault.delay.duration must be between 1ms and 5m"))]
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
#[x_kube(validation = kube::core::Rule::new("!(has(self.percent) && has(self.fraction))").message("give percent or fraction, not both"))]
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

/// Sends copies of requests to another backend (traffic shadowing). Responses to copies are discarded; copies never
/// delay or fail the request itself. A copy is the request as it is sent to the rule's own backend, and is sent once
/// its body is complete. Requests with a body of more than 64 KiB, with trailers, or that upgrade the connection
/// (WebSocket) are not copied. Each worker thread of a proxy has at most 100 copies in flight; above that, requests
/// are not copied. The metric `weft_mirrored_requests_total` counts copies by outcome.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("!(has(self.percent) && has(self.fraction))").message("give percent or fraction, not both"))]
pub struct RequestMirror {
    /// The Service that gets the copies. If it does not exist, no copies are sent and the condition ResolvedRefs is
    /// False.
    pub backend_ref: MirrorRef,
    /// Percent of requests that are copied. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// As `percent`, with a denominator of your choice. Set only one of the two.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
    /// Suffix added to the host of copies, before the port, so that the backend can tell them from requests. Example:
    /// `-shadow`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[-a-z0-9.]*[a-z0-9]$"))]
    pub host_suffix: Option<String>,
}

/// The backend that gets copies of requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MirrorRef {
    /// Kind of the backend. Default: Service.
    #[serde(default)]
    pub kind: ServiceKind,
    /// Namespace of the Service. Default: the route's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Name of the Service.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Port of the Service.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Name of a subset in the Service's MeshCluster. Default: all pods of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub subset: Option<String>,
}

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
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')")
        .message("rateLimit.per must be between 1s and 24h"))]
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
    validation = kube::core::Rule::new("self.type == 'SourceAddress' ? !has(self.name) : has(self.name)")
        .message("types Header, QueryParam and Cookie require a name; remove name for SourceAddress"),
    validation = kube::core::Rule::new("!has(self.name) || self.type == 'QueryParam' || self.name.matches('^[A-Za-z0-9!#$%&\\'*+.^_`|~-]+$')")
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

/// A share of requests, chosen at random: numerator / denominator. Example: `{numerator: 1, denominator: 1000}` is
/// 0.1 %.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("self.numerator <= self.denominator").message("a fraction's numerator must not be greater than its denominator"))]
pub struct Fraction {
    /// Numerator of the share.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub numerator: u32,
    /// Denominator of the share. Default: 100.
    #[serde(default = "Fraction::default_denominator")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub denominator: u32,
}

impl Fraction {
    fn default_denominator() -> u32 {
        100
    }
}

/// A Service, or a subset of its pods, that gets a share of a rule's requests or connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    /// Kind of the backend. Default: Service.
    #[serde(default)]
    pub kind: ServiceKind,
    /// Namespace of the Service. Default: the route's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Name of the Service.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Port of the Service.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Name of a subset in the Service's MeshCluster. Default: all pods of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub subset: Option<String>,
    /// Weight of the backend: its share is this weight divided by the sum of the rule's weights. Default: 1. 0: no
    /// requests.
    #[serde(default = "BackendRef::default_weight")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: u32,
}

impl BackendRef {
    fn default_weight() -> u32 {
        1
    }
}

/// Timeouts of requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("!has(self.request) || !has(self.backendRequest) || duration(self.request) == duration('0s') || duration(self.backendRequest) <= duration(self.request)")
        .message("backendRequest must not be longer than request")
)]
pub struct Timeouts {
    /// Timeout of the whole request, including retries, until the last byte of the response; then the client gets
    /// 504. Default: none; 0s also means none. At most 24h. Example: `2s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("duration(self) <= duration('24h')").message("timeouts.request must be at most 24h"))]
    pub request: Option<Duration>,
    /// Timeout of each attempt, until the headers of the response. Default: none; 0s also means none. At most 24h.
    /// Example: `500ms`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("duration(self) <= duration('24h')").message("timeouts.backendRequest must be at most 24h"))]
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
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('1m')")
        .message("retry.backoff must be between 1ms and 1m"))]
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
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('1m')")
        .message("hedge.after must be between 1ms and 1m"))]
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
