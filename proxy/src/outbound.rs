//! Connections of this pod's containers to somewhere: routed if that is a Service of the mesh, passed on if not.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, Version};
use hyper::body::Incoming;
use tokio::net::TcpStream;
use weft_config::{PathRewrite, Protocol};

use crate::decide::{Decision, RequestHead, decide, pick};
use crate::detect::Verdict;
use crate::http::body::ResponseBody;
use crate::http::forward::{Finish, Plan, Upstream, forward};
use crate::http::respond::{Answer, Reason};
use crate::http::{head, serve};
use crate::orig_dst::original_destination;
use crate::sniff::{First, Prefixed, SILENCE, Said};
use crate::table::route::{Action, PathMatch, Redirect, Target};
use crate::table::{Cluster, Port};
use crate::tcp;
use crate::telemetry::access::{self, ConnectionNote};
use crate::telemetry::metrics::Direction;
use crate::upstream::endpoint::open;
use crate::upstream::load::Kind;
use crate::worker::Worker;

/// How long a connection to somewhere outside the mesh may take to be made. Source: Istio's default.
const PASSTHROUGH_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Carries one connection.
pub(crate) async fn handle(worker: Rc<Worker>, stream: TcpStream, peer: SocketAddr) {
    let Ok(destination) = original_destination(&stream) else { return };
    let _open = worker.shared.metrics.connection(Direction::Outbound);
    let port = find_port(&worker, destination).await;
    let stream = Prefixed::new(stream);
    match port {
        // Made to the proxy itself and not redirected: carrying it on would come back here for ever.
        None if worker.shared.own_ports.contains(&destination.port()) && is_own(&worker, destination) => {
            refuse(peer, destination, Reason::WrongDestination);
        }
        None => pass(&worker, stream, peer, destination).await,
        Some(port) => carry(&worker, stream, peer, destination, &port).await,
    }
}

/// The Service port that an address is, opening its namespace first if need be.
async fn find_port(worker: &Worker, destination: SocketAddr) -> Option<Arc<Port>> {
    let store = &worker.shared.store;
    let table = store.load();
    if let Some(namespace) = table.unopened(destination.ip()) {
        store.open(namespace).await;
        return store.load().port(destination).cloned();
    }
    table.port(destination).cloned()
}

fn is_own(worker: &Worker, destination: SocketAddr) -> bool {
    let ip = destination.ip();
    ip.is_loopback() || ip.is_unspecified() || worker.shared.pod_ips.is_empty() || worker.shared.pod_ips.contains(&ip)
}

async fn carry(worker: &Rc<Worker>, mut stream: Prefixed, peer: SocketAddr, destination: SocketAddr, port: &Arc<Port>) {
    let patience = worker.shared.timeouts.idle;
    let has_routes = worker.shared.store.load().routes(port).is_some();
    let declared = match port.protocol {
        Protocol::Tcp => Some(false),
        Protocol::Http | Protocol::Http2 => Some(true),
        // Routes speak of HTTP, so that is what the port is.
        Protocol::Detect if has_routes => Some(true),
        Protocol::Detect if worker.shared.opaque_ports.contains(&destination.port()) => Some(false),
        Protocol::Detect => None,
    };
    let http2 = match declared {
        Some(false) => return bytes(worker, stream, peer, destination, &port.cluster, None).await,
        // The client begins: which version is all there is to see.
        Some(true) => match stream.sniff(patience).await {
            // No HTTP at all: nobody who speaks HTTP/2 reads an answer in another version.
            Ok(Said::Spoke(Verdict::Opaque)) if port.protocol == Protocol::Http2 => return,
            Ok(Said::Spoke(verdict)) => verdict == Verdict::Http2,
            _ => return,
        },
        None => match stream.sniff(SILENCE).await {
            Ok(Said::Spoke(Verdict::Http1)) => false,
            Ok(Said::Spoke(Verdict::Http2)) => true,
            Ok(Said::Spoke(_)) => return bytes(worker, stream, peer, destination, &port.cluster, None).await,
            // If no endpoint can be asked, none can speak first, and the client will have to.
            Ok(Said::Nothing) => {
                let upstream = connect(worker, &port.cluster).await.ok();
                match stream.first(upstream.as_ref().map(|(_, stream)| stream), patience).await {
                    First::Client(Verdict::Http1) => false,
                    First::Client(Verdict::Http2) => true,
                    First::Client(_) => return bytes(worker, stream, peer, destination, &port.cluster, None).await,
                    First::Server => return bytes(worker, stream, peer, destination, &port.cluster, upstream).await,
                    First::Nobody => return,
                }
            }
            Ok(Said::Closed) | Err(_) => return,
        },
    };
    let shared = worker.shared.clone();
    let worker = worker.clone();
    let port = port.clone();
    serve::serve(stream, http2, &shared, move |request| {
        respond(worker.clone(), port.clone(), peer, destination, request)
    })
    .await;
}

