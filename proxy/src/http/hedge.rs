//! Hedging: when an endpoint is slow to respond, the request is sent to another endpoint too; the first good response
//! wins.
//!
//! A response is good unless the rule's `retry` would retry it, or it says that the backend did not process the
//! request. When only one attempt is still running, its outcome is used whatever it is, as if it had been the only
//! attempt. The others are cancelled: the connection is closed, or the HTTP/2 stream reset. A cancelled attempt is not
//! a failure of its endpoint, but the time that it took counts as a lower bound of the endpoint's latency.
//!
//! A request is hedged only if it could be retried: its method is in the rule's `retry`, or is idempotent if there is
//! none; all of its body is in the replay buffer; the cluster's retry budget and limits allow one more attempt; and
//! there is an endpoint that has not been sent it. A request with a session cookie is not hedged.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::Method;
use http::request::Parts;
use tokio::time::{Instant, sleep};

use super::attempt::{self, AttemptResult, Plan, Upstream, drain_body, pick_endpoint};
use super::request_body::SharedBody;
use super::retry::BUDGET;
use crate::affinity::Affinity;
use crate::table::route::{Hedge, Retry};
use crate::telemetry::access::RequestLog;
use crate::upstream::cluster::ClusterState;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::shared_cluster::{Kind, Permit};
use crate::worker::Worker;

/// The label of a hedge in the metric of retries.
const HEDGE: &str = "hedge";

/// The label of a hedge that a limit denied.
const OVERFLOW: &str = "overflow";

/// The request that the attempts of a race send.
#[derive(Clone, Copy)]
pub(super) struct HedgedRequest<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) plan: &'a Plan<'a>,
    /// Not on pooled connections that have been idle.
    pub(super) fresh: bool,
    pub(super) parts: &'a Parts,
    pub(super) body: &'a Rc<SharedBody>,
}

/// What to do when no good response has arrived in time.
enum NextAttempt<F> {
    /// Start this attempt too.
    Start(F),
    /// Ask again after the next delay.
    NotYet,
    /// Start no more attempts.
    Stop,
}

/// The result of a race. Attempts are numbered in the order in which they started.
struct RaceResult<T> {
    outcome: T,
    /// The attempt that `outcome` is of.
    winner: usize,
    /// The attempts that had not completed.
    cancelled: Vec<usize>,
}

/// Sends a request to `first`, and to further endpoints while no good response arrives.
pub(super) async fn attempt(
    request: HedgedRequest<'_>,
    hedge: &Hedge,
    first: Rc<Endpoint>,
    affinity: Affinity,
    deadline: Option<Instant>,
    tried: &mut Vec<SocketAddr>,
    log: &mut RequestLog,
) -> AttemptResult {
    let HedgedRequest { worker, plan, fresh, parts, body } = request;
    let send = |endpoint: Rc<Endpoint>, permit: Option<Permit>| async move {
        let _permit = permit;
        attempt::attempt(worker, plan, endpoint, fresh, parts, body, deadline).await
    };
    let mut started = vec![(first.clone(), Instant::now())];
    let next = || {
        if log.hedges == hedge.attempts || !body.can_replay() || !may_hedge(plan.retry, &parts.method) {
            return NextAttempt::Stop;
        }
        if !body.is_buffered() {
            return NextAttempt::NotYet;
        }
        let Some((endpoint, permit)) = pick_hedge(request, affinity, tried, log) else { return NextAttempt::Stop };
        worker.handles.retried(log.cluster.as_deref(), HEDGE);
        log.attempts += 1;
        log.hedges += 1;
        started.push((endpoint.clone(), Instant::now()));
        NextAttempt::Start(send(endpoint, Some(permit)))
    };
    let reject = |outcome: AttemptResult| {
        if let Ok(response) = outcome {
            drain_body(*response);
        }
    };
    let result = race(send(first, None), hedge.after, next, |outcome| is_good(plan.retry, outcome), reject).await;
    let RaceResult { outcome, winner, cancelled } = result;
    log.endpoint = Some(started[winner].0.address);
    for (endpoint, since) in cancelled.into_iter().map(|number| &started[number]) {
        endpoint.observe_at_least(since.elapsed(), worker.now());
    }
    outcome
}

/// Picks an endpoint that has not been sent the request, with a permit to send it there.
fn pick_hedge(
    request: HedgedRequest<'_>,
    affinity: Affinity,
    tried: &mut Vec<SocketAddr>,
    log: &mut RequestLog,
) -> Option<(Rc<Endpoint>, Permit)> {
    let HedgedRequest { worker, plan, .. } = request;
    let Upstream::Cluster(state, _) = &plan.upstream else { return None };
    if affinity.is_session() {
        return None;
    }
    let before = tried.len();
    let endpoint = pick_endpoint(worker, plan, affinity, tried, true).ok()?;
    // If all endpoints were tried, `pick_endpoint` returns one of them again.
    if tried[..before].contains(&endpoint.address) {
        tried.truncate(before);
        return None;
    }
    match acquire(worker, state) {
        Ok(permit) => Some((endpoint, permit)),
        Err(why) => {
            tried.truncate(before);
            worker.handles.retry_refused(log.cluster.as_deref(), why);
            log.retry_refused = Some(why);
            None
        }
    }
}

