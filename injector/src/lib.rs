//! Adds Weft's proxy to pods as they are created.
//!
//! ```text
//!   AdmissionReview ─► decide ─► settings ─► probe ─► mutate ─► patch ─► AdmissionReview
//!                        │           └──────────┴─► refusal, with a remedy
//!                        └─► skip, with a reason from a closed list
//! ```
//!
//! [`inject`] is that line as one pure function: the namespace, the pod as the API server sent it and the
//! installation's configuration go in; a patch, a skip or a refusal comes out. [`namespace`], [`pod`] and [`refusal`]
//! are what its steps share. [`warn`] applies it to the pod templates of workloads, whose authors it warns. The other
//! modules surround it: [`server`] is the HTTP server, [`namespaces`] watches the namespaces, [`trust`] the roots of the
//! mesh, [`certificate`] keeps the certificate current, [`app`] is the process.
//!
//! The pod is changed as JSON, never as a typed struct, so that fields unknown to this build are kept. It is *read*
//! as a typed struct.

pub mod annotation;
pub mod annotations;
pub mod app;
pub mod certificate;
pub mod decide;
pub mod lookalike;
pub mod metrics;
pub mod mutate;
pub mod namespace;
pub mod namespaces;
pub mod patch;
pub mod pod;
pub mod probe;
mod quantity;
pub mod refresh;
pub mod refusal;
pub mod server;
pub mod settings;
pub mod trust;
pub mod warn;
pub mod workload;

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::decide::{Decision, Skip};
use crate::namespace::Namespace;
use crate::refusal::Refusal;
use crate::settings::{Installation, Settings};

/// The result of a review.
#[derive(Debug)]
pub enum Outcome {
    /// The pod gets a proxy.
    Injected {
        /// The pod with the proxy.
        pod: Value,
        /// The patch from the original pod to `pod`.
        patch: json_patch::Patch,
        /// Warnings for the user.
        warnings: Vec<String>,
    },
    /// The pod has its proxy already, which learns what another webhook has added since.
    Refreshed {
        /// The updated pod.
        pod: Value,
        /// The patch from the original pod to `pod`.
        patch: json_patch::Patch,
    },
    /// The pod is admitted unchanged.
    Skipped {
        /// The reason.
        reason: Skip,
        /// An explanation with a remedy for the user, where a proxy was probably expected.
        why: Option<String>,
    },
    /// The pod is denied.
    Refused(Refusal),
}

/// Decides on a pod and makes the patch.
pub fn inject(namespace: &Namespace, raw: &Value, installation: &Installation) -> Outcome {
    try_inject(namespace, raw, installation).unwrap_or_else(Outcome::Refused)
}

fn try_inject(namespace: &Namespace, raw: &Value, installation: &Installation) -> Result<Outcome, Refusal> {
    let pod: Pod = serde_json::from_value(raw.clone()).map_err(|error| Refusal::Unreadable(error.to_string()))?;
    if let Decision::Skip { reason, why } = decide::decide(namespace, &pod)? {
        // Without an explanation the injector added the proxy, and another webhook may have changed the pod since.
        if (reason, &why) == (Skip::AlreadyInjected, &None) {
            decide::check_user_and_ports(&pod)?;
            if let Some(pod) = refresh::refresh(raw, &pod, &installation.hook_secret)? {
                let patch = patch::diff(raw, &pod);
                return Ok(Outcome::Refreshed { pod, patch });
            }
        }
        return Ok(Outcome::Skipped { reason, why });
    }
    decide::check_injectable(namespace, &pod)?;
    let (settings, mut warnings) = Settings::resolve(namespace, &pod, installation)?;
    if settings.identity.as_ref().is_some_and(|identity| identity.trust.is_none()) {
        return Err(Refusal::NoRoots);
    }
    let rewritten = probe::rewrite(&pod, &installation.hook_secret)?;
    if !settings.native {
        warnings.extend(decide::classic_job_warning(&pod));
        warnings.extend(rewritten.classic_deadlock_warning());
    }
    let mutated = mutate::mutate(raw.clone(), &pod, &settings, &rewritten);
    let patch = patch::diff(raw, &mutated);
    Ok(Outcome::Injected { pod: mutated, patch, warnings })
}
