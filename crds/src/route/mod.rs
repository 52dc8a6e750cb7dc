//! MeshRoute: routing of HTTP requests, TLS connections and TCP connections that clients send to a Service.
//!
//! Constants have the longer validation rules of the schema (CEL) and the parts that several rules share.

mod backend;
mod filters;
mod matches;
mod resilience;

pub use backend::{BackendFilter, BackendFilterType, HttpBackendRef};
use backend::{PREFIX_OF_BACKENDS_IS_MATCHED, backends_fit_connect};
pub use filters::*;
use filters::{
    ANSWERS_BY_ITSELF, FILTERS_MAX, TYPES_ALLOWED_ONCE, TYPES_FOR_BACKENDS, TYPES_FOR_BACKENDS_MESSAGE,
    TYPES_FOR_CONNECT,
};
use kube::{CustomResource, KubeSchema};
pub use matches::{
    HeaderMatch, HttpMatch, Method, PathMatch, PathMatchType, QueryParamMatch, TlsMatch, ValueMatchType,
};
pub use resilience::{Hedge, Retry, Timeouts};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::refs::{ParentRef, ServiceKind};
use crate::status::Status;

/// CEL: a route has rules.
const HAS_RULES: &str = "\
    (has(self.http) && size(self.http) > 0) || (has(self.tls) && size(self.tls) > 0) || \
    (has(self.tcp) && size(self.tcp) > 0)";

/// CEL: no two rules of a new route have one name. The API server refuses this too, but does not say how a rule without a
/// name is called.
const NEW_NAMES_ARE_UNIQUE: &str = "oldSelf.hasValue() || self.all(a, self.exists_one(b, a.name == b.name))";

/// CEL: no two rules of a changed route have one name. Routes that are older than this rule may keep such rules: their
/// status could not be written otherwise.
const NAMES_STAY_UNIQUE: &str = "\
    self.all(a, self.exists_one(b, a.name == b.name)) || !oldSelf.all(a, oldSelf.exists_one(b, a.name == b.name))";

/// Messages of these two.
const RULE_NAMES: &str =
    "rule names must be unique, and a rule without a name is called default: give each rule a name of its own";
const TLS_RULE_NAMES: &str =
    "rule names must be unique, and a rule without a name is called tls-default: give each rule a name of its own";

/// CEL: a rule has backends.
const HAS_BACKENDS: &str = "has(self.backendRefs) && size(self.backendRefs) > 0";

/// CEL: a backend has a weight.
const HAS_WEIGHT: &str = "self.backendRefs.exists(b, !has(b.weight) || b.weight > 0)";

/// CEL: a rule matches CONNECT.
const MATCHES_CONNECT: &str = "self.matches.exists(m, has(m.method) && m.method == 'CONNECT')";

/// CEL: not both filters that answer by themselves.
const HAS_ONE_ANSWER: &str = "\
    !has(self.filters) || !(self.filters.exists(f, f.type == 'RequestRedirect') && \
    self.filters.exists(f, f.type == 'DirectResponse'))";

/// CEL: where a filter replaces the matched prefix, every match has one.
const PREFIX_IS_MATCHED: &str = "\
    !has(self.filters) || !self.filters.exists(f, \
    (has(f.urlRewrite) && has(f.urlRewrite.path) && f.urlRewrite.path.type == 'ReplacePrefixMatch') || \
    (has(f.requestRedirect) && has(f.requestRedirect.path) && \
    f.requestRedirect.path.type == 'ReplacePrefixMatch')) || \
    (has(self.matches) && size(self.matches) > 0 && \
    self.matches.all(m, has(m.path) && (!has(m.path.type) || m.path.type == 'PathPrefix')))";

