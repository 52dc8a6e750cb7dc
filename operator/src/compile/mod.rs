//! Compiles Kubernetes objects and custom resources to the proxies' configuration; the only module that knows both
//! formats.
//!
//! ```text
//! Services, EndpointSlices, Pods ──service──┐
//! MeshClusters ─────────────────cluster─────┼──> Export   (x.<ns>)
//! MeshRoutes, HTTPRoutes, ... ──route───────┤
//!                          consumer routes  └──> Inbound  (i.<ns>)
//! MeshPolicies, Pods ───────────policy─────────> Inbound
//! MeshPolicies, Mesh, Pods ─────mtls───────────> Inbound, Export
//! Nodes, Pods ──────────────────zones──────────> Inbound
//! Pods ─────────────────────────pods───────────> Pods     (p.<prefix>)
//! Pods ─────────────────────────effect─────────> diagnostics: who does not apply an object
//! what proxies have seen ───────strict─────────> diagnostics: whom the mode Strict would refuse
//! ```
//!
//! [`compile`] returns the documents and, as diagnostics, what could not be compiled: one invalid object never
//! affects the traffic of others. Pure and deterministic: equal Worlds give equal bytes, in whatever order they were
//! observed.

mod cluster;
mod compiled;
mod diagnostic;
mod effect;
mod endpoint;
mod mesh;
mod missing;
mod mtls;
mod pods;
mod policy;
mod precedence;
mod route;
mod service;
mod source;
mod strict;
mod strictness;
mod unused;
mod value;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use compiled::{Compiled, Outcome, ParentOutcome};
pub use diagnostic::{Diagnostic, Severity};
use endpoint::has_endpoints;
pub use mesh::{compile as mesh, missing_roots};
pub use pods::pods;
pub use strictness::Strictness;
use weft_config::{Index, Protocol};

use crate::world::{Grant, Namespace, Slice, TargetPort, World};

/// The part of a namespace that the compilation of other namespaces reads. They are compiled again only when it
/// changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exports {
    in_mesh: bool,
    addresses: Vec<IpAddr>,
    /// Ports of Services with a ClusterIP, and their subsets with whether they have pods.
    services: BTreeMap<String, ServiceExport>,
    /// Services without a usable ClusterIP: a route that references one gets a diagnostic.
    without_address: BTreeSet<String>,
    /// ReferenceGrants: which routes of other namespaces may send to its Services.
    grants: BTreeMap<String, Grant>,
}

/// The part of a Service that other namespaces read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct ServiceExport {
    ports: Vec<PortExport>,
    subsets: BTreeMap<String, bool>,
}

/// The part of a Service port that other namespaces read.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PortExport {
    port: u16,
    target: TargetPort,
    protocol: Protocol,
    has_endpoints: bool,
}

/// Compiles a namespace.
pub fn compile(world: &World, name: &str) -> Compiled {
    let mut compiled = Compiled::default();
    let Some(namespace) = world.namespace(name) else { return compiled };
    let clusters = cluster::compile(namespace, &mut compiled.objects);
    let mut tables = route::compile(world, name, namespace, &mut compiled);
    for service in namespace.services.values().filter(|service| service.has_address()) {
        let name = service.key.name.as_str();
        let slices: Vec<&Slice> = namespace.slices_of(name).collect();
        let exported =
            service::compile(namespace, service, &slices, clusters.get(name), &mut compiled.rejected_addresses);
        compiled.export.services.push(exported);
    }
    for service in &mut compiled.export.services {
        for port in &mut service.ports {
            port.routes = tables.remove(&route::ServicePortKey::new(name, &service.name, port.port));
        }
    }
    let policy::Accepted { authorization, mtls } = policy::compile(world, namespace, &mut compiled.objects);
    compiled.inbound.policies = authorization;
    compiled.inbound.mtls = mtls::of_namespace(world.mode(), mtls);
    mtls::set_ports(namespace, &compiled.inbound.mtls.policies, world.mode(), &mut compiled.export.services);
    compiled.inbound.relabelled = policy::relabelled(namespace, &compiled.inbound);
    compiled.inbound.zones = zones(world, namespace);
    compiled.inbound.routes = tables.into_iter().map(|(port_key, table)| port_key.consumer(table)).collect();
    effect::check(world, name, namespace, &mut compiled);
    strict::check(world, name, namespace, &mut compiled);
    compiled
}

/// Nodes by zone, for the proxies that do not know their zone from a pod label. Empty from Kubernetes 1.35 on.
fn zones(world: &World, namespace: &Namespace) -> BTreeMap<String, BTreeSet<String>> {
    let mut zones: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for node in namespace.pods.values().filter_map(|pod| pod.node.as_deref()) {
        if let Some(zone) = world.zone(node) {
            zones.entry(zone.to_owned()).or_default().insert(node.to_owned());
        }
    }
    zones
}

/// The part of a compiled namespace that other namespaces read.
pub fn exports(world: &World, name: &str, compiled: &Compiled) -> Exports {
    let mut exports = Exports { in_mesh: world.in_mesh(name), ..Exports::default() };
    let Some(namespace) = world.namespace(name) else { return exports };
    for exported in &compiled.export.services {
        exports.addresses.extend(&exported.addresses);
        let Some(service) = namespace.services.get(&exported.name) else { continue };
        let ports = service.ports.iter().map(|port| PortExport {
            port: port.port,
            target: port.target.clone(),
            protocol: port.protocol,
            has_endpoints: has_endpoints(namespace, service, port),
        });
        let populated = |subset: &String| {
            exported.ports.iter().flat_map(|port| &port.endpoints).any(|endpoint| endpoint.subsets.contains(subset))
        };
        let subsets = exported.settings.subsets.iter().map(|subset| (subset.clone(), populated(subset))).collect();
        let ports = ports.collect();
        exports.services.insert(exported.name.clone(), ServiceExport { ports, subsets });
    }
    exports.addresses.sort_unstable();
    exports.grants.clone_from(&namespace.grants);
    let services = namespace.services.values();
    exports.without_address =
        services.filter(|service| !service.has_address()).map(|service| service.key.name.clone()).collect();
    exports
}

/// Compiles the index of all namespaces in the mesh, and of all prefixes with pods.
pub fn index(world: &World) -> Index {
    let mut index = Index { prefixes: world.prefixes(), ..Index::default() };
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
