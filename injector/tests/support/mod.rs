//! The webhook's router without sockets, and reviews for it. The API server that it reads namespaces from is a function.

#![allow(dead_code, reason = "each test uses its own part")]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::core::{ObjectMeta, PartialObjectMeta};
use kube::runtime::reflector;
use kube::runtime::watcher::Event;
use serde_json::{Value, json};
use tokio::sync::watch;
use tower::{ServiceExt, service_fn};
use weft_identity::{Fingerprint, SpiffeId, TrustDomain};
use weft_injector::metrics::Metrics;
use weft_injector::namespaces::Namespaces;
use weft_injector::server::{Webhook, router};
use weft_injector::settings::{Identity, Installation, Resources, ServerVersion, Trust};

/// A webhook whose watch has the namespace `shop`, and an API server that has also `fresh`.
pub(crate) struct Fixture {
    pub(crate) router: Router,
    pub(crate) requested_paths: Arc<Mutex<Vec<String>>>,
    pub(crate) metrics: Metrics,
}

// === impl Fixture ===

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(None, None)
    }

    /// A webhook that gives pods an identity which begins with these roots.
    pub(crate) fn with_roots(roots: BTreeSet<Fingerprint>) -> Self {
        let domain: TrustDomain = "cluster.local".parse().unwrap();
        let authority = SpiffeId::new(domain.clone(), "weft-system", "weft-operator").unwrap();
        let trust = (!roots.is_empty()).then_some(Trust { domain, authority, roots });
        let url = "https://weft-identity.weft-system.svc:15012/v1/certificates".to_owned();
        Self::with(Some(Identity { url, trust: None }), trust)
    }

    fn with(identity: Option<Identity>, trust: Option<Trust>) -> Self {
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
            excluded_namespaces: Vec::new(),
            hook_secret: String::new(),
            identity,
        };
        let metrics = Metrics::default();
        let webhook = Webhook {
            namespaces: Namespaces::new(store, Client::new(api_server, "default")),
            installation: Arc::new(installation),
            version: watch::channel(ServerVersion::parse("1", "33")).1,
            trust: watch::channel(trust).1,
            metrics: metrics.clone(),
        };
        Self { router: router(webhook), requested_paths, metrics }
    }

    pub(crate) async fn post(&self, body: impl Into<Body>) -> (StatusCode, Vec<u8>) {
        self.post_to("/inject", body).await
    }

    pub(crate) async fn post_to(&self, path: &str, body: impl Into<Body>) -> (StatusCode, Vec<u8>) {
        let request = Request::post(path).header("content-type", "application/json").body(body.into()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let status = response.status();
        (status, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    pub(crate) async fn review(&self, review: &Value) -> Value {
        self.review_at("/inject", review).await
    }

    /// The warnings of a review at `/warn`, which is always allowed.
    pub(crate) async fn warnings(&self, review: &Value) -> Vec<String> {
        let response = self.review_at("/warn", review).await;
        assert_eq!((&response["allowed"], response.get("patch")), (&json!(true), None), "{response}");
        serde_json::from_value(response.get("warnings").cloned().unwrap_or(json!([]))).unwrap()
    }

    pub(crate) async fn review_at(&self, path: &str, review: &Value) -> Value {
        let (status, body) = self.post_to(path, review.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{}", String::from_utf8_lossy(&body));
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            (&answer["kind"], &answer["apiVersion"]),
            (&json!("AdmissionReview"), &json!("admission.k8s.io/v1"))
        );
        assert_eq!(answer["response"]["uid"], "the-uid");
        answer["response"].clone()
    }

    pub(crate) fn metrics_text(&self) -> String {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.metrics.registry()).unwrap();
        text
    }
}

/// A review of the creation of a pod.
pub(crate) fn review(namespace: &str, pod: &Value) -> Value {
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

/// A review of the creation of an object of any kind.
pub(crate) fn review_of(namespace: &str, (group, resource, kind): (&str, &str, &str), object: &Value) -> Value {
    let mut review = review(namespace, object);
    review["request"]["kind"] = json!({ "group": group, "version": "v1", "kind": kind });
    review["request"]["resource"] = json!({ "group": group, "version": "v1", "resource": resource });
    review
}

/// A pod as a ReplicaSet's controller creates it, without its owner.
pub(crate) fn pod() -> Value {
    json!({ "metadata": { "generateName": "web-" }, "spec": { "containers": [{ "name": "web", "image": "web", "future": 1 }] } })
}

/// Applies the patch in a response to a pod.
pub(crate) fn patched(response: &Value, pod: &Value) -> Value {
    assert_eq!(response["patchType"], "JSONPatch");
    // kube writes the bytes of the patch as an array of numbers, which Go decodes like base64.
    let bytes: Vec<u8> = serde_json::from_value(response["patch"].clone()).unwrap();
    let patch: json_patch::Patch = serde_json::from_slice(&bytes).unwrap();
    let mut pod = pod.clone();
    json_patch::patch(&mut pod, &patch).unwrap();
    pod
}
