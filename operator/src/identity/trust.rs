//! The document with the trust bundle, ConfigMap `weft-config/trust`: what proxies trust, beside what they hold already.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ObjectMeta;
use weft_config::{Envelope, Written, bootstrap};
use weft_crds::names;
use weft_identity::TrustBundle;

use crate::world::Document;

/// The bundle of a document, if it is intact.
pub fn read(document: &Document) -> Option<TrustBundle> {
    document.envelope.read().ok().map(|(_, bundle)| bundle)
}

/// The document to write; `None` if the one found has this bundle already.
pub fn plan(bundle: &TrustBundle, found: Option<&Document>, epoch: u64) -> Option<ConfigMap> {
    let is_same = |found: &&Document| found.labelled && read(found).is_some_and(|found| found == *bundle);
    if found.filter(is_same).is_some() {
        return None;
    }
    let generation = found.and_then(Document::header).map_or(1, |header| header.generation.saturating_add(1));
    let written = Written { generation, config_generation: generation, epoch, ..Written::default() };
    let Envelope { data, binary } = Envelope::write(written, bundle);
    let labels = BTreeMap::from([(names::MANAGED_BY_LABEL.to_owned(), names::MANAGED_BY.to_owned())]);
    Some(ConfigMap {
        metadata: ObjectMeta {
            name: Some(bootstrap::TRUST_NAME.to_owned()),
            namespace: Some(bootstrap::EXPORT_NAMESPACE.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        data: Some(data),
        binary_data: Some(binary.into_iter().map(|(key, bytes)| (key, ByteString(bytes))).collect()),
        immutable: None,
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use weft_identity::authority::Authority;
    use weft_identity::{TrustDomain, UnixTime};

    use super::*;

    #[test]
    fn document_is_written_when_the_roots_differ_and_only_then() {
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let now = UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000));
        let [one, other] = [(); 2].map(|()| Authority::root(&domain, now).unwrap().certificate);
        let bundle = TrustBundle::new(domain.clone(), [one.clone(), other.clone()]).unwrap();
        let first = Document::from(plan(&bundle, None, 3).unwrap());
        assert_eq!(read(&first).as_ref(), Some(&bundle));
        let header = first.header().unwrap();
        assert_eq!((header.generation, header.epoch, header.namespace.as_str()), (1, 3, ""));
        let reordered = TrustBundle::new(domain.clone(), [other, one.clone()]).unwrap();
        assert_eq!(plan(&reordered, Some(&first), 4), None);

        let smaller = TrustBundle::new(domain, [one]).unwrap();
        let second = Document::from(plan(&smaller, Some(&first), 4).unwrap());
        assert_eq!((second.header().unwrap().generation, read(&second)), (2, Some(smaller)));
        let damaged = Document { envelope: Envelope::default(), ..first.clone() };
        assert_eq!(read(&damaged), None);
        assert!(plan(&bundle, Some(&damaged), 4).is_some(), "it is repaired");
        assert!(plan(&bundle, Some(&Document { labelled: false, ..first }), 4).is_some());
    }
}
