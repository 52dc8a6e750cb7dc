//! CONNECT: tunnels that a rule allows, and 405 without a rule.

use super::*;

const TO_DB: &str = "CONNECT db.example:5432 HTTP/1.1\r\nhost: db.example:5432\r\n\r\n";

/// A TCP server that reads to the end, echoes what it read, and closes.
async fn tcp_server() -> (SocketAddr, BackendStats) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let seen = BackendStats::default();
    let shared = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            shared.requests.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut heard = Vec::new();
                let _ = stream.read_to_end(&mut heard).await;
                let _ = stream.write_all(&[b"heard ", &heard[..]].concat()).await;
            });
        }
    });
    (address, seen)
}

/// A rule for all requests, to v1, and one for CONNECT, to a subset.
fn with_connect(proxy: &Proxy, subset: &str, more: Value) -> Option<Value> {
    let mut tunnels = rule(forward(proxy, &[(subset, 1)]));
    tunnels["name"] = "tunnel".into();
    tunnels.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    Some(json!({
        "matches": [{"rule": 0}, {"rule": 1, "method": "CONNECT"}],
        "rules": [rule(forward(proxy, &[("v1", 1)])), tunnels]
    }))
}

/// Sends a request, and returns the connection and the response head.
async fn send_head(proxy: &Proxy, request: &str) -> (TcpStream, String) {
    let mut client = TcpStream::connect(proxy.address).await.expect("connects");
    client.write_all(request.as_bytes()).await.expect("writes");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = client.read_u8().await.expect("the head is whole");
        head.push(byte);
    }
    (client, String::from_utf8(head).expect("text"))
}

async fn read_rest(mut client: TcpStream) -> String {
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.expect("reads");
    rest
}

#[tokio::test]
async fn connect_rules_open_tunnels() {
    let proxy = Proxy::start("tunnel").await;
    let (v1, requests) = backend("v1", ok).await;
    let (db, connections) = tcp_server().await;
    let more = json!({"responseHeaders": {"set": [{"name": "x-added", "value": "1"}]}});
    let mut table = with_connect(&proxy, "db", more).expect("a table");
    table["rules"][1]["action"]["forward"]["backends"][0]["filters"] =
        json!({"responseHeaders": {"set": [{"name": "x-backend", "value": "db"}]}});
    let endpoints = [(v1, "v1"), (db, "db")];
    let settings = json!({"subsets": ["v1", "db"]});
    proxy.configure(Some(table), "http", &endpoints, settings).await;

    // Bytes sent before the response are the first bytes of the tunnel.
    for early in ["", "early, "] {
        let (mut client, head) = send_head(&proxy, &format!("{TO_DB}{early}")).await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("x-added: 1\r\n"), "{head}");
        assert!(head.contains("x-backend: db\r\n"), "{head}");
        assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        client.write_all(b"late").await.expect("writes");
        client.shutdown().await.expect("ends its half");
        assert_eq!(read_rest(client).await, format!("heard {early}late"), "each direction closes independently");
    }
    assert_eq!(connections.requests.load(Ordering::SeqCst), 2);
    assert_eq!(proxy.send("GET", "/", &[], "").await.2, "v1", "other requests use the other rule");
    let version_1_0 = TO_DB.replace("HTTP/1.1", "HTTP/1.0");
    assert!(send_head(&proxy, &version_1_0).await.1.contains(" 200 OK\r\n"), "HTTP/1.0 clients may use CONNECT");
    assert_eq!(requests.requests.load(Ordering::SeqCst), 1);
    // A tunnel is counted when it has ended, for the proxy shortly after the client.
    let counted = async || loop {
        let (_, page) = proxy.get(proxy.metrics, "/metrics").await;
        let tunnels = |line: &&str| line.starts_with("weft_requests_total{") && line.contains("reviews/tunnel");
        let line = page.lines().find(tunnels).unwrap_or_default();
        if line.contains("http_response_status_code=\"200\"") && line.ends_with(" 3") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    tokio::time::timeout(Duration::from_secs(5), counted()).await.expect("three tunnels are counted");
}

