//! What a namespace offers to everybody: its services, the routes to them, and the pods behind them.
//!
//! Routes and endpoints of a namespace stand in one document, so they change together or not at all.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::route::RouteTable;
use crate::{is_default, tight};

/// The exported part of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Export {
    /// Sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<Service>,
}

/// A Service with an address of its own. (A headless one is reached by its pods' addresses, which no route governs.)
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Service {
    /// Name of the Service.
    pub name: String,
    /// Its ClusterIPs: one, or one of each family.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    /// How to talk to it.
    #[serde(default, skip_serializing_if = "is_default")]
    pub settings: ClusterSettings,
    /// Sorted by number.
    #[serde(default, deserialize_with = "tight", skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<ServicePort>,
}

/// A port of a Service, with what happens to traffic sent there.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServicePort {
    /// Port of the Service.
    pub port: u16,
    /// What is spoken there.
    #[serde(default, skip_serializing_if = "is_default")]
    pub protocol: Protocol,
    /// Routes of the Service's own namespace. Absent: every request goes to `endpoints`. Present: a request that no
    /// match takes is answered 404.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<RouteTable>,
    /// Pods that may take traffic, sorted by address.
    #[serde(default, deserialize_with = "tight", skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<Endpoint>,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Nobody said: look at the first bytes.
    #[default]
    Detect,
    /// HTTP, version 1.1 or 2 as the client chooses.
    Http,
    /// HTTP/2 without TLS, towards the endpoints too.
    Http2,
    /// Bytes. Never looked at.
    Tcp,
}

/// A pod that takes traffic of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "FlatEndpoint", into = "FlatEndpoint")]
pub struct Endpoint {
    /// Address and port of the pod.
    pub address: SocketAddr,
    /// Names of the subsets that it is in, sorted.
    pub subsets: Vec<String>,
    /// Where it is and which clients it is meant for, where the Service cares. In a box, because most do not.
    pub locality: Option<Box<Locality>>,
    /// Its pod terminates and still serves. It takes traffic only while none that does not is left among those that the
    /// request may go to.
    pub terminating: bool,
    /// Nobody has heard of its node of late. It takes traffic only while none that is not lost is left among those that
    /// the request may go to, terminating ones included.
    pub lost: bool,
    /// The pod carries a proxy, whose word about a request counts: the headers that begin with `weft-` in its responses.
    pub has_proxy: bool,
}

/// Where an endpoint is, and which clients it is meant for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// The zone of its node, where the Service prefers endpoints of the client's own.
    pub zone: Option<String>,
    /// Its node, where the Service prefers endpoints on the client's own or has traffic stay on it.
    pub node: Option<String>,
    /// Zones whose clients it is meant for, where EndpointSlices say that by hints. They stand in for `zone`.
    pub for_zones: Vec<String>,
    /// Nodes whose clients it is meant for, where EndpointSlices say that by hints. They stand in for `node`.
    pub for_nodes: Vec<String>,
}

/// An endpoint as documents have it.
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
}

/// How to talk to a Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClusterSettings {
    /// How an endpoint is chosen.
    #[serde(default, skip_serializing_if = "is_default")]
    pub balancer: Balancer,
    /// The key of `ringHash` and `maglev`. A request without one goes to any endpoint.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_on: Option<HashOn>,
    /// Ties a client to the endpoint that answered it first, whatever the balancer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticky: Option<Sticky>,
    /// How endpoints that join get their share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<SlowStart>,
    /// Endpoints of the client's own zone come first; those elsewhere take what they cannot.
    #[serde(default, skip_serializing_if = "is_default")]
    pub prefer_same_zone: bool,
    /// Endpoints on the client's own node come first, before those of its zone.
    #[serde(default, skip_serializing_if = "is_default")]
    pub prefer_same_node: bool,
    /// Only endpoints on the client's own node are used.
    #[serde(default, skip_serializing_if = "is_default")]
    pub local_only: bool,
    /// A client's address stays with the endpoint that it went to last, until it has sent nothing for so many seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_ip_seconds: Option<u32>,
    /// How long a connection may take to be made, in milliseconds. Absent: the proxy's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout_ms: Option<u64>,
    /// What one proxy may have open to the Service.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
    /// When an endpoint that fails is left alone.
    #[serde(default, skip_serializing_if = "is_default")]
    pub outliers: Outliers,
    /// Asks endpoints how they are. Absent: nobody is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health_check: Option<HealthCheck>,
    /// Of the endpoints that a request may go to, the share in percent that must be well for the others to be left alone;
    /// below it all are used. 0: never.
    #[serde(default = "panic_percent", skip_serializing_if = "is_panic_percent")]
    pub panic_percent: u32,
    /// How much more than was asked of it may be sent to the Service by repeating requests.
    #[serde(default, skip_serializing_if = "is_default")]
    pub retry_budget: RetryBudget,
    /// Names of the subsets that exist, sorted, so that one without pods is told from one that nobody declared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<String>,
}

