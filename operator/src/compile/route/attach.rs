//! Attaches a route to Service ports (parentRefs), with its compiled rules.

use std::collections::BTreeSet;

use weft_config::{ConsumerRoutes, Match, ObjectRef, Protocol, RouteTable, Rule, StreamRule};
use weft_crds::MeshRouteSpec;
use weft_crds::refs::ParentRef;
use weft_crds::route;
use weft_crds::status::Reason;

use super::backend::{Referrer, RuleKind};
use super::name;
use super::rule::{rule, stream};
use crate::compile::diagnostic::Diagnostic;
use crate::compile::{missing, value};
use crate::world::{DocumentKind, Key, Route, ServicePort, World};

/// A Service port that routes are attached to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::compile) struct ServicePortKey {
    pub(super) service: Key,
    pub(super) port: u16,
}

/// A valid route with at least one Service port.
pub(super) struct AttachedRoute<'a> {
    pub(super) route: &'a Route,
    pub(super) rules: Vec<(Rule, Vec<Match>)>,
    /// TLS and TCP rules with their server names; no names for the TCP rule.
    pub(super) streams: Vec<(StreamRule, Vec<String>)>,
    /// The Service ports that its HTTP rules apply to, and those that its TLS and TCP rules apply to.
    pub(super) http_ports: BTreeSet<ServicePortKey>,
    pub(super) stream_ports: BTreeSet<ServicePortKey>,
    /// Number of its matches over all ports, and how many of them an older route or earlier rule already has.
    pub(super) matches: usize,
    pub(super) conflicting: usize,
    pub(super) conflicts: Vec<Diagnostic>,
}

// === impl AttachedRoute ===

impl AttachedRoute<'_> {
    pub(super) fn port_keys(&self) -> impl Iterator<Item = &ServicePortKey> {
        self.http_ports.union(&self.stream_ports)
    }
}

// === impl ServicePortKey ===

impl ServicePortKey {
    pub(in crate::compile) fn new(namespace: &str, service: &str, port: u16) -> Self {
        Self { service: Key::new(namespace, service), port }
    }

    /// The document that its route table is part of, for routes of namespace `own`.
    pub(super) fn document(&self, own: &str) -> DocumentKind {
        if self.service.namespace == own { DocumentKind::Export } else { DocumentKind::Inbound }
    }

    /// The consumer routes of the private document.
    pub(in crate::compile) fn consumer(self, table: RouteTable) -> ConsumerRoutes {
        let service = ObjectRef { namespace: self.service.namespace, name: self.service.name };
        ConsumerRoutes { service, port: self.port, table }
    }
}

impl std::fmt::Display for ServicePortKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Service {} port {}", self.service, self.port)
    }
}

/// Validates a route and finds its Service ports. An error means that the whole route is rejected.
pub(super) fn attach<'a>(
    world: &World,
    route: &'a Route,
    diagnostics: &mut Vec<Diagnostic>,
) -> Result<AttachedRoute<'a>, Diagnostic> {
    let spec = route
        .spec
        .as_ref()
        .map_err(|error| Diagnostic::refused(Reason::Invalid, format!("the object cannot be parsed: {error}")))?;
    let MeshRouteSpec { parent_refs, http, tls, tcp } = spec;

    let key = &route.meta.key;
    let referrer = Referrer { key, parents: parent_refs };
    let mut unresolved = Vec::new();
    let mut note = |name: &str, found: Vec<(Reason, String)>| {
        unresolved.extend(found.into_iter().map(|(reason, what)| {
            let message = format!("rule {name}: {what}");
            match reason {
                // The Service exists, and may be scaled to zero.
                Reason::NoEndpoints => Diagnostic::limited(reason, message),
                _ => Diagnostic::unresolved(reason, message),
            }
        }));
    };
    let refused =
        |name: &str, message: String| Diagnostic::refused(Reason::UnsupportedValue, format!("rule {name}: {message}"));
    let mut rules = Vec::new();
    let http_names: Vec<&str> = http.iter().map(|rule| rule.name.as_str()).collect();
    for (name, rule) in name::names(name::HTTP, &http_names, diagnostics).into_iter().zip(http) {
        let mut found = Vec::new();
        let compiled = self::rule(world, referrer, &name, rule, &mut found);
        rules.push(compiled.map_err(|message| refused(&name, message))?);
        note(&name, found);
    }
    let mut streams = Vec::new();
    let tls_names: Vec<&str> = tls.iter().map(|rule| rule.name.as_str()).collect();
    let tls_names = name::names(name::TLS, &tls_names, diagnostics);
    for (name, route::TlsRule { name: _, matches, backend_refs }) in tls_names.into_iter().zip(tls) {
        let mut found = Vec::new();
        let names = value::server_names(matches).map_err(|message| refused(&name, message))?;
        let compiled = stream(world, referrer, &name, backend_refs, &mut found);
        streams.push((compiled.map_err(|message| refused(&name, message))?, names));
        note(&name, found);
    }
    for route::TcpRule { name, backend_refs } in tcp {
        let mut found = Vec::new();
        let compiled = stream(world, referrer, name, backend_refs, &mut found);
        streams.push((compiled.map_err(|message| refused(name, message))?, Vec::new()));
        note(name, found);
    }
    if rules.is_empty() && streams.is_empty() {
        return Err(Diagnostic::refused(Reason::UnsupportedValue, "a route needs http, tls or tcp rules"));
    }
    diagnostics.append(&mut unresolved);

    let mut misses: Vec<(Reason, String)> = Vec::new();
    let mut skipped: BTreeSet<ServicePortKey> = BTreeSet::new();
    let mut attach = |kind: RuleKind, any: bool| {
        let mut port_keys = BTreeSet::new();
        for parent in parent_refs.iter().filter(|_| any) {
            match self::port_keys(world, &key.namespace, parent, kind) {
                Ok(PortKeys { found, others }) => {
                    port_keys.extend(found);
                    skipped.extend(others);
                }
                // Report an error that both kinds of rules have once.
                Err(miss) if misses.contains(&miss) => {}
                Err(miss) => misses.push(miss),
            }
        }
        port_keys
    };
    let http_ports = attach(RuleKind::Http, !rules.is_empty());
    let stream_ports = attach(RuleKind::Stream, !streams.is_empty());
    if http_ports.is_empty() && stream_ports.is_empty() {
        let messages: Vec<&str> = misses.iter().map(|(_, message)| message.as_str()).collect();
        let reason = misses.first().map_or(Reason::TargetNotFound, |(reason, _)| *reason);
        return Err(Diagnostic::refused(reason, messages.join("; ")));
    }
    diagnostics.extend(misses.into_iter().map(|(_, message)| Diagnostic::partial(message)));
    let skipped = skipped.into_iter().filter(|port| !http_ports.contains(port) && !stream_ports.contains(port));
    diagnostics.extend(skipped.map(|port| {
        let message =
            format!("it does not apply to {port}, which is declared (by appProtocol or port name) as another protocol");
        Diagnostic::note(message)
    }));
    diagnostics.extend(http.iter().flat_map(repeated_conditions).map(Diagnostic::partial));
    Ok(AttachedRoute {
        route,
        rules,
        streams,
        http_ports,
        stream_ports,
        matches: 0,
        conflicting: 0,
        conflicts: Vec::new(),
    })
}

