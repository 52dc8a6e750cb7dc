//! The reconcile loop: applies events to the World, then compiles and writes the documents and conditions of dirty
//! namespaces.
//!
//! The loop owns all state, so there are no locks. A namespace is dirty until its documents are as compiled: after a
//! failed write it stays dirty and is retried with exponential backoff. Only the holder of the Lease compiles and
//! writes.
//!
//! Order: a namespace that others reference is written before them, so that the references resolve. When the exports
//! of a namespace change, the namespaces that reference it are compiled again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::Timestamp;
use kube::{Api, Client};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_crds::Status;
use weft_runtime::readiness::Part;

use crate::apply;
use crate::compile::{self, Compiled, Exports, Outcome};
use crate::lease;
use crate::metrics::{KindLabel, Metrics, OutcomeLabel};
use crate::render::{self, Body, Plan, Published};
use crate::status::{self, Delivery};
use crate::world::{Access, AccessKind, Change, Document, DocumentKind, Event, KINDS, Key, ObjectId, World};

/// The scope of the index; no namespace has this name.
const INDEX: &str = "";

/// Coalescing delay of the first change after a quiet period.
const COALESCE_MIN: Duration = Duration::from_millis(20);
/// Longest coalescing delay, under constant changes.
const COALESCE_MAX: Duration = Duration::from_millis(500);
/// Time without a write after which the coalescing delay starts at the minimum again.
const QUIET: Duration = Duration::from_secs(1);
/// Maximum namespaces per round. Events are applied between rounds.
const ROUND_MAX: usize = 64;
/// Maximum events applied before timers are checked again.
const EVENTS_MAX: usize = 1024;
/// Maximum concurrent writes.
const WRITES_MAX: usize = 8;
/// Backoff of failed writes: first and longest delay.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Minimum time between two status writes of one object.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Interval in which the gauges are updated, also without events.
const GAUGES_INTERVAL: Duration = Duration::from_secs(10);

/// Dependencies of the loop.
pub struct Reconciler {
    /// Client for writes.
    pub client: Client,
    /// API of Leases, to confirm the holder.
    pub leases: Api<Lease>,
    /// This process's name in the Lease.
    pub identity: String,
    /// Whether this process is the leader.
    pub lease: watch::Receiver<lease::State>,
    /// The operator's metrics.
    pub metrics: Metrics,
    /// Ready once all kinds have been listed.
    pub world_part: Part,
    /// Ready once this process is leader or standby.
    pub writer_part: Part,
    /// Stops the loop.
    pub stop: CancellationToken,
}

/// State of the loop.
#[derive(Default)]
struct State {
    world: World,
    /// Kinds that have been listed.
    listed: BTreeSet<&'static str>,
    /// Scopes to compile and write.
    dirty: BTreeSet<String>,
    /// Scopes to skip before an instant: rate limits and backoff.
    not_before: BTreeMap<String, Instant>,
    failures: BTreeMap<String, u32>,
    published: BTreeMap<(DocumentKind, String), Published>,
    delivery: BTreeMap<(DocumentKind, String), Delivery>,
    exports: BTreeMap<String, Exports>,
    references: BTreeMap<String, BTreeSet<String>>,
    status_written_at: HashMap<ObjectId, Instant>,
    /// The epoch that `published` and the other caches belong to; `None` on standby.
    epoch: Option<u64>,
    /// Time of the next round, if one is scheduled.
    flush_at: Option<Instant>,
    /// Current coalescing delay.
    coalesce: Duration,
    last_flush: Option<Instant>,
}

/// A document to write, with the one that it replaces.
struct Job {
    kind: DocumentKind,
    scope: String,
    next: Box<Published>,
    found: Option<Document>,
    repair: bool,
}

// === impl Reconciler ===

