//! The kubectl binary. Errors contain kubectl's output.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::cluster::Cluster;
use crate::command::{self, Output, Running};

/// Time limit of commands that do not wait. Commands that wait take their own limit.
const LIMIT: Duration = Duration::from_secs(60);

/// kubectl, optionally in a namespace.
#[derive(Clone, Debug)]
pub struct Kubectl {
    cluster: &'static Cluster,
    namespace: Option<String>,
}

/// A condition of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Type, such as `Accepted`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Reason, one word.
    #[serde(default)]
    pub reason: String,
    /// Message, a sentence.
    #[serde(default)]
    pub message: String,
    /// The `metadata.generation` that it was set for.
    #[serde(default)]
    pub observed_generation: Option<i64>,
}

// === impl Kubectl ===

impl Kubectl {
    /// Without a namespace.
    pub fn new(cluster: &'static Cluster) -> Self {
        Self { cluster, namespace: None }
    }

    /// In `namespace`.
    pub fn within(cluster: &'static Cluster, namespace: &str) -> Self {
        Self { cluster, namespace: Some(namespace.to_owned()) }
    }

    /// Runs it and returns its stdout.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.run_with(arguments, "", LIMIT)?.stdout_of_success(&self.describe(arguments))
    }

    /// Runs it and returns the result, also if it failed.
    pub fn run_with(&self, arguments: &[&str], stdin: &str, limit: Duration) -> Result<Output> {
        command::run(&mut self.command(arguments), stdin, limit)
    }

    /// Starts it in the background.
    pub fn start(&self, arguments: &[&str]) -> Result<Running> {
        command::start(&mut self.command(arguments), "")
    }

    /// `kubectl apply -f -`
    pub fn apply(&self, yaml: &str) -> Result<String> {
        let arguments = ["apply", "-f", "-"];
        self.run_with(&arguments, yaml, LIMIT)?
            .stdout_of_success(&self.describe(&arguments))
            .with_context(|| format!("applying:\n{yaml}"))
    }

    /// `kubectl apply -f -`, which must be refused; returns its stderr.
    pub fn apply_refused(&self, yaml: &str) -> Result<String> {
        let output = self.run_with(&["apply", "-f", "-"], yaml, LIMIT)?;
        anyhow::ensure!(!output.success, "this should be refused, but was applied:\n{yaml}");
        Ok(output.stderr)
    }

    /// `kubectl get -o json`
    pub fn get(&self, kind: &str, name: &str) -> Result<Value> {
        let printed = self.run(&["get", kind, name, "-o", "json"])?;
        serde_json::from_str(&printed).with_context(|| format!("reading {kind}/{name}"))
    }

    /// The items of `kubectl get -l SELECTOR -o json`.
    pub fn list(&self, kind: &str, selector: &str) -> Result<Vec<Value>> {
        let printed = self.run(&["get", kind, "-l", selector, "-o", "json"])?;
        let list: Value = serde_json::from_str(&printed).with_context(|| format!("reading the list of {kind}"))?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// The Events that `kubectl describe` shows about an object.
    pub fn events(&self, object: &str) -> Result<String> {
        let shown = self.run(&["describe", object])?;
        Ok(shown.split_once("\nEvents:").map(|(_, events)| events.to_owned()).unwrap_or_default())
    }

    /// `kubectl delete`, without waiting for finalizers.
    pub fn delete(&self, kind: &str, name: &str) -> Result<()> {
        self.run(&["delete", kind, name, "--ignore-not-found", "--wait=false"]).map(drop)
    }

    /// `kubectl rollout status`: waits until all pods of the workload have the newest template and are ready.
    pub fn rolled_out(&self, workload: &str, limit: Duration) -> Result<()> {
        let timeout = format!("--timeout={}s", limit.as_secs());
        let arguments = ["rollout", "status", workload, &timeout];
        self.run_with(&arguments, "", limit + LIMIT)?.stdout_of_success(&self.describe(&arguments)).map(drop)
    }

    /// `kubectl wait --for=...`
    pub fn wait(&self, object: &str, condition: &str, limit: Duration) -> Result<()> {
        let (condition, timeout) = (format!("--for={condition}"), format!("--timeout={}s", limit.as_secs()));
        let arguments = ["wait", object, &condition, &timeout];
        self.run_with(&arguments, "", limit + LIMIT)?.stdout_of_success(&self.describe(&arguments)).map(drop)
    }

    /// GET on a port of a pod, through the API server: `kubectl get --raw .../proxy/PATH`.
    pub fn pod_get(&self, pod: &str, port: u16, path: &str) -> Result<String> {
        let namespace = self.namespace.as_deref().context("a pod is in a namespace")?;
        self.run(&["get", "--raw", &format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/{path}")])
    }

    /// The object's conditions.
    pub fn conditions(&self, kind: &str, name: &str) -> Result<Vec<Condition>> {
        let object = self.get(kind, name)?;
        match object.pointer("/status/conditions") {
            Some(conditions) => Ok(serde_json::from_value(conditions.clone())?),
            None => Ok(Vec::new()),
        }
    }

    /// One of the object's conditions; fails if it was set for an older generation.
    pub fn condition(&self, kind: &str, name: &str, condition: &str) -> Result<Condition> {
        let object = self.get(kind, name)?;
        let generation = object["metadata"]["generation"].as_i64();
        let conditions = object.pointer("/status/conditions").cloned().unwrap_or_default();
        let conditions: Vec<Condition> = serde_json::from_value(conditions).unwrap_or_default();
        let found = conditions
            .iter()
            .find(|found| found.kind == condition)
            .with_context(|| format!("{kind}/{name} has no condition {condition}, only {conditions:?}"))?;
        anyhow::ensure!(
            found.observed_generation.is_none() || found.observed_generation >= generation,
            "{kind}/{name} is at generation {generation:?}, its condition at {:?}",
            found.observed_generation
        );
        Ok(found.clone())
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.cluster.kubectl);
        command.env("KUBECONFIG", &self.cluster.kubeconfig);
        if let Some(namespace) = &self.namespace {
            command.args(["-n", namespace]);
        }
        command.args(arguments);
        command
    }

    fn describe(&self, arguments: &[&str]) -> String {
        command::describe(&self.command(arguments))
    }
}
