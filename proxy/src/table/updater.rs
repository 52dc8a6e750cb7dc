//! The one task that updates the snapshot of the configuration ([`Store`]).
//!
//! Documents come from `source` and, at start, from copies on disk. A document that cannot be used changes nothing:
//! the last good version stays in use, and metrics and `/readyz` report the error. A deleted document changes nothing
//! either: an operator that wants a namespace to be empty writes a document that says so.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use weft_config::{Envelope, Header, Prefix};
use weft_runtime::readiness::Part;

use super::document::{Compiled, Rejection, read};
use super::source::{Document, Event, Source};
use super::store::Store;
use super::{Table, cache};
use crate::bootstrap::Pod;
use crate::clock::uptime_seconds;
use crate::identity::Slot;
use crate::identity::trust::{Held, Trust};
use crate::telemetry::config::{ConfigMetrics, DocumentMetrics};

/// Namespaces and prefixes that are open at once. To open another, the least recently used one is closed. An API server
/// allows a client 100 streams on a connection.
const NAMESPACES_MAX: usize = 64;
const PREFIXES_MAX: usize = 24;

/// A namespace or prefix that was not used for this long is closed.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// How often idle namespaces are looked for.
const SWEEP: Duration = Duration::from_secs(30);

/// How long a document waits for other documents that it requires.
const REQUIRES_TIMEOUT: Duration = Duration::from_secs(5);

/// The task that updates the snapshot.
pub(crate) struct Updater {
    pod: Pod,
    /// The roots that are trusted. None: the pod has no identity.
    trust: Option<Arc<Trust>>,
    source: Source,
    cache: Option<PathBuf>,
    identity: Arc<Slot>,
    store: Arc<Store>,
    requests: mpsc::Receiver<Document>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    documents: BTreeMap<Document, DocumentState>,
    staged: Vec<Staged>,
    metrics: ConfigMetrics,
    part: Part,
}

/// The state of one document.
struct DocumentState {
    /// When it was opened, as [`uptime_seconds`].
    opened: u64,
    watch: Option<JoinHandle<()>>,
    /// The header of the version in use.
    header: Option<Header>,
    /// Why the newest version is not in use, if it is not.
    error: Option<String>,
    /// The newest version, if it was refused for a reason that may pass: roots that are not held, or the clock.
    refused: Option<Envelope>,
    /// The version in use was compiled before the zone of the pod was known.
    zone_outdated: bool,
    /// Since when it is not known that the version in use is the newest. None: the source has said that it is.
    unconfirmed_since: Option<Instant>,
}

/// A document that waits for others.
struct Staged {
    document: Document,
    header: Header,
    compiled: Compiled,
    envelope: Envelope,
    deadline: Instant,
}

impl Updater {
    pub(crate) fn new(
        pod: Pod,
        trust: Option<Arc<Trust>>,
        source: Source,
        cache: Option<PathBuf>,
        identity: Arc<Slot>,
        metrics: ConfigMetrics,
        part: Part,
    ) -> (Arc<Store>, Self) {
        let (store, requests) = Store::new();
        let updater = Self {
            pod,
            trust,
            source,
            cache,
            identity,
            store: store.clone(),
            requests,
            events: mpsc::channel(64),
            documents: BTreeMap::new(),
            staged: Vec::new(),
            metrics,
            part,
        };
        (store, updater)
    }

