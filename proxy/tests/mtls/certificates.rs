//! Certificates of another library, as an attacker or a wrong authority might make them, before proxies that run: none
//! is accepted from a client or from a server, and no byte of a request passes.

use std::io;

use rcgen::{
    BasicConstraints, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer as Signer, KeyUsagePurpose,
    SanType,
};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::ServerSessionMemoryCache;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, HandshakeKind};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_identity::tls::{self, Trust};

use super::*;

/// A root, and an intermediate that signs.
struct Company {
    root: CertificateDer<'static>,
    intermediate: CertificateDer<'static>,
    issuer: Signer<'static, KeyPair>,
    bundle: Arc<TrustBundle>,
}

/// What a peer presents, and whom it may claim to be.
type Presented = Arc<SingleCertAndKey>;

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("a name"))
}

fn params_of_ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn params_of(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![uri(id)];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn presented(chain: Vec<CertificateDer<'static>>, key: &KeyPair) -> Presented {
    let key = any_supported_type(&PrivatePkcs8KeyDer::from(key.serialize_der()).into()).expect("a key");
    Arc::new(CertifiedKey::new(chain, key).into())
}

/// The dates of a certificate that expired a minute ago, or is valid from in a minute on.
fn dated(params: &mut CertificateParams, from: i64, to: i64) {
    let now = i64::try_from(UnixTime::now().as_secs()).expect("a time");
    let date = |offset| rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs((now + offset) as u64);
    (params.not_before, params.not_after) = (date(from), date(to));
}

// === impl Company ===

impl Company {
    fn new(change: impl Fn(&mut CertificateParams)) -> Self {
        let (root_params, root_key) = (params_of_ca("root"), KeyPair::generate().expect("a key"));
        let root: CertificateDer<'static> = root_params.self_signed(&root_key).expect("signed").into();
        let signer = Signer::new(root_params, root_key);
        let (mut params, key) = (params_of_ca("intermediate"), KeyPair::generate().expect("a key"));
        change(&mut params);
        let intermediate = params.signed_by(&key, &signer).expect("signed").into();
        let bundle = TrustBundle::new("cluster.local".parse().expect("a domain"), [root.clone()]).expect("a bundle");
        Self { root, intermediate, issuer: Signer::new(params, key), bundle: Arc::new(bundle) }
    }

    fn leaf(&self, id: &str, change: impl Fn(&mut CertificateParams)) -> Presented {
        let (mut params, key) = (params_of(id), KeyPair::generate().expect("a key"));
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).expect("signed").into();
        presented(vec![leaf, self.intermediate.clone()], &key)
    }

    /// A folder with an identity for a proxy.
    fn identity(&self, id: &str) -> PathBuf {
        let (folder, key) = (folder(), KeyPair::generate().expect("a key"));
        let leaf: CertificateDer<'static> = params_of(id).signed_by(&key, &self.issuer).expect("signed").into();
        write(&folder, "tls.crt", &pem::certificates(&[leaf, self.intermediate.clone()]));
        write(&folder, "tls.key", &key.serialize_pem());
        write(&folder, "bundle.json", &serde_json::to_string(&*self.bundle).expect("JSON"));
        folder
    }

    /// The configuration of a client of `web` that presents this.
    fn client(&self, own: Presented) -> ClientConfig {
        let trust = Trust::Bundle(self.bundle.clone());
        tls::client(trust, WEB.parse().expect("an id"), Some(own), &[b"weft-http/1.1"]).expect("a configuration")
    }
}

/// Sends a request to a proxy's inbound port. Returns the response, and whether the handshake was a full one.
async fn request(config: &Arc<ClientConfig>, address: SocketAddr) -> io::Result<(String, HandshakeKind)> {
    let name = ServerName::from(std::net::IpAddr::from([127, 0, 0, 1]));
    let connector = TlsConnector::from(config.clone());
    let mut stream = connector.connect(name, TcpStream::connect(address).await?).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    tokio::time::timeout(TIMEOUT, stream.read_to_string(&mut answer)).await??;
    Ok((answer, stream.get_ref().1.handshake_kind().expect("a whole handshake")))
}

