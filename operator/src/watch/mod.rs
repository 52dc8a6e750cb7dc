//! Watches of all kinds, merged into one channel of events.
//!
//! Each watch only converts objects to the World's trimmed types and sends them to one bounded channel. When the loop
//! is busy the channel fills and the watches wait. A relist is collected and sent as one event.

mod optional;

use std::fmt::Debug;

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Node, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use kube::core::NamespaceResourceScope;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_config::bootstrap;
use weft_crds::{Mesh, MeshCluster, MeshPolicy, MeshRoute};
use weft_runtime::watch::Backoff;

use crate::metrics::{KindLabel, Metrics};
use crate::world::objects::{RawMeshObject, RawNamespace, RawPod, RawService, RawSlice};
use crate::world::{AccessKind, Change, DocumentKind, Event, Key, Pod};

/// Capacity of the channel: a few seconds of a busy cluster; when it is full the watches wait.
const EVENTS_MAX: usize = 4096;

/// Timeout of a watch request, in seconds; it is then started again. The API server sends bookmarks about once a
/// minute.
const WATCH_SECONDS: u32 = 120;

/// What each watch needs.
#[derive(Clone)]
struct Sink {
    events: mpsc::Sender<Event>,
    metrics: Metrics,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Starts all watches.
pub fn start(
    client: &Client,
    metrics: &Metrics,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> mpsc::Receiver<Event> {
    let (events, received) = mpsc::channel(EVENTS_MAX);
    let sink = Sink { events, metrics: metrics.clone(), stop: stop.clone(), tasks: tasks.clone() };

    sink.run(Api::<RawNamespace>::all(client.clone()), From::from, Event::Namespace);
    sink.run(Api::<RawService>::all(client.clone()), From::from, Event::Service);
    sink.run(Api::<RawPod>::all(client.clone()), Pod::from, Event::Pod);
    sink.run(Api::<RawSlice>::all(client.clone()), From::from, Event::Slice);
    sink.run(Api::<kube::core::PartialObjectMeta<ServiceAccount>>::all(client.clone()), From::from, Event::Account);
    // Metadata only: the status of nodes is large and changes all the time.
    sink.run(Api::<kube::core::PartialObjectMeta<Node>>::all(client.clone()), From::from, Event::Node);
    sink.run(Api::<RawMeshObject<Mesh>>::all(client.clone()), RawMeshObject::read, Event::Mesh);
    sink.run(Api::<RawMeshObject<MeshRoute>>::all(client.clone()), RawMeshObject::read, Event::Route);
    sink.run(Api::<RawMeshObject<MeshCluster>>::all(client.clone()), RawMeshObject::read, Event::Cluster);
    sink.run(Api::<RawMeshObject<MeshPolicy>>::all(client.clone()), RawMeshObject::read, Event::Policy);

    sink.run_gateway_api(client);

    let exports = namespaced::<ConfigMap>(client, bootstrap::EXPORT_NAMESPACE);
    sink.run(exports.clone(), From::from, |change| Event::Document(DocumentKind::Export, change));
    let inbound = namespaced::<ConfigMap>(client, bootstrap::INBOUND_NAMESPACE);
    sink.run(inbound, From::from, |change| Event::Document(DocumentKind::Inbound, change));
    let roles = namespaced::<Role>(client, bootstrap::INBOUND_NAMESPACE);
    sink.run(roles, From::from, |change| Event::Access(AccessKind::Role, change));
    let bindings = namespaced::<RoleBinding>(client, bootstrap::INBOUND_NAMESPACE);
    sink.run(bindings, From::from, |change| Event::Access(AccessKind::Binding, change));
    received
}

fn namespaced<K: Resource<DynamicType = (), Scope = NamespaceResourceScope>>(
    client: &Client,
    namespace: &str,
) -> Api<K> {
    Api::namespaced(client.clone(), namespace)
}

// === impl Sink ===

impl Sink {
    fn run<R, K>(&self, api: Api<R>, trim: fn(R) -> K, event: impl Fn(Change<K>) -> Event + Send + 'static)
    where
        R: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
        K: Send + 'static,
    {
        let sink = self.clone();
        self.spawn(async move {
            sink.forward(api, |object| Some(trim(object)), event, |_| false).await;
        });
    }

    /// Sends what a watch reports, until an error for which it `ends` (true) or until nobody receives (false). An object
    /// of which `trim` leaves nothing counts as deleted.
    async fn forward<R, K>(
        &self,
        api: Api<R>,
        trim: impl Fn(R) -> Option<K>,
        event: impl Fn(Change<K>) -> Event,
        ends: fn(&watcher::Error) -> bool,
    ) -> bool
    where
        R: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    {
        let kind = event(Change::Reset(Vec::new())).kind().0.as_str();
        let mut stream =
            watcher(api, watcher::Config::default().timeout(WATCH_SECONDS)).backoff(Backoff::default()).boxed();
        let mut listed = Vec::new();
        loop {
            let change = match stream.try_next().await {
                Ok(Some(watcher::Event::Init)) => {
                    listed = Vec::new();
                    continue;
                }
                Ok(Some(watcher::Event::InitApply(object))) => {
                    listed.extend(trim(object));
                    continue;
                }
                Ok(Some(watcher::Event::InitDone)) => Change::Reset(std::mem::take(&mut listed)),
                Ok(Some(watcher::Event::Apply(object))) => {
                    let key = key(&object);
                    trim(object).map_or(Change::Delete(key), Change::Apply)
                }
                Ok(Some(watcher::Event::Delete(object))) => Change::Delete(key(&object)),
                Ok(None) => return false,
                Err(error) if ends(&error) => return true,
                Err(error) => {
                    tracing::warn!(kind, %error, "watch failed, restarting");
                    self.metrics.watch_restarts.get_or_create(&KindLabel { kind: kind.to_owned() }).inc();
                    continue;
                }
            };
            if self.events.send(event(change)).await.is_err() {
                return false;
            }
        }
    }

    fn spawn(&self, watch: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! { () = watch => {}, () = stop.cancelled() => {} }
        });
    }
}

fn key(object: &impl ResourceExt) -> Key {
    Key::new(object.namespace().unwrap_or_default(), object.name_any())
}

/// Watches one object by name, and only signals that it changed.
pub fn watch_one<R>(api: Api<R>, name: &str, changed: mpsc::Sender<()>, stop: CancellationToken, tasks: &TaskTracker)
where
    R: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default().timeout(WATCH_SECONDS).fields(&format!("metadata.name={name}"));
    let watch = async move {
        let mut stream = watcher(api, config).backoff(Backoff::default()).boxed();
        loop {
            match stream.try_next().await {
                // If the channel is full, a signal is pending already.
                Ok(Some(_)) => drop(changed.try_send(())),
                Ok(None) => return,
                Err(error) => tracing::debug!(%error, "watch of one object failed, restarting"),
            }
        }
    };
    tasks.spawn(async move {
        tokio::select! { () = watch => {}, () = stop.cancelled() => {} }
    });
}
