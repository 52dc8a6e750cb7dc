//! Nodes.

use k8s_openapi::api::core::v1 as core;
use weft_config::bootstrap;

use super::key::Key;
use super::metadata::{key, label};

/// A Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Its name.
    pub key: Key,
    /// Its zone, from the zone label.
    pub zone: Option<String>,
}

// === impl Node ===

impl From<kube::core::PartialObjectMeta<core::Node>> for Node {
    fn from(object: kube::core::PartialObjectMeta<core::Node>) -> Self {
        let zone = label(&object.metadata, bootstrap::ZONE_LABEL).filter(|zone| !zone.is_empty());
        Self { key: key(&object.metadata), zone: zone.map(str::to_owned) }
    }
}
