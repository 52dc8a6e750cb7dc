//! What becomes of a request: a rule of the port's routes decides, its filters are gone through, and its action is done.

use std::rc::Rc;
use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, Version};
use tokio::time::Instant;
use weft_config::PathRewrite;

use super::find_cluster;
use crate::decide::{Decision, RequestHead, decide, pick};
use crate::downstream::Downstream;
use crate::filter::mirror::Copies;
use crate::filter::{Filters, cors};
use crate::http::body::ResponseBody;
use crate::http::forward::{Plan, RequestGuard, Upstream, forward};
use crate::http::incoming::Incoming;
use crate::http::respond::{Answer, Reason};
use crate::http::{head, tunnel};
use crate::table::route::{Action, PathMatch, Redirect, Rule};
use crate::table::{Cluster, Port};
use crate::upstream::load::Kind;
use crate::worker::Worker;

/// Answers one request.
pub(super) async fn respond(
    downstream: Rc<Downstream>,
    port: Arc<Port>,
    request: Box<Request<Incoming>>,
) -> Response<ResponseBody> {
    let (worker, destination) = (&downstream.worker, downstream.destination);
    let host = head::authority(&request);
    let mut finish = RequestGuard::new(downstream.clone(), &request, host.clone());
    if worker.shared.memory.is_exhausted() {
        return Answer::new(Reason::Overload, "the proxy has no memory to spare").into_response(finish);
    }
    if let Err(head::BadHead(text)) = head::check(&request) {
        return Answer::new(Reason::BadRequest, text).into_response(finish);
    }
    let connects = request.method() == Method::CONNECT;
    if connects && let Err(head::BadHead(text)) = head::check_connect(&request) {
        return Answer::new(Reason::BadRequest, text).into_response(finish);
    }
    let table = worker.shared.store.load();
    // The port as it is now: a connection outlives many tables.
    let port = table.port(destination).cloned().unwrap_or(port);
    finish.log.cluster = Some(port.cluster.name.clone());
    let routes = table.routes(&port).cloned();
    let uri = request.uri().clone();
    let Some(routes) = routes.as_deref() else {
        if connects {
            return tunnel::refusal().into_response(finish);
        }
        return send(worker, request, &port.cluster, None, None, None, host, finish).await;
    };
    let head =
        RequestHead { method: request.method(), path: uri.path(), query: uri.query(), headers: request.headers() };
    // A preflight is held against the routes as the request that it asks about.
    let asked = cors::preflight(request.method(), request.headers());
    let answering = asked.as_ref().and_then(|method| decide(routes, &RequestHead { method, ..head }));
    let answering = answering.filter(|decision| decision.rule.filters.as_ref().is_some_and(|it| it.cors.is_some()));
    let Some(decision) = answering.or_else(|| decide(routes, &head)) else {
        if connects {
            return tunnel::refusal().into_response(finish);
        }
        return Answer::new(
            Reason::NoRoute,
            format!("no rule of the routes for {} takes the request", port.cluster.name),
        )
        .into_response(finish);
    };
    finish.set_rule(decision.rule.id, &decision.rule.origin);
    match decision.rule.filters.as_deref() {
        None => act(worker, request, &decision, &uri, host, destination.port(), finish).await,
        Some(filters) => {
            // Apart, so that requests without filters do not carry the room for them.
            Box::pin(filtered(worker, request, filters, &decision, &uri, host, destination.port(), finish)).await
        }
    }
}

