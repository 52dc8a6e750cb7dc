//! Connections of this pod's containers to somewhere: routed if that is a Service of the mesh, passed on if not.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method, Request, Response, Version};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;
use weft_config::{PathRewrite, Protocol};

use crate::balance::affinity::Affinity;
use crate::balance::outlier::Outcome;
use crate::decide::{Decision, RequestHead, decide, pick};
use crate::detect::Verdict;
use crate::downstream::Downstream;
use crate::filter::mirror::Copies;
use crate::filter::{Filters, cors};
use crate::http::body::ResponseBody;
use crate::http::forward::{Finish, Plan, Upstream, forward};
use crate::http::incoming::Incoming;
use crate::http::respond::{Answer, Reason};
use crate::http::{head, serve, tunnel};
use crate::sni::Hello;
use crate::sniff::{First, Prefixed, SILENCE, Said};
use crate::stream::Stream;
use crate::table::route::{Action, PathMatch, Redirect, Routes, StreamRule, Streams, Target};
use crate::table::{Cluster, Port};
use crate::tcp;
use crate::telemetry::access::{self, ConnectionNote};
use crate::upstream::endpoint::open;
use crate::upstream::load::Kind;
use crate::worker::Worker;

/// How long a connection to somewhere outside the mesh may take to be made. Source: Istio's default.
const PASSTHROUGH_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// The fatal TLS alert that there is no such server here (RFC 6066 3).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// A connection that carries HTTP.
struct Http {
    stream: Prefixed,
    http2: bool,
    port: Arc<Port>,
}

/// Carries one connection.
pub(crate) async fn handle(downstream: Rc<Downstream>, stream: TcpStream) {
    // In a box that is given back when it is known that the connection carries HTTP: most do, for most of their time.
    let Some(Http { stream, http2, port }) = Box::pin(begin(&downstream, stream)).await else { return };
    let answering = downstream.clone();
    let handle = move |request| respond(answering.clone(), port.clone(), request);
    serve::serve(stream, http2, downstream, handle).await;
}