/// A server that presents certificates that are given to it, and keeps what it receives.
struct Impostor {
    address: SocketAddr,
    presents: Arc<Mutex<Presented>>,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Impostor {
    async fn start(company: &Company) -> Self {
        let presents = Arc::new(Mutex::new(company.leaf(WEB, |_| {})));
        let received = Arc::new(Mutex::new(Vec::new()));
        let (shared, bundle, receives) = (presents.clone(), company.bundle.clone(), received.clone());
        let (address, _) = raw_application(move |stream| {
            let own = shared.lock().expect("not poisoned").clone();
            let config = tls::mutual_server(bundle.clone(), own, &[b"weft-http/1.1"]).expect("a configuration");
            let received = receives.clone();
            async move {
                let Ok(mut stream) = TlsAcceptor::from(Arc::new(config)).accept(stream).await else { return };
                let mut bytes = [0; 1024];
                // One request: the next is to see another certificate.
                let Ok(read @ 1..) = stream.read(&mut bytes).await else { return };
                received.lock().expect("not poisoned").extend(&bytes[..read]);
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
            }
        })
        .await;
        Self { address, presents, received }
    }
}

/// ID-01, ID-02, ID-03, ID-06: each certificate is refused in both directions, except that one for servers only is a
/// server's, and one for clients only a client's.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_prove_no_identity_are_refused_from_clients_and_from_servers() {
    use ExtendedKeyUsagePurpose::{Any, ClientAuth, CodeSigning, ServerAuth};
    use KeyUsagePurpose::{DigitalSignature, KeyCertSign, KeyEncipherment};
    /// In which direction a certificate is accepted.
    const NEVER: (bool, bool) = (false, false);
    let company = Company::new(|_| {});
    let leaf = |change: &dyn Fn(&mut CertificateParams)| company.leaf(WEB, change);
    let named = |names: &[SanType]| leaf(&|it| it.subject_alt_names = names.to_vec());
    let dns = |text: &str| SanType::DnsName(text.try_into().expect("a name"));
    let mut cases = vec![
        ("as issued", leaf(&|_| {}), (true, true)),
        ("ID-01 another trust domain", named(&[uri(&WEB.replace("cluster.local", "other.example"))]), NEVER),
        ("ID-01 another company", Company::new(|_| {}).leaf(WEB, |_| {}), NEVER),
        ("ID-02 no URI", named(&[]), NEVER),
        ("ID-02 two URIs", named(&[uri(WEB), uri(BANK)]), NEVER),
        ("ID-02 three URIs", named(&[uri(WEB), uri("urn:x"), uri("https://web")]), NEVER),
        ("ID-02 a DNS name beside it", named(&[uri(WEB), dns("web.shop")]), (true, true)),
        ("ID-03 as a DNS name", named(&[dns(WEB)]), NEVER),
        ("ID-03 as a mail address", named(&[SanType::Rfc822Name(WEB.try_into().expect("a name"))]), NEVER),
        (
            "ID-03 as an otherName",
            named(&[SanType::OtherName((vec![1, 3, 6, 1, 4, 1, 311, 20, 2, 3], WEB.into()))]),
            NEVER,
        ),
        ("ID-06 for servers only", leaf(&|it| it.extended_key_usages = vec![ServerAuth]), (false, true)),
        ("ID-06 for clients only", leaf(&|it| it.extended_key_usages = vec![ClientAuth]), (true, false)),
        ("ID-06 for code", leaf(&|it| it.extended_key_usages = vec![CodeSigning]), NEVER),
        ("ID-06 for anything", leaf(&|it| it.extended_key_usages = vec![Any]), NEVER),
        ("ID-06 no digitalSignature", leaf(&|it| it.key_usages = vec![KeyEncipherment]), NEVER),
        ("ID-06 keyCertSign", leaf(&|it| it.key_usages = vec![DigitalSignature, KeyCertSign]), NEVER),
        ("ID-06 CA as leaf", leaf(&|it| it.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)), NEVER),
        ("ID-06 expired", leaf(&|it| dated(it, -3600, -60)), NEVER),
        ("ID-06 not yet valid", leaf(&|it| dated(it, 60, 3600)), NEVER),
        ("ID-06 off by less than the skew", leaf(&|it| dated(it, 10, 3600)), (true, true)),
    ];
    for wrong in [
        "spiffe://cluster.local/ns/shop/sa/web\0evil",
        "spiffe://cluster.local\0.evil/ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/*",
        "spiffe://*/ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/w%65b",
        "spiffe://Cluster.Local/ns/shop/sa/web",
        "SPIFFE://cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/Web",
        "spiffe://cluster.local/ns/shop/sa/web/",
        "spiffe://cluster.local/ns/shop//sa/web",
        "spiffe://cluster.local/ns/x/../shop/sa/web",
        "spiffe://cluster.local/ns/shop/sa/web?x",
        "spiffe://cluster.local/ns/shop/sa/web#x",
        "spiffe://root@cluster.local/ns/shop/sa/web",
        "spiffe://cluster.local:443/ns/shop/sa/web",
        "spiffe://cluster.local",
    ] {
        cases.push((wrong, named(&[uri(wrong)]), NEVER));
    }
    // Not of this company, though they name its authorities.
    let key = KeyPair::generate().expect("a key");
    let mut same_subject = params_of(WEB);
    same_subject.distinguished_name.push(DnType::CommonName, "root");
    for (desc, params) in [("ID-06 self-signed", params_of(WEB)), ("ID-06 self-signed as the root", same_subject)] {
        let own = CertificateDer::from(params.self_signed(&key).expect("signed"));
        cases.push((desc, presented(vec![own.clone()], &key), NEVER));
        cases.push((desc, presented(vec![own, company.intermediate.clone(), company.root.clone()], &key), NEVER));
    }

    let (application, heads) = application().await;
    let server = Proxy::start(application, Some(&company.identity(WEB)), json!({}));
    let client = Proxy::start(free_address(), Some(&company.identity(CART)), json!({}));
    let impostor = Impostor::start(&company).await;
    server.await_ready().await;
    client.await_ready().await;
    let settings = json!({"outliers": {"consecutiveLocalFailures": 0}});
    client.export_as("http", settings, None, json!([endpoint(impostor.address, Some("web"))])).await;
    for (desc, own, (from_client, from_server)) in cases {
        let (before, reached) = (refused(&server).await, heads.lock().expect("not poisoned").len());
        let answer = request(&Arc::new(company.client(own.clone())), server.inbound).await;
        let is_served = answer.as_ref().is_ok_and(|(answer, _)| answer.starts_with("HTTP/1.1 200 "));
        assert_eq!(is_served, from_client, "client, {desc}: {answer:?}");
        if !from_client {
            assert!(answer.map_or(String::new(), |(answer, _)| answer).is_empty(), "{desc}");
            assert_eq!(heads.lock().expect("not poisoned").len(), reached, "{desc}");
            wait(desc, async || refused(&server).await == before + 1).await;
        }

        *impostor.presents.lock().expect("not poisoned") = own;
        impostor.received.lock().expect("not poisoned").clear();
        let (status, headers, body) = client.get(&[]).await;
        let found = (status.as_u16(), reason(&headers));
        if from_server {
            assert_eq!(found, (200, "none"), "server, {desc}: {body}");
        } else {
            assert_eq!(found, (503, "mtls-handshake"), "server, {desc}: {body}");
            assert!(impostor.received.lock().expect("not poisoned").is_empty(), "server, {desc}");
        }
    }
}

