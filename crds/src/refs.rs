//! References to Kubernetes objects.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Kinds that a route can be attached to or can send to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceKind {
    /// A core Service with a ClusterIP.
    #[default]
    Service,
}

/// A Service that a route is attached to. Traffic is matched by the Service's ClusterIP, not by host name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// Kind of the parent. Default: Service.
    #[serde(default)]
    pub kind: ServiceKind,
    /// Namespace of the Service. Default: the route's namespace. A route attached to a Service of another namespace
    /// (a consumer route) applies only to clients in the route's namespace, and overrides the Service's own routes
    /// for them. This needs no ReferenceGrant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Name of the Service.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Port of the Service. Default: all of its ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
}

/// A Service in the object's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Kind of the target. Default: Service.
    #[serde(default)]
    pub kind: ServiceKind,
    /// Name of the Service.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Kinds that a policy can target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PolicyTargetKind {
    /// The pods that the Service selects, on its target ports.
    Service,
    /// The pods that run under the service account, on every port.
    ServiceAccount,
    /// Every pod of the policy's namespace, on every port.
    Namespace,
}

/// The pods that a policy applies to, in the policy's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.kind == 'Namespace' ? !has(self.name) : has(self.name)")
        .message("kinds Service and ServiceAccount require a name; remove name for kind Namespace: the policy's own namespace is the target")
)]
pub struct PolicyTargetRef {
    /// Kind of the target: Service, ServiceAccount, or the whole Namespace.
    pub kind: PolicyTargetKind,
    /// Name of the Service or ServiceAccount. Not for kind Namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
}
