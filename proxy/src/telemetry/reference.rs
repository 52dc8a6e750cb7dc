//! Keeps the pages of docs/reference true that are about the proxy. See [`weft_runtime::reference`].

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{Method, Version};
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;
use weft_runtime::reference::{check, metrics_table};

use super::access::FIELDS;
use super::config::{ConfigMetrics, DocumentMetrics};
use super::handles::{FinishedConnection, FinishedRequest, Handles};
use super::identity::IdentityMetrics;
use super::metrics::Metrics;
use super::{RpcStatus, alive};
use crate::direction::Direction;
use crate::reason::{Entry, Reason};
use crate::security::Security;
use crate::value::RuleName;

fn page(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference").join(name)
}

#[test]
fn page_of_metrics_lists_those_of_the_proxy() {
    let mut registry = Registry::default();
    alive::register(&mut registry);
    let metrics = Metrics::new(&mut registry);
    let generation = DocumentMetrics { generation: Some(1), unconfirmed_since: Some(Instant::now()) };
    ConfigMetrics::new(&mut registry).set_documents([("index".to_owned(), generation)].into_iter());
    let identity = IdentityMetrics::new(&mut registry);
    identity.failed("refused");
    identity.refuse_bundle("untrusted");
    let handles = Handles::new(metrics.clone(), false);
    let service: Arc<str> = "shop/reviews:9080".into();
    for direction in [Direction::Inbound, Direction::Outbound] {
        handles.finished(&request(direction, &service, None));
    }
    let name = Some(&*service);
    handles.retried(name, "hedge");
    handles.retry_refused(name, "budget");
    handles.mirrored(&service, "MeshRoute/shop/reviews/0", "answered");
    handles.by_service_address(&service);
    handles.connection_finished(&FinishedConnection {
        direction: Direction::Inbound,
        service: name,
        security: Security::Mtls,
        rule_name: None,
        reason: None,
        sent: 1,
        received: 1,
    });
    metrics.endpoints(&service).ejected("consecutive-5xx");
    metrics.set_healthy(&service, 1);
    metrics.set_unhealthy(&service, 1);
    check(&page("metrics.md"), "proxy", &metrics_table(&registry));
}

#[test]
fn page_of_reasons_lists_all() {
    let mut rows: Vec<String> = Reason::ENTRIES
        .iter()
        .map(|entry| {
            let status = match entry.reason {
                Reason::DirectResponse | Reason::Redirect | Reason::Fault => "the rule's".to_owned(),
                _ if entry.of == "connection" => "–".to_owned(),
                reason => reason.status().as_u16().to_string(),
            };
            let failure = if entry.reason.is_failure() { "yes" } else { "no" };
            let (code, meaning, remedy) = (entry.reason.as_str(), entry.meaning, entry.remedy);
            format!("| `{code}` | {status} | {} | {} | {failure} | {meaning} | {remedy} |\n", entry.by, entry.of)
        })
        .collect();
    rows.sort();
    let table = "| reason | status | proxy | ends | failure | meaning | what to do |\n|---|---|---|---|---|---|---|\n";
    check(&page("reasons.md"), "reasons", &(table.to_owned() + &rows.concat()));
    for Entry { reason, .. } in Reason::ENTRIES {
        assert_eq!(Reason::parse(reason.as_str().as_bytes()), Some(*reason));
    }
    assert_eq!(Reason::parse(b"of-a-newer-proxy"), None);
}

#[test]
fn page_of_the_access_log_lists_all_fields() {
    let mut table = "| field | of | meaning |\n|---|---|---|\n".to_owned();
    for (name, of, meaning) in FIELDS {
        writeln!(table, "| `{name}` | {of} | {meaning} |").expect("a string grows");
    }
    check(&page("access-log.md"), "fields", &table);
    // The fields of the events themselves: each is a line `name = value,`.
    let source = include_str!("access.rs");
    let events = source.split("target: \"access\",\n").skip(1).filter_map(|rest| rest.split("\n    );").next());
    let logged: BTreeSet<&str> =
        events.flat_map(|event| event.lines().filter_map(|line| Some(line.trim().split_once(" = ")?.0))).collect();
    let listed: BTreeSet<&str> = FIELDS.iter().map(|(name, ..)| *name).collect();
    assert_eq!(logged, listed);
}

