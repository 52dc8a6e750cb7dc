//! Leader election: one process at a time holds the Lease and writes; the others are on standby.
//!
//! No clocks are compared between processes. A holder counts as gone when its Lease has not changed for the whole
//! term, by the observer's own monotonic clock; the holder itself stops writing a margin before that, by its own
//! clock. Each acquisition increments `leaseTransitions`: that is the writer's epoch, which is in every document. If
//! two processes both consider themselves leader, the resourceVersion in each write makes one of them fail.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use weft_crds::names;

/// Lease term: after this time without a renewal another process may acquire the Lease.
const TERM: Duration = Duration::from_secs(5);
/// Interval in which the holder renews, and the others check.
const RENEW: Duration = Duration::from_millis(1500);
/// The holder stops writing this long before the end of its term.
const MARGIN: Duration = Duration::from_secs(1);
/// Timeout of one call to the API server.
const CALL_MAX: Duration = Duration::from_secs(2);

/// Whether this process may write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It may not: another process is leader, or the leader is not known.
    #[default]
    Standby,
    /// It may.
    Leader {
        /// `leaseTransitions` of the Lease.
        epoch: u64,
        /// End of the permission, unless renewed.
        until: Instant,
    },
}

/// The Lease as last read or written.
struct Seen {
    lease: Option<Lease>,
    since: Instant,
}

/// Why an attempt failed. It is retried.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API server did not respond in time")]
    Timeout,
    #[error("the API server returned an error")]
    Api(#[source] kube::Error),
}

// === impl State ===

impl State {
    /// The epoch, while writing is allowed.
    pub fn epoch(self) -> Option<u64> {
        match self {
            Self::Leader { epoch, until } if Instant::now() < until => Some(epoch),
            _ => None,
        }
    }
}

/// Acquires and renews the Lease until `stop`, then releases it.
pub async fn run(api: Api<Lease>, identity: String, state: watch::Sender<State>, stop: CancellationToken) {
    let mut seen = Seen { lease: None, since: Instant::now() };
    loop {
        let started = Instant::now();
        let outcome = attempt(&api, &identity, &mut seen).await;
        let held = state.borrow().epoch();
        match outcome {
            Ok(Some(epoch)) => {
                if held != Some(epoch) {
                    tracing::info!(epoch, "acquired the lease, writing");
                }
                state.send_replace(State::Leader { epoch, until: started + TERM - MARGIN });
            }
            Ok(None) => {
                let was_leader = state.send_if_modified(|state| std::mem::take(state) != State::Standby);
                if was_leader {
                    tracing::warn!("lost the lease to another process, stopped writing");
                }
            }
            // A held Lease stays valid until its term ends; `State::epoch` checks that.
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot read or renew the lease, retrying")
            }
        }
        tokio::select! {
            () = tokio::time::sleep(RENEW) => {}
            () = stop.cancelled() => break,
        }
    }
    state.send_replace(State::Standby);
    release(&api, &identity, seen).await;
}

/// Whether `identity` still holds the Lease with this epoch. For a leader that finds a document with a larger epoch.
pub async fn confirm(api: &Api<Lease>, identity: &str, epoch: u64) -> bool {
    let Ok(Ok(lease)) = timeout(CALL_MAX, api.get(names::LEASE)).await else { return false };
    holder(&lease) == Some(identity) && transitions(&lease) == epoch
}

