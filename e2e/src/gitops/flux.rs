//! Flux's kustomize-controller, with this program as its source: an ExternalArtifact is what a program other than
//! source-controller has fetched.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::cluster::{Cluster, checkout, target};
use crate::gitops::repository::Snapshot;
use crate::kubectl::{Condition, Kubectl};
use crate::namespace::READY;
use crate::wait::eventually;

/// Namespace of the controller, its sources and Kustomizations.
const NAMESPACE: &str = "flux-system";

/// kustomize-controller on the cluster.
#[derive(Debug)]
pub struct Flux {
    kubectl: Kubectl,
}

impl Flux {
    /// Installs it from `target/gitops/flux`.
    pub fn install(cluster: &'static Cluster) -> Result<Self> {
        let kubectl = Kubectl::within(cluster, NAMESPACE);
        kubectl.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n"))?;
        let manifests = target().join("gitops/flux");
        kubectl.run(&["apply", "--server-side", "--kustomize", &manifests.display().to_string()])?;
        kubectl.rolled_out("deployment/kustomize-controller", READY)?;
        Ok(Self { kubectl })
    }

    /// Applies its objects: a source and a Kustomization of the same names as in e2e/gitops/flux/shop.yaml.
    pub fn apply_shop(&self) -> Result<()> {
        let path = checkout().join("e2e/gitops/flux/shop.yaml");
        self.kubectl.apply(&fs::read_to_string(&path).with_context(|| path.display().to_string())?).map(drop)
    }

    /// Offers a commit, as a source controller does.
    pub fn offer(&self, snapshot: &Snapshot) -> Result<()> {
        let Snapshot { commit, url, digest } = snapshot;
        let now = self.kubectl.run(&["get", "namespace", NAMESPACE, "-o", "jsonpath={.metadata.creationTimestamp}"])?;
        let status = json!({"status": {
            "artifact": {
                "path": format!("{commit}.tar.gz"),
                "url": url,
                "revision": format!("main@sha1:{commit}"),
                "digest": format!("sha256:{digest}"),
                "lastUpdateTime": now,
            },
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Succeeded", "message": "", "lastTransitionTime": now,
            }],
        }});
        let patch = status.to_string();
        let source = ["patch", "externalartifact", "mesh", "--subresource=status", "--type=merge", "--patch", &patch];
        self.kubectl.run(&source).map(drop)
    }

    /// Waits until the Kustomization has tried a commit and its condition Ready has the status.
    pub fn await_ready(&self, commit: &str, status: &str, limit: Duration) -> Result<Condition> {
        eventually(&format!("Ready={status} of the Kustomization"), limit, || {
            let found = self.kubectl.get("kustomization.kustomize.toolkit.fluxcd.io", "shop")?;
            let tried = found.pointer("/status/lastAttemptedRevision").and_then(|revision| revision.as_str());
            let ready = self.kubectl.condition("kustomization.kustomize.toolkit.fluxcd.io", "shop", "Ready")?;
            ensure!(tried.is_some_and(|tried| tried.ends_with(commit)), "it tried {tried:?}: {ready:?}");
            ensure!(ready.status == status, "{ready:?}");
            Ok(ready)
        })
    }

    /// Applies the same commit again, and waits until that is done.
    pub fn reconcile(&self, limit: Duration) -> Result<()> {
        let now = format!("{:?}", std::time::SystemTime::now());
        let annotation = format!("reconcile.fluxcd.io/requestedAt={now}");
        let kind = "kustomization.kustomize.toolkit.fluxcd.io";
        self.kubectl.run(&["annotate", kind, "shop", "--overwrite", &annotation])?;
        eventually("the Kustomization to be applied again", limit, || {
            let found = self.kubectl.get(kind, "shop")?;
            let handled = found.pointer("/status/lastHandledReconcileAt");
            ensure!(handled.is_some_and(|handled| *handled == now), "it handled {handled:?}");
            let ready = self.kubectl.condition(kind, "shop", "Ready")?;
            ensure!(ready.status == "True", "{ready:?}");
            Ok(())
        })
    }

    /// Deletes the Kustomization, and so all that it has applied.
    pub fn delete(&self) -> Result<()> {
        self.kubectl.run(&["delete", "kustomization.kustomize.toolkit.fluxcd.io", "shop"]).map(drop)
    }
}
