//! Adds Weft's proxy to pods as they are created.
//!
//! ```text
//!   AdmissionReview ─► decide ─► settings ─► probe ─► mutate ─► patch ─► AdmissionReview
//!                        │           └──────────┴─► refusal, with what to do about it
//!                        └─► skip, with a reason from a closed list
//! ```
//!
//! [`inject`] is that line as one pure function: what is known of the namespace, the pod as the API server sent it and
//! what the installation chose go in; a patch, a skip or a refusal comes out. Everything else is plumbing around it:
//! [`server`] speaks HTTP, [`namespaces`] knows the namespaces, [`certificate`] keeps the certificate current, [`app`]
//! puts them together.
//!
//! The pod is changed as JSON, never as a typed struct, so fields that this build does not know survive. It is *read*
//! as a typed struct, so nothing is guessed from JSON.

pub mod app;
pub mod certificate;
pub mod decide;
pub mod metrics;
pub mod mutate;
pub mod namespaces;
pub mod patch;
pub mod probe;
pub mod refresh;
pub mod server;
pub mod settings;

use k8s_openapi::api::core::v1::Pod;
use serde_json::Value;

use crate::decide::{Decision, Namespace, Refusal, Skip};
use crate::settings::{Installation, Settings};

/// What becomes of a pod.
#[derive(Debug)]
pub enum Outcome {
    /// It gets a proxy.
    Injected {
        /// The pod with the proxy.
        pod: Value,
        /// What makes the one out of the other.
        patch: json_patch::Patch,
        /// What a person should know all the same.
        warnings: Vec<String>,
    },
    /// It is left as it is.
    Skipped {
        /// Why.
        reason: Skip,
        /// What a person should know.
        warnings: Vec<String>,
    },
    /// It must not run as it is.
    Refused(Refusal),
}

/// Decides on a pod and makes the patch.
pub fn inject(namespace: &Namespace, raw: &Value, installation: &Installation) -> Outcome {
    try_inject(namespace, raw, installation).unwrap_or_else(Outcome::Refused)
}

fn try_inject(namespace: &Namespace, raw: &Value, installation: &Installation) -> Result<Outcome, Refusal> {
    let pod: Pod = serde_json::from_value(raw.clone()).map_err(|error| Refusal::Unreadable(error.to_string()))?;
    if let Decision::Skip { reason, warning } = decide::decide(namespace, &pod)? {
        // Without a warning the proxy is ours, and the pod may have been added to since.
        if (reason, &warning) == (Skip::AlreadyInjected, &None) {
            decide::compatible(&pod)?;
            if let Some(pod) = refresh::refresh(raw, &pod, &installation.hook_secret)? {
                let patch = patch::diff(raw, &pod);
                return Ok(Outcome::Injected { pod, patch, warnings: Vec::new() });
            }
        }
        return Ok(Outcome::Skipped { reason, warnings: warning.into_iter().collect() });
    }
    decide::admissible(namespace, &pod)?;
    let (settings, mut warnings) = Settings::resolve(namespace, &pod, installation)?;
    let rewritten = probe::rewrite(&pod, &installation.hook_secret)?;
    if !settings.native {
        warnings.extend(decide::never_ends(&pod));
        warnings.extend(rewritten.before_a_classic_proxy());
    }
    let mutated = mutate::mutate(raw.clone(), &pod, &settings, &rewritten);
    let patch = patch::diff(raw, &mutated);
    Ok(Outcome::Injected { pod: mutated, patch, warnings })
}
