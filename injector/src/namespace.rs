//! A pod's namespace, as far as it matters to injection. [`crate::namespaces`] reads it from the cluster.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use weft_config::bootstrap::{EXPORT_NAMESPACE, INBOUND_NAMESPACE};
use weft_crds::names::{INJECT_ENABLED, INJECT_LABEL, SYSTEM_NAMESPACE};

/// Label of a namespace with the Pod Security level that the API server enforces.
pub const POD_SECURITY_LABEL: &str = "pod-security.kubernetes.io/enforce";

/// Value of [`INJECT_LABEL`] on a namespace that is explicitly outside the mesh.
pub const INJECT_DISABLED: &str = "disabled";

/// Namespaces of the cluster and of Weft, which are never injected.
const SYSTEM_NAMESPACES: [&str; 6] =
    ["kube-system", "kube-public", "kube-node-lease", SYSTEM_NAMESPACE, EXPORT_NAMESPACE, INBOUND_NAMESPACE];

/// The parts of a pod's namespace that decide on injection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
}

// === impl Namespace ===

impl Namespace {
    /// Reads it from an object of the API server; `None` if that has no readable name and metadata.
    pub fn parse(object: &Value) -> Option<Self> {
        let metadata: ObjectMeta = serde_json::from_value(object.get("metadata")?.clone()).ok()?;
        Some(Self {
            name: metadata.name?,
            labels: metadata.labels.unwrap_or_default(),
            annotations: metadata.annotations.unwrap_or_default(),
        })
    }

    /// Whether it has the label by which its pods get a proxy.
    pub fn is_enabled(&self) -> bool {
        self.labels.get(INJECT_LABEL).is_some_and(|value| value == INJECT_ENABLED)
    }

    /// Whether it belongs to the cluster or to Weft.
    pub fn is_system(&self) -> bool {
        SYSTEM_NAMESPACES.contains(&self.name.as_str())
    }
}
