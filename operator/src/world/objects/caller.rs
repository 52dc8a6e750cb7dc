//! Clients that call pods in plaintext, as the pods' proxies tell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_config::PlaintextCallers;

use super::key::Key;
use super::pod::Pod;

/// The answer of a pod's proxy.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The pod.
    pub pod: Key,
    /// Its UID.
    pub uid: String,
    /// Its callers. None: it could not be asked.
    pub callers: Option<PlaintextCallers>,
}

/// What is known of the clients that call a pod in plaintext.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The pod could not be asked.
    Failed,
    /// Each client, with the port of the pod.
    Callers(BTreeSet<(u16, Caller)>),
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Caller {
    /// Pods of a workload, by namespace and name of the workload.
    Workload(Key),
    /// A node, or a pod in its network.
    Node(IpAddr),
    /// An address that no pod has.
    Address(IpAddr),
}

/// By pod, with its UID.
pub type Answers = BTreeMap<Key, (String, Asked)>;

// === impl Caller ===

impl Caller {
    /// A pod, as the owner of an address.
    pub fn of(pod: &Pod, address: IpAddr) -> Self {
        if pod.host_network { Self::Node(address) } else { Self::Workload(Key::new(&pod.key.namespace, workload(pod))) }
    }
}

impl std::fmt::Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Workload(key) => write!(f, "{key}"),
            Self::Node(address) => write!(f, "node {address}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// The name of the workload that a pod belongs to, by the labels that its controller gave it; else that of the pod.
fn workload(pod: &Pod) -> &str {
    let label = |key: &str| pod.labels.get(key).map(String::as_str);
    let name = pod.key.name.as_str();
    let without_suffix = || name.rsplit_once('-').map(|(name, _)| name);
    let found = if let Some(hash) = label("pod-template-hash") {
        // Deployment: `name-hash-random`.
        without_suffix().and_then(|name| name.strip_suffix(hash)?.strip_suffix('-'))
    } else if let Some(job) = label("batch.kubernetes.io/job-name") {
        Some(job)
    } else if label("controller-revision-hash").is_some() {
        // StatefulSet: `name-number`; DaemonSet: `name-random`.
        without_suffix()
    } else {
        None
    };
    found.unwrap_or(name)
}
