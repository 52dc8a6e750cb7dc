//! The rules of HTTPRoutes and GRPCRoutes: matches, filters and backends of requests.

use weft_config::{Action, Backend, BackendTarget, Filters, HeaderEdit, Rewrite, Rule};
use weft_crds::route::{self, PathMatchType};
use weft_gateway_api::{GrpcRouteMatch, GrpcRouteRule, HttpBackendRef, HttpRouteMatch, HttpRouteRule};

use super::filter::Findings;
use super::matches::RankedMatch;
use super::{backend, filter, grpc, matches, resilience};
use crate::compile::diagnostic::Diagnostic;
use crate::compile::route::attach::repeated_conditions;
use crate::compile::route::attached::HttpRule;
use crate::compile::route::backend::{self as reference, Referrer, RuleKind};
use crate::compile::route::filter::{self as compiled, RuleFilters};
use crate::world::{Kind, World};

/// A compiled rule, and what is to be said about it.
pub(super) struct CompiledRule {
    pub(super) rule: HttpRule,
    /// A value in it is not supported, so that it answers nothing but errors.
    pub(super) is_unusable: bool,
    pub(super) diagnostics: Vec<Diagnostic>,
}

/// Compiles a rule of an HTTPRoute.
pub(super) fn http(world: &World, route: Referrer<'_>, name: &str, rule: &HttpRouteRule) -> CompiledRule {
    let any = HttpRouteMatch::default();
    let matches = or_any(&rule.matches, &any).iter().map(matches::http).collect();
    compile(world, route, name, matches, rule)
}

/// Compiles a rule of a GRPCRoute, which is one of an HTTPRoute with other matches, and without timeouts and retries.
pub(super) fn grpc(world: &World, route: Referrer<'_>, name: &str, rule: &GrpcRouteRule) -> CompiledRule {
    let GrpcRouteRule { backend_refs, filters, matches, name: _ } = rule;
    let any = GrpcRouteMatch::default();
    let matches = or_any(matches, &any).iter().map(matches::grpc).collect();
    let rule = HttpRouteRule {
        backend_refs: backend_refs.iter().map(grpc::backend).collect(),
        filters: filters.iter().map(grpc::filter).collect(),
        ..HttpRouteRule::default()
    };
    compile(world, route, name, matches, &rule)
}

/// The matches of a rule; without any, one that every request fits.
fn or_any<'m, M>(matches: &'m [M], any: &'m M) -> &'m [M] {
    if matches.is_empty() { std::slice::from_ref(any) } else { matches }
}

