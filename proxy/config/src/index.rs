//! The index: which namespace a ClusterIP belongs to.
//!
//! A proxy opens the documents of another namespace on first traffic to it, and a connection only has an address. The
//! index is the only mesh-wide document, with one small entry for each Service.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// ClusterIPs by namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Index {
    /// Sorted.
    pub namespaces: BTreeMap<String, Vec<IpAddr>>,
}
