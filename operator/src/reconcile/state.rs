//! What the loop knows: the World, which scopes are dirty and when they are due, and what has been written.
//!
//! Pure: no client; the time is a parameter.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weft_config::bootstrap::{self, pods_name, prefix_of_name};
use weft_config::{Index, Prefix};

use crate::callers::Target;
use crate::compile::{self, Compiled, Exports, Strictness};
use crate::events;
use crate::metrics::NotReadyLabels;
use crate::render::{Body, Published};
use crate::status::{self, Delivery};
use crate::world::{
    Answer, Availability, Definition, DocumentKind, Event, Key, ObjectId, Touched, WatchedKind, World,
    documents_namespace,
};

/// The scope of the index and of the Mesh; no namespace has this name.
pub(super) const INDEX: &str = "";

/// Coalescing delay of the first change after a quiet period.
const COALESCE_MIN: Duration = Duration::from_millis(20);
/// Longest coalescing delay, under constant changes.
const COALESCE_MAX: Duration = Duration::from_millis(500);
/// Time without a write after which the coalescing delay starts at the minimum again.
const QUIET: Duration = Duration::from_secs(1);
/// Maximum namespaces per round. Events are applied between rounds.
const ROUND_MAX: usize = 64;
/// Backoff of failed writes: first and longest delay.
const RETRY_MIN: Duration = Duration::from_millis(250);
pub(super) const RETRY_MAX: Duration = Duration::from_secs(30);
/// Minimum time between two status writes of one object, if the status or reason of a condition changes, and if only its
/// message does: the names in a message change with every pod of a rollout.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
const MESSAGE_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum statuses of all objects in which only a message changes, in one second: one pod may be in the messages of a
/// thousand policies.
const MESSAGES_MAX: u32 = 20;

/// State of the loop.
#[derive(Default)]
pub(super) struct State {
    pub(super) world: World,
    /// Kinds that have been listed.
    pub(super) listed: BTreeSet<WatchedKind>,
    /// Scopes to compile and write.
    pub(super) dirty: BTreeSet<String>,
    /// Scopes to skip before an instant: rate limits and backoff.
    pub(super) not_before: BTreeMap<String, Instant>,
    pub(super) failures: BTreeMap<String, u32>,
    pub(super) published: BTreeMap<(DocumentKind, String), Published>,
    pub(super) delivery: BTreeMap<(DocumentKind, String), Delivery>,
    exports: BTreeMap<String, Exports>,
    references: BTreeMap<String, BTreeSet<String>>,
    /// Pods that accept plaintext, and what is known of their callers; by namespace.
    plaintext: BTreeMap<String, (Vec<Key>, Strictness)>,
    /// Namespaces whose documents do not have the default mode of mutual TLS yet.
    without_mode: BTreeSet<String>,
    /// How many objects were not ready when the gauges were last set.
    pub(super) not_ready: BTreeMap<NotReadyLabels, i64>,
    status_written_at: HashMap<ObjectId, Instant>,
    /// When the current second of messages began, and how many of it were written.
    messages: Option<(Instant, u32)>,
    /// Scopes with a status to write at an instant. Unlike `not_before` this delays nothing else.
    status_due: BTreeMap<String, Instant>,
    /// UIDs of pods without a proxy, and of their workloads, that Events are about; by namespace.
    reported: BTreeMap<String, BTreeSet<String>>,
    /// Definitions of the Gateway API's kinds that Events are about.
    reported_definitions: BTreeSet<Definition>,
    /// The epoch that `published` and the other caches belong to; `None` on standby.
    pub(super) epoch: Option<u64>,
    /// Time of the next round, if one is scheduled.
    pub(super) flush_at: Option<Instant>,
    /// Current coalescing delay.
    coalesce: Duration,
    pub(super) last_flush: Option<Instant>,
}

// === impl State ===

impl State {
    pub(super) fn new() -> Self {
        Self { coalesce: COALESCE_MIN, ..Self::default() }
    }

