//! The roots of the mesh, by a watch of the operator's trust document. Each new pod gets the fingerprints of the roots
//! that are trusted when it is created; all further trust of its proxy follows from them. A document that cannot be
//! used changes nothing.

use std::collections::BTreeSet;

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use weft_config::bootstrap::{EXPORT_NAMESPACE, TRUST_NAME};
use weft_config::{DecodeError, Envelope};
use weft_identity::{Fingerprint, TrustBundle, TrustDomain};
use weft_runtime::readiness::Part;
use weft_runtime::watch::Backoff;

/// Why a document is rejected.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("it has no root of trust domain {0}")]
    NoRoots(TrustDomain),
}

/// Watches the document, and sends the fingerprints of the roots of a trust domain to `sender`, for ever. `part` is
/// ready when there are some.
pub async fn follow(client: Client, domain: TrustDomain, sender: watch::Sender<BTreeSet<Fingerprint>>, part: Part) {
    let documents: Api<ConfigMap> = Api::namespaced(client, EXPORT_NAMESPACE);
    // By name, so that the role can be limited to this one ConfigMap.
    let config = Config::default().fields(&format!("metadata.name={TRUST_NAME}"));
    part.report(false, &format!("waiting for the operator to create ConfigMap {EXPORT_NAMESPACE}/{TRUST_NAME}"));
    follow_events(watcher(documents, config).backoff(Backoff::default()), &domain, sender, part).await;
}

async fn follow_events(
    events: impl Stream<Item = Result<Event<ConfigMap>, watcher::Error>>,
    domain: &TrustDomain,
    sender: watch::Sender<BTreeSet<Fingerprint>>,
    part: Part,
) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        let has_roots = !sender.borrow().is_empty();
        let problem = match event {
            Ok(Event::Apply(document) | Event::InitApply(document)) => match read(document, domain) {
                Ok(roots) => {
                    let text = list(&roots);
                    if *sender.borrow() != roots {
                        tracing::info!(roots = text, "new pods begin with these roots");
                    }
                    sender.send_replace(roots);
                    part.report(true, &text);
                    continue;
                }
                Err(error) => format!("rejected: {error}"),
            },
            Ok(Event::Delete(_)) => "deleted".to_owned(),
            Ok(Event::Init | Event::InitDone) => continue,
            Err(error) => {
                tracing::warn!(%error, "the trust document cannot be watched");
                if !has_roots {
                    part.report(
                        false,
                        &format!("ConfigMap {EXPORT_NAMESPACE}/{TRUST_NAME} cannot be watched: {error}"),
                    );
                }
                continue;
            }
        };
        let in_use = if has_roots { list(&sender.borrow()) } else { "there are none yet".to_owned() };
        tracing::error!(problem, in_use, "the trust document cannot be used, the last roots stay in use");
        part.report(has_roots, &format!("ConfigMap {EXPORT_NAMESPACE}/{TRUST_NAME} {problem}; in use: {in_use}"));
    }
}

fn read(document: ConfigMap, domain: &TrustDomain) -> Result<BTreeSet<Fingerprint>, Error> {
    let binary = document.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect();
    let (_, bundle) = Envelope { data: document.data.unwrap_or_default(), binary }.read::<TrustBundle>()?;
    let roots: BTreeSet<_> = bundle.fingerprints(domain).collect();
    if roots.is_empty() { Err(Error::NoRoots(domain.clone())) } else { Ok(roots) }
}

fn list(roots: &BTreeSet<Fingerprint>) -> String {
    roots.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use weft_config::Written;
    use weft_identity::UnixTime;
    use weft_identity::authority::Authority;
    use weft_runtime::readiness::Readiness;

    use super::*;

    fn document(domain: &TrustDomain, root: &Authority) -> ConfigMap {
        let bundle = TrustBundle::new(domain.clone(), [root.certificate.clone()]).unwrap();
        let Envelope { data, .. } = Envelope::write(Written::default(), &bundle);
        ConfigMap { data: Some(data), ..ConfigMap::default() }
    }

    #[tokio::test]
    async fn last_good_roots_stay_in_use() {
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let [first, second] = [(); 2].map(|()| Authority::root(&domain, UnixTime::now()).unwrap());
        let fingerprint = |root: &Authority| Fingerprint::of(&root.certificate);
        let mut edited = document(&domain, &second);
        edited.data.as_mut().unwrap().insert("body".to_owned(), "{}".to_owned());
        let (sender, roots) = watch::channel(BTreeSet::new());
        let readiness = Readiness::default();
        let part = readiness.part("trust");
        for (desc, event, expected, detail) in [
            ("edited", Event::Apply(edited.clone()), None, "rejected: the body's hash"),
            ("first", Event::Apply(document(&domain, &first)), Some(&first), "trust: ready"),
            ("edited later", Event::Apply(edited), Some(&first), "rejected: the body's hash"),
            ("deleted", Event::Delete(document(&domain, &first)), Some(&first), "deleted; in use: "),
            (
                "of another trust domain",
                Event::Apply(document(&"other".parse().unwrap(), &second)),
                Some(&first),
                "no root of trust domain cluster.local",
            ),
            ("second", Event::Apply(document(&domain, &second)), Some(&second), "trust: ready"),
        ] {
            follow_events(stream::iter([Ok(event)]), &domain, sender.clone(), part.clone()).await;
            assert_eq!(*roots.borrow(), expected.map(fingerprint).into_iter().collect(), "{desc}");
            assert_eq!(readiness.is_ready(), expected.is_some(), "{desc}");
            assert!(readiness.detail().contains(detail), "{desc}: {}", readiness.detail());
        }
    }
}
