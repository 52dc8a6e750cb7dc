//! The objects of one namespace.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use weft_config::Prefix;

use super::objects::{Account, Cluster, GatewayRoute, Grant, Kind, NamespaceMeta, Pod, Policy, Route, Service, Slice};

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
    pub http_routes: BTreeMap<String, GatewayRoute>,
    pub grpc_routes: BTreeMap<String, GatewayRoute>,
    pub tls_routes: BTreeMap<String, GatewayRoute>,
    pub tcp_routes: BTreeMap<String, GatewayRoute>,
    pub grants: BTreeMap<String, Grant>,
    /// How many pods have a proxy and may have traffic.
    pub meshed: usize,
    /// Names of the pods with an identity by the prefixes of their addresses.
    pods_in: BTreeMap<Prefix, BTreeSet<String>>,
    /// Names of EndpointSlices by Service.
    slices_of: BTreeMap<String, BTreeSet<String>>,
}

// === impl Namespace ===

impl Namespace {
    /// The EndpointSlices of a Service.
    pub fn slices_of(&self, service: &str) -> impl Iterator<Item = &Slice> {
        self.slices_of.get(service).into_iter().flatten().filter_map(|name| self.slices.get(name))
    }

    /// The prefixes of addresses of pods with an identity.
    pub(super) fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.pods_in.keys().copied()
    }

    /// The pods with an identity and an address with this prefix.
    pub(super) fn pods_in(&self, prefix: Prefix) -> impl Iterator<Item = &Pod> {
        self.pods_in.get(&prefix).into_iter().flatten().filter_map(|name| self.pods.get(name))
    }

    pub(super) fn index_pod(&mut self, pod: &Pod, is_added: bool) {
        for prefix in pod.prefixes() {
            index(&mut self.pods_in, prefix, &pod.key.name, is_added);
        }
    }

    pub(super) fn gateway_route_mut(&mut self, kind: Kind, name: &str) -> Option<&mut GatewayRoute> {
        match kind {
            Kind::HttpRoute => self.http_routes.get_mut(name),
            Kind::GrpcRoute => self.grpc_routes.get_mut(name),
            Kind::TlsRoute => self.tls_routes.get_mut(name),
            Kind::TcpRoute => self.tcp_routes.get_mut(name),
            Kind::Cluster | Kind::Mesh | Kind::Policy | Kind::Route => None,
        }
    }

    pub(super) fn index_slice(&mut self, slice: &Slice, is_added: bool) {
        index(&mut self.slices_of, slice.service.clone(), &slice.key.name, is_added);
    }

    /// The Gateway API's routes of all kinds.
    pub fn gateway_routes(&self) -> impl Iterator<Item = &GatewayRoute> {
        let Self { http_routes, grpc_routes, tls_routes, tcp_routes, .. } = self;
        [http_routes, grpc_routes, tls_routes, tcp_routes].into_iter().flat_map(BTreeMap::values)
    }

    /// A route of the Gateway API.
    pub fn gateway_route(&self, kind: Kind, name: &str) -> Option<&GatewayRoute> {
        match kind {
            Kind::HttpRoute => self.http_routes.get(name),
            Kind::GrpcRoute => self.grpc_routes.get(name),
            Kind::TlsRoute => self.tls_routes.get(name),
            Kind::TcpRoute => self.tcp_routes.get(name),
            Kind::Cluster | Kind::Mesh | Kind::Policy | Kind::Route => None,
        }
    }

    /// The pod of this name, if it has this UID (and is not a successor of the same name).
    pub fn pod(&self, name: &str, uid: &str) -> Option<&Pod> {
        self.pods.get(name).filter(|pod| pod.uid == uid)
    }

    /// Whether the conditions of its routes or clusters may depend on the pods of other namespaces.
    pub(super) fn has_clients_elsewhere(&self) -> bool {
        !(self.routes.is_empty() && self.clusters.is_empty()) || self.gateway_routes().next().is_some()
    }

    /// Whether it is in the mesh by itself: it has the injection label, a Weft object, a route of the Gateway API with a
    /// Service as parent, or a pod with a proxy.
    pub(super) fn is_enrolled(&self) -> bool {
        self.meta.as_ref().is_some_and(|meta| meta.enabled)
            || !(self.routes.is_empty() && self.clusters.is_empty() && self.policies.is_empty())
            || self.gateway_routes().next().is_some()
            || self.pods.values().any(|pod| pod.has_proxy)
    }

    /// Namespaces that its routes reference.
    pub(super) fn referenced_namespaces(&self) -> impl Iterator<Item = &str> {
        let of_gateway = self.gateway_routes().flat_map(|route| route.namespaces.iter().map(String::as_str));
        let specs = self.routes.values().filter_map(|route| route.spec.as_ref().ok());
        let of_mesh = specs.flat_map(|spec| {
            let parents = spec.parent_refs.iter().filter_map(|parent| parent.namespace.as_deref());
            let backends = spec.backend_refs().filter_map(|backend| backend.namespace.as_deref());
            let mirrors = spec.mirror_refs().filter_map(|mirror| mirror.namespace.as_deref());
            parents.chain(backends).chain(mirrors)
        });
        of_mesh.chain(of_gateway)
    }

    /// Other namespaces whose service accounts its policies name.
    pub(super) fn callers(&self) -> impl Iterator<Item = &str> {
        let specs = self.policies.values().filter_map(|policy| policy.spec.as_ref().ok());
        let rules = specs.filter_map(|spec| spec.authorization.as_ref()).flat_map(|authorization| &authorization.rules);
        rules.flat_map(|rule| rule.from.iter().flatten()).flat_map(|source| {
            let accounts = source.service_accounts.iter().chain(&source.not_service_accounts);
            let of_accounts = accounts.filter_map(|account| Some(account.split_once('/')?.0));
            let namespaces = source.namespaces.iter().chain(&source.not_namespaces).map(String::as_str);
            of_accounts.chain(namespaces)
        })
    }
}

/// Adds a name to an index, or removes it.
fn index<K: Ord>(names: &mut BTreeMap<K, BTreeSet<String>>, key: K, name: &str, is_added: bool) {
    if is_added {
        names.entry(key).or_default().insert(name.to_owned());
        return;
    }
    if let Entry::Occupied(mut entry) = names.entry(key) {
        entry.get_mut().remove(name);
        if entry.get().is_empty() {
            entry.remove();
        }
    }
}
