//! CONNECT: tunnels that a rule opens, and the refusal of all others.

use super::*;

const TO_DB: &str = "CONNECT db.example:5432 HTTP/1.1\r\nhost: db.example:5432\r\n\r\n";

/// A server of bytes that says all that it heard once its client has ended, and then ends itself.
async fn listener() -> (SocketAddr, Seen) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    let seen = Seen::default();
    let noted = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            noted.requests.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut heard = Vec::new();
                let _ = stream.read_to_end(&mut heard).await;
                let _ = stream.write_all(&[b"heard ", &heard[..]].concat()).await;
            });
        }
    });
    (address, seen)
}

/// A rule for everything, to v1, and one for CONNECT, to a subset.
fn with_connect(proxy: &Proxy, subset: &str, more: Value) -> Option<Value> {
    let mut tunnels = rule(forward(proxy, &[(subset, 1)]));
    tunnels["name"] = "tunnel".into();
    tunnels.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    Some(json!({
        "matches": [{"rule": 0}, {"rule": 1, "method": "CONNECT"}],
        "rules": [rule(forward(proxy, &[("v1", 1)])), tunnels]
    }))
}

/// Writes to the proxy, and gives back the head of what it answers.
async fn ask(proxy: &Proxy, request: &str) -> (TcpStream, String) {
    let mut client = TcpStream::connect(proxy.address).await.expect("connects");
    client.write_all(request.as_bytes()).await.expect("writes");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = client.read_u8().await.expect("the head is whole");
        head.push(byte);
    }
    (client, String::from_utf8(head).expect("text"))
}

async fn rest(mut client: TcpStream) -> String {
    let mut rest = String::new();
    client.read_to_string(&mut rest).await.expect("reads");
    rest
}

#[tokio::test]
async fn connect_rules_open_tunnels() {
    let proxy = Proxy::start("tunnel").await;
    let (v1, requests) = backend("v1", ok).await;
    let (db, connections) = listener().await;
    let more = json!({"responseHeaders": {"set": [{"name": "x-added", "value": "1"}]}});
    let endpoints = [(v1, "v1"), (db, "db")];
    let settings = json!({"subsets": ["v1", "db"]});
    proxy.configure(with_connect(&proxy, "db", more), "http", &endpoints, settings).await;

    // What comes early waits for the tunnel, and is its first part.
    for early in ["", "early, "] {
        let (mut client, head) = ask(&proxy, &format!("{TO_DB}{early}")).await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("x-added: 1\r\n"), "{head}");
        assert!(!head.contains("content-length") && !head.contains("transfer-encoding"), "{head}");
        client.write_all(b"late").await.expect("writes");
        client.shutdown().await.expect("ends its half");
        assert_eq!(rest(client).await, format!("heard {early}late"), "each half ends by itself");
    }
    assert_eq!(connections.requests.load(Ordering::SeqCst), 2);
    assert_eq!(proxy.send("GET", "/", &[], "").await.2, "v1", "requests go by the other rule");
    let version_1_0 = TO_DB.replace("HTTP/1.1", "HTTP/1.0");
    assert!(ask(&proxy, &version_1_0).await.1.contains(" 200 OK\r\n"), "as old clients ask");
    assert_eq!(requests.requests.load(Ordering::SeqCst), 1);
    // A tunnel is counted when it has ended, which the proxy hears of after the client.
    let counted = async || loop {
        let (_, page) = proxy.get(proxy.metrics, "/metrics").await;
        let tunnels = |line: &&str| line.starts_with("weft_requests_total{") && line.contains("reviews/tunnel");
        let line = page.lines().find(tunnels).unwrap_or_default();
        if line.contains("status=\"200\"") && line.ends_with(" 3") {
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
    let (db, connections) = listener().await;
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
    for said in ["one", "two", &bulk] {
        let response = sender.send_request(connect("db.example:5432")).await.expect("a response");
        assert_eq!(response.status(), 200);
        let tunnel = TokioIo::new(hyper::upgrade::on(response).await.expect("a tunnel"));
        tunnels.push((tunnel, said));
    }
    assert_eq!(connections.requests.load(Ordering::SeqCst), 3, "each has a connection");
    for (mut tunnel, said) in tunnels {
        let mut heard = String::new();
        tunnel.write_all(said.as_bytes()).await.expect("writes");
        tunnel.shutdown().await.expect("ends its half");
        tunnel.read_to_string(&mut heard).await.expect("reads");
        assert!(heard == format!("heard {said}"), "{} bytes came back", heard.len());
    }
    let request = Request::get("http://reviews.shop/").body(Full::<Bytes>::default()).expect("a request");
    assert_eq!(sender.send_request(request).await.expect("a response").headers()["x-version"], "v1", "beside requests");

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
        let (_, head) = ask(&proxy, &format!("{TO_DB}GET / HTTP/1.1\r\nhost: a\r\n\r\n")).await;
        assert!(head.starts_with("HTTP/1.1 405 ") && head.contains("weft-reason: connect-refused"), "{desc}: {head}");
        assert!(head.contains("connection: close"), "{desc}: what follows is nobody's: {head}");
    }
    assert_eq!(seen.requests.load(Ordering::SeqCst), 0);

    proxy.configure(with_connect(&proxy, "v1", json!({})), "http", &endpoints, settings()).await;
    for target in ["db.example", "db.example:0", "/", "http://db.example:5432/"] {
        let (_, head) = ask(&proxy, &format!("CONNECT {target} HTTP/1.1\r\nhost: db.example\r\n\r\n")).await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{target}: {head}");
    }
    let with_body = TO_DB.replace("\r\n\r\n", "\r\ncontent-length: 2\r\n\r\nhi");
    assert!(ask(&proxy, &with_body).await.1.starts_with("HTTP/1.1 400 "));
}

