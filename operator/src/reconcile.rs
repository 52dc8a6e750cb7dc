//! The loop: takes events into the World, and brings the documents and conditions of dirty namespaces in order.
//!
//! It owns all state, so nothing is locked. A namespace is dirty until its documents are as they should be: a write that
//! fails leaves it dirty, with a growing wait. Only the holder of the Lease compiles and writes.
//!
//! Order: a namespace that others refer to is written before them, so that what they name is there. When what others see
//! of a namespace changes, they are compiled again.

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
use crate::compile::{self, Compiled, ObjectId, Outcome, Surface};
use crate::lease;
use crate::metrics::{KindLabel, Metrics, OutcomeLabel};
use crate::render::{self, Body, Plan, Published};
use crate::status::{self, Delivery};
use crate::watch::KINDS;
use crate::world::{Access, AccessKind, Change, Document, DocumentKind, Event, Key, World};

/// The scope of the index: no namespace has this name.
const INDEX: &str = "";

/// After a quiet time, changes wait this long for their companions.
const WAIT_MIN: Duration = Duration::from_millis(20);
/// Under a storm they wait up to this long.
const WAIT_MAX: Duration = Duration::from_millis(500);
/// What counts as a quiet time.
const QUIET: Duration = Duration::from_secs(1);
/// Namespaces in one round. Between rounds events are taken in.
const ROUND_MAX: usize = 64;
/// Events taken in before the clock is looked at again.
const EVENTS_MAX: usize = 1024;
/// Writes at the same time.
const WRITES_MAX: usize = 8;
/// Wait before a failed write is tried again: the first, and the longest.
const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// Time between two writes of one object's conditions.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// How often metrics that nobody's event moves are looked after.
const TICK: Duration = Duration::from_secs(10);

/// What the loop is given.
pub struct Reconciler {
    /// For writes.
    pub client: Client,
    /// For asking who holds the Lease.
    pub leases: Api<Lease>,
    /// This process's name in the Lease.
    pub identity: String,
    /// Whether this process writes.
    pub lease: watch::Receiver<lease::State>,
    /// Counted as it goes.
    pub metrics: Metrics,
    /// Ready once all has been listed.
    pub world_part: Part,
    /// Ready once this process writes or stands by.
    pub writer_part: Part,
    /// Ends the loop.
    pub stop: CancellationToken,
}

/// What the loop knows.
#[derive(Default)]
struct Memory {
    world: World,
    listed: BTreeSet<&'static str>,
    dirty: BTreeSet<String>,
    /// Scopes not to be looked at before an instant.
    not_before: BTreeMap<String, Instant>,
    failures: BTreeMap<String, u32>,
    published: BTreeMap<(DocumentKind, String), Published>,
    delivery: BTreeMap<(DocumentKind, String), Delivery>,
    surfaces: BTreeMap<String, Surface>,
    references: BTreeMap<String, BTreeSet<String>>,
    told: HashMap<ObjectId, Instant>,
    /// The epoch that `published` belongs to.
    epoch: Option<u64>,
    flush_at: Option<Instant>,
    wait: Duration,
    flushed: Option<Instant>,
}

