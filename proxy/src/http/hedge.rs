//! Hedging: where an endpoint is slow to answer, a request goes to another one as well, and the first good answer counts.
//!
//! An answer is good unless the rule's `retry` would repeat it, or it says that nobody saw the request. The last answer of all
//! that are under way counts whatever it is, and is then the attempt's outcome as if there had been one alone. Whoever is
//! not waited for is cancelled: its connection is closed, or its HTTP/2 stream reset. That is no failure of its, but it is no
//! faster than it was.
//!
//! A request is hedged only where it might be repeated: its method is one of the rule's `retry`, or without that idempotent;
//! all of its body is kept; the cluster's budget and limits allow one more; and there is an endpoint that does not have it
//! yet. A session that a cookie ties to its endpoint stays there.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use http::Method;
use http::request::Parts;
use tokio::time::{Instant, sleep};

use super::body::SharedBody;
use super::forward::{self, Attempted, BUDGET, Plan, RequestLog, Upstream, choose, discard};
use crate::balance::affinity::Affinity;
use crate::table::route::{Hedge, Retry};
use crate::upstream::cluster::ClusterState;
use crate::upstream::endpoint::Endpoint;
use crate::upstream::load::{Kind, Permit};
use crate::worker::Worker;

/// The word of metrics for an attempt beside others.
const HEDGE: &str = "hedge";

/// The word for a limit that did not allow one.
const OVERFLOW: &str = "overflow";

/// What is sent, to whomever.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) plan: &'a Plan<'a>,
    /// On connections that have not idled.
    pub(super) fresh: bool,
    pub(super) parts: &'a Parts,
    pub(super) body: &'a Rc<SharedBody>,
}

/// What there is to begin beside what is under way.
enum Next<F> {
    Begin(F),
    /// Not now.
    Later,
    /// No more.
    Nothing,
}

/// What a race came to.
struct Raced<T> {
    outcome: T,
    /// In order of beginning: whose the outcome is.
    winner: usize,
    /// Those that were not waited for.
    cancelled: Vec<usize>,
}

/// Sends a request to `first`, and beside it to others while nobody answers.
pub(super) async fn attempt(
    request: Request<'_>,
    hedge: &Hedge,
    first: Rc<Endpoint>,
    affinity: Affinity,
    deadline: Option<Instant>,
    tried: &mut Vec<SocketAddr>,
    log: &mut RequestLog,
) -> Attempted {
    let Request { worker, plan, fresh, parts, body } = request;
    let send = |endpoint: Rc<Endpoint>, permit: Option<Permit>| async move {
        let _permit = permit;
        forward::attempt(worker, plan, endpoint, fresh, parts, body, deadline).await
    };
    let mut begun = vec![(first.clone(), Instant::now())];
    let next = || {
        if log.hedges == hedge.attempts || !body.can_replay() || !may_hedge(plan.retry, &parts.method) {
            return Next::Nothing;
        }
        if !body.is_kept() {
            return Next::Later;
        }
        let Some((endpoint, permit)) = another(request, affinity, tried, log) else { return Next::Nothing };
        worker.handles.retried(log.cluster.as_deref(), HEDGE);
        log.attempts += 1;
        log.hedges += 1;
        begun.push((endpoint.clone(), Instant::now()));
        Next::Begin(send(endpoint, Some(permit)))
    };
    let reject = |outcome: Attempted| {
        if let Ok(answered) = outcome {
            discard(*answered);
        }
    };
    let raced = race(send(first, None), hedge.after, next, |outcome| is_good(plan.retry, outcome), reject).await;
    let Raced { outcome, winner, cancelled } = raced;
    log.endpoint = Some(begun[winner].0.address);
    for (endpoint, since) in cancelled.into_iter().map(|number| &begun[number]) {
        endpoint.observe_at_least(since.elapsed(), worker.now());
    }
    outcome
}

/// An endpoint that does not have the request yet, with leave to send it there.
fn another(
    request: Request<'_>,
    affinity: Affinity,
    tried: &mut Vec<SocketAddr>,
    log: &mut RequestLog,
) -> Option<(Rc<Endpoint>, Permit)> {
    let Request { worker, plan, .. } = request;
    let Upstream::Cluster(state, _) = &plan.upstream else { return None };
    if affinity.is_session() {
        return None;
    }
    let before = tried.len();
    let endpoint = choose(worker, plan, affinity, tried, true).ok()?;
    // Where all have it, one of them is chosen.
    if tried[..before].contains(&endpoint.address) {
        tried.truncate(before);
        return None;
    }
    match leave(worker, state) {
        Ok(permit) => Some((endpoint, permit)),
        Err(why) => {
            tried.truncate(before);
            worker.handles.retry_refused(log.cluster.as_deref(), why);
            log.retry_refused = Some(why);
            None
        }
    }
}