async fn refused(server: &Proxy) -> u64 {
    server.sum("weft_tcp_connections_total", &["reason=\"mtls-handshake\""]).await
}

/// ID-06: an intermediate without the CA bit issues nothing that proxies accept.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_an_intermediate_that_is_no_authority_are_refused() {
    let company = Company::new(|_| {});
    let (application, heads) = application().await;
    for (desc, change) in [
        ("no CA bit", (|it| it.is_ca = IsCa::NoCa) as fn(&mut CertificateParams)),
        ("no keyCertSign", |it| it.key_usages = vec![KeyUsagePurpose::DigitalSignature]),
        ("expired", |it| dated(it, -3600, -60)),
    ] {
        let other = Company::new(change);
        let both = [company.root.clone(), other.root.clone()];
        let both = TrustBundle::new("cluster.local".parse().expect("a domain"), both).expect("a bundle");
        let identity = company.identity(WEB);
        write(&identity, "bundle.json", &serde_json::to_string(&both).expect("JSON"));
        let server = Proxy::ready(application, Some(&identity), json!({})).await;
        let answer = request(&Arc::new(company.client(other.leaf(CART, |_| {}))), server.inbound).await;
        assert!(answer.map_or(String::new(), |(answer, _)| answer).is_empty(), "{desc}");
        wait(desc, async || refused(&server).await == 1).await;
    }
    assert!(heads.lock().expect("not poisoned").is_empty());
}

