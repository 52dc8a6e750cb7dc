//! Connections to the address of a pod: clients connect to it as they do to the members of a StatefulSet, and the proxy
//! finds in the document of the address's prefix who must be there.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::streams::echo;
use crate::*;

const GREETING: &[u8] = b"220 welcome\r\n";

/// A proxy whose clients connect to a pod's address, which its index lists the prefix of.
async fn client(ca: &Ca, address: SocketAddr, private: Value) -> Proxy {
    let client = Proxy::to(address, Some(&ca.identity(CART)), private);
    write(&client.folder, "index.json", &json!({"namespaces": {}, "prefixes": ["127.0.0.0/24"]}).to_string());
    client.await_index().await;
    client
}

/// An application that sends back what it receives, and keeps it.
async fn recording_echo() -> (SocketAddr, Arc<Mutex<Vec<u8>>>) {
    let received = Arc::<Mutex<Vec<u8>>>::default();
    let shared = received.clone();
    let serve = move |mut stream: TcpStream| {
        let received = shared.clone();
        async move {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = stream.read(&mut bytes).await {
                received.lock().expect("not poisoned").extend_from_slice(&bytes[..count]);
                let _ = stream.write_all(&bytes[..count]).await;
            }
        }
    };
    (raw_application(serve).await.0, received)
}

fn has_arrived(received: &Mutex<Vec<u8>>, text: &[u8]) -> bool {
    received.lock().expect("not poisoned").windows(text.len()).any(|window| window == text)
}

impl Proxy {
    /// Waits until it is ready and knows the prefixes, without a connection to its outbound port.
    async fn await_index(&self) {
        let is_ready = async || self.page("/readyz").await.contains(" 200 ");
        wait("the index is in use", async || is_ready().await && self.generation_of("index").await > 0).await;
    }

    /// Writes the document of the pods, where the address is that of a pod of `shop`.
    fn write_pods(&self, account: Option<&str>, excluded: &[SocketAddr]) {
        let excluded: Vec<String> = excluded.iter().map(|address| address.port().to_string()).collect();
        let pod = account.map(
            |account| json!({"127.0.0.1": {"namespace": "shop", "serviceAccount": account, "excluded": excluded}}),
        );
        write(&self.folder, "p.127.0.0.0.json", &json!({"pods": pod.unwrap_or(json!({}))}).to_string());
    }

    async fn generation_of(&self, document: &str) -> u64 {
        self.sum("weft_config_generation", &[&format!("document=\"{document}\"")]).await
    }

    /// What an echo answers through it; nothing if the connection is closed.
    async fn echoed(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.outbound).await.expect("connects");
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(TIMEOUT, stream.read_to_end(&mut answer)).await.expect("it ends");
        answer
    }

    /// The last access event, of `count`.
    async fn event(&self, count: usize) -> Value {
        self.events(count).await.pop().expect("an event")
    }
}

