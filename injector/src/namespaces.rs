//! Labels and annotations of namespaces, by a watch. A namespace that was created a moment ago may not have reached the
//! watch yet: it is then read from the API server, with a short deadline, because an admission review waits for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client};
use tokio::sync::{Semaphore, watch};
use weft_runtime::readiness::Part;
use weft_runtime::watch::Backoff;

use crate::namespace::Namespace;
use crate::refusal::Refusal;
use crate::settings::ServerVersion;

/// Deadline of a lookup. The API server's timeout for the whole review is a few seconds.
const DEADLINE: Duration = Duration::from_secs(2);
/// Concurrent lookups. Further ones wait, within the deadline.
const LOOKUPS_MAX: usize = 16;
/// Maximum number of bytes in a namespace's name (RFC 1123).
const NAME_MAX: usize = 63;

type Meta = PartialObjectMeta<v1::Namespace>;

/// The namespaces of the cluster. Clones share the store.
#[derive(Clone)]
pub struct Namespaces {
    store: Store<Meta>,
    client: Client,
    lookups: Arc<Semaphore>,
}

// === impl Namespaces ===

impl Namespaces {
    /// Reads from the store, and through the client what is not in it.
    pub fn new(store: Store<Meta>, client: Client) -> Self {
        Self { store, client, lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)) }
    }

    /// Finds the labels and annotations of a namespace.
    pub async fn find(&self, name: &str) -> Result<Namespace, Refusal> {
        let unknown = |why: &str| Refusal::NamespaceUnknown { namespace: name.to_owned(), why: why.to_owned() };
        // The name becomes part of a URL path, and clients other than the API server can call the webhook.
        if !is_dns_label(name) {
            let why = "it is not a valid name".to_owned();
            return Err(Refusal::NamespaceUnknown { namespace: "…".to_owned(), why });
        }
        if let Some(meta) = self.store.get(&ObjectRef::new(name)) {
            return Ok(namespace(&meta));
        }
        let lookup = async {
            let _permit = self.lookups.acquire().await;
            Api::<Meta>::all(self.client.clone()).get(name).await
        };
        match tokio::time::timeout(DEADLINE, lookup).await {
            Ok(Ok(meta)) => Ok(namespace(&meta)),
            Ok(Err(error)) => Err(unknown(&error.to_string())),
            Err(_) => Err(unknown("the API server did not answer in time")),
        }
    }
}

/// Watches the namespaces and reads the API server's version, for ever. The version is read again whenever the watch is
/// re-established, as after a restart of the API server.
pub async fn follow(
    client: Client,
    writer: reflector::store::Writer<Meta>,
    version: watch::Sender<Option<ServerVersion>>,
    part: Part,
) {
    let api: Api<Meta> = Api::all(client.clone());
    let events = watcher(api, Config::default()).backoff(Backoff::default()).reflect(writer);
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::InitDone) => match read_version(&client).await {
                Ok(read) => {
                    part.report(true, &format!("API server {read}"));
                    version.send_replace(Some(read));
                }
                Err(why) => {
                    tracing::warn!(why, "the version of the API server cannot be read");
                    part.report(version.borrow().is_some(), &why);
                }
            },
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(%error, "namespaces cannot be watched");
                part.report(version.borrow().is_some(), &format!("namespaces cannot be watched: {error}"));
            }
        }
    }
}

async fn read_version(client: &Client) -> Result<ServerVersion, String> {
    let info = client.apiserver_version().await.map_err(|error| error.to_string())?;
    ServerVersion::parse(&info.major, &info.minor).ok_or_else(|| {
        format!("the API server reports the version {:?}.{:?}, which is invalid", info.major, info.minor)
    })
}

fn namespace(meta: &Meta) -> Namespace {
    let map = |map: &Option<BTreeMap<String, String>>| map.clone().unwrap_or_default();
    Namespace {
        name: meta.metadata.name.clone().unwrap_or_default(),
        labels: map(&meta.metadata.labels),
        annotations: map(&meta.metadata.annotations),
    }
}

/// Whether a name is a DNS label (RFC 1123), as a namespace's name is.
fn is_dns_label(name: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    bytes.len() <= NAME_MAX
        && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
        && bytes.first().is_some_and(|byte| inner(*byte))
        && bytes.last().is_some_and(|byte| inner(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_dns_labels_are_namespace_names() {
        for (name, good) in [
            ("shop", true),
            ("shop-2", true),
            ("", false),
            ("-", false),
            ("a-", false),
            ("Shop", false),
            ("..", false),
            ("a/secrets/b", false),
            ("a?b", false),
            ("a%2fb", false),
        ] {
            assert_eq!(is_dns_label(name), good, "{name:?}");
        }
        assert!(!is_dns_label(&"a".repeat(64)));
    }
}
