//! MeshCluster: subsets, load balancing, connection limits, outlier detection, health checks and retry budget of a
//! Service.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;
use crate::refs::ServiceRef;
use crate::status::Status;

/// CEL: the policy of a load balancer is one that hashes.
const HASHES: &str = "has(self.policy) && self.policy in ['RingHash', 'Maglev']";

/// Settings of the traffic to one Service, used by all proxies that send to it: subsets of its pods, load balancing,
/// connect timeout, limits (circuit breaking), outlier detection, health checks and the retry budget. What Istio
/// calls a DestinationRule.
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
pub struct MeshClusterSpec {
    /// The Service, in the MeshCluster's own namespace. A Service has one MeshCluster: if several target it, the
    /// oldest applies and the others get the condition Accepted=False with the reason Conflicted.
    pub target_ref: ServiceRef,
    /// Named subsets of the Service's pods, selected by labels, for the backendRefs of MeshRoutes. A pod may be in
    /// several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub subsets: Vec<Subset>,
    /// How a pod is chosen for each request or TCP connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// Settings for new connections to pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Connect>,
    /// Limits on connections and requests of each client proxy (circuit breaking). A request above a limit is
    /// answered 503 immediately, with the reason in the header `weft-reason`. Default: no limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// Ejects failing pods from load balancing for a while. On by default, with the defaults of its fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlier_detection: Option<OutlierDetection>,
    /// Active health checks: every proxy that sends to the Service probes its pods. Default: none. Without them,
    /// readiness comes from Kubernetes, and outlierDetection finds failing pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Limits the retries of all MeshRoutes to the Service as a share of its requests. On by default, with the
    /// defaults of its fields.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
}

/// A named subset of a Service's pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    /// Name of the subset, used in backendRefs of MeshRoutes.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Pods with all of these labels are in the subset. Example: `{version: v1}`.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 16))]
    pub labels: BTreeMap<String, String>,
}

/// How a pod is chosen for each request or TCP connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new(format!("({HASHES}) == has(self.hashOn)"))
        .message("policies RingHash and Maglev require hashOn; remove hashOn for other policies"),
    validation = Rule::new(format!("!has(self.slowStart) || !({HASHES})"))
        .message("slowStart has no effect with policies RingHash and Maglev: remove it")
)]
pub struct LoadBalancer {
    /// Load balancing policy. Default: PeakEWMA.
    ///
    /// PeakEWMA: of two random pods, the one with the lower product of latency (moving average) and open requests.
    /// LeastRequest: of two random pods, the one with fewer open requests. RoundRobin: each pod in turn. Random: a
    /// random pod. RingHash and Maglev: consistent hashing: requests with the same key (see hashOn) go to the same
    /// pod, and when a pod is added or removed few other keys move. RingHash moves the fewest keys, Maglev spreads
    /// them most evenly.
    #[serde(default)]
    pub policy: BalancerPolicy,
    /// The hash key of RingHash and Maglev; required for these. A request without the key goes to a random pod. What
    /// Istio calls `consistentHash`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<HashOn>,
    /// Session affinity: ties a client to the pod that answered its first request, with a cookie that the proxy sets.
    /// Works with every policy: the policy chooses the pod of a client without the cookie, and chooses again when the
    /// client's pod is gone, unhealthy or ejected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky_session: Option<StickySession>,
    /// Increases the share of a new pod, or of one that returns after an ejection, gradually. Default: a pod gets its
    /// full share immediately.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
    /// Whether pods in the client's zone are preferred.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_distribution: Option<TrafficDistribution>,
    /// Panic threshold, in percent. When fewer than this percentage of pods are healthy and not ejected, unhealthy
    /// and ejected pods receive traffic too, so that the few are not overloaded. Default: 50. 0 disables it:
    /// unhealthy pods are never used, and a request is answered 503 when no pod is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub panic_threshold: Option<u32>,
}

/// How a pod is chosen for each request or TCP connection.
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

/// Whether pods in the client's zone are preferred. Default: the Service's own field `trafficDistribution`, else Any.
///
/// PreferSameZone: requests go to pods in the zone of the client's node while at least 72 % of the pods there are
/// healthy; below that, pods in other zones get the rest (with 50 % healthy, 30 % of the requests). Any: zones are
/// ignored. A client on a node without a zone label sends to pods in all zones.
// The schema generator takes the description of an optional enum field from its type, not from the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TrafficDistribution {
    /// See [`LoadBalancer::traffic_distribution`].
    Any,
    /// See [`LoadBalancer::traffic_distribution`].
    PreferSameZone,
}

