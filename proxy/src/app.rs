//! Builds the proxy, runs it, and shuts it down.
//!
//! Threads: one for control (configuration, admin, metrics, probes), so that a scrape cannot delay a request, and one
//! for each worker.
//!
//! Shutdown, after SIGTERM: listeners stop accepting, idle connections close, requests in flight may finish within
//! the drain time, then the process ends. A native sidecar gets SIGTERM after the application has ended. A classic
//! sidecar gets it together with the application, and keeps running within the drain time until the pod's preStop
//! hooks were called.

use std::collections::HashSet;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use axum::{Json, Router, routing};
use futures_util::future::join;
use nix::sys::prctl;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio::task::LocalSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_codec::Tick;
use weft_config::bootstrap::CALLERS_PATH;
use weft_runtime::admin::{self, Admin};
use weft_runtime::readiness::Readiness;
use weft_runtime::{log, metrics as process_metrics, signal};

use crate::bootstrap::{Bootstrap, Source as SourceChoice};
use crate::callers::Callers;
use crate::clock::time_of_day;
use crate::direction::Direction;
use crate::filter::rate_limit::Limiters;
use crate::identity::Slot;
use crate::identity::ca::Ca;
use crate::identity::source::{CaSettings, Source as IdentitySource, watch};
use crate::identity::trust::Trust;
use crate::memory::{self, Memory};
use crate::table::source::Source;
use crate::table::updater::Updater;
use crate::telemetry::config::ConfigMetrics;
use crate::telemetry::identity::IdentityMetrics;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::{alive, sweep};
use crate::upstream::health;
use crate::upstream::shared_cluster::SharedClusters;
use crate::worker::{Shared, Worker};
use crate::{inbound, listener, outbound, probe};

/// How long accepting connections is delayed until the configuration and the first certificate have arrived.
const CONFIG_TIMEOUT: Duration = Duration::from_secs(5);

/// A running proxy. Dropping it does not stop it.
pub struct Running {
    /// Address of the outbound listener.
    pub outbound: SocketAddr,
    /// Address of the inbound listener.
    pub inbound: SocketAddr,
    /// Address of the metrics endpoint.
    pub metrics: SocketAddr,
    /// Address of readiness and probes.
    pub health: SocketAddr,
    connections: TaskTracker,
    workers: Vec<thread::JoinHandle<()>>,
}

/// Runs a proxy until the process is asked to stop.
pub fn run(bootstrap: Bootstrap) -> anyhow::Result<()> {
    // Dependencies may link a second provider; this one is used.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // The private key is in memory: it is in no core dump, and no other process of the same user may read it.
    prctl::set_dumpable(false).context("cannot protect the memory of the process")?;
    let filter = log::init(&bootstrap.log.0, &bootstrap.log.1)?;
    let control = runtime::Builder::new_current_thread().enable_all().build()?;
    control.block_on(async {
        let drain = signal::drain().context("cannot listen for signals")?;
        let drain_timeout = bootstrap.drain;
        let running = start(bootstrap, Some(filter), drain.clone()).await?;
        drain.cancelled().await;
        if tokio::time::timeout(drain_timeout, running.finished()).await.is_err() {
            tracing::warn!("drain time exceeded, closing open connections");
        }
        Ok(())
    })
}

/// Starts a proxy on the current runtime and on threads of its own. It drains when `drain` is cancelled.
pub async fn start(
    bootstrap: Bootstrap,
    filter: Option<log::Filter>,
    drain: CancellationToken,
) -> anyhow::Result<Running> {
    let Bootstrap {
        pod,
        workers,
        source,
        identity,
        cache,
        ports,
        tls,
        mutual_tls,
        timeouts,
        opaque_ports,
        probes,
        hooks,
        classic,
        access_log,
        cgroup,
        ..
    } = bootstrap;
    let mut registry = process_metrics::registry("proxy", env!("CARGO_PKG_VERSION"));
    alive::register(&mut registry);
    let metrics = Metrics::new(&mut registry);
    let config_metrics = ConfigMetrics::new(&mut registry);
    let memory = Arc::new(Memory::new(&cgroup));
    tokio::spawn(memory::run(memory.clone(), metrics.memory.clone()));
    let readiness = Readiness::default();
    let source = match source {
        SourceChoice::Kubernetes => Source::kubernetes()?,
        SourceChoice::Directory(path) => Source::Directory(path),
    };
    let (pod_ips, application, destination) = (pod.ips.clone(), pod.application, pod.destination);
    let cache = matches!(source, Source::Kubernetes(_)).then_some(cache);
    let slot = Arc::new(Slot::new(identity.is_some()));
    let trust = match identity {
        Some(identity) => start_identity(identity, slot.clone(), cache.as_deref(), &mut registry, &readiness),
        None => None,
    };
    // Files are those of whoever starts the proxy, and are not signed.
    let trust = trust.filter(|_| matches!(source, Source::Kubernetes(_)));
    let part = readiness.part("configuration");
    let (store, updater) = Updater::new(pod, trust, source, cache, slot.clone(), config_metrics, part);

    let (outbound, inbound) = (Listeners::bind(ports.outbound, workers)?, Listeners::bind(ports.inbound, workers)?);
    let metrics_listener = bind_any(ports.metrics).await?;
    let health_listener = bind_any(ports.health).await?;
    let admin_listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, ports.admin)).await.context("cannot bind the admin port")?;
    let own_ports: HashSet<u16> =
        [outbound.address.port(), inbound.address.port(), admin_listener.local_addr()?.port()].into();

    let admin = Admin { readiness: readiness.clone(), registry: Arc::new(registry), log: None };
    let running = Running {
        outbound: outbound.address,
        inbound: inbound.address,
        metrics: metrics_listener.local_addr()?,
        health: health_listener.local_addr()?,
        connections: TaskTracker::new(),
        workers: Vec::new(),
    };
    // These are served until the process ends: probes go on while the pod drains.
    let never = CancellationToken::new();
    let (callers, started) = (Arc::new(Callers::default()), Tick::now());
    let metrics_pages = admin::router(admin.clone()).merge(callers_page(callers.clone(), started));
    tokio::spawn(admin::serve(metrics_listener, metrics_pages, never.clone()));
    let awaited = classic.then_some(&running.connections);
    let health = admin::router(admin.clone()).merge(probe::router(probes, hooks, awaited, &pod_ips));
    tokio::spawn(admin::serve(health_listener, health, never.clone()));
    tokio::spawn(admin::serve(admin_listener, admin::router(Admin { log: filter, ..admin }), never));
    tokio::spawn(updater.run());

    // Until then, connections wait in the accept queue.
    tokio::select! {
        _ = join(store.synced(), slot.synced()) => {}
        () = drain.cancelled() => {}
        () = tokio::time::sleep(CONFIG_TIMEOUT) => {
            tracing::warn!("no configuration or no certificate yet, accepting connections without it");
        }
    }
    let shared = Arc::new(Shared {
        store,
        clusters: SharedClusters::default(),
        mirror_clusters: SharedClusters::default(),
        limiters: Limiters::default(),
        metrics,
        memory,
        timeouts,
        opaque_ports,
        pod_ips,
        application,
        destination,
        tls,
        mutual_tls,
        identity: slot,
        callers,
        own_ports,
        access_log,
        drain,
        connections: running.connections.clone(),
        started,
    });
    tokio::spawn(health::run(shared.clone()));
    tokio::spawn(sweep::run(shared.clone()));
    let sockets = outbound.sockets.into_iter().zip(inbound.sockets);
    let workers = sockets
        .enumerate()
        .map(|(number, sockets)| {
            let shared = shared.clone();
            thread::Builder::new()
                .name(format!("worker-{number}"))
                .spawn(move || run_worker(shared, number as u64, sockets))
                .context("cannot start a worker")
        })
        .collect::<anyhow::Result<_>>()?;
    Ok(Running { workers, ..running })
}

