//! Services.

use std::collections::BTreeMap;
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use kube::api::ObjectMeta;
use serde::Deserialize;

use super::key::Key;
use super::metadata::{key, label, resource};
use super::port::{RawPort, RawTargetPort, is_tcp};

/// Default timeout of session affinity ClientIP, in seconds. Source: Kubernetes.
const CLIENT_IP_SECONDS: u32 = 10_800;

/// Label of a Service that another service proxy than kube-proxy implements.
const SERVICE_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: Key,
    /// UID, for Events about it.
    pub uid: String,
    /// ClusterIPs, the primary family first; empty for a headless Service.
    pub addresses: Vec<IpAddr>,
    /// Is of type ExternalName.
    pub external: bool,
    /// Selector of its pods; empty if its EndpointSlices are not managed by Kubernetes.
    pub selector: BTreeMap<String, String>,
    /// Its TCP ports.
    pub ports: Vec<ServicePort>,
    /// `publishNotReadyAddresses`: pods that are not ready get traffic too.
    pub publish_not_ready: bool,
    /// Which pods clients prefer.
    pub distribution: Distribution,
    /// `internalTrafficPolicy: Local`: clients use pods on their own node only.
    pub local_only: bool,
    /// Timeout of session affinity ClientIP, in seconds: a client keeps its pod until it has sent nothing for this
    /// time.
    pub client_ip_seconds: Option<u32>,
    /// Has the label of another service proxy: Weft does not route its traffic.
    pub served_elsewhere: bool,
}

/// Which pods the clients of a Service prefer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    /// Those named in the hints of EndpointSlices, if all endpoints have hints.
    #[default]
    Hints,
    /// No preference.
    Any,
    /// Pods in the client's zone.
    SameZone,
    /// Pods on the client's node, then pods in its zone.
    SameNode,
}

/// A TCP port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; empty if it is the only port and has none.
    pub name: String,
    /// Number.
    pub port: u16,
    /// The target port of the pods.
    pub target: TargetPort,
    /// The declared protocol.
    pub protocol: Protocol,
}

/// The target port of a Service port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By the name of a container port.
    Name(String),
}

/// The protocol of a port, as declared by `appProtocol` or the port's name. The same enum as in the proxies'
/// configuration.
pub type Protocol = weft_config::Protocol;

/// A Service as the API server sends it.
#[derive(Clone, Debug, Deserialize)]
pub struct RawService {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: RawServiceSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawServiceSpec {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(rename = "clusterIP")]
    cluster_ip: Option<String>,
    #[serde(rename = "clusterIPs", default)]
    cluster_ips: Vec<String>,
    #[serde(default)]
    selector: BTreeMap<String, String>,
    #[serde(default)]
    ports: Vec<RawPort>,
    #[serde(default)]
    publish_not_ready_addresses: bool,
    traffic_distribution: Option<String>,
    internal_traffic_policy: Option<String>,
    session_affinity: Option<String>,
    session_affinity_config: Option<RawSessionAffinityConfig>,
}

#[derive(Clone, Debug, Deserialize)]
struct RawSessionAffinityConfig {
    #[serde(rename = "clientIP")]
    client_ip: Option<RawClientIp>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawClientIp {
    timeout_seconds: Option<u32>,
}

resource!(RawService, core::Service);

// === impl Service ===

impl Service {
    /// Its TCP port with this number.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|candidate| candidate.port == port)
    }

    /// Its TCP port with this target port.
    pub fn port_with_target(&self, target: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|candidate| candidate.target == TargetPort::Number(target))
    }

    /// Whether proxies can match its traffic: it has a ClusterIP, and no other service proxy implements it.
    pub fn has_address(&self) -> bool {
        !self.external && !self.served_elsewhere && !self.addresses.is_empty()
    }
}

