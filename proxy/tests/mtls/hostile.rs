//! Peers that are not who they should be, or do not speak as they should. Nothing of a request reaches them.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::sign::{CertifiedKey, SingleCertAndKey};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use weft_identity::tls::{self, Trust};
use weft_identity::{CertificateDer, UnixTime, pem};

use crate::*;

/// The identity in a folder, for a peer that the test itself plays.
fn certified(folder: &Path) -> CertifiedKey {
    let read = |name| std::fs::read(folder.join(name)).expect("a file");
    let chain: Vec<CertificateDer<'static>> = pem::read_certificates(&read("tls.crt")).expect("certificates");
    let key = pem::read_private_key(&read("tls.key")).expect("a key");
    CertifiedKey::new(chain, rustls::crypto::aws_lc_rs::sign::any_supported_type(&key).expect("a key"))
}

/// ID-13: a pod's address may belong to another workload a moment later.
#[tokio::test(flavor = "multi_thread")]
async fn id_13_request_for_one_identity_never_reaches_another() {
    let ca = Ca::new("cluster.local");
    let ((right, _), (wrong, wrong_heads)) = (application().await, application().await);
    let (client, server) = pair(&ca, right, json!({})).await;
    let other = Proxy::ready(wrong, Some(&ca.identity(BANK)), json!({})).await;
    client.export(json!([endpoint(server.inbound, Some("web")), endpoint(other.inbound, Some("web"))])).await;
    for number in 0..200 {
        let (status, headers, body) = client.get(&[]).await;
        assert_eq!(status, 200, "request {number}: {} {body}", reason(&headers));
    }
    assert!(wrong_heads.lock().expect("not poisoned").is_empty(), "nothing reached the wrong pod");
    assert!(client.sum("weft_retries_total", &["connect"]).await > 0, "it was tried");
    assert_eq!(other.sum("weft_requests_total", &[]).await, 0);

    // Also over HTTP/2 and in TCP relays, on a new connection each: the client's proxy relays the request as bytes.
    let both = json!([endpoint(server.inbound, Some("web")), endpoint(other.inbound, Some("web"))]);
    for protocol in ["http2", "tcp"] {
        client.export_as(protocol, json!({}), None, both.clone()).await;
        for number in 0..50 {
            let (status, headers, body) = client.get(&[]).await;
            assert_eq!(status, 200, "{protocol} {number}: {} {body}", reason(&headers));
        }
    }
    assert!(wrong_heads.lock().expect("not poisoned").is_empty(), "nothing reached the wrong pod");

    client.export_as("detect", json!({}), None, json!([endpoint(other.inbound, Some("web"))])).await;
    let (status, headers, body) = client.get(&[]).await;
    assert_eq!((status.as_u16(), reason(&headers)), (503, "wrong-identity"), "{body}");
    assert!(body.contains(BANK) && body.contains(WEB), "it names who is there and who should be: {body}");
    assert!(wrong_heads.lock().expect("not poisoned").is_empty());
}

/// ID-13: pods come and go, and addresses are used again before the client's proxy hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn id_13_reused_addresses_get_nothing_of_their_former_owners() {
    const ROUNDS: usize = 20;
    let ca = Ca::new("cluster.local");
    let ((right, _), (wrong, wrong_heads)) = (application().await, application().await);
    let (client, server) = pair(&ca, right, json!({})).await;
    let identities = [ca.identity(WEB), ca.identity(BANK)];
    let address = free_address();
    // Otherwise an endpoint that fails is not tried again for half a minute.
    let settings = json!({"balancer": "roundRobin", "outliers": {"consecutiveLocalFailures": 0}});
    let endpoints = json!([endpoint(server.inbound, Some("web")), endpoint(address, Some("web"))]);
    client.export_as("detect", settings, None, endpoints).await;
    let done = Arc::new(AtomicU32::new(0));
    let senders: Vec<_> = (0..4)
        .map(|_| {
            let (done, address) = (done.clone(), client.outbound);
            tokio::spawn(async move {
                let mut sent = 0;
                while done.load(Ordering::SeqCst) == 0 {
                    // A request that is in flight when its pod is killed may fail; it must not reach another one.
                    get(address, &[]).await;
                    sent += 1;
                }
                sent
            })
        })
        .collect();
    for round in 0..ROUNDS {
        // The same address: first of the pod that the client's proxy knows, then of another one, which is refused.
        let owner = Proxy::at(address, right, Some(&identities[0]), json!({}), &[]);
        owner.await_ready().await;
        let served = async || owner.sum("weft_requests_total", &["security=\"mtls\""]).await > 0;
        wait(&format!("round {round}: the pod gets requests"), served).await;
        drop(owner);
        let other = Proxy::at(address, wrong, Some(&identities[1]), json!({}), &[]);
        other.await_ready().await;
        let tried = async || other.sum("weft_tcp_connections_total", &["mtls-handshake"]).await > 0;
        wait(&format!("round {round}: the other pod is tried"), tried).await;
        assert_eq!(client.get(&[]).await.0, 200);
        drop(other);
    }
    done.store(1, Ordering::SeqCst);
    let mut sent = 0;
    for sender in senders {
        sent += sender.await.expect("no panic");
    }
    assert!(sent > ROUNDS, "{sent} requests");
    assert!(wrong_heads.lock().expect("not poisoned").is_empty(), "of {sent} requests");
    eprintln!("{sent} requests");
}

