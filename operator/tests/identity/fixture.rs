//! Replicas of the authority with an API server, and what speaks to them.

#![allow(dead_code, reason = "each test uses its own part")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
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
use weft_identity::{CertificateDer, Fingerprint, TrustBundle, TrustDomain, UnixTime, pem, tls};
use weft_operator::events::Recorder;
use weft_operator::identity::{self, Identity};
use weft_operator::lease::State;
use weft_operator::metrics::{Metrics, ReasonLabel};
use weft_operator::world::Document;
use weft_runtime::readiness::Readiness;

use crate::api::{Api, CONFIG_MAPS, SECRETS};

/// How soon every replica must sign with a new issuer.
pub(crate) const RELOAD_MAX: Duration = Duration::from_secs(10);
/// Lifetime of the certificates of workloads.
const LIFETIME: Duration = Duration::from_secs(86_400);
pub(crate) const OPERATOR: &str = "spiffe://cluster.local/ns/weft-system/sa/weft-operator";

pub(crate) struct Replica {
    pub(crate) address: SocketAddr,
    pub(crate) metrics: Metrics,
    pub(crate) readiness: Readiness,
    pub(crate) lease: watch::Sender<State>,
}

pub(crate) struct Fixture {
    pub(crate) api: Api,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
}

pub(crate) fn domain() -> TrustDomain {
    "cluster.local".parse().expect("a domain")
}

pub(crate) fn leader() -> State {
    State::Leader { epoch: 1, until: tokio::time::Instant::now() + Duration::from_secs(3600) }
}

/// A lease that is renewed all the time, as by a real leader.
pub(crate) fn renew(lease: &watch::Sender<State>, stop: &CancellationToken) {
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

/// `directory`: where the issuer is, if not in its Secret.
pub(crate) async fn replica(
    client: kube::Client,
    state: State,
    directory: Option<&Path>,
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
        directory: directory.map(Path::to_owned),
        domain: domain(),
        own_id: OPERATOR.parse().expect("an id"),
        certificate_lifetime: LIFETIME,
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
pub(crate) async fn fixture(replicas: usize) -> Fixture {
    fixture_at(replicas, None).await
}

/// Replicas whose issuer is in this directory.
pub(crate) async fn fixture_at(replicas: usize, directory: Option<&Path>) -> Fixture {
    let (api, client) = Api::start().await;
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let mut started = Vec::new();
    for number in 0..replicas {
        let state = if number == 0 { leader() } else { State::Standby };
        started.push(replica(client.clone(), state, directory, &stop, &tasks).await);
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
pub(crate) fn bound(namespace: &str, account: &str) -> Value {
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

pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < RELOAD_MAX, "not within {RELOAD_MAX:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(crate) fn base64_field(secret: &Value, field: &str) -> String {
    let secret: k8s_openapi::api::core::v1::Secret = serde_json::from_value(secret.clone()).expect("a Secret");
    String::from_utf8(secret.data.expect("data")[field].0.clone()).expect("text")
}

/// The files of an issuer: of these certificates the first is its own.
pub(crate) fn files_of(
    chain: &[&CertificateDer<'_>],
    key: &Authority,
    roots: &[&Authority],
) -> [(&'static str, String); 3] {
    [
        ("tls.crt", pem::certificates(chain.iter().copied())),
        ("tls.key", pem::private_key(&key.key)),
        ("ca.crt", pem::certificates(roots.iter().map(|root| &root.certificate))),
    ]
}

/// A Secret as a user brings it.
pub(crate) fn secret_of(own: &Authority, roots: &[&Authority]) -> Value {
    secret_with(files_of(&[&own.certificate], own, roots))
}

/// A Secret with these files.
pub(crate) fn secret_with(files: [(&str, String); 3]) -> Value {
    let encode = |text: String| json!(k8s_openapi::ByteString(text.into_bytes()));
    let data: serde_json::Map<String, Value> =
        files.into_iter().map(|(key, text)| (key.to_owned(), encode(text))).collect();
    json!({"metadata": {"name": "weft-issuer", "namespace": "weft-system"}, "type": "kubernetes.io/tls", "data": data})
}

pub(crate) fn new_root() -> Authority {
    Authority::root(&domain(), UnixTime::now()).expect("a root")
}

pub(crate) fn below(root: &Authority) -> Authority {
    root.intermediate(&domain(), UnixTime::now()).expect("an intermediate")
}

/// Status and body of the response to a request over TLS, whose server is verified by a fingerprint of its root.
pub(crate) async fn fetch(
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

pub(crate) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

// === impl Replica ===

impl Replica {
    /// Waits until its server presents a certificate below this root.
    pub(crate) async fn presents(&self, root: Fingerprint) {
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
    pub(crate) async fn root(&self) -> Fingerprint {
        until("a trust document", || self.bundle().is_some()).await;
        self.bundle().and_then(|bundle| bundle.fingerprints(&domain()).next()).expect("a root")
    }

    pub(crate) fn bundle(&self) -> Option<TrustBundle> {
        let document = self.api.get(CONFIG_MAPS, "trust")?;
        let document = Document::from(serde_json::from_value::<k8s_openapi::api::core::v1::ConfigMap>(document).ok()?);
        identity::trust::read(&document)
    }

    /// The generated root, with its key.
    pub(crate) fn generated_root(&self) -> Authority {
        let secret = self.api.get(SECRETS, "weft-root").expect("a Secret");
        let certificate = pem::read_certificates(base64_field(&secret, "tls.crt").as_bytes()).expect("PEM").remove(0);
        let key = pem::read_private_key(base64_field(&secret, "tls.key").as_bytes()).expect("PEM");
        Authority { certificate, key }
    }

    /// Waits until every replica refuses the issuer as it is now, or none does.
    pub(crate) async fn refused(&self, desc: &str, is_refused: bool) {
        for replica in &self.replicas {
            until(desc, || replica.metrics.issuer_refused.get() == i64::from(is_refused)).await;
        }
    }

    /// Asks a replica for a certificate.
    pub(crate) async fn request(
        &self,
        replica: usize,
        root: Fingerprint,
        token: &str,
    ) -> (u16, Result<Answer, String>) {
        let pending = Pending::generate().expect("a key");
        let head = format!("POST /v1/certificates HTTP/1.1\r\nauthorization: Bearer {token}");
        let fetched = fetch(LOOPBACK, self.replicas[replica].address, root, &head, pending.request()).await;
        let (status, body) = fetched.expect("a response");
        (status, serde_json::from_str(&body).map_err(|_| body))
    }

    /// Waits until every replica signs with this issuer.
    pub(crate) async fn signed_by(&self, issuer: &Authority, root: Fingerprint) {
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

    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        tokio::time::timeout(Duration::from_secs(20), self.tasks.wait()).await.expect("all tasks end");
    }
}

pub(crate) fn refusals(fixture: &Fixture, reason: &'static str) -> u64 {
    fixture.replicas[0].metrics.certificates_refused.get_or_create(&ReasonLabel { reason }).get()
}
