//! HTTP, TLS and TCP rules: matches, backends, timeouts, retries and hedging.

use std::time::Duration;

use weft_config::{Action, Backend, Hedge, Match, Retry, Rule, StreamRule};
use weft_crds::route::{self, BackendFilterType, FilterType, HttpRule, PathMatchType};
use weft_crds::status::Reason;

use super::backend::{OfBackend, Referrer, RuleKind, backend};
use super::filter;
use crate::compile::value;
use crate::world::World;

pub(super) const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 60 * 60);
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(1);
pub(super) const BACKOFF_MAX: Duration = Duration::from_secs(60);
pub(super) const ATTEMPTS_MAX: u32 = 10;
const AFTER_MIN: Duration = Duration::from_millis(1);
const AFTER_MAX: Duration = Duration::from_secs(60);
const HEDGES_MAX: u32 = 3;
const MIRRORS_MAX: usize = 4;

/// Compiles an HTTP rule. References that do not resolve are added to `unresolved`.
pub(super) fn rule(
    world: &World,
    route: Referrer<'_>,
    name: &str,
    rule: &HttpRule,
    unresolved: &mut Vec<(Reason, String)>,
) -> Result<(Rule, Vec<Match>), String> {
    let HttpRule { name: _, matches, filters, backend_refs, timeouts, retry, hedge } = rule;
    if matches.iter().any(matches_connect) {
        check_connect(rule)?;
    }
    let by_prefix = !matches.is_empty()
        && matches.iter().all(|m| m.path.as_ref().is_some_and(|path| path.kind == PathMatchType::PathPrefix));
    let filter::RuleFilters { request_headers, response_headers, filters, rewrite, answer } =
        filter::compile(world, route, filters, by_prefix, unresolved)?;
    let mirrors = filters.mirrors.len();
    if mirrors > MIRRORS_MAX {
        return Err(format!("{mirrors} RequestMirror filters: at most {MIRRORS_MAX} are allowed"));
    }
    let action = match answer {
        Some(_) if !backend_refs.is_empty() => {
            return Err("a rule with RequestRedirect or DirectResponse has no backend: remove its backendRefs".into());
        }
        Some(answer) => answer,
        None => {
            if backend_refs.iter().all(|backend| backend.backend.weight == 0) {
                return Err("the weights of backendRefs sum to zero: give at least one a weight above 0".into());
            }
            let backends = backend_refs
                .iter()
                .map(|backend| http_backend(world, route, backend, by_prefix, unresolved))
                .collect::<Result<_, _>>()?;
            Action::Forward { backends, rewrite }
        }
    };
    let mut compiled = Rule {
        route: route.route_ref(),
        name: name.to_owned(),
        request_headers,
        response_headers,
        filters,
        action,
        request_timeout_ms: None,
        attempt_timeout_ms: None,
        retry: None,
        hedge: None,
    };
    if let Some(route::Timeouts { request, backend_request }) = timeouts {
        let limit = |text: &Option<weft_crds::Duration>, field| match text {
            // 0s: no timeout.
            Some(text) => value::duration(text, field, Duration::ZERO, TIMEOUT_MAX).map(|ms| (ms > 0).then_some(ms)),
            None => Ok(None),
        };
        compiled.request_timeout_ms = limit(request, "timeouts.request")?;
        compiled.attempt_timeout_ms = limit(backend_request, "timeouts.backendRequest")?;
    }
    compiled.retry = retry.as_ref().map(self::retry).transpose()?;
    compiled.hedge = hedge.as_ref().map(|hedge| self::hedge(hedge, &compiled)).transpose()?;
    let matches = if matches.is_empty() {
        vec![Match::default()]
    } else {
        matches.iter().map(condition).collect::<Result<_, _>>()?
    };
    Ok((compiled, matches))
}

/// Compiles a TLS or TCP rule.
pub(super) fn stream(
    world: &World,
    route: Referrer<'_>,
    name: &str,
    backend_refs: &[route::BackendRef],
    unresolved: &mut Vec<(Reason, String)>,
) -> Result<StreamRule, String> {
    if backend_refs.iter().all(|backend| backend.weight == 0) {
        return Err("the weights of backendRefs sum to zero: give at least one a weight above 0".into());
    }
    let backend = |backend| self::backend(world, route, backend, OfBackend::default(), RuleKind::Stream, unresolved);
    Ok(StreamRule {
        route: route.route_ref(),
        name: name.to_owned(),
        backends: backend_refs.iter().map(backend).collect(),
    })
}