impl Reconciler {
    /// Runs until `stop`, or until the watches end.
    pub async fn run(mut self, mut events: mpsc::Receiver<Event>) {
        let mut state = State { coalesce: COALESCE_MIN, ..State::default() };
        let mut tick = tokio::time::interval(GAUGES_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.report_readiness(&state);
        loop {
            let flush_at = if state.has_synced() && state.epoch.is_some() { state.flush_at } else { None };
            tokio::select! {
                () = self.stop.cancelled() => return,
                event = events.recv() => {
                    let Some(event) = event else { return };
                    state.observe(event);
                    for _ in 0..EVENTS_MAX {
                        let Ok(event) = events.try_recv() else { break };
                        state.observe(event);
                    }
                    self.report_readiness(&state);
                }
                changed = self.lease.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep_until(flush_at), if flush_at.is_some() => self.flush(&mut state).await,
                _ = tick.tick() => self.update_gauges(&state),
            }
            let epoch = self.lease.borrow_and_update().epoch();
            if state.epoch != epoch {
                state.reset(epoch);
                self.report_readiness(&state);
                self.update_gauges(&state);
            }
        }
    }

    /// Compiles and writes one round of dirty scopes.
    async fn flush(&mut self, state: &mut State) {
        let Some(epoch) = self.lease.borrow().epoch() else { return };
        let scopes = state.take_due(Instant::now());
        let mut compiled: BTreeMap<String, Option<Compiled>> = BTreeMap::new();
        let mut with_index = false;
        for scope in scopes {
            if scope == INDEX {
                with_index = true;
                continue;
            }
            let started = Instant::now();
            let result = state.compile(&scope);
            self.metrics.compile_seconds.observe(started.elapsed().as_secs_f64());
            compiled.insert(scope, result);
        }
        with_index |= state.dirty.remove(INDEX);

        for level in state.levels(compiled.keys().cloned().collect()) {
            let mut jobs = Vec::new();
            for scope in &level {
                if let Some(Some(compiled)) = compiled.get(scope) {
                    self.plan_namespace(state, scope, compiled, epoch, &mut jobs);
                }
            }
            self.write(state, jobs, epoch).await;
        }
        if with_index {
            let mut jobs = Vec::new();
            let body = Body::Index(compile::index(&state.world));
            self.plan(state, INDEX, body, BTreeMap::new(), epoch, &mut jobs);
            self.write(state, jobs, epoch).await;
        }
        for (scope, compiled) in &compiled {
            match compiled {
                Some(_) => self.grant(state, scope, epoch).await,
                None => self.remove(state, scope, epoch).await,
            }
        }
        for (scope, compiled) in &compiled {
            if let Some(compiled) = compiled {
                self.write_statuses(state, scope, compiled, epoch).await;
            }
        }
        state.failures.retain(|scope, _| state.dirty.contains(scope));
        state.last_flush = Some(Instant::now());
        state.schedule();
        self.report_readiness(state);
        self.update_gauges(state);
    }

    fn plan_namespace(&self, state: &mut State, scope: &str, compiled: &Compiled, epoch: u64, jobs: &mut Vec<Job>) {
        let Compiled { export, inbound, export_requires, inbound_requires, objects: _, rejected_addresses } = compiled;
        for (service, address) in rejected_addresses {
            tracing::debug!(ns = scope, service, %address, "endpoint address rejected");
        }
        // The private document first: a pod must apply a policy before clients learn of the pod.
        let requires = state.generations(inbound_requires);
        self.plan(state, scope, Body::Inbound(inbound.clone()), requires, epoch, jobs);
        let requires = state.generations(export_requires);
        self.plan(state, scope, Body::Export(export.clone()), requires, epoch, jobs);
    }

    fn plan(
        &self,
        state: &mut State,
        scope: &str,
        body: Body,
        requires: BTreeMap<String, u64>,
        epoch: u64,
        jobs: &mut Vec<Job>,
    ) {
        let kind = body.kind();
        let slot = (kind, scope.to_owned());
        let found = state.world.document(kind, scope).cloned();
        if !state.published.contains_key(&slot)
            && let Some(adopted) = found.as_ref().and_then(|found| Published::adopt(kind, scope, found))
        {
            state.published.insert(slot.clone(), adopted);
        }
        let published = state.published.get(&slot);
        match render::plan(scope, body, requires, published, found.as_ref(), epoch, unix_ms()) {
            Plan::Keep => {
                self.metrics.unchanged.inc();
                let message = published.map(|published| delivered(kind, scope, published)).unwrap_or_default();
                state.delivery.insert(slot, Delivery::Written(message));
            }
            Plan::Write { next, repair } => jobs.push(Job { kind, scope: scope.to_owned(), next, found, repair }),
            Plan::TooLarge { bytes, limit } => {
                self.metrics.wrote(kind.as_str(), "too_large");
                tracing::error!(document = %document_name(kind, scope), bytes, limit, "document is too large, keeping the last good one");
                let message = format!(
                    "{} would be {bytes} bytes, the limit is {limit}: the last good one stays",
                    document_name(kind, scope)
                );
                state.delivery.insert(slot, Delivery::TooLarge(message));
            }
        }
    }

    async fn write(&self, state: &mut State, jobs: Vec<Job>, epoch: u64) {
        let writes = jobs.into_iter().map(|job| async move {
            if !self.may_write(epoch) {
                return (job, Err(apply::Error::Conflict));
            }
            let written =
                apply::document(&self.client, job.kind, &job.scope, &job.next.envelope, job.found.as_ref()).await;
            (job, written)
        });
        let results: Vec<_> = futures_util::stream::iter(writes).buffer_unordered(WRITES_MAX).collect().await;
        for (job, result) in results {
            let Job { kind, scope, next, found: _, repair } = job;
            let outcome = result.as_ref().map_or_else(apply::Error::reason, |_| "written");
            self.metrics.wrote(kind.as_str(), outcome);
            let slot = (kind, scope.clone());
            match result {
                Ok(document) => {
                    let bytes = next.envelope.stored_bytes();
                    tracing::info!(
                        document = %document_name(kind, &scope),
                        generation = next.written.generation,
                        config_generation = next.written.config_generation,
                        bytes,
                        repair,
                        "document written"
                    );
                    if repair {
                        self.metrics.repairs.inc();
                    }
                    let gauge = self
                        .metrics
                        .document_bytes_max
                        .get_or_create(&KindLabel { kind: kind.as_str().to_owned() })
                        .clone();
                    gauge.set(gauge.get().max(i64::try_from(bytes).unwrap_or(i64::MAX)));
                    state.delivery.insert(slot.clone(), Delivery::Written(delivered(kind, &scope, &next)));
                    state.published.insert(slot, *next);
                    // Do not wait for the watch to report it.
                    state.world.observe(Event::Document(kind, Change::Apply(document)));
                }
                Err(error) => {
                    let message = format!("{} is not written yet: {error}", document_name(kind, &scope));
                    state.delivery.insert(slot, Delivery::Pending(message));
                    state.retry(&scope);
                    if matches!(error, apply::Error::Conflict) {
                        self.refetch(state, kind, &scope, epoch).await;
                    } else {
                        tracing::warn!(document = %document_name(kind, &scope), %error, "cannot write document, retrying");
                    }
                }
            }
        }
    }

    /// After a conflict: reads the document again, and checks whether a later leader wrote it.
    async fn refetch(&self, state: &mut State, kind: DocumentKind, scope: &str, epoch: u64) {
        if !self.may_write(epoch) {
            return;
        }
        let found = match apply::read_document(&self.client, kind, scope).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(document = %document_name(kind, scope), %error, "cannot read document, retrying");
                return;
            }
        };
        let change = match found {
            Some(document) => {
                let later = document.header().is_some_and(|header| header.epoch > epoch);
                // A header can be edited by hand; the Lease decides.
                if later && !lease::confirm(&self.leases, &self.identity, epoch).await {
                    tracing::warn!(document = %document_name(kind, scope), "a later leader wrote this document, backing off");
                    state.not_before.insert(scope.to_owned(), Instant::now() + RETRY_MAX);
                }
                Change::Apply(document)
            }
            None => Change::Delete(Key::new("", kind.name(scope))),
        };
        state.world.observe(Event::Document(kind, change));
    }

    /// Creates or repairs the Role and RoleBinding that allow the namespace's pods to read their private document.
    async fn grant(&self, state: &mut State, scope: &str, epoch: u64) {
        let wanted = [
            (AccessKind::Role, Access::from(render::role(scope))),
            (AccessKind::Binding, Access::from(render::role_binding(scope))),
        ];
        for (kind, wanted) in wanted {
            let found = state.world.access(kind, scope);
            if found == Some(&wanted) || !self.may_write(epoch) {
                continue;
            }
            match apply::access(&self.client, kind, scope, found.is_some()).await {
                Ok(access) => {
                    state.world.observe(Event::Access(kind, Change::Apply(access)));
                }
                Err(error) => {
                    tracing::warn!(ns = scope, ?kind, %error, "cannot write RBAC object, retrying");
                    state.retry(scope);
                }
            }
        }
    }

    /// Deletes the documents and access of a namespace that left the mesh.
    async fn remove(&self, state: &mut State, scope: &str, epoch: u64) {
        for kind in [DocumentKind::Export, DocumentKind::Inbound] {
            let slot = (kind, scope.to_owned());
            state.published.remove(&slot);
            state.delivery.remove(&slot);
            let Some(found) = state.world.document(kind, scope).filter(|found| found.labelled).cloned() else {
                continue;
            };
            if !self.may_write(epoch) {
                return;
            }
            match apply::delete_document(&self.client, kind, scope, &found).await {
                Ok(()) => {
                    self.metrics.wrote(kind.as_str(), "deleted");
                    tracing::info!(document = %document_name(kind, scope), "namespace left the mesh, document deleted");
                    state.world.observe(Event::Document(kind, Change::Delete(Key::new("", kind.name(scope)))));
                }
                Err(error) => {
                    self.metrics.wrote(kind.as_str(), error.reason());
                    tracing::warn!(document = %document_name(kind, scope), %error, "cannot delete document, retrying");
                    state.retry(scope);
                }
            }
        }
        for kind in [AccessKind::Role, AccessKind::Binding] {
            if !state.world.access(kind, scope).is_some_and(|access| access.labelled) || !self.may_write(epoch) {
                continue;
            }
            match apply::delete_access(&self.client, kind, scope).await {
                Ok(()) => {
                    let key = Key::new("", DocumentKind::Inbound.name(scope));
                    state.world.observe(Event::Access(kind, Change::Delete(key)));
                }
                Err(error) => {
                    tracing::warn!(ns = scope, ?kind, %error, "cannot delete RBAC object, retrying");
                    state.retry(scope);
                }
            }
        }
    }

    /// Writes the statuses that changed, at most one per object and `STATUS_INTERVAL`.
    async fn write_statuses(&self, state: &mut State, scope: &str, compiled: &Compiled, epoch: u64) {
        let now = Instant::now();
        let mut jobs: Vec<(ObjectId, String, Status)> = Vec::new();
        for (id, outcome) in &compiled.objects {
            let Some((uid, generation, previous)) = state.world.status(id) else { continue };
            let delivery = state.delivery_of(scope, outcome);
            let Some(next) = status::next(previous, generation, &outcome.diagnostics, &delivery, Timestamp::now())
            else {
                continue;
            };
            let uid = uid.to_owned();
            match state.status_written_at.get(id).map(|at| *at + STATUS_INTERVAL).filter(|then| *then > now) {
                Some(then) => state.requeue_at(scope, then),
                None => jobs.push((id.clone(), uid, next)),
            }
        }
        let writes = jobs.into_iter().map(|(id, uid, next)| async move {
            let written = match self.may_write(epoch) {
                true => apply::status(&self.client, &id, &uid, &next).await,
                false => Err(apply::Error::Conflict),
            };
            (id, next, written)
        });
        let results: Vec<_> = futures_util::stream::iter(writes).buffer_unordered(WRITES_MAX).collect().await;
        for (id, next, written) in results {
            let outcome = written.as_ref().map_or_else(apply::Error::reason, |_| "written");
            self.metrics.status_writes.get_or_create(&OutcomeLabel { outcome }).inc();
            match written {
                Ok(version) => {
                    let revision = version.and_then(|version| version.parse().ok()).unwrap_or_default();
                    state.status_written_at.insert(id.clone(), Instant::now());
                    state.world.set_status(&id, next, revision);
                }
                // The object was deleted; the watch will report it.
                Err(apply::Error::NotFound) => {}
                Err(error) => {
                    tracing::warn!(object = %id, %error, "cannot write status, retrying");
                    state.retry(scope);
                }
            }
        }
    }

    fn may_write(&self, epoch: u64) -> bool {
        self.lease.borrow().epoch() == Some(epoch)
    }

    fn report_readiness(&self, state: &State) {
        if state.has_synced() {
            self.world_part.ready();
        } else {
            let missing: Vec<&str> = KINDS.into_iter().filter(|kind| !state.listed.contains(kind)).collect();
            self.world_part.report(false, &format!("not listed yet: {}", missing.join(", ")));
        }
        let failing = state.failures.len();
        match state.epoch {
            _ if !state.has_synced() => self.writer_part.report(false, "not all kinds are listed yet"),
            None => self.writer_part.report(true, "standby"),
            Some(epoch) if failing > 0 => {
                self.writer_part.report(true, &format!("writing, epoch {epoch}; {failing} namespaces failing"))
            }
            Some(epoch) => self.writer_part.report(true, &format!("writing, epoch {epoch}")),
        }
        self.metrics.dirty.set(i64::try_from(state.dirty.len()).unwrap_or(i64::MAX));
        self.metrics.leader.set(i64::from(state.epoch.is_some()));
    }

    fn update_gauges(&self, state: &State) {
        for (kind, count) in state.world.counts() {
            self.metrics
                .objects
                .get_or_create(&KindLabel { kind: kind.to_owned() })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        if state.epoch.is_some() && state.has_synced() && state.dirty.is_empty() {
            self.metrics.last_sync.set(Duration::from_millis(unix_ms()).as_secs_f64());
        }
    }
}

