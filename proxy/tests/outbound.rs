//! The outbound side of the proxy, in process: configuration from files, real sockets, real backends.
//!
//! Nothing is redirected, so the address of the only Service is the proxy's own listener.

use std::convert::Infallible;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use weft_config::bootstrap::AccessLog;
use weft_proxy::app::{self, Running};
use weft_proxy::bootstrap::{Bootstrap, Pod, Ports, Source};

#[path = "outbound/backends.rs"]
mod backends;
#[path = "outbound/filters.rs"]
mod filters;
#[path = "outbound/hedge.rs"]
mod hedge;
#[path = "outbound/idle.rs"]
mod idle;
#[path = "outbound/retry.rs"]
mod retry;
#[path = "outbound/services.rs"]
mod services;
#[path = "outbound/streams.rs"]
mod streams;
#[path = "outbound/telemetry.rs"]
mod telemetry;
#[path = "outbound/tunnel.rs"]
mod tunnel;

/// A running proxy, its configuration folder, and the token that stops it.
struct Proxy {
    running: Option<Running>,
    address: SocketAddr,
    health: SocketAddr,
    metrics: SocketAddr,
    folder: PathBuf,
    stop: CancellationToken,
}

impl Proxy {
    async fn start(test: &str) -> Self {
        Self::start_in(test, Pod::default()).await
    }

    /// Starts a proxy in a pod with a known node, zone and the like.
    async fn start_in(test: &str, pod: Pod) -> Self {
        Self::start_with(test, pod, AccessLog::Off).await
    }

    async fn start_with(test: &str, pod: Pod, access_log: AccessLog) -> Self {
        let folder = std::env::temp_dir().join(format!("weft-proxy-{test}-{}", std::process::id()));
        let cache = folder.join("cache");
        std::fs::create_dir_all(&cache).expect("a folder");
        let bootstrap = Bootstrap {
            pod: Pod { namespace: "shop".into(), ..pod },
            workers: 1,
            source: Source::Directory(folder.clone()),
            cache,
            ports: Ports { outbound: 0, inbound: 0, admin: 0, metrics: 0, health: 0 },
            tls: None,
            mutual_tls: false,
            timeouts: Default::default(),
            opaque_ports: [].into(),
            identity: None,
            probes: Default::default(),
            hooks: Default::default(),
            classic: false,
            drain: Duration::from_secs(5),
            log: ("info".into(), "text".into()),
            access_log,
            cgroup: folder.join("cgroup"),
        };
        let stop = CancellationToken::new();
        let running = app::start(bootstrap, None, stop.clone()).await.expect("starts");
        let local = |address: SocketAddr| SocketAddr::from(([127, 0, 0, 1], address.port()));
        let (address, health, metrics) = (local(running.outbound), local(running.health), local(running.metrics));
        Self { running: Some(running), address, health, metrics, folder, stop }
    }

    /// Configures the Service's port, and waits until the configuration is in use.
    async fn configure(
        &self,
        routes: Option<Value>,
        protocol: &str,
        endpoints: &[(SocketAddr, &str)],
        settings: Value,
    ) {
        let endpoints: Vec<Value> =
            (endpoints.iter()).map(|(address, subset)| json!({"address": address, "subsets": [subset]})).collect();
        self.configure_endpoints(routes, protocol, &endpoints, settings).await;
    }

    /// The same, with endpoints in the document's form.
    async fn configure_endpoints(&self, routes: Option<Value>, protocol: &str, endpoints: &[Value], settings: Value) {
        let mut port = json!({"port": self.address.port(), "protocol": protocol, "endpoints": endpoints});
        if let Some(routes) = routes {
            port["routes"] = routes;
        }
        let export = json!({"services": [
            {"name": "reviews", "addresses": ["127.0.0.1"], "settings": settings, "ports": [port]}
        ]});
        self.export(&export).await;
    }

