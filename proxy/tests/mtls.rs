//! Mutual TLS between two proxies: real proxy processes, each with a certificate in a directory.
//!
//! ```text
//! client ──> outbound of one proxy ══ mutual TLS ══> inbound of the other ──> application
//! ```
//!
//! Nothing is redirected: the address of the only Service is the first proxy's outbound port, and its endpoint is the
//! second proxy's inbound port.

use std::convert::Infallible;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weft_identity::authority::Authority;
use weft_identity::issue::Issuer;
use weft_identity::{SpiffeId, TrustBundle, TrustDomain, UnixTime, pem, request};

use crate::fake::{Fake, Root};

#[path = "mtls/authorization.rs"]
mod authorization;
#[path = "mtls/certificates.rs"]
mod certificates;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../src/identity/fake.rs"]
mod fake;
#[path = "mtls/hostile.rs"]
mod hostile;
#[path = "mtls/http_details.rs"]
mod http_details;
#[path = "mtls/modes.rs"]
mod modes;
#[path = "mtls/multiplexed.rs"]
mod multiplexed;
#[path = "mtls/pods.rs"]
mod pods;
#[path = "mtls/renewal.rs"]
mod renewal;
#[path = "mtls/reuse.rs"]
mod reuse;
#[path = "mtls/secrets.rs"]
mod secrets;
#[path = "mtls/streams.rs"]
mod streams;

/// Limit for everything that should happen at once.
const TIMEOUT: Duration = Duration::from_secs(10);
const HOUR: Duration = Duration::from_secs(3600);

/// The client's and the server's identity in most tests.
const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
/// Somebody else.
const BANK: &str = "spiffe://cluster.local/ns/shop/sa/bank";

/// A certificate authority.
struct Ca {
    issuer: Issuer,
    bundle: TrustBundle,
}

impl Ca {
    fn new(domain: &str) -> Self {
        let (domain, now): (TrustDomain, _) = (domain.parse().expect("a domain"), UnixTime::now());
        let root = Authority::root(&domain, now).expect("a root");
        let own = root.intermediate(&domain, now).expect("an intermediate");
        let bundle = TrustBundle::new(domain.clone(), [root.certificate]).expect("a bundle");
        let issuer = Issuer::new(&[own.certificate], &own.key, domain, &bundle, now).expect("an issuer");
        Self { issuer, bundle }
    }

    /// A new folder with an identity, valid for an hour.
    fn identity(&self, id: &str) -> PathBuf {
        let folder = folder();
        self.write(&folder, id, UnixTime::now(), HOUR);
        folder
    }

    /// Writes an identity that is valid from a time on, for a while, and trusts this authority.
    fn write(&self, folder: &Path, id: &str, from: UnixTime, lifetime: Duration) {
        let id: SpiffeId = id.parse().expect("an id");
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).expect("a key");
        let csr = CertificateParams::default().serialize_request(&key).expect("a request");
        let public = request::read(csr.der()).expect("a key");
        let issued = self.issuer.issue(&public, &id, from, lifetime).expect("issued");
        write(folder, "tls.crt", &pem::certificates(&issued.chain));
        write(folder, "tls.key", &key.serialize_pem());
        write(folder, "bundle.json", &serde_json::to_string(&self.bundle).expect("JSON"));
    }
}

/// A proxy process. Dropping it ends the process.
struct Proxy {
    child: Child,
    outbound: SocketAddr,
    inbound: SocketAddr,
    metrics: SocketAddr,
    health: SocketAddr,
    admin: SocketAddr,
    folder: PathBuf,
}

impl Proxy {
    /// Starts a proxy beside an application, with an identity from a folder and a private document.
    fn start(application: SocketAddr, identity: Option<&Path>, private: Value) -> Self {
        Self::with(application, identity, private, &[])
    }

    fn with(application: SocketAddr, identity: Option<&Path>, private: Value, environment: &[(&str, &str)]) -> Self {
        Self::at(free_address(), application, identity, private, environment)
    }

