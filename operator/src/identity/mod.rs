//! The certificate authority: which key issues certificates, to whom, and which roots proxies trust.
//!
//! ```text
//! Secret weft-issuer ──> secret ──> holder ──> authority (in every replica) ──> server: token + CSR -> certificate
//! or files of a directory ──┘
//! Secret weft-root ─────────> lifecycle ──> store writes Secrets (leader)
//!                                       └─> trust ──> ConfigMap weft-config/trust (leader)
//! ```
//!
//! Every replica signs: that needs no lease. A Secret that cannot be used changes nothing: the last good issuer stays,
//! which an Event, a metric and the log tell. Who a workload is follows from a TokenReview and from nothing that it says.
//!
//! Pure: [`secret`], [`holder`], [`lifecycle`], [`trust`], [`caller`], [`fairness`], [`refusal`].

pub mod caller;
pub mod domain;
pub mod fairness;
pub mod files;
pub mod holder;
pub mod lifecycle;
pub mod refusal;
pub mod reviews;
pub mod secret;
pub mod server;
pub mod serving;
pub mod store;
pub mod trust;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_identity::{SpiffeId, TrustDomain};
use weft_runtime::readiness::Part;

use self::reviews::Reviews;
use self::server::{Authority, Limits};
use self::serving::Serving;
use self::store::Store;
use crate::events::Recorder;
use crate::lease;
use crate::metrics::Metrics;
use crate::signing::Signing;

/// What the authority needs.
pub struct Identity {
    /// Client of the API server.
    pub client: Client,
    /// Namespace of the Secrets.
    pub namespace: String,
    /// Where the issuer is, if not in its Secret.
    pub directory: Option<PathBuf>,
    /// Trust domain of the cluster.
    pub domain: TrustDomain,
    /// The operator's own identity.
    pub own_id: SpiffeId,
    /// Lifetime of the certificates of workloads.
    pub certificate_lifetime: Duration,
    /// Whether this process is the leader.
    pub lease: watch::Receiver<lease::State>,
    /// Where Events go.
    pub recorder: Recorder,
    /// The operator's metrics.
    pub metrics: Metrics,
    /// Readiness: there is an issuer.
    pub part: Part,
    /// Where what signs documents goes.
    pub signing: watch::Sender<Option<Arc<Signing>>>,
}

/// Starts the authority; `listener` is that of its server.
pub fn start(identity: Identity, listener: TcpListener, stop: &CancellationToken, tasks: &TaskTracker) {
    let Identity {
        client,
        namespace,
        directory,
        domain,
        own_id,
        certificate_lifetime,
        lease,
        recorder,
        metrics,
        part,
        signing,
    } = identity;
    let (issuing, in_use) = watch::channel(None);
    let reviews = Reviews::new(client.clone(), domain.clone());
    let store = Store {
        client,
        namespace,
        directory,
        domain,
        own_id: own_id.clone(),
        lease,
        recorder,
        metrics: metrics.clone(),
        part,
        issuing,
        signing,
    };
    tasks.spawn(store.run(stop.clone(), tasks.clone()));

    let serving = Arc::new(Serving::default());
    let own_certificate = serving::follow(serving.clone(), own_id, in_use.clone());
    let until = stop.clone();
    tasks.spawn(async move {
        tokio::select! { () = own_certificate => {}, () = until.cancelled() => {} }
    });

    let lifetime = certificate_lifetime;
    let authority = Authority { issuing: in_use, reviews, lifetime, metrics, limits: Limits::default() };
    let server = server::serve(listener, serving, authority, stop.clone());
    tasks.spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%error, "the certificate authority cannot serve");
        }
    });
}
