//! The action of a rule: a redirect, a response of its own, or a backend that the request is forwarded to. The filters of
//! a backend are applied here: they need to know which one was picked.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, StatusCode, Uri, Version};
use weft_config::PathRewrite;

use crate::decide::{Decision, pick};
use crate::filter::cors;
use crate::http::attempt::{Plan, Upstream};
use crate::http::forward::forward;
use crate::http::guard::RequestGuard;
use crate::http::incoming::Incoming;
use crate::http::mirror::Shadows;
use crate::http::respond::{Answer, Reply, headers_mut};
use crate::http::tunnel;
use crate::matcher::PathMatch;
use crate::reason::Reason;
use crate::table::Cluster;
use crate::table::backend::{Backend, BackendFilters, BackendTarget, Redirect, Rewrite};
use crate::table::route::{Action, Rule};
use crate::upstream::shared_cluster::Kind;

/// Runs the action of the rule that matches a request.
pub(super) async fn run(request: Box<Request<Incoming>>, decision: Decision<'_>, guard: &mut RequestGuard) -> Reply {
    match &decision.rule.action {
        Action::Redirect(redirect) => Err(answer_redirect(redirect, None, decision, guard)),
        Action::Respond { status, body } => Err(answer_directly(*status, body, decision.rule)),
        Action::Forward { backends, total, rewrite } => {
            let backend = pick(backends, guard.worker().rng.borrow_mut().below(*total));
            match backend.filters.as_deref() {
                None => send_to_backend(request, backend, rewrite, decision, guard).await,
                // Boxed: rare.
                Some(filters) => Box::pin(apply_filters(filters, request, backend, rewrite, decision, guard)).await,
            }
        }
    }
}

/// How to forward a request to a cluster, without a rule. The request counts against the limits of the cluster.
pub(super) fn plan<'a>(
    cluster: &Arc<Cluster>,
    subset: Option<&'a str>,
    version: Version,
    guard: &mut RequestGuard,
) -> Result<Plan<'a>, Box<Answer>> {
    let state = guard.worker().cluster(cluster);
    let Some(permit) = state.shared.admit(Kind::Request, cluster.limits.max_requests) else {
        let max = cluster.limits.max_requests.unwrap_or(0);
        let text = format!("the limit of {max} requests in flight to {} is reached", cluster.name);
        return Err(Answer::new(Reason::Overflow, text));
    };
    guard.hold_permit(permit);
    let http2 = cluster.http2 || version == Version::HTTP_2;
    Ok(Plan { http2, ..Plan::new(Upstream::Cluster(state, subset)) })
}

/// Applies the filters of a backend around sending the request to it, where its header edits and rewrite are applied.
async fn apply_filters(
    filters: &BackendFilters,
    request: Box<Request<Incoming>>,
    backend: &Backend,
    rewrite: &Rewrite,
    decision: Decision<'_>,
    guard: &mut RequestGuard,
) -> Reply {
    let BackendFilters { cors, mirrors, rewrite: _, request_edit: _, response_edit: _ } = filters;
    if let Some(cors) = cors
        && cors::preflight(request.method(), request.headers()).is_some()
    {
        return Err(Answer::preflight(cors.preflight_headers(request.headers())));
    }
    let origin = cors.as_ref().and_then(|_| request.headers().get(header::ORIGIN).cloned());
    if let Some(shadows) = Shadows::sample(guard.worker(), mirrors, decision.rule, &request) {
        guard.mirror(shadows);
    }
    let mut reply = send_to_backend(request, backend, rewrite, decision, guard).await;
    if let Some(cors) = cors {
        cors.apply_to_response(origin.as_ref(), headers_mut(&mut reply));
    }
    reply
}

