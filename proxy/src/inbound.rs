//! Inbound connections, to this pod: checked against policies, then forwarded to the application.

use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, Version};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use weft_codec::detect::Verdict;
use weft_codec::sni::Offer;

use crate::downstream::{Caller, Downstream};
use crate::http::attempt::{LOCAL_CONNECT_TIMEOUT, Plan, Upstream};
use crate::http::forward::forward;
use crate::http::guard::RequestGuard;
use crate::http::incoming::Incoming;
use crate::http::respond::{Answer, Reply, finish};
use crate::http::response_body::ResponseBody;
use crate::http::{head, serve};
use crate::identity::Protocol;
use crate::judge::{self, Refusal};
use crate::reason::Reason;
use crate::security::Security;
use crate::sniff::{CLIENT_FIRST_TIMEOUT, FirstSpeaker, Peek, Prefixed};
use crate::stream::Stream;
use crate::table::Inbound;
use crate::telemetry::access::{self, ConnectionLog};
use crate::upstream::endpoint::open;
use crate::{tcp, tls};

/// How long a silent client is waited for, to which policies allow no TCP connection.
const DENIED_TIMEOUT: Duration = Duration::from_secs(5);

/// Serves one connection.
pub(crate) async fn handle(downstream: Rc<Downstream>, stream: TcpStream) {
    // Boxed: short-lived.
    let Some((stream, http2)) = Box::pin(accept_http(&downstream, stream)).await else { return };
    let connection = downstream.clone();
    serve::serve(stream, http2, downstream, move |request| respond(connection.clone(), request)).await;
}

/// Detects the protocol of a connection and returns it if it is HTTP, with whether it is HTTP/2. Any other connection
/// is relayed to its end, and the result is None.
async fn accept_http(downstream: &Rc<Downstream>, stream: TcpStream) -> Option<(Prefixed, bool)> {
    let Downstream { worker, peer, destination, .. } = &**downstream;
    let shared = &worker.shared;
    let is_foreign = !shared.pod_ips.is_empty() && !shared.pod_ips.contains(&destination.ip());
    if is_foreign || shared.own_ports.contains(&destination.port()) {
        tracing::warn!(src.addr = %peer, dst.addr = %destination, reason = Reason::WrongDestination.as_str(), "connection refused");
        return None;
    }
    let (stream, alpn) = match &shared.tls {
        None => (Stream::Plain(stream), None),
        // Boxed: rare.
        Some(config) => Box::pin(accept_tls(downstream, stream, config)).await?,
    };
    let mut stream = Prefixed::new(stream);
    let is_opaque = is_opaque(downstream);
    let (mut verdict, mut upstream) = match alpn {
        _ if is_opaque && !shared.identity.is_expected() => (Verdict::Opaque, None),
        Some(verdict) if !is_opaque => (verdict, None),
        _ => detect(downstream, &mut stream, is_opaque).await?,
    };
    if verdict == Verdict::Opaque && shared.identity.is_expected() && stream.begins_as_tls() {
        let protocol;
        (stream, protocol) = accept_proxy(downstream, stream).await?;
        (verdict, upstream) = match protocol {
            // The application's own TLS.
            None => (Verdict::Opaque, None),
            Some(_) if is_opaque => (Verdict::Opaque, None),
            Some(Protocol::Http1) => (Verdict::Http1, None),
            Some(Protocol::Http2 | Protocol::MultiplexedHttp1) => (Verdict::Http2, None),
            Some(Protocol::Tcp) => detect(downstream, &mut stream, false).await?,
        };
    }
    match verdict {
        Verdict::Http1 => Some((stream, false)),
        Verdict::Http2 => Some((stream, true)),
        Verdict::Opaque | Verdict::NeedMore => {
            Box::pin(relay_tcp(downstream, stream, upstream)).await;
            None
        }
    }
}

/// Whether connections to the port carry bytes that are not looked at.
fn is_opaque(downstream: &Downstream) -> bool {
    let (shared, port) = (&downstream.worker.shared, downstream.destination.port());
    shared.opaque_ports.contains(&port) || shared.store.load().is_declared_tcp(port)
}

