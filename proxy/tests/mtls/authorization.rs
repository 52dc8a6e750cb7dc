//! Who may call: rules that name callers, and open calls that a changed policy denies.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::pending;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::*;

/// Time within which an open call that is now denied ends.
const LIMIT: Duration = Duration::from_secs(2);

/// A policy for every pod of the namespace.
fn policy(name: &str, default_deny: bool, rules: Value) -> Value {
    json!({"name": name, "target": "namespace", "defaultDeny": default_deny, "rules": rules})
}

/// Callers by the names of their service accounts in the namespace `shop`.
fn accounts(names: &[&str]) -> Value {
    let accounts = names.iter().map(|name| json!({"namespace": "shop", "name": name}));
    json!([{"serviceAccounts": accounts.collect::<Vec<_>>()}])
}

/// A client of `server`, with an identity.
async fn client_of(server: &Proxy, ca: &Ca, id: &str) -> Proxy {
    let client = Proxy::ready(free_address(), Some(&ca.identity(id)), json!({})).await;
    client.export(json!([endpoint(server.inbound, Some("web"))])).await;
    client
}

/// Replaces the private document of a proxy, and waits until it is in use.
async fn apply(proxy: &Proxy, private: Value) {
    let generation = async || proxy.sum("weft_config_generation", &["document=\"i.shop\""]).await;
    let before = generation().await;
    write(&proxy.folder, "i.shop.json", &private.to_string());
    wait("the policies are in use", async || generation().await > before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_name_callers_by_their_certificates_and_by_nothing_else() {
    let ca = Ca::new("cluster.local");
    let (application, heads) = application().await;
    let rules = json!([{"action": "allow", "from": accounts(&["cart"])}]);
    let private = json!({"policies": [policy("callers", true, rules)]});
    let server = Proxy::ready(application, Some(&ca.identity(WEB)), private).await;
    let cart = client_of(&server, &ca, CART).await;
    let bank = client_of(&server, &ca, BANK).await;

    assert_eq!(cart.get(&[]).await.0, 200);
    let copy = format!("By={WEB};URI={CART}");
    for (desc, address) in [("another account", bank.outbound), ("no identity", server.inbound)] {
        let (status, headers, body) = get(address, &[("x-forwarded-client-cert", &copy)]).await;
        assert_eq!((status.as_u16(), reason(&headers)), (403, "policy-denied"), "{desc}");
        assert_eq!(headers["weft-source"], "MeshPolicy/shop/callers/0", "{desc}");
        assert!(!body.contains("cart") && !body.contains("bank"), "{desc}: {body}");
    }
    assert_eq!(heads.lock().expect("not poisoned").len(), 1, "the application got one request");

    let events = server.events(3).await;
    let seen: Vec<_> = events.iter().map(|event| (event["src.identity"].as_str(), event["source"].as_str())).collect();
    let rule = Some("MeshPolicy/shop/callers/0");
    assert_eq!(seen, [(Some(CART), None), (Some(BANK), rule), (None, rule)]);
    let labels = ["reason=\"policy-denied\"", "source=\"MeshPolicy/shop/callers/0\""];
    assert_eq!(server.sum("weft_requests_total", &labels).await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_name_callers_of_tcp_connections_too() {
    let ca = Ca::new("cluster.local");
    let application = Application::default();
    let shared = application.clone();
    let (address, _) = raw_application(move |stream| shared.clone().serve(stream)).await;
    let rules = json!([{"action": "deny", "from": accounts(&["bank"])}]);
    let private = json!({"policies": [policy("callers", false, rules)]});
    let server = Proxy::ready(address, Some(&ca.identity(WEB)), private).await;
    for (id, expected) in [(CART, 1), (BANK, 0)] {
        let client = client_of(&server, &ca, id).await;
        let mut stream = TcpStream::connect(client.outbound).await.expect("connects");
        stream.write_all(&[0]).await.expect("sent");
        let mut answer = Vec::new();
        let _ = (&mut stream).take(1).read_to_end(&mut answer).await;
        assert_eq!(answer.len(), expected, "{id}");
    }
    assert_eq!(*application.0.lock().expect("not poisoned"), ["opaque"], "the application got the bytes of one");
    let is_denied = |event: &&Value| event["reason"] == "policy-denied";
    let events = server.events(2).await;
    let denied: Vec<_> = events.iter().filter(is_denied).collect();
    assert_eq!(denied.len(), 1, "{events:?}");
    let labels = ["reason=\"policy-denied\"", "source=\"MeshPolicy/shop/callers/0\""];
    assert_eq!(server.sum("weft_tcp_connections_total", &labels).await, 1);
    assert_eq!((&denied[0]["src.identity"], &denied[0]["source"]), (&json!(BANK), &json!("MeshPolicy/shop/callers/0")));
}

/// A policy without rules: nobody may call.
#[tokio::test(flavor = "multi_thread")]
async fn default_of_deny_needs_no_rule() {
    let ca = Ca::new("cluster.local");
    let (application, _) = application().await;
    let private = json!({"policies": [policy("nobody", true, json!([]))]});
    let server = Proxy::ready(application, Some(&ca.identity(WEB)), private).await;
    let (status, headers, _) = client_of(&server, &ca, CART).await.get(&[]).await;
    assert_eq!(status, 403);
    assert_eq!(headers["weft-source"], "MeshPolicy/shop/nobody/default");
}

/// An application that leaves every call open. It has seen these paths.
#[derive(Clone, Default)]
struct Application(Arc<Mutex<Vec<String>>>);

impl Application {
    fn saw(&self, path: &str) {
        self.0.lock().expect("not poisoned").push(path.to_owned());
    }

    async fn await_seen(&self, path: &str) {
        wait(path, async || self.0.lock().expect("not poisoned").iter().any(|seen| seen == path)).await;
    }

    /// Opaque bytes begin with 0 and come back. Requests are answered as their path says.
    async fn serve(self, mut stream: TcpStream) {
        let mut first = [0];
        if stream.peek(&mut first).await.unwrap_or_default() == 0 {
            return;
        }
        match first[0] {
            0 => {
                self.saw("opaque");
                echo(stream).await;
            }
            b'P' => self.serve_http2(stream).await,
            _ => {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let head = String::from_utf8(head).expect("text");
                let path = head.split(' ').nth(1).expect("a path");
                let answer = match path.split('/').nth(1) {
                    Some("upgrade") => {
                        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: ws\r\n\r\n!"
                    }
                    Some("stream") => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n!\r\n",
                    _ => "",
                };
                stream.write_all(answer.as_bytes()).await.expect("sent");
                self.saw(path);
                echo(stream).await;
            }
        }
    }

    async fn serve_http2(self, stream: TcpStream) {
        let mut connection = h2::server::handshake(stream).await.expect("HTTP/2");
        while let Some(Ok((request, mut respond))) = connection.accept().await {
            let path = request.uri().path().to_owned();
            self.saw(&path);
            tokio::spawn(async move {
                if path.starts_with("/wait") {
                    return pending().await;
                }
                let mut body = respond.send_response(Response::new(()), false).expect("sent");
                let size = if path.starts_with("/flood") { 16 << 20 } else { 1 };
                body.send_data(Bytes::from(vec![0; size]), false).expect("sent");
                pending::<()>().await;
            });
        }
    }
}

async fn echo(mut stream: TcpStream) {
    let (mut read, mut write) = stream.split();
    let _ = tokio::io::copy(&mut read, &mut write).await;
}

/// Calls of all kinds that are open, and how each has ended.
struct Calls {
    open: Vec<(&'static str, JoinHandle<String>)>,
    /// Lets a client read what it did not read before.
    read: Arc<Notify>,
}

impl Calls {
    /// Opens one call of each kind, whose paths end in `name`.
    async fn open(client: SocketAddr, application: &Application, name: &str) -> Self {
        let (mut open, read) = (Vec::new(), Arc::new(Notify::new()));
        for (kind, first) in [
            ("opaque TCP", "\0".to_owned()),
            (
                "upgrade",
                format!("GET /upgrade/{name} HTTP/1.1\r\nhost: web\r\nconnection: upgrade\r\nupgrade: ws\r\n\r\n"),
            ),
            ("response", format!("GET /stream/{name} HTTP/1.1\r\nhost: web\r\n\r\n")),
            (
                "request without response",
                format!("GET /poll/{name} HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n"),
            ),
        ] {
            let mut stream = TcpStream::connect(client).await.expect("connects");
            stream.write_all(first.as_bytes()).await.expect("sent");
            let mut begin = Vec::new();
            match first.split('/').nth(1) {
                None => begin.push(stream.read_u8().await.expect("echoed")),
                Some("poll") => application.await_seen(&format!("/poll/{name}")).await,
                Some(_) => {
                    while !begin.contains(&b'!') {
                        begin.push(stream.read_u8().await.expect("an answer"));
                    }
                }
            }
            open.push((
                kind,
                tokio::spawn(async move {
                    let mut rest = Vec::new();
                    let ended = stream.read_to_end(&mut rest).await.is_ok();
                    format!("{} {ended}", String::from_utf8_lossy(&rest))
                }),
            ));
        }
        let stream = TcpStream::connect(client).await.expect("connects");
        let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        for (kind, path) in
            [("HTTP/2 stream", "grpc"), ("HTTP/2 stream that is not read", "flood"), ("HTTP/2 request", "wait")]
        {
            let path = format!("/{path}/{name}");
            let mut sender = sender.clone().ready().await.expect("ready");
            let request = Request::post(format!("http://web.shop{path}"));
            let request = request.header("content-type", "application/grpc").body(()).expect("a request");
            let (response, sending) = sender.send_request(request, false).expect("sent");
            application.await_seen(&path).await;
            let read = read.clone();
            open.push((
                kind,
                tokio::spawn(async move {
                    let _sending = sending;
                    let (head, mut body) = response.await.expect("a response").into_parts();
                    if head.headers.contains_key("weft-reason") {
                        return format!("{} {:?}", head.status, head.headers);
                    }
                    if path.starts_with("/flood") {
                        read.notified().await;
                    }
                    loop {
                        match body.data().await {
                            Some(Ok(data)) => drop(body.flow_control().release_capacity(data.len())),
                            Some(Err(error)) => return format!("{:?}", error.reason()),
                            None => return "a clean end".to_owned(),
                        }
                    }
                }),
            ));
        }
        Self { open, read }
    }

    /// Those that have ended.
    fn ended(&self) -> Vec<&'static str> {
        self.open.iter().filter(|(_, call)| call.is_finished()).map(|(kind, _)| *kind).collect()
    }

    /// Waits until all have ended, and returns how.
    async fn end(self) -> Vec<(&'static str, String)> {
        self.read.notify_one();
        let mut ended = Vec::new();
        for (kind, call) in self.open {
            let how = tokio::time::timeout(LIMIT, call).await.unwrap_or_else(|_| panic!("still open: {kind}"));
            ended.push((kind, how.expect("no panic")));
        }
        ended
    }
}

/// ID-11: open calls that a tightened policy denies end within 2 s: TCP connections, upgraded ones, responses and
/// streams, whether their clients read or not. Those of another caller go on, and an edit that changes no verdict ends
/// nothing.
#[tokio::test(flavor = "multi_thread")]
async fn id_11_tightened_policy_ends_what_it_denies_and_nothing_else() {
    let ca = Ca::new("cluster.local");
    let application = Application::default();
    let shared = application.clone();
    let (address, _) = raw_application(move |stream| shared.clone().serve(stream)).await;
    let server = Proxy::ready(address, Some(&ca.identity(WEB)), json!({})).await;
    let (cart, bank) = (client_of(&server, &ca, CART).await, client_of(&server, &ca, BANK).await);
    let denied = Calls::open(cart.outbound, &application, "cart").await;
    let allowed = Calls::open(bank.outbound, &application, "bank").await;

    let others = json!({"action": "deny", "from": accounts(&["ban", "bank-2", "car"])});
    let on_header = json!({"action": "deny", "headers": [{"name": "x-team", "test": {"exact": "a"}}], "ports": [1]});
    let exempt = json!({"action": "allow", "from": [{"namespaces": ["shop"]}]});
    apply(&server, json!({"policies": [policy("callers", true, json!([others, on_header, exempt]))]})).await;
    tokio::time::sleep(LIMIT).await;
    assert_eq!((denied.ended(), allowed.ended()), (vec![], vec![]), "no verdict has changed");

    let deny = json!({"action": "deny", "from": accounts(&["cart"])});
    apply(&server, json!({"policies": [policy("callers", true, json!([deny, exempt]))]})).await;
    let begun = Instant::now();
    let ended = denied.end().await;
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    let rule = "MeshPolicy/shop/callers/0";
    for (kind, how) in &ended {
        match *kind {
            "request without response" => assert!(how.starts_with("HTTP/1.1 403 ") && how.contains(rule), "{how}"),
            "HTTP/2 request" => assert!(how.contains("\"grpc-status\": \"7\"") && how.contains(rule), "{how}"),
            "response" => assert!(!how.contains("0\r\n\r\n"), "it is not ended cleanly: {how}"),
            "HTTP/2 stream" | "HTTP/2 stream that is not read" => {
                assert_eq!(how, "Some(INADEQUATE_SECURITY)", "{kind}")
            }
            _ => {}
        }
    }
    // Two are about requests that were upgraded, one of each caller.
    let events = server.events(ended.len() + 2).await;
    let is_denied = |event: &&Value| event["reason"] == "policy-denied" || event["body_error"] == "policy-denied";
    let denied: Vec<_> = events.iter().filter(is_denied).collect();
    assert_eq!(denied.len(), ended.len(), "{events:#?}");
    assert!(denied.iter().all(|event| event["source"] == rule && event["src.identity"] == CART), "{denied:#?}");

    assert_eq!(allowed.ended(), Vec::<&str>::new(), "the other caller's go on");
    apply(&server, json!({"policies": [policy("nobody", true, json!([]))]})).await;
    assert_eq!(allowed.end().await.len(), ended.len());
}

/// ID-11: connections in plaintext end when the mode becomes Strict, and those with mutual TLS go on.
#[tokio::test(flavor = "multi_thread")]
async fn id_11_strict_mode_ends_what_is_in_plaintext() {
    let ca = Ca::new("cluster.local");
    let application = Application::default();
    let shared = application.clone();
    let (address, _) = raw_application(move |stream| shared.clone().serve(stream)).await;
    let server = Proxy::ready(address, Some(&ca.identity(WEB)), json!({})).await;
    let cart = client_of(&server, &ca, CART).await;
    let plaintext = Calls::open(server.inbound, &application, "plaintext").await;
    let mutual = Calls::open(cart.outbound, &application, "mutual").await;
    apply(&server, strict("inbound")).await;
    let ended = plaintext.end().await;
    let events = server.events(ended.len() + 1).await;
    let is_refused =
        |event: &&Value| event["reason"] == "plaintext-refused" || event["body_error"] == "plaintext-refused";
    assert_eq!(events.iter().filter(is_refused).count(), ended.len(), "{events:#?}");
    assert_eq!(mutual.ended(), Vec::<&str>::new());
}

/// ID-11: an open request is judged with the headers that it had.
#[tokio::test(flavor = "multi_thread")]
async fn id_11_open_request_is_judged_again_with_its_headers() {
    let application = Application::default();
    let shared = application.clone();
    let (address, _) = raw_application(move |stream| shared.clone().serve(stream)).await;
    let server = Proxy::ready(address, None, json!({})).await;
    let mut streams = Vec::new();
    for team in ["a", "b"] {
        let mut stream = TcpStream::connect(server.inbound).await.expect("connects");
        let request = format!("GET /stream/{team} HTTP/1.1\r\nhost: web\r\nx-team: {team}\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        while stream.read_u8().await.expect("an answer") != b'!' {}
        streams.push(tokio::spawn(async move { stream.read_to_end(&mut Vec::new()).await.is_ok() }));
    }
    let deny = json!({"action": "deny", "headers": [{"name": "x-team", "test": {"exact": "a"}}]});
    apply(&server, json!({"policies": [policy("teams", false, json!([deny]))]})).await;
    let [denied, allowed] = streams.try_into().expect("two");
    tokio::time::timeout(LIMIT, denied).await.expect("it ends").expect("no panic");
    tokio::time::sleep(LIMIT).await;
    assert!(!allowed.is_finished());
}
