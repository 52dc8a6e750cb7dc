//! The document with the trust bundle, ConfigMap `weft-config/trust`: what proxies trust, beside what they hold already.
//! It is signed with a key that the issuer certifies: a proxy takes it if that leads to a root that it holds.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::ObjectMeta;
use weft_config::{Envelope, Written, bootstrap};
use weft_crds::names;
use weft_identity::{CertificateDer, Root, TrustBundle, TrustDomain, UnixTime};

use crate::render;
use crate::signing::Signing;
use crate::world::{Document, Mesh};

/// The bundle of a document, if it is intact.
pub fn read(document: &Document) -> Option<TrustBundle> {
    document.envelope.read().ok().map(|(_, bundle)| bundle)
}

/// The roots of the Mesh. If one of them cannot be read, those in use: the last good ones are among them.
pub fn further_roots(
    mesh: Option<&Mesh>,
    in_use: Option<&TrustBundle>,
    domain: &TrustDomain,
) -> Vec<CertificateDer<'static>> {
    let Some(mesh) = mesh else { return Vec::new() };
    let read = mesh.spec.as_ref().ok().and_then(|spec| {
        let texts = spec.roots().iter().map(|text| Root::read(text).ok());
        Some(texts.collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
    });
    let last_good = || in_use.map(|bundle| bundle.roots(domain).to_vec()).unwrap_or_default();
    let roots: Vec<Root> = read.unwrap_or_else(last_good);
    roots.iter().map(|root| root.certificate().clone()).collect()
}

