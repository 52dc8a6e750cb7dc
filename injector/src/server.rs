//! The webhook's HTTP server: an AdmissionReview in, an AdmissionReview out. `POST /inject` reviews new pods, and
//! patches or refuses them; `POST /warn` reviews workloads and namespaces, and allows all. Neither has side effects, so
//! a dry run is handled like any other review. Responses: 200 with allowed or denied for a review, 400 for any other
//! body, 413 for a body larger than [`BODY_MAX`].

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use serde_json::Value;
use tokio::sync::watch;

use crate::decide::Skip;
use crate::metrics::{Metrics, Review, WarningReview};
use crate::namespace::Namespace;
use crate::namespaces::Namespaces;
use crate::refusal::Refusal;
use crate::settings::{Installation, ServerVersion, Trust};
use crate::workload::Workload;
use crate::{Outcome, inject, warn};

/// Maximum number of bytes in a review. The API server accepts objects of at most half of that.
pub const BODY_MAX: usize = 3 << 20;
/// Maximum number of bytes in a warning; the API server truncates longer ones.
const WARNING_MAX: usize = 256;
/// Maximum of warnings in a response. The API server drops those that exceed 4096 characters together.
const WARNINGS_MAX: usize = 5;

/// The parts of an admission review.
struct Parsed {
    request: AdmissionRequest<DynamicObject>,
    /// The object as JSON, which keeps fields unknown to this build.
    object: Value,
    /// The object before an update; else null.
    old: Value,
}

/// What a pod is called in the log.
struct Origin<'a> {
    ns: &'a str,
    /// The name, or `generateName`.
    name: String,
    /// The controller that creates it, as in `ReplicaSet/web-7d9`.
    owner: Option<String>,
}

/// State of the webhook's handlers.
#[derive(Clone)]
pub struct Webhook {
    /// Labels and annotations of namespaces.
    pub namespaces: Namespaces,
    /// The installation's configuration.
    pub installation: Arc<Installation>,
    /// The API server's version, as last read.
    pub version: watch::Receiver<Option<ServerVersion>>,
    /// Whom new pods trust, as last read.
    pub trust: watch::Receiver<Option<Trust>>,
    /// The injector's metrics.
    pub metrics: Metrics,
}

/// Serves `POST /inject` and `POST /warn`.
pub fn router(webhook: Webhook) -> Router {
    Router::new()
        .route("/inject", post(review_pod))
        .route("/warn", post(warn_author))
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .with_state(webhook)
}

async fn review_pod(State(webhook): State<Webhook>, body: Bytes) -> Response {
    let start = Instant::now();
    let (review, response) = match parse(&body) {
        Ok(Parsed { request, object, old: _ }) => {
            let outcome = decide(&webhook, &request, &object).await;
            let (review, response) = respond(&request, &object, outcome);
            (review, Json(response.into_review()).into_response())
        }
        Err(why) => (Review { outcome: "malformed", reason: "" }, malformed(&why)),
    };
    webhook.metrics.reviews.get_or_create(&review).inc();
    webhook.metrics.duration.observe(start.elapsed().as_secs_f64());
    response
}

async fn warn_author(State(webhook): State<Webhook>, body: Bytes) -> Response {
    let start = Instant::now();
    let (outcome, response) = match parse(&body) {
        Ok(Parsed { request, object, old }) => {
            let (outcome, warnings) = match warnings(&webhook, &request, &object, &old).await {
                Ok(warnings) if warnings.is_empty() => ("clean", warnings),
                Ok(warnings) => ("warned", warnings),
                Err(refusal) => {
                    let (ns, name) = (&request.namespace, &request.name);
                    tracing::warn!(ns, name, why = %refusal, "workload not reviewed");
                    ("unknown", Vec::new())
                }
            };
            let response = with_warnings(AdmissionResponse::from(&request), warnings);
            (outcome, Json(response.into_review()).into_response())
        }
        Err(why) => ("malformed", malformed(&why)),
    };
    webhook.metrics.warning_reviews.get_or_create(&WarningReview { outcome }).inc();
    webhook.metrics.duration.observe(start.elapsed().as_secs_f64());
    response
}

fn parse(body: &[u8]) -> Result<Parsed, String> {
    let mut raw: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    // Taken out first, so that the objects are not deserialized a second time as DynamicObjects.
    let mut take = |pointer| raw.pointer_mut(pointer).map(Value::take).unwrap_or_default();
    let (object, old) = (take("/request/object"), take("/request/oldObject"));
    let review: AdmissionReview<DynamicObject> = serde_json::from_value(raw).map_err(|error| error.to_string())?;
    let request = review.try_into().map_err(|_| "the field request is missing".to_owned())?;
    Ok(Parsed { request, object, old })
}