async fn send_to_backend(
    request: Box<Request<Incoming>>,
    backend: &Backend,
    rewrite: &Rewrite,
    decision: Decision<'_>,
    guard: &mut RequestGuard,
) -> Reply {
    let rule = decision.rule;
    let target = match &backend.target {
        BackendTarget::Cluster(target) => target,
        BackendTarget::Redirect(redirect) => {
            return Err(answer_redirect(redirect, backend.filters.as_deref(), decision, guard));
        }
        BackendTarget::Invalid(text) => return Err(Answer::new(Reason::BackendNotFound, text.clone())),
    };
    let Some(cluster) = guard.worker().shared.store.find_cluster(target).await else {
        return Err(Answer::new(Reason::ConfigUnavailable, format!("no configuration of {target} is loaded")));
    };
    guard.log.cluster = Some(cluster.name.clone());
    let subset = target.subset.as_deref();
    if request.method() == Method::CONNECT {
        // Boxed: rare.
        return Box::pin(tunnel::open(request, &cluster, subset, rule, backend.filters.as_deref(), guard)).await;
    }
    let change = backend.filters.as_deref().map(|filters| &filters.rewrite);
    let plan = plan(&cluster, subset, request.version(), guard)?.by_rule(rule, backend.filters.as_deref());
    // A statement of its own: the future would keep what `?` took the plan from.
    let plan = rewritten(plan, rewrite, change, decision, &guard.log.uri)?;
    forward(request, plan, guard).await
}

/// Rewrites the authority and path of a request as its rule says, and its backend where that says anything.
fn rewritten<'a>(
    plan: Plan<'a>,
    rule: &Rewrite,
    backend: Option<&Rewrite>,
    decision: Decision<'_>,
    uri: &Uri,
) -> Result<Plan<'a>, Box<Answer>> {
    let host = backend.and_then(|own| own.hostname.as_ref()).or(rule.hostname.as_ref());
    let path = match backend.and_then(|own| own.path.as_ref()).or(rule.path.as_ref()) {
        None => None,
        Some(change) => Some(
            rewrite_path(change, decision, uri)
                .ok_or_else(|| Answer::new(Reason::BadRequest, "the rewritten path is not a valid path"))?,
        ),
    };
    Ok(Plan { host: host.cloned(), path, ..plan })
}

fn answer_redirect(
    redirect: &Redirect,
    backend: Option<&BackendFilters>,
    decision: Decision<'_>,
    guard: &RequestGuard,
) -> Box<Answer> {
    let log = &guard.log;
    let listener_port = log.downstream.destination.port();
    let Some(location) = location(redirect, decision, &log.uri, log.host.as_ref(), listener_port) else {
        return Answer::new(Reason::BadRequest, "the redirect needs a host, and the request has none");
    };
    let mut answer = Answer::new(Reason::Redirect, "");
    answer.status = Some(redirect.status);
    answer.headers.insert(header::LOCATION, location);
    decision.rule.edit_response(backend, &mut answer.headers);
    answer
}

fn answer_directly(status: StatusCode, body: &Bytes, rule: &Rule) -> Box<Answer> {
    let mut answer = Answer::new(Reason::DirectResponse, "");
    answer.status = Some(status);
    answer.body = body.clone();
    rule.response_edit.apply(&mut answer.headers);
    answer
}

/// The path and query after a rewrite. The query stays.
fn rewrite_path(change: &PathRewrite, decision: Decision<'_>, uri: &Uri) -> Option<PathAndQuery> {
    let path = replace_path(change, decision, uri.path());
    match uri.query() {
        None => path.parse().ok(),
        Some(query) => format!("{path}?{query}").parse().ok(),
    }
}

/// Replaces a path or its prefix, by the Gateway API's table for ReplacePrefixMatch: exactly one slash between the
/// replacement and the rest.
fn replace_path(change: &PathRewrite, decision: Decision<'_>, path: &str) -> String {
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
    decision: Decision<'_>,
    uri: &Uri,
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
    use weft_config as wire;

    fn with_decision(prefix: &str, check: impl FnOnce(Decision<'_>)) {
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
        check(Decision { rule: &routes.rules[0], by });
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