// === impl State ===

impl State {
    fn observe(&mut self, event: Event) {
        let (kind, reset) = event.kind();
        if reset {
            self.listed.insert(kind);
        }
        let touched = self.world.observe(event);
        if touched.scopes.is_empty() {
            return;
        }
        self.dirty.extend(touched.scopes);
        let now = Instant::now();
        if self.flush_at.is_none() {
            // The first change after a quiet period is written almost immediately; under constant changes they are
            // coalesced.
            let quiet = self.last_flush.is_none_or(|at| now.duration_since(at) > QUIET);
            self.coalesce = if quiet { COALESCE_MIN } else { (self.coalesce * 2).min(COALESCE_MAX) };
            self.flush_at = Some(now + self.coalesce);
        }
        if touched.urgent {
            self.flush_at = self.flush_at.map(|at| at.min(now + COALESCE_MIN));
        }
    }

    fn has_synced(&self) -> bool {
        KINDS.iter().all(|kind| self.listed.contains(kind))
    }

    /// On a change of leadership: drops all caches and marks everything dirty, to check what an earlier leader wrote.
    fn reset(&mut self, epoch: Option<u64>) {
        self.epoch = epoch;
        self.published.clear();
        self.delivery.clear();
        self.exports.clear();
        self.references.clear();
        self.failures.clear();
        self.not_before.clear();
        self.status_written_at.clear();
        let known = self.world.namespaces().map(|(name, _)| name.clone());
        let written = self.world.documents().map(|(_, namespace, _)| namespace.to_owned());
        self.dirty = known.chain(written).collect();
        self.dirty.insert(INDEX.to_owned());
        self.flush_at = Some(Instant::now());
    }