/// A document to write, with what it is to replace.
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
        let mut memory = Memory { wait: WAIT_MIN, ..Memory::default() };
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.report(&memory);
        loop {
            let flush_at = if memory.is_whole() && memory.epoch.is_some() { memory.flush_at } else { None };
            tokio::select! {
                () = self.stop.cancelled() => return,
                event = events.recv() => {
                    let Some(event) = event else { return };
                    memory.take(event);
                    for _ in 0..EVENTS_MAX {
                        let Ok(event) = events.try_recv() else { break };
                        memory.take(event);
                    }
                    self.report(&memory);
                }
                changed = self.lease.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = sleep_until(flush_at), if flush_at.is_some() => self.flush(&mut memory).await,
                _ = tick.tick() => self.count(&memory),
            }
            let epoch = self.lease.borrow_and_update().epoch();
            if memory.epoch != epoch {
                memory.start(epoch);
                self.report(&memory);
                self.count(&memory);
            }
        }
    }

    /// One round.
    async fn flush(&mut self, memory: &mut Memory) {
        let Some(epoch) = self.lease.borrow().epoch() else { return };
        let scopes = memory.take_due(Instant::now());
        let mut compiled: BTreeMap<String, Option<Compiled>> = BTreeMap::new();
        let mut with_index = false;
        for scope in scopes {
            if scope == INDEX {
                with_index = true;
                continue;
            }
            let started = Instant::now();
            let result = memory.compile(&scope);
            self.metrics.compile_seconds.observe(started.elapsed().as_secs_f64());
            compiled.insert(scope, result);
        }
        with_index |= memory.dirty.remove(INDEX);

        for level in memory.levels(compiled.keys().cloned().collect()) {
            let mut jobs = Vec::new();
            for scope in &level {
                if let Some(Some(compiled)) = compiled.get(scope) {
                    self.plan_namespace(memory, scope, compiled, epoch, &mut jobs);
                }
            }
            self.write(memory, jobs, epoch).await;
        }
        if with_index {
            let mut jobs = Vec::new();
            let body = Body::Index(compile::index(&memory.world));
            self.plan(memory, INDEX, body, BTreeMap::new(), epoch, &mut jobs);
            self.write(memory, jobs, epoch).await;
        }
        for (scope, compiled) in &compiled {
            match compiled {
                Some(_) => self.grant(memory, scope, epoch).await,
                None => self.remove(memory, scope, epoch).await,
            }
        }
        for (scope, compiled) in &compiled {
            if let Some(compiled) = compiled {
                self.tell(memory, scope, compiled, epoch).await;
            }
        }
        memory.failures.retain(|scope, _| memory.dirty.contains(scope));
        memory.flushed = Some(Instant::now());
        memory.schedule();
        self.report(memory);
        self.count(memory);
    }

    fn plan_namespace(&self, memory: &mut Memory, scope: &str, compiled: &Compiled, epoch: u64, jobs: &mut Vec<Job>) {
        let Compiled { export, inbound, export_requires, inbound_requires, objects: _, left_out } = compiled;
        for (service, address) in left_out {
            tracing::debug!(ns = scope, service, %address, "endpoint left out: proxies must not be aimed there");
        }
        // In this order: a pod that comes under a policy hears of it before its clients hear of the pod.
        let requires = memory.generations(inbound_requires);
        self.plan(memory, scope, Body::Inbound(inbound.clone()), requires, epoch, jobs);
        let requires = memory.generations(export_requires);
        self.plan(memory, scope, Body::Export(export.clone()), requires, epoch, jobs);
    }

    fn plan(
        &self,
        memory: &mut Memory,
        scope: &str,
        body: Body,
        requires: BTreeMap<String, u64>,
        epoch: u64,
        jobs: &mut Vec<Job>,
    ) {
        let kind = body.kind();
        let slot = (kind, scope.to_owned());
        let found = memory.world.document(kind, scope).cloned();
        if !memory.published.contains_key(&slot)
            && let Some(adopted) = found.as_ref().and_then(|found| Published::adopt(kind, scope, found))
        {
            memory.published.insert(slot.clone(), adopted);
        }
        let published = memory.published.get(&slot);
        match render::plan(scope, body, requires, published, found.as_ref(), epoch, unix_ms()) {
            Plan::Keep => {
                self.metrics.unchanged.inc();
                let message = published.map(|published| delivered(kind, scope, published)).unwrap_or_default();
                memory.delivery.insert(slot, Delivery::Written(message));
            }
            Plan::Write { next, repair } => jobs.push(Job { kind, scope: scope.to_owned(), next, found, repair }),
            Plan::TooLarge { bytes, limit } => {
                self.metrics.wrote(kind.word(), "too_large");
                tracing::error!(document = %place(kind, scope), bytes, limit, "document is too large, the last good one stays");
                let message = format!(
                    "{} would have {bytes} bytes, and {limit} are allowed: the last good one stays",
                    place(kind, scope)
                );
                memory.delivery.insert(slot, Delivery::TooLarge(message));
            }
        }
    }

    async fn write(&self, memory: &mut Memory, jobs: Vec<Job>, epoch: u64) {
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
            self.metrics.wrote(kind.word(), outcome);
            let slot = (kind, scope.clone());
            match result {
                Ok(document) => {
                    let bytes = next.envelope.stored_bytes();
                    tracing::info!(
                        document = %place(kind, &scope),
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
                        .get_or_create(&KindLabel { kind: kind.word().to_owned() })
                        .clone();
                    gauge.set(gauge.get().max(i64::try_from(bytes).unwrap_or(i64::MAX)));
                    memory.delivery.insert(slot.clone(), Delivery::Written(delivered(kind, &scope, &next)));
                    memory.published.insert(slot, *next);
                    // We know before the watch does.
                    memory.world.observe(Event::Document(kind, Change::Apply(document)));
                }
                Err(error) => {
                    let message = format!("{} is not written yet: {error}", place(kind, &scope));
                    memory.delivery.insert(slot, Delivery::Pending(message));
                    memory.retry(&scope);
                    if matches!(error, apply::Error::Conflict) {
                        self.look_again(memory, kind, &scope, epoch).await;
                    } else {
                        tracing::warn!(document = %place(kind, &scope), %error, "document not written, trying again");
                    }
                }
            }
        }
    }

    /// Somebody else wrote: see what, and whether it was a later writer.
    async fn look_again(&self, memory: &mut Memory, kind: DocumentKind, scope: &str, epoch: u64) {
        if !self.may_write(epoch) {
            return;
        }
        let found = match apply::read_document(&self.client, kind, scope).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(document = %place(kind, scope), %error, "document cannot be read, trying again");
                return;
            }
        };
        let change = match found {
            Some(document) => {
                let later = document.header().is_some_and(|header| header.epoch > epoch);
                // A header is easily edited; the Lease says who is who.
                if later && !lease::confirm(&self.leases, &self.identity, epoch).await {
                    tracing::warn!(document = %place(kind, scope), "a later writer was here, standing back");
                    memory.not_before.insert(scope.to_owned(), Instant::now() + RETRY_MAX);
                }
                Change::Apply(document)
            }
            None => Change::Delete(Key::new("", kind.name(scope))),
        };
        memory.world.observe(Event::Document(kind, change));
    }

    /// Lets the namespace's pods read their private document.
    async fn grant(&self, memory: &mut Memory, scope: &str, epoch: u64) {
        let wanted = [
            (AccessKind::Role, Access::from(render::role(scope))),
            (AccessKind::Binding, Access::from(render::role_binding(scope))),
        ];
        for (kind, wanted) in wanted {
            let found = memory.world.access(kind, scope);
            if found == Some(&wanted) || !self.may_write(epoch) {
                continue;
            }
            match apply::access(&self.client, kind, scope, found.is_some()).await {
                Ok(access) => {
                    memory.world.observe(Event::Access(kind, Change::Apply(access)));
                }
                Err(error) => {
                    tracing::warn!(ns = scope, ?kind, %error, "access not granted, trying again");
                    memory.retry(scope);
                }
            }
        }
    }

    /// Takes away what a namespace had that left the mesh.
    async fn remove(&self, memory: &mut Memory, scope: &str, epoch: u64) {
        for kind in [DocumentKind::Export, DocumentKind::Inbound] {
            let slot = (kind, scope.to_owned());
            memory.published.remove(&slot);
            memory.delivery.remove(&slot);
            let Some(found) = memory.world.document(kind, scope).filter(|found| found.labelled).cloned() else {
                continue;
            };
            if !self.may_write(epoch) {
                return;
            }
            match apply::delete_document(&self.client, kind, scope, &found).await {
                Ok(()) => {
                    self.metrics.wrote(kind.word(), "deleted");
                    tracing::info!(document = %place(kind, scope), "namespace left the mesh, document deleted");
                    memory.world.observe(Event::Document(kind, Change::Delete(Key::new("", kind.name(scope)))));
                }
                Err(error) => {
                    self.metrics.wrote(kind.word(), error.reason());
                    tracing::warn!(document = %place(kind, scope), %error, "document not deleted, trying again");
                    memory.retry(scope);
                }
            }
        }
        for kind in [AccessKind::Role, AccessKind::Binding] {
            if !memory.world.access(kind, scope).is_some_and(|access| access.labelled) || !self.may_write(epoch) {
                continue;
            }
            match apply::delete_access(&self.client, kind, scope).await {
                Ok(()) => {
                    let key = Key::new("", DocumentKind::Inbound.name(scope));
                    memory.world.observe(Event::Access(kind, Change::Delete(key)));
                }
                Err(error) => {
                    tracing::warn!(ns = scope, ?kind, %error, "access not taken away, trying again");
                    memory.retry(scope);
                }
            }
        }
    }

    /// Writes the conditions that changed.
    async fn tell(&self, memory: &mut Memory, scope: &str, compiled: &Compiled, epoch: u64) {
        let now = Instant::now();
        let mut jobs: Vec<(ObjectId, String, Status)> = Vec::new();
        for (id, outcome) in &compiled.objects {
            let Some((uid, generation, previous)) = memory.world.status(id) else { continue };
            let delivery = memory.delivery_of(scope, outcome);
            let Some(next) = status::next(previous, generation, &outcome.diagnostics, &delivery, Timestamp::now())
            else {
                continue;
            };
            let uid = uid.to_owned();
            match memory.told.get(id).map(|told| *told + STATUS_INTERVAL).filter(|then| *then > now) {
                Some(then) => memory.later(scope, then),
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
                    memory.told.insert(id.clone(), Instant::now());
                    memory.world.set_status(&id, next, revision);
                }
                // The watch is about to say so.
                Err(apply::Error::Gone) => {}
                Err(error) => {
                    tracing::warn!(object = %id, %error, "conditions not written, trying again");
                    memory.retry(scope);
                }
            }
        }
    }

    fn may_write(&self, epoch: u64) -> bool {
        self.lease.borrow().epoch() == Some(epoch)
    }

    fn report(&self, memory: &Memory) {
        if memory.is_whole() {
            self.world_part.ready();
        } else {
            let missing: Vec<&str> = KINDS.into_iter().filter(|kind| !memory.listed.contains(kind)).collect();
            self.world_part.report(false, &format!("not listed yet: {}", missing.join(", ")));
        }
        let failing = memory.failures.len();
        match memory.epoch {
            _ if !memory.is_whole() => self.writer_part.report(false, "the world is not known yet"),
            None => self.writer_part.report(true, "standing by"),
            Some(epoch) if failing > 0 => {
                self.writer_part.report(true, &format!("writing, epoch {epoch}; {failing} namespaces fail"))
            }
            Some(epoch) => self.writer_part.report(true, &format!("writing, epoch {epoch}")),
        }
        self.metrics.dirty.set(i64::try_from(memory.dirty.len()).unwrap_or(i64::MAX));
        self.metrics.leader.set(i64::from(memory.epoch.is_some()));
    }

    fn count(&self, memory: &Memory) {
        for (kind, count) in memory.world.counts() {
            self.metrics
                .objects
                .get_or_create(&KindLabel { kind: kind.to_owned() })
                .set(i64::try_from(count).unwrap_or(i64::MAX));
        }
        if memory.epoch.is_some() && memory.is_whole() && memory.dirty.is_empty() {
            self.metrics.last_sync.set(Duration::from_millis(unix_ms()).as_secs_f64());
        }
    }
}