/// Detects the protocol. Returns the connection to the application too, if that had to be made to find out. None: the
/// connection is over.
async fn detect(
    downstream: &Rc<Downstream>,
    stream: &mut Prefixed,
    is_opaque: bool,
) -> Option<(Verdict, Option<Stream>)> {
    let peek = match stream.peek(CLIENT_FIRST_TIMEOUT, is_opaque).await {
        // The server is not asked to speak first to this client. It may still send a request that is allowed.
        Ok(Peek::Silent) if is_tcp_denied(downstream) => match stream.peek(DENIED_TIMEOUT, is_opaque).await {
            Ok(Peek::Silent) => Ok(Peek::Detected(Verdict::Opaque)),
            peek => peek,
        },
        peek => peek,
    };
    match peek {
        Ok(Peek::Detected(verdict)) => Some((verdict, None)),
        Ok(Peek::Silent) => {
            let connect = async || connect_if_allowed(downstream).await.map(|stream| (stream, ()));
            let idle = downstream.worker.shared.timeouts.idle;
            match Box::pin(stream.await_first_speaker(idle, is_opaque, connect)).await {
                (FirstSpeaker::Client(verdict), _) => Some((verdict, None)),
                (FirstSpeaker::Server, upstream) => Some((Verdict::Opaque, upstream.map(|(stream, ())| stream))),
                (FirstSpeaker::Neither, _) => {
                    stream.close_notify().await;
                    None
                }
            }
        }
        Ok(Peek::Closed) => {
            stream.close_notify().await;
            None
        }
        Err(_) => None,
    }
}

/// Makes the handshake with a client that is a proxy of the mesh. Returns the decrypted stream and the protocol in it; or
/// the stream as it is, if the client is no such proxy and needs not prove an identity. None: the handshake failed, which
/// was logged.
async fn accept_proxy(downstream: &Rc<Downstream>, mut stream: Prefixed) -> Option<(Prefixed, Option<Protocol>)> {
    let shared = &downstream.worker.shared;
    let is_mutual = match stream.offer().await {
        Ok(Offer::Protocols(offered)) => {
            shared.mutual_tls || offered.iter().any(|name| Protocol::of_alpn(name).is_some())
        }
        Ok(Offer::NeedMore | Offer::NotTls) => false,
        Err(_) => return None,
    };
    if !is_mutual {
        return Some((stream, None));
    }
    let (socket, hello) = match stream.into_socket() {
        Ok(parts) => parts,
        Err(stream) => return Some((stream, None)),
    };
    let mut log = ConnectionLog::new(downstream);
    log.security = Security::None;
    log.reason = match shared.identity.load() {
        _ if shared.memory.is_exhausted() => Some(Reason::Overload),
        None => Some(Reason::NoCertificate),
        Some(own) => {
            // Boxed: short-lived.
            match Box::pin(tls::accept_mutual(socket, &hello, &own, shared.timeouts.head)).await {
                Ok((stream, protocol, client)) => {
                    let _ = downstream.caller.set(Box::new(Caller::new(client, &own.id, protocol)));
                    return Some((Prefixed::new(stream), Some(protocol)));
                }
                Err(error) => {
                    log.error = Some(error.into());
                    Some(Reason::MtlsHandshake)
                }
            }
        }
    };
    access::connection(log);
    None
}

/// Makes the TLS handshake with a client outside of the mesh. Returns the stream and the protocol agreed on by ALPN, if
/// any. A failed handshake is logged, and the result is None.
async fn accept_tls(
    downstream: &Rc<Downstream>,
    stream: TcpStream,
    config: &Arc<ServerConfig>,
) -> Option<(Stream, Option<Verdict>)> {
    let shared = &downstream.worker.shared;
    let mut log = ConnectionLog::new(downstream);
    if shared.memory.is_exhausted() {
        log.reason = Some(Reason::Overload);
    } else {
        match tls::accept(stream, config, shared.timeouts.head).await {
            Ok(accepted) => return Some(accepted),
            Err(error) => {
                log.reason = Some(Reason::TlsHandshake);
                log.error = Some(error.into());
            }
        }
    }
    access::connection(log);
    None
}

/// Connects to the application for a client that has not sent anything yet. Does not connect for a client that
/// policies deny.
async fn connect_if_allowed(downstream: &Downstream) -> Option<Stream> {
    if is_tcp_denied(downstream) {
        return None;
    }
    open(downstream.destination, LOCAL_CONNECT_TIMEOUT).await.ok().map(Stream::Plain)
}

