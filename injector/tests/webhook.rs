//! The webhook's router as the API server calls it, without sockets: reviews in, reviews out. The API server that the
//! webhook reads namespaces from is a function; the tests check the paths it was called with.

#![expect(clippy::unwrap_used, reason = "a test that fails")]

mod support;

use std::collections::BTreeSet;

use axum::body::Body;
use axum::http::{Request, StatusCode};
use proptest::prelude::*;
use serde_json::{Value, json};
use tower::ServiceExt;
use weft_identity::Fingerprint;
use weft_injector::server::BODY_MAX;

use crate::support::{Fixture, patched, pod, review, review_of};

const DEPLOYMENT: (&str, &str, &str) = ("apps", "deployments", "Deployment");
const NAMESPACE: (&str, &str, &str) = ("", "namespaces", "Namespace");

/// A Deployment with an invalid annotation on its pods.
fn deployment() -> Value {
    let template =
        json!({ "metadata": { "annotations": { "config.weft.dev/workers": "many" } }, "spec": { "containers": [] } });
    json!({ "metadata": { "name": "web" }, "spec": { "template": template } })
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

/// CP-01: a review cannot make the webhook ask for another path of the API server.
#[tokio::test]
async fn invalid_namespace_name_is_refused_without_a_request() {
    let fixture = Fixture::new();
    for name in ["", "../secrets", "shop/../x", "a?b", "a\r\nb", &"a".repeat(1000)] {
        assert_eq!(fixture.review(&review(name, &pod())).await["allowed"], false, "{name:?}");
    }
    assert_eq!(*fixture.requested_paths.lock().unwrap(), [""; 0]);
}

/// CP-07: updates, deletions and ephemeral containers change nothing.
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
        "weft: no proxy was added: the pod uses the node's network (hostNetwork), which Weft does not redirect; \
         do without it, or label the pod weft.dev/inject=false"
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
async fn authors_of_workloads_are_warned_on_creation_and_update() {
    let fixture = Fixture::new();
    let warning = "weft: Deployment web: its pods will be refused: annotation config.weft.dev/workers on the pod is \
                   \"many\"; use a number of threads from 1 to 64";
    let mut review = review_of("shop", DEPLOYMENT, &deployment());
    for operation in ["CREATE", "UPDATE"] {
        review["request"]["operation"] = json!(operation);
        assert_eq!(fixture.warnings(&review).await, [warning], "{operation}");
    }
    review["request"]["operation"] = json!("DELETE");
    assert_eq!(fixture.warnings(&review).await, [""; 0], "deletion");
    review["request"]["operation"] = json!("UPDATE");
    review["request"]["object"]["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    assert_eq!(fixture.warnings(&review).await, [""; 0], "it is being deleted");

    let mut scale = review_of("shop", DEPLOYMENT, &deployment());
    scale["request"]["subResource"] = json!("scale");
    assert_eq!(fixture.warnings(&scale).await, [""; 0], "subresource");
    let mut owned = deployment();
    owned["metadata"]["ownerReferences"] =
        json!([{ "apiVersion": "apps/v1", "kind": "Deployment", "name": "web", "uid": "u", "controller": true }]);
    let owned = review_of("shop", ("apps", "replicasets", "ReplicaSet"), &owned);
    assert_eq!(fixture.warnings(&owned).await, [""; 0], "made by a controller");
    assert_eq!(*fixture.requested_paths.lock().unwrap(), [""; 0], "the namespace is in the watch");
    let lines = ["warning_reviews_total{outcome=\"warned\"} 2", "warning_reviews_total{outcome=\"clean\"} 4"];
    for line in lines {
        assert!(fixture.metrics_text().contains(line), "{line}: {}", fixture.metrics_text());
    }
}

#[tokio::test]
async fn labels_and_annotations_of_services_are_told_to_belong_on_pods() {
    let fixture = Fixture::new();
    let service = |metadata: Value| json!({ "metadata": metadata, "spec": { "ports": [{ "port": 80 }] } });
    let labelled = service(json!({ "name": "web", "labels": { "app": "web", "weft.dev/inject": "true" } }));
    let annotated = service(json!({ "name": "web", "annotations": { "config.weft.dev/opaque-ports": "6379" } }));
    for (object, expected) in [
        (
            labelled,
            "weft: Service web: label weft.dev/inject on the Service itself has no effect on its pods; set it in metadata.labels of the pod template",
        ),
        (
            annotated,
            "weft: Service web: annotation config.weft.dev/opaque-ports on the Service itself has no effect on its pods; set it in metadata.annotations of the pod template",
        ),
    ] {
        assert_eq!(fixture.warnings(&review_of("shop", ("", "services", "Service"), &object)).await, [expected]);
    }
    let usual = service(json!({ "name": "web", "labels": { "app": "web" } }));
    assert_eq!(fixture.warnings(&review_of("shop", ("", "services", "Service"), &usual)).await, [""; 0]);
}

#[tokio::test]
async fn changes_of_running_pods_that_have_no_effect_are_told() {
    let fixture = Fixture::new();
    let pod = |metadata: Value| {
        let mut pod = pod();
        pod["metadata"] = metadata;
        pod["metadata"]["ownerReferences"] =
            json!([{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true }]);
        pod
    };
    let set = |label: &str, annotation: &str| {
        pod(json!({
            "labels": { "app": "web", "weft.dev/inject": label },
            "annotations": { "config.weft.dev/workers": annotation, "other": annotation },
        }))
    };
    let none = || pod(json!({ "labels": { "app": "api" } }));
    let warning = |what: &str| {
        format!(
            "weft: {what} of a pod that runs has no effect: it is read when a pod is created; set it in the pod template"
        )
    };
    let (label, annotation) = (warning("label weft.dev/inject"), warning("annotation config.weft.dev/workers"));
    for (desc, old, new, expected) in [
        ("added", none(), set("true", "2"), vec![&label, &annotation]),
        ("changed", set("true", "1"), set("true", "2"), vec![&annotation]),
        ("removed", set("true", "2"), none(), vec![&label, &annotation]),
        ("as before", set("true", "2"), set("true", "2"), vec![]),
        ("other metadata", pod(json!({})), none(), vec![]),
    ] {
        let mut review = review_of("shop", ("", "pods", "Pod"), &new);
        review["request"]["operation"] = json!("UPDATE");
        review["request"]["oldObject"] = old;
        assert_eq!(fixture.warnings(&review).await.iter().collect::<Vec<_>>(), expected, "{desc}");
    }
}

#[tokio::test]
async fn namespace_that_gets_the_label_is_told_to_restart_its_workloads() {
    let fixture = Fixture::new();
    let old = json!({ "metadata": { "name": "shop" } });
    let new = json!({ "metadata": { "name": "shop", "labels": { "weft.dev/inject": "enabled" } } });
    let mut review = review_of("shop", NAMESPACE, &new);
    assert_eq!(fixture.warnings(&review).await, [""; 0], "a new namespace has no pods");
    review["request"]["operation"] = json!("UPDATE");
    review["request"]["oldObject"] = old;
    let warnings = fixture.warnings(&review).await;
    assert!(warnings[0].ends_with("kubectl -n shop rollout restart deployment,statefulset,daemonset"), "{warnings:?}");
    assert_eq!(*fixture.requested_paths.lock().unwrap(), [""; 0]);
}

#[tokio::test]
async fn warnings_never_refuse_and_fit_the_limits_of_the_api_server() {
    let fixture = Fixture::new();
    for namespace in ["gone", "", "a/b"] {
        let review = review_of(namespace, DEPLOYMENT, &deployment());
        assert_eq!(fixture.warnings(&review).await, [""; 0], "namespace {namespace:?} cannot be read");
    }
    for object in [json!(null), json!({}), json!({ "metadata": 1, "spec": 1 }), json!({ "metadata": { "name": 1 } })] {
        for kind in [DEPLOYMENT, NAMESPACE, ("", "pods", "Pod"), ("x", "things", "Thing")] {
            fixture.warnings(&review_of("shop", kind, &object)).await;
        }
    }
    let labels: serde_json::Map<String, Value> =
        (0..20).map(|index| (format!("weft.dev/{}{index}", "ü".repeat(80)), json!("x"))).collect();
    let mut many = deployment();
    many["spec"]["template"]["metadata"]["labels"] = labels.into();
    let warnings = fixture.warnings(&review_of("shop", DEPLOYMENT, &many)).await;
    assert_eq!(warnings.len(), 5, "{warnings:?}");
    assert_eq!(warnings[4], "weft: and 17 more");
    assert!(warnings.iter().all(|warning| warning.len() <= 256), "{warnings:?}");
    let (status, _) = fixture.post_to("/warn", "{}").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
}

/// CP-01: called by anyone with anything.
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

/// ID-10: a pod that would trust any authority is not created.
#[tokio::test]
async fn pods_begin_with_the_roots_of_now_and_none_is_created_without() {
    let denied = Fixture::with_roots(BTreeSet::new()).review(&review("shop", &pod())).await;
    let message = denied["status"]["message"].as_str().unwrap_or_default();
    assert!(denied["allowed"] == false && message.contains("ConfigMap weft-config/trust"), "{denied}");
    let mut outside = pod();
    outside["metadata"]["labels"] = json!({ "weft.dev/inject": "false" });
    let allowed = Fixture::with_roots(BTreeSet::new()).review(&review("shop", &outside)).await;
    assert_eq!(allowed["allowed"], true, "a pod outside of the mesh");

    let root = Fingerprint::of(b"root");
    let response = Fixture::with_roots([root].into()).review(&review("shop", &pod())).await;
    let expected = json!({ "name": "WEFT_ROOTS", "value": root.to_string() });
    let injected = patched(&response, &pod());
    let environment = injected["spec"]["initContainers"][1]["env"].as_array().unwrap();
    assert!(environment.contains(&expected), "{injected}");
}

proptest! {
    /// CP-01: bytes of all kinds.
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
