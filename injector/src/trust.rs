//! The trust domain and the roots of the mesh, by a watch of the operator's trust document. Each new pod gets the domain, and
//! the fingerprints of the roots that are trusted when it is created; all further trust of its proxy follows from them. A document that cannot be
//! used changes nothing.

use futures_util::{Stream, StreamExt};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use weft_config::bootstrap::{EXPORT_NAMESPACE, TRUST_NAME};
use weft_config::{DecodeError, Envelope};
use weft_crds::names::OPERATOR_ACCOUNT;
use weft_identity::{SpiffeId, TrustBundle, id};
use weft_runtime::readiness::Part;
use weft_runtime::watch::Backoff;

use crate::settings::Trust;

/// Why a document is rejected.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Decode(#[from] DecodeError),
    #[error("it has more than one trust domain")]
    SeveralDomains,
    #[error("the operator has no identity in it")]
    Operator(#[from] id::Error),
}

/// Watches the document, and sends whom new pods trust to `sender`, for ever: the authority is the operator in this
/// namespace. `part` is ready when there is a root.
pub async fn follow(client: Client, namespace: String, sender: watch::Sender<Option<Trust>>, part: Part) {
    let documents: Api<ConfigMap> = Api::namespaced(client, EXPORT_NAMESPACE);
    // By name, so that the role can be limited to this one ConfigMap.
    let config = Config::default().fields(&format!("metadata.name={TRUST_NAME}"));
    part.report(false, &format!("waiting for the operator to create ConfigMap {EXPORT_NAMESPACE}/{TRUST_NAME}"));
    follow_events(watcher(documents, config).backoff(Backoff::default()), &namespace, sender, part).await;
}

async fn follow_events(
    events: impl Stream<Item = Result<Event<ConfigMap>, watcher::Error>>,
    namespace: &str,
    sender: watch::Sender<Option<Trust>>,
    part: Part,
) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        let has_roots = sender.borrow().is_some();
        let problem = match event {
            Ok(Event::Apply(document) | Event::InitApply(document)) => match read(document, namespace) {
                Ok(trust) => {
                    let text = list(&trust);
                    if sender.send_if_modified(|sent| sent.replace(trust.clone()).as_ref() != Some(&trust)) {
                        tracing::info!(roots = text, "new pods begin with these roots");
                    }
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
        let in_use = sender.borrow().as_ref().map_or_else(|| "there are none yet".to_owned(), list);
        tracing::error!(problem, in_use, "the trust document cannot be used, the last roots stay in use");
        part.report(has_roots, &format!("ConfigMap {EXPORT_NAMESPACE}/{TRUST_NAME} {problem}; in use: {in_use}"));
    }
}

fn read(document: ConfigMap, namespace: &str) -> Result<Trust, Error> {
    let binary = document.binary_data.unwrap_or_default().into_iter().map(|(key, bytes)| (key, bytes.0)).collect();
    let (_, bundle) = Envelope { data: document.data.unwrap_or_default(), binary }.read::<TrustBundle>()?;
    let domain = bundle.only_domain().ok_or(Error::SeveralDomains)?.clone();
    let authority = SpiffeId::new(domain.clone(), namespace, OPERATOR_ACCOUNT)?;
    Ok(Trust { roots: bundle.fingerprints(&domain).collect(), domain, authority })
}

fn list(trust: &Trust) -> String {
    let roots: Vec<String> = trust.roots.iter().map(ToString::to_string).collect();
    format!("{} of {}", roots.join(", "), trust.domain)
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use serde_json::json;
    use weft_config::Written;
    use weft_identity::authority::Authority;
    use weft_identity::{Fingerprint, TrustDomain, UnixTime, pem};
    use weft_runtime::readiness::Readiness;

    use super::*;

    fn document(domain: &TrustDomain, root: &Authority) -> ConfigMap {
        let bundle = TrustBundle::new(domain.clone(), [root.certificate.clone()]).unwrap();
        let Envelope { data, .. } = Envelope::write(Written::default(), &bundle);
        ConfigMap { data: Some(data), ..ConfigMap::default() }
    }

    #[tokio::test]
    async fn last_good_trust_stays_in_use() {
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let [first, second] = [(); 2].map(|()| Authority::root(&domain, UnixTime::now()).unwrap());
        let fingerprint = |root: &Authority| Fingerprint::of(&root.certificate);
        let mut edited = document(&domain, &second);
        edited.data.as_mut().unwrap().insert("body".to_owned(), "{}".to_owned());
        let mut several = document(&domain, &second);
        let root = pem::certificates([&second.certificate]);
        let bundle: TrustBundle =
            serde_json::from_value(json!({ "domains": { "one": [root.clone()], "two": [root] } })).unwrap();
        several.data = Some(Envelope::write(Written::default(), &bundle).data);
        let (sender, trust) = watch::channel(None);
        let readiness = Readiness::default();
        let part = readiness.part("trust");
        for (desc, event, expected, detail) in [
            ("edited", Event::Apply(edited.clone()), None, "rejected: the body's hash"),
            ("first", Event::Apply(document(&domain, &first)), Some(&first), "trust: ready"),
            ("edited later", Event::Apply(edited), Some(&first), "rejected: the body's hash"),
            ("deleted", Event::Delete(document(&domain, &first)), Some(&first), "deleted; in use: "),
            ("of several trust domains", Event::Apply(several), Some(&first), "more than one trust domain"),
            ("second", Event::Apply(document(&domain, &second)), Some(&second), "trust: ready"),
        ] {
            follow_events(stream::iter([Ok(event)]), "weft-system", sender.clone(), part.clone()).await;
            let expected_trust = expected.map(|root| Trust {
                domain: domain.clone(),
                authority: "spiffe://cluster.local/ns/weft-system/sa/weft-operator".parse().unwrap(),
                roots: [fingerprint(root)].into(),
            });
            assert_eq!(*trust.borrow(), expected_trust, "{desc}");
            assert_eq!(readiness.is_ready(), expected.is_some(), "{desc}");
            assert!(readiness.detail().contains(detail), "{desc}: {}", readiness.detail());
        }
        let other: TrustDomain = "other.example".parse().unwrap();
        let restarted = stream::iter([Ok(Event::Apply(document(&other, &first)))]);
        follow_events(restarted, "weft-system", sender, part).await;
        assert_eq!(trust.borrow().as_ref().map(|trust| &trust.domain), Some(&other), "the mesh started over");
    }
}