/// How an endpoint is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Balancer {
    /// The cheaper of two at random, by response time and requests in flight.
    #[default]
    PeakEwma,
    /// The one of two at random with fewer requests in flight.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// Any.
    Random,
    /// The same for the same key, on a ring.
    RingHash,
    /// The same for the same key, by a Maglev table.
    Maglev,
}

/// What of a request is its key.
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

/// A cookie that names the endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Sticky {
    /// Its name.
    pub cookie: String,
    /// The path that clients send it with.
    pub path: String,
    /// How long clients keep it, in seconds. Absent: until they close.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_seconds: Option<u64>,
}

/// An endpoint that joins gets, of what its share will be, `max(least, age / window ^ (1 / aggression))`. Source: Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct SlowStart {
    /// After so many milliseconds it has all of its share.
    pub window_ms: u64,
    /// What it gets at least, in percent.
    pub min_percent: u32,
    /// How fast its share grows at first, in thousandths; 1000 is evenly.
    pub aggression_permille: u32,
}

/// What one proxy may have open to a Service port, all subsets together. Absent: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Limits {
    /// Connections.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Requests in flight.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests: Option<u32>,
    /// Requests that wait for a connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pending: Option<u32>,
}

/// When an endpoint that fails more than others is left alone (ejected) for a while. A field that is absent has the value
/// of [`Outliers::default`]. Source of the model and of most defaults: Envoy's outlier detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Outliers {
    /// Answers 5xx without another in between. 0: not looked at.
    pub consecutive_5xx: u32,
    /// Answers 502, 503 or 504 without another in between. 0: not looked at.
    pub consecutive_gateway_errors: u32,
    /// Connections that failed or broke, and attempts that timed out, without an answer in between. 0: not looked at.
    pub consecutive_local_failures: u32,
    /// How often success rates are compared, in milliseconds.
    pub interval_ms: u64,
    /// How long the first ejection lasts, in milliseconds; the next one in a row is longer by as much.
    pub base_ejection_ms: u64,
    /// How long an ejection may last, in milliseconds.
    pub max_ejection_ms: u64,
    /// Another endpoint is ejected only while fewer than this share of all are, in percent. 0: none is ejected.
    pub max_ejection_percent: u32,
    /// Which success rate is too low.
    pub success_rate: SuccessRate,
}

/// Which success rate of an endpoint is too low beside those of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct SuccessRate {
    /// So many endpoints must have had enough requests.
    pub min_endpoints: u32,
    /// Requests that are enough, in one interval.
    pub min_requests: u32,
    /// Too low is below the mean by this many standard deviations, in thousandths. 0: not looked at.
    pub deviations_permille: u32,
}

/// Asks endpoints how they are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HealthCheck {
    /// How they are asked.
    pub kind: HealthCheckKind,
    /// Absent: the endpoint's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// From one question to the next, in milliseconds; a quarter more or less.
    pub interval_ms: u64,
    /// How long an answer may take, in milliseconds.
    pub timeout_ms: u64,
    /// Failures in a row after which an endpoint is not well.
    pub unhealthy_after: u32,
    /// Successes in a row after which it is well again.
    pub healthy_after: u32,
}

/// How an endpoint is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum HealthCheckKind {
    /// A GET; 200 to 399 is well.
    #[serde(rename_all = "camelCase")]
    Http {
        /// With the query.
        path: String,
        /// Absent: the endpoint's address.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<String>,
    },
    /// A connection that opens.
    Tcp,
    /// `grpc.health.v1.Health/Check`; SERVING is well.
    Grpc {
        /// The service asked about; empty for the whole server.
        service: String,
    },
}

/// How much repeating requests, where rules ask for it, may add to what a proxy sends to a Service. The proxy's
/// `balance/budget` has the formula.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct RetryBudget {
    /// Repetitions for each hundred requests, at most.
    pub percent: u32,
    /// Repetitions in a second that are allowed however few requests there are.
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
    /// In a box, or nothing if it says nothing.
    pub fn boxed(self) -> Option<Box<Self>> {
        (self != Self::default()).then(|| Box::new(self))
    }
}

// === impl Endpoint ===

impl From<FlatEndpoint> for Endpoint {
    fn from(flat: FlatEndpoint) -> Self {
        let FlatEndpoint { address, subsets, zone, node, for_zones, for_nodes, terminating, lost, has_proxy } = flat;
        let locality = Locality { zone, node, for_zones, for_nodes }.boxed();
        Self { address, subsets, locality, terminating, lost, has_proxy }
    }
}

impl From<Endpoint> for FlatEndpoint {
    fn from(endpoint: Endpoint) -> Self {
        let Endpoint { address, subsets, locality, terminating, lost, has_proxy } = endpoint;
        let Locality { zone, node, for_zones, for_nodes } =
            locality.map_or_else(Locality::default, |locality| *locality);
        Self { address, subsets, zone, node, for_zones, for_nodes, terminating, lost, has_proxy }
    }
}