    /// Updates the snapshot forever.
    pub(crate) async fn run(mut self) {
        let mut roots = self.trust.as_ref().map(|trust| trust.subscribe());
        if let Some(roots) = &mut roots {
            self.wait_for_roots(roots).await;
        }
        let own = self.pod.namespace.clone();
        for document in [Document::Index, Document::Export(own.as_str().into()), Document::Inbound(own.as_str().into())]
        {
            self.open(document);
        }
        self.report();
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let deadline = self.staged.iter().map(|staged| staged.deadline).min();
            tokio::select! {
                Some(event) = self.events.1.recv() => self.on_event(event),
                Some(document) = self.requests.recv() => self.open(document),
                _ = sweep.tick() => {
                    self.close_idle();
                    self.retry_refused();
                }
                () = changed(&mut roots) => self.retry_refused(),
                () = sleep_until(deadline) => self.activate_staged(),
            }
            self.report();
        }
    }

    /// Opens the document with the roots, and waits until there are some, from it or from the authority: no other
    /// document could be verified.
    async fn wait_for_roots(&mut self, roots: &mut watch::Receiver<Held>) {
        self.open(Document::Trust);
        while roots.borrow_and_update().bundle().is_none() {
            let error = self.documents.get(&Document::Trust).and_then(|state| state.error.clone());
            let detail = error.map(|error| format!("; document trust: {error}")).unwrap_or_default();
            self.part.report(false, &format!("waiting for the roots by which documents are verified{detail}"));
            tokio::select! {
                Some(event) = self.events.1.recv() => self.on_event(event),
                changed = roots.changed() => drop(changed),
                () = tokio::time::sleep(SWEEP) => self.retry_refused(),
            }
        }
    }

    /// Starts watching a document. Until its first version arrives, the copy on disk is used.
    fn open(&mut self, document: Document) {
        if self.documents.contains_key(&document) {
            return;
        }
        match &document {
            Document::Export(_) => self.evict_namespace(),
            // The index may have changed since the connection looked.
            Document::Pods(prefix) if !self.store.load().prefixes.contains(prefix) => return,
            Document::Pods(_) => self.evict_prefix(),
            Document::Index | Document::Inbound(_) | Document::Trust => {}
        }
        self.documents.insert(document.clone(), DocumentState::opened());
        if let Some(envelope) = self.cache.as_deref().and_then(|folder| cache::read(folder, &document)) {
            self.on_document(&document, envelope);
            if let Some(state) = self.documents.get_mut(&document) {
                state.unconfirm();
            }
        }
        let watch = self.source.watch(document.clone(), self.events.0.clone());
        if let Some(state) = self.documents.get_mut(&document) {
            state.watch = Some(watch);
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Document(document, envelope) => self.on_document(&document, envelope),
            Event::NotFound(document) => {
                let Some(state) = self.documents.get_mut(&document) else { return };
                state.error = Some("it does not exist".into());
                state.unconfirm();
                // A namespace outside the mesh has no document. An empty one is stored, so that connections do not
                // wait for it.
                if let (Document::Export(namespace), None) = (&document, &state.header)
                    && *namespace.as_ref() != *self.pod.namespace
                {
                    state.unconfirmed_since = None;
                    self.store.swap(|table| table.with_namespace(namespace, Some(Arc::default())));
                }
            }
            Event::Disconnected(document, error) => {
                self.metrics.source_errors.inc();
                tracing::warn!(%document, %error, "configuration source not reachable");
                if let Some(state) = self.documents.get_mut(&document) {
                    state.error = Some(format!("the source is not reachable: {error}"));
                    state.unconfirm();
                }
            }
        }
    }

    fn on_document(&mut self, document: &Document, envelope: Envelope) {
        let Some(state) = self.documents.get_mut(document) else { return };
        match read(&self.pod, self.trust.as_deref(), document, &envelope) {
            Err(rejection) => {
                let error = format!("refused: {rejection}");
                if state.error.as_ref() != Some(&error) {
                    tracing::error!(%document, error = %rejection, "configuration refused, the last good version stays in use");
                    self.metrics.rejections.inc();
                }
                state.error = Some(error);
                state.unconfirm();
                state.refused = matches!(rejection, Rejection::Trust(_)).then_some(envelope);
            }
            Ok((header, compiled)) => {
                (state.error, state.refused) = (None, None);
                state.unconfirmed_since = None;
                match &state.header {
                    Some(current) if *current == header && !state.zone_outdated => return,
                    Some(current) if current.generation > header.generation => {
                        state.error = Some(format!("generation {} is older than the one in use", header.generation));
                        state.unconfirm();
                        return;
                    }
                    _ => {}
                }
                state.zone_outdated = false;
                self.staged.retain(|staged| staged.document != *document);
                for namespace in header.requires.keys() {
                    self.open(Document::Export(namespace.as_str().into()));
                }
                let deadline = Instant::now() + REQUIRES_TIMEOUT;
                self.staged.push(Staged { document: document.clone(), header, compiled, envelope, deadline });
                self.activate_staged();
            }
        }
    }

    /// Tries again what was refused for a reason that may have passed.
    fn retry_refused(&mut self) {
        let refused =
            |(document, state): (&Document, &mut DocumentState)| Some((document.clone(), state.refused.take()?));
        let refused: Vec<_> = self.documents.iter_mut().filter_map(refused).collect();
        for (document, envelope) in refused {
            self.on_document(&document, envelope);
        }
    }

    /// Activates staged documents whose requirements are met or have timed out. A requirement is met when the
    /// document is staged, not when it is in use, so that two documents that require each other do not wait forever.
    fn activate_staged(&mut self) {
        let now = Instant::now();
        let generations: BTreeMap<String, u64> = (self.documents.iter())
            .filter_map(|(document, state)| Some((document, state.header.as_ref()?)))
            .chain(self.staged.iter().map(|staged| (&staged.document, &staged.header)))
            .filter_map(|(document, header)| match document {
                Document::Export(namespace) => Some((namespace.to_string(), header.generation)),
                _ => None,
            })
            .collect();
        let (due, waiting) = std::mem::take(&mut self.staged).into_iter().partition::<Vec<_>, _>(|staged| {
            now >= staged.deadline
                || (staged.header.requires.iter())
                    .all(|(namespace, wanted)| generations.get(namespace).is_some_and(|have| have >= wanted))
        });
        self.staged = waiting;
        for staged in due {
            self.activate(staged);
        }
    }

    fn activate(&mut self, staged: Staged) {
        let Staged { document, header, compiled, envelope, .. } = staged;
        match compiled {
            Compiled::Namespace(exported) => {
                let Document::Export(namespace) = &document else { return };
                self.store.swap(|table| table.with_namespace(namespace, Some(exported)));
            }
            Compiled::Inbound(inbound) => {
                let (dependencies, zone) = (inbound.dependencies.clone(), inbound.zone.clone());
                self.identity.set_outbound(inbound.outbound);
                self.store.swap(|table| Table { inbound, ..table.clone() });
                self.set_zone(zone);
                for namespace in dependencies {
                    self.open(Document::Export(namespace));
                }
            }
            Compiled::Pods(pods) => {
                let Document::Pods(prefix) = document else { return };
                self.store.swap(|table| table.with_pods(prefix, Some(pods)));
            }
            Compiled::Index(index) => {
                self.store.swap(|table| table.with_index(&index));
                let is_gone = |prefix: &Prefix| !index.prefixes.contains(prefix);
                self.prefixes()
                    .filter(is_gone)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .for_each(|prefix| self.close_prefix(prefix));
            }
            Compiled::Trust(bundle) => {
                if let Some(trust) = &self.trust {
                    trust.hold(bundle);
                }
            }
        }
        // What changes elsewhere in the cluster is no news of this pod.
        let in_use = self.documents.get(&document).and_then(|state| state.header.as_ref());
        if is_news(&document, in_use, &header) {
            tracing::info!(%document, generation = header.generation, "configuration in use");
        } else {
            tracing::debug!(%document, generation = header.generation, "configuration in use");
        }
        if let Some(folder) = &self.cache
            && let Err(error) = cache::write(folder, &document, &envelope)
        {
            tracing::debug!(%document, %error, "cannot write the copy of the configuration");
        }
        if let Some(state) = self.documents.get_mut(&document) {
            state.header = Some(header);
        }
    }

    /// Sets the zone of the pod. On a change, exported documents are read again, because they were compiled for the
    /// old one.
    fn set_zone(&mut self, zone: Option<String>) {
        // If the node's label is removed or no longer reported, the node is still where it was.
        if zone.is_none() || self.pod.zone == zone || self.pod.zone_is_labelled {
            return;
        }
        self.pod.zone = zone;
        for (document, state) in &mut self.documents {
            if matches!(document, Document::Export(_)) {
                state.zone_outdated = true;
                if let Some(watch) = state.watch.replace(self.source.watch(document.clone(), self.events.0.clone())) {
                    watch.abort();
                }
            }
        }
    }

    /// Closes namespaces and prefixes that were not used for [`IDLE_TIMEOUT`].
    fn close_idle(&mut self) {
        let idle_since = uptime_seconds().saturating_sub(IDLE_TIMEOUT.as_secs());
        let table = self.store.load();
        for (name, namespace) in &table.namespaces {
            if namespace.last_used.load(Ordering::Relaxed) < idle_since && self.may_close(&table, name) {
                self.close(name);
            }
        }
        let prefixes: Vec<Prefix> = self.prefixes().filter(|prefix| self.last_used(*prefix) < idle_since).collect();
        prefixes.into_iter().for_each(|prefix| self.close_prefix(prefix));
    }

    fn evict_namespace(&mut self) {
        let table = self.store.load();
        if table.namespaces.len() < NAMESPACES_MAX {
            return;
        }
        let oldest = (table.namespaces.iter())
            .filter(|(name, _)| self.may_close(&table, name))
            .min_by_key(|(_, namespace)| namespace.last_used.load(Ordering::Relaxed));
        if let Some((name, _)) = oldest {
            self.close(name);
        }
    }

    fn evict_prefix(&mut self) {
        if self.prefixes().count() < PREFIXES_MAX {
            return;
        }
        if let Some(oldest) = self.prefixes().min_by_key(|prefix| self.last_used(*prefix)) {
            self.close_prefix(oldest);
        }
    }

    /// The prefixes that are open, also those whose documents have not arrived.
    fn prefixes(&self) -> impl Iterator<Item = Prefix> {
        self.documents.keys().filter_map(|document| match document {
            Document::Pods(prefix) => Some(*prefix),
            _ => None,
        })
    }

    /// When an open prefix was last used, as [`uptime_seconds`].
    fn last_used(&self, prefix: Prefix) -> u64 {
        let table = self.store.load();
        let used = table.pods.get(&prefix).map(|pods| pods.last_used.load(Ordering::Relaxed));
        used.or_else(|| Some(self.documents.get(&Document::Pods(prefix))?.opened)).unwrap_or_default()
    }

    fn may_close(&self, table: &Table, name: &Arc<str>) -> bool {
        **name != *self.pod.namespace && !table.inbound.dependencies.contains(name)
    }

    fn close(&mut self, name: &Arc<str>) {
        self.end_watch(&Document::Export(name.clone()));
        self.store.swap(|table| table.with_namespace(name, None));
    }

    fn close_prefix(&mut self, prefix: Prefix) {
        let document = Document::Pods(prefix);
        self.end_watch(&document);
        self.store.swap(|table| table.with_pods(prefix, None));
        // There are more prefixes than namespaces, and their documents soon become outdated.
        if let Some(folder) = &self.cache {
            cache::remove(folder, &document);
        }
    }

    fn end_watch(&mut self, document: &Document) {
        if let Some(watch) = self.documents.remove(document).and_then(|state| state.watch) {
            watch.abort();
        }
    }

    /// Reports the state of each document in `/readyz` and metrics.
    fn report(&self) {
        let mut detail = Vec::new();
        let (mut ready, mut synced) = (true, true);
        let mut stale = 0;
        for (document, state) in &self.documents {
            let own = match document {
                Document::Index | Document::Pods(_) | Document::Trust => false,
                Document::Export(namespace) | Document::Inbound(namespace) => **namespace == *self.pod.namespace,
            };
            ready &= !own || state.header.is_some();
            synced &= !own || state.header.is_some() || state.error.is_some();
            let generation =
                state.header.as_ref().map_or("none".into(), |header| format!("generation {}", header.generation));
            match &state.error {
                Some(error) if own || *document == Document::Trust || state.header.is_some() => {
                    stale += 1;
                    detail.push(format!("{document} in use: {generation}; newest: {error}"));
                }
                _ => detail.push(format!("{document} in use: {generation}")),
            }
        }
        if synced {
            self.store.set_synced();
        }
        self.metrics.stale.set(stale);
        self.metrics.set_documents(self.documents.iter().map(|(document, state)| {
            let generation = state.header.as_ref().map(|header| header.generation);
            (document.to_string(), DocumentMetrics { generation, unconfirmed_since: state.unconfirmed_since })
        }));
        self.part.report(ready, &detail.join(", "));
    }
}

