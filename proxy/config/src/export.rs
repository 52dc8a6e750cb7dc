//! The exported document of a namespace: its Services, their routes, and the pods behind them. Proxies of all
//! namespaces read it.
//!
//! Routes and endpoints of a namespace are in one document, so that they change together or not at all.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::inbound::MtlsMode;
use crate::route::RouteTable;
use crate::{compact_vec, is_default};

/// The exported part of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Export {
    /// Sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
}

/// A Service with a ClusterIP. (A headless Service is reached at its pods' addresses, and routes do not apply.)
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Service {
    /// Name of the Service.
    pub name: String,
    /// Its ClusterIPs: one, or one of each address family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// Settings for traffic to it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub settings: ClusterSettings,
    /// Sorted by number.
    #[serde(default, deserialize_with = "compact_vec", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServicePort>,
}

/// A port of a Service, with its routes and endpoints.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServicePort {
    /// Port of the Service.
    pub port: u16,
    /// The protocol of the port.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: Protocol,
    /// Mode of mutual TLS that policies set for the port. Absent: they set none, and that of the client holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MtlsMode>,
    /// Routes of the Service's own namespace. Absent: every request goes to `endpoints`. Present: a request that no
    /// match accepts is answered 404.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<RouteTable>,
    /// Endpoints that may receive traffic, sorted by address.
    #[serde(default, deserialize_with = "compact_vec", skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
}

/// The protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Not declared: the proxy detects it from the first bytes.
    #[default]
    Detect,
    /// HTTP, version 1.1 or 2 as the client chooses.
    Http,
    /// HTTP/2 without TLS, towards the endpoints too.
    Http2,
    /// TCP, without protocol detection.
    Tcp,
}

/// An endpoint of a Service port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "FlatEndpoint", into = "FlatEndpoint")]
pub struct Endpoint {
    /// Address and port of the pod.
    pub address: SocketAddr,
    /// Names of the subsets that it is in, sorted.
    pub subsets: Vec<String>,
    /// Where it is and which clients it is meant for, if the Service uses either. Boxed, because few Services do.
    pub locality: Option<Box<Locality>>,
    /// Its pod is terminating and still serving. It receives traffic only if the request has no endpoint that is not
    /// terminating.
    pub terminating: bool,
    /// Its node is unreachable. It receives traffic only if all endpoints for the request are lost; terminating ones
    /// come before it.
    pub lost: bool,
    /// The pod has a proxy, so the headers that begin with `weft-` in its responses are trusted.
    pub has_proxy: bool,
    /// The pod has an identity, and excludes the port from its proxy: connections to it are in plaintext.
    pub excluded: bool,
    /// The pod's service account, if its proxy proves it. It is in the namespace of the document, and in the trust domain
    /// of the mesh, which is that of the client. Nobody else is spoken to at this address.
    pub service_account: Option<Box<str>>,
}

/// Where an endpoint is, and which clients it is meant for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// The zone of its node, if the Service prefers endpoints in the client's zone.
    pub zone: Option<String>,
    /// Its node, if the Service prefers endpoints on the client's node or restricts traffic to it.
    pub node: Option<String>,
    /// Zones for whose clients it is meant, from hints in EndpointSlices. They replace `zone`.
    pub for_zones: Vec<String>,
    /// Nodes for whose clients it is meant, from hints in EndpointSlices. They replace `node`.
    pub for_nodes: Vec<String>,
}

/// An endpoint as it is written in documents.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct FlatEndpoint {
    address: SocketAddr,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    subsets: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    zone: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    for_zones: Vec<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    for_nodes: Vec<String>,
    #[serde(default, skip_serializing_if = "is_default")]
    terminating: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    lost: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    has_proxy: bool,
    #[serde(default, skip_serializing_if = "is_default")]
    excluded: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    service_account: Option<Box<str>>,
}

