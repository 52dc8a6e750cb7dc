//! What a request holds until it ends, and its record for metrics and the access log.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use http::header::HeaderMap;
use http::{Request, StatusCode};
use tokio::time::Instant;
use weft_config::bootstrap::AccessLog;

use super::head::{self, GRPC_STATUS, ProtectedHeaders};
use super::incoming::Incoming;
use super::mirror::Shadows;
use crate::downstream::Downstream;
use crate::judge::{self, RefusedRequest};
use crate::reason::Reason;
use crate::table::Inbound;
use crate::telemetry::RpcStatus;
use crate::telemetry::access::{self, LoggedHeaders, RequestLog};
use crate::telemetry::alive::{Alive, Kind};
use crate::telemetry::handles::FinishedRequest;
use crate::upstream::endpoint::Lease;
use crate::upstream::shared_cluster::Permit;
use crate::value::RuleName;
use crate::worker::Worker;

/// The status logged for a client that disconnected before the response (nginx's "client closed request").
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// Holds what a request occupies, and records it in metrics and the access log when dropped.
pub(crate) struct RequestGuard {
    pub(crate) log: RequestLog,
    pub(crate) response_bytes: u64,
    pub(super) lease: Option<Lease>,
    permit: Option<Permit>,
    pub(super) shadows: Option<Box<Shadows>>,
    /// Fields that are removed from the response's trailers.
    pub(super) protected: Option<Arc<ProtectedHeaders>>,
    /// If an inbound request is judged again while its response is sent.
    judged: Option<Judged>,
    _alive: Alive,
}

/// What the judgement of a request needs besides its record.
struct Judged {
    /// As they were sent to the application.
    headers: HeaderMap,
    /// The changes after which it was judged last.
    seen: Cell<u64>,
}

impl RequestGuard {
    pub(crate) fn new(downstream: Rc<Downstream>, request: &Request<Incoming>) -> Box<Self> {
        let is_logged = downstream.worker.shared.access_log != AccessLog::Off;
        let log = RequestLog {
            security: downstream.security(),
            downstream,
            started: Instant::now(),
            version: request.version(),
            method: request.method().clone(),
            uri: request.uri().clone(),
            host: head::authority(request),
            rule_name: None,
            cluster: None,
            endpoint: None,
            via: None,
            attempts: 0,
            hedges: 0,
            retry_refused: None,
            status: CLIENT_CLOSED_REQUEST,
            reason: None,
            fault_delay: None,
            body_error: None,
            response_complete: false,
            grpc: head::is_grpc(request.headers()),
            rpc_status: None,
            headers: if is_logged { LoggedHeaders::of_request(request.headers()) } else { None },
        };
        Box::new(Self {
            log,
            response_bytes: 0,
            lease: None,
            permit: None,
            shadows: None,
            protected: None,
            judged: None,
            _alive: Alive::new(Kind::Request),
        })
    }

    /// Records the rule that decided.
    pub(crate) fn set_rule(&mut self, rule_name: &Arc<RuleName>) {
        self.log.rule_name = Some(rule_name.clone());
    }

    /// Counts the request against a limit until it ends.
    pub(crate) fn hold_permit(&mut self, permit: Permit) {
        self.permit = Some(permit);
    }

    /// Mirrors the request when it is sent, beside its other mirrors.
    pub(crate) fn mirror(&mut self, shadows: Box<Shadows>) {
        self.shadows = Some(shadows.and(self.shadows.take()));
    }

    /// The request is judged again after changes beyond those in `seen`.
    pub(super) fn judge_again(&mut self, headers: HeaderMap, seen: u64) {
        self.judged = Some(Judged { headers, seen: Cell::new(seen) });
    }

    /// Whether the request is no longer allowed, which is recorded as the reason why its response breaks off.
    pub(super) fn is_refused(&mut self) -> bool {
        let Self { log, judged: Some(Judged { headers, seen }), .. } = self else { return false };
        let judge = |inbound: &Inbound| judge::request(&log.downstream, inbound, &log.method, &log.uri, headers);
        let Some(RefusedRequest { refusal, .. }) = judge::again(&log.downstream, seen, judge) else { return false };
        log.rule_name = refusal.rule_name().cloned();
        (log.reason, log.body_error) = (Some(refusal.reason()), Some(refusal.reason()));
        true
    }

    pub(crate) fn worker(&self) -> &Rc<Worker> {
        &self.log.downstream.worker
    }

    pub(crate) fn rule_name(&self) -> Option<&Arc<RuleName>> {
        self.log.rule_name.as_ref()
    }

    pub(crate) fn is_grpc(&self) -> bool {
        self.log.grpc
    }

    /// The proxy generates the response.
    pub(crate) fn set_answer(&mut self, reason: Reason, status: StatusCode) {
        self.log.reason = Some(reason);
        self.log.status = status.as_u16();
    }

    /// Records the status of a gRPC call, which is in the head of a response without messages, else in the trailers.
    pub(super) fn record_rpc_status(&mut self, fields: &HeaderMap) {
        if self.log.grpc
            && let Some(status) = fields.get(GRPC_STATUS)
        {
            self.log.rpc_status = Some(RpcStatus::parse(status.as_bytes()));
        }
    }

    /// The whole response was sent.
    pub(crate) fn response_completed(&mut self) {
        self.log.response_complete = true;
    }

    /// Request and response have ended: returns their connection to the pool if both are complete.
    pub(crate) fn release_connection(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }

    /// Reading the request body failed while the response was being sent.
    pub(crate) fn request_aborted(&mut self) {
        self.log.body_error = Some(Reason::DownstreamReset);
    }

    /// The request timeout expired while the response was being sent.
    pub(crate) fn timed_out(&mut self) {
        self.log.body_error = Some(Reason::RequestTimeout);
    }

    /// Reading the response body failed.
    pub(crate) fn upstream_reset(&mut self) {
        self.log.body_error = Some(Reason::UpstreamReset);
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let log = &self.log;
        self.worker().handles.finished(&FinishedRequest {
            direction: log.downstream.direction,
            security: log.security,
            method: &log.method,
            version: log.version,
            rule_name: log.rule_name.as_ref(),
            service: log.cluster.as_ref(),
            status: log.status,
            rpc_status: log.rpc_status,
            reason: log.reason,
            body_error: log.body_error,
            duration: log.started.elapsed(),
        });
        access::request(log, self.response_bytes);
    }
}
