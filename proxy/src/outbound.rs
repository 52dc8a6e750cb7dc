//! Connections of this pod's containers to somewhere: routed if that is a Service of the mesh, passed on if not.

mod requests;

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use weft_config::Protocol;

use crate::balance::affinity::Affinity;
use crate::balance::outlier::Outcome;
use crate::decide::pick;
use crate::detect::Verdict;
use crate::downstream::Downstream;
use crate::http::respond::Reason;
use crate::http::serve;
use crate::sni::Hello;
use crate::sniff::{FirstSpeaker, Prefixed, CLIENT_FIRST_TIMEOUT, Peek};
use crate::stream::Stream;
use crate::table::route::{Routes, StreamRule, Streams, Target};
use crate::table::{Cluster, Port};
use crate::tcp;
use crate::telemetry::access::{self, ConnectionLog};
use crate::upstream::endpoint::open;
use crate::upstream::fallback::{self, Fallback, Next};
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
    let handle = move |request| requests::respond(answering.clone(), port.clone(), request);
    serve::serve(stream, http2, downstream, handle).await;
}

/// Finds out what a connection carries. None: no HTTP, and it was carried to its end.
async fn begin(downstream: &Rc<Downstream>, stream: TcpStream) -> Option<Http> {
    let Downstream { worker, peer, destination, .. } = &**downstream;
    let port = find_port(worker, *destination).await;
    let stream = Prefixed::new(Stream::Plain(stream));
    match port {
        // Made to the proxy itself and not redirected: carrying it on would come back here for ever.
        None if worker.shared.is_own(*destination) => {
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
            Ok(Peek::Detected(Verdict::Opaque)) if port.protocol == Protocol::Http2 => return None,
            Ok(Peek::Detected(Verdict::Http2)) => (Verdict::Http2, None),
            Ok(Peek::Detected(_)) => (Verdict::Http1, None),
            _ => return None,
        },
        None => match stream.sniff(CLIENT_FIRST_TIMEOUT).await {
            Ok(Peek::Detected(verdict)) => (verdict, None),
            Ok(Peek::Silent) => match Box::pin(who_speaks(downstream, &mut stream, &port.cluster, None)).await {
                (FirstSpeaker::Client(verdict), _) => (verdict, None),
                (FirstSpeaker::Server, upstream) => (Verdict::Opaque, upstream),
                (FirstSpeaker::Neither, _) => return None,
            },
            Ok(Peek::Closed) | Err(_) => return None,
        },
    };
    match verdict {
        Verdict::Http1 => Some(Http { stream, http2: false, port }),
        Verdict::Http2 => Some(Http { stream, http2: true, port }),
        Verdict::Opaque | Verdict::NeedMore => {
            Box::pin(bytes(stream, ConnectionLog::new(downstream), &port.cluster, None, upstream)).await;
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
    let mut note = ConnectionLog::new(downstream);
    // A port that is declared to carry something else is not taken for HTTP.
    let is_http = port.protocol != Protocol::Tcp && (!routes.matches.is_empty() || streams.others().is_none());
    if !streams.by_name() && !is_http {
        by_rule(stream, note, streams.others()).await;
        return None;
    }
    let silence = if streams.others().is_some() { CLIENT_FIRST_TIMEOUT } else { patience };
    let verdict = match (stream.sniff(silence).await, streams.others()) {
        (Ok(Peek::Detected(verdict)), _) => verdict,
        // The server may be one that speaks first.
        (Ok(Peek::Silent), Some(rule)) => {
            let Ok((cluster, subset)) = choose(&downstream.worker, rule).await else {
                by_rule(stream, note, streams.others()).await;
                return None;
            };
            match Box::pin(who_speaks(downstream, &mut stream, &cluster, subset)).await {
                (FirstSpeaker::Client(verdict), _) => verdict,
                (FirstSpeaker::Server, upstream) => {
                    note.origin = Some(rule.origin.clone());
                    Box::pin(bytes(stream, note, &cluster, subset, upstream)).await;
                    return None;
                }
                (FirstSpeaker::Neither, _) => return None,
            }
        }
        _ => return None,
    };
    if is_http && verdict != Verdict::Opaque {
        return Some(Http { stream, http2: verdict == Verdict::Http2, port });
    }
    let hello = if streams.by_name() { stream.client_hello().await } else { Ok(Hello::None) };
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
        Ok(Hello::NotTls | Hello::NeedMore) => {
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
async fn by_rule(stream: Prefixed, mut note: ConnectionLog, rule: Option<&StreamRule>) {
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
    let roll = worker.rng.borrow_mut().below(rule.total);
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
) -> (FirstSpeaker, Option<(SocketAddr, TcpStream)>) {
    let shared = &downstream.worker.shared;
    let ask = async || {
        // As it is by now.
        let current = shared.store.load().cluster_named(&cluster.name).cloned();
        let connected = connect_bytes(downstream, current.as_ref().unwrap_or(cluster), subset).await;
        connected.ok().map(|(address, stream)| (stream, address))
    };
    let (first, server) = stream.await_first_speaker(shared.timeouts.idle, ask).await;
    (first, server.map(|(stream, address)| (address, stream)))
}

/// A connection to an endpoint of a cluster, for a client's bytes.
async fn connect_bytes(
    downstream: &Downstream,
    cluster: &Arc<Cluster>,
    subset: Option<&str>,
) -> Result<(SocketAddr, TcpStream), (Reason, Option<SocketAddr>)> {
    let affinity = downstream.worker.cluster(cluster).tcp_affinity(downstream.peer.ip());
    connect(&downstream.worker, cluster, subset, affinity, &mut 0).await
}

/// A connection to an endpoint of a cluster; another one is tried if it cannot be made, and at last the Service's own
/// address. `attempts` counts.
pub(crate) async fn connect(
    worker: &Rc<Worker>,
    cluster: &Arc<Cluster>,
    subset: Option<&str>,
    affinity: Affinity,
    attempts: &mut u32,
) -> Result<(SocketAddr, TcpStream), (Reason, Option<SocketAddr>)> {
    const ATTEMPTS: usize = 3;
    let state = worker.cluster(cluster);
    let mut fallback = Fallback::new(worker, &state, subset);
    let mut address = fallback.first();
    let mut tried = Vec::new();
    loop {
        if let Some(address) = address.take() {
            *attempts += 1;
            let connected = open(address.address, cluster.connect_timeout).await;
            fallback.address_tried(connected.is_ok());
            if let Ok(stream) = connected {
                return Ok((address.address, stream));
            }
            if tried.len() == ATTEMPTS {
                return Err((Reason::ConnectFailed, Some(address.address)));
            }
        }
        let picked = state.pick(subset, &tried, affinity, &mut worker.rng.borrow_mut(), worker.now());
        let Ok(endpoint) = picked else {
            match Box::pin(fallback.without_endpoints(None)).await {
                Some(Next::ServiceAddress(own)) => address = Some(own),
                Some(Next::PickAgain) => {}
                None => return Err((fallback::reason(&state.cluster()), None)),
            }
            continue;
        };
        *attempts += 1;
        match open(endpoint.address, cluster.connect_timeout).await {
            Ok(stream) => {
                state.fallback.connected();
                state.record(&endpoint, Outcome::Ok, worker.now());
                return Ok((endpoint.address, stream));
            }
            Err(_) => {
                state.fallback.connect_failed();
                state.record(&endpoint, Outcome::Local, worker.now());
                tried.push(endpoint.address);
                address = fallback.after_failures(tried.len());
                if tried.len() == ATTEMPTS && address.is_none() {
                    return Err((Reason::ConnectFailed, Some(endpoint.address)));
                }
            }
        }
    }
}

/// Carries bytes to a cluster.
async fn bytes(
    stream: Prefixed,
    mut note: ConnectionLog,
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
    let load = downstream.worker.cluster(cluster).shared.clone();
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
            note.via = (Some(address) == cluster.address).then_some(access::SERVICE_ADDRESS);
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
    let mut note = ConnectionLog::new(downstream);
    note.endpoint = Some(downstream.destination);
    match open(downstream.destination, PASSTHROUGH_TIMEOUT).await {
        Ok(upstream) => {
            note.relayed(tcp::relay(stream.into_end(), upstream.into(), shared.timeouts.idle, &shared.drain).await);
        }
        Err(_) => note.reason = Some(Reason::ConnectFailed),
    }
    access::connection(note);
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
