//! Routes of the Gateway API whose parents are Services (GAMMA): HTTPRoute, GRPCRoute, TLSRoute and TCPRoute.
//!
//! ```text
//! HTTPRoute ──matches──┐
//! GRPCRoute ──matches──┴> rule ─> filter, backend, resilience ─┐
//! TLSRoute, TCPRoute ──> stream ───────────────────────────────┼─> AttachedRoute
//! parentRefs ──────────> parent ───────────────────────────────┘
//! ```
//!
//! What the API's schema rejects is not checked again. A value that this operator does not know, or cannot apply, makes
//! one rule answer 500 (gRPC: UNAVAILABLE) and leaves the others as they are. Types and their documentation are those
//! of the Gateway API; docs/gateway-api.md says what is done with each field.

mod backend;
mod filter;
mod grpc;
mod matches;
mod parent;
mod resilience;
mod rule;
mod stream;

use std::collections::{BTreeMap, BTreeSet};

pub(super) use parent::outcome;
use rule::CompiledRule;
use weft_config::StreamRule;
use weft_crds::status::Reason;
use weft_gateway_api::{
    BackendRef, GrpcRouteSpec, HttpRouteSpec, TcpRouteRule, TcpRouteSpec, TlsRouteRule, TlsRouteSpec, VERSION,
};

use super::attached::{AttachedParent, AttachedRoute, HttpRule};
use super::backend::{Referrer, RuleKind};
use crate::compile::diagnostic::{Diagnostic, Severity};
use crate::world::{GatewayRoute, GatewaySpec, Key, World};

/// What the rules of a route compile to.
#[derive(Default)]
struct Rules {
    http: Vec<HttpRule>,
    streams: Vec<(StreamRule, Vec<String>)>,
    /// How many rules answer nothing but errors, because a value in them is not supported.
    unusable: usize,
    diagnostics: Vec<Diagnostic>,
}

// === impl Rules ===

impl Rules {
    fn add(&mut self, compiled: CompiledRule) {
        let CompiledRule { rule, is_unusable, diagnostics } = compiled;
        self.http.push(rule);
        self.unusable += usize::from(is_unusable);
        self.diagnostics.extend(diagnostics);
    }
}

/// Compiles a route and finds the Service ports of its parents. A route that is not accepted is attached to no port, and
/// its parents say why.
pub(super) fn attach<'a>(world: &World, route: &'a GatewayRoute) -> AttachedRoute<'a> {
    let GatewayRoute { kind, version, meta, spec, services, unknown_fields, .. } = route;
    let own = &meta.key.namespace;
    let parents: Vec<Key> = services.iter().map(|service| parent::service(own, service)).collect();
    let referrer = Referrer { kind: *kind, key: &meta.key, parents: &parents };
    let (rules, rule_kind) = match spec {
        Err(error) => {
            let is_known = version == VERSION;
            let message = if is_known { format!("the object cannot be parsed: {error}") } else { error.clone() };
            (refuse(Diagnostic::refused(Reason::Invalid, message)), RuleKind::Http)
        }
        Ok(GatewaySpec::Http(spec)) => (http_rules(world, referrer, spec), RuleKind::Http),
        Ok(GatewaySpec::Grpc(spec)) => (grpc_rules(world, referrer, spec), RuleKind::Http),
        Ok(GatewaySpec::Tls(TlsRouteSpec { hostnames, parent_refs: _, rules })) => {
            let rules = rules.iter().map(|TlsRouteRule { name, backend_refs }| (name, backend_refs));
            (stream_rules(world, referrer, hostnames, rules), RuleKind::Stream)
        }
        Ok(GatewaySpec::Tcp(TcpRouteSpec { parent_refs: _, rules })) => {
            let rules = rules.iter().map(|TcpRouteRule { name, backend_refs }| (name, backend_refs));
            (stream_rules(world, referrer, &[], rules), RuleKind::Stream)
        }
    };
    let Rules { http, streams, unusable, mut diagnostics } = rules;
    if unusable > 0 && unusable == http.len() {
        refuse_all(&mut diagnostics);
    }
    let unknown = unknown_fields.iter().map(|field| format!("{field}: Weft does not support this field; remove it"));
    diagnostics.extend(unknown.map(Diagnostic::partial));
    let can_attach = !(http.is_empty() && streams.is_empty());
    let parents: Vec<AttachedParent> = services
        .iter()
        .map(|service| parent::attach(world, own, service, rule_kind, can_attach, diagnostics.clone()))
        .collect();
    let ports: BTreeSet<_> = parents.iter().flat_map(|parent| &parent.port_keys).cloned().collect();
    let (http_ports, stream_ports) = match rule_kind {
        RuleKind::Http => (ports, BTreeSet::new()),
        RuleKind::Stream => (BTreeSet::new(), ports),
    };
    AttachedRoute {
        kind: *kind,
        meta,
        rules: http,
        streams,
        http_ports,
        stream_ports,
        attachments: BTreeMap::new(),
        parents,
    }
}

