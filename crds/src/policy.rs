//! MeshPolicy: who may call what.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::refs::PolicyTargetRef;
use crate::route::{HeaderMatch, Method, PathMatch};
use crate::status::Status;

/// Who may call the pods of a Service, of a ServiceAccount, or of the whole namespace.
///
/// A call that any Deny rule takes is refused (403 for HTTP; a TCP connection is closed). If there are Allow rules for the
/// pod and port, a call passes only if one takes it. Otherwise it passes. All policies that govern a pod count together.
/// A rule that looks into HTTP never lets opaque TCP through: a Deny rule that could apply refuses it, and an Allow rule
/// does not take it. The kubelet's probes pass always.
///
/// ```yaml
/// apiVersion: weft.dev/v1alpha1
/// kind: MeshPolicy
/// metadata: {name: read-only, namespace: shop}
/// spec:
///   targetRef: {kind: Service, name: reviews}
///   authorization:
///     rules:
///     - {action: Deny, methods: [POST, PUT, DELETE], paths: [{type: PathPrefix, value: /admin}]}
/// ```
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MeshPolicy",
    plural = "meshpolicies",
    shortname = "mpol",
    category = "weft",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.targetRef.kind"),
    printcolumn(name = "Name", type_ = "string", json_path = ".spec.targetRef.name"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct MeshPolicySpec {
    /// What the policy governs.
    pub target_ref: PolicyTargetRef,
    /// Which calls pass.
    pub authorization: Authorization,
}

/// Which calls pass.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Authorization {
    /// Their order does not matter: any Deny beats every Allow.
    #[schemars(length(min = 1, max = 32))]
    pub rules: Vec<AuthorizationRule>,
}

/// Conditions on a call. All fields that are given must hold. A rule without conditions takes every call.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationRule {
    /// Allow or Deny.
    pub action: Action,
    /// Methods; any of them. A Deny rule takes a method in whatever letter case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub methods: Vec<Method>,
    /// Paths; any of them. Applications read some paths in several ways (`%2F`, `;parameters`, `//`, dot segments,
    /// backslashes): a Deny rule takes a request if any usual reading of its path is named, and a request passes Allow rules
    /// only if all readings are. What passes is forwarded as it came.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub paths: Vec<PathMatch>,
    /// Headers; all of them. `host` is held against the host without port, letter case and final dot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// Ports of the pod (not of the Service); any of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(range(min = 1, max = 65535)))]
    pub ports: Vec<u16>,
}

/// What follows when a rule takes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// It passes, unless another rule denies it.
    Allow,
    /// It is refused.
    Deny,
}
