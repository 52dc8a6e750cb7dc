//! MeshCluster: how to talk to a Service.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;
use crate::refs::ServiceRef;
use crate::status::Status;

/// How proxies talk to a Service: which subsets of its pods exist, how a pod is chosen, how much may be open at once.
///
/// ```yaml
/// apiVersion: weft.dev/v1alpha1
/// kind: MeshCluster
/// metadata: {name: reviews, namespace: shop}
/// spec:
///   targetRef: {kind: Service, name: reviews}
///   subsets:
///   - {name: v1, labels: {version: v1}}
///   - {name: v2, labels: {version: v2}}
///   loadBalancer: {policy: PeakEWMA}
/// ```
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MeshCluster",
    plural = "meshclusters",
    shortname = "mcl",
    category = "weft",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.targetRef.name"),
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
pub struct MeshClusterSpec {
    /// The Service, in this namespace. One MeshCluster governs a Service; of several the oldest does.
    pub target_ref: ServiceRef,
    /// Named parts of the Service's pods, for routes to send to. A pod may be in several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub subsets: Vec<Subset>,
    /// How a pod is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// How connections are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Connect>,
    /// What each proxy may have open to the Service. A request beyond is answered 503 at once, with the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// When a pod that fails is left alone for a while. On by default, with the defaults of its fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// Asks pods how they are, from every proxy that sends to the Service. Default: nobody is asked; Kubernetes says which
    /// pods are ready, and outlierDetection sees which fail.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// How much the retries of MeshRoutes may add to what is sent to the Service. On by default, with the defaults of its
    /// fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
}

/// A named part of a Service's pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    /// The name that routes use.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Labels that a pod must have to be in it; all of them.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 16))]
    pub labels: BTreeMap<String, String>,
}

/// How a pod is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("(self.policy in ['RingHash', 'Maglev']) == has(self.hashOn)")
        .message("the policies RingHash and Maglev need hashOn, and the others have none"),
    validation = kube::core::Rule::new("!has(self.slowStart) || !(self.policy in ['RingHash', 'Maglev'])")
        .message("slowStart has no effect with the policies RingHash and Maglev: a key stays with its pod")
)]
pub struct LoadBalancer {
    /// PeakEWMA (default): of two pods at random, the one that answers faster, with its open requests counted in.
    /// LeastRequest: of two pods at random, the one with fewer open requests. RoundRobin: one after the other. Random: any.
    /// RingHash and Maglev: requests with the same key (see hashOn) go to the same pod, and a pod that comes or goes moves
    /// little but its own share of the keys; RingHash moves the fewest, Maglev shares most evenly.
    #[serde(default)]
    pub policy: BalancerPolicy,
    /// The key of RingHash and Maglev. A request without it goes to any pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<HashOn>,
    /// Ties a client to the pod that answered it first, by a cookie that the proxy sets. Works with every policy: that one
    /// chooses for a client without the cookie, and again when the client's pod is gone or ejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky_session: Option<StickySession>,
    /// Gives a pod that joins, or comes back after it was ejected, a share that grows. Default: it gets its share at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
    /// Whether zones matter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<TrafficDistribution>,
    /// Percent of the pods that must be well for the others to be left alone. When fewer are, all are used again: a few
    /// pods that are well would not survive the traffic of all. Default 50. 0: pods that are not well are never used, and a
    /// request is answered 503 when none is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub panic_threshold: Option<u32>,
}

/// How a pod is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BalancerPolicy {
    /// See [`LoadBalancer::policy`].
    #[default]
    #[serde(rename = "PeakEWMA")]
    PeakEwma,
    /// See [`LoadBalancer::policy`].
    LeastRequest,
    /// See [`LoadBalancer::policy`].
    RoundRobin,
    /// See [`LoadBalancer::policy`].
    Random,
    /// See [`LoadBalancer::policy`].
    RingHash,
    /// See [`LoadBalancer::policy`].
    Maglev,
}