fn malformed(why: &str) -> Response {
    tracing::warn!(why, "malformed review");
    (StatusCode::BAD_REQUEST, format!("invalid AdmissionReview: {why}\n")).into_response()
}

async fn decide(webhook: &Webhook, request: &AdmissionRequest<DynamicObject>, pod: &Value) -> Outcome {
    let is_pod = request.resource.group.is_empty() && request.resource.resource == "pods";
    let is_subresource = !request.sub_resource.as_deref().unwrap_or_default().is_empty();
    if request.operation != Operation::Create || !is_pod || is_subresource {
        return Outcome::Skipped { reason: Skip::NotACreation, why: None };
    }
    let namespace = match webhook.namespaces.find(request.namespace.as_deref().unwrap_or_default()).await {
        Ok(namespace) => namespace,
        Err(refusal) => return Outcome::Refused(refusal),
    };
    let mut installation = webhook.installation();
    match random_secret() {
        Some(secret) => installation.hook_secret = secret,
        None => return Outcome::Refused(Refusal::Random),
    }
    inject(&namespace, pod, &installation)
}

/// Warnings for the author of a workload, Service or namespace; none for other objects, and for those that a controller made or
/// that are being deleted.
async fn warnings(
    webhook: &Webhook,
    request: &AdmissionRequest<DynamicObject>,
    object: &Value,
    old: &Value,
) -> Result<Vec<String>, Refusal> {
    let is_subresource = !request.sub_resource.as_deref().unwrap_or_default().is_empty();
    let is_deleted = !object["metadata"]["deletionTimestamp"].is_null();
    if !matches!(request.operation, Operation::Create | Operation::Update) || is_subresource || is_deleted {
        return Ok(Vec::new());
    }
    let (group, resource) = (request.resource.group.as_str(), request.resource.resource.as_str());
    if (group, resource) == ("", "namespaces") {
        let Some(new) = Namespace::parse(object) else { return Ok(Vec::new()) };
        return Ok(warn::namespace(Namespace::parse(old).as_ref(), &new, &webhook.installation()));
    }
    if (group, resource) == ("", "services") {
        let metadata: Option<ObjectMeta> = serde_json::from_value(object["metadata"].clone()).ok();
        return Ok(metadata.map(|metadata| warn::service(&metadata)).unwrap_or_default());
    }
    let parse = |object| Workload::parse(group, resource, &request.kind.kind, object);
    let Some(workload) = parse(object) else { return Ok(Vec::new()) };
    if workload.is_pod() && request.operation == Operation::Update {
        return Ok(parse(old).map(|old| warn::running_pod(&old, &workload)).unwrap_or_default());
    }
    if workload.is_controlled() {
        return Ok(Vec::new());
    }
    let namespace = webhook.namespaces.find(request.namespace.as_deref().unwrap_or_default()).await?;
    Ok(warn::workload(&namespace, &workload, &webhook.installation()))
}

/// A random path segment under which a pod's lifecycle hooks are called.
fn random_secret() -> Option<String> {
    let mut bytes = [0; 16];
    rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut bytes).ok()?;
    Some(format!("{:032x}", u128::from_be_bytes(bytes)))
}

fn respond(request: &AdmissionRequest<DynamicObject>, pod: &Value, outcome: Outcome) -> (Review, AdmissionResponse) {
    let allowed = AdmissionResponse::from(request);
    let Origin { ns, name, owner } = Origin::of(request, pod);
    let (patch, warnings, outcome) = match outcome {
        Outcome::Injected { pod: _, patch, warnings } => (patch, warnings, "injected"),
        Outcome::Refreshed { pod: _, patch } => (patch, Vec::new(), "refreshed"),
        Outcome::Skipped { reason, why: None } => {
            tracing::debug!(ns, name, owner, reason = reason.code(), why = reason.sentence(), "skipped");
            return (Review { outcome: "skipped", reason: reason.code() }, allowed);
        }
        Outcome::Skipped { reason, why: Some(why) } => {
            tracing::info!(ns, name, owner, reason = reason.code(), why, "skipped");
            let warnings = vec![format!("no proxy was added: {why}")];
            return (Review { outcome: "skipped", reason: reason.code() }, with_warnings(allowed, warnings));
        }
        Outcome::Refused(refusal) => return refuse(request, pod, &refusal),
    };
    match allowed.with_patch(patch) {
        Ok(response) => {
            // A refreshed pod was logged when it was injected.
            if outcome == "injected" {
                let warnings = (!warnings.is_empty()).then(|| warnings.join("; "));
                tracing::info!(ns, name, owner, dry_run = request.dry_run, warnings, "injected");
            } else {
                tracing::debug!(ns, name, owner, dry_run = request.dry_run, "refreshed");
            }
            (Review { outcome, reason: "" }, with_warnings(response, warnings))
        }
        Err(error) => refuse(request, pod, &Refusal::Unreadable(error.to_string())),
    }
}

