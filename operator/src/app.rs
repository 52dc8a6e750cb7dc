//! Starts the parts of the operator and shuts them down in order.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch as channel};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_crds::names;
use weft_identity::SpiffeId;
use weft_runtime::admin::{self, Admin};
use weft_runtime::readiness::Readiness;

use crate::events::Recorder;
use crate::identity::{self, Identity};
use crate::metrics::Metrics;
use crate::reconcile::Reconciler;
use crate::{callers, lease, watch, webhook};

/// Timeouts of connecting and of sending to the API server.
const CONNECT_MAX: Duration = Duration::from_secs(5);
const SEND_MAX: Duration = Duration::from_secs(15);

/// Settings of the operator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Namespace of the leader election Lease and of the webhook's certificate.
    pub system_namespace: String,
    /// Name of this process in the Lease; in a pod, the pod's name.
    pub name: String,
    /// Listen address of `/livez`, `/readyz` and `/metrics`.
    pub admin: SocketAddr,
    /// Namespaces that are never injected, as in the webhook's configuration.
    pub excluded_namespaces: BTreeSet<String>,
    /// Listen address of the certificate authority.
    pub identity: SocketAddr,
    /// Where the issuer is, if not in its Secret.
    pub issuer_directory: Option<PathBuf>,
    /// Lifetime of the certificates of workloads.
    pub certificate_lifetime: Duration,
}

/// Why the operator could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no kubeconfig and no service account.
    #[error("no kubeconfig and no in-cluster configuration found")]
    Config(#[source] kube::config::InferConfigError),
    /// The configuration cannot be used.
    #[error("invalid cluster configuration")]
    Client(#[source] kube::Error),
    /// The admin address cannot be bound.
    #[error("cannot bind the admin address {0}")]
    Admin(SocketAddr, #[source] std::io::Error),
    /// The address of the certificate authority cannot be bound.
    #[error("cannot bind the address of the certificate authority {0}")]
    Identity(SocketAddr, #[source] std::io::Error),
    /// The operator has no identity of its own.
    #[error("the operator's own identity is invalid")]
    Id(#[from] weft_identity::id::Error),
}

/// Runs until `stop`, then shuts down in order: the writer first, then the lease, so that no write happens without
/// it.
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<(), Error> {
    let Settings {
        system_namespace,
        name,
        admin,
        excluded_namespaces,
        identity: identity_address,
        issuer_directory,
        certificate_lifetime,
    } = settings;
    let mut config = kube::Config::infer().await.map_err(Error::Config)?;
    config.connect_timeout = Some(CONNECT_MAX);
    config.write_timeout = Some(SEND_MAX);
    let client = Client::try_from(config).map_err(Error::Client)?;

    let mut registry = weft_runtime::metrics::registry("operator", env!("CARGO_PKG_VERSION"));
    let metrics = Metrics::register(&mut registry);
    let readiness = Readiness::default();
    let [identity_part, world_part, writer_part] = ["identity", "world", "writer"].map(|name| readiness.part(name));
    let listener = TcpListener::bind(admin).await.map_err(|error| Error::Admin(admin, error))?;
    let router = admin::router(Admin { readiness: readiness.clone(), registry: Arc::new(registry), log: None });
    let serving = CancellationToken::new();
    let server = tokio::spawn(admin::serve(listener, router, serving.clone()));

    identity_part.report(false, "the trust domain is not known yet");
    let trust_domain = tokio::select! {
        domain = identity::domain::in_force(&client) => domain,
        () = stop.cancelled() => return Ok(()),
    };
    let own_id = SpiffeId::new(trust_domain.clone(), &system_namespace, names::OPERATOR_ACCOUNT)?;

    let tasks = TaskTracker::new();
    let events = watch::start(&client, &metrics, &stop, &tasks);

    let authority_listener =
        TcpListener::bind(identity_address).await.map_err(|error| Error::Identity(identity_address, error))?;

    // Each process start is a holder of its own, also when the pod's container restarts: its writes get a new epoch.
    let holder_name = format!("{name}_{:x}", unix_nanos());
    let leases: Api<Lease> = Api::namespaced(client.clone(), &system_namespace);
    let (state, lease) = channel::channel(lease::State::default());
    let holding = CancellationToken::new();
    let holder = tokio::spawn(lease::run(leases.clone(), holder_name.clone(), state, holding.clone()));

    let webhooks = webhook::run(
        client.clone(),
        system_namespace.clone(),
        lease.clone(),
        metrics.clone(),
        stop.clone(),
        tasks.clone(),
    );
    tasks.spawn(webhooks);

    let (to_ask, targets) = channel::channel(Vec::new());
    let (answer, answers) = mpsc::channel(1);
    tasks.spawn(callers::run(targets, answer, stop.clone()));

    let recorder = Recorder::start(client.clone(), name, lease.clone(), metrics.clone(), stop.clone(), &tasks);

    let (signs, signing) = channel::channel(None);
    identity::start(
        Identity {
            client: client.clone(),
            namespace: system_namespace,
            directory: issuer_directory,
            domain: trust_domain,
            own_id,
            certificate_lifetime,
            lease: lease.clone(),
            recorder: recorder.clone(),
            metrics: metrics.clone(),
            part: identity_part,
            signing: signs,
        },
        authority_listener,
        &stop,
        &tasks,
    );

    tracing::info!(identity = holder_name, %admin, authority = %identity_address, "started");
    let reconciler = Reconciler {
        client,
        leases,
        identity: holder_name,
        lease,
        signing,
        metrics,
        recorder,
        to_ask,
        answers,
        excluded_namespaces,
        world_part,
        writer_part,
        stop: stop.clone(),
    };
    reconciler.run(events).await;

    stop.cancel();
    tasks.close();
    tasks.wait().await;
    holding.cancel();
    // A failed release is already logged, and the lease expires by itself.
    let _ = holder.await;
    serving.cancel();
    let _ = server.await;
    Ok(())
}

fn unix_nanos() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}