// === impl Memory ===

impl Memory {
    fn take(&mut self, event: Event) {
        let (kind, reset) = event.what();
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
            // The first change after a quiet time goes out almost at once; those of a storm gather.
            let quiet = self.flushed.is_none_or(|flushed| now.duration_since(flushed) > QUIET);
            self.wait = if quiet { WAIT_MIN } else { (self.wait * 2).min(WAIT_MAX) };
            self.flush_at = Some(now + self.wait);
        }
        if touched.urgent {
            self.flush_at = self.flush_at.map(|at| at.min(now + WAIT_MIN));
        }
    }

    fn is_whole(&self) -> bool {
        KINDS.iter().all(|kind| self.listed.contains(kind))
    }

    /// Begins to write, or stops: what an earlier writer left is looked at anew.
    fn start(&mut self, epoch: Option<u64>) {
        self.epoch = epoch;
        self.published.clear();
        self.delivery.clear();
        self.surfaces.clear();
        self.references.clear();
        self.failures.clear();
        self.not_before.clear();
        self.told.clear();
        let known = self.world.namespaces().map(|(name, _)| name.clone());
        let written = self.world.documents().map(|(_, namespace, _)| namespace.to_owned());
        self.dirty = known.chain(written).collect();
        self.dirty.insert(INDEX.to_owned());
        self.flush_at = Some(Instant::now());
    }

    /// The dirty scopes whose time has come, at most a round of them.
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

    /// Sets the time of the next round, if there is anything to do.
    fn schedule(&mut self) {
        let now = Instant::now();
        self.told.retain(|_, told| now.duration_since(*told) < STATUS_INTERVAL);
        self.flush_at = self.dirty.iter().map(|scope| self.not_before.get(scope).copied().unwrap_or(now)).min();
    }

    /// Compiles a namespace, and marks those who see it dirty if they see something else now. `None`: not in the mesh.
    fn compile(&mut self, scope: &str) -> Option<Compiled> {
        let compiled = self.world.in_mesh(scope).then(|| compile::compile(&self.world, scope));
        let surface = match &compiled {
            Some(compiled) => compile::surface(&self.world, scope, compiled),
            None => Surface::default(),
        };
        let before = self.surfaces.insert(scope.to_owned(), surface.clone());
        if before.as_ref() != Some(&surface) {
            self.dirty.extend(self.world.referrers(scope).map(str::to_owned));
            self.dirty.insert(INDEX.to_owned());
        }
        // Being referred to puts a namespace into the mesh.
        let references = self.world.references(scope);
        let before = self.references.insert(scope.to_owned(), references.clone()).unwrap_or_default();
        self.dirty.extend(before.symmetric_difference(&references).filter(|other| *other != scope).cloned());
        if compiled.is_none() {
            self.surfaces.remove(scope);
            self.references.remove(scope);
        }
        compiled
    }

    /// Scopes in the order in which they are written: each after those that it refers to. In a circle all are equal.
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

    /// Generations of exports as they are now. One that does not exist is not waited for.
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

    /// How far the documents of an object have come.
    fn delivery_of(&self, scope: &str, outcome: &Outcome) -> Delivery {
        let mut written = Vec::new();
        for kind in &outcome.documents {
            match self.delivery.get(&(*kind, scope.to_owned())) {
                Some(Delivery::Written(message)) => written.push(message.clone()),
                Some(other) => return other.clone(),
                None => return Delivery::Pending(format!("{} is not written yet", place(*kind, scope))),
            }
        }
        Delivery::Written(written.join("; "))
    }

    fn retry(&mut self, scope: &str) {
        let failures = self.failures.entry(scope.to_owned()).or_default();
        *failures += 1;
        let wait = RETRY_MIN.saturating_mul(1 << (*failures - 1).min(8)).min(RETRY_MAX);
        self.later(scope, Instant::now() + wait);
    }

    fn later(&mut self, scope: &str, then: Instant) {
        self.dirty.insert(scope.to_owned());
        let held = self.not_before.entry(scope.to_owned()).or_insert(then);
        *held = (*held).max(then);
    }
}