    /// Writes the exported document, and waits until it is in use.
    async fn export(&self, export: &Value) {
        let before = self.generation().await;
        self.write("i.shop", &json!({}));
        self.write("x.shop", export);
        for _ in 0..200 {
            if self.generation().await > before {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the configuration was not loaded: {}", self.get(self.health, "/readyz").await.1);
    }

    fn write(&self, name: &str, body: &Value) {
        let path = self.folder.join(format!("{name}.json"));
        std::fs::write(path.with_extension("new"), body.to_string()).expect("written");
        std::fs::rename(path.with_extension("new"), path).expect("renamed");
    }

    /// The sum of a metric's series that have this label.
    async fn sum(&self, metric: &str, label: &str) -> u64 {
        let page = self.get(self.metrics, "/metrics").await.1;
        let lines = page.lines().filter(|line| line.starts_with(&format!("{metric}{{")) && line.contains(label));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
    }

    async fn generation(&self) -> u64 {
        let page = self.get(self.metrics, "/metrics").await.1;
        let line = page.lines().find(|line| line.starts_with("weft_config_generation{document=\"x.shop\"}"));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    }

    async fn get(&self, address: SocketAddr, path: &str) -> (StatusCode, String) {
        let (status, _, body) = send(address, "GET", path, &[], "").await;
        (status, body)
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> (StatusCode, HeaderMap, String) {
        send(self.address, method, path, headers, body).await
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (StatusCode, HeaderMap, String) {
    let stream = TcpStream::connect(address).await.expect("connects");
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("handshake");
    tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "reviews.shop");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_owned()))).expect("a request");
    let response = sender.send_request(request).await.expect("a response");
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("a whole body").to_bytes();
    (parts.status, parts.headers, String::from_utf8_lossy(&body).into_owned())
}

/// The connections and requests that a backend received.
#[derive(Clone, Default)]
struct BackendStats {
    connections: Arc<AtomicU32>,
    requests: Arc<AtomicU32>,
    heads: Arc<Mutex<Vec<(String, HeaderMap)>>>,
}

/// A backend that answers with its name, and with the status and delay that `behave` gives for the request's number.
async fn backend(
    name: &'static str,
    behave: impl Fn(u32) -> (u16, Duration) + Clone + Send + Sync + 'static,
) -> (SocketAddr, BackendStats) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let seen = BackendStats::default();
    let shared = seen.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (seen, behave) = (shared.clone(), behave.clone());
            seen.connections.fetch_add(1, Ordering::SeqCst);
            let service = service_fn(move |request: Request<Incoming>| {
                let (seen, behave) = (seen.clone(), behave.clone());
                async move {
                    let number = seen.requests.fetch_add(1, Ordering::SeqCst);
                    let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
                    seen.heads.lock().expect("not poisoned").push((target, request.headers().clone()));
                    let body = request.into_body().collect().await.map(|body| body.to_bytes().len()).unwrap_or(0);
                    let (status, delay) = behave(number);
                    tokio::time::sleep(delay).await;
                    let response = Response::builder().status(status).header("x-version", name).header("x-body", body);
                    Ok::<_, Infallible>(response.body(Full::new(Bytes::from(name))).expect("a response"))
                }
            });
            tokio::spawn(
                hyper_util::server::conn::auto::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .into_owned(),
            );
        }
    });
    (address, seen)
}

fn ok(_: u32) -> (u16, Duration) {
    (200, Duration::ZERO)
}

fn rule(action: Value) -> Value {
    json!({"route": {"namespace": "shop", "name": "reviews"}, "name": "0", "action": action})
}

/// One rule for all requests. `more` has its other fields.
fn routes(action: Value, more: Value) -> Option<Value> {
    let mut rule = rule(action);
    rule.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    Some(json!({"matches": [{"rule": 0}], "rules": [rule]}))
}

fn forward(proxy: &Proxy, shares: &[(&str, u32)]) -> Value {
    let backends: Vec<Value> = (shares.iter())
        .map(|(subset, weight)| {
            let cluster =
                json!({"namespace": "shop", "service": "reviews", "port": proxy.address.port(), "subset": subset});
            json!({"weight": weight, "target": {"cluster": cluster}})
        })
        .collect();
    json!({"forward": {"backends": backends}})
}

#[tokio::test]
async fn requests_are_split_by_weight() {
    let proxy = Proxy::start("weights").await;
    let (v1, _) = backend("v1", ok).await;
    let (v2, _) = backend("v2", ok).await;
    let action = forward(&proxy, &[("v1", 90), ("v2", 10)]);
    proxy
        .configure(routes(action, json!({})), "detect", &[(v1, "v1"), (v2, "v2")], json!({"subsets": ["v1", "v2"]}))
        .await;
    let mut second = 0;
    for _ in 0..500 {
        let (status, headers, body) = proxy.send("GET", "/", &[], "").await;
        assert_eq!(status, 200);
        assert_eq!(headers["x-version"], body.as_str());
        second += u32::from(body == "v2");
    }
    assert!((25..=75).contains(&second), "10 % of 500 ± 5 points, got {second}");
}

