//! The reconcile loop: applies events to the World, then compiles and writes the documents and conditions of dirty
//! namespaces.
//!
//! The loop owns all state, so there are no locks. A namespace is dirty until its documents are as compiled: after a
//! failed write it stays dirty and is retried with exponential backoff. Only the holder of the Lease compiles and
//! writes.
//!
//! Order: a namespace that others reference is written before them, so that the references resolve. When the exports
//! of a namespace change, the namespaces that reference it are compiled again. Documents of pods follow those of
//! namespaces, so that a pod applies its policies before clients learn of it, and the index follows both.

mod pods;
mod state;
mod statuses;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use state::{INDEX, RETRY_MAX, State, delivered, document_name};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use weft_config::bootstrap::prefix_of_name;
use weft_runtime::readiness::Part;

use crate::apply;
use crate::callers::Target;
use crate::compile::Compiled;
use crate::events::Recorder;
use crate::lease;
use crate::metrics::{AvailabilityLabels, DocumentLabel, KindLabel, Metrics};
use crate::render::{self, Body, Plan, Published, Writer};
use crate::signing::Signing;
use crate::status::Delivery;
use crate::world::{Access, AccessKind, Answer, Availability, Change, Document, DocumentKind, Event, Key, WatchedKind};

/// Maximum events applied before timers are checked again.
const EVENTS_MAX: usize = 1024;
/// Maximum concurrent writes.
const WRITES_MAX: usize = 8;
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
    /// What signs documents. None until there is an issuer.
    pub signing: watch::Receiver<Option<Arc<Signing>>>,
    /// The operator's metrics.
    pub metrics: Metrics,
    /// Where Kubernetes Events go.
    pub recorder: Recorder,
    /// Where the pods go that are to be asked for their plaintext callers.
    pub to_ask: watch::Sender<Vec<Target>>,
    /// What they answered, a round at a time.
    pub answers: mpsc::Receiver<Vec<Answer>>,
    /// Namespaces that are never injected: their pods need no Event that says so.
    pub excluded_namespaces: BTreeSet<String>,
    /// Ready once all kinds have been listed.
    pub world_part: Part,
    /// Ready once this process is leader or standby.
    pub writer_part: Part,
    /// Stops the loop.
    pub stop: CancellationToken,
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
        let mut state = State::new();
        let mut tick = tokio::time::interval(GAUGES_INTERVAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.report_readiness(&state);
        loop {
            let flush_at = if state.has_synced() && state.epoch.is_some() { state.flush_at } else { None };
            tokio::select! {
                () = self.stop.cancelled() => return,
                event = events.recv() => {
                    let Some(event) = event else { return };
                    let now = Instant::now();
                    state.observe(event, now);
                    for _ in 0..EVENTS_MAX {
                        let Ok(event) = events.try_recv() else { break };
                        state.observe(event, now);
                    }
                    self.report_readiness(&state);
                }
                changed = self.lease.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                Some(answers) = self.answers.recv() => state.observe_callers(answers, Instant::now()),
                Ok(()) = self.signing.changed() => state.touch_all(Instant::now()),
                () = sleep_until(flush_at), if flush_at.is_some() => self.flush(&mut state).await,
                _ = tick.tick() => self.update_gauges(&mut state),
            }
            let epoch = self.lease.borrow_and_update().epoch();
            if state.epoch != epoch {
                state.reset(epoch, Instant::now());
                self.to_ask.send_replace(Vec::new());
                self.report_readiness(&state);
                self.update_gauges(&mut state);
            }
        }
    }

    /// Compiles and writes one round of dirty scopes.
    async fn flush(&mut self, state: &mut State) {
        let Some(epoch) = self.lease.borrow().epoch() else { return };
        let scopes = state.take_due(Instant::now());
        let mut compiled: BTreeMap<String, Option<Compiled>> = BTreeMap::new();
        let (mut with_index, mut prefixes) = (false, Vec::new());
        for scope in scopes {
            if scope == INDEX {
                with_index = true;
                continue;
            }
            if let Some(prefix) = prefix_of_name(&scope) {
                prefixes.push(prefix);
                continue;
            }
            let started = Instant::now();
            let result = state.compile(&scope);
            self.metrics.compile_seconds.observe(started.elapsed().as_secs_f64());
            compiled.insert(scope, result);
        }
        for level in state.levels(compiled.keys().cloned().collect()) {
            let mut jobs = Vec::new();
            for scope in &level {
                if let Some(Some(compiled)) = compiled.get(scope) {
                    self.plan_namespace(state, scope, compiled, epoch, &mut jobs);
                }
            }
            self.write(state, jobs, epoch).await;
        }
        let without_pods = self.write_pods(state, prefixes, epoch).await;
        if with_index | state.dirty.remove(INDEX) {
            let mut jobs = Vec::new();
            let body = Body::Index(state.index());
            self.plan(state, INDEX, body, BTreeMap::new(), epoch, &mut jobs);
            self.write(state, jobs, epoch).await;
        }
        self.remove_pods(state, without_pods, epoch).await;
        for (scope, compiled) in &compiled {
            match compiled {
                Some(_) => self.grant(state, scope, epoch).await,
                None => self.remove(state, scope, epoch).await,
            }
        }
        for scope in compiled.keys() {
            state.mode_written(scope);
        }
        if with_index {
            self.write_statuses_of_meshes(state, epoch).await;
        }
        for (scope, compiled) in &compiled {
            if let Some(compiled) = compiled {
                self.write_statuses(state, scope, compiled, epoch).await;
            }
            if !self.excluded_namespaces.contains(scope) {
                self.recorder.record_pods(state.events_of_pods(scope));
            }
        }
        self.to_ask.send_if_modified(|current| {
            let next = state.to_ask();
            let is_changed = *current != next;
            *current = next;
            is_changed
        });
        state.failures.retain(|scope, _| state.dirty.contains(scope));
        let now = Instant::now();
        state.last_flush = Some(now);
        state.schedule(now);
        self.report_readiness(state);
        self.update_gauges(state);
    }

    fn plan_namespace(&self, state: &mut State, scope: &str, compiled: &Compiled, epoch: u64, jobs: &mut Vec<Job>) {
        let Compiled {
            export,
            inbound,
            export_requires,
            inbound_requires,
            objects: _,
            permissive: _,
            strictness: _,
            rejected_addresses,
        } = compiled;
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
        let signing = self.signing.borrow().clone();
        let writer = Writer { epoch, now_ms: unix_ms(), signing: signing.as_deref() };
        match render::plan(scope, body, requires, published, found.as_ref(), &writer) {
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
            let object = render::config_map(job.kind, &job.scope, &job.next.envelope);
            let written = apply::document(&self.client, object, job.found.as_ref()).await;
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
                        .get_or_create(&DocumentLabel { document: kind.as_str() })
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
                    state.retry(&scope, Instant::now());
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
                    state.retry(scope, Instant::now());
                }
            }
        }
    }

    /// Deletes the documents and access of a namespace that left the mesh.
    async fn remove(&self, state: &mut State, scope: &str, epoch: u64) {
        for kind in [DocumentKind::Export, DocumentKind::Inbound] {
            self.delete(state, kind, scope, epoch).await;
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
                    state.retry(scope, Instant::now());
                }
            }
        }
    }

    async fn delete(&self, state: &mut State, kind: DocumentKind, scope: &str, epoch: u64) {
        let slot = (kind, scope.to_owned());
        state.published.remove(&slot);
        state.delivery.remove(&slot);
        let found = state.world.document(kind, scope).filter(|found| found.labelled && self.may_write(epoch)).cloned();
        let Some(found) = found else { return };
        match apply::delete_document(&self.client, kind, scope, &found).await {
            Ok(()) => {
                self.metrics.wrote(kind.as_str(), "deleted");
                tracing::info!(document = %document_name(kind, scope), "document deleted, nothing needs it any more");
                state.world.observe(Event::Document(kind, Change::Delete(Key::new("", kind.name(scope)))));
            }
            Err(error) => {
                self.metrics.wrote(kind.as_str(), error.reason());
                tracing::warn!(document = %document_name(kind, scope), %error, "cannot delete document, retrying");
                state.retry(scope, Instant::now());
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
            let missing = WatchedKind::ALL.iter().filter(|kind| !state.listed.contains(kind));
            let missing: Vec<&str> = missing.map(|kind| kind.as_str()).collect();
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

    fn update_gauges(&self, state: &mut State) {
        let not_ready = state.count_not_ready();
        self.metrics.set_not_ready(&not_ready, &state.not_ready);
        state.not_ready = not_ready;
        for (kind, count) in state.world.counts() {
            self.metrics
                .objects
                .get_or_create(&KindLabel { kind: kind.to_owned() })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        for (kind, availability) in state.world.availability() {
            for name in Availability::STATES {
                let labels = AvailabilityLabels { kind: kind.as_str(), state: name };
                let gauge = self.metrics.gateway_api_kinds.get_or_create(&labels);
                gauge.set(i64::from(availability.as_str() == name));
            }
        }
        if state.epoch.is_some() {
            self.recorder.record(state.events_of_definitions());
        }
        if state.epoch.is_some() && state.has_synced() && state.dirty.is_empty() {
            self.metrics.last_sync.set(Duration::from_millis(unix_ms()).as_secs_f64());
        }
    }
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

async fn sleep_until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then.into()).await,
        None => std::future::pending().await,
    }
}