/// Finds out what a connection carries. None: no HTTP, and it was carried to its end.
async fn begin(downstream: &Rc<Downstream>, stream: TcpStream) -> Option<Http> {
    let Downstream { worker, peer, destination, .. } = &**downstream;
    let port = find_port(worker, *destination).await;
    let stream = Prefixed::new(Stream::Plain(stream));
    match port {
        // Made to the proxy itself and not redirected: carrying it on would come back here for ever.
        None if worker.shared.own_ports.contains(&destination.port()) && is_own(worker, *destination) => {
            tracing::warn!(src.addr = %peer, dst.addr = %destination, reason = Reason::WrongDestination.as_str(), "connection refused");
            None
        }
        // In boxes, here and below: most connections carry HTTP, and are not to take room for bytes.
        None => {
            Box::pin(pass(downstream, stream)).await;
            None
        }
        Some(port) => {
            let routes = worker.shared.store.load().routes(&port).cloned();
            match routes.as_deref().and_then(|routes| Some((routes, routes.streams.as_ref()?))) {
                Some((routes, streams)) => Box::pin(by_rules(downstream, stream, port, routes, streams)).await,
                None => by_port(downstream, stream, port, routes.is_some()).await,
            }
        }
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

/// Goes by what the port is declared to carry, or else by what is seen.
async fn by_port(downstream: &Rc<Downstream>, mut stream: Prefixed, port: Arc<Port>, has_routes: bool) -> Option<Http> {
    let shared = &downstream.worker.shared;
    let declared = match port.protocol {
        Protocol::Tcp => Some(false),
        Protocol::Http | Protocol::Http2 => Some(true),
        // Routes speak of HTTP, so that is what the port is.
        Protocol::Detect if has_routes => Some(true),
        Protocol::Detect if shared.opaque_ports.contains(&downstream.destination.port()) => Some(false),
        Protocol::Detect => None,
    };
    let (verdict, upstream) = match declared {
        Some(false) => (Verdict::Opaque, None),
        // The client begins: which version is all there is to see.
        Some(true) => match stream.sniff(shared.timeouts.idle).await {
            // No HTTP at all: nobody who speaks HTTP/2 reads an answer in another version.
            Ok(Said::Spoke(Verdict::Opaque)) if port.protocol == Protocol::Http2 => return None,
            Ok(Said::Spoke(Verdict::Http2)) => (Verdict::Http2, None),
            Ok(Said::Spoke(_)) => (Verdict::Http1, None),
            _ => return None,
        },
        None => match stream.sniff(SILENCE).await {
            Ok(Said::Spoke(verdict)) => (verdict, None),
            Ok(Said::Nothing) => match Box::pin(who_speaks(downstream, &mut stream, &port.cluster, None)).await {
                (First::Client(verdict), _) => (verdict, None),
                (First::Server, upstream) => (Verdict::Opaque, upstream),
                (First::Nobody, _) => return None,
            },
            Ok(Said::Closed) | Err(_) => return None,
        },
    };
    match verdict {
        Verdict::Http1 => Some(Http { stream, http2: false, port }),
        Verdict::Http2 => Some(Http { stream, http2: true, port }),
        Verdict::Opaque | Verdict::NeedMore => {
            Box::pin(bytes(stream, ConnectionNote::new(downstream), &port.cluster, None, upstream)).await;
            None
        }
    }
}

/// Goes by a port's rules for connections: TLS by the name that the client asks for, HTTP by the rules for that, and
/// everything else by the rule for bytes. Where there are no rules of a kind, what speaks it is bytes.
async fn by_rules(
    downstream: &Rc<Downstream>,
    mut stream: Prefixed,
    port: Arc<Port>,
    routes: &Routes,
    streams: &Streams,
) -> Option<Http> {
    let patience = downstream.worker.shared.timeouts.idle;
    let mut note = ConnectionNote::new(downstream);
    // A port that is declared to carry something else is not taken for HTTP.
    let is_http = port.protocol != Protocol::Tcp && (!routes.matches.is_empty() || streams.others().is_none());
    if !streams.by_name() && !is_http {
        by_rule(stream, note, streams.others()).await;
        return None;
    }
    let silence = if streams.others().is_some() { SILENCE } else { patience };
    let verdict = match (stream.sniff(silence).await, streams.others()) {
        (Ok(Said::Spoke(verdict)), _) => verdict,
        // The server may be one that speaks first.
        (Ok(Said::Nothing), Some(rule)) => {
            let Ok((cluster, subset)) = choose(&downstream.worker, rule).await else {
                by_rule(stream, note, streams.others()).await;
                return None;
            };
            match Box::pin(who_speaks(downstream, &mut stream, &cluster, subset)).await {
                (First::Client(verdict), _) => verdict,
                (First::Server, upstream) => {
                    note.origin = Some(rule.origin.clone());
                    Box::pin(bytes(stream, note, &cluster, subset, upstream)).await;
                    return None;
                }
                (First::Nobody, _) => return None,
            }
        }
        _ => return None,
    };
    if is_http && verdict != Verdict::Opaque {
        return Some(Http { stream, http2: verdict == Verdict::Http2, port });
    }
    let hello = if streams.by_name() { stream.hello().await } else { Ok(Hello::None) };
    note.reason = match hello {
        Ok(Hello::Name(name)) => {
            let rule = streams.named(&name);
            note.server_name = Some(name);
            if rule.is_some() {
                by_rule(stream, note, rule).await;
                return None;
            }
            Some(Reason::NoRoute)
        }
        Ok(Hello::NoName) => Some(Reason::NoServerName),
        Ok(Hello::None | Hello::NeedMore) => {
            by_rule(stream, note, streams.others()).await;
            return None;
        }
        Err(_) => return None,
    };
    access::connection(note);
    // The client is told in its own protocol; whether it hears is its affair.
    let _ = stream.write_all(&UNRECOGNIZED_NAME).await;
    let _ = stream.shutdown().await;
    None
}

/// Carries a connection where its rule says. None: no rule takes it.
async fn by_rule(stream: Prefixed, mut note: ConnectionNote, rule: Option<&StreamRule>) {
    let Some(rule) = rule else {
        note.reason = Some(Reason::NoRoute);
        return access::connection(note);
    };
    note.origin = Some(rule.origin.clone());
    match choose(&note.downstream.worker, rule).await {
        Ok((cluster, subset)) => bytes(stream, note, &cluster, subset, None).await,
        Err(reason) => {
            note.reason = Some(reason);
            access::connection(note);
        }
    }
}

/// A backend of a rule by weight: the cluster, and perhaps a subset of it.
async fn choose<'a>(worker: &Worker, rule: &'a StreamRule) -> Result<(Arc<Cluster>, Option<&'a str>), Reason> {
    let roll = worker.chance.borrow_mut().below(rule.total);
    let target = pick(&rule.backends, roll).target.as_ref().map_err(|_| Reason::BackendNotFound)?;
    let cluster = find_cluster(worker, target).await.ok_or(Reason::NoEndpoints)?;
    Ok((cluster, target.subset.as_deref()))
}

/// Waits for whoever speaks first after a client's silence, itself or an endpoint of the cluster.
async fn who_speaks(
    downstream: &Downstream,
    stream: &mut Prefixed,
    cluster: &Arc<Cluster>,
    subset: Option<&str>,
) -> (First, Option<(SocketAddr, TcpStream)>) {
    let shared = &downstream.worker.shared;
    let ask = async || {
        // As it is by now.
        let current = shared.store.load().cluster_named(&cluster.name).cloned();
        let connected = connect_bytes(downstream, current.as_ref().unwrap_or(cluster), subset).await;
        connected.ok().map(|(address, stream)| (stream, address))
    };
    let (first, server) = stream.first(shared.timeouts.idle, ask).await;
    (first, server.map(|(stream, address)| (address, stream)))
}

/// A connection to an endpoint of a cluster, for a client's bytes.
async fn connect_bytes(
    downstream: &Downstream,
    cluster: &Arc<Cluster>,
    subset: Option<&str>,
) -> Result<(SocketAddr, TcpStream), (Reason, Option<SocketAddr>)> {
    let affinity = downstream.worker.cluster(cluster).affinity_of_bytes(downstream.peer.ip());
    connect(&downstream.worker, cluster, subset, affinity, &mut 0).await
}

/// A connection to an endpoint of a cluster; another one is tried if it cannot be made. `attempts` counts.
pub(crate) async fn connect(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    subset: Option<&str>,
    affinity: Affinity,
    attempts: &mut u32,
) -> Result<(SocketAddr, TcpStream), (Reason, Option<SocketAddr>)> {
    const ATTEMPTS: usize = 3;
    let state = worker.cluster(cluster);
    let mut tried = Vec::new();
    loop {
        *attempts += 1;
        let endpoint = state
            .pick(subset, &tried, affinity, &mut worker.chance.borrow_mut(), worker.now())
            .map_err(|_| (Reason::NoEndpoints, None))?;
        match open(endpoint.address, cluster.connect_timeout).await {
            Ok(stream) => {
                state.record(&endpoint, Outcome::Ok, worker.now());
                return Ok((endpoint.address, stream));
            }
            Err(_) => {
                state.record(&endpoint, Outcome::Local, worker.now());
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
    stream: Prefixed,
    mut note: ConnectionNote,
    cluster: &Arc<Cluster>,
    subset: Option<&str>,
    upstream: Option<(SocketAddr, TcpStream)>,
) {
    let downstream = note.downstream.clone();
    let shared = &downstream.worker.shared;
    note.cluster = Some(cluster.name.clone());
    if shared.memory.is_exhausted() {
        note.reason = Some(Reason::Overload);
        return access::connection(note);
    }
    let load = downstream.worker.cluster(cluster).load.clone();
    let Some(_permit) = load.admit(Kind::Connection, cluster.limits.max_connections) else {
        note.reason = Some(Reason::Overflow);
        return access::connection(note);
    };
    let connected = match upstream {
        Some(upstream) => Ok(upstream),
        None => connect_bytes(&downstream, cluster, subset).await,
    };
    match connected {
        Ok((address, upstream)) => {
            note.endpoint = Some(address);
            note.relayed(tcp::relay(stream.into_end(), upstream.into(), shared.timeouts.idle, &shared.drain).await);
        }
        Err((reason, endpoint)) => {
            note.endpoint = endpoint;
            note.reason = Some(reason);
        }
    }
    access::connection(note);
}

/// Carries bytes to where they were meant to go, which is nowhere in the mesh.
async fn pass(downstream: &Rc<Downstream>, stream: Prefixed) {
    let shared = &downstream.worker.shared;
    let mut note = ConnectionNote::new(downstream);
    note.endpoint = Some(downstream.destination);
    match open(downstream.destination, PASSTHROUGH_TIMEOUT).await {
        Ok(upstream) => {
            note.relayed(tcp::relay(stream.into_end(), upstream.into(), shared.timeouts.idle, &shared.drain).await);
        }
        Err(_) => note.reason = Some(Reason::ConnectFailed),
    }
    access::connection(note);
}

/// Answers one request.
async fn respond(
    downstream: Rc<Downstream>,
    port: Arc<Port>,
    request: Box<Request<Incoming>>,
) -> Response<ResponseBody> {
    let (worker, destination) = (&downstream.worker, downstream.destination);
    let host = head::authority(&request);
    let mut finish = Finish::new(downstream.clone(), &request, host.clone());
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
    finish.note.cluster = Some(port.cluster.name.clone());
    let routes = table.routes(&port).cloned();
    let uri = request.uri().clone();
    let Some(routes) = routes.as_deref() else {
        if connects {
            return tunnel::refusal().into_response(finish);
        }
        return send(worker, request, &port.cluster, None, None, Rest::default(), host, finish).await;
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
    finish.decided(decision.rule.id, &decision.rule.origin);
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
    finish: Box<Finish>,
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
        let (peer, now) = (finish.note.downstream.peer.ip(), worker.shared.started.elapsed());
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
    mut finish: Box<Finish>,
) -> Response<ResponseBody> {
    if let Some(fault) = &filters.fault {
        let drawn = fault.draw(&mut worker.chance.borrow_mut());
        if let Some(delay) = drawn.delay {
            finish.note.fault_delay = Some(delay);
            let (begun, until) = (finish.note.started, Instant::now() + delay);
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
    mut finish: Box<Finish>,
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
            let backend = pick(backends, worker.chance.borrow_mut().below(*total));
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
            finish.note.cluster = Some(cluster.name.clone());
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
            let rest = Rest { rule: Some(rule) };
            send(worker, request, &cluster, target.subset.clone(), path, rest, host, finish).await
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
    request: Box<Request<Incoming>>,
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
        rule,
        request_timeout: rule.and_then(|rule| rule.request_timeout),
        attempt_timeout: rule.and_then(|rule| rule.attempt_timeout),
        retry: rule.and_then(|rule| rule.retry.as_ref()),
        upstream: Upstream::Cluster(state, subset),
    };
    forward(request, plan, finish).await
}

/// The cluster that a route names, opening its namespace first if need be.
pub(crate) async fn find_cluster(worker: &Worker, target: &Target) -> Option<Arc<Cluster>> {
    let store = &worker.shared.store;
    let table = store.load();
    if !table.namespaces.contains_key(&target.namespace) {
        Box::pin(store.open(&target.namespace)).await;
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
    use crate::table::route::Match;
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
