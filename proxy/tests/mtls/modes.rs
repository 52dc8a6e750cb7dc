//! Modes: where plaintext is sent and accepted, and where not.

use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::*;

/// ID-13
#[tokio::test(flavor = "multi_thread")]
async fn id_13_plaintext_passes_in_permissive_mode_and_is_classed() {
    let ca = Ca::new("cluster.local");
    let (application, _) = application().await;
    let server = Proxy::ready(application, Some(&ca.identity(WEB)), json!({})).await;
    let client = Proxy::ready(free_address(), Some(&ca.identity(CART)), json!({})).await;
    client.export(json!([endpoint(server.inbound, None)])).await;
    let (status, _, body) = client.get(&[("x-forwarded-client-cert", CART)]).await;
    assert_eq!(status, 200);
    assert!(!body.contains("x-forwarded-client-cert"), "nobody was proven: {body}");
    let event = |proxy: Vec<Value>| (proxy[0]["security"].clone(), proxy[0]["plaintext"].clone());
    assert_eq!(event(client.events(1).await), (json!("plaintext"), json!("outside-mesh")));
    assert_eq!(event(server.events(1).await), (json!("plaintext"), json!("permissive")));
    let labels = ["security=\"plaintext\"", "plaintext=\"permissive\""];
    assert_eq!(server.sum("weft_requests_total", &labels).await, 1);
    client.export(json!([{"address": server.inbound, "excluded": true}])).await;
    assert_eq!(client.get(&[]).await.0, 200);
    assert_eq!(client.events(2).await[1]["plaintext"], "excluded");
}

/// ID-13
#[tokio::test(flavor = "multi_thread")]
async fn id_13_strict_server_refuses_plaintext() {
    let ca = Ca::new("cluster.local");
    let (application, heads) = application().await;
    let server = Proxy::ready(application, Some(&ca.identity(WEB)), strict("inbound")).await;
    let (status, headers, body) = get(server.inbound, &[]).await;
    assert_eq!((status.as_u16(), reason(&headers)), (403, "plaintext-refused"), "{body}");
    assert!(heads.lock().expect("not poisoned").is_empty());

    // TCP, and the TLS of an application.
    let (raw, connections) = raw_application(async |mut stream: TcpStream| {
        let _ = stream.write_all(b"welcome").await;
    })
    .await;
    let server = Proxy::ready(raw, Some(&ca.identity(WEB)), strict("inbound")).await;
    for first in [&b"\0\x01\x02"[..], b"\x16\x03\x01\0\x05hello", b""] {
        let mut stream = TcpStream::connect(server.inbound).await.expect("connects");
        stream.write_all(first).await.expect("sent");
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut answer)).await.expect("it is closed");
        assert!(answer.is_empty(), "{first:?}: {answer:?}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 0, "the application was not connected to");
    assert_eq!(server.sum("weft_tcp_connections_total", &["reason=\"plaintext-refused\""]).await, 3);
}

/// ID-13: also if the document loses the endpoint's identity, and for connections that are open already.
#[tokio::test(flavor = "multi_thread")]
async fn id_13_strict_client_never_sends_plaintext() {
    let ca = Ca::new("cluster.local");
    let (application, heads) = application().await;
    let server = Proxy::ready(application, Some(&ca.identity(WEB)), json!({})).await;
    let client = Proxy::ready(free_address(), Some(&ca.identity(CART)), json!({})).await;
    client.export(json!([endpoint(server.inbound, None)])).await;
    assert_eq!(client.get(&[]).await.0, 200, "Permissive");
    write(&client.folder, "i.shop.json", &strict("outbound").to_string());
    let refused = async || reason(&client.get(&[]).await.1) == "plaintext-refused";
    wait("the mode is in use", refused).await;
    let before = heads.lock().expect("not poisoned").len();
    for protocol in ["detect", "http2", "tcp"] {
        client.export_as(protocol, json!({}), None, json!([endpoint(server.inbound, None)])).await;
        if protocol == "tcp" {
            let mut stream = TcpStream::connect(client.outbound).await.expect("connects");
            let _ = stream.write_all(b"secret").await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            assert!(answer.is_empty());
        } else {
            let (status, headers, _) = client.get(&[]).await;
            assert_eq!((status.as_u16(), reason(&headers)), (403, "plaintext-refused"), "{protocol}");
        }
    }
    assert_eq!(heads.lock().expect("not poisoned").len(), before, "nothing was sent");
    client.export(json!([endpoint(server.inbound, Some("web"))])).await;
    assert_eq!(client.get(&[]).await.0, 200, "with an identity again");
}

