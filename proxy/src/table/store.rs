//! The snapshot that requests see, and the one task that changes it.
//!
//! Documents come from `source` and, when the process starts, from copies on disk. One that cannot be used changes
//! nothing: the last good one stays, and metrics and `/readyz` say so. A document that disappears changes nothing either:
//! an operator that wants a namespace empty says so in a document.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use weft_config::{DecodeError, Envelope, Export, Header, Index};
use weft_runtime::readiness::Part;

use super::source::{Document, Event, Source};
use super::{CompileError, Inbound, Namespace, Table};
use crate::bootstrap::Pod;
use crate::clock::Tick;
use crate::telemetry::metrics::ConfigMetrics;

/// Namespaces that are open at once; beyond, the one not used for longest is closed. An API server allows a client 100
/// streams on a connection.
const NAMESPACES_MAX: usize = 64;

/// A namespace that nobody needed for this long is closed.
const IDLE: Duration = Duration::from_secs(600);

/// How often idle namespaces are looked for.
const SWEEP: Duration = Duration::from_secs(30);

/// How long a connection waits for its namespace to be opened before it goes where it meant to go without routes.
const OPEN_WAIT: Duration = Duration::from_secs(2);

/// How long a document waits for others that it requires.
const REQUIRES_WAIT: Duration = Duration::from_secs(5);

/// Requests to open that may be queued.
const COMMANDS_MAX: usize = 1024;

/// The current snapshot. Shared by all workers.
#[derive(Debug)]
pub(crate) struct Store {
    table: ArcSwap<Table>,
    changed: watch::Sender<()>,
    heard: CancellationToken,
    open: mpsc::Sender<Arc<str>>,
}

/// The task's state.
pub(crate) struct Keeper {
    pod: Pod,
    source: Source,
    cache: Option<PathBuf>,
    store: Arc<Store>,
    requests: mpsc::Receiver<Arc<str>>,
    events: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    held: BTreeMap<Document, Held>,
    staged: Vec<Staged>,
    metrics: ConfigMetrics,
    part: Part,
}

/// What is known of one document.
#[derive(Default)]
struct Held {
    watch: Option<JoinHandle<()>>,
    /// Of the document in use.
    header: Option<Header>,
    /// What is wrong with the newest one, if it is not the one in use.
    trouble: Option<String>,
    /// The one in use was read before it was known which zone the pod is in.
    stale: bool,
}

/// A document that waits for others.
struct Staged {
    document: Document,
    header: Header,
    part: Compiled,
    envelope: Envelope,
    until: Instant,
}

enum Compiled {
    Namespace(Arc<Namespace>),
    Inbound(Arc<Inbound>),
    Index(Index),
}

/// Why a document is not used.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error(transparent)]
    Compile(#[from] CompileError),
    #[error("it is about namespace {found:?}")]
    Namespace { found: String },
}

// === impl Store ===

impl Store {
    /// The snapshot as of now.
    pub(crate) fn load(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Waits until it is known of each of the pod's own documents what it says, or that it cannot be had.
    pub(crate) async fn heard(&self) {
        self.heard.cancelled().await;
    }

    /// Waits until a namespace is open, for a while.
    pub(crate) async fn open(&self, namespace: &Arc<str>) {
        if self.open.try_send(namespace.clone()).is_err() {
            return;
        }
        let opened = self.find(|table| table.namespaces.contains_key(namespace).then_some(()));
        if tokio::time::timeout(OPEN_WAIT, opened).await.is_err() {
            tracing::warn!(%namespace, "configuration of the namespace did not come in time");
        }
    }

    /// Waits until a snapshot has what is looked for. None: there will be no other snapshot.
    pub(crate) async fn find<T>(&self, mut look: impl FnMut(&Table) -> Option<T>) -> Option<T> {
        // Before the first look, so that no change is missed.
        let mut changed = self.changed.subscribe();
        loop {
            let found = look(&self.table.load());
            if found.is_some() {
                return found;
            }
            changed.changed().await.ok()?;
        }
    }
}

// === impl Keeper ===

impl Keeper {
    pub(crate) fn new(
        pod: Pod,
        source: Source,
        cache: Option<PathBuf>,
        metrics: ConfigMetrics,
        part: Part,
    ) -> (Arc<Store>, Self) {
        let (open, requests) = mpsc::channel(COMMANDS_MAX);
        let store = Arc::new(Store {
            table: ArcSwap::default(),
            changed: watch::Sender::new(()),
            heard: CancellationToken::new(),
            open,
        });
        let keeper = Self {
            pod,
            source,
            cache,
            store: store.clone(),
            requests,
            events: mpsc::channel(64),
            held: BTreeMap::new(),
            staged: Vec::new(),
            metrics,
            part,
        };
        (store, keeper)
    }

