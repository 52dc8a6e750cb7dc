//! Connections to this pod: held against policy, then passed to the application.

use std::rc::Rc;
use std::sync::Arc;

use http::{Method, Request, Response, Version};
use rustls::ServerConfig;
use tokio::net::TcpStream;

use crate::decide::RequestHead;
use crate::detect::Verdict;
use crate::downstream::Downstream;
use crate::http::body::ResponseBody;
use crate::http::forward::{LOCAL_CONNECT_TIMEOUT, Plan, RequestGuard, Upstream, forward};
use crate::http::incoming::Incoming;
use crate::http::respond::{Answer, Reason};
use crate::http::{head, serve};
use crate::path::TooManyReadings;
use crate::policy::Verdict as PolicyVerdict;
use crate::sniff::{FirstSpeaker, Prefixed, CLIENT_FIRST_TIMEOUT, Peek};
use crate::stream::Stream;
use crate::tcp;
use crate::telemetry::access::{self, ConnectionLog};
use crate::tls;
use crate::upstream::endpoint::open;

/// A longer reading of a path is not told to its client, in bytes.
const READING_BYTES_MAX: usize = 256;

/// Carries one connection.
pub(crate) async fn handle(downstream: Rc<Downstream>, stream: TcpStream) {
    // In a box that is given back when it is known that the connection carries HTTP: most do, for most of their time.
    let Some((stream, http2)) = Box::pin(begin(&downstream, stream)).await else { return };
    let answering = downstream.clone();
    serve::serve(stream, http2, downstream, move |request| respond(answering.clone(), request)).await;
}

