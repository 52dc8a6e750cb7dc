//! The custom resources of Weft.
//!
//! ```text
//! MeshRoute    parentRefs -> Service         routes its HTTP requests, TLS and TCP connections
//!              backendRefs -> Service port, subset of its pods
//! MeshCluster  targetRef  -> Service         how to send to it: subsets, load balancing, limits, health
//! MeshPolicy   targetRef  -> Service | ServiceAccount | Namespace     mutual TLS, and which requests are accepted
//! Mesh         the whole cluster                                      trust domain, default mode of mutual TLS
//! ```
//!
//! Spelling, defaults, precedence and conditions follow the Kubernetes Gateway API where it has the concept. The doc
//! comments of fields are what `kubectl explain` prints: write them for users. What the schema can validate is
//! rejected at apply time; the rest (a backend that does not exist) becomes a condition.
//!
//! This crate does not know the format of the proxies' configuration.

#![expect(clippy::duplicated_attributes, reason = "each printer column says its type")]
#![expect(unreachable_pub, reason = "the KubeSchema derive repeats the types it is put on inside a function")]

pub mod cluster;
pub mod duration;
pub mod mesh;
pub mod names;
mod patterns;
pub mod policy;
pub mod refs;
pub mod route;
pub mod status;
pub mod suggest;

pub use cluster::{MeshCluster, MeshClusterSpec};
pub use duration::Duration;
pub use mesh::{Mesh, MeshSpec};
pub use policy::{MeshPolicy, MeshPolicySpec};
pub use route::{MeshRoute, MeshRouteSpec};
pub use status::{Condition, Status};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

/// The CustomResourceDefinitions: file name and YAML.
pub fn yaml() -> Vec<(&'static str, String)> {
    [
        ("meshclusters.yaml", MeshCluster::crd()),
        ("meshes.yaml", Mesh::crd()),
        ("meshpolicies.yaml", MeshPolicy::crd()),
        ("meshroutes.yaml", MeshRoute::crd()),
    ]
    .into_iter()
    .map(|(name, crd)| (name, serde_saphyr::to_string(&finish(crd)).expect("a definition is plain data")))
    .collect()
}

/// Completes what the derive generates: moves the description of `spec` to the kind itself, removes formats that an
/// API server does not know and defaults, gives each pattern a message, and makes Helm keep the definitions (and with
/// them every object) on uninstall.
fn finish(mut crd: CustomResourceDefinition) -> Value {
    crd.metadata.annotations.get_or_insert_default().insert("helm.sh/resource-policy".into(), "keep".into());
    let mut crd = serde_json::to_value(crd).expect("a definition is plain data");
    let root = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    root["description"] = root["properties"]["spec"]["description"].take();
    root["properties"]["spec"]["description"] = "Desired state.".into();
    drop_unknown_formats(root);
    drop_defaults(root, &[]);
    patterns::explain(root);
    crd
}

/// Removes the defaults of the types. The operator applies them when it reads an object; what the API server writes
/// into an object is a difference from its source, for tools that compare the two. Only the keys of lists keep theirs,
/// which the API server requires of keys that may be left out.
fn drop_defaults(schema: &mut Value, keys: &[Value]) {
    for (name, property) in schema.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        if let Some(property) = property.as_object_mut().filter(|_| !keys.iter().any(|key| key == name)) {
            property.remove("default");
        }
        drop_defaults(property, &[]);
    }
    let keys = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array).cloned().unwrap_or_default();
    if let Some(items) = schema.get_mut("items") {
        drop_defaults(items, &keys);
    }
}

fn drop_unknown_formats(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if fields.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
                fields.remove("format");
            }
            fields.values_mut().for_each(drop_unknown_formats);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_unknown_formats),
        _ => {}
    }
}
