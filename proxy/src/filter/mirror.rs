//! Copies of requests to another cluster, whose answers nobody waits for.
//!
//! ```text
//! request ── draw ──> Copies ── of(head) ── all of the body is kept ──> one task for each copy ── outcome
//! ```
//!
//! Nothing of it is felt by the request: a copy has no part in its connections, limits or time. It is made of what the
//! retry buffer keeps, so it costs no memory of its own until it is sent.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::header::HeaderValue;
use http::request::Parts;
use http::uri::Authority;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::Instant;
use weft_config as wire;

use super::Fraction;
use crate::balance::affinity::Affinity;
use crate::http::body::{BodyError, REPLAY_BYTES_MAX, RequestBody};
use crate::http::head;
use crate::http::incoming::Incoming;
use crate::outbound::find_cluster;
use crate::table::CompileError;
use crate::table::route::{Origin, Rule, Target};
use crate::telemetry::alive;
use crate::upstream::endpoint::LeaseError;
use crate::upstream::load::Kind;
use crate::worker::Worker;

/// Copies at once in one worker, those that wait for the rest of their body included. With what is kept of bodies they
/// hold 6.4 MiB.
const COPIES_MAX: u32 = 100;

/// How long a copy may take, where the rule says nothing about the request. Source: Envoy's default for a route.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);

/// Bytes of an answer that are read so that its connection can be used again; after more it is closed.
const ANSWER_BYTES_MAX: usize = REPLAY_BYTES_MAX;

/// Where copies of a rule's requests go, and of how many.
#[derive(Debug)]
pub(crate) struct Mirror {
    target: Target,
    /// `namespace/service:port`.
    service: String,
    share: Fraction,
    host_suffix: Option<String>,
}

/// The copies that are to be made of one request.
pub(crate) struct Copies(Vec<Shadow>);

/// One copy. What came of it is counted when it is dropped.
struct Shadow {
    worker: Rc<Worker>,
    mirror: Arc<Mirror>,
    origin: Arc<Origin>,
    timeout: Duration,
    /// As the client speaks.
    http2: bool,
    head: Option<(Parts, Option<HeaderValue>)>,
    outcome: Cell<Outcome>,
}

/// What came of a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The request, or its body, never came to its end.
    NotSent,
    /// The body is longer than what is kept, or has trailers.
    BodyNotKept,
    /// Too many copies are under way, or a limit of the backend's MeshCluster is reached.
    Overflow,
    NoEndpoints,
    /// No connection, or no answer.
    Failed,
    Timeout,
    /// With whatever status.
    Answered,
}

// === impl Mirror ===

impl Mirror {
    pub(crate) fn compile(mirror: wire::Mirror) -> Result<Self, CompileError> {
        let wire::Mirror { target, share, host_suffix } = mirror;
        let service = format!("{}/{}:{}", target.namespace, target.service, target.port);
        Ok(Self { target: Target::compile(target), service, share: Fraction::compile(share)?, host_suffix })
    }
}

// === impl Copies ===

impl Copies {
    /// Decides which copies are made of the next request. None: none.
    pub(crate) fn draw(worker: &Rc<Worker>, mirrors: &[Arc<Mirror>], rule: &Rule, http2: bool) -> Option<Box<Self>> {
        let mut shadows = Vec::new();
        for mirror in mirrors {
            if !mirror.share.takes(&mut worker.rng.borrow_mut()) {
                continue;
            }
            let under_way = worker.copies.get();
            if under_way >= COPIES_MAX {
                worker.handles.mirrored(&mirror.service, &rule.origin.text, Outcome::Overflow.as_str());
                continue;
            }
            worker.copies.set(under_way + 1);
            shadows.push(Shadow {
                worker: worker.clone(),
                mirror: mirror.clone(),
                origin: rule.origin.clone(),
                timeout: rule.request_timeout.unwrap_or(TIMEOUT_DEFAULT),
                http2,
                head: None,
                outcome: Cell::new(Outcome::NotSent),
            });
        }
        (!shadows.is_empty()).then(|| Box::new(Self(shadows)))
    }

    /// Takes the head of the request as it is sent to its own backend.
    pub(crate) fn of(mut self: Box<Self>, parts: &Parts, host: Option<&HeaderValue>) -> Box<Self> {
        for shadow in &mut self.0 {
            let host = host.map(|host| with_suffix(host, shadow.mirror.host_suffix.as_deref()));
            shadow.head = Some((parts.clone(), host));
        }
        self
    }

    /// Sends them, now that all of the body is here.
    pub(crate) fn send(self, chunks: &[Bytes]) {
        for shadow in self.0 {
            let body = chunks.iter().cloned().collect();
            alive::spawn(shadow.send(body));
        }
    }