/// Conditions on one name of which only the first counts.
fn repeated_conditions(rule: &route::HttpRule) -> BTreeSet<String> {
    fn repeated(names: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
        let mut seen = BTreeSet::new();
        names.filter(move |name| !seen.insert(name.clone()))
    }
    let headers = rule.matches.iter().flat_map(|condition| {
        let names = condition.headers.iter().map(|header| header.name.to_ascii_lowercase());
        repeated(names).map(|name| format!("header {name}"))
    });
    let queries = rule.matches.iter().flat_map(|condition| {
        let names = condition.query_params.iter().map(|query| query.name.clone());
        repeated(names).map(|name| format!("query parameter {name}"))
    });
    headers
        .chain(queries)
        .map(|what| format!("of several conditions on {what} in one match only the first counts; remove the others"))
        .collect()
}

/// The Service ports of a parentRef that rules of one kind apply to, and the others.
struct PortKeys {
    found: Vec<ServicePortKey>,
    others: Vec<ServicePortKey>,
}

/// The Service ports of a parentRef that rules of this kind can apply to.
fn port_keys(world: &World, own: &str, parent: &ParentRef, kind: RuleKind) -> Result<PortKeys, (Reason, String)> {
    let ParentRef { kind: _, namespace, name, port } = parent;
    let key = Key::new(namespace.as_deref().unwrap_or(own), name);
    let service =
        world.service(&key.namespace, name).ok_or_else(|| (Reason::TargetNotFound, missing::service(world, &key)))?;
    if !service.has_address() {
        return Err((Reason::UnsupportedTarget, value::no_address(service)));
    }
    let fits = |protocol: Protocol| match kind {
        RuleKind::Http => protocol != Protocol::Tcp,
        RuleKind::Stream => !matches!(protocol, Protocol::Http | Protocol::Http2),
    };
    let (carries, remedy) = match kind {
        RuleKind::Http => ("opaque TCP", "only tls and tcp rules apply to it"),
        RuleKind::Stream => ("HTTP", "only http rules apply to it"),
    };
    let declared = format!("declared as {carries} (by appProtocol or port name): {remedy}");
    match port {
        Some(port) => {
            let found = service.port(*port).ok_or_else(|| (Reason::TargetNotFound, missing::port(service, *port)))?;
            if !fits(found.protocol) {
                return Err((Reason::UnsupportedTarget, format!("port {port} of Service {key} is {declared}")));
            }
            Ok(PortKeys { found: vec![ServicePortKey { service: key, port: *port }], others: Vec::new() })
        }
        None if service.ports.is_empty() => Err((Reason::UnsupportedTarget, value::no_port(service))),
        None => {
            let (fitting, others): (Vec<_>, Vec<_>) = service.ports.iter().partition(|port| fits(port.protocol));
            if fitting.is_empty() {
                return Err((Reason::UnsupportedTarget, format!("every port of Service {key} is {declared}")));
            }
            let keys = |ports: Vec<&ServicePort>| {
                ports.into_iter().map(|port| ServicePortKey { service: key.clone(), port: port.port }).collect()
            };
            Ok(PortKeys { found: keys(fitting), others: keys(others) })
        }
    }
}
