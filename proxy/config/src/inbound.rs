//! The inbound document of a namespace: which requests its pods accept, and its consumer routes. Consumer routes are routes of
//! this namespace for Services of other namespaces; they apply only to clients in this namespace.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::is_default;
use crate::refs::ObjectRef;
use crate::route::{PathMatch, RouteTable, ValueMatch};

/// The inbound document of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Inbound {
    /// Sorted by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Policy>,
    /// Sorted by service and port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<ConsumerRoutes>,
    /// Mutual TLS of the namespace's pods.
    #[serde(default, skip_serializing_if = "is_default")]
    pub mtls: Mtls,
    /// Namespaces that pods of this one are known to call: opened at start, before the first request.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<String>,
    /// Nodes by zone, for the nodes of this namespace's pods whose labels do not include the zone.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub zones: BTreeMap<String, BTreeSet<String>>,
    /// Pods whose labels changed after their creation, by UID, with all current labels of those keys that policies
    /// select by. Any other pod has the labels it was created with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub relabelled: BTreeMap<String, BTreeMap<String, String>>,
}

/// Mutual TLS between pods of the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Mtls {
    /// For connections to the pods: the namespace's mode, where no policy says otherwise.
    #[serde(default, skip_serializing_if = "is_default")]
    pub inbound: MtlsMode,
    /// For connections from the pods to Services of the mesh.
    #[serde(default, skip_serializing_if = "is_default")]
    pub outbound: MtlsMode,
    /// What policies say, sorted by name. Of a pod's port: the entry of the port before the mode; a policy for a Service
    /// or ServiceAccount before one for the namespace; `inbound` last. Of equal ones that disagree, Strict wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<MtlsPolicy>,
}

/// Mutual TLS of the pods that a policy targets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct MtlsPolicy {
    /// Name of the user's object; its namespace is the document's.
    pub name: String,
    /// The pods and, if any, the ports that it applies to.
    pub target: Target,
    /// The mode of ports without an entry. Absent: the policy sets none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<MtlsMode>,
    /// Ports with a mode of their own, sorted by number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<MtlsPort>,
}

/// Mutual TLS of a port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct MtlsPort {
    /// Its number.
    pub port: u16,
    /// The mode.
    pub mode: MtlsMode,
    /// Addresses that plaintext is accepted from, in CIDR notation, sorted. Empty: all. Only in permissive mode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_blocks: Vec<String>,
}

/// What is done where a connection would not be encrypted and authenticated by both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum MtlsMode {
    /// Mutual TLS with every peer that has an identity; plaintext with all others.
    #[default]
    Permissive,
    /// Mutual TLS, or no connection.
    Strict,
}

/// An authorization policy for the pods that it targets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Policy {
    /// Name of the user's object; its namespace is the document's.
    pub name: String,
    /// The pods and, if any, the ports that it applies to.
    pub target: Target,
    /// A call that no rule matches is refused, whichever policy the rule is of.
    #[serde(default, skip_serializing_if = "is_default")]
    pub default_deny: bool,
    /// In the user's order.
    pub rules: Vec<AuthorizationRule>,
}

/// The pods and ports that a policy applies to. A proxy compares them with its pod's labels and service account from
/// the bootstrap, and with [`Inbound::relabelled`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Target {
    /// Every pod of the namespace.
    Namespace,
    /// Pods that run under this service account.
    ServiceAccount(String),
    /// Pods that a Service selects, on the Service's target ports.
    Service {
        /// Labels that the pods have.
        selector: BTreeMap<String, String>,
        /// Ports of the pods.
        ports: Vec<PortRef>,
    },
}

/// A port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortRef {
    /// By number.
    Number(u16),
    /// By the name of a container port.
    Name(String),
}

/// Conditions on a call and an action. All conditions must match; an empty one always does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationRule {
    /// The action if they match.
    pub action: Action,
    /// Who calls; any of them matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from: Vec<Source>,
    /// Methods; any of them matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// Paths; any of them matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<PathMatch>,
    /// Headers; all of them must match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<ValueMatch>,
    /// Ports of the pod; any of them matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
}

/// Callers, by the service account that they have proven to be, in the trust domain of the pod. All conditions must
/// match; an empty one always does, and at least one is not empty. A caller that has proven nothing matches no condition
/// that names what it must be. If only the negated ones are set, a Deny matches such a caller, and an Allow does not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Source {
    /// Service accounts; it is any of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_accounts: Vec<ObjectRef>,
    /// Service accounts; it is none of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_service_accounts: Vec<ObjectRef>,
    /// Namespaces; its service account is of any of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// Namespaces; its service account is of none of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_namespaces: Vec<String>,
}

/// The action of a rule. A matching Deny beats every Allow; if there is an Allow, only calls that an Allow matches
/// pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// The call passes.
    Allow,
    /// A request is answered 403, a TCP connection is closed.
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
    /// The routes. They replace those of the Service.
    pub table: RouteTable,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_of_mutual_tls_are_written_only_if_strict() {
        for (inbound, outbound, text) in [
            (MtlsMode::Permissive, MtlsMode::Permissive, "{}"),
            (MtlsMode::Strict, MtlsMode::Permissive, r#"{"mtls":{"inbound":"strict"}}"#),
            (MtlsMode::Permissive, MtlsMode::Strict, r#"{"mtls":{"outbound":"strict"}}"#),
        ] {
            let document = Inbound { mtls: Mtls { inbound, outbound, policies: Vec::new() }, ..Inbound::default() };
            assert_eq!(serde_json::to_string(&document).expect("writes"), text);
            assert_eq!(serde_json::from_str::<Inbound>(text).expect("reads"), document);
        }
    }
}
