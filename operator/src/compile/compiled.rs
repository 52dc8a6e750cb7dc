//! What compiling a namespace results in: its documents, and the outcome of each object.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_config::{Export, Inbound};

use super::diagnostic::Diagnostic;
use crate::world::{DocumentKind, ObjectId};

/// The compiled configuration of one namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Body of `x.<ns>`.
    pub export: Export,
    /// Body of `i.<ns>`.
    pub inbound: Inbound,
    /// Namespaces whose exports a proxy must have before it uses this export.
    pub export_requires: BTreeSet<String>,
    /// The same for the private document.
    pub inbound_requires: BTreeSet<String>,
    /// All custom resources of the namespace, with their outcome.
    pub objects: BTreeMap<ObjectId, Outcome>,
    /// Endpoint addresses that were rejected (loopback, link-local, ...), by Service.
    pub rejected_addresses: BTreeSet<(String, IpAddr)>,
}

/// The outcome of compiling one object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The documents that contain it.
    pub documents: BTreeSet<DocumentKind>,
    /// Errors and notes for its conditions.
    pub diagnostics: Vec<Diagnostic>,
}
