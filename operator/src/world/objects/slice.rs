//! EndpointSlices.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as discovery;
use kube::api::ObjectMeta;
use serde::Deserialize;

use super::key::Key;
use super::metadata::{key, label, resource};
use super::port::{RawPort, is_tcp};

/// An EndpointSlice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slice {
    /// Namespace and name.
    pub key: Key,
    /// The Service, from its label.
    pub service: String,
    /// TCP ports by name (the Service port's).
    pub ports: Vec<SlicePort>,
    /// Addresses.
    pub endpoints: Vec<SliceEndpoint>,
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlicePort {
    /// Name of the Service's port.
    pub name: String,
    /// Number on the pods.
    pub port: u16,
}

/// An endpoint of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceEndpoint {
    /// Address, of the slice's family. Only the first: Kubernetes defines all of them as equivalent and uses the
    /// first.
    pub address: Option<IpAddr>,
    /// May receive traffic.
    pub ready: bool,
    /// It is not ready because it is terminating, and still serves.
    pub terminating: bool,
    /// Name and UID of its pod.
    pub pod: Option<(String, String)>,
    /// Its node.
    pub node: Option<String>,
    /// Zone of its node.
    pub zone: Option<String>,
    /// Hints: zones whose clients should use it.
    pub for_zones: Vec<String>,
    /// Hints: nodes whose clients should use it.
    pub for_nodes: Vec<String>,
}

/// An EndpointSlice as the API server sends it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RawSlice {
    metadata: ObjectMeta,
    #[serde(default)]
    address_type: String,
    #[serde(default)]
    endpoints: Option<Vec<RawEndpoint>>,
    #[serde(default)]
    ports: Option<Vec<RawPort>>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawEndpoint {
    #[serde(default)]
    addresses: Vec<String>,
    #[serde(default)]
    conditions: RawEndpointConditions,
    target_ref: Option<RawTargetRef>,
    node_name: Option<String>,
    zone: Option<String>,
    hints: Option<RawHints>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RawEndpointConditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawHints {
    for_zones: Option<Vec<RawHint>>,
    for_nodes: Option<Vec<RawHint>>,
}

#[derive(Clone, Debug, Deserialize)]
struct RawHint {
    name: String,
}

#[derive(Clone, Debug, Deserialize)]
struct RawTargetRef {
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
}

resource!(RawSlice, discovery::EndpointSlice);

// === impl Slice ===

impl From<RawSlice> for Slice {
    fn from(RawSlice { metadata, address_type, endpoints, ports }: RawSlice) -> Self {
        let service = label(&metadata, "kubernetes.io/service-name").unwrap_or_default().to_owned();
        let namespace = metadata.namespace.as_deref();
        // Endpoints of address type FQDN are skipped: proxies do not resolve names.
        let is_ip = matches!(address_type.as_str(), "IPv4" | "IPv6");
        let endpoints = endpoints.unwrap_or_default().into_iter().filter(|_| is_ip);
        let endpoints = endpoints.map(|endpoint| slice_endpoint(endpoint, namespace)).collect();
        let ports = ports.unwrap_or_default().into_iter().filter(|port| is_tcp(port.protocol.as_deref()));
        let ports = ports
            .filter_map(|raw| {
                Some(SlicePort { name: raw.name.unwrap_or_default(), port: raw.port.filter(|port| *port != 0)? })
            })
            .collect();
        Self { key: key(&metadata), service, ports, endpoints }
    }
}

fn slice_endpoint(raw: RawEndpoint, namespace: Option<&str>) -> SliceEndpoint {
    let RawEndpoint { addresses, conditions, target_ref, node_name, zone, hints } = raw;
    let ready = conditions.ready.unwrap_or(true);
    let RawHints { for_zones, for_nodes } = hints.unwrap_or_default();
    let names = |hints: Option<Vec<RawHint>>| hints.unwrap_or_default().into_iter().map(|hint| hint.name).collect();
    // A pod in another namespace is treated like an address without a pod: the slice's own conditions apply.
    let is_same_namespace =
        |target: &RawTargetRef| target.namespace.is_none() || target.namespace.as_deref() == namespace;
    SliceEndpoint {
        address: addresses.first().and_then(|text| text.parse().ok()),
        ready,
        // Defaults as in kube-proxy: `serving` true, `terminating` false.
        terminating: !ready && conditions.terminating == Some(true) && conditions.serving.unwrap_or(true),
        pod: target_ref
            .filter(|target| target.kind.as_deref() == Some("Pod") && is_same_namespace(target))
            .and_then(|target| Some((target.name?, target.uid?))),
        node: node_name.filter(|node| !node.is_empty()),
        zone: zone.filter(|zone| !zone.is_empty()),
        for_zones: names(for_zones),
        for_nodes: names(for_nodes),
    }
}