#[tokio::test]
async fn failed_tunnels_name_the_reason() {
    let proxy = Proxy::start("tunnel-fails").await;
    let (v1, _) = backend("v1", ok).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.expect("binds").local_addr().expect("an address");
    // Its queue is full: whoever connects is neither taken nor refused.
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
        let (_, head) = ask(&proxy, TO_DB).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{subset}: {head}");
        assert!(head.contains(&format!("weft-reason: {reason}\r\n")), "{subset}: {head}");
        assert!(head.contains("weft-source: MeshRoute/shop/reviews/tunnel\r\n"), "{subset}: {head}");
    }
    let mut invalid = with_connect(&proxy, "v1", json!({})).expect("a table");
    invalid["rules"][1]["action"]["forward"]["backends"] =
        json!([{"weight": 1, "target": {"invalid": "no such Service"}}]);
    proxy.configure(Some(invalid), "http", &endpoints, json!({})).await;
    assert!(ask(&proxy, TO_DB).await.1.starts_with("HTTP/1.1 500 "), "as for other requests");
}

/// Waits until so many connections of clients are open.
async fn until_open(proxy: &Proxy, count: u32) {
    let line = format!("weft_connections_open{{direction=\"outbound\"}} {count}\n");
    for _ in 0..200 {
        if proxy.get(proxy.metrics, "/metrics").await.1.contains(&line) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{count} connections are not what is counted");
}

#[tokio::test]
async fn open_tunnels_count_against_the_connection_limit() {
    let proxy = Proxy::start("tunnel-limit").await;
    let (db, _) = listener().await;
    let settings = json!({"subsets": ["db"], "limits": {"maxConnections": 1}});
    proxy.configure(with_connect(&proxy, "db", json!({})), "http", &[(db, "db")], settings).await;
    let (mut first, head) = ask(&proxy, TO_DB).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let (_, head) = ask(&proxy, TO_DB).await;
    assert!(head.starts_with("HTTP/1.1 503 ") && head.contains("weft-reason: overflow"), "{head}");
    until_open(&proxy, 1).await;
    first.shutdown().await.expect("ends its half");
    assert_eq!(rest(first).await, "heard ");
    until_open(&proxy, 0).await;
    for _ in 0..200 {
        if ask(&proxy, TO_DB).await.1.starts_with("HTTP/1.1 200 ") {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the first tunnel is counted still");
}

#[tokio::test]
async fn drain_waits_for_open_tunnels() {
    let mut proxy = Proxy::start("tunnel-drain").await;
    let (db, _) = listener().await;
    proxy.configure(with_connect(&proxy, "db", json!({})), "http", &[(db, "db")], json!({"subsets": ["db"]})).await;
    let (mut client, _) = ask(&proxy, TO_DB).await;
    proxy.stop.cancel();
    let finished = tokio::spawn(proxy.running.take().expect("once").finished());
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!finished.is_finished(), "the process waits");
    client.write_all(b"late").await.expect("writes");
    client.shutdown().await.expect("ends its half");
    assert_eq!(rest(client).await, "heard late");
    tokio::time::timeout(Duration::from_secs(3), finished).await.expect("in time").expect("ends");
}

/// How a side of a tunnel leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaves {
    Ends,
    Resets,
}

/// A server that answers a head with one of its own, and then leaves, or says how its client left.
async fn leaver(head: &'static str, leaves: Option<Leaves>) -> (SocketAddr, tokio::sync::mpsc::Receiver<Leaves>) {
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
            match leaves {
                Some(leaves) => leave(stream, leaves),
                None => {
                    let end = stream.read(&mut [0; 1]).await;
                    let end = end.map(|count| assert_eq!(count, 0)).map_or(Leaves::Resets, |()| Leaves::Ends);
                    sender.send(end).await.expect("the test waits");
                }
            }
        }
    });
    (address, receiver)
}