#[tokio::test]
async fn proxy_responses_name_reason_and_source() {
    let proxy = Proxy::start("reasons").await;
    let (v1, seen) = backend("v1", ok).await;
    let invalid = json!({"forward": {"backends": [{"weight": 1, "target": {"invalid": "no Service shop/nope"}}]}});
    let table = json!({
        "matches": [
            {"rule": 0, "path": {"exact": "/invalid"}},
            {"rule": 1, "path": {"exact": "/empty"}},
            {"rule": 2, "path": {"exact": "/direct"}},
            {"rule": 3, "path": {"prefix": "/old"}},
            {"rule": 4, "path": {"prefix": "/here"}}
        ],
        "rules": [
            rule(invalid),
            rule(forward(&proxy, &[("v9", 1)])),
            rule(json!({"respond": {"status": 418, "body": "tea"}})),
            rule(json!({"redirect": {"status": 301, "path": {"prefix": "/new"}}})),
            rule(forward(&proxy, &[("v1", 1)]))
        ]
    });
    proxy.configure(Some(table), "detect", &[(v1, "v1")], json!({"subsets": ["v1", "v9"]})).await;
    for (path, status, reason) in [
        ("/invalid", 500, "backend-not-found"),
        ("/empty", 503, "no-endpoints"),
        ("/direct", 418, "direct-response"),
        ("/old/a", 301, "redirect"),
    ] {
        let (got, headers, body) = proxy.send("GET", path, &[], "").await;
        assert_eq!((got.as_u16(), headers["weft-reason"].to_str().expect("text")), (status, reason), "{path}: {body}");
        assert_eq!(headers["weft-source"], "MeshRoute/shop/reviews/0", "{path}");
    }
    let (status, headers, _) = proxy.send("GET", "/nowhere", &[], "").await;
    assert_eq!((status.as_u16(), headers["weft-reason"].to_str().expect("text")), (404, "no-route"));
    let (_, headers, _) = proxy.send("GET", "/old/a?q=1", &[], "").await;
    let expected = format!("http://reviews.shop:{}/new/a?q=1", proxy.address.port());
    assert_eq!(headers["location"], expected.as_str());
    assert_eq!(seen.requests.load(Ordering::SeqCst), 0, "none of these reached a backend");
    let (status, headers, _) = proxy.send("GET", "/here", &[], "").await;
    assert_eq!(status, 200);
    assert!(!headers.contains_key("weft-reason"), "a backend's response has no weft-reason");
}

