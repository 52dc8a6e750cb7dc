//! A workload: an object that creates pods, as far as its pods' injection depends on it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

/// The kinds of workloads by API group and resource, and where each has its pod template (JSON pointer). A pod is its
/// own template.
const TEMPLATES: [(&str, &str, &str); 8] = [
    ("", "pods", ""),
    ("", "replicationcontrollers", "/spec/template"),
    ("apps", "deployments", "/spec/template"),
    ("apps", "statefulsets", "/spec/template"),
    ("apps", "daemonsets", "/spec/template"),
    ("apps", "replicasets", "/spec/template"),
    ("batch", "jobs", "/spec/template"),
    ("batch", "cronjobs", "/spec/jobTemplate/spec/template"),
];

/// A workload.
#[derive(Debug)]
pub struct Workload {
    /// Its kind, as in `Deployment`.
    pub kind: String,
    /// Its own metadata.
    pub metadata: ObjectMeta,
    /// The pod that it creates, or the pod itself.
    pub pod: Value,
}

// === impl Workload ===

impl Workload {
    /// Reads it from an object of that group and resource; `None` if it is no workload, or has no readable metadata or
    /// template.
    pub fn parse(group: &str, resource: &str, kind: &str, object: &Value) -> Option<Self> {
        let (_, _, pointer) =
            TEMPLATES.into_iter().find(|(of_group, name, _)| (*of_group, *name) == (group, resource))?;
        let metadata = serde_json::from_value(object.get("metadata")?.clone()).ok()?;
        Some(Self { kind: kind.to_owned(), metadata, pod: object.pointer(pointer)?.clone() })
    }

    /// Whether it is a pod, and not a template of pods.
    pub fn is_pod(&self) -> bool {
        self.kind == "Pod"
    }

    /// Whether a controller has created it: then its author is not there to be told.
    pub fn is_controlled(&self) -> bool {
        self.metadata.owner_references.iter().flatten().any(|owner| owner.controller == Some(true))
    }

    /// Its name, or the prefix that its name will have.
    pub fn name(&self) -> &str {
        let ObjectMeta { name, generate_name, .. } = &self.metadata;
        name.as_deref().or(generate_name.as_deref()).unwrap_or_default()
    }

    /// The metadata of its pods.
    pub fn pod_metadata(&self) -> ObjectMeta {
        self.pod.get("metadata").and_then(|metadata| serde_json::from_value(metadata.clone()).ok()).unwrap_or_default()
    }
}
