//! MeshRoute: which requests to a Service go where, and how.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;
use crate::refs::{ParentRef, ServiceKind};
use crate::status::Status;

/// Which requests to a Service go where, and how. Where no MeshRoute is attached to a Service port, requests go to the
/// Service's pods; where one is, a request that no rule takes is answered 404.
///
/// Of all rules of all routes on a port the most specific match wins: exact path, expression, longest prefix, method, most
/// headers, most query parameters; then the oldest route, then namespace/name, then the first rule. Both are told when two
/// routes have equal matches. (These are the rules of the Gateway API's HTTPRoute.)
///
/// A route's rules are for HTTP requests, for TLS connections by the name that the client asks for, or for connections of
/// bytes. A connection goes by what its client speaks; one that no rule takes is closed.
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
    /// The Services whose traffic the route governs.
    #[schemars(length(min = 1, max = 8))]
    pub parent_refs: Vec<ParentRef>,
    /// Rules for HTTP requests. Not for ports that are declared to carry something else.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = kube::core::Rule::new("self.all(a, !has(a.name) || self.exists_one(b, has(b.name) && a.name == b.name))")
        .message("two rules have the same name"))]
    pub http: Vec<HttpRule>,
    /// Rules for TLS connections, by the server name that the client asks for; what is inside is not looked at. Not for ports
    /// that are declared to carry HTTP. The longest name wins, and a whole one before a wildcard. A connection that asks for no
    /// name, or for one that no rule takes, is closed with the TLS alert `unrecognized_name`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(validation = kube::core::Rule::new("self.all(a, !has(a.name) || self.exists_one(b, has(b.name) && a.name == b.name))")
        .message("two rules have the same name"))]
    pub tls: Vec<TlsRule>,
    /// A rule for connections that no other kind of rule is for: where there are no `tls` rules for TLS too, and where there are
    /// no `http` rules for HTTP too. Not for ports that are declared to carry HTTP. With this alone a port is not looked into.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1))]
    pub tcp: Vec<TcpRule>,
}

impl MeshRouteSpec {
    /// Everywhere that its rules send to, copies aside.
    pub fn backend_refs(&self) -> impl Iterator<Item = &BackendRef> {
        let http = self.http.iter().map(|rule| &rule.backend_refs);
        let tls = self.tls.iter().map(|rule| &rule.backend_refs);
        let tcp = self.tcp.iter().map(|rule| &rule.backend_refs);
        http.chain(tls).chain(tcp).flatten()
    }
}

/// Which TLS connections, and where they go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("self.backendRefs.exists(b, b.weight > 0)")
    .message("the weights of backendRefs sum to zero: give at least one a weight above 0"))]
pub struct TlsRule {
    /// Name of the rule, for logs; by default its position (`tls-0`, `tls-1`, ...).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// The rule takes a connection that any of these takes.
    #[schemars(length(min = 1, max = 16))]
    pub matches: Vec<TlsMatch>,
    /// Where connections go, by weight. The share of a backend that does not exist is closed.
    #[schemars(length(min = 1, max = 16))]
    pub backend_refs: Vec<BackendRef>,
}

/// A condition on a TLS connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TlsMatch {
    /// Server names, any of them: `shop.example`, or `*.shop.example` for all below it, however deep.
    #[schemars(
        length(min = 1, max = 16),
        inner(length(min = 1, max = 253), regex(pattern = "^(\\*\\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    pub sni: Vec<String>,
}

/// Where connections of bytes go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("self.backendRefs.exists(b, b.weight > 0)")
    .message("the weights of backendRefs sum to zero: give at least one a weight above 0"))]
pub struct TcpRule {
    /// Name of the rule, for logs. Default: `tcp-0`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// Where connections go, by weight. The share of a backend that does not exist is closed.
    #[schemars(length(min = 1, max = 16))]
    pub backend_refs: Vec<BackendRef>,
}

