//! A proxy with an identity from its start: what it tells, and what it never tells.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use weft_proxy::app;
use weft_proxy::bootstrap::{Bootstrap, Pod, Ports, Source};
use weft_proxy::identity::authority::Authority;
use weft_proxy::identity::source::{CaSettings, Source as IdentitySource};

use crate::fake::{Behaviour, Fake, OPERATOR, POD, Root, TOKEN, id, token_file};

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../src/identity/fake.rs"]
mod fake;

/// Collects what is logged, at every level and by every crate.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<String>>);

struct Fields<'a>(&'a mut String);

// === impl Log ===

impl Log {
    fn text(&self) -> String {
        self.0.lock().expect("no panic").clone()
    }
}

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn std::fmt::Debug) {
        *self.0 += &format!(" {field}={value:?}");
    }
}

impl tracing::Subscriber for Log {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, attributes: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        attributes.record(&mut Fields(&mut self.0.lock().expect("no panic")));
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut Fields(&mut self.0.lock().expect("no panic")));
    }

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = self.0.lock().expect("no panic");
        *text += &format!("{} {}", event.metadata().level(), event.metadata().target());
        event.record(&mut Fields(&mut text));
        *text += "\n";
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

fn bootstrap(folder: &Path, identity: CaSettings) -> Bootstrap {
    let cache = folder.join("cache");
    std::fs::create_dir_all(&cache).expect("a folder");
    for document in ["x.shop", "i.shop", "index"] {
        std::fs::write(folder.join(format!("{document}.json")), "{}").expect("written");
    }
    Bootstrap {
        pod: Pod { namespace: "shop".into(), service_account: "web".into(), ..Pod::default() },
        workers: 1,
        source: Source::Directory(folder.to_owned()),
        cache,
        ports: Ports { outbound: 0, inbound: 0, admin: 0, metrics: 0, health: 0 },
        tls: None,
        mutual_tls: false,
        timeouts: Default::default(),
        opaque_ports: [].into(),
        identity: Some(IdentitySource::Ca(identity)),
        probes: Default::default(),
        hooks: Default::default(),
        classic: false,
        drain: Duration::from_secs(5),
        log: ("info".into(), "text".into()),
        access_log: Default::default(),
        cgroup: folder.join("cgroup"),
    }
}

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).expect("it listens");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    answer
}

async fn until(what: &str, mut is_so: impl FnMut() -> Option<String>) -> String {
    let begun = Instant::now();
    loop {
        if let Some(found) = is_so() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "never {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// ID-12: in a process of its own, because it sees the log of all threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn id_12_identity_is_told_in_readiness_and_metrics_and_its_secrets_nowhere() {
    let log = Log::default();
    tracing::subscriber::set_global_default(log.clone()).expect("the first");
    let folder = std::env::temp_dir().join(format!("weft-identity-{}", std::process::id()));
    let (root, wrong) = (Root::new(), "eyJ-a-token-that-is-refused");
    let fake = Fake::start(&root, Behaviour { lifetime: Duration::from_secs(4), ..Behaviour::new(&root) }).await;
    let token = token_file("app", wrong);
    let client = Authority::new(&fake.url(), token.clone()).expect("a URL");
    let identity = CaSettings { client, authority: id(OPERATOR), id: id(POD), roots: root.fingerprints() };
    let bootstrap = bootstrap(&folder, identity);
    let debugged = format!("{bootstrap:?}");
    let stop = CancellationToken::new();
    let running = app::start(bootstrap, None, stop.clone()).await.expect("starts");
    let (health, metrics) = (running.health.port(), running.metrics.port());

    let refused = until("refused", || Some(get(health, "/readyz")).filter(|page| page.contains("401"))).await;
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("identity: waiting: "), "{refused}");
    std::fs::write(&token, TOKEN).expect("written");
    let ready = until("ready", || Some(get(health, "/readyz")).filter(|page| page.starts_with("HTTP/1.1 200 "))).await;
    assert!(ready.contains(&format!("identity: ready: {POD}: the last one is in use until 2")), "{ready}");
    let renewed = until("renewed", || {
        Some(get(metrics, "/metrics")).filter(|page| !page.contains("renewals_total{outcome=\"issued\"} 1\n"))
    });
    let page = renewed.await;
    assert!(page.contains("weft_identity_renewals_total{outcome=\"refused\"} "), "{page}");

    let logged = log.text();
    assert!(logged.contains("the token is not accepted") && logged.contains("in use"), "the log has it:\n{logged}");
    assert_eq!(logged.matches("no certificate for this pod").count(), 1, "a refusal is told once:\n{logged}");
    for (desc, text) in
        [("log", &logged), ("readiness", &refused), ("readiness", &ready), ("metrics", &page), ("settings", &debugged)]
    {
        for secret in [wrong, TOKEN, "PRIVATE KEY", "eyJ-"] {
            assert!(!text.contains(secret), "{desc} has {secret}:\n{text}");
        }
    }
    for file in std::fs::read_dir(folder.join("cache")).expect("a folder") {
        let text = std::fs::read_to_string(file.expect("a file").path()).expect("readable");
        assert!(!text.contains("eyJ") && !text.contains("PRIVATE"), "{text}");
    }
    stop.cancel();
    running.finished().await;
    std::fs::remove_dir_all(folder).expect("removed");
}
