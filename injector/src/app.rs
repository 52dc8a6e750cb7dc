//! Puts the injector together: watches, admin server, webhook. The order matters at the start, since a webhook that
//! answers before it knows anything refuses pods that it should not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use clap::{Args, Parser};
use kube::Client;
use kube::runtime::reflector;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_crds::names::SYSTEM_NAMESPACE;
use weft_runtime::admin::{self, Admin};
use weft_runtime::readiness::Readiness;

use crate::certificate::{self, Certificate};
use crate::metrics::Metrics;
use crate::namespaces::{self, Namespaces};
use crate::server::{self, Webhook};
use crate::settings::{Installation, Resources, ServerVersion};

/// How long a connection may take to send its first request.
const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// How long open reviews may take after SIGTERM. The API server has given up on each long before.
const DRAIN: Duration = Duration::from_secs(10);

/// Adds Weft's proxy to pods as they are created.
#[derive(Debug, Parser)]
#[command(name = "weft-injector", version)]
pub struct Arguments {
    /// Where the webhook listens (TLS).
    #[arg(long, env = "WEFT_WEBHOOK_ADDRESS", default_value = "[::]:8443")]
    pub webhook_address: SocketAddr,
    /// Where /livez, /readyz and /metrics are.
    #[arg(long, env = "WEFT_ADMIN_ADDRESS", default_value = "[::]:15020")]
    pub admin_address: SocketAddr,
    /// Namespace of the Secret with the webhook's certificate.
    #[arg(long, env = "WEFT_SYSTEM_NAMESPACE", default_value = SYSTEM_NAMESPACE)]
    pub system_namespace: String,
    /// Log filter, as in info,weft_injector=debug.
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    pub log: String,
    /// "json" or "text".
    #[arg(long, env = "WEFT_LOG_FORMAT", default_value = "json")]
    pub log_format: String,
    /// What is injected.
    #[command(flatten)]
    pub injected: Injected,
}

/// What is injected into every pod.
#[derive(Debug, Args)]
pub struct Injected {
    /// Image of the proxy.
    #[arg(long, env = "WEFT_PROXY_IMAGE")]
    pub proxy_image: String,
    /// Image of the init container.
    #[arg(long, env = "WEFT_INIT_IMAGE")]
    pub init_image: String,
    /// When both are pulled.
    #[arg(long, env = "WEFT_IMAGE_PULL_POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub image_pull_policy: String,
    /// The proxy's version, for label and annotation.
    #[arg(long, env = "WEFT_PROXY_VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    pub proxy_version: String,
    /// The proxy's CPU request, where an annotation does not say; empty for none.
    #[arg(long, env = "WEFT_PROXY_CPU_REQUEST", default_value = "50m")]
    pub proxy_cpu_request: String,
    /// The proxy's CPU limit, where an annotation does not say; empty for none.
    #[arg(long, env = "WEFT_PROXY_CPU_LIMIT", default_value = "")]
    pub proxy_cpu_limit: String,
    /// The proxy's memory request, where an annotation does not say; empty for none.
    #[arg(long, env = "WEFT_PROXY_MEMORY_REQUEST", default_value = "64Mi")]
    pub proxy_memory_request: String,
    /// The proxy's memory limit, where an annotation does not say; empty for none.
    #[arg(long, env = "WEFT_PROXY_MEMORY_LIMIT", default_value = "512Mi")]
    pub proxy_memory_limit: String,
}

