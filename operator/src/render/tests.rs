use std::net::SocketAddr;

use weft_config::{Endpoint, Service, ServicePort};
use weft_identity::authority::Authority;
use weft_identity::issue::Issuer;
use weft_identity::sign::Signature;
use weft_identity::{SpiffeId, TrustBundle, TrustDomain};

use super::*;

const NOW: u64 = 1_800_000_000_000;

/// Without signatures.
fn plan(
    namespace: &str,
    body: Body,
    requires: BTreeMap<String, u64>,
    published: Option<&Published>,
    found: Option<&Document>,
    epoch: u64,
    now_ms: u64,
) -> Plan {
    super::plan(namespace, body, requires, published, found, &Writer { epoch, now_ms, signing: None })
}

fn export(service: &str, endpoints: u8) -> Body {
    let endpoint = |n| -> Endpoint {
        let address = SocketAddr::from(([10, 0, 0, n], 80));
        serde_json::from_value(serde_json::json!({"address": address})).unwrap()
    };
    let port = ServicePort { port: 80, endpoints: (0..endpoints).map(endpoint).collect(), ..ServicePort::default() };
    let service = Service { name: service.into(), ports: vec![port], ..Service::default() };
    Body::Export(Export { services: vec![service] })
}

fn found(published: &Published) -> Document {
    let version = "5".to_owned();
    Document { version, revision: 5, labelled: true, envelope: published.envelope.clone(), ..Document::default() }
}

fn write(plan: Plan) -> (Published, bool) {
    match plan {
        Plan::Write { next, repair } => (*next, repair),
        other => panic!("{other:?}"),
    }
}

fn first() -> Published {
    write(plan("shop", export("web", 1), BTreeMap::new(), None, None, 3, NOW)).0
}

#[test]
fn unchanged_document_is_not_written() {
    let first = first();
    assert_eq!((first.written.generation, first.written.config_generation, first.written.epoch), (NOW, NOW, 3));
    let again = plan("shop", export("web", 1), BTreeMap::new(), Some(&first), Some(&found(&first)), 4, NOW + 9);
    assert_eq!(again, Plan::Keep, "also for another writer, later");
    let adopted = Published::adopt(DocumentKind::Export, "shop", &found(&first));
    assert_eq!(adopted, Some(first), "and after a restart");
}

#[test]
fn config_generation_is_kept_when_only_endpoints_change() {
    let first = first();
    let (second, repair) =
        write(plan("shop", export("web", 2), BTreeMap::new(), Some(&first), Some(&found(&first)), 3, NOW + 9));
    assert_eq!((second.written.generation, second.written.config_generation, repair), (NOW + 9, NOW, false));
    let (third, _) =
        write(plan("shop", export("api", 2), BTreeMap::new(), Some(&second), Some(&found(&second)), 3, NOW + 20));
    assert_eq!((third.written.generation, third.written.config_generation), (NOW + 20, NOW + 20));
}

#[test]
fn config_generation_is_kept_when_only_pod_labels_change() {
    let inbound = |role: &str, dependency: &str| {
        let labels = BTreeMap::from([("role".to_owned(), role.to_owned())]);
        let relabelled = BTreeMap::from([("u-1".to_owned(), labels)]);
        Body::Inbound(Inbound { relabelled, dependencies: vec![dependency.to_owned()], ..Inbound::default() })
    };
    let (first, _) = write(plan("shop", inbound("a", "bank"), BTreeMap::new(), None, None, 3, NOW));
    let (second, _) =
        write(plan("shop", inbound("b", "bank"), BTreeMap::new(), Some(&first), Some(&found(&first)), 3, NOW + 9));
    assert_eq!((second.written.generation, second.written.config_generation), (NOW + 9, NOW));
    let (third, _) =
        write(plan("shop", inbound("b", "post"), BTreeMap::new(), Some(&second), Some(&found(&second)), 3, NOW + 20));
    assert_eq!((third.written.generation, third.written.config_generation), (NOW + 20, NOW + 20));
}

#[test]
fn generations_grow_when_the_clock_goes_back() {
    let first = first();
    let (second, _) =
        write(plan("shop", export("api", 1), BTreeMap::new(), Some(&first), Some(&found(&first)), 3, NOW - 60_000));
    assert_eq!((second.written.generation, second.written.config_generation), (NOW + 1, NOW + 1));
    let mut damaged = found(&first);
    damaged.envelope.data.remove("body");
    assert_eq!(Published::adopt(DocumentKind::Export, "shop", &damaged), None);
    let (repaired, _) = write(plan("shop", export("web", 1), BTreeMap::new(), None, Some(&damaged), 3, NOW - 60_000));
    assert_eq!(
        repaired.written.generation,
        NOW + 1,
        "the generation comes from the header even if the body is damaged"
    );
}

#[test]
fn generation_far_in_the_future_is_ignored() {
    let far = Published {
        written: Written { generation: u64::MAX, config_generation: u64::MAX, ..first().written },
        ..first()
    };
    let far = Published { envelope: far.body.envelope(far.written.clone(), |_| String::new()), ..far };
    let (next, _) = write(plan("shop", export("web", 1), BTreeMap::new(), None, Some(&found(&far)), 3, NOW));
    assert_eq!((next.written.generation, next.written.config_generation), (NOW, NOW));
}