/// Which part of a request is the hash key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.name) == (self.type != 'SourceAddress')")
        .message("types Header, Cookie and QueryParam require a name; remove name for SourceAddress"),
    validation = Rule::new("!has(self.name) || self.type == 'QueryParam' || self.name.matches('^[A-Za-z0-9!#$%&*+.^_`|~-]+$')")
        .message("name is not a valid header or cookie name")
)]
pub struct HashOn {
    /// Where the key comes from. Header: the first value of the header. Cookie: the value of the cookie. QueryParam:
    /// the first value of the query parameter. SourceAddress: the client's IP address; in the proxy of a client pod
    /// that is the pod's own, so all requests of a pod go to the same pod.
    #[serde(rename = "type")]
    pub kind: HashOnType,
    /// Name of the header, cookie or query parameter. Example: `x-user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub name: Option<String>,
}

/// Which part of a request is the hash key.
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

/// A session cookie. Its value identifies the pod by a hash of its address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct StickySession {
    /// Name of the cookie. Default: `weft-session`.
    #[serde(default = "session_name")]
    #[schemars(length(min = 1, max = 256), regex(pattern = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$"))]
    pub name: String,
    /// Path attribute of the cookie: clients send it with requests below this path. Default: `/`.
    #[serde(default = "session_path")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^/[!-+.-:<-~-]*$"))]
    pub path: String,
    /// How long clients keep the cookie (Max-Age), 1s to 8760h. Default: a session cookie, kept until the browser
    /// closes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('8760h')")
        .message("stickySession.ttl must be between 1s and 8760h"))]
    pub ttl: Option<Duration>,
}

/// Gradual increase of a new pod's share of requests: to `max(minPercent, (age / window) ^ (1 / aggression))` of its
/// full share. What Istio calls `warmup`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct SlowStart {
    /// Time until the pod has its full share, 1s to 1h. Example: `30s`.
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')")
        .message("slowStart.window must be between 1s and 1h"))]
    pub window: Duration,
    /// The share that a new pod starts with, in percent of its full share. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub min_percent: Option<u32>,
    /// Aggression, in thousandths: above 1000 the share grows faster at first, below 1000 more slowly. Default: 1000,
    /// linear growth.
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

/// Settings for new connections to pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connect {
    /// Connect timeout, 1ms to 5m; then another pod is tried. Default: 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('5m')")
        .message("connect.timeout must be between 1ms and 5m"))]
    pub timeout: Option<Duration>,
}

/// Circuit breaker limits, for each client proxy and each port of the Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Maximum open connections. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: Option<u32>,
    /// Maximum requests in flight. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_requests: Option<u32>,
    /// Maximum requests that wait for a connection while maxConnections are in use; has no effect without
    /// maxConnections. Default: 1024. 0: requests do not wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_pending: Option<u32>,
}

/// Ejects pods that fail: an ejected pod gets no new requests for a while (see baseEjectionTime). Each proxy counts
/// only what it sees itself. The last pod is never ejected.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.maxEjectionTime) || duration(self.maxEjectionTime) >= duration(has(self.baseEjectionTime) ? self.baseEjectionTime : '30s')")
        .message("maxEjectionTime must not be shorter than baseEjectionTime")
)]
pub struct OutlierDetection {
    /// Whether pods are ejected. Default: true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Consecutive 5xx responses after which a pod is ejected. A gRPC error counts as the corresponding HTTP status.
    /// Default: 5. 0: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub consecutive_5xx: Option<u32>,
    /// Consecutive 502, 503 or 504 responses after which a pod is ejected. Default: 5. 0: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub consecutive_gateway_errors: Option<u32>,
    /// Consecutive local failures (failed or broken connections, timed out attempts) after which a pod is ejected.
    /// Default: 5. 0: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 10_000))]
    pub consecutive_local_failures: Option<u32>,
    /// How often success rates are compared, 1s to 1h. Each interval at whose end a pod is not ejected makes its next
    /// ejection one step shorter. Default: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')")
        .message("outlierDetection.interval must be between 1s and 1h"))]
    pub interval: Option<Duration>,
    /// Duration of the first ejection, 1s to 1h. Each further one in a row lasts longer by this time: 30s, 60s, 90s,
    /// ... Default: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1h')")
        .message("outlierDetection.baseEjectionTime must be between 1s and 1h"))]
    pub base_ejection_time: Option<Duration>,
    /// Maximum duration of an ejection, 1s to 24h. Default: 5m, or baseEjectionTime if that is longer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('24h')")
        .message("outlierDetection.maxEjectionTime must be between 1s and 24h"))]
    pub max_ejection_time: Option<Duration>,
    /// Maximum share of ejected pods, in percent: a pod is ejected only while fewer than this percentage of the pods
    /// are, so one always may be. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_ejection_percent: Option<u32>,
    /// Ejects pods whose success rate is far below that of the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<SuccessRate>,
}