    /// Starts a proxy that gets its certificates from an authority, which issues to a service account of namespace `shop`.
    fn certified(
        authority: &Fake,
        root: &Root,
        account: &str,
        application: SocketAddr,
        private: Value,
        environment: &[(&str, &str)],
    ) -> Self {
        let roots: Vec<String> = root.fingerprints().iter().map(ToString::to_string).collect();
        let (url, roots) = (authority.url(), roots.join(","));
        let own = [
            ("WEFT_IDENTITY_URL", &*url),
            ("WEFT_IDENTITY_AUTHORITY", fake::OPERATOR),
            ("WEFT_TRUST_DOMAIN", "cluster.local"),
            ("WEFT_ROOTS", &roots),
            ("WEFT_SERVICE_ACCOUNT", account),
        ];
        Self::with(application, None, private, &[&own, environment].concat())
    }

    /// Starts a proxy with this inbound port.
    fn at(
        inbound: SocketAddr,
        application: SocketAddr,
        identity: Option<&Path>,
        private: Value,
        environment: &[(&str, &str)],
    ) -> Self {
        Self::spawn(inbound, json!({"application": application}), identity, private, environment)
    }

    /// Starts a proxy that connects its outbound connections to an address, as if clients had connected there.
    fn to(destination: SocketAddr, identity: Option<&Path>, private: Value) -> Self {
        Self::spawn(free_address(), json!({"destination": destination}), identity, private, &[])
    }

    /// `local`: the settings of a proxy outside of a pod, without its ports.
    fn spawn(
        inbound: SocketAddr,
        mut local: Value,
        identity: Option<&Path>,
        private: Value,
        environment: &[(&str, &str)],
    ) -> Self {
        let [outbound, metrics, health, admin] = [(); 4].map(|()| free_address());
        let folder = folder();
        write(&folder, "i.shop.json", &private.to_string());
        write(&folder, "x.shop.json", "{}");
        write(&folder, "token", fake::TOKEN);
        local["token"] = json!(folder.join("token"));
        for (name, address) in [
            ("outboundPort", outbound),
            ("inboundPort", inbound),
            ("metricsPort", metrics),
            ("healthPort", health),
            ("adminPort", admin),
        ] {
            local[name] = json!(address.port());
        }
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft-proxy"));
        command.env_clear().stdin(Stdio::null()).envs([
            ("WEFT_NAMESPACE", "shop"),
            ("WEFT_SOURCE", &format!("directory:{}", folder.display())),
            ("WEFT_LOCAL", &local.to_string()),
            ("WEFT_ACCESS_LOG", "on"),
        ]);
        if let Some(identity) = identity {
            command.env("WEFT_IDENTITY", format!("directory:{}", identity.display()));
        }
        command.envs(environment.iter().copied());
        let log = std::fs::File::create(folder.join("log")).expect("a file");
        let child = command.stdout(log).spawn().expect("the proxy starts");
        Self { child, outbound, inbound, metrics, health, admin, folder }
    }

    /// The same, once it is ready.
    async fn ready(application: SocketAddr, identity: Option<&Path>, private: Value) -> Self {
        let proxy = Self::start(application, identity, private);
        proxy.await_ready().await;
        proxy
    }

    async fn await_ready(&self) {
        let is_listening = async || TcpStream::connect(self.outbound).await.is_ok();
        wait("the proxy listens", async || is_listening().await && self.page("/readyz").await.contains(" 200 ")).await;
    }

    /// Exports the Service `web` with these endpoints, and waits until that is in use.
    async fn export(&self, endpoints: Value) {
        self.export_as("detect", json!({}), None, endpoints).await;
    }

    /// Exports it with a mode of mutual TLS for its port.
    async fn export_with(&self, protocol: &str, mode: &str, endpoints: Value) {
        let port = json!({"protocol": protocol, "mtls": mode, "endpoints": endpoints});
        self.export_port(json!({}), port).await;
    }

    async fn export_as(&self, protocol: &str, settings: Value, routes: Option<Value>, endpoints: Value) {
        let mut port = json!({"protocol": protocol, "endpoints": endpoints});
        if let Some(routes) = routes {
            port["routes"] = routes;
        }
        self.export_port(settings, port).await;
    }

    async fn export_port(&self, settings: Value, mut port: Value) {
        let before = self.generation().await;
        port["port"] = self.outbound.port().into();
        let service = json!({"name": "web", "addresses": ["127.0.0.1"], "settings": settings, "ports": [port]});
        write(&self.folder, "x.shop.json", &json!({"services": [service]}).to_string());
        wait("the configuration is in use", async || self.generation().await > before).await;
    }

