//! Outbound requests: picks the rule of the port's routes that matches, applies its filters, and runs its action.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, Version};
use tokio::time::Instant;
use weft_codec::http1::framing::BadHead;
use weft_config::PathRewrite;

use crate::decide::{Decision, decide, pick};
use crate::downstream::Downstream;
use crate::filter::{Filters, cors};
use crate::http::attempt::{Plan, Upstream};
use crate::http::forward::forward;
use crate::http::guard::RequestGuard;
use crate::http::incoming::Incoming;
use crate::http::mirror::Shadows;
use crate::http::respond::Answer;
use crate::http::response_body::ResponseBody;
use crate::http::{head, tunnel};
use crate::matcher::{PathMatch, RequestHead};
use crate::reason::Reason;
use crate::table::route::{Action, Redirect, Rule};
use crate::table::{Cluster, Port};
use crate::upstream::load::Kind;
use crate::worker::Worker;

/// Responds to one request.
pub(super) async fn respond(
    downstream: Rc<Downstream>,
    port: Arc<Port>,
    request: Box<Request<Incoming>>,
) -> Response<ResponseBody> {
    let (worker, destination) = (&downstream.worker, downstream.destination);
    let host = head::authority(&request);
    let mut guard = RequestGuard::new(downstream.clone(), &request, host.clone());
    if worker.shared.memory.is_exhausted() {
        return Answer::new(Reason::Overload, "the memory of the proxy is exhausted").into_response(guard);
    }
    if let Err(BadHead(text)) = head::check(&request) {
        return Answer::new(Reason::BadRequest, text).into_response(guard);
    }
    let is_connect = request.method() == Method::CONNECT;
    if is_connect && let Err(BadHead(text)) = head::check_connect(&request) {
        return Answer::new(Reason::BadRequest, text).into_response(guard);
    }
    let table = worker.shared.store.load();
    // The newest version of the port: a connection outlives many tables.
    let port = table.port(destination).cloned().unwrap_or(port);
    guard.log.cluster = Some(port.cluster.name.clone());
    let routes = table.routes(&port).cloned();
    let uri = request.uri().clone();
    let Some(routes) = routes.as_deref() else {
        if is_connect {
            return tunnel::refusal().into_response(guard);
        }
        return send_to_cluster(worker, request, &port.cluster, None, None, None, host, guard).await;
    };
    let head =
        RequestHead { method: request.method(), path: uri.path(), query: uri.query(), headers: request.headers() };
    // A CORS preflight is matched as the request that it announces.
    let preflight_method = cors::preflight(request.method(), request.headers());
    let preflight_decision =
        preflight_method.as_ref().and_then(|method| decide(routes, &RequestHead { method, ..head }));
    let preflight_decision =
        preflight_decision.filter(|decision| decision.rule.filters.as_ref().is_some_and(|it| it.cors.is_some()));
    let Some(decision) = preflight_decision.or_else(|| decide(routes, &head)) else {
        if is_connect {
            return tunnel::refusal().into_response(guard);
        }
        return Answer::new(
            Reason::NoRoute,
            format!("no rule of the routes for {} matches the request", port.cluster.name),
        )
        .into_response(guard);
    };
    guard.set_rule(decision.rule.id, &decision.rule.name);
    match decision.rule.filters.as_deref() {
        None => run_action(worker, request, &decision, &uri, host, destination.port(), guard).await,
        Some(filters) => {
            // Boxed, so that requests without filters do not carry the space for them.
            Box::pin(apply_filters(worker, request, filters, &decision, &uri, host, destination.port(), guard)).await
        }
    }
}

