//! Attaches a MeshRoute to Service ports (parentRefs), with its compiled rules.

use std::collections::{BTreeMap, BTreeSet};

use weft_crds::MeshRouteSpec;
use weft_crds::refs::ParentRef;
use weft_crds::route;
use weft_crds::status::Reason;

use super::attached::{AttachedRoute, HttpRule};
use super::backend::{self, Referrer, RuleKind};
use super::name;
use super::port::{Parent, PortKeys, ServicePortKey};
use super::rule::{rule, stream};
use crate::compile::diagnostic::Diagnostic;
use crate::compile::{precedence, value};
use crate::world::{Key, Kind, Route, World};

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
    let parents: Vec<Parent<'_>> = parent_refs.iter().map(|parent| self::parent(&key.namespace, parent)).collect();
    let services: Vec<Key> = parents.iter().map(|parent| parent.service.clone()).collect();
    let referrer = Referrer { kind: Kind::Route, key, parents: &services };
    let mut unresolved = Vec::new();
    let refused =
        |name: &str, message: String| Diagnostic::refused(Reason::UnsupportedValue, format!("rule {name}: {message}"));
    let mut rules = Vec::new();
    let http_names: Vec<&str> = http.iter().map(|rule| rule.name.as_str()).collect();
    for (name, rule) in name::names(name::HTTP, &http_names, diagnostics).into_iter().zip(http) {
        let mut found = Vec::new();
        let compiled = self::rule(world, referrer, &name, rule, &mut found);
        let (rule, matches) = compiled.map_err(|message| refused(&name, message))?;
        let matches = matches.into_iter().map(|condition| (precedence::rank(&condition), condition)).collect();
        rules.push(HttpRule { rule, matches });
        unresolved.extend(backend::diagnostics(&name, found));
    }
    let mut streams = Vec::new();
    let tls_names: Vec<&str> = tls.iter().map(|rule| rule.name.as_str()).collect();
    let tls_names = name::names(name::TLS, &tls_names, diagnostics);
    for (name, route::TlsRule { name: _, matches, backend_refs }) in tls_names.into_iter().zip(tls) {
        let mut found = Vec::new();
        let names = value::server_names(matches).map_err(|message| refused(&name, message))?;
        let compiled = stream(world, referrer, &name, backend_refs, &mut found);
        streams.push((compiled.map_err(|message| refused(&name, message))?, names));
        unresolved.extend(backend::diagnostics(&name, found));
    }
    for route::TcpRule { name, backend_refs } in tcp {
        let mut found = Vec::new();
        let compiled = stream(world, referrer, name, backend_refs, &mut found);
        streams.push((compiled.map_err(|message| refused(name, message))?, Vec::new()));
        unresolved.extend(backend::diagnostics(name, found));
    }
    if rules.is_empty() && streams.is_empty() {
        return Err(Diagnostic::refused(Reason::UnsupportedValue, "a route needs http, tls or tcp rules"));
    }
    diagnostics.append(&mut unresolved);

    let mut misses: Vec<(Reason, String)> = Vec::new();
    let mut skipped: BTreeSet<ServicePortKey> = BTreeSet::new();
    let mut attach = |kind: RuleKind, any: bool| {
        let mut port_keys = BTreeSet::new();
        let remedy = match kind {
            RuleKind::Http => "only tls and tcp rules apply to it",
            RuleKind::Stream => "only http rules apply to it",
        };
        for parent in parents.iter().filter(|_| any) {
            match parent.port_keys(world, kind, remedy) {
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
    diagnostics.extend(skipped.map(|port| port.is_of_another_protocol()));
    diagnostics.extend(http.iter().flat_map(|rule| repeated_conditions(&rule.matches)).map(Diagnostic::partial));
    Ok(AttachedRoute {
        kind: Kind::Route,
        meta: &route.meta,
        rules,
        streams,
        http_ports,
        stream_ports,
        attachments: BTreeMap::new(),
        parents: Vec::new(),
    })
}

/// Conditions on one name of which only the first counts.
pub(super) fn repeated_conditions(matches: &[route::HttpMatch]) -> BTreeSet<String> {
    fn repeated(names: impl Iterator<Item = String>) -> impl Iterator<Item = String> {
        let mut seen = BTreeSet::new();
        names.filter(move |name| !seen.insert(name.clone()))
    }
    let headers = matches.iter().flat_map(|condition| {
        let names = condition.headers.iter().map(|header| header.name.to_ascii_lowercase());
        repeated(names).map(|name| format!("header {name}"))
    });
    let queries = matches.iter().flat_map(|condition| {
        let names = condition.query_params.iter().map(|query| query.name.clone());
        repeated(names).map(|name| format!("query parameter {name}"))
    });
    headers
        .chain(queries)
        .map(|what| format!("of several conditions on {what} in one match only the first counts; remove the others"))
        .collect()
}

/// What a parentRef of a route of namespace `own` names.
fn parent<'a>(own: &str, parent: &'a ParentRef) -> Parent<'a> {
    let ParentRef { kind: _, namespace, name, port } = parent;
    Parent { service: Key::new(namespace.as_deref().unwrap_or(own), name), port: *port, port_name: None }
}
