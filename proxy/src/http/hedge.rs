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

use tokio::time::{Instant, sleep};

use super::attempt::{self, AttemptResult, PreparedRequest, Upstream, pick_endpoint};
use super::retry::{acquire_hedge, is_good, may_hedge};
use crate::table::route::Hedge;
use crate::telemetry::access::RequestLog;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::shared_cluster::Permit;

/// The label of a hedge in the metric of retries.
const HEDGE: &str = "hedge";

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

/// Sends a request to `first`, and to further endpoints while no good response arrives. `fresh`: not on pooled
/// connections that have been idle.
pub(super) async fn attempt(
    request: &PreparedRequest<'_>,
    hedge: &Hedge,
    first: Rc<Endpoint>,
    fresh: bool,
    tried: &mut Vec<SocketAddr>,
    log: &mut RequestLog,
) -> AttemptResult {
    let (worker, retry) = (&request.worker, request.plan.retry);
    let send = |endpoint: Rc<Endpoint>, permit: Option<Permit>| async move {
        let _permit = permit;
        attempt::attempt(request, endpoint, fresh).await
    };
    let mut started = vec![(first.clone(), Instant::now())];
    let next = || {
        if log.hedges == hedge.attempts || !may_hedge(request) {
            return NextAttempt::Stop;
        }
        if !request.body.is_buffered() {
            return NextAttempt::NotYet;
        }
        let Some((endpoint, permit)) = pick_hedge(request, tried, log) else { return NextAttempt::Stop };
        worker.handles.retried(log.cluster.as_deref(), HEDGE);
        log.attempts += 1;
        log.hedges += 1;
        started.push((endpoint.clone(), Instant::now()));
        NextAttempt::Start(send(endpoint, Some(permit)))
    };
    let reject = |outcome: AttemptResult| {
        if let Ok(response) = outcome {
            response.discard();
        }
    };
    let result = race(send(first, None), hedge.after, next, |outcome| is_good(outcome, retry), reject).await;
    let RaceResult { outcome, winner, cancelled } = result;
    log.endpoint = Some(started[winner].0.address);
    for (endpoint, since) in cancelled.into_iter().map(|number| &started[number]) {
        endpoint.observe_at_least(since.elapsed(), worker.now());
    }
    outcome
}

/// Picks an endpoint that has not been sent the request, with a permit to send it there.
fn pick_hedge(
    request: &PreparedRequest<'_>,
    tried: &mut Vec<SocketAddr>,
    log: &mut RequestLog,
) -> Option<(Rc<Endpoint>, Permit)> {
    let Upstream::Cluster(state, _) = &request.plan.upstream else { return None };
    let before = tried.len();
    let endpoint = pick_endpoint(request, tried, true).ok()?;
    // If all endpoints were tried, `pick_endpoint` returns one of them again.
    if tried[..before].contains(&endpoint.address) {
        tried.truncate(before);
        return None;
    }
    match acquire_hedge(&request.worker, state) {
        Ok(permit) => Some((endpoint, permit)),
        Err(why) => {
            tried.truncate(before);
            request.worker.handles.retry_refused(log.cluster.as_deref(), why);
            log.retry_refused = Some(why);
            None
        }
    }
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
}
