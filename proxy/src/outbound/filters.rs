//! The filters of a rule, around its action. What each filter decides is in [`crate::filter`]; its place in the
//! request's way and its effect on the response are here.

use http::header;
use http::{Method, Request, Response, StatusCode};
use tokio::time::{Instant, sleep_until};

use super::action;
use crate::decide::Decision;
use crate::filter::Filters;
use crate::filter::cors;
use crate::filter::fault::Fault;
use crate::filter::rate_limit::{RateLimit, RateLimitStatus};
use crate::http::guard::RequestGuard;
use crate::http::incoming::Incoming;
use crate::http::mirror::Shadows;
use crate::http::respond::{Answer, Reply, headers_mut};
use crate::http::response_body::Content;
use crate::reason::Reason;
use crate::table::route::Rule;

/// Applies the filters of a rule and runs its action. The order of filters is that of this function: a request passes
/// from the first to the last, and the response from the last to the first.
pub(super) async fn apply(
    filters: &Filters,
    request: Box<Request<Incoming>>,
    decision: Decision<'_>,
    guard: &mut RequestGuard,
) -> Reply {
    let Filters { cors, rate_limit, fault, mirrors, response_body_bytes_max } = filters;
    if let Some(cors) = cors
        && cors::preflight(request.method(), request.headers()).is_some()
    {
        return Err(Answer::preflight(cors.preflight_headers(request.headers())));
    }
    let origin = cors.as_ref().and_then(|_| request.headers().get(header::ORIGIN).cloned());
    let limit_status = rate_limit.as_ref().map(|limit| take_token(limit, &request, guard));
    let mut reply = async {
        if limit_status.is_some_and(|status| !status.admitted) {
            return Err(Answer::new(Reason::RateLimited, "the rate limit of the rule is exceeded"));
        }
        if let Some(fault) = fault {
            inject(fault, decision.rule, guard).await?;
        }
        if let Some(shadows) = Shadows::sample(guard.worker(), mirrors, decision.rule, &request) {
            guard.mirror(shadows);
        }
        let response = action::run(request, decision, guard).await?;
        match response_body_bytes_max {
            None => Ok(response),
            Some(bytes_max) => limit_body(response, *bytes_max, guard),
        }
    }
    .await;
    let headers = headers_mut(&mut reply);
    if let Some(status) = limit_status {
        status.add_headers(headers);
    }
    if let Some(cors) = cors {
        cors.apply_to_response(origin.as_ref(), headers);
    }
    reply
}

fn take_token(limit: &RateLimit, request: &Request<Incoming>, guard: &RequestGuard) -> RateLimitStatus {
    let (peer, shared) = (guard.log.downstream.peer.ip(), &guard.worker().shared);
    // The exact time: many requests may be admitted within one clock tick.
    limit.take(&shared.limiters, request.headers(), request.uri().query(), peer, shared.started.elapsed_exact())
}

/// Waits for the delay that the fault filter injects, if any. Err: the injected error, or the request timeout expired.
async fn inject(fault: &Fault, rule: &Rule, guard: &mut RequestGuard) -> Result<(), Box<Answer>> {
    let injected = fault.sample(&mut guard.worker().rng.borrow_mut());
    if let Some(delay) = injected.delay {
        guard.log.fault_delay = Some(delay);
        let (started, until) = (guard.log.started, Instant::now() + delay);
        let deadline = rule.request_timeout.map(|timeout| started + timeout);
        sleep_until(deadline.map_or(until, |deadline| deadline.min(until))).await;
        if deadline.is_some_and(|deadline| deadline < until) {
            let text = "the request timeout expired during an injected delay";
            return Err(Answer::new(Reason::RequestTimeout, text));
        }
    }
    let Some(status) = injected.abort else { return Ok(()) };
    let mut answer = Answer::new(Reason::Fault, "an injected fault of the rule");
    answer.status = Some(status);
    Err(answer)
}

/// Limits the body of an endpoint's response. Err: its `content-length` is larger.
fn limit_body(response: Response<Content>, bytes_max: u64, guard: &RequestGuard) -> Reply {
    // The length in a response to HEAD and in a 304 is that of a body that is not sent.
    if guard.log.method == Method::HEAD || response.status() == StatusCode::NOT_MODIFIED {
        return Ok(response);
    }
    let (head, content) = response.into_parts();
    match content.limit(bytes_max) {
        Ok(content) => Ok(Response::from_parts(head, content)),
        Err(length) => {
            let text = format!("the response body has {length} bytes, more than the rule's limit of {bytes_max}");
            Err(Answer::new(Reason::ResponseTooLarge, text))
        }
    }
}
