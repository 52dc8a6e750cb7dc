//! The webhook's router as the API server calls it, without sockets: reviews in, reviews out. The API server that the
//! webhook reads namespaces from is a function; the tests check the paths it was called with.

#![expect(clippy::unwrap_used, reason = "a test that fails")]

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::core::{ObjectMeta, PartialObjectMeta};
use kube::runtime::reflector;
use kube::runtime::watcher::Event;
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::{ServiceExt, service_fn};
use weft_injector::metrics::Metrics;
use weft_injector::namespaces::Namespaces;
use weft_injector::server::{BODY_MAX, Webhook, router};
use weft_injector::settings::{Installation, Resources, ServerVersion};

/// A webhook whose watch has the namespace `shop`, and an API server that has also `fresh`.
struct Fixture {
    router: Router,
    requested_paths: Arc<Mutex<Vec<String>>>,
    metrics: Metrics,
}

// === impl Fixture ===

impl Fixture {
    fn new() -> Self {
        let requested_paths: Arc<Mutex<Vec<String>>> = Arc::default();
        let log = requested_paths.clone();
        let api_server = service_fn(move |request: Request<kube::client::Body>| {
            let path = request.uri().path().to_owned();
            log.lock().unwrap().push(path.clone());
            async move {
                let (status, body) = if path == "/api/v1/namespaces/fresh" {
                    (200, json!({ "metadata": { "name": "fresh", "labels": { "weft.dev/inject": "enabled" } } }))
                } else {
                    let status = json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": "not found" });
                    (404, status)
                };
                let body = kube::client::Body::from(serde_json::to_vec(&body).unwrap());
                Ok::<_, std::convert::Infallible>(Response::builder().status(status).body(body).unwrap())
            }
        });
        let (store, mut writer) = reflector::store();
        let labels = [("weft.dev/inject".to_owned(), "enabled".to_owned())].into();
        let metadata = ObjectMeta { name: Some("shop".to_owned()), labels: Some(labels), ..ObjectMeta::default() };
        writer.apply_watcher_event(&Event::Apply(PartialObjectMeta { metadata, ..PartialObjectMeta::default() }));

        let installation = Installation {
            proxy_image: "proxy".to_owned(),
            init_image: "init".to_owned(),
            image_pull_policy: "Never".to_owned(),
            proxy_version: "1".to_owned(),
            resources: Resources::default(),
            server: ServerVersion::OLDEST,
            hook_secret: String::new(),
        };
        let metrics = Metrics::default();
        let webhook = Webhook {
            namespaces: Namespaces::new(store, Client::new(api_server, "default")),
            installation: Arc::new(installation),
            version: watch::channel(ServerVersion::parse("1", "33")).1,
            metrics: metrics.clone(),
        };
        Self { router: router(webhook), requested_paths, metrics }
    }

    async fn post(&self, body: impl Into<Body>) -> (StatusCode, Vec<u8>) {
        let request = Request::post("/inject").header("content-type", "application/json").body(body.into()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    async fn review(&self, review: &Value) -> Value {
        let (status, body) = self.post(review.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&answer["kind"], &answer["apiVersion"]),
            (&json!("AdmissionReview"), &json!("admission.k8s.io/v1"))
        );
        assert_eq!(answer["response"]["uid"], "the-uid");
        answer["response"].clone()
    }

    fn metrics_text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics.registry()).unwrap();
        text
    }
}

fn review(namespace: &str, pod: &Value) -> Value {
    json!({
        "kind": "AdmissionReview",
        "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "the-uid",
            "kind": { "group": "", "version": "v1", "kind": "Pod" },
            "resource": { "group": "", "version": "v1", "resource": "pods" },
            "namespace": namespace,
            "operation": "CREATE",
            "userInfo": { "username": "system:serviceaccount:kube-system:replicaset-controller" },
            "object": pod,
            "oldObject": null,
            "dryRun": false,
            "options": { "kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1" },
        },
    })
}

fn pod() -> Value {
    json!({ "metadata": { "generateName": "web-" }, "spec": { "containers": [{ "name": "web", "image": "web", "future": 1 }] } })
}

/// Applies the patch in a response to a pod.
fn patched(response: &Value, pod: &Value) -> Value {
    assert_eq!(response["patchType"], "JSONPatch");
    // kube writes the bytes of the patch as an array of numbers, which Go decodes like base64.
    let bytes: Vec<u8> = serde_json::from_value(response["patch"].clone()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&bytes).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}

#[tokio::test]
async fn review_of_a_new_pod_is_patched_with_a_proxy() {
    let fixture = Fixture::new();
    for dry_run in [false, true] {
        let mut review = review("shop", &pod());
        review["request"]["dryRun"] = json!(dry_run);
        let response = fixture.review(&review).await;
        assert_eq!(response["allowed"], true);
        assert!(response.get("warnings").is_none_or(Value::is_null), "{response}");
        let pod = patched(&response, &pod());
        assert_eq!(pod["spec"]["initContainers"][1]["name"], "weft-proxy");
        assert_eq!(pod["spec"]["containers"][0]["future"], 1, "an unknown field survives");
    }
    assert_eq!(*fixture.requested_paths.lock().unwrap(), [""; 0], "a watched namespace needs no request");
    assert!(
        fixture.metrics_text().contains("weft_injector_reviews_total{outcome=\"injected\",reason=\"\"} 2"),
        "{}",
        fixture.metrics_text()
    );
    assert!(
        fixture.metrics_text().contains("weft_injector_review_duration_seconds_count 2"),
        "{}",
        fixture.metrics_text()
    );
}