#[tokio::test]
async fn timeouts_answer_504() {
    let proxy = Proxy::start("timeouts").await;
    let (slow, _) = backend("v1", |_| (200, Duration::from_secs(5))).await;
    for (field, reason) in [("requestTimeoutMs", "request-timeout"), ("attemptTimeoutMs", "attempt-timeout")] {
        let action = forward(&proxy, &[("v1", 1)]);
        proxy
            .configure(routes(action, json!({field: 200})), "detect", &[(slow, "v1")], json!({"subsets": ["v1"]}))
            .await;
        let begun = std::time::Instant::now();
        let (status, headers, _) = proxy.send("GET", "/", &[], "").await;
        assert_eq!((status.as_u16(), headers["weft-reason"].to_str().expect("text")), (504, reason));
        assert!(begun.elapsed() < Duration::from_secs(1), "after {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn retries_resend_get_but_not_post() {
    let proxy = Proxy::start("retries").await;
    let (flaky, seen) = backend("v1", |number| (if number % 2 == 0 { 503 } else { 200 }, Duration::ZERO)).await;
    let retry = json!({"retry": {"attempts": 2, "codes": [503], "methods": ["GET"], "backoffMs": 5}});
    let action = forward(&proxy, &[("v1", 1)]);
    proxy.configure(routes(action, retry), "detect", &[(flaky, "v1")], json!({"subsets": ["v1"]})).await;
    for _ in 0..10 {
        assert_eq!(proxy.send("GET", "/", &[], "").await.0, 200);
    }
    assert_eq!(seen.requests.load(Ordering::SeqCst), 20, "each GET was sent twice");
    let (status, ..) = proxy.send("POST", "/", &[], "order").await;
    assert_eq!(status, 503, "a POST that a backend has received is not retried");
    assert_eq!(seen.requests.load(Ordering::SeqCst), 21);
    let (_, page) = proxy.get(proxy.metrics, "/metrics").await;
    let retries = page.lines().find(|line| line.starts_with("weft_retries_total{")).expect("counted");
    assert!(retries.ends_with(" 10"), "{retries}");
}

#[tokio::test]
async fn post_is_retried_with_its_body_where_the_rule_allows() {
    let proxy = Proxy::start("post").await;
    let (flaky, seen) = backend("v1", |number| (if number == 0 { 503 } else { 200 }, Duration::ZERO)).await;
    let retry = json!({"retry": {"attempts": 1, "codes": [503], "methods": ["POST"], "backoffMs": 5}});
    let action = forward(&proxy, &[("v1", 1)]);
    proxy.configure(routes(action, retry), "detect", &[(flaky, "v1")], json!({"subsets": ["v1"]})).await;
    let (status, headers, _) = proxy.send("POST", "/", &[], "order").await;
    assert_eq!((status.as_u16(), headers["x-body"].to_str().expect("text")), (200, "5"));
    assert_eq!(seen.requests.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn unreachable_endpoints_fail_no_request() {
    let proxy = Proxy::start("gone").await;
    let (v1, _) = backend("v1", ok).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("an address");
    proxy.configure(None, "http", &[(gone, "v1"), (v1, "v1")], json!({"balancer": "roundRobin"})).await;
    for method in ["GET", "POST"] {
        for _ in 0..20 {
            assert_eq!(
                proxy.send(method, "/", &[], "x").await.0,
                200,
                "{method}: not sent yet, so the other endpoint gets it"
            );
        }
    }
}

#[tokio::test]
async fn header_and_path_filters_are_applied() {
    let proxy = Proxy::start("filters").await;
    let (v1, seen) = backend("v1", ok).await;
    let mut action = forward(&proxy, &[("v1", 1)]);
    action["forward"]["rewrite"] = json!({"hostname": "other.example", "path": {"full": "/there"}});
    let more = json!({
        "requestHeaders": {"remove": ["x-gone"], "set": [{"name": "x-set", "value": "1"}]},
        "responseHeaders": {"add": [{"name": "x-added", "value": "2"}]}
    });
    proxy.configure(routes(action, more), "detect", &[(v1, "v1")], json!({"subsets": ["v1"]})).await;
    let headers = [("x-gone", "1"), ("x-set", "0"), ("connection", "x-named"), ("x-named", "1")];
    let (status, answered, _) = proxy.send("GET", "/here?q=1", &headers, "").await;
    assert_eq!((status.as_u16(), answered["x-added"].to_str().expect("text")), (200, "2"));
    let (target, sent) = seen.heads.lock().expect("not poisoned").pop().expect("a request");
    assert_eq!(target, "/there?q=1");
    assert_eq!(sent["host"], "other.example");
    assert_eq!(sent["x-set"], "1");
    assert!(!sent.contains_key("x-gone") && !sent.contains_key("x-named"), "{sent:?}");
}

#[tokio::test]
async fn concurrent_requests_share_the_connection_being_opened() {
    let proxy = Proxy::start("http2-at-once").await;
    let (v1, seen) = backend("v1", |_| (200, Duration::from_millis(300))).await;
    proxy.configure(None, "http2", &[(v1, "")], json!({})).await;
    let stream = TcpStream::connect(proxy.address).await.expect("connects");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("handshake");
    tokio::spawn(connection);
    let ask = |body: &'static str| {
        let mut sender = sender.clone();
        let request = Request::post(format!("http://{}/", proxy.address)).body(Full::new(Bytes::from(body)));
        async move { sender.send_request(request.expect("a request")).await.expect("a response") }
    };
    for response in futures_util::future::join_all((0..150).map(|_| ask("cargo"))).await {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["x-body"], "5");
    }
    assert_eq!(seen.connections.load(Ordering::SeqCst), 2, "a hundred requests on the first, fifty on the second");
    let closed = TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("an address");
    proxy.configure(None, "http2", &[(closed, "")], json!({})).await;
    let refused = tokio::time::timeout(Duration::from_secs(5), async {
        while ask("").await.status() == 200 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        futures_util::future::join_all((0..150).map(|_| ask(""))).await
    });
    for response in refused.await.expect("requests do not wait for each other to fail") {
        assert_eq!(response.status(), 503);
        assert_eq!(response.headers()["weft-reason"], "connect-failed");
    }
}

#[tokio::test]
async fn http2_is_forwarded_as_http2() {
    let proxy = Proxy::start("http2").await;
    let (v1, _) = backend("v1", ok).await;
    proxy.configure(None, "detect", &[(v1, "")], json!({})).await;
    let stream = TcpStream::connect(proxy.address).await.expect("connects");
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("handshake");
    tokio::spawn(connection);
    let calls = (0..50).map(|_| {
        let mut sender = sender.clone();
        tokio::spawn(async move {
            let request =
                Request::post("http://reviews.shop/a").body(Full::new(Bytes::from("hello"))).expect("a request");
            let response = sender.send_request(request).await.expect("a response");
            assert_eq!(response.headers()["x-body"], "5");
            assert_eq!(response.into_body().collect().await.expect("whole").to_bytes(), "v1");
        })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.expect("answered");
    }
}

#[tokio::test]
async fn server_first_protocols_work() {
    let proxy = Proxy::start("server-first").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                stream.write_all(b"220 ready\r\n").await.expect("greets");
                let mut got = Vec::new();
                stream.read_to_end(&mut got).await.expect("reads until the client has finished");
                stream.write_all(&got).await.expect("echoes after the client has closed its half");
            });
        }
    });
    proxy.configure(None, "detect", &[(address, "")], json!({})).await;
    let begun = std::time::Instant::now();
    let mut client = TcpStream::connect(proxy.address).await.expect("connects");
    let mut greeting = [0; 11];
    client.read_exact(&mut greeting).await.expect("is greeted");
    assert_eq!(&greeting, b"220 ready\r\n");
    assert!(begun.elapsed() < Duration::from_millis(500), "greeted after {:?}", begun.elapsed());
    client.write_all(b"QUIT\r\n").await.expect("writes");
    client.shutdown().await.expect("closes its half");
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.expect("reads");
    assert_eq!(rest, "QUIT\r\n");
}

