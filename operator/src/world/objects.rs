//! The trimmed objects that the World stores, and their conversion from the objects of the API server.
//!
//! The `Raw…` types have only the fields that are used: serde skips the rest, so a Pod of 15 KiB becomes a few
//! hundred bytes and managed fields are never stored.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery, rbac::v1 as rbac};
use kube::api::ObjectMeta;
use kube::core::NamespaceResourceScope;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use weft_config::bootstrap::PortRange;
use weft_config::{DecodeError, Envelope, Export, Header, Inbound, Index, bootstrap};
use weft_crds::{Status, names};

/// Default timeout of session affinity ClientIP, in seconds. Source: Kubernetes.
const CLIENT_IP_SECONDS: u32 = 10_800;

/// Label of a Service that another service proxy than kube-proxy implements.
const SERVICE_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Namespace and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Kinds of custom resources.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// MeshCluster.
    Cluster,
    /// MeshPolicy.
    Policy,
    /// MeshRoute.
    Route,
}

/// Identifies a custom resource.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace and name.
    pub key: Key,
}

/// A Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceMeta {
    /// Name.
    pub name: String,
    /// Has the injection label.
    pub enabled: bool,
}

/// A Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// Namespace and name.
    pub key: Key,
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

/// A Pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Namespace and name.
    pub key: Key,
    /// UID, by which EndpointSlices refer to it.
    pub uid: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it may receive traffic.
    pub readiness: Readiness,
    /// Is being deleted (has a deletionTimestamp).
    pub deleting: bool,
    /// Has a proxy.
    pub has_proxy: bool,
    /// Ports that bypass the proxy, or that it forwards as opaque TCP.
    pub bypassed: Vec<PortRange>,
    /// The pod's node; kept only if the pod has a proxy and no pod label tells the proxy its zone.
    pub node: Option<String>,
    /// Keys of labels that changed since the proxy was injected.
    pub relabelled: BTreeSet<String>,
}

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub key: Key,
    /// Its zone, from the zone label.
    pub zone: Option<String>,
}

/// Whether a pod may receive traffic, from its conditions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Readiness {
    /// It is starting, a probe fails, a readiness gate is false, or it has ended.
    #[default]
    NotReady,
    /// Its node is unreachable: its containers were ready when last reported, and the node controller set Ready to
    /// False since. The node is down or partitioned, or the API server was unavailable, after which that happens to
    /// all nodes.
    Lost,
    /// It is ready.
    Ready,
}

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

/// A ServiceAccount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Namespace and name.
    pub key: Key,
}