    pub(super) fn observe(&mut self, event: Event, now: Instant) {
        let (kind, reset) = event.kind();
        if reset {
            self.listed.insert(kind);
        }
        let mode = self.world.mode();
        let touched = self.world.observe(event);
        if mode != self.world.mode() {
            self.without_mode.extend(touched.scopes.iter().filter(|scope| is_namespace(scope)).cloned());
        }
        self.touch(touched, now);
    }

    /// Takes what the proxies of all asked pods have answered.
    pub(super) fn observe_callers(&mut self, answers: Vec<Answer>, now: Instant) {
        let touched = self.world.observe_callers(answers);
        self.touch(touched, now);
    }

    /// Marks namespaces dirty, and schedules a round.
    fn touch(&mut self, touched: Touched, now: Instant) {
        if touched.scopes.is_empty() {
            return;
        }
        self.dirty.extend(touched.scopes);
        // A retry or a status that is due later does not delay the change.
        if self.flush_at.is_none_or(|at| at > now + COALESCE_MAX) {
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

    pub(super) fn has_synced(&self) -> bool {
        WatchedKind::ALL.iter().all(|kind| self.listed.contains(kind))
    }

    /// On a change of leadership: drops all caches and marks everything dirty, to check what an earlier leader wrote.
    pub(super) fn reset(&mut self, epoch: Option<u64>, now: Instant) {
        self.epoch = epoch;
        self.published.clear();
        self.delivery.clear();
        self.exports.clear();
        self.references.clear();
        self.plaintext.clear();
        self.failures.clear();
        self.dirty.clear();
        self.not_before.clear();
        self.status_written_at.clear();
        self.status_due.clear();
        self.reported.clear();
        self.reported_definitions.clear();
        self.touch_all(now);
        // What an earlier leader has written is not known.
        self.without_mode = self.dirty.iter().filter(|scope| is_namespace(scope)).cloned().collect();
    }

    /// Marks everything dirty, because all documents may have to be written again.
    pub(super) fn touch_all(&mut self, now: Instant) {
        let known = self.world.namespaces().map(|(name, _)| name.clone());
        let written = self.world.documents().map(|(_, namespace, _)| namespace.to_owned());
        let prefixes = self.world.prefixes().into_iter().map(pods_name);
        let scopes: BTreeSet<String> = known.chain(written).chain(prefixes).collect();
        self.dirty.extend(scopes);
        self.dirty.insert(INDEX.to_owned());
        self.flush_at = Some(now);
    }

    /// Notes that a namespace's documents were compiled with the default mode of mutual TLS, and written if they are to be.
    pub(super) fn mode_written(&mut self, scope: &str) {
        let inbound = (DocumentKind::Inbound, scope.to_owned());
        let is_written = self.delivery.get(&inbound).is_none_or(|delivery| matches!(delivery, Delivery::Written(_)));
        if is_written && self.without_mode.remove(scope) && self.without_mode.is_empty() {
            self.dirty.insert(INDEX.to_owned());
        }
    }

    /// Whether all documents have what the Mesh says. `is_programmed`: they did at this generation, which a restart of the
    /// operator does not change.
    pub(super) fn delivery_of_mesh(&self, is_programmed: bool) -> Delivery {
        let roots = compile::missing_roots(&self.world);
        match self.without_mode.first().filter(|_| !is_programmed) {
            Some(namespace) => {
                let count = self.without_mode.len();
                Delivery::Pending(format!("namespaces do not have the mode yet: {namespace}, {count} in all"))
            }
            None if roots > 0 => Delivery::Pending(format!(
                "{roots} roots are not in {}/{} yet",
                bootstrap::EXPORT_NAMESPACE,
                bootstrap::TRUST_NAME
            )),
            None => Delivery::Written("all namespaces have the mode, and all proxies may trust the roots".to_owned()),
        }
    }

    /// The dirty scopes that are not delayed, at most one round of them.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<String> {
        self.dirty.extend(self.status_due.extract_if(.., |_, then| *then <= now).map(|(scope, _)| scope));
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
    pub(super) fn schedule(&mut self, now: Instant) {
        self.status_written_at.retain(|_, at| now.duration_since(*at) < MESSAGE_INTERVAL);
        let due = self.dirty.iter().map(|scope| self.not_before.get(scope).copied().unwrap_or(now));
        self.flush_at = due.chain(self.status_due.values().copied()).min();
    }

    /// Whether an object's status may be written now. If not, its scope is due again when it may.
    pub(super) fn may_write_status(&mut self, id: &ObjectId, is_prompt: bool, now: Instant) -> bool {
        let interval = if is_prompt { STATUS_INTERVAL } else { MESSAGE_INTERVAL };
        let of_object = self.status_written_at.get(id).map(|at| *at + interval).filter(|then| *then > now);
        let then = match of_object {
            None if is_prompt => None,
            None => self.take_message(now),
            then => then,
        };
        if let Some(then) = then {
            self.write_statuses_at(&id.key.namespace, then);
        }
        then.is_none()
    }

    /// Counts a status in which only a message changes, or returns when the next may be written.
    fn take_message(&mut self, now: Instant) -> Option<Instant> {
        let (since, count) = self.messages.filter(|(since, _)| now < *since + STATUS_INTERVAL).unwrap_or((now, 0));
        if count == MESSAGES_MAX {
            return Some(since + STATUS_INTERVAL);
        }
        self.messages = Some((since, count + 1));
        None
    }

    pub(super) fn status_written(&mut self, id: ObjectId, now: Instant) {
        self.status_written_at.insert(id, now);
    }

    /// Has the scope's statuses written at an instant.
    pub(super) fn write_statuses_at(&mut self, scope: &str, then: Instant) {
        let due = self.status_due.entry(scope.to_owned()).or_insert(then);
        *due = (*due).min(then);
    }

    /// Compiles a namespace, and marks the namespaces that reference it dirty if its exports changed. `None`: not in
    /// the mesh.
    pub(super) fn compile(&mut self, scope: &str) -> Option<Compiled> {
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
        let plaintext = compiled.as_ref().map(|compiled| (compiled.permissive.clone(), compiled.strictness.clone()));
        let before = self.plaintext.insert(scope.to_owned(), plaintext.clone().unwrap_or_default());
        // The Mesh's status is about all namespaces.
        if before.unwrap_or_default().1 != plaintext.unwrap_or_default().1 {
            self.dirty.insert(INDEX.to_owned());
        }
        if compiled.is_none() {
            self.exports.remove(scope);
            self.references.remove(scope);
            self.plaintext.remove(scope);
        }
        compiled
    }

    /// What is known of plaintext callers where only the Mesh decides.
    pub(super) fn strictness(&self) -> Strictness {
        let mut all = Strictness::default();
        self.plaintext.values().for_each(|(_, strictness)| all.merge(strictness));
        all
    }

    /// The pods to ask for their plaintext callers.
    pub(super) fn to_ask(&self) -> Vec<Target> {
        let pods = self.plaintext.values().flat_map(|(pods, _)| pods);
        let target = |key: &Key| {
            let pod = self.world.namespace(&key.namespace)?.pods.get(&key.name)?;
            let address = SocketAddr::new(*pod.addresses.first()?, bootstrap::METRICS_PORT);
            Some(Target { pod: key.clone(), uid: pod.uid.clone(), address })
        };
        pods.filter_map(target).collect()
    }

    /// The index. Of prefixes, it lists those whose documents exist.
    pub(super) fn index(&self) -> Index {
        let mut index = compile::index(&self.world);
        index.prefixes.retain(|prefix| self.is_to_list(*prefix));
        index
    }

    /// Whether the index is to list a prefix.
    pub(super) fn is_to_list(&self, prefix: Prefix) -> bool {
        self.world.pods_in(prefix).next().is_some()
            && self.world.document(DocumentKind::Pods, &pods_name(prefix)).is_some()
    }

    /// Whether the index that was last written lists a prefix.
    pub(super) fn is_listed(&self, prefix: Prefix) -> bool {
        let published = self.published.get(&(DocumentKind::Index, INDEX.to_owned()));
        published
            .is_some_and(|published| matches!(&published.body, Body::Index(index) if index.prefixes.contains(&prefix)))
    }

    /// Scopes in write order: each level after those that it references. Scopes that reference each other share a
    /// level.
    pub(super) fn levels(&self, mut scopes: BTreeSet<String>) -> Vec<Vec<String>> {
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
    pub(super) fn generations(&self, namespaces: &BTreeSet<String>) -> BTreeMap<String, u64> {
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

    /// Objects that are not ready, by kind and reason.
    pub(super) fn count_not_ready(&self) -> BTreeMap<NotReadyLabels, i64> {
        let mut not_ready = Vec::new();
        for (kind, status) in self.world.statuses() {
            not_ready.extend(status::not_ready(status).map(|reason| (kind, reason)));
        }
        for route in self.world.namespaces().flat_map(|(_, namespace)| namespace.gateway_routes()) {
            not_ready.extend(status::parents::not_ready(route).map(|reason| (route.kind, reason)));
        }
        let mut counts = BTreeMap::new();
        for (kind, reason) in not_ready {
            *counts.entry(NotReadyLabels { kind: kind.as_str(), reason: reason.to_owned() }).or_default() += 1;
        }
        counts
    }

    /// Whether the documents that contain an object have been written.
    pub(super) fn delivery_of(&self, scope: &str, documents: &BTreeSet<DocumentKind>) -> Delivery {
        let mut written = Vec::new();
        for kind in documents {
            match self.delivery.get(&(*kind, scope.to_owned())) {
                Some(Delivery::Written(message)) => written.push(message.clone()),
                Some(other) => return other.clone(),
                None => return Delivery::Pending(format!("{} is not written yet", document_name(*kind, scope))),
            }
        }
        Delivery::Written(written.join("; "))
    }

    /// Events about pods that run without a proxy, each once.
    pub(super) fn events_of_pods(&mut self, scope: &str) -> Vec<events::Event> {
        let mut reported = self.reported.remove(scope).unwrap_or_default();
        let events = events::pod::events(self.world.namespace(scope), &mut reported);
        if !reported.is_empty() {
            self.reported.insert(scope.to_owned(), reported);
        }
        events
    }

    /// Events about definitions that serve no version that Weft reads, each once.
    pub(super) fn events_of_definitions(&mut self) -> Vec<events::Event> {
        let unsupported = self.world.availability().filter_map(|(_, availability)| match availability {
            Availability::Unsupported(definition) => Some(definition.clone()),
            Availability::Missing | Availability::Served => None,
        });
        let before = std::mem::replace(&mut self.reported_definitions, unsupported.collect());
        self.reported_definitions.difference(&before).map(events::definition::event).collect()
    }

    pub(super) fn retry(&mut self, scope: &str, now: Instant) {
        let failures = self.failures.entry(scope.to_owned()).or_default();
        *failures += 1;
        let wait = RETRY_MIN.saturating_mul(1 << (*failures - 1).min(8)).min(RETRY_MAX);
        self.requeue_at(scope, now + wait);
    }

    fn requeue_at(&mut self, scope: &str, then: Instant) {
        self.dirty.insert(scope.to_owned());
        let entry = self.not_before.entry(scope.to_owned()).or_insert(then);
        *entry = (*entry).max(then);
    }
}

/// Whether a scope is a namespace, and not the index or a prefix of addresses.
fn is_namespace(scope: &str) -> bool {
    scope != INDEX && prefix_of_name(scope).is_none()
}

/// Namespace and name of a document's ConfigMap, for logs and messages.
pub(super) fn document_name(kind: DocumentKind, scope: &str) -> String {
    format!("{}/{}", documents_namespace(kind), kind.name(scope))
}

pub(super) fn delivered(kind: DocumentKind, scope: &str, published: &Published) -> String {
    format!("in {} at config generation {}", document_name(kind, scope), published.written.config_generation)
}

#[cfg(test)]
mod tests;
