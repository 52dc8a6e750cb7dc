//! Status of the custom resources: conditions with the types and reasons of the Gateway API.

use std::fmt;

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Status of the object, written by the operator.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The `metadata.generation` that the conditions refer to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions. Accepted: the object is valid and in use. ResolvedRefs: the objects that it references exist (not of a
    /// Mesh). Programmed: it is in the configuration that proxies read. InEffect: the pods that it concerns have a proxy
    /// that applies it (not of a Mesh). Ready: all of these; its reason and message are those of the first condition that
    /// says something. StrictReady, of objects about mutual TLS: nobody calls in plaintext whom Strict would refuse.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// Types of conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The object is valid and in use.
    Accepted,
    /// The objects that it references exist.
    ResolvedRefs,
    /// It is in the configuration that proxies read.
    Programmed,
    /// The pods that it concerns have a proxy that applies it.
    InEffect,
    /// All of the above, for tools that know only this condition.
    Ready,
    /// Nobody calls the pods in plaintext whom the mode Strict would refuse. Not part of Ready.
    StrictReady,
    /// Parts of it are not in use: only of a route of the Gateway API, and only while it is true.
    PartiallyInvalid,
}

/// Reasons of conditions; those of the Gateway API where it has one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Accepted, without problems.
    Accepted,
    /// Not accepted: the target does not exist.
    TargetNotFound,
    /// Not accepted: Weft does not support the target (a headless Service).
    UnsupportedTarget,
    /// Not accepted: a value is not supported.
    UnsupportedValue,
    /// Not accepted, of a route of the Gateway API: the Service, or its port, does not exist.
    NoMatchingParent,
    /// Not accepted, or in part: an older object, a route of another kind, or a stricter policy has precedence.
    Conflicted,
    /// Not accepted: the object cannot be parsed.
    Invalid,
    /// Accepted, but parts of it are not in use.
    PartiallyInvalid,
    /// All references are resolved.
    ResolvedRefs,
    /// A backend does not exist.
    BackendNotFound,
    /// A caller that a policy's rule names, a service account or namespace, does not exist.
    CallerNotFound,
    /// A backend of a kind that Weft does not know.
    InvalidKind,
    /// A backend in another namespace, which no ReferenceGrant of that namespace allows.
    RefNotPermitted,
    /// A subset does not exist, or selects no pod.
    SubsetNotFound,
    /// It is in the configuration that proxies read.
    Programmed,
    /// It is not, or no longer, in the configuration that proxies read.
    Pending,
    /// The namespace's configuration is larger than a ConfigMap may be.
    TooLarge,
    /// The pods that it concerns have a proxy that applies it.
    InEffect,
    /// Pods that it concerns have no proxy.
    NoProxy,
    /// Pods that must prove who they are were created without identity.
    NoIdentity,
    /// Ports take plaintext although mutual TLS is demanded otherwise, as the object says.
    PlaintextDeclared,
    /// It concerns no pod at present.
    NoPods,
    /// A Service that it names has no ready pod at present.
    NoEndpoints,
    /// Pods have no such port.
    PortNotFound,
    /// Pods exclude a port from their proxy.
    PortExcluded,
    /// StrictReady: nobody calls in plaintext.
    NoPlaintextCallers,
    /// Not StrictReady: clients call in plaintext.
    PlaintextCallers,
    /// It is not known whether StrictReady: pods could not be asked.
    PodsNotAsked,
    /// Ready: all conditions are true.
    Ready,
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}