/// Does what a rule with filters does.
#[expect(clippy::too_many_arguments, reason = "the parts of one request, and the filters that it goes through")]
async fn filtered(
    worker: &Rc<Worker>,
    request: Box<Request<Incoming>>,
    filters: &Filters,
    decision: &Decision<'_>,
    uri: &http::Uri,
    host: Option<HeaderValue>,
    port: u16,
    finish: Box<RequestGuard>,
) -> Response<ResponseBody> {
    if let Some(cors) = &filters.cors
        && cors::preflight(request.method(), request.headers()).is_some()
    {
        let (reason, headers) = match cors.preflight_headers(request.headers()) {
            Ok(headers) => (Reason::CorsPreflight, headers),
            Err(headers) => (Reason::CorsRefused, headers),
        };
        return Answer { headers, ..Answer::new(reason, "") }.into_response(finish);
    }
    let origin = filters.cors.as_ref().and_then(|_| request.headers().get(header::ORIGIN).cloned());
    let limit = filters.rate_limit.as_ref();
    let taken = limit.map(|limit| {
        // Exactly: within a tick, many requests may be let pass.
        let (peer, now) = (finish.log.downstream.peer.ip(), worker.shared.started.elapsed());
        limit.take(&worker.shared.limiters, request.headers(), uri.query(), peer, now)
    });
    let mut response = match taken {
        Some(taken) if !taken.admitted => {
            Answer::new(Reason::RateLimited, "requests come faster than the rule lets pass").into_response(finish)
        }
        _ => passed(worker, request, filters, decision, uri, host, port, finish).await,
    };
    if let Some(taken) = taken {
        taken.mark(response.headers_mut());
    }
    if let Some(cors) = &filters.cors {
        cors.mark(origin.as_ref(), response.headers_mut());
    }
    response
}

/// Does what is left for requests that go on.
#[expect(clippy::too_many_arguments, reason = "the parts of one request, and the filters that it goes through")]
async fn passed(
    worker: &Rc<Worker>,
    request: Box<Request<Incoming>>,
    filters: &Filters,
    decision: &Decision<'_>,
    uri: &http::Uri,
    host: Option<HeaderValue>,
    port: u16,
    mut finish: Box<RequestGuard>,
) -> Response<ResponseBody> {
    if let Some(fault) = &filters.fault {
        let drawn = fault.draw(&mut worker.rng.borrow_mut());
        if let Some(delay) = drawn.delay {
            finish.log.fault_delay = Some(delay);
            let (begun, until) = (finish.log.started, Instant::now() + delay);
            let deadline = decision.rule.request_timeout.map(|timeout| begun + timeout);
            tokio::time::sleep_until(deadline.map_or(until, |deadline| deadline.min(until))).await;
            if deadline.is_some_and(|deadline| deadline < until) {
                let text = "the time for the request was over while a fault made it wait";
                return Answer::new(Reason::RequestTimeout, text).into_response(finish);
            }
        }
        if let Some(status) = drawn.abort {
            let answer = Answer::new(Reason::Fault, "the rule makes this request fail on purpose");
            return Answer { status: Some(status), ..answer }.into_response(finish);
        }
    }
    // Whatever a connection is upgraded to, nobody could answer for its copy.
    if !filters.mirrors.is_empty() && head::wants_upgrade(request.version(), request.headers()).is_none() {
        let http2 = request.version() == Version::HTTP_2;
        if let Some(copies) = Copies::draw(worker, &filters.mirrors, decision.rule, http2) {
            finish.mirror(copies);
        }
    }
    act(worker, request, decision, uri, host, port, finish).await
}