#[tokio::test]
async fn connect_over_http2_makes_each_stream_a_tunnel() {
    let proxy = Proxy::start("tunnel-http2").await;
    let (v1, _) = backend("v1", ok).await;
    let (db, connections) = tcp_server().await;
    let endpoints = [(v1, "v1"), (db, "db")];
    let settings = || json!({"subsets": ["v1", "db"]});
    proxy.configure(with_connect(&proxy, "db", json!({})), "detect", &endpoints, settings()).await;
    let stream = TcpStream::connect(proxy.address).await.expect("connects");
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.expect("handshake");
    tokio::spawn(connection);
    let connect = |target: &str| Request::connect(target).body(Full::<Bytes>::default()).expect("a request");
    let bulk = "x".repeat(1 << 20);
    let mut tunnels = Vec::new();
    for sent in ["one", "two", &bulk] {
        let response = sender.send_request(connect("db.example:5432")).await.expect("a response");
        assert_eq!(response.status(), 200);
        let tunnel = TokioIo::new(hyper::upgrade::on(response).await.expect("a tunnel"));
        tunnels.push((tunnel, sent));
    }
    assert_eq!(connections.requests.load(Ordering::SeqCst), 3, "each tunnel has its own upstream connection");
    for (mut tunnel, sent) in tunnels {
        let mut heard = String::new();
        tunnel.write_all(sent.as_bytes()).await.expect("writes");
        tunnel.shutdown().await.expect("ends its half");
        tunnel.read_to_string(&mut heard).await.expect("reads");
        assert!(heard == format!("heard {sent}"), "{} bytes came back", heard.len());
    }
    let request = Request::get("http://reviews.shop/").body(Full::<Bytes>::default()).expect("a request");
    assert_eq!(
        sender.send_request(request).await.expect("a response").headers()["x-version"],
        "v1",
        "beside other requests"
    );

    let response = sender.send_request(connect("db.example")).await.expect("a response");
    assert_eq!(response.status(), 400, "without a port");
    proxy.configure(routes(forward(&proxy, &[("v1", 1)]), json!({})), "detect", &endpoints, settings()).await;
    let response = sender.send_request(connect("db.example:5432")).await.expect("a response");
    assert_eq!(response.status(), 405);
    assert_eq!(response.headers()["weft-reason"], "connect-refused");
}