fn leave(stream: TcpStream, leaves: Leaves) {
    if leaves == Leaves::Resets {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).expect("set");
    }
}

/// A stream of HTTP/2 that is a tunnel.
async fn tunnel_of_http2(proxy: &Proxy) -> (h2::SendStream<Bytes>, h2::RecvStream) {
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

/// RFC 9113 8.5: the end of a side is an end on the other, and a reset is a reset, in both directions.
#[tokio::test]
async fn tunnels_relay_fin_as_fin_and_reset_as_reset() {
    let proxy = Proxy::start("tunnel-cut").await;
    let in_time = Duration::from_secs(5);
    let settings = || json!({"subsets": ["v1", "db"]});
    for leaves in [Leaves::Ends, Leaves::Resets] {
        // Clients that leave.
        let (db, mut end) = leaver("", None).await;
        let (app, mut app_end) = leaver(SWITCHED, None).await;
        let endpoints = [(app, "v1"), (db, "db")];
        proxy.configure(with_connect(&proxy, "db", json!({})), "detect", &endpoints, settings()).await;
        for (request, end) in [(TO_DB, &mut end), (UPGRADE, &mut app_end)] {
            let (mut client, _) = ask(&proxy, request).await;
            client.write_all(b"part").await.expect("writes");
            tokio::time::sleep(Duration::from_millis(20)).await;
            leave(client, leaves);
            let end = tokio::time::timeout(in_time, end.recv()).await.expect("in time");
            assert_eq!(end, Some(leaves), "{request}");
        }
        let codes = [h2::Reason::CANCEL, h2::Reason::NO_ERROR, h2::Reason::INTERNAL_ERROR];
        for code in codes.into_iter().take(if leaves == Leaves::Ends { 1 } else { 3 }) {
            let (mut sending, _receiving) = tunnel_of_http2(&proxy).await;
            sending.send_data("part".into(), leaves == Leaves::Ends).expect("sent");
            tokio::time::sleep(Duration::from_millis(20)).await;
            if leaves == Leaves::Resets {
                sending.send_reset(code);
            }
            let end = tokio::time::timeout(in_time, end.recv()).await.expect("in time");
            assert_eq!(end, Some(leaves), "{code:?}");
        }

        // Endpoints that leave.
        let ((db, _), (app, _)) = tokio::join!(leaver("", Some(leaves)), leaver(SWITCHED, Some(leaves)));
        let endpoints = [(app, "v1"), (db, "db")];
        proxy.configure(with_connect(&proxy, "db", json!({})), "detect", &endpoints, settings()).await;
        for request in [TO_DB, UPGRADE] {
            let (mut client, _) = ask(&proxy, request).await;
            client.write_all(b"part").await.expect("writes");
            let end = tokio::time::timeout(in_time, client.read(&mut [0; 1])).await.expect("in time");
            let expected = if leaves == Leaves::Ends { Ok(0) } else { Err(std::io::ErrorKind::ConnectionReset) };
            assert_eq!(end.map_err(|error| error.kind()), expected, "{request}");
        }
        let (mut sending, mut receiving) = tunnel_of_http2(&proxy).await;
        sending.send_data("part".into(), false).expect("sent");
        let end = tokio::time::timeout(in_time, receiving.data()).await.expect("in time");
        let end = end.map(|data| data.map_err(|error| error.reason()));
        match leaves {
            Leaves::Ends => assert!(receiving.is_end_stream() && matches!(end, None | Some(Ok(_))), "{end:?}"),
            Leaves::Resets => assert_eq!(end, Some(Err(Some(h2::Reason::CONNECT_ERROR)))),
        }
    }
}
