//! MeshCluster: how to talk to a Service.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;
use crate::refs::ServiceRef;
use crate::status::Status;

/// How proxies talk to a Service: which subsets of its pods exist, how a pod is chosen, how much may be open at once.
///
/// ```yaml
/// apiVersion: weft.dev/v1alpha1
/// kind: MeshCluster
/// metadata: {name: reviews, namespace: shop}
/// spec:
///   targetRef: {kind: Service, name: reviews}
///   subsets:
///   - {name: v1, labels: {version: v1}}
///   - {name: v2, labels: {version: v2}}
///   loadBalancer: {policy: PeakEWMA}
/// ```
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "weft.dev",
    version = "v1alpha1",
    kind = "MeshCluster",
    plural = "meshclusters",
    shortname = "mcl",
    category = "weft",
    namespaced,
    status = "Status",
    derive = "PartialEq",
    printcolumn(name = "Target", type_ = "string", json_path = ".spec.targetRef.name"),
    printcolumn(name = "Accepted", type_ = "string", json_path = ".status.conditions[?(@.type==\"Accepted\")].status"),
    printcolumn(
        name = "Resolved",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"ResolvedRefs\")].status"
    ),
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
pub struct MeshClusterSpec {
    /// The Service, in this namespace. One MeshCluster governs a Service; of several the oldest does.
    pub target_ref: ServiceRef,
    /// Named parts of the Service's pods, for routes to send to. A pod may be in several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub subsets: Vec<Subset>,
    /// How a pod is chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancer: Option<LoadBalancer>,
    /// How connections are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Connect>,
    /// What each proxy may have open to the Service. A request beyond is answered 503 at once, with the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// A named part of a Service's pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Subset {
    /// The name that routes use.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub name: String,
    /// Labels that a pod must have to be in it; all of them.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 16))]
    pub labels: BTreeMap<String, String>,
}

/// How a pod is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancer {
    /// PeakEWMA (default): of two pods at random, the one that answers faster, with its open requests counted in.
    /// LeastRequest: of two pods at random, the one with fewer open requests. RoundRobin: one after the other. Random: any.
    #[serde(default)]
    pub policy: BalancerPolicy,
}

/// How a pod is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum BalancerPolicy {
    /// See [`LoadBalancer::policy`].
    #[default]
    #[serde(rename = "PeakEWMA")]
    PeakEwma,
    /// See [`LoadBalancer::policy`].
    LeastRequest,
    /// See [`LoadBalancer::policy`].
    RoundRobin,
    /// See [`LoadBalancer::policy`].
    Random,
}

/// How connections are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Connect {
    /// How long a connection to a pod may take to be made; then another pod is tried. Default 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = kube::core::Rule::new("duration(self) >= duration('1ms') && duration(self) <= duration('5m')")
        .message("connect.timeout must be between 1ms and 5m"))]
    pub timeout: Option<Duration>,
}

/// What each proxy may have open to one port of the Service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Connections. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_connections: Option<u32>,
    /// Requests in flight. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub max_requests: Option<u32>,
    /// Requests that wait because all connections are in use. Default: 1024. 0: none waits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_pending: Option<u32>,
}