#[tokio::test]
async fn server_first_protocols_work_when_the_endpoint_comes_late() {
    let proxy = Proxy::start("server-late").await;
    proxy.configure(None, "detect", &[], json!({})).await;
    let mut client = TcpStream::connect(proxy.address).await.expect("connects");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    proxy.configure(None, "detect", &[(listener.local_addr().expect("an address"), "")], json!({})).await;
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("is asked");
        stream.write_all(b"220 ready\r\n").await.expect("greets");
        stream.read_to_end(&mut Vec::new()).await.expect("waits");
    });
    let mut greeting = [0; 11];
    let heard = tokio::time::timeout(Duration::from_secs(3), client.read_exact(&mut greeting)).await;
    heard.expect("within three seconds").expect("is greeted");
    assert_eq!(&greeting, b"220 ready\r\n");
}

#[tokio::test]
async fn upgrades_pass_bytes_after_a_101() {
    let proxy = Proxy::start("upgrade").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut head = vec![0; 4096];
        let read = stream.read(&mut head).await.expect("reads");
        let head = String::from_utf8_lossy(&head[..read]).to_lowercase();
        assert!(head.contains("upgrade: echo") && head.contains("connection: upgrade"), "{head}");
        stream
            .write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
            .await
            .expect("writes");
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).await.expect("reads");
        stream.write_all(&bytes).await.expect("echoes");
    });
    proxy.configure(None, "http", &[(address, "")], json!({})).await;
    let mut client = TcpStream::connect(proxy.address).await.expect("connects");
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await.expect("asks");
    let mut head = vec![0; 4096];
    let read = client.read(&mut head).await.expect("reads");
    assert!(head[..read].starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head[..read]));
    client.write_all(b"hello").await.expect("writes");
    let mut echo = [0; 5];
    client.read_exact(&mut echo).await.expect("is echoed");
    assert_eq!(&echo, b"hello");
}

#[tokio::test]
async fn connection_and_request_limits_answer_503_at_once() {
    let proxy = Proxy::start("limits").await;
    let (slow, _) = backend("v1", |_| (200, Duration::from_millis(500))).await;
    for limits in [json!({"maxRequests": 2}), json!({"maxConnections": 2, "maxPending": 0})] {
        proxy.configure(None, "http", &[(slow, "")], json!({"limits": limits})).await;
        let calls: Vec<_> = (0..6).map(|_| tokio::spawn(get_status(proxy.address))).collect();
        let mut answers = Vec::new();
        for call in calls {
            answers.push(call.await.expect("answered"));
        }
        answers.sort();
        assert_eq!(answers, [200, 200, 503, 503, 503, 503], "{limits}");
    }
    proxy.configure(None, "http", &[(slow, "")], json!({"limits": {"maxConnections": 1, "maxPending": 10}})).await;
    let calls: Vec<_> = (0..3).map(|_| tokio::spawn(get_status(proxy.address))).collect();
    for call in calls {
        assert_eq!(call.await.expect("answered"), 200, "pending requests wait");
    }
}