    /// The dirty scopes that are not delayed, at most one round of them.
    fn take_due(&mut self, now: Instant) -> Vec<String> {
        let due = |scope: &&String| self.not_before.get(*scope).is_none_or(|then| *then <= now);
        let scopes: Vec<String> = self.dirty.iter().filter(due).take(ROUND_MAX).cloned().collect();
        for scope in &scopes {
            self.dirty.remove(scope);
            self.not_before.remove(scope);
        }
        self.flush_at = None;
        scopes
    }

    /// Sets the time of the next round, if a scope is dirty.
    fn schedule(&mut self) {
        let now = Instant::now();
        self.status_written_at.retain(|_, at| now.duration_since(*at) < STATUS_INTERVAL);
        self.flush_at = self.dirty.iter().map(|scope| self.not_before.get(scope).copied().unwrap_or(now)).min();
    }

    /// Compiles a namespace, and marks the namespaces that reference it dirty if its exports changed. `None`: not in
    /// the mesh.
    fn compile(&mut self, scope: &str) -> Option<Compiled> {
        let compiled = self.world.in_mesh(scope).then(|| compile::compile(&self.world, scope));
        let exports = match &compiled {
            Some(compiled) => compile::exports(&self.world, scope, compiled),
            None => Exports::default(),
        };
        let before = self.exports.insert(scope.to_owned(), exports.clone());
        if before.as_ref() != Some(&exports) {
            self.dirty.extend(self.world.referrers(scope).map(str::to_owned));
            self.dirty.insert(INDEX.to_owned());
        }
        // A reference enrolls the referenced namespace in the mesh.
        let references = self.world.references(scope);
        let before = self.references.insert(scope.to_owned(), references.clone()).unwrap_or_default();
        self.dirty.extend(before.symmetric_difference(&references).filter(|other| *other != scope).cloned());
        if compiled.is_none() {
            self.exports.remove(scope);
            self.references.remove(scope);
        }
        compiled
    }

