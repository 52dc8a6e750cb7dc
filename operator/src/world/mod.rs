//! The state of the cluster as the operator knows it: typed maps of all watched objects, trimmed to the fields that
//! `compile` and `status` read.
//!
//! [`World::observe`] applies an event and returns which namespaces it affected. Pure: no client, no clock. A relist
//! arrives as one [`Change::Reset`], so the World never holds part of a list.

mod availability;
mod callers;
mod documents;
mod event;
mod mesh;
mod namespace;
pub mod objects;
mod stored;

use std::collections::{BTreeMap, BTreeSet};

pub use availability::{Availability, Definition};
pub use event::{Change, Event, WatchedKind};
pub use namespace::Namespace;
pub use objects::{
    Access, AccessKind, Account, Answer, Answers, Asked, Caller, Cluster, ContainerPort, Distribution, Document,
    DocumentKind, GatewayRoute, GatewaySpec, Grant, Key, Kind, Mesh, MeshObject, Meta, NamespaceMeta, Node, ObjectId,
    OwnStatus, Owner, ParentStatus, Pod, Policy, Protocol, Readiness, Route, Service, ServicePort, Slice,
    SliceEndpoint, SlicePort, TargetPort, WithoutProxy, documents_namespace,
};
use stored::Stored;
use weft_config::Prefix;
use weft_config::bootstrap::pods_name;
use weft_crds::Status;
use weft_crds::mesh::Mode;
use weft_identity::TrustBundle;

/// The effect of an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Namespaces to recompile, and the names of documents of pods.
    pub scopes: BTreeSet<String>,
    /// Write without further coalescing: proxies must stop using an endpoint, or a policy may apply to another pod.
    pub urgent: bool,
}

/// All known objects.
#[derive(Clone, Debug, Default)]
pub struct World {
    namespaces: BTreeMap<String, Namespace>,
    /// Zones by node name; nodes without a zone are absent.
    zones: BTreeMap<String, String>,
    /// Namespaces with a pod that has a proxy and may have traffic.
    meshed: BTreeSet<String>,
    documents: BTreeMap<(DocumentKind, String), Document>,
    access: BTreeMap<(AccessKind, String), Access>,
    has_grants: bool,
    /// What proxies say of plaintext callers.
    asked: Answers,
    /// By name. One counts.
    meshes: BTreeMap<String, Mesh>,
    /// The default mode of mutual TLS.
    mode: Mode,
    trust: Option<TrustBundle>,
    /// Of the Gateway API's kinds, once it is known.
    availability: BTreeMap<WatchedKind, Availability>,
}

// === impl World ===

impl World {
    /// Applies an event.
    pub fn observe(&mut self, event: Event) -> Touched {
        let mut touched = Touched::default();
        match event {
            Event::Namespace(change) => {
                self.observe_namespace(change, &mut touched);
                self.touch_those_that_name(&mut touched);
            }
            Event::Service(change) => self.observe_stored(change, |all| &mut all.services, &mut touched),
            Event::Pod(change) => self.observe_stored(change, |all| &mut all.pods, &mut touched),
            Event::Slice(change) => self.observe_stored(change, |all| &mut all.slices, &mut touched),
            Event::Account(change) => {
                self.observe_stored(change, |all| &mut all.accounts, &mut touched);
                self.touch_those_that_name(&mut touched);
            }
            Event::Node(change) => self.observe_node(change, &mut touched),
            Event::Mesh(change) => self.observe_mesh(change, &mut touched),
            Event::Route(change) => self.observe_stored(change, |all| &mut all.routes, &mut touched),
            Event::Cluster(change) => self.observe_stored(change, |all| &mut all.clusters, &mut touched),
            Event::Policy(change) => self.observe_stored(change, |all| &mut all.policies, &mut touched),
            Event::Grant(change) => {
                self.set_has_grants(true, &mut touched);
                self.observe_stored(change, |all| &mut all.grants, &mut touched);
            }
            Event::Availability(kind, availability) => self.observe_availability(kind, availability, &mut touched),
            Event::GatewayRoute(kind, change) => self.observe_gateway_route(kind, change, &mut touched),
            Event::Document(kind, change) => {
                self.observe_trust(&change, &mut touched);
                self.observe_document(kind, change, &mut touched);
            }
            Event::Access(kind, change) => self.observe_access(kind, change, &mut touched),
        }
        touched
    }