// === impl DocumentState ===

impl DocumentState {
    /// A document that was just opened.
    fn opened() -> Self {
        let unconfirmed_since = Some(Instant::now());
        let opened = uptime_seconds();
        Self { opened, watch: None, header: None, error: None, refused: None, zone_outdated: false, unconfirmed_since }
    }

    /// It is no longer known that the version in use is the newest.
    fn unconfirm(&mut self) {
        self.unconfirmed_since.get_or_insert_with(Instant::now);
    }
}

/// Whether the log has a new version of a document at its default level: the first of each, and new configuration of
/// the pods of this namespace, such as policies.
fn is_news(document: &Document, in_use: Option<&Header>, new: &Header) -> bool {
    in_use.is_none_or(|in_use| {
        matches!(document, Document::Inbound(_)) && in_use.config_generation != new.config_generation
    })
}

async fn changed(roots: &mut Option<watch::Receiver<Held>>) {
    let changed = match roots {
        Some(roots) => roots.changed().await,
        None => return std::future::pending().await,
    };
    if changed.is_err() {
        std::future::pending().await
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use http::{HeaderMap, Method};
    use prometheus_client::registry::Registry;
    use serde_json::json;
    use weft_config::Written;
    use weft_runtime::readiness::Readiness;

    use crate::decide::decide;
    use crate::identity::fake::{OPERATOR, Root, domain, id};
    use crate::matcher::RequestHead;
    use crate::table::Occupant;
    use crate::table::route::Action;
    use crate::telemetry::identity::IdentityMetrics;

    /// A document whose number of endpoints and response status both follow from its generation.
    fn document(generation: u64) -> Event {
        let number = generation % 20;
        let endpoints: Vec<_> =
            (0..=number).map(|at| json!({"address": format!("198.18.{}.{}:80", at / 200, at % 200)})).collect();
        let rule = json!({
            "route": {"namespace": "shop", "name": "r"}, "name": "0", "action": {"respond": {"status": 200 + number}}
        });
        let body = json!({"services": [{"name": "s", "addresses": ["198.19.0.1"], "ports": [
            {"port": 80, "endpoints": endpoints, "routes": {"matches": [{"rule": 0}], "rules": [rule]}}
        ]}]});
        let written = Written { namespace: "shop".into(), generation, ..Written::default() };
        Event::Document(Document::Export("shop".into()), Envelope::write(written, &body))
    }

    #[test]
    fn log_has_first_versions_and_configuration_of_this_pods_namespace() {
        let header = |generation, config_generation| {
            let written = Written { namespace: "shop".into(), generation, config_generation, ..Written::default() };
            Envelope::write(written, &json!({})).read::<serde_json::Value>().expect("a header").0
        };
        let (export, inbound) = (Document::Export("shop".into()), Document::Inbound("shop".into()));
        for (document, in_use, new, expected) in [
            (&export, None, header(7, 7), true),
            (&export, Some(header(7, 7)), header(8, 8), false),
            (&inbound, Some(header(7, 7)), header(8, 7), false),
            (&inbound, Some(header(7, 7)), header(8, 8), true),
        ] {
            assert_eq!(is_news(document, in_use.as_ref(), &new), expected, "{document} {in_use:?} {new:?}");
        }
    }

    #[tokio::test]
    async fn learning_the_zone_recompiles_open_documents() {
        let folder = std::env::temp_dir().join(format!("weft-zone-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let write = |name: &str, body: serde_json::Value| {
            let path = folder.join(format!("{name}.json"));
            std::fs::write(path.with_extension("new"), body.to_string()).expect("written");
            std::fs::rename(path.with_extension("new"), path).expect("renamed");
        };
        let endpoints = json!([{"address": "198.18.0.2:80", "zone": "a"}, {"address": "198.18.0.3:80", "zone": "b"}]);
        write(
            "x.shop",
            json!({"services": [{
                "name": "s", "addresses": ["198.19.0.1"], "settings": {"preferSameZone": true},
                "ports": [{"port": 80, "endpoints": endpoints}]
            }]}),
        );
        let pod = Pod { namespace: "shop".into(), node: "node-2".into(), ..Pod::default() };
        let metrics = ConfigMetrics::new(&mut Registry::default());
        let readiness = Readiness::default();
        let source = Source::Directory(folder.clone());
        let (part, slot) = (readiness.part("configuration"), Arc::new(Slot::new(false)));
        let (store, updater) = Updater::new(pod, None, source, None, slot, metrics, part);
        let updater = tokio::spawn(updater.run());
        let priorities = async |expected: &[u8]| {
            for _ in 0..500 {
                let table = store.load();
                let port = table.port("198.19.0.1:80".parse().expect("an address"));
                if port.is_some_and(|port| *port.cluster.members.priorities == *expected) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("never {expected:?}");
        };
        priorities(&[]).await;
        write("i.shop", json!({"zones": {"a": ["node-1"], "b": ["node-2"]}}));
        priorities(&[2, 1]).await;
        write("i.shop", json!({"zones": {"a": ["node-1", "node-2"]}}));
        priorities(&[1, 2]).await;
        write("i.shop", json!({"dependencies": ["bank"]}));
        while !store.load().inbound.dependencies.iter().any(|name| **name == *"bank") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        priorities(&[1, 2]).await;
        updater.abort();
        std::fs::remove_dir_all(folder).expect("removed");
    }

    #[tokio::test]
    async fn prefixes_are_open_while_the_index_lists_them_and_the_least_recently_used_are_closed() {
        let folder = std::env::temp_dir().join(format!("weft-prefixes-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let metrics = ConfigMetrics::new(&mut Registry::default());
        let part = Readiness::default().part("configuration");
        let (source, slot) = (Source::Directory("/nowhere".into()), Arc::new(Slot::new(true)));
        let (store, mut updater) =
            Updater::new(Pod::default(), None, source, Some(folder.clone()), slot, metrics, part);
        let prefix = |number: u8| Prefix::of([198, 18, number, 1].into());
        let index = |updater: &mut Updater, generation, prefixes: u8| {
            let body = json!({"namespaces": {}, "prefixes": (0..prefixes).map(prefix).collect::<Vec<_>>()});
            let written = Written { generation, ..Written::default() };
            updater.on_document(&Document::Index, Envelope::write(written, &body));
        };
        let arrives = |updater: &mut Updater, number| {
            let document = Document::Pods(prefix(number));
            let pods = json!({format!("198.18.{number}.1"): {"namespace": "shop", "serviceAccount": "db"}});
            let written = Written { namespace: document.to_string(), generation: 1, ..Written::default() };
            updater.on_document(&document, Envelope::write(written, &json!({"pods": pods})));
        };
        updater.open(Document::Pods(prefix(0)));
        assert_eq!(updater.prefixes().count(), 0, "it is not listed");
        updater.open(Document::Index);
        index(&mut updater, 1, 100);
        for number in 0..PREFIXES_MAX as u8 {
            updater.open(Document::Pods(prefix(number)));
            arrives(&mut updater, number);
        }
        for (open, pods) in &store.load().pods {
            // The third was used least recently, and the others will be used more recently than those that are opened.
            pods.last_used.store(if *open == prefix(3) { 0 } else { u64::MAX }, Ordering::Relaxed);
        }
        let (third, other) = (Document::Pods(prefix(3)), Document::Pods(prefix(50)));
        assert!(cache::read(&folder, &third).is_some());
        updater.open(other.clone());
        assert!(updater.documents.contains_key(&other) && !updater.documents.contains_key(&third));
        assert_eq!(store.load().occupant("198.18.3.1:80".parse().expect("an address")), Occupant::Unknown(prefix(3)));
        assert!(cache::read(&folder, &third).is_none(), "its copy is gone");
        for number in 51..100 {
            updater.open(Document::Pods(prefix(number)));
        }
        assert_eq!(updater.prefixes().count(), PREFIXES_MAX, "also those that have not arrived");
        assert!(store.load().pods.len() <= PREFIXES_MAX);

        index(&mut updater, 2, 1);
        assert_eq!(updater.prefixes().collect::<Vec<_>>(), [prefix(0)], "the others are no longer listed");
        arrives(&mut updater, 1);
        assert_eq!(store.load().pods.keys().collect::<Vec<_>>(), [&prefix(0)], "what is closed is not read");
        let other = Written { namespace: "p.198.18.1.0".into(), generation: 2, ..Written::default() };
        updater.on_document(&Document::Pods(prefix(0)), Envelope::write(other, &json!({"pods": {}})));
        let error = updater.documents[&Document::Pods(prefix(0))].error.clone();
        assert_eq!(error.as_deref(), Some("refused: the document is for namespace \"p.198.18.1.0\""));
        std::fs::remove_dir_all(folder).expect("removed");
    }

    #[tokio::test]
    async fn trust_document_that_is_refused_or_older_changes_nothing_and_is_told() {
        let (root, other) = (Root::new(), Root::new());
        let mut registry = Registry::default();
        let metrics = ConfigMetrics::new(&mut registry);
        let readiness = Readiness::default();
        let (of_proxy, first) = (id(OPERATOR), root.fingerprints());
        let trust = Arc::new(Trust::new(domain(), of_proxy, first, None, IdentityMetrics::default()));
        let source = Source::Directory("/nowhere".into());
        let part = readiness.part("configuration");
        let (_store, mut updater) = {
            let slot = Arc::new(Slot::new(true));
            Updater::new(Pod::default(), Some(trust.clone()), source, None, slot, metrics, part)
        };
        updater.open(Document::Trust);
        let document = |generation, signer: &Root, roots: &[&Root]| {
            let written = Written { generation, ..Written::default() };
            Envelope::write_signed(written, &Root::bundle(roots), "trust", |message| signer.sign(OPERATOR, message))
        };
        let both = Root::bundle(&[&root, &other]);
        for (desc, envelope, expected) in [
            ("good", document(2, &root, &[&root, &other]), "trust in use: generation 2"),
            ("older", document(1, &root, &[&root]), "generation 1 is older than the one in use"),
            ("of a stranger", document(3, &Root::new(), &[&other]), "no root that this proxy holds"),
            ("damaged", Envelope::default(), "the object has no \"header\""),
        ] {
            updater.on_document(&Document::Trust, envelope);
            updater.report();
            let detail = readiness.detail();
            assert!(detail.contains(expected), "{desc}: {detail}");
            assert_eq!(trust.held().bundle().map(|bundle| (**bundle).clone()), Some(both.clone()), "{desc}");
        }
        // It was refused because this proxy did not hold the root yet, and it is not written again when that has changed.
        let last = Root::new();
        updater.on_document(&Document::Trust, document(4, &last, &[&last]));
        trust.hold(Root::bundle(&[&root, &last]));
        updater.retry_refused();
        assert_eq!(trust.held().bundle().map(|bundle| (**bundle).clone()), Some(Root::bundle(&[&last])), "tried again");
    }

    #[tokio::test]
    async fn documents_wait_for_roots_and_are_read_only_with_a_signature() {
        let (root, other) = (Root::new(), Root::new());
        let readiness = Readiness::default();
        let metrics = ConfigMetrics::new(&mut Registry::default());
        let trust = Arc::new(Trust::new(domain(), id(OPERATOR), root.fingerprints(), None, IdentityMetrics::default()));
        let pod = Pod { namespace: "shop".into(), ..Pod::default() };
        let source = Source::Directory("/nowhere".into());
        let part = readiness.part("configuration");
        let (store, updater) = {
            let slot = Arc::new(Slot::new(true));
            Updater::new(pod, Some(trust.clone()), source, None, slot, metrics, part)
        };
        let events = updater.events.0.clone();
        let updater = tokio::spawn(updater.run());
        let until = async |what: &str, is_so: &dyn Fn() -> bool| {
            for _ in 0..500 {
                if is_so() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("never {what}: {}", readiness.detail());
        };
        until("waits", &|| readiness.detail().contains("waiting for the roots")).await;
        assert!(!readiness.is_ready());
        trust.begin_with(Root::bundle(&[&root]));
        until("looks", &|| readiness.detail().contains("x.shop in use: none; newest: it does not exist")).await;

        let address = "198.19.0.1:80".parse().expect("an address");
        let body = json!({"services": [{"name": "s", "addresses": ["198.19.0.1"], "ports": [{"port": 80}]}]});
        let send = async |generation, signer: &Root| {
            let written = Written { namespace: "shop".into(), generation, ..Written::default() };
            let sign = |message: &[u8]| signer.sign(OPERATOR, message);
            let envelope = Envelope::write_signed(written, &body, "x.shop", sign);
            events.send(Event::Document(Document::Export("shop".into()), envelope)).await.expect("it listens");
        };
        send(1, &other).await;
        until("refuses", &|| readiness.detail().contains("x.shop in use: none; newest: refused: no root")).await;
        assert!(store.load().port(address).is_none());
        send(1, &root).await;
        until("reads", &|| store.load().port(address).is_some()).await;
        send(2, &other).await;
        until("refuses", &|| readiness.detail().contains("x.shop in use: generation 1; newest: refused")).await;
        trust.hold(Root::bundle(&[&root, &other]));
        until("reads it under the new roots", &|| readiness.detail().contains("x.shop in use: generation 2")).await;
        updater.abort();
    }

    /// Every lookup finds the Service, with routes and endpoints of one document.
    #[test]
    fn snapshots_are_consistent_under_ten_thousand_updates() {
        const DOCUMENTS: u64 = 10_000;
        let folder = std::env::temp_dir().join(format!("weft-store-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let pod = Pod { namespace: "shop".into(), ..Pod::default() };
        let metrics = ConfigMetrics::new(&mut Registry::default());
        let part = Readiness::default().part("configuration");
        let (store, updater) = {
            let (source, cache) = (Source::Directory(folder.join("none")), Some(folder.clone()));
            Updater::new(pod, None, source, cache, Arc::new(Slot::new(false)), metrics, part)
        };
        let events = updater.events.0.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (done, keep) = tokio::sync::oneshot::channel::<()>();
        let updater = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = updater.run() => {}
                    _ = keep => {}
                }
            });
        });
        events.blocking_send(document(1)).expect("it listens");
        let address = "198.19.0.1:80".parse().expect("an address");
        let begun = Instant::now();
        while store.load().port(address).is_none() {
            assert!(begun.elapsed() < Duration::from_secs(5), "the first document is used");
        }
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let readers: Vec<_> = (0..2)
            .map(|_| {
                let (store, stop) = (store.clone(), stop.clone());
                std::thread::spawn(move || {
                    let headers = HeaderMap::new();
                    let head = RequestHead { method: &Method::GET, path: "/", query: None, headers: &headers };
                    let mut looks = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        let table = store.load();
                        let port = table.port(address).expect("the Service is there all the time");
                        let decision = decide(port.routes.as_deref().expect("routes"), &head).expect("a rule");
                        let Action::Respond { status, .. } = decision.rule.action else { panic!("it answers") };
                        assert_eq!(usize::from(status.as_u16()) - 200 + 1, port.cluster.endpoints.len());
                        looks += 1;
                        std::thread::yield_now();
                    }
                    looks
                })
            })
            .collect();
        for generation in 2..=DOCUMENTS {
            events.blocking_send(document(generation)).expect("it listens");
        }
        let last = (DOCUMENTS % 20) as usize + 1;
        let begun = Instant::now();
        while store.load().port(address).is_none_or(|port| port.cluster.endpoints.len() != last) {
            assert!(begun.elapsed() < Duration::from_secs(20), "the last document is used");
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        let looks: u64 = readers.into_iter().map(|reader| reader.join().expect("nothing failed")).sum();
        assert!(looks > DOCUMENTS, "{looks} looks");
        drop(done);
        updater.join().expect("it ends");
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
