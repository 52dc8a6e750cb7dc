//! Rules for TLS and TCP connections: TLS by server name, TCP by weight.

use super::*;

/// A client-first TCP server that echoes each read with its name in front.
async fn echo_server(name: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut got = vec![0; 4096];
                while let Ok(read) = stream.read(&mut got).await {
                    if read == 0 || stream.write_all(&[name.as_bytes(), b":", &got[..read]].concat()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

/// A ClientHello with or without a server name.
fn client_hello(name: Option<&str>) -> Vec<u8> {
    let mut config = rustls::ClientConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.enable_sni = name.is_some();
    let server = name.unwrap_or("none.example").to_owned().try_into().expect("a name");
    let mut client = rustls::ClientConnection::new(Arc::new(config), server).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("writes");
    bytes
}

/// Sends bytes in pieces, and returns what comes back until the connection is closed or silent for 300 ms.
async fn exchange(proxy: &Proxy, bytes: &[u8], piece: usize) -> Vec<u8> {
    let mut client = TcpStream::connect(proxy.address).await.expect("connects");
    client.set_nodelay(true).expect("set");
    for part in bytes.chunks(piece) {
        client.write_all(part).await.expect("writes");
        tokio::task::yield_now().await;
    }
    let mut got = Vec::new();
    let read = async {
        let mut part = vec![0; 65536];
        while let Ok(read @ 1..) = client.read(&mut part).await {
            got.extend(&part[..read]);
        }
    };
    let _ = tokio::time::timeout(Duration::from_millis(300), read).await;
    got
}

fn stream_rule(proxy: &Proxy, name: &str, shares: &[(&str, u32)]) -> Value {
    let backends = forward(proxy, shares)["forward"]["backends"].clone();
    json!({"route": {"namespace": "shop", "name": "reviews"}, "name": name, "backends": backends})
}

async fn closed_connections(proxy: &Proxy, reason: &str) -> u64 {
    proxy.sum("weft_tcp_connections_total", &format!("reason=\"{reason}\"")).await
}

const ALERT: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

#[tokio::test]
async fn tls_is_routed_by_server_name() {
    let proxy = Proxy::start("sni").await;
    let (one, two) = (echo_server("one").await, echo_server("two").await);
    let table = json!({
        "tls": [{"rule": 0, "name": "shop.example"}, {"rule": 1, "name": "*.shop.example"}],
        "streams": [stream_rule(&proxy, "tls-0", &[("one", 1)]), stream_rule(&proxy, "tls-1", &[("two", 1)])]
    });
    let endpoints = [(one, "one"), (two, "two")];
    let settings = || json!({"subsets": ["one", "two"]});
    for protocol in ["detect", "tcp"] {
        proxy.configure(Some(table.clone()), protocol, &endpoints, settings()).await;
        for (name, by) in [("shop.example", "one:"), ("a.shop.example", "two:"), ("A.b.Shop.Example", "two:")] {
            let hello = client_hello(Some(name));
            let got = exchange(&proxy, &hello, hello.len()).await;
            assert!(
                got.starts_with(by.as_bytes()) && got.ends_with(&hello),
                "{protocol} {name}: every byte is forwarded"
            );
        }
        let hello = client_hello(Some("shop.example"));
        let got = exchange(&proxy, &hello, 1).await;
        assert!(got.starts_with(b"one:"), "{protocol}: sent byte by byte");
    }
    assert_eq!(exchange(&proxy, &client_hello(Some("bank.example")), 4096).await, ALERT);
    assert_eq!(closed_connections(&proxy, "no-route").await, 1);
    assert_eq!(exchange(&proxy, &client_hello(None), 4096).await, ALERT);
    assert_eq!(closed_connections(&proxy, "no-server-name").await, 1);
    assert_eq!(exchange(&proxy, b"SSH-2.0-x\r\n", 4096).await, b"", "no TLS, and no rule for it");
    assert_eq!(closed_connections(&proxy, "no-route").await, 2);
}

#[tokio::test]
async fn http_tls_and_tcp_rules_share_one_port() {
    let proxy = Proxy::start("mixed").await;
    let (one, two) = (echo_server("one").await, echo_server("two").await);
    let (v1, _) = backend("v1", ok).await;
    let mut table = json!({
        "matches": [{"rule": 0, "path": {"exact": "/here"}}],
        "rules": [rule(forward(&proxy, &[("v1", 1)]))],
        "tls": [{"rule": 0, "name": "shop.example"}],
        "tcp": 1,
        "streams": [stream_rule(&proxy, "tls-0", &[("one", 1)]), stream_rule(&proxy, "tcp-0", &[("two", 1)])]
    });
    let endpoints = [(one, "one"), (two, "two"), (v1, "v1")];
    let settings = || json!({"subsets": ["one", "two", "v1"]});
    proxy.configure(Some(table.clone()), "detect", &endpoints, settings()).await;
    assert_eq!(proxy.send("GET", "/here", &[], "").await.2, "v1");
    assert_eq!(proxy.send("GET", "/nowhere", &[], "").await.0, 404);
    assert!(exchange(&proxy, &client_hello(Some("shop.example")), 4096).await.starts_with(b"one:"));
    assert_eq!(
        exchange(&proxy, &client_hello(Some("bank.example")), 4096).await,
        ALERT,
        "a TCP rule does not apply to TLS"
    );
    assert_eq!(exchange(&proxy, b"\x01bytes", 4096).await, b"two:\x01bytes");

    // Without HTTP and TLS rules, the TCP rule applies to both.
    for field in ["matches", "rules", "tls"] {
        table.as_object_mut().expect("an object").remove(field);
    }
    proxy.configure(Some(table), "detect", &endpoints, settings()).await;
    assert_eq!(exchange(&proxy, b"GET / HTTP/1.1\r\n\r\n", 4096).await, b"two:GET / HTTP/1.1\r\n\r\n");
    assert!(exchange(&proxy, &client_hello(Some("bank.example")), 4096).await.starts_with(b"two:"));

    // Without a TCP rule, HTTP on a port with TLS rules matches no route.
    let table =
        json!({"tls": [{"rule": 0, "name": "shop.example"}], "streams": [stream_rule(&proxy, "tls-0", &[("one", 1)])]});
    proxy.configure(Some(table), "detect", &endpoints, settings()).await;
    let (status, headers, _) = proxy.send("GET", "/here", &[], "").await;
    assert_eq!((status.as_u16(), headers["weft-reason"].to_str().expect("text")), (404, "no-route"));
}

#[tokio::test]
async fn tcp_is_split_by_weight_and_may_be_server_first() {
    let proxy = Proxy::start("shares").await;
    let (one, two) = (echo_server("one").await, echo_server("two").await);
    let greeter = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let first = greeter.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = greeter.accept().await {
            let _ = stream.write_all(b"220 ready").await;
        }
    });
    let rule = |shares: &[(&str, u32)]| json!({"tcp": 0, "streams": [stream_rule(&proxy, "tcp-0", shares)]});
    let endpoints = [(one, "one"), (two, "two"), (first, "first")];
    let settings = || json!({"subsets": ["one", "two", "first"]});
    proxy.configure(Some(rule(&[("one", 3), ("two", 1)])), "tcp", &endpoints, settings()).await;
    let mut second = 0;
    for _ in 0..200 {
        let mut client = TcpStream::connect(proxy.address).await.expect("connects");
        client.write_all(b"x").await.expect("writes");
        let mut got = [0; 5];
        client.read_exact(&mut got).await.expect("reads");
        second += u32::from(&got == b"two:x");
    }
    assert!((25..=75).contains(&second), "a quarter of 200 ± 25, got {second}");

    let mut with_tls = rule(&[("first", 1)]);
    with_tls["tls"] = json!([{"rule": 0, "name": "shop.example"}]);
    proxy.configure(Some(with_tls), "detect", &endpoints, settings()).await;
    let mut client = TcpStream::connect(proxy.address).await.expect("connects");
    let mut greeting = [0; 9];
    tokio::time::timeout(Duration::from_secs(2), client.read_exact(&mut greeting))
        .await
        .expect("in time")
        .expect("reads");
    assert_eq!(&greeting, b"220 ready");

    let mut invalid = rule(&[("one", 1)]);
    invalid["streams"][0]["backends"] = json!([{"weight": 1, "target": {"invalid": "no such Service"}}]);
    proxy.configure(Some(invalid), "tcp", &endpoints, settings()).await;
    assert_eq!(exchange(&proxy, b"x", 1).await, b"");
    assert_eq!(closed_connections(&proxy, "backend-not-found").await, 1);
}