/// A request of each rule and Service is counted once, whatever the client sends.
#[test]
fn requests_are_counted_by_rule_and_service() {
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let handles = Handles::new(metrics.clone(), true);
    let service: Arc<str> = "shop/reviews:9080".into();
    let rules = ["0", "1"].map(|name| Arc::new(RuleName::new("MeshPolicy", "shop", "read-only", name)));
    for rule in &rules {
        handles.finished(&FinishedRequest { status: 403, ..request(Direction::Inbound, &service, Some(rule)) });
    }
    for method in ["PROPFIND", "X-1", "X-2"] {
        let method = Method::from_bytes(method.as_bytes()).expect("a method");
        handles.finished(&FinishedRequest { method: &method, ..request(Direction::Outbound, &service, None) });
    }
    handles.finished(&FinishedRequest {
        rpc_status: Some(RpcStatus::parse(b"14")),
        version: Version::HTTP_2,
        ..request(Direction::Outbound, &service, None)
    });
    let encode = || {
        let mut page = String::new();
        text::encode(&mut page, &registry).expect("encodes");
        page
    };
    let page = encode();
    for expected in [
        "weft_requests_total{direction=\"inbound\",service=\"shop/reviews:9080\",source=\"MeshPolicy/shop/read-only/0\",\
         reason=\"\",http_response_status_code=\"403\",rpc_status_code=\"\",security=\"mtls\",plaintext=\"\"} 1\n",
        "weft_requests_total{direction=\"inbound\",service=\"shop/reviews:9080\",source=\"MeshPolicy/shop/read-only/1\",\
         reason=\"\",http_response_status_code=\"403\",rpc_status_code=\"\",security=\"mtls\",plaintext=\"\"} 1\n",
        "weft_requests_total{direction=\"outbound\",service=\"shop/reviews:9080\",source=\"\",reason=\"\",\
         http_response_status_code=\"200\",rpc_status_code=\"UNAVAILABLE\",security=\"mtls\",plaintext=\"\"} 1\n",
        "http_server_request_duration_seconds_count{service=\"shop/reviews:9080\",http_request_method=\"GET\",\
         http_response_status_code=\"403\",error_type=\"\",network_protocol_version=\"1.1\",url_scheme=\"https\"} 2\n",
        "http_client_request_duration_seconds_count{service=\"shop/reviews:9080\",http_request_method=\"_OTHER\",\
         http_response_status_code=\"200\",error_type=\"\",network_protocol_version=\"1.1\",url_scheme=\"http\",\
         server_address=\"reviews.shop.svc\",server_port=\"9080\"} 3\n",
    ] {
        assert!(page.contains(expected), "{expected}\n{page}");
    }
    // The rule 1 is deleted, then the Service.
    let is_left = |source: &str| source != "MeshPolicy/shop/read-only/1";
    (0..2).for_each(|_| metrics.sweep(|_| true, is_left));
    let page = encode();
    assert!(!page.contains("read-only/1") && page.contains("read-only/0"), "{page}");
    (0..2).for_each(|_| metrics.sweep(|_| false, is_left));
    assert!(!encode().contains("shop"), "{}", encode());
}

/// A request that took 10 ms.
fn request<'a>(
    direction: Direction,
    service: &'a Arc<str>,
    rule_name: Option<&'a Arc<RuleName>>,
) -> FinishedRequest<'a> {
    FinishedRequest {
        direction,
        security: Security::Mtls,
        method: &Method::GET,
        version: Version::HTTP_11,
        rule_name,
        service: Some(service),
        status: 200,
        rpc_status: None,
        reason: None,
        body_error: None,
        duration: Duration::from_millis(10),
    }
}