/// CEL: hedging starts before a timeout ends the request or the attempt. 0s is no timeout.
const HEDGE_IS_IN_TIME: &str = "\
    !has(self.hedge) || !has(self.timeouts) || \
    ((!has(self.timeouts.request) || duration(self.timeouts.request) == duration('0s') || \
    duration(self.hedge.after) < duration(self.timeouts.request)) && \
    (!has(self.timeouts.backendRequest) || duration(self.timeouts.backendRequest) == duration('0s') || \
    duration(self.hedge.after) < duration(self.timeouts.backendRequest)))";

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
/// Rules have names. With server-side apply, several managers can share a route, each with rules of its own: a manager
/// owns the rules that it applied, and new ones are added at the end. The order of rules matters only if they have
/// equal matches.
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
///   - name: canary
///     backendRefs:
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
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status",
        priority = 1
    ),
    printcolumn(
        name = "Resolved",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"ResolvedRefs\")].status",
        priority = 1
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status",
        priority = 1
    ),
    printcolumn(
        name = "In-Effect",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"InEffect\")].status",
        priority = 1
    ),
    printcolumn(name = "Generation", type_ = "integer", json_path = ".metadata.generation", priority = 1),
    printcolumn(name = "Observed", type_ = "integer", json_path = ".status.observedGeneration", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(HAS_RULES)
        .message("a route needs http, tls or tcp rules")
)]
pub struct MeshRouteSpec {
    /// The Services that the route is attached to.
    #[schemars(length(min = 1, max = 8))]
    pub parent_refs: Vec<ParentRef>,
    /// Rules for HTTP requests (HTTP/1.1, HTTP/2, gRPC, WebSocket). They do not apply to Service ports that are
    /// declared as opaque TCP (by appProtocol or port name).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(
        validation = Rule::new(NEW_NAMES_ARE_UNIQUE).optional_old_self(true).message(RULE_NAMES),
        validation = Rule::new(NAMES_STAY_UNIQUE).message(RULE_NAMES)
    )]
    pub http: Vec<HttpRule>,
    /// Rules for TLS connections, by the server name that the client asks for (SNI). TLS is not terminated. An exact
    /// name wins over a wildcard, a longer name over a shorter one. A connection without SNI, or with a name that
    /// matches no rule, is closed with the TLS alert `unrecognized_name`. They do not apply to Service ports that are
    /// declared as HTTP (by appProtocol or port name).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[x_kube(
        validation = Rule::new(NEW_NAMES_ARE_UNIQUE).optional_old_self(true).message(TLS_RULE_NAMES),
        validation = Rule::new(NAMES_STAY_UNIQUE).message(TLS_RULE_NAMES)
    )]
    pub tls: Vec<TlsRule>,
    /// The rule for opaque TCP connections. Without `tls` rules it also applies to TLS, and without `http` rules also
    /// to HTTP. If a port has only this rule, protocol detection is off. It does not apply to Service ports that are
    /// declared as HTTP (by appProtocol or port name).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub tcp: Vec<TcpRule>,
}

impl MeshRouteSpec {
    /// The backendRefs of all rules, without those of RequestMirror filters.
    pub fn backend_refs(&self) -> impl Iterator<Item = &BackendRef> {
        let http = self.http.iter().flat_map(|rule| &rule.backend_refs).map(|backend| &backend.backend);
        let tls = self.tls.iter().flat_map(|rule| &rule.backend_refs);
        let tcp = self.tcp.iter().flat_map(|rule| &rule.backend_refs);
        http.chain(tls).chain(tcp)
    }

    /// The backendRefs of all RequestMirror filters, of rules and of their backends.
    pub fn mirror_refs(&self) -> impl Iterator<Item = &MirrorRef> {
        let rules = self.http.iter().flat_map(|rule| &rule.filters).map(|filter| &filter.request_mirror);
        let backends = self.http.iter().flat_map(|rule| &rule.backend_refs).flat_map(|backend| &backend.filters);
        rules.chain(backends.map(|filter| &filter.request_mirror)).flatten().map(|mirror| &mirror.backend_ref)
    }
}

/// A rule for TLS connections: matches and backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(HAS_WEIGHT)
        .message("the weights of backendRefs sum to zero: give at least one a weight above 0")
)]
pub struct TlsRule {
    /// Name of the rule in logs and conditions, unique among the `tls` rules. Default: `tls-default`; of several rules
    /// all but one need a name.
    #[serde(default = "TlsRule::default_name")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Conditions: a connection matches the rule if it matches any of them.
    #[schemars(length(min = 1, max = 16))]
    pub matches: Vec<TlsMatch>,
    /// The Services that connections are sent to, by weight. The share of a backend that does not exist is closed.
    #[schemars(length(min = 1, max = 16))]
    pub backend_refs: Vec<BackendRef>,
}

impl TlsRule {
    fn default_name() -> String {
        "tls-default".to_owned()
    }
}

/// The rule for TCP connections: backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(HAS_WEIGHT)
        .message("the weights of backendRefs sum to zero: give at least one a weight above 0")
)]
pub struct TcpRule {
    /// Name of the rule in logs and conditions. Default: `tcp-default`.
    #[serde(default = "TcpRule::default_name")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// The Services that connections are sent to, by weight. The share of a backend that does not exist is closed.
    #[schemars(length(min = 1, max = 16))]
    pub backend_refs: Vec<BackendRef>,
}

impl TcpRule {
    fn default_name() -> String {
        "tcp-default".to_owned()
    }
}