/// The page with the clients that call this pod in plaintext. `started`: when the process started.
fn callers_page(callers: Arc<Callers>, started: Tick) -> Router {
    Router::new().route(CALLERS_PATH, routing::get(async move || Json(callers.report(started.elapsed()))))
}

/// Starts the source of the identity. Returns what signatures of documents are held against, if it knows.
fn start_identity(
    source: IdentitySource,
    slot: Arc<Slot>,
    cache: Option<&Path>,
    registry: &mut Registry,
    readiness: &Readiness,
) -> Option<Arc<Trust>> {
    let part = readiness.part("identity");
    match source {
        IdentitySource::Directory(directory) => {
            tokio::spawn(watch(directory, slot.clone()));
            tokio::spawn(async move {
                slot.synced().await;
                part.ready();
            });
            None
        }
        IdentitySource::Ca(CaSettings { client, authority, id, roots }) => {
            let metrics = IdentityMetrics::new(registry);
            let trust = Trust::new(id.trust_domain().clone(), authority, roots, cache, metrics.clone());
            let trust = Arc::new(trust);
            let ca = Ca::new(client, id, trust.clone(), slot, metrics, part, Box::new(time_of_day));
            tokio::spawn(ca.run());
            Some(trust)
        }
    }
}

impl Running {
    /// Waits until all connections are closed and all workers have ended.
    pub async fn finished(self) {
        self.connections.close();
        self.connections.wait().await;
        let joined = tokio::task::spawn_blocking(|| self.workers.into_iter().for_each(|worker| drop(worker.join())));
        let _ = joined.await;
    }
}

/// The sockets of one port, one for each worker.
struct Listeners {
    address: SocketAddr,
    sockets: Vec<std::net::TcpListener>,
}

impl Listeners {
    fn bind(port: u16, count: usize) -> anyhow::Result<Self> {
        let bind = |port| listener::bind(port).with_context(|| format!("cannot bind port {port}"));
        let first = bind(port)?;
        let address = first.local_addr()?;
        let mut sockets = vec![first];
        for _ in 1..count {
            sockets.push(bind(address.port())?);
        }
        Ok(Self { address, sockets })
    }
}

async fn bind_any(port: u16) -> anyhow::Result<TcpListener> {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.with_context(|| format!("cannot bind port {port}"))
        }
    }
}

fn run_worker(shared: Arc<Shared>, number: u64, (outbound, inbound): (std::net::TcpListener, std::net::TcpListener)) {
    let runtime = match runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return tracing::error!(%error, "cannot start a worker"),
    };
    LocalSet::new().block_on(&runtime, async move {
        let connections = shared.connections.clone();
        let worker = Worker::new(shared, number);
        let accepting = match (TcpListener::from_std(outbound), TcpListener::from_std(inbound)) {
            (Ok(outbound), Ok(inbound)) => [
                alive::spawn(listener::accept(worker.clone(), Direction::Outbound, outbound, outbound::handle)),
                alive::spawn(listener::accept(worker, Direction::Inbound, inbound, inbound::handle)),
            ],
            (Err(error), _) | (_, Err(error)) => return tracing::error!(%error, "a worker cannot listen"),
        };
        // Both end when the drain begins; until then connections may be added.
        for listener in accepting {
            if let Err(error) = listener.await {
                tracing::error!(%error, "a listener has failed");
            }
        }
        connections.close();
        connections.wait().await;
    });
}
