//! What a namespace offers to everybody: its services, the routes to them, and the pods behind them.
//!
//! Routes and endpoints of a namespace stand in one document, so they change together or not at all.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::is_default;
use crate::route::RouteTable;

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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
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
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
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
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Endpoint {
    /// Address and port of the pod.
    pub address: SocketAddr,
    /// Names of the subsets that it is in, sorted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subsets: Vec<String>,
    /// Nobody has heard of its node of late. It takes traffic only while none that is not lost is left among those that
    /// the request may go to.
    #[serde(default, skip_serializing_if = "is_default")]
    pub lost: bool,
}

/// How to talk to a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ClusterSettings {
    /// How an endpoint is chosen.
    #[serde(default, skip_serializing_if = "is_default")]
    pub balancer: Balancer,
    /// How long a connection may take to be made, in milliseconds. Absent: the proxy's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_timeout_ms: Option<u64>,
    /// What one proxy may have open to the Service.
    #[serde(default, skip_serializing_if = "is_default")]
    pub limits: Limits,
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