#[test]
fn damaged_document_is_repaired_with_a_larger_generation() {
    type Edit = fn(&mut Document);
    let first = first();
    let edits: [(&str, Edit); 6] = [
        ("body", |d| *d.envelope.data.get_mut("body").unwrap() = "{}".into()),
        ("header", |d| {
            let header = d.envelope.data.get_mut("header").unwrap();
            *header = header.replace("\"epoch\":3", "\"epoch\":4");
        }),
        ("another key", |d| drop(d.envelope.data.insert("note".into(), "hello".into()))),
        ("emptied", |d| d.envelope = Envelope::default()),
        ("label", |d| d.labelled = false),
        ("immutable", |d| d.immutable = true),
    ];
    for (desc, edit) in edits {
        let mut document = found(&first);
        edit(&mut document);
        let (next, repair) =
            write(plan("shop", export("web", 1), BTreeMap::new(), Some(&first), Some(&document), 3, NOW + 5));
        assert!(repair, "{desc}");
        assert_eq!((next.written.generation, next.written.config_generation), (NOW + 5, NOW), "{desc}");
    }
    let (next, repair) = write(plan("shop", export("web", 1), BTreeMap::new(), Some(&first), None, 3, NOW));
    assert!(repair, "deleted");
    assert_eq!(next.written.generation, NOW + 1);
}

#[test]
fn required_generations_are_updated_only_with_a_write() {
    let requires = |generation| BTreeMap::from([("bank".to_owned(), generation)]);
    let first = write(plan("shop", export("web", 1), requires(7), None, None, 3, NOW)).0;
    let moved = plan("shop", export("web", 1), requires(8), Some(&first), Some(&found(&first)), 3, NOW + 1);
    assert_eq!(moved, Plan::Keep, "pods of another namespace do not rewrite this one");
    let (next, _) = write(plan("shop", export("api", 1), requires(8), Some(&first), Some(&found(&first)), 3, NOW + 1));
    assert_eq!(next.written.requires, requires(8));
}

#[test]
fn document_above_the_size_limit_is_not_written() {
    // Names that do not compress.
    let name = |n: u64| format!("{:x}", n.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(17) ^ n);
    let services = |count| {
        Body::Export(Export {
            services: (0..count)
                .map(|n| Service { name: (0..4).map(|part| name(n * 4 + part)).collect(), ..Service::default() })
                .collect(),
        })
    };
    let first = first();
    assert!(matches!(plan("shop", services(1_000), BTreeMap::new(), Some(&first), None, 3, NOW), Plan::Write { .. }));
    let Plan::TooLarge { bytes, limit } = plan("shop", services(60_000), BTreeMap::new(), Some(&first), None, 3, NOW)
    else {
        panic!("it fits");
    };
    assert_eq!(limit, OBJECT_BYTES_MAX);
    assert!(bytes > limit);
}

/// CP-09: by RBAC, for each namespace.
#[test]
fn a_namespace_may_read_its_own_private_document_only() {
    let role = role("shop");
    let rule = &role.rules.as_ref().unwrap()[0];
    assert_eq!(rule.resource_names.as_deref(), Some(["i.shop".to_owned()].as_slice()));
    assert_eq!(rule.verbs, ["get", "list", "watch"]);
    let binding = role_binding("shop");
    assert_eq!(binding.subjects.unwrap()[0].name, "system:serviceaccounts:shop");
    assert_eq!(binding.role_ref.name, "i.shop");
}

#[test]
fn documents_are_signed_again_when_the_issuer_changes_and_only_then() {
    let domain: TrustDomain = "cluster.local".parse().unwrap();
    let now = UnixTime::since_unix_epoch(Duration::from_millis(NOW));
    let root = Authority::root(&domain, now).unwrap();
    let bundle = TrustBundle::new(domain.clone(), [root.certificate.clone()]).unwrap();
    let id: SpiffeId = "spiffe://cluster.local/ns/weft-system/sa/weft-operator".parse().unwrap();
    let issuer = || {
        let pair = root.intermediate(&domain, now).unwrap();
        Issuer::new(&[pair.certificate], &pair.key, domain.clone(), &bundle, now).unwrap()
    };
    let (one, other) = (issuer(), issuer());
    let signing = |issuer: &Issuer| Signing::new(issuer, &bundle, &id, now).unwrap();
    let plan = |published: &Published, found: &Document, signing: &Signing| {
        let writer = Writer { epoch: 3, now_ms: NOW + 1, signing: Some(signing) };
        super::plan("shop", export("web", 1), BTreeMap::new(), Some(published), Some(found), &writer)
    };
    let unsigned = first();
    let (signed, repair) = write(plan(&unsigned, &found(&unsigned), &signing(&one)));
    assert_eq!((repair, signed.written.config_generation), (false, NOW), "the configuration is the same");
    let header = Header::read(&signed.envelope).unwrap();
    let signature: Signature = header.signature.parse().unwrap();
    assert_eq!(signature.verify(&header.signed_bytes("x.shop"), &id, &bundle, now), Ok(()));

    assert_eq!(plan(&signed, &found(&signed), &signing(&one)), Plan::Keep, "another replica, the same issuer");
    let adopted = Published::adopt(DocumentKind::Export, "shop", &found(&signed)).unwrap();
    assert_eq!(plan(&adopted, &found(&signed), &signing(&one)), Plan::Keep, "and after a restart");
    let (again, _) = write(plan(&signed, &found(&signed), &signing(&other)));
    assert_ne!(Header::read(&again.envelope).unwrap().signature, header.signature);

    let mut forged = found(&signed);
    let text = forged.envelope.data.get_mut("header").unwrap();
    *text = text.replace("\"epoch\":3", "\"epoch\":4");
    let adopted = Published::adopt(DocumentKind::Export, "shop", &forged).unwrap();
    assert!(matches!(plan(&adopted, &forged, &signing(&one)), Plan::Write { .. }), "an edit breaks the signature");
}
