//! Which namespace a ClusterIP belongs to.
//!
//! A proxy opens the documents of another namespace on first traffic to it, and a connection says only an address. The
//! index is the one mesh-wide document: one small entry for each Service.

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