/// A document as a person would name it.
fn place(kind: DocumentKind, scope: &str) -> String {
    format!("{}/{}", crate::world::documents_namespace(kind), kind.name(scope))
}

fn delivered(kind: DocumentKind, scope: &str, published: &Published) -> String {
    format!("in {} at configuration {}", place(kind, scope), published.written.config_generation)
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
    fn whole_when_every_kind_was_listed() {
        let (mut memory, kinds) = (Memory::default(), KINDS);
        let namespaces: Vec<NamespaceMeta> = Vec::new();
        memory.take(Event::Namespace(Change::Reset(namespaces)));
        assert_eq!(memory.listed, BTreeSet::from(["namespaces"]), "as the watch calls it");
        memory.listed.extend(kinds.iter().skip(2));
        assert!(!memory.is_whole(), "one is missing");
        memory.listed.extend(kinds);
        assert!(memory.is_whole());
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_is_referred_to_is_written_first() {
        let mut memory = Memory::default();
        memory.references.insert("a".into(), set(&["b", "elsewhere"]));
        memory.references.insert("b".into(), set(&["c"]));
        assert_eq!(memory.levels(set(&["a", "b", "c", "d"])), [vec!["c", "d"], vec!["b"], vec!["a"]]);
        memory.references.insert("c".into(), set(&["a"]));
        assert_eq!(memory.levels(set(&["a", "b", "c", "d"])), [vec!["d"], vec!["a", "b", "c"]], "a circle ends");
    }

    #[test]
    fn failures_wait_longer_each_time_and_not_for_ever() {
        let mut memory = Memory::default();
        for _ in 0..40 {
            memory.retry("shop");
        }
        let wait = memory.not_before["shop"] - Instant::now();
        assert!(wait <= RETRY_MAX && wait > RETRY_MAX / 2, "{wait:?}");
        assert!(memory.take_due(Instant::now()).is_empty(), "not yet");
        memory.schedule();
        assert!(memory.flush_at.is_some_and(|at| at > Instant::now()), "but later");
    }

    #[test]
    fn the_first_change_goes_out_at_once_and_a_storm_gathers() {
        let namespace = |name: &str, enabled| {
            Event::Namespace(Change::Apply(crate::world::NamespaceMeta { name: name.into(), enabled }))
        };
        let mut memory = Memory { wait: WAIT_MIN, ..Memory::default() };
        memory.take(namespace("a", true));
        assert_eq!(memory.wait, WAIT_MIN);
        for round in 0..8 {
            assert_eq!(memory.take_due(Instant::now()).len(), 1);
            memory.flushed = Some(Instant::now());
            memory.take(namespace("a", round % 2 == 1));
        }
        assert_eq!(memory.wait, WAIT_MAX);
    }
}