#[tokio::test]
async fn namespace_missing_from_the_watch_is_read_from_the_api_server() {
    let fixture = Fixture::new();
    let response = fixture.review(&review("fresh", &pod())).await;
    assert_eq!(patched(&response, &pod())["spec"]["initContainers"][0]["name"], "weft-init");
    assert_eq!(*fixture.requested_paths.lock().unwrap(), ["/api/v1/namespaces/fresh"]);
}

#[tokio::test]
async fn unreadable_namespace_refuses_the_pod_with_the_api_servers_error() {
    let fixture = Fixture::new();
    let response = fixture.review(&review("gone", &pod())).await;
    let message = response["status"]["message"].as_str().unwrap();
    assert_eq!(response["allowed"], false);
    assert!(message.contains("namespace \"gone\"") && message.contains("not found"), "{message}");
}

#[tokio::test]
async fn invalid_namespace_name_is_refused_without_a_request() {
    let fixture = Fixture::new();
    for name in ["", "../secrets", "shop/../x", "a?b", "a\r\nb", &"a".repeat(1000)] {
        assert_eq!(fixture.review(&review(name, &pod())).await["allowed"], false, "{name:?}");
    }
    assert_eq!(*fixture.requested_paths.lock().unwrap(), [""; 0]);
}

#[tokio::test]
async fn only_pod_creations_are_injected() {
    let fixture = Fixture::new();
    for (pointer, value) in [
        ("/request/operation", json!("UPDATE")),
        ("/request/operation", json!("DELETE")),
        ("/request/operation", json!("CONNECT")),
        ("/request/resource/resource", json!("deployments")),
        ("/request/resource/group", json!("apps")),
    ] {
        let mut review = review("shop", &pod());
        *review.pointer_mut(pointer).unwrap() = value.clone();
        let response = fixture.review(&review).await;
        assert_eq!((&response["allowed"], response.get("patch")), (&json!(true), None), "{pointer} {value}");
    }
    let mut ephemeral = review("shop", &pod());
    ephemeral["request"]["subResource"] = json!("ephemeralcontainers");
    assert_eq!(fixture.review(&ephemeral).await.get("patch"), None);
    let line = "weft_injector_reviews_total{outcome=\"skipped\",reason=\"not-a-creation\"} 6";
    assert!(fixture.metrics_text().contains(line), "{}", fixture.metrics_text());
}

#[tokio::test]
async fn warnings_and_refusals_reach_the_user() {
    let fixture = Fixture::new();
    let mut host = pod();
    host["spec"]["hostNetwork"] = json!(true);
    let response = fixture.review(&review("shop", &host)).await;
    assert_eq!(response["allowed"], true);
    assert_eq!(
        response["warnings"][0],
        "weft: no proxy was added: the pod uses the node's network (hostNetwork), which Weft does not redirect"
    );

    let mut bad = pod();
    bad["metadata"]["annotations"] = json!({ "config.weft.dev/workers": "many" });
    let response = fixture.review(&review("shop", &bad)).await;
    assert_eq!(response["allowed"], false);
    let message = "annotation config.weft.dev/workers on the pod is \"many\"; use a number of threads from 1 to 64";
    assert_eq!(response["status"]["message"], message);

    let mut odd = pod();
    odd["metadata"]["annotations"] = json!({ format!("config.weft.dev/{}", "ü".repeat(400)): "x" });
    let response = fixture.review(&review("shop", &odd)).await;
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(warning.len() <= 256, "{} bytes", warning.len());
}

#[tokio::test]
async fn malformed_reviews_are_answered_400() {
    let fixture = Fixture::new();
    for body in [
        "",
        "{}",
        "[]",
        "null",
        "x",
        "{\"request\":{}}",
        "{\"kind\":\"AdmissionReview\",\"apiVersion\":\"admission.k8s.io/v1\"}",
    ] {
        let (status, text) = fixture.post(body.to_owned()).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body:?}");
        assert!(String::from_utf8_lossy(&text).starts_with("invalid AdmissionReview: "), "{body:?}");
    }
    let (status, _) = fixture.post("[".repeat(100_000)).await;
    assert_eq!(status, StatusCode::BAD_REQUEST, "deeply nested JSON");
    let (status, _) = fixture.post(vec![b' '; BODY_MAX + 1]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE);
    let mut no_pod = review("shop", &pod());
    no_pod["request"]["object"] = Value::Null;
    assert_eq!(fixture.review(&no_pod).await["allowed"], false, "review without a pod");
    let request = Request::get("/inject").body(Body::empty()).unwrap();
    assert_eq!(fixture.router.clone().oneshot(request).await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
}

proptest! {
    #[test]
    fn arbitrary_bytes_are_answered_200_or_400(body in prop::collection::vec(any::<u8>(), 0..200), at in 0usize..700, byte: u8) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let fixture = Fixture::new();
            fixture.post(body).await;
            let mut damaged = review("shop", &pod()).to_string().into_bytes();
            let at = at % damaged.len();
            damaged[at] = byte;
            let (status, _) = fixture.post(damaged).await;
            assert!(status == StatusCode::OK || status == StatusCode::BAD_REQUEST, "{status}");
        });
    }
}
