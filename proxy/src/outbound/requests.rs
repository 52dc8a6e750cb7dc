//! Outbound requests: finds the rule that matches, then applies its filters ([`filters`]) and runs its action
//! ([`action`]). A port without rules forwards to its own Service.

use std::rc::Rc;
use std::sync::Arc;

use http::{Method, Request, Response};

use super::{action, filters};
use crate::decide::{Decision, decide};
use crate::downstream::Downstream;
use crate::filter::cors;
use crate::http::forward::forward;
use crate::http::guard::RequestGuard;
use crate::http::incoming::Incoming;
use crate::http::respond::{Answer, Reply, finish};
use crate::http::response_body::ResponseBody;
use crate::http::{head, tunnel};
use crate::matcher::RequestHead;
use crate::reason::Reason;
use crate::table::Port;
use crate::table::route::Routes;

/// Responds to one request.
pub(super) async fn respond(
    downstream: Rc<Downstream>,
    port: Arc<Port>,
    request: Box<Request<Incoming>>,
) -> Response<ResponseBody> {
    let mut guard = RequestGuard::new(downstream, &request);
    let reply = route(port, request, &mut guard).await;
    finish(reply, guard)
}

async fn route(port: Arc<Port>, request: Box<Request<Incoming>>, guard: &mut RequestGuard) -> Reply {
    if guard.worker().shared.memory.is_exhausted() {
        return Err(Answer::overload());
    }
    head::check(&request).map_err(Answer::bad_request)?;
    let is_connect = request.method() == Method::CONNECT;
    if is_connect {
        head::check_connect(&request).map_err(Answer::bad_request)?;
    }
    let table = guard.worker().shared.store.load();
    // The newest version of the port: a connection outlives many tables.
    let port = table.port(guard.log.downstream.destination).cloned().unwrap_or(port);
    let routes = table.routes(&port).cloned();
    drop(table);
    guard.log.cluster = Some(port.cluster.name.clone());
    let Some(routes) = routes else {
        if is_connect {
            return Err(tunnel::refusal());
        }
        let plan = action::plan(&port.cluster, None, request.version(), guard)?;
        return forward(request, plan, guard).await;
    };
    let Some(decision) = decide_request(&routes, &request) else {
        if is_connect {
            return Err(tunnel::refusal());
        }
        let text = format!("no rule of the routes for {} matches the request", port.cluster.name);
        return Err(Answer::new(Reason::NoRoute, text));
    };
    guard.set_rule(&decision.rule.name);
    match decision.rule.filters.as_deref() {
        None => action::run(request, decision, guard).await,
        // Boxed: rare.
        Some(filters) => Box::pin(filters::apply(filters, request, decision, guard)).await,
    }
}

/// The rule for a request. A CORS preflight is matched as the request that it announces, if that rule or a backend of it
/// has CORS settings.
fn decide_request<'a>(routes: &'a Routes, request: &Request<Incoming>) -> Option<Decision<'a>> {
    let uri = request.uri();
    let head =
        RequestHead { method: request.method(), path: uri.path(), query: uri.query(), headers: request.headers() };
    let announced = cors::preflight(request.method(), request.headers())
        .and_then(|method| decide(routes, &RequestHead { method: &method, ..head }))
        .filter(|decision| decision.rule.has_cors());
    announced.or_else(|| decide(routes, &head))
}