/// PreferSameZone: requests go to pods in the zone of the client's own node as long as 72 % of those there are well; below,
/// pods of other zones take the part that those cannot. Any: zones do not matter. Default: what the Service's own field
/// trafficDistribution says, else Any. A client on a node without a zone goes to any pod.
// The schema has the words of the type, and not those of the field, where a choice among words may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrafficDistribution {
    /// See [`LoadBalancer::traffic_distribution`].
    Any,
    /// See [`LoadBalancer::traffic_distribution`].
    PreferSameZone,
}

/// What of a request is its key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("has(self.name) == (self.type != 'SourceAddress')")
        .message("Header, Cookie and QueryParam need a name, and SourceAddress has none"),
    validation = kube::core::Rule::new("!has(self.name) || self.type == 'QueryParam' || self.name.matches('^[A-Za-z0-9!#$%&*+.^_`|~-]+$')")
        .message("this cannot be the name of a header or cookie")
)]
pub struct HashOn {
    /// Header: the first value of the header. Cookie: the cookie's value. QueryParam: the first value of the query parameter.
    /// SourceAddress: the address that the connection comes from, which in a pod's own proxy is the pod: all requests of a
    /// pod go to the same one.
    #[serde(rename = "type")]
    pub kind: HashOnType,
    /// Name of the header, cookie or query parameter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
}

/// What of a request is its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum HashOnType {
    /// See [`HashOn::kind`].
    Header,
    /// See [`HashOn::kind`].
    Cookie,
    /// See [`HashOn::kind`].
    QueryParam,
    /// See [`HashOn::kind`].
    SourceAddress,
}

/// A cookie that ties a client to a pod. Its value names the pod by a hash of its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StickySession {
    /// Name of the cookie. Default weft-session.
    #[serde(default = "session_name")]
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub name: String,
    /// The path that clients send the cookie with. Default /.
    #[serde(default = "session_path")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^/[!-+.-:<-~-]*$"))]
    pub path: String,
    /// How long clients keep the cookie. Default: until they close.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('8760h')")
        .message("stickySession.ttl must be between 1s and 8760h"))]
    pub ttl: Option<Duration>,
}

/// How the share of a pod that joins grows: to `max(minPercent, (age / window) ^ (1 / aggression))` of what it will be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlowStart {
    /// After this time it has all of its share.
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')")
        .message("slowStart.window must be between 1s and 1h"))]
    pub window: Duration,
    /// Percent of its share that it gets at least. Default 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub min_percent: Option<u32>,
    /// How fast the share grows at first, in thousandths. Default 1000: evenly. Above: faster at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub aggression_permille: Option<u32>,
}

fn session_name() -> String {
    "weft-session".to_owned()
}

fn session_path() -> String {
    "/".to_owned()
}

/// How connections are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connect {
    /// How long a connection to a pod may take to be made; then another pod is tried. Default 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('5m')")
        .message("connect.timeout must be between 1ms and 5m"))]
    pub timeout: Option<Duration>,
}

/// What each proxy may have open to one port of the Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Connections. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: Option<u32>,
    /// Requests in flight. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_requests: Option<u32>,
    /// Requests that wait because all connections are in use. Default: 1024. 0: none waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_pending: Option<u32>,
}

/// When a pod that fails more than others is left alone for a while (ejected): no new request goes to it. Each proxy judges
/// by what it sees itself. The last pod is never ejected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("!has(self.maxEjectionTime) || duration(self.maxEjectionTime) >= duration(has(self.baseEjectionTime) ? self.baseEjectionTime : '30s')")
        .message("maxEjectionTime must not be shorter than baseEjectionTime")
)]
pub struct OutlierDetection {
    /// false: no pod is ejected. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// After so many answers 5xx in a row a pod is ejected; an error of gRPC counts as the status that stands for it. Default
    /// 5. 0: not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub consecutive_5xx: Option<u32>,
    /// After so many answers 502, 503 or 504 in a row. Default 5. 0: not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub consecutive_gateway_errors: Option<u32>,
    /// After so many connections that failed or broke, or attempts that timed out, in a row. Default 5. 0: not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub consecutive_local_failures: Option<u32>,
    /// How often success rates are compared. Default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')")
        .message("outlierDetection.interval must be between 1s and 1h"))]
    pub interval: Option<Duration>,
    /// How long the first ejection lasts; each further one in a row lasts longer by as much. Default 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')")
        .message("outlierDetection.baseEjectionTime must be between 1s and 1h"))]
    pub base_ejection_time: Option<Duration>,
    /// How long an ejection may last. Default 5m, or baseEjectionTime if that is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')")
        .message("outlierDetection.maxEjectionTime must be between 1s and 24h"))]
    pub max_ejection_time: Option<Duration>,
    /// A further pod is ejected only while fewer than this percentage of all are. Default 10, which always leaves room for
    /// one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_ejection_percent: Option<u32>,
    /// Ejects a pod whose share of successful answers is far below that of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
}

