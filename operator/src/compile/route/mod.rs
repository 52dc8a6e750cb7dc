//! Routes: their Service ports (parentRefs), their rules, which kind of route a port has, and conflicts between routes
//! with equal matches.
//!
//! ```text
//! MeshRoute ───────attach──> rule ─> filter ─> backend ──┐
//!                                                        ├─> AttachedRoute ──kinds──> ──table──> RouteTable
//! HTTPRoute, GRPCRoute, ───> gateway ────────────────────┘                            of a Service port
//! TLSRoute, TCPRoute
//! ```

mod attach;
mod attached;
mod backend;
mod filter;
mod gateway;
mod kinds;
mod name;
mod port;
mod rule;
mod table;

use std::collections::{BTreeMap, BTreeSet};

use attach::attach;
use attached::AttachedRoute;
pub(super) use port::ServicePortKey;
use table::table;
use weft_config::{Action, Backend, BackendTarget, RouteTable};
use weft_crds::status::Reason;

use super::compiled::{Compiled, Outcome};
use super::diagnostic::{Diagnostic, Severity};
use super::precedence::age;
use crate::world::{DocumentKind, Kind, Namespace, ObjectId, World};

/// The route tables by Service port: ports of the namespace's own Services, and ports of other namespaces' Services
/// for the clients in this namespace (consumer routes).
pub(super) fn compile(
    world: &World,
    name: &str,
    namespace: &Namespace,
    compiled: &mut Compiled,
) -> BTreeMap<ServicePortKey, RouteTable> {
    let mut attached = Vec::new();
    for route in namespace.routes.values() {
        let id = ObjectId { kind: Kind::Route, key: route.meta.key.clone() };
        let outcome = compiled.objects.entry(id).or_default();
        match attach(world, route, &mut outcome.diagnostics) {
            Ok(found) => attached.push(found),
            Err(refused) => outcome.diagnostics.push(refused),
        }
    }
    attached.extend(namespace.gateway_routes().map(|route| gateway::attach(world, route)));
    attached.sort_by_key(|route| age(route.meta));
    kinds::settle(&mut attached);
    let port_keys: BTreeSet<ServicePortKey> = attached.iter().flat_map(AttachedRoute::port_keys).cloned().collect();
    let tables: BTreeMap<ServicePortKey, RouteTable> = port_keys
        .into_iter()
        .map(|port_key| (port_key.clone(), table(&port_key, &mut attached)))
        .filter(|(_, t)| !t.matches.is_empty() || !t.streams.is_empty())
        .collect();

    for route in attached {
        let outcome = compiled.objects.entry(route.id()).or_default();
        match route.kind {
            Kind::Route => record(name, route, outcome),
            _ => *outcome = gateway::outcome(route),
        }
    }
    for (port_key, table) in &tables {
        require(name, port_key, table, compiled);
    }
    tables
}

/// Adds to the outcome of a MeshRoute what became of it.
fn record(name: &str, route: AttachedRoute<'_>, outcome: &mut Outcome) {
    let documents: BTreeSet<DocumentKind> = route.port_keys().map(|port_key| port_key.document(name)).collect();
    let (mut matches, mut conflicting, mut conflicts) = (0, 0, Vec::new());
    for attachment in route.attachments.into_values() {
        matches += attachment.matches;
        conflicting += attachment.conflicting;
        conflicts.extend(attachment.conflicts);
    }
    if conflicting == matches {
        // All its matches conflict: only the conflicts are reported.
        outcome.diagnostics = vec![Diagnostic::refused(Reason::Conflicted, lost(&conflicts))];
        return;
    }
    outcome.diagnostics.extend(conflicts);
    outcome.documents.extend(documents);
}

/// The messages of the conflicts that a route lost.
fn lost(conflicts: &[Diagnostic]) -> String {
    let lost = conflicts.iter().filter(|conflict| conflict.severity == Severity::Partial);
    lost.map(|conflict| conflict.message.as_str()).collect::<Vec<_>>().join("; ")
}

/// Records which other namespaces' exports the documents depend on.
fn require(name: &str, port_key: &ServicePortKey, table: &RouteTable, compiled: &mut Compiled) {
    let mut dependencies: BTreeSet<String> = compiled.inbound.dependencies.drain(..).collect();
    if port_key.service.namespace != name {
        dependencies.insert(port_key.service.namespace.clone());
    }
    let of_rules = table.rules.iter().filter_map(|rule| match &rule.action {
        Action::Forward { backends, .. } => Some(backends),
        Action::Redirect(_) | Action::Respond(_) => None,
    });
    let backends: Vec<&Backend> = of_rules.chain(table.streams.iter().map(|rule| &rule.backends)).flatten().collect();
    // Mirrored requests may be dropped for a moment, so the documents do not wait for their targets' namespaces.
    let of_backends = backends.iter().filter_map(|backend| backend.filters.as_ref()).map(|filters| &filters.mirrors);
    let mirrors = table.rules.iter().map(|rule| &rule.filters.mirrors).chain(of_backends).flatten();
    let mirrored = mirrors.map(|mirror| &mirror.target.namespace).filter(|namespace| *namespace != name);
    dependencies.extend(mirrored.cloned());
    for backend in backends {
        let BackendTarget::Cluster(target) = &backend.target else { continue };
        match port_key.document(name) {
            DocumentKind::Inbound => {
                compiled.inbound_requires.insert(target.namespace.clone());
            }
            _ if target.namespace != name => {
                compiled.export_requires.insert(target.namespace.clone());
            }
            _ => {}
        }
        if target.namespace != name {
            dependencies.insert(target.namespace.clone());
        }
    }
    compiled.inbound.dependencies = dependencies.into_iter().collect();
}
