//! What the authority makes by itself, and what becomes of it.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_config::{Envelope, Written};
use weft_identity::authority::Authority;
use weft_identity::verify::{Purpose, verify};
use weft_identity::{Fingerprint, TrustBundle, TrustDomain, UnixTime, pem};
use weft_operator::lease::State;

use crate::api::{Api, CONFIG_MAPS, MESHES, SECRETS};
use crate::fixture::{Fixture, base64_field, domain, fixture, leader, new_root, replica, until};

#[tokio::test(flavor = "multi_thread")]
async fn first_installation_makes_one_root_and_all_replicas_sign() {
    let fixture = fixture(3).await;
    let root = fixture.root().await;
    for replica in 0..3 {
        let (status, answer) = fixture.request(replica, root, "web").await;
        let answer = answer.expect("a certificate");
        let chain = pem::read_certificates(answer.chain.as_bytes()).expect("PEM");
        assert_eq!((status, chain.len(), Some(&answer.bundle)), (200, 2, fixture.bundle().as_ref()));
        let peer = verify(&chain, &answer.bundle, Purpose::Client, UnixTime::now()).expect("valid");
        assert_eq!(peer.id.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
        assert_eq!(fixture.replicas[replica].metrics.certificates_issued.get(), 1);
    }
    let issuer = fixture.api.get(SECRETS, "weft-issuer").expect("a Secret");
    let root_secret = fixture.api.get(SECRETS, "weft-root").expect("a Secret");
    assert_eq!(issuer["type"], "kubernetes.io/tls");
    assert_eq!(base64_field(&issuer, "ca.crt"), base64_field(&root_secret, "tls.crt"));
    let config_map = fixture.api.get(CONFIG_MAPS, "trust").expect("a ConfigMap").to_string();
    assert!(!config_map.contains("PRIVATE"), "{config_map}");
    assert!(fixture.api.events().is_empty(), "{:?}", fixture.api.events());
    fixture.end().await;
}

/// Otherwise an upgrade from a version without an authority never ends: its operator leads until the new one is ready.
#[tokio::test(flavor = "multi_thread")]
async fn standby_is_ready_before_the_leader_has_made_an_issuer() {
    let (api, client) = Api::start().await;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let standby = replica(client, State::Standby, None, &stop, &tasks).await;
    until("it is ready", || standby.readiness.is_ready()).await;
    assert!(api.get(SECRETS, "weft-issuer").is_none(), "a standby makes none");
    standby.lease.send_replace(leader());
    until("it makes one as the leader", || api.get(SECRETS, "weft-issuer").is_some()).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_objects_come_back_from_the_generated_root() {
    let fixture = fixture(2).await;
    let root = fixture.root().await;
    let first = base64_field(&fixture.api.get(SECRETS, "weft-issuer").expect("a Secret"), "tls.crt");
    fixture.api.put(SECRETS, "weft-issuer", None);
    let next = || fixture.api.get(SECRETS, "weft-issuer").map(|secret| base64_field(&secret, "tls.crt"));
    until("another issuer", || next().is_some_and(|next| next != first)).await;
    assert_eq!(fixture.request(0, root, "web").await.0, 200);
    fixture.api.put(CONFIG_MAPS, "trust", None);
    assert_eq!(fixture.root().await, root, "the trust document is written again");
    let mut damaged = fixture.api.get(CONFIG_MAPS, "trust").expect("a ConfigMap");
    damaged["data"] = json!({});
    fixture.api.put(CONFIG_MAPS, "trust", Some(damaged));
    assert_eq!(fixture.root().await, root, "and repaired");
    // A standby that becomes the leader goes on with what there is.
    fixture.replicas[0].lease.send_replace(State::Standby);
    fixture.replicas[1].lease.send_replace(leader());
    fixture.api.put(SECRETS, "weft-issuer", None);
    until("an issuer of the new leader", || next().is_some()).await;
    assert_eq!(fixture.root().await, root);
    assert!(fixture.api.events().is_empty(), "there was nothing to tell: {:?}", fixture.api.events());
    fixture.end().await;
}

/// The lease changes with each renewal, which must not postpone the next attempt.
#[tokio::test(flavor = "multi_thread")]
async fn installation_goes_on_when_the_api_server_is_back() {
    let (api, client) = Api::start().await;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    api.set_read_only(true);
    let replica = replica(client, leader(), None, &stop, &tasks).await;
    until("a failed write", || api.refused_writes() > 0).await;
    assert!(!replica.readiness.is_ready(), "{}", replica.readiness.detail());
    api.set_read_only(false);
    until("it is ready", || replica.readiness.is_ready()).await;
    Fixture { api, replicas: vec![replica], stop, tasks }.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn roots_of_the_mesh_are_trusted_and_a_list_with_a_wrong_one_changes_nothing() {
    let fixture = fixture(2).await;
    let root = fixture.root().await;
    let [further, other] = [(); 2].map(|()| new_root());
    let text = |root: &Authority| pem::certificates([&root.certificate]);
    let put = |roots: Value| {
        let mesh = json!({"metadata": {"name": "weft"}, "spec": {"trust": {"roots": roots}}});
        fixture.api.put(MESHES, "weft", Some(mesh));
    };
    let trusts = |roots: &[Fingerprint]| {
        let found = fixture.bundle().map(|bundle| bundle.fingerprints(&domain()).collect::<BTreeSet<_>>());
        found == Some(roots.iter().copied().collect())
    };
    let both = [root, Fingerprint::of(&further.certificate)];
    put(json!([text(&further)]));
    until("both roots are in the document", || trusts(&both)).await;
    let (_, answer) = fixture.request(0, root, "web").await;
    assert_eq!(answer.ok().map(|answer| answer.bundle), fixture.bundle(), "and in the answers of the authority");
    put(json!([text(&other), "x"]));
    // The next round of the leader writes the document again.
    fixture.api.put(CONFIG_MAPS, "trust", None);
    until("the same roots again", || trusts(&both)).await;
    put(json!([]));
    until("the root of the issuer alone", || trusts(&[root])).await;
    fixture.end().await;
}

/// The trust document of another trust domain.
fn of_another_domain() -> Value {
    let other: TrustDomain = "other.example".parse().expect("a domain");
    let root = Authority::root(&other, UnixTime::now()).expect("a root");
    let bundle = TrustBundle::new(other, [root.certificate]).expect("a bundle");
    let Envelope { data, .. } = Envelope::write(Written::default(), &bundle);
    json!({"metadata": {"name": "trust", "namespace": "weft-config"}, "data": data})
}

#[tokio::test(flavor = "multi_thread")]
async fn replica_stops_if_another_trust_domain_is_in_force() {
    let (api, client) = Api::start().await;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let written = of_another_domain();
    api.put(CONFIG_MAPS, "trust", Some(written.clone()));
    let _replica = replica(client, leader(), None, &stop, &tasks).await;
    until("it stops", || stop.is_cancelled()).await;
    assert_eq!(api.get(CONFIG_MAPS, "trust").expect("a ConfigMap")["data"], written["data"], "it overwrites nothing");
    assert!(api.get(SECRETS, "weft-root").is_none(), "and makes no root");
    tasks.close();
    tasks.wait().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn leader_repairs_a_document_in_which_somebody_changed_the_trust_domain() {
    let fixture = fixture(1).await;
    let root = fixture.root().await;
    fixture.api.put(CONFIG_MAPS, "trust", Some(of_another_domain()));
    until("the document is repaired", || {
        fixture.bundle().is_some_and(|bundle| bundle.only_domain() == Some(&domain()))
    })
    .await;
    assert_eq!(fixture.root().await, root);
    assert!(!fixture.stop.is_cancelled());
    fixture.end().await;
}
