//! Decides whether a request is retried ([`RetryState::after`]) or hedged ([`may_hedge`], [`is_good`],
//! [`acquire_hedge`]), and nothing else does.
//!
//! What is retried, and why:
//!
//! | failure | retry |
//! |---|---|
//! | no connection in time; the endpoint did not process it (REFUSED_STREAM, or a GOAWAY with any code whose last stream is lower) | transparent: any request, without a rule, up to [`TRANSPARENT_RETRIES_MAX`] times. A sidecar does not retry when it cannot connect to its application, and retries once what the application refuses |
//! | the connection was closing: it ended before anything of the request was sent, or a GOAWAY without an error came before it | transparent: any request, without a rule, up to [`UNPROCESSED_RETRIES_MAX`] times |
//! | the endpoint's sidecar says that the application never received the request (`weft-unprocessed`) | transparent: any request, without a rule, up to [`TRANSPARENT_RETRIES_MAX`] times, or [`UNPROCESSED_RETRIES_MAX`] while there are untried endpoints or the kernel picks the endpoint |
//! | the server closed an idle connection just as the request was sent on it | transparent: idempotent requests, without a rule, as RFC 9110 9.2.2 allows |
//! | a reset, an attempt timeout, or a status that the rule lists, also as the equivalent of a gRPC status | by the rule's `retry`, for its methods |
//! | no response yet | by the rule's `hedge` ([`hedge`](super::hedge)) |
//!
//! A rule whose `retry` allows no attempts turns all of this off but for connections that were closing, which took nothing
//! of the request. A `retry` without methods is for statuses of every method, and for idempotent methods otherwise.
//!
//! After a failure because the server closed an idle connection, the retry uses a new connection: other idle ones may
//! be closed too. A POST that may have been sent is not retried (RFC 9110 9.2.2); its client gets 502 with
//! `weft-reason: upstream-reset`. A POST that was not sent, because the end of the connection was seen in time, is
//! retried.
//!
//! A request is retried only while all of its body is in the replay buffer (64 KiB). Retries by rule are also limited
//! by the cluster's retry budget (`weft_balance::Budget`). Transparent retries are not: no backend has processed the
//! request, so they add no load.

use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use tokio::time::Instant;

use super::attempt::{AttemptResult, Failure, PreparedRequest, Upstream, UpstreamResponse};
use crate::table::route::Retry;
use crate::upstream::cluster::ClusterState;
use crate::upstream::shared_cluster::{Kind, Permit};
use crate::worker::Worker;

/// Maximum transparent retries: retries of what no backend has processed (gRPC's term).
const TRANSPARENT_RETRIES_MAX: u32 = 3;

/// Maximum transparent retries on connections that are closing, and while endpoints are untried and the sidecars of
/// those tried respond that their applications accept no connection. They respond within a millisecond, and while a
/// Service is scaled down most endpoints may do so.
const UNPROCESSED_RETRIES_MAX: u32 = 10;

/// Backoff of transparent retries once every endpoint has been tried; doubles up to eight times this.
const TRANSPARENT_BACKOFF: Duration = Duration::from_millis(20);

/// The label in metrics and logs for a retry or hedge that the exhausted retry budget denied.
pub(super) const BUDGET: &str = "budget";

/// The same for a hedge that a limit of the cluster denied.
const OVERFLOW: &str = "overflow";

/// The retries of a request: those made, and those left.
pub(super) struct RetryState<'a> {
    request: &'a PreparedRequest<'a>,
    /// Transparent retries made.
    transparent_retries: u32,
    /// Retries that the rule still allows.
    rule_retries_left: u32,
    /// The retry budget denied a retry that the rule allows.
    pub(super) budget_exhausted: bool,
    /// The last attempt was sent to the Service's own address, where the kernel picks the endpoint.
    via_service_address: bool,
}

/// A retry that is allowed.
pub(super) struct AllowedRetry {
    /// Its label in metrics.
    pub(super) label: &'static str,
    /// How long to wait before it.
    pub(super) backoff: Duration,
}

/// Why a response is not good enough for the client, if it can be helped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// The application never received the request.
    Unprocessed,
    /// The rule's `retry` lists the status.
    Status,
}

// === impl RetryState ===