#[tokio::test]
async fn lowered_connection_limits_apply_to_open_connections() {
    for (protocol, limit, requests, within) in [("http", 2, 6, 2), ("http2", 1, 150, 100)] {
        let proxy = Proxy::start(&format!("limits-lowered-{protocol}")).await;
        let (slow, seen) = backend("v1", |_| (200, Duration::from_millis(300))).await;
        let all = async || {
            let calls: Vec<_> = (0..requests).map(|_| tokio::spawn(get_status(proxy.address))).collect();
            let mut answered = 0;
            for call in calls {
                answered += u32::from(call.await.expect("answered") == 200);
            }
            answered
        };
        proxy.configure(None, protocol, &[(slow, "")], json!({})).await;
        assert_eq!(all().await, requests, "{protocol}: without a limit");
        let opened = seen.connections.load(Ordering::SeqCst);
        assert!(opened > limit, "{protocol}: {opened} connections");
        let limits = json!({"limits": {"maxConnections": limit, "maxPending": 0}});
        proxy.configure(None, protocol, &[(slow, "")], limits).await;
        for round in 0..3 {
            assert_eq!(all().await, within, "{protocol}: within the limit, round {round}");
        }
        assert_eq!(
            seen.connections.load(Ordering::SeqCst),
            opened,
            "{protocol}: connections within the limit are kept"
        );
    }
}

#[tokio::test]
async fn connect_timeout_answers_503_and_tries_another_endpoint() {
    let proxy = Proxy::start("connect").await;
    // An endpoint that does not answer: nothing accepts, and with a backlog of 1 Linux drops the SYNs after two
    // connections.
    let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let listener = socket.listen(1).expect("listens");
    let unresponsive = listener.local_addr().expect("an address");
    let waiting: Vec<_> = (0..4).map(|_| tokio::spawn(TcpStream::connect(unresponsive))).collect();
    let (good, _) = backend("v1", ok).await;
    proxy.configure(None, "http", &[(unresponsive, "")], json!({"connectTimeoutMs": 200})).await;
    let begun = std::time::Instant::now();
    let (status, headers, _) = proxy.send("GET", "/", &[], "").await;
    assert_eq!(
        (status, headers["weft-reason"].to_str().expect("a word")),
        (StatusCode::SERVICE_UNAVAILABLE, "connect-failed")
    );
    let took = begun.elapsed();
    assert!((800..2_500).contains(&took.as_millis()), "one attempt and three retries: {took:?}");
    proxy.configure(None, "http", &[(unresponsive, ""), (good, "")], json!({"connectTimeoutMs": 200})).await;
    for _ in 0..6 {
        assert_eq!(proxy.send("GET", "/", &[], "").await.0, 200, "the other endpoint is tried");
    }
    drop(waiting);
}

#[tokio::test]
async fn failing_endpoints_are_ejected() {
    let proxy = Proxy::start("outlier").await;
    let (good, _) = backend("v1", ok).await;
    let (bad, seen) = backend("v2", |_| (500, Duration::ZERO)).await;
    let endpoints = [(good, ""), (bad, "")];
    proxy.configure(None, "http", &endpoints, json!({"balancer": "roundRobin"})).await;
    let failures = async || {
        let mut failed = 0;
        for _ in 0..60 {
            failed += u32::from(proxy.send("GET", "/", &[], "").await.0 == 500);
        }
        failed
    };
    assert_eq!(failures().await, 5, "then it is ejected");
    assert_eq!(seen.requests.load(Ordering::SeqCst), 5);
    let (_, page) = proxy.get(proxy.metrics, "/metrics").await;
    let name = format!("shop/reviews:{}", proxy.address.port());
    for line in [
        format!("weft_outlier_ejections_total{{service=\"{name}\",detector=\"consecutive-5xx\"}} 1"),
        format!("weft_endpoints_ejected{{service=\"{name}\"}} 1"),
    ] {
        assert!(page.lines().any(|printed| printed == line), "{line} is not in {page}");
    }
    let off = json!({"balancer": "roundRobin", "outliers": {"maxEjectionPercent": 0}});
    proxy.configure(None, "http", &endpoints, off).await;
    assert_eq!(failures().await, 30, "every second request");
}

#[tokio::test]
async fn retry_budget_bounds_retries() {
    let proxy = Proxy::start("budget").await;
    let (failing, seen) = backend("v1", |_| (503, Duration::ZERO)).await;
    let retry = json!({"retry": {"attempts": 3, "codes": [503], "methods": ["GET"], "backoffMs": 1}});
    let action = forward(&proxy, &[("v1", 1)]);
    proxy.configure(routes(action, retry), "detect", &[(failing, "v1")], json!({"subsets": ["v1"]})).await;
    let begun = std::time::Instant::now();
    for _ in 0..1_000 {
        assert_eq!(proxy.send("GET", "/", &[], "").await.0, 503);
    }
    let reached = seen.requests.load(Ordering::SeqCst);
    // 20 % of the requests, and 10 in each second that has few of them, which a busy machine may make of any second.
    let most = 1_200 + 10 * u32::try_from(begun.elapsed().as_secs()).expect("not that long");
    assert!((1_100..=most).contains(&reached), "1000 requests reached the backend {reached} times, not {most}");
    let (_, page) = proxy.get(proxy.metrics, "/metrics").await;
    let refused = page.lines().find(|line| line.starts_with("weft_retries_refused_total{")).expect("counted");
    assert!(refused.contains("reason=\"budget\""), "{refused}");
}

