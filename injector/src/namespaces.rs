//! What is known of namespaces: their labels and annotations, watched. A namespace that was made a moment ago may not have
//! reached the watch yet; then it is asked for, with a short deadline, since somebody waits for the answer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use k8s_openapi::api::core::v1;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client};
use tokio::sync::{Semaphore, watch};
use weft_runtime::readiness::Part;
use weft_runtime::watch::backoff;

use crate::decide::{Namespace, Refusal};
use crate::settings::ServerVersion;

/// The API server gives the whole review a few seconds.
const DEADLINE: Duration = Duration::from_secs(2);
/// Questions at once. More wait, within the deadline.
const QUESTIONS_MAX: usize = 16;
/// Bytes of a namespace's name, by RFC 1123.
const NAME_MAX: usize = 63;

type Meta = PartialObjectMeta<v1::Namespace>;

/// Cloning shares what is known.
#[derive(Clone)]
pub struct Namespaces {
    store: Store<Meta>,
    client: Client,
    questions: Arc<Semaphore>,
}

// === impl Namespaces ===

impl Namespaces {
    /// Knows what is in the store, and asks the client for the rest.
    pub fn new(store: Store<Meta>, client: Client) -> Self {
        Self { store, client, questions: Arc::new(Semaphore::new(QUESTIONS_MAX)) }
    }

    /// Labels and annotations of a namespace.
    pub async fn find(&self, name: &str) -> Result<Namespace, Refusal> {
        let unknown = |why: &str| Refusal::NamespaceUnknown { namespace: name.to_owned(), why: why.to_owned() };
        // The name becomes part of a path, and whoever calls the webhook need not be the API server.
        if !is_label(name) {
            return Err(Refusal::NamespaceUnknown { namespace: "…".to_owned(), why: "it is no name".to_owned() });
        }
        if let Some(meta) = self.store.get(&ObjectRef::new(name)) {
            return Ok(namespace(&meta));
        }
        let ask = async {
            let _permit = self.questions.acquire().await;
            Api::<Meta>::all(self.client.clone()).get(name).await
        };
        match tokio::time::timeout(DEADLINE, ask).await {
            Ok(Ok(meta)) => Ok(namespace(&meta)),
            Ok(Err(error)) => Err(unknown(&error.to_string())),
            Err(_) => Err(unknown("the API server did not answer in time")),
        }
    }
}

/// Follows the namespaces and the version of the server, for ever. The version is read anew whenever the watch begins
/// anew, as it does after the server was restarted.
pub async fn follow(
    client: Client,
    writer: reflector::store::Writer<Meta>,
    version: watch::Sender<Option<ServerVersion>>,
    part: Part,
) {
    let api: Api<Meta> = Api::all(client.clone());
    let events = watcher(api, Config::default()).backoff(watcher::ExponentialBackoff::from(backoff())).reflect(writer);
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
    ServerVersion::parse(&info.major, &info.minor)
        .ok_or_else(|| format!("the API server calls itself {:?}.{:?}, which is no version", info.major, info.minor))
}

fn namespace(meta: &Meta) -> Namespace {
    let map = |map: &Option<BTreeMap<String, String>>| map.clone().unwrap_or_default();
    Namespace {
        name: meta.metadata.name.clone().unwrap_or_default(),
        labels: map(&meta.metadata.labels),
        annotations: map(&meta.metadata.annotations),
    }
}

/// Whether a text can be a namespace's name.
fn is_label(name: &str) -> bool {
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
    fn names_that_can_be_in_a_path() {
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
            assert_eq!(is_label(name), good, "{name:?}");
        }
        assert!(!is_label(&"a".repeat(64)));
    }
}