    /// Scopes in write order: each level after those that it references. Scopes that reference each other share a
    /// level.
    fn levels(&self, mut scopes: BTreeSet<String>) -> Vec<Vec<String>> {
        let mut levels = Vec::new();
        while !scopes.is_empty() {
            let waits = |scope: &String| {
                self.references
                    .get(scope)
                    .is_some_and(|others| others.iter().any(|other| other != scope && scopes.contains(other)))
            };
            let mut level: Vec<String> = scopes.iter().filter(|scope| !waits(scope)).cloned().collect();
            if level.is_empty() {
                level = scopes.iter().cloned().collect();
            }
            scopes.retain(|scope| !level.contains(scope));
            levels.push(level);
        }
        levels
    }

    /// Current generations of the exports. A namespace without an export is left out, so that nothing waits for it.
    fn generations(&self, namespaces: &BTreeSet<String>) -> BTreeMap<String, u64> {
        let generation = |namespace: &String| {
            let published = self
                .published
                .get(&(DocumentKind::Export, namespace.clone()))
                .map(|published| published.written.generation);
            let found =
                || self.world.document(DocumentKind::Export, namespace)?.header().map(|header| header.generation);
            Some((namespace.clone(), published.or_else(found)?))
        };
        namespaces.iter().filter_map(generation).collect()
    }