/// A connection to an endpoint of a cluster; another one is tried if it cannot be made.
async fn connect(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
) -> Result<(SocketAddr, TcpStream), (Reason, Option<SocketAddr>)> {
    const ATTEMPTS: usize = 3;
    let state = worker.cluster(cluster);
    let mut tried = Vec::new();
    loop {
        let endpoint = state
            .pick(None, &tried, &mut worker.chance.borrow_mut(), worker.now())
            .map_err(|_| (Reason::NoEndpoints, None))?;
        match open(endpoint.address, cluster.connect_timeout).await {
            Ok(stream) => return Ok((endpoint.address, stream)),
            Err(_) => {
                tried.push(endpoint.address);
                if tried.len() == ATTEMPTS {
                    return Err((Reason::ConnectFailed, Some(endpoint.address)));
                }
            }
        }
    }
}

/// Carries bytes to a cluster.
async fn bytes(
    worker: &Rc<Worker>,
    mut stream: Prefixed,
    peer: SocketAddr,
    destination: SocketAddr,
    cluster: &Arc<Cluster>,
    upstream: Option<(SocketAddr, TcpStream)>,
) {
    let mut note = ConnectionNote::new(Direction::Outbound, peer, destination, Some(cluster.name.clone()));
    let load = worker.cluster(cluster).load.clone();
    let Some(_permit) = load.admit(Kind::Connection, cluster.limits.max_connections) else {
        note.reason = Some(Reason::Overflow);
        return access::connection(worker, note);
    };
    let connected = match upstream {
        Some(upstream) => Ok(upstream),
        None => connect(worker, cluster).await,
    };
    match connected {
        Ok((address, mut upstream)) => {
            note.endpoint = Some(address);
            note.copied(tcp::copy(&mut stream, &mut upstream, &worker.shared.drain).await);
        }
        Err((reason, endpoint)) => {
            note.endpoint = endpoint;
            note.reason = Some(reason);
        }
    }
    access::connection(worker, note);
}

/// Carries bytes to where they were meant to go, which is nowhere in the mesh.
async fn pass(worker: &Rc<Worker>, mut stream: Prefixed, peer: SocketAddr, destination: SocketAddr) {
    let mut note = ConnectionNote::new(Direction::Outbound, peer, destination, None);
    note.endpoint = Some(destination);
    match open(destination, PASSTHROUGH_TIMEOUT).await {
        Ok(mut upstream) => note.copied(tcp::copy(&mut stream, &mut upstream, &worker.shared.drain).await),
        Err(_) => note.reason = Some(Reason::ConnectFailed),
    }
    access::connection(worker, note);
}

fn refuse(peer: SocketAddr, destination: SocketAddr, reason: Reason) {
    tracing::warn!(src.addr = %peer, dst.addr = %destination, reason = reason.as_str(), "connection refused");
}