/// Which requests, and what happens to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new(
        "!(has(self.backendRefs) && size(self.backendRefs) > 0 && has(self.filters) && self.filters.exists(f, f.type == 'RequestRedirect' || f.type == 'DirectResponse'))"
    ).message("a rule with a RequestRedirect or DirectResponse filter answers by itself: remove its backendRefs"),
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
    ).message("RequestMirror has no effect in a rule that answers by itself: there is no request to copy"),
    validation = kube::core::Rule::new(
        "!has(self.filters) || !(self.filters.exists(f, f.type == 'RequestRedirect') && self.filters.exists(f, f.type == 'DirectResponse'))"
    ).message("a rule answers either with RequestRedirect or with DirectResponse"),
    validation = kube::core::Rule::new(
        "!has(self.filters) || !self.filters.exists(f, (has(f.urlRewrite) && has(f.urlRewrite.path) && f.urlRewrite.path.type == 'ReplacePrefixMatch') || (has(f.requestRedirect) && has(f.requestRedirect.path) && f.requestRedirect.path.type == 'ReplacePrefixMatch')) || (has(self.matches) && size(self.matches) > 0 && self.matches.all(m, has(m.path) && m.path.type == 'PathPrefix'))"
    ).message("ReplacePrefixMatch needs a PathPrefix in every match of the rule"),
    validation = kube::core::Rule::new(
        "!(has(self.timeouts) || has(self.retry) || has(self.hedge)) || (has(self.backendRefs) && size(self.backendRefs) > 0)"
    ).message("timeouts, retry and hedge have no effect in a rule that answers by itself"),
    validation = kube::core::Rule::new(
        "!has(self.hedge) || !has(self.timeouts) || ((!has(self.timeouts.request) || duration(self.timeouts.request) == duration('0s') || duration(self.hedge.after) < duration(self.timeouts.request)) && (!has(self.timeouts.backendRequest) || duration(self.timeouts.backendRequest) == duration('0s') || duration(self.hedge.after) < duration(self.timeouts.backendRequest)))"
    ).message("hedge.after must be shorter than timeouts.request and timeouts.backendRequest: no other pod would be asked"),
    validation = kube::core::Rule::new(
        "!has(self.matches) || !self.matches.exists(m, has(m.method) && m.method == 'CONNECT') || self.matches.all(m, has(m.method) && m.method == 'CONNECT')"
    ).message("a rule that takes CONNECT takes nothing else: put its other matches into a rule of their own"),
    validation = kube::core::Rule::new(
        "!has(self.matches) || !self.matches.exists(m, has(m.method) && m.method == 'CONNECT') || !has(self.filters) || self.filters.all(f, f.type in ['ResponseHeaderModifier', 'RateLimit', 'Fault'])"
    ).message("a rule that takes CONNECT has only filters of type ResponseHeaderModifier, RateLimit and Fault: no request is sent that others could change or copy, and it opens a tunnel or fails"),
    validation = kube::core::Rule::new(
        "!has(self.matches) || !self.matches.exists(m, has(m.method) && m.method == 'CONNECT') || !(has(self.retry) || has(self.hedge) || (has(self.timeouts) && has(self.timeouts.backendRequest)))"
    ).message("a rule that takes CONNECT has no retry, no hedge and no timeouts.backendRequest: other pods are tried anyway, and how long a connection may take is connect.timeout in the MeshCluster")
)]
pub struct HttpRule {
    /// Name of the rule, for logs and headers; by default its position (`0`, `1`, ...).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: Option<String>,
    /// The rule takes a request that any of these takes. Default: every request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub matches: Vec<HttpMatch>,
    /// Changes to request and response, or an answer. In whatever order they stand: first CORS, then RateLimit,
    /// then Fault, then the rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 11))]
    pub filters: Vec<HttpFilter>,
    /// Where requests go, by weight. A share whose backend does not exist is answered 500; one whose backend has no ready
    /// pod is answered 503.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub backend_refs: Vec<BackendRef>,
    /// How long a request may take. A CONNECT: until its tunnel is open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// When a request is tried again. Without it only what no backend has seen is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
    /// When a request that is not answered yet goes to another pod as well. Default: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedge: Option<Hedge>,
}

/// Conditions on a request. All that are given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("!(has(self.method) && self.method == 'CONNECT') || !(has(self.path) || (has(self.queryParams) && size(self.queryParams) > 0))")
    .message("a CONNECT has neither path nor query: match it by headers"))]