    /// Whether the documents that contain an object have been written.
    fn delivery_of(&self, scope: &str, outcome: &Outcome) -> Delivery {
        let mut written = Vec::new();
        for kind in &outcome.documents {
            match self.delivery.get(&(*kind, scope.to_owned())) {
                Some(Delivery::Written(message)) => written.push(message.clone()),
                Some(other) => return other.clone(),
                None => return Delivery::Pending(format!("{} is not written yet", document_name(*kind, scope))),
            }
        }
        Delivery::Written(written.join("; "))
    }

    fn retry(&mut self, scope: &str) {
        let failures = self.failures.entry(scope.to_owned()).or_default();
        *failures += 1;
        let wait = RETRY_MIN.saturating_mul(1 << (*failures - 1).min(8)).min(RETRY_MAX);
        self.requeue_at(scope, Instant::now() + wait);
    }

    fn requeue_at(&mut self, scope: &str, then: Instant) {
        self.dirty.insert(scope.to_owned());
        let entry = self.not_before.entry(scope.to_owned()).or_insert(then);
        *entry = (*entry).max(then);
    }
}

/// Namespace and name of a document's ConfigMap, for logs and messages.
fn document_name(kind: DocumentKind, scope: &str) -> String {
    format!("{}/{}", crate::world::documents_namespace(kind), kind.name(scope))
}