/// Leave to send one more, or what does not allow it.
fn leave(worker: &Worker, state: &ClusterState) -> Result<Permit, &'static str> {
    let permit = state.shared.admit(Kind::Request, state.cluster().limits.max_requests).ok_or(OVERFLOW)?;
    if state.try_spend_retry(worker.now()) { Ok(permit) } else { Err(BUDGET) }
}

fn may_hedge(retry: Option<&Retry>, method: &Method) -> bool {
    retry.map_or_else(|| method.is_idempotent(), |retry| retry.methods.contains(method))
}

fn is_good(retry: Option<&Retry>, outcome: &Attempted) -> bool {
    let Ok(answered) = outcome else { return false };
    !answered.is_unprocessed() && retry.is_none_or(|retry| !retry.codes.contains(&answered.status))
}

/// Runs `first`, and beside it what `next` has to begin each time that nothing good has come for `after`. The first outcome
/// that is good counts, or the last of those that are under way; all others are given to `reject`.
async fn race<F: Future>(
    first: F,
    after: Duration,
    mut next: impl FnMut() -> Next<F>,
    is_good: impl Fn(&F::Output) -> bool,
    mut reject: impl FnMut(F::Output),
) -> Raced<F::Output> {
    let mut running = vec![(0, Box::pin(first))];
    let (mut begun, mut more) = (1, true);
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
                    return Poll::Ready(Raced { outcome, winner, cancelled });
                }
                reject(outcome);
            }
            if !more || timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            timer.as_mut().reset(Instant::now() + after);
            match next() {
                Next::Begin(another) => {
                    running.push((begun, Box::pin(another)));
                    begun += 1;
                }
                Next::Later => {}
                Next::Nothing => more = false,
            }
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_millis(50);

    /// Answers a status after so many milliseconds.
    async fn answer((ms, status): (u64, u16)) -> u16 {
        sleep(Duration::from_millis(ms)).await;
        status
    }

    /// Runs the first of these, with the others to begin beside it; 503 is not good. Gives back what counted and whose it was,
    /// who was cancelled, what was rejected, and how many milliseconds it took.
    async fn run(answers: &[(u64, u16)], later: u32) -> (u16, usize, Vec<usize>, Vec<u16>, u128) {
        let (begun, mut waits, mut rejected) = (Instant::now(), later, Vec::new());
        let mut others = answers[1..].iter();
        let next = || {
            if waits > 0 {
                waits -= 1;
                return Next::Later;
            }
            others.next().map_or(Next::Nothing, |other| Next::Begin(answer(*other)))
        };
        let reject = |status| rejected.push(status);
        let raced = race(answer(answers[0]), AFTER, next, |status| *status != 503, reject).await;
        (raced.outcome, raced.winner, raced.cancelled, rejected, begun.elapsed().as_millis())
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_good_answer_counts() {
        assert_eq!(run(&[(40, 200), (1, 201)], 0).await, (200, 0, vec![], vec![], 40), "in time: nobody else is asked");
        assert_eq!(run(&[(500, 200), (10, 201)], 0).await, (201, 1, vec![0], vec![], 60), "the other one is faster");
        assert_eq!(run(&[(55, 200), (10, 201)], 0).await, (200, 0, vec![1], vec![], 55), "the first one is after all");
        assert_eq!(
            run(&[(500, 200), (500, 201), (10, 202), (1, 203)], 0).await,
            (202, 2, vec![0, 1], vec![], 110),
            "one more each time"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_bad_answer_counts_only_if_it_is_the_last() {
        assert_eq!(run(&[(40, 503), (1, 200)], 0).await, (503, 0, vec![], vec![], 40), "retries are for that");
        assert_eq!(run(&[(500, 200), (10, 503)], 0).await, (200, 0, vec![], vec![503], 500));
        assert_eq!(run(&[(70, 503), (100, 503)], 0).await, (503, 1, vec![], vec![503], 150), "nobody is left");
        assert_eq!(
            run(&[(70, 503), (100, 503), (20, 200)], 0).await,
            (200, 2, vec![1], vec![503], 120),
            "one is left, and nobody has answered for long enough"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_begin_yet_begins_later() {
        assert_eq!(run(&[(500, 200), (10, 201)], 2).await, (201, 1, vec![0], vec![], 160));
    }

    #[test]
    fn methods_are_the_rule_s_or_the_idempotent_ones() {
        let retry = Retry { attempts: 1, codes: Box::default(), methods: Box::new([Method::POST]), backoff: AFTER };
        for (method, without, with) in
            [(Method::GET, true, false), (Method::PUT, true, false), (Method::POST, false, true)]
        {
            assert_eq!((may_hedge(None, &method), may_hedge(Some(&retry), &method)), (without, with), "{method}");
        }
    }
}