pub struct HttpMatch {
    /// On the path, without the query.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// On headers; all of them. Of several conditions on one name the first counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// On query parameters; all of them. Of a repeated parameter the first value counts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub query_params: Vec<QueryParamMatch>,
    /// On the method. CONNECT asks for a tunnel, and is taken only by matches that name it; where none does, it is answered
    /// 405. What is sent through the tunnel goes to a pod of the rule's backend as it is, whatever host the client named.
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
        .message("a path has no //, no /./ or /../, no #, ? or %2F: no request could match it"),
    validation = kube::core::Rule::new("self.type != 'RegularExpression' || (''.matches(self.value) ? true : true)")
        .message("the regular expression does not compile")
)]
pub struct PathMatch {
    /// Exact: the whole path, case-sensitive. PathPrefix: whole segments from the start, so /abc takes /abc, /abc/ and
    /// /abc/d but not /abcd. RegularExpression: the whole path, RE2 syntax without look-around.
    #[serde(rename = "type", default)]
    pub kind: PathMatchType,
    /// The path, prefix or expression.
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

/// How a path is held against the value.
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
        .message("Exact and RegularExpression need a value; Present and Absent have none"),
    validation = kube::core::Rule::new("self.type != 'RegularExpression' || !has(self.value) || (''.matches(self.value) ? true : true)")
        .message("the regular expression does not compile")
)]
pub struct HeaderMatch {
    /// Exact: the value, case-sensitive. RegularExpression: the whole value, RE2 syntax. Present: the header is there.
    /// Absent: it is not.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchType,
    /// Name of the header; case does not matter.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$"))]
    pub name: String,
    /// The value or expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub value: Option<String>,
}

/// A condition on a query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("self.type == 'Present' || self.type == 'Absent' ? !has(self.value) : has(self.value)")
        .message("Exact and RegularExpression need a value; Present and Absent have none"),
    validation = kube::core::Rule::new("self.type != 'RegularExpression' || !has(self.value) || (''.matches(self.value) ? true : true)")
        .message("the regular expression does not compile")
)]
pub struct QueryParamMatch {
    /// Exact: the value, case-sensitive. RegularExpression: the whole value, RE2 syntax. Present: the parameter is there.
    /// Absent: it is not.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchType,
    /// Name of the parameter, case-sensitive.
    #[schemars(length(min = 1, max = 256))]
    pub name: String,
    /// The value or expression, percent-decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub value: Option<String>,
}

/// How a value is tested.
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

/// A change to request or response, or an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new(
        "has(self.requestHeaderModifier) == (self.type == 'RequestHeaderModifier') && has(self.responseHeaderModifier) == (self.type == 'ResponseHeaderModifier') && has(self.requestRedirect) == (self.type == 'RequestRedirect') && has(self.urlRewrite) == (self.type == 'URLRewrite') && has(self.directResponse) == (self.type == 'DirectResponse') && has(self.cors) == (self.type == 'CORS') && has(self.fault) == (self.type == 'Fault') && has(self.requestMirror) == (self.type == 'RequestMirror') && has(self.rateLimit) == (self.type == 'RateLimit')"
    ).message("a filter has exactly the field that its type names")
)]
pub struct HttpFilter {
    /// RequestHeaderModifier and ResponseHeaderModifier change headers. URLRewrite changes host and path of what is sent.
    /// RequestRedirect and DirectResponse answer without a backend. Fault makes requests wait or fail on purpose.
    /// RequestMirror sends a copy of requests to another backend as well. CORS says which pages of other origins may call.
    /// RateLimit refuses requests beyond a pace.
    #[serde(rename = "type")]
    pub kind: FilterType,
    /// For type RequestHeaderModifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_header_modifier: Option<HeaderModifier>,
    /// For type ResponseHeaderModifier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_header_modifier: Option<HeaderModifier>,
    /// For type RequestRedirect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_redirect: Option<RequestRedirect>,
    /// For type URLRewrite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_rewrite: Option<UrlRewrite>,
    /// For type DirectResponse.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct_response: Option<DirectResponse>,
    /// For type CORS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// For type Fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<Fault>,
    /// For type RequestMirror.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_mirror: Option<RequestMirror>,
    /// For type RateLimit.
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
    /// Answers with a `Location`.
    RequestRedirect,
    /// Changes host and path of the request that is sent.
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    /// Answers as it says.
    DirectResponse,
    /// Answers browsers that ask for other origins' pages.
    #[serde(rename = "CORS")]
    Cors,
    /// Makes requests wait or fail.
    Fault,
    /// Sends copies to another backend.
    RequestMirror,
    /// Refuses requests beyond a pace.
    RateLimit,
}

