//! Pods, and what their containers say about the proxy in them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1 as core;
use kube::api::ObjectMeta;
use serde::Deserialize;
use weft_config::bootstrap::{self, PortRange};
use weft_crds::names;

use super::key::Key;
use super::metadata::{key, label, resource};

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
    /// Ports that bypass the proxy, or that it forwards as opaque TCP.
    pub bypassed: Vec<PortRange>,
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
    /// Uses the network of its node, so that it cannot have a proxy.
    pub host_network: bool,
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

resource!(RawPod, core::Pod);

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
            without_proxy: without_proxy(&metadata, &spec, &status).filter(|_| !has_proxy),
            bypassed: bypassed(&spec),
            relabelled: injected_labels(&spec)
                .map(|injected| changed_keys(&injected, metadata.labels.as_ref()))
                .unwrap_or_default(),
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
    let found = WithoutProxy { host_network: spec.host_network, owner };
    (is_linux && !(ends || opts_out || is_mirror)).then_some(found)
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
