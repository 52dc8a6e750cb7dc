//! What routes of every kind compile to: rules, and the Service ports that they apply to.

use std::collections::{BTreeMap, BTreeSet};

use weft_config::{Match, Rule, StreamRule};
use weft_gateway_api::ParentReference;

use super::port::ServicePortKey;
use crate::compile::diagnostic::Diagnostic;
use crate::compile::precedence::Rank;
use crate::world::{Kind, Meta, ObjectId};

/// A valid route with at least one Service port.
pub(super) struct AttachedRoute<'a> {
    pub(super) kind: Kind,
    pub(super) meta: &'a Meta,
    pub(super) rules: Vec<HttpRule>,
    /// TLS and TCP rules with their server names; no names for the TCP rule.
    pub(super) streams: Vec<(StreamRule, Vec<String>)>,
    /// The Service ports that its HTTP rules apply to, and those that its TLS and TCP rules apply to.
    pub(super) http_ports: BTreeSet<ServicePortKey>,
    pub(super) stream_ports: BTreeSet<ServicePortKey>,
    /// What became of it at each port.
    pub(super) attachments: BTreeMap<ServicePortKey, Attachment>,
    /// The parents of a Gateway API route; empty for a MeshRoute, whose status does not tell parents apart.
    pub(super) parents: Vec<AttachedParent>,
}

/// A Service as parent of a route of the Gateway API.
#[derive(Clone, Debug)]
pub(super) struct AttachedParent {
    pub(super) parent: ParentReference,
    /// The ports that the route is attached to; none if the parent does not accept it.
    pub(super) port_keys: BTreeSet<ServicePortKey>,
    /// What is to be said about the route, and about its attachment to this parent.
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// A rule for requests, with its matches and their ranks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HttpRule {
    pub(super) rule: Rule,
    pub(super) matches: Vec<(Rank, Match)>,
}

/// What became of a route at one Service port.
#[derive(Debug, Default)]
pub(super) struct Attachment {
    /// Number of its matches, and how many of them an older route or earlier rule already has.
    pub(super) matches: usize,
    pub(super) conflicting: usize,
    pub(super) conflicts: Vec<Diagnostic>,
    /// Why none of its rules apply: routes of another kind take precedence.
    pub(super) outranked: Option<String>,
}

// === impl AttachedRoute ===

impl AttachedRoute<'_> {
    /// The Service ports that its rules apply to.
    pub(super) fn port_keys(&self) -> impl Iterator<Item = &ServicePortKey> {
        self.http_ports.union(&self.stream_ports)
    }

    /// What became of it at a port.
    pub(super) fn attachment(&mut self, port_key: &ServicePortKey) -> &mut Attachment {
        self.attachments.entry(port_key.clone()).or_default()
    }

    /// Takes it off a port, where routes of another kind take precedence.
    pub(super) fn detach(&mut self, port_key: &ServicePortKey, why: String) {
        self.http_ports.remove(port_key);
        self.stream_ports.remove(port_key);
        self.attachment(port_key).outranked = Some(why);
    }

    pub(super) fn id(&self) -> ObjectId {
        ObjectId { kind: self.kind, key: self.meta.key.clone() }
    }
}

impl std::fmt::Display for AttachedRoute<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.kind.as_str(), self.meta.key)
    }
}