#[tokio::test]
async fn hash_keys_and_sticky_cookies_keep_a_client_on_one_endpoint() {
    let proxy = Proxy::start("affinity").await;
    let names = ["v1", "v2", "v3", "v4"];
    let mut endpoints = Vec::new();
    for name in names {
        endpoints.push((backend(name, ok).await.0, ""));
    }
    for balancer in ["ringHash", "maglev"] {
        let settings = json!({"balancer": balancer, "hashOn": {"header": "x-user"}});
        proxy.configure(None, "http", &endpoints, settings).await;
        let mut seen = std::collections::BTreeSet::new();
        for user in 0..40 {
            let user = format!("user-{user}");
            let (_, _, first) = proxy.send("GET", "/", &[("x-user", &user)], "").await;
            let (_, _, second) = proxy.send("GET", "/", &[("x-user", &user)], "").await;
            assert_eq!(first, second, "{balancer}: {user}");
            seen.insert(first);
        }
        assert_eq!(seen.len(), 4, "{balancer}: every endpoint has keys");
    }
    let sticky = json!({"balancer": "roundRobin", "sticky": {"cookie": "s", "path": "/", "ttlSeconds": 60}});
    proxy.configure(None, "http", &endpoints, sticky).await;
    let (_, headers, first) = proxy.send("GET", "/", &[], "").await;
    let set = headers["set-cookie"].to_str().expect("text");
    assert!(set.starts_with("s=") && set.ends_with("; Path=/; Max-Age=60; HttpOnly"), "{set}");
    let cookie = set.split(';').next().expect("a value").to_owned();
    for _ in 0..20 {
        let (_, headers, body) = proxy.send("GET", "/", &[("cookie", &cookie)], "").await;
        assert_eq!(body, first, "the same endpoint");
        assert!(!headers.contains_key("set-cookie"), "the client has the cookie already");
    }
    let without: std::collections::BTreeSet<String> = {
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..8 {
            seen.insert(proxy.send("GET", "/", &[], "").await.2);
        }
        seen
    };
    assert_eq!(without.len(), 4, "clients without a cookie use all endpoints");
}