/// Compiles a backend of an HTTP rule, with its filters.
fn http_backend(
    world: &World,
    route: Referrer<'_>,
    backend_ref: &route::HttpBackendRef,
    by_prefix: bool,
    unresolved: &mut Vec<(Reason, String)>,
) -> Result<Backend, String> {
    let route::HttpBackendRef { backend, filters } = backend_ref;
    let filters: Vec<_> = filters.iter().map(filter::as_of_rule).collect();
    let of_backend = filter::compile_of_backend(world, route, &filters, by_prefix, unresolved)
        .map_err(|message| format!("backendRef {}: {message}", backend.name))?;
    Ok(self::backend(world, route, backend, of_backend, RuleKind::Http, unresolved))
}

fn matches_connect(condition: &route::HttpMatch) -> bool {
    condition.method == Some(route::Method::Connect)
}

/// Rejects fields that do not apply to a CONNECT tunnel.
fn check_connect(rule: &HttpRule) -> Result<(), String> {
    let HttpRule { name: _, matches, filters, backend_refs, timeouts, retry, hedge } = rule;
    if !matches.iter().all(matches_connect) {
        return Err(
            "a rule that matches CONNECT cannot match other methods: move its other matches to another rule".into()
        );
    }
    if matches.iter().any(|condition| condition.path.is_some() || !condition.query_params.is_empty()) {
        return Err("CONNECT requests have no path and no query: match them by headers".into());
    }
    let is_allowed = |filter: &&route::HttpFilter| {
        matches!(filter.kind, FilterType::ResponseHeaderModifier | FilterType::RateLimit | FilterType::Fault)
    };
    if let Some(other) = filters.iter().find(|filter| !is_allowed(filter)) {
        let allowed = "only ResponseHeaderModifier, RateLimit and Fault are allowed";
        return Err(format!("a rule that matches CONNECT cannot have a filter of type {:?}: {allowed}", other.kind));
    }
    let mut of_backends = backend_refs.iter().flat_map(|backend| &backend.filters).map(|filter| filter.kind);
    if let Some(kind) = of_backends.find(|kind| *kind != BackendFilterType::ResponseHeaderModifier) {
        return Err(format!(
            "in a rule that matches CONNECT, a backendRef cannot have a filter of type {kind:?}: only \
             ResponseHeaderModifier is allowed"
        ));
    }
    let field = match timeouts {
        _ if retry.is_some() => Some("retry"),
        _ if hedge.is_some() => Some("hedge"),
        Some(route::Timeouts { request: _, backend_request: Some(_) }) => Some("timeouts.backendRequest"),
        _ => None,
    };
    match field {
        None => Ok(()),
        Some(field) => Err(format!(
            "a rule that matches CONNECT cannot have {field}: other pods are tried anyway; set connect.timeout in the \
             MeshCluster to limit connection attempts"
        )),
    }
}

/// Compiles the conditions of one match.
pub(super) fn condition(condition: &route::HttpMatch) -> Result<Match, String> {
    let route::HttpMatch { path, headers, query_params, method } = condition;
    let headers = headers.iter().map(value::header).collect::<Result<_, _>>()?;
    let query = query_params.iter().map(value::query).collect::<Result<_, _>>()?;
    Ok(Match {
        rule: 0,
        path: path.as_ref().map(value::path).transpose()?,
        method: method.map(value::method),
        headers: value::first_of_each(headers),
        query: value::first_of_each(query),
    })
}

fn retry(retry: &route::Retry) -> Result<Retry, String> {
    let route::Retry { attempts, codes, methods, backoff } = retry;
    if !(1..=ATTEMPTS_MAX).contains(attempts) {
        return Err(format!("retry.attempts: {attempts} is not between 1 and {ATTEMPTS_MAX}"));
    }
    Ok(Retry {
        attempts: *attempts,
        codes: codes.clone(),
        methods: methods.iter().map(|method| value::method(*method)).collect(),
        backoff_ms: value::duration(backoff, "retry.backoff", BACKOFF_MIN, BACKOFF_MAX)?,
    })
}

/// `rule` has its timeouts already.
fn hedge(hedge: &route::Hedge, rule: &Rule) -> Result<Hedge, String> {
    let route::Hedge { after, attempts } = hedge;
    if matches!(rule.action, Action::Redirect(_) | Action::Respond(_)) {
        return Err("hedge has no effect with RequestRedirect or DirectResponse: remove it".into());
    }
    if !(1..=HEDGES_MAX).contains(attempts) {
        return Err(format!("hedge.attempts: {attempts} is not between 1 and {HEDGES_MAX}"));
    }
    let after_ms = value::duration(after, "hedge.after", AFTER_MIN, AFTER_MAX)?;
    for (field, limit) in
        [("timeouts.request", rule.request_timeout_ms), ("timeouts.backendRequest", rule.attempt_timeout_ms)]
    {
        if limit.is_some_and(|limit| limit <= after_ms) {
            return Err(format!("hedge.after must be shorter than {field}: no hedged request would be sent"));
        }
    }
    Ok(Hedge { after_ms, attempts: *attempts })
}
