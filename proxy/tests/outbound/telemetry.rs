//! Metrics and access log, as a scrape and a log reader see them.

use std::fmt::Debug;
use std::net::Ipv4Addr;
use std::sync::OnceLock;
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};

use super::retry::{Failure, grpc_backend};
use super::*;

/// The access events of this process: `name=value` of each field.
static EVENTS: Mutex<Vec<Vec<String>>> = Mutex::new(Vec::new());

struct Capture;

#[derive(Default)]
struct Fields(Vec<String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push(format!("{field}={value:?}").replace('"', ""));
    }
}

impl Subscriber for Capture {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "access"
    }

    fn event(&self, event: &Event<'_>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        EVENTS.lock().expect("not poisoned").push(fields.0);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// Waits for the access event with this field, and returns its other fields.
async fn logged(field: &str) -> Vec<String> {
    for _ in 0..500 {
        let found =
            EVENTS.lock().expect("not poisoned").iter().find(|event| event.iter().any(|it| it == field)).cloned();
        if let Some(event) = found {
            return event;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no access event has {field}");
}

fn capture() {
    static ONCE: OnceLock<()> = OnceLock::new();
    ONCE.get_or_init(|| tracing::subscriber::set_global_default(Capture).expect("the only subscriber"));
}

/// Waits until a line of the metrics page begins with `name` and `is_it` says so of its value.
async fn await_value(proxy: &Proxy, name: &str, is_it: impl Fn(f64) -> bool) {
    let mut page = String::new();
    for _ in 0..500 {
        page = proxy.get(proxy.metrics, "/metrics").await.1;
        let value = page.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        if value.is_some_and(&is_it) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{name} never has that value:\n{page}");
}

/// A backend that responds as if its own proxy had denied the request.
async fn denied_backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let head = "HTTP/1.1 403 Forbidden\r\nweft-reason: policy-denied\r\n";
            let end = "connection: close\r\ncontent-length: 0\r\n\r\n";
            let _ = stream.write_all(format!("{head}{end}").as_bytes()).await;
        }
    });
    address
}

#[tokio::test]
async fn access_log_has_ids_and_the_reason_of_the_peers_proxy() {
    capture();
    let proxy = Proxy::start_with("log-ids", Pod::default(), AccessLog::Failures).await;
    let endpoint = json!({"address": denied_backend().await, "hasProxy": true});
    proxy.configure_endpoints(None, "http", &[endpoint], json!({})).await;
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let headers = [("x-request-id", "denied-1"), ("traceparent", &format!("00-{id}-00f067aa0ba902b7-01"))];
    assert_eq!(proxy.send("GET", "/denied?secret=1", &headers, "").await.0, 403);
    let event = logged("request_id=denied-1").await;
    for expected in
        [&format!("trace_id={id}"), "upstream_reason=policy-denied", "status=403", "path=/denied", "response_bytes=0"]
    {
        assert!(event.iter().any(|field| field == expected), "{expected} is not in {event:?}");
    }
    let duration = event.iter().find_map(|field| field.strip_prefix("duration_ms=")?.parse::<f64>().ok());
    assert!(duration.is_some_and(|duration| (0.0..5_000.0).contains(&duration)), "{event:?}");
    assert!(!event.iter().any(|field| field.starts_with("reason=")), "this proxy has no reason: {event:?}");

    // The application itself cannot set a reason.
    let endpoint = json!({"address": denied_backend().await});
    proxy.configure_endpoints(None, "http", &[endpoint], json!({})).await;
    assert_eq!(proxy.send("GET", "/", &[("x-request-id", "denied-2")], "").await.0, 403);
    proxy.configure(routes(json!({"respond": {"status": 503}}), json!({})), "http", &[], json!({})).await;
    assert_eq!(proxy.send("GET", "/", &[("x-request-id", "direct")], "").await.0, 503);
    logged("request_id=direct").await;
    let events = EVENTS.lock().expect("not poisoned").clone();
    assert!(!events.iter().flatten().any(|field| field == "request_id=denied-2"), "a 403 is no failure: {events:?}");
}

#[tokio::test]
async fn grpc_status_of_trailers_is_counted_and_logged() {
    capture();
    let proxy = Proxy::start_with("log-grpc", Pod::default(), AccessLog::Failures).await;
    let service = format!("shop/reviews:{}", proxy.address.port());
    for (failure, id) in [(Failure::AfterMessage, "grpc-after"), (Failure::TrailersOnly, "grpc-only")] {
        let (backend, _) = grpc_backend("14", failure).await;
        proxy.configure(None, "http2", &[(backend, "")], json!({})).await;
        let headers = [("content-type", "application/grpc"), ("x-request-id", id)];
        // The first call fails, the second does not.
        assert_eq!(proxy.send("POST", "/t/Call", &headers, "").await.0, 200);
        assert_eq!(proxy.send("POST", "/t/Call", &[headers[0]], "").await.0, 200);
        let event = logged(&format!("request_id={id}")).await;
        assert!(event.iter().any(|field| field == "rpc_status_code=UNAVAILABLE"), "{event:?}");
    }
    for (status, count) in [("UNAVAILABLE", 2.0), ("OK", 2.0)] {
        let labels = format!(
            "direction=\"outbound\",service=\"{service}\",source=\"\",reason=\"\",http_response_status_code=\"200\",\
             rpc_status_code=\"{status}\",security=\"plaintext\",plaintext=\"no-identity\""
        );
        await_value(&proxy, &format!("weft_requests_total{{{labels}}}"), |value| value == count).await;
    }
}

