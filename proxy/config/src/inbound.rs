//! What concerns the pods of a namespace themselves: who may call them, and the namespace's own routes for services
//! elsewhere (consumer routes, which bind its clients and nobody else's).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::route::{ObjectRef, PathMatch, RouteTable, ValueMatch};

/// The private part of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Inbound {
    /// Sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Policy>,
    /// Sorted by service and port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<ConsumerRoutes>,
    /// Namespaces that pods of this one are known to call: opened at start, before the first request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<String>,
    /// The nodes in each zone, of those nodes that pods of the namespace are on whose labels do not tell their zone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub zones: BTreeMap<String, BTreeSet<String>>,
    /// Pods whose labels changed after they were created, by UID: all that they have now of the labels by which policies select.
    /// The labels of a pod that is not among them are those that it was created with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub relabelled: BTreeMap<String, BTreeMap<String, String>>,
}

/// Who may call the pods that it selects.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    /// Name of the user's object; its namespace is the document's.
    pub name: String,
    /// The pods, and perhaps ports, that it governs.
    pub target: Target,
    /// In the user's order.
    pub rules: Vec<AuthorizationRule>,
}

/// Pods, and perhaps ports. A proxy holds these against what it was told of its own pod when it was created, and against
/// [`Inbound::relabelled`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// Every pod of the namespace.
    Namespace,
    /// Pods that run under this service account.
    ServiceAccount(String),
    /// Pods that a Service selects, on the ports that it sends to.
    Service {
        /// Labels that the pods have.
        selector: BTreeMap<String, String>,
        /// Ports of the pods.
        ports: Vec<PortRef>,
    },
}

/// A port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortRef {
    /// By number.
    Number(u16),
    /// By the name that a container gives it.
    Name(String),
}

/// Conditions on a call; all of them must hold, and one that is empty always does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationRule {
    /// What follows when they hold.
    pub action: Action,
    /// Methods, any of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Paths, any of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathMatch>,
    /// Headers, all of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<ValueMatch>,
    /// Ports of the pod, any of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
}

/// What follows when a rule's conditions hold. Any Deny beats every Allow; where there is an Allow, only what one allows
/// may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// The call passes.
    Allow,
    /// The call is answered 403, or its connection closed.
    Deny,
}

/// Routes of this namespace for a Service of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ConsumerRoutes {
    /// The Service.
    pub service: ObjectRef,
    /// Its port.
    pub port: u16,
    /// They stand in for the Service's own.
    pub table: RouteTable,
}