    /// Keeps the snapshot current, for ever.
    pub(crate) async fn run(mut self) {
        let own = self.pod.namespace.clone();
        for document in [Document::Index, Document::Export(own.as_str().into()), Document::Inbound(own.as_str().into())]
        {
            self.open(document);
        }
        self.report();
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let patience = self.staged.iter().map(|staged| staged.until).min();
            tokio::select! {
                Some(event) = self.events.1.recv() => self.on_event(event),
                Some(namespace) = self.requests.recv() => self.open(Document::Export(namespace)),
                _ = sweep.tick() => self.close_idle(),
                () = sleep_until(patience) => self.activate_staged(),
            }
            self.report();
        }
    }

    /// Starts watching a document, with its copy on disk as a beginning.
    fn open(&mut self, document: Document) {
        if self.held.contains_key(&document) {
            return;
        }
        self.make_room();
        self.held.insert(document.clone(), Held::default());
        if let Some(envelope) = self.cache.as_deref().and_then(|cache| read_copy(cache, &document)) {
            self.on_document(&document, envelope);
        }
        let watch = self.source.watch(document.clone(), self.events.0.clone());
        if let Some(held) = self.held.get_mut(&document) {
            held.watch = Some(watch);
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Document(document, envelope) => self.on_document(&document, envelope),
            Event::Absent(document) => {
                let Some(held) = self.held.get_mut(&document) else { return };
                held.trouble = Some("it does not exist".into());
                let empty = held.header.is_none();
                // A namespace that is not in the mesh has none: remember that it is empty, so that nobody waits for it.
                if let (Document::Export(namespace), true) = (&document, empty)
                    && *namespace.as_ref() != *self.pod.namespace
                {
                    self.swap(|table| table.with_namespace(namespace, Some(Arc::default())));
                }
            }
            Event::Lost(document, error) => {
                self.metrics.source_errors.inc();
                tracing::warn!(%document, %error, "the source of configuration does not answer");
                if let Some(held) = self.held.get_mut(&document) {
                    held.trouble = Some(format!("the source does not answer: {error}"));
                }
            }
        }
    }

    fn on_document(&mut self, document: &Document, envelope: Envelope) {
        let Some(held) = self.held.get_mut(document) else { return };
        match read(&self.pod, document, &envelope) {
            Err(refusal) => {
                tracing::error!(%document, error = %refusal, "configuration refused, the last good one stays");
                held.trouble = Some(format!("refused: {refusal}"));
                self.metrics.refusals.inc();
            }
            Ok((header, part)) => {
                held.trouble = None;
                match &held.header {
                    Some(current) if *current == header && !held.stale => return,
                    Some(current) if current.generation > header.generation => {
                        held.trouble = Some(format!("generation {} is older than the one in use", header.generation));
                        return;
                    }
                    _ => {}
                }
                held.stale = false;
                self.staged.retain(|staged| staged.document != *document);
                for namespace in header.requires.keys() {
                    self.open(Document::Export(namespace.as_str().into()));
                }
                let until = Instant::now() + REQUIRES_WAIT;
                self.staged.push(Staged { document: document.clone(), header, part, envelope, until });
                self.activate_staged();
            }
        }
    }

    /// Uses every staged document whose requirements are there or have been waited for long enough. "There" means staged,
    /// not used, so that two documents that require each other do not wait for ever.
    fn activate_staged(&mut self) {
        let now = Instant::now();
        let generations: BTreeMap<String, u64> = (self.held.iter())
            .filter_map(|(document, held)| Some((document, held.header.as_ref()?)))
            .chain(self.staged.iter().map(|staged| (&staged.document, &staged.header)))
            .filter_map(|(document, header)| match document {
                Document::Export(namespace) => Some((namespace.to_string(), header.generation)),
                _ => None,
            })
            .collect();
        let (due, waiting) = std::mem::take(&mut self.staged).into_iter().partition::<Vec<_>, _>(|staged| {
            now >= staged.until
                || (staged.header.requires.iter())
                    .all(|(namespace, wanted)| generations.get(namespace).is_some_and(|have| have >= wanted))
        });
        self.staged = waiting;
        for staged in due {
            self.activate(staged);
        }
    }