#[tokio::test]
async fn connect_without_a_rule_answers_405() {
    let proxy = Proxy::start("no-tunnel").await;
    let (v1, seen) = backend("v1", ok).await;
    let endpoints = [(v1, "v1")];
    let settings = || json!({"subsets": ["v1"]});
    let any = routes(forward(&proxy, &[("v1", 1)]), json!({}));
    let elsewhere = Some(json!({
        "matches": [{"rule": 0}, {"rule": 0, "method": "CONNECT", "headers": [{"name": "x-team", "test": "present"}]}],
        "rules": [rule(forward(&proxy, &[("v1", 1)]))]
    }));
    for (desc, table) in [("no route", None), ("a route for all", any), ("a rule for others", elsewhere)] {
        proxy.configure(table, "http", &endpoints, settings()).await;
        let (_, head) = send_head(&proxy, &format!("{TO_DB}GET / HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        assert!(head.starts_with("HTTP/1.1 405 ") && head.contains("weft-reason: connect-refused"), "{desc}: {head}");
        assert!(head.contains("connection: close"), "{desc}: the bytes after it are discarded: {head}");
    }
    assert_eq!(seen.requests.load(Ordering::SeqCst), 0);

    proxy.configure(with_connect(&proxy, "v1", json!({})), "http", &endpoints, settings()).await;
    for target in ["db.example", "db.example:0", "/", "http://db.example:5432/"] {
        let (_, head) = send_head(&proxy, &format!("CONNECT {target} HTTP/1.1\r\nhost: db.example\r\n\r\n")).await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{target}: {head}");
    }
    let with_body = TO_DB.replace("\r\n\r\n", "\r\ncontent-length: 2\r\n\r\nhi");
    assert!(send_head(&proxy, &with_body).await.1.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn failed_tunnels_name_the_reason() {
    let proxy = Proxy::start("tunnel-fails").await;
    let (v1, _) = backend("v1", ok).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("an address");
    // Its accept queue is full: connections are neither accepted nor refused.
    let full = tokio::net::TcpSocket::new_v4().expect("a socket");
    full.bind("127.0.0.1:0".parse().expect("an address")).expect("binds");
    let full = full.listen(0).expect("listens");
    let address = full.local_addr().expect("an address");
    let _waiting: Vec<_> = (0..4).map(|_| tokio::spawn(TcpStream::connect(address))).collect();
    let endpoints = [(v1, "v1"), (gone, "gone"), (address, "full")];
    for (subset, more, status, reason) in [
        ("gone", json!({}), 503, "connect-failed"),
        ("none", json!({}), 503, "no-endpoints"),
        ("full", json!({"requestTimeoutMs": 200}), 504, "request-timeout"),
    ] {
        let settings = json!({"subsets": ["v1", "gone", "full", "none"]});
        proxy.configure(with_connect(&proxy, subset, more), "http", &endpoints, settings).await;
        let (_, head) = send_head(&proxy, TO_DB).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{subset}: {head}");
        assert!(head.contains(&format!("weft-reason: {reason}\r\n")), "{subset}: {head}");
        assert!(head.contains("weft-source: MeshRoute/shop/reviews/tunnel\r\n"), "{subset}: {head}");
    }
    let mut invalid = with_connect(&proxy, "v1", json!({})).expect("a table");
    invalid["rules"][1]["action"]["forward"]["backends"] =
        json!([{"weight": 1, "target": {"invalid": "no such Service"}}]);
    proxy.configure(Some(invalid), "http", &endpoints, json!({})).await;
    assert!(send_head(&proxy, TO_DB).await.1.starts_with("HTTP/1.1 500 "), "as for other requests");
}

/// Waits until the metrics count this many open client connections.
async fn await_open_connections(proxy: &Proxy, count: u32) {
    let line = format!("weft_downstream_connections_open{{direction=\"outbound\"}} {count}\n");
    for _ in 0..200 {
        if proxy.get(proxy.metrics, "/metrics").await.1.contains(&line) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the metrics never count {count} open connections");
}

#[tokio::test]
async fn open_tunnels_count_against_the_connection_limit() {
    let proxy = Proxy::start("tunnel-limit").await;
    let (db, _) = tcp_server().await;
    let settings = json!({"subsets": ["db"], "limits": {"maxConnections": 1}});
    proxy.configure(with_connect(&proxy, "db", json!({})), "http", &[(db, "db")], settings).await;
    let (mut first, head) = send_head(&proxy, TO_DB).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let (_, head) = send_head(&proxy, TO_DB).await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("weft-reason: overflow"), "{head}");
    await_open_connections(&proxy, 1).await;
    first.shutdown().await.expect("ends its half");
    assert_eq!(read_rest(first).await, "heard ");
    await_open_connections(&proxy, 0).await;
    for _ in 0..200 {
        if send_head(&proxy, TO_DB).await.1.starts_with("HTTP/1.1 200 ") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the first tunnel still counts against the limit");
}

#[tokio::test]
async fn drain_waits_for_open_tunnels() {
    let mut proxy = Proxy::start("tunnel-drain").await;
    let (db, _) = tcp_server().await;
    proxy.configure(with_connect(&proxy, "db", json!({})), "http", &[(db, "db")], json!({"subsets": ["db"]})).await;
    let (mut client, _) = send_head(&proxy, TO_DB).await;
    proxy.stop.cancel();
    let finished = tokio::spawn(proxy.running.take().expect("once").finished());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!finished.is_finished(), "the drain waits for the tunnel");
    client.write_all(b"late").await.expect("writes");
    client.shutdown().await.expect("ends its half");
    assert_eq!(read_rest(client).await, "heard late");
    tokio::time::timeout(Duration::from_secs(3), finished).await.expect("in time").expect("ends");
}

/// How one side of a tunnel closes its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Close {
    Fin,
    Reset,
}

/// A server that answers with `head`, reads a part of the tunnel, and then closes as `how` says. Without `how` it
/// reports how its client closed.
async fn closing_server(head: &'static str, how: Option<Close>) -> (SocketAddr, tokio::sync::mpsc::Receiver<Close>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let (sender, receiver) = tokio::sync::mpsc::channel(10);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut heard = Vec::new();
            while !head.is_empty() && !heard.ends_with(b"\r\n\r\n") {
                heard.push(stream.read_u8().await.expect("a head"));
            }
            stream.write_all(head.as_bytes()).await.expect("answers");
            let mut part = [0; 4];
            stream.read_exact(&mut part).await.expect("a part");
            match how {
                Some(how) => close(stream, how),
                None => {
                    let end = stream.read(&mut [0; 1]).await;
                    let end = end.map(|count| assert_eq!(count, 0)).map_or(Close::Reset, |()| Close::Fin);
                    sender.send(end).await.expect("the test waits");
                }
            }
        }
    });
    (address, receiver)
}