/// ID-12: a proxy that expects a certificate and has none does not fall back to plaintext, in no mode.
#[tokio::test(flavor = "multi_thread")]
async fn id_12_nothing_is_sent_before_the_first_certificate() {
    let ca = Ca::new("cluster.local");
    let (application, heads) = application().await;
    let server = Proxy::ready(application, Some(&ca.identity(WEB)), json!({})).await;
    let empty = folder();
    let client = Proxy::start(free_address(), Some(&empty), json!({}));
    wait("the proxy runs", async || client.page("/readyz").await.contains("identity: waiting")).await;
    assert!(client.page("/readyz").await.starts_with("HTTP/1.1 503"));
    client.export(json!([endpoint(server.inbound, Some("web"))])).await;
    let (status, headers, body) = client.get(&[]).await;
    assert_eq!((status.as_u16(), reason(&headers)), (503, "no-certificate"), "{body}");
    assert!(heads.lock().expect("not poisoned").is_empty());
    ca.write(&empty, CART, UnixTime::now(), HOUR);
    wait("it has an identity", async || client.get(&[]).await.0 == 200).await;
    client.await_ready().await;
    assert!(heads.lock().expect("not poisoned")[0].contains_key("x-forwarded-client-cert"));

    // The server likewise: it does not take the connection for the application's TLS.
    let server = Proxy::start(application, Some(&folder()), json!({}));
    wait("the proxy runs", async || TcpStream::connect(server.inbound).await.is_ok()).await;
    client.export(json!([endpoint(server.inbound, Some("web"))])).await;
    wait("it accepts connections", async || reason(&client.get(&[]).await.1) == "mtls-handshake").await;
    assert!(server.sum("weft_tcp_connections_total", &["reason=\"no-certificate\""]).await > 0);
}

/// A Strict server refuses plaintext checks too.
#[tokio::test(flavor = "multi_thread")]
async fn health_checks_prove_who_they_are() {
    let ca = Ca::new("cluster.local");
    let (application, heads) = application().await;
    let (client, server) = pair(&ca, application, strict("inbound")).await;
    let wrong = Proxy::ready(application, Some(&ca.identity(BANK)), json!({})).await;
    let check = json!({
        "kind": {"http": {"path": "/healthz"}}, "intervalMs": 50, "timeoutMs": 1000, "unhealthyAfter": 1, "healthyAfter": 1
    });
    let endpoints = json!([endpoint(server.inbound, Some("web")), endpoint(wrong.inbound, Some("web"))]);
    client.export_as("detect", json!({"healthCheck": check}), None, endpoints).await;
    // Clusters are checked once they are in use.
    assert_eq!(client.get(&[]).await.0, 200);
    let unhealthy = async || client.sum("weft_endpoints_unhealthy", &[]).await == 1;
    wait("the endpoint that is somebody else is unhealthy", unhealthy).await;
    assert_eq!(client.sum("weft_endpoints_healthy", &[]).await, 1);
    let checked = |head: &HeaderMap| head.get("user-agent").is_some_and(|agent| agent == "weft-probe");
    let seen = || heads.lock().expect("not poisoned").iter().filter(|head| checked(head)).count();
    wait("checks arrive", async || seen() > 3).await;
    assert_eq!(server.sum("weft_requests_total", &["plaintext-refused"]).await, 0);
}

