//! Writes the statuses of users' objects: conditions of Weft's own kinds, and entries of `status.parents` of the Gateway
//! API's routes.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use k8s_openapi::jiff::Timestamp;
use weft_crds::{Status, mesh};
use weft_identity::UnixTime;

use super::state::{INDEX, State};
use super::{Reconciler, WRITES_MAX};
use crate::apply;
use crate::compile::{self, Compiled, Outcome, ParentOutcome};
use crate::events::condition;
use crate::metrics::OutcomeLabel;
use crate::status::{self, Delivery};
use crate::world::{GatewayRoute, ObjectId, ParentStatus};

/// Maximum statuses written for one namespace in one round, and when the next round writes the others: a pod can change
/// the conditions of a thousand policies, and documents have precedence.
const STATUSES_MAX: usize = 256;
const STATUSES_INTERVAL: Duration = Duration::from_millis(100);
/// When a Mesh with roots is looked at again: they expire.
const ROOTS_INTERVAL: Duration = Duration::from_secs(60 * 60);

/// A status to write.
struct Next {
    id: ObjectId,
    status: NextStatus,
    /// Whether it tells more than other words for the same.
    is_prompt: bool,
}

enum NextStatus {
    Own { uid: String, status: Status },
    Parents { route: Box<GatewayRoute>, parents: Vec<ParentStatus> },
}

// === impl Reconciler ===

impl Reconciler {
    /// Writes the statuses that changed, up to a number in one round, and each object's at most so often
    /// (`State::may_write_status`).
    pub(super) async fn write_statuses(&self, state: &mut State, scope: &str, compiled: &Compiled, epoch: u64) {
        let time = Timestamp::now();
        let of_own = compiled.objects.iter().filter_map(|(id, outcome)| next_status(state, id, outcome, time));
        let routes = state.world.namespace(scope).into_iter().flat_map(|namespace| namespace.gateway_routes());
        let of_routes = routes.filter_map(|route| next_parents(state, compiled, route, time));
        let changed: Vec<Next> = of_own.chain(of_routes).collect();
        self.write_changed(state, scope, changed, epoch).await;
    }

    /// The same for the kind Mesh, which is in no namespace.
    pub(super) async fn write_statuses_of_meshes(&self, state: &mut State, epoch: u64) {
        let time = Timestamp::now();
        let outcomes = compile::mesh(&state.world, UnixTime::now());
        let changed = outcomes.iter().filter_map(|(id, outcome)| {
            let (uid, generation, previous) = state.world.status(id)?;
            let is_programmed = status::is_programmed(previous, generation);
            let delivery = state.delivery_of_mesh(is_programmed);
            let mut diagnostics = outcome.diagnostics.clone();
            diagnostics.extend((id.key.name == mesh::NAME).then(|| state.strictness().diagnostic()));
            let status = status::next_of_mesh(previous, generation, &diagnostics, &delivery, time)?;
            let is_prompt = status::is_prompt(previous, &status);
            Some(Next { id: id.clone(), status: NextStatus::Own { uid: uid.to_owned(), status }, is_prompt })
        });
        let changed: Vec<Next> = changed.collect();
        self.write_changed(state, INDEX, changed, epoch).await;
        if state.world.meshes().any(|mesh| mesh.spec.as_ref().is_ok_and(|spec| !spec.roots().is_empty())) {
            state.write_statuses_at(INDEX, Instant::now() + ROOTS_INTERVAL);
        }
    }

    async fn write_changed(&self, state: &mut State, scope: &str, changed: Vec<Next>, epoch: u64) {
        let now = Instant::now();
        let mut jobs: Vec<Next> = Vec::new();
        for next in changed {
            if jobs.len() == STATUSES_MAX {
                state.write_statuses_at(scope, now + STATUSES_INTERVAL);
                break;
            }
            if state.may_write_status(&next.id, next.is_prompt, now) {
                jobs.push(next);
            }
        }
        let writes = jobs.into_iter().map(|Next { id, status, .. }| async move {
            let written = match (&status, self.may_write(epoch)) {
                (_, false) => Err(apply::Error::Conflict),
                (NextStatus::Own { uid, status }, true) => apply::status(&self.client, &id, uid, status).await,
                (NextStatus::Parents { route, parents }, true) => apply::parents(&self.client, route, parents).await,
            };
            (id, status, written)
        });
        let results: Vec<_> = futures_util::stream::iter(writes).buffer_unordered(WRITES_MAX).collect().await;
        for (id, status, written) in results {
            let outcome = written.as_ref().map_or_else(apply::Error::reason, |_| "written");
            self.metrics.status_writes.get_or_create(&OutcomeLabel { outcome }).inc();
            match written {
                Ok(version) => {
                    let revision = version.and_then(|version| version.parse().ok()).unwrap_or_default();
                    state.status_written(id.clone(), Instant::now());
                    self.written(state, &id, status, revision);
                }
                // The object was deleted; the watch will report it.
                Err(apply::Error::NotFound) => {}
                // Another controller wrote its part: the watch reports that, and the next attempt keeps it.
                Err(apply::Error::Conflict) if id.kind.is_gateway() => state.retry(scope, Instant::now()),
                Err(error) => {
                    tracing::warn!(object = %id, %error, "cannot write status, retrying");
                    state.retry(scope, Instant::now());
                }
            }
        }
    }

    /// Records Events about what changed, and stores the status before the watch reports it.
    fn written(&self, state: &mut State, id: &ObjectId, status: NextStatus, revision: u64) {
        match status {
            NextStatus::Own { status, .. } => {
                if let Some((.., previous)) = state.world.status(id) {
                    self.recorder.record(condition::events(&state.world, id, previous, &status));
                }
                state.world.set_status(id, status, revision);
            }
            NextStatus::Parents { route, parents } => {
                self.recorder.record(condition::events_of_route(&state.world, &route, &parents));
                state.world.set_parents(id, parents, revision);
            }
        }
    }
}

/// The status of one of Weft's own objects, if it is to be written.
fn next_status(state: &State, id: &ObjectId, outcome: &Outcome, now: Timestamp) -> Option<Next> {
    let (uid, generation, previous) = state.world.status(id)?;
    let delivery = state.delivery_of(&id.key.namespace, &outcome.documents);
    let status = status::next(previous, generation, &outcome.diagnostics, &delivery, now)?;
    let is_prompt = status::is_prompt(previous, &status);
    Some(Next { id: id.clone(), status: NextStatus::Own { uid: uid.to_owned(), status }, is_prompt })
}

/// The entries of a route of the Gateway API, if they are to be written.
fn next_parents(state: &State, compiled: &Compiled, route: &GatewayRoute, now: Timestamp) -> Option<Next> {
    let id = route.id();
    let outcomes = compiled.objects.get(&id).map_or(&[][..], |outcome| &outcome.parents);
    let outcomes: Vec<(&ParentOutcome, Delivery)> =
        outcomes.iter().map(|outcome| (outcome, state.delivery_of(&id.key.namespace, &outcome.documents))).collect();
    let parents = status::parents::next(route, &outcomes, now)?;
    let is_prompt = status::parents::is_prompt(route, &parents);
    Some(Next { id, status: NextStatus::Parents { route: Box::new(route.clone()), parents }, is_prompt })
}