fn close(stream: TcpStream, how: Close) {
    if how == Close::Reset {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("set");
    }
}

/// Opens a tunnel over an HTTP/2 stream.
async fn open_http2_tunnel(proxy: &Proxy) -> (h2::SendStream<Bytes>, h2::RecvStream) {
    let stream = TcpStream::connect(proxy.address).await.expect("connects");
    let (mut sender, connection) = h2::client::handshake(stream).await.expect("handshake");
    tokio::spawn(connection);
    let request = Request::connect("db.example:5432").body(()).expect("a request");
    let (response, sending) = sender.send_request(request, false).expect("sent");
    let response = response.await.expect("a response");
    assert_eq!(response.status(), 200);
    (sending, response.into_body())
}

const UPGRADE: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";

/// RFC 9113 8.5: FIN is relayed as FIN and reset as reset, in both directions.
#[tokio::test]
async fn tunnels_relay_fin_as_fin_and_reset_as_reset() {
    let proxy = Proxy::start("tunnel-cut").await;
    let in_time = Duration::from_secs(5);
    let settings = || json!({"subsets": ["v1", "db"]});
    for how in [Close::Fin, Close::Reset] {
        // Clients that close.
        let (db, mut end) = closing_server("", None).await;
        let (app, mut app_end) = closing_server(SWITCHED, None).await;
        let endpoints = [(app, "v1"), (db, "db")];
        proxy.configure(with_connect(&proxy, "db", json!({})), "detect", &endpoints, settings()).await;
        for (request, end) in [(TO_DB, &mut end), (UPGRADE, &mut app_end)] {
            let (mut client, _) = send_head(&proxy, request).await;
            client.write_all(b"part").await.expect("writes");
            tokio::time::sleep(Duration::from_millis(20)).await;
            close(client, how);
            let end = tokio::time::timeout(in_time, end.recv()).await.expect("in time");
            assert_eq!(end, Some(how), "{request}");
        }
        let codes = [h2::Reason::CANCEL, h2::Reason::NO_ERROR, h2::Reason::INTERNAL_ERROR];
        for code in codes.into_iter().take(if how == Close::Fin { 1 } else { 3 }) {
            let (mut sending, _receiving) = open_http2_tunnel(&proxy).await;
            sending.send_data("part".into(), how == Close::Fin).expect("sent");
            tokio::time::sleep(Duration::from_millis(20)).await;
            if how == Close::Reset {
                sending.send_reset(code);
            }
            let end = tokio::time::timeout(in_time, end.recv()).await.expect("in time");
            assert_eq!(end, Some(how), "{code:?}");
        }

        // Endpoints that close.
        let ((db, _), (app, _)) = tokio::join!(closing_server("", Some(how)), closing_server(SWITCHED, Some(how)));
        let endpoints = [(app, "v1"), (db, "db")];
        proxy.configure(with_connect(&proxy, "db", json!({})), "detect", &endpoints, settings()).await;
        for request in [TO_DB, UPGRADE] {
            let (mut client, _) = send_head(&proxy, request).await;
            client.write_all(b"part").await.expect("writes");
            let end = tokio::time::timeout(in_time, client.read(&mut [0; 1])).await.expect("in time");
            let expected = if how == Close::Fin { Ok(0) } else { Err(std::io::ErrorKind::ConnectionReset) };
            assert_eq!(end.map_err(|error| error.kind()), expected, "{request}");
        }
        let (mut sending, mut receiving) = open_http2_tunnel(&proxy).await;
        sending.send_data("part".into(), false).expect("sent");
        let end = tokio::time::timeout(in_time, receiving.data()).await.expect("in time");
        let end = end.map(|data| data.map_err(|error| error.reason()));
        match how {
            Close::Fin => assert!(receiving.is_end_stream() && matches!(end, None | Some(Ok(_))), "{end:?}"),
            Close::Reset => assert_eq!(end, Some(Err(Some(h2::Reason::CONNECT_ERROR)))),
        }
    }
}