/// Applies the filters of a rule, then runs its action.
#[expect(clippy::too_many_arguments, reason = "the parts of one request, and the filters that it goes through")]
async fn apply_filters(
    worker: &Rc<Worker>,
    request: Box<Request<Incoming>>,
    filters: &Filters,
    decision: &Decision<'_>,
    uri: &http::Uri,
    host: Option<HeaderValue>,
    port: u16,
    guard: Box<RequestGuard>,
) -> Response<ResponseBody> {
    if let Some(cors) = &filters.cors
        && cors::preflight(request.method(), request.headers()).is_some()
    {
        let (reason, headers) = match cors.preflight_headers(request.headers()) {
            Ok(headers) => (Reason::CorsPreflight, headers),
            Err(headers) => (Reason::CorsRefused, headers),
        };
        return Answer { headers, ..Answer::new(reason, "") }.into_response(guard);
    }
    let origin = filters.cors.as_ref().and_then(|_| request.headers().get(header::ORIGIN).cloned());
    let limit = filters.rate_limit.as_ref();
    let limit_status = limit.map(|limit| {
        // The exact time: many requests may be admitted within one clock tick.
        let (peer, now) = (guard.log.downstream.peer.ip(), worker.shared.started.elapsed());
        limit.take(&worker.shared.limiters, request.headers(), uri.query(), peer, now)
    });
    let mut response = match limit_status {
        Some(limit_status) if !limit_status.admitted => {
            Answer::new(Reason::RateLimited, "the rate limit of the rule is exceeded").into_response(guard)
        }
        _ => inject_and_mirror(worker, request, filters, decision, uri, host, port, guard).await,
    };
    if let Some(limit_status) = limit_status {
        limit_status.add_headers(response.headers_mut());
    }
    if let Some(cors) = &filters.cors {
        cors.apply_to_response(origin.as_ref(), response.headers_mut());
    }
    response
}

/// Applies the fault and mirror filters, then runs the action.
#[expect(clippy::too_many_arguments, reason = "the parts of one request, and the filters that it goes through")]
async fn inject_and_mirror(
    worker: &Rc<Worker>,
    request: Box<Request<Incoming>>,
    filters: &Filters,
    decision: &Decision<'_>,
    uri: &http::Uri,
    host: Option<HeaderValue>,
    port: u16,
    mut guard: Box<RequestGuard>,
) -> Response<ResponseBody> {
    if let Some(fault) = &filters.fault {
        let injected = fault.sample(&mut worker.rng.borrow_mut());
        if let Some(delay) = injected.delay {
            guard.log.fault_delay = Some(delay);
            let (begun, until) = (guard.log.started, Instant::now() + delay);
            let deadline = decision.rule.request_timeout.map(|timeout| begun + timeout);
            tokio::time::sleep_until(deadline.map_or(until, |deadline| deadline.min(until))).await;
            if deadline.is_some_and(|deadline| deadline < until) {
                let text = "the request timeout expired during an injected delay";
                return Answer::new(Reason::RequestTimeout, text).into_response(guard);
            }
        }
        if let Some(status) = injected.abort {
            let answer = Answer::new(Reason::Fault, "an injected fault of the rule");
            return Answer { status: Some(status), ..answer }.into_response(guard);
        }
    }
    // An upgraded connection cannot be mirrored: its responses drive the client.
    if !filters.mirrors.is_empty() && head::wants_upgrade(request.version(), request.headers()).is_none() {
        let http2 = request.version() == Version::HTTP_2;
        if let Some(shadows) = Shadows::sample(worker, &filters.mirrors, decision.rule, http2) {
            guard.mirror(shadows);
        }
    }
    run_action(worker, request, decision, uri, host, port, guard).await
}

