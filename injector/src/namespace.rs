//! A pod's namespace, as far as it matters to injection. [`crate::namespaces`] reads it from the cluster.

use std::collections::BTreeMap;

/// Label of a namespace with the Pod Security level that the API server enforces.
pub const POD_SECURITY_LABEL: &str = "pod-security.kubernetes.io/enforce";

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