/// Settings for traffic to a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClusterSettings {
    /// The load balancing algorithm.
    #[serde(default, skip_serializing_if = "is_default")]
    pub balancer: Balancer,
    /// The key of `ringHash` and `maglev`. A request without the key goes to any endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<HashOn>,
    /// Session affinity: ties a client to the endpoint that answered it first, with any balancer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// Slow start for new endpoints.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
    /// Endpoints in the client's zone come first; the others take the load that they cannot.
    #[serde(default, skip_serializing_if = "is_default")]
    pub prefer_same_zone: bool,
    /// Endpoints on the client's own node come first, before those of its zone.
    #[serde(default, skip_serializing_if = "is_default")]
    pub prefer_same_node: bool,
    /// Only endpoints on the client's own node are used.
    #[serde(default, skip_serializing_if = "is_default")]
    pub local_only: bool,
    /// Client IP affinity: a client's address stays with the endpoint that it was sent to last, until it has been
    /// idle for this many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ip_seconds: Option<u32>,
    /// Connect timeout, in milliseconds. Absent: the proxy's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout_ms: Option<u64>,
    /// Limits for one proxy.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// Outlier detection: when an endpoint is ejected.
    #[serde(default, skip_serializing_if = "is_default")]
    pub outliers: Outliers,
    /// Active health checks. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Panic threshold: if fewer than this percentage of the endpoints for a request are healthy, health and ejection
    /// are ignored. 0: never.
    #[serde(default = "panic_percent", skip_serializing_if = "is_panic_percent")]
    pub panic_percent: u32,
    /// How many retries may be added to the requests to the Service.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retry_budget: RetryBudget,
    /// Names of all subsets, sorted, so that a subset without pods can be told from an undeclared one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<String>,
}

/// A load balancing algorithm.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Balancer {
    /// The cheaper of two random endpoints, by response time (EWMA) and requests in flight.
    #[default]
    PeakEwma,
    /// The one of two random endpoints with fewer requests in flight.
    LeastRequest,
    /// One endpoint after the other.
    RoundRobin,
    /// A random endpoint.
    Random,
    /// Consistent hashing with a ring.
    RingHash,
    /// Consistent hashing with a Maglev table.
    Maglev,
}

/// The hash key of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HashOn {
    /// The first value of the header of this name, in lower case.
    Header(String),
    /// The cookie of this name.
    Cookie(String),
    /// The first query parameter of this name.
    QueryParam(String),
    /// The address that the client's connection came from.
    SourceAddress,
}

/// A session affinity cookie.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Sticky {
    /// Its name.
    pub cookie: String,
    /// The `Path` attribute of the cookie.
    pub path: String,
    /// The lifetime of the cookie, in seconds. Absent: a session cookie.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// Slow start: a new endpoint gets `max(min, age / window ^ (1 / aggression))` of its share. Source: Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SlowStart {
    /// The window, in milliseconds: after it, an endpoint gets its whole share.
    pub window_ms: u64,
    /// The minimum of the share, in percent.
    pub min_percent: u32,
    /// How fast the share grows at first, in thousandths; 1000 is linear.
    pub aggression_permille: u32,
}

/// Limits of one proxy for a Service port, all subsets together (circuit breakers). Absent: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Limits {
    /// Connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Requests in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
    /// Requests waiting for a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pending: Option<u32>,
}

/// Outlier detection: when an endpoint that fails more than others is ejected for a while. A field that is absent has
/// the value of [`Outliers::default`]. Source of the model and of most defaults: Envoy's outlier detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Outliers {
    /// Responses 5xx in a row. 0: off.
    pub consecutive_5xx: u32,
    /// Responses 502, 503 or 504 in a row. 0: off.
    pub consecutive_gateway_errors: u32,
    /// Connections that failed or broke, and attempts that timed out, in a row. 0: off.
    pub consecutive_local_failures: u32,
    /// Interval at which success rates are compared, in milliseconds.
    pub interval_ms: u64,
    /// Duration of the first ejection, in milliseconds; each further one in a row is longer by as much.
    pub base_ejection_ms: u64,
    /// Longest ejection, in milliseconds.
    pub max_ejection_ms: u64,
    /// An endpoint is ejected only while fewer than this percentage of all are. 0: never.
    pub max_ejection_percent: u32,
    /// The success rate detector.
    pub success_rate: SuccessRate,
}

/// The success rate detector: when the success rate of an endpoint is too low compared with the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct SuccessRate {
    /// Minimum of endpoints with enough requests.
    pub min_endpoints: u32,
    /// Requests in an interval that are enough.
    pub min_requests: u32,
    /// An endpoint is ejected if its rate is below the mean by this many standard deviations, in thousandths. 0: off.
    pub deviations_permille: u32,
}

