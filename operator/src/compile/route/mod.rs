//! MeshRoutes: their Service ports (parentRefs), their rules, and conflicts between routes with equal matches.
//!
//! ```text
//! MeshRoute ──attach──> AttachedRoute: Service ports, rules ──table──> RouteTable of a Service port
//!                └─> rule ─> filter ─> backend
//! ```

mod attach;
mod backend;
mod filter;
mod name;
mod rule;
mod table;

use std::collections::{BTreeMap, BTreeSet};

pub(super) use attach::ServicePortKey;
use attach::{AttachedRoute, attach};
use table::table;
use weft_config::{Action, Backend, BackendTarget, RouteTable};
use weft_crds::status::Reason;

use super::compiled::Compiled;
use super::diagnostic::Diagnostic;
use super::precedence::age;
use crate::world::{DocumentKind, Kind, Namespace, ObjectId, Route, World};

/// The route tables by Service port: ports of the namespace's own Services, and ports of other namespaces' Services
/// for the clients in this namespace (consumer routes).
pub(super) fn compile(
    world: &World,
    name: &str,
    namespace: &Namespace,
    compiled: &mut Compiled,
) -> BTreeMap<ServicePortKey, RouteTable> {
    let mut routes: Vec<&Route> = namespace.routes.values().collect();
    routes.sort_by_key(|route| age(&route.meta));

    let mut attached = Vec::new();
    for route in routes {
        let outcome = compiled.objects.entry(id(route)).or_default();
        match attach(world, route, &mut outcome.diagnostics) {
            Ok(found) => attached.push(found),
            Err(refused) => outcome.diagnostics.push(refused),
        }
    }
    let port_keys: BTreeSet<ServicePortKey> = attached.iter().flat_map(AttachedRoute::port_keys).cloned().collect();
    let tables: BTreeMap<ServicePortKey, RouteTable> = port_keys
        .into_iter()
        .map(|port_key| (port_key.clone(), table(&port_key, &mut attached)))
        .filter(|(_, t)| !t.matches.is_empty() || !t.streams.is_empty())
        .collect();

    for attached in attached {
        let documents: BTreeSet<DocumentKind> = attached.port_keys().map(|port_key| port_key.document(name)).collect();
        let AttachedRoute { route, matches, conflicting, conflicts, .. } = attached;
        let outcome = compiled.objects.entry(id(route)).or_default();
        if conflicting == matches {
            // All its matches conflict: only the conflicts are reported.
            let messages: Vec<&str> = conflicts.iter().map(|conflict| conflict.message.as_str()).collect();
            outcome.diagnostics = vec![Diagnostic::refused(Reason::Conflicted, messages.join("; "))];
            continue;
        }
        outcome.diagnostics.extend(conflicts);
        outcome.documents.extend(documents);
    }
    for (port_key, table) in &tables {
        require(name, port_key, table, compiled);
    }
    tables
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

fn id(route: &Route) -> ObjectId {
    ObjectId { kind: Kind::Route, key: route.meta.key.clone() }
}
