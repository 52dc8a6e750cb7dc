//! Namespaces.

use k8s_openapi::api::core::v1 as core;
use kube::api::ObjectMeta;
use serde::Deserialize;
use weft_crds::names;

use super::metadata::{label, resource};

/// A Namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceMeta {
    /// Name.
    pub name: String,
    /// Has the injection label.
    pub enabled: bool,
}

/// A Namespace as the API server sends it.
#[derive(Clone, Debug, Deserialize)]
pub struct RawNamespace {
    metadata: ObjectMeta,
}

resource!(RawNamespace, core::Namespace);

// === impl NamespaceMeta ===

impl From<RawNamespace> for NamespaceMeta {
    fn from(RawNamespace { metadata }: RawNamespace) -> Self {
        let enabled = label(&metadata, names::INJECT_LABEL) == Some(names::INJECT_ENABLED);
        Self { name: metadata.name.unwrap_or_default(), enabled }
    }
}
