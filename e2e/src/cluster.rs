//! Which cluster is used, and the programs that drive it.
//!
//! With `KUBECONFIG` in the environment it is that cluster; without, the one that `make cluster-up` starts. What only the
//! latter can do (stop its API server, end a process in a pod) is asked of [`Cluster::embedded`].

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use crate::command;

const SCRIPT_LIMIT: Duration = Duration::from_secs(120);

/// The cluster under test.
#[derive(Clone, Debug)]
pub struct Cluster {
    /// Path of the kubeconfig.
    pub kubeconfig: PathBuf,
    /// The kubectl binary.
    pub kubectl: PathBuf,
    /// The helm binary.
    pub helm: PathBuf,
    embedded: Option<Embedded>,
}

/// What can be done to a cluster that our own scripts started on this machine.
#[derive(Clone, Debug)]
pub struct Embedded {
    /// Its name.
    pub name: String,
}

/// The root of the checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// Where results of tests and of the demo are kept.
pub fn target() -> PathBuf {
    checkout().join("target")
}

// === impl Cluster ===

impl Cluster {
    /// The cluster under test. Fails with what to do when there is none.
    pub fn get() -> Result<&'static Self> {
        static CLUSTER: OnceLock<Result<Cluster, String>> = OnceLock::new();
        CLUSTER
            .get_or_init(|| Self::find().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("{error}"))
    }

    /// What only a cluster of our own scripts can do.
    pub fn embedded(&self) -> Result<&Embedded> {
        self.embedded.as_ref().context(
            "this test interferes with the cluster's own processes, which only the cluster of `make cluster-up` allows: \
             run it without KUBECONFIG",
        )
    }

    /// What makes a plain `kubectl` in a shell talk to it.
    pub fn exports(&self) -> String {
        let kubeconfig = format!("export KUBECONFIG={}", self.kubeconfig.display());
        match self.kubectl.parent() {
            Some(folder) if on_path("kubectl").is_none() => format!("{kubeconfig} PATH=$PATH:{}", folder.display()),
            _ => kubeconfig,
        }
    }

    fn find() -> Result<Self> {
        let cluster = match std::env::var("KUBECONFIG") {
            Ok(path) if !path.is_empty() => Self {
                kubeconfig: PathBuf::from(path),
                kubectl: on_path("kubectl").map_or_else(|| build("kubectl"), Ok)?,
                helm: on_path("helm").map_or_else(|| build("helm"), Ok)?,
                embedded: None,
            },
            _ => {
                let name = std::env::var("WEFT_CLUSTER").unwrap_or_else(|_| "weft".to_owned());
                let kubeconfig = script("kubeconfig.sh", &["--name", &name])
                    .context("there is no cluster to test on: run `make cluster-up`, or set KUBECONFIG")?;
                Self {
                    kubeconfig: PathBuf::from(kubeconfig),
                    kubectl: build("kubectl")?,
                    helm: build("helm")?,
                    embedded: Some(Embedded { name }),
                }
            }
        };
        let mut ask = Command::new(&cluster.kubectl);
        ask.env("KUBECONFIG", &cluster.kubeconfig).args(["get", "--raw", "/readyz", "--request-timeout=10s"]);
        command::run(&mut ask, "", Duration::from_secs(20))?
            .stdout_of_success("kubectl get --raw /readyz")
            .with_context(|| {
                format!("the cluster of {} does not answer: run `make cluster-up`", cluster.kubeconfig.display())
            })?;
        Ok(cluster)
    }
}

// === impl Embedded ===

impl Embedded {
    /// Stops the API server. It is started again when the returned value is dropped.
    pub fn stop_api_server(&self) -> Result<StoppedApiServer<'_>> {
        let stopped = StoppedApiServer(self);
        script("apiserver.sh", &["--name", &self.name, "stop"])?;
        Ok(stopped)
    }

    /// Ends the process of a pod's container as an out-of-memory kill would: at once, and without the API server. The
    /// kubelet then starts the container again. The pod is named by its UID.
    pub fn kill_container(&self, pod_uid: &str, container: &str) -> Result<()> {
        let ours: Vec<u32> = fs::read_dir("/proc")?
            .flatten()
            .filter_map(|process| process.file_name().to_str()?.parse().ok())
            .filter(|pid| runs_in(*pid, pod_uid, container))
            .collect();
        ensure!(!ours.is_empty(), "no process of container {container} of pod {pod_uid} runs on this machine");
        for pid in ours {
            let mut kill = Command::new("kill");
            kill.args(["-KILL", &pid.to_string()]);
            command::run(&mut kill, "", Duration::from_secs(5))?.stdout_of_success("kill")?;
        }
        Ok(())
    }
}

/// The kubelet mounts a termination log of its own into each container, from a folder named after pod and container. It is
/// in the mount table of the container's processes, whatever the image holds.
fn runs_in(pid: u32, pod_uid: &str, container: &str) -> bool {
    let mounts = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let folder = format!("/pods/{pod_uid}/containers/{container}/");
    mounts.lines().any(|line| line.contains(&folder) && line.contains(" /dev/termination-log "))
}

/// An API server that is stopped for as long as this lives.
#[derive(Debug)]
pub struct StoppedApiServer<'a>(&'a Embedded);

impl StoppedApiServer<'_> {
    /// Starts it again, and says when that fails.
    pub fn start(self) -> Result<()> {
        self.restart()
    }

    fn restart(&self) -> Result<()> {
        script("apiserver.sh", &["--name", &self.0.name, "start"]).map(drop)
    }
}

impl Drop for StoppedApiServer<'_> {
    fn drop(&mut self) {
        // Also after `start`: the script leaves a server that runs alone, and a panic must not leave the cluster dead.
        if let Err(error) = self.restart() {
            eprintln!("the API server does not start again: {error:#}");
        }
    }
}

/// Runs a script of e2e/cluster and gives back what it printed.
fn script(name: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(checkout().join("e2e/cluster").join(name));
    command.args(arguments);
    let what = command::describe(&command);
    Ok(command::run(&mut command, "", SCRIPT_LIMIT)?.stdout_of_success(&what)?.trim().to_owned())
}

/// A program that the cluster's own build makes.
fn build(program: &str) -> Result<PathBuf> {
    script("build.sh", &["--print", program]).map(PathBuf::from)
}

fn on_path(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(|path| path.is_file())
}