/// Renews or acquires the Lease. `None`: another process holds it.
async fn attempt(api: &Api<Lease>, identity: &str, seen: &mut Seen) -> Result<Option<u64>, Error> {
    // A Lease that we hold is renewed without reading it first; if another process wrote it, the write fails and it
    // is read.
    let is_ours = seen.lease.as_ref().is_some_and(|lease| holder(lease) == Some(identity));
    if !is_ours {
        let current = call(api.get_opt(names::LEASE)).await?;
        if current.as_ref().map(version) != seen.lease.as_ref().map(version) {
            *seen = Seen { lease: current, since: Instant::now() };
        }
    }
    let next = match &seen.lease {
        None => new_lease(identity, None),
        Some(lease) if holder(lease) == Some(identity) => renewed(lease),
        Some(lease) if holder(lease).is_none() || seen.since.elapsed() >= TERM => new_lease(identity, Some(lease)),
        Some(_) => return Ok(None),
    };
    let parameters = PostParams::default();
    let written = match &seen.lease {
        None => call(api.create(&parameters, &next)).await,
        Some(_) => call(api.replace(names::LEASE, &parameters, &next)).await,
    };
    match written {
        Ok(lease) => {
            let epoch = transitions(&lease);
            *seen = Seen { lease: Some(lease), since: Instant::now() };
            Ok(Some(epoch))
        }
        Err(Error::Api(kube::Error::Api(status)))
            if status.is_conflict() || status.is_not_found() || status.is_already_exists() =>
        {
            // Another process acquired it first, or it was deleted.
            *seen = Seen { lease: call(api.get_opt(names::LEASE)).await?, since: Instant::now() };
            let epoch = seen.lease.as_ref().filter(|lease| holder(lease) == Some(identity)).map(transitions);
            Ok(epoch)
        }
        Err(error) => {
            // It is unknown whether the write succeeded: read it before the next attempt.
            if is_ours && let Ok(current) = call(api.get_opt(names::LEASE)).await {
                *seen = Seen { lease: current, since: Instant::now() };
            }
            Err(error)
        }
    }
}

async fn release(api: &Api<Lease>, identity: &str, seen: Seen) {
    let Some(mut lease) = seen.lease.filter(|lease| holder(lease) == Some(identity)) else { return };
    if let Some(spec) = &mut lease.spec {
        spec.holder_identity = None;
    }
    match call(api.replace(names::LEASE, &PostParams::default(), &lease)).await {
        Ok(_) => tracing::info!("released the lease"),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "cannot release the lease, it will expire")
        }
    }
}

async fn call<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    match timeout(CALL_MAX, request).await {
        Ok(answer) => answer.map_err(Error::Api),
        Err(_) => Err(Error::Timeout),
    }
}

fn new_lease(identity: &str, previous: Option<&Lease>) -> Lease {
    let now = MicroTime(Timestamp::now());
    Lease {
        metadata: previous.map_or_else(
            || ObjectMeta { name: Some(names::LEASE.into()), ..ObjectMeta::default() },
            |lease| lease.metadata.clone(),
        ),
        spec: Some(LeaseSpec {
            acquire_time: Some(now.clone()),
            holder_identity: Some(identity.to_owned()),
            lease_duration_seconds: i32::try_from(TERM.as_secs()).ok(),
            lease_transitions: Some(
                previous.and_then(|lease| lease.spec.as_ref()?.lease_transitions).unwrap_or(0).saturating_add(1),
            ),
            renew_time: Some(now),
            ..LeaseSpec::default()
        }),
    }
}

fn renewed(lease: &Lease) -> Lease {
    let mut lease = lease.clone();
    if let Some(spec) = &mut lease.spec {
        spec.renew_time = Some(MicroTime(Timestamp::now()));
    }
    lease
}

fn holder(lease: &Lease) -> Option<&str> {
    lease.spec.as_ref()?.holder_identity.as_deref().filter(|holder| !holder.is_empty())
}

fn transitions(lease: &Lease) -> u64 {
    lease.spec.as_ref().and_then(|spec| spec.lease_transitions).and_then(|count| u64::try_from(count).ok()).unwrap_or(0)
}

fn version(lease: &Lease) -> &str {
    lease.metadata.resource_version.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_acquisition_has_a_new_epoch() {
        let first = new_lease("a", None);
        assert_eq!((holder(&first), transitions(&first)), (Some("a"), 1));
        assert_eq!(transitions(&renewed(&first)), 1, "renewing keeps the epoch");
        let second = new_lease("b", Some(&first));
        assert_eq!((holder(&second), transitions(&second)), (Some("b"), 2));
    }

    #[test]
    fn expired_term_allows_no_writes() {
        let now = Instant::now();
        assert_eq!(State::Leader { epoch: 3, until: now + TERM }.epoch(), Some(3));
        assert_eq!(State::Leader { epoch: 3, until: now }.epoch(), None);
        assert_eq!(State::Standby.epoch(), None);
    }
}