#[tokio::test]
async fn health_checks_remove_unhealthy_endpoints() {
    let proxy = Proxy::start("health").await;
    let (v1, _) = backend("v1", ok).await;
    // Its health check fails, and it still answers requests.
    let (v2, seen) = backend("v2", |_| (500, Duration::ZERO)).await;
    let settings = |kind: Value| {
        json!({
            "balancer": "roundRobin", "outliers": {"maxEjectionPercent": 0},
            "healthCheck": {
                "kind": kind, "intervalMs": 100, "timeoutMs": 100, "unhealthyAfter": 2, "healthyAfter": 2
            }
        })
    };
    let endpoints = [(v1, ""), (v2, "")];
    proxy.configure(None, "http", &endpoints, settings(json!({"http": {"path": "/health"}}))).await;
    let name = format!("weft_endpoints_unhealthy{{service=\"shop/reviews:{}\"}}", proxy.address.port());
    let await_unhealthy = async |count: u32| {
        for _ in 0..300 {
            proxy.send("GET", "/", &[], "").await;
            let (_, page) = proxy.get(proxy.metrics, "/metrics").await;
            if page.lines().any(|line| line == format!("{name} {count}")) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {count} unhealthy endpoints");
    };
    await_unhealthy(1).await;
    assert!(seen.heads.lock().expect("not poisoned").iter().any(|(target, _)| target == "/health"));
    for _ in 0..20 {
        assert_eq!(proxy.send("GET", "/", &[], "").await.0, 200);
    }
    proxy.configure(None, "http", &endpoints, settings(json!("tcp"))).await;
    await_unhealthy(0).await;
}

#[tokio::test]
async fn overload_refuses_requests_when_memory_is_short() {
    let proxy = Proxy::start("memory").await;
    let (v1, seen) = backend("v1", ok).await;
    proxy.configure(None, "http", &[(v1, "")], json!({})).await;
    let cgroup = proxy.folder.join("cgroup");
    std::fs::create_dir_all(&cgroup).expect("a folder");
    let used = |percent: u32| {
        std::fs::write(cgroup.join("memory.current"), percent.to_string()).expect("written");
        std::fs::write(cgroup.join("memory.max"), "100").expect("written");
    };
    let await_response = async |wanted: (u16, bool)| {
        for _ in 0..200 {
            let (status, headers, _) = proxy.send("GET", "/", &[], "").await;
            let closes = headers.get("connection").is_some_and(|value| value == "close");
            if (status.as_u16(), closes) == wanted {
                assert_eq!(status == 503, headers.get("weft-reason").is_some_and(|reason| reason == "overload"));
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {wanted:?}");
    };
    await_response((200, false)).await;
    used(93);
    await_response((200, true)).await;
    used(96);
    await_response((503, true)).await;
    let before = seen.requests.load(Ordering::SeqCst);
    proxy.send("GET", "/", &[], "").await;
    assert_eq!(seen.requests.load(Ordering::SeqCst), before, "the refused request does not reach the backend");
    used(98);
    while !proxy.get(proxy.metrics, "/metrics").await.1.contains("weft_memory_utilization_ratio 0.98") {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let waiting = tokio::spawn(get_status(proxy.address));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!waiting.is_finished(), "the proxy does not read");
    used(50);
    assert_eq!(waiting.await.expect("no panic"), 200, "the request has waited");
    await_response((200, false)).await;
}

async fn get_status(address: SocketAddr) -> u16 {
    send(address, "GET", "/", &[], "").await.0.as_u16()
}

#[tokio::test]
async fn invalid_documents_leave_the_last_good_one_in_use() {
    let proxy = Proxy::start("bad").await;
    let (v1, _) = backend("v1", ok).await;
    proxy.configure(None, "http", &[(v1, "")], json!({})).await;
    proxy.write("x.shop", &json!({"services": [{"name": "reviews", "surprise": true}]}));
    for _ in 0..200 {
        if proxy.get(proxy.health, "/readyz").await.1.contains("surprise") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (status, detail) = proxy.get(proxy.health, "/readyz").await;
    assert!(status == 200 && detail.contains("refused") && detail.contains("surprise"), "{status} {detail}");
    assert_eq!(proxy.send("GET", "/", &[], "").await.0, 200);
    std::fs::remove_file(proxy.folder.join("x.shop.json")).expect("removed");
    for _ in 0..200 {
        if proxy.get(proxy.health, "/readyz").await.1.contains("does not exist") {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(proxy.send("GET", "/", &[], "").await.0, 200, "a missing document is not an empty one");
}

#[tokio::test]
async fn drain_completes_open_requests() {
    let mut proxy = Proxy::start("drain").await;
    let (slow, _) = backend("v1", |_| (200, Duration::from_millis(600))).await;
    proxy.configure(None, "http", &[(slow, "")], json!({})).await;
    let open = tokio::spawn(get_status(proxy.address));
    tokio::time::sleep(Duration::from_millis(200)).await;
    proxy.stop.cancel();
    let running = proxy.running.take().expect("once");
    tokio::time::timeout(Duration::from_secs(3), running.finished())
        .await
        .expect("ends when open requests are complete");
    assert_eq!(open.await.expect("answered"), 200);
    assert!(TcpStream::connect(proxy.address).await.is_err(), "new connections are refused");
}

/// When a drain closes the listener, its accept queue holds connections with requests. They are answered.
#[tokio::test]
async fn drain_answers_connections_in_the_accept_queue() {
    let proxy = Proxy::start("drain-backlog").await;
    let (backend, _) = backend("v1", |_| (200, Duration::ZERO)).await;
    proxy.configure(None, "http", &[(backend, "")], json!({})).await;
    let (address, stop) = (proxy.address, proxy.stop.clone());
    let answers = tokio::task::spawn_blocking(move || {
        let clients: Vec<std::net::TcpStream> = (0..300)
            .map(|_| {
                let mut client = std::net::TcpStream::connect(address).expect("connects");
                client.write_all(b"GET / HTTP/1.1\r\nhost: reviews\r\n\r\n").expect("written");
                client
            })
            .collect();
        stop.cancel();
        let answer = |mut client: std::net::TcpStream| {
            let mut answer = Vec::new();
            let read = client.read_to_end(&mut answer);
            (read.is_ok(), String::from_utf8_lossy(&answer[..answer.len().min(12)]).into_owned())
        };
        clients.into_iter().map(answer).collect::<Vec<_>>()
    });
    let answers = answers.await.expect("answered");
    let odd: Vec<_> = answers.iter().filter(|answer| **answer != (true, "HTTP/1.1 200".to_owned())).collect();
    assert!(odd.is_empty(), "{} of {}: {:?}", odd.len(), answers.len(), odd.first());
}