/// Active health checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HealthCheck {
    /// How endpoints are checked.
    pub kind: HealthCheckKind,
    /// Absent: the endpoint's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Interval of checks, in milliseconds, with a jitter of 25 %.
    pub interval_ms: u64,
    /// Timeout of a check, in milliseconds.
    pub timeout_ms: u64,
    /// Failures in a row that make an endpoint unhealthy.
    pub unhealthy_after: u32,
    /// Successes in a row that make it healthy again.
    pub healthy_after: u32,
}

/// How an endpoint is checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HealthCheckKind {
    /// A GET; 200 to 399 is healthy.
    #[serde(rename_all = "camelCase")]
    Http {
        /// Path and query.
        path: String,
        /// Absent: the endpoint's address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
    },
    /// A connection that opens is healthy.
    Tcp,
    /// `grpc.health.v1.Health/Check`; SERVING is healthy.
    Grpc {
        /// The service to ask for; empty for the whole server.
        service: String,
    },
}

/// Retry budget: how many retries, where rules ask for them, a proxy may add to its requests to a Service. The
/// formula is in `proxy/balance/src/budget.rs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RetryBudget {
    /// Retries for each hundred requests, at most.
    pub percent: u32,
    /// Retries in a second that are allowed regardless of the number of requests.
    pub min_per_second: u32,
}

// === impl ClusterSettings ===

impl Default for ClusterSettings {
    fn default() -> Self {
        Self {
            balancer: Balancer::default(),
            hash_on: None,
            sticky: None,
            slow_start: None,
            prefer_same_zone: false,
            prefer_same_node: false,
            local_only: false,
            client_ip_seconds: None,
            connect_timeout_ms: None,
            limits: Limits::default(),
            outliers: Outliers::default(),
            health_check: None,
            panic_percent: panic_percent(),
            retry_budget: RetryBudget::default(),
            subsets: Vec::new(),
        }
    }
}

impl Default for Outliers {
    fn default() -> Self {
        Self {
            consecutive_5xx: 5,
            consecutive_gateway_errors: 5,
            consecutive_local_failures: 5,
            interval_ms: 10_000,
            base_ejection_ms: 30_000,
            max_ejection_ms: 300_000,
            max_ejection_percent: 10,
            success_rate: SuccessRate::default(),
        }
    }
}

impl Default for SuccessRate {
    fn default() -> Self {
        Self { min_endpoints: 5, min_requests: 100, deviations_permille: 1_900 }
    }
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 20, min_per_second: 10 }
    }
}

/// Source: Envoy's default.
fn panic_percent() -> u32 {
    50
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_panic_percent(percent: &u32) -> bool {
    *percent == panic_percent()
}

// === impl Locality ===

impl Locality {
    /// Boxed; `None` if all fields are empty.
    pub fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

// === impl Endpoint ===

impl From<FlatEndpoint> for Endpoint {
    fn from(flat: FlatEndpoint) -> Self {
        let FlatEndpoint {
            address,
            subsets,
            zone,
            node,
            for_zones,
            for_nodes,
            terminating,
            lost,
            has_proxy,
            excluded,
            service_account,
        } = flat;
        let locality = Locality { zone, node, for_zones, for_nodes }.boxed();
        Self { address, subsets, locality, terminating, lost, has_proxy, excluded, service_account }
    }
}

impl From<Endpoint> for FlatEndpoint {
    fn from(endpoint: Endpoint) -> Self {
        let Endpoint { address, subsets, locality, terminating, lost, has_proxy, excluded, service_account } = endpoint;
        let Locality { zone, node, for_zones, for_nodes } =
            locality.map_or_else(Locality::default, |locality| *locality);
        Self {
            address,
            subsets,
            zone,
            node,
            for_zones,
            for_nodes,
            terminating,
            lost,
            has_proxy,
            excluded,
            service_account,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_without_an_identity_are_written_as_before() {
        let endpoint = |account: Option<&str>| Endpoint {
            address: SocketAddr::from(([198, 18, 0, 2], 80)),
            subsets: vec![],
            locality: None,
            terminating: false,
            lost: false,
            has_proxy: true,
            excluded: false,
            service_account: account.map(Into::into),
        };
        for (account, text) in [
            (None, r#"{"address":"198.18.0.2:80","hasProxy":true}"#),
            (Some("web"), r#"{"address":"198.18.0.2:80","hasProxy":true,"serviceAccount":"web"}"#),
        ] {
            assert_eq!(serde_json::to_string(&endpoint(account)).expect("writes"), text);
            assert_eq!(serde_json::from_str::<Endpoint>(text).expect("reads"), endpoint(account));
        }
    }
}