/// Runs the action of a rule.
async fn run_action(
    worker: &Rc<Worker>,
    request: Box<Request<Incoming>>,
    decision: &Decision<'_>,
    uri: &http::Uri,
    host: Option<HeaderValue>,
    port: u16,
    mut guard: Box<RequestGuard>,
) -> Response<ResponseBody> {
    let rule = decision.rule;
    match &rule.action {
        Action::Redirect(redirect) => match location(redirect, decision, uri, host.as_ref(), port) {
            Some(location) => {
                let mut answer = Answer::new(Reason::Redirect, "");
                answer.status = Some(redirect.status);
                answer.headers.insert(header::LOCATION, location);
                rule.response_edit.apply(&mut answer.headers);
                answer.into_response(guard)
            }
            None => Answer::new(Reason::BadRequest, "the redirect needs a host, and the request has none")
                .into_response(guard),
        },
        Action::Respond { status, body } => {
            let mut answer = Answer {
                reason: Reason::DirectResponse,
                status: Some(*status),
                headers: HeaderMap::new(),
                body: body.clone(),
            };
            rule.response_edit.apply(&mut answer.headers);
            answer.into_response(guard)
        }
        Action::Forward { backends, total, rewrite } => {
            let backend = pick(backends, worker.rng.borrow_mut().below(*total));
            let target = match &backend.target {
                Ok(target) => target,
                Err(reason) => return Answer::new(Reason::BackendNotFound, reason.clone()).into_response(guard),
            };
            let cluster = match worker.shared.store.find_cluster(target).await {
                Some(cluster) => cluster,
                None => {
                    let text = format!("the configuration of {}/{} is not loaded", target.namespace, target.service.0);
                    return Answer::new(Reason::NoEndpoints, text).into_response(guard);
                }
            };
            guard.log.cluster = Some(cluster.name.clone());
            if request.method() == Method::CONNECT {
                // Boxed, so that requests do not carry the space for tunnels.
                return Box::pin(tunnel::open(request, &cluster, target.subset.as_deref(), rule, guard)).await;
            }
            let path = match &rewrite.path {
                None => None,
                Some(change) => match rewrite_path(change, decision, uri) {
                    Some(path) => Some(path),
                    None => {
                        return Answer::new(Reason::BadRequest, "the rewritten path is not a valid path")
                            .into_response(guard);
                    }
                },
            };
            let host = rewrite.hostname.clone().or(host);
            send_to_cluster(worker, request, &cluster, target.subset.clone(), path, Some(rule), host, guard).await
        }
    }
}

/// Forwards a request to a cluster, with the timeouts, retries and header edits of the matching rule, if any.
#[expect(clippy::too_many_arguments, reason = "the parts of one request, put together in one place")]
async fn send_to_cluster(
    worker: &Rc<Worker>,
    request: Box<Request<Incoming>>,
    cluster: &Arc<Cluster>,
    subset: Option<String>,
    path: Option<PathAndQuery>,
    rule: Option<&Rule>,
    host: Option<HeaderValue>,
    mut guard: Box<RequestGuard>,
) -> Response<ResponseBody> {
    let state = worker.cluster(cluster);
    match state.shared.admit(Kind::Request, cluster.limits.max_requests) {
        Some(permit) => guard.hold_permit(permit),
        None => {
            let text = format!(
                "the limit of {} requests in flight to {} is reached",
                cluster.limits.max_requests.unwrap_or(0),
                cluster.name
            );
            return Answer::new(Reason::Overflow, text).into_response(guard);
        }
    }
    let plan = Plan {
        host,
        path,
        http2: cluster.http2 || request.version() == Version::HTTP_2,
        rule,
        protected: rule.and_then(|rule| rule.protected.as_ref()),
        request_timeout: rule.and_then(|rule| rule.request_timeout),
        attempt_timeout: rule.and_then(|rule| rule.attempt_timeout),
        retry: rule.and_then(|rule| rule.retry.as_ref()),
        upstream: Upstream::Cluster(state, subset),
    };
    forward(request, plan, guard).await
}

/// The path and query after a rewrite. The query stays.
fn rewrite_path(change: &PathRewrite, decision: &Decision<'_>, uri: &http::Uri) -> Option<PathAndQuery> {
    let path = replace_path(change, decision, uri.path());
    match uri.query() {
        None => path.parse().ok(),
        Some(query) => format!("{path}?{query}").parse().ok(),
    }
}

