//! Inbound connections, to this pod: checked against policies, then forwarded to the application.

use std::rc::Rc;
use std::sync::Arc;

use http::{Method, Request, Response, Version};
use rustls::ServerConfig;
use tokio::net::TcpStream;
use weft_codec::detect::Verdict;
use weft_codec::http1::framing::BadHead;

use crate::downstream::Downstream;
use crate::http::attempt::{LOCAL_CONNECT_TIMEOUT, Plan, Upstream};
use crate::http::forward::forward;
use crate::http::guard::RequestGuard;
use crate::http::incoming::Incoming;
use crate::http::respond::Answer;
use crate::http::response_body::ResponseBody;
use crate::http::{head, serve};
use crate::matcher::RequestHead;
use crate::path::TooManyReadings;
use crate::policy::Verdict as PolicyVerdict;
use crate::reason::Reason;
use crate::sniff::{CLIENT_FIRST_TIMEOUT, FirstSpeaker, Peek, Prefixed};
use crate::stream::Stream;
use crate::telemetry::access::{self, ConnectionLog};
use crate::upstream::endpoint::open;
use crate::{tcp, tls};

/// Longest reading of a path that a 403 response quotes, in bytes.
const READING_BYTES_MAX: usize = 256;

/// Serves one connection.
pub(crate) async fn handle(downstream: Rc<Downstream>, stream: TcpStream) {
    // Boxed, and freed once the connection is known to carry HTTP: most connections do, for most of their life.
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
        // Boxed, because few connections need the space.
        Some(config) => Box::pin(accept_tls(downstream, stream, config)).await?,
    };
    let mut stream = Prefixed::new(stream);
    let peek = match alpn {
        _ if shared.opaque_ports.contains(&destination.port()) => Ok(Peek::Detected(Verdict::Opaque)),
        Some(verdict) => Ok(Peek::Detected(verdict)),
        None => stream.sniff(CLIENT_FIRST_TIMEOUT).await,
    };
    let (verdict, upstream) = match peek {
        Ok(Peek::Detected(verdict)) => (verdict, None),
        Ok(Peek::Silent) => {
            let connect = async || connect_if_allowed(downstream).await.map(|stream| (stream, ()));
            match Box::pin(stream.await_first_speaker(shared.timeouts.idle, connect)).await {
                (FirstSpeaker::Client(verdict), _) => (verdict, None),
                (FirstSpeaker::Server, upstream) => (Verdict::Opaque, upstream.map(|(stream, ())| stream)),
                (FirstSpeaker::Neither, _) => {
                    stream.close_notify().await;
                    return None;
                }
            }
        }
        Ok(Peek::Closed) => {
            stream.close_notify().await;
            return None;
        }
        Err(_) => return None,
    };
    match verdict {
        Verdict::Http1 => Some((stream, false)),
        Verdict::Http2 => Some((stream, true)),
        Verdict::Opaque | Verdict::NeedMore => {
            Box::pin(relay_tcp(downstream, stream, upstream)).await;
            None
        }
    }
}

/// Makes the TLS handshake. Returns the stream and the protocol agreed on by ALPN, if any. A failed handshake is
/// logged, and the result is None.
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
                log.error = Some(error);
            }
        }
    }
    access::connection(log);
    None
}

/// Connects to the application for a client that has not sent anything yet. Does not connect for a client that
/// policies deny.
async fn connect_if_allowed(downstream: &Downstream) -> Option<TcpStream> {
    let inbound = downstream.worker.shared.store.load().inbound.clone();
    match inbound.policies.check_tcp(downstream.destination.port()) {
        PolicyVerdict::Allowed => open(downstream.destination, LOCAL_CONNECT_TIMEOUT).await.ok(),
        PolicyVerdict::Denied(_) | PolicyVerdict::NotAllowed(_) => None,
    }
}

/// Relays a TCP connection to the application.
async fn relay_tcp(downstream: &Rc<Downstream>, stream: Prefixed, upstream: Option<TcpStream>) {
    let (shared, destination) = (&downstream.worker.shared, downstream.destination);
    let mut log = ConnectionLog::new(downstream);
    if shared.memory.is_exhausted() {
        log.reason = Some(Reason::Overload);
        return access::connection(log);
    }
    let inbound = shared.store.load().inbound.clone();
    match inbound.policies.check_tcp(destination.port()) {
        PolicyVerdict::Allowed => {}
        PolicyVerdict::Denied(rule) | PolicyVerdict::NotAllowed(rule) => {
            log.rule_name = Some(rule.clone());
            log.reason = Some(Reason::PolicyDenied);
            return access::connection(log);
        }
    }
    let upstream = match upstream {
        Some(upstream) => Ok(upstream),
        None => open(destination, LOCAL_CONNECT_TIMEOUT).await,
    };
    match upstream {
        Ok(upstream) => {
            log.endpoint = Some(destination);
            log.relayed(tcp::relay(stream.into_end(), upstream.into(), shared.timeouts.idle, &shared.drain).await);
        }
        Err(_) => log.reason = Some(Reason::ConnectFailed),
    }
    access::connection(log);
}

/// Responds to one request.
async fn respond(downstream: Rc<Downstream>, request: Box<Request<Incoming>>) -> Response<ResponseBody> {
    let (worker, destination) = (&downstream.worker, downstream.destination);
    let host = head::authority(&request);
    let mut guard = RequestGuard::new(downstream.clone(), &request, host.clone());
    if worker.shared.memory.is_exhausted() {
        return Answer::new(Reason::Overload, "the memory of the proxy is exhausted").into_response(guard);
    }
    if request.method() == Method::CONNECT {
        let text = "CONNECT tunnels are opened by the client's proxy; none is accepted here";
        return Answer::new(Reason::ConnectRefused, text).into_response(guard);
    }
    if let Err(BadHead(text)) = head::check(&request) {
        return Answer::new(Reason::BadRequest, text).into_response(guard);
    }
    let inbound = worker.shared.store.load().inbound.clone();
    let uri = request.uri();
    let head =
        RequestHead { method: request.method(), path: uri.path(), query: uri.query(), headers: request.headers() };
    let judged = match inbound.policies.check_request(destination.port(), &head) {
        Ok(judged) => judged,
        Err(TooManyReadings) => {
            let text = "the path has too many possible readings to be checked against policies";
            return Answer::new(Reason::BadRequest, text).into_response(guard);
        }
    };
    let (rule, text) = match judged.verdict {
        PolicyVerdict::Allowed => (None, ""),
        PolicyVerdict::Denied(rule) => (Some(rule), "a policy denies the request"),
        PolicyVerdict::NotAllowed(rule) => (Some(rule), "no policy allows the request"),
    };
    if let Some(rule) = rule {
        guard.set_rule(0, rule);
        let text = match judged.reading {
            Some(reading) if reading.len() <= READING_BYTES_MAX && reading != head.path => {
                format!("{text}: its path can be read as {reading}")
            }
            _ => text.to_owned(),
        };
        return Answer::new(Reason::PolicyDenied, text).into_response(guard);
    }
    let plan = Plan {
        upstream: Upstream::Local(worker.local(destination)),
        host,
        // The path as it came: policies allow every reading of it.
        path: None,
        http2: request.version() == Version::HTTP_2,
        rule: None,
        protected: inbound.policies.protected.as_ref(),
        request_timeout: None,
        attempt_timeout: None,
        retry: None,
    };
    forward(request, plan, guard).await
}