/// ID-01
#[tokio::test(flavor = "multi_thread")]
async fn id_01_other_trust_domains_and_unknown_roots_are_refused() {
    let ca = Ca::new("cluster.local");
    let (application, heads) = application().await;
    for (desc, peer) in [("another trust domain", Ca::new("other.example")), ("unknown root", Ca::new("cluster.local"))]
    {
        let id = WEB.replace("cluster.local", peer.issuer.trust_domain().as_str());
        let server = Proxy::ready(application, Some(&peer.identity(&id)), json!({})).await;
        let client = Proxy::ready(free_address(), Some(&ca.identity(CART)), json!({})).await;
        client.export(json!([endpoint(server.inbound, Some("web"))])).await;
        let (status, headers, body) = client.get(&[]).await;
        assert_eq!((status.as_u16(), reason(&headers)), (503, "mtls-handshake"), "{desc}: {body}");
        assert!(heads.lock().expect("not poisoned").is_empty(), "{desc}");
        let failed = async || server.sum("weft_tcp_connections_total", &["reason=\"mtls-handshake\""]).await > 0;
        wait("the server counts the handshake", failed).await;
    }
}

/// ID-06: the server of an expired certificate is refused in the handshake, and a client does not begin one with an
/// expired certificate of its own.
#[tokio::test(flavor = "multi_thread")]
async fn id_06_expired_certificates_are_refused_by_both_sides() {
    let ca = Ca::new("cluster.local");
    let (application, heads) = application().await;
    for expires in [WEB, CART] {
        let identities = [WEB, CART].map(|id| {
            let folder = folder();
            // Peers tolerate 20 s, so it is accepted when it is read and refused two seconds later.
            let from = UnixTime::since_unix_epoch(Duration::from_secs(UnixTime::now().as_secs() - 48));
            let (from, lifetime) =
                if id == expires { (from, Duration::from_secs(30)) } else { (UnixTime::now(), HOUR) };
            ca.write(&folder, id, from, lifetime);
            folder
        });
        let server = Proxy::start(application, Some(&identities[0]), json!({}));
        let client = Proxy::start(free_address(), Some(&identities[1]), json!({}));
        server.await_ready().await;
        client.await_ready().await;
        client.export(json!([endpoint(server.inbound, Some("web"))])).await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        heads.lock().expect("not poisoned").clear();
        for protocol in ["detect", "http2"] {
            client.export_as(protocol, json!({}), None, json!([endpoint(server.inbound, Some("web"))])).await;
            let (status, headers, body) = client.get(&[]).await;
            // A client knows the end of its own certificate.
            let expected = if expires == WEB { "mtls-handshake" } else { "no-certificate" };
            assert_eq!((status.as_u16(), reason(&headers)), (503, expected), "{expires} {protocol}: {body}");
            assert!(body.contains("expired at"), "{body}");
        }
        assert!(heads.lock().expect("not poisoned").is_empty(), "{expires}");
    }
}

