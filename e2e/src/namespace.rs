//! A temporary namespace for one test, and the operations of tests in it.
//!
//! When the test fails, the evidence (pods, events, mesh objects with their conditions, the logs of proxies and of the
//! operator) is kept in `target/e2e/<test>/` before the namespace is deleted.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Deref;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::cluster::{Cluster, target};
use crate::install;
use crate::kubectl::{Condition, Kubectl};
use crate::metrics::Metrics;
use crate::wait::eventually;

/// Timeout for the effect of an apply. Normally it takes less than a second; the rest is for a busy machine.
pub const SOON: Duration = Duration::from_secs(30);
/// Timeout for pods to start.
pub const READY: Duration = Duration::from_secs(120);

/// The proxy's container.
const PROXY: &str = "weft-proxy";

/// Upper bound of a proxy's file descriptors without its connections: listeners, timers, logs, watches, and scrapes.
const BASE_DESCRIPTORS_MAX: f64 = 64.0;

/// A temporary namespace; a [`Kubectl`] that works in it.
#[derive(Debug)]
pub struct Namespace {
    /// Its name: the test's name and a random suffix.
    pub name: String,
    test: String,
    kubectl: Kubectl,
    failed: bool,
}

/// Whether a namespace is in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mesh {
    /// The namespace has the inject label.
    Inside,
    /// The namespace does not have it.
    Outside,
}

/// Runs a test in a namespace of its own in the mesh. At its end the proxies there must be idle: leaks fail the test.
pub fn in_mesh(test: &str, body: impl FnOnce(&Namespace) -> Result<()>) -> Result<()> {
    let mut namespace = Namespace::create(test, Mesh::Inside)?;
    let result = body(&namespace).and_then(|()| namespace.await_idle_proxies());
    namespace.failed = result.is_err();
    result
}

/// Waits until the namespaces of earlier tests are gone. For tests that measure: terminating pods keep a small
/// machine busy.
pub fn await_quiet() -> Result<()> {
    let kubectl = Kubectl::new(Cluster::get()?);
    eventually("namespaces of earlier tests to be gone", READY, || {
        let namespaces = kubectl.list("namespaces", "test.example/e2e=true")?;
        let terminating: Vec<_> =
            namespaces.iter().filter(|namespace| !namespace["metadata"]["deletionTimestamp"].is_null()).collect();
        anyhow::ensure!(terminating.is_empty(), "{} are terminating", terminating.len());
        Ok(())
    })
}

// === impl Namespace ===