impl<'a> RetryState<'a> {
    pub(super) fn new(request: &'a PreparedRequest<'a>) -> Self {
        Self {
            request,
            transparent_retries: 0,
            rule_retries_left: request.plan.retry.map_or(0, |retry| retry.attempts),
            budget_exhausted: false,
            via_service_address: false,
        }
    }

    /// Decides whether the request is retried after an attempt. None: its outcome is final.
    pub(super) fn after(
        &mut self,
        outcome: &AttemptResult,
        tried: &[SocketAddr],
        via_service_address: bool,
    ) -> Option<AllowedRetry> {
        self.budget_exhausted = false;
        self.via_service_address = via_service_address;
        let was_closing = matches!(outcome, Err(Failure::Connect { closing: true, .. }));
        if !self.request.body.can_replay() || self.is_off() && !was_closing {
            return None;
        }
        let label = match outcome {
            Ok(response) => self.after_response(response, tried),
            Err(failure) => self.after_failure(failure),
        }?;
        let backoff = self.backoff(tried);
        let is_late = self.request.deadline.is_some_and(|deadline| Instant::now() + backoff >= deadline);
        (!is_late).then_some(AllowedRetry { label, backoff })
    }

    /// Whether the rule says that the request is sent to one endpoint only.
    pub(super) fn is_off(&self) -> bool {
        self.request.plan.retry.is_some_and(|retry| retry.attempts == 0)
    }

