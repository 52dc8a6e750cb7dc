//! Outbound connections, from the containers of this pod: routed if the destination is a Service of the mesh, else
//! passed on to the address that they were made to.

mod action;
mod filters;
mod requests;

use std::future::pending;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use weft_codec::detect::Verdict;
use weft_codec::sni::Hello;
use weft_config::Protocol;

use crate::decide::pick;
use crate::downstream::Downstream;
use crate::http::serve;
use crate::reason::Reason;
use crate::sniff::{CLIENT_FIRST_TIMEOUT, FirstSpeaker, Peek, Prefixed};
use crate::stream::Stream;
use crate::table::backend::BackendTarget;
use crate::table::route::{Routes, StreamRule, Streams};
use crate::table::{Cluster, Port};
use crate::tcp;
use crate::telemetry::access::{self, ConnectionLog};
use crate::upstream::connect::{Connected, NotConnected, connect};
use crate::upstream::pod::{Reached, reach};
use crate::upstream::shared_cluster::Kind;
use crate::worker::Worker;

/// The fatal TLS alert `unrecognized_name` (RFC 6066 3).
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// A connection that carries HTTP.
struct Http {
    stream: Prefixed,
    http2: bool,
    port: Arc<Port>,
}

/// Serves one connection.
pub(crate) async fn handle(downstream: Rc<Downstream>, stream: TcpStream) {
    // Boxed: short-lived.
    let Some(Http { stream, http2, port }) = Box::pin(accept_http(&downstream, stream)).await else { return };
    let connection = downstream.clone();
    let handle = move |request| requests::respond(connection.clone(), port.clone(), request);
    serve::serve(stream, http2, downstream, handle).await;
}

/// Detects the protocol of a connection and returns it if it is HTTP. Any other connection is relayed to its end, and
/// the result is None.
async fn accept_http(downstream: &Rc<Downstream>, stream: TcpStream) -> Option<Http> {
    let Downstream { worker, peer, destination, .. } = &**downstream;
    let port = worker.shared.store.find_port(*destination).await;
    let stream = Prefixed::new(Stream::Plain(stream));
    match port {
        None => {
            // A connection to the proxy's own port was not redirected, and one from here to there would loop.
            let is_own = worker.shared.is_own(*destination);
            match if is_own { worker.shared.destination } else { Some(*destination) } {
                // Boxed, here and below: rare.
                Some(address) => Box::pin(relay_to_address(downstream, stream, address)).await,
                None => {
                    tracing::warn!(src.addr = %peer, dst.addr = %destination, reason = Reason::WrongDestination.as_str(), "connection refused");
                }
            }
            None
        }
        Some(port) => {
            let routes = worker.shared.store.load().routes(&port).cloned();
            match routes.as_deref().and_then(|routes| Some((routes, routes.streams.as_ref()?))) {
                Some((routes, streams)) => Box::pin(by_stream_rules(downstream, stream, port, routes, streams)).await,
                None => by_protocol(downstream, stream, port, routes.is_some()).await,
            }
        }
    }
}

