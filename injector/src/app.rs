//! The injector's process: watches, admin server, webhook. The webhook starts last, when certificate and API server
//! version are known: before that it would refuse pods wrongly.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum_server::Handle;
use axum_server::tls_rustls::RustlsConfig;
use clap::{Args, Parser};
use kube::Client;
use kube::runtime::reflector;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use weft_config::bootstrap::{IDENTITY_PATH, IDENTITY_PORT};
use weft_crds::names::{IDENTITY, SYSTEM_NAMESPACE};
use weft_runtime::admin::{self, Admin};
use weft_runtime::readiness::Readiness;

use crate::certificate::{self, Certificate};
use crate::metrics::Metrics;
use crate::namespaces::{self, Namespaces};
use crate::server::{self, Webhook};
use crate::settings::{Identity, Installation, Resources, ServerVersion};
use crate::trust;

/// Timeout of a connection's first request.
const FIRST_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for in-flight reviews after SIGTERM: as long as the API server waits (`timeoutSeconds`, 10 in the chart).
const DRAIN_TIMEOUT: Duration = Duration::from_secs(10);

/// Adds Weft's proxy to pods as they are created.
#[derive(Debug, Parser)]
#[command(name = "weft-injector", version)]
pub struct Arguments {
    /// Address of the webhook (TLS).
    #[arg(long, env = "WEFT_WEBHOOK_ADDRESS", default_value = "[::]:8443")]
    pub webhook_address: SocketAddr,
    /// Address of /livez, /readyz and /metrics.
    #[arg(long, env = "WEFT_ADMIN_ADDRESS", default_value = "[::]:15020")]
    pub admin_address: SocketAddr,
    /// Namespace of the Secret with the webhook's certificate.
    #[arg(long, env = "WEFT_SYSTEM_NAMESPACE", default_value = SYSTEM_NAMESPACE)]
    pub system_namespace: String,
    /// Namespaces, separated by commas, for whose pods the API server does not call the webhook.
    #[arg(long, env = "WEFT_EXCLUDED_NAMESPACES", value_delimiter = ',')]
    pub excluded_namespaces: Vec<String>,
    /// Whether pods get an identity: certificates from the operator's authority.
    #[arg(long, env = "WEFT_IDENTITY_ENABLED", default_value_t = true, action = clap::ArgAction::Set)]
    pub identity: bool,
    /// Log filter, as in info,weft_injector=debug.
    #[arg(long, env = "WEFT_LOG", default_value = "info")]
    pub log: String,
    /// Log format, "json" or "text".
    #[arg(long, env = "WEFT_LOG_FORMAT", default_value = "json")]
    pub log_format: String,
    /// Configuration of the injected containers.
    #[command(flatten)]
    pub injected: Injected,
}

/// Configuration of the injected containers.
#[derive(Debug, Args)]
pub struct Injected {
    /// Image of the proxy.
    #[arg(long, env = "WEFT_PROXY_IMAGE")]
    pub proxy_image: String,
    /// Image of the init container.
    #[arg(long, env = "WEFT_INIT_IMAGE")]
    pub init_image: String,
    /// imagePullPolicy of both images.
    #[arg(long, env = "WEFT_IMAGE_PULL_POLICY", default_value = "IfNotPresent", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub image_pull_policy: String,
    /// The proxy's version, for label and annotation.
    #[arg(long, env = "WEFT_PROXY_VERSION", default_value = env!("CARGO_PKG_VERSION"))]
    pub proxy_version: String,
    /// The proxy's CPU request for pods without an annotation; empty for none.
    #[arg(long, env = "WEFT_PROXY_CPU_REQUEST", default_value = "50m")]
    pub proxy_cpu_request: String,
    /// The proxy's CPU limit for pods without an annotation; empty for none.
    #[arg(long, env = "WEFT_PROXY_CPU_LIMIT", default_value = "")]
    pub proxy_cpu_limit: String,
    /// The proxy's memory request for pods without an annotation; empty for none.
    #[arg(long, env = "WEFT_PROXY_MEMORY_REQUEST", default_value = "64Mi")]
    pub proxy_memory_request: String,
    /// The proxy's memory limit for pods without an annotation; empty for none.
    #[arg(long, env = "WEFT_PROXY_MEMORY_LIMIT", default_value = "512Mi")]
    pub proxy_memory_limit: String,
}

