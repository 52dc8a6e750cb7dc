//! Pods, and what their containers say about the proxy in them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core;
use kube::api::ObjectMeta;
use serde::Deserialize;
use weft_config::Prefix;
use weft_config::bootstrap::{self, PortRange};
use weft_crds::names;

use super::key::Key;
use super::metadata::{key, label, resource};
use super::port::is_tcp;

/// The service account of pods that name none.
const DEFAULT_ACCOUNT: &str = "default";

/// Ranges of excluded ports that a pod may have in a document of pods: as many as the injector accepts. One with more is
/// called as if it had no identity: it cannot make the document too large for the other pods in it.
const EXCLUDED_MAX: usize = 100;

/// The kubelet's annotation on the mirror of a static pod.
const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

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
    /// Its addresses, until it has ended. With `host_network`, those of its node.
    pub addresses: Vec<IpAddr>,
    /// Its proxy proves the identity of its service account. Without one, it may have a proxy all the same.
    pub has_identity: bool,
    /// The addresses at which its proxy proves its identity: from when Kubernetes has assigned them, so also before it
    /// is ready, until it has ended. Sorted; empty for other pods, and with more than 100 ranges of excluded ports.
    pub identified: Vec<IpAddr>,
    /// When it was created, in seconds since 1970.
    pub created: i64,
    /// Ports that are excluded from redirection: their connections do not go through the proxy.
    pub excluded: Vec<PortRange>,
    /// Ports that the proxy forwards as opaque TCP. `None`: its default ones.
    pub opaque: Option<Vec<PortRange>>,
    /// Uses the host's network. Such a pod gets no proxy.
    pub host_network: bool,
    /// Its service account.
    pub service_account: String,
    /// TCP ports that its containers, other than the proxy, declare. They may listen on others.
    pub ports: Vec<ContainerPort>,
    /// The pod's node; kept only if the pod has a proxy and no pod label tells the proxy its zone.
    pub node: Option<String>,
    /// Keys of labels that changed since the proxy was injected.
    pub relabelled: BTreeSet<String>,
    /// Set if it runs without a proxy and could have one: it does not opt out, and is not about to end.
    pub without_proxy: Option<WithoutProxy>,
}

/// What there is to know about a pod without a proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WithoutProxy {
    /// Its controller.
    pub owner: Option<Owner>,
}

/// The controller that created an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// As in manifests.
    pub api_version: String,
    /// As in manifests.
    pub kind: String,
    /// Its name, in the object's namespace.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// A port that a container declares.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerPort {
    /// Name; empty if it has none.
    pub name: String,
    /// Number.
    pub port: u16,
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
    service_account_name: Option<String>,
    #[serde(default)]
    host_network: bool,
    os: Option<RawOs>,
    #[serde(default)]
    containers: Vec<RawContainer>,
    #[serde(default)]
    init_containers: Vec<RawContainer>,
}

#[derive(Clone, Debug, Deserialize)]
struct RawOs {
    name: String,
}

#[derive(Clone, Debug, Deserialize)]
struct RawContainer {
    #[serde(default)]
    name: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<RawVariable>,
    #[serde(default)]
    ports: Vec<RawContainerPort>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawContainerPort {
    name: Option<String>,
    container_port: Option<u16>,
    protocol: Option<String>,
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
    #[serde(rename = "podIPs", default)]
    ips: Vec<RawIp>,
}

#[derive(Clone, Debug, Default, Deserialize)]
struct RawIp {
    #[serde(default)]
    ip: String,
}

#[derive(Clone, Debug, Deserialize)]
struct RawCondition {
    #[serde(rename = "type", default)]
    kind: String,
    #[serde(default)]
    status: String,
    reason: Option<String>,
}

resource!(RawPod, core::Pod);

// === impl Pod ===

impl Pod {
    /// Whether traffic to this port of the pod goes through its proxy and is not opaque.
    pub fn has_proxy_at(&self, port: u16) -> bool {
        self.has_proxy && !self.excludes(port) && !self.is_opaque(port)
    }

    /// The service account that its proxy proves to clients of this port, opaque ports included. `None`: a client finds no
    /// proxy there, or one without identity.
    pub fn identity_at(&self, port: u16) -> Option<&str> {
        (self.has_proxy && self.has_identity && !self.excludes(port)).then_some(&self.service_account)
    }

