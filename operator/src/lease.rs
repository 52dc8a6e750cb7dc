//! Who writes: one process at a time holds the Lease; the others wait.
//!
//! Nobody compares wall clocks. A holder is taken for gone when its Lease has not changed for the whole term, by the
//! observer's own monotonic clock; the holder stops writing a margin before that, by its own. Each time the Lease is taken
//! `leaseTransitions` grows: that is the writer's epoch, which stands in every document. Two processes that both believe
//! in themselves are kept apart by the resourceVersion that each write carries.

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

/// After this long without a sign of the holder another may take over.
const TERM: Duration = Duration::from_secs(5);
/// How often the holder gives a sign, and the others look.
const RENEW: Duration = Duration::from_millis(1500);
/// The holder stops writing this long before its term ends.
const MARGIN: Duration = Duration::from_secs(1);
/// One call to the API server.
const CALL_MAX: Duration = Duration::from_secs(2);

/// Whether this process may write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Another one does, or nobody is known to.
    #[default]
    Standby,
    /// This one does.
    Leader {
        /// How often the Lease had changed hands.
        epoch: u64,
        /// Not beyond this instant, unless it is renewed.
        until: Instant,
    },
}

/// What was last seen of the Lease.
struct Seen {
    lease: Option<Lease>,
    since: Instant,
}

/// Why a try failed. The next one follows.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the API server did not answer in time")]
    Late,
    #[error("the API server refused")]
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

/// Takes and keeps the Lease until `stop`, then gives it up.
pub async fn run(api: Api<Lease>, identity: String, state: watch::Sender<State>, stop: CancellationToken) {
    let mut seen = Seen { lease: None, since: Instant::now() };
    loop {
        let asked = Instant::now();
        let outcome = attempt(&api, &identity, &mut seen).await;
        let held = state.borrow().epoch();
        match outcome {
            Ok(Some(epoch)) => {
                if held != Some(epoch) {
                    tracing::info!(epoch, "writing");
                }
                state.send_replace(State::Leader { epoch, until: asked + TERM - MARGIN });
            }
            Ok(None) => {
                let was_leader = state.send_if_modified(|state| std::mem::take(state) != State::Standby);
                if was_leader {
                    tracing::warn!("another process took the lease, not writing any more");
                }
            }
            // The term of the one that we hold runs on; `State::epoch` ends it.
            Err(error) => tracing::warn!(error = &error as &dyn std::error::Error, "the lease cannot be reached"),
        }
        tokio::select! {
            () = tokio::time::sleep(RENEW) => {}
            () = stop.cancelled() => break,
        }
    }
    state.send_replace(State::Standby);
    release(&api, &identity, seen).await;
}

/// Whether the Lease says that `identity` holds it with this epoch. For a writer that found a document with a larger one.
pub async fn confirm(api: &Api<Lease>, identity: &str, epoch: u64) -> bool {
    let Ok(Ok(lease)) = timeout(CALL_MAX, api.get(names::LEASE)).await else { return false };
    holder(&lease) == Some(identity) && transitions(&lease) == epoch
}

/// Renews or takes the Lease. `None`: somebody else has it.
async fn attempt(api: &Api<Lease>, identity: &str, seen: &mut Seen) -> Result<Option<u64>, Error> {
    // What we wrote last is renewed without asking; whoever wrote meanwhile makes that fail, and then we look.
    let ours = seen.lease.as_ref().is_some_and(|lease| holder(lease) == Some(identity));
    if !ours {
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
            // Somebody else was faster, or took it away.
            *seen = Seen { lease: call(api.get_opt(names::LEASE)).await?, since: Instant::now() };
            let epoch = seen.lease.as_ref().filter(|lease| holder(lease) == Some(identity)).map(transitions);
            Ok(epoch)
        }
        Err(error) => {
            // It may have been written or not: look before the next try.
            if ours && let Ok(current) = call(api.get_opt(names::LEASE)).await {
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
        Ok(_) => tracing::info!("lease given up"),
        Err(error) => {
            tracing::warn!(error = &error as &dyn std::error::Error, "the lease could not be given up and will run out")
        }
    }
}

async fn call<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, Error> {
    match timeout(CALL_MAX, request).await {
        Ok(answer) => answer.map_err(Error::Api),
        Err(_) => Err(Error::Late),
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
    fn each_taking_has_an_epoch_of_its_own() {
        let first = new_lease("a", None);
        assert_eq!((holder(&first), transitions(&first)), (Some("a"), 1));
        assert_eq!(transitions(&renewed(&first)), 1, "renewing is not taking");
        let second = new_lease("b", Some(&first));
        assert_eq!((holder(&second), transitions(&second)), (Some("b"), 2));
    }

    #[test]
    fn a_term_that_ran_out_allows_nothing() {
        let now = Instant::now();
        assert_eq!(State::Leader { epoch: 3, until: now + TERM }.epoch(), Some(3));
        assert_eq!(State::Leader { epoch: 3, until: now }.epoch(), None);
        assert_eq!(State::Standby.epoch(), None);
    }
}