/// Handles a port without TCP or TLS rules: by its declared protocol, else by detection.
async fn by_protocol(
    downstream: &Rc<Downstream>,
    mut stream: Prefixed,
    port: Arc<Port>,
    has_routes: bool,
) -> Option<Http> {
    let shared = &downstream.worker.shared;
    let declared = match port.protocol {
        Protocol::Tcp => Some(false),
        Protocol::Http | Protocol::Http2 => Some(true),
        // Routes are rules for HTTP, so the port carries HTTP.
        Protocol::Detect if has_routes => Some(true),
        Protocol::Detect if shared.opaque_ports.contains(&downstream.destination.port()) => Some(false),
        Protocol::Detect => None,
    };
    let (verdict, upstream) = match declared {
        Some(false) => (Verdict::Opaque, None),
        // In HTTP the client speaks first; only the version is to be detected.
        Some(true) => match stream.sniff(shared.timeouts.idle).await {
            // Not HTTP. A client of an HTTP/2 port cannot read an error response in another version.
            Ok(Peek::Detected(Verdict::Opaque)) if port.protocol == Protocol::Http2 => return None,
            Ok(Peek::Detected(Verdict::Http2)) => (Verdict::Http2, None),
            Ok(Peek::Detected(_)) => (Verdict::Http1, None),
            _ => return None,
        },
        None => match stream.sniff(CLIENT_FIRST_TIMEOUT).await {
            Ok(Peek::Detected(verdict)) => (verdict, None),
            Ok(Peek::Silent) => match Box::pin(await_first_speaker(downstream, &mut stream, &port.cluster, None)).await
            {
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
            Box::pin(relay_tcp(stream, ConnectionLog::new(downstream), &port.cluster, None, upstream)).await;
            None
        }
    }
}

/// Handles a port with TCP or TLS rules: TLS by server name (SNI), HTTP by the HTTP rules, everything else by the TCP
/// rule. A protocol without rules of its own is handled as TCP.
async fn by_stream_rules(
    downstream: &Rc<Downstream>,
    mut stream: Prefixed,
    port: Arc<Port>,
    routes: &Routes,
    streams: &Streams,
) -> Option<Http> {
    let log = ConnectionLog::new(downstream);
    let default = streams.default_rule();
    // A port declared as TCP is never treated as HTTP.
    let is_http = port.protocol != Protocol::Tcp && (!routes.matches.is_empty() || default.is_none());
    if !streams.has_sni_rules() && !is_http {
        relay_by_rule(stream, log, default).await;
        return None;
    }
    let limit = if default.is_some() { CLIENT_FIRST_TIMEOUT } else { downstream.worker.shared.timeouts.idle };
    let (stream, log, verdict) = match (stream.sniff(limit).await, default) {
        (Ok(Peek::Detected(verdict)), _) => (stream, log, verdict),
        // The server may speak first.
        // Boxed: rare.
        (Ok(Peek::Silent), Some(rule)) => Box::pin(by_first_speaker(stream, log, rule)).await?,
        _ => return None,
    };
    if is_http && verdict != Verdict::Opaque {
        return Some(Http { stream, http2: verdict == Verdict::Http2, port });
    }
    by_server_name(stream, log, streams).await;
    None
}

/// Waits until a silent client, or the server that the TCP rule selects, sends the first byte. The client: returns its
/// protocol. The server: relays the connection to its end, and the result is None.
async fn by_first_speaker(
    mut stream: Prefixed,
    mut log: ConnectionLog,
    rule: &StreamRule,
) -> Option<(Prefixed, ConnectionLog, Verdict)> {
    let (cluster, subset) = match choose_backend(&log.downstream.worker, rule).await {
        Ok(backend) => backend,
        Err(reason) => {
            (log.rule_name, log.reason) = (Some(rule.name.clone()), Some(reason));
            access::connection(log);
            return None;
        }
    };
    match await_first_speaker(&log.downstream, &mut stream, &cluster, subset).await {
        (FirstSpeaker::Client(verdict), _) => Some((stream, log, verdict)),
        (FirstSpeaker::Server, upstream) => {
            log.rule_name = Some(rule.name.clone());
            relay_tcp(stream, log, &cluster, subset, upstream).await;
            None
        }
        (FirstSpeaker::Neither, _) => None,
    }
}

/// Relays a connection by the server name of its ClientHello, if there are rules for it; what is not TLS by the TCP
/// rule.
async fn by_server_name(mut stream: Prefixed, mut log: ConnectionLog, streams: &Streams) {
    let hello = if streams.has_sni_rules() { stream.client_hello().await } else { Ok(Hello::NotTls) };
    let reason = match hello {
        Ok(Hello::Name(name)) => {
            let rule = streams.sni_rule(&name);
            log.server_name = Some(name);
            if rule.is_some() {
                return relay_by_rule(stream, log, rule).await;
            }
            Reason::NoRoute
        }
        Ok(Hello::NoName) => Reason::NoServerName,
        Ok(Hello::NotTls | Hello::NeedMore) => return relay_by_rule(stream, log, streams.default_rule()).await,
        Err(_) => return,
    };
    log.reason = Some(reason);
    access::connection(log);
    // Tells the client in TLS why the connection ends. It is closed whether or not the client reads the alert.
    let _ = stream.write_all(&UNRECOGNIZED_NAME).await;
    let _ = stream.shutdown().await;
}

/// Relays a connection to a backend of its rule. None: no rule matches.
async fn relay_by_rule(stream: Prefixed, mut log: ConnectionLog, rule: Option<&StreamRule>) {
    let Some(rule) = rule else {
        log.reason = Some(Reason::NoRoute);
        return access::connection(log);
    };
    log.rule_name = Some(rule.name.clone());
    match choose_backend(&log.downstream.worker, rule).await {
        Ok((cluster, subset)) => relay_tcp(stream, log, &cluster, subset, None).await,
        Err(reason) => {
            log.reason = Some(reason);
            access::connection(log);
        }
    }
}

/// Picks a backend of a rule by weight: its cluster and, if any, the subset.
async fn choose_backend<'a>(worker: &Worker, rule: &'a StreamRule) -> Result<(Arc<Cluster>, Option<&'a str>), Reason> {
    let roll = worker.rng.borrow_mut().below(rule.total);
    let BackendTarget::Cluster(target) = &pick(&rule.backends, roll).target else {
        return Err(Reason::BackendNotFound);
    };
    let cluster = worker.shared.store.find_cluster(target).await.ok_or(Reason::ConfigUnavailable)?;
    Ok((cluster, target.subset.as_deref()))
}