    /// Whether connections to this port are not redirected to its proxy.
    pub fn excludes(&self, port: u16) -> bool {
        is_in(&self.excluded, port)
    }

    /// The prefixes of the addresses at which its proxy proves its identity.
    pub fn prefixes(&self) -> BTreeSet<Prefix> {
        self.identified.iter().copied().map(Prefix::of).collect()
    }

    /// Whether `next` says the same of who is at which address.
    pub fn has_same_identity(&self, next: &Self) -> bool {
        (&self.identified, &self.excluded, &self.uid) == (&next.identified, &next.excluded, &next.uid)
            && (&self.service_account, self.created, self.deleting)
                == (&next.service_account, next.created, next.deleting)
    }

    /// Whether its proxy forwards connections to this port as opaque TCP.
    pub fn is_opaque(&self, port: u16) -> bool {
        match &self.opaque {
            Some(ports) => is_in(ports, port),
            None => bootstrap::OPAQUE_PORTS_DEFAULT.contains(&port),
        }
    }

    /// Whether it may have traffic: it is ready or lost, and not terminating. Others come and go during a rollout.
    pub fn counts(&self) -> bool {
        self.readiness != Readiness::NotReady && !self.deleting
    }

    /// Whether it may have traffic and has a proxy.
    pub fn is_meshed(&self) -> bool {
        self.has_proxy && self.counts()
    }

    /// Whether its own label keeps the proxy out.
    pub fn is_opted_out(&self) -> bool {
        self.labels.get(names::INJECT_LABEL).is_some_and(|value| value == "false")
    }

    /// Whether its own label asks for the proxy, whatever its namespace says.
    pub fn is_opted_in(&self) -> bool {
        self.labels.get(names::INJECT_LABEL).is_some_and(|value| value == "true")
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
        let has_identity = has_proxy && !spec.host_network && has_identity(&spec);
        let excluded = excluded(&spec);
        let is_identified = has_identity && !has_ended(&status) && excluded.len() <= EXCLUDED_MAX;
        let has_zone_label = label(&metadata, bootstrap::ZONE_LABEL).is_some_and(|zone| !zone.is_empty());
        Self {
            key: key(&metadata),
            uid: metadata.uid.clone().unwrap_or_default(),
            readiness: Readiness::from(&status),
            deleting: metadata.deletion_timestamp.is_some(),
            has_proxy,
            addresses: if has_ended(&status) { Vec::new() } else { addresses(&status) },
            has_identity,
            identified: if is_identified { addresses(&status) } else { Vec::new() },
            created: metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
            excluded,
            opaque: opaque(&spec),
            host_network: spec.host_network,
            ports: ports(&spec),
            without_proxy: without_proxy(&metadata, &spec, &status).filter(|_| !has_proxy),
            relabelled: injected_labels(&spec)
                .map(|injected| changed_keys(&injected, metadata.labels.as_ref()))
                .unwrap_or_default(),
            service_account: spec.service_account_name.unwrap_or_else(|| DEFAULT_ACCOUNT.to_owned()),
            node: spec.node_name.filter(|_| has_proxy && !has_zone_label),
            labels: metadata.labels.unwrap_or_default(),
        }
    }
}

/// Set unless the pod opts out, ends, or is of a sort that is never injected: for Windows, or the mirror of a static
/// pod.
fn without_proxy(metadata: &ObjectMeta, spec: &RawPodSpec, status: &RawPodStatus) -> Option<WithoutProxy> {
    let ends = metadata.deletion_timestamp.is_some() || has_ended(status);
    let opts_out = label(metadata, names::INJECT_LABEL) == Some("false");
    let is_mirror = metadata.annotations.as_ref().is_some_and(|all| all.contains_key(MIRROR_ANNOTATION));
    let is_linux = spec.os.as_ref().is_none_or(|os| os.name == "linux");
    let owner = metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let owner = owner.map(|owner| Owner {
        api_version: owner.api_version.clone(),
        kind: owner.kind.clone(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
    });
    let found = WithoutProxy { owner };
    (is_linux && !(ends || opts_out || is_mirror)).then_some(found)
}

/// The proxy container.
fn proxy(spec: &RawPodSpec) -> Option<&RawContainer> {
    containers(spec).find(|container| container.name == names::PROXY_CONTAINER)
}

/// Whether the injector has told the proxy where to get a certificate. Containers cannot be changed while the pod runs.
fn has_identity(spec: &RawPodSpec) -> bool {
    proxy(spec).is_some_and(|proxy| proxy.env.iter().any(|variable| variable.name == bootstrap::ENV_IDENTITY_URL))
}

/// What Kubernetes has assigned.
fn addresses(status: &RawPodStatus) -> Vec<IpAddr> {
    let mut addresses: Vec<IpAddr> = status.ips.iter().filter_map(|assigned| assigned.ip.parse().ok()).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses
}

/// Ports that are excluded from redirection, from the arguments that the injector gave to the init container, in as few
/// ranges as possible, sorted.
fn excluded(spec: &RawPodSpec) -> Vec<PortRange> {
    let containers = containers(spec).filter(|container| is_ours(container));
    let arguments = containers.flat_map(|container| &container.args);
    merged(ranges(arguments.filter_map(|argument| argument.strip_prefix("--exclude-inbound-ports="))))
}

fn merged(mut ranges: Vec<PortRange>) -> Vec<PortRange> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, previous| {
        let touches = u32::from(next.first.get()) <= u32::from(previous.last.get()) + 1;
        if touches {
            previous.last = previous.last.max(next.last);
        }
        touches
    });
    ranges
}

