//! References of rules to Services and their subsets.

use weft_config::{Backend, BackendTarget, ClusterRef};
use weft_crds::route;
use weft_crds::status::Reason;

use crate::compile::endpoint::{Endpoints, has_endpoints};
use crate::compile::{cluster, missing, value};
use crate::world::{Key, Service, ServicePort, World};

/// What a rule matches: HTTP requests, or TLS and TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RuleKind {
    Http,
    Stream,
}

/// A weighted backend. If its reference does not resolve, only its share of requests fails.
pub(super) fn backend(
    world: &World,
    route: &Key,
    backend: &route::BackendRef,
    kind: RuleKind,
    unresolved: &mut Vec<(Reason, String)>,
) -> Backend {
    let route::BackendRef { kind: _, namespace, name, port, subset, weight } = backend;
    let key = Key::new(namespace.as_deref().unwrap_or(&route.namespace), name);
    let (while_missing, while_empty) = match kind {
        RuleKind::Http => ("requests to it are answered 500", "requests to it are answered 503"),
        RuleKind::Stream => ("connections to it are closed", "connections to it are closed"),
    };
    let target = match resolve(world, &key, *port, subset.as_deref(), while_empty, unresolved) {
        Ok(target) => BackendTarget::Cluster(target),
        Err((reason, message)) => {
            unresolved.push((reason, format!("{message}: {while_missing}")));
            BackendTarget::Invalid(message)
        }
    };
    Backend { weight: *weight, target }
}

/// The cluster of a backend reference. `while_empty` is the message's text on what happens while the subset has no
/// pod.
pub(super) fn resolve(
    world: &World,
    key: &Key,
    port: u16,
    subset: Option<&str>,
    while_empty: &str,
    unresolved: &mut Vec<(Reason, String)>,
) -> Result<ClusterRef, (Reason, String)> {
    let not_found = |message: String| (Reason::BackendNotFound, message);
    let (Some(namespace), Some(service)) = (world.namespace(&key.namespace), world.service(&key.namespace, &key.name))
    else {
        return Err(not_found(missing::service(world, key)));
    };
    let service_port = check_backend(service, port).map_err(not_found)?;
    let found = |subset: Option<&str>| ClusterRef {
        namespace: key.namespace.clone(),
        service: key.name.clone(),
        port,
        subset: subset.map(str::to_owned),
    };
    let is_empty = !has_endpoints(namespace, service, service_port);
    if is_empty {
        unresolved.push((Reason::NoEndpoints, format!("Service {key} has no ready pod at port {port}: {while_empty}")));
    }
    let Some(subset) = subset else { return Ok(found(None)) };
    let governing = cluster::governing(namespace, &key.name);
    let declared = governing.and_then(|spec| spec.subsets.iter().find(|declared| declared.name == subset));
    let Some(declared) = declared else {
        return Err((Reason::SubsetNotFound, missing::subset(key, subset, governing)));
    };
    if !is_empty && !Endpoints::of(namespace, service).populate(declared) {
        let message = format!("subset {subset} of Service {key} has no ready pod: {while_empty}");
        unresolved.push((Reason::SubsetNotFound, message));
    }
    Ok(found(Some(subset)))
}

fn check_backend(service: &Service, port: u16) -> Result<&ServicePort, String> {
    if !service.has_address() {
        return Err(value::no_address(service));
    }
    service.port(port).ok_or_else(|| missing::port(service, port))
}