/// Compiles a rule with its matches. What is wrong with one of its values makes it answer nothing but errors.
fn compile(
    world: &World,
    route: Referrer<'_>,
    name: &str,
    matches: Vec<Result<RankedMatch, String>>,
    rule: &HttpRouteRule,
) -> CompiledRule {
    let (mut matched, mut words, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    for (index, found) in matches.into_iter().enumerate() {
        match found {
            Ok(found) => {
                matched.push((found.rank, found.compiled));
                words.push(found.words);
            }
            Err(message) => wrong.push(format!("matches[{index}], which matches nothing: {message}")),
        }
    }
    let mut findings = Findings::default();
    let compiled = self::usable(world, route, name, &words, rule, &mut findings);
    let compiled = compiled.map_err(|message| wrong.push(message)).ok().filter(|_| wrong.is_empty());
    let mut diagnostics: Vec<Diagnostic> = reference::diagnostics(name, findings.unresolved).collect();
    let is_unusable = compiled.is_none();
    let rule = compiled.unwrap_or_else(|| {
        let message = wrong.join("; ");
        diagnostics.push(Diagnostic::partial(format!("rule {name}: {message}: {}", answered(route))));
        forward(route, name, vec![invalid(format!("rule {name} is not valid: {message}"))])
    });
    let changed = findings.changed.into_iter().chain(repeated_conditions(&words));
    diagnostics.extend(changed.map(|message| Diagnostic::partial(format!("rule {name}: {message}"))));
    CompiledRule { rule: HttpRule { rule, matches: matched }, is_unusable, diagnostics }
}

/// What happens to the requests of a rule that has nowhere to send them.
fn answered(route: Referrer<'_>) -> &'static str {
    match route.kind {
        Kind::GrpcRoute => "its calls are answered UNAVAILABLE",
        _ => "its requests are answered 500",
    }
}

/// A rule without filters that sends to these backends.
fn forward(route: Referrer<'_>, name: &str, backends: Vec<Backend>) -> Rule {
    Rule {
        route: route.route_ref(),
        name: name.to_owned(),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
        filters: Filters::default(),
        action: Action::Forward { backends, rewrite: Rewrite::default() },
        request_timeout_ms: None,
        attempt_timeout_ms: None,
        retry: None,
        hedge: None,
    }
}

/// A backend whose requests are answered with an error. Not a direct response, because gRPC has a status of its own.
fn invalid(message: String) -> Backend {
    Backend { weight: 1, target: BackendTarget::Invalid(message), filters: None }
}

/// The rule, unless a value in it is not supported.
fn usable(
    world: &World,
    route: Referrer<'_>,
    name: &str,
    matches: &[route::HttpMatch],
    rule: &HttpRouteRule,
    findings: &mut Findings,
) -> Result<Rule, String> {
    let HttpRouteRule { backend_refs, filters, matches: _, name: _, retry, timeouts } = rule;
    check_connect(matches, rule)?;
    let by_prefix = is_by_prefix(matches);
    let filters = filter::filters("filters", filters, findings)?;
    let RuleFilters { request_headers, response_headers, filters, rewrite, answer } =
        compiled::compile(world, route, &filters, by_prefix, &mut findings.unresolved)?;
    let mut backends = Vec::new();
    for (index, backend_ref) in backend_refs.iter().enumerate() {
        let at = format!("backendRefs[{index}].filters");
        if filters.cors.is_some() && backend_ref.filters.iter().any(|filter| filter.r#type == "CORS") {
            findings.changed.push(format!("{at}: CORS has no effect beside that of the rule"));
        }
        backends.push(backend(world, route, &at, backend_ref, by_prefix, findings)?);
    }
    if answer.is_none() && backends.iter().all(|backend| backend.weight == 0) {
        let message = "it has no backend with a weight above 0";
        findings.changed.push(format!("{message}: {}", answered(route)));
        backends = vec![invalid(message.to_owned())];
    }
    let mut compiled = Rule { request_headers, response_headers, filters, ..forward(route, name, Vec::new()) };
    if let Some(answer) = answer {
        if timeouts.is_some() || retry.is_some() {
            let message = "timeouts and retry have no effect: no backend gets a request that is redirected";
            findings.changed.push(message.to_owned());
        }
        return Ok(Rule { action: answer, ..compiled });
    }
    compiled.action = Action::Forward { backends, rewrite };
    if let Some(timeouts) = timeouts {
        (compiled.request_timeout_ms, compiled.attempt_timeout_ms) =
            resilience::timeouts(timeouts, &mut findings.changed)?;
    }
    compiled.retry = retry.as_ref().map(|retry| resilience::retry(retry, &mut findings.changed)).transpose()?;
    Ok(compiled)
}

/// Whether every match has a path prefix, which ReplacePrefixMatch replaces.
fn is_by_prefix(matches: &[route::HttpMatch]) -> bool {
    let by_prefix = |found: &route::HttpMatch| found.path.as_ref().map(|path| path.kind);
    !matches.is_empty() && matches.iter().all(|found| by_prefix(found) == Some(PathMatchType::PathPrefix))
}

/// Compiles a backend with its filters, which are the field `at` of the rule. If it is of another kind than Service, only its share of requests fails.
fn backend(
    world: &World,
    route: Referrer<'_>,
    at: &str,
    backend_ref: &HttpBackendRef,
    by_prefix: bool,
    findings: &mut Findings,
) -> Result<Backend, String> {
    let weight = backend::weight(backend_ref.weight);
    let filters = filter::filters(at, &backend_ref.filters, findings)?;
    let of_backend = compiled::compile_of_backend(world, route, &filters, by_prefix, &mut findings.unresolved)
        .map_err(|message| format!("{at}: {message}"))?;
    match backend::service(&backend::of_http(backend_ref)) {
        Ok(service) => {
            let service = route::BackendRef { weight, ..service };
            let unresolved = &mut findings.unresolved;
            Ok(reference::backend(world, route, &service, of_backend, RuleKind::Http, unresolved))
        }
        Err((reason, message)) => {
            findings
                .unresolved
                .push((reason, format!("{message}: {}", reference::while_missing(route, RuleKind::Http))));
            Ok(Backend { weight, ..invalid(message) })
        }
    }
}

/// Rejects fields that do not apply to a CONNECT tunnel.
fn check_connect(matches: &[route::HttpMatch], rule: &HttpRouteRule) -> Result<(), String> {
    let is_connect = |found: &route::HttpMatch| found.method == Some(route::Method::Connect);
    if !matches.iter().any(is_connect) {
        return Ok(());
    }
    if !matches.iter().all(is_connect) {
        return Err(
            "a rule that matches CONNECT cannot match other methods: move its other matches to another rule".into()
        );
    }
    if matches.iter().any(|found| found.path.is_some() || !found.query_params.is_empty()) {
        return Err("CONNECT requests have no path and no query: match them by headers".into());
    }
    let of_backends = rule.backend_refs.iter().flat_map(|backend| &backend.filters);
    let mut filters = rule.filters.iter().chain(of_backends).map(|filter| filter.r#type.as_str());
    if let Some(other) = filters.find(|kind| *kind != "ResponseHeaderModifier") {
        return Err(format!(
            "a rule that matches CONNECT cannot have a filter of type {other}: only ResponseHeaderModifier is allowed"
        ));
    }
    let has_attempts = rule.timeouts.as_ref().is_some_and(|timeouts| timeouts.backend_request.is_some());
    match (rule.retry.is_some(), has_attempts) {
        (false, false) => Ok(()),
        (true, _) => Err("a rule that matches CONNECT cannot have retry: other pods are tried anyway".into()),
        (false, true) => Err("a rule that matches CONNECT cannot have timeouts.backendRequest".into()),
    }
}
