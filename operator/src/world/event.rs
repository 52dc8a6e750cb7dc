//! What watches tell the World.

use super::availability::Availability;
use super::objects::{
    Access, AccessKind, Account, Cluster, Document, DocumentKind, GatewayRoute, Grant, Key, Kind, Mesh, NamespaceMeta,
    Node, Pod, Policy, Route, Service, Slice,
};

/// Declares [`WatchedKind`]: its variants, the list of them and their names come from one list.
macro_rules! watched_kinds {
    ($($kind:ident => $name:literal,)*) => {
        /// Kinds that are watched. Each must be listed once before the World is complete.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[expect(missing_docs, reason = "one variant for each kind")]
        pub enum WatchedKind {
            $($kind,)*
        }

        impl WatchedKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            /// The name in logs and metrics.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }
        }
    };
}

watched_kinds! {
    Namespaces => "namespaces",
    Services => "services",
    Pods => "pods",
    EndpointSlices => "endpointslices",
    ServiceAccounts => "serviceaccounts",
    Nodes => "nodes",
    Meshes => "meshes",
    MeshRoutes => "meshroutes",
    MeshClusters => "meshclusters",
    MeshPolicies => "meshpolicies",
    ReferenceGrants => "referencegrants",
    HttpRoutes => "httproutes",
    GrpcRoutes => "grpcroutes",
    TlsRoutes => "tlsroutes",
    TcpRoutes => "tcproutes",
    Exports => "exports",
    Inbounds => "inbounds",
    Roles => "roles",
    RoleBindings => "rolebindings",
}

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
    Mesh(Change<Mesh>),
    Route(Change<Route>),
    Cluster(Change<Cluster>),
    Policy(Change<Policy>),
    Grant(Change<Grant>),
    /// Of a kind of the Gateway API.
    GatewayRoute(Kind, Change<GatewayRoute>),
    /// Of a kind of the Gateway API.
    Availability(WatchedKind, Availability),
    Document(DocumentKind, Change<Document>),
    Access(AccessKind, Change<Access>),
}

// === impl Event ===

impl Event {
    /// The kind, and whether the event is a complete list of it.
    pub fn kind(&self) -> (WatchedKind, bool) {
        fn is_reset<K>(change: &Change<K>) -> bool {
            matches!(change, Change::Reset(_))
        }
        match self {
            Self::Namespace(change) => (WatchedKind::Namespaces, is_reset(change)),
            Self::Service(change) => (WatchedKind::Services, is_reset(change)),
            Self::Pod(change) => (WatchedKind::Pods, is_reset(change)),
            Self::Slice(change) => (WatchedKind::EndpointSlices, is_reset(change)),
            Self::Account(change) => (WatchedKind::ServiceAccounts, is_reset(change)),
            Self::Node(change) => (WatchedKind::Nodes, is_reset(change)),
            Self::Mesh(change) => (WatchedKind::Meshes, is_reset(change)),
            Self::Route(change) => (WatchedKind::MeshRoutes, is_reset(change)),
            Self::Cluster(change) => (WatchedKind::MeshClusters, is_reset(change)),
            Self::Policy(change) => (WatchedKind::MeshPolicies, is_reset(change)),
            Self::Grant(change) => (WatchedKind::ReferenceGrants, is_reset(change)),
            Self::GatewayRoute(kind, change) => (kind.watched(), is_reset(change)),
            // What is not there needs no list.
            Self::Availability(kind, availability) => (*kind, *availability != Availability::Served),
            Self::Document(DocumentKind::Inbound, change) => (WatchedKind::Inbounds, is_reset(change)),
            Self::Document(DocumentKind::Export | DocumentKind::Pods | DocumentKind::Index, change) => {
                (WatchedKind::Exports, is_reset(change))
            }
            Self::Access(AccessKind::Role, change) => (WatchedKind::Roles, is_reset(change)),
            Self::Access(AccessKind::Binding, change) => (WatchedKind::RoleBindings, is_reset(change)),
        }
    }
}

// === impl Kind ===

impl Kind {
    /// The kind of its watch.
    pub fn watched(self) -> WatchedKind {
        match self {
            Self::Cluster => WatchedKind::MeshClusters,
            Self::Mesh => WatchedKind::Meshes,
            Self::Policy => WatchedKind::MeshPolicies,
            Self::Route => WatchedKind::MeshRoutes,
            Self::HttpRoute => WatchedKind::HttpRoutes,
            Self::GrpcRoute => WatchedKind::GrpcRoutes,
            Self::TlsRoute => WatchedKind::TlsRoutes,
            Self::TcpRoute => WatchedKind::TcpRoutes,
        }
    }
}
