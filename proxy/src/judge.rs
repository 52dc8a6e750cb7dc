//! Whether an inbound call is allowed: the mode of mutual TLS first, then the policies. A call is judged when it begins,
//! and again while it lasts, whenever one of the two has changed.

use std::cell::Cell;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use http::{HeaderMap, Method, Uri};

use crate::downstream::Downstream;
use crate::matcher::RequestHead;
use crate::policy::Verdict;
use crate::reason::Reason;
use crate::security::Security;
use crate::table::Inbound;
use crate::value::RuleName;

/// Why a call is refused.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The client has proven no identity, and the mode of the port accepts no plaintext from it.
    Plaintext,
    /// This Deny rule matches.
    Denied(Arc<RuleName>),
    /// No Allow rule matches, and this is the rule or default that requires one.
    NotAllowed(Arc<RuleName>),
    /// The policies are not known.
    Unknown,
    /// The path cannot be checked.
    TooManyReadings,
}

/// The refusal of a request.
#[derive(Debug)]
pub(crate) struct RefusedRequest {
    pub(crate) refusal: Refusal,
    /// The reading of the path that decided, if it is not the path as it came.
    pub(crate) reading: Option<String>,
}

impl Refusal {
    /// Its reason in logs, metrics and headers.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Plaintext => Reason::PlaintextRefused,
            Self::Denied(_) | Self::NotAllowed(_) => Reason::PolicyDenied,
            Self::Unknown => Reason::ConfigUnavailable,
            Self::TooManyReadings => Reason::BadRequest,
        }
    }

    /// The object and rule that decided.
    pub(crate) fn rule_name(&self) -> Option<&Arc<RuleName>> {
        match self {
            Self::Denied(rule) | Self::NotAllowed(rule) => Some(rule),
            Self::Plaintext | Self::Unknown | Self::TooManyReadings => None,
        }
    }

    /// None: the verdict is to allow.
    fn of(verdict: &Verdict<'_>) -> Option<Self> {
        match verdict {
            Verdict::Allowed => None,
            Verdict::Denied(rule) => Some(Self::Denied(Arc::clone(rule))),
            Verdict::NotAllowed(rule) => Some(Self::NotAllowed(Arc::clone(rule))),
            Verdict::Unknown => Some(Self::Unknown),
        }
    }
}

impl From<Refusal> for RefusedRequest {
    fn from(refusal: Refusal) -> Self {
        Self { refusal, reading: None }
    }
}

/// Judges a connection on which no requests are told apart.
pub(crate) fn connection(downstream: &Downstream, inbound: &Inbound) -> Result<(), Refusal> {
    if is_refused_plaintext(downstream, inbound) {
        return Err(Refusal::Plaintext);
    }
    Refusal::of(&inbound.policies.check_tcp(downstream.call())).map_or(Ok(()), Err)
}

/// Judges a request.
pub(crate) fn request(
    downstream: &Downstream,
    inbound: &Inbound,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(), RefusedRequest> {
    if is_refused_plaintext(downstream, inbound) {
        return Err(Refusal::Plaintext.into());
    }
    let head = RequestHead { method, path: uri.path(), query: uri.query(), headers };
    let judged = inbound.policies.check_request(downstream.call(), &head).map_err(|_| Refusal::TooManyReadings)?;
    match Refusal::of(&judged.verdict) {
        None => Ok(()),
        Some(refusal) => Err(RefusedRequest { refusal, reading: judged.reading }),
    }
}

/// Judges a call again if there was a change after those in `seen`. None: it goes on.
pub(crate) fn again<R>(
    downstream: &Downstream,
    seen: &Cell<u64>,
    judge: impl FnOnce(&Inbound) -> Result<(), R>,
) -> Option<R> {
    let now = downstream.worker.changes.seen();
    if seen.replace(now) == now {
        return None;
    }
    judge(&downstream.worker.shared.store.load().inbound).err()
}

/// Whether an inbound connection may carry no further request, because changes after those in `seen` made its port Strict.
/// Policies do not close it: they may allow its next request.
pub(crate) fn is_over(downstream: &Downstream, seen: &Cell<u64>) -> bool {
    let is_refused = |inbound: &Inbound| downstream.changes().is_some() && is_refused_plaintext(downstream, inbound);
    again(downstream, seen, |inbound| if is_refused(inbound) { Err(()) } else { Ok(()) }).is_some()
}

/// Waits until a call is refused that was allowed after the changes in `seen`.
pub(crate) async fn refused<R>(downstream: &Downstream, seen: u64, judge: impl Fn(&Inbound) -> Result<(), R>) -> R {
    let (seen, mut registration) = (Cell::new(seen), None);
    poll_fn(|cx| {
        registration.get_or_insert_with(|| downstream.worker.changes.register(cx.waker().clone()));
        again(downstream, &seen, &judge).map_or(Poll::Pending, Poll::Ready)
    })
    .await
}

/// Whether the client has proven no identity, and the mode of the port accepts no plaintext from it. Notes why it does.
fn is_refused_plaintext(downstream: &Downstream, inbound: &Inbound) -> bool {
    if downstream.security() == Security::Mtls {
        return false;
    }
    match inbound.modes.accepts_plaintext(downstream.destination.port(), downstream.peer.ip()) {
        Some(why) => downstream.set_plaintext(why),
        None => return true,
    }
    false
}