/// In TLS 1.3 a client learns that it was refused when it reads, and may have sent a request by then. Nobody has read it: it
/// goes to another endpoint, also if it is a POST.
#[tokio::test(flavor = "multi_thread")]
async fn request_that_was_sent_with_a_refused_certificate_is_sent_elsewhere() {
    let (own, other) = (Ca::new("cluster.local"), Ca::new("cluster.local"));
    let domain = own.issuer.trust_domain().clone();
    let roots = [&own, &other].map(|ca| ca.bundle.roots(&domain)[0].certificate().clone());
    let both = TrustBundle::new(domain, roots).expect("a bundle");
    let identity = own.identity(CART);
    write(&identity, "bundle.json", &serde_json::to_string(&both).expect("JSON"));
    let ((accepting, _), (refusing, refusing_heads)) = (application().await, application().await);
    let accepting = Proxy::ready(accepting, Some(&own.identity(WEB)), json!({})).await;
    // It is trusted by the client, and does not trust the client.
    let refusing = Proxy::ready(refusing, Some(&other.identity(WEB)), json!({})).await;
    let client = Proxy::ready(free_address(), Some(&identity), json!({})).await;
    let endpoints = json!([endpoint(accepting.inbound, Some("web")), endpoint(refusing.inbound, Some("web"))]);
    for protocol in ["detect", "http2"] {
        client.export_as(protocol, json!({}), None, endpoints.clone()).await;
        for number in 0..30 {
            let mut stream = TcpStream::connect(client.outbound).await.expect("connects");
            let request = "POST / HTTP/1.1\r\nhost: web\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello";
            stream.write_all(request.as_bytes()).await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("a response");
            assert!(answer.starts_with("HTTP/1.1 200 "), "{protocol} {number}: {answer}");
        }
    }
    assert!(refusing.sum("weft_tcp_connections_total", &["mtls-handshake"]).await > 0, "it was tried");
    assert!(refusing_heads.lock().expect("not poisoned").is_empty());
}

/// ID-13: a peer with the right certificate that agrees to no protocol, one that answers in plaintext, and one that
/// closes: the client's proxy sends them no request, whatever its mode.
#[tokio::test(flavor = "multi_thread")]
async fn id_13_stripped_alpn_and_plaintext_servers_get_nothing() {
    let ca = Ca::new("cluster.local");
    let certificate = Arc::new(SingleCertAndKey::from(certified(&ca.identity(WEB))));
    let config = tls::mutual_server(Arc::new(ca.bundle.clone()), certificate, &[]).expect("a configuration");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let heard = Arc::new(Mutex::new(Vec::<u8>::new()));
    let stripped = heard.clone();
    let (stripped, _) = raw_application(move |stream| {
        let (acceptor, heard) = (acceptor.clone(), stripped.clone());
        async move {
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes).await;
            heard.lock().expect("not poisoned").extend(bytes);
        }
    })
    .await;
    let plain = heard.clone();
    let (plain, _) = raw_application(move |mut stream| {
        let heard = plain.clone();
        async move {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            let mut bytes = Vec::new();
            let _ = stream.read_to_end(&mut bytes).await;
            let text = String::from_utf8_lossy(&bytes);
            if text.contains("GET") || text.contains("secret") {
                heard.lock().expect("not poisoned").extend(bytes);
            }
        }
    })
    .await;
    let (closing, connections) = raw_application(async |_| {}).await;
    for (mode, private) in [("permissive", json!({})), ("strict", strict("outbound"))] {
        let client = Proxy::ready(free_address(), Some(&ca.identity(CART)), private).await;
        for (desc, address) in [("stripped", stripped), ("plaintext", plain), ("closing", closing)] {
            for protocol in ["detect", "http2"] {
                client.export_as(protocol, json!({}), None, json!([endpoint(address, Some("web"))])).await;
                let (status, headers, body) = client.get(&[("x-secret", "secret")]).await;
                let found = (status.as_u16(), reason(&headers));
                assert_eq!(found, (503, "mtls-handshake"), "{mode} {desc} {protocol}: {body}");
            }
        }
    }
    assert!(connections.load(Ordering::SeqCst) > 0);
    assert_eq!(String::from_utf8_lossy(&heard.lock().expect("not poisoned")), "");
}

