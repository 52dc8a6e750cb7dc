//! What is not a plain request: upgrades, tunnels and TCP, with the application's own TLS and servers that speak first.

use std::sync::atomic::Ordering;
use std::time::Duration;

use rustls::pki_types::{PrivateKeyDer, ServerName};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::*;

const BULK: usize = 8 << 20;

/// Bytes in which any loss, duplication or reordering shows.
fn bulk() -> Vec<u8> {
    (0..BULK).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect()
}

/// Sends bulk through an echo and back, then the end of the stream.
pub(crate) async fn echoes(stream: impl AsyncRead + AsyncWrite) {
    let (mut read, mut write) = tokio::io::split(stream);
    let sent = bulk();
    let sending = async {
        write.write_all(&sent).await.expect("sent");
        write.shutdown().await.expect("ended");
    };
    let mut received = Vec::new();
    let (got, ()) = tokio::join!(tokio::time::timeout(TIMEOUT * 3, read.read_to_end(&mut received)), sending);
    got.expect("in time").expect("a clean end");
    assert!(received == sent, "{} of {} bytes, or others", received.len(), sent.len());
}

/// Sends back what it receives.
pub(crate) async fn echo(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
    let _ = write.shutdown().await;
}

/// Reads a head.
async fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("a whole head"));
    }
    String::from_utf8(head).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn upgraded_connections_go_through() {
    let (application, _) = raw_application(async |mut stream| {
        let request = head(&mut stream).await;
        assert!(request.contains(CART), "{request}");
        let answer = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        stream.write_all(answer.as_bytes()).await.expect("sent");
        echo(stream).await;
    })
    .await;
    let (client, server) = pair(&Ca::new("cluster.local"), application, strict("inbound")).await;
    let mut stream = TcpStream::connect(client.outbound).await.expect("connects");
    let request = "GET / HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("sent");
    let answer = head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 101 "), "{answer}");
    echoes(stream).await;
    assert_eq!(server.events(1).await[0]["security"], "mtls");
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_tunnels_go_through() {
    let (application, _) = raw_application(echo).await;
    let (client, server) = pair(&Ca::new("cluster.local"), application, strict("inbound")).await;
    let target = json!({"cluster": {"namespace": "shop", "service": "web", "port": client.outbound.port()}});
    let rule = json!({
        "route": {"namespace": "shop", "name": "web"}, "name": "0",
        "action": {"forward": {"backends": [{"weight": 1, "target": target}]}}
    });
    let routes = json!({"matches": [{"rule": 0, "method": "CONNECT"}], "rules": [rule]});
    client.export_as("http", json!({}), Some(routes), json!([endpoint(server.inbound, Some("web"))])).await;
    let mut stream = TcpStream::connect(client.outbound).await.expect("connects");
    stream.write_all(b"CONNECT db:5432 HTTP/1.1\r\nhost: db:5432\r\n\r\n").await.expect("sent");
    let answer = head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // Binary, so that the server's proxy does not take it for a request.
    stream.write_all(&[0]).await.expect("sent");
    assert_eq!(stream.read_u8().await.expect("echoed"), 0);
    echoes(stream).await;
    assert_eq!(client.events(1).await[0]["security"], "mtls");
    assert_eq!(server.events(1).await[0]["src.identity"], CART);
}

/// On ports whose protocol is detected, and on those that are declared TCP or opaque.
#[tokio::test(flavor = "multi_thread")]
async fn tcp_goes_through_and_either_side_may_speak_first() {
    let ca = Ca::new("cluster.local");
    let (echoing, _) = raw_application(echo).await;
    let (greeting, _) = raw_application(async |mut stream| {
        stream.write_all(b"220 welcome\r\n").await.expect("sent");
        echo(stream).await;
    })
    .await;
    for protocol in ["detect", "tcp"] {
        for (application, greets) in [(echoing, false), (greeting, true)] {
            for opaque in [false, true] {
                let ports = if opaque { application.port().to_string() } else { "1".to_owned() };
                let environment = [("WEFT_OPAQUE_PORTS", &*ports)];
                let server = Proxy::with(application, Some(&ca.identity(WEB)), strict("inbound"), &environment);
                let client = Proxy::start(free_address(), Some(&ca.identity(CART)), strict("outbound"));
                server.await_ready().await;
                client.await_ready().await;
                client.export_as(protocol, json!({}), None, json!([endpoint(server.inbound, Some("web"))])).await;
                let mut stream = TcpStream::connect(client.outbound).await.expect("connects");
                let desc = format!("{protocol} greets={greets} opaque={opaque}");
                if greets {
                    let mut greeting = [0; 13];
                    let read = tokio::time::timeout(TIMEOUT, stream.read_exact(&mut greeting)).await;
                    read.unwrap_or_else(|_| panic!("no greeting: {desc}")).expect("a greeting");
                    assert_eq!(&greeting, b"220 welcome\r\n", "{desc}");
                }
                stream.write_all(&[0]).await.expect("sent");
                assert_eq!(stream.read_u8().await.expect("echoed"), 0, "{desc}");
                echoes(stream).await;
                for (proxy, direction) in [(&client, "outbound"), (&server, "inbound")] {
                    let labels = [&format!("direction=\"{direction}\""), "security=\"mtls\"", "reason=\"\""];
                    let counted = async || proxy.sum("weft_tcp_connections_total", &labels).await == 1;
                    wait(&format!("{desc}: {direction} counts it"), counted).await;
                }
                assert_eq!(server.events(1).await[0]["src.identity"], CART, "{desc}");
            }
        }
    }
}

/// ID-13: plaintext clients of a Permissive server: nothing changes for them but the time that a server waits for its
/// client.
#[tokio::test(flavor = "multi_thread")]
async fn id_13_plaintext_tcp_passes_in_permissive_mode_whoever_speaks_first() {
    let ca = Ca::new("cluster.local");
    let (greeting, _) = raw_application(async |mut stream| {
        stream.write_all(b"220 welcome\r\n").await.expect("sent");
        echo(stream).await;
    })
    .await;
    for opaque in [false, true] {
        let ports = if opaque { greeting.port().to_string() } else { "1".to_owned() };
        let environment = [("WEFT_OPAQUE_PORTS", &*ports)];
        let server = Proxy::with(greeting, Some(&ca.identity(WEB)), json!({}), &environment);
        server.await_ready().await;
        for wait in [0, 300] {
            let mut stream = TcpStream::connect(server.inbound).await.expect("connects");
            tokio::time::sleep(Duration::from_millis(wait)).await;
            let mut greeting = [0; 13];
            tokio::time::timeout(TIMEOUT, stream.read_exact(&mut greeting))
                .await
                .expect("in time")
                .expect("a greeting");
            stream.write_all(b"HELO\r\n").await.expect("sent");
            let mut answer = [0; 6];
            stream.read_exact(&mut answer).await.expect("echoed");
            assert_eq!((&greeting, &answer), (b"220 welcome\r\n", b"HELO\r\n"), "opaque={opaque}");
        }
    }
}

/// ID-13: the application's own TLS is passed on as it is: inside of mutual TLS, and from plaintext clients.
#[tokio::test(flavor = "multi_thread")]
async fn id_13_tls_of_the_application_is_passed_on() {
    let certified = rcgen::generate_simple_self_signed(["web".to_owned()]).expect("a certificate");
    let key = PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("a configuration");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certified.cert.der().clone()).expect("a root");
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let (application, connections) = raw_application(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            let (mut read, mut write) = tokio::io::split(stream);
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        }
    })
    .await;
    let (client, server) = pair(&Ca::new("cluster.local"), application, json!({})).await;
    for address in [client.outbound, server.inbound] {
        let stream = TcpStream::connect(address).await.expect("connects");
        let name = ServerName::try_from("web").expect("a name");
        let stream = TlsConnector::from(Arc::new(config.clone())).connect(name, stream).await.expect("a handshake");
        echoes(stream).await;
    }
    assert!(connections.load(Ordering::SeqCst) >= 2);
    let classes: Vec<Value> = server.events(2).await.iter().map(|event| event["security"].clone()).collect();
    assert_eq!(classes, ["mtls", "plaintext"]);
}