    fn activate(&mut self, staged: Staged) {
        let Staged { document, header, part, envelope, .. } = staged;
        match part {
            Compiled::Namespace(part) => {
                let Document::Export(namespace) = &document else { return };
                self.swap(|table| table.with_namespace(namespace, Some(part)));
            }
            Compiled::Inbound(inbound) => {
                let (dependencies, zone) = (inbound.dependencies.clone(), inbound.zone.clone());
                self.swap(|table| Table { inbound, ..table.clone() });
                self.learn_zone(zone);
                for namespace in dependencies {
                    self.open(Document::Export(namespace));
                }
            }
            Compiled::Index(index) => self.swap(|table| table.with_index(&index)),
        }
        self.metrics.generation(&document.to_string(), header.generation);
        tracing::info!(%document, generation = header.generation, "configuration in use");
        if let Some(cache) = &self.cache
            && let Err(error) = write_copy(cache, &document, &envelope)
        {
            tracing::debug!(%document, %error, "no copy of the configuration was kept");
        }
        if let Some(held) = self.held.get_mut(&document) {
            held.header = Some(header);
        }
    }

    /// Takes in which zone the pod is in, if that is news. What is open was compiled without, and is read again.
    fn learn_zone(&mut self, zone: Option<String>) {
        // A node that has lost its label, or that nobody speaks of any more, is where it was.
        if zone.is_none() || self.pod.zone == zone || self.pod.zone_is_labelled {
            return;
        }
        self.pod.zone = zone;
        for (document, held) in &mut self.held {
            if matches!(document, Document::Export(_)) {
                held.stale = true;
                if let Some(watch) = held.watch.replace(self.source.watch(document.clone(), self.events.0.clone())) {
                    watch.abort();
                }
            }
        }
    }

    fn swap(&self, change: impl FnOnce(&Table) -> Table) {
        self.store.table.store(Arc::new(change(&self.store.table.load())));
        self.store.changed.send_replace(());
    }

    /// Closes what nobody needed for long.
    fn close_idle(&mut self) {
        let idle_since = now_seconds().saturating_sub(IDLE.as_secs());
        let table = self.store.load();
        for (name, namespace) in &table.namespaces {
            if namespace.used.load(Ordering::Relaxed) < idle_since && self.may_close(&table, name) {
                self.close(name);
            }
        }
    }

    fn make_room(&mut self) {
        let table = self.store.load();
        if table.namespaces.len() < NAMESPACES_MAX {
            return;
        }
        let oldest = (table.namespaces.iter())
            .filter(|(name, _)| self.may_close(&table, name))
            .min_by_key(|(_, namespace)| namespace.used.load(Ordering::Relaxed));
        if let Some((name, _)) = oldest {
            self.close(name);
        }
    }

    fn may_close(&self, table: &Table, name: &Arc<str>) -> bool {
        **name != *self.pod.namespace && !table.inbound.dependencies.contains(name)
    }

    fn close(&mut self, name: &Arc<str>) {
        if let Some(held) = self.held.remove(&Document::Export(name.clone()))
            && let Some(watch) = held.watch
        {
            watch.abort();
        }
        self.swap(|table| table.with_namespace(name, None));
    }

    /// Says in `/readyz` and metrics how each document stands.
    fn report(&self) {
        let mut detail = Vec::new();
        let (mut ready, mut heard) = (true, true);
        let mut troubled = 0;
        for (document, held) in &self.held {
            let own = match document {
                Document::Index => false,
                Document::Export(namespace) | Document::Inbound(namespace) => **namespace == *self.pod.namespace,
            };
            ready &= !own || held.header.is_some();
            heard &= !own || held.header.is_some() || held.trouble.is_some();
            let generation =
                held.header.as_ref().map_or("none".into(), |header| format!("generation {}", header.generation));
            match &held.trouble {
                Some(trouble) if own || held.header.is_some() => {
                    troubled += 1;
                    detail.push(format!("{document} in use: {generation}; newest: {trouble}"));
                }
                _ => detail.push(format!("{document} in use: {generation}")),
            }
        }
        if heard {
            self.store.heard.cancel();
        }
        self.metrics.stale.set(troubled);
        self.part.report(ready, &detail.join(", "));
    }
}

