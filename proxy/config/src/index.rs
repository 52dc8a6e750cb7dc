//! The index: which namespace a ClusterIP belongs to, and which prefixes of addresses have pods with an identity.
//!
//! A proxy opens the documents of another namespace, or of a prefix, on first traffic to it, and a connection only has an
//! address. The index is the only mesh-wide document, with one small entry for each Service and each prefix.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::pods::Prefix;

/// What a proxy may have to open for an address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Index {
    /// ClusterIPs by namespace. Sorted.
    pub namespaces: BTreeMap<String, Vec<IpAddr>>,
    /// Prefixes with a document of pods ([`Pods`](crate::Pods)).
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub prefixes: BTreeSet<Prefix>,
}