/// Answers one request.
async fn respond(
    worker: Rc<Worker>,
    port: Arc<Port>,
    peer: SocketAddr,
    destination: SocketAddr,
    request: Request<Incoming>,
) -> Response<ResponseBody> {
    let host = head::authority(&request);
    let mut finish = Finish::new(worker.clone(), Direction::Outbound, (peer, destination), &request, host.clone());
    if request.method() == Method::CONNECT {
        return Answer::new(Reason::ConnectRefused, "CONNECT is not carried").into_response(finish);
    }
    if let Err(head::BadHead(text)) = head::check(&request) {
        return Answer::new(Reason::BadRequest, text).into_response(finish);
    }
    let table = worker.shared.store.load();
    // The port as it is now: a connection outlives many tables.
    let port = table.port(destination).cloned().unwrap_or(port);
    finish.note.cluster = Some(port.cluster.name.clone());
    let routes = table.routes(&port).cloned();
    let uri = request.uri().clone();
    let Some(routes) = routes.as_deref() else {
        return send(&worker, request, &port.cluster, None, None, Rest::default(), host, finish).await;
    };
    let head =
        RequestHead { method: request.method(), path: uri.path(), query: uri.query(), headers: request.headers() };
    let Some(decision) = decide(routes, &head) else {
        return Answer::new(
            Reason::NoRoute,
            format!("no rule of the routes for {} takes the request", port.cluster.name),
        )
        .into_response(finish);
    };
    let rule = decision.rule;
    finish.decided(rule.id, &rule.origin);
    match &rule.action {
        Action::Redirect(redirect) => match location(redirect, &decision, &uri, host.as_ref(), destination.port()) {
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
            let backend = pick(backends, worker.chance.borrow_mut().below(*total));
            let target = match &backend.target {
                Ok(target) => target,
                Err(reason) => return Answer::new(Reason::BackendNotFound, reason.clone()).into_response(finish),
            };
            let cluster = match find_cluster(&worker, target).await {
                Some(cluster) => cluster,
                None => {
                    let text = format!("the configuration of {}/{} is not there", target.namespace, target.service.0);
                    return Answer::new(Reason::NoEndpoints, text).into_response(finish);
                }
            };
            finish.note.cluster = Some(cluster.name.clone());
            let path = match &rewrite.path {
                None => None,
                Some(change) => match rewritten(change, &decision, &uri) {
                    Some(path) => Some(path),
                    None => return Answer::new(Reason::BadRequest, "the rewritten path is none").into_response(finish),
                },
            };
            let host = rewrite.hostname.clone().or(host);
            let rest = Rest { rule: Some(rule) };
            send(&worker, request, &cluster, target.subset.clone(), path, rest, host, finish).await
        }
    }
}

/// The rule whose timeouts, retries and edits a request goes by, if a rule took it.
#[derive(Default)]
struct Rest<'a> {
    rule: Option<&'a crate::table::route::Rule>,
}

#[expect(clippy::too_many_arguments, reason = "the parts of one request, put together in one place")]
async fn send(
    worker: &Rc<Worker>,
    request: Request<Incoming>,
    cluster: &Arc<Cluster>,
    subset: Option<String>,
    path: Option<PathAndQuery>,
    rest: Rest<'_>,
    host: Option<HeaderValue>,
    mut finish: Box<Finish>,
) -> Response<ResponseBody> {
    let state = worker.cluster(cluster);
    match state.load.admit(Kind::Request, cluster.limits.max_requests) {
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
    let rule = rest.rule;
    let plan = Plan {
        host,
        path,
        http2: cluster.http2 || request.version() == Version::HTTP_2,
        request_edit: rule.map(|rule| &rule.request_edit),
        response_edit: rule.map(|rule| &rule.response_edit),
        request_timeout: rule.and_then(|rule| rule.request_timeout),
        attempt_timeout: rule.and_then(|rule| rule.attempt_timeout),
        retry: rule.and_then(|rule| rule.retry.as_ref()),
        upstream: Upstream::Cluster(state, subset),
    };
    forward(request, plan, finish).await
}

/// The cluster that a route names, opening its namespace first if need be.
async fn find_cluster(worker: &Worker, target: &Target) -> Option<Arc<Cluster>> {
    let store = &worker.shared.store;
    let table = store.load();
    if !table.namespaces.contains_key(&target.namespace) {
        store.open(&target.namespace).await;
        return store.load().cluster(target).cloned();
    }
    table.cluster(target).cloned()
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