/// Seconds since the process first asked.
pub(crate) fn now_seconds() -> u64 {
    static START: OnceLock<Tick> = OnceLock::new();
    // Never 0, so that what was never used is older than everything.
    START.get_or_init(Tick::now).elapsed().as_secs() + 1
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}

fn read(pod: &Pod, document: &Document, envelope: &Envelope) -> Result<(Header, Compiled), Refusal> {
    let belongs = |header: &Header, namespace: &str| match header.namespace == namespace {
        true => Ok(()),
        false => Err(Refusal::Namespace { found: header.namespace.clone() }),
    };
    match document {
        Document::Export(namespace) => {
            let (header, export) = envelope.read::<Export>()?;
            belongs(&header, namespace)?;
            Ok((header, Compiled::Namespace(Arc::new(Namespace::compile(pod, namespace, export)?))))
        }
        Document::Inbound(namespace) => {
            let (header, inbound) = envelope.read::<weft_config::Inbound>()?;
            belongs(&header, namespace)?;
            Ok((header, Compiled::Inbound(Arc::new(Inbound::compile(pod, inbound)?))))
        }
        Document::Index => {
            let (header, index) = envelope.read::<Index>()?;
            Ok((header, Compiled::Index(index)))
        }
    }
}

fn copy_path(cache: &Path, document: &Document) -> PathBuf {
    cache.join(format!("{document}.json"))
}

fn read_copy(cache: &Path, document: &Document) -> Option<Envelope> {
    serde_json::from_slice(&std::fs::read(copy_path(cache, document)).ok()?).ok()
}

/// Written aside and renamed, so that a copy is whole or not there.
fn write_copy(cache: &Path, document: &Document, envelope: &Envelope) -> std::io::Result<()> {
    let path = copy_path(cache, document);
    let aside = path.with_extension("new");
    std::fs::write(&aside, serde_json::to_vec(envelope)?)?;
    std::fs::rename(aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    use http::{HeaderMap, Method};
    use prometheus_client::registry::Registry;
    use serde_json::json;
    use weft_config::Written;
    use weft_runtime::readiness::Readiness;

    use crate::decide::{RequestHead, decide};
    use crate::table::route::Action;

    /// A document in which the number of endpoints and the status that its route answers both tell its generation.
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

    #[tokio::test]
    async fn the_zone_that_a_document_tells_counts_for_those_that_were_read_before() {
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
        let (store, keeper) = Keeper::new(pod, source, None, metrics, readiness.part("configuration"));
        let keeper = tokio::spawn(keeper.run());
        let levels = async |expected: &[u8]| {
            for _ in 0..500 {
                let table = store.load();
                let port = table.port("198.19.0.1:80".parse().expect("an address"));
                if port.is_some_and(|port| *port.cluster.levels == *expected) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("never {expected:?}");
        };
        levels(&[]).await;
        write("i.shop", json!({"zones": {"a": ["node-1"], "b": ["node-2"]}}));
        levels(&[2, 1]).await;
        write("i.shop", json!({"zones": {"a": ["node-1", "node-2"]}}));
        levels(&[1, 2]).await;
        write("i.shop", json!({"dependencies": ["bank"]}));
        while !store.load().inbound.dependencies.iter().any(|name| **name == *"bank") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        levels(&[1, 2]).await;
        keeper.abort();
        std::fs::remove_dir_all(folder).expect("removed");
    }

    /// Every request finds the Service, and routes and endpoints of one and the same document.
    #[test]
    fn ten_thousand_documents_under_load() {
        const DOCUMENTS: u64 = 10_000;
        let folder = std::env::temp_dir().join(format!("weft-store-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let pod = Pod { namespace: "shop".into(), ..Pod::default() };
        let metrics = ConfigMetrics::new(&mut Registry::default());
        let part = Readiness::default().part("configuration");
        let (store, keeper) =
            Keeper::new(pod, Source::Directory(folder.join("none")), Some(folder.clone()), metrics, part);
        let events = keeper.events.0.clone();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let (done, keep) = tokio::sync::oneshot::channel::<()>();
        let keeper = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = keeper.run() => {}
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
        keeper.join().expect("it ends");
        std::fs::remove_dir_all(folder).expect("removed");
    }
}
