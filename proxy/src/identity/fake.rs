//! A certificate authority for tests: the one of the operator without Kubernetes. It issues to one identity, for the
//! token [`TOKEN`].

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::sign::SingleCertAndKey;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use weft_identity::authority::Authority as Pair;
use weft_identity::issue::Issuer;
use weft_identity::request::{self, Answer, Pending, PublicKey};
use weft_identity::signer::Signer;
use weft_identity::{Fingerprint, SpiffeId, TrustBundle, TrustDomain, UnixTime, pem, tls};

/// The token that is accepted.
pub(crate) const TOKEN: &str = "eyJ-the-token-of-this-pod";
/// The identity of the authority.
pub(crate) const OPERATOR: &str = "spiffe://cluster.local/ns/weft-system/sa/weft-operator";
/// The identity of the pod.
pub(crate) const POD: &str = "spiffe://cluster.local/ns/shop/sa/web";

/// A root with an issuer below it.
pub(crate) struct Root {
    pub(crate) root: Pair,
    issuer: Pair,
    made: UnixTime,
}

/// How the authority behaves.
#[derive(Clone)]
pub(crate) struct Behaviour {
    /// Who it says it is.
    pub(crate) own_id: SpiffeId,
    /// To whom it issues.
    pub(crate) issued_id: SpiffeId,
    /// Lifetime of what it issues.
    pub(crate) lifetime: Duration,
    /// What its clock says; None for the time of the machine.
    pub(crate) now: Option<Duration>,
    /// What it answers instead of a certificate: status and message.
    pub(crate) refusal: Option<(u16, String)>,
    /// The roots that it answers with.
    pub(crate) bundle: TrustBundle,
}

/// A running authority.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    behaviour: Arc<Mutex<Behaviour>>,
    /// The requests that it has received, DER.
    received: Arc<Mutex<Vec<Vec<u8>>>>,
    server: tokio::task::JoinHandle<()>,
}

pub(crate) fn domain() -> TrustDomain {
    "cluster.local".parse().expect("a trust domain")
}

pub(crate) fn id(text: &str) -> SpiffeId {
    text.parse().expect("an id")
}

/// The time of the machine.
pub(crate) fn machine_time() -> Duration {
    Duration::from_secs(UnixTime::now().as_secs())
}

/// A file with a token.
pub(crate) fn token_file(name: &str, token: &str) -> PathBuf {
    let file = std::env::temp_dir().join(format!("weft-token-{name}-{}", std::process::id()));
    std::fs::write(&file, token).expect("written");
    file
}

// === impl Root ===

impl Root {
    /// A root and an issuer that are made at this time.
    pub(crate) fn at(made: Duration) -> Self {
        let made = UnixTime::since_unix_epoch(made);
        let root = Pair::root(&domain(), made).expect("a root");
        let issuer = root.intermediate(&domain(), made).expect("an issuer");
        Self { root, issuer, made }
    }

    /// Made now.
    pub(crate) fn new() -> Self {
        Self::at(machine_time())
    }

    /// A bundle of roots.
    pub(crate) fn bundle(roots: &[&Self]) -> TrustBundle {
        let certificates = roots.iter().map(|root| root.root.certificate.clone());
        TrustBundle::new(domain(), certificates).expect("roots")
    }

    /// Its fingerprint, as a pod gets it.
    pub(crate) fn fingerprints(&self) -> BTreeSet<Fingerprint> {
        [Fingerprint::of(&self.root.certificate)].into()
    }

    pub(crate) fn issuer(&self) -> Issuer {
        let (chain, bundle) = ([self.issuer.certificate.clone()], Self::bundle(&[self]));
        Issuer::new(&chain, &self.issuer.key, domain(), &bundle, self.made).expect("an issuer")
    }

    /// Signs a document as `signer`.
    pub(crate) fn sign(&self, signer: &str, message: &[u8]) -> String {
        Signer::new(&self.issuer(), &id(signer), self.made).expect("a signer").sign(message).to_string()
    }
}

// === impl Behaviour ===