/// ID-04: a client that has a ticket and would send early data gets a full handshake from a proxy, and so does a proxy
/// from a server that gives it tickets: what was verified once is verified for each connection.
#[tokio::test(flavor = "multi_thread")]
async fn id_04_proxies_resume_no_connection_and_take_no_early_data() {
    let company = Company::new(|_| {});
    let (application, heads) = application().await;
    let server = Proxy::ready(application, Some(&company.identity(WEB)), json!({})).await;
    // A server of the same name that gives tickets to this client, which then offers one to the proxy.
    let mut generous = tls::mutual_server(company.bundle.clone(), company.leaf(WEB, |_| {}), &[b"weft-http/1.1"])
        .expect("a configuration");
    generous.session_storage = ServerSessionMemoryCache::new(64);
    generous.send_tls13_tickets = 2;
    generous.max_early_data_size = 1024;
    let (acceptor, kinds) = (TlsAcceptor::from(Arc::new(generous)), Arc::new(Mutex::new(Vec::new())));
    let seen = kinds.clone();
    let (generous, _) = raw_application(move |stream| {
        let (acceptor, seen) = (acceptor.clone(), seen.clone());
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let kind = stream.get_ref().1.handshake_kind();
            seen.lock().expect("not poisoned").push(kind);
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
            let _ = stream.shutdown().await;
        }
    })
    .await;
    let mut config = company.client(company.leaf(CART, |_| {}));
    config.resumption = Resumption::in_memory_sessions(8);
    config.enable_early_data = true;
    let config = Arc::new(config);
    let (_, first) = request(&config, generous).await.expect("an answer");
    let (_, second) = request(&config, generous).await.expect("an answer");
    assert_eq!((first, second), (HandshakeKind::Full, HandshakeKind::Resumed), "the client does resume");
    for _ in 0..2 {
        let (answer, kind) = request(&config, server.inbound).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        assert_eq!(kind, HandshakeKind::Full);
    }
    assert_eq!(heads.lock().expect("not poisoned").len(), 2, "each request once");

    kinds.lock().expect("not poisoned").clear();
    let client = Proxy::ready(free_address(), Some(&company.identity(CART)), json!({})).await;
    client.export_as("http", json!({}), None, json!([endpoint(generous, Some("web"))])).await;
    for _ in 0..4 {
        assert_eq!(client.get(&[]).await.0, 200);
    }
    assert_eq!(*kinds.lock().expect("not poisoned"), [Some(HandshakeKind::Full); 4]);
}