/// Which share of successful answers is too low: below the mean of all pods by a number of standard deviations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SuccessRate {
    /// So many pods must have had enough requests for a comparison. Default 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 10_000))]
    pub min_pods: Option<u32>,
    /// Requests that are enough, in one interval. Default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Option<u32>,
    /// The number of standard deviations, in thousandths. Default 1900, which is 1.9. 0: not looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub deviations_permille: Option<u32>,
}

/// Asks pods how they are. A pod that is not well gets no request while enough others are (see
/// loadBalancer.panicThreshold). Pods are taken to be well until they answer otherwise. The questions come from the proxies of
/// clients, so MeshPolicies of the pods apply to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("self.type == 'HTTP' ? has(self.path) : !has(self.path) && !has(self.host)")
        .message("HTTP needs a path; path and host are for HTTP only"),
    validation = kube::core::Rule::new("self.type == 'GRPC' || !has(self.service)")
        .message("service is for GRPC only"),
    validation = kube::core::Rule::new("duration(has(self.timeout) ? self.timeout : '1s') <= duration(has(self.interval) ? self.interval : '10s')")
        .message("healthCheck.timeout must not be longer than the interval")
)]
pub struct HealthCheck {
    /// HTTP: a GET that is answered 200 to 399. TCP: a connection that opens. GRPC: `grpc.health.v1.Health/Check` that is
    /// answered SERVING.
    #[serde(rename = "type")]
    pub kind: HealthCheckType,
    /// HTTP: the path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^/[!-~]*$"))]
    pub path: Option<String>,
    /// HTTP: the host that is named. Default: the pod's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[A-Za-z0-9.:-]+$"))]
    pub host: Option<String>,
    /// GRPC: the service asked about. Default: the whole server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 127))]
    pub service: Option<String>,
    /// The pods' port that is asked. Default: that of the traffic.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<u16>,
    /// From one question to the next, a quarter more or less. Default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('500ms') && duration(self) <= duration('1h')")
        .message("healthCheck.interval must be between 500ms and 1h"))]
    pub interval: Option<Duration>,
    /// How long an answer may take. Default 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('1h')")
        .message("healthCheck.timeout must be between 1ms and 1h"))]
    pub timeout: Option<Duration>,
    /// Failures in a row after which a pod is not well. Default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_threshold: Option<u32>,
    /// Successes in a row after which it is well again. Default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub healthy_threshold: Option<u32>,
}

/// How a pod is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum HealthCheckType {
    /// See [`HealthCheck::kind`].
    Http,
    /// See [`HealthCheck::kind`].
    Tcp,
    /// See [`HealthCheck::kind`].
    Grpc,
}

/// How much the retries of MeshRoutes may add to what one proxy sends to the Service, so that a Service that fails is not
/// drowned in repetitions. A retry that the budget does not allow is not made, and the client gets the answer that there
/// is. Repetitions of what no pod has seen are not counted: they add nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetryBudget {
    /// Retries for each hundred requests: so many at most of any thousand requests or more in a row. Default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// Retries in a second that are allowed however few requests there are. It takes effect where `percent` of the
    /// requests of a second are fewer: by default below some 50 requests a second, which may then be sent more than 1.2
    /// times. Default 10, as in Linkerd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub min_per_second: Option<u32>,
}