/// Why the injector cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The log filter or format is invalid.
    #[error(transparent)]
    Log(#[from] weft_runtime::log::Error),
    /// A flag is invalid.
    #[error("{flag} is {value:?}; {remedy}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// Its value.
        value: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The client of the API server cannot be configured.
    #[error("cannot configure a client for the API server; run in a pod, or set KUBECONFIG")]
    Client(#[source] Box<kube::Error>),
    /// Binding an address failed.
    #[error("cannot listen on {0}")]
    Listen(SocketAddr, #[source] std::io::Error),
    /// Signal handlers cannot be installed.
    #[error("cannot install signal handlers")]
    Signal(#[source] std::io::Error),
    /// A server failed.
    #[error("the {0} server failed")]
    Server(&'static str, #[source] std::io::Error),
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(arguments: Arguments) -> Result<(), Error> {
    let Arguments {
        webhook_address,
        admin_address,
        system_namespace,
        excluded_namespaces,
        identity,
        log,
        log_format,
        injected,
    } = arguments;
    weft_runtime::log::init(&log, &log_format)?;
    let has_identity = identity;
    let identity = has_identity.then(|| own_authority(&system_namespace));
    let installation = Arc::new(Installation { excluded_namespaces, identity, ..injected.installation()? });
    let stop = weft_runtime::signal::drain().map_err(Error::Signal)?;
    let (readiness, metrics) = (Readiness::default(), Metrics::default());
    let parts = (readiness.part("certificate"), readiness.part("namespaces"), readiness.part("webhook"));

    let listener = TcpListener::bind(admin_address).await.map_err(|error| Error::Listen(admin_address, error))?;
    let admin = admin::router(Admin { readiness: readiness.clone(), registry: metrics.registry(), log: None });
    let admin = tokio::spawn(admin::serve(listener, admin, stop.clone()));

    let client = Client::try_default().await.map_err(|error| Error::Client(Box::new(error)))?;
    let (certificates, certificate) = watch::channel(None);
    let (versions, version) = watch::channel(None);
    let (trusts, trust) = watch::channel(None);
    let (store, writer) = reflector::store();
    if has_identity {
        tokio::spawn(trust::follow(client.clone(), system_namespace.clone(), trusts, readiness.part("trust")));
    }
    tokio::spawn(certificate::follow(client.clone(), system_namespace, certificates, parts.0, metrics.clone()));
    tokio::spawn(namespaces::follow(client.clone(), writer, versions, parts.1));

    let certificate_and_version = async {
        let mut version = version.clone();
        // The senders live as long as the process, so this wait ends with a value or with the process.
        let _ = version.wait_for(Option::is_some).await;
        let mut certificate = certificate.clone();
        let first = certificate.wait_for(Option::is_some).await.ok().and_then(|first| first.clone());
        first.map(|first| (first, certificate))
    };
    let start = tokio::select! { start = certificate_and_version => start, () = stop.cancelled() => None };
    if let Some((first, certificates)) = start {
        let namespaces = Namespaces::new(store, client);
        let webhook = Webhook { namespaces, installation, version, trust, metrics };
        let listener =
            std::net::TcpListener::bind(webhook_address).map_err(|error| Error::Listen(webhook_address, error))?;
        parts.2.report(true, &format!("listening on {webhook_address}"));
        let router = server::router(webhook);
        serve(listener, router, first, certificates, stop.clone())
            .await
            .map_err(|error| Error::Server("webhook", error))?;
    }
    stop.cancelled().await;
    admin.await.map_err(std::io::Error::other).flatten().map_err(|error| Error::Server("admin", error))
}

/// Identities from the authority of the operator in this namespace.
fn own_authority(namespace: &str) -> Identity {
    let url = format!("https://{IDENTITY}.{namespace}.svc:{IDENTITY_PORT}{IDENTITY_PATH}");
    Identity { url, trust: None }
}

/// Serves the webhook until `stop`, always with the newest certificate.
pub async fn serve(
    listener: std::net::TcpListener,
    router: Router,
    first: Certificate,
    mut certificates: watch::Receiver<Option<Certificate>>,
    stop: CancellationToken,
) -> std::io::Result<()> {
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
        graceful.graceful_shutdown(Some(DRAIN_TIMEOUT));
    });
    axum_server::from_tcp_rustls(listener, tls)?
        .first_request_timeout(FIRST_REQUEST_TIMEOUT)
        .handle(handle)
        .serve(router.into_make_service())
        .await
}

// === impl Injected ===

impl Injected {
    /// Validates the flags.
    pub fn installation(self) -> Result<Installation, Error> {
        let Self { proxy_image, init_image, image_pull_policy, proxy_version, .. } = &self;
        for (flag, value) in [("--proxy-image", proxy_image), ("--init-image", init_image)] {
            if value.trim().is_empty() {
                let remedy = "name an image";
                return Err(Error::Flag { flag, value: value.clone(), remedy });
            }
        }
        let resources = Resources {
            cpu_request: non_empty(&self.proxy_cpu_request),
            cpu_limit: non_empty(&self.proxy_cpu_limit),
            memory_request: non_empty(&self.proxy_memory_request),
            memory_limit: non_empty(&self.proxy_memory_limit),
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
            excluded_namespaces: Vec::new(),
            hook_secret: String::new(),
            identity: None,
        })
    }
}

fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use rustls::pki_types::ServerName;
    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::Notify;
    use tokio_rustls::TlsConnector;

    use super::*;

    const NAME: &str = "weft-injector.weft-system.svc";

    /// A certificate, and a client that trusts only that certificate.
    fn pair() -> (Certificate, TlsConnector) {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::new(vec![NAME.to_owned()]).unwrap().self_signed(&key).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(certificate.der().clone()).unwrap();
        let client = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let secret = certificate::tests::secret(&[("tls.crt", certificate.pem()), ("tls.key", key.serialize_pem())]);
        (certificate::load(&secret, std::time::SystemTime::now()).unwrap(), TlsConnector::from(Arc::new(client)))
    }

    async fn fetch(address: SocketAddr, client: &TlsConnector, path: &str) -> std::io::Result<String> {
        let stream = TcpStream::connect(address).await?;
        let mut stream = client.connect(ServerName::try_from(NAME).unwrap(), stream).await?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok(answer)
    }

    #[tokio::test]
    async fn certificates_reload_while_serving_and_drain_finishes_open_requests() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let ((first, first_client), (second, second_client)) = (pair(), pair());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, receiver) = watch::channel(Some(first.clone()));
        let (stop, entered, go) = (CancellationToken::new(), Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (inside, wait) = (entered.clone(), go.clone());
        let slow = async move || {
            inside.notify_one();
            wait.notified().await;
            "slow"
        };
        let router = Router::new().route("/", get(|| async { "quick" })).route("/slow", get(slow));
        let server = tokio::spawn(serve(listener, router, first, receiver, stop.clone()));

        assert!(fetch(address, &first_client, "/").await.unwrap().ends_with("quick"), "the first certificate");
        sender.send_replace(Some(second));
        // The reload is asynchronous: connections made before it have the first certificate.
        let changed = async {
            while fetch(address, &second_client, "/").await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), changed).await.expect("the second certificate");
        assert!(fetch(address, &first_client, "/").await.is_err(), "the first certificate is no longer served");

        let open = tokio::spawn(async move { fetch(address, &second_client, "/slow").await });
        entered.notified().await;
        stop.cancel();
        go.notify_one();
        assert!(open.await.unwrap().unwrap().ends_with("slow"), "an open request is answered");
        tokio::time::timeout(DRAIN_TIMEOUT, server).await.expect("the server ends").unwrap().unwrap();
    }

    #[test]
    fn invalid_flags_are_refused_with_value_and_remedy() {
        let parse = |flags: &[&str]| {
            let image = if flags.iter().any(|flag| flag.contains("-image=")) { None } else { Some(&"--proxy-image=p") };
            let always = ["weft-injector", "--init-image=i"];
            let arguments = Arguments::try_parse_from(always.iter().chain(image).chain(flags))
                .map_err(|error| error.to_string())?;
            arguments.injected.installation().map_err(|error| error.to_string())
        };
        assert!(parse(&[]).is_ok(), "images are enough");
        assert!(parse(&["--proxy-cpu-limit=", "--proxy-memory-limit="]).unwrap().resources.cpu_limit.is_none());
        for (flag, expected) in [
            ("--proxy-cpu-request=fast", "--proxy-cpu-request is \"fast\""),
            ("--proxy-memory-limit=1Mi", "--proxy-memory-request is \"64Mi\""),
            ("--proxy-image=", "--proxy-image is \"\"; name an image"),
            ("--image-pull-policy=Sometimes", "invalid value 'Sometimes'"),
        ] {
            let error = parse(&[flag]).unwrap_err();
            assert!(error.contains(expected), "{flag}: {error}");
        }
    }
}
