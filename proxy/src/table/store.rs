//! The current snapshot of the configuration: workers load it, and the [`Updater`](super::updater::Updater) swaps it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::source::Document;
use super::{Cluster, Occupant, Port, Table};
use crate::value::Target;

/// How long a connection waits for the document of its namespace or prefix to be opened. Then it is passed through
/// without routes, or as what may be sent in plaintext.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a connection waits for the news that another pod has the address of a pod that proved to be somebody else.
const NEWS_TIMEOUT: Duration = Duration::from_secs(2);

/// Length of the queue of documents to open.
const REQUESTS_MAX: usize = 1024;

/// The current snapshot. Shared by all workers.
#[derive(Debug)]
pub(crate) struct Store {
    table: ArcSwap<Table>,
    changed: watch::Sender<()>,
    synced: CancellationToken,
    open: mpsc::Sender<Document>,
}

impl Store {
    /// An empty store, and the documents that its users ask to be opened.
    pub(super) fn new() -> (Arc<Self>, mpsc::Receiver<Document>) {
        let (open, requests) = mpsc::channel(REQUESTS_MAX);
        let (table, changed, synced) = (ArcSwap::default(), watch::Sender::new(()), CancellationToken::new());
        (Arc::new(Self { table, changed, synced, open }), requests)
    }

    /// The current snapshot.
    pub(crate) fn load(&self) -> Arc<Table> {
        self.table.load_full()
    }

    /// Waits until each of the pod's own documents is in use, or known to be unavailable.
    pub(crate) async fn synced(&self) {
        self.synced.cancelled().await;
    }

    /// Opens a namespace and waits for it, up to [`OPEN_TIMEOUT`].
    pub(crate) async fn open(&self, namespace: &Arc<str>) {
        if self.open.try_send(Document::Export(namespace.clone())).is_err() {
            return;
        }
        let opened = self.find(|table| table.namespaces.contains_key(namespace).then_some(()));
        if tokio::time::timeout(OPEN_TIMEOUT, opened).await.is_err() {
            tracing::warn!(%namespace, "configuration of the namespace did not arrive in time");
        }
    }

    /// The Service port at an address. Opens the namespace first if necessary.
    pub(crate) async fn find_port(&self, destination: SocketAddr) -> Option<Arc<Port>> {
        let table = self.load();
        if let Some(namespace) = table.unopened(destination.ip()) {
            self.open(namespace).await;
            return self.load().port(destination).cloned();
        }
        table.port(destination).cloned()
    }

    /// Who is at an address that is not a Service's. Opens the document of its prefix first if necessary, and waits for it,
    /// up to [`OPEN_TIMEOUT`].
    pub(crate) async fn find_occupant(&self, address: SocketAddr) -> Occupant {
        let occupant = self.load().occupant(address);
        let Occupant::Unknown(prefix) = occupant else { return occupant };
        if self.open.try_send(Document::Pods(prefix)).is_err() {
            return occupant;
        }
        let known = self.find(|table| table.known_occupant(address));
        match tokio::time::timeout(OPEN_TIMEOUT, known).await {
            Ok(Some(known)) => known,
            _ => {
                tracing::warn!(%prefix, "identities of the pods with this prefix did not arrive in time");
                occupant
            }
        }
    }

    /// Who is at an address now, where `before` was. Waits for the news, up to [`NEWS_TIMEOUT`]. None: there was none.
    pub(crate) async fn find_successor(&self, address: SocketAddr, before: &Occupant) -> Option<Occupant> {
        let next = self.find(|table| table.known_occupant(address).filter(|occupant| occupant != before));
        tokio::time::timeout(NEWS_TIMEOUT, next).await.ok().flatten()
    }

    /// The cluster that a route names. Opens its namespace first if necessary.
    pub(crate) async fn find_cluster(&self, target: &Target) -> Option<Arc<Cluster>> {
        let table = self.load();
        if !table.namespaces.contains_key(&target.namespace) {
            Box::pin(self.open(&target.namespace)).await;
            return self.load().cluster(target).cloned();
        }
        table.cluster(target).cloned()
    }

    /// Waits until `look` finds something in a snapshot. None: there will be no other snapshot.
    pub(crate) async fn find<T>(&self, mut look: impl FnMut(&Table) -> Option<T>) -> Option<T> {
        // Subscribes before the first look, so that no change is missed.
        let mut changed = self.changed.subscribe();
        loop {
            let found = look(&self.table.load());
            if found.is_some() {
                return found;
            }
            changed.changed().await.ok()?;
        }
    }

    /// Is notified of each later snapshot.
    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Replaces the snapshot. Only the updater does.
    pub(super) fn swap(&self, change: impl FnOnce(&Table) -> Table) {
        self.table.store(Arc::new(change(&self.table.load())));
        self.changed.send_replace(());
    }

    /// Each of the pod's own documents is in use, or known to be unavailable.
    pub(super) fn set_synced(&self) {
        self.synced.cancel();
    }
}
