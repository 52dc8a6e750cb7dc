//! The private key and the token of a pod are in nothing that a proxy writes or shows.

use std::os::unix::process::ExitStatusExt;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use super::*;
use crate::fake::{Behaviour, TOKEN, id};

/// A secret in the forms in which it could be written.
struct Secret {
    name: &'static str,
    forms: Vec<Vec<u8>>,
}

// === impl Secret ===

impl Secret {
    fn new(name: &'static str, bytes: &[u8]) -> Self {
        let hex = |separator: &str, upper: bool| {
            let digit = |byte: &u8| if upper { format!("{byte:02X}") } else { format!("{byte:02x}") };
            bytes.iter().map(digit).collect::<Vec<_>>().join(separator)
        };
        let decimal = bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(", ");
        let mut forms = vec![bytes.to_vec(), decimal.into_bytes()];
        for separator in ["", ":", " "] {
            forms.extend([false, true].map(|upper| hex(separator, upper).into_bytes()));
        }
        // Parts in base64: lines are broken, and what stands before a secret shifts it by up to two bytes.
        for part in bytes.windows(12) {
            forms.push(STANDARD_NO_PAD.encode(part).into_bytes());
            forms.push(URL_SAFE_NO_PAD.encode(part).into_bytes());
        }
        Self { name, forms }
    }

    /// The 32 bytes of an ECDSA P-256 key, of its file in PEM.
    fn key(file: &[u8]) -> Self {
        let key = pem::read_private_key(file).expect("a key");
        // Source: RFC 5915: version 1, then an octet string of 32 bytes.
        let marker = [2, 1, 1, 4, 32];
        let at = key.secret_der().windows(marker.len()).position(|window| window == marker).expect("a P-256 key");
        Self::new("the private key", &key.secret_der()[at + marker.len()..][..32])
    }

    fn is_in(&self, bytes: &[u8]) -> bool {
        self.forms.iter().any(|form| bytes.windows(form.len()).any(|window| window == form))
    }
}

/// Everything of a proxy that somebody else can see.
async fn visible(proxy: &Proxy) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for (server, address) in [("metrics", proxy.metrics), ("health", proxy.health), ("admin", proxy.admin)] {
        for path in ["/", "/livez", "/readyz", "/metrics", "/log-level", "/config_dump", "/certs", "/debug/pprof/heap"]
        {
            let page = page(address, path).await;
            assert!(page.starts_with("HTTP/1.1 "), "{server} {path}: {page}");
            found.push((format!("{server} {path}"), page.into_bytes()));
        }
    }
    for name in ["environ", "cmdline", "status", "maps"] {
        let file = format!("/proc/{}/{name}", proxy.child.id());
        match std::fs::read(&file) {
            Ok(bytes) => found.push((file, bytes)),
            // Only root may read it.
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied, "{file}"),
        }
    }
    found.push(("log".to_owned(), proxy.log().into_bytes()));
    found
}

/// ID-12: neither in pages and logs, at the most verbose level and after failures, nor in the environment of the process,
/// nor in a core dump, of which there is none.
#[tokio::test(flavor = "multi_thread")]
async fn id_12_key_and_token_are_in_nothing_that_a_proxy_shows() {
    let (ca, (application, _)) = (Ca::new("cluster.local"), application().await);
    let identity = ca.identity(WEB);
    let key_file = std::fs::read(identity.join("tls.key")).expect("a key");
    let (key, token) = (Secret::key(&key_file), Secret::new("the token", TOKEN.as_bytes()));
    assert!(key.is_in(&key_file) && token.is_in(format!("authorization: Bearer {TOKEN}").as_bytes()), "it is found");

    let trace = [("WEFT_LOG", "trace")];
    let files = Proxy::with(application, Some(&identity), json!({}), &trace);
    let (root, stranger) = (Root::new(), Root::new());
    let behaviour = Behaviour { issued_id: id(CART), lifetime: Duration::from_secs(4), ..Behaviour::new(&root) };
    let authority = Fake::start(&root, behaviour).await;
    let certified = Proxy::certified(&authority, &root, "cart", free_address(), json!({}), &trace);
    files.await_ready().await;
    certified.await_ready().await;
    // Traffic, a refused certificate on either side, and an authority that refuses, then one that is somebody else.
    certified.export(json!([endpoint(files.inbound, Some("web"))])).await;
    let (status, headers, body) = certified.get(&[]).await;
    assert_eq!((status.as_u16(), reason(&headers)), (503, "mtls-handshake"), "{body}");
    let caller = Proxy::ready(free_address(), Some(&ca.identity(CART)), json!({})).await;
    caller.export(json!([endpoint(files.inbound, Some("web"))])).await;
    assert_eq!(caller.get(&[]).await.0, 200);
    authority.change(|behaviour| behaviour.refusal = Some((401, "the token is not accepted".to_owned())));
    let told = async |what: &str| page(certified.health, "/readyz").await.contains(what);
    wait("a refusal", async || told("401").await).await;
    let address = authority.stop().await;
    let _stranger = Fake::start_at(address, &stranger, Behaviour::new(&stranger)).await;
    wait("somebody else", async || told("does not prove to be the authority").await).await;

    for mut proxy in [files, certified] {
        for (name, shown) in visible(&proxy).await {
            for secret in [&key, &token] {
                assert!(!secret.is_in(&shown), "{} is in {name}", secret.name);
            }
            assert!(!String::from_utf8_lossy(&shown).contains("PRIVATE KEY"), "{name}");
        }
        assert!(proxy.log().contains("identity in use"), "the log is that of the proxy: {}", proxy.log());
        let pid = proxy.child.id().to_string();
        for command in [&["prlimit", "--core=unlimited:unlimited", "--pid", &pid][..], &["kill", "-ABRT", &pid]] {
            let status = Command::new(command[0]).args(&command[1..]).status().expect("it runs");
            assert!(status.success(), "{command:?}");
        }
        let status = proxy.child.wait().expect("it ends");
        assert_eq!((status.signal(), status.core_dumped()), (Some(6), false), "there is no core dump");
    }
}
