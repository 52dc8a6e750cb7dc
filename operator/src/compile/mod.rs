//! From the user's words to the proxy's: the only code that knows both.
//!
//! ```text
//! Services, EndpointSlices, Pods ──service──┐
//! MeshClusters ─────────────────cluster─────┼──> Export   (x.<ns>)
//! MeshRoutes ───────────────────route───────┤
//!                          consumer routes  └──> Inbound  (i.<ns>)
//! MeshPolicies, Pods ───────────policy─────────> Inbound
//! Nodes, Pods ──────────────────zones──────────> Inbound
//! ```
//!
//! [`compile`] returns what it could make and, as diagnostics, what it could not: one broken object never costs another
//! its traffic. Pure and deterministic: equal Worlds give equal bytes, in whatever order they were observed.

mod cluster;
mod diagnostic;
mod policy;
mod precedence;
mod route;
mod service;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use diagnostic::{Diagnostic, Kind, ObjectId, Severity};
use weft_config::{Export, Inbound, Index, Protocol};

use crate::world::{DocumentKind, Namespace, World};

/// What one namespace comes to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Body of `x.<ns>`.
    pub export: Export,
    /// Body of `i.<ns>`.
    pub inbound: Inbound,
    /// Namespaces whose exports must be in place before this one's export is used.
    pub export_requires: BTreeSet<String>,
    /// The same for the private document.
    pub inbound_requires: BTreeSet<String>,
    /// All objects of the namespace, with what there is to say about them.
    pub objects: BTreeMap<ObjectId, Outcome>,
    /// Addresses that endpoints must not have, by Service.
    pub left_out: BTreeSet<(String, IpAddr)>,
}

/// What became of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The documents that it went into.
    pub documents: BTreeSet<DocumentKind>,
    /// What there is to say.
    pub diagnostics: Vec<Diagnostic>,
}

/// What other namespaces see of one. While it stays the same, nobody else needs to be compiled again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Surface {
    in_mesh: bool,
    addresses: Vec<IpAddr>,
    /// Ports of Services that can be sent to, and subsets with whether they have pods.
    services: BTreeMap<String, Face>,
    /// Services that cannot be governed, which a route that names them is told.
    without_address: BTreeSet<String>,
}

/// What others see of a Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Face {
    ports: Vec<(u16, Protocol)>,
    subsets: BTreeMap<String, bool>,
}

/// Compiles a namespace.
pub fn compile(world: &World, name: &str) -> Compiled {
    let mut compiled = Compiled::default();
    let Some(namespace) = world.namespace(name) else { return compiled };
    let clusters = cluster::compile(namespace, &mut compiled.objects);
    let mut tables = route::compile(world, name, namespace, &mut compiled);
    let slices = namespace.slices_by_service();
    for service in namespace.services.values().filter(|service| service.has_address()) {
        let name = service.key.name.as_str();
        let slices = slices.get(name).map(Vec::as_slice).unwrap_or_default();
        let exported = service::compile(namespace, service, slices, clusters.get(name), &mut compiled.left_out);
        compiled.export.services.push(exported);
    }
    for service in &mut compiled.export.services {
        for port in &mut service.ports {
            port.routes = tables.remove(&route::Place::new(name, &service.name, port.port));
        }
    }
    compiled.inbound.policies = policy::compile(namespace, &mut compiled.objects);
    compiled.inbound.relabelled = policy::relabelled(namespace, &compiled.inbound.policies);
    compiled.inbound.zones = zones(world, namespace);
    compiled.inbound.routes = tables.into_iter().map(|(place, table)| place.consumer(table)).collect();
    compiled
}

/// The nodes in each zone, of those nodes whose zone a proxy of the namespace has to be told. None from Kubernetes 1.35 on.
fn zones(world: &World, namespace: &Namespace) -> BTreeMap<String, BTreeSet<String>> {
    let mut zones: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in namespace.pods.values().filter_map(|pod| pod.node.as_deref()) {
        if let Some(zone) = world.zone(node) {
            zones.entry(zone.to_owned()).or_default().insert(node.to_owned());
        }
    }
    zones
}

/// Compiles what others see of a namespace.
pub fn surface(world: &World, name: &str, compiled: &Compiled) -> Surface {
    let mut surface = Surface { in_mesh: world.in_mesh(name), ..Surface::default() };
    for service in &compiled.export.services {
        surface.addresses.extend(&service.addresses);
        let ports = service.ports.iter().map(|port| (port.port, port.protocol)).collect();
        let populated =
            |subset: &String| service.ports.iter().flat_map(|port| &port.endpoints).any(|e| e.subsets.contains(subset));
        let subsets = service.settings.subsets.iter().map(|subset| (subset.clone(), populated(subset))).collect();
        surface.services.insert(service.name.clone(), Face { ports, subsets });
    }
    surface.addresses.sort_unstable();
    let services = world.namespace(name).into_iter().flat_map(|namespace| namespace.services.values());
    surface.without_address =
        services.filter(|service| !service.has_address()).map(|service| service.key.name.clone()).collect();
    surface
}

/// Compiles the index of all namespaces in the mesh.
pub fn index(world: &World) -> Index {
    let mut index = Index::default();
    for name in world.mesh() {
        let Some(namespace) = world.namespace(&name) else { continue };
        let services = namespace.services.values().filter(|service| service.has_address());
        let mut addresses: Vec<IpAddr> = services.flat_map(|service| service.addresses.iter().copied()).collect();
        addresses.sort_unstable();
        addresses.dedup();
        if !addresses.is_empty() {
            index.namespaces.insert(name, addresses);
        }
    }
    index
}