#[tokio::test]
async fn requests_are_observed_by_the_conventions_of_opentelemetry() {
    let proxy = Proxy::start("semconv").await;
    let (v1, _) = backend("v1", |number| (if number == 0 { 200 } else { 404 }, Duration::ZERO)).await;
    proxy.configure(None, "http", &[(v1, "")], json!({})).await;
    assert_eq!(proxy.send("GET", "/", &[], "").await.0, 200);
    assert_eq!(proxy.send("PROPFIND", "/", &[], "").await.0, 404);
    let port = proxy.address.port();
    for (method, status, error) in [("GET", "200", ""), ("_OTHER", "404", "404")] {
        let name = format!(
            "http_client_request_duration_seconds_count{{service=\"shop/reviews:{port}\",\
             http_request_method=\"{method}\",http_response_status_code=\"{status}\",error_type=\"{error}\",\
             network_protocol_version=\"1.1\",url_scheme=\"http\",server_address=\"reviews.shop.svc\",\
             server_port=\"{port}\"}}"
        );
        await_value(&proxy, &name, |value| value == 1.0).await;
    }
    let healthy = format!("weft_endpoints_healthy{{service=\"shop/reviews:{port}\"}}");
    await_value(&proxy, &healthy, |value| value == 1.0).await;
    let build = format!("weft_build_info{{component=\"proxy\",version=\"{}\"}}", env!("CARGO_PKG_VERSION"));
    await_value(&proxy, &build, |value| value == 1.0).await;
    await_value(&proxy, "process_cpu_seconds_total", |value| value > 0.0).await;
}

#[tokio::test]
async fn inbound_requests_are_of_the_service_of_the_pod() {
    let (application, _) = backend("v1", ok).await;
    let pod = Pod { ips: vec![Ipv4Addr::LOCALHOST.into()], application: Some(application), ..Pod::default() };
    let proxy = Proxy::start_with("own-service", pod, AccessLog::Off).await;
    let inbound = proxy.running.as_ref().map(|running| running.inbound.port()).expect("it runs");
    let inbound = SocketAddr::from(([127, 0, 0, 1], inbound));
    let service = format!("shop/reviews:{}", proxy.address.port());
    let count = |service: &str| {
        format!(
            "http_server_request_duration_seconds_count{{service=\"{service}\",http_request_method=\"GET\",\
             http_response_status_code=\"200\",error_type=\"\",network_protocol_version=\"1.1\",url_scheme=\"http\"}}"
        )
    };
    proxy.export(&json!({"services": []})).await;
    // The document with the policies may be read a moment later.
    let begun = Instant::now();
    while send(inbound, "GET", "/", &[], "").await.0 != 200 {
        assert!(begun.elapsed() < Duration::from_secs(5), "the policies are read");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    await_value(&proxy, &count(""), |value| value == 1.0).await;
    proxy.configure(None, "http", &[(application, "")], json!({})).await;
    assert_eq!(send(inbound, "GET", "/", &[], "").await.0, 200);
    await_value(&proxy, &count(&service), |value| value == 1.0).await;
    // The pod is not ready: it is no endpoint any more, and still serves.
    proxy.configure(None, "http", &[], json!({})).await;
    assert_eq!(send(inbound, "GET", "/", &[], "").await.0, 200);
    await_value(&proxy, &count(&service), |value| value == 2.0).await;
    // The Service is deleted.
    proxy.export(&json!({"services": []})).await;
    assert_eq!(send(inbound, "GET", "/", &[], "").await.0, 200);
    await_value(&proxy, &count(""), |value| value == 2.0).await;
}

#[tokio::test]
async fn configuration_ages_while_the_newest_version_is_not_in_use() {
    let proxy = Proxy::start("config-age").await;
    let (v1, _) = backend("v1", ok).await;
    let age = "weft_config_age_seconds{document=\"x.shop\"}";
    await_value(&proxy, age, |value| value > 0.0).await;
    proxy.configure(None, "http", &[(v1, "")], json!({})).await;
    await_value(&proxy, age, |value| value == 0.0).await;
    proxy.write("x.shop", &json!({"services": [{"name": "reviews", "surprise": true}]}));
    await_value(&proxy, age, |value| value > 0.05).await;
    await_value(&proxy, "weft_config_rejections_total", |value| value == 1.0).await;
    proxy.configure(None, "http", &[(v1, "")], json!({})).await;
    await_value(&proxy, age, |value| value == 0.0).await;
    std::fs::remove_file(proxy.folder.join("x.shop.json")).expect("removed");
    await_value(&proxy, age, |value| value > 0.05).await;
}
