//! The state of the cluster as the operator knows it: typed maps of all watched objects, trimmed to the fields that
//! `compile` and `status` read.
//!
//! [`World::observe`] applies an event and returns which namespaces it affected. Pure: no client, no clock. A relist
//! arrives as one [`Change::Reset`], so the World never holds part of a list.

pub mod objects;

use std::collections::{BTreeMap, BTreeSet, HashMap};

pub use objects::{
    Access, AccessKind, Account, Cluster, Distribution, Document, DocumentKind, Key, Kind, MeshObject, Meta,
    NamespaceMeta, Node, ObjectId, Pod, Policy, Protocol, Readiness, Route, Service, ServicePort, Slice, SliceEndpoint,
    SlicePort, TargetPort, documents_namespace,
};
use weft_crds::{MeshClusterSpec, MeshPolicySpec, MeshRouteSpec, Status};

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
    Document(DocumentKind, Change<Document>),
    Access(AccessKind, Change<Access>),
}

/// The effect of an event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Touched {
    /// Namespaces to recompile.
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
    documents: BTreeMap<(DocumentKind, String), Document>,
    access: BTreeMap<(AccessKind, String), Access>,
}

/// The objects of one namespace, by name.
#[derive(Clone, Debug, Default, PartialEq)]
#[expect(missing_docs, reason = "one map for each kind")]
pub struct Namespace {
    /// The Namespace object; `None` if it does not exist (any more).
    pub meta: Option<NamespaceMeta>,
    pub services: BTreeMap<String, Service>,
    pub pods: BTreeMap<String, Pod>,
    pub slices: BTreeMap<String, Slice>,
    pub accounts: BTreeMap<String, Account>,
    pub routes: BTreeMap<String, Route>,
    pub clusters: BTreeMap<String, Cluster>,
    pub policies: BTreeMap<String, Policy>,
}

/// A kind that the World stores by namespace and name.
trait Stored: PartialEq + Sized {
    fn key(&self) -> &Key;
    fn map(namespace: &mut Namespace) -> &mut BTreeMap<String, Self>;
    /// The resourceVersion as a number, to ignore watch events older than our own writes; 0 for kinds that the
    /// operator does not write.
    fn revision(&self) -> u64 {
        0
    }
    /// Whether the change from `self` to `next` (`None`: deleted) removes an endpoint that proxies may be using, or
    /// may make a policy apply to a pod.
    fn is_urgent(&self, _next: Option<&Self>) -> bool {
        false
    }
    /// Whether `next` compiles to the same as `self`.
    fn same(&self, next: &Self) -> bool {
        self == next
    }
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
            Self::Document(DocumentKind::Inbound, change) => ("inbounds", is_reset(change)),
            Self::Document(DocumentKind::Export | DocumentKind::Index, change) => ("exports", is_reset(change)),
            Self::Access(AccessKind::Role, change) => ("roles", is_reset(change)),
            Self::Access(AccessKind::Binding, change) => ("rolebindings", is_reset(change)),
        }
    }
}

// === impl World ===