    /// The objects of a namespace; `None` if there are none.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)
    }

    /// All namespaces with at least one known object.
    pub fn namespaces(&self) -> impl Iterator<Item = (&String, &Namespace)> {
        self.namespaces.iter()
    }

    /// A Service of any namespace. `None` if the Namespace object is not known: watches of two kinds are not
    /// synchronised, and other namespaces must see a new namespace as a whole.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Service> {
        let namespace = self.namespaces.get(namespace)?;
        namespace.meta.as_ref()?;
        namespace.services.get(name)
    }

    /// Whether the Namespace object is known.
    pub fn has_namespace(&self, name: &str) -> bool {
        self.namespaces.get(name).is_some_and(|namespace| namespace.meta.is_some())
    }

    /// Whether the cluster has the kind ReferenceGrant.
    pub fn has_grants(&self) -> bool {
        self.has_grants
    }

    /// Of each kind of the Gateway API, once it is known, whether the cluster has it.
    pub fn availability(&self) -> impl Iterator<Item = (WatchedKind, &Availability)> {
        self.availability.iter().map(|(kind, availability)| (*kind, availability))
    }

    /// Whether a ReferenceGrant allows routes of this kind and of namespace `from` to refer to a Service of another
    /// namespace.
    pub fn grants(&self, kind: Kind, from: &str, service: &Key) -> bool {
        let Some(namespace) = self.namespaces.get(&service.namespace) else { return false };
        namespace.grants.values().any(|grant| grant.permits(kind, from, &service.name))
    }

    /// The prefixes of addresses of pods with an identity.
    pub fn prefixes(&self) -> BTreeSet<Prefix> {
        self.namespaces.values().flat_map(Namespace::prefixes).collect()
    }

    /// The pods with an identity and an address with this prefix.
    pub fn pods_in(&self, prefix: Prefix) -> impl Iterator<Item = &Pod> {
        self.namespaces.values().flat_map(move |namespace| namespace.pods_in(prefix))
    }

    /// The zone of a node, if it has one.
    pub fn zone(&self, node: &str) -> Option<&str> {
        self.zones.get(node).map(String::as_str)
    }

    /// Whether a pod outside of the namespace has a proxy.
    pub fn is_meshed_outside(&self, name: &str) -> bool {
        self.meshed.iter().any(|other| other != name)
    }

    /// All namespaces in the mesh.
    pub fn mesh(&self) -> BTreeSet<String> {
        let referred: BTreeSet<&str> = self.namespaces.values().flat_map(Namespace::referenced_namespaces).collect();
        self.namespaces
            .iter()
            .filter(|(name, namespace)| {
                namespace.meta.is_some() && (namespace.is_enrolled() || referred.contains(name.as_str()))
            })
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// Whether the namespace is in the mesh: it exists, and is enrolled or referenced by a route of another
    /// namespace.
    pub fn in_mesh(&self, name: &str) -> bool {
        let Some(namespace) = self.namespaces.get(name) else { return false };
        namespace.meta.is_some() && (namespace.is_enrolled() || self.referrers(name).next().is_some())
    }

    /// Namespaces with a route that references `name`, other than itself.
    pub fn referrers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.namespaces
            .iter()
            .filter(move |(other, namespace)| {
                *other != name && namespace.referenced_namespaces().any(|referred| referred == name)
            })
            .map(|(other, _)| other.as_str())
    }

    /// Namespaces that routes of `name` reference; may include itself.
    pub fn references(&self, name: &str) -> BTreeSet<String> {
        self.namespaces
            .get(name)
            .map(|namespace| namespace.referenced_namespaces().map(str::to_owned).collect())
            .unwrap_or_default()
    }

    /// UID, generation and status of a user's object.
    pub fn status(&self, id: &ObjectId) -> Option<(&str, i64, &Status)> {
        fn of<S>(object: &MeshObject<S>) -> (&str, i64, &Status) {
            (&object.meta.uid, object.meta.generation, &object.status)
        }
        if id.kind == Kind::Mesh {
            return self.meshes.get(&id.key.name).map(of);
        }
        let namespace = self.namespaces.get(&id.key.namespace)?;
        match id.kind {
            Kind::Route => namespace.routes.get(&id.key.name).map(of),
            Kind::Cluster => namespace.clusters.get(&id.key.name).map(of),
            Kind::Policy => namespace.policies.get(&id.key.name).map(of),
            Kind::Mesh | Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => None,
        }
    }

    /// A route of the Gateway API.
    pub fn gateway_route(&self, id: &ObjectId) -> Option<&GatewayRoute> {
        self.namespaces.get(&id.key.namespace)?.gateway_route(id.kind, &id.key.name)
    }

    /// The status of every custom resource.
    pub fn statuses(&self) -> impl Iterator<Item = (Kind, &Status)> {
        let meshes = self.meshes.values().map(|object| (Kind::Mesh, &object.status));
        let namespaced = self.namespaces.values().flat_map(|namespace| {
            let routes = namespace.routes.values().map(|object| (Kind::Route, &object.status));
            let clusters = namespace.clusters.values().map(|object| (Kind::Cluster, &object.status));
            let policies = namespace.policies.values().map(|object| (Kind::Policy, &object.status));
            routes.chain(clusters).chain(policies)
        });
        meshes.chain(namespaced)
    }

    /// Stores a status that was just written, before the watch reports it.
    pub fn set_status(&mut self, id: &ObjectId, status: Status, revision: u64) {
        fn set<S>(object: &mut MeshObject<S>, status: Status, revision: u64) {
            object.status = status;
            object.meta.revision = object.meta.revision.max(revision);
        }
        if id.kind == Kind::Mesh {
            if let Some(object) = self.meshes.get_mut(&id.key.name) {
                set(object, status, revision);
            }
            return;
        }
        let Some(namespace) = self.namespaces.get_mut(&id.key.namespace) else { return };
        match id.kind {
            Kind::Route => namespace.routes.get_mut(&id.key.name).map(|object| set(object, status, revision)),
            Kind::Cluster => namespace.clusters.get_mut(&id.key.name).map(|object| set(object, status, revision)),
            Kind::Policy => namespace.policies.get_mut(&id.key.name).map(|object| set(object, status, revision)),
            Kind::Mesh | Kind::HttpRoute | Kind::GrpcRoute | Kind::TlsRoute | Kind::TcpRoute => None,
        };
    }

    /// Stores the `status.parents` of a route of the Gateway API that were just written, before the watch reports them.
    pub fn set_parents(&mut self, id: &ObjectId, parents: Vec<ParentStatus>, revision: u64) {
        let Some(namespace) = self.namespaces.get_mut(&id.key.namespace) else { return };
        if let Some(route) = namespace.gateway_route_mut(id.kind, &id.key.name) {
            route.parents = parents;
            route.meta.revision = route.meta.revision.max(revision);
        }
    }

    /// Counts by kind, for metrics.
    pub fn counts(&self) -> Vec<(&'static str, usize)> {
        let sum = |count: fn(&Namespace) -> usize| self.namespaces.values().map(count).sum();
        vec![
            ("namespaces", sum(|n| usize::from(n.meta.is_some()))),
            ("services", sum(|n| n.services.len())),
            ("pods", sum(|n| n.pods.len())),
            ("endpointslices", sum(|n| n.slices.len())),
            ("serviceaccounts", sum(|n| n.accounts.len())),
            ("referencegrants", sum(|n| n.grants.len())),
            ("httproutes", sum(|n| n.http_routes.len())),
            ("grpcroutes", sum(|n| n.grpc_routes.len())),
            ("tlsroutes", sum(|n| n.tls_routes.len())),
            ("tcproutes", sum(|n| n.tcp_routes.len())),
            ("meshes", self.meshes.len()),
            ("meshroutes", sum(|n| n.routes.len())),
            ("meshclusters", sum(|n| n.clusters.len())),
            ("meshpolicies", sum(|n| n.policies.len())),
            ("documents", self.documents.len()),
        ]
    }

    fn observe_namespace(&mut self, change: Change<NamespaceMeta>, touched: &mut Touched) {
        match change {
            Change::Apply(meta) => {
                let name = meta.name.clone();
                let current = &mut self.namespaces.entry(name.clone()).or_default().meta;
                if current.as_ref() != Some(&meta) {
                    *current = Some(meta);
                    touched.scopes.insert(name);
                }
            }
            Change::Delete(key) => {
                if let Some(namespace) = self.namespaces.get_mut(&key.name)
                    && namespace.meta.take().is_some()
                {
                    touched.scopes.insert(key.name.clone());
                    self.remove_if_empty(&key.name);
                }
            }
            Change::Reset(metas) => {
                let listed: BTreeSet<&str> = metas.iter().map(|meta| meta.name.as_str()).collect();
                let removed: Vec<String> = self
                    .namespaces
                    .iter()
                    .filter(|(name, namespace)| namespace.meta.is_some() && !listed.contains(name.as_str()))
                    .map(|(name, _)| name.clone())
                    .collect();
                for name in removed {
                    self.observe_namespace(Change::Delete(Key::new("", name)), touched);
                }
                for meta in metas {
                    self.observe_namespace(Change::Apply(meta), touched);
                }
            }
        }
    }

    /// Without a version that Weft reads, there are no grants. Routes of another version are there, with an error.
    fn observe_availability(&mut self, kind: WatchedKind, availability: Availability, touched: &mut Touched) {
        let is_missing = availability == Availability::Missing;
        if kind == WatchedKind::ReferenceGrants && availability != Availability::Served {
            self.set_has_grants(false, touched);
            self.observe_stored(Change::Reset(Vec::new()), |all| &mut all.grants, touched);
        }
        if let Some(kind) = Kind::GATEWAY.into_iter().find(|route| route.watched() == kind && is_missing) {
            self.observe_gateway_route(kind, Change::Reset(Vec::new()), touched);
        }
        self.availability.insert(kind, availability);
    }

    fn observe_gateway_route(&mut self, kind: Kind, change: Change<GatewayRoute>, touched: &mut Touched) {
        match kind {
            Kind::HttpRoute => self.observe_stored(change, |all| &mut all.http_routes, touched),
            Kind::GrpcRoute => self.observe_stored(change, |all| &mut all.grpc_routes, touched),
            Kind::TlsRoute => self.observe_stored(change, |all| &mut all.tls_routes, touched),
            Kind::TcpRoute => self.observe_stored(change, |all| &mut all.tcp_routes, touched),
            Kind::Cluster | Kind::Mesh | Kind::Policy | Kind::Route => {}
        }
    }

    /// `map`: where a namespace has the objects of the kind.
    fn observe_stored<K: Stored>(
        &mut self,
        change: Change<K>,
        map: fn(&mut Namespace) -> &mut BTreeMap<String, K>,
        touched: &mut Touched,
    ) {
        match change {
            Change::Apply(object) => {
                let Key { namespace, name } = object.key().clone();
                let objects = map(self.namespaces.entry(namespace.clone()).or_default());
                let current = objects.get(&name);
                if current.is_some_and(|current| current.revision() > object.revision()) {
                    return;
                }
                if current.is_none_or(|current| !current.same(&object)) {
                    touched.urgent |= current.is_some_and(|current| current.is_urgent(Some(&object)));
                    touched.scopes.insert(namespace.clone());
                }
                touched.scopes.extend(K::touched_prefixes(current, Some(&object)).into_iter().map(pods_name));
                let before = objects.remove(&name);
                let current = self.namespaces.entry(namespace.clone()).or_default();
                if let Some(before) = before {
                    before.index(current, false);
                }
                object.index(current, true);
                map(current).insert(name, object);
                self.update_meshed(&namespace, touched);
            }
            Change::Delete(Key { namespace, name }) => {
                let Some(current) = self.namespaces.get_mut(&namespace) else { return };
                if let Some(object) = map(current).remove(&name) {
                    touched.urgent |= object.is_urgent(None);
                    touched.scopes.insert(namespace.clone());
                    touched.scopes.extend(K::touched_prefixes(Some(&object), None).into_iter().map(pods_name));
                    object.index(current, false);
                    self.update_meshed(&namespace, touched);
                    self.remove_if_empty(&namespace);
                }
            }
            Change::Reset(objects) => {
                let listed: BTreeSet<Key> = objects.iter().map(|object| object.key().clone()).collect();
                let removed: Vec<Key> = self
                    .namespaces
                    .iter_mut()
                    .flat_map(|(namespace, current)| {
                        map(current).keys().map(|name| Key::new(namespace, name)).collect::<Vec<_>>()
                    })
                    .filter(|key| !listed.contains(key))
                    .collect();
                for key in removed {
                    self.observe_stored(Change::Delete(key), map, touched);
                }
                for object in objects {
                    self.observe_stored(Change::Apply(object), map, touched);
                }
            }
        }
    }

    /// If a namespace is now the first with a pod in the mesh, or no longer one, the conditions of routes and clusters
    /// elsewhere may change.
    fn update_meshed(&mut self, name: &str, touched: &mut Touched) {
        let is_meshed = self.namespaces.get(name).is_some_and(|namespace| namespace.meshed > 0);
        if is_meshed == self.meshed.contains(name) {
            return;
        }
        let before = self.meshed.len();
        if is_meshed {
            self.meshed.insert(name.to_owned());
        } else {
            self.meshed.remove(name);
        }
        if before.min(self.meshed.len()) <= 1 {
            let concerned = self.namespaces.iter().filter(|(_, namespace)| namespace.has_clients_elsewhere());
            touched.scopes.extend(concerned.map(|(name, _)| name.clone()));
        }
    }

    /// The conditions of routes that need a grant say whether the kind exists.
    fn set_has_grants(&mut self, has_grants: bool, touched: &mut Touched) {
        if self.has_grants == has_grants {
            return;
        }
        self.has_grants = has_grants;
        let crosses = |(name, namespace): &(&String, &Namespace)| {
            namespace.referenced_namespaces().any(|other| other != name.as_str())
        };
        touched.scopes.extend(self.namespaces.iter().filter(crosses).map(|(name, _)| name.clone()));
    }

    fn observe_node(&mut self, change: Change<Node>, touched: &mut Touched) {
        match change {
            Change::Apply(Node { key, zone }) => {
                if self.zones.get(&key.name) == zone.as_ref() {
                    return;
                }
                self.touch_pods_on(&key.name, touched);
                match zone {
                    Some(zone) => self.zones.insert(key.name, zone),
                    None => self.zones.remove(&key.name),
                };
            }
            Change::Delete(key) => {
                if self.zones.remove(&key.name).is_some() {
                    self.touch_pods_on(&key.name, touched);
                }
            }
            Change::Reset(nodes) => {
                let listed: BTreeSet<&str> = nodes.iter().map(|node| node.key.name.as_str()).collect();
                let removed: Vec<String> =
                    self.zones.keys().filter(|name| !listed.contains(name.as_str())).cloned().collect();
                for name in removed {
                    self.observe_node(Change::Delete(Key::new("", name)), touched);
                }
                for node in nodes {
                    self.observe_node(Change::Apply(node), touched);
                }
            }
        }
    }

    /// Marks the namespaces whose proxies need the zone of this node.
    fn touch_pods_on(&self, node: &str, touched: &mut Touched) {
        let on = |namespace: &Namespace| namespace.pods.values().any(|pod| pod.node.as_deref() == Some(node));
        touched
            .scopes
            .extend(self.namespaces.iter().filter(|(_, namespace)| on(namespace)).map(|(name, _)| name.clone()));
    }

    /// Marks the namespaces whose policies name callers of the marked ones, or of namespaces that do not exist: their
    /// conditions say whether these exist, and which name was probably meant.
    fn touch_those_that_name(&self, touched: &mut Touched) {
        if touched.scopes.is_empty() {
            return;
        }
        let is_concerned = |caller: &str| touched.scopes.contains(caller) || !self.has_namespace(caller);
        let names = |namespace: &Namespace| namespace.callers().any(is_concerned);
        let concerned: Vec<String> =
            self.namespaces.iter().filter(|(_, namespace)| names(namespace)).map(|(name, _)| name.clone()).collect();
        touched.scopes.extend(concerned);
    }

    fn remove_if_empty(&mut self, name: &str) {
        if self.namespaces.get(name).is_some_and(|namespace| *namespace == Namespace::default()) {
            self.namespaces.remove(name);
        }
    }
}