fn refuse(request: &AdmissionRequest<DynamicObject>, pod: &Value, refusal: &Refusal) -> (Review, AdmissionResponse) {
    let Origin { ns, name, owner } = Origin::of(request, pod);
    tracing::warn!(ns, name, owner, reason = refusal.code(), why = %refusal, "refused");
    (Review { outcome: "refused", reason: refusal.code() }, AdmissionResponse::from(request).deny(refusal))
}

fn with_warnings(mut response: AdmissionResponse, mut warnings: Vec<String>) -> AdmissionResponse {
    if warnings.is_empty() {
        return response;
    }
    let truncate = |mut warning: String| {
        let prefix = "weft: ".len();
        let most = WARNING_MAX - prefix;
        if warning.len() > most {
            let end = (0..=most - '…'.len_utf8()).rev().find(|end| warning.is_char_boundary(*end)).unwrap_or(0);
            warning.truncate(end);
            warning.push('…');
        }
        format!("weft: {warning}")
    };
    if warnings.len() > WARNINGS_MAX {
        let more = warnings.len() - (WARNINGS_MAX - 1);
        warnings.truncate(WARNINGS_MAX - 1);
        warnings.push(format!("and {more} more"));
    }
    response.warnings = Some(warnings.into_iter().map(truncate).collect());
    response
}

// === impl Webhook ===

impl Webhook {
    /// The configuration, with the version that the API server has now.
    fn installation(&self) -> Installation {
        let mut installation = (*self.installation).clone();
        if let Some(server) = *self.version.borrow() {
            installation.server = server;
        }
        if let Some(identity) = &mut installation.identity {
            identity.trust.clone_from(&self.trust.borrow());
        }
        installation
    }
}

// === impl Origin ===

impl<'a> Origin<'a> {
    fn of(request: &'a AdmissionRequest<DynamicObject>, pod: &Value) -> Self {
        let metadata: ObjectMeta =
            pod.get("metadata").and_then(|metadata| serde_json::from_value(metadata.clone()).ok()).unwrap_or_default();
        let ObjectMeta { generate_name, owner_references, .. } = metadata;
        let mut owners = owner_references.into_iter().flatten();
        let owner = owners.find(|owner| owner.controller == Some(true));
        Self {
            ns: request.namespace.as_deref().unwrap_or_default(),
            // A pod of a controller gets its name after the review.
            name: if request.name.is_empty() { generate_name.unwrap_or_default() } else { request.name.clone() },
            owner: owner.map(|OwnerReference { kind, name, .. }| format!("{kind}/{name}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn log_names_a_pod_by_its_name_or_generate_name_and_its_controller() {
        let request = |name: &str| -> AdmissionRequest<DynamicObject> {
            let kind = json!({ "group": "", "version": "v1", "kind": "Pod" });
            let resource = json!({ "group": "", "version": "v1", "resource": "pods" });
            let request = json!({
                "uid": "u", "kind": kind, "resource": resource, "name": name, "namespace": "shop",
                "operation": "CREATE", "userInfo": {},
            });
            serde_json::from_value(request).unwrap()
        };
        let owner = |kind: &str, controller: bool| {
            let (api_version, name, uid) = ("v1", "web-7d9", "u");
            json!({ "apiVersion": api_version, "kind": kind, "name": name, "uid": uid, "controller": controller })
        };
        let pod = json!({ "metadata": {
            "generateName": "web-7d9-",
            "ownerReferences": [owner("Quota", false), owner("ReplicaSet", true)],
        }});
        for (desc, name, pod, expected) in [
            ("of a controller", "", pod.clone(), ("shop", "web-7d9-", Some("ReplicaSet/web-7d9"))),
            ("with a name", "web-7d9-x", pod, ("shop", "web-7d9-x", Some("ReplicaSet/web-7d9"))),
            ("created directly", "web", json!({ "metadata": { "name": "web" } }), ("shop", "web", None)),
            ("unreadable", "", json!({ "metadata": 1 }), ("shop", "", None)),
        ] {
            let request = request(name);
            let Origin { ns, name, owner } = Origin::of(&request, &pod);
            assert_eq!((ns, name.as_str(), owner.as_deref()), expected, "{desc}");
        }
    }
}
