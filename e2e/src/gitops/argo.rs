//! Argo CD: installs it, and reads its Applications.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::cluster::{self, Cluster, checkout, target};
use crate::command;
use crate::kubectl::Kubectl;
use crate::namespace::READY;
use crate::wait::eventually;

/// Namespace of Argo CD.
const NAMESPACE: &str = "argocd";
/// Time limit of its command line client.
const CLI_LIMIT: Duration = Duration::from_secs(60);

/// Argo CD on the cluster.
#[derive(Debug)]
pub struct Argo {
    kubectl: Kubectl,
}

/// What is read of an Application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Application {
    /// `Synced`, `OutOfSync` or `Unknown`.
    pub sync: String,
    /// `Healthy`, `Progressing`, `Degraded`, `Missing`, ...
    pub health: String,
    /// The commit that it was compared with.
    pub revision: String,
    /// When its last sync ended.
    pub synced_at: String,
    /// What its last sync, and errors of the comparison, say.
    pub message: String,
    /// The objects that differ from Git: `kind/name`.
    pub out_of_sync: Vec<String>,
}

/// The health of an object of an Application.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
pub struct Health {
    /// `Healthy`, `Progressing`, `Degraded`, ...
    pub status: String,
    /// What the health check says.
    #[serde(default)]
    pub message: String,
}