    async fn generation(&self) -> u64 {
        self.sum("weft_config_generation", &["document=\"x.shop\""]).await
    }

    /// The sum of a metric's series that have all of these labels.
    async fn sum(&self, metric: &str, labels: &[&str]) -> u64 {
        let page = self.page("/metrics").await;
        let is_one =
            |line: &&str| line.starts_with(&format!("{metric}{{")) && labels.iter().all(|label| line.contains(label));
        page.lines().filter(is_one).filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    async fn page(&self, path: &str) -> String {
        page(self.metrics, path).await
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).expect("a log")
    }

    /// The access events, once there are as many.
    async fn events(&self, count: usize) -> Vec<Value> {
        let events = || -> Vec<Value> {
            let log = self.log();
            let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
            lines.filter(|line| line["target"] == "access").collect()
        };
        wait("the events are logged", async || events().len() >= count).await;
        events()
    }

    /// Sends a GET to the Service, and returns the response.
    async fn get(&self, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, String) {
        get(self.outbound, headers).await
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the log of the proxy at {}: {}", self.inbound, self.log());
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// An endpoint as exported.
fn endpoint(address: SocketAddr, account: Option<&str>) -> Value {
    match account {
        Some(account) => json!({"address": address, "hasProxy": true, "serviceAccount": account}),
        None => json!({"address": address}),
    }
}

fn strict(direction: &str) -> Value {
    json!({"mtls": {direction: "strict"}})
}

fn folder() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("mtls-{}-{count}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    folder
}

/// Replaces a file at once.
fn write(folder: &Path, name: &str, text: &str) {
    let new = folder.join(format!("{name}.new"));
    std::fs::write(&new, text).expect("written");
    std::fs::rename(new, folder.join(name)).expect("renamed");
}

/// A port that nobody listens on, and that no test of this process was given before: several proxies could listen on the
/// same one. Below the range of ports that the kernel gives out.
fn free_address() -> SocketAddr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let first = 16_384 + std::process::id() % 8192;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed);
        let address = SocketAddr::from(([127, 0, 0, 1], u16::try_from(port).expect("enough ports")));
        if StdListener::bind(address).is_ok() {
            return address;
        }
    }
}

/// The response of a proxy's own server. Empty: there is none.
async fn page(address: SocketAddr, path: &str) -> String {
    let Ok(mut stream) = TcpStream::connect(address).await else { return String::new() };
    let head = format!("GET {path} HTTP/1.1\r\nhost: proxy\r\nconnection: close\r\n\r\n");
    let mut page = String::new();
    let _ = stream.write_all(head.as_bytes()).await;
    let _ = stream.read_to_string(&mut page).await;
    page
}

async fn wait(what: &str, holds: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < TIMEOUT, "not within {TIMEOUT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The heads that an application has received.
type Heads = Arc<Mutex<Vec<HeaderMap>>>;

/// Starts an application that answers every request with its own headers as text, and with its trailers.
async fn application() -> (SocketAddr, Heads) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let heads = Heads::default();
    let shared = heads.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let heads = shared.clone();
            let service = service_fn(move |request: Request<Incoming>| {
                let heads = heads.clone();
                async move {
                    let (version, headers) = (request.version(), request.headers().clone());
                    let body = request.into_body().collect().await.expect("a whole body");
                    let mut text = format!("{version:?}\n");
                    for (name, value) in headers.iter().chain(body.trailers().into_iter().flatten()) {
                        text += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
                    }
                    heads.lock().expect("not poisoned").push(headers);
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                }
            });
            tokio::spawn(
                hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .into_owned(),
            );
        }
    });
    (address, heads)
}

/// Starts an application that runs `serve` on each connection, and counts the connections.
async fn raw_application<F>(serve: impl Fn(TcpStream) -> F + Send + Sync + 'static) -> (SocketAddr, Arc<AtomicU32>)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let connections = Arc::new(AtomicU32::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(serve(stream));
        }
    });
    (address, connections)
}

async fn get(address: SocketAddr, headers: &[(&str, &str)]) -> (StatusCode, HeaderMap, String) {
    let stream = TcpStream::connect(address).await.expect("connects");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("a connection");
    tokio::spawn(connection);
    let mut request = Request::builder().uri("/").header("host", "web.shop");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::<Bytes>::default()).expect("a request");
    let (parts, body) = sender.send_request(request).await.expect("a response").into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    (parts.status, parts.headers, String::from_utf8_lossy(&body).into_owned())
}