/// Changes to headers: first `remove`, then `set`, then `add`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("!has(self.remove) || self.remove.all(n, !(n.lowerAscii() in ['host', 'content-length', 'transfer-encoding', 'connection', 'keep-alive', 'proxy-connection', 'te', 'trailer', 'upgrade']))")
        .message("a header that frames or routes the message cannot be removed")
)]
pub struct HeaderModifier {
    /// Replaces the header, or adds it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub set: Vec<Header>,
    /// Adds a value beside what is there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub add: Vec<Header>,
    /// Removes the header.
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
    /// Name; case does not matter. Headers that frame or route a message (Host, Content-Length, Transfer-Encoding,
    /// Connection, ...) cannot be changed; to change the host use URLRewrite.
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$"))]
    #[x_kube(validation = kube::core::Rule::new("!(self.lowerAscii() in ['host', 'content-length', 'transfer-encoding', 'connection', 'keep-alive', 'proxy-connection', 'te', 'trailer', 'upgrade'])")
        .message("this header frames or routes the message and cannot be changed; to change the host use URLRewrite"))]
    pub name: String,
    /// Value.
    #[schemars(length(min = 1, max = 4096), regex(pattern = "^[\\x20-\\x7e\\t]+$"))]
    pub value: String,
}

/// A redirection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestRedirect {
    /// Scheme of the location: http or https. Default: the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// Host of the location. Default: the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub hostname: Option<String>,
    /// Path of the location. Default: the request's. The query is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
    /// Port of the location. Default: that of `scheme` if it is given, else the Service's. 80 and 443 are left out where
    /// the scheme implies them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308. Default: 302.
    #[serde(default = "RequestRedirect::default_status_code")]
    #[schemars(extend("enum" = [301, 302, 303, 307, 308]))]
    pub status_code: u16,
}

impl RequestRedirect {
    fn default_status_code() -> u16 {
        302
    }
}

/// Schemes of a location.
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
    /// Replaces the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub hostname: Option<String>,
    /// Replaces the path; the query is kept.
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
    /// ReplaceFullPath or ReplacePrefixMatch (the prefix that matched).
    #[serde(rename = "type")]
    pub kind: PathModifierType,
    /// For type ReplaceFullPath.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = "^/[^?#\\s]*$"))]
    pub replace_full_path: Option<String>,
    /// For type ReplacePrefixMatch.
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

/// An answer without a backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DirectResponse {
    /// 200 to 599.
    #[schemars(range(min = 200, max = 599))]
    pub status: u16,
    /// Text of the answer. Default: empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub body: String,
}

/// Which pages of other origins a browser lets call. The proxy answers preflight requests by itself, 204 or for another origin
/// 403, and adds the headers to all other responses of the rule. A preflight goes by the rule that takes the request it
/// asks about. What the backend says about origins is taken away, so that it does not contradict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("!(self.allowCredentials && has(self.exposeHeaders) && '*' in self.exposeHeaders)")
        .message("browsers do not know exposeHeaders '*' together with allowCredentials: name the headers")
)]
pub struct Cors {
    /// Origins that may: `*`, or scheme and host and perhaps port, as in `https://shop.example`. Without a port it is that of
    /// the scheme, 80 or 443. `https://*.example` takes every host below, `a.example` and `a.b.example`, and
    /// `https://*` every host.
    #[schemars(
        length(min = 1, max = 64),
        inner(length(max = 253), regex(pattern = "^(\\*|https?://(\\*|(\\*\\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?)(:[0-9]{1,5})?)$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = kube::core::Rule::new("!('*' in self && self.size() > 1)").message("'*' takes every origin: no other can stand beside it"))]
    pub allow_origins: Vec<String>,
    /// Whether browsers may send cookies and the like along.
    #[serde(default)]
    pub allow_credentials: bool,
    /// Methods that may be used beside GET, HEAD and POST, which always may. `*`: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 9),
        inner(length(max = 7), regex(pattern = "^(\\*|GET|HEAD|POST|PUT|DELETE|CONNECT|OPTIONS|TRACE|PATCH)$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = kube::core::Rule::new("!('*' in self && self.size() > 1)").message("'*' takes every method: no other can stand beside it"))]
    pub allow_methods: Vec<String>,
    /// Headers that requests may have beside those that always may. `*`: all (without credentials all but Authorization, which
    /// browsers want named).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = kube::core::Rule::new("!('*' in self && self.size() > 1)").message("'*' takes every header: no other can stand beside it"))]
    pub allow_headers: Vec<String>,
    /// Headers of responses that pages may read beside those that they always may. `*`: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+\\-.^_\\x60|~]+$")),
        extend("x-kubernetes-list-type" = "set")
    )]
    #[x_kube(validation = kube::core::Rule::new("!('*' in self && self.size() > 1)").message("'*' takes every header: no other can stand beside it"))]
    pub expose_headers: Vec<String>,
    /// How long a browser may remember what a preflight said, in seconds. Default: 5.
    #[serde(default = "Cors::default_max_age")]
    #[schemars(range(min = 1, max = 86_400))]
    pub max_age: u32,
}

impl Cors {
    fn default_max_age() -> u32 {
        5
    }
}

/// Requests that wait or fail on purpose, to see what their callers make of it. The client's proxy does it, before anything
/// else; no backend sees a request that is aborted. Whether a request waits and whether it is aborted are decided apart,
/// so some do both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("has(self.delay) || has(self.abort)").message("a fault needs a delay or an abort"))]
pub struct Fault {
    /// Makes requests wait. The wait is part of the request's time: with `timeouts.request` shorter than it, the client gets
    /// 504 as it would from a slow backend. It is no part of an attempt's time (`timeouts.backendRequest`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<FaultDelay>,
    /// Answers requests with an error, with the reason `fault` in the header `weft-reason`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<FaultAbort>,
}

/// A wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("!(has(self.percent) && has(self.fraction))").message("give percent or fraction, not both"))]
pub struct FaultDelay {
    /// How long.
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('5m')")
        .message("fault.delay.duration must be between 1ms and 5m"))]
    pub duration: Duration,
    /// How many of a hundred requests wait. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// The same, finer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
}