impl From<RawService> for Service {
    fn from(RawService { metadata, spec }: RawService) -> Self {
        let RawServiceSpec {
            kind,
            cluster_ip,
            cluster_ips,
            selector,
            ports,
            publish_not_ready_addresses,
            traffic_distribution,
            internal_traffic_policy,
            session_affinity,
            session_affinity_config,
        } = spec;
        let mut addresses: Vec<IpAddr> = cluster_ips.iter().filter_map(|text| text.parse().ok()).collect();
        if addresses.is_empty() {
            addresses.extend(cluster_ip.and_then(|text| text.parse::<IpAddr>().ok()));
        }
        let mut ports: Vec<ServicePort> = ports.into_iter().filter_map(service_port).collect();
        ports.sort_by_key(|port| port.port);
        Self {
            key: key(&metadata),
            uid: metadata.uid.clone().unwrap_or_default(),
            addresses,
            external: kind.as_deref() == Some("ExternalName"),
            selector,
            ports,
            publish_not_ready: publish_not_ready_addresses,
            distribution: match traffic_distribution.as_deref() {
                // PreferClose is the name of PreferSameZone before Kubernetes 1.34.
                Some("PreferSameZone" | "PreferClose") => Distribution::SameZone,
                Some("PreferSameNode") => Distribution::SameNode,
                _ => Distribution::Hints,
            },
            local_only: internal_traffic_policy.as_deref() == Some("Local"),
            client_ip_seconds: (session_affinity.as_deref() == Some("ClientIP")).then(|| {
                let config = session_affinity_config.and_then(|config| config.client_ip);
                config.and_then(|client_ip| client_ip.timeout_seconds).unwrap_or(CLIENT_IP_SECONDS)
            }),
            served_elsewhere: label(&metadata, SERVICE_PROXY_LABEL).is_some(),
        }
    }
}

fn service_port(raw: RawPort) -> Option<ServicePort> {
    let RawPort { name, port, protocol, app_protocol, target_port } = raw;
    let (name, port) = (name.unwrap_or_default(), port.filter(|port| *port != 0)?);
    if !is_tcp(protocol.as_deref()) {
        return None;
    }
    let target = match target_port {
        Some(RawTargetPort::Name(name)) => TargetPort::Name(name),
        Some(RawTargetPort::Number(number)) if number != 0 => TargetPort::Number(number),
        Some(RawTargetPort::Number(_)) | None => TargetPort::Number(port),
    };
    let protocol = declared_protocol(app_protocol.as_deref(), &name);
    Some(ServicePort { name, port, target, protocol })
}

/// The declared protocol of a port. `appProtocol` decides if it is set (values of KEP-3726 and IANA; an unknown value
/// means opaque TCP, as in Linkerd). Otherwise the port's name up to its first dash, as in Istio; an unknown name
/// means protocol detection.
fn declared_protocol(app_protocol: Option<&str>, name: &str) -> Protocol {
    match app_protocol.map(str::to_ascii_lowercase).as_deref() {
        Some("http" | "kubernetes.io/ws") => Protocol::Http,
        Some("http2" | "h2c" | "kubernetes.io/h2c" | "grpc") => Protocol::Http2,
        Some(_) => Protocol::Tcp,
        None => match name.split('-').next().unwrap_or_default() {
            "http" => Protocol::Http,
            "http2" | "h2c" | "grpc" => Protocol::Http2,
            "tcp" | "tls" | "https" | "mongo" | "mysql" | "redis" => Protocol::Tcp,
            _ => Protocol::Detect,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocol_is_declared_by_app_protocol_then_by_port_name() {
        for (app_protocol, name, protocol) in [
            (Some("http"), "", Protocol::Http),
            (Some("HTTP"), "tcp-x", Protocol::Http),
            (Some("kubernetes.io/ws"), "", Protocol::Http),
            (Some("kubernetes.io/h2c"), "", Protocol::Http2),
            (Some("grpc"), "", Protocol::Http2),
            (Some("https"), "http", Protocol::Tcp),
            (Some("example.com/own"), "http", Protocol::Tcp),
            (None, "http", Protocol::Http),
            (None, "http-web", Protocol::Http),
            (None, "http2-web", Protocol::Http2),
            (None, "grpc", Protocol::Http2),
            (None, "tcp-db", Protocol::Tcp),
            (None, "https", Protocol::Tcp),
            (None, "mysql", Protocol::Tcp),
            (None, "httpx", Protocol::Detect),
            (None, "web", Protocol::Detect),
            (None, "", Protocol::Detect),
        ] {
            assert_eq!(declared_protocol(app_protocol, name), protocol, "{app_protocol:?} {name:?}");
        }
    }
}
