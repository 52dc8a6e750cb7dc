//! The webhook's HTTP server: an AdmissionReview in, an AdmissionReview out. It has no side effects, so a dry run is
//! handled like any other review. Responses: 200 with allowed or denied for a review, 400 for any other body, 413 for
//! a body larger than [`BODY_MAX`].

use std::sync::Arc;
use std::time::Instant;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview, Operation};
use serde_json::Value;
use tokio::sync::watch;

use crate::decide::Skip;
use crate::metrics::{Metrics, Review};
use crate::namespaces::Namespaces;
use crate::refusal::Refusal;
use crate::settings::{Installation, ServerVersion};
use crate::{Outcome, inject};

/// Maximum number of bytes in a review. The API server accepts objects of at most half of that.
pub const BODY_MAX: usize = 3 << 20;
/// Maximum number of bytes in a warning; the API server truncates longer ones.
const WARNING_MAX: usize = 256;
/// Maximum of warnings in a response.
const WARNINGS_MAX: usize = 10;

/// State of the webhook's handlers.
#[derive(Clone)]
pub struct Webhook {
    /// Labels and annotations of namespaces.
    pub namespaces: Namespaces,
    /// The installation's configuration.
    pub installation: Arc<Installation>,
    /// The API server's version, as last read.
    pub version: watch::Receiver<Option<ServerVersion>>,
    /// The injector's metrics.
    pub metrics: Metrics,
}

/// Serves `POST /inject`.
pub fn router(webhook: Webhook) -> Router {
    Router::new().route("/inject", post(review)).layer(DefaultBodyLimit::max(BODY_MAX)).with_state(webhook)
}

async fn review(State(webhook): State<Webhook>, body: Bytes) -> Response {
    let start = Instant::now();
    let (review, response) = match parse(&body) {
        Ok((request, pod)) => {
            let outcome = decide(&webhook, &request, pod).await;
            let (review, response) = respond(&request, outcome);
            (review, Json(response.into_review()).into_response())
        }
        Err(why) => {
            tracing::warn!(why, "malformed review");
            let review = Review { outcome: "malformed", reason: "" };
            (review, (StatusCode::BAD_REQUEST, format!("invalid AdmissionReview: {why}\n")).into_response())
        }
    };
    webhook.metrics.reviews.get_or_create(&review).inc();
    webhook.metrics.duration.observe(start.elapsed().as_secs_f64());
    response
}

/// Parses a review: the request, and its object as JSON, which keeps fields unknown to this build.
fn parse(body: &[u8]) -> Result<(AdmissionRequest<DynamicObject>, Value), String> {
    let mut raw: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    // Taken out first, so that the pod is not deserialized a second time as a DynamicObject.
    let pod = raw.pointer_mut("/request/object").map(Value::take).unwrap_or_default();
    if let Some(old) = raw.pointer_mut("/request/oldObject") {
        *old = Value::Null;
    }
    let review: AdmissionReview<DynamicObject> = serde_json::from_value(raw).map_err(|error| error.to_string())?;
    let request = review.try_into().map_err(|_| "the field request is missing".to_owned())?;
    Ok((request, pod))
}

async fn decide(webhook: &Webhook, request: &AdmissionRequest<DynamicObject>, pod: Value) -> Outcome {
    let is_pod = request.resource.group.is_empty() && request.resource.resource == "pods";
    let is_subresource = !request.sub_resource.as_deref().unwrap_or_default().is_empty();
    if request.operation != Operation::Create || !is_pod || is_subresource {
        return Outcome::Skipped { reason: Skip::NotACreation, warnings: Vec::new() };
    }
    let namespace = match webhook.namespaces.find(request.namespace.as_deref().unwrap_or_default()).await {
        Ok(namespace) => namespace,
        Err(refusal) => return Outcome::Refused(refusal),
    };
    let mut installation = (*webhook.installation).clone();
    if let Some(server) = *webhook.version.borrow() {
        installation.server = server;
    }
    match random_secret() {
        Some(secret) => installation.hook_secret = secret,
        None => return Outcome::Refused(Refusal::Random),
    }
    inject(&namespace, &pod, &installation)
}

/// A random path segment under which a pod's lifecycle hooks are called.
fn random_secret() -> Option<String> {
    let mut bytes = [0; 16];
    rustls::crypto::aws_lc_rs::default_provider().secure_random.fill(&mut bytes).ok()?;
    Some(format!("{:032x}", u128::from_be_bytes(bytes)))
}

fn respond(request: &AdmissionRequest<DynamicObject>, outcome: Outcome) -> (Review, AdmissionResponse) {
    let allowed = AdmissionResponse::from(request);
    let ns = request.namespace.as_deref().unwrap_or_default();
    let name = request.name.as_str();
    match outcome {
        Outcome::Injected { pod: _, patch, warnings } => match allowed.with_patch(patch) {
            Ok(response) => {
                tracing::info!(ns, name, dry_run = request.dry_run, "injected");
                (Review { outcome: "injected", reason: "" }, warn(response, warnings))
            }
            Err(error) => refuse(request, &Refusal::Unreadable(error.to_string())),
        },
        Outcome::Skipped { reason, warnings } => {
            tracing::info!(ns, name, reason = reason.code(), why = reason.sentence(), "skipped");
            (Review { outcome: "skipped", reason: reason.code() }, warn(allowed, warnings))
        }
        Outcome::Refused(refusal) => refuse(request, &refusal),
    }
}

fn refuse(request: &AdmissionRequest<DynamicObject>, refusal: &Refusal) -> (Review, AdmissionResponse) {
    let ns = request.namespace.as_deref().unwrap_or_default();
    tracing::warn!(ns, name = request.name, reason = refusal.code(), why = %refusal, "refused");
    (Review { outcome: "refused", reason: refusal.code() }, AdmissionResponse::from(request).deny(refusal))
}

fn warn(mut response: AdmissionResponse, warnings: Vec<String>) -> AdmissionResponse {
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
    response.warnings = Some(warnings.into_iter().take(WARNINGS_MAX).map(truncate).collect());
    response
}