fn reason(headers: &HeaderMap) -> &str {
    headers.get("weft-reason").and_then(|reason| reason.to_str().ok()).unwrap_or("none")
}

/// Two proxies that trust each other, the first of which knows the second as its only endpoint.
async fn pair(ca: &Ca, application: SocketAddr, private: Value) -> (Proxy, Proxy) {
    let server = Proxy::start(application, Some(&ca.identity(WEB)), private);
    let client = Proxy::start(free_address(), Some(&ca.identity(CART)), json!({}));
    server.await_ready().await;
    client.await_ready().await;
    client.export(json!([endpoint(server.inbound, Some("web"))])).await;
    (client, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_encrypted_and_the_application_learns_who_calls() {
    let (application, _) = application().await;
    let (client, server) = pair(&Ca::new("cluster.local"), application, strict("inbound")).await;
    for _ in 0..3 {
        let spoofed = format!("By={WEB};URI={BANK}");
        let copies = [("x-forwarded-client-cert", &*spoofed), ("X_Forwarded_Client_Cert", &spoofed)];
        let (status, _, body) = client.get(&copies).await;
        assert_eq!(status, 200, "{body}");
        let expected = format!("x-forwarded-client-cert: By={WEB};URI={CART}\n");
        assert!(body.starts_with("HTTP/1.1\n") && body.contains(&expected), "{body}");
        assert!(!body.contains("bank"), "{body}");
    }
    for (proxy, direction) in [(&client, "outbound"), (&server, "inbound")] {
        let labels = [&format!("direction=\"{direction}\""), "http_response_status_code=\"200\"", "security=\"mtls\""];
        assert_eq!(proxy.sum("weft_requests_total", &labels).await, 3, "{direction}");
        for event in proxy.events(3).await {
            assert_eq!(event["security"], "mtls", "{event}");
            assert!(event.get("plaintext").is_none(), "{event}");
        }
    }
    assert_eq!(server.events(3).await[0]["src.identity"], CART);
    assert_eq!(client.sum("weft_upstream_connections_open", &[]).await, 1, "connections are reused");
}

#[tokio::test(flavor = "multi_thread")]
async fn http2_and_its_trailers_go_through() {
    let (application, _) = application().await;
    let (client, server) = pair(&Ca::new("cluster.local"), application, strict("inbound")).await;
    client.export_as("http2", json!({}), None, json!([endpoint(server.inbound, Some("web"))])).await;
    let stream = TcpStream::connect(client.outbound).await.expect("connects");
    let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
    tokio::spawn(connection);
    let requests = (0..20).map(|_| {
        let sender = sender.clone();
        async move {
            let mut sender = sender.ready().await.expect("ready");
            let request = Request::post("http://web.shop/pkg.Service/Method").header("te", "trailers");
            let request = request.header("content-type", "application/grpc").body(()).expect("a request");
            let (response, mut body) = sender.send_request(request, false).expect("sent");
            body.send_data(Bytes::from_static(b"\0\0\0\0\0"), false).expect("sent");
            let mut trailers = HeaderMap::new();
            trailers.insert("x-sum", "1".parse().expect("a value"));
            trailers.insert("x-forwarded-client-cert", BANK.parse().expect("a value"));
            body.send_trailers(trailers).expect("sent");
            let mut body = response.await.expect("a response").into_body();
            let mut text = Vec::new();
            while let Some(part) = body.data().await {
                text.extend_from_slice(&part.expect("whole"));
            }
            String::from_utf8(text).expect("text")
        }
    });
    for text in futures_util::future::join_all(requests).await {
        assert!(text.starts_with("HTTP/2.0\n") && text.contains("x-sum: 1\n"), "{text}");
        assert!(text.contains(&format!("x-forwarded-client-cert: By={WEB};URI={CART}\n")), "{text}");
        assert!(!text.contains("bank"), "trailers cannot add a caller: {text}");
    }
    assert_eq!(server.sum("weft_requests_total", &["security=\"mtls\""]).await, 20);
    assert_eq!(server.sum("weft_downstream_connections_accepted_total", &["inbound"]).await, 1, "one connection");
}
