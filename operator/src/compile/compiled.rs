//! What compiling a namespace results in: its documents, and the outcome of each object.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use weft_config::{Export, Inbound};
use weft_gateway_api::ParentReference;

use super::diagnostic::Diagnostic;
use super::strictness::Strictness;
use crate::world::{DocumentKind, Key, ObjectId};

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
    /// Pods that accept plaintext, and are to be asked who sends them any.
    pub permissive: Vec<Key>,
    /// What is known of that, for ports that only the Mesh is about.
    pub strictness: Strictness,
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
    /// Of a route of the Gateway API instead: the outcome at each parent that is a core Service, in the order of the
    /// spec.
    pub parents: Vec<ParentOutcome>,
}

/// The outcome of compiling a route of the Gateway API for one parent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentOutcome {
    /// The parentRef, as in the spec.
    pub parent: ParentReference,
    /// The documents that contain the route for this parent.
    pub documents: BTreeSet<DocumentKind>,
    /// Errors and notes for its conditions.
    pub diagnostics: Vec<Diagnostic>,
}