impl Namespace {
    /// Creates one; installs Weft first.
    pub fn create(test: &str, mesh: Mesh) -> Result<Self> {
        install::ensure()?;
        let cluster = Cluster::get()?;
        let suffix = RandomState::new().build_hasher().finish() & 0xf_ffff;
        let name = format!("e2e-{test}-{suffix:05x}");
        let label = match mesh {
            Mesh::Inside => "weft.dev/inject: enabled",
            Mesh::Outside => "test.example/outside: \"true\"",
        };
        Kubectl::new(cluster).apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {name}\n  labels:\n    test.example/e2e: \"true\"\n    {label}\n"
        ))?;
        // From here on drop deletes the namespace, also if the following fails.
        let namespace = Self { kubectl: Kubectl::within(cluster, &name), name, test: test.to_owned(), failed: false };
        // Pods are refused until their service account exists. Kubernetes' controller that creates it may back off
        // for half a minute after a test that stopped the API server.
        eventually("the default service account", READY, || namespace.get("serviceaccount", "default"))?;
        Ok(namespace)
    }

    /// Waits until a condition has the status, for the object's current generation.
    pub fn await_condition(&self, kind: &str, name: &str, condition: &str, status: &str) -> Result<Condition> {
        eventually(&format!("{condition}={status} of {kind}/{name}"), SOON, || {
            let found = self.condition(kind, name, condition)?;
            anyhow::ensure!(found.status == status, "the condition is {found:?}");
            Ok(found)
        })
    }

    /// Applies mesh objects and waits until they are programmed. `objects` are `kind/name`.
    pub fn program(&self, yaml: &str, objects: &[&str]) -> Result<()> {
        self.apply(yaml)?;
        for object in objects {
            let (kind, name) = object.split_once('/').unwrap_or(("meshroute", object));
            self.await_condition(kind, name, "Programmed", "True")?;
        }
        Ok(())
    }

    /// Waits until the Deployments are rolled out.
    pub fn wait_ready(&self, deployments: &[&str]) -> Result<()> {
        deployments.iter().try_for_each(|name| self.rolled_out(&format!("deployment/{name}"), READY))
    }

    /// The name of the only pod with the label `app`.
    pub fn pod_of(&self, app: &str) -> Result<String> {
        let pods = self.pods_of(app)?;
        anyhow::ensure!(pods.len() == 1, "one pod should have the label app={app}, not {pods:?}");
        Ok(pods[0].clone())
    }

    /// The names of the pods with the label `app` that are not terminating.
    pub fn pods_of(&self, app: &str) -> Result<Vec<String>> {
        let pods = self.list("pods", &format!("app={app}"))?;
        let live = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        Ok(live.filter_map(|pod| pod["metadata"]["name"].as_str()).map(str::to_owned).collect())
    }

    /// Waits until no proxy of the namespace has a request, a stream or an active upstream connection, or more file
    /// descriptors than its connections explain. Proxies whose metrics cannot be read (pod or API server gone) are
    /// skipped.
    fn await_idle_proxies(&self) -> Result<()> {
        for pod in self.list("pods", "").unwrap_or_default() {
            let sidecars = pod.pointer("/status/initContainerStatuses").and_then(|sidecars| sidecars.as_array());
            let runs = sidecars.is_some_and(|sidecars| {
                sidecars.iter().any(|sidecar| sidecar["name"] == PROXY && sidecar["ready"] == true)
            });
            let Some(name) = pod["metadata"]["name"].as_str().filter(|_| runs) else { continue };
            if !pod["metadata"]["deletionTimestamp"].is_null() {
                continue;
            }
            eventually(&format!("the proxy of {name} to be idle"), SOON, || {
                let Ok(page) = self.pod_get(name, 15020, "metrics") else { return Ok(()) };
                let metrics = Metrics::parse(&page);
                let sum = |metric: &str| metrics.sum(metric, &[]);
                let http1 = metrics.sum("weft_upstream_connections_open", &[("protocol", "http1")]);
                let connections = sum("weft_upstream_connections_open") + sum("weft_downstream_connections_open");
                let held = [
                    ("requests", sum("weft_requests_in_flight")),
                    ("streams", sum("weft_http2_streams_open")),
                    ("active connections", http1 - sum("weft_upstream_connections_idle")),
                    ("descriptors", (sum("process_open_fds") - connections - BASE_DESCRIPTORS_MAX).max(0.0)),
                ];
                anyhow::ensure!(held.iter().all(|(_, count)| *count == 0.0), "it has {held:?}");
                Ok(())
            })?;
        }
        Ok(())
    }

    /// Saves the evidence of a failure and prints its directory. Best effort.
    fn keep_evidence(&self) {
        let directory = target().join("e2e").join(&self.test);
        if fs::create_dir_all(&directory).is_err() {
            return;
        }
        let keep = |file: &str, kubectl: &Kubectl, arguments: &[&str]| {
            let text = match kubectl.run_with(arguments, "", Duration::from_secs(20)) {
                Ok(output) => output.stdout + &output.stderr,
                Err(error) => format!("{error:#}\n"),
            };
            // A full disk must not hide why the test failed.
            let _ = fs::write(directory.join(file), text);
        };
        keep("pods.txt", &self.kubectl, &["get", "pods,services,endpointslices", "-o", "wide"]);
        keep("pods.yaml", &self.kubectl, &["get", "pods", "-o", "yaml"]);
        keep("events.txt", &self.kubectl, &["get", "events", "--sort-by=.metadata.creationTimestamp"]);
        keep("weft.yaml", &self.kubectl, &["get", "weft", "-o", "yaml"]);
        for pod in self.list("pods", "").unwrap_or_default() {
            let Some(name) = pod["metadata"]["name"].as_str() else { continue };
            keep(&format!("{name}.log"), &self.kubectl, &["logs", name, "--all-containers", "--prefix", "--tail=300"]);
        }
        let Ok(cluster) = Cluster::get() else { return };
        for (namespace, object) in [("weft-config", "x"), ("weft-inbound", "i")] {
            let kubectl = Kubectl::within(cluster, namespace);
            let object = format!("{object}.{}", self.name);
            keep(&format!("{object}.yaml"), &kubectl, &["get", "configmap", &object, "-o", "yaml"]);
        }
        let system = Kubectl::within(cluster, "weft-system");
        for workload in ["weft-operator", "weft-injector"] {
            let from = format!("deployment/{workload}");
            keep(&format!("{workload}.log"), &system, &["logs", &from, "--tail=300"]);
        }
        eprintln!("{}: pods, events, objects and logs are in {}", self.test, directory.display());
    }

    /// The directory for files of the test, created if missing.
    pub fn directory(&self) -> Result<PathBuf> {
        let directory = target().join("e2e").join(&self.test);
        fs::create_dir_all(&directory)?;
        Ok(directory)
    }
}

impl Deref for Namespace {
    type Target = Kubectl;

    fn deref(&self) -> &Kubectl {
        &self.kubectl
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.failed || std::thread::panicking() {
            self.keep_evidence();
        }
        if std::env::var_os("WEFT_E2E_KEEP").is_some() {
            eprintln!("{}: namespace {} is kept (WEFT_E2E_KEEP)", self.test, self.name);
        } else if let Err(error) = self.kubectl.delete("namespace", &self.name) {
            eprintln!("{}: cannot delete namespace {}: {error:#}", self.test, self.name);
        }
    }
}
