//! MeshPolicy: mutual TLS and authorization of the requests and connections that pods receive.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::mesh::Mode;
use crate::refs::PolicyTargetRef;
use crate::route::{HeaderMatch, Method, PathMatch};
use crate::status::Status;

/// Mutual TLS and authorization: which requests and connections the pods of a Service, of a ServiceAccount or of a whole
/// namespace accept. What Istio calls a PeerAuthentication and an AuthorizationPolicy.
///
/// `mtls` says whether connections must be encrypted and authenticated by both sides (Strict), and which ports take
/// plaintext nevertheless. Without a mode for a port, that of the policies for its Service or ServiceAccount holds, then
/// that of the policies for the Namespace, then that of the Mesh. Where several policies of the same kind of target
/// disagree, Strict wins.
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
#[x_kube(
    validation = Rule::new("has(self.mtls) || has(self.authorization)").message("give mtls, authorization, or both")
)]
pub struct MeshPolicySpec {
    /// The pods that the policy applies to.
    pub target_ref: PolicyTargetRef,
    /// Mutual TLS of connections to the pods: a mode, ports with a mode of their own, or both. A Strict mode for kind
    /// Namespace also means that pods of the namespace send no plaintext to Services of the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtls: Option<MutualTls>,
    /// Which requests and connections are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<Authorization>,
}

/// Mutual TLS of connections to the pods: a mode, ports with a mode of their own, or both. A Strict mode for kind Namespace
/// also means that pods of the namespace send no plaintext to Services of the mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.mode) || has(self.ports)").message("give mode, ports, or both"))]
pub struct MutualTls {
    /// The mode of ports without an entry. Default: that of the policy for the Namespace, or of the Mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Ports with a mode of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 32))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["port"]))]
    pub ports: Vec<PortTls>,
}

/// Mutual TLS of a port.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("!has(self.ipBlocks) || self.mode == 'Permissive'")
        .message("ipBlocks say who may use plaintext: remove them, or set mode: Permissive")
)]
pub struct PortTls {
    /// Port of the pod (not of the Service).
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// Permissive: the port takes plaintext too. Strict: mutual TLS only.
    pub mode: Mode,
    /// Addresses that plaintext is accepted from, in CIDR notation: `198.18.0.0/15`, `10.0.0.7/32`, `2001:db8::/32`. Required
    /// if the mode is Strict without this entry. Only with mode Permissive. Default: all addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 49)))]
    pub ip_blocks: Vec<String>,
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
