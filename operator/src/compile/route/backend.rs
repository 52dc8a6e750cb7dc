//! References of rules to Services and their subsets. One to another namespace needs a ReferenceGrant there.

use weft_config::{Backend, BackendFilters, BackendTarget, ClusterRef, Redirect, RouteKind, RouteRef};
use weft_crds::route;
use weft_crds::status::Reason;

use crate::compile::diagnostic::Diagnostic;
use crate::compile::endpoint::{Endpoints, has_endpoints};
use crate::compile::{cluster, missing, value};
use crate::world::{Key, Kind, Service, ServicePort, World};

/// What a rule matches: HTTP requests, or TLS and TCP connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RuleKind {
    Http,
    Stream,
}

/// The route that a reference is part of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Referrer<'a> {
    pub(super) kind: Kind,
    pub(super) key: &'a Key,
    /// The Services that it is attached to.
    pub(super) parents: &'a [Key],
}

// === impl Referrer ===

impl Referrer<'_> {
    /// The reference that the proxy's rules have.
    pub(super) fn route_ref(&self) -> RouteRef {
        let kind = match self.kind {
            Kind::GrpcRoute => RouteKind::GrpcRoute,
            Kind::HttpRoute => RouteKind::HttpRoute,
            Kind::TlsRoute => RouteKind::TlsRoute,
            Kind::TcpRoute => RouteKind::TcpRoute,
            Kind::Route | Kind::Cluster | Kind::Mesh | Kind::Policy => RouteKind::MeshRoute,
        };
        RouteRef { kind, namespace: self.key.namespace.clone(), name: self.key.name.clone() }
    }

    /// The key of a Service in the given namespace; in the route's own one by default.
    pub(super) fn service(&self, namespace: Option<&str>, name: &str) -> Key {
        Key::new(namespace.unwrap_or(&self.key.namespace), name)
    }

    /// Rejects a reference to another namespace that no ReferenceGrant there allows. A consumer route needs none to
    /// send the requests for a Service to that same Service; if it has other parents too, their clients have not chosen
    /// that Service. A namespace that does not exist has no Service either, which is the better message.
    fn check_permission(&self, world: &World, service: &Key) -> Result<(), String> {
        let own = &self.key.namespace;
        if service.namespace == *own
            || !world.has_namespace(&service.namespace)
            || self.parents.iter().all(|parent| parent == service)
            || world.grants(self.kind, own, service)
        {
            return Ok(());
        }
        let grant = if world.has_grants() {
            format!(
                "and no ReferenceGrant there allows {}s of namespace {own} to refer to it (create one, or move the route \
                 there)",
                self.kind.as_str()
            )
        } else {
            "which needs a ReferenceGrant there, and this cluster does not have that kind (install the CRDs of the \
             Gateway API, or move the route there)"
                .to_owned()
        };
        Err(format!("Service {service} is in another namespace, {grant}"))
    }
}

/// The filters of a backend: those that the proxy applies, and the redirect that takes the place of its cluster.
#[derive(Debug, Default)]
pub(super) struct OfBackend {
    pub(super) filters: Option<Box<BackendFilters>>,
    pub(super) redirect: Option<Redirect>,
}

/// A weighted backend. If its reference does not resolve, only its share of requests fails.
pub(super) fn backend(
    world: &World,
    route: Referrer<'_>,
    backend: &route::BackendRef,
    OfBackend { filters, redirect }: OfBackend,
    kind: RuleKind,
    unresolved: &mut Vec<(Reason, String)>,
) -> Backend {
    let route::BackendRef { kind: _, namespace, name, port, subset, weight } = backend;
    let key = route.service(namespace.as_deref(), name);
    let (while_missing, while_empty) = (while_missing(route, kind), while_empty(route, kind));
    let mut empty = Vec::new();
    let resolved = resolve(world, route, &key, *port, subset.as_deref(), while_empty, &mut empty);
    // A redirect needs no pod.
    if redirect.is_none() {
        unresolved.append(&mut empty);
    }
    let target = match (resolved, redirect) {
        (Ok(_), Some(redirect)) => BackendTarget::Redirect(redirect),
        (Ok(target), None) => BackendTarget::Cluster(target),
        (Err((reason, message)), _) => {
            unresolved.push((reason, format!("{message}: {while_missing}")));
            BackendTarget::Invalid(message)
        }
    };
    Backend { weight: *weight, target, filters }
}

/// What happens to the share of a backend that does not resolve.
pub(super) fn while_missing(route: Referrer<'_>, kind: RuleKind) -> &'static str {
    match kind {
        RuleKind::Http if route.kind == Kind::GrpcRoute => "calls to it are answered UNAVAILABLE",
        RuleKind::Http => "requests to it are answered 500",
        RuleKind::Stream => "connections to it are closed",
    }
}

/// What happens to the share of a backend that has no pod.
fn while_empty(route: Referrer<'_>, kind: RuleKind) -> &'static str {
    match kind {
        RuleKind::Http if route.kind == Kind::GrpcRoute => "calls to it are answered UNAVAILABLE",
        RuleKind::Http => "requests to it are answered 503",
        RuleKind::Stream => "connections to it are closed",
    }
}

/// The cluster of a backend reference. `while_empty` is the message's text on what happens while the subset has no
/// pod.
pub(super) fn resolve(
    world: &World,
    route: Referrer<'_>,
    key: &Key,
    port: u16,
    subset: Option<&str>,
    while_empty: &str,
    unresolved: &mut Vec<(Reason, String)>,
) -> Result<ClusterRef, (Reason, String)> {
    // First, so that the condition does not tell whether the Service exists.
    route.check_permission(world, key).map_err(|message| (Reason::RefNotPermitted, message))?;
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

/// What was found about the references of a rule, as diagnostics.
pub(super) fn diagnostics(rule: &str, unresolved: Vec<(Reason, String)>) -> impl Iterator<Item = Diagnostic> {
    unresolved.into_iter().map(move |(reason, what)| {
        let message = format!("rule {rule}: {what}");
        match reason {
            // The Service exists, and may be scaled to zero.
            Reason::NoEndpoints => Diagnostic::limited(reason, message),
            _ => Diagnostic::unresolved(reason, message),
        }
    })
}

fn check_backend(service: &Service, port: u16) -> Result<&ServicePort, String> {
    if !service.has_address() {
        return Err(value::no_address(service));
    }
    service.port(port).ok_or_else(|| missing::port(service, port))
}