/// Replaces a path or its prefix, by the Gateway API's table for ReplacePrefixMatch: exactly one slash between the
/// replacement and the rest.
fn replace_path(change: &PathRewrite, decision: &Decision<'_>, path: &str) -> String {
    let replacement = match change {
        PathRewrite::Full(full) => return full.clone(),
        PathRewrite::Prefix(prefix) => prefix,
    };
    let matched = match &decision.by.path {
        Some(PathMatch::Prefix(prefix)) => prefix.as_str(),
        _ => "",
    };
    let rest = path.strip_prefix(matched).unwrap_or(path);
    let path = if rest.is_empty() {
        replacement.clone()
    } else {
        format!("{}/{}", replacement.trim_end_matches('/'), rest.trim_start_matches('/'))
    };
    if path.is_empty() { "/".to_owned() } else { path }
}

/// The `Location` of a redirect.
fn location(
    redirect: &Redirect,
    decision: &Decision<'_>,
    uri: &http::Uri,
    host: Option<&HeaderValue>,
    listener_port: u16,
) -> Option<HeaderValue> {
    let authority = host.and_then(|host| host.to_str().ok()).and_then(|host| host.parse::<http::uri::Authority>().ok());
    let hostname = redirect.hostname.as_deref().or(authority.as_ref().map(|authority| authority.host()))?;
    let scheme = redirect.scheme.as_deref().unwrap_or("http");
    let well_known = if scheme == "https" { 443 } else { 80 };
    let port = match (redirect.port, &redirect.scheme) {
        (Some(port), _) => port,
        (None, Some(_)) => well_known,
        (None, None) => listener_port,
    };
    let path = redirect
        .path
        .as_ref()
        .map_or_else(|| uri.path().to_owned(), |change| replace_path(change, decision, uri.path()));
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let port = if port == well_known { String::new() } else { format!(":{port}") };
    HeaderValue::try_from(format!("{scheme}://{hostname}{port}{path}{query}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matcher::Match;
    use crate::table::route::Routes;
    use http::StatusCode;
    use weft_config as wire;

    fn with_decision(prefix: &str, check: impl FnOnce(&Decision<'_>)) {
        let table = wire::RouteTable {
            matches: vec![wire::Match { path: Some(wire::PathMatch::Prefix(prefix.into())), ..wire::Match::default() }],
            rules: vec![
                serde_json::from_value(serde_json::json!({
                    "route": {"namespace": "n", "name": "r"}, "name": "0", "action": {"respond": {"status": 200}}
                }))
                .expect("a rule"),
            ],
            ..wire::RouteTable::default()
        };
        let routes = Routes::compile(table).expect("compiles");
        let by: &Match = &routes.matches[0];
        check(&Decision { rule: &routes.rules[0], by });
    }

    #[test]
    fn prefix_rewrites_follow_the_gateway_api() {
        for (path, prefix, replacement, expected) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/any", "/", "/v1", "/v1/any"),
        ] {
            with_decision(prefix, |decision| {
                let changed = replace_path(&PathRewrite::Prefix(replacement.into()), decision, path);
                assert_eq!(changed, expected, "{path} with {prefix} replaced by {replacement:?}");
            });
        }
    }

    #[test]
    fn redirect_locations_omit_default_ports() {
        let redirect = |scheme: Option<&str>, hostname: Option<&str>, port| Redirect {
            scheme: scheme.map(Into::into),
            hostname: hostname.map(Into::into),
            port,
            path: None,
            status: StatusCode::FOUND,
        };
        for (redirect, expected) in [
            (redirect(None, None, None), "http://reviews.shop:9080/a?b=c"),
            (redirect(Some("https"), None, None), "https://reviews.shop/a?b=c"),
            (redirect(Some("https"), Some("x.example"), Some(8443)), "https://x.example:8443/a?b=c"),
            (redirect(None, Some("x.example"), Some(80)), "http://x.example/a?b=c"),
        ] {
            with_decision("/", |decision| {
                let host = HeaderValue::from_static("reviews.shop:9080");
                let location = location(&redirect, decision, &"/a?b=c".parse().expect("uri"), Some(&host), 9080);
                assert_eq!(location.as_ref().and_then(|value| value.to_str().ok()), Some(expected));
            });
        }
    }
}