/// A permit for one more attempt, or the label of the limit that denied it.
fn acquire(worker: &Worker, state: &ClusterState) -> Result<Permit, &'static str> {
    let permit = state.shared.admit(Kind::Request, state.cluster().limits.max_requests).ok_or(OVERFLOW)?;
    if state.try_spend_retry(worker.now()) { Ok(permit) } else { Err(BUDGET) }
}

fn may_hedge(retry: Option<&Retry>, method: &Method) -> bool {
    retry.map_or_else(|| method.is_idempotent(), |retry| retry.methods.contains(method))
}

fn is_good(retry: Option<&Retry>, outcome: &AttemptResult) -> bool {
    let Ok(response) = outcome else { return false };
    !response.is_unprocessed() && retry.is_none_or(|retry| !retry.codes.contains(&response.status))
}

/// Runs `first`, and asks `next` for a further attempt each time that no good outcome has arrived for `after`. Returns
/// the first good outcome, or the last one when no other attempt is running; earlier bad outcomes are given to
/// `reject`.
async fn race<F: Future>(
    first: F,
    after: Duration,
    mut next: impl FnMut() -> NextAttempt<F>,
    is_good: impl Fn(&F::Output) -> bool,
    mut reject: impl FnMut(F::Output),
) -> RaceResult<F::Output> {
    let mut running = vec![(0, Box::pin(first))];
    let (mut started, mut can_start) = (1, true);
    let mut timer = pin!(sleep(after));
    poll_fn(|cx| {
        loop {
            let mut at = 0;
            while at < running.len() {
                let Poll::Ready(outcome) = running[at].1.as_mut().poll(cx) else {
                    at += 1;
                    continue;
                };
                let (winner, _) = running.remove(at);
                if running.is_empty() || is_good(&outcome) {
                    let cancelled = running.drain(..).map(|(number, _)| number).collect();
                    return Poll::Ready(RaceResult { outcome, winner, cancelled });
                }
                reject(outcome);
            }
            if !can_start || timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            timer.as_mut().reset(Instant::now() + after);
            match next() {
                NextAttempt::Start(attempt) => {
                    running.push((started, Box::pin(attempt)));
                    started += 1;
                }
                NextAttempt::NotYet => {}
                NextAttempt::Stop => can_start = false,
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_millis(50);

    /// Responds with a status after this many milliseconds.
    async fn answer((ms, status): (u64, u16)) -> u16 {
        sleep(Duration::from_millis(ms)).await;
        status
    }

    /// Races the first of these, with the others as hedges; 503 is not good, and the first `delays` hedges are not
    /// started yet. Returns the outcome, the winner, the cancelled attempts, the rejected outcomes, and the
    /// milliseconds taken.
    async fn run(answers: &[(u64, u16)], delays: u32) -> (u16, usize, Vec<usize>, Vec<u16>, u128) {
        let (started, mut delays, mut rejected) = (Instant::now(), delays, Vec::new());
        let mut hedges = answers[1..].iter();
        let next = || {
            if delays > 0 {
                delays -= 1;
                return NextAttempt::NotYet;
            }
            hedges.next().map_or(NextAttempt::Stop, |hedge| NextAttempt::Start(answer(*hedge)))
        };
        let reject = |status| rejected.push(status);
        let result = race(answer(answers[0]), AFTER, next, |status| *status != 503, reject).await;
        (result.outcome, result.winner, result.cancelled, rejected, started.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn race_returns_the_first_good_outcome() {
        assert_eq!(run(&[(40, 200), (1, 201)], 0).await, (200, 0, vec![], vec![], 40), "in time: no hedge");
        assert_eq!(run(&[(500, 200), (10, 201)], 0).await, (201, 1, vec![0], vec![], 60), "the hedge is faster");
        assert_eq!(
            run(&[(55, 200), (10, 201)], 0).await,
            (200, 0, vec![1], vec![], 55),
            "the first attempt is faster after all"
        );
        assert_eq!(
            run(&[(500, 200), (500, 201), (10, 202), (1, 203)], 0).await,
            (202, 2, vec![0, 1], vec![], 110),
            "one more hedge after each delay"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn race_returns_a_bad_outcome_only_if_it_is_the_last() {
        assert_eq!(run(&[(40, 503), (1, 200)], 0).await, (503, 0, vec![], vec![], 40), "no hedge: this is for retries");
        assert_eq!(run(&[(500, 200), (10, 503)], 0).await, (200, 0, vec![], vec![503], 500));
        assert_eq!(
            run(&[(70, 503), (100, 503)], 0).await,
            (503, 1, vec![], vec![503], 150),
            "no other attempt is running"
        );
        assert_eq!(
            run(&[(70, 503), (100, 503), (20, 200)], 0).await,
            (200, 2, vec![1], vec![503], 120),
            "one attempt is running, and the delay has passed"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn race_asks_again_when_a_hedge_cannot_start_yet() {
        assert_eq!(run(&[(500, 200), (10, 201)], 2).await, (201, 1, vec![0], vec![], 160));
    }

    #[test]
    fn may_hedge_follows_the_retry_rule_or_idempotence() {
        let retry = Retry { attempts: 1, codes: Box::default(), methods: Box::new([Method::POST]), backoff: AFTER };
        for (method, without, with) in
            [(Method::GET, true, false), (Method::PUT, true, false), (Method::POST, false, true)]
        {
            assert_eq!((may_hedge(None, &method), may_hedge(Some(&retry), &method)), (without, with), "{method}");
        }
    }
}
