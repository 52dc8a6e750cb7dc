//! Sends copies ("shadows") of requests to another cluster and discards the responses.
//!
//! ```text
//! request ── sample ──> Shadows ── with_head ── the whole body is kept ──> one task for each shadow ── outcome
//! ```
//!
//! The request itself is not affected: a shadow has no part in its connections, limits or time. Its body comes from the
//! retry buffer, so a shadow takes no memory of its own until it is sent.

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
use http::{Request, Version};
use tokio::time::Instant;

use super::drain::drain;
use super::head;
use super::request_body::RequestBody;
use crate::affinity::Affinity;
use crate::filter::mirror::Mirror;
use crate::identity::Protocol;
use crate::table::route::Rule;
use crate::telemetry::alive;
use crate::upstream::error::LeaseError;
use crate::upstream::shared_cluster::Kind;
use crate::value::RuleName;
use crate::worker::Worker;

/// Shadows in flight in one worker, including those that wait for the rest of their body. With kept bodies they hold
/// 6.4 MiB.
const SHADOWS_MAX: u32 = 100;

/// Timeout of a shadow if the rule has no request timeout. Source: Envoy's default route timeout.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(15);

/// The shadows of one request.
pub(crate) struct Shadows(Vec<Shadow>);

/// One shadow. Dropping it counts its outcome.
struct Shadow {
    worker: Rc<Worker>,
    mirror: Arc<Mirror>,
    rule_name: Arc<RuleName>,
    timeout: Duration,
    /// Whether the client speaks HTTP/2.
    http2: bool,
    head: Option<(Parts, Option<HeaderValue>)>,
    outcome: Cell<Outcome>,
}

/// The outcome of a shadow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The request or its body never completed.
    NotSent,
    /// The body exceeds the retry buffer, or has trailers.
    BodyNotKept,
    /// Too many shadows in flight, or a limit of the backend's MeshCluster.
    Overflow,
    /// The proxy has no configuration of the mirror.
    ConfigUnavailable,
    NoEndpoints,
    /// No connection, or no response.
    Failed,
    Timeout,
    /// A response of any status.
    Answered,
}

// === impl Shadows ===

impl Shadows {
    /// Samples which mirrors get a shadow of a request. None: no mirror.
    pub(crate) fn sample<B>(
        worker: &Rc<Worker>,
        mirrors: &[Arc<Mirror>],
        rule: &Rule,
        request: &Request<B>,
    ) -> Option<Box<Self>> {
        // An upgraded connection cannot be mirrored: its responses drive the client.
        if mirrors.is_empty() || head::wants_upgrade(request.version(), request.headers()).is_some() {
            return None;
        }
        let mut shadows = Vec::new();
        for mirror in mirrors {
            if !mirror.share.samples(&mut worker.rng.borrow_mut()) {
                continue;
            }
            let in_flight = worker.shadows_in_flight.get();
            if in_flight >= SHADOWS_MAX {
                worker.handles.mirrored(&mirror.service, &rule.name.text, Outcome::Overflow.as_str());
                continue;
            }
            worker.shadows_in_flight.set(in_flight + 1);
            shadows.push(Shadow {
                worker: worker.clone(),
                mirror: mirror.clone(),
                rule_name: rule.name.clone(),
                timeout: rule.request_timeout.unwrap_or(TIMEOUT_DEFAULT),
                http2: request.version() == Version::HTTP_2,
                head: None,
                outcome: Cell::new(Outcome::NotSent),
            });
        }
        (!shadows.is_empty()).then(|| Box::new(Self(shadows)))
    }

    /// The same, with further shadows of the same request.
    pub(crate) fn and(mut self: Box<Self>, others: Option<Box<Self>>) -> Box<Self> {
        self.0.extend(others.into_iter().flat_map(|others| others.0));
        self
    }

    /// Copies the head of the request as it is sent to its own backend.
    pub(crate) fn with_head(mut self: Box<Self>, parts: &Parts, host: Option<&HeaderValue>) -> Box<Self> {
        for shadow in &mut self.0 {
            let host = host.map(|host| with_suffix(host, shadow.mirror.host_suffix.as_deref()));
            shadow.head = Some((parts.clone(), host));
        }
        self
    }

    /// Sends the shadows once the body is complete.
    pub(crate) fn send(self, chunks: &[Bytes]) {
        for shadow in self.0 {
            let body = chunks.iter().cloned().collect();
            alive::spawn(shadow.send(body));
        }
    }

    /// Drops the shadows of a request whose body is not kept.
    pub(crate) fn cancel(self) {
        self.0.iter().for_each(|shadow| shadow.outcome.set(Outcome::BodyNotKept));
    }
}

// === impl Shadow ===

impl Shadow {
    async fn send(mut self, body: VecDeque<Bytes>) {
        let timeout = self.timeout;
        match tokio::time::timeout(timeout, self.exchange(body)).await {
            Ok(outcome) => self.outcome.set(outcome),
            // A shadow with a response counts as answered, even if the rest of the response took too long.
            Err(_) if self.outcome.get() == Outcome::Answered => {}
            Err(_) => self.outcome.set(Outcome::Timeout),
        }
    }

    async fn exchange(&mut self, body: VecDeque<Bytes>) -> Outcome {
        let Some((mut parts, host)) = self.head.take() else { return Outcome::NotSent };
        let (worker, target) = (&self.worker, &self.mirror.target);
        let Some(cluster) = worker.shared.store.find_cluster(target).await else {
            return Outcome::ConfigUnavailable;
        };
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
        let lease = match state.lease(&endpoint, Protocol::of_version(http2), false).await {
            Ok(lease) => lease,
            Err(LeaseError::Overflow) => return Outcome::Overflow,
            Err(_) => return Outcome::Failed,
        };
        let body = if body.is_empty() { RequestBody::Empty } else { RequestBody::Whole(body) };
        let Ok(response) = lease.send(&parts, body, None).await else { return Outcome::Failed };
        endpoint.observe(started.elapsed(), worker.now());
        self.outcome.set(Outcome::Answered);
        let mut body = response.into_body();
        let mut upload = body.take_upload();
        let uploaded = poll_fn(|cx| match &mut upload {
            None => Poll::Ready(Ok(())),
            Some(upload) => upload.poll_send(cx).map_err(drop),
        });
        let drained = async { if drain(&mut body).await { Ok(()) } else { Err(()) } };
        // Both must complete; when one cannot, the other is given up too.
        if tokio::try_join!(uploaded, drained).is_ok() {
            lease.give_back();
        }
        Outcome::Answered
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        self.worker.shadows_in_flight.set(self.worker.shadows_in_flight.get() - 1);
        self.worker.handles.mirrored(&self.mirror.service, &self.rule_name.text, self.outcome.get().as_str());
    }
}

// === impl Outcome ===

impl Outcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::NotSent => "not-sent",
            Self::BodyNotKept => "body-not-kept",
            Self::Overflow => "overflow",
            Self::ConfigUnavailable => "config-unavailable",
            Self::NoEndpoints => "no-endpoints",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::Answered => "answered",
        }
    }
}

/// Appends a suffix to a host, before its port. If the result is not a valid host, it stays as it is.
pub(crate) fn with_suffix(host: &HeaderValue, suffix: Option<&str>) -> HeaderValue {
    // An IPv6 address cannot have a suffix.
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
    fn suffix_is_inserted_before_the_port() {
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