/// Waits until the client or an endpoint of the cluster sends the first byte. See [`Prefixed::await_first_speaker`].
async fn await_first_speaker(
    downstream: &Downstream,
    stream: &mut Prefixed,
    cluster: &Arc<Cluster>,
    subset: Option<&str>,
) -> (FirstSpeaker, Option<Connected>) {
    let shared = &downstream.worker.shared;
    let connect = async || {
        // The newest version of the cluster: the configuration may have changed in the meantime.
        let current = shared.store.load().cluster_named(&cluster.name).cloned();
        let connected = connect_tcp(downstream, current.as_ref().unwrap_or(cluster), subset).await;
        connected.ok().map(|Connected { endpoint, stream, security }| (stream, (endpoint, security)))
    };
    let (first, server) = stream.await_first_speaker(shared.timeouts.idle, false, connect).await;
    (first, server.map(|(stream, (endpoint, security))| Connected { endpoint, stream, security }))
}

/// Connects to an endpoint of a cluster for a TCP connection.
async fn connect_tcp(
    downstream: &Downstream,
    cluster: &Arc<Cluster>,
    subset: Option<&str>,
) -> Result<Connected, NotConnected> {
    let affinity = downstream.worker.cluster(cluster).tcp_affinity(downstream.peer.ip());
    connect(&downstream.worker, cluster, subset, affinity, &mut 0).await
}

/// Relays a TCP connection to a cluster.
async fn relay_tcp(
    stream: Prefixed,
    mut log: ConnectionLog,
    cluster: &Arc<Cluster>,
    subset: Option<&str>,
    upstream: Option<Connected>,
) {
    let downstream = log.downstream.clone();
    let shared = &downstream.worker.shared;
    log.cluster = Some(cluster.name.clone());
    if shared.memory.is_exhausted() {
        log.reason = Some(Reason::Overload);
        return access::connection(log);
    }
    let load = downstream.worker.cluster(cluster).shared.clone();
    let Some(_permit) = load.admit(Kind::Connection, cluster.limits.max_connections) else {
        log.reason = Some(Reason::Overflow);
        return access::connection(log);
    };
    let connected = match upstream {
        Some(upstream) => Ok(upstream),
        None => connect_tcp(&downstream, cluster, subset).await,
    };
    match connected {
        Ok(Connected { endpoint, stream: upstream, security }) => {
            (log.endpoint, log.security) = (Some(endpoint), security);
            log.via = (Some(endpoint) == cluster.address).then_some(access::SERVICE_ADDRESS);
            log.relayed(
                tcp::relay(stream.into_end(), upstream.into(), shared.timeouts.idle, &shared.drain, pending()).await,
            );
        }
        Err(NotConnected { reason, endpoint, error }) => {
            (log.endpoint, log.reason) = (endpoint, Some(reason));
            log.error = error.map(Into::into);
        }
    }
    access::connection(log);
}

/// Relays a connection to an address that is not a Service's.
async fn relay_to_address(downstream: &Rc<Downstream>, stream: Prefixed, address: SocketAddr) {
    let shared = &downstream.worker.shared;
    let mut log = ConnectionLog::new(downstream);
    log.endpoint = Some(address);
    match reach(&downstream.worker, address).await {
        Ok(Reached { stream: upstream, security, identity }) => {
            (log.security, log.server) = (security, identity.map(Box::new));
            let upstream = upstream.into();
            log.relayed(tcp::relay(stream.into_end(), upstream, shared.timeouts.idle, &shared.drain, pending()).await);
        }
        Err(NotConnected { reason, error, .. }) => {
            (log.reason, log.error) = (Some(reason), error.map(Into::into));
        }
    }
    access::connection(log);
}