/// Whether policies or the mode of mutual TLS let no TCP connection to the port pass, whichever side speaks first.
fn is_tcp_denied(downstream: &Downstream) -> bool {
    judge::connection(downstream, &downstream.worker.shared.store.load().inbound).is_err()
}

/// Relays a TCP connection to the application.
async fn relay_tcp(downstream: &Rc<Downstream>, stream: Prefixed, upstream: Option<Stream>) {
    let (shared, destination) = (&downstream.worker.shared, downstream.destination);
    let mut log = ConnectionLog::new(downstream);
    let seen = downstream.worker.changes.seen();
    // Not kept for as long as the connection lasts.
    let table = shared.store.load();
    log.cluster = table.own_ports.get(&destination.port()).map(|own| own.cluster.clone());
    match judge::connection(downstream, &table.inbound) {
        _ if shared.memory.is_exhausted() => log.reason = Some(Reason::Overload),
        Err(refusal) => {
            if matches!(refusal, Refusal::Plaintext) {
                log.security = Security::None;
            }
            log.refused(&refusal);
        }
        Ok(()) => {}
    }
    drop(table);
    if log.reason.is_some() {
        return access::connection(log);
    }
    log.security = downstream.security();
    downstream.record_caller();
    let upstream = match upstream {
        Some(upstream) => Ok(upstream),
        None => open(destination, LOCAL_CONNECT_TIMEOUT).await.map(Stream::Plain),
    };
    match upstream {
        Ok(upstream) => {
            log.endpoint = Some(destination);
            let refusal = OnceCell::new();
            let refused = async {
                let judge = |inbound: &Inbound| judge::connection(downstream, inbound);
                let _ = refusal.set(judge::refused(downstream, seen, judge).await);
            };
            let idle = shared.timeouts.idle;
            log.relayed(tcp::relay(stream.into_end(), upstream.into(), idle, &shared.drain, refused).await);
            if let Some(refusal) = refusal.get() {
                log.refused(refusal);
            }
        }
        Err(_) => log.reason = Some(Reason::ConnectFailed),
    }
    access::connection(log);
}

/// Responds to one request.
async fn respond(downstream: Rc<Downstream>, request: Box<Request<Incoming>>) -> Response<ResponseBody> {
    let mut guard = RequestGuard::new(downstream, &request);
    let reply = send_to_application(request, &mut guard).await;
    finish(reply, guard)
}

async fn send_to_application(mut request: Box<Request<Incoming>>, guard: &mut RequestGuard) -> Reply {
    let destination = guard.log.downstream.destination;
    let seen = guard.worker().changes.seen();
    let table = guard.worker().shared.store.load();
    guard.log.cluster = table.own_ports.get(&destination.port()).map(|own| own.cluster.clone());
    if guard.worker().shared.memory.is_exhausted() {
        return Err(Answer::overload());
    }
    if request.method() == Method::CONNECT {
        let text = "CONNECT tunnels are opened by the client's proxy; none is accepted here";
        return Err(Answer::new(Reason::ConnectRefused, text));
    }
    head::check(&request).map_err(Answer::bad_request)?;
    let inbound = table.inbound.clone();
    drop(table);
    let downstream = &guard.log.downstream;
    if downstream.worker.shared.identity.is_expected() {
        let caller = downstream.caller.get().and_then(|caller| caller.header.clone());
        head::set_client_certificate(request.headers_mut(), caller);
    }
    let (method, uri, headers) = (request.method(), request.uri(), request.headers());
    if let Err(refused) = judge::request(downstream, &inbound, method, uri, headers) {
        if matches!(refused.refusal, Refusal::Plaintext) {
            guard.log.security = Security::None;
        }
        if let Some(rule_name) = refused.refusal.rule_name() {
            guard.set_rule(rule_name);
        }
        let caller = guard.log.downstream.caller.get().map(|caller| &**caller);
        return Err(Answer::refused(&refused, request.uri().path(), caller));
    }
    guard.log.security = downstream.security();
    guard.log.downstream.record_caller();
    let plan = Plan {
        // The path stays as it came: policies allow every reading of it.
        http2: request.version() == Version::HTTP_2 && !downstream.multiplexes_http1(),
        protected: inbound.policies.protected.as_ref(),
        judged: Some(Cell::new(seen)),
        ..Plan::new(Upstream::Local(guard.worker().local(destination)))
    };
    forward(request, plan, guard).await
}