/// Does what a rule says.
async fn act(
    worker: &Rc<Worker>,
    request: Box<Request<Incoming>>,
    decision: &Decision<'_>,
    uri: &http::Uri,
    host: Option<HeaderValue>,
    port: u16,
    mut finish: Box<RequestGuard>,
) -> Response<ResponseBody> {
    let rule = decision.rule;
    match &rule.action {
        Action::Redirect(redirect) => match location(redirect, decision, uri, host.as_ref(), port) {
            Some(location) => {
                let mut answer = Answer::new(Reason::Redirect, "");
                answer.status = Some(redirect.status);
                answer.headers.insert(header::LOCATION, location);
                rule.response_edit.apply(&mut answer.headers);
                answer.into_response(finish)
            }
            None => Answer::new(Reason::BadRequest, "the redirection has no host to go to").into_response(finish),
        },
        Action::Respond { status, body } => {
            let mut answer = Answer {
                reason: Reason::DirectResponse,
                status: Some(*status),
                headers: HeaderMap::new(),
                body: body.clone(),
            };
            rule.response_edit.apply(&mut answer.headers);
            answer.into_response(finish)
        }
        Action::Forward { backends, total, rewrite } => {
            let backend = pick(backends, worker.rng.borrow_mut().below(*total));
            let target = match &backend.target {
                Ok(target) => target,
                Err(reason) => return Answer::new(Reason::BackendNotFound, reason.clone()).into_response(finish),
            };
            let cluster = match find_cluster(worker, target).await {
                Some(cluster) => cluster,
                None => {
                    let text = format!("the configuration of {}/{} is not there", target.namespace, target.service.0);
                    return Answer::new(Reason::NoEndpoints, text).into_response(finish);
                }
            };
            finish.log.cluster = Some(cluster.name.clone());
            if request.method() == Method::CONNECT {
                // Apart, so that requests do not carry the room for tunnels.
                return Box::pin(tunnel::open(request, &cluster, target.subset.as_deref(), rule, finish)).await;
            }
            let path = match &rewrite.path {
                None => None,
                Some(change) => match rewritten(change, decision, uri) {
                    Some(path) => Some(path),
                    None => return Answer::new(Reason::BadRequest, "the rewritten path is none").into_response(finish),
                },
            };
            let host = rewrite.hostname.clone().or(host);
            send(worker, request, &cluster, target.subset.clone(), path, Some(rule), host, finish).await
        }
    }
}

/// Sends a request on, by the timeouts, retries and edits of the rule that took it, if one did.
#[expect(clippy::too_many_arguments, reason = "the parts of one request, put together in one place")]
async fn send(
    worker: &Rc<Worker>,
    request: Box<Request<Incoming>>,
    cluster: &Arc<Cluster>,
    subset: Option<String>,
    path: Option<PathAndQuery>,
    rule: Option<&Rule>,
    host: Option<HeaderValue>,
    mut finish: Box<RequestGuard>,
) -> Response<ResponseBody> {
    let state = worker.cluster(cluster);
    match state.shared.admit(Kind::Request, cluster.limits.max_requests) {
        Some(permit) => finish.hold(permit),
        None => {
            let text = format!(
                "{} requests to {} are in flight already",
                cluster.limits.max_requests.unwrap_or(0),
                cluster.name
            );
            return Answer::new(Reason::Overflow, text).into_response(finish);
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
    forward(request, plan, finish).await
}

/// A path with the change made; the query stays.
fn rewritten(change: &PathRewrite, decision: &Decision<'_>, uri: &http::Uri) -> Option<PathAndQuery> {
    let path = changed_path(change, decision, uri.path());
    match uri.query() {
        None => path.parse().ok(),
        Some(query) => format!("{path}?{query}").parse().ok(),
    }
}

/// The table of the Gateway API for ReplacePrefixMatch: exactly one slash between what replaces and what stays.
fn changed_path(change: &PathRewrite, decision: &Decision<'_>, path: &str) -> String {
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

/// Where a redirection leads.
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
        .map_or_else(|| uri.path().to_owned(), |change| changed_path(change, decision, uri.path()));
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let port = if port == well_known { String::new() } else { format!(":{port}") };
    HeaderValue::try_from(format!("{scheme}://{hostname}{port}{path}{query}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::route::{Match, Routes};
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
    fn prefixes_are_replaced_as_in_the_gateway_api() {
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
                let changed = changed_path(&PathRewrite::Prefix(replacement.into()), decision, path);
                assert_eq!(changed, expected, "{path} with {prefix} replaced by {replacement:?}");
            });
        }
    }

    #[test]
    fn locations_leave_out_what_is_implied() {
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