/// Metadata of a custom resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Namespace and name.
    pub key: Key,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.creationTimestamp`, in seconds since 1970.
    pub created: i64,
    /// `metadata.resourceVersion` as a number. (Kubernetes guarantees since 1.35 that resourceVersions can be
    /// compared; in practice they always could.)
    pub revision: u64,
}

/// A custom resource. A spec that does not parse is stored as the error, so that one invalid object gets a condition
/// and does not stop the watch.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshObject<S> {
    /// Metadata.
    pub meta: Meta,
    /// The spec, or why it does not parse.
    pub spec: Result<S, String>,
    /// The last status.
    pub status: Status,
}

/// Kinds of documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DocumentKind {
    /// `weft-config/x.<ns>`.
    Export,
    /// `weft-inbound/i.<ns>`.
    Inbound,
    /// `weft-config/index`, of namespace "".
    Index,
}

/// A document's ConfigMap as it is in the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Name of the ConfigMap.
    pub name: String,
    /// `metadata.resourceVersion`, as it is and as a number.
    pub version: String,
    /// See [`Document::version`].
    pub revision: u64,
    /// Has the managed-by label of Weft.
    pub labelled: bool,
    /// Is immutable: it can only be deleted and created again.
    pub immutable: bool,
    /// Its data.
    pub envelope: Envelope,
}

/// Kinds of RBAC objects that allow proxies to read a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccessKind {
    /// A Role.
    Role,
    /// A RoleBinding.
    Binding,
}

/// A Role or RoleBinding of Weft as it is in the cluster.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Access {
    /// Name.
    pub name: String,
    /// Has the managed-by label of Weft.
    pub labelled: bool,
    /// `rules`, or `roleRef` and `subjects`.
    pub content: Value,
}

/// A Namespace as the API server sends it.
#[derive(Clone, Debug, Deserialize)]
pub struct RawNamespace {
    metadata: ObjectMeta,
}

/// A Pod as the API server sends it.
#[derive(Clone, Debug, Deserialize)]
pub struct RawPod {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: RawPodSpec,
    #[serde(default)]
    status: RawPodStatus,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPodSpec {
    node_name: Option<String>,
    #[serde(default)]
    containers: Vec<RawContainer>,
    #[serde(default)]
    init_containers: Vec<RawContainer>,
}

#[derive(Clone, Debug, Deserialize)]
struct RawContainer {
    #[serde(default)]
    name: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<RawVariable>,
}

#[derive(Clone, Debug, Deserialize)]
struct RawVariable {
    #[serde(default)]
    name: String,
    value: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RawPodStatus {
    phase: Option<String>,
    #[serde(default)]
    conditions: Vec<RawCondition>,
}

#[derive(Clone, Debug, Deserialize)]
struct RawCondition {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    status: String,
    reason: Option<String>,
}

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

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawPort {
    #[serde(default)]
    name: Option<String>,
    port: Option<u16>,
    protocol: Option<String>,
    app_protocol: Option<String>,
    target_port: Option<RawTargetPort>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
enum RawTargetPort {
    Number(u16),
    Name(String),
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

/// A custom resource as the API server sends it. `K` is the kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(bound = "")]
pub struct RawMeshObject<K> {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    status: Value,
    #[serde(skip)]
    kind: std::marker::PhantomData<fn() -> K>,
}

macro_rules! resource {
    ($raw:ty, $as:ty) => {
        resource!($raw, $as, <$as as kube::Resource>::Scope);
    };
    ($raw:ty, $as:ty, $scope:ty $(, $generic:ident)?) => {
        impl$(<$generic: kube::Resource<DynamicType = ()>>)? kube::Resource for $raw {
            type DynamicType = ();
            type Scope = $scope;
            fn kind(_: &()) -> std::borrow::Cow<'_, str> {
                <$as as kube::Resource>::kind(&())
            }
            fn group(_: &()) -> std::borrow::Cow<'_, str> {
                <$as as kube::Resource>::group(&())
            }
            fn version(_: &()) -> std::borrow::Cow<'_, str> {
                <$as as kube::Resource>::version(&())
            }
            fn plural(_: &()) -> std::borrow::Cow<'_, str> {
                <$as as kube::Resource>::plural(&())
            }
            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

resource!(RawNamespace, core::Namespace);
resource!(RawPod, core::Pod);
resource!(RawService, core::Service);
resource!(RawSlice, discovery::EndpointSlice);
resource!(RawMeshObject<K>, K, NamespaceResourceScope, K);

// === impl Key ===

impl Key {
    /// A key of a namespaced object.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.namespace.is_empty() { f.write_str(&self.name) } else { write!(f, "{}/{}", self.namespace, self.name) }
    }
}

// === impl Kind ===

impl Kind {
    /// The `kind` in manifests.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "MeshCluster",
            Self::Policy => "MeshPolicy",
            Self::Route => "MeshRoute",
        }
    }

    /// `apiVersion` of the kind.
    pub fn api_version() -> String {
        format!("{}/{}", names::GROUP, names::VERSION)
    }
}

// === impl ObjectId ===

impl std::fmt::Display for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.key)
    }
}

// === impl NamespaceMeta ===

impl From<RawNamespace> for NamespaceMeta {
    fn from(RawNamespace { metadata }: RawNamespace) -> Self {
        let enabled = label(&metadata, names::INJECT_LABEL) == Some(names::INJECT_ENABLED);
        Self { name: metadata.name.unwrap_or_default(), enabled }
    }
}

// === impl Service ===

impl Service {
    /// Its TCP port with this number.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|candidate| candidate.port == port)
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

fn is_tcp(protocol: Option<&str>) -> bool {
    matches!(protocol, None | Some("" | "TCP"))
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

// === impl Pod ===

impl Pod {
    /// Whether traffic to this port of the pod goes through its proxy and is not opaque.
    pub fn has_proxy_at(&self, port: u16) -> bool {
        let is_in = |range: &PortRange| (range.first.get()..=range.last.get()).contains(&port);
        self.has_proxy && !self.bypassed.iter().any(is_in)
    }

    /// May receive traffic.
    pub fn serving(&self) -> bool {
        self.readiness == Readiness::Ready && !self.deleting
    }
}

impl From<RawPod> for Pod {
    fn from(RawPod { metadata, spec, status }: RawPod) -> Self {
        let annotated =
            metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(names::STATUS_ANNOTATION));
        // Label and annotation can be removed while the pod runs, its containers cannot.
        let marked = annotated || label(&metadata, names::PROXY_VERSION_LABEL).is_some();
        let has_proxy = marked || proxy(&spec).is_some();
        let has_zone_label = label(&metadata, bootstrap::ZONE_LABEL).is_some_and(|zone| !zone.is_empty());
        Self {
            key: key(&metadata),
            uid: metadata.uid.clone().unwrap_or_default(),
            readiness: Readiness::from(&status),
            deleting: metadata.deletion_timestamp.is_some(),
            has_proxy,
            bypassed: bypassed(&spec),
            relabelled: injected_labels(&spec)
                .map(|injected| changed_keys(&injected, metadata.labels.as_ref()))
                .unwrap_or_default(),
            node: spec.node_name.filter(|_| has_proxy && !has_zone_label),
            labels: metadata.labels.unwrap_or_default(),
        }
    }
}

/// The proxy container.
fn proxy(spec: &RawPodSpec) -> Option<&RawContainer> {
    let mut containers = spec.init_containers.iter().chain(&spec.containers);
    containers.find(|container| container.name == names::PROXY_CONTAINER)
}

/// Ports whose requests the proxy does not see: excluded from redirection or declared opaque, from the arguments and
/// environment that the injector set.
fn bypassed(spec: &RawPodSpec) -> Vec<PortRange> {
    let ours = [names::INIT_CONTAINER, names::PROXY_CONTAINER];
    let containers = spec.init_containers.iter().chain(&spec.containers);
    let lists = containers.filter(|container| ours.contains(&container.name.as_str())).flat_map(|container| {
        let excluded = container.args.iter().filter_map(|argument| argument.strip_prefix("--exclude-inbound-ports="));
        let opaque = container.env.iter().filter(|variable| variable.name == bootstrap::ENV_OPAQUE_PORTS);
        excluded.chain(opaque.filter_map(|variable| variable.value.as_deref()))
    });
    lists.flat_map(|list| list.split(',')).filter_map(|item| item.trim().parse().ok()).collect()
}

/// The pod's labels at injection, from the proxy's environment. `None`: no proxy, or an older one that reads its
/// labels elsewhere.
fn injected_labels(spec: &RawPodSpec) -> Option<BTreeMap<String, String>> {
    let variable = proxy(spec)?.env.iter().find(|variable| variable.name == bootstrap::ENV_POD_LABELS)?;
    serde_json::from_str(variable.value.as_deref()?).ok()
}

/// Keys of labels whose values differ between injection and now.
fn changed_keys(injected: &BTreeMap<String, String>, now: Option<&BTreeMap<String, String>>) -> BTreeSet<String> {
    let value = |key: &str| now.and_then(|labels| labels.get(key));
    let keys = injected.keys().chain(now.into_iter().flat_map(BTreeMap::keys));
    keys.filter(|key| injected.get(*key) != value(key)).cloned().collect()
}

// === impl Readiness ===

impl From<&RawPodStatus> for Readiness {
    fn from(status: &RawPodStatus) -> Self {
        if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
            return Self::NotReady;
        }
        let condition = |kind: &str| status.conditions.iter().find(|condition| condition.kind == kind);
        let holds = |condition: Option<&RawCondition>| condition.is_some_and(|condition| condition.status == "True");
        let ready = condition("Ready");
        // The kubelet also sets Ready to False for its containers or for a gate, with a reason that says so.
        let gated = ready.is_some_and(|ready| ready.reason.as_deref() == Some("ReadinessGatesNotReady"));
        match (holds(ready), holds(condition("ContainersReady"))) {
            (true, _) => Self::Ready,
            (false, true) if ready.is_some() && !gated => Self::Lost,
            (false, _) => Self::NotReady,
        }
    }
}

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

// === impl Account ===

impl From<kube::core::PartialObjectMeta<core::ServiceAccount>> for Account {
    fn from(object: kube::core::PartialObjectMeta<core::ServiceAccount>) -> Self {
        Self { key: key(&object.metadata) }
    }
}

// === impl Node ===

impl From<kube::core::PartialObjectMeta<core::Node>> for Node {
    fn from(object: kube::core::PartialObjectMeta<core::Node>) -> Self {
        let zone = label(&object.metadata, bootstrap::ZONE_LABEL).filter(|zone| !zone.is_empty());
        Self { key: key(&object.metadata), zone: zone.map(str::to_owned) }
    }
}

// === impl MeshObject ===

impl Meta {
    /// Whether all but the revision is equal.
    pub fn same(&self, other: &Self) -> bool {
        let Self { key, uid, generation, created, revision: _ } = self;
        (key, uid, generation, created) == (&other.key, &other.uid, &other.generation, &other.created)
    }
}

impl<K> RawMeshObject<K> {
    /// Parses the spec and the status.
    pub fn read<S: DeserializeOwned>(self) -> MeshObject<S> {
        let Self { metadata, spec, status, kind: _ } = self;
        let meta = Meta {
            key: key(&metadata),
            uid: metadata.uid.unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
            created: metadata.creation_timestamp.map_or(0, |time| time.0.as_second()),
            revision: revision(metadata.resource_version.as_deref()),
        };
        MeshObject {
            meta,
            spec: serde_json::from_value(spec).map_err(|error| error.to_string()),
            // A status that does not parse was not written by this operator.
            status: serde_json::from_value(status).unwrap_or_default(),
        }
    }
}

// === impl DocumentKind ===

impl DocumentKind {
    /// Name of the document of a namespace ("" for the index).
    pub fn name(self, namespace: &str) -> String {
        match self {
            Self::Export => bootstrap::export_name(namespace),
            Self::Inbound => bootstrap::inbound_name(namespace),
            Self::Index => bootstrap::INDEX_NAME.to_owned(),
        }
    }

    /// The namespace that a document of this name is for.
    pub fn namespace_of(self, name: &str) -> Option<String> {
        match self {
            Self::Export => name.strip_prefix("x.").filter(|rest| !rest.is_empty()).map(str::to_owned),
            Self::Inbound => name.strip_prefix("i.").filter(|rest| !rest.is_empty()).map(str::to_owned),
            Self::Index => (name == bootstrap::INDEX_NAME).then(String::new),
        }
    }

    /// Kind and namespace of the document with this name, among the kinds that are stored in the same namespace as
    /// this one.
    pub fn slot(self, name: &str) -> Option<(Self, String)> {
        let kinds: &[Self] = match self {
            Self::Export | Self::Index => &[Self::Export, Self::Index],
            Self::Inbound => &[Self::Inbound],
        };
        kinds.iter().find_map(|kind| Some((*kind, kind.namespace_of(name)?)))
    }

    /// Name in logs and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Export => "export",
            Self::Inbound => "inbound",
            Self::Index => "index",
        }
    }
}

/// The namespace in which documents of a kind are stored.
pub fn documents_namespace(kind: DocumentKind) -> &'static str {
    match kind {
        DocumentKind::Export | DocumentKind::Index => bootstrap::EXPORT_NAMESPACE,
        DocumentKind::Inbound => bootstrap::INBOUND_NAMESPACE,
    }
}

// === impl Document ===

impl Document {
    /// Its header, also if the body is damaged.
    pub fn header(&self) -> Option<Header> {
        Header::read(&self.envelope).ok()
    }

    /// Header and body of an export.
    pub fn export(&self) -> Result<(Header, Export), DecodeError> {
        self.envelope.read()
    }

    /// Header and body of a private document.
    pub fn inbound(&self) -> Result<(Header, Inbound), DecodeError> {
        self.envelope.read()
    }

    /// Header and body of the index.
    pub fn index(&self) -> Result<(Header, Index), DecodeError> {
        self.envelope.read()
    }
}

impl From<core::ConfigMap> for Document {
    fn from(object: core::ConfigMap) -> Self {
        let core::ConfigMap { metadata, data, binary_data, immutable } = object;
        let binary = binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect();
        Self {
            revision: revision(metadata.resource_version.as_deref()),
            labelled: label(&metadata, names::MANAGED_BY_LABEL) == Some(names::MANAGED_BY),
            immutable: immutable == Some(true),
            envelope: Envelope { data: data.unwrap_or_default(), binary },
            name: metadata.name.unwrap_or_default(),
            version: metadata.resource_version.unwrap_or_default(),
        }
    }
}

// === impl Access ===

impl From<rbac::Role> for Access {
    fn from(role: rbac::Role) -> Self {
        Self {
            labelled: label(&role.metadata, names::MANAGED_BY_LABEL) == Some(names::MANAGED_BY),
            content: serde_json::json!({ "rules": role.rules }),
            name: role.metadata.name.unwrap_or_default(),
        }
    }
}

impl From<rbac::RoleBinding> for Access {
    fn from(binding: rbac::RoleBinding) -> Self {
        Self {
            labelled: label(&binding.metadata, names::MANAGED_BY_LABEL) == Some(names::MANAGED_BY),
            content: serde_json::json!({ "roleRef": binding.role_ref, "subjects": binding.subjects }),
            name: binding.metadata.name.unwrap_or_default(),
        }
    }
}

// === helpers ===

fn key(metadata: &ObjectMeta) -> Key {
    Key::new(metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(name).map(String::as_str)
}

fn revision(version: Option<&str>) -> u64 {
    version.and_then(|version| version.parse().ok()).unwrap_or_default()
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

    #[test]
    fn invalid_spec_keeps_its_metadata_and_status() {
        let raw: RawMeshObject<weft_crds::MeshRoute> = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "shop", "name": "bad", "generation": 3, "resourceVersion": "12"},
            "spec": {"parentRefs": "nonsense"},
            "status": {"observedGeneration": 2, "conditions": []},
        }))
        .expect("metadata is enough");
        let object = raw.read::<weft_crds::MeshRouteSpec>();
        assert_eq!((object.meta.generation, object.meta.revision), (3, 12));
        assert_eq!(object.status.observed_generation, Some(2));
        let error = object.spec.expect_err("does not parse");
        assert!(error.contains("nonsense"), "{error}");
    }
}
