//! MeshPolicy: mutual TLS and authorization of the requests and connections that pods receive.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::mesh::Mode;
use crate::refs::PolicyTargetRef;
use crate::route::{HeaderMatch, Method, PathMatch};
use crate::status::Status;

/// CEL: something is refused, or rules say what is allowed.
const HAS_EFFECT: &str = "(has(self.rules) && size(self.rules) > 0) || (has(self.default) && self.default == 'Deny')";

/// CEL: an entry says who.
const NAMES_CALLERS: &str =
    "has(self.serviceAccounts) || has(self.notServiceAccounts) || has(self.namespaces) || has(self.notNamespaces)";

/// A service account: namespace/name, or name.
pub(crate) const ACCOUNT: &str = "^([a-z0-9]([-a-z0-9]*[a-z0-9])?/)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$";

/// The name of a namespace.
const NAMESPACE: &str = "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$";

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
/// `from` names callers by the service account in the certificate of their proxy. A header, in contrast, has what the
/// client wrote into it.
///
/// ```yaml
/// apiVersion: weft.dev/v1alpha1
/// kind: MeshPolicy
/// metadata: {name: readers, namespace: shop}
/// spec:
///   targetRef: {kind: Service, name: reviews}
///   authorization:
///     default: Deny
///     rules:
///     - {action: Allow, from: [{serviceAccounts: [web]}], methods: [GET, HEAD]}
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
    printcolumn(
        name = "Strict-Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"StrictReady\")].status"
    ),
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
    ),
    printcolumn(
        name = "Strict-Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"StrictReady\")].message",
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
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(HAS_EFFECT).message("give at least one rule, or default: Deny, which refuses everything"))]
pub struct Authorization {
    /// What happens to requests and connections that no rule matches: Allow or Deny. Deny refuses them on all ports of
    /// the target, also if no policy has an Allow rule. Default: Allow; but if a policy has Allow rules for the pod and
    /// port, one of them must match.
    #[serde(default, skip_serializing_if = "Action::is_allow")]
    pub default: Action,
    /// The rules. Their order does not matter: any Deny rule that matches overrides all Allow rules. May be left out if
    /// the default is Deny.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub rules: Vec<AuthorizationRule>,
}

/// An Allow or Deny rule. All conditions that are set must hold; a rule without conditions matches everything.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuthorizationRule {
    /// What happens to a request or connection that matches: Allow or Deny.
    pub action: Action,
    /// Who calls; any entry matches. Default: everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 8))]
    pub from: Option<Vec<Source>>,
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

/// Who calls. All fields that are set must hold.
///
/// A caller is the service account in the certificate with which its proxy has proven who it is, and nothing else: no
/// address, and no header. A caller without a certificate of this trust domain (plaintext, for example from a pod
/// without a proxy) matches no entry with `serviceAccounts` or `namespaces`. An entry that has only the negated fields
/// matches it in a Deny rule, and does not match it in an Allow rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new(NAMES_CALLERS).message("name callers in each entry of from: serviceAccounts, notServiceAccounts, namespaces or notNamespaces. To match everybody, leave out from"))]
pub struct Source {
    /// Service accounts, as namespace/name, or as name in the policy's own namespace; any of them matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 317), regex(pattern = ACCOUNT)))]
    pub service_accounts: Vec<String>,
    /// Service accounts that do not match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 317), regex(pattern = ACCOUNT)))]
    pub not_service_accounts: Vec<String>,
    /// Namespaces, all of whose service accounts match; any of them matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 63), regex(pattern = NAMESPACE)))]
    pub namespaces: Vec<String>,
    /// Namespaces, none of whose service accounts match.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 63), regex(pattern = NAMESPACE)))]
    pub not_namespaces: Vec<String>,
}

/// Allow or Deny.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Action {
    /// It is allowed, unless another rule denies it.
    #[default]
    Allow,
    /// It is refused.
    Deny,
}

// === impl Action ===

impl Action {
    fn is_allow(&self) -> bool {
        *self == Self::Allow
    }
}