/// A client that stops after its ClientHello, and a server that never answers one.
#[tokio::test(flavor = "multi_thread")]
async fn handshakes_time_out() {
    let ca = Ca::new("cluster.local");
    let (application, _) = application().await;
    let environment = [("WEFT_TIMEOUTS_MS", r#"{"head":300}"#)];
    let server = Proxy::with(application, Some(&ca.identity(WEB)), json!({}), &environment);
    let client = Proxy::start(free_address(), Some(&ca.identity(CART)), json!({}));
    server.await_ready().await;
    client.await_ready().await;

    let trust = Trust::Bundle(Arc::new(ca.bundle.clone()));
    let config = tls::client(trust, WEB.parse().expect("an id"), None, &[b"weft-h2"]).expect("a configuration");
    let name = std::net::IpAddr::from([127, 0, 0, 1]).into();
    let mut session = rustls::ClientConnection::new(Arc::new(config), name).expect("a session");
    let mut hello = Vec::new();
    session.write_tls(&mut hello).expect("a ClientHello");
    let mut stream = TcpStream::connect(server.inbound).await.expect("connects");
    stream.write_all(&hello).await.expect("sent");
    let begun = Instant::now();
    let _ = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut Vec::new())).await.expect("it is closed");
    assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    let counted = async || server.sum("weft_tcp_connections_total", &["mtls-handshake"]).await == 1;
    wait("it is counted", counted).await;

    let (silent, connections) = raw_application(async |_stream| std::future::pending().await).await;
    let both = json!([endpoint(silent, Some("web")), endpoint(server.inbound, Some("web"))]);
    let settings = json!({"connectTimeoutMs": 300, "balancer": "roundRobin"});
    client.export_as("detect", settings.clone(), None, both).await;
    for _ in 0..4 {
        assert_eq!(client.get(&[]).await.0, 200, "the other endpoint");
    }
    assert!(connections.load(Ordering::SeqCst) > 0, "it was tried");
    client.export_as("detect", settings, None, json!([endpoint(silent, Some("web"))])).await;
    let (status, headers, body) = client.get(&[]).await;
    assert_eq!((status.as_u16(), reason(&headers)), (503, "connect-failed"), "{body}");
}

/// Post-quantum keys make a ClientHello longer than a segment, so it may come in any pieces.
#[tokio::test(flavor = "multi_thread")]
async fn client_hello_may_be_cut_at_every_byte() {
    let ca = Ca::new("cluster.local");
    let (application, _) = application().await;
    let server = Proxy::ready(application, Some(&ca.identity(WEB)), json!({})).await;
    let own = Arc::new(SingleCertAndKey::from(certified(&ca.identity(CART))));
    let trust = Trust::Bundle(Arc::new(ca.bundle.clone()));
    let config =
        tls::client(trust, WEB.parse().expect("an id"), Some(own), &[b"weft-http/1.1"]).expect("a configuration");
    let connector = TlsConnector::from(Arc::new(config));
    // The proxy is spoken to through a relay that cuts the client's first bytes.
    let relay = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = relay.local_addr().expect("an address");
    let (mut length, mut cut) = (usize::MAX, 1);
    while cut < length {
        let connecting = async {
            let stream = TcpStream::connect(address).await.expect("connects");
            let name = std::net::IpAddr::from([127, 0, 0, 1]).into();
            let mut stream = connector.connect(name, stream).await.unwrap_or_else(|error| panic!("cut {cut}: {error}"));
            stream.write_all(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n").await.expect("sent");
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.expect("a response");
            assert!(answer.starts_with("HTTP/1.1 200 ") && answer.contains(CART), "cut {cut}: {answer}");
        };
        let relaying = async {
            let (mut near, _) = relay.accept().await.expect("accepts");
            let mut far = TcpStream::connect(server.inbound).await.expect("connects");
            far.set_nodelay(true).expect("set");
            let mut hello = vec![0; 16 * 1024];
            let mut read = 0;
            while read < 5 || read < 5 + usize::from(u16::from_be_bytes([hello[3], hello[4]])) {
                read += near.read(&mut hello[read..]).await.expect("a ClientHello");
            }
            length = read;
            far.write_all(&hello[..cut.min(read)]).await.expect("sent");
            tokio::time::sleep(Duration::from_millis(2)).await;
            far.write_all(&hello[cut.min(read)..read]).await.expect("sent");
            let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
        };
        tokio::join!(connecting, relaying);
        // Every byte of the headers; the rest is keys, where every tenth will do.
        cut += if cut < 64 || cut + 300 > length { 1 } else { 10 };
    }
    assert!(length > 1200, "{length} bytes: it has post-quantum keys");
}
