//! What a user of Weft writes.
//!
//! ```text
//! MeshRoute    parentRefs -> Service         which requests to the Service go where, and how
//!              backendRefs -> Service port, subset of its pods
//! MeshCluster  targetRef  -> Service         how to talk to it: subsets, balancing, limits
//! MeshPolicy   targetRef  -> Service | ServiceAccount | Namespace     who may call it
//! ```
//!
//! Spelling, defaults, precedence and conditions follow the Kubernetes Gateway API wherever it has a word for the thing.
//! The comments on the fields are what `kubectl explain` shows, so they are written for users. The schema refuses at
//! apply time what can be refused there; what cannot (a backend that does not exist) becomes a condition.
//!
//! This crate knows nothing of how proxies are configured.

#![expect(clippy::duplicated_attributes, reason = "each printer column says its type")]
#![expect(unreachable_pub, reason = "the KubeSchema derive repeats the types it is put on inside a function")]

pub mod cluster;
pub mod duration;
pub mod names;
pub mod policy;
pub mod refs;
pub mod route;
pub mod status;

pub use cluster::{MeshCluster, MeshClusterSpec};
pub use duration::Duration;
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
        ("meshpolicies.yaml", MeshPolicy::crd()),
        ("meshroutes.yaml", MeshRoute::crd()),
    ]
    .into_iter()
    .map(|(name, crd)| (name, serde_saphyr::to_string(&for_users(crd)).expect("a definition is plain data")))
    .collect()
}

/// What the derive leaves undone: the kind's own text for `kubectl explain`, formats that an API server knows, and a word
/// to Helm not to take the definitions (and with them every route) away on uninstall.
fn for_users(mut crd: CustomResourceDefinition) -> Value {
    crd.metadata.annotations.get_or_insert_default().insert("helm.sh/resource-policy".into(), "keep".into());
    let mut crd = serde_json::to_value(crd).expect("a definition is plain data");
    let root = &mut crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    root["description"] = root["properties"]["spec"]["description"].take();
    root["properties"]["spec"]["description"] = "What is wanted.".into();
    drop_unknown_formats(root);
    crd
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