/// A request is judged and told to the application as through a Service.
#[tokio::test(flavor = "multi_thread")]
async fn requests_to_a_pods_address_are_encrypted_and_the_policies_of_the_pod_apply() {
    let ca = Ca::new("cluster.local");
    let (application, _) = application().await;
    let mut private = strict("inbound");
    let deny = json!({"action": "deny", "headers": [{"name": "x-denied", "test": "present"}]});
    private["policies"] = json!([{"name": "p", "target": "namespace", "rules": [deny]}]);
    let server = Proxy::ready(application, Some(&ca.identity(WEB)), private).await;
    let client = client(&ca, server.inbound, strict("outbound")).await;
    client.write_pods(Some("web"), &[]);
    let (status, _, body) = client.get(&[("x-forwarded-client-cert", BANK)]).await;
    assert_eq!(status, 200, "{body}");
    assert!(
        body.contains(&format!("x-forwarded-client-cert: By={WEB};URI={CART}\n")) && !body.contains("bank"),
        "{body}"
    );
    let (status, headers, body) = client.get(&[("x-denied", "1")]).await;
    assert_eq!((status.as_u16(), reason(&headers)), (403, "policy-denied"), "{body}");

    let event = client.event(1).await;
    assert_eq!((&event["security"], &event["dst.identity"]), (&json!("mtls"), &json!(WEB)), "{event}");
    assert_eq!(event["dst.endpoint"], server.inbound.to_string());
    let event = &server.events(1).await[0];
    assert_eq!((&event["security"], &event["src.identity"]), (&json!("mtls"), &json!(CART)), "{event}");
    let labels = ["direction=\"outbound\"", "security=\"mtls\"", "reason=\"\""];
    wait("it is counted", async || client.sum("weft_tcp_connections_total", &labels).await == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tcp_to_a_pods_address_is_encrypted_and_either_side_may_speak_first() {
    let ca = Ca::new("cluster.local");
    for greets in [false, true] {
        let (application, _) = raw_application(move |mut stream: TcpStream| async move {
            if greets {
                let _ = stream.write_all(GREETING).await;
            }
            echo(stream).await;
        })
        .await;
        for opaque in [false, true] {
            let ports = if opaque { application.port().to_string() } else { "1".to_owned() };
            let environment = [("WEFT_OPAQUE_PORTS", &*ports)];
            let server = Proxy::with(application, Some(&ca.identity(WEB)), strict("inbound"), &environment);
            server.await_ready().await;
            let client = client(&ca, server.inbound, strict("outbound")).await;
            client.write_pods(Some("web"), &[]);
            let mut stream = TcpStream::connect(client.outbound).await.expect("connects");
            let desc = format!("greets={greets} opaque={opaque}");
            if greets {
                let mut greeting = [0; GREETING.len()];
                let read = tokio::time::timeout(TIMEOUT, stream.read_exact(&mut greeting)).await;
                read.unwrap_or_else(|_| panic!("no greeting: {desc}")).expect("a greeting");
                assert_eq!(greeting, GREETING, "{desc}");
            }
            stream.write_all(&[0]).await.expect("sent");
            assert_eq!(stream.read_u8().await.expect("echoed"), 0, "{desc}");
            crate::streams::echoes(stream).await;
            assert_eq!(server.event(1).await["src.identity"], CART, "{desc}");
            assert_eq!(client.event(1).await["security"], "mtls", "{desc}");
        }
    }
}

/// What is not listed, and ports that the pod's proxy does not carry.
#[tokio::test(flavor = "multi_thread")]
async fn other_addresses_and_excluded_ports_are_not_encrypted() {
    let ca = Ca::new("cluster.local");
    for (mode, private) in [("Permissive", json!({})), ("Strict", strict("outbound"))] {
        let is_strict = mode == "Strict";
        let (address, received) = recording_echo().await;
        let client = client(&ca, address, private).await;
        let class = |event: &Value| (event["security"].clone(), event["reason"].clone());

        client.write_pods(None, &[]);
        assert_eq!(client.echoed(b"one").await, b"one", "{mode}: the address is not listed");
        assert_eq!(class(&client.event(1).await), (json!("passthrough"), Value::Null), "{mode}");

        let generation = client.generation_of("p.127.0.0.0").await;
        client.write_pods(Some("web"), &[address]);
        wait("it is in use", async || client.generation_of("p.127.0.0.0").await > generation).await;
        let answer = client.echoed(b"two").await;
        let event = client.event(2).await;
        if is_strict {
            assert_eq!(class(&event), (Value::Null, json!("plaintext-refused")), "{event}");
            assert!(answer.is_empty() && !has_arrived(&received, b"two"), "nothing was sent");
        } else {
            assert_eq!((answer, class(&event)), (b"two".to_vec(), (json!("plaintext"), Value::Null)), "{event}");
            assert_eq!(event["plaintext"], "excluded");
        }

        write(&client.folder, "index.json", &json!({"namespaces": {}}).to_string());
        wait("the document is closed", async || client.generation_of("p.127.0.0.0").await == 0).await;
        assert_eq!(client.echoed(b"three").await, b"three", "{mode}: the prefix is not listed");
        assert_eq!(class(&client.event(3).await), (json!("passthrough"), Value::Null), "{mode}");
    }
}

/// The index lists the prefix, and its document does not arrive.
#[tokio::test(flavor = "multi_thread")]
async fn strict_clients_send_nothing_while_it_is_not_known_who_is_at_an_address() {
    let ca = Ca::new("cluster.local");
    let (address, received) = recording_echo().await;
    let client = client(&ca, address, strict("outbound")).await;
    let begun = Instant::now();
    assert!(client.echoed(b"secret").await.is_empty());
    assert!((Duration::from_secs(1)..Duration::from_secs(5)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert_eq!(client.event(1).await["reason"], "config-unavailable");
    for damaged in ["{", r#"{"pods":{"127.0.9.1":{"namespace":"shop","serviceAccount":"web"}}}"#] {
        write(&client.folder, "p.127.0.0.0.json", damaged);
        assert!(client.echoed(b"secret").await.is_empty(), "{damaged}");
    }
    assert!(received.lock().expect("not poisoned").is_empty(), "nothing was sent");
    write(&client.folder, "i.shop.json", "{}");
    let passes = async || client.echoed(b"hello").await == b"hello";
    wait("the mode is Permissive", passes).await;
    assert_eq!(client.events(4).await.pop().expect("an event")["security"], "passthrough");
}

/// Another pod has the address by now, and the news is on its way.
#[tokio::test(flavor = "multi_thread")]
async fn connections_to_an_address_that_another_pod_has_wait_for_the_news() {
    let ca = Ca::new("cluster.local");
    let (application, received) = recording_echo().await;
    let address = free_address();
    let server = |identity: Option<&str>| {
        let identity = identity.map(|id| ca.identity(id));
        let server = Proxy::at(address, application, identity.as_deref(), json!({}), &[]);
        async move {
            server.await_ready().await;
            server
        }
    };
    let other = server(Some(BANK)).await;
    let client = client(&ca, address, json!({})).await;
    client.write_pods(Some("web"), &[]);
    assert!(client.echoed(b"secret").await.is_empty());
    assert_eq!(client.event(1).await["reason"], "wrong-identity");
    assert!(!has_arrived(&received, b"secret"), "nothing was sent");

    let (answer, ()) = tokio::join!(client.echoed(b"hello"), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        client.write_pods(Some("bank"), &[]);
    });
    assert_eq!(answer, b"hello", "made again to whoever is there by now");
    assert_eq!(client.event(2).await["dst.identity"], BANK);

    // A pod without an identity has it now.
    drop(other);
    let _plain = server(None).await;
    assert!(client.echoed(b"secret").await.is_empty());
    assert_eq!(client.event(3).await["reason"], "mtls-handshake");
    let (answer, ()) = tokio::join!(client.echoed(b"late"), async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert!(!has_arrived(&received, b"late"), "not before the document says so");
        client.write_pods(None, &[]);
    });
    assert_eq!((answer, client.event(4).await["security"].clone()), (b"late".to_vec(), json!("passthrough")));
    assert!(!has_arrived(&received, b"secret"));
}

/// A proxy without an identity passes everything on, whatever the documents say.
#[tokio::test(flavor = "multi_thread")]
async fn without_an_identity_connections_to_pods_are_passed_on() {
    let (address, _) = raw_application(echo).await;
    let client = Proxy::to(address, None, json!({}));
    write(&client.folder, "index.json", &json!({"namespaces": {}, "prefixes": ["127.0.0.0/24"]}).to_string());
    client.write_pods(Some("web"), &[]);
    client.await_index().await;
    assert_eq!(client.echoed(b"hello").await, b"hello");
    assert_eq!(client.event(1).await["security"], "passthrough");
    assert_eq!(client.generation_of("p.127.0.0.0").await, 0, "not opened");
}