/// An error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("!(has(self.percent) && has(self.fraction))").message("give percent or fraction, not both"))]
pub struct FaultAbort {
    /// Status of the answer, 400 to 599. A gRPC client gets the gRPC status that stands for it.
    #[schemars(range(min = 400, max = 599))]
    pub status: u16,
    /// How many of a hundred requests are aborted. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// The same, finer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
}

/// Copies of requests to another backend. Each goes to one of its pods; what that answers is read and thrown away, and
/// nothing about it delays or fails the request itself. A copy is the request as it is sent to the rule's own backend, and is
/// sent when all of its body is there; one with a body of more than 64 KiB, or with trailers, is not sent, and neither are
/// WebSockets and their like. Each worker of a proxy has at most 100 copies under way; beyond, none is made. The metric
/// `weft_mirrored_requests_total` says what came of each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("!(has(self.percent) && has(self.fraction))").message("give percent or fraction, not both"))]
pub struct RequestMirror {
    /// Where copies go. While it does not exist no copies are made, and the condition ResolvedRefs says so.
    pub backend_ref: MirrorRef,
    /// How many of a hundred requests are copied. Default: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// The same, finer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
    /// What is put behind the host of copies, before the port, by which the backend tells them from requests: `-shadow`.
    /// Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[-a-z0-9.]*[a-z0-9]$"))]
    pub host_suffix: Option<String>,
}

/// Where copies go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MirrorRef {
    /// Kind of the backend.
    #[serde(default)]
    pub kind: ServiceKind,
    /// Namespace of the Service; by default the route's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Name of the Service.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Port of the Service.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Name of a subset in the Service's MeshCluster. Default: all pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub subset: Option<String>,
}

/// A pace that requests of the rule must keep, by a token bucket. Each client pod's proxy keeps its own count, over all its
/// workers: with ten client pods the Service may see ten times the pace. Requests beyond it are answered 429 with
/// `retry-after` and the reason `rate-limited`; `ratelimit-limit`, `ratelimit-remaining` and `ratelimit-reset` stand on every
/// response of the rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct RateLimit {
    /// How many requests.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// In how long. Default: 1s.
    #[serde(default = "RateLimit::default_per")]
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')")
        .message("rateLimit.per must be between 1s and 24h"))]
    pub per: Duration,
    /// How many may come at once after a quiet time. Default: as `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<u32>,
    /// What tells callers apart, so that each has a pace of its own. Requests without it count as one caller. At most 10000
    /// callers are told apart at once; those beyond count as one. Default: all requests of the rule count together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<RateLimitKey>,
}

impl RateLimit {
    fn default_per() -> Duration {
        Duration("1s".into())
    }
}

/// What tells callers apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("self.type == 'SourceAddress' ? !has(self.name) : has(self.name)")
        .message("Header, QueryParam and Cookie need a name; SourceAddress has none"),
    validation = kube::core::Rule::new("!has(self.name) || self.type == 'QueryParam' || self.name.matches('^[A-Za-z0-9!#$%&\\'*+.^_`|~-]+$')")
        .message("this cannot be the name of a header or cookie")
)]
pub struct RateLimitKey {
    /// Header, QueryParam or Cookie: its first value. SourceAddress: the address that the connection comes from; in a client
    /// pod that is the pod's own.
    #[serde(rename = "type")]
    pub kind: RateLimitKeyType,
    /// Name of the header, query parameter or cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
}