/// Why the injector cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Bad flags.
    #[error(transparent)]
    Log(#[from] weft_runtime::log::Error),
    /// Bad flags.
    #[error("{flag} is {value:?}; {remedy}")]
    Flag {
        /// Which.
        flag: &'static str,
        /// Its value.
        value: String,
        /// What to do.
        remedy: &'static str,
    },
    /// There is no API server.
    #[error("no client for the API server")]
    Client(#[source] Box<kube::Error>),
    /// An address cannot be listened on.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// Signals cannot be caught.
    #[error("cannot wait for signals")]
    Signal(#[source] std::io::Error),
    /// A server ended.
    #[error("the {0} server ended")]
    Server(&'static str, #[source] std::io::Error),
}

/// Runs until a signal.
pub async fn run(arguments: Arguments) -> Result<(), Error> {
    let Arguments { webhook_address, admin_address, system_namespace, log, log_format, injected } = arguments;
    weft_runtime::log::init(&log, &log_format)?;
    let installation = Arc::new(injected.installation()?);
    let stop = weft_runtime::signal::drain().map_err(Error::Signal)?;
    let (readiness, metrics) = (Readiness::default(), Metrics::default());
    let parts = (readiness.part("certificate"), readiness.part("namespaces"), readiness.part("webhook"));

    let listener = TcpListener::bind(admin_address).await.map_err(|error| Error::Listen(admin_address, error))?;
    let admin = admin::router(Admin { readiness, registry: metrics.registry(), log: None });
    let admin = tokio::spawn(admin::serve(listener, admin, stop.clone()));

    let client = Client::try_default().await.map_err(|error| Error::Client(Box::new(error)))?;
    let (certificates, certificate) = watch::channel(None);
    let (versions, version) = watch::channel(None);
    let (store, writer) = reflector::store();
    tokio::spawn(certificate::follow(client.clone(), system_namespace, certificates, parts.0, metrics.clone()));
    tokio::spawn(namespaces::follow(client.clone(), writer, versions, parts.1));

    let known = async {
        let mut version = version.clone();
        // The senders live as long as the process, so waiting ends with a value or with the process.
        let _ = version.wait_for(Option::is_some).await;
        let mut certificate = certificate.clone();
        let first = certificate.wait_for(Option::is_some).await.ok().and_then(|first| first.clone());
        first.map(|first| (first, certificate))
    };
    let known = tokio::select! { known = known => known, () = stop.cancelled() => None };
    if let Some((first, certificates)) = known {
        let webhook = Webhook { namespaces: Namespaces::new(store, client), installation, version, metrics };
        parts.2.report(true, &format!("listening on {webhook_address}"));
        serve(webhook_address, webhook, first, certificates, stop.clone()).await?;
    }
    stop.cancelled().await;
    admin.await.map_err(std::io::Error::other).flatten().map_err(|error| Error::Server("admin", error))
}

/// Serves the webhook until `stop`, with the newest certificate.
async fn serve(
    address: SocketAddr,
    webhook: Webhook,
    first: Certificate,
    mut certificates: watch::Receiver<Option<Certificate>>,
    stop: CancellationToken,
) -> Result<(), Error> {
    let tls = RustlsConfig::from_config(first.config);
    let (reload, handle) = (tls.clone(), Handle::new());
    tokio::spawn(async move {
        while certificates.changed().await.is_ok() {
            if let Some(Certificate { config, .. }) = certificates.borrow_and_update().clone() {
                reload.reload_from_config(config);
            }
        }
    });
    let graceful = handle.clone();
    tokio::spawn(async move {
        stop.cancelled().await;
        graceful.graceful_shutdown(Some(DRAIN));
    });
    axum_server::bind_rustls(address, tls)
        .first_request_timeout(FIRST_REQUEST)
        .handle(handle)
        .serve(server::router(webhook).into_make_service())
        .await
        .map_err(|error| Error::Server("webhook", error))
}

// === impl Injected ===

impl Injected {
    /// What the flags mean.
    pub fn installation(self) -> Result<Installation, Error> {
        let Self { proxy_image, init_image, image_pull_policy, proxy_version, .. } = &self;
        for (flag, value) in [("--proxy-image", proxy_image), ("--init-image", init_image)] {
            if value.trim().is_empty() {
                let remedy = "name an image";
                return Err(Error::Flag { flag, value: value.clone(), remedy });
            }
        }
        let resources = Resources {
            cpu_request: given(&self.proxy_cpu_request),
            cpu_limit: given(&self.proxy_cpu_limit),
            memory_request: given(&self.proxy_memory_request),
            memory_limit: given(&self.proxy_memory_limit),
        };
        if let Err((flag, value)) = resources.check() {
            let remedy = "use a quantity as Kubernetes writes them (100m, 64Mi), and no request above its limit";
            return Err(Error::Flag { flag, value, remedy });
        }
        Ok(Installation {
            proxy_image: proxy_image.clone(),
            init_image: init_image.clone(),
            image_pull_policy: image_pull_policy.clone(),
            proxy_version: proxy_version.clone(),
            resources,
            server: ServerVersion::OLDEST,
        })
    }
}

fn given(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}
