//! References to Kubernetes objects.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Kinds that a route can be attached to or send to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceKind {
    /// A core Service with a ClusterIP.
    #[default]
    Service,
}

/// The Service whose traffic a route governs. It is known by its ClusterIP, not by a host name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ParentRef {
    /// Kind of the parent.
    #[serde(default)]
    pub kind: ServiceKind,
    /// Namespace of the Service; by default the route's own. A route for a Service of another namespace (a consumer route)
    /// binds the clients in the route's namespace only, and takes the place of the Service's own routes for them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// Name of the Service.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Port of the Service; by default all of its ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<u16>,
}

/// A Service in the object's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceRef {
    /// Kind of the target.
    #[serde(default)]
    pub kind: ServiceKind,
    /// Name of the Service.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Kinds that a policy can govern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PolicyTargetKind {
    /// The pods that the Service selects, on the ports that it sends to.
    Service,
    /// The pods that run under the service account, on every port.
    ServiceAccount,
    /// Every pod of the policy's namespace, on every port.
    Namespace,
}

/// What a policy governs, in the policy's own namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = kube::core::Rule::new("self.kind == 'Namespace' ? !has(self.name) : has(self.name)")
        .message("name a Service or ServiceAccount; for kind Namespace leave the name out: the policy's own namespace is meant")
)]
pub struct PolicyTargetRef {
    /// Kind of the target: Service, ServiceAccount, or the whole Namespace.
    pub kind: PolicyTargetKind,
    /// Name of the Service or ServiceAccount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub name: Option<String>,
}