/// Ports that are declared opaque, from the environment that the injector gave to the proxy; `None` if it gave none.
fn opaque(spec: &RawPodSpec) -> Option<Vec<PortRange>> {
    let containers = containers(spec).filter(|container| is_ours(container));
    let mut variables = containers.flat_map(|container| &container.env);
    let variable = variables.find(|variable| variable.name == bootstrap::ENV_OPAQUE_PORTS)?;
    Some(ranges(variable.value.as_deref().into_iter()))
}

/// The TCP ports of the containers that are not ours, sorted.
fn ports(spec: &RawPodSpec) -> Vec<ContainerPort> {
    let ports = containers(spec).filter(|container| !is_ours(container)).flat_map(|container| &container.ports);
    let ports = ports.filter(|port| is_tcp(port.protocol.as_deref())).filter_map(|port| {
        let number = port.container_port.filter(|number| *number != 0)?;
        Some(ContainerPort { name: port.name.clone().unwrap_or_default(), port: number })
    });
    let mut ports: Vec<ContainerPort> = ports.collect();
    ports.sort();
    ports.dedup();
    ports
}

fn containers(spec: &RawPodSpec) -> impl Iterator<Item = &RawContainer> {
    spec.init_containers.iter().chain(&spec.containers)
}

fn is_ours(container: &RawContainer) -> bool {
    [names::INIT_CONTAINER, names::PROXY_CONTAINER].contains(&container.name.as_str())
}

fn ranges<'a>(lists: impl Iterator<Item = &'a str>) -> Vec<PortRange> {
    lists.flat_map(|list| list.split(',')).filter_map(|item| item.trim().parse().ok()).collect()
}

fn is_in(ranges: &[PortRange], port: u16) -> bool {
    ranges.iter().any(|range| range.contains(port))
}

/// The pod's labels at injection, from the proxy's environment. `None`: no proxy, or an older one that reads its
/// labels elsewhere.
fn injected_labels(spec: &RawPodSpec) -> Option<BTreeMap<String, String>> {
    let variable = proxy(spec)?.env.iter().find(|variable| variable.name == bootstrap::ENV_POD_LABELS)?;
    serde_json::from_str(variable.value.as_deref()?).ok()
}

fn has_ended(status: &RawPodStatus) -> bool {
    matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"))
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
        if has_ended(status) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excluded_ports_are_merged() {
        for (given, expected) in [
            (&[][..], &[][..]),
            (&["22", "22"], &["22"]),
            (&["8000-8010", "22", "8005-8020", "8021"], &["22", "8000-8021"]),
            (&["1-65535", "65535", "80"], &["1-65535"]),
            (&["80", "82"], &["80", "82"]),
        ] {
            let read =
                |ranges: &[&str]| -> Vec<PortRange> { ranges.iter().map(|range| range.parse().unwrap()).collect() };
            assert_eq!(merged(read(given)), read(expected), "{given:?}");
        }
    }
}