    /// The body is not kept, so there is nothing to send.
    pub(crate) fn give_up(self) {
        self.0.iter().for_each(|shadow| shadow.outcome.set(Outcome::BodyNotKept));
    }
}

// === impl Shadow ===

impl Shadow {
    async fn send(mut self, body: VecDeque<Bytes>) {
        let timeout = self.timeout;
        match tokio::time::timeout(timeout, self.exchange(body)).await {
            Ok(outcome) => self.outcome.set(outcome),
            // The rest of a copy that was answered may have been what took so long.
            Err(_) if self.outcome.get() == Outcome::Answered => {}
            Err(_) => self.outcome.set(Outcome::Timeout),
        }
    }

    async fn exchange(&mut self, body: VecDeque<Bytes>) -> Outcome {
        let Some((mut parts, host)) = self.head.take() else { return Outcome::NotSent };
        let (worker, target) = (&self.worker, &self.mirror.target);
        let Some(cluster) = find_cluster(worker, target).await else { return Outcome::NoEndpoints };
        let http2 = cluster.http2 || self.http2;
        if head::for_upstream(&mut parts, host, None, http2, None).is_err() {
            return Outcome::NotSent;
        }
        let state = worker.mirror(&cluster);
        let Some(_permit) = state.shared.admit(Kind::Request, cluster.limits.max_requests) else {
            return Outcome::Overflow;
        };
        let picked =
            state.pick(target.subset.as_deref(), &[], Affinity::default(), &mut worker.rng.borrow_mut(), worker.now());
        let Ok(endpoint) = picked else { return Outcome::NoEndpoints };
        let started = Instant::now();
        let lease = match state.lease(&endpoint, http2, false).await {
            Ok(lease) => lease,
            Err(LeaseError::Overflow) => return Outcome::Overflow,
            Err(_) => return Outcome::Failed,
        };
        let body = if body.is_empty() { RequestBody::Empty } else { RequestBody::Whole(body) };
        let Ok(response) = lease.send(&parts, body, None).await else { return Outcome::Failed };
        endpoint.observe(started.elapsed(), worker.now());
        self.outcome.set(Outcome::Answered);
        if read(response.into_body()).await {
            lease.give_back();
        }
        Outcome::Answered
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        self.worker.copies.set(self.worker.copies.get() - 1);
        self.worker.handles.mirrored(&self.mirror.service, &self.origin.text, self.outcome.get().as_str());
    }
}

// === impl Outcome ===

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not-sent",
            Self::BodyNotKept => "body-not-kept",
            Self::Overflow => "overflow",
            Self::NoEndpoints => "no-endpoints",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Answered => "answered",
        }
    }
}

/// Reads an answer and throws it away, while what is left of the copy is sent. Whether both came to their ends.
async fn read(mut body: Incoming) -> bool {
    let mut upload = body.take_upload();
    let uploaded = poll_fn(|cx| upload.as_mut().map_or(Poll::Ready(Ok(())), |upload| upload.poll_send(cx)));
    let answered = async {
        let mut bytes = 0;
        while !body.is_end_stream() {
            match body.frame().await {
                None => break,
                Some(frame) => bytes += frame?.data_ref().map_or(0, Bytes::len),
            }
            if bytes > ANSWER_BYTES_MAX {
                return Err("the answer is longer than what is read of it".into());
            }
        }
        Ok::<(), BodyError>(())
    };
    tokio::try_join!(uploaded, answered).is_ok()
}

/// A host with something behind its name, before its port. One that would not be a host then stays as it is.
fn with_suffix(host: &HeaderValue, suffix: Option<&str>) -> HeaderValue {
    // Behind an IPv6 address nothing can stand.
    let name = host.to_str().ok().filter(|text| !text.starts_with('['));
    let changed = suffix.zip(name).and_then(|(suffix, text)| {
        let changed = match text.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => format!("{name}{suffix}:{port}"),
            _ => format!("{text}{suffix}"),
        };
        changed.parse::<Authority>().ok().and_then(|_| HeaderValue::try_from(changed).ok())
    });
    changed.unwrap_or_else(|| host.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suffix_stands_before_the_port() {
        for (host, suffix, expected) in [
            ("reviews", Some("-shadow"), "reviews-shadow"),
            ("reviews.shop:9080", Some("-shadow"), "reviews.shop-shadow:9080"),
            ("reviews.shop:9080", None, "reviews.shop:9080"),
            ("[::1]:80", Some("-shadow"), "[::1]:80"),
            ("[::1]", Some("-shadow"), "[::1]"),
        ] {
            let found = with_suffix(&HeaderValue::from_static(host), suffix);
            assert_eq!(found, expected, "{host} with {suffix:?}");
        }
    }
}
