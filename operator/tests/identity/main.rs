//! The certificate authority with an API server: three replicas, of which one is the leader, and their servers.

mod api;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use weft_identity::authority::Authority;
use weft_identity::request::{Answer, Pending};
use weft_identity::verify::{Purpose, verify};
use weft_identity::{Fingerprint, SpiffeId, TrustBundle, TrustDomain, UnixTime, pem, tls};
use weft_operator::events::Recorder;
use weft_operator::identity::{self, Identity};
use weft_operator::lease::State;
use weft_operator::metrics::{Metrics, ReasonLabel};
use weft_operator::world::Document;
use weft_runtime::readiness::Readiness;

use api::{Api, CONFIG_MAPS, SECRETS};

/// How soon every replica must sign with a new issuer.
const RELOAD_MAX: Duration = Duration::from_secs(10);
const OPERATOR: &str = "spiffe://cluster.local/ns/weft-system/sa/weft-operator";

struct Replica {
    address: SocketAddr,
    metrics: Metrics,
    readiness: Readiness,
    lease: watch::Sender<State>,
}

struct Fixture {
    api: Api,
    replicas: Vec<Replica>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

fn domain() -> TrustDomain {
    "cluster.local".parse().expect("a domain")
}

fn leader() -> State {
    State::Leader { epoch: 1, until: tokio::time::Instant::now() + Duration::from_secs(3600) }
}

/// A lease that is renewed all the time, as by a real leader.
fn renew(lease: &watch::Sender<State>, stop: &CancellationToken) {
    let (lease, stop) = (lease.clone(), stop.clone());
    tokio::spawn(async move {
        while !stop.is_cancelled() {
            lease.send_if_modified(|state| {
                let leads = state.epoch().is_some();
                *state = if leads { leader() } else { *state };
                leads
            });
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
}

async fn replica(
    client: kube::Client,
    state: State,
    lifetime: Duration,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Replica {
    let metrics = Metrics::register(&mut Registry::default());
    let (lease, leads) = watch::channel(state);
    let readiness = Readiness::default();
    let recorder =
        Recorder::start(client.clone(), "operator".into(), leads.clone(), metrics.clone(), stop.clone(), tasks);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound");
    let identity = Identity {
        client,
        namespace: "weft-system".to_owned(),
        domain: domain(),
        own_id: OPERATOR.parse().expect("an id"),
        certificate_lifetime: lifetime,
        lease: leads,
        recorder,
        metrics: metrics.clone(),
        part: readiness.part("identity"),
        signing: watch::Sender::new(None),
    };
    identity::start(identity, listener, stop, tasks);
    renew(&lease, stop);
    Replica { address, metrics, readiness, lease }
}

/// Replicas of which the first is the leader.
async fn fixture(replicas: usize) -> Fixture {
    let (api, client) = Api::start().await;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let mut started = Vec::new();
    for number in 0..replicas {
        let state = if number == 0 { leader() } else { State::Standby };
        started.push(replica(client.clone(), state, Duration::from_secs(86_400), &stop, &tasks).await);
    }
    api.review("web", bound("shop", "web"));
    let fixture = Fixture { api, replicas: started, stop, tasks };
    let root = fixture.root().await;
    for replica in &fixture.replicas {
        until("every replica is ready", || replica.readiness.is_ready()).await;
        replica.presents(root).await;
    }
    fixture
}

/// The status of a review of a token of this account that is bound to a pod.
fn bound(namespace: &str, account: &str) -> Value {
    json!({
        "authenticated": true,
        "audiences": ["weft-identity"],
        "user": {
            "username": format!("system:serviceaccount:{namespace}:{account}"),
            "extra": {
                "authentication.kubernetes.io/pod-name": ["web-1"],
                "authentication.kubernetes.io/pod-uid": ["5e2b"],
            },
        },
    })
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < RELOAD_MAX, "not within {RELOAD_MAX:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn base64_field(secret: &Value, field: &str) -> String {
    let secret: k8s_openapi::api::core::v1::Secret = serde_json::from_value(secret.clone()).expect("a Secret");
    String::from_utf8(secret.data.expect("data")[field].0.clone()).expect("text")
}

/// A Secret as a user brings it.
fn secret_of(own: &Authority, roots: &[&Authority]) -> Value {
    let data = [
        ("tls.crt", pem::certificates([&own.certificate])),
        ("tls.key", pem::private_key(&own.key)),
        ("ca.crt", pem::certificates(roots.iter().map(|root| &root.certificate))),
    ];
    let encode = |text: String| json!(k8s_openapi::ByteString(text.into_bytes()));
    let data: serde_json::Map<String, Value> =
        data.into_iter().map(|(key, text)| (key.to_owned(), encode(text))).collect();
    json!({"metadata": {"name": "weft-issuer", "namespace": "weft-system"}, "type": "kubernetes.io/tls", "data": data})
}

fn new_root() -> Authority {
    Authority::root(&domain(), UnixTime::now()).expect("a root")
}

fn below(root: &Authority) -> Authority {
    root.intermediate(&domain(), UnixTime::now()).expect("an intermediate")
}

/// Status and body of the response to a request over TLS, whose server is verified by a fingerprint of its root.
async fn fetch(
    from: IpAddr,
    to: SocketAddr,
    root: Fingerprint,
    head: &str,
    body: &[u8],
) -> Result<(u16, String), Box<dyn std::error::Error + Send + Sync>> {
    let trust = tls::Trust::Fingerprints(domain(), [root].into());
    let config = tls::client(trust, OPERATOR.parse()?, None, &[b"http/1.1"])?;
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    let stream = socket.connect(to).await?;
    let name = rustls::pki_types::ServerName::IpAddress(to.ip().into());
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
    let head = format!("{head}\r\nhost: weft-identity\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await?;
    // A server that refuses a body closes before it has read all of it.
    let _ = stream.write_all(body).await;
    let mut response = Vec::new();
    let _ = stream.read_to_end(&mut response).await;
    let response = String::from_utf8(response)?;
    let status = response.split(' ').nth(1).ok_or("no status")?.parse()?;
    Ok((status, response.split("\r\n\r\n").nth(1).unwrap_or_default().to_owned()))
}

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

// === impl Replica ===

impl Replica {
    /// Waits until its server presents a certificate below this root.
    async fn presents(&self, root: Fingerprint) {
        let start = Instant::now();
        while let Err(error) = fetch(LOOPBACK, self.address, root, "GET / HTTP/1.1", b"").await {
            assert!(start.elapsed() < RELOAD_MAX, "{error}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

// === impl Fixture ===

impl Fixture {
    /// The root in the trust document, once it is written.
    async fn root(&self) -> Fingerprint {
        until("a trust document", || self.bundle().is_some()).await;
        self.bundle().and_then(|bundle| bundle.fingerprints(&domain()).next()).expect("a root")
    }

    fn bundle(&self) -> Option<TrustBundle> {
        let document = self.api.get(CONFIG_MAPS, "trust")?;
        let document = Document::from(serde_json::from_value::<k8s_openapi::api::core::v1::ConfigMap>(document).ok()?);
        identity::trust::read(&document)
    }

    /// Asks a replica for a certificate.
    async fn request(&self, replica: usize, root: Fingerprint, token: &str) -> (u16, Result<Answer, String>) {
        let pending = Pending::generate().expect("a key");
        let head = format!("POST /v1/certificates HTTP/1.1\r\nauthorization: Bearer {token}");
        let fetched = fetch(LOOPBACK, self.replicas[replica].address, root, &head, pending.request()).await;
        let (status, body) = fetched.expect("a response");
        (status, serde_json::from_str(&body).map_err(|_| body))
    }

    /// Waits until every replica signs with this issuer.
    async fn signed_by(&self, issuer: &Authority, root: Fingerprint) {
        let start = Instant::now();
        for replica in 0..self.replicas.len() {
            loop {
                let answer = self.request(replica, root, "web").await.1.expect("a certificate");
                let chain = pem::read_certificates(answer.chain.as_bytes()).expect("PEM");
                if chain[1] == issuer.certificate {
                    break;
                }
                assert!(start.elapsed() < RELOAD_MAX, "replica {replica} does not use the new issuer");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(Duration::from_secs(20), self.tasks.wait()).await.expect("all tasks end");
    }
}

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
    let standby = replica(client, State::Standby, Duration::from_secs(86_400), &stop, &tasks).await;
    until("it is ready", || standby.readiness.is_ready()).await;
    assert!(api.get(SECRETS, "weft-issuer").is_none(), "a standby makes none");
    standby.lease.send_replace(leader());
    until("it makes one as the leader", || api.get(SECRETS, "weft-issuer").is_some()).await;
    stop.cancel();
    tasks.close();
    tasks.wait().await;
}

/// Reload matrix: changes of the Secret, each seen by three replicas within 10 s.
#[tokio::test(flavor = "multi_thread")]
async fn issuers_that_users_bring_are_in_use_in_every_replica_after_each_of_20_changes() {
    let fixture = fixture(3).await;
    let generated = fixture.root().await;
    let root = new_root();
    let ours = Fingerprint::of(&root.certificate);

    // The generated root and the user's, then the user's issuer, as for any change of the root.
    let old_root = {
        let secret = fixture.api.get(SECRETS, "weft-root").expect("a Secret");
        let certificate = pem::read_certificates(base64_field(&secret, "tls.crt").as_bytes()).expect("PEM").remove(0);
        let key = pem::read_private_key(base64_field(&secret, "tls.key").as_bytes()).expect("PEM");
        Authority { certificate, key }
    };
    let first = below(&old_root);
    fixture.api.put(SECRETS, "weft-issuer", Some(secret_of(&first, &[&old_root, &root])));
    fixture.signed_by(&first, generated).await;
    until("both roots are trusted", || {
        fixture.bundle().is_some_and(|bundle| bundle.fingerprints(&domain()).any(|root| root == ours))
    })
    .await;

    for number in 0..20 {
        let issuer = below(&root);
        let secret = secret_of(&issuer, &[&old_root, &root]);
        if number % 2 == 1 {
            fixture.api.put(SECRETS, "weft-issuer", None);
        }
        fixture.api.put(SECRETS, "weft-issuer", Some(secret));
        for replica in &fixture.replicas {
            replica.presents(ours).await;
        }
        fixture.signed_by(&issuer, ours).await;
    }
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn secret_that_cannot_be_used_is_told_and_changes_nothing() {
    let fixture = fixture(3).await;
    let root = fixture.root().await;
    let good = fixture.api.get(SECRETS, "weft-issuer").expect("a Secret");
    let stranger = new_root();
    let (one, other) = (below(&stranger), below(&stranger));
    let mixed = Authority { certificate: one.certificate, key: other.key };
    for (desc, secret, expected) in [
        ("an invalid pair", Some(secret_of(&mixed, &[&stranger])), "that of the private key"),
        ("another root", Some(secret_of(&below(&stranger), &[&stranger])), "IssuerNotYetTrusted: tls.crt"),
    ] {
        fixture.api.put(SECRETS, "weft-issuer", secret);
        for replica in &fixture.replicas {
            until(desc, || replica.metrics.issuer_refused.get() == 1).await;
            assert!(replica.readiness.is_ready(), "{desc}: the last good one is in use");
            assert!(replica.readiness.detail().contains("weft-system/weft-issuer refused"), "{desc}");
        }
        until(desc, || fixture.api.events().iter().any(|event| event.contains(expected))).await;
        for replica in 0..3 {
            assert_eq!(fixture.request(replica, root, "web").await.0, 200, "{desc}");
        }
        fixture.api.put(SECRETS, "weft-issuer", Some(good.clone()));
        for replica in &fixture.replicas {
            until(desc, || replica.metrics.issuer_refused.get() == 0).await;
        }
    }
    until("recovery is told", || fixture.api.events().iter().any(|event| event.starts_with("IssuerAccepted"))).await;
    assert!(fixture.api.events().iter().all(|event| !event.contains("PRIVATE")));
    fixture.end().await;
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
    fixture.end().await;
}

/// The lease changes with each renewal, which must not postpone the next attempt.
#[tokio::test(flavor = "multi_thread")]
async fn installation_goes_on_when_the_api_server_is_back() {
    let (api, client) = Api::start().await;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    api.set_read_only(true);
    let replica = replica(client, leader(), Duration::from_secs(60), &stop, &tasks).await;
    until("a failed write", || api.refused_writes() > 0).await;
    assert!(!replica.readiness.is_ready(), "{}", replica.readiness.detail());
    api.set_read_only(false);
    until("it is ready", || replica.readiness.is_ready()).await;
    Fixture { api, replicas: vec![replica], stop, tasks }.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn id_08_tokens_that_prove_no_pod_get_no_certificate_not_even_over_loopback() {
    let fixture = fixture(1).await;
    let root = fixture.root().await;
    let mut audience = bound("shop", "web");
    audience["audiences"] = json!(["https://kubernetes.default.svc"]);
    let mut unbound = bound("shop", "web");
    unbound["user"]["extra"] = json!({});
    let mut node = bound("shop", "web");
    node["user"]["username"] = json!("system:node:node-1");
    let refused = |error: &str| json!({"authenticated": false, "error": error});
    for (token, status) in [
        ("other-audience", audience),
        ("legacy", unbound),
        ("node", node),
        ("expired", refused("token has expired")),
        ("deleted-pod", refused("pod \"web-1\" not found")),
    ] {
        fixture.api.review(token, status);
    }
    for (token, status, reason, expected) in [
        ("unknown", 401, "token", "invalid bearer token"),
        ("expired", 401, "token", "token has expired"),
        ("deleted-pod", 401, "token", "not found"),
        ("other-audience", 401, "audience", "not for the audience weft-identity"),
        ("legacy", 403, "not-a-pod", "not bound to a pod"),
        ("node", 403, "not-an-account", "system:node:node-1"),
        ("", 401, "no-token", "Authorization: Bearer"),
    ] {
        let before = refusals(&fixture, reason);
        let (found, answer) = fixture.request(0, root, token).await;
        let error = answer.expect_err("no certificate");
        assert_eq!(found, status, "{token}: {error}");
        assert!(error.starts_with("{\"error\":") && error.contains(expected), "{token}: {error}");
        assert_eq!(refusals(&fixture, reason), before + 1, "{token}");
    }
    assert_eq!(fixture.replicas[0].metrics.certificates_issued.get(), 0);
    fixture.end().await;
}

fn refusals(fixture: &Fixture, reason: &'static str) -> u64 {
    fixture.replicas[0].metrics.certificates_refused.get_or_create(&ReasonLabel { reason }).get()
}

#[tokio::test(flavor = "multi_thread")]
async fn id_08_answer_of_the_api_server_is_used_again_but_an_error_never() {
    let fixture = fixture(1).await;
    let root = fixture.root().await;
    fixture.api.set_down(true);
    let (status, answer) = fixture.request(0, root, "web").await;
    assert_eq!((status, answer.is_err()), (503, true), "no API server, no certificate");
    fixture.api.set_down(false);
    let before = fixture.api.reviewed();
    for _ in 0..3 {
        assert_eq!(fixture.request(0, root, "web").await.0, 200);
    }
    assert_eq!(fixture.api.reviewed(), before + 1);
    for _ in 0..3 {
        assert_eq!(fixture.request(0, root, "unknown").await.0, 401);
    }
    assert_eq!(fixture.api.reviewed(), before + 4, "a refusal is not kept");
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn id_09_requests_decide_nothing_but_the_key() {
    let fixture = fixture(1).await;
    let root = fixture.root().await;
    let address = fixture.replicas[0].address;
    let head = "POST /v1/certificates HTTP/1.1\r\nauthorization: Bearer web";
    let good = Pending::generate().expect("a key").request().to_vec();
    let mut forged = good.clone();
    *forged.last_mut().expect("bytes") ^= 1;
    for (desc, body, expected) in [
        ("nothing", vec![], 400),
        ("no proof of possession", forged, 400),
        ("16 KiB and one byte", vec![0; 16 * 1024 + 1], 413),
        ("16 MiB", vec![0; 16 << 20], 413),
    ] {
        let (status, error) = fetch(LOOPBACK, address, root, head, &body).await.expect("a response");
        assert_eq!(status, expected, "{desc}: {error}");
        assert!(error.contains("\"error\""), "{desc}: {error}");
    }
    // Another identity, a CA and a lifetime of years are asked for; the token decides.
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = rcgen::CertificateParams::default();
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.subject_alt_names =
        vec![rcgen::SanType::URI("spiffe://cluster.local/ns/kube-system/sa/admin".try_into().expect("ASCII"))];
    let request = params.serialize_request(&key).expect("a request");
    fixture.api.review("cart", bound("shop", "cart"));
    for account in ["web", "cart"] {
        let head = format!("POST /v1/certificates HTTP/1.1\r\nauthorization: bearer {account}");
        let (status, body) = fetch(LOOPBACK, address, root, &head, request.der()).await.expect("a response");
        assert_eq!(status, 200, "{body}");
        let answer: Answer = serde_json::from_str(&body).expect("an answer");
        let chain = pem::read_certificates(answer.chain.as_bytes()).expect("PEM");
        let now = UnixTime::now();
        let peer = verify(&chain, &answer.bundle, Purpose::Server, now).expect("valid: no CA");
        let expected: SpiffeId = format!("spiffe://cluster.local/ns/shop/sa/{account}").parse().expect("an id");
        assert_eq!(peer.id, expected, "the same key for two accounts");
        let (_, leaf) = x509_parser::parse_x509_certificate(&chain[0]).expect("a certificate");
        let life = leaf.validity().not_after.timestamp() - i64::try_from(now.as_secs()).expect("a time");
        assert!((86_300..=86_400).contains(&life), "{life} s");
    }
    for (head, expected) in [
        ("GET /v1/certificates HTTP/1.1\r\nauthorization: Bearer web", 405),
        ("POST / HTTP/1.1\r\nauthorization: Bearer web", 404),
        ("POST /v1/certificates HTTP/1.1\r\nauthorization: Basic web", 401),
        ("POST /v1/certificates HTTP/1.1\r\nauthorization: Bearer web\r\nauthorization: Bearer cart", 401),
        ("POST /v1/certificates HTTP/1.1", 401),
    ] {
        assert_eq!(fetch(LOOPBACK, address, root, head, &good).await.expect("a response").0, expected, "{head}");
    }
    let long = format!("POST /v1/certificates HTTP/1.1\r\nauthorization: Bearer {}", "x".repeat(64 * 1024));
    let refused = fetch(LOOPBACK, address, root, &long, &good).await;
    assert!(refused.is_err() || refused.is_ok_and(|(status, _)| status == 431), "a head of 64 KiB");
    fixture.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_one_account_delays_no_other() {
    let fixture = Arc::new(fixture(1).await);
    let root = fixture.root().await;
    fixture.api.review("cart", bound("shop", "cart"));
    let address = fixture.replicas[0].address;
    let stop = CancellationToken::new();
    let mut flood = Vec::new();
    // Ten pods of one account, each with as many connections as it may have, and more.
    for pod in 0..10 {
        for _ in 0..12 {
            let stop = stop.clone();
            flood.push(tokio::spawn(async move {
                let from = IpAddr::V4(Ipv4Addr::new(127, 0, 1, pod));
                let head = "POST /v1/certificates HTTP/1.1\r\nauthorization: Bearer web";
                let body = Pending::generate().expect("a key").request().to_vec();
                let mut statuses = Vec::new();
                while !stop.is_cancelled() {
                    statuses.extend(fetch(from, address, root, head, &body).await.ok().map(|(status, _)| status));
                }
                statuses
            }));
        }
    }
    until("the flood is on", || fixture.replicas[0].metrics.certificates_issued.get() > 100).await;
    let mut longest = Duration::ZERO;
    for _ in 0..20 {
        let start = Instant::now();
        assert_eq!(fixture.request(0, root, "cart").await.0, 200);
        longest = longest.max(start.elapsed());
    }
    stop.cancel();
    let mut statuses = Vec::new();
    for task in flood {
        statuses.extend(task.await.expect("no panic"));
    }
    assert!(longest < Duration::from_secs(2), "{longest:?}, on a machine that is busy with the flood itself");
    assert!(refusals(&fixture, "connections") > 0, "one address has a share of the connections");
    assert!(statuses.iter().all(|status| [200, 429].contains(status)), "{statuses:?}");
    let fixture = Arc::into_inner(fixture).expect("the only one");
    fixture.end().await;
}