/// Finds out what a connection carries: HTTP, and whether that is HTTP/2. None: anything else, which it carries to its end.
async fn begin(downstream: &Rc<Downstream>, stream: TcpStream) -> Option<(Prefixed, bool)> {
    let Downstream { worker, peer, destination, .. } = &**downstream;
    let shared = &worker.shared;
    let foreign = !shared.pod_ips.is_empty() && !shared.pod_ips.contains(&destination.ip());
    if foreign || shared.own_ports.contains(&destination.port()) {
        tracing::warn!(src.addr = %peer, dst.addr = %destination, reason = Reason::WrongDestination.as_str(), "connection refused");
        return None;
    }
    let (stream, agreed) = match &shared.tls {
        None => (Stream::Plain(stream), None),
        // In a box, because few need the space.
        Some(config) => Box::pin(terminate(downstream, stream, config)).await?,
    };
    let mut stream = Prefixed::new(stream);
    let peek = match agreed {
        _ if shared.opaque_ports.contains(&destination.port()) => Ok(Peek::Detected(Verdict::Opaque)),
        Some(verdict) => Ok(Peek::Detected(verdict)),
        None => stream.sniff(CLIENT_FIRST_TIMEOUT).await,
    };
    let (verdict, upstream) = match peek {
        Ok(Peek::Detected(verdict)) => (verdict, None),
        Ok(Peek::Silent) => {
            let ask = async || ask(downstream).await.map(|stream| (stream, ()));
            match Box::pin(stream.await_first_speaker(shared.timeouts.idle, ask)).await {
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
            Box::pin(bytes(downstream, stream, upstream)).await;
            None
        }
    }
}

/// Makes a handshake with whoever connects. None: it came to nothing, and that is noted. Beside the stream: what was agreed
/// to be spoken.
async fn terminate(
    downstream: &Rc<Downstream>,
    stream: TcpStream,
    config: &Arc<ServerConfig>,
) -> Option<(Stream, Option<Verdict>)> {
    let shared = &downstream.worker.shared;
    let mut note = ConnectionLog::new(downstream);
    if shared.memory.is_exhausted() {
        note.reason = Some(Reason::Overload);
    } else {
        match tls::accept(stream, config, shared.timeouts.head).await {
            Ok(accepted) => return Some(accepted),
            Err(error) => {
                note.reason = Some(Reason::TlsHandshake);
                note.error = Some(error);
            }
        }
    }
    access::connection(note);
    None
}

/// A connection to the application, for one who is silent so far. Nobody is asked for somebody whom policy would not let through.
async fn ask(downstream: &Downstream) -> Option<TcpStream> {
    let inbound = downstream.worker.shared.store.load().inbound.clone();
    match inbound.policies.of_bytes(downstream.destination.port()) {
        PolicyVerdict::Allowed => open(downstream.destination, LOCAL_CONNECT_TIMEOUT).await.ok(),
        PolicyVerdict::Denied(_) | PolicyVerdict::NotAllowed(_) => None,
    }
}

/// Carries bytes to the application.
async fn bytes(downstream: &Rc<Downstream>, stream: Prefixed, upstream: Option<TcpStream>) {
    let (shared, destination) = (&downstream.worker.shared, downstream.destination);
    let mut note = ConnectionLog::new(downstream);
    if shared.memory.is_exhausted() {
        note.reason = Some(Reason::Overload);
        return access::connection(note);
    }
    let inbound = shared.store.load().inbound.clone();
    match inbound.policies.of_bytes(destination.port()) {
        PolicyVerdict::Allowed => {}
        PolicyVerdict::Denied(origin) | PolicyVerdict::NotAllowed(origin) => {
            note.origin = Some(origin.clone());
            note.reason = Some(Reason::PolicyDenied);
            return access::connection(note);
        }
    }
    let upstream = match upstream {
        Some(upstream) => Ok(upstream),
        None => open(destination, LOCAL_CONNECT_TIMEOUT).await,
    };
    match upstream {
        Ok(upstream) => {
            note.endpoint = Some(destination);
            note.relayed(tcp::relay(stream.into_end(), upstream.into(), shared.timeouts.idle, &shared.drain).await);
        }
        Err(_) => note.reason = Some(Reason::ConnectFailed),
    }
    access::connection(note);
}

/// Answers one request.
async fn respond(downstream: Rc<Downstream>, request: Box<Request<Incoming>>) -> Response<ResponseBody> {
    let (worker, destination) = (&downstream.worker, downstream.destination);
    let host = head::authority(&request);
    let mut finish = RequestGuard::new(downstream.clone(), &request, host.clone());
    if worker.shared.memory.is_exhausted() {
        return Answer::new(Reason::Overload, "the proxy has no memory to spare").into_response(finish);
    }
    if request.method() == Method::CONNECT {
        let text = "tunnels end in the client's proxy: what arrives here asks for one that no route has opened";
        return Answer::new(Reason::ConnectRefused, text).into_response(finish);
    }
    if let Err(head::BadHead(text)) = head::check(&request) {
        return Answer::new(Reason::BadRequest, text).into_response(finish);
    }
    let inbound = worker.shared.store.load().inbound.clone();
    let uri = request.uri();
    let head =
        RequestHead { method: request.method(), path: uri.path(), query: uri.query(), headers: request.headers() };
    let judged = match inbound.policies.of_request(destination.port(), &head) {
        Ok(judged) => judged,
        Err(TooManyReadings) => {
            let text = "policies look at paths, and this one can be read in too many ways";
            return Answer::new(Reason::BadRequest, text).into_response(finish);
        }
    };
    let (origin, text) = match judged.verdict {
        PolicyVerdict::Allowed => (None, ""),
        PolicyVerdict::Denied(origin) => (Some(origin), "a policy denies the request"),
        PolicyVerdict::NotAllowed(origin) => (Some(origin), "no policy allows the request"),
    };
    if let Some(origin) = origin {
        finish.set_rule(0, origin);
        let text = match judged.reading {
            Some(reading) if reading.len() <= READING_BYTES_MAX && reading != head.path => {
                format!("{text}: its path can be read as {reading}")
            }
            _ => text.to_owned(),
        };
        return Answer::new(Reason::PolicyDenied, text).into_response(finish);
    }
    let plan = Plan {
        upstream: Upstream::Local(worker.local(destination)),
        host,
        // As it came: every reading of it passes.
        path: None,
        http2: request.version() == Version::HTTP_2,
        rule: None,
        protected: inbound.policies.protected.as_ref(),
        request_timeout: None,
        attempt_timeout: None,
        retry: None,
    };
    forward(request, plan, finish).await
}