/// Success rate detector: ejects a pod whose success rate is more than a number of standard deviations below the mean
/// of all pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SuccessRate {
    /// Minimum number of pods with at least minRequests requests for a comparison. Default: 5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 2, max = 10_000))]
    pub min_pods: Option<u32>,
    /// Minimum requests to a pod in one interval for it to be compared. Default: 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub min_requests: Option<u32>,
    /// Number of standard deviations, in thousandths. Default: 1900, which is 1.9. 0: off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub deviations_permille: Option<u32>,
}

/// Active health checks. An unhealthy pod gets no requests while enough others are healthy (see
/// loadBalancer.panicThreshold). Pods count as healthy until a check fails. The checks come from the proxies of
/// clients, so the MeshPolicies of the pods apply to them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.type == 'HTTP' ? has(self.path) : !has(self.path) && !has(self.host)")
        .message("type HTTP requires path; path and host are for type HTTP only"),
    validation = Rule::new("self.type == 'GRPC' || !has(self.service)")
        .message("service is for type GRPC only"),
    validation = Rule::new("duration(has(self.timeout) ? self.timeout : '1s') <= duration(has(self.interval) ? self.interval : '10s')")
        .message("healthCheck.timeout must not be longer than the interval")
)]
pub struct HealthCheck {
    /// What counts as a success. HTTP: a GET request is answered 200 to 399. TCP: a connection opens. GRPC:
    /// `grpc.health.v1.Health/Check` answers SERVING.
    #[serde(rename = "type")]
    pub kind: HealthCheckType,
    /// For type HTTP: the path; required. Example: `/healthz`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024), regex(pattern = "^/[!-~]*$"))]
    pub path: Option<String>,
    /// For type HTTP: the Host header. Default: the pod's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = "^[A-Za-z0-9.:-]+$"))]
    pub host: Option<String>,
    /// For type GRPC: the service name in the check. Default: empty, the server as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 127))]
    pub service: Option<String>,
    /// Port of the pod that is checked. Default: the port that the traffic goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: Option<u16>,
    /// Time between two checks of a pod, with 25 % jitter, 500ms to 1h. Default: 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('500ms') && duration(self) <= duration('1h')")
        .message("healthCheck.interval must be between 500ms and 1h"))]
    pub interval: Option<Duration>,
    /// Timeout of a check. Default: 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('1h')")
        .message("healthCheck.timeout must be between 1ms and 1h"))]
    pub timeout: Option<Duration>,
    /// Consecutive failed checks after which a pod is unhealthy. Default: 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub unhealthy_threshold: Option<u32>,
    /// Consecutive successful checks after which a pod is healthy again. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub healthy_threshold: Option<u32>,
}

/// Protocol of the health checks.
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

/// Limits retries to a share of the requests that one proxy sends to the Service, so that retries do not overload a
/// failing Service. A retry that the budget does not allow is not sent, and the client gets the response of the last
/// attempt. Retries of requests that no pod has received (failed connections, refused streams) are not counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RetryBudget {
    /// Retries in percent of requests, counted over any 1000 or more consecutive requests. Default: 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub percent: Option<u32>,
    /// Retries per second that are allowed however few requests there are. It takes effect where `percent` allows
    /// fewer: by default below about 50 requests a second, where the Service may receive more than 1.2 times the
    /// requests. Default: 10, as in Linkerd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100_000))]
    pub min_per_second: Option<u32>,
}