/// Types of keys.
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

/// A part of all requests, each taken or left by chance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = kube::core::Rule::new("self.numerator <= self.denominator").message("a fraction's numerator is at most its denominator"))]
pub struct Fraction {
    /// How many.
    #[schemars(range(min = 0, max = 1_000_000))]
    pub numerator: u32,
    /// Of how many. Default: 100.
    #[serde(default = "Fraction::default_denominator")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub denominator: u32,
}

impl Fraction {
    fn default_denominator() -> u32 {
        100
    }
}

/// A share of a rule's requests.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    /// Kind of the backend.
    #[serde(default)]
    pub kind: ServiceKind,
    /// Namespace of the Service; by default the route's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Name of the Service.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Port of the Service.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Name of a subset in the Service's MeshCluster. Default: all pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub subset: Option<String>,
    /// The backend's share is its weight divided by the sum of all. 0: none.
    #[serde(default = "BackendRef::default_weight")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub weight: u32,
}

impl BackendRef {
    fn default_weight() -> u32 {
        1
    }
}

/// How long a request may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("!has(self.request) || !has(self.backendRequest) || duration(self.request) == duration('0s') || duration(self.backendRequest) <= duration(self.request)")
        .message("backendRequest must not be longer than request")
)]
pub struct Timeouts {
    /// For the whole request, retries included, until the last byte of the response. Then the client gets 504. Default: no
    /// limit; 0s means the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("duration(self) <= duration('24h')").message("timeouts.request must be at most 24h"))]
    pub request: Option<Duration>,
    /// For one attempt, until the response's head. Default: no limit of its own; 0s means the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("duration(self) <= duration('24h')").message("timeouts.backendRequest must be at most 24h"))]
    pub backend_request: Option<Duration>,
}

/// When a request is tried again. Failed connections always are, also without this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Retry {
    /// How often at most, beside the first attempt. Default: 1.
    #[serde(default = "Retry::default_attempts")]
    #[schemars(range(min = 1, max = 10))]
    pub attempts: u32,
    /// Statuses that are tried again. Connections that break and attempts that time out are too. A gRPC status counts as the
    /// HTTP status that stands for it: UNAVAILABLE is 503, DEADLINE_EXCEEDED 504, RESOURCE_EXHAUSTED 429, CANCELLED 499, ABORTED
    /// 409, INTERNAL, UNKNOWN and DATA_LOSS are 500. gRPC's method is POST: add it to `methods`. A gRPC status behind a
    /// message is not looked at. Default: 502, 503, 504.
    #[serde(default = "Retry::default_codes")]
    #[schemars(length(max = 16), inner(range(min = 400, max = 599)), extend("x-kubernetes-list-type" = "set"))]
    pub codes: Vec<u16>,
    /// Methods that may be repeated after a backend has seen the request. Default: the idempotent ones, GET, HEAD, OPTIONS,
    /// TRACE, PUT and DELETE. Add POST or PATCH only where the backend recognises a repetition. A request with a body of
    /// more than 64 KiB, or with trailers, is not repeated.
    #[serde(default = "Retry::default_methods")]
    #[schemars(length(min = 1, max = 9), extend("x-kubernetes-list-type" = "set"))]
    pub methods: Vec<Method>,
    /// The shortest wait before the first repetition; it doubles with each, up to ten times it, and up to half of it is
    /// added at random. Default: 25ms.
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

/// When a request that is not answered yet goes to another pod as well. The first good answer counts, and the other pod's
/// request is cancelled; good is what `retry` would not repeat. For requests that might be repeated: of the methods of `retry`,
/// or without `retry` of the idempotent ones, with a body of at most 64 KiB, and not tied to a pod by a session cookie. Each
/// counts as a retry in the budget of the MeshCluster, and as a request in its limits; where those allow none, none is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hedge {
    /// How long an answer is waited for. Take what 95 of 100 requests need: then 5 more are sent.
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('1m')")
        .message("hedge.after must be between 1ms and 1m"))]
    pub after: Duration,
    /// How many more pods at most, each after as long a wait. Default: 1.
    #[serde(default = "Hedge::default_attempts")]
    #[schemars(range(min = 1, max = 3))]
    pub attempts: u32,
}

impl Hedge {
    fn default_attempts() -> u32 {
        1
    }
}