    /// Whether a response is discarded and the request retried: the label of the retry.
    fn after_response(&mut self, response: &UpstreamResponse, tried: &[SocketAddr]) -> Option<&'static str> {
        match flaw(response, self.request.plan.retry)? {
            Flaw::Unprocessed => {
                let has_untried = self.via_service_address || self.has_untried(tried);
                let max = if has_untried { UNPROCESSED_RETRIES_MAX } else { TRANSPARENT_RETRIES_MAX };
                self.retry_transparently_up_to(max, "unprocessed")
            }
            Flaw::Status => self.retry_by_rule("status", true),
        }
    }

    /// Whether a failed attempt is retried: the label of the retry.
    fn after_failure(&mut self, failure: &Failure) -> Option<&'static str> {
        let is_local = matches!(self.request.plan.upstream, Upstream::Local(_));
        let is_idempotent = self.request.parts.method.is_idempotent();
        match failure {
            // The client's proxy is told of these and picks another pod: if both proxies retried, attempts would
            // multiply. Not so if the application closed an idle connection as usual: a new one can be had at once.
            Failure::Connect { connected: false, .. } if is_local => None,
            Failure::Connect { closing: false, .. } | Failure::Refused(_)
                if is_local && self.transparent_retries > 0 =>
            {
                None
            }
            // A server that closes connections after some requests each may close several under one request.
            Failure::Connect { closing: true, .. } => self
                .retry_transparently_up_to(UNPROCESSED_RETRIES_MAX, "connect")
                .or_else(|| self.retry_by_rule("connect", true)),
            Failure::Connect { .. } | Failure::Refused(_) => {
                self.retry_transparently("connect").or_else(|| self.retry_by_rule("connect", true))
            }
            Failure::Reset { reused, .. } => self
                .retry_by_rule("reset", false)
                .or_else(|| if *reused && is_idempotent { self.retry_transparently("reset") } else { None }),
            Failure::AttemptTimeout { connected: false } => {
                self.retry_transparently("connect").or_else(|| self.retry_by_rule("timeout", true))
            }
            Failure::AttemptTimeout { connected: true } => self.retry_by_rule("timeout", false),
            Failure::NoEndpoints(_)
            | Failure::Overflow
            | Failure::BadRequestBody
            | Failure::SlowRequestBody
            | Failure::Protocol(_)
            | Failure::TooLarge(_)
            | Failure::RequestTimeout => None,
        }
    }

    /// A transparent retry, if the maximum is not reached.
    fn retry_transparently(&mut self, label: &'static str) -> Option<&'static str> {
        self.retry_transparently_up_to(TRANSPARENT_RETRIES_MAX, label)
    }

    fn retry_transparently_up_to(&mut self, max: u32, label: &'static str) -> Option<&'static str> {
        (self.transparent_retries < max).then(|| {
            self.transparent_retries += 1;
            label
        })
    }

    /// A retry by the rule, if its methods, its attempts and the retry budget allow it. `is_rejected`: the backend did
    /// not process the request.
    fn retry_by_rule(&mut self, label: &'static str, is_rejected: bool) -> Option<&'static str> {
        let PreparedRequest { worker, plan, parts, .. } = self.request;
        plan.retry.filter(|retry| retry.covers(&parts.method, is_rejected))?;
        let left = self.rule_retries_left.checked_sub(1)?;
        if let Upstream::Cluster(state, _) = &plan.upstream
            && !state.try_spend_retry(worker.now())
        {
            self.budget_exhausted = true;
            return None;
        }
        self.rule_retries_left = left;
        Some(label)
    }

    /// The number of endpoints to try.
    fn endpoint_count(&self) -> usize {
        match &self.request.plan.upstream {
            Upstream::Local(_) => 1,
            Upstream::Cluster(state, subset) => state.candidate_count(*subset),
        }
    }

    /// How long to wait before the retry that was just allowed.
    fn backoff(&self, tried: &[SocketAddr]) -> Duration {
        let PreparedRequest { worker, plan, .. } = self.request;
        let rule_retries = plan.retry.map_or(0, |retry| retry.attempts - self.rule_retries_left);
        if let (Some(retry), 1..) = (plan.retry, rule_retries) {
            let base = retry.backoff * 2u32.saturating_pow(rule_retries - 1);
            let jitter = retry.backoff.mul_f64(f64::from(worker.rng.borrow_mut().below(1000)) / 2000.0);
            return base.min(retry.backoff * 10) + jitter;
        }
        if self.has_untried(tried) {
            Duration::ZERO
        } else {
            TRANSPARENT_BACKOFF * 2u32.pow(self.transparent_retries.clamp(1, 4) - 1)
        }
    }

    /// Whether there is an untried endpoint.
    fn has_untried(&self, tried: &[SocketAddr]) -> bool {
        !self.via_service_address && tried.len() < self.endpoint_count()
    }
}

/// What is wrong with a response, for retries as for hedges.
fn flaw(response: &UpstreamResponse, retry: Option<&Retry>) -> Option<Flaw> {
    if response.is_unprocessed() {
        return Some(Flaw::Unprocessed);
    }
    retry?.codes.contains(&response.status).then_some(Flaw::Status)
}

// === hedges ===

/// Whether a request may be hedged: it could be retried, and is not bound to one endpoint by a session cookie.
pub(super) fn may_hedge(request: &PreparedRequest<'_>) -> bool {
    request.body.can_replay()
        && !request.affinity.is_session()
        && is_hedged_method(request.plan.retry, &request.parts.method)
}

/// The methods that the rule's `retry` lists; without it, the idempotent ones.
fn is_hedged_method(retry: Option<&Retry>, method: &Method) -> bool {
    retry.map_or_else(|| method.is_idempotent(), |retry| retry.covers(method, false))
}

/// Whether an outcome ends the race of hedges: a response that is not retried.
pub(super) fn is_good(outcome: &AttemptResult, retry: Option<&Retry>) -> bool {
    outcome.as_ref().is_ok_and(|response| flaw(response, retry).is_none())
}

/// A permit for one more attempt, or the label of the limit that denied it.
pub(super) fn acquire_hedge(worker: &Worker, state: &ClusterState) -> Result<Permit, &'static str> {
    let permit = state.shared.admit(Kind::Request, state.cluster().limits.max_requests).ok_or(OVERFLOW)?;
    if state.try_spend_retry(worker.now()) { Ok(permit) } else { Err(BUDGET) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hedged_methods_follow_the_retry_rule_or_idempotence() {
        let retry = Retry {
            attempts: 1,
            codes: Box::default(),
            methods: Box::new([Method::POST]),
            backoff: Duration::from_millis(25),
        };
        for (method, without, with) in
            [(Method::GET, true, false), (Method::PUT, true, false), (Method::POST, false, true)]
        {
            assert_eq!(
                (is_hedged_method(None, &method), is_hedged_method(Some(&retry), &method)),
                (without, with),
                "{method}"
            );
        }
    }
}