fn delivered(kind: DocumentKind, scope: &str, published: &Published) -> String {
    format!("in {} at config generation {}", document_name(kind, scope), published.written.config_generation)
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

async fn sleep_until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::NamespaceMeta;

    #[test]
    fn state_has_synced_when_every_kind_was_listed() {
        let (mut state, kinds) = (State::default(), KINDS);
        let namespaces: Vec<NamespaceMeta> = Vec::new();
        state.observe(Event::Namespace(Change::Reset(namespaces)));
        assert_eq!(state.listed, BTreeSet::from(["namespaces"]), "the name that the watch uses");
        state.listed.extend(kinds.iter().skip(2));
        assert!(!state.has_synced(), "services are missing");
        state.listed.extend(kinds);
        assert!(state.has_synced());
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn referenced_namespaces_are_written_first() {
        let mut state = State::default();
        state.references.insert("a".into(), set(&["b", "elsewhere"]));
        state.references.insert("b".into(), set(&["c"]));
        assert_eq!(state.levels(set(&["a", "b", "c", "d"])), [vec!["c", "d"], vec!["b"], vec!["a"]]);
        state.references.insert("c".into(), set(&["a"]));
        assert_eq!(state.levels(set(&["a", "b", "c", "d"])), [vec!["d"], vec!["a", "b", "c"]], "a cycle ends");
    }

    #[test]
    fn retries_back_off_up_to_a_limit() {
        let mut state = State::default();
        for _ in 0..40 {
            state.retry("shop");
        }
        let wait = state.not_before["shop"] - Instant::now();
        assert!(wait <= RETRY_MAX && wait > RETRY_MAX / 2, "{wait:?}");
        assert!(state.take_due(Instant::now()).is_empty(), "backing off");
        state.schedule();
        assert!(state.flush_at.is_some_and(|at| at > Instant::now()), "scheduled for later");
    }

    #[test]
    fn first_change_is_written_at_once_and_a_burst_is_coalesced() {
        let namespace = |name: &str, enabled| {
            Event::Namespace(Change::Apply(crate::world::NamespaceMeta { name: name.into(), enabled }))
        };
        let mut state = State { coalesce: COALESCE_MIN, ..State::default() };
        state.observe(namespace("a", true));
        assert_eq!(state.coalesce, COALESCE_MIN);
        for round in 0..8 {
            assert_eq!(state.take_due(Instant::now()).len(), 1);
            state.last_flush = Some(Instant::now());
            state.observe(namespace("a", round % 2 == 1));
        }
        assert_eq!(state.coalesce, COALESCE_MAX);
    }
}