impl Behaviour {
    /// As the operator does it.
    pub(crate) fn new(root: &Root) -> Self {
        Self {
            own_id: id(OPERATOR),
            issued_id: id(POD),
            lifetime: Duration::from_secs(86_400),
            now: None,
            refusal: None,
            bundle: Root::bundle(&[root]),
        }
    }
}

// === impl Fake ===

impl Fake {
    /// Serves on a free port, under a root.
    pub(crate) async fn start(root: &Root, behaviour: Behaviour) -> Self {
        Self::start_at((Ipv4Addr::LOCALHOST, 0).into(), root, behaviour).await
    }

    /// Serves on an address.
    pub(crate) async fn start_at(address: SocketAddr, root: &Root, behaviour: Behaviour) -> Self {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let pending = Pending::generate().expect("a key");
        let key = request::read(pending.request()).expect("a request");
        let issuer = Arc::new(root.issuer());
        let lifetime = Duration::from_secs(86_400);
        let own = issuer.issue(&key, &behaviour.own_id, root.made, lifetime).expect("a certificate");
        let chain = [&own.chain[..], std::slice::from_ref(issuer.root())].concat();
        let certificate = SingleCertAndKey::from(pending.certified(chain).expect("its key"));
        let acceptor = TlsAcceptor::from(Arc::new(tls::authority_server(Arc::new(certificate)).expect("a server")));
        let (behaviour, received) = (Arc::new(Mutex::new(behaviour)), Arc::new(Mutex::new(Vec::new())));
        let (behaves, receives) = (behaviour.clone(), received.clone());
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, issuer, behaves, receives) =
                    (acceptor.clone(), issuer.clone(), behaves.clone(), receives.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let service = service_fn(|request: Request<Incoming>| async {
                        let token = request.headers()["authorization"].to_str().unwrap_or_default().to_owned();
                        let body = request.into_body().collect().await.expect("a body").to_bytes();
                        receives.lock().expect("no panic").push(body.to_vec());
                        let behaviour = behaves.lock().expect("no panic").clone();
                        let (status, body) = answer(&issuer, &behaviour, &token, &body);
                        let response = Response::builder().status(status).body(Full::new(Bytes::from(body)));
                        Ok::<_, Infallible>(response.expect("a response"))
                    });
                    drop(http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service).await);
                });
            }
        });
        Self { address, behaviour, received, server }
    }

    /// Its URL.
    pub(crate) fn url(&self) -> String {
        format!("https://{}/v1/certificates", self.address)
    }

    /// Changes its behaviour.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock().expect("no panic"));
    }

    /// How many requests it has received.
    pub(crate) fn requests(&self) -> usize {
        self.received.lock().expect("no panic").len()
    }

    /// The keys for which certificates were requested.
    pub(crate) fn keys(&self) -> Vec<PublicKey> {
        let received = self.received.lock().expect("no panic");
        received.iter().map(|request| request::read(request).expect("a request")).collect()
    }

    /// Ends it.
    pub(crate) async fn stop(self) -> SocketAddr {
        self.server.abort();
        let _ = self.server.await;
        self.address
    }
}

fn answer(issuer: &Issuer, behaviour: &Behaviour, authorization: &str, body: &[u8]) -> (u16, String) {
    let Behaviour { issued_id, lifetime, now, refusal, bundle, .. } = behaviour;
    let refuse = |status: u16, error: &str| (status, serde_json::json!({ "error": error }).to_string());
    if let Some((status, error)) = refusal {
        return refuse(*status, error);
    }
    if authorization != format!("Bearer {TOKEN}") {
        return refuse(401, "the token is not accepted");
    }
    let Ok(key) = request::read(body) else { return refuse(400, "no request") };
    match issuer.issue(&key, issued_id, UnixTime::since_unix_epoch(now.unwrap_or_else(machine_time)), *lifetime) {
        Ok(issued) => {
            let answer = Answer { chain: pem::certificates(&issued.chain), bundle: bundle.clone() };
            (200, serde_json::to_string(&answer).expect("JSON"))
        }
        Err(error) => refuse(503, &error.to_string()),
    }
}
