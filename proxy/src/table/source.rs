//! The source of configuration documents: ConfigMaps, or files for tests and local runs. One enum, so that everything
//! behind it is the same for both.

use std::fmt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Config};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use weft_config::bootstrap as contract;
use weft_config::{Envelope, Prefix, Written};
use weft_runtime::watch::Backoff;

use crate::file::{POLL, version};

/// Connect timeout for the API server.
const CONNECT_MAX: Duration = Duration::from_secs(5);
/// Write timeout for the API server. There is no read timeout: a watch is silent for up to 290 s, and kube's watcher ends
/// one that is silent for longer.
const SEND_MAX: Duration = Duration::from_secs(15);

/// The name of a document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Document {
    /// The index: which namespace an address belongs to.
    Index,
    /// What a namespace exports: services, routes and endpoints.
    Export(Arc<str>),
    /// Policies and consumer routes for the pods of a namespace.
    Inbound(Arc<str>),
    /// The identities of pods whose addresses have a prefix.
    Pods(Prefix),
    /// The roots that are trusted.
    Trust,
}

/// An event of a source.
#[derive(Debug)]
pub(crate) enum Event {
    /// A new or changed document.
    Document(Document, Envelope),
    /// The document does not exist, or was deleted.
    NotFound(Document),
    /// The source is not reachable; it is retried.
    Disconnected(Document, String),
}

/// A source of documents.
#[derive(Clone)]
pub(crate) enum Source {
    /// ConfigMaps, each watched by name.
    Kubernetes(Client),
    /// Files with bodies, one for each document.
    Directory(PathBuf),
}

/// Why there is no client for the API server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("no API server: KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not set")]
    NoServer,
    #[error("the address of the API server cannot be used: {0}")]
    Address(#[source] http::uri::InvalidUri),
    #[error("the API server's CA cannot be read from {}: {source}", path.display())]
    Ca { path: PathBuf, source: rustls::pki_types::pem::Error },
    #[error("no client for the API server: {0}")]
    Client(#[source] Box<kube::Error>),
}

// === impl Source ===

impl Source {
    /// The API server of the pod's cluster, with the token that the injector mounted.
    pub(crate) fn kubernetes() -> Result<Self, Error> {
        let variable = |name| std::env::var(name).map_err(|_| Error::NoServer);
        let (host, port) = (variable("KUBERNETES_SERVICE_HOST")?, variable("KUBERNETES_SERVICE_PORT")?);
        let host = if host.contains(':') { format!("[{host}]") } else { host };
        let mut config = Config::new(format!("https://{host}:{port}").parse().map_err(Error::Address)?);
        let directory = Path::new(contract::TOKEN_DIR);
        let path = directory.join("ca.crt");
        let roots: Vec<Vec<u8>> = CertificateDer::pem_file_iter(&path)
            .and_then(|certificates| certificates.map(|der| der.map(|der| der.to_vec())).collect())
            .map_err(|source| Error::Ca { path, source })?;
        config.root_cert = Some(roots);
        config.connect_timeout = Some(CONNECT_MAX);
        config.write_timeout = Some(SEND_MAX);
        config.auth_info.token_file = Some(directory.join("token").display().to_string());
        Client::try_from(config).map(Self::Kubernetes).map_err(|source| Error::Client(Box::new(source)))
    }

    /// Sends events of a document until the task is aborted.
    pub(crate) fn watch(&self, document: Document, events: mpsc::Sender<Event>) -> JoinHandle<()> {
        match self.clone() {
            Self::Kubernetes(client) => tokio::spawn(watch_config_map(client, document, events)),
            Self::Directory(directory) => tokio::spawn(watch_file(directory, document, events)),
        }
    }
}

async fn watch_config_map(client: Client, document: Document, events: mpsc::Sender<Event>) {
    let namespace = match document {
        Document::Inbound(_) => contract::INBOUND_NAMESPACE,
        Document::Index | Document::Export(_) | Document::Pods(_) | Document::Trust => contract::EXPORT_NAMESPACE,
    };
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    let by_name = watcher::Config::default().fields(&format!("metadata.name={document}"));
    let mut stream = pin!(watcher(api, by_name).backoff(Backoff::default()));
    let mut found = false;
    while let Some(event) = stream.next().await {
        let event = match event {
            Ok(watcher::Event::Init) => {
                found = false;
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                found = true;
                Event::Document(document.clone(), envelope(object))
            }
            Ok(watcher::Event::InitDone) if found => continue,
            Ok(watcher::Event::InitDone | watcher::Event::Delete(_)) => Event::NotFound(document.clone()),
            Ok(watcher::Event::Apply(object)) => Event::Document(document.clone(), envelope(object)),
            Err(error) => Event::Disconnected(document.clone(), error.to_string()),
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

fn envelope(object: ConfigMap) -> Envelope {
    Envelope {
        data: object.data.unwrap_or_default(),
        binary: object.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect(),
    }
}

/// Watches a file. A file has a body only; the header is made up, with a generation that counts the changes.
async fn watch_file(directory: PathBuf, document: Document, events: mpsc::Sender<Event>) {
    let path = directory.join(format!("{document}.json"));
    let mut generation = 0;
    let mut seen = None;
    loop {
        let version = version(&path);
        if seen != Some(version) {
            seen = Some(version);
            let event = match std::fs::read(&path) {
                Err(_) => Event::NotFound(document.clone()),
                Ok(body) => {
                    generation += 1;
                    let namespace = match &document {
                        Document::Index | Document::Trust => String::new(),
                        Document::Export(namespace) | Document::Inbound(namespace) => namespace.to_string(),
                        Document::Pods(_) => document.to_string(),
                    };
                    let written =
                        Written { namespace, generation, config_generation: generation, ..Written::default() };
                    Event::Document(document.clone(), Envelope::pack(written, &body))
                }
            };
            if events.send(event).await.is_err() {
                return;
            }
        }
        tokio::time::sleep(POLL).await;
    }
}

impl fmt::Display for Document {
    /// The name of the document's ConfigMap.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index => f.write_str(contract::INDEX_NAME),
            Self::Trust => f.write_str(contract::TRUST_NAME),
            Self::Export(namespace) => f.write_str(&contract::export_name(namespace)),
            Self::Inbound(namespace) => f.write_str(&contract::inbound_name(namespace)),
            Self::Pods(prefix) => f.write_str(&contract::pods_name(*prefix)),
        }
    }
}