/// ID-05: files that are half written, or of another key, change nothing; a renewed certificate is used at once, and open
/// connections go on.
#[tokio::test(flavor = "multi_thread")]
async fn id_05_last_good_identity_stays_in_use() {
    let ca = Ca::new("cluster.local");
    let (application, _) = application().await;
    let identity = ca.identity(WEB);
    let server = Proxy::ready(application, Some(&identity), strict("inbound")).await;
    let client = Proxy::ready(free_address(), Some(&ca.identity(CART)), json!({})).await;
    client.export(json!([endpoint(server.inbound, Some("web"))])).await;
    let other = ca.identity(WEB);
    let other = |name: &str| std::fs::read_to_string(other.join(name)).expect("a file");
    for (name, text) in [
        ("bundle.json", String::new()),
        ("bundle.json", r#"{"domains":{}}"#.to_owned()),
        ("tls.crt", String::new()),
        ("tls.key", "damaged".to_owned()),
        ("tls.key", other("tls.key")),
    ] {
        let good = std::fs::read_to_string(identity.join(name)).expect("a file");
        let refused = server.log().matches("identity refused").count();
        write(&identity, name, &text);
        wait("it is refused", async || server.log().matches("identity refused").count() > refused).await;
        let stream = TcpStream::connect(server.inbound).await.expect("connects");
        drop(stream);
        let (status, _, body) = client.get(&[]).await;
        assert_eq!(status, 200, "{name} {text:?}: {body}");
        let (status, headers, _) = get(server.inbound, &[]).await;
        assert_eq!((status.as_u16(), reason(&headers)), (403, "plaintext-refused"), "{name} {text:?}");
        write(&identity, name, &good);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    for name in ["bundle.json", "tls.crt", "tls.key"] {
        let good = std::fs::read_to_string(identity.join(name)).expect("a file");
        let refused = server.log().matches("identity refused").count();
        std::fs::remove_file(identity.join(name)).expect("removed");
        wait("it is refused", async || server.log().matches("identity refused").count() > refused).await;
        assert_eq!(client.get(&[]).await.0, 200, "without {name}");
        assert_eq!(reason(&get(server.inbound, &[]).await.1), "plaintext-refused", "without {name}");
        write(&identity, name, &good);
        tokio::time::sleep(Duration::from_millis(150)).await;
    }
    ca.write(&identity, BANK, UnixTime::now(), HOUR);
    let in_use = format!("\"id\":\"{BANK}\"");
    wait("the new one is in use", async || server.log().contains(&in_use)).await;
    assert_eq!(client.get(&[]).await.0, 200, "on the open connection");
}

/// ID-05, ID-10: a proxy that finds no roots when it starts is not ready, and accepts no connection of another proxy: it is
/// never one that demands no certificate. Without fingerprints of the roots, it does not start.
#[tokio::test(flavor = "multi_thread")]
async fn id_05_proxy_without_roots_serves_nobody() {
    let ca = Ca::new("cluster.local");
    let (application, heads) = application().await;
    let client = Proxy::ready(free_address(), Some(&ca.identity(CART)), json!({})).await;
    for (desc, bundle) in [
        ("no file", None),
        ("an empty file", Some("")),
        ("no trust domain", Some(r#"{"domains":{}}"#)),
        ("no root", Some(r#"{"domains":{"cluster.local":[]}}"#)),
        (
            "a damaged root",
            Some(r#"{"domains":{"cluster.local":["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]}}"#),
        ),
        ("half of the file", Some(r#"{"domains":{"cluster.local":["-----BEGIN CERT"#)),
    ] {
        let identity = ca.identity(WEB);
        std::fs::remove_file(identity.join("bundle.json")).expect("removed");
        if let Some(bundle) = bundle {
            write(&identity, "bundle.json", bundle);
        }
        let server = Proxy::start(application, Some(&identity), strict("inbound"));
        wait("it is refused", async || server.log().contains("identity refused")).await;
        assert!(server.page("/readyz").await.starts_with("HTTP/1.1 503 "), "{desc}");
        client.export(json!([endpoint(server.inbound, Some("web"))])).await;
        wait("it accepts connections", async || TcpStream::connect(server.inbound).await.is_ok()).await;
        let (status, headers, body) = client.get(&[]).await;
        assert_eq!(status, 503, "{desc}: {} {body}", reason(&headers));
    }
    assert!(heads.lock().expect("not poisoned").is_empty());

    let (root, no_roots) = (Root::new(), [("WEFT_ROOTS", "")]);
    let authority = Fake::start(&root, fake::Behaviour::new(&root)).await;
    let mut proxy = Proxy::certified(&authority, &root, "web", application, json!({}), &no_roots);
    let status = tokio::task::block_in_place(|| proxy.child.wait()).expect("it ends");
    assert_eq!((status.success(), authority.requests()), (false, 0));
}

/// The private document of a Strict namespace that declares a port for plaintext from these addresses.
fn declared(port: u16, blocks: &[&str]) -> Value {
    let entry = json!({"port": port, "mode": "permissive", "ipBlocks": blocks});
    json!({"mtls": {"inbound": "strict", "policies": [{"name": "scraper", "target": "namespace", "ports": [entry]}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn id_13_declared_port_accepts_plaintext_from_its_blocks_only() {
    let ca = Ca::new("cluster.local");
    let (application, heads) = application().await;
    let port = application.port();
    let server = Proxy::ready(application, Some(&ca.identity(WEB)), declared(port, &["127.0.0.0/8"])).await;
    let (status, _, body) = get(server.inbound, &[("x-forwarded-client-cert", CART)]).await;
    assert_eq!(status, 200);
    assert!(!body.contains("x-forwarded-client-cert"), "nobody was proven: {body}");
    let event = server.events(1).await.remove(0);
    assert_eq!((&event["security"], &event["plaintext"]), (&json!("plaintext"), &json!("declared")));
    assert_eq!(server.sum("weft_requests_total", &["plaintext=\"declared\""]).await, 1);
    assert_eq!(callers(&server).await, json!([]), "Strict would not refuse it");

    // Other addresses, and other ports.
    for policies in [declared(port, &["198.18.0.0/15", "::1/128"]), declared(port ^ 1, &["127.0.0.0/8"])] {
        write(&server.folder, "i.shop.json", &policies.to_string());
        let refused = async || reason(&get(server.inbound, &[]).await.1) == "plaintext-refused";
        wait("the document is in use", refused).await;
    }
    let served = heads.lock().expect("not poisoned").len();
    assert_eq!(get(server.inbound, &[]).await.0, 403);
    assert_eq!(heads.lock().expect("not poisoned").len(), served);
}

/// A policy for the port decides, whatever the mode of the client and whatever the document says of the endpoint.
#[tokio::test(flavor = "multi_thread")]
async fn id_13_mode_of_the_port_comes_before_that_of_the_client() {
    let ca = Ca::new("cluster.local");
    let (application, heads) = application().await;
    let server = Proxy::ready(application, Some(&ca.identity(WEB)), json!({})).await;
    let plain = || json!([endpoint(server.inbound, None)]);
    let client = Proxy::ready(free_address(), Some(&ca.identity(CART)), json!({})).await;
    client.export(plain()).await;
    assert_eq!(client.get(&[]).await.0, 200, "both are Permissive");
    for protocol in ["detect", "http2"] {
        client.export_with(protocol, "strict", plain()).await;
        let before = heads.lock().expect("not poisoned").len();
        let (status, headers, _) = client.get(&[]).await;
        assert_eq!((status.as_u16(), reason(&headers)), (403, "plaintext-refused"), "{protocol}");
        assert_eq!(heads.lock().expect("not poisoned").len(), before, "not on the open connection either");
    }
    client.export_with("detect", "strict", json!([endpoint(server.inbound, Some("web"))])).await;
    assert_eq!(client.get(&[]).await.0, 200, "with an identity");

    let client = Proxy::ready(free_address(), Some(&ca.identity(CART)), strict("outbound")).await;
    client.export(plain()).await;
    assert_eq!(reason(&client.get(&[]).await.1), "plaintext-refused");
    client.export_with("detect", "permissive", plain()).await;
    assert_eq!(client.get(&[]).await.0, 200, "the port takes plaintext from a Strict client");

    // Without an identity of its own, a client's proxy keeps to it too.
    let client = Proxy::ready(free_address(), None, json!({})).await;
    client.export_with("detect", "strict", json!([endpoint(server.inbound, Some("web"))])).await;
    assert_eq!(reason(&client.get(&[]).await.1), "plaintext-refused");
}

/// Somebody between the proxies changes the names in the ClientHello, so that the server's proxy takes it for one of the
/// application's own.
#[tokio::test(flavor = "multi_thread")]
async fn id_13_alpn_stripped_on_the_way_exposes_nothing() {
    let ca = Ca::new("cluster.local");
    let received = Arc::new(Mutex::new(Vec::new()));
    let seen = received.clone();
    let (application, _) = raw_application(move |mut stream: TcpStream| {
        let seen = seen.clone();
        async move {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                seen.lock().expect("not poisoned").extend_from_slice(&bytes[..count]);
            }
        }
    })
    .await;
    for mode in [json!({}), strict("inbound")] {
        let server = Proxy::ready(application, Some(&ca.identity(WEB)), mode.clone()).await;
        let inbound = server.inbound;
        let (between, _) = raw_application(move |mut client: TcpStream| async move {
            let mut server = TcpStream::connect(inbound).await.expect("connects");
            let mut hello = vec![0; 16 * 1024];
            let mut count = client.read(&mut hello).await.unwrap_or_default();
            while let Ok(Ok(more @ 1..)) =
                tokio::time::timeout(Duration::from_millis(50), client.read(&mut hello[count..])).await
            {
                count += more;
            }
            while let Some(at) = hello[..count].windows(5).position(|name| name == b"weft-") {
                hello[at] = b'x';
            }
            let _ = server.write_all(&hello[..count]).await;
            let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        })
        .await;
        let client = Proxy::ready(free_address(), Some(&ca.identity(CART)), json!({})).await;
        let settings = json!({"connectTimeoutMs": 500});
        client.export_as("detect", settings, None, json!([endpoint(between, Some("web"))])).await;
        let (status, headers, body) = client.get(&[("x-secret", "swordfish")]).await;
        assert_eq!(status, 503, "{mode}: {} {body}", reason(&headers));
    }
    let received = received.lock().expect("not poisoned");
    assert!(!received.windows(9).any(|bytes| bytes == b"swordfish"), "no part of the request");
}

/// What the proxy says of its plaintext callers.
async fn callers(proxy: &Proxy) -> Value {
    let page = proxy.page("/plaintext-callers").await;
    let body = page.split("\r\n\r\n").nth(1).expect("a body");
    serde_json::from_str::<Value>(body).expect("JSON")["callers"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn plaintext_callers_are_reported_and_no_others() {
    let ca = Ca::new("cluster.local");
    let (application, _) = application().await;
    let guarded = json!({"policies": [{
        "name": "guard", "target": "namespace", "rules": [{"action": "deny", "paths": [{"prefix": "/denied"}]}]
    }]});
    let (client, server) = pair(&ca, application, guarded).await;
    assert_eq!(client.get(&[]).await.0, 200);
    let mut denied = TcpStream::connect(server.inbound).await.expect("connects");
    denied.write_all(b"GET /denied HTTP/1.1\r\nhost: web\r\n\r\n").await.expect("sent");
    assert!(denied.read(&mut [0; 64]).await.is_ok_and(|count| count > 0));
    drop(TcpStream::connect(server.inbound).await.expect("connects"));
    assert_eq!(callers(&server).await, json!([]), "mutual TLS, a denied request, and a connection without a byte");

    let mut plain = TcpStream::connect(server.inbound).await.expect("connects");
    for _ in 0..2 {
        plain.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.expect("sent");
        assert!(plain.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0));
    }
    let port = application.port();
    let caller =
        |open: u32| json!([{"address": "127.0.0.1", "port": port, "connections": 1, "open": open, "secondsAgo": 0}]);
    assert_eq!(callers(&server).await, caller(1), "one connection, however many requests");
    drop(plain);
    wait("the connection ends", async || callers(&server).await == caller(0)).await;
    assert_eq!(server.sum("weft_requests_total", &["plaintext=\"permissive\""]).await, 3);
}

/// Of a port that becomes Strict, and of no other connection: requests in flight, idle HTTP/1.1 and HTTP/2 connections,
/// and TCP.
#[tokio::test(flavor = "multi_thread")]
async fn id_13_plaintext_connections_end_within_2_s_when_their_port_becomes_strict() {
    let ca = Ca::new("cluster.local");
    let (application, _) = application().await;
    let (client, server) = pair(&ca, application, json!({})).await;
    let mut idle = TcpStream::connect(server.inbound).await.expect("connects");
    idle.write_all(b"GET / HTTP/1.1\r\nhost: web\r\n\r\n").await.expect("sent");
    assert!(idle.read(&mut [0; 4096]).await.is_ok_and(|count| count > 0));
    let mut uploading = TcpStream::connect(server.inbound).await.expect("connects");
    uploading.write_all(b"POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 9\r\n\r\n").await.expect("sent");
    let http2 = TcpStream::connect(server.inbound).await.expect("connects");
    let (mut sender, http2) = h2::client::handshake(http2).await.expect("HTTP/2");
    let http2 = tokio::spawn(http2);
    let request = Request::get("http://web/").body(()).expect("a request");
    let (response, _) = sender.send_request(request, true).expect("sent");
    assert_eq!(response.await.expect("a response").status(), 200);
    let mut mutual = TcpStream::connect(client.outbound).await.expect("connects");
    mutual.write_all(b"POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 2\r\n\r\no").await.expect("sent");

    let (echo, _) = raw_application(async |mut stream: TcpStream| {
        let mut bytes = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut bytes).await {
            let _ = stream.write_all(&bytes[..count]).await;
        }
    })
    .await;
    let tcp = Proxy::ready(echo, Some(&ca.identity(WEB)), json!({})).await;
    let mut relayed = TcpStream::connect(tcp.inbound).await.expect("connects");
    relayed.write_all(b"\0\x01").await.expect("sent");
    relayed.read_exact(&mut [0; 2]).await.expect("an echo");

    let open = async || server.sum("weft_downstream_connections_open", &["inbound"]).await;
    wait("the upload has begun", async || server.sum("weft_requests_in_flight", &[]).await > 0 || open().await >= 4)
        .await;
    let begun = Instant::now();
    write(&server.folder, "i.shop.json", &strict("inbound").to_string());
    write(&tcp.folder, "i.shop.json", &strict("inbound").to_string());
    let mut rest = Vec::new();
    for (desc, stream) in [("idle", &mut idle), ("TCP", &mut relayed), ("in flight", &mut uploading)] {
        let _ = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut rest)).await.expect("it ends");
        assert!(begun.elapsed() < Duration::from_secs(2), "{desc}: {:?}", begun.elapsed());
    }
    drop((idle, uploading, relayed));
    tokio::time::timeout(TIMEOUT, http2).await.expect("it ends").expect("no panic").expect("GOAWAY, and no error");
    assert!(begun.elapsed() < Duration::from_secs(2), "HTTP/2: {:?}", begun.elapsed());
    assert_eq!(tcp.sum("weft_tcp_connections_total", &["reason=\"plaintext-refused\""]).await, 1);

    mutual.write_all(b"k").await.expect("sent");
    let count = mutual.read(&mut [0; 12]).await.expect("a response");
    assert_eq!(count, 12, "mutual TLS goes on");
    assert_eq!(client.get(&[]).await.0, 200);
}