/// A rule for HTTP requests: matches, filters, backends, timeouts and retries.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(format!("!({HAS_BACKENDS} && has(self.filters) && {ANSWERS_BY_ITSELF})"))
        .message("a rule with a RequestRedirect or DirectResponse filter has no backend: remove its backendRefs"),
    validation = Rule::new(format!("({HAS_BACKENDS}) || (has(self.filters) && {ANSWERS_BY_ITSELF})"))
        .message("a rule needs backendRefs, or a RequestRedirect or DirectResponse filter"),
    validation = Rule::new(format!("!has(self.backendRefs) || size(self.backendRefs) == 0 || {HAS_WEIGHT}"))
        .message("the weights of backendRefs sum to zero: give at least one a weight above 0"),
    validation = Rule::new(format!(
        "!has(self.filters) || !{ANSWERS_BY_ITSELF} || !self.filters.exists(f, f.type in {TYPES_FOR_BACKENDS})"
    ))
        .message(TYPES_FOR_BACKENDS_MESSAGE),
    validation = Rule::new(format!(
        "!has(self.filters) || {TYPES_ALLOWED_ONCE}.all(t, self.filters.filter(f, f.type == t).size() <= 1)"
    ))
        .message("a filter type may appear once in a rule, RequestMirror 4 times"),
    validation = Rule::new("!has(self.filters) || self.filters.filter(f, f.type == 'RequestMirror').size() <= 4")
        .message("a rule has at most 4 RequestMirror filters"),
    validation = Rule::new(HAS_ONE_ANSWER)
        .message("RequestRedirect and DirectResponse cannot be combined in a rule"),
    validation = Rule::new(PREFIX_IS_MATCHED)
        .message("ReplacePrefixMatch needs a PathPrefix in every match of the rule"),
    validation = Rule::new(format!("!(has(self.timeouts) || has(self.retry) || has(self.hedge)) || ({HAS_BACKENDS})"))
        .message("timeouts, retry and hedge have no effect with RequestRedirect or DirectResponse: remove them"),
    validation = Rule::new(HEDGE_IS_IN_TIME)
        .message("hedge.after must be shorter than timeouts.request and timeouts.backendRequest: no hedged request \
                  would be sent"),
    validation = Rule::new(format!(
        "!has(self.matches) || !{MATCHES_CONNECT} || self.matches.all(m, has(m.method) && m.method == 'CONNECT')"
    ))
        .message("a rule that matches CONNECT cannot match other methods: move its other matches to another rule"),
    validation = Rule::new(format!(
        "!has(self.matches) || !{MATCHES_CONNECT} || \
         !has(self.filters) || self.filters.all(f, f.type in {TYPES_FOR_CONNECT})"
    ))
        .message("a rule that matches CONNECT may only have filters of type ResponseHeaderModifier, RateLimit and \
                  Fault: a tunnel has no request that other filters could change or copy"),
    validation = Rule::new(format!(
        "!has(self.matches) || !{MATCHES_CONNECT} || \
         !(has(self.retry) || has(self.hedge) || (has(self.timeouts) && has(self.timeouts.backendRequest)))"
    ))
        .message("a rule that matches CONNECT cannot have retry, hedge or timeouts.backendRequest: other pods are \
                  tried anyway; set connect.timeout in the MeshCluster to limit connection attempts"),
    validation = Rule::new(PREFIX_OF_BACKENDS_IS_MATCHED)
        .message("ReplacePrefixMatch in a filter of a backendRef needs a PathPrefix in every match of the rule"),
    validation = Rule::new(backends_fit_connect())
        .message("in a rule that matches CONNECT, backendRefs may only have filters of type ResponseHeaderModifier: a \
                  tunnel has no request that other filters could change or copy")
)]
pub struct HttpRule {
    /// Name of the rule in logs, headers and conditions, unique among the `http` rules. Default: `default`; of several
    /// rules all but one need a name.
    #[serde(default = "HttpRule::default_name")]
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Conditions: a request matches the rule if it matches any of them. Default: every request matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub matches: Vec<HttpMatch>,
    /// Changes to requests and responses, or a response without a backend. Order in the list does not matter: CORS is
    /// applied first, then RateLimit, then Fault, then the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = FILTERS_MAX))]
    pub filters: Vec<HttpFilter>,
    /// The Services that requests are sent to, by weight. Requests to a backend that does not exist are answered 500,
    /// to one without ready pods 503.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub backend_refs: Vec<HttpBackendRef>,
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

impl HttpRule {
    fn default_name() -> String {
        "default".to_owned()
    }
}

/// A Service, or a subset of its pods, that gets a share of a rule's requests or connections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BackendRef {
    /// Kind of the backend. Default: Service.
    #[serde(default)]
    pub kind: ServiceKind,
    /// Namespace of the Service. Default: the route's namespace. Another namespace must allow it with a
    /// ReferenceGrant of the Gateway API, from kind MeshRoute of group weft.dev to kind Service.
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