impl Argo {
    /// Installs it from `target/gitops/argocd`, with the health checks of Weft's kinds, as docs/gitops.md says.
    pub fn install(cluster: &'static Cluster) -> Result<Self> {
        let kubectl = Kubectl::within(cluster, NAMESPACE);
        kubectl.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}}}\n"))?;
        let manifests = target().join("gitops/argocd");
        // A client-side apply would need more annotation than an object may have.
        kubectl.run(&["apply", "--server-side", "--kustomize", &manifests.display().to_string()])?;
        let patch = config_map();
        kubectl.run(&[
            "patch",
            "configmap",
            "argocd-cm",
            "--type=merge",
            "--patch-file",
            &patch.display().to_string(),
        ])?;
        for workload in [
            "deployment/argocd-redis",
            "deployment/argocd-repo-server",
            "deployment/argocd-server",
            "statefulset/argocd-application-controller",
        ] {
            kubectl.rolled_out(workload, READY)?;
        }
        let argo = Self { kubectl };
        argo.log_in()?;
        Ok(argo)
    }

    /// Applies Applications.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.kubectl.apply(yaml).map(drop)
    }

    /// An Application.
    pub fn application(&self, name: &str) -> Result<Application> {
        Ok(Application::read(&self.kubectl.get("application", name)?))
    }

    /// Waits until Applications are synced to a commit and have the health. It compares at once, as when a Git server
    /// tells it of a commit; by itself it asks for commits every two minutes.
    pub fn await_health(&self, names: &[&str], commit: &str, health: &str, limit: Duration) -> Result<()> {
        self.refresh(names, "normal")?;
        eventually(&format!("{names:?} to be Synced and {health}"), limit, || {
            for name in names {
                let found = self.application(name)?;
                if found.revision != commit {
                    // A comparison that had begun before the commit may have answered the first request.
                    self.refresh(&[*name], "normal")?;
                    bail!("{name} is at another commit than {commit}: {found:?}");
                }
                ensure!(found.sync == "Synced" && found.health == health, "{name}: {found:?}");
            }
            Ok(())
        })
    }

    /// Compares Applications with Git without caches, and returns them.
    pub fn compare(&self, names: &[&str], limit: Duration) -> Result<Vec<(String, Application)>> {
        self.refresh(names, "hard")?;
        let compared = |name: &&str| {
            // The controller removes the annotation when it has written the result.
            eventually(&format!("{name} to be compared"), limit, || {
                let found = self.kubectl.get("application", name)?;
                let asked = found.pointer("/metadata/annotations/argocd.argoproj.io~1refresh");
                ensure!(asked.is_none(), "it was not compared yet");
                Ok(((*name).to_owned(), Application::read(&found)))
            })
        };
        names.iter().map(compared).collect()
    }

    /// The differences between an Application and Git, for messages.
    pub fn differences(&self, name: &str) -> String {
        let arguments = ["exec", "deployment/argocd-server", "--", "argocd", "app", "diff", name];
        // It fails if there are differences.
        match self.kubectl.run_with(&arguments, "", CLI_LIMIT) {
            Ok(output) => output.stdout + &output.stderr,
            Err(error) => format!("{error:#}"),
        }
    }

    fn refresh(&self, names: &[&str], how: &str) -> Result<()> {
        let annotation = format!("argocd.argoproj.io/refresh={how}");
        let arguments = [&["annotate", "application", "--overwrite"], names, &[&annotation]].concat();
        self.kubectl.run(&arguments).map(drop)
    }

    /// The names of all Applications.
    pub fn names(&self) -> Result<Vec<String>> {
        let found = self.kubectl.list("applications", "")?;
        Ok(found.iter().map(|application| word(&application["metadata"]["name"]).to_owned()).collect())
    }

    /// Deletes an Application, and so all that it has applied.
    pub fn delete(&self, name: &str, limit: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", limit.as_secs());
        self.kubectl
            .run_with(&["delete", "application", name, &timeout], "", limit + CLI_LIMIT)?
            .stdout_of_success("kubectl delete application")
            .map(drop)
    }

    /// The health of an Application's objects, by `kind/name`, as `argocd app get` and the UI show it.
    pub fn health(&self, name: &str) -> Result<BTreeMap<String, Health>> {
        let printed = self.cli(&["app", "get", name, "--output", "json"])?;
        let found: Value = serde_json::from_str(&printed).context("the output of argocd app get")?;
        let objects = found.pointer("/status/resources").and_then(Value::as_array).cloned().unwrap_or_default();
        let health = |object: &Value| {
            let health = serde_json::from_value(object["health"].clone()).unwrap_or_default();
            (format!("{}/{}", word(&object["kind"]), word(&object["name"])), health)
        };
        Ok(objects.iter().map(health).collect())
    }

    /// Assesses the health of an object in a file, with the health checks that this project ships.
    pub fn assess(file: &str) -> Result<Health> {
        let mut argocd = std::process::Command::new(cluster::build("argocd")?);
        let config = config_map();
        argocd
            .current_dir(checkout())
            .args(["admin", "settings", "resource-overrides", "health", file, "--argocd-cm-path"])
            .arg(&config);
        let printed = command::run(&mut argocd, "", CLI_LIMIT)?.stdout_of_success("argocd admin settings")?;
        let field =
            |name: &str| printed.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned());
        let status = field("STATUS:").with_context(|| printed.clone())?;
        Ok(Health { status, message: field("MESSAGE:").unwrap_or_default() })
    }

    fn log_in(&self) -> Result<()> {
        let secret = "jsonpath={.data.password}";
        let password = self.kubectl.run(&["get", "secret", "argocd-initial-admin-secret", "-o", secret])?;
        let mut base64 = std::process::Command::new("base64");
        let password = command::run(base64.arg("--decode"), &password, CLI_LIMIT)?.stdout_of_success("base64")?;
        let server = ["login", "localhost:8080", "--insecure", "--username", "admin", "--password", &password];
        self.cli(&server).map(drop)
    }

    /// Runs `argocd` in the server's pod.
    fn cli(&self, arguments: &[&str]) -> Result<String> {
        let exec = ["exec", "deployment/argocd-server", "--", "argocd"];
        self.kubectl.run_with(&[&exec, arguments].concat(), "", CLI_LIMIT)?.stdout_of_success("argocd")
    }
}

impl Application {
    fn read(found: &Value) -> Self {
        let text = |path: &str| found.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let list = |path: &str| found.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
        let errors = list("/status/conditions");
        let errors = errors.iter().filter_map(|condition| condition["message"].as_str()).map(str::to_owned);
        Self {
            sync: text("/status/sync/status"),
            health: text("/status/health/status"),
            revision: text("/status/sync/revision"),
            synced_at: text("/status/operationState/finishedAt"),
            message: errors.chain([text("/status/operationState/message")]).collect::<Vec<_>>().join("; "),
            out_of_sync: list("/status/resources")
                .iter()
                .filter(|object| object["status"] == "OutOfSync")
                .map(|object| format!("{}/{}", word(&object["kind"]), word(&object["name"])))
                .collect(),
        }
    }
}

/// The health checks of Weft's kinds, for Argo CD's ConfigMap.
fn config_map() -> PathBuf {
    checkout().join("crds/argo-cd/argocd-cm.yaml")
}

fn word(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