impl World {
    /// Applies an event.
    pub fn observe(&mut self, event: Event) -> Touched {
        let mut touched = Touched::default();
        match event {
            Event::Namespace(change) => self.observe_namespace(change, &mut touched),
            Event::Service(change) => self.observe_stored(change, &mut touched),
            Event::Pod(change) => self.observe_stored(change, &mut touched),
            Event::Slice(change) => self.observe_stored(change, &mut touched),
            Event::Account(change) => self.observe_stored(change, &mut touched),
            Event::Node(change) => self.observe_node(change, &mut touched),
            Event::Route(change) => self.observe_stored(change, &mut touched),
            Event::Cluster(change) => self.observe_stored(change, &mut touched),
            Event::Policy(change) => self.observe_stored(change, &mut touched),
            Event::Document(kind, change) => self.observe_document(kind, change, &mut touched),
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

    /// The zone of a node, if it has one.
    pub fn zone(&self, node: &str) -> Option<&str> {
        self.zones.get(node).map(String::as_str)
    }

    /// A document as it is in the cluster.
    pub fn document(&self, kind: DocumentKind, namespace: &str) -> Option<&Document> {
        self.documents.get(&(kind, namespace.to_owned()))
    }

    /// All documents as they are in the cluster, with the namespace that their name refers to.
    pub fn documents(&self) -> impl Iterator<Item = (DocumentKind, &str, &Document)> {
        self.documents.iter().map(|((kind, namespace), document)| (*kind, namespace.as_str(), document))
    }

    /// The Role or RoleBinding for the inbound document of a namespace, as it is in the cluster.
    pub fn access(&self, kind: AccessKind, namespace: &str) -> Option<&Access> {
        self.access.get(&(kind, namespace.to_owned()))
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
        let namespace = self.namespaces.get(&id.key.namespace)?;
        match id.kind {
            Kind::Route => namespace.routes.get(&id.key.name).map(of),
            Kind::Cluster => namespace.clusters.get(&id.key.name).map(of),
            Kind::Policy => namespace.policies.get(&id.key.name).map(of),
        }
    }

    /// Stores a status that was just written, before the watch reports it.
    pub fn set_status(&mut self, id: &ObjectId, status: Status, revision: u64) {
        fn set<S>(object: &mut MeshObject<S>, status: Status, revision: u64) {
            object.status = status;
            object.meta.revision = object.meta.revision.max(revision);
        }
        let Some(namespace) = self.namespaces.get_mut(&id.key.namespace) else { return };
        match id.kind {
            Kind::Route => namespace.routes.get_mut(&id.key.name).map(|object| set(object, status, revision)),
            Kind::Cluster => namespace.clusters.get_mut(&id.key.name).map(|object| set(object, status, revision)),
            Kind::Policy => namespace.policies.get_mut(&id.key.name).map(|object| set(object, status, revision)),
        };
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

    fn observe_stored<K: Stored>(&mut self, change: Change<K>, touched: &mut Touched) {
        match change {
            Change::Apply(object) => {
                let Key { namespace, name } = object.key().clone();
                let map = K::map(self.namespaces.entry(namespace.clone()).or_default());
                let current = map.get(&name);
                if current.is_some_and(|current| current.revision() > object.revision()) {
                    return;
                }
                if current.is_none_or(|current| !current.same(&object)) {
                    touched.urgent |= current.is_some_and(|current| current.is_urgent(Some(&object)));
                    touched.scopes.insert(namespace);
                }
                map.insert(name, object);
            }
            Change::Delete(Key { namespace, name }) => {
                let Some(current) = self.namespaces.get_mut(&namespace) else { return };
                if let Some(object) = K::map(current).remove(&name) {
                    touched.urgent |= object.is_urgent(None);
                    touched.scopes.insert(namespace.clone());
                    self.remove_if_empty(&namespace);
                }
            }
            Change::Reset(objects) => {
                let listed: BTreeSet<Key> = objects.iter().map(|object| object.key().clone()).collect();
                let removed: Vec<Key> = self
                    .namespaces
                    .iter_mut()
                    .flat_map(|(namespace, current)| {
                        K::map(current).keys().map(|name| Key::new(namespace, name)).collect::<Vec<_>>()
                    })
                    .filter(|key| !listed.contains(key))
                    .collect();
                for key in removed {
                    self.observe_stored::<K>(Change::Delete(key), touched);
                }
                for object in objects {
                    self.observe_stored(Change::Apply(object), touched);
                }
            }
        }
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

    /// `kind` is the kind of the watch: the watch of exports includes the index.
    fn observe_document(&mut self, kind: DocumentKind, change: Change<Document>, touched: &mut Touched) {
        match change {
            Change::Apply(document) => {
                // Other ConfigMaps in the namespace are ignored.
                let Some(slot) = kind.slot(&document.name) else { return };
                let current = self.documents.get(&slot);
                if current.is_some_and(|current| current.revision > document.revision) || current == Some(&document) {
                    return;
                }
                touched.scopes.insert(slot.1.clone());
                self.documents.insert(slot, document);
            }
            Change::Delete(key) => {
                if let Some(slot) = kind.slot(&key.name)
                    && self.documents.remove(&slot).is_some()
                {
                    touched.scopes.insert(slot.1);
                }
            }
            Change::Reset(documents) => {
                let listed: BTreeSet<&str> = documents.iter().map(|document| document.name.as_str()).collect();
                let removed: Vec<String> = self
                    .documents
                    .iter()
                    .filter(|((other, _), document)| {
                        documents_namespace(*other) == documents_namespace(kind)
                            && !listed.contains(document.name.as_str())
                    })
                    .map(|(_, document)| document.name.clone())
                    .collect();
                for name in removed {
                    self.observe_document(kind, Change::Delete(Key::new("", name)), touched);
                }
                for document in documents {
                    self.observe_document(kind, Change::Apply(document), touched);
                }
            }
        }
    }

    fn observe_access(&mut self, kind: AccessKind, change: Change<Access>, touched: &mut Touched) {
        match change {
            Change::Apply(access) => {
                let Some(namespace) = DocumentKind::Inbound.namespace_of(&access.name) else { return };
                let key = (kind, namespace.clone());
                if self.access.get(&key) != Some(&access) {
                    self.access.insert(key, access);
                    touched.scopes.insert(namespace);
                }
            }
            Change::Delete(key) => {
                if let Some(namespace) = DocumentKind::Inbound.namespace_of(&key.name)
                    && self.access.remove(&(kind, namespace.clone())).is_some()
                {
                    touched.scopes.insert(namespace);
                }
            }
            Change::Reset(all) => {
                let listed: BTreeSet<&str> = all.iter().map(|access| access.name.as_str()).collect();
                let removed: Vec<String> = self
                    .access
                    .iter()
                    .filter(|((other, _), access)| *other == kind && !listed.contains(access.name.as_str()))
                    .map(|(_, access)| access.name.clone())
                    .collect();
                for name in removed {
                    self.observe_access(kind, Change::Delete(Key::new("", name)), touched);
                }
                for access in all {
                    self.observe_access(kind, Change::Apply(access), touched);
                }
            }
        }
    }

    fn remove_if_empty(&mut self, name: &str) {
        if self.namespaces.get(name).is_some_and(|namespace| *namespace == Namespace::default()) {
            self.namespaces.remove(name);
        }
    }
}

// === impl Namespace ===

impl Namespace {
    /// EndpointSlices by Service.
    pub fn slices_by_service(&self) -> HashMap<&str, Vec<&Slice>> {
        let mut slices: HashMap<&str, Vec<&Slice>> = HashMap::new();
        for slice in self.slices.values() {
            slices.entry(&slice.service).or_default().push(slice);
        }
        slices
    }

    /// The pod of this name, if it has this UID (and is not a successor of the same name).
    pub fn pod(&self, name: &str, uid: &str) -> Option<&Pod> {
        self.pods.get(name).filter(|pod| pod.uid == uid)
    }

    /// Whether it is in the mesh by itself: it has the injection label, a Weft object, or a pod with a proxy.
    fn is_enrolled(&self) -> bool {
        self.meta.as_ref().is_some_and(|meta| meta.enabled)
            || !(self.routes.is_empty() && self.clusters.is_empty() && self.policies.is_empty())
            || self.pods.values().any(|pod| pod.has_proxy)
    }

    /// Namespaces that its routes reference.
    fn referenced_namespaces(&self) -> impl Iterator<Item = &str> {
        self.routes.values().filter_map(|route| route.spec.as_ref().ok()).flat_map(|spec| {
            let parents = spec.parent_refs.iter().filter_map(|parent| parent.namespace.as_deref());
            let backends = spec.backend_refs().filter_map(|backend| backend.namespace.as_deref());
            let filters = spec.http.iter().flat_map(|rule| &rule.filters);
            let mirrors = filters.filter_map(|filter| filter.request_mirror.as_ref()?.backend_ref.namespace.as_deref());
            parents.chain(backends).chain(mirrors)
        })
    }
}

// === impl Stored ===

impl Stored for Service {
    fn key(&self) -> &Key {
        &self.key
    }
    fn map(namespace: &mut Namespace) -> &mut BTreeMap<String, Self> {
        &mut namespace.services
    }
}

impl Stored for Pod {
    fn key(&self) -> &Key {
        &self.key
    }
    fn map(namespace: &mut Namespace) -> &mut BTreeMap<String, Self> {
        &mut namespace.pods
    }
    fn is_urgent(&self, next: Option<&Self>) -> bool {
        // A policy that selects by labels must apply before traffic that follows the new labels.
        let relabelled = next.is_some_and(|next| next.labels != self.labels);
        relabelled || self.serving() && !next.is_some_and(Self::serving)
    }
}

impl Stored for Slice {
    fn key(&self) -> &Key {
        &self.key
    }
    fn map(namespace: &mut Namespace) -> &mut BTreeMap<String, Self> {
        &mut namespace.slices
    }
    fn is_urgent(&self, next: Option<&Self>) -> bool {
        let ready = |slice: &Self| slice.endpoints.iter().filter(|endpoint| endpoint.ready).count();
        ready(self) > next.map_or(0, ready)
    }
}

impl Stored for Account {
    fn key(&self) -> &Key {
        &self.key
    }
    fn map(namespace: &mut Namespace) -> &mut BTreeMap<String, Self> {
        &mut namespace.accounts
    }
}

macro_rules! stored_mesh_object {
    ($spec:ty, $map:ident) => {
        impl Stored for MeshObject<$spec> {
            fn key(&self) -> &Key {
                &self.meta.key
            }
            fn map(namespace: &mut Namespace) -> &mut BTreeMap<String, Self> {
                &mut namespace.$map
            }
            fn revision(&self) -> u64 {
                self.meta.revision
            }
            fn same(&self, next: &Self) -> bool {
                // A status that another client removed or changed is written again.
                self.spec == next.spec && self.status == next.status && self.meta.same(&next.meta)
            }
        }
    };
}

stored_mesh_object!(MeshRouteSpec, routes);
stored_mesh_object!(MeshClusterSpec, clusters);
stored_mesh_object!(MeshPolicySpec, policies);
