//! MeshPolicy: authorization of the requests and connections that pods receive.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::refs::PolicyTargetRef;
use crate::route::{HeaderMatch, Method, PathMatch};
use crate::status::Status;

/// Authorization: which requests and connections the pods of a Service, of a ServiceAccount or of a whole namespace
/// accept. What Istio calls an AuthorizationPolicy.
///
/// A request or connection that matches any Deny rule is refused (HTTP: 403; TCP: the connection is closed). If a
/// policy for the pod and port has Allow rules, one of them must match: an Allow rule that names other ports closes
/// this one. Otherwise it is allowed. The rules of all policies that apply to a pod are combined. Opaque TCP never
/// passes a rule with HTTP conditions: a Deny rule whose other conditions hold refuses it, and an Allow rule does not
/// match it. Probes of the kubelet are always allowed.
///
/// Rules do not match who sends a request: callers have no identity in this version. A header has what the client
/// wrote into it.
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
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status",
        priority = 1
    ),
    printcolumn(
        name = "Resolved",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"ResolvedRefs\")].status",
        priority = 1
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status",
        priority = 1
    ),
    printcolumn(
        name = "In-Effect",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"InEffect\")].status",
        priority = 1
    ),
    printcolumn(name = "Generation", type_ = "integer", json_path = ".metadata.generation", priority = 1),
    printcolumn(name = "Observed", type_ = "integer", json_path = ".status.observedGeneration", priority = 1),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
pub struct MeshPolicySpec {
    /// The pods that the policy applies to.
    pub target_ref: PolicyTargetRef,
    /// Which requests and connections are allowed.
    pub authorization: Authorization,
}

/// Which requests and connections are allowed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Authorization {
    /// The rules. Their order does not matter: any Deny rule that matches overrides all Allow rules.
    #[schemars(length(min = 1, max = 32))]
    pub rules: Vec<AuthorizationRule>,
}

/// An Allow or Deny rule. All conditions that are set must hold; a rule without conditions matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationRule {
    /// What happens to a request or connection that matches: Allow or Deny.
    pub action: Action,
    /// HTTP methods; any of them matches. Deny rules ignore letter case.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub methods: Vec<Method>,
    /// HTTP paths; any of them matches. Applications interpret `%2F`, `;parameters`, `//`, dot segments and
    /// backslashes differently: a Deny rule matches if any usual interpretation of the path matches, and a request
    /// passes the Allow rules only if every interpretation matches one. The request is forwarded with its path
    /// unchanged.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub paths: Vec<PathMatch>,
    /// HTTP headers; all must match. `host` is compared without port, letter case and trailing dot.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub headers: Vec<HeaderMatch>,
    /// Ports of the pod (not of the Service); any of them matches. Default: all ports. An Allow rule with ports closes
    /// the other ports of the target.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(range(min = 1, max = 65535)))]
    pub ports: Vec<u16>,
}

/// What happens to a request or connection that matches a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// It is allowed, unless another rule denies it.
    Allow,
    /// It is refused.
    Deny,
}