fn refuse(refused: Diagnostic) -> Rules {
    Rules { diagnostics: vec![refused], ..Rules::default() }
}

/// A route without a single rule that can be applied is not accepted, though its requests are still answered 500.
fn refuse_all(diagnostics: &mut [Diagnostic]) {
    for diagnostic in diagnostics.iter_mut().filter(|diagnostic| diagnostic.severity == Severity::Partial) {
        *diagnostic = Diagnostic::refused(Reason::UnsupportedValue, std::mem::take(&mut diagnostic.message));
    }
}

fn http_rules(world: &World, referrer: Referrer<'_>, spec: &HttpRouteSpec) -> Rules {
    let HttpRouteSpec { hostnames, parent_refs: _, rules } = spec;
    let mut compiled = begin(hostnames, rules.is_empty());
    for (index, rule) in rules.iter().enumerate() {
        let name = rule.name.clone().unwrap_or_else(|| index.to_string());
        compiled.add(rule::http(world, referrer, &name, rule));
    }
    compiled
}

fn grpc_rules(world: &World, referrer: Referrer<'_>, spec: &GrpcRouteSpec) -> Rules {
    let GrpcRouteSpec { hostnames, parent_refs: _, rules } = spec;
    let mut compiled = begin(hostnames, rules.is_empty());
    for (index, rule) in rules.iter().enumerate() {
        let name = rule.name.clone().unwrap_or_else(|| index.to_string());
        compiled.add(rule::grpc(world, referrer, &name, rule));
    }
    compiled
}

/// What can be said before the rules are looked at.
fn begin(hostnames: &[String], has_no_rules: bool) -> Rules {
    let mut rules = Rules::default();
    if has_no_rules {
        return refuse(Diagnostic::refused(Reason::UnsupportedValue, "the route has no rules: add one"));
    }
    if !hostnames.is_empty() {
        rules.diagnostics.push(Diagnostic::note(
            "hostnames has no effect on a Service as parent, whose clients are matched by its address: match the header \
             host in the rules",
        ));
    }
    rules
}

fn stream_rules<'r>(
    world: &World,
    referrer: Referrer<'_>,
    hostnames: &[String],
    rules: impl Iterator<Item = (&'r Option<String>, &'r Vec<BackendRef>)>,
) -> Rules {
    let mut compiled = Rules::default();
    for (index, (name, backend_refs)) in rules.enumerate() {
        let name = name.clone().unwrap_or_else(|| index.to_string());
        let rule = stream::rule(world, referrer, &name, backend_refs, &mut compiled.diagnostics);
        let names = hostnames.iter().map(|name| name.to_ascii_lowercase()).collect();
        compiled.streams.push((rule, names));
    }
    if compiled.streams.is_empty() {
        return refuse(Diagnostic::refused(Reason::UnsupportedValue, "the route has no rules: add one"));
    }
    compiled
}
