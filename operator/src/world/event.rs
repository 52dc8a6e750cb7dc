//! What watches tell the World.

use super::objects::{
    Access, AccessKind, Account, Cluster, Document, DocumentKind, Grant, Key, NamespaceMeta, Node, Pod, Policy, Route,
    Service, Slice,
};

/// Kinds that must be listed once before the World is complete; the names that `Event::kind` returns.
pub const KINDS: [&str; 14] = [
    "namespaces",
    "services",
    "pods",
    "endpointslices",
    "serviceaccounts",
    "nodes",
    "meshroutes",
    "meshclusters",
    "meshpolicies",
    "referencegrants",
    "exports",
    "inbounds",
    "roles",
    "rolebindings",
];

/// A change to objects of one kind.
#[derive(Clone, Debug)]
pub enum Change<K> {
    /// Added or modified.
    Apply(K),
    /// Deleted.
    Delete(Key),
    /// The complete list: all other objects of the kind are gone.
    Reset(Vec<K>),
}

/// A change, by kind.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "one variant for each kind")]
#[expect(clippy::large_enum_variant, reason = "an event is moved a few times and stored nowhere")]
pub enum Event {
    Namespace(Change<NamespaceMeta>),
    Service(Change<Service>),
    Pod(Change<Pod>),
    Slice(Change<Slice>),
    Account(Change<Account>),
    Node(Change<Node>),
    Route(Change<Route>),
    Cluster(Change<Cluster>),
    Policy(Change<Policy>),
    Grant(Change<Grant>),
    /// The API server has no ReferenceGrants: the Gateway API is not installed.
    GrantsMissing,
    Document(DocumentKind, Change<Document>),
    Access(AccessKind, Change<Access>),
}

// === impl Event ===

impl Event {
    /// The kind, and whether the event is a complete list of it.
    pub fn kind(&self) -> (&'static str, bool) {
        fn is_reset<K>(change: &Change<K>) -> bool {
            matches!(change, Change::Reset(_))
        }
        match self {
            Self::Namespace(change) => ("namespaces", is_reset(change)),
            Self::Service(change) => ("services", is_reset(change)),
            Self::Pod(change) => ("pods", is_reset(change)),
            Self::Slice(change) => ("endpointslices", is_reset(change)),
            Self::Account(change) => ("serviceaccounts", is_reset(change)),
            Self::Node(change) => ("nodes", is_reset(change)),
            Self::Route(change) => ("meshroutes", is_reset(change)),
            Self::Cluster(change) => ("meshclusters", is_reset(change)),
            Self::Policy(change) => ("meshpolicies", is_reset(change)),
            Self::Grant(change) => ("referencegrants", is_reset(change)),
            Self::GrantsMissing => ("referencegrants", true),
            Self::Document(DocumentKind::Inbound, change) => ("inbounds", is_reset(change)),
            Self::Document(DocumentKind::Export | DocumentKind::Index, change) => ("exports", is_reset(change)),
            Self::Access(AccessKind::Role, change) => ("roles", is_reset(change)),
            Self::Access(AccessKind::Binding, change) => ("rolebindings", is_reset(change)),
        }
    }
}