/// The document to write; `None` if the one found has this bundle already, and a signature under this issuer.
pub fn plan(
    bundle: &TrustBundle,
    signing: &Signing,
    found: Option<&Document>,
    epoch: u64,
    now: UnixTime,
) -> Option<ConfigMap> {
    let header = found.and_then(Document::header);
    let is_same = |found: &&Document| {
        found.labelled
            && read(found).is_some_and(|found| found == *bundle)
            && header.as_ref().is_some_and(|header| signing.has_signed(bootstrap::TRUST_NAME, header, now))
    };
    if found.filter(is_same).is_some() {
        return None;
    }
    let generation = render::next_generation(header.map_or(0, |header| header.generation), now.as_secs() * 1000);
    let written = Written { generation, config_generation: generation, epoch, ..Written::default() };
    let sign = |message: &[u8]| signing.sign(message);
    let Envelope { data, binary } = Envelope::write_signed(written, bundle, bootstrap::TRUST_NAME, sign);
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
    use std::collections::BTreeSet;
    use std::time::Duration;

    use serde_json::{Value, json};
    use weft_identity::authority::Authority;
    use weft_identity::sign::Signature;
    use weft_identity::{SpiffeId, pem};

    use super::*;
    use crate::identity::secret::{self, Issuing};
    use crate::world::objects::RawMeshObject;

    const NOW: u64 = 1_800_000_000;

    fn at(seconds: u64) -> UnixTime {
        UnixTime::since_unix_epoch(Duration::from_secs(seconds))
    }

    fn domain() -> TrustDomain {
        "cluster.local".parse().unwrap()
    }

    fn own_id() -> SpiffeId {
        "spiffe://cluster.local/ns/weft-system/sa/weft-operator".parse().unwrap()
    }

    fn new_root() -> Authority {
        Authority::root(&domain(), at(NOW)).unwrap()
    }

    /// A new issuer below a root.
    fn below(root: &Authority) -> Authority {
        root.intermediate(&domain(), at(NOW)).unwrap()
    }

    /// An issuer in use with these roots, of which the first is above it.
    fn issuing(issuer: &Authority, roots: &[&Authority]) -> Issuing {
        let mut secret = secret::issuer(roots[0], issuer, None);
        let roots = pem::certificates(roots.iter().map(|root| &root.certificate));
        secret.data.get_or_insert_default().insert("ca.crt".to_owned(), ByteString(roots.into_bytes()));
        secret::read_issuer(&secret, &domain(), at(NOW)).unwrap()
    }

    fn plan_at(issuing: &Issuing, found: Option<&Document>, seconds: u64) -> Option<Document> {
        let signing = Signing::new(&issuing.issuer, &issuing.bundle, &own_id(), at(seconds)).unwrap();
        plan(&issuing.bundle, &signing, found, 4, at(seconds)).map(Document::from)
    }

    #[test]
    fn document_is_written_when_roots_or_issuer_differ_and_only_then() {
        let (one, other) = (new_root(), new_root());
        let issuer = below(&one);
        let both = issuing(&issuer, &[&one, &other]);
        let first = plan_at(&both, None, NOW).unwrap();
        assert_eq!(read(&first).as_ref(), Some(&both.bundle));
        let header = first.header().unwrap();
        assert_eq!((header.generation, header.epoch, header.namespace.as_str()), (NOW * 1000, 4, ""));
        assert!(plan_at(&both, Some(&first), NOW).is_none(), "the same");
        let reordered = issuing(&issuer, &[&one, &other, &one]);
        assert!(plan_at(&reordered, Some(&first), NOW).is_none(), "the same roots");

        let renewed = issuing(&below(&one), &[&one, &other]);
        let second = plan_at(&renewed, Some(&first), NOW).unwrap();
        assert_eq!(second.header().unwrap().generation, NOW * 1000 + 1, "another issuer");
        let smaller = issuing(&below(&one), &[&one]);
        let third = plan_at(&smaller, Some(&second), NOW).unwrap();
        assert_eq!(read(&third), Some(smaller.bundle.clone()), "a root less");
        let again = plan_at(&smaller, None, NOW + 60).unwrap();
        assert!(again.header().unwrap().generation > third.header().unwrap().generation, "deleted and restored");
        for (desc, found) in [
            ("damaged", Document { envelope: Envelope::default(), ..third.clone() }),
            ("without its label", Document { labelled: false, ..third.clone() }),
            ("unsigned", Document { envelope: Envelope::write(Written::default(), &smaller.bundle), ..third.clone() }),
        ] {
            assert!(plan_at(&smaller, Some(&found), NOW).is_some(), "{desc}: it is repaired");
        }
    }

    #[test]
    fn roots_of_a_mesh_that_cannot_be_read_are_those_in_use() {
        let [ours, further, new] = [(); 3].map(|()| new_root());
        let in_use = TrustBundle::new(domain(), [&ours, &further].map(|root| root.certificate.clone())).unwrap();
        let text = |root: &Authority| pem::certificates([&root.certificate]);
        let mesh = |roots: Value| -> Mesh {
            let object = json!({"metadata": {"name": "weft"}, "spec": {"trust": {"roots": roots}}});
            serde_json::from_value::<RawMeshObject<weft_crds::Mesh>>(object).unwrap().read()
        };
        for (desc, mesh, expected) in [
            ("no Mesh", None, vec![]),
            ("no roots", Some(mesh(json!([]))), vec![]),
            ("roots", Some(mesh(json!([text(&further), text(&new)]))), vec![&further, &new]),
            ("one is none", Some(mesh(json!([text(&new), "x"]))), vec![&ours, &further]),
            ("no list", Some(mesh(json!("x"))), vec![&ours, &further]),
        ] {
            let sorted = |certificates: Vec<CertificateDer<'static>>| {
                certificates.iter().map(|certificate| certificate.to_vec()).collect::<BTreeSet<_>>()
            };
            let expected = expected.into_iter().map(|root| root.certificate.clone()).collect();
            let found = further_roots(mesh.as_ref(), Some(&in_use), &domain());
            assert_eq!(sorted(found), sorted(expected), "{desc}");
        }
    }

    #[test]
    fn document_is_signed_by_the_operator_under_the_root_of_its_issuer() {
        let (one, other) = (new_root(), new_root());
        let both = issuing(&below(&one), &[&one, &other]);
        let header = plan_at(&both, None, NOW).unwrap().header().unwrap();
        let signature: Signature = header.signature.parse().unwrap();
        let verify = |root: &Authority, name: &str| {
            let bundle = TrustBundle::new(domain(), [root.certificate.clone()]).unwrap();
            signature.verify(&header.signed_bytes(name), &own_id(), &bundle, at(NOW))
        };
        assert_eq!(verify(&one, "trust"), Ok(()));
        assert!(verify(&other, "trust").is_err(), "a root that did not sign");
        assert!(verify(&one, "index").is_err(), "a copy under another name");
    }
}
